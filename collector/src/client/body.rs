//! Bodies: read piece by piece, decompressed piece by piece, each within a limit, in buffers that are used again.
//!
//! *In*: a response. *Out*: bytes in the caller's buffer. *Bound*: the limit given; all bodies in flight share one amount of room.
//! *When full*: over the limit is a failure; without room it waits.

use std::io::{self, BufRead, Read};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Buf, Bytes};
use flate2::bufread::MultiGzDecoder;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::{Encoding, Failure};

/// Bytes of a piece of a body; each body may have one without asking for room. Larger: memory for each page in flight, smaller: more steps
/// for a large one.
pub const PIECE_BYTES: usize = 64 * 1024;
/// Buffers kept for later scrapes; larger: idle memory, smaller: allocations under load.
const KEPT_MAX: usize = 16;
/// Larger buffers are given back to the system.
const KEPT_BYTES_MAX: usize = 2 * PIECE_BYTES;

/// Buffers that are used again.
#[derive(Default)]
pub struct Buffers(Mutex<Vec<Vec<u8>>>);

/// A body on its way.
pub struct Body {
    incoming: Incoming,
    /// What of a chunk did not fit the piece.
    chunk: Bytes,
    bytes: u64,
    limit: u64,
    timeout: Duration,
    /// What is left of it: only waiting for the target, or for room, takes of it.
    left: Duration,
    is_ended: bool,
    room: Arc<Semaphore>,
    permits: Vec<OwnedSemaphorePermit>,
}

/// The page in a body, from pieces of the body.
pub enum Unpacker {
    /// As it is.
    Identity(Pieces),
    /// gzip, one member or many.
    Gzip(Box<MultiGzDecoder<Pieces>>),
}

/// Pieces of a body, one after another; between two it would block.
#[derive(Debug, Default)]
pub struct Pieces {
    piece: Vec<u8>,
    at: usize,
    is_last: bool,
}

impl Buffers {
    /// A buffer with whatever it held.
    pub fn take(&self) -> Vec<u8> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
    }

    /// Gives a buffer back.
    pub fn give(&self, buffer: Vec<u8>) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < KEPT_MAX && (1..=KEPT_BYTES_MAX).contains(&buffer.capacity()) {
            kept.push(buffer);
        }
    }
}

impl Body {
    /// `limit`: bytes as they come. The timeout has run since `started`.
    pub(super) fn new(incoming: Incoming, limit: u64, room: Arc<Semaphore>, timeout: Duration, started: Instant) -> Self {
        let left = timeout.saturating_sub(started.elapsed());
        Self { incoming, chunk: Bytes::new(), bytes: 0, limit, timeout, left, is_ended: false, room, permits: Vec::new() }
    }

    /// Whether all of it was read.
    pub fn is_ended(&self) -> bool {
        self.is_ended
    }

    /// Reads on into `piece`, until that has [`PIECE_BYTES`] or the body ends.
    pub async fn piece(&mut self, piece: &mut Vec<u8>) -> Result<(), Failure> {
        self.read(PIECE_BYTES, piece).await
    }

    /// Reads on into `raw` until the body ends.
    pub async fn rest(&mut self, raw: &mut Vec<u8>) -> Result<(), Failure> {
        self.read(usize::MAX, raw).await
    }

    /// Has room from here on for what is in memory beside its piece while it is read piece by piece: a block of the page.
    pub async fn reserve(&mut self, block_bytes: usize) -> Result<(), Failure> {
        self.take_room(block_bytes.div_ceil(PIECE_BYTES)).await
    }

    async fn read(&mut self, max: usize, out: &mut Vec<u8>) -> Result<(), Failure> {
        while out.len() < max {
            if self.chunk.is_empty() {
                let started = Instant::now();
                let frame = tokio::time::timeout(self.left, self.incoming.frame()).await.map_err(|_| Failure::Timeout(self.timeout))?;
                self.left = self.left.saturating_sub(started.elapsed());
                let Some(frame) = frame else {
                    self.is_ended = true;
                    return Ok(());
                };
                let frame = frame.map_err(|error| Failure::Transfer(innermost(&error)))?;
                self.chunk = frame.into_data().unwrap_or_default();
                self.bytes += self.chunk.len() as u64;
                if self.bytes > self.limit {
                    return Err(Failure::BodyTooLarge(self.limit));
                }
            }
            let length = self.chunk.len().min(max - out.len());
            let filled = out.len() + length;
            self.take_room(filled.saturating_sub(PIECE_BYTES).div_ceil(PIECE_BYTES)).await?;
            if filled > out.capacity() {
                // As a vector grows by itself, but never beyond a piece that is full.
                out.reserve_exact((2 * out.capacity()).min(max).max(filled) - out.len());
            }
            out.extend_from_slice(&self.chunk[..length]);
            self.chunk.advance(length);
        }
        Ok(())
    }

    async fn take_room(&mut self, pieces: usize) -> Result<(), Failure> {
        while self.permits.len() < pieces {
            let started = Instant::now();
            let permit = tokio::time::timeout(self.left, self.room.clone().acquire_owned()).await;
            self.left = self.left.saturating_sub(started.elapsed());
            let permit = permit.map_err(|_| Failure::Timeout(self.timeout))?;
            self.permits.push(permit.map_err(|_| Failure::Transfer("the client is stopping".to_owned()))?);
        }
        Ok(())
    }
}

impl Unpacker {
    /// Without any piece yet.
    pub fn new(encoding: Encoding) -> Self {
        match encoding {
            Encoding::Identity => Self::Identity(Pieces::default()),
            Encoding::Gzip => Self::Gzip(Box::new(MultiGzDecoder::new(Pieces::default()))),
        }
    }

    /// Puts the next piece in the place of the one that was read; that one.
    pub fn put(&mut self, piece: Vec<u8>, is_last: bool) -> Vec<u8> {
        let pieces = match self {
            Self::Identity(pieces) => pieces,
            Self::Gzip(decoder) => decoder.get_mut(),
        };
        std::mem::replace(pieces, Pieces { piece, at: 0, is_last }).piece
    }

    /// Reads some of the page: 0 bytes at its end, `None` where the next piece is wanted.
    pub fn read(&mut self, out: &mut [u8]) -> Result<Option<usize>, Failure> {
        let read = match self {
            Self::Identity(pieces) => pieces.read(out),
            Self::Gzip(decoder) => decoder.read(out),
        };
        match read {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(Failure::Encoding(error.to_string())),
        }
    }
}

impl BufRead for Pieces {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at == self.piece.len() && !self.is_last {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(&self.piece[self.at..])
    }

    fn consume(&mut self, bytes: usize) {
        self.at += bytes;
    }
}

impl Read for Pieces {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let rest = self.fill_buf()?;
        let length = rest.len().min(out.len());
        out[..length].copy_from_slice(&rest[..length]);
        self.consume(length);
        Ok(length)
    }
}

/// Decompresses gzip into `page`.
///
/// *Limits*: stops as soon as more than `limit` bytes came out, so a bomb costs no more than that.
pub fn inflate(raw: &[u8], limit: u64, page: &mut Vec<u8>) -> Result<(), Failure> {
    page.clear();
    let mut decoder = MultiGzDecoder::new(raw).take(limit.saturating_add(1));
    decoder.read_to_end(page).map_err(|error| Failure::Encoding(error.to_string()))?;
    if page.len() as u64 > limit {
        return Err(Failure::BodyTooLarge(limit));
    }
    Ok(())
}

fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::io::Write;

    pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(bytes).expect("memory");
        encoder.finish().expect("memory")
    }

    /// What comes out of a body in pieces of `size` bytes.
    fn through(encoding: Encoding, raw: &[u8], size: usize) -> Result<Vec<u8>, Failure> {
        let (mut pages, mut out, mut page) = (Unpacker::new(encoding), [0; 100], Vec::new());
        let mut pieces = raw.chunks(size);
        while let Some(piece) = pieces.next() {
            pages.put(piece.to_vec(), pieces.len() == 0);
            while let Some(read) = pages.read(&mut out)? {
                if read == 0 {
                    return Ok(page);
                }
                page.extend_from_slice(&out[..read]);
            }
        }
        panic!("the last piece has the end");
    }

    #[test]
    fn a_body_in_pieces_is_the_body() {
        let page: Vec<u8> = (0..5000).flat_map(|line| format!("a{{n=\"{line}\"}} 1\n").into_bytes()).collect();
        let members = [gzip(&page[..1000]), gzip(&page[1000..])].concat();
        for (encoding, raw) in [(Encoding::Identity, page.clone()), (Encoding::Gzip, gzip(&page)), (Encoding::Gzip, members)] {
            for size in [1, 2, 7, 100, 4096, raw.len()] {
                assert!(through(encoding, &raw, size).is_ok_and(|read| read == page), "{encoding:?} in pieces of {size}");
            }
            if encoding == Encoding::Gzip {
                for broken in [&raw[..raw.len() - 3], &b"garbage"[..]] {
                    assert!(matches!(through(encoding, broken, 7), Err(Failure::Encoding(_))));
                }
            }
        }
    }

    #[test]
    fn gzip_within_the_limit_is_read_whole() {
        let mut page = Vec::new();
        inflate(&gzip(b"a 1\n"), 4, &mut page).expect("within");
        assert_eq!(page, b"a 1\n");
        assert!(matches!(inflate(&gzip(b"a 1\nb"), 4, &mut page), Err(Failure::BodyTooLarge(4))));
    }

    #[test]
    fn a_bomb_costs_no_more_than_the_limit() {
        let bomb = gzip(&vec![b'0'; 64 << 20]);
        let mut page = Vec::new();
        assert!(matches!(inflate(&bomb, 1000, &mut page), Err(Failure::BodyTooLarge(1000))));
        assert!(page.capacity() < 1 << 16);
    }

    #[test]
    fn broken_gzip_is_an_error() {
        let mut page = Vec::new();
        let whole = gzip(b"some text that is long enough");
        for broken in [&b"garbage"[..], &whole[..whole.len() - 5], &[]] {
            assert!(matches!(inflate(broken, 1000, &mut page), Err(Failure::Encoding(_))));
        }
    }
}
