//! The type of a metric family.
//!
//! *In*: the word of an exposition or a byte of the wire. *Out*: [`MetricType`]. *Bound*: eight values. *When full*: not applicable.

use std::fmt;
use std::str::FromStr;

/// The type of a metric family, as OpenMetrics names them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum MetricType {
    /// Nothing is known (`untyped` in the older text format).
    #[default]
    Unknown = 0,
    /// Grows until a reset.
    Counter = 1,
    /// Goes up and down.
    Gauge = 2,
    /// Cumulative buckets, sum and count.
    Histogram = 3,
    /// Buckets that go up and down.
    GaugeHistogram = 4,
    /// Quantiles, sum and count.
    Summary = 5,
    /// Labels only, the value is 1.
    Info = 6,
    /// One series per state, 0 or 1.
    StateSet = 7,
}

/// A word that names no metric type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("cannot read a metric type")]
pub struct UnknownMetricType;

impl MetricType {
    /// All of them by their numbers.
    pub const ALL: [Self; 8] =
        [Self::Unknown, Self::Counter, Self::Gauge, Self::Histogram, Self::GaugeHistogram, Self::Summary, Self::Info, Self::StateSet];

    /// The word of the exposition formats.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
            Self::GaugeHistogram => "gaugehistogram",
            Self::Summary => "summary",
            Self::Info => "info",
            Self::StateSet => "stateset",
        }
    }

    pub(crate) fn from_wire(byte: u8) -> Option<Self> {
        Self::ALL.get(usize::from(byte)).copied()
    }
}

impl fmt::Display for MetricType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for MetricType {
    type Err = UnknownMetricType;

    /// Reads the word of an exposition; `untyped` is the older word for unknown.
    ///
    /// *Errors*: any other word; the caller reports it and goes on with `Unknown`.
    fn from_str(word: &str) -> Result<Self, Self::Err> {
        if word == "untyped" {
            return Ok(Self::Unknown);
        }
        Self::ALL.into_iter().find(|kind| kind.as_str() == word).ok_or(UnknownMetricType)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_bytes_read_back() {
        for kind in MetricType::ALL {
            assert_eq!(kind.as_str().parse(), Ok(kind));
            assert_eq!(MetricType::from_wire(kind as u8), Some(kind));
        }
        assert_eq!("untyped".parse(), Ok(MetricType::Unknown));
        assert_eq!("Counter".parse::<MetricType>(), Err(UnknownMetricType));
        assert_eq!(MetricType::from_wire(8), None);
    }
}
