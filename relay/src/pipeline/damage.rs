//! Damage of the stream: messages that were there and are not, or cannot be read.
//!
//! *In*: where it was met, and when what lies there was stored. *Out*: whether what is remembered may lack something of it, and where to begin for
//! a life after this one to meet it too. *Bound*: the newest. *When full*: it takes the place of the one before, which whoever begins before it met.
//!
//! Which slots were taken, previous values and what filters remember follow from all that was read. Without some of it the same messages make other
//! batches than they did while it was there: a page may be taken whose twin was taken then.

/// The newest damage, for as long as anything is remembered.
#[derive(Debug, Default)]
pub(super) struct Damage {
    newest: Option<(u64, i64)>,
}

impl Damage {
    /// Something is missing at a sequence, of about this time.
    pub fn note(&mut self, seq: u64, at_ms: i64) {
        self.newest = Some((seq, at_ms));
    }

    /// Whether what is remembered may lack something.
    pub const fn is_fresh(&self) -> bool {
        self.newest.is_some()
    }

    /// Where it is.
    pub fn seq(&self) -> Option<u64> {
        self.newest.map(|(seq, _)| seq)
    }

    /// What is older is remembered no more.
    pub fn forget_before(&mut self, at_ms: i64) {
        self.newest = self.newest.filter(|(_, newest_ms)| *newest_ms >= at_ms);
    }
}
