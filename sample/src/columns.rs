//! What one frame says of the series of its layout.
//!
//! *In*: one scrape or push request. *Out*: columns beside a [`crate::Layout`], one entry per series. *Bound*: the layout's length;
//! reused from frame to frame, so nothing is allocated once they have grown. *When full*: not applicable.

use crate::NativeHistogram;

/// Stands for "none" among timestamps and start timestamps.
pub const NO_TIME: i64 = i64::MIN;

/// What a series has in one frame.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// A float; a stale one has the bits of [`crate::STALE_NAN`].
    #[default]
    Present = 0,
    /// No sample in this frame.
    Absent = 1,
    /// A native histogram, in [`Columns::histograms`].
    Histogram = 2,
}

/// The samples of one frame, series by series of its layout.
///
/// *Shape*: `values` and `states` have the layout's length; the value of a series that is not [`State::Present`] is 0 after decoding.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Columns {
    /// Float64 bits.
    pub values: Vec<u64>,
    /// What each series has.
    pub states: Vec<State>,
    /// ms since the Unix epoch where a sample names its own time; empty: all at the slot; [`NO_TIME`]: this one at the slot.
    pub timestamps: Vec<i64>,
    /// Start timestamps in ms; empty: none has one; [`NO_TIME`]: this one has none.
    pub starts: Vec<i64>,
    /// Exemplars by index of their series.
    pub exemplars: Vec<(u32, Exemplar)>,
    /// Native histograms by index of their series.
    pub histograms: Vec<(u32, NativeHistogram)>,
}

/// An example observation, usually with a trace id.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Exemplar {
    /// Its own labels, in the order given.
    pub labels: Vec<(String, String)>,
    /// Float64 bits.
    pub value: u64,
    /// ms since the Unix epoch, if it has one.
    pub timestamp_ms: Option<i64>,
}

impl Columns {
    /// Empties all columns and keeps their memory.
    pub fn clear(&mut self) {
        self.values.clear();
        self.states.clear();
        self.timestamps.clear();
        self.starts.clear();
        self.exemplars.clear();
        self.histograms.clear();
    }

    /// The number of samples: series that are not absent.
    #[must_use]
    pub fn samples(&self) -> u32 {
        self.states.iter().map(|state| u32::from(*state != State::Absent)).sum()
    }
}
