//! `file`: appends each batch to a file, whole lines only.
//!
//! *In*: a batch. *Out*: its bytes in the file, on disk before they count as delivered. *Bound*: one write in flight. *When full*:
//! the file is cut back to where the batch began and the batch is retried, so a full disk leaves no half line.
//!
//! A file is opened at the first batch, created where it is missing (its folder is not), locked against other processes, and cut back
//! to its last complete line: what stands behind it was torn by a crash and comes again. A file that was moved away (log rotation)
//! is noticed at the next batch and a new one begun. A pipe or device is written without lock, repair and `fsync`.
//! Inside one process relays that name the same path share the open file, batch by batch: a replay appends what it sends to the file that
//! its relay is writing.

use std::collections::HashMap;
use std::fs::{File, Metadata, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use async_trait::async_trait;
use config::{ByteSize, Kind, OptionsError};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use super::{Answer, Batch, Limits, Sink, SinkKind};

/// The registry's row.
pub const KIND: SinkKind = SinkKind {
    kind: Kind {
        name: "file",
        summary: "Appends each batch to a file, whole lines only, on disk before it counts as delivered.",
        schema: || schemars::schema_for!(Options),
        example: "{path: /var/lib/strata/samples.ndjson}",
        check: |options| sink(options, &Files::default()).map(drop),
    },
    encoder: "ndjson",
    build: |options, place| Ok(Box::new(sink(options, place.files)?)),
};

/// Options of `file`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// The file; its folder must exist.
    pub path: PathBuf,
    /// Whether each batch is on disk before it counts as delivered. Default `true`; `false` is faster, and a power cut loses what the
    /// kernel had not written yet, though the relay's position is past it.
    #[serde(default = "yes")]
    pub fsync: bool,
}

const fn yes() -> bool {
    true
}

/// What one write may carry. Larger: more memory; smaller: more `fsync`s.
const LIMITS: Limits = Limits { bytes_max: ByteSize::mib(8).0 as usize, items_max: 100_000 };

/// Bytes read at once while looking for the last line end.
const TAIL_BYTES: u64 = 64 * 1024;

/// The files that sinks of one process write to, by path as configured.
#[derive(Clone, Default)]
pub struct Files(Arc<Mutex<HashMap<PathBuf, Weak<Mutex<Writer>>>>>);

impl Files {
    fn writer(&self, path: PathBuf) -> Arc<Mutex<Writer>> {
        let mut files = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        files.retain(|_, writer| writer.strong_count() > 0);
        if let Some(writer) = files.get(&path).and_then(Weak::upgrade) {
            return writer;
        }
        let writer = Arc::new(Mutex::new(Writer { path: path.clone(), open: None }));
        files.insert(path, Arc::downgrade(&writer));
        writer
    }
}

struct Lines {
    writer: Arc<Mutex<Writer>>,
    fsync: bool,
    body: Vec<u8>,
}

/// The file while it is open.
struct Writer {
    path: PathBuf,
    open: Option<Open>,
}

struct Open {
    file: File,
    /// Device and inode; none for pipes and devices, which have no end to go back to.
    regular: Option<(u64, u64)>,
}

/// Why a batch is not in the file.
#[derive(Debug, thiserror::Error)]
enum WriteError {
    #[error("cannot open '{path}': {source}")]
    Open { path: String, source: io::Error },
    #[error("cannot lock '{path}': another process writes to it")]
    Locked { path: String },
    #[error("cannot repair the end of '{path}': {source}")]
    Repair { path: String, source: io::Error },
    #[error("cannot write to '{path}': {source}")]
    Write { path: String, source: io::Error },
}

fn sink(options: &Value, files: &Files) -> Result<Lines, OptionsError> {
    let Options { path, fsync } = config::options(options)?;
    if path.as_os_str().is_empty() || path.file_name().is_none() {
        return Err(OptionsError::new("path", format!("'{}' names no file", path.display())));
    }
    Ok(Lines { writer: files.writer(path), fsync, body: Vec::new() })
}

#[async_trait]
impl Sink for Lines {
    async fn send(&mut self, batch: &Batch, items: Range<usize>) -> Answer {
        let mut body = std::mem::take(&mut self.body);
        body.clear();
        batch.body(items, &mut body);
        if !body.ends_with(b"\n") {
            body.push(b'\n');
        }
        let (writer, fsync) = (Arc::clone(&self.writer), self.fsync);
        // A call that was given up still ends its write behind the lock: lines never mix.
        let written = tokio::task::spawn_blocking(move || {
            let outcome = writer.lock().unwrap_or_else(PoisonError::into_inner).append(&body, fsync);
            (outcome, body)
        });
        match written.await {
            Ok((outcome, body)) => {
                self.body = body;
                outcome.map_or_else(|error| error.answer(), |()| Answer::Delivered)
            }
            Err(error) => Answer::Retry { after: None, reason: format!("cannot write: {error}") },
        }
    }

    fn limits(&self) -> Limits {
        LIMITS
    }
}

impl Writer {
    fn append(&mut self, body: &[u8], fsync: bool) -> Result<(), WriteError> {
        if self.open.as_ref().is_some_and(|open| open.moved_from(&self.path)) {
            self.open = None;
        }
        if self.open.is_none() {
            self.open = Some(self.open()?);
        }
        let Some(open) = self.open.as_mut() else { return Ok(()) };
        let written = open.append(body, fsync);
        if written.is_err() {
            // Opened again, and repaired again, before the next batch.
            self.open = None;
        }
        written.map_err(|source| WriteError::Write { path: self.path.display().to_string(), source })
    }

    fn open(&self) -> Result<Open, WriteError> {
        let path = || self.path.display().to_string();
        let mut options = OpenOptions::new();
        options.append(true).create(true);
        let regular = |metadata: &Metadata| metadata.is_file().then(|| (metadata.dev(), metadata.ino()));
        // Only a file is read for its last line; reading a pipe would take what is meant for others.
        let readable = std::fs::metadata(&self.path).map_or(true, |metadata| metadata.is_file());
        let file = options.read(readable).open(&self.path).map_err(|source| WriteError::Open { path: path(), source })?;
        let metadata = file.metadata().map_err(|source| WriteError::Open { path: path(), source })?;
        let mut open = Open { file, regular: regular(&metadata) };
        if open.regular.is_some() {
            match open.file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Err(WriteError::Locked { path: path() }),
                Err(TryLockError::Error(source)) => return Err(WriteError::Open { path: path(), source }),
            }
            let torn = open.repair().map_err(|source| WriteError::Repair { path: path(), source })?;
            if torn > 0 {
                tracing::warn!(path = %self.path.display(), bytes = torn, "cut a torn line off the file's end");
            }
        }
        Ok(open)
    }
}

impl Open {
    fn append(&mut self, body: &[u8], fsync: bool) -> io::Result<()> {
        if self.regular.is_none() {
            self.file.write_all(body)?;
            return self.file.flush();
        }
        let before = self.file.metadata()?.len();
        let written = self.file.write_all(body).and_then(|()| if fsync { self.file.sync_data() } else { Ok(()) });
        if let Err(error) = written {
            self.file.set_len(before)?;
            return Err(error);
        }
        Ok(())
    }

    /// Cuts the file back to its last complete line; gives the bytes that were cut.
    fn repair(&mut self) -> io::Result<u64> {
        let length = self.file.metadata()?.len();
        let mut end = length;
        let mut chunk = Vec::new();
        while end > 0 {
            let start = end.saturating_sub(TAIL_BYTES);
            self.file.seek(SeekFrom::Start(start))?;
            chunk.clear();
            (&self.file).take(end - start).read_to_end(&mut chunk)?;
            if let Some(at) = chunk.iter().rposition(|byte| *byte == b'\n') {
                end = start + at as u64 + 1;
                break;
            }
            end = start;
        }
        if end < length {
            self.file.set_len(end)?;
            self.file.sync_data()?;
        }
        Ok(length - end)
    }

    /// Whether the path no longer leads to this file.
    fn moved_from(&self, path: &Path) -> bool {
        self.regular.is_some()
            && std::fs::metadata(path).map(|metadata| Some((metadata.dev(), metadata.ino()))).ok().flatten() != self.regular
    }
}

impl WriteError {
    fn answer(self) -> Answer {
        let reason = self.to_string();
        match &self {
            Self::Locked { .. } => Answer::Fatal { reason },
            Self::Open { source, .. }
                if matches!(
                    source.kind(),
                    io::ErrorKind::NotFound
                        | io::ErrorKind::PermissionDenied
                        | io::ErrorKind::IsADirectory
                        | io::ErrorKind::ReadOnlyFilesystem
                ) =>
            {
                Answer::Fatal { reason }
            }
            _ => Answer::Retry { after: None, reason },
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::sink::tests::{batch, lines};

    fn built(path: &Path) -> Lines {
        sink(&json!({"path": path}), &Files::default()).expect("options it takes")
    }

    fn read(path: &Path) -> String {
        std::fs::read_to_string(path).expect("readable")
    }

    #[tokio::test]
    async fn appends_whole_batches() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("out.ndjson");
        let mut sink = built(&path);
        assert_eq!(sink.send(&lines(&["a", "b", "c"]), 0..3).await, Answer::Delivered);
        assert_eq!(sink.send(&lines(&["d", "e"]), 1..2).await, Answer::Delivered);
        assert_eq!(read(&path), "a\nb\nc\ne\n");
    }

    #[tokio::test]
    async fn a_body_without_a_line_end_gets_one() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("out.json");
        let mut sink = built(&path);
        let list = crate::encode::Framing { open: b"[", separator: b",", close: b"]", families: false };
        assert_eq!(sink.send(&batch(&["1", "2"], list), 0..2).await, Answer::Delivered);
        assert_eq!(read(&path), "[1,2]\n");
    }

    #[tokio::test]
    async fn a_torn_tail_is_cut_at_the_start() {
        let folder = tempfile::tempdir().expect("a folder");
        let long = "x".repeat(3 * 64 * 1024);
        for (before, after) in [("a\nb\ntor", "a\nb\n"), ("tor", ""), ("a\n", "a\n"), (&format!("a\n{long}"), "a\n"), (&long, "")] {
            let path = folder.path().join("out.ndjson");
            std::fs::write(&path, before).expect("written");
            assert_eq!(built(&path).send(&lines(&["new"]), 0..1).await, Answer::Delivered);
            assert_eq!(read(&path), format!("{after}new\n"));
        }
    }

    #[tokio::test]
    async fn one_process_writes_a_file_for_several_sinks() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("out.ndjson");
        let files = Files::default();
        let [mut live, mut replay] = [(); 2].map(|()| sink(&json!({"path": path}), &files).expect("options it takes"));
        for text in ["a", "b"] {
            assert_eq!(live.send(&lines(&[text]), 0..1).await, Answer::Delivered);
            assert_eq!(replay.send(&lines(&[text]), 0..1).await, Answer::Delivered);
        }
        assert_eq!(read(&path), "a\na\nb\nb\n");
        drop((live, replay));
        assert_eq!(built(&path).send(&lines(&["d"]), 0..1).await, Answer::Delivered, "the lock goes with the last of them");
    }

    #[tokio::test]
    async fn a_moved_file_is_begun_anew() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("out.ndjson");
        let mut sink = built(&path);
        assert_eq!(sink.send(&lines(&["a"]), 0..1).await, Answer::Delivered);
        std::fs::rename(&path, folder.path().join("old")).expect("renamed");
        assert_eq!(sink.send(&lines(&["b"]), 0..1).await, Answer::Delivered);
        assert_eq!(read(&path), "b\n");
    }

    #[tokio::test]
    async fn what_cannot_be_written_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let answer = built(&folder.path().join("missing/out")).send(&lines(&["a"]), 0..1).await;
        assert!(matches!(&answer, Answer::Fatal { reason } if reason.starts_with("cannot open '")), "{answer:?}");
        let path = folder.path().join("out");
        let mut first = built(&path);
        assert_eq!(first.send(&lines(&["a"]), 0..1).await, Answer::Delivered);
        let answer = built(&path).send(&lines(&["b"]), 0..1).await;
        assert!(matches!(&answer, Answer::Fatal { reason } if reason.ends_with("another process writes to it")), "{answer:?}");
        let answer = built(Path::new("/dev/full")).send(&lines(&["a"]), 0..1).await;
        assert!(matches!(&answer, Answer::Retry { reason, .. } if reason.starts_with("cannot write to '/dev/full'")), "{answer:?}");
        assert_eq!(built(Path::new("/dev/null")).send(&lines(&["a"]), 0..1).await, Answer::Delivered);
    }
}
