//! The audit: what was read of the stream, against what became of it, per relay, target and minute.
//!
//! *In*: a range of minutes; the relays' checkpoints, what they booked, the frames that are still in the stream. *Out*: a [`Statement`]: the sums, and every
//! hole with its place and reason. *Bound*: an own reader with [`BYTES_IN_FLIGHT`]; per relay the minutes in which booked and counted differ so far,
//! at most [`CELLS_MAX`]; [`HOLES_MAX`] holes. *When full*: it ends and says that the range is too long; further holes are only counted.
//!
//! Bookings and frames are gone through side by side, in the order of time, so a minute is forgotten as soon as both say the same of it.

mod booked;
mod counted;
mod holes;
mod slots;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bundled_nats::ledger::collector_of;
use bundled_nats::port::{Error as PortError, Log, Streams};
use config::Relay;
use sample::sheet::{Named, Sheet, minute_of};
use sample::{KEY_FRAME_PERIOD, MetricType, TargetId};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::checkpoint::{self, Checkpoint};
use crate::existing::Existing;
use crate::filter::{Selector, Series};
use crate::lines::Lines;
use crate::minutes;
use crate::takes::Takes;

use booked::Writer;
use counted::Counted;
use holes::Holes;
use slots::Slots;

pub use holes::{Hole, Place};
pub use slots::Start;

/// Bytes of messages on their way. Larger: memory beside the relays; smaller: round trips show.
pub const BYTES_IN_FLIGHT: usize = 4 << 20;
/// Minutes of targets, per relay, of which booked and counted do not agree yet. Larger: memory; smaller: a relay that is far behind cannot be audited.
pub const CELLS_MAX: usize = 2 << 20;
/// Holes that are told one by one. Larger: a longer answer; smaller: fewer names in a large outage.
pub const HOLES_MAX: usize = 10_000;
/// Clocks of collectors and server may differ so much, ms.
const CLOCK_SLACK_MS: i64 = 60_000;
/// A collector that runs and has nothing to say says so within half of this, ms.
const QUIET_MS: i64 = 20_000;

/// A relay that has begun, and of which there is no checkpoint now.
const GONE: &str = "its checkpoint is gone from STRATA_STATE: a relay that runs writes it again within seconds; if it does not come back, the store of the \
                    server is damaged, and the server must be restarted to leave out what cannot be read";

/// What is wanted.
#[derive(Debug, Clone)]
pub struct Request {
    /// Configurations of the relays to look at.
    pub relays: Vec<Relay>,
    /// First nominal slot, ms; the whole minute is taken.
    pub from_ms: i64,
    /// Last nominal slot, ms; the whole minute is taken.
    pub to_ms: i64,
    /// Targets, by their labels `job` and `instance`; none: all.
    pub selector: Option<Selector>,
}

/// The whole of an audit.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Statement {
    /// Whether every sample is accounted for: delivered, filtered, rejected, lost with a reason, or still in the stream.
    pub balanced: bool,
    /// First minute, ms.
    pub from_ms: i64,
    /// End of the last minute, ms, exclusive.
    pub to_ms: i64,
    /// From when on the frames are in the stream, and were counted; before, what was booked is all there is.
    pub counted_from_ms: Option<i64>,
    /// What was collected, as far as it is in the stream.
    pub collection: Collection,
    /// What became of it, by relay.
    pub relays: Vec<Terms>,
    /// Every loss, every disagreement and every slot without a good scrape.
    pub holes: Vec<Hole>,
    /// Holes beyond those that are told.
    pub more_holes: u64,
}

/// What was collected.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Collection {
    /// Targets with at least one frame.
    pub targets: u64,
    /// Slots with a frame.
    pub slots: u64,
    /// Slots whose scrape failed, by reason.
    pub failed_slots: BTreeMap<String, u64>,
    /// Slots in which no scrape began, by reason.
    pub missed_slots: BTreeMap<String, u64>,
    /// When collectors began, and how the process before each of them ended.
    pub starts: Vec<Start>,
    /// Samples in the stream.
    pub samples: u64,
    /// Samples dropped before the stream, by reason.
    pub dropped_samples: BTreeMap<String, u64>,
}

/// The equation of one relay, in samples: `scraped = delivered + filtered + rejected + lost + in_stream`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Terms {
    /// The relay.
    pub relay: String,
    /// Whether its equation holds, for every target and minute.
    pub balanced: bool,
    /// Samples of its jobs: those it read, and those it has not read yet.
    pub scraped: u64,
    /// Taken by its sink, or of no consequence for it.
    pub delivered: u64,
    /// Dropped on purpose, by filter or other reason.
    pub filtered: BTreeMap<String, u64>,
    /// Refused by its sink, and neither taken later nor discarded: kept in the dead letters, as long as these have room.
    pub rejected: u64,
    /// Lost, by reason.
    pub lost: BTreeMap<String, u64>,
    /// Still in the stream.
    pub in_stream: u64,
    /// Why nothing can be said of it.
    pub trouble: Option<String>,
}

/// Why an audit ended without a statement.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The streams did not answer.
    #[error(transparent)]
    Port(#[from] PortError),
    /// Too much is open at once.
    #[error("more than {CELLS_MAX} minutes of targets are open at once: ask for a shorter range, or for fewer targets")]
    TooMuch,
}

/// One relay as it was when the audit began.
struct Of {
    relay: Relay,
    takes: Takes,
    terms: Terms,
    /// What it is done with.
    checkpoint: Checkpoint,
    /// Where counting began.
    since: u64,
    /// The last booking that its checkpoint knows of.
    number: u64,
    open: Option<Sheet>,
    /// Samples of dead letters that are none any more.
    no_longer_rejected: u64,
    /// Counted, booked.
    cells: HashMap<(TargetId, i64), (i64, i64)>,
    /// Minutes before are folded into hours.
    folded_to: i64,
}

/// What all of it needs to know of a target.
struct Scope {
    from: i64,
    to: i64,
    selector: Option<Selector>,
    names: HashMap<TargetId, (Named, bool)>,
}

/// Starts it; its lines are `{"percent":…}`, and at last `{"statement":…}` or `{"error":…}`.
pub fn start(request: Request, streams: Streams, stop: &CancellationToken) -> Lines {
    Lines::start(stop, async move |tell| {
        let told = tell.clone();
        match audit(request, &streams, move |percent| told.progress(&json!({ "percent": percent }))).await {
            Ok(statement) => tell.end(&json!({ "statement": statement })).await,
            Err(error) => tell.end(&json!({ "error": error.to_string() })).await,
        }
    })
}

/// Makes the statement; `progress` is told how many percent of the stream's part are done.
pub async fn audit(request: Request, streams: &Streams, progress: impl Fn(u64)) -> Result<Statement, Error> {
    let (from, to) = (minute_of(request.from_ms), minute_of(request.to_ms) + 1);
    let mut scope = Scope { from, to, selector: request.selector, names: HashMap::new() };
    let mut all = Vec::with_capacity(request.relays.len());
    for relay in request.relays {
        all.push(Of::read(relay, streams).await?);
    }
    let mut holes = Holes::default();
    let mut collection = Collection::default();
    let mut slots = Slots::default();
    let valid = booked::list(&streams.ledger, &all, &mut slots, &mut scope, &mut collection, &mut holes).await?;
    let begin = begin(&streams.raw, from * 60_000).await?;
    let (mut frames, mut bookings) = (Existing::open(&streams.raw, begin).await?, Existing::open(&streams.ledger, 0).await?);
    let mut counted = Counted::default();
    let mut booking = booked::next(&mut bookings, &valid).await?;
    let mut message = frames.next().await?;
    let mut told = 0;
    while booking.is_some() || message.is_some() {
        let is_booking = match (&booking, &message) {
            (Some((booking, _)), Some(message)) => booking.time_ms <= message.time_ms,
            (booking, _) => booking.is_some(),
        };
        if is_booking {
            if let Some((taken, whose)) = booking.take() {
                match whose {
                    Writer::Relay(place) => booked::take(&mut all[place], &taken, &scope, &mut holes),
                    Writer::Dead(place) => booked::amend(&mut all[place], &taken, &scope, &mut holes),
                    Writer::Collector => slots.book(collector_of(&taken.subject).unwrap_or_default(), &taken.payload, &scope),
                }
            }
            booking = booked::next(&mut bookings, &valid).await?;
        } else if let Some(taken) = message.take() {
            counted.take(&taken, &mut all, &mut slots, &mut scope, &mut collection, &mut holes);
            let percent = taken.seq.saturating_sub(begin) * 100 / frames.last.saturating_sub(begin).max(1);
            if std::mem::replace(&mut told, percent) != percent {
                progress(percent);
            }
            tokio::task::yield_now().await;
            message = frames.next().await?;
        }
        if all.iter().any(|of| of.cells.len() > CELLS_MAX) || slots.len() > CELLS_MAX {
            return Err(Error::TooMuch);
        }
    }
    for of in &mut all {
        if let Some(open) = of.open.take() {
            booked::add(of, &open, &scope, &mut holes);
        }
    }
    let counted_from = counted.finish(&streams.raw, &mut all, &scope, &mut holes).await?;
    slots.finish(&scope, |minute| counted.is_torn(minute), &mut collection, &mut holes);
    let is_of = |hole: &Hole, of: &Of| hole.relay.as_deref().is_none_or(|relay| relay == of.relay.name);
    let disagree = |of: &Of| holes.list.iter().any(|hole| !hole.accounted && is_of(hole, of));
    for of in &mut all {
        of.terms.rejected = of.terms.rejected.saturating_sub(of.no_longer_rejected);
        of.terms.balanced = of.terms.trouble.is_none() && !disagree(of);
    }
    Ok(Statement {
        balanced: all.iter().all(|of| of.terms.balanced),
        from_ms: from * 60_000,
        to_ms: to * 60_000,
        counted_from_ms: (counted_from < to).then(|| counted_from.max(from) * 60_000),
        collection,
        relays: all.into_iter().map(|of| of.terms).collect(),
        holes: holes.list,
        more_holes: holes.more,
    })
}

/// Where to begin to read for the slots from a time on. Where nothing was stored at that time, slots may be missing that only what came before shows.
async fn begin(raw: &Arc<dyn Log>, from_ms: i64) -> Result<u64, Error> {
    let at = raw.seq_at(from_ms).await?;
    let back_to_ms = match (raw.get(at.saturating_sub(1)).await?, raw.get(at).await?) {
        (Some(before), Some(after)) if after.time_ms - before.time_ms > QUIET_MS => before.time_ms - KEY_FRAME_PERIOD.as_millis() as i64,
        _ => i64::MAX,
    };
    Ok(raw.seq_at(back_to_ms.min(from_ms - CLOCK_SLACK_MS)).await?)
}

impl Of {
    async fn read(relay: Relay, streams: &Streams) -> Result<Self, Error> {
        let terms = Terms { relay: relay.name.clone(), ..Terms::default() };
        let found = streams.state.get(&checkpoint::key(&relay.name)).await?;
        let mut of = Self {
            takes: Takes::of(&relay),
            relay,
            terms,
            checkpoint: Checkpoint::at(0, 1),
            since: u64::MAX,
            number: 0,
            open: None,
            no_longer_rejected: 0,
            cells: HashMap::new(),
            folded_to: i64::MIN,
        };
        let checkpoint = found.map(|entry| serde_json::from_slice::<Checkpoint>(&entry.value));
        match checkpoint {
            Some(Ok(Checkpoint { minutes: Some(open), seq, behind, .. })) => {
                (of.since, of.number) = (open.since, open.number);
                of.open = minutes::read(&streams.ledger, &of.relay.name, &open).await?.map(|(sheet, _)| sheet);
                if of.open.is_none() {
                    of.terms.trouble = Some("the counts of its last minutes are unreadable".to_owned());
                }
                of.checkpoint = Checkpoint { behind, ..Checkpoint::at(seq, 1) };
            }
            Some(Ok(_)) => of.terms.trouble = Some("it was not counted yet: its checkpoint is of an earlier version".to_owned()),
            Some(Err(_)) => of.terms.trouble = Some("its checkpoint is unreadable".to_owned()),
            None if minutes::is_begun(&streams.ledger, &of.relay.name).await? => of.terms.trouble = Some(GONE.to_owned()),
            None => of.terms.trouble = Some("it has no checkpoint: it did not run yet".to_owned()),
        }
        Ok(of)
    }

    /// Whether it takes samples of a target.
    fn wants(&self, named: Option<&Named>) -> bool {
        self.takes.named(named)
    }

    /// Counts at a place; what is equal is forgotten.
    fn differ(&mut self, at: (TargetId, i64), counted: i64, booked: i64) {
        let cell = self.cells.entry(at).or_default();
        *cell = (cell.0 + counted, cell.1 + booked);
        if cell.0 == cell.1 {
            self.cells.remove(&at);
        }
    }
}

impl Scope {
    /// Learns a target's name.
    fn learn(&mut self, named: &Named) {
        // A target of which nothing could be decoded has no name yet.
        // Only frames say the namespace.
        let is_known = self.names.get(&named.id).is_some_and(|(known, _)| known.namespace == named.namespace || named.namespace.is_empty());
        if (named.job.is_empty() && named.instance.is_empty()) || is_known {
            return;
        }
        let selected = self.is_selected(named);
        self.names.insert(named.id, (named.clone(), selected));
    }

    fn is_selected(&self, named: &Named) -> bool {
        let labels = [("instance", &*named.instance), ("job", &*named.job)];
        let series = Series { name: "", labels: &labels, kind: MetricType::Unknown, cumulative: false, help: "", unit: "" };
        self.selector.as_ref().is_none_or(|selector| selector.selects(&series))
    }

    fn name(&self, target: TargetId) -> Option<&Named> {
        self.names.get(&target).map(|(named, _)| named)
    }

    /// Whether a target is asked for; one without a name only where all are.
    fn selects(&self, target: TargetId) -> bool {
        self.names.get(&target).map_or_else(|| self.selector.is_none(), |(_, selected)| *selected)
    }

    fn holds(&self, minute: i64) -> bool {
        (self.from..self.to).contains(&minute)
    }

    fn place(&self, target: TargetId) -> Place {
        let named = self.name(target);
        let text = |text: Option<&str>| text.unwrap_or_default().to_owned();
        Place { id: target.to_string(), job: text(named.map(|n| &*n.job)), instance: text(named.map(|n| &*n.instance)) }
    }
}
