//! A page on its way from its body into the series cache, block by block.
//!
//! *In*: the pieces of a body. *Out*: what was counted on the page. *Bound*: a block of [`BLOCK_BYTES`], more only for a longer entry
//! ([`entry_bytes_max`]); the limit on the page. *When full*: a [`Failure`]; the page is refused.

use tokio::sync::OwnedSemaphorePermit;

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
    kept: Kept,
}

/// A page that is to be looked through when it was read.
enum Kept {
    /// It is not.
    Not,
    /// So far as it was read; and the room for it, which it gives back when it goes.
    Page { text: Vec<u8>, _room: OwnedSemaphorePermit },
    /// It is above [`CHECK_BYTES_MAX`].
    TooLarge,
}

impl Intake {
    /// `block`: a buffer with whatever it held. `room`: the page is wanted whole when it was read.
    pub(super) fn new(answer: Answer, limit: u64, mut block: Vec<u8>, room: Option<OwnedSemaphorePermit>) -> Self {
        if block.len() < BLOCK_BYTES {
            block.resize(BLOCK_BYTES, 0);
        }
        let unpacker = Unpacker::new(answer.encoding);
        let kept = room.map_or(Kept::Not, |room| Kept::Page { text: Vec::new(), _room: room });
        Self { answer, unpacker, reading: None, block, filled: 0, bytes: 0, limit, kept }
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

    /// The page, if it was to be kept and is not too large for that.
    pub(super) fn text(&self) -> Option<&[u8]> {
        match &self.kept {
            Kept::Page { text, .. } => Some(text),
            Kept::Not | Kept::TooLarge => None,
        }
    }

    /// Whether the page is above [`CHECK_BYTES_MAX`], and so was not kept.
    pub(super) fn is_too_large(&self) -> bool {
        matches!(self.kept, Kept::TooLarge)
    }

    /// The block's buffer.
    pub(super) fn into_block(self) -> Vec<u8> {
        self.block
    }

    /// Reads the next piece, and behind the last one takes the page.
    pub(super) fn take(&mut self, cache: &mut SeriesCache, piece: &mut Vec<u8>, is_last: bool) -> Result<Option<Counts>, Failure> {
        self.unpacker.put(std::mem::take(piece), is_last);
        let counts = self.read(cache);
        *piece = self.unpacker.put(Vec::new(), is_last);
        counts
    }

    /// Reads what there is of the page.
    fn read(&mut self, cache: &mut SeriesCache) -> Result<Option<Counts>, Failure> {
        let mut reading = self.reading.take().unwrap_or_else(|| cache.begin(self.answer.format));
        while let Some(read) = self.unpacker.read(&mut self.block[self.filled..])? {
            self.keep(read);
            self.filled += read;
            self.bytes += read as u64;
            if self.bytes > self.limit {
                return Err(Failure::BodyTooLarge(self.limit));
            }
            if read == 0 {
                return cache.finish(reading, &self.block[..self.filled]).map_err(refused).map(Some);
            }
            if self.filled == self.block.len() {
                let done = cache.block(&mut reading, &self.block).map_err(refused)?;
                self.block.copy_within(done.., 0);
                self.filled -= done;
                self.make_room();
            }
        }
        self.reading = Some(reading);
        Ok(None)
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
        match &mut self.kept {
            Kept::Page { text, .. } if text.len() + read <= CHECK_BYTES_MAX => {
                text.extend_from_slice(&self.block[self.filled..self.filled + read]);
            }
            Kept::Page { .. } => self.kept = Kept::TooLarge,
            Kept::Not | Kept::TooLarge => {}
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
        let (mut intake, mut pieces) = (Intake::new(answer, limit, Vec::new(), None), body.chunks(PIECE_BYTES).peekable());
        while let Some(piece) = pieces.next() {
            match intake.take(&mut cache, &mut piece.to_vec(), pieces.peek().is_none()) {
                Ok(Some(counts)) => return (Ok(counts), intake.block.len()),
                Ok(None) => {}
                Err(failure) => return (Err(failure), intake.block.len()),
            }
        }
        panic!("behind the last piece the page ends");
    }

    #[test]
    fn a_block_is_as_long_as_the_longest_line_wants_it() {
        let lines = "some_metric{some_label=\"some value\"} 1\n# HELP some_metric A comment.\n".repeat(100_000);
        let long = format!("{lines}# {}\n{lines}", "x".repeat(BLOCK_BYTES + BLOCK_BYTES / 4));
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
