//! A sink and its lanes: as many requests at a time as there are of them.
//!
//! *In*: a sink. *Out*: what parts may carry, so that one part keeps every lane busy. *Bound*: as many requests as lanes. *When full*: does
//! not apply.

use tracing::warn;

use crate::sink::{Answer, Limits, Opening, Sink};
use crate::template::Template;

/// What of its lanes' room a part may take, as a fraction: a series is not divided, so no lane gets exactly its share. Larger: a lane with more
/// than its share needs a second, small request; smaller: requests are smaller than they may be.
pub(super) const FILL: (usize, usize) = (7, 8);

/// A sink and the others that send for it at the same time; the first is the sink itself.
#[derive(Default)]
pub struct Lanes(pub(super) Vec<Box<dyn Sink>>);

impl Lanes {
    /// A sink with all the lanes that it wants.
    pub fn of(sink: Box<dyn Sink>) -> Self {
        let others = sink.lanes();
        Self(std::iter::once(sink).chain(others).collect())
    }

    /// What one request may carry.
    pub(super) fn request(&self) -> Limits {
        self.0[0].limits()
    }

    /// What one part may carry.
    pub fn limits(&self) -> Limits {
        let one = self.request();
        let all = |one: usize| one.saturating_mul(self.0.len() * FILL.0) / FILL.1;
        Limits { bytes_max: all(one.bytes_max).max(one.bytes_max), items_max: all(one.items_max).max(one.items_max) }
    }

    /// See [`Sink::templates`].
    pub fn templates(&self) -> Vec<Template> {
        self.0[0].templates()
    }

    /// See [`Sink::routes_apart`].
    pub(super) fn routes_apart(&self) -> bool {
        self.0[0].routes_apart()
    }

    /// See [`Sink::open`].
    pub async fn open(&mut self, opening: Opening<'_>) {
        for sink in &mut self.0 {
            sink.open(opening).await;
        }
    }

    /// See [`Sink::is_once`].
    pub(super) fn is_once(&self) -> bool {
        self.0[0].is_once()
    }

    /// See [`Sink::close`].
    pub(super) async fn close(&mut self, relay: &str) {
        for sink in &mut self.0 {
            match sink.close().await {
                Answer::Delivered => {}
                answer => warn!(relay, ?answer, "the sink did not close cleanly"),
            }
        }
    }
}
