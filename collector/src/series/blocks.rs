//! Pages in blocks: as much of a page is in memory as one entry of it needs.
//!
//! - *In:* a page's bytes in order, cut anywhere. *Out:* what the whole page in one piece gives: the same columns, counts and errors.
//! - *Bound:* an entry takes at most [`entry_bytes_max`]; of blocks that are gone their metadata is kept. *When full or broken:*
//!   [`PageError`], located on the page.
//!
//! What a block cannot be read for may be its cut, so an error stands only where the page ends or the entry has all the room it may have.

use super::family::{Families, keep};
use super::fresh::Fresh;
use super::nhcb::Converting;
use super::walk::Walk;
use super::{Counts, PageError, SeriesCache};
use crate::parse::protobuf::DELIMITED_BYTES_MAX;
use crate::parse::{self, Format, LINE_BYTES_MAX, Page, Rule};

/// A page that was begun: what is known of it, from block to block.
#[derive(Debug, Default)]
pub struct Reading {
    pub(super) walk: Walk,
    pub(super) fresh: Fresh,
    pub(super) counts: Counts,
    pub(super) diverged: bool,
    pub(super) metadata_changed: bool,
    /// Metrics of a protobuf page.
    pub(super) metrics: usize,
    /// What was read of metadata, where no entry was expected.
    pub(super) families: Families,
    /// The metadata of blocks that are gone, where entries were.
    pub(super) kept: Vec<u8>,
    /// The histogram whose lines are being read, where these are converted.
    pub(super) converting: Converting,
    /// `# EOF` was read.
    ended: bool,
    before: Before,
}

/// What of the page lies before a block.
#[derive(Debug, Default, Clone, Copy)]
struct Before {
    bytes: usize,
    lines: usize,
    /// Bytes of its last line.
    column: usize,
}

/// Why reading a block ended before its end.
pub(super) enum Halt {
    /// An entry cannot be read; nothing of it was taken.
    Broken(parse::Error),
    /// The page is refused, whatever comes.
    Refused(PageError),
}

impl From<parse::Error> for Halt {
    fn from(error: parse::Error) -> Self {
        Self::Broken(error)
    }
}

impl From<PageError> for Halt {
    fn from(error: PageError) -> Self {
        Self::Refused(error)
    }
}

impl Reading {
    pub(super) fn is_over(&self, limit: u64) -> bool {
        limit > 0 && self.counts.post_relabel > limit
    }
}

impl Before {
    fn pass(&mut self, format: Format, text: &[u8]) {
        self.bytes += text.len();
        if format == Format::Protobuf {
            return;
        }
        match memchr::memrchr(b'\n', text) {
            Some(last) => (self.lines, self.column) = (self.lines + memchr::memchr_iter(b'\n', text).count(), text.len() - last - 1),
            None => self.column += text.len(),
        }
    }

    /// Makes places in a block places on the page.
    fn locate(&self, mut error: PageError) -> PageError {
        match &mut error {
            PageError::Parse(error) => {
                error.column += if error.line == 1 { self.column } else { 0 };
                error.line += self.lines;
            }
            PageError::Protobuf(error) => error.at += self.bytes,
            PageError::LabelLimit { line, .. }
            | PageError::LabelTwice { line, .. }
            | PageError::NameMissing { line }
            | PageError::NameNotLegacy { line, .. } => *line += self.lines,
            PageError::SampleLimit { .. } | PageError::Strict(_) | PageError::TooLarge { .. } => {}
        }
        error
    }
}

/// Bytes of the longest entry of a page: a line, or a metric family.
pub const fn entry_bytes_max(format: Format) -> usize {
    match format {
        Format::Text | Format::OpenMetrics => LINE_BYTES_MAX,
        Format::Protobuf => DELIMITED_BYTES_MAX,
    }
}

impl SeriesCache {
    /// Takes a page in the Prometheus text format, all or nothing: [`Self::page_in`].
    pub fn page(&mut self, body: &[u8]) -> Result<Counts, PageError> {
        self.page_in(Format::Text, body)
    }

    /// Takes a page, all or nothing.
    ///
    /// *Shape:* afterwards every part has the page's samples, staleness markers for what it lacks, and synthetic series marked stale until
    /// [`Self::synthetic`] gives their values. *Errors:* no part has changed; the caller then says [`Self::failed`].
    pub fn page_in(&mut self, format: Format, body: &[u8]) -> Result<Counts, PageError> {
        let reading = self.begin(format);
        self.finish(reading, body)
    }

    /// Begins a page that comes in blocks.
    ///
    /// *Shape:* nothing changes until [`Self::finish`]; a page that is not finished leaves nothing, but the caller says [`Self::failed`].
    pub fn begin(&mut self, format: Format) -> Reading {
        self.settle();
        self.is_open = true;
        self.counts = Counts::default();
        if format != self.format {
            // What is an entry in one format may be none in another, so no place of the last page is worth anything.
            self.format = format;
            self.refused.respell(self.order.iter().map(|entry| entry.hash));
            self.order.clear();
            self.lookup = None;
        }
        self.store.begin();
        self.refused.begin();
        self.metadata.clear();
        Reading::default()
    }

    /// Reads entries of a block behind which the page goes on; how many of its bytes were read. The next block begins with the others.
    ///
    /// *Limits:* where nothing was read the block is to be made longer; one of [`entry_bytes_max`] is always long enough.
    /// *Errors:* as of [`Self::finish`]: the page is refused.
    pub fn block(&mut self, reading: &mut Reading, block: &[u8]) -> Result<usize, PageError> {
        let entry_bytes_max = entry_bytes_max(self.format);
        let block = &block[..block.len().min(entry_bytes_max)];
        let (read, result) = self.read_block(reading, block, false);
        let error = match result {
            Err(Halt::Refused(error)) => error,
            _ if read > 0 || block.len() < entry_bytes_max => {
                for offset in self.metadata.drain(..) {
                    keep(self.format, block, offset, &mut reading.kept);
                }
                reading.before.pass(self.format, &block[..read]);
                return Ok(read);
            }
            Err(Halt::Broken(error)) => error.into(),
            // A metric family always fits.
            Ok(()) => parse::Error::at(block, 0, Rule::LineTooLong).into(),
        };
        Err(self.refuse(reading, error))
    }

    /// Reads the last block of a page, which may be empty, and takes the page, all or nothing: see [`Self::page_in`].
    pub fn finish(&mut self, mut reading: Reading, mut block: &[u8]) -> Result<Counts, PageError> {
        while block.len() > entry_bytes_max(self.format) {
            block = &block[self.block(&mut reading, block)?..];
        }
        let limit = self.options.sample_limit;
        let error = match self.read_block(&mut reading, block, true).1 {
            Err(Halt::Refused(error)) => error,
            Err(Halt::Broken(error)) => error.into(),
            Ok(()) if reading.is_over(limit) => PageError::SampleLimit { limit },
            Ok(()) => {
                self.is_open = false;
                self.refused.clear();
                self.counts = self.commit(reading, block);
                return Ok(self.counts);
            }
        };
        Err(self.refuse(&mut reading, error))
    }

    /// Forgets what a page that was not finished has left.
    pub(super) fn settle(&mut self) {
        if std::mem::take(&mut self.is_open) {
            // It may lead to series that never came to be.
            self.lookup = None;
        }
    }

    fn refuse(&mut self, reading: &mut Reading, error: PageError) -> PageError {
        self.refused.keep(self.order.len());
        self.counts = reading.counts;
        self.is_open = reading.fresh.len() > 0;
        self.settle();
        reading.before.locate(error)
    }

    /// Reads a block's entries: how many bytes, and why no more.
    fn read_block(&mut self, reading: &mut Reading, block: &[u8], is_last: bool) -> (usize, Result<(), Halt>) {
        let bytes = reading.before.bytes + block.len();
        if u32::try_from(bytes).is_err() {
            return (0, Err(PageError::TooLarge { bytes }.into()));
        }
        if self.format == Format::Protobuf {
            return self.read_protobuf(reading, block, is_last);
        }
        if reading.ended && !block.is_empty() {
            return (0, Err(parse::Error::at(block, 0, Rule::AfterEof).into()));
        }
        // A line that is not there to its end may be read as another one.
        let whole = if is_last { block.len() } else { memchr::memrchr(b'\n', block).map_or(0, |newline| newline + 1) };
        let block = &block[..whole];
        let mut page = if self.format == Format::OpenMetrics { Page::open_metrics(block).resume(reading.ended) } else { Page::new(block) };
        let is_converting = self.options.convert_histograms;
        let (read, result) = if is_converting { self.read_converting(reading, &mut page) } else { self.read(reading, &mut page) };
        let result = result.and_then(|()| if is_last { page.end(bytes == 0).map_err(Halt::from) } else { Ok(()) });
        let result = result.and_then(|()| if is_last && is_converting { self.end_converting(reading, &page) } else { Ok(()) });
        reading.ended = page.ended();
        (read, result)
    }
}

#[cfg(test)]
mod tests;
