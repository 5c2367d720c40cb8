//! Steps: what the reading task hands to the delivering task.
//!
//! *In*: encoded samples and what became of the others. *Out*: batches, and after them the marks of their messages. *Bound*: a channel of
//! [`STEPS_MAX`]. *When full*: reading waits.

use std::sync::Arc;

use sample::{Columns, Envelope, Layout, Origin, TargetId};
use serde::{Deserialize, Serialize};

use crate::checkpoint::Gap;
use crate::encode::remote_write;
use crate::sink::{Batch, LACKING};

/// Steps that wait for the sink: batches of at most one sink request each. Larger: memory while a sink is away; smaller: encoding waits for answers.
pub const STEPS_MAX: usize = 4;

/// What the reading task says.
#[derive(Debug)]
pub enum Step {
    /// Samples to deliver.
    Part(Box<Part>),
    /// The messages of a window are done, all at once.
    Marks(Vec<Mark>),
    /// The lowest needed base has moved without a message.
    Warm(u64),
}

/// What the series of one target are called, as the filters left them.
#[derive(Debug, Default)]
pub struct Names {
    /// Its series, in the order of the stream's layout.
    pub layout: Arc<Layout>,
    /// Labels of the target, sorted by name, none empty. Those of a series win, and an empty one of a series hides.
    pub target: Vec<(String, String)>,
    /// What those labels take of each item of remote write, at most.
    target_bytes: usize,
    /// Per series what its own labels and its metadata take of it, at most; [`u16::MAX`]: that or more.
    own_bytes: Vec<u16>,
}

impl Names {
    /// Names of a target's series. `target`: its labels, sorted by name, none empty. `before`: of a layout that this one begins with.
    pub fn new(before: &Self, layout: Arc<Layout>, target: &[(&str, &str)]) -> Self {
        let target: Vec<(String, String)> = target.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let mut own_bytes = Vec::with_capacity(layout.len());
        own_bytes.extend_from_slice(&before.own_bytes);
        let more = (own_bytes.len()..layout.len()).map(|index| remote_write::named_bytes(layout.series(index)));
        own_bytes.extend(more.map(|bytes| u16::try_from(bytes).unwrap_or(u16::MAX)));
        Self { layout, target_bytes: remote_write::target_bytes(&target), target, own_bytes }
    }

    /// What the names of a series take of each item of remote write, at most.
    pub fn bytes(&self, series: usize) -> usize {
        let own = match self.own_bytes[series] {
            u16::MAX => remote_write::named_bytes(self.layout.series(series)),
            bytes => usize::from(bytes),
        };
        own + self.target_bytes
    }
}

/// Samples of one target's slot in a batch.
#[derive(Debug, Clone)]
pub struct Section {
    /// Their target.
    pub origin: Arc<Origin>,
    /// Their series.
    pub layout: Arc<Layout>,
    /// What they have, should the sink refuse some of them.
    pub columns: Arc<Columns>,
    /// What those are called for the sink.
    pub names: Arc<Names>,
    /// Their slot, ms.
    pub slot_ms: i64,
    /// Items of it in its part's batch.
    pub items: u64,
}

/// What became of the samples of one frame before they were in a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Its target.
    pub origin: Arc<Origin>,
    /// Its slot, ms.
    pub slot_ms: i64,
    /// Its samples.
    pub read: u64,
    /// Samples of no consequence for the sink: delivered.
    pub nothing: u64,
    /// Samples given up undelivered.
    pub given_up: u64,
    /// Samples filtered, by the place of their reason in [`Mark::filtered`].
    pub filtered: Vec<(usize, u64)>,
}

/// One batch and where its items come from.
#[derive(Debug)]
pub struct Part {
    /// First slot of its window's first message, ms.
    pub first_ms: i64,
    /// Whether messages may share its window: only the sink knows a batch by what is in it.
    pub is_shared: bool,
    /// Its items.
    pub batch: Batch,
}

impl Part {
    /// Stream sequence of its window's first message.
    pub const fn seq(&self) -> u64 {
        self.batch.stretch.first
    }

    /// Number in its window.
    pub const fn index(&self) -> u32 {
        self.batch.stretch.index
    }

    /// Whether a later life tells it by its number alone: not where messages share its window, nor where something of that is missing.
    pub const fn is_numbered(&self) -> bool {
        !self.is_shared && self.index() & LACKING == 0
    }
}

/// A part of a slot that a position has passed while others were to come: until then nothing of it is counted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    /// Who published it.
    pub producer: String,
    /// In which of its partitions.
    pub partition: u32,
    /// In which of its lives.
    pub epoch: u64,
    /// Target.
    pub target: u64,
    /// Slot, ms.
    pub slot_ms: i64,
    /// Its number.
    pub part: u16,
    /// Its samples.
    pub samples: u64,
}

/// A loss that must be booked before the position passes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loss {
    /// The word in metrics and ledger.
    pub reason: &'static str,
    /// Whether the stream lost it (else it was lost for this relay).
    pub stream: bool,
    /// Samples.
    pub samples: u64,
    /// Frames, or messages where the stream lost them.
    pub frames: u64,
    /// Target, where it is one.
    pub target: Option<TargetId>,
    /// Slot, ms, where it is one.
    pub slot_ms: Option<i64>,
}

/// A frame, or the rest of a message, that cannot be decoded.
#[derive(Debug, Clone)]
pub struct Undecodable {
    /// The word in metrics and ledger.
    pub reason: &'static str,
    /// What the decoder said.
    pub detail: String,
    /// Samples in it, as its header says.
    pub samples: u64,
    /// Target, where it is known.
    pub target: Option<TargetId>,
    /// Slot, ms, where it is known.
    pub slot_ms: Option<i64>,
}

/// What an encoder had no words of its own for, of samples that went out all the same.
#[derive(Debug, Clone, Copy, Default)]
pub struct Simplified {
    /// Native histograms, in their nearest classic form.
    pub histograms: u64,
    /// Exemplars, left out.
    pub exemplars: u64,
}

/// The end of a message.
#[derive(Debug, Default)]
pub struct Mark {
    /// Its sequence.
    pub seq: u64,
    /// Its identity.
    pub id: String,
    /// Its subject.
    pub subject: String,
    /// When it was stored, ms.
    pub at_ms: i64,
    /// Its last slot, ms.
    pub last_ms: i64,
    /// Its envelope; none: it has none.
    pub envelope: Option<Envelope>,
    /// Lowest sequence that holds a base needed after it.
    pub warm_from: u64,
    /// What of it, or of messages before it, waits for other parts of its slot.
    pub waiting: Vec<Waiting>,
    /// Delivered before, or before the start: moves producers' positions at most.
    pub silent: bool,
    /// The stream was rolled back before it: sequences known from before mean other messages now.
    pub restarted: bool,
    /// Whether it was passed without encoding because its samples are given up.
    pub skipped: bool,
    /// Samples read: decoded ones of the relay's jobs, undecodable and missing ones.
    pub read: u64,
    /// Samples in its batches.
    pub items: u64,
    /// Samples without consequence for the sink: delivered.
    pub nothing: u64,
    /// Samples given up undelivered.
    pub given_up: u64,
    /// Samples filtered, by reason: every filter, then what else there was.
    pub filtered: Vec<(Arc<str>, u64)>,
    /// The same, and the rest of it, by frame.
    pub lines: Vec<Line>,
    /// Samples that filters left alone, by filter.
    pub left_alone: Vec<(Arc<str>, u64)>,
    /// What went out in a poorer form than it came.
    pub simplified: Simplified,
    /// What is lost with it.
    pub losses: Vec<Loss>,
    /// What of it cannot be decoded.
    pub undecodable: Vec<Undecodable>,
    /// Its payload, where something of it cannot be decoded: parked.
    pub payload: bytes::Bytes,
    /// What was missing before it.
    pub gap: Option<Gap>,
    /// It is no message but the end of a backlog.
    pub ends: bool,
}
