//! The CPU part of a scrape: decompress, read the page, encode frames. No I/O, no async.
//!
//! *In*: what the client got. *Out*: one frame per part. *Bound*: the body limit, and the limits of [`crate::series`]. *When full*: the
//! scrape failed: `up` is 0 and every series is stale.

use std::sync::Arc;
use std::time::Duration;

use config::ValidationScheme;
use sample::{Encoder, Flags, Interner};

use crate::client::{Answer, Encoding, Failure, body_limit, inflate};
use crate::parse::Defect;
use crate::queue::Frame;
use crate::series::{Counts, Options, PageError, SeriesCache};
use crate::strict;
use crate::target::Target;

/// Series at the end of a scrape's own that are made where `extra_scrape_metrics` is true.
const EXTRA: usize = 3;

/// Pages between two that are looked through for what is only tolerated; larger: defects that come later are counted later, smaller: a page
/// that changes at every scrape costs a slow pass more often.
const CHECK_PAGES: u32 = 60;
/// How many times longer such a pass takes than reading.
const CHECK_COST: usize = 8;

/// What a target's pages are read with, from scrape to scrape.
pub(super) struct Work {
    target: Arc<Target>,
    cache: SeriesCache,
    /// One per part.
    encoders: Vec<Encoder>,
    /// Bytes of the last page, or of the frames it made: how much the next one will cost.
    size_hint: usize,
    frame_hint: usize,
    /// Pages until one is looked through again.
    unchecked: u32,
}

/// What the client got, and for when.
pub(super) struct Got {
    pub(super) slot_ms: i64,
    pub(super) duration: Duration,
    pub(super) raw: Vec<u8>,
    pub(super) page: Vec<u8>,
    pub(super) result: Result<Answer, Failure>,
}

/// What a scrape came to.
pub(super) struct Done {
    pub(super) frames: Vec<Frame>,
    /// A frame is too large for any message: none of them can be published.
    pub(super) fits: bool,
    pub(super) result: Result<Counts, Failure>,
}

impl Work {
    pub(super) fn new(target: Arc<Target>, layouts: Arc<Interner>) -> Self {
        let scrape = &target.scrape;
        let options = Options {
            honor_labels: scrape.honor_labels,
            honor_timestamps: scrape.honor_timestamps,
            track_timestamps_staleness: scrape.track_timestamps_staleness,
            sample_limit: scrape.sample_limit,
            label_limit: scrape.label_limit,
            label_name_length_limit: scrape.label_name_length_limit,
            label_value_length_limit: scrape.label_value_length_limit,
            legacy_names: scrape.metric_name_validation_scheme == Some(ValidationScheme::Legacy),
            target_labels: target.labels.clone(),
            relabel: target.metric_relabel.clone(),
            ignore_native_histograms: scrape.scrape_native_histograms == Some(false),
            native_histograms_only: scrape.always_scrape_classic_histograms == Some(false),
        };
        let cache = SeriesCache::with_interner(options, layouts);
        Self { target, cache, encoders: Vec::new(), size_hint: 0, frame_hint: 0, unchecked: 0 }
    }

    /// Whether a target's pages are read exactly like this.
    pub(super) fn serves(&self, target: &Target) -> bool {
        self.target.is_read_like(target)
    }

    /// About how many bytes of page the next step has to go through.
    pub(super) fn cost(&self, got: &Got) -> usize {
        let read = match &got.result {
            Ok(Answer { encoding: Encoding::Gzip, .. }) => got.raw.len().saturating_mul(8),
            _ => got.raw.len(),
        };
        let passes = if self.target.scrape.strict { CHECK_COST } else { 1 };
        read.max(self.size_hint).saturating_mul(passes)
    }

    pub(super) fn parts(&self) -> u16 {
        u16::try_from(self.cache.parts().len()).unwrap_or(u16::MAX)
    }

    /// Every part's next frame is a key frame.
    pub(super) fn rebase(&mut self) {
        self.encoders.iter_mut().for_each(Encoder::rebase);
    }

    /// Turns what the client got into frames.
    pub(super) fn finish(&mut self, got: &mut Got) -> Done {
        let result = std::mem::replace(&mut got.result, Ok(Answer::EMPTY));
        let has_come = result.is_ok();
        let result = result.and_then(|answer| self.read(answer, got));
        // As Prometheus has it: -1 where the limit on it failed the scrape.
        let body_bytes = match &result {
            Ok(_) => self.size_hint as f64,
            Err(Failure::BodyTooLarge(_)) => -1.0,
            Err(_) => 0.0,
        };
        let (up, counts, flags) = match &result {
            Ok(counts) => (1.0, *counts, Flags::default()),
            Err(failure) => {
                // As Prometheus has it: a page that came and is refused says how much was read of it.
                let is_refused = has_come && matches!(failure, Failure::Page { .. });
                let counts = if is_refused { self.cache.counts() } else { Counts::default() };
                self.cache.failed();
                (0.0, counts, Flags::FAILED)
            }
        };
        let own = [
            ("up", up),
            ("scrape_duration_seconds", got.duration.as_secs_f64()),
            ("scrape_samples_scraped", counts.scraped as f64),
            ("scrape_samples_post_metric_relabeling", counts.post_relabel as f64),
            ("scrape_series_added", counts.added as f64),
            ("scrape_timeout_seconds", self.target.timeout.as_secs_f64()),
            ("scrape_sample_limit", self.target.scrape.sample_limit as f64),
            ("scrape_body_size_bytes", body_bytes),
        ];
        let count = if self.target.scrape.extra_scrape_metrics == Some(true) { own.len() } else { own.len() - EXTRA };
        self.cache.synthetic(&own[..count]);
        let (frames, fits) = self.encode(got.slot_ms, flags);
        Done { frames, fits, result }
    }

    /// The target is gone: every series of it, synthetic ones too, becomes stale.
    pub(super) fn end(&mut self, slot_ms: i64) -> (Vec<Frame>, bool) {
        self.cache.ended();
        self.encode(slot_ms, Flags::END)
    }

    fn read(&mut self, answer: Answer, got: &mut Got) -> Result<Counts, Failure> {
        let page = match answer.encoding {
            Encoding::Identity => &got.raw,
            Encoding::Gzip => {
                inflate(&got.raw, body_limit(&self.target), &mut got.page)?;
                &got.page
            }
        };
        self.size_hint = page.len();
        let refused = |error: PageError| Failure::Page { reason: error.reason(), text: error.to_string() };
        if self.target.scrape.strict
            && let Some(violation) = violation(answer, page)
        {
            self.cache.refused();
            return Err(refused(PageError::Strict(violation)));
        }
        let mut counts = self.cache.page_in(answer.format, page).map_err(refused)?;
        counts.defects.add(Defect::ContentType, answer.guessed);
        self.unchecked = self.unchecked.saturating_sub(1);
        if counts.changed && self.unchecked == 0 && !self.target.scrape.strict {
            self.unchecked = CHECK_PAGES;
            counts.defects.add_checked(strict::check(answer.format, page).defects());
        }
        Ok(counts)
    }

    fn encode(&mut self, slot_ms: i64, flags: Flags) -> (Vec<Frame>, bool) {
        let parts = self.cache.parts();
        let count = u16::try_from(parts.len()).unwrap_or(u16::MAX);
        self.encoders.truncate(parts.len());
        let mut fits = true;
        let frames = (0..count).zip(parts).map(|(number, part)| {
            if self.encoders.len() <= usize::from(number) {
                self.encoders.push(Encoder::new(self.target.origin.clone(), number));
            }
            let encoder = &mut self.encoders[usize::from(number)];
            let mut bytes = Vec::with_capacity(self.frame_hint);
            let encoded = encoder.encode(slot_ms, count, flags, &part.layout, &part.columns, &mut bytes);
            fits &= encoded.fits();
            self.frame_hint = bytes.len() + bytes.len() / 16;
            Frame { target: self.target.id, part: number, kind: encoded.kind, samples: encoded.samples, slot_ms, bytes: bytes.into() }
        });
        let frames = frames.collect();
        self.cache.rest();
        (frames, fits)
    }
}

/// What `strict` refuses an answer for.
fn violation(answer: Answer, page: &[u8]) -> Option<strict::Violation> {
    if answer.guessed {
        return Some(strict::Violation { place: strict::Place::Answer, defect: Defect::ContentType });
    }
    strict::check(answer.format, page).violations(answer.format, page).next()
}
