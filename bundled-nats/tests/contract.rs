//! One contract, three servers: every case runs on the in-memory twin, on the bundled server, and on one that somebody else runs.

mod foreign;
mod ports;

use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bundled_nats::port::{Error, Headers, Info, Log, PublishError, Read, Streams};
use bundled_nats::server::{Options, Server, ServerState};
use bundled_nats::twin::{Fault, Twin};
use bundled_nats::{Durability, Role};
use bytes::Bytes;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use prometheus::Registry;

use foreign::{Foreign, Setup};

const SUBJECT: &str = "strata.raw.0.a";
const WALL: u64 = 4 * 1024 * 1024;
/// Longer than any wait that should succeed, also on a loaded machine.
const DEADLINE: Duration = Duration::from_secs(60);

/// What a case runs on.
enum Bed {
    Twin(Twin),
    Real { server: Box<Server>, folder: tempfile::TempDir, foreign: Option<Foreign> },
}

impl Bed {
    fn twin() -> Bed {
        Bed::Twin(Twin::new(WALL))
    }

    async fn real() -> Result<Bed> {
        let folder = tempfile::tempdir()?;
        let server = Box::new(start(folder.path().to_owned()).await?);
        Ok(Bed::Real { server, folder, foreign: None })
    }

    async fn external() -> Result<Bed> {
        let folder = tempfile::tempdir()?;
        let foreign = Foreign::start(Setup { tls: true, ..Setup::default() }).await?;
        let server = Box::new(connect(&foreign, folder.path()).await?);
        Ok(Bed::Real { server, folder, foreign: Some(foreign) })
    }

    fn streams(&self, role: Role) -> Streams {
        match self {
            Bed::Twin(twin) => twin.streams(),
            Bed::Real { server, .. } => server.streams(role),
        }
    }

    /// Takes the newest `torn` of `stored` messages of one size, as a crash with a lost tail does.
    async fn tear(&mut self, torn: u64, stored: u64) -> Result<()> {
        match self {
            Bed::Twin(twin) => twin.raw.tear(usize::try_from(torn)?),
            Bed::Real { server, folder, foreign } => {
                server.stop().await;
                let msgs = match foreign {
                    None => folder.path().join("nats/store/jetstream/STRATA/streams/STRATA_RAW/msgs"),
                    Some(foreign) => foreign.end()?.join("streams/STRATA_RAW/msgs"),
                };
                // A crash leaves no index of this state behind.
                let index = msgs.join("index.db");
                if index.exists() {
                    std::fs::remove_file(index)?;
                }
                let block = std::fs::File::options().write(true).open(msgs.join("1.blk"))?;
                let bytes = block.metadata()?.len();
                ensure!(bytes % stored == 0, "messages of one size");
                block.set_len(bytes / stored * (stored - torn))?;
                **server = match foreign {
                    None => start(folder.path().to_owned()).await?,
                    Some(foreign) => {
                        foreign.begin().await?;
                        connect(foreign, folder.path()).await?
                    }
                };
            }
        }
        Ok(())
    }

    /// Ends the server without warning; a bundled one comes back by itself.
    fn kill(&self) -> Result<()> {
        match self {
            Bed::Twin(twin) => twin.set_down(true),
            Bed::Real { .. } => self.signal(Signal::SIGKILL)?,
        }
        Ok(())
    }

    fn signal(&self, which: Signal) -> Result<()> {
        match self {
            Bed::Twin(_) => bail!("the twin is no process"),
            Bed::Real { server, foreign: None, .. } => signal(server, which),
            Bed::Real { foreign: Some(foreign), .. } => Ok(kill(Pid::from_raw(foreign.pid().cast_signed()), which)?),
        }
    }

    async fn recovered(&self) -> Result<()> {
        match self {
            Bed::Twin(twin) => twin.set_down(false),
            Bed::Real { server, foreign, .. } => {
                let mut state = server.state();
                within(state.wait_for(|state| *state != ServerState::Ready)).await??;
                if let Some(foreign) = foreign {
                    foreign.begin().await?;
                }
                within(state.wait_for(|state| *state == ServerState::Ready)).await??;
            }
        }
        Ok(())
    }
}

async fn start(data_dir: PathBuf) -> Result<Server> {
    let options = Options::new(data_dir, WALL, 64 * 1024 * 1024);
    Ok(within(Server::start(options, &Registry::new())).await??)
}

async fn connect(foreign: &Foreign, data_dir: &Path) -> Result<Server> {
    Ok(within(Server::connect(foreign.external(data_dir, WALL), &Registry::new())).await??)
}

fn signal(server: &Server, signal: Signal) -> Result<()> {
    let pid = server.pid().context("the server is ready")?;
    Ok(kill(Pid::from_raw(pid.cast_signed()), signal)?)
}

async fn within<T>(future: impl Future<Output = T>) -> Result<T> {
    tokio::time::timeout(DEADLINE, future).await.context("nothing happened within the deadline")
}

fn id(text: &str) -> Headers {
    let mut headers = Headers::default();
    headers.insert("Nats-Msg-Id", text);
    headers.insert("St-Batch", format!("a 1 {text}"));
    headers
}

/// Messages of one size, told apart by their number.
fn payload(n: u64) -> Bytes {
    Bytes::from(format!("{n:08}").repeat(16))
}

async fn publish(log: &dyn Log, numbers: std::ops::RangeInclusive<u64>) -> Result<u64> {
    let mut last = log.last(SUBJECT).await?.map_or(0, |message| message.seq);
    for n in numbers {
        last = log.publish(SUBJECT, &id(&format!("{n:08}")), payload(n), Some(last)).await?;
    }
    Ok(last)
}

async fn next(reader: &mut Box<dyn Read>) -> Result<(u64, Bytes)> {
    let message = within(reader.next()).await??;
    Ok((message.seq, message.payload))
}

mod cases {
    use super::*;

    pub async fn the_expectation_is_checked_before_anything_else(bed: &mut Bed) -> Result<()> {
        let raw = bed.streams(Role::Collector).raw;
        ensure!(raw.publish(SUBJECT, &id("1"), payload(1), Some(0)).await? == 1);
        let repeated = raw.publish(SUBJECT, &id("1"), payload(1), Some(0)).await;
        ensure!(matches!(repeated, Err(PublishError::WrongLast { actual: 1 })), "before deduplication: {repeated:?}");
        ensure!(raw.publish("strata.raw.0.b", &id("b"), payload(1), Some(0)).await? == 2, "other subjects do not interfere");
        ensure!(raw.publish(SUBJECT, &id("2"), payload(2), Some(1)).await? == 3);
        while raw.publish(SUBJECT, &Headers::default(), Bytes::from(vec![0; 500_000]), None).await.is_ok() {}
        let late = raw.publish(SUBJECT, &id("3"), Bytes::from(vec![0; 500_000]), Some(1)).await;
        ensure!(matches!(late, Err(PublishError::WrongLast { actual: 4.. })), "before the wall: {late:?}");
        Ok(())
    }

    pub async fn a_repeated_id_answers_the_first_sequence(bed: &mut Bed) -> Result<()> {
        let raw = bed.streams(Role::Collector).raw;
        ensure!(raw.publish(SUBJECT, &id("1"), payload(1), None).await? == 1);
        ensure!(raw.publish(SUBJECT, &id("1"), payload(1), None).await? == 1);
        ensure!(raw.info().await?.messages == 1);
        Ok(())
    }

    pub async fn a_full_stream_refuses_and_keeps_all(bed: &mut Bed) -> Result<()> {
        let raw = bed.streams(Role::Collector).raw;
        let large = Bytes::from(vec![7; 500_000]);
        let (mut last, mut n) = (0, 0);
        let refused = loop {
            n += 1;
            match raw.publish(SUBJECT, &id(&n.to_string()), large.clone(), Some(last)).await {
                Ok(seq) => last = seq,
                Err(error) => break error,
            }
        };
        ensure!(matches!(&refused, PublishError::Full(_)), "{refused}");
        ensure!(last == 8, "the same bytes fit on both: {last}");
        let info = raw.info().await?;
        ensure!(info.messages == 8 && info.first_seq == 1 && info.last_seq == 8 && info.max_bytes == WALL, "{info:?}");
        ensure!(bed.streams(Role::Control).raw.purge(3).await? == 2);
        ensure!(raw.publish(SUBJECT, &id(&n.to_string()), large, Some(8)).await? == 9, "the refused id is not remembered");
        Ok(())
    }

    pub async fn too_large_a_message_is_told_apart(bed: &mut Bed) -> Result<()> {
        let raw = bed.streams(Role::Collector).raw;
        let refused = raw.publish(SUBJECT, &id("1"), Bytes::from(vec![0; 1024 * 1024]), Some(0)).await;
        ensure!(matches!(refused, Err(PublishError::TooLarge { bytes: 1_048_577.. })), "{refused:?}");
        Ok(())
    }

    pub async fn a_purge_resets_the_subject_and_never_the_sequence(bed: &mut Bed) -> Result<()> {
        let (raw, control) = (bed.streams(Role::Collector).raw, bed.streams(Role::Control).raw);
        publish(&*raw, 1..=5).await?;
        let (info, first, last) = (raw.info().await?, raw.get(1).await?.context("it is there")?, raw.get(5).await?.context("it is there")?);
        ensure!((info.first_ms, info.last_ms) == (Some(first.time_ms), Some(last.time_ms)), "{info:?}");
        ensure!(control.purge(0).await? == 0, "nothing is below 0");
        ensure!(control.purge(3).await? == 2);
        ensure!(control.purge(3).await? == 0);
        ensure!(raw.get(2).await?.is_none() && raw.get(3).await?.is_some());
        ensure!(control.purge(1000).await? == 3, "beyond the end is all there is");
        let empty = Info { first_seq: 6, last_seq: 5, messages: 0, bytes: 0, max_bytes: WALL, first_ms: None, last_ms: None };
        ensure!(raw.info().await? == empty, "{:?}", raw.info().await?);
        ensure!(raw.last(SUBJECT).await?.is_none());
        let refused = raw.publish(SUBJECT, &id("6"), payload(6), Some(5)).await;
        ensure!(matches!(refused, Err(PublishError::WrongLast { actual: 0 })), "{refused:?}");
        ensure!(raw.publish(SUBJECT, &id("6"), payload(6), Some(0)).await? == 6);
        Ok(())
    }

    pub async fn a_torn_tail_reuses_sequences(bed: &mut Bed) -> Result<()> {
        publish(&*bed.streams(Role::Collector).raw, 1..=10).await?;
        bed.tear(4, 10).await?;
        let raw = bed.streams(Role::Collector).raw;
        ensure!(raw.info().await?.last_seq == 6, "{:?}", raw.info().await?);
        ensure!(publish(&*raw, 101..=102).await? == 8);
        let message = raw.get(7).await?.context("the sequence is used again")?;
        ensure!(message.payload == payload(101) && message.headers.get("St-Batch") == Some("a 1 00000101"));
        let mut reader = bed.streams(Role::Relay).raw.read(6, 0).await?;
        ensure!(next(&mut reader).await? == (6, payload(6)));
        ensure!(next(&mut reader).await? == (7, payload(101)));
        Ok(())
    }

    pub async fn a_start_beyond_the_end_is_the_next_message(bed: &mut Bed) -> Result<()> {
        let (raw, relay) = (bed.streams(Role::Collector).raw, bed.streams(Role::Relay).raw);
        let mut on_empty = relay.read(100, 0).await?;
        publish(&*raw, 1..=1).await?;
        ensure!(next(&mut on_empty).await? == (1, payload(1)));
        let mut beyond = relay.read(100, 0).await?;
        publish(&*raw, 2..=2).await?;
        ensure!(next(&mut beyond).await? == (2, payload(2)));
        let mut from_zero = relay.read(0, 0).await?;
        ensure!(next(&mut from_zero).await? == (1, payload(1)));
        Ok(())
    }

    pub async fn readers_keep_order_and_wait_for_more(bed: &mut Bed) -> Result<()> {
        let (raw, relay) = (bed.streams(Role::Collector).raw, bed.streams(Role::Relay).raw);
        for seq in 0..20 {
            raw.publish(SUBJECT, &Headers::default(), Bytes::from(vec![1; 200_000]), Some(seq)).await?;
        }
        // More than one pull holds.
        let mut reader = relay.read(1, 0).await?;
        for seq in 1..=20 {
            ensure!(next(&mut reader).await?.0 == seq);
        }
        bed.streams(Role::Control).raw.purge(20).await?;
        // More than one pull counts.
        publish(&*raw, 21..=1300).await?;
        for n in 21..=1300 {
            ensure!(next(&mut reader).await? == (n, payload(n)));
        }
        // Cancelled while it waits, it loses nothing.
        for _ in 0..3 {
            tokio::select! {
                biased;
                early = reader.next() => bail!("nothing is there yet: {early:?}"),
                () = tokio::task::yield_now() => {}
            }
        }
        publish(&*raw, 1301..=1301).await?;
        ensure!(next(&mut reader).await? == (1301, payload(1301)));
        Ok(())
    }

    pub async fn readers_skip_what_was_purged(bed: &mut Bed) -> Result<()> {
        let (raw, relay) = (bed.streams(Role::Collector).raw, bed.streams(Role::Relay).raw);
        publish(&*raw, 1..=5).await?;
        bed.streams(Role::Control).raw.purge(4).await?;
        let mut reader = relay.read(2, 0).await?;
        ensure!(next(&mut reader).await?.0 == 4 && next(&mut reader).await?.0 == 5);
        Ok(())
    }

    pub async fn a_reader_ends_with_the_server(bed: &mut Bed) -> Result<()> {
        let (raw, relay) = (bed.streams(Role::Collector).raw, bed.streams(Role::Relay).raw);
        publish(&*raw, 1..=2).await?;
        let mut reader = relay.read(1, 0).await?;
        ensure!(next(&mut reader).await?.0 == 1 && next(&mut reader).await?.0 == 2);
        bed.kill()?;
        ensure!(within(reader.next()).await?.is_err());
        ensure!(within(reader.next()).await?.is_err(), "and stays ended");
        bed.recovered().await?;
        publish(&*raw, 3..=3).await?;
        ensure!(next(&mut relay.read(3, 0).await?).await? == (3, payload(3)), "the handle still works");
        Ok(())
    }

    pub async fn an_unknown_outcome_is_told_by_the_subject(bed: &mut Bed) -> Result<()> {
        let raw = bed.streams(Role::Collector).raw;
        publish(&*raw, 1..=1).await?;
        match &*bed {
            Bed::Twin(twin) => twin.raw.inject(Fault::LoseAnswer),
            Bed::Real { .. } => bed.signal(Signal::SIGSTOP)?,
        }
        let (headers, mut kill) = (id("00000002"), std::pin::pin!(async { bed.kill() }));
        let sent = raw.publish(SUBJECT, &headers, payload(2), Some(1));
        tokio::pin!(sent);
        let outcome = tokio::select! {
            biased;
            outcome = &mut sent => outcome,
            killed = &mut kill => { killed?; within(sent).await? }
        };
        ensure!(matches!(outcome, Err(PublishError::Unknown(_))), "{outcome:?}");
        bed.recovered_after_fault().await?;
        let last = raw.last(SUBJECT).await?.context("the first message at least")?;
        let again = raw.publish(SUBJECT, &headers, payload(2), Some(1)).await;
        match last.seq {
            1 => ensure!(matches!(again, Ok(2)), "{again:?}"),
            _ => ensure!(matches!(again, Err(PublishError::WrongLast { actual: 2 })), "{again:?}"),
        }
        ensure!(raw.info().await?.messages == 2, "stored once in either case");
        Ok(())
    }

    pub async fn messages_are_found_by_subject_sequence_and_time(bed: &mut Bed) -> Result<()> {
        let raw = bed.streams(Role::Collector).raw;
        publish(&*raw, 1..=30).await?;
        ensure!(raw.get(0).await?.is_none() && raw.get(31).await?.is_none() && raw.last("strata.raw.0.none").await?.is_none());
        let fifth = raw.get(5).await?.context("the fifth")?;
        ensure!(fifth.subject == SUBJECT && fifth.payload == payload(5) && fifth.seq == 5);
        let headers: Vec<_> = fifth.headers.iter().collect();
        ensure!(headers == [("Nats-Msg-Id", "00000005"), ("St-Batch", "a 1 00000005")], "{headers:?}");
        ensure!(raw.last(SUBJECT).await?.context("the last")?.seq == 30);
        for (from, seq) in [(0, Some(1)), (7, Some(7)), (30, Some(30)), (31, None)] {
            ensure!(raw.next_of(SUBJECT, from).await?.map(|message| message.seq) == seq, "from {from}");
        }
        ensure!(raw.next_of("strata.raw.0.none", 1).await?.is_none());
        let found = raw.seq_at(fifth.time_ms).await?;
        ensure!((1..=5).contains(&found) && raw.get(found).await?.is_some_and(|found| found.time_ms == fifth.time_ms));
        ensure!(found == 1 || raw.get(found - 1).await?.is_some_and(|before| before.time_ms < fifth.time_ms));
        ensure!(raw.seq_at(0).await? == 1 && raw.seq_at(i64::MAX / 2).await? == 31);
        let mut reader = bed.streams(Role::Relay).raw.read(5, 0).await?;
        let read = within(reader.next()).await??;
        ensure!(read.time_ms == fifth.time_ms && read.headers == fifth.headers && read.subject == SUBJECT);
        Ok(())
    }

    pub async fn keys_are_written_only_on_their_revision(bed: &mut Bed) -> Result<()> {
        let state = bed.streams(Role::Relay).state;
        ensure!(state.get("relay.a").await?.is_none() && state.keys("").await?.is_empty());
        let first = state.put("relay.a", Bytes::from_static(b"1"), 0).await?;
        ensure!(matches!(state.put("relay.a", Bytes::new(), 0).await, Err(Error::Conflict { key }) if key == "relay.a"));
        let second = state.put("relay.a", Bytes::from_static(b"2"), first).await?;
        ensure!(second > first && matches!(state.put("relay.a", Bytes::new(), first).await, Err(Error::Conflict { .. })));
        let entry = state.get("relay.a").await?.context("its entry")?;
        ensure!(entry.revision == second && entry.value == "2");
        state.put("relay.b", Bytes::new(), 0).await?;
        state.put("lease.a", Bytes::new(), 0).await?;
        ensure!(state.keys("relay.").await? == ["relay.a", "relay.b"] && state.keys("").await?.len() == 3);
        state.delete("relay.a").await?;
        ensure!(state.get("relay.a").await?.is_none() && state.keys("relay.").await? == ["relay.b"]);
        ensure!(matches!(state.put("relay.a", Bytes::new(), second).await, Err(Error::Conflict { .. })));
        ensure!(state.put("relay.a", Bytes::from_static(b"3"), 0).await? > second, "a removed key does not exist");
        Ok(())
    }

    pub async fn each_role_can_do_its_work(bed: &mut Bed) -> Result<()> {
        let (collector, relay, control) = (bed.streams(Role::Collector), bed.streams(Role::Relay), bed.streams(Role::Control));
        collector.ledger.publish("strata.ledger.publish", &Headers::default(), payload(1), None).await?;
        relay.ledger.publish("strata.ledger.relay.a", &Headers::default(), payload(2), None).await?;
        relay.dead.publish("strata.dead.a", &Headers::default(), payload(3), Some(0)).await?;
        ensure!(relay.dead.last("strata.dead.a").await?.is_some_and(|message| message.payload == payload(3)));
        ensure!(next(&mut control.dead.read(1, 0).await?).await? == (1, payload(3)));
        ensure!(next(&mut control.ledger.read(2, 0).await?).await? == (2, payload(2)));
        ensure!(control.ledger.purge(2).await? == 1 && control.dead.info().await?.messages == 1);
        // A relay makes room for its dead letters, and reads frames in every way there is.
        ensure!(relay.dead.purge(2).await? == 1);
        let raw = collector.raw.publish("strata.raw.0.p", &Headers::default(), payload(4), Some(0)).await?;
        ensure!(relay.raw.get(raw).await?.is_some() && relay.raw.last("strata.raw.0.p").await?.is_some());
        ensure!(relay.raw.seq_at(0).await? == raw && relay.raw.info().await?.messages == 1);
        ensure!(next(&mut relay.raw.read(raw, 0).await?).await? == (raw, payload(4)));
        ensure!(control.state.put("x", payload(1), 0).await? > 0 && control.state.keys("").await? == ["x"]);
        Ok(())
    }
}

impl Bed {
    async fn recovered_after_fault(&self) -> Result<()> {
        if let Bed::Twin(_) = self { Ok(()) } else { self.recovered().await }
    }
}

macro_rules! contract {
    ($($case:ident),* $(,)?) => {
        mod twin {
            $(#[tokio::test]
            async fn $case() -> anyhow::Result<()> {
                super::cases::$case(&mut super::Bed::twin()).await
            })*
        }

        mod real {
            $(#[tokio::test]
            async fn $case() -> anyhow::Result<()> {
                let mut bed = super::Bed::real().await?;
                super::cases::$case(&mut bed).await?;
                let super::Bed::Real { server, .. } = &bed else { unreachable!("made above") };
                server.stop().await;
                Ok(())
            })*
        }

        mod external {
            $(#[tokio::test]
            async fn $case() -> anyhow::Result<()> {
                let mut bed = super::Bed::external().await?;
                super::cases::$case(&mut bed).await?;
                let super::Bed::Real { server, .. } = &bed else { unreachable!("made above") };
                server.stop().await;
                Ok(())
            })*
        }
    };
}

contract! {
    the_expectation_is_checked_before_anything_else,
    a_repeated_id_answers_the_first_sequence,
    a_full_stream_refuses_and_keeps_all,
    too_large_a_message_is_told_apart,
    a_purge_resets_the_subject_and_never_the_sequence,
    a_torn_tail_reuses_sequences,
    a_start_beyond_the_end_is_the_next_message,
    readers_keep_order_and_wait_for_more,
    readers_skip_what_was_purged,
    a_reader_ends_with_the_server,
    an_unknown_outcome_is_told_by_the_subject,
    messages_are_found_by_subject_sequence_and_time,
    keys_are_written_only_on_their_revision,
    each_role_can_do_its_work,
}

#[tokio::test]
async fn an_acknowledgement_means_fsynced() -> Result<()> {
    let Bed::Real { server, .. } = Bed::real().await? else { bail!("made real above") };
    ensure!(server.durability() == Some(Durability::Fsynced { replicas: 1 }));
    server.stop().await;
    Ok(())
}
