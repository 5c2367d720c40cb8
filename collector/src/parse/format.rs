//! Which format a page is in, and what was wrong with it that is tolerated.
//!
//! - *In:* a `Content-Type`. *Out:* a [`Format`]; counts per [`Defect`]. *Bound:* closed sets. *When full:* does not apply.

/// The format of a page.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Format {
    /// Prometheus text, 0.0.4 or 1.0.0.
    #[default]
    Text,
    /// OpenMetrics text, 0.0.1 or 1.0.0.
    OpenMetrics,
    /// `io.prometheus.client.MetricFamily` messages, each behind its length.
    Protobuf,
}

/// Something that a format does not allow and that is taken all the same, as in Prometheus 3.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Defect {
    /// The answer has no `Content-Type`, or one that is none of the formats'.
    ContentType,
    /// An exemplar's labels have more characters than OpenMetrics allows.
    ExemplarTooLong,
    /// OpenMetrics: a new series without the suffix that its family's type demands (`_total`, `_info`, `_bucket`, …).
    Suffix,
    /// OpenMetrics, at a change of the page: a family's type is told twice.
    TypeTwice,
    /// Protobuf: a metric without the message that its family's type demands; it is no sample.
    ValueMissing,
    /// Protobuf: an exemplar of a native histogram without a timestamp; it is dropped.
    ExemplarTime,
}

/// How many of each defect a page has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Defects([u32; Defect::ALL.len()]);

impl Defect {
    /// All of them, in the order of their discriminants.
    pub const ALL: [Self; 6] =
        [Self::ContentType, Self::ExemplarTooLong, Self::Suffix, Self::TypeTwice, Self::ValueMissing, Self::ExemplarTime];

    /// The word in the metric's label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ContentType => "content_type",
            Self::ExemplarTooLong => "exemplar_too_long",
            Self::Suffix => "suffix",
            Self::TypeTwice => "type_twice",
            Self::ValueMissing => "value_missing",
            Self::ExemplarTime => "exemplar_time",
        }
    }
}

impl Defects {
    /// Counts one more if `found`.
    pub fn add(&mut self, defect: Defect, found: bool) {
        self.0[defect as usize] = self.0[defect as usize].saturating_add(u32::from(found));
    }

    /// Each defect that was found, and how often.
    pub fn found(&self) -> impl Iterator<Item = (Defect, u32)> {
        Defect::ALL.into_iter().zip(self.0).filter(|(_, count)| *count > 0)
    }
}
