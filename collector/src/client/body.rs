//! Bodies: read within a limit, decompressed within a limit, in buffers that are used again.
//!
//! *In*: a response. *Out*: bytes in the caller's buffer. *Bound*: the limit given; all bodies in flight share one amount of room.
//! *When full*: over the limit is a failure; without room it waits.

use std::io::Read;
use std::sync::{Mutex, PoisonError};

use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::sync::Semaphore;

use super::Failure;

/// What every body may take without asking for room.
pub(super) const FREE_BYTES: usize = 64 * 1024;
/// Room is taken in steps of this size.
pub(super) const ROOM_BYTES: usize = 256 * 1024;
/// Buffers kept for later scrapes; larger: idle memory, smaller: allocations under load.
const KEPT_MAX: usize = 16;
/// Larger buffers are given back to the system.
const KEPT_BYTES_MAX: usize = 2 << 20;

/// Buffers that are used again.
#[derive(Default)]
pub struct Buffers(Mutex<Vec<Vec<u8>>>);

impl Buffers {
    /// An empty buffer.
    pub fn take(&self) -> Vec<u8> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
    }

    /// Gives a buffer back.
    pub fn give(&self, mut buffer: Vec<u8>) {
        buffer.clear();
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < KEPT_MAX && (1..=KEPT_BYTES_MAX).contains(&buffer.capacity()) {
            kept.push(buffer);
        }
    }
}

/// Reads a body into `raw`.
pub(super) async fn read(mut body: Incoming, limit: u64, room: &Semaphore, raw: &mut Vec<u8>) -> Result<(), Failure> {
    let mut taken = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Failure::Transfer(innermost(&error)))?;
        let Ok(chunk) = frame.into_data() else { continue };
        let bytes = raw.len() + chunk.len();
        if bytes as u64 > limit {
            return Err(Failure::BodyTooLarge(limit));
        }
        while FREE_BYTES + taken.len() * ROOM_BYTES < bytes {
            taken.push(room.acquire().await.map_err(|_| Failure::Transfer("the client is stopping".to_owned()))?);
        }
        raw.extend_from_slice(&chunk);
    }
    Ok(())
}

/// Decompresses gzip into `page`.
///
/// *Limits*: stops as soon as more than `limit` bytes came out, so a bomb costs no more than that.
pub fn inflate(raw: &[u8], limit: u64, page: &mut Vec<u8>) -> Result<(), Failure> {
    page.clear();
    let mut decoder = flate2::bufread::MultiGzDecoder::new(raw).take(limit.saturating_add(1));
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
mod tests {
    use super::*;
    use std::io::Write;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(bytes).expect("memory");
        encoder.finish().expect("memory")
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
