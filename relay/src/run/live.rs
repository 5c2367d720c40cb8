//! One life of a relay: everything that it needs is opened, then one delivery runs, or two where it has a backlog.
//!
//! *In*: the checkpoint. *Out*: deliveries until the token ends them, one of them fails, or the relay turns to the newest samples. *Bound*: two deliveries.
//! *When full*: see [`crate::read`] and [`crate::deliver`].

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bundled_nats::ledger::relay_minutes;
use bundled_nats::port::Streams;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::first::{again, first, newcomers_from};
use super::{Components, Error, Life, config_hash, feed, refusing};
use crate::backoff::{Backoff, nonce, now_ms};
use crate::book::Book;
use crate::catch_up;
use crate::checkpoint::{Backlog, Checkpoint, Store};
use crate::control::Control;
use crate::dead::Dead;
use crate::deliver::{self, Deliver, Turn};
use crate::desk::{Desk, Seat, Side};
use crate::lease::{Fence, Guarded};
use crate::minutes::{self, Minutes};
use crate::pause;
use crate::pipeline::{self, Pipeline};
use crate::read::Reader;
use crate::sink::Opening;
use crate::step::STEPS_MAX;
use crate::telemetry::{Activity, Behind, Gauges, Shared};

/// What a life begins with.
struct Opened {
    store: Store,
    minutes: Minutes,
    checkpoint: Checkpoint,
    dead: Dead,
    book: Book,
    behind: Option<(Box<Backlog>, Dead, Book)>,
}

/// One delivery.
struct Delivery {
    reader: Reader,
    checkpoint: Checkpoint,
    seat: Seat,
    dead: Dead,
    control: Arc<Control>,
    gauges: Gauges,
    rate: Option<u64>,
    turn: Option<Turn>,
}

impl Life {
    /// `stop`: ends this life of it. `far`: whether it is so far behind that it turns to the newest samples, as one life tells the next.
    pub(super) async fn live(&self, stop: &CancellationToken, far: &Arc<AtomicBool>) -> Result<(), Error> {
        let Opened { store, minutes, checkpoint, dead, book, behind } = self.patiently(stop, far).await?;
        let (backlog, behind) = match behind {
            Some((backlog, dead, book)) => (Some((backlog, dead)), Some(book)),
            None => (None, None),
        };
        let written = Checkpoint { clean: false, behind: backlog.as_ref().map(|(backlog, _)| unclean(backlog)), ..checkpoint.clone() };
        let (seat, other) = Desk::new(store, minutes, book, behind, written).seats();
        let catch_up = &self.relay.catch_up;
        let both = stop.child_token();
        // Whichever cannot go on ends the other: the next life begins with both.
        let run = async |delivery| {
            let done = self.deliver(delivery, &both).await;
            if done.is_err() {
                both.cancel();
            }
            done
        };
        let backlog = backlog.map(|(backlog, dead)| {
            let rate = catch_up.rate.filter(|_| catch_up.is_fresh_first()).map(|rate| rate.0);
            self.behind(*backlog, dead, other, rate)
        });
        let head = Delivery {
            reader: Reader::new(self.streams.raw.clone(), &self.relay.name, &checkpoint).knowing(&self.reached),
            checkpoint,
            seat,
            dead,
            control: self.control.clone(),
            gauges: self.gauges.clone(),
            rate: None,
            turn: catch_up.is_fresh_first().then(|| Turn { after: catch_up.after.duration(), far: far.clone() }),
        };
        let beside = async {
            let Some(delivery) = backlog else { return Ok(()) };
            let shared = delivery.gauges.shared.clone();
            let done = run(delivery).await;
            let mut live = self.gauges.shared.live();
            if live.behind.as_ref().is_some_and(|behind| shared.live().position >= behind.end) {
                live.behind = None;
                drop(live);
                info!(relay = self.relay.name, "the backlog is delivered");
            }
            done
        };
        // On the heap: each is a whole delivery.
        match tokio::join!(Box::pin(run(head)), Box::pin(beside)) {
            (Err(Error::Stopped), Err(error)) | (Err(error), _) => Err(error),
            (Ok(()), done) => done,
        }
    }

    /// The delivery of a backlog, which is shown from now on.
    fn behind(&self, backlog: Backlog, dead: Dead, seat: Seat, rate: Option<u64>) -> Delivery {
        let shared = Arc::new(Shared::default());
        let gauges = Gauges { shared: shared.clone(), metrics: self.gauges.metrics.beside() };
        let reader = Reader::behind(self.streams.raw.clone(), &self.relay.name, &backlog).knowing(&self.reached);
        let Backlog { checkpoint, end, until } = backlog;
        info!(relay = self.relay.name, position = checkpoint.seq, end, rate, "delivers its backlog beside what is new");
        shared.live().at(&checkpoint);
        self.gauges.shared.live().behind = Some(Behind { shared, end, until });
        Delivery { reader, checkpoint, seat, dead, control: self.behind.clone(), gauges, rate, turn: None }
    }

    async fn deliver(&self, delivery: Delivery, stop: &CancellationToken) -> Result<(), Error> {
        let Delivery { reader, checkpoint, seat, dead, control, gauges, rate, turn } = delivery;
        let components: Components = match (self.build)(&self.relay) {
            Ok(components) => components,
            Err(error) => refusing(&error)?,
        };
        let (mut lanes, parts) = components.apart(&self.relay, &self.external_labels, &checkpoint);
        let opening = Opening { log: &self.streams.raw, beside: None };
        if stop.run_until_cancelled(lanes.open(opening)).await.is_none() {
            return Err(Error::Stopped);
        }
        let pipeline = Pipeline::new(pipeline::Parts { layouts: self.layouts.clone(), ..parts }, control.clone());
        let deliver = Deliver::new(deliver::Parts {
            lanes,
            dead,
            seat: Some(seat),
            count: None,
            checkpoint,
            control: control.clone(),
            gauges: gauges.clone(),
            trim: self.trim.clone(),
            stop: stop.clone(),
            rate,
            track: None,
            turn,
        });
        let (steps, received) = mpsc::channel(STEPS_MAX);
        // Both end together: reading when the channel is closed or the token ends it, delivery when the steps end.
        let ((), delivered) = tokio::join!(feed(reader, pipeline, steps, &control, Some(&gauges), stop, None), deliver.run(received));
        Ok(delivered?)
    }

    /// Opens everything that a start needs, as long as it takes.
    async fn patiently(&self, stop: &CancellationToken, far: &AtomicBool) -> Result<Opened, Error> {
        let (mut backoff, mut told) = (Backoff::default(), false);
        loop {
            let error = match self.open(stop, far).await {
                Ok(all) => return Ok(all),
                Err(error) if error.is_transient() => error,
                Err(error) => return Err(error),
            };
            let wait: Duration = backoff.wait();
            if !std::mem::replace(&mut told, true) {
                warn!(relay = self.relay.name, %error, "cannot start yet, trying again without end");
            }
            let next = now_ms().saturating_add(i64::try_from(wait.as_millis()).unwrap_or(i64::MAX));
            self.gauges.shared.trouble(Activity::Starting, error.to_string(), next);
            tokio::select! {
                biased;
                () = stop.cancelled() => return Err(Error::Stopped),
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    async fn open(&self, stop: &CancellationToken, far: &AtomicBool) -> Result<Opened, Error> {
        let Streams { ledger, state, .. } = &self.streams;
        let name = &self.relay.name;
        let owner = format!("{:016x}", nonce());
        let (mut store, found) = Store::open(state.clone(), name, owner).await?;
        let pause = pause::read(&*state.clone(), name, now_ms()).await?;
        self.control.pause(pause);
        self.behind.pause(pause);
        self.gauges.metrics.paused.set(i64::from(pause.is_some()));
        let is_lost = found.is_none() && minutes::is_begun(ledger, name).await?;
        let mut checkpoint = match found {
            Some(checkpoint) => checkpoint,
            None if is_lost => again(&self.streams, name).await?,
            None => first(&*self.streams.raw, self.relay.start).await?,
        };
        // One of an earlier version knows whom it has met: who begins from now on is another one.
        checkpoint.newcomers_from.get_or_insert_with(|| newcomers_from(false));
        self.reached.load(&**state).await?;
        if far.load(Ordering::Acquire) && self.relay.catch_up.is_fresh_first() && checkpoint.behind.is_none() {
            checkpoint = catch_up::turn(&self.streams.raw, checkpoint).await?;
        }
        let config = config_hash(&self.relay, &self.external_labels);
        let was_clean = checkpoint.take_over(store.owner(), config.clone());
        let behind_was_clean = checkpoint.behind.as_mut().map(|behind| behind.checkpoint.take_over(store.owner(), config));
        // Taken over, the start resolved for good, and turned to the newest samples, before anything is read: all in one value.
        store.take(&checkpoint).await?;
        if is_lost {
            error!(relay = name, "its position is gone from STRATA_STATE: all that the stream holds is delivered again");
        }
        far.store(false, Ordering::Release);
        checkpoint.clean = was_clean;
        let (parked, book) = self.losses(Side::Head, &checkpoint, stop).await?;
        info!(relay = name, position = checkpoint.seq, warm_from = checkpoint.warm_from, "starting");
        let fence = Fence::around(ledger, &relay_minutes(name), state.clone(), name, store.owner()).await?;
        let counted = Guarded::around(ledger.clone(), self.standing.clone(), Some(fence));
        let minutes = Minutes::open(counted, name, &checkpoint, stop.clone()).await?;
        let behind = match checkpoint.behind.take() {
            Some(mut backlog) => {
                backlog.checkpoint.clean = behind_was_clean.unwrap_or_default();
                let (dead, book) = self.losses(Side::Behind, &backlog.checkpoint, stop).await?;
                Some((backlog, dead, book))
            }
            None => None,
        };
        Ok(Opened { store, minutes, checkpoint, dead: parked, book, behind })
    }

    /// Where one of its positions parks and books.
    async fn losses(&self, side: Side, checkpoint: &Checkpoint, stop: &CancellationToken) -> Result<(Dead, Book), Error> {
        let Streams { dead, ledger, .. } = &self.streams;
        let name = &self.relay.name;
        let parked = Dead::open(dead.clone(), ledger.clone(), (name, None), checkpoint.seq, stop.clone()).await?;
        let (book, given_up) = Book::open(ledger.clone(), (name, side), (checkpoint.seq, checkpoint.voided), stop.clone()).await?;
        if let Some((to, why)) = given_up {
            info!(relay = name, to, "samples were given up and booked before the stop: they stay so");
            let control = if side == Side::Head { &self.control } else { &self.behind };
            control.skip_to(to, why);
        }
        Ok((parked, book))
    }
}

/// As it is written while it is being delivered.
fn unclean(backlog: &Backlog) -> Box<Backlog> {
    let checkpoint = Checkpoint { clean: false, ..backlog.checkpoint.clone() };
    Box::new(Backlog { checkpoint, ..backlog.clone() })
}
