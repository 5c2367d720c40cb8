//! What a share of the stream's bytes is in sequences.
//!
//! *In*: what the stream says of itself. *Out*: sequences to keep from. *Bound*: pure; messages are taken as equally large, which the next look
//! corrects. *When full*: does not apply.

use bundled_nats::port::Info;

/// Share of `max_bytes` above which the replay window shrinks. Larger: less room for a burst; smaller: less to replay.
pub const WINDOW_ABOVE: f64 = 0.85;

/// Share above which relays give up what they did not deliver.
pub const GIVE_UP_ABOVE: f64 = 0.92;

/// Share that is kept when relays give up: below [`WINDOW_ABOVE`] by the eighth that a base may be old, in published bytes, so that nothing
/// that is kept has lost its base.
pub const GIVE_UP_KEEPS: f64 = WINDOW_ABOVE - 0.05 - 0.125;

/// A stream's fill, and what to do at which.
#[derive(Debug, Clone, Copy)]
pub struct Shares {
    info: Info,
    /// Bytes that are the whole.
    whole: f64,
    told: bool,
}

impl Shares {
    /// `wall`: where a publisher was refused below `max_bytes`; `told`: one was refused just now.
    pub fn new(info: &Info, wall: Option<u64>, told: bool) -> Self {
        let whole = wall.map_or(info.max_bytes, |wall| wall.min(info.max_bytes)) as f64;
        Self { info: *info, whole, told }
    }

    /// The first sequence of the newest `bytes`.
    pub fn keep_bytes(&self, bytes: u64) -> u64 {
        let average = (self.info.bytes / self.info.messages.max(1)).max(1);
        self.info.last_seq.saturating_sub(bytes / average).saturating_add(1).max(self.info.first_seq)
    }

    fn keep(&self, share: f64) -> u64 {
        self.keep_bytes((self.whole * share) as u64)
    }

    fn above(&self, share: f64) -> bool {
        self.info.bytes as f64 > self.whole * share
    }

    /// Where the replay window begins when there is no room for all of it.
    pub fn window_shrunk_to(&self) -> Option<u64> {
        (self.told || self.above(WINDOW_ABOVE)).then(|| self.keep(WINDOW_ABOVE - 0.05))
    }

    /// Whether relays must give up.
    pub fn at_wall(&self) -> bool {
        self.told || self.above(GIVE_UP_ABOVE)
    }

    /// Everything below goes once relays have given up.
    pub fn give_up_floor(&self) -> u64 {
        self.keep(WINDOW_ABOVE - 0.05)
    }

    /// Below, bases go although their targets may still be seen: little at a time, and of the part that is given up about two eighths stay below what is
    /// kept, as a base may be older than it should by what waited in a collector's memory.
    pub fn bases_from(&self) -> u64 {
        self.keep_bytes(((self.info.bytes as f64).min(self.whole) * GIVE_UP_ABOVE) as u64)
    }

    /// Up to where relays give up.
    pub fn give_up_to(&self) -> u64 {
        self.keep(GIVE_UP_KEEPS).saturating_sub(1)
    }
}
