//! Why a page is refused.
//!
//! - *In:* what reading a page found. *Out:* a [`PageError`] with a place and a reason. *Bound:* one per page. *When full:* does not apply.

use crate::parse;

/// Why a page is refused as a whole.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PageError {
    /// It breaks the format.
    #[error(transparent)]
    Parse(#[from] parse::Error),
    /// It breaks the protobuf format.
    #[error(transparent)]
    Protobuf(#[from] parse::protobuf::Error),
    /// It has more samples than allowed.
    #[error("cannot take more than {limit} samples (`sample_limit`)")]
    SampleLimit {
        /// The limit.
        limit: u64,
    },
    /// A series exceeds a limit on labels. In protobuf the line is the number of the metric on the page.
    #[error("cannot take the series on line {line}: {found} is over the limit of {limit} (`{option}`)")]
    LabelLimit {
        /// The line, from 1.
        line: usize,
        /// The option that sets the limit.
        option: &'static str,
        /// The limit.
        limit: u64,
        /// What was found.
        found: u64,
    },
    /// A series has a label twice.
    #[error("cannot take the series on line {line}: label {label:?} stands there twice")]
    LabelTwice {
        /// The line, from 1.
        line: usize,
        /// The label's name.
        label: String,
    },
    /// Relabeling took a series' name away.
    #[error("cannot take the series on line {line}: `metric_relabel_configs` left it without a name (`__name__`)")]
    NameMissing {
        /// The line, from 1.
        line: usize,
    },
    /// A name that `metric_name_validation_scheme: legacy` does not allow.
    #[error("cannot take the series on line {line}: {name:?} is no name under `metric_name_validation_scheme: legacy`")]
    NameNotLegacy {
        /// The line, from 1.
        line: usize,
        /// Of the metric or the label.
        name: String,
    },
    /// It breaks a rule of its format that only `strict` refuses.
    #[error("cannot take the page under `strict`: {0}")]
    Strict(crate::strict::Violation),
    /// The page is longer than 4 GiB.
    #[error("cannot read a page of {bytes} bytes")]
    TooLarge {
        /// Its length.
        bytes: usize,
    },
}

impl PageError {
    /// Every reason.
    pub const REASONS: [&'static str; 10] = [
        "parse",
        "sample_limit",
        "label_limit",
        "label_name_length_limit",
        "label_value_length_limit",
        "duplicate_label",
        "name_missing",
        "name_not_legacy",
        "body_size",
        "strict",
    ];

    /// The reason as a metric label: one word of a closed set.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Parse(_) | Self::Protobuf(_) => "parse",
            Self::SampleLimit { .. } => "sample_limit",
            Self::LabelLimit { option, .. } => option,
            Self::LabelTwice { .. } => "duplicate_label",
            Self::NameMissing { .. } => "name_missing",
            Self::NameNotLegacy { .. } => "name_not_legacy",
            Self::TooLarge { .. } => "body_size",
            Self::Strict(_) => "strict",
        }
    }
}
