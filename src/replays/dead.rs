//! Dead letters of this process' relays: seen, sent again, discarded.
//!
//! *In*: requests. *Out*: what there is; work that tells how far it is. *Bound*: one at a time, by the API. *When full*: 429.

use std::sync::Arc;

use axum::http::StatusCode;
use relay::dead::again::{self, Request, What};
use relay::dead::shelf::{self, Shelved, Shown};
use relay::lines::Lines;

use super::{Replays, names, selector, unavailable};
use crate::api::dead::{Discard, Resend, SamplesQuery};
use crate::api::{Refusal, no_relay};
use crate::reload::relays_of;

impl Replays {
    /// What every relay has on the shelf.
    pub(crate) async fn dead_letters(self: Arc<Self>) -> Result<Vec<Shelved>, Refusal> {
        shelf::list(&self.streams.dead, &self.streams.ledger).await.map_err(|error| unavailable(&error))
    }

    /// Samples of one relay.
    pub(crate) async fn dead_samples(self: Arc<Self>, name: String, query: SamplesQuery) -> Result<Vec<Shown>, Refusal> {
        self.relay(&name)?;
        let selector = selector(query.selector.as_deref())?;
        shelf::show(&self.streams.dead, &self.streams.ledger, &name, selector.as_ref(), query.limit.min(shelf::SAMPLES_MAX))
            .await
            .map_err(|error| unavailable(&error))
    }

    /// Sends letters of one relay again.
    pub(crate) fn resend(&self, name: &str, asked: Resend) -> Result<Lines, Refusal> {
        for (i, rule) in asked.relabel.iter().enumerate() {
            if let Some((field, message)) = rule.mistake() {
                return Err(Refusal::new(StatusCode::BAD_REQUEST, format!("relabel[{i}].{field}: {message}")));
            }
        }
        self.again(name, asked.selector.as_deref(), What::Send { relabel: asked.relabel, rate: asked.rate })
    }

    /// Discards letters of one relay.
    pub(crate) fn discard(&self, name: &str, asked: &Discard) -> Result<Lines, Refusal> {
        self.again(name, asked.selector.as_deref(), What::Discard)
    }

    fn again(&self, name: &str, text: Option<&str>, what: What) -> Result<Lines, Refusal> {
        let (relay, selector) = (self.relay(name)?, selector(text)?);
        let options = relay::Options { external_labels: relays_of(&self.config()).external_labels, ..self.options.clone() };
        Ok(again::start(Request { relay, selector, what }, self.streams.clone(), options, &self.stop))
    }

    fn relay(&self, name: &str) -> Result<config::Relay, Refusal> {
        let config = self.config();
        config.relays.iter().find(|relay| relay.name == name).cloned().ok_or_else(|| no_relay(name, &names(&config)))
    }
}
