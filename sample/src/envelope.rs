//! The headers of a message: who wrote it, its place in the producer's chain, and what it counts.
//!
//! *In*: a producer's counters and the payload's checksum. *Out*: header names and values, and back. *Bound*: numbers and one name.
//! *When full*: not applicable.

use crate::WIRE_VERSION;

/// What a message says of itself outside its payload.
///
/// *Shape*: `n` and the totals count per producer, epoch and partition, from 1; the totals include this message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Envelope {
    /// The producer's stable name: no space, no colon.
    pub producer: String,
    /// The partition, 0 where the stream has one only.
    pub partition: u32,
    /// The producer's start, in ms; epochs of one producer are ordered.
    pub epoch: u64,
    /// The place in the chain.
    pub n: u64,
    /// Samples in this message.
    pub samples: u64,
    /// Samples in this and all earlier messages of the epoch.
    pub samples_total: u64,
    /// Samples dropped before they could be published, in the epoch so far.
    pub dropped_total: u64,
    /// The lowest nominal slot in it, ms.
    pub first_ms: i64,
    /// The highest nominal slot in it, ms.
    pub last_ms: i64,
    /// CRC32C of the payload as published.
    pub crc32c: u32,
}

/// Why headers could not be read; the reader parks the message, or waits where its writer is newer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// A header is not there.
    #[error("cannot find the header \"{0}\"")]
    Missing(&'static str),
    /// A header does not have its form.
    #[error("cannot read the header \"{0}\"")]
    Malformed(&'static str),
    /// The writer is newer than this reader, or older than any that it knows.
    #[error("cannot read wire version {0}")]
    Version(u64),
}

impl EnvelopeError {
    /// The wire version, where the writer is newer than this reader.
    #[must_use]
    pub fn newer(&self) -> Option<u64> {
        match self {
            Self::Version(version) => Some(*version).filter(|version| *version > u64::from(WIRE_VERSION)),
            Self::Missing(_) | Self::Malformed(_) => None,
        }
    }
}

const ID: &str = "Nats-Msg-Id";
const VERSION: &str = "St-Version";
const BATCH: &str = "St-Batch";
const SAMPLES: &str = "St-Samples";
const TIME: &str = "St-Time";
const CRC: &str = "St-Crc32c";

/// The CRC32C of a payload, for [`Envelope::crc32c`].
#[must_use]
pub fn checksum(payload: &[u8]) -> u32 {
    crc32c::crc32c(payload)
}

impl Envelope {
    /// The message's identity: `<producer>:<epoch>:<n>`, and `:<partition>` where it is not 0.
    #[must_use]
    pub fn id(&self) -> String {
        let Self { producer, partition, epoch, n, .. } = self;
        if *partition == 0 { format!("{producer}:{epoch}:{n}") } else { format!("{producer}:{epoch}:{n}:{partition}") }
    }

    /// The headers to publish with the payload.
    #[must_use]
    pub fn headers(&self) -> Vec<(&'static str, String)> {
        let mut batch = format!("{} {} {}", self.producer, self.epoch, self.n);
        if self.partition != 0 {
            batch.push_str(&format!(" {}", self.partition));
        }
        vec![
            (ID, self.id()),
            (VERSION, WIRE_VERSION.to_string()),
            (BATCH, batch),
            (SAMPLES, format!("{} {} {}", self.samples, self.samples_total, self.dropped_total)),
            (TIME, format!("{} {}", self.first_ms, self.last_ms)),
            (CRC, format!("{:08x}", self.crc32c)),
        ]
    }

    /// Reads the headers of a message.
    ///
    /// *Errors*: [`EnvelopeError::Version`] first, as the others may follow from it.
    pub fn parse<'h>(get: impl Fn(&str) -> Option<&'h str>) -> Result<Self, EnvelopeError> {
        let header = |name: &'static str| get(name).ok_or(EnvelopeError::Missing(name));
        let version = number(Some(header(VERSION)?), VERSION)?;
        if version != u64::from(WIRE_VERSION) {
            return Err(EnvelopeError::Version(version));
        }
        let mut batch = header(BATCH)?.split(' ');
        let producer = batch.next().filter(|name| !name.is_empty()).ok_or(EnvelopeError::Malformed(BATCH))?;
        let (epoch, n) = (number(batch.next(), BATCH)?, number(batch.next(), BATCH)?);
        let partition = batch.next().map_or(Ok(0), |text| number(Some(text), BATCH))?;
        let mut samples = header(SAMPLES)?.split(' ');
        let mut count = || number(samples.next(), SAMPLES);
        let (in_message, samples_total, dropped_total) = (count()?, count()?, count()?);
        let mut time = header(TIME)?.split(' ');
        let (first_ms, last_ms) = (number(time.next(), TIME)?, number(time.next(), TIME)?);
        if batch.next().is_some() || samples.next().is_some() || time.next().is_some() {
            return Err(EnvelopeError::Malformed("St-*"));
        }
        let crc = header(CRC)?;
        let crc32c = u32::from_str_radix(crc, 16).map_err(|_| EnvelopeError::Malformed(CRC))?;
        let producer = producer.to_owned();
        Ok(Self { producer, partition, epoch, n, samples: in_message, samples_total, dropped_total, first_ms, last_ms, crc32c })
    }

    /// Whether the payload is the one these headers were written for.
    #[must_use]
    pub fn matches(&self, payload: &[u8]) -> bool {
        self.crc32c == checksum(payload)
    }
}

fn number<T: std::str::FromStr>(text: Option<&str>, name: &'static str) -> Result<T, EnvelopeError> {
    text.and_then(|text| text.parse().ok()).ok_or(EnvelopeError::Malformed(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn envelope() -> Envelope {
        let mut envelope = Envelope { producer: "node-1".into(), epoch: 1_700_000_000_000, n: 7, samples: 10, ..Envelope::default() };
        (envelope.samples_total, envelope.dropped_total) = (90, 3);
        (envelope.first_ms, envelope.last_ms, envelope.crc32c) = (-5, 1_700_000_015_000, checksum(b"payload"));
        envelope
    }

    fn parse(headers: &[(&'static str, String)]) -> Result<Envelope, EnvelopeError> {
        Envelope::parse(|name| headers.iter().find(|(n, _)| *n == name).map(|(_, value)| value.as_str()))
    }

    #[test]
    fn headers_read_back() {
        let mut envelope = envelope();
        assert_eq!(envelope.headers()[0], ("Nats-Msg-Id", "node-1:1700000000000:7".to_owned()));
        assert_eq!(envelope.headers()[2], ("St-Batch", "node-1 1700000000000 7".to_owned()));
        assert_eq!(parse(&envelope.headers()), Ok(envelope.clone()));
        envelope.partition = 3;
        assert_eq!(envelope.id(), "node-1:1700000000000:7:3");
        assert_eq!(parse(&envelope.headers()), Ok(envelope));
    }

    #[test]
    fn a_payload_that_changed_does_not_match() {
        assert!(envelope().matches(b"payload"));
        assert!(!envelope().matches(b"Payload"));
        assert_eq!(checksum(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn bad_headers_are_named() {
        let check = |at: usize, value: &str, expect: EnvelopeError| {
            let mut headers = envelope().headers();
            headers[at].1 = value.to_owned();
            assert_eq!(parse(&headers), Err(expect), "{value}");
        };
        check(1, "2", EnvelopeError::Version(2));
        check(1, "one", EnvelopeError::Malformed(VERSION));
        check(2, " 1 2", EnvelopeError::Malformed(BATCH));
        check(2, "a 1", EnvelopeError::Malformed(BATCH));
        check(2, "a 1 2 3 4", EnvelopeError::Malformed("St-*"));
        check(3, "1 2", EnvelopeError::Malformed(SAMPLES));
        check(4, "1 x", EnvelopeError::Malformed(TIME));
        check(5, "zz", EnvelopeError::Malformed(CRC));
        let headers = envelope().headers();
        for skipped in 1..headers.len() {
            let kept: Vec<_> = headers.iter().filter(|(name, _)| *name != headers[skipped].0).cloned().collect();
            assert_eq!(parse(&kept), Err(EnvelopeError::Missing(headers[skipped].0)));
        }
        let newer = [EnvelopeError::Version(2), EnvelopeError::Version(0), EnvelopeError::Missing(VERSION)].map(|error| error.newer());
        assert_eq!(newer, [Some(2), None, None]);
    }
}
