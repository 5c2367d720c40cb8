//! How a target's pages are read, and what was counted on one.
//!
//! - *In:* the scrape configuration. *Out:* [`Options`], [`Counts`]. *Bound:* 0 means no limit. *When full:* does not apply.

use std::sync::Arc;

use config::RelabelConfig;

use crate::parse::Defects;

/// How a target's pages are read.
///
/// *Limits:* 0 means no limit. Labels are counted as Prometheus counts them, `__name__` and the target's labels included.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// Whether a page's label wins over the target's of the same name; otherwise it becomes `exported_…`.
    pub honor_labels: bool,
    /// Whether explicit timestamps are used.
    pub honor_timestamps: bool,
    /// Whether a series with an explicit timestamp gets a staleness marker when it vanishes.
    pub track_timestamps_staleness: bool,
    /// Samples per page, those that relabeling drops not counted.
    pub sample_limit: u64,
    /// Labels per series.
    pub label_limit: u64,
    /// Bytes of a label name.
    pub label_name_length_limit: u64,
    /// Bytes of a label value.
    pub label_value_length_limit: u64,
    /// Whether a name that is no legacy name fails the scrape (`metric_name_validation_scheme: legacy`).
    pub legacy_names: bool,
    /// The labels of the target, sorted; they stand in the origin, not in the layout.
    pub target_labels: Vec<(String, String)>,
    /// `metric_relabel_configs`, applied once when a series is first seen.
    pub relabel: Arc<[RelabelConfig]>,
    /// Whether the native part of a protobuf page's histograms is passed over (`scrape_native_histograms: false`).
    pub ignore_native_histograms: bool,
    /// Whether the classic part of a histogram that is native too is passed over (`always_scrape_classic_histograms: false`).
    pub native_histograms_only: bool,
    /// Whether classic histograms become native ones with custom buckets (`convert_classic_histograms_to_nhcb`).
    pub convert_histograms: bool,
    /// Whether the classic series of a histogram that is converted are taken, too (`always_scrape_classic_histograms: true`).
    pub keep_converted: bool,
}

/// What was counted on one page.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Samples on the page, doubles included: `scrape_samples_scraped`.
    pub scraped: u64,
    /// Samples left by metric relabeling, doubles included, as Prometheus counts them: `scrape_samples_post_metric_relabeling`.
    pub post_relabel: u64,
    /// Series that the page before did not have: `scrape_series_added`.
    pub added: u64,
    /// Samples whose series does not stand where the page before had it: it is looked for, and what is new is read. Of all others the bytes are compared only.
    pub searched: u64,
    /// Samples dropped because their series has another one on this page. Of two with the same time (or none) the first stays; of two with
    /// different explicit timestamps the last on the page, because a frame holds one sample per series.
    pub duplicates: u64,
    /// What the format does not allow and was taken all the same, so far as reading shows it.
    pub defects: Defects,
    /// Whether a line of the page is new, moved or gone, against the page before.
    pub changed: bool,
}
