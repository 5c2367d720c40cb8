//! A page on its way from its body into the series cache, block by block.
//!
//! *In*: the pieces of a body. *Out*: what was counted on the page. *Bound*: a block of [`BLOCK_BYTES`], more only for a longer entry
//! ([`entry_bytes_max`]); the limit on the page. *When full*: a [`Failure`]; the page is refused.

use crate::client::{Answer, Failure, PIECE_BYTES, Unpacker};
use crate::series::{Counts, PageError, Reading, SeriesCache, entry_bytes_max};

/// Bytes of a block. Larger: memory for each large page in flight, smaller: more of a page is moved, as each block's last entry is cut.
const BLOCK_BYTES: usize = PIECE_BYTES;
/// Pages above this many bytes are not looked through for what is only tolerated. Larger: as much memory for each that is, smaller: less is
/// found.
pub(super) const CHECK_BYTES_MAX: usize = 4 << 20;

/// A page that comes in pieces.
pub(super) struct Intake {
    answer: Answer,
    unpacker: Unpacker,
    reading: Option<Reading>,
    block: Vec<u8>,
    /// Bytes of the block that are of the page.
    filled: usize,
    bytes: u64,
    limit: u64,
    /// The page, where it is to be looked through.
    text: Option<Vec<u8>>,
}

impl Intake {
    /// `block`: a buffer with whatever it held. `is_kept`: the page is wanted whole when it was read.
    pub(super) fn new(answer: Answer, limit: u64, mut block: Vec<u8>, is_kept: bool) -> Self {
        if block.len() < BLOCK_BYTES {
            block.resize(BLOCK_BYTES, 0);
        }
        let unpacker = Unpacker::new(answer.encoding);
        Self { answer, unpacker, reading: None, block, filled: 0, bytes: 0, limit, text: is_kept.then(Vec::new) }
    }

    pub(super) fn answer(&self) -> Answer {
        self.answer
    }

    /// Bytes of the page, so far as they were read.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The memory of the block.
    pub(super) fn block_bytes(&self) -> usize {
        self.block.len()
    }

    /// The page, if it was to be kept and is not above [`CHECK_BYTES_MAX`].
    pub(super) fn text(&self) -> Option<&[u8]> {
        self.text.as_deref()
    }

    /// The block's buffer and the last piece's.
    pub(super) fn into_buffers(mut self) -> (Vec<u8>, Vec<u8>) {
        let piece = self.unpacker.put(Vec::new(), true);
        (self.block, piece)
    }

    /// Reads the next piece, and behind the last one takes the page; the buffer of the piece before.
    pub(super) fn take(&mut self, cache: &mut SeriesCache, piece: Vec<u8>, is_last: bool) -> Result<(Vec<u8>, Option<Counts>), Failure> {
        let spent = self.unpacker.put(piece, is_last);
        let mut reading = self.reading.take().unwrap_or_else(|| cache.begin(self.answer.format));
        while let Some(read) = self.unpacker.read(&mut self.block[self.filled..])? {
            self.keep(read);
            self.filled += read;
            self.bytes += read as u64;
            if self.bytes > self.limit {
                return Err(Failure::BodyTooLarge(self.limit));
            }
            if read == 0 {
                let counts = cache.finish(reading, &self.block[..self.filled]).map_err(refused)?;
                return Ok((spent, Some(counts)));
            }
            if self.filled == self.block.len() {
                let done = cache.block(&mut reading, &self.block).map_err(refused)?;
                self.block.copy_within(done.., 0);
                self.filled -= done;
                self.make_room();
            }
        }
        self.reading = Some(reading);
        Ok((spent, None))
    }

    /// An entry that takes most of a block wants a longer one. The longest is one byte longer than any entry: only a full one tells that what
    /// is in it goes on.
    fn make_room(&mut self) {
        if self.filled > self.block.len() / 2 {
            let (doubled, max) = (2 * self.block.len(), entry_bytes_max(self.answer.format));
            self.block.resize(if doubled < max { doubled } else { max + 1 }, 0);
        }
    }

    fn keep(&mut self, read: usize) {
        if self.bytes as usize + read > CHECK_BYTES_MAX {
            self.text = None;
        }
        if let Some(text) = &mut self.text {
            text.extend_from_slice(&self.block[self.filled..self.filled + read]);
        }
    }
}

/// The page is worth nothing.
pub(super) fn refused(error: PageError) -> Failure {
    Failure::Page { reason: error.reason(), text: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::{Encoding, gzip};
    use crate::parse::{Format, LINE_BYTES_MAX};
    use crate::series::Options;

    /// What a body in pieces comes to, and the longest block it took.
    fn read(encoding: Encoding, format: Format, body: &[u8], limit: u64) -> (Result<Counts, Failure>, usize) {
        let (answer, mut cache) = (Answer { encoding, format, guessed: false }, SeriesCache::new(Options::default()));
        let (mut intake, mut pieces) = (Intake::new(answer, limit, Vec::new(), false), body.chunks(PIECE_BYTES).peekable());
        while let Some(piece) = pieces.next() {
            match intake.take(&mut cache, piece.to_vec(), pieces.peek().is_none()) {
                Ok((_, Some(counts))) => return (Ok(counts), intake.block.len()),
                Ok((_, None)) => {}
                Err(failure) => return (Err(failure), intake.block.len()),
            }
        }
        panic!("behind the last piece the page ends");
    }

    #[test]
    fn a_block_is_as_long_as_the_longest_line_wants_it() {
        let lines = "some_metric{some_label=\"some value\"} 1\n# HELP some_metric A comment.\n".repeat(100_000);
        let long = format!("{lines}# {}\n{lines}", "x".repeat(300 * 1024));
        for (page, block) in [(&lines, BLOCK_BYTES), (&long, 2 * BLOCK_BYTES)] {
            let (counts, longest) = read(Encoding::Identity, Format::Text, page.as_bytes(), u64::MAX);
            assert_eq!((counts.expect("a good page").scraped >= 100_000, longest), (true, block));
            let (counts, longest) = read(Encoding::Gzip, Format::Text, &gzip(page.as_bytes()), u64::MAX);
            assert_eq!((counts.expect("a good page").scraped >= 100_000, longest), (true, block));
        }
        let endless = format!("{lines}# {}", "x".repeat(8 << 20));
        let (counts, longest) = read(Encoding::Gzip, Format::Text, &gzip(endless.as_bytes()), u64::MAX);
        assert!(matches!(counts, Err(Failure::Page { reason: "parse", .. })), "{counts:?}");
        assert_eq!(longest, LINE_BYTES_MAX + 1);
    }

    #[test]
    fn a_bomb_costs_a_block() {
        let (counts, longest) = read(Encoding::Gzip, Format::Text, &gzip(&vec![b'\n'; 64 << 20]), 1 << 20);
        assert!(matches!(counts, Err(Failure::BodyTooLarge(limit)) if limit == 1 << 20), "{counts:?}");
        assert_eq!(longest, BLOCK_BYTES);
        let (counts, longest) = read(Encoding::Gzip, Format::Text, &gzip(&vec![b'\n'; 64 << 20]), u64::MAX);
        assert_eq!((counts.expect("an empty page").scraped, longest), (0, BLOCK_BYTES));
    }
}
