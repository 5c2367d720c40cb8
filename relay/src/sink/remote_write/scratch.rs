//! Bodies are written and compressed in buffers that the next one uses again.
//!
//! *In*: a batch. *Out*: the compressed body. *Bound*: one set of buffers is kept, as large as the largest request needed it; lanes that write at the
//! same time have more for that time. *When full*: does not apply.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use super::message::{Counts, Writer};
use super::{Compression, ProtobufMessage};
use crate::protobuf::Malformed;
use crate::sink::Batch;

/// Level of zstd. Larger: a seventh less at level 7 for several times the CPU; smaller: a tenth more at level 1.
const ZSTD_LEVEL: i32 = 3;

/// Why there is no body.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The batch is another encoder's.
    #[error("the items are not those of the encoder 'remote_write'")]
    Foreign(#[from] Malformed),
    /// Longer than the format can say.
    #[error("cannot compress with snappy: {0}")]
    Snappy(#[from] snap::Error),
    /// No memory for it.
    #[error("cannot compress with zstd: {0}")]
    Zstd(#[from] std::io::Error),
}

/// Everything that a body needs on its way.
#[derive(Default)]
pub(super) struct Scratch {
    writer: Writer,
    compressor: Compressor,
}

/// What the chosen compression needs.
#[derive(Default)]
struct Compressor {
    snappy: Option<snap::raw::Encoder>,
    zstd: Option<zstd::bulk::Compressor<'static>>,
    out: Vec<u8>,
}

/// The buffers that wait for the next body; lanes share it.
#[derive(Clone, Default)]
pub(super) struct Pool(Arc<Mutex<Option<Box<Scratch>>>>);

impl Pool {
    /// Lends them, or new ones, and keeps them for the next body.
    pub fn lend<T>(&self, work: impl FnOnce(&mut Scratch) -> T) -> T {
        let waiting = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut scratch = waiting().take().unwrap_or_default();
        let done = work(&mut scratch);
        *waiting() = Some(scratch);
        done
    }
}

impl Scratch {
    /// The body of some items of a batch.
    pub fn body(
        &mut self,
        message: ProtobufMessage,
        compression: Compression,
        batch: &Batch,
        items: Range<usize>,
    ) -> Result<(Bytes, Counts), Error> {
        let (body, counts) = self.writer.write(message, batch, items)?;
        Ok((self.compressor.compress(compression, body)?, counts))
    }

    /// Compresses any message.
    pub fn compress(&mut self, compression: Compression, message: &[u8]) -> Result<Bytes, Error> {
        self.compressor.compress(compression, message)
    }
}

impl Compressor {
    fn compress(&mut self, compression: Compression, message: &[u8]) -> Result<Bytes, Error> {
        let length = match compression {
            Compression::Snappy => {
                let most = snap::raw::max_compress_len(message.len());
                if self.out.len() < most {
                    self.out.resize(most, 0);
                }
                self.snappy.get_or_insert_with(snap::raw::Encoder::new).compress(message, &mut self.out)?
            }
            Compression::Zstd => {
                let zstd = match &mut self.zstd {
                    Some(zstd) => zstd,
                    none => none.insert(zstd::bulk::Compressor::new(ZSTD_LEVEL)?),
                };
                let most = zstd::zstd_safe::compress_bound(message.len());
                if self.out.len() < most {
                    self.out.resize(most, 0);
                }
                zstd.compress_to_buffer(message, &mut self.out[..])?
            }
        };
        Ok(Bytes::copy_from_slice(&self.out[..length]))
    }
}
