//! The CPU part of a scrape: decompress, read the page, encode frames. No I/O, no async.
//!
//! *In*: what the client got, or the last piece of it. *Out*: one frame per part. *Bound*: the body limit, and the limits of
//! [`crate::series`]. *When full*: the scrape failed: `up` is 0 and every series is stale.

use std::sync::Arc;
use std::time::Duration;

use config::ValidationScheme;
use sample::{Encoder, Flags, Interner};
use tokio::sync::Semaphore;

use super::TARGET_LIMIT;
use super::intake::{Intake, refused};
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
/// The same where no line changed: what can be wrong then is a value. Larger: it is seen later, smaller: a hundredth of the reading is spent on
/// pages that were looked through before.
const CHECK_STEADY_PAGES: u32 = 600;
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
    /// Pages since one was looked through.
    unchecked: u32,
    /// The next page is kept, if there is room, to be looked through.
    is_kept: bool,
}

/// What the client got, and for when.
pub(super) struct Got {
    pub(super) slot_ms: i64,
    pub(super) duration: Duration,
    pub(super) body: Result<Unread, Failure>,
}

/// A body, so far as it was not worked on yet.
pub(super) enum Unread {
    /// All of it.
    Whole(Answer, Vec<u8>),
    /// Its last piece.
    Last(Box<Intake>, Vec<u8>),
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
            ignore_native_histograms: target.histograms.native == Some(false),
            native_histograms_only: target.histograms.classic == Some(false),
            convert_histograms: target.histograms.convert == Some(true),
            keep_converted: target.histograms.classic == Some(true),
        };
        let cache = SeriesCache::with_interner(options, layouts);
        Self { target, cache, encoders: Vec::new(), size_hint: 0, frame_hint: 0, unchecked: 0, is_kept: true }
    }

    /// Whether a target's pages are read exactly like this.
    pub(super) fn serves(&self, target: &Target) -> bool {
        self.target.is_read_like(target)
    }

    /// Whether a page is wanted whole before it is read.
    pub(super) fn is_strict(&self) -> bool {
        self.target.scrape.strict
    }

    /// Where a page is read that comes in pieces; `block`: a buffer with whatever it held, `kept`: the room for whole pages.
    pub(super) fn intake(&self, answer: Answer, block: Vec<u8>, kept: &Arc<Semaphore>) -> Box<Intake> {
        let room = if self.is_kept { kept.clone().try_acquire_owned().ok() } else { None };
        Box::new(Intake::new(answer, body_limit(&self.target), block, room))
    }

    /// Reads a piece of a body that is not its last.
    pub(super) fn take(&mut self, intake: &mut Intake, piece: &mut Vec<u8>) -> Result<(), Failure> {
        intake.take(&mut self.cache, piece, false).map(drop)
    }

    /// About how many bytes of page the last step has to go through.
    pub(super) fn cost(&self, got: &Got) -> usize {
        let bytes = match &got.body {
            Ok(Unread::Whole(answer, raw)) => page_bytes(*answer, raw),
            Ok(Unread::Last(intake, piece)) => {
                page_bytes(intake.answer(), piece) + usize::try_from(intake.bytes()).unwrap_or(usize::MAX / 2)
            }
            Err(_) => return self.size_hint,
        };
        let passes = if self.is_strict() { CHECK_COST } else { 1 };
        bytes.max(self.size_hint).saturating_mul(passes)
    }

    pub(super) fn parts(&self) -> u16 {
        u16::try_from(self.cache.parts().len()).unwrap_or(u16::MAX)
    }

    /// Every part's next frame is a key frame.
    pub(super) fn rebase(&mut self) {
        self.encoders.iter_mut().for_each(Encoder::rebase);
    }

    /// Turns what the client got into frames; what was read of it is given back for its buffers.
    pub(super) fn finish(&mut self, got: Got) -> (Done, Option<Unread>) {
        let (result, spent) = match got.body {
            Ok(Unread::Whole(answer, raw)) => (self.read(answer, &raw), Some(Unread::Whole(answer, raw))),
            Ok(Unread::Last(mut intake, mut piece)) => (self.read_last(&mut intake, &mut piece), Some(Unread::Last(intake, piece))),
            Err(failure) => (Err(failure), None),
        };
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
                let is_refused = matches!(failure, Failure::Page { reason, .. } if *reason != TARGET_LIMIT);
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
        (Done { frames, fits, result }, spent)
    }

    /// The target is gone: every series of it, synthetic ones too, becomes stale.
    pub(super) fn end(&mut self, slot_ms: i64) -> (Vec<Frame>, bool) {
        self.cache.ended();
        self.encode(slot_ms, Flags::END)
    }

    /// Reads a page that is there whole.
    fn read(&mut self, answer: Answer, raw: &[u8]) -> Result<Counts, Failure> {
        let mut page = Vec::new();
        let page = match answer.encoding {
            Encoding::Identity => raw,
            Encoding::Gzip => {
                inflate(raw, body_limit(&self.target), &mut page)?;
                &page
            }
        };
        self.size_hint = page.len();
        if self.is_strict()
            && let Some(violation) = violation(answer, page)
        {
            self.cache.refused();
            return Err(refused(PageError::Strict(violation)));
        }
        let counts = self.cache.page_in(answer.format, page).map_err(refused)?;
        Ok(self.check(counts, answer, Some(page), false))
    }

    /// Reads the last piece of a page.
    fn read_last(&mut self, intake: &mut Intake, piece: &mut Vec<u8>) -> Result<Counts, Failure> {
        let counts = intake.take(&mut self.cache, piece, true)?;
        self.size_hint = usize::try_from(intake.bytes()).unwrap_or(usize::MAX);
        let counts = counts.expect("behind the last piece the page ends");
        Ok(self.check(counts, intake.answer(), intake.text(), intake.is_too_large()))
    }

    /// Now and then adds the defects of a page, sooner where its lines changed; where it was not kept, those of the next one.
    fn check(&mut self, mut counts: Counts, answer: Answer, page: Option<&[u8]>, is_too_large: bool) -> Counts {
        counts.defects.add(Defect::ContentType, answer.guessed);
        self.unchecked = self.unchecked.saturating_add(1);
        let most = if counts.changed { CHECK_PAGES } else { CHECK_STEADY_PAGES };
        let is_due = self.is_kept || self.unchecked >= most;
        if !is_due || self.is_strict() {
            return counts;
        }
        if let Some(page) = page {
            counts.defects.add_checked(strict::check(answer.format, page).defects());
        }
        let is_done = page.is_some() || is_too_large;
        self.is_kept = !is_done;
        if is_done {
            self.unchecked = 0;
        }
        counts
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

/// About how many bytes of page are in so much of a body.
pub(super) fn page_bytes(answer: Answer, body: &[u8]) -> usize {
    if answer.encoding == Encoding::Gzip { body.len().saturating_mul(8) } else { body.len() }
}

/// What `strict` refuses an answer for.
fn violation(answer: Answer, page: &[u8]) -> Option<strict::Violation> {
    if answer.guessed {
        return Some(strict::Violation { place: strict::Place::Answer, defect: Defect::ContentType });
    }
    strict::check(answer.format, page).violations(answer.format, page).next()
}

#[cfg(test)]
mod tests {
    use config::Config;

    use super::*;
    use crate::parse::Format;

    fn work() -> Work {
        let text = r#"{"scrape_configs": [{"job_name": "one", "static_configs": [{"targets": ["127.0.0.1:1"]}]}]}"#;
        let config: Config = serde_json::from_str(text).expect("a configuration");
        let job = crate::target::Job::new(&config.global, config.scrape_configs[0].clone());
        let target = job.find(&crate::discovery::statics(&job.scrape)).targets.remove(0);
        Work::new(target, Arc::default())
    }

    const ANSWER: Answer = Answer { encoding: Encoding::Identity, format: Format::OpenMetrics, guessed: false };

    #[test]
    fn a_page_without_room_is_looked_through_at_a_later_scrape() {
        let mut work = work();
        let mut found = |kept: &Arc<Semaphore>| {
            let intake = work.intake(ANSWER, Vec::new(), kept);
            let page = b"# TYPE c counter\n# TYPE c counter\nc_total 1\n# EOF\n".to_vec();
            let (done, spent) = work.finish(Got { slot_ms: 0, duration: Duration::ZERO, body: Ok(Unread::Last(intake, page)) });
            assert!(matches!(spent, Some(Unread::Last(_, page)) if page.len() == 50), "the buffer of the piece comes back");
            done.result.expect("a good page").defects.found().collect::<Vec<_>>()
        };
        let (full, room) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(1)));
        let seen = [found(&full), found(&full), found(&room), found(&room)];
        assert_eq!(seen, [vec![], vec![], vec![(Defect::TypeTwice, 1)], vec![]]);
        assert_eq!(room.available_permits(), 1, "its room is free again");
    }

    #[test]
    fn values_of_a_page_whose_lines_stay_are_looked_through_now_and_then() {
        let mut work = work();
        let mut is_found = |label: u32, value: i32| {
            let page = format!("# TYPE c counter\nc_total{{x=\"{label}\"}} {value}\n# EOF\n").into_bytes();
            let (done, _) = work.finish(Got { slot_ms: 0, duration: Duration::ZERO, body: Ok(Unread::Whole(ANSWER, page)) });
            done.result.expect("a good page").defects.found().any(|found| found == (Defect::CounterValue, 1))
        };
        assert!(is_found(0, -1), "the first page");
        assert_eq!((1..=CHECK_STEADY_PAGES).find(|_| is_found(0, -2)), Some(CHECK_STEADY_PAGES));
        assert_eq!((1..=CHECK_PAGES).find(|page| is_found(*page, -3)), Some(CHECK_PAGES), "sooner where lines change");
    }
}
