//! Compression in frames, and what is whole at the end of a file that nobody kept a position of.
//!
//! *In*: bodies; files. *Out*: one frame (zstd) or member (gzip) per body; the length up to which a file is whole. *Bound*: [`CHUNK_BYTES`] of a
//! file in memory. *When full*: does not apply, nothing is kept.
//!
//! Frames that stand one after the other are one valid file in both formats, so a file can be cut back to its last whole frame and written on.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};

use schemars::JsonSchema;
use serde::Deserialize;

/// Bytes of a file read at once. Larger: more memory; smaller: more calls.
const CHUNK_BYTES: u64 = 64 * 1024;

/// Level of zstd, its own default. Larger: more CPU for few bytes less, as lines repeat themselves a lot; smaller: larger files.
const ZSTD_LEVEL: i32 = 3;

/// Level of gzip, its own default. Larger and smaller: as for zstd.
const GZIP_LEVEL: u32 = 6;

/// How a file is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// As it is.
    #[default]
    None,
    /// Understood everywhere; names end in `.gz`.
    Gzip,
    /// Smaller and faster; names end in `.zst`.
    Zstd,
}

impl Compression {
    /// What the names of its files end in.
    pub const fn suffix(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Gzip => ".gz",
            Self::Zstd => ".zst",
        }
    }

    /// What a file is by its name.
    pub fn of(name: &str) -> Self {
        [Self::Gzip, Self::Zstd].into_iter().find(|compression| name.ends_with(compression.suffix())).unwrap_or_default()
    }

    /// A body as it stands in the file.
    pub fn frame(self, body: Vec<u8>) -> io::Result<Vec<u8>> {
        match self {
            Self::None => Ok(body),
            Self::Gzip => {
                let room = Vec::with_capacity(body.len() / 8);
                let mut encoder = flate2::write::GzEncoder::new(room, flate2::Compression::new(GZIP_LEVEL));
                encoder.write_all(&body)?;
                encoder.finish()
            }
            Self::Zstd => {
                let mut compressor = zstd::bulk::Compressor::new(ZSTD_LEVEL)?;
                compressor.set_parameter(zstd::zstd_safe::CParameter::ChecksumFlag(true))?;
                compressor.compress(&body)
            }
        }
    }

    /// The length up to which a file consists of whole lines or whole frames.
    pub fn whole(self, file: &File) -> io::Result<u64> {
        match self {
            Self::None => whole_lines(file),
            Self::Gzip => whole_frames(file, |reader| {
                let mut decoder = flate2::bufread::GzDecoder::new(reader);
                io::copy(&mut decoder, &mut io::sink()).map(drop)
            }),
            Self::Zstd => whole_frames(file, |reader| {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(reader)?.single_frame();
                io::copy(&mut decoder, &mut io::sink()).map(drop)
            }),
        }
    }
}

fn whole_lines(mut file: &File) -> io::Result<u64> {
    let mut end = file.metadata()?.len();
    let mut chunk = Vec::new();
    while end > 0 {
        let start = end.saturating_sub(CHUNK_BYTES);
        file.seek(SeekFrom::Start(start))?;
        chunk.clear();
        file.take(end - start).read_to_end(&mut chunk)?;
        if let Some(at) = chunk.iter().rposition(|byte| *byte == b'\n') {
            return Ok(start + at as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}

/// Decodes frame by frame, checksums included, until one does not decode.
fn whole_frames(mut file: &File, decode: impl Fn(&mut Counted<BufReader<&File>>) -> io::Result<()>) -> io::Result<u64> {
    file.seek(SeekFrom::Start(0))?;
    let mut reader = Counted { inner: BufReader::with_capacity(CHUNK_BYTES as usize, file), taken: 0, failed: None };
    let mut end = 0;
    while !reader.fill_buf()?.is_empty() {
        if decode(&mut reader).is_err() || reader.taken == end {
            break;
        }
        end = reader.taken;
    }
    // A file that cannot be read is not a file that is torn.
    reader.failed.map_or(Ok(end), Err)
}

/// A reader that knows how much was taken from it, and whether it was the file that failed.
struct Counted<R> {
    inner: R,
    taken: u64,
    failed: Option<io::Error>,
}

impl<R: BufRead> Read for Counted<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(into)?;
        self.consume(count);
        Ok(count)
    }
}

impl<R: BufRead> BufRead for Counted<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if let Err(error) = self.inner.fill_buf() {
            let kind = error.kind();
            self.failed = Some(error);
            return Err(kind.into());
        }
        self.inner.fill_buf()
    }

    fn consume(&mut self, count: usize) {
        self.taken += count as u64;
        self.inner.consume(count);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A file of bodies and their ends in it.
    fn written(compression: Compression, bodies: &[String]) -> (File, Vec<u64>) {
        let mut file = tempfile::tempfile().expect("a file");
        let mut ends = vec![0];
        for body in bodies {
            file.write_all(&compression.frame(format!("{body}\n").into_bytes()).expect("compressed")).expect("written");
            ends.push(file.metadata().expect("there").len());
        }
        (file, ends)
    }

    proptest! {
        #[test]
        fn a_file_cut_anywhere_is_whole_up_to_its_last_frame(
            bodies in prop::collection::vec("[a-z0-9]{0,400}", 0..6),
            compression in prop::sample::select(vec![Compression::None, Compression::Gzip, Compression::Zstd]),
            cut in 0.0..=1.0_f64,
        ) {
            let (file, ends) = written(compression, &bodies);
            let cut = (ends[ends.len() - 1] as f64 * cut) as u64;
            file.set_len(cut).expect("cut");
            let wanted = ends.into_iter().rfind(|end| *end <= cut).expect("0 at least");
            prop_assert_eq!(compression.whole(&file).expect("readable"), wanted);
        }

        #[test]
        fn foreign_bytes_are_not_whole(noise in prop::collection::vec(any::<u8>(), 1..300)) {
            for compression in [Compression::Gzip, Compression::Zstd] {
                let (mut file, ends) = written(compression, &["a".to_owned()]);
                file.write_all(&noise).expect("written");
                prop_assert!(compression.whole(&file).expect("readable") >= ends[1]);
            }
        }
    }

    #[test]
    fn lines_longer_than_a_chunk_are_found() {
        let (mut file, ends) = written(Compression::None, &["a".to_owned(), "x".repeat(3 * CHUNK_BYTES as usize)]);
        file.write_all(&vec![b'y'; 2 * CHUNK_BYTES as usize]).expect("written");
        assert_eq!(Compression::None.whole(&file).expect("readable"), ends[2]);
    }
}
