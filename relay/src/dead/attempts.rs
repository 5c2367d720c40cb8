//! Attempts at sending a relay's letters again, as the ledger has them: which letters they are done with, and whose letters count for nothing.
//!
//! *In*: bookings. *Out*: bookings. *Bound*: the numbers of attempts that were killed, as long as there are letters of them. *When full*: does not apply.

use std::collections::BTreeSet;
use std::sync::Arc;

use bundled_nats::ledger::{Booking, dead_minutes};
use bundled_nats::port::{Error, Headers, Log};
use bytes::Bytes;
use sample::sheet::Sheet;
use tokio_util::sync::CancellationToken;

use super::{Kept, Stopped};
use crate::backoff::{nonce, now_ms};
use crate::book;

/// The header of a booking that says up to which letter it speaks.
const UPTO: &str = "St-Upto";
/// The header of a booking that names attempts of which letters are there that count for nothing.
const VOID: &str = "St-Void";

/// What the ledger says of attempts at a relay's letters.
#[derive(Debug, Clone, Default)]
pub(super) struct Attempts {
    /// Number of the last booking.
    pub number: u64,
    /// The last letter that it spoke for; none: an attempt has begun there, and has not ended.
    pub upto: Option<u64>,
    pub void: BTreeSet<u64>,
}

impl Attempts {
    /// Reads what the last booking says.
    pub async fn read(ledger: &Arc<dyn Log>, relay: &str) -> Result<Self, Error> {
        let Some(last) = ledger.last(&dead_minutes(relay)).await? else { return Ok(Self::default()) };
        let number = Booking::get(&last.headers).map_or(0, |booking| booking.number);
        let upto = last.headers.get(UPTO).and_then(|upto| upto.parse().ok());
        let mut void: BTreeSet<u64> =
            last.headers.get(VOID).into_iter().flat_map(str::split_whitespace).filter_map(|n| n.parse().ok()).collect();
        if upto.is_none() {
            void.insert(number);
        }
        Ok(Self { number, upto, void })
    }

    /// Whether a letter counts for nothing: what it repeats is still there, or has other letters.
    pub fn is_void(&self, kept: &Kept) -> bool {
        kept.attempt.is_some_and(|attempt| self.void.contains(&attempt))
    }

    /// Books something, and whether an attempt ends with it.
    pub async fn book(
        &mut self,
        ledger: &Arc<dyn Log>,
        relay: &str,
        sheet: &Sheet,
        upto: Option<u64>,
        stop: &CancellationToken,
    ) -> Result<(), Stopped> {
        let mut headers = Headers::default();
        headers.insert("Nats-Msg-Id", format!("dead:{:x}:{:x}", now_ms(), nonce()));
        if let Some(upto) = upto {
            headers.insert(UPTO, upto.to_string());
        }
        if !self.void.is_empty() {
            headers.insert(VOID, self.void.iter().map(u64::to_string).collect::<Vec<_>>().join(" "));
        }
        Booking { number: self.number + 1 }.put(&mut headers);
        book::store(ledger, &dead_minutes(relay), &headers, &Bytes::from(sheet.encode(0)), stop).await?;
        (self.number, self.upto) = (self.number + 1, upto);
        Ok(())
    }
}
