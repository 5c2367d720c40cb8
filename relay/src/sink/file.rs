//! `file`: appends each batch to a file, whole lines only; finishes files by size and time where it rotates.
//!
//! *In*: a batch. *Out*: its bytes in the file, on disk before they count as delivered. *Bound*: one write in flight. *When full*:
//! the file is cut back to where the batch began and the batch is retried, so a full disk leaves no half line.
//!
//! Without `rotate` there is one file under the configured name, created where it is missing (its folder is not). A file that was moved away
//! (log rotation) is noticed at the next batch and a new one begun. A pipe or device is written without lock, repair and `fsync`.
//! With `rotate` a file is written under a hidden name and gets its own when it is finished, so what has a name never changes any more.
//!
//! Beside the file stands its position ([`position`]): after a crash the file is cut back to what was delivered, and a batch that comes again
//! because the relay's checkpoint is older is not written again. Inside one process relays that name the same path share the open file, batch by
//! batch: a replay appends what it sends to the file that its relay is writing.

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use config::{ByteSize, FilePath, Kind, Millis, OptionsError, Owned};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;
use tokio_util::task::AbortOnDropHandle;

use super::{Answer, Batch, Limits, Order, Sink, SinkKind};
use crate::backoff::now_ms;

mod name;
mod position;
mod repair;
#[cfg(test)]
mod tests;
mod writer;

use name::Names;
use repair::Compression;
use writer::{Error, Plan, Rotation, Writer};

/// The registry's row.
pub const KIND: SinkKind = SinkKind {
    kind: Kind {
        name: "file",
        summary: "Appends each batch to a file, whole lines only, on disk before it counts as delivered; rotates and compresses.",
        schema: || schemars::schema_for!(Options),
        example: "{path: '/var/lib/strata/samples-%Y%m%dT%H.ndjson', rotate: {every: 1h, max_bytes: 1GiB}, compression: zstd, retain: {max_age: 7d}}",
        check: |options| sink(options, &Files::default()).map(drop),
    },
    encoder: "ndjson",
    order: |_| {
        Order::Needed("a file is read from its beginning to its end, and what stands in it under a time is what was written in that time")
    },
    owns: Some(owns),
    build: |options, place| Ok(Box::new(sink(options, place.files)?)),
};

/// Options of `file`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// The file; its folder must exist. With `rotate` its name may have the time in it, in UTC: `%Y %m %d %H %M %S`, `%F` for `%Y-%m-%d`, `%%` for a
    /// percent sign; without any, the time is added. A running number is always added.
    #[schemars(with = "FilePath")]
    pub path: PathBuf,
    /// When a file is finished and the next begun. Default: never, one file for all.
    #[serde(default)]
    pub rotate: Option<Rotate>,
    /// `none` (default), `gzip` or `zstd`; with `rotate` only. Each batch is a frame of its own, so a crash costs none that was delivered.
    #[serde(default)]
    pub compression: Compression,
    /// Which finished files stay. Default: all; then somebody else must take them away.
    #[serde(default)]
    pub retain: Option<Retain>,
    /// Permissions of new files in octal, like `"0640"`. Default: what the process' mask leaves of `0666`.
    #[serde(default)]
    pub mode: Option<String>,
    /// Whether each batch is on disk before it counts as delivered. Default `true`; `false` is faster, and a power cut loses what the
    /// kernel had not written yet, though the relay's position is past it.
    #[serde(default = "yes")]
    pub fsync: bool,
}

/// When a file is finished; at least one of both.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rotate {
    /// Before a file is larger than this on disk, at least 64KiB; a batch that alone is larger is a file of its own.
    #[serde(default)]
    pub max_bytes: Option<ByteSize>,
    /// At every full stretch of this since midnight UTC, with samples or without: `5m`, `1h`, `1d`. A day must be a multiple of it.
    #[serde(default)]
    pub every: Option<Millis>,
}

/// Which finished files stay; at least one of both. What is removed was delivered and is not counted as lost.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Retain {
    /// The newest so many.
    #[serde(default)]
    pub max_files: Option<usize>,
    /// Those last written to within this time.
    #[serde(default)]
    pub max_age: Option<Millis>,
}

const fn yes() -> bool {
    true
}

/// What one write may carry. Larger: more memory; smaller: more `fsync`s.
const LIMITS: Limits = Limits { bytes_max: ByteSize::mib(8).0 as usize, items_max: 100_000 };

/// The smallest file. Larger: legal wishes are refused; smaller: a file for every batch.
const ROTATE_BYTES_MIN: ByteSize = ByteSize(64 * 1024);

/// The shortest stretch. Larger: legal wishes are refused; smaller: a file for every batch.
const ROTATE_EVERY_MIN: Millis = Millis::from_secs(1);

const DAY: Millis = Millis::from_secs(24 * 3600);

/// How often a file without new samples is looked at, at least. Larger: files that are too old stay longer; smaller: idle work.
const TICK_MAX: Duration = Duration::from_secs(60);

/// The files that sinks of one process write to, by path as configured.
#[derive(Clone, Default)]
pub struct Files(Arc<Mutex<HashMap<PathBuf, Weak<Shared>>>>);

/// A file and how many sinks write to it.
struct Shared {
    writer: Mutex<Writer>,
    users: AtomicUsize,
}

impl Shared {
    fn writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_used_by_others(&self) -> bool {
        self.users.load(Ordering::SeqCst) > 1
    }
}

impl Files {
    fn share(&self, plan: &Plan) -> Arc<Shared> {
        let mut files = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        files.retain(|_, shared| shared.strong_count() > 0);
        let shared = files
            .get(&plan.path)
            .and_then(Weak::upgrade)
            .unwrap_or_else(|| Arc::new(Shared { writer: Mutex::new(Writer::new(plan.clone())), users: AtomicUsize::new(0) }));
        files.insert(plan.path.clone(), Arc::downgrade(&shared));
        shared.users.fetch_add(1, Ordering::SeqCst);
        shared
    }
}

struct Lines {
    plan: Arc<Plan>,
    shared: Arc<Shared>,
    ticker: Option<AbortOnDropHandle<()>>,
}

impl Drop for Lines {
    fn drop(&mut self) {
        self.shared.users.fetch_sub(1, Ordering::SeqCst);
    }
}

fn sink(options: &Value, files: &Files) -> Result<Lines, OptionsError> {
    let plan = plan(config::options(options)?)?;
    Ok(Lines { shared: files.share(&plan), plan: Arc::new(plan), ticker: None })
}

/// The file, wherever it is named from. Devices are nobody's.
fn owns(options: &Value) -> Option<Owned> {
    let written = options.get("path")?.as_str().filter(|path| !path.is_empty())?;
    let path = std::path::absolute(written).ok().filter(|path| !path.starts_with("/dev"))?;
    let why = "two relays cannot write to one file, give each its own path";
    Some(Owned { option: "path", thing: path.display().to_string(), why })
}

fn plan(options: Options) -> Result<Plan, OptionsError> {
    let Options { path, rotate, compression, retain, mode, fsync } = options;
    let names = Names::parse(&path)?;
    let refuse = |path: &str, why: String| Err(OptionsError::new(path, why));
    let mode = mode.map(|text| permissions(&text)).transpose()?;
    let Some(rotate) = rotate else {
        if names.has_time {
            return refuse("path", format!("'{}' has a time in its name, which needs 'rotate'", path.display()));
        }
        if compression != Compression::None {
            return refuse("compression", "compression needs 'rotate': only a finished file can be read".to_owned());
        }
        if retain.is_some() {
            return refuse("retain", "'retain' is about finished files: it needs 'rotate'".to_owned());
        }
        return Ok(Plan { path, names, rotation: None, compression, mode, fsync });
    };
    if rotate.max_bytes.is_none() && rotate.every.is_none() {
        return refuse("rotate", "one of 'max_bytes' and 'every' must be given, or both".to_owned());
    }
    if let Some(bytes) = rotate.max_bytes.filter(|bytes| *bytes < ROTATE_BYTES_MIN) {
        return refuse("rotate.max_bytes", format!("{bytes} is below the smallest file, {ROTATE_BYTES_MIN}"));
    }
    if let Some(every) = rotate.every.filter(|every| *every < ROTATE_EVERY_MIN || !DAY.0.is_multiple_of(every.0)) {
        return refuse(
            "rotate.every",
            format!("a day is no multiple of {every}: write 5m, 15m, 1h, 6h, 1d or the like, at least {ROTATE_EVERY_MIN}"),
        );
    }
    let (files_max, age_max) = match retain {
        None => (None, None),
        Some(Retain { max_files: None, max_age: None }) => {
            return refuse("retain", "one of 'max_files' and 'max_age' must be given, or both".to_owned());
        }
        Some(Retain { max_files: Some(0), .. }) => return refuse("retain.max_files", "at least one file must stay".to_owned()),
        Some(Retain { max_age: Some(Millis(0)), .. }) => return refuse("retain.max_age", "files must stay for some time".to_owned()),
        Some(Retain { max_files, max_age }) => (max_files, max_age.map(Millis::duration)),
    };
    let every_ms = rotate.every.map(|every| every.0.cast_signed());
    let rotation = Rotation { bytes_max: rotate.max_bytes.map(|bytes| bytes.0), every_ms, files_max, age_max };
    Ok(Plan { path, names, rotation: Some(rotation), compression, mode, fsync })
}

fn permissions(text: &str) -> Result<u32, OptionsError> {
    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777 && (3..=4).contains(&text.len()));
    match mode {
        Some(mode) if mode & 0o600 == 0o600 => Ok(mode),
        Some(_) => Err(OptionsError::new(
            "mode",
            format!("with '{text}' Strata itself could not read and write the file: its owner's digit is 6 or 7"),
        )),
        None => Err(OptionsError::new("mode", format!("'{text}' is no permission: three octal digits in quotes, like \"0640\""))),
    }
}

#[async_trait]
impl Sink for Lines {
    async fn send(&mut self, batch: &Batch, items: Range<usize>) -> Answer {
        self.tick();
        let mut body = Vec::new();
        batch.body(items.clone(), &mut body);
        if !body.ends_with(b"\n") {
            body.push(b'\n');
        }
        let id = position::batch_id(&batch.key, &items, &body);
        // A call that was given up still ends its write behind the lock: lines never mix, and the batch is known when it comes again.
        self.work(move |writer, plan, shared| {
            writer.adopt(plan, shared, now_ms())?;
            writer.append(id, body, now_ms())
        })
        .await
    }

    fn limits(&self) -> Limits {
        LIMITS
    }

    async fn close(&mut self) -> Answer {
        self.ticker = None;
        self.work(|writer, _, shared| if shared { Ok(()) } else { writer.close(now_ms()) }).await
    }
}

impl Lines {
    async fn work(&self, work: impl FnOnce(&mut Writer, &Plan, bool) -> Result<(), Error> + Send + 'static) -> Answer {
        let (shared, plan) = (Arc::clone(&self.shared), Arc::clone(&self.plan));
        let done = tokio::task::spawn_blocking(move || work(&mut shared.writer(), &plan, shared.is_used_by_others()));
        match done.await {
            Ok(Ok(())) => Answer::Delivered,
            Ok(Err(error)) => answer(&error),
            Err(error) => Answer::Retry { after: None, reason: format!("cannot write: {error}") },
        }
    }

    /// Starts to look after files whose time is over while nothing comes; it ends with the sink.
    fn tick(&mut self) {
        let Some(Rotation { every_ms, age_max, .. }) = &self.plan.rotation else { return };
        if self.ticker.is_some() || (every_ms.is_none() && age_max.is_none()) {
            return;
        }
        let (shared, every_ms) = (Arc::downgrade(&self.shared), *every_ms);
        self.ticker = Some(AbortOnDropHandle::new(tokio::spawn(async move {
            loop {
                let next = every_ms.map_or(TICK_MAX, |every| Duration::from_millis((every - now_ms().rem_euclid(every)).cast_unsigned()));
                tokio::time::sleep(next.min(TICK_MAX)).await;
                let Some(shared) = shared.upgrade() else { return };
                let ticked = tokio::task::spawn_blocking(move || shared.writer().tick(now_ms()));
                if ticked.await.is_err() {
                    return;
                }
            }
        })));
    }
}

fn answer(error: &Error) -> Answer {
    let reason = error.to_string();
    match error {
        Error::Locked { .. } | Error::Differs { .. } => Answer::Fatal { reason },
        Error::Open { source, .. }
            if matches!(
                source.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied | io::ErrorKind::IsADirectory | io::ErrorKind::ReadOnlyFilesystem
            ) =>
        {
            Answer::Fatal { reason }
        }
        _ => Answer::Retry { after: None, reason },
    }
}
