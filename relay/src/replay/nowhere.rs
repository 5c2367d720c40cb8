//! A sink that takes everything and sends nothing: what a replay would send is only counted.
//!
//! *In*: batches within the limits of the sink it stands for. *Out*: nothing. *Bound*: as that sink. *When full*: does not apply.

use std::ops::Range;

use async_trait::async_trait;

use crate::sink::{Answer, Batch, Limits, Sink};
use crate::template::Template;

/// In the place of a sink.
pub(super) struct Nowhere(pub Box<dyn Sink>);

#[async_trait]
impl Sink for Nowhere {
    async fn send(&mut self, _: &Batch, _: Range<usize>) -> Answer {
        Answer::Delivered
    }

    fn limits(&self) -> Limits {
        self.0.limits()
    }

    fn templates(&self) -> Vec<Template> {
        self.0.templates()
    }

    fn routes_apart(&self) -> bool {
        self.0.routes_apart()
    }
}
