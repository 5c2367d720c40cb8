//! Who a Kafka sink is by OAuth 2.0 (SASL OAUTHBEARER).
//!
//! *In*: librdkafka's wish for a token, on its own thread. *Out*: a token of the token server. *Bound*: one request at a time, with the HTTP client's
//! own deadline. *When full*: the producer's thread waits for the answer, and the reports wait with it.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use config::OAuth2;
use http_client::Tokens;
use rdkafka::client::OAuthToken;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio_util::task::AbortOnDropHandle;

use crate::backoff::now_ms;

/// Life of a token that does not say when it ends: librdkafka asks for the next after four fifths of it. Larger: a token that ends unsaid is used
/// longer; smaller: more requests for tokens.
const LIFE: Duration = Duration::from_secs(3600);

/// A way to tokens.
pub(super) struct Login {
    tokens: Arc<Tokens>,
    /// The broker takes its own name for the user from the token.
    client_id: String,
    runtime: Handle,
}

impl Login {
    /// *Limits*: made inside the runtime that asks the server.
    pub(super) fn new(config: &OAuth2) -> Self {
        Self { tokens: Arc::new(Tokens::new(config.clone())), client_id: config.client_id.clone(), runtime: Handle::current() }
    }

    /// Waits for a token. *Errors*: the server gives none, or the producer ends.
    pub(super) fn token(&self) -> Result<OAuthToken, Box<dyn Error>> {
        // A producer's thread knows no runtime; who does must not wait, and is about to drop the producer.
        if Handle::try_current().is_ok() {
            return Err("the producer ends".into());
        }
        let (answer, answered) = oneshot::channel();
        let tokens = Arc::clone(&self.tokens);
        let _asking = AbortOnDropHandle::new(self.runtime.spawn(async move {
            // Nobody waits any more: then nobody needs it.
            drop(answer.send(tokens.fresh().await));
        }));
        let access = answered.blocking_recv()??;
        let life = access.life.unwrap_or(LIFE);
        Ok(OAuthToken {
            token: access.token.expose().to_owned(),
            principal_name: self.client_id.clone(),
            lifetime_ms: now_ms().saturating_add(i64::try_from(life.as_millis()).unwrap_or(i64::MAX)),
        })
    }
}
