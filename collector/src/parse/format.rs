//! Which format a page is in, and what can be wrong with a page that is taken all the same.
//!
//! - *In:* a `Content-Type`; what readers and [`crate::strict`] find. *Out:* a [`Format`]; counts per [`Defect`]. *Bound:* closed sets.
//! - *When full:* does not apply.

use std::fmt;

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

/// One line per defect: what it is, its variant, its word in the metric's label, and what is right.
macro_rules! defects {
    ($($(#[$doc:meta])+ $variant:ident, $word:literal, $rule:literal;)+) => {
        /// Something that a format does not allow and that is taken all the same, as in Prometheus 3, unless `strict` is set.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Defect {
            $($(#[$doc])+ $variant,)+
        }

        impl Defect {
            /// All of them, in the order of their discriminants.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The word in the metric's label.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }
        }

        impl fmt::Display for Defect {
            /// What is right.
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self {
                    $(Self::$variant => $rule,)+
                })
            }
        }
    };
}

defects! {
    /// The answer has no `Content-Type`, or one that is none of the formats'.
    ContentType, "content_type", "an answer says which of the formats it is in";
    /// An exemplar's labels have more characters than OpenMetrics allows.
    ExemplarTooLong, "exemplar_too_long", "the labels of an exemplar have at most 128 characters";
    /// A sample of the bare name of a family whose type demands a suffix, or with one that the type does not have.
    Suffix, "suffix", "a sample has its family's name and a suffix of its family's type";
    /// A family's type is told twice.
    TypeTwice, "type_twice", "a family has one TYPE line";
    /// Protobuf: a metric without the message that its family's type demands; it is no sample.
    ValueMissing, "value_missing", "a metric has the value of its family's type";
    /// Protobuf: an exemplar of a native histogram without a timestamp; it is dropped.
    ExemplarTime, "exemplar_time", "an exemplar of a native histogram has a timestamp";
    /// A classic histogram that is to be converted and does not hold together; it is dropped.
    Unconverted, "histogram_unconverted", "the buckets of a histogram that is converted are cumulative and end at its count";
    /// OpenMetrics: a timestamp beyond 64 bits of milliseconds; what has it is dropped.
    TimestampRange, "timestamp_range", "a timestamp in milliseconds fits 64 bits";
    /// A family's help is told twice.
    HelpTwice, "help_twice", "a family has one HELP line";
    /// OpenMetrics: a family's unit is told twice.
    UnitTwice, "unit_twice", "a family has one UNIT line";
    /// A family is described behind its first sample.
    MetadataLate, "metadata_late", "a family is described before its first sample";
    /// Text: a type that only OpenMetrics has.
    TypeWord, "type_word", "a type is one of counter, gauge, histogram, summary, untyped";
    /// OpenMetrics: a unit where the type has none.
    UnitForbidden, "unit_forbidden", "an info and a stateset have no unit";
    /// A family goes on behind another one.
    FamilyInterleaved, "family_interleaved", "all lines of a family stand together";
    /// OpenMetrics: a metric goes on behind another one of its family.
    MetricInterleaved, "metric_interleaved", "all samples of a metric stand together";
    /// A series has two samples.
    SeriesTwice, "series_twice", "a name with labels stands once on a page";
    /// OpenMetrics: the samples of a metric go back in time, or only some have one.
    PointOrder, "point_order", "the samples of a metric do not go back in time, and all have one or none";
    /// OpenMetrics: two families can have samples of one name.
    NameClash, "name_clash", "no two families can have samples of one name";
    /// OpenMetrics: a family's name that begins with `_`.
    NameReserved, "name_reserved", "a family's name does not begin with '_'";
    /// OpenMetrics: a label's name that begins with `_`.
    LabelReserved, "label_reserved", "a label's name does not begin with '_'";
    /// OpenMetrics: a name in quotes.
    QuotedName, "quoted_name", "names are not quoted";
    /// OpenMetrics: a comma behind the last label.
    TrailingComma, "trailing_comma", "no comma follows the last label";
    /// Text: no comma between two labels.
    CommaMissing, "comma_missing", "a comma stands between labels";
    /// OpenMetrics: a line that ends with a carriage return.
    CarriageReturn, "carriage_return", "a line ends with a line feed and no carriage return";
    /// OpenMetrics: a help text with a bare quote, or a backslash at its end. Text: a line feed, or a backslash that begins no escape.
    Escape, "escape", "quotes, backslashes and line feeds are escaped";
    /// OpenMetrics: a page without bytes.
    EofMissing, "eof_missing", "a page ends with '# EOF'";
    /// Text: a last line without its line break.
    LineBreak, "line_break", "the last line ends with a line feed";
    /// A counter that is NaN or below 0.
    CounterValue, "counter_value", "a counter is neither NaN nor below 0";
    /// OpenMetrics: a counter with nothing but its start.
    TotalMissing, "total_missing", "a counter has a total";
    /// OpenMetrics: a start that is no time.
    CreatedValue, "created_value", "a start is a finite number of seconds";
    /// OpenMetrics: a state that is neither 0 nor 1.
    StateValue, "state_value", "a state is 0 or 1";
    /// OpenMetrics: a state without the label that names it.
    StateMissing, "state_missing", "a state is named by a label with its family's name";
    /// OpenMetrics: an info that is not 1.
    InfoValue, "info_value", "an info is 1";
    /// A bucket without `le`.
    LeMissing, "le_missing", "a bucket has a label le";
    /// A bucket whose `le` is no number, or an infinity in other words than `+Inf`.
    LeValue, "le_value", "le is a number, the infinite one +Inf";
    /// OpenMetrics: `le` where no bucket is.
    LeForbidden, "le_forbidden", "only buckets have a label le";
    /// Buckets that do not go up by `le`.
    BucketOrder, "bucket_order", "buckets stand in the order of le, each once";
    /// Buckets whose counts go down.
    BucketCumulative, "bucket_cumulative", "a bucket counts what the smaller ones count, too";
    /// OpenMetrics: a bucket's count that is no whole number from 0 up.
    BucketValue, "bucket_value", "a bucket's value is a whole number from 0 up";
    /// A histogram without a `+Inf` bucket.
    BucketInf, "bucket_inf", "a histogram has a bucket with le=\"+Inf\"";
    /// A count that is not that of the `+Inf` bucket.
    CountMismatch, "count_mismatch", "the count is that of the +Inf bucket";
    /// OpenMetrics: a count that is no whole number from 0 up.
    CountValue, "count_value", "a count is a whole number from 0 up";
    /// OpenMetrics: a sum that is NaN, or below 0 where none can be.
    SumValue, "sum_value", "a sum is not NaN, and not below 0 without buckets below 0";
    /// OpenMetrics: a sum without a count, or a count without a sum.
    SumAlone, "sum_alone", "a histogram has both sum and count, or neither";
    /// OpenMetrics: a histogram's sum beside buckets below 0.
    SumForbidden, "sum_forbidden", "a histogram with buckets below 0 has no sum";
    /// A summary's sample without `quantile`.
    QuantileMissing, "quantile_missing", "a summary's sample of the bare name has a label quantile";
    /// A quantile that is not between 0 and 1.
    QuantileValue, "quantile_value", "quantile is a number from 0 to 1";
    /// Text: quantiles that do not go up.
    QuantileOrder, "quantile_order", "quantiles stand in their order";
    /// OpenMetrics: `quantile` on a sum or a count.
    QuantileForbidden, "quantile_forbidden", "sum, count and start have no label quantile";
    /// OpenMetrics: a quantile's value below 0.
    QuantileSample, "quantile_sample", "a quantile's value is not below 0";
    /// OpenMetrics: an exemplar on anything but a total or a bucket.
    ExemplarPlace, "exemplar_place", "only totals and buckets have exemplars";
    /// OpenMetrics: an exemplar's value above its bucket.
    ExemplarRange, "exemplar_range", "an exemplar's value lies in its bucket";
    /// OpenMetrics: an exemplar has a label twice.
    ExemplarLabel, "exemplar_label", "an exemplar has each label once";
    /// Protobuf: a fraction of a second that is none.
    Nanos, "nanos", "a timestamp's nanoseconds lie between 0 and 999999999";
}

/// How many of each defect a page has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Defects([u32; Defect::ALL.len()]);

impl Defect {
    /// Whether the page's reader itself counts it, on every page; the others are found by [`crate::strict`].
    pub const fn is_counted_by_reader(self) -> bool {
        matches!(
            self,
            Self::ContentType | Self::ExemplarTooLong | Self::ValueMissing | Self::ExemplarTime | Self::Unconverted | Self::TimestampRange
        )
    }

    /// Whether `strict` refuses a page for it: what no specification forbids is only dropped and counted.
    pub const fn is_refused(self) -> bool {
        !matches!(self, Self::TimestampRange | Self::Unconverted)
    }
}

impl Default for Defects {
    fn default() -> Self {
        Self([0; Defect::ALL.len()])
    }
}

impl Defects {
    /// Counts one more if `found`.
    pub fn add(&mut self, defect: Defect, found: bool) {
        self.0[defect as usize] = self.0[defect as usize].saturating_add(u32::from(found));
    }

    /// Takes what a check found beside what the reader counted itself.
    pub fn add_checked(&mut self, checked: &Self) {
        for ((defect, own), found) in Defect::ALL.iter().zip(&mut self.0).zip(checked.0) {
            if !defect.is_counted_by_reader() {
                *own = own.saturating_add(found);
            }
        }
    }

    /// Each defect that was found, and how often.
    pub fn found(&self) -> impl Iterator<Item = (Defect, u32)> {
        Defect::ALL.iter().copied().zip(self.0).filter(|(_, count)| *count > 0)
    }
}
