//! The appliance: starts the parts in order, and stops them in order.
//!
//! *In*: a configuration. *Out*: server → collector → relays; on a stop intake ends first, then what is on its way is delivered, then the
//! server ends. *Bound*: the deadline of the stop. *When full*: parts that are late are named in the log.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use bundled_nats::port::Streams;
use bundled_nats::{Role as User, Server};
use collector::Collector;
use collector::members::{HANDOVER, Sharing};
use config::{Config, Nats};
use kubernetes::client::Cluster;
use kubernetes::members::Membership;
use relay::{Activity, Relays};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::board::{Board, Parts};
use crate::nats;
use crate::pulse;
use crate::reload::relays_of;
use crate::replays::Replays;
use crate::role::Role;
use crate::token;

/// Share of the drain that the collector gets to publish what it queued, in tenths.
const COLLECTOR_TENTHS: u32 = 4;
/// Share of the drain in which relays read on to the end of the stream, in tenths; the rest is for their last checkpoints.
const CATCH_UP_TENTHS: u32 = 4;
/// How long a relay may stand still before the stop no longer waits for it: its sink hangs. Larger: one hung sink takes the time of the whole
/// stop; smaller: a slow one is left in the middle, and goes on there at the next start.
const STUCK: Duration = Duration::from_secs(5);
/// How long a member that stops goes on to scrape after it gave its lease back: others take over within [`HANDOVER`]. Larger: stops take longer; smaller:
/// what is due while they do is missed.
const LET_GO: Duration = HANDOVER.saturating_add(Duration::from_secs(1));
/// Between two looks at how far the relays are.
const LOOK: Duration = Duration::from_millis(50);

/// Owns the running parts.
pub(crate) struct Appliance {
    board: Arc<Board>,
    server: Arc<Server>,
    streams: Streams,
    /// None: this process shares its targets with no other.
    membership: Option<Membership>,
    stop: CancellationToken,
}

impl Appliance {
    /// Starts every part; those that run already end with the error. *Errors*: one line that names the field and the fix.
    pub(crate) async fn start(config: Arc<Config>, board: Arc<Board>) -> anyhow::Result<Self> {
        let (data_dir, role) = (&config.buffer.data_dir, board.role());
        let mut membership = membership(&config, role).await?;
        let starting = nats::start(&config, role, board.registry()).await.map_err(advise)?;
        board.set_server(starting.state());
        let server = Arc::new(starting.begun().await.map_err(|error| advise(error.into()))?);
        board.set_token(token::read_or_make(data_dir).context("buffer.data_dir").map_err(advise)?);
        let streams = server.streams(role.looks_as());
        let stop = CancellationToken::new();
        let parts = match newer(&streams, role).await {
            None => Self::start_parts(&config, &board, &server, membership.as_ref(), &stop),
            Some(error) => Err(error),
        };
        if let (Ok(Parts { collector: Some(collector), .. }), Some(membership)) = (&parts, &mut membership) {
            membership.join_after(collector.found());
        }
        let appliance = Self { board: Arc::clone(&board), server, streams, membership, stop };
        match parts {
            Ok(parts) => {
                // Whoever asks once it is ready is told of the stream.
                board.look(appliance.streams.raw.info().await.ok(), None, None);
                board.set_parts(parts);
                // Lives as long as the parts, and owns nothing.
                tokio::spawn(pulse::run(board, appliance.streams.clone(), appliance.stop.clone()));
                Ok(appliance)
            }
            Err(error) => {
                appliance.server.stop().await;
                Err(error)
            }
        }
    }

    fn start_parts(
        config: &Arc<Config>,
        board: &Board,
        server: &Arc<Server>,
        membership: Option<&Membership>,
        stop: &CancellationToken,
    ) -> anyhow::Result<Parts> {
        let (role, mut shared) = (board.role(), relay::Options::default());
        let joined = membership.map(Membership::joined);
        let mut parts = Parts { server: Arc::clone(server), joined, collector: None, relays: None, replays: None };
        if role.collects() {
            let sharing = membership.map(|membership| Sharing { own: membership.name().to_owned(), live: membership.live() });
            let options = collector::Options { sharing, ..collector::Options::new(Arc::clone(config)) };
            (shared.full, shared.layouts) = (Arc::clone(&options.full), Arc::clone(&options.layouts));
            parts.collector = Some(Collector::start(options, &server.streams(User::Collector), board.registry(), stop)?);
        }
        if role.relays() {
            let relay::Configuration { relays, external_labels, replay_window } = relays_of(config);
            let streams = server.streams(User::Relay);
            // Nobody else is let in to a server of our own.
            let is_shared = matches!(config.buffer.nats, Nats::External(_));
            let applicant = is_shared.then(|| token::applicant(&config.buffer.data_dir)).transpose().context("buffer.data_dir")?;
            let options = relay::Options {
                // Only the trim purges: relays read with the rights of a reader.
                trim: Some(server.streams(User::Control)),
                external_labels,
                replay_window,
                retired_hold: config.buffer.retired_hold.duration(),
                build: relay::run::builder(server.feeds()),
                applicant,
                ..shared
            };
            let started = Relays::start(&relays, streams.clone(), options.clone(), board.registry(), &CancellationToken::new());
            let started = started.context("cannot start the relays")?;
            parts.replays = Some(Arc::new(Replays::new(Arc::clone(config), streams, options, started.replays())));
            parts.relays = Some(started);
        }
        Ok(parts)
    }

    /// Waits until a part ends by itself that the process should not survive.
    pub(crate) async fn failed(&self) -> anyhow::Error {
        type Failed = Pin<Box<dyn Future<Output = collector::publish::Error> + Send>>;
        let failed = self.board.with_parts(|parts| parts.collector.as_ref().map(|collector| Box::pin(collector.failed()) as Failed));
        match failed.flatten() {
            Some(failed) => anyhow!(failed.await),
            None => std::future::pending().await,
        }
    }

    /// Stops everything within about `within`, and [`LET_GO`] before that where others take over; whether all of it was in time.
    pub(crate) async fn stop(mut self, within: Duration) -> bool {
        if let Some(membership) = self.membership.take()
            && membership.leave().await
        {
            sleep(LET_GO).await;
        }
        let end = Instant::now() + within;
        let mut in_time = true;
        self.stop.cancel();
        if let Some(collector) = self.board.with_parts(|parts| parts.collector.take()).flatten() {
            // It says itself what it could not publish.
            in_time &= collector.stop(within * COLLECTOR_TENTHS / 10).await == collector::publish::Left::default();
            // Where others publish there is no end to reach, and perhaps another process that goes on at once.
            let behind = timeout(within * CATCH_UP_TENTHS / 10, self.caught_up()).await.unwrap_or_else(|_| self.behind());
            if !behind.is_empty() {
                tracing::warn!(relays = ?behind, "these did not reach the end of the stream: they go on there at the next start");
                in_time = false;
            }
        }
        if let Some(replays) = self.board.with_parts(|parts| parts.replays.clone()).flatten() {
            replays.stop();
        }
        if let Some(relays) = self.board.with_parts(|parts| parts.relays.take()).flatten() {
            relays.stop(end.saturating_duration_since(Instant::now()).max(Duration::from_secs(1))).await;
        }
        self.server.stop().await;
        in_time
    }

    /// Waits until every relay that makes progress is at the end of the stream; one whose sink is away keeps its backlog there.
    /// One that stands still is not waited for: these are the answer.
    async fn caught_up(&self) -> Vec<String> {
        let Ok(info) = self.streams.raw.info().await else { return Vec::new() };
        let mut moving = Moving::default();
        loop {
            let statuses = self.board.with_parts(|parts| parts.relays.as_ref().map(Relays::status)).flatten().unwrap_or_default();
            let behind: Vec<_> = statuses.iter().filter(|s| s.activity == Activity::Running && s.position < info.last_seq).collect();
            if behind.iter().filter(|s| moving.is_moving(&s.name, s.position, Instant::now())).count() == 0 {
                return behind.iter().map(|s| s.name.clone()).collect();
            }
            sleep(LOOK).await;
        }
    }

    fn behind(&self) -> Vec<String> {
        let statuses = self.board.with_parts(|parts| parts.relays.as_ref().map(Relays::status)).flatten().unwrap_or_default();
        statuses.into_iter().filter(|s| s.activity == Activity::Running && s.pending_samples > 0).map(|s| s.name).collect()
    }
}

/// Why the relays must not start: a newer version of Strata wrote what they would lose.
async fn newer(streams: &Streams, role: Role) -> Option<anyhow::Error> {
    if !role.relays() {
        return None;
    }
    match relay::newer::waits(streams).await {
        Ok(waits) => waits.map(|waits| anyhow!(waits)),
        Err(error) => {
            // Each relay waits at such a message anyway.
            tracing::info!(%error, "cannot see whether a newer version wrote to the streams");
            None
        }
    }
}

/// This process among those that share the targets, where it is to share them.
async fn membership(config: &Config, role: Role) -> anyhow::Result<Option<Membership>> {
    let Some(kubernetes) = config.kubernetes.as_ref().filter(|kubernetes| kubernetes.share_targets && role.collects()) else {
        return Ok(None);
    };
    let cluster = Cluster::open(kubernetes).await.context("kubernetes.share_targets")?;
    Ok(Some(Membership::open(&cluster, kubernetes.group(), &collector::publish::producer(None)).await))
}

/// Which relays come nearer to the end of the stream.
#[derive(Default)]
struct Moving {
    seen: HashMap<String, (u64, Instant)>,
}

impl Moving {
    /// Whether a relay's position moved within [`STUCK`].
    fn is_moving(&mut self, relay: &str, position: u64, now: Instant) -> bool {
        match self.seen.get(relay) {
            Some((at, since)) if *at == position => now.duration_since(*since) < STUCK,
            _ => {
                self.seen.insert(relay.to_owned(), (position, now));
                true
            }
        }
    }
}

/// Adds the fix where the cause is a folder that cannot be written.
fn advise(error: anyhow::Error) -> anyhow::Error {
    let kind = error.chain().find_map(|cause| cause.downcast_ref::<io::Error>()).map(io::Error::kind);
    let advice = match kind {
        Some(io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied) => {
            "make the folder writable for this user, or set another"
        }
        Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => "the volume is full: free some space, or set another folder",
        Some(io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists | io::ErrorKind::NotFound) => {
            "set a path that is a folder, or can become one"
        }
        _ => return error,
    };
    anyhow!("{error:#}; {advice}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relay_that_stands_still_is_not_waited_for() {
        let (mut moving, now) = (Moving::default(), Instant::now());
        let at = |seconds| now + Duration::from_secs(seconds);
        assert!(moving.is_moving("one", 7, at(0)) && moving.is_moving("one", 7, at(4)));
        assert!(!moving.is_moving("one", 7, at(5)));
        assert!(moving.is_moving("one", 8, at(6)) && moving.is_moving("other", 7, at(6)));
        assert!(!moving.is_moving("one", 8, at(11)));
    }
}
