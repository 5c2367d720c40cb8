//! Pauses: a relay that was told to wait holds its place, over restarts too.
//!
//! *In*: requests of a person. *Out*: a key per paused relay in `STRATA_STATE`, read when the relay starts. *Bound*: one small value per relay.
//! *When full*: does not apply; what a paused relay holds is bounded by its `hold` and by the stream, as for any relay that lags.

use bundled_nats::port::{Error, State};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Tries against others who write the same key.
const TRIES: usize = 3;

/// A pause, as `STRATA_STATE` has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pause {
    /// When it began, ms.
    pub since_ms: i64,
    /// When it ends by itself, ms; none: when somebody resumes the relay.
    #[serde(default)]
    pub until_ms: Option<i64>,
}

impl Pause {
    /// Whether its end has come.
    pub fn is_over(&self, now_ms: i64) -> bool {
        self.until_ms.is_some_and(|until| until <= now_ms)
    }
}

/// Key of a relay's pause.
pub fn key(relay: &str) -> String {
    format!("pause.{relay}")
}

/// The pause of a relay, if there is one that is not over. A value that is none of ours is no pause.
pub(crate) async fn read(state: &dyn State, relay: &str, now_ms: i64) -> Result<Option<Pause>, Error> {
    let entry = state.get(&key(relay)).await?;
    let pause = entry.and_then(|entry| serde_json::from_slice::<Pause>(&entry.value).ok());
    Ok(pause.filter(|pause| !pause.is_over(now_ms)))
}

/// Makes a pause last, or removes it.
pub(crate) async fn write(state: &dyn State, relay: &str, pause: Option<Pause>) -> Result<(), Error> {
    let key = key(relay);
    let Some(pause) = pause else {
        return match state.get(&key).await? {
            Some(_) => state.delete(&key).await,
            None => Ok(()),
        };
    };
    let value = Bytes::from(serde_json::to_vec(&pause).unwrap_or_default());
    let mut tries = 0;
    loop {
        tries += 1;
        let revision = state.get(&key).await?.map_or(0, |entry| entry.revision);
        match state.put(&key, value.clone(), revision).await {
            Ok(_) => return Ok(()),
            Err(Error::Conflict { .. }) if tries < TRIES => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use bundled_nats::twin::Twin;

    use super::*;

    #[tokio::test]
    async fn a_pause_lasts_until_it_is_over_or_removed() {
        let state = Twin::new(1 << 20).streams().state;
        assert_eq!(read(&*state, "one", 5).await.expect("it answers"), None);
        let pause = Pause { since_ms: 5, until_ms: Some(10) };
        for other in [Pause { since_ms: 1, until_ms: None }, pause] {
            write(&*state, "one", Some(other)).await.expect("written over what was there");
        }
        assert_eq!(read(&*state, "one", 9).await.expect("it answers"), Some(pause));
        assert_eq!(read(&*state, "two", 9).await.expect("it answers"), None);
        assert_eq!(read(&*state, "one", 10).await.expect("it answers"), None, "over");
        for _ in 0..2 {
            write(&*state, "one", None).await.expect("removed");
        }
        assert_eq!(read(&*state, "one", 0).await.expect("it answers"), None);
    }
}
