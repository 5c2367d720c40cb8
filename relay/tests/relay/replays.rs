//! Replays over kills, stops and takeovers: gone on with until they end, under the same keys.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bundled_nats::port::{Log, State};
use bundled_nats::twin::Twin;
use relay::Relays;
use relay::replay::{Bound, Outcome, Request};
use relay::replays::{Refused, Replays, Status};
use relay::sink::Answer;

use crate::harness::*;
use crate::replaying::{asked, published, request};
use crate::standby::{TAKEOVER_MAX, process, stands_by};

const STOP_MAX: Duration = Duration::from_secs(5);

/// Requests of a replay, in order.
fn calls(sink: &Scripted, id: &str) -> Vec<Call> {
    sink.calls().into_iter().filter(|call| call.key.starts_with(&format!("{id}:"))).collect()
}

/// Lines that came at least once, and how many came again, each under the key that it had.
fn came(sink: &Scripted, id: &str) -> (Vec<String>, usize) {
    let mut first: HashMap<String, Vec<String>> = HashMap::new();
    let mut repeated = 0;
    for call in calls(sink, id).into_iter().filter(|call| call.answer == Answer::Delivered) {
        match first.get(&call.key) {
            Some(lines) => {
                assert_eq!(*lines, call.lines, "key {}", call.key);
                repeated += lines.len();
            }
            None => drop(first.insert(call.key, call.lines)),
        }
    }
    let mut lines: Vec<String> = first.into_values().flatten().collect();
    lines.sort_unstable();
    (lines, repeated)
}

async fn seen(replays: &Replays, id: &str) -> Status {
    replays.get(id).await.expect("the twin is up").expect("it is known")
}

/// Waits until a replay has ended.
async fn ended(replays: &Replays, id: &str) -> Status {
    for _ in 0..200_000 {
        let status = seen(replays, id).await;
        if status.outcome.is_some() {
            return status;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("replay {id} never ended");
}

/// Asks as soon as that is possible.
async fn ask(relays: &Relays, request: Request) -> Status {
    let replays = relays.replays();
    for _ in 0..2000 {
        match replays.ask(request.clone()).await {
            Err(Refused::Elsewhere(None)) => tokio::time::sleep(Duration::from_millis(5)).await,
            asked => return asked.expect("it begins"),
        }
    }
    panic!("nobody runs the relays");
}

/// Kills the process between the answer to its next request, by this rule, and the write of the position.
async fn kill(twin: &Twin, sink: &Scripted, relays: Relays, rule: fn(&[String]) -> Answer) {
    let (state, so_far) = (twin.state.clone(), sink.calls().len());
    sink.set(move |lines| {
        state.set_down(true);
        rule(lines)
    });
    until("it asked once more", || sink.calls().len() > so_far).await;
    drop(relays);
    twin.state.set_down(false);
    sink.set(rule);
}

fn takes(_: &[String]) -> Answer {
    Answer::Delivered
}

/// A relay with a replay of forty samples at two a second; what is delivered is not kept in the stream.
async fn running(twin: &Twin) -> (Setup, Relays, String, i64) {
    let mut setup = Setup::one(twin);
    setup.options.trim = Some(twin.streams());
    setup.options.replay_window = Duration::ZERO;
    let at = slot(0);
    published(twin, at, 1..=20).await;
    let relays = setup.start();
    let status = ask(&relays, Request { rate: Some(2), ..request(at, at + 100 * SLOT) }).await;
    assert_eq!((status.outcome, status.progress.end), (None, 20));
    passed(twin, "one", 20).await;
    (setup, relays, status.id, at)
}

#[tokio::test(start_paused = true)]
async fn a_replay_that_is_killed_goes_on_where_it_was_under_the_same_keys() {
    let twin = Twin::new(u64::MAX);
    let (setup, mut relays, id, _) = running(&twin).await;
    let sink = setup.sink("one");
    for _ in 0..3 {
        let so_far = calls(&sink, &id).len();
        until("more was sent", || calls(&sink, &id).len() > so_far + 3).await;
        kill(&twin, &sink, relays, takes).await;
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert_eq!(twin.state.keys("replay.").await.expect("up"), [format!("replay.one.{id}")]);
        relays = setup.start();
    }
    let (replays, so_far) = (relays.replays(), calls(&sink, &id).len());
    until("it goes on", || calls(&sink, &id).len() > so_far + 2).await;
    let half = seen(&replays, &id).await;
    assert!(half.outcome.is_none() && half.left.is_some_and(|left| left < Duration::from_secs(20)), "{half:?}");
    let status = ended(&replays, &id).await;
    assert_eq!((status.outcome, status.progress.position, status.progress.totals.delivered), (Some(Outcome::Done), 20, 40));
    let (lines, repeated) = came(&sink, &id);
    let mut all = sink.calls().into_iter().filter(|call| !call.key.starts_with("replay")).flat_map(|call| call.lines).collect::<Vec<_>>();
    all.sort_unstable();
    all.dedup();
    assert_eq!(lines, all, "each sample of the range came");
    // Each time the message that was on its way, and it is counted.
    assert_eq!(repeated, 3 * 2);
    assert!(status.progress.repeated >= repeated as u64, "{status:?}");
    assert!(twin.state.keys("replay.").await.expect("up").is_empty());
    relays.stop(STOP_MAX).await;
    let live = checkpoint(&twin, "one").await.expect("it ran");
    balanced(&live);
    assert_eq!(live.totals.read, 40, "the relay's own count knows nothing of it");
}

#[tokio::test(start_paused = true)]
async fn a_clean_stop_repeats_nothing_of_a_replay() {
    let twin = Twin::new(u64::MAX);
    let (setup, relays, id, _) = running(&twin).await;
    let sink = setup.sink("one");
    until("some was sent", || calls(&sink, &id).len() > 5).await;
    relays.stop(STOP_MAX).await;
    let sent = calls(&sink, &id).len();
    tokio::time::advance(Duration::from_secs(60)).await;
    assert_eq!(calls(&sink, &id).len(), sent);
    let relays = setup.start();
    let status = ended(&relays.replays(), &id).await;
    assert_eq!((status.outcome, status.progress.totals.delivered, status.progress.repeated), (Some(Outcome::Done), 40, 0));
    assert_eq!((came(&sink, &id).0.len(), came(&sink, &id).1), (40, 0));
    relays.stop(STOP_MAX).await;
}

#[tokio::test(start_paused = true)]
async fn increases_of_a_killed_replay_are_against_the_values_before() {
    let twin = Twin::new(u64::MAX);
    let statsd = config::Component { name: "statsd".into(), options: serde_json::Value::Null };
    let setup = Setup::new(&twin, &[config::Relay { encode: Some(statsd), ..relay("one") }]);
    let at = slot(0);
    published(&twin, at, 1..=12).await;
    let relays = setup.start();
    let asked = Request { rate: Some(2), again: true, ..request(at + 3 * SLOT, at + 10 * SLOT) };
    let (sink, id) = (setup.sink("one"), ask(&relays, asked).await.id);
    until("some was sent", || calls(&sink, &id).len() > 3).await;
    kill(&twin, &sink, relays, takes).await;
    let relays = setup.start();
    let status = ended(&relays.replays(), &id).await;
    let (lines, repeated) = came(&sink, &id);
    let increases: Vec<&String> = lines.iter().filter(|line| line.starts_with("b_total")).collect();
    assert!(increases.len() == 8 && increases.iter().all(|line| line.ends_with(":1|c")), "{lines:?}");
    assert!(repeated == 2 && status.progress.repeated >= 2, "{repeated}, {status:?}");
    relays.stop(STOP_MAX).await;
}

#[tokio::test(start_paused = true)]
async fn what_the_sink_refuses_of_a_killed_replay_is_parked_once() {
    let twin = Twin::new(u64::MAX);
    let (setup, relays, id, _) = running(&twin).await;
    let sink = setup.sink("one");
    until("some was sent", || calls(&sink, &id).len() > 2).await;
    fn refuses(lines: &[String]) -> Answer {
        if lines.iter().any(|line| line.contains("b_total")) { reject() } else { Answer::Delivered }
    }
    sink.set(refuses);
    until("something is parked", || !twin.dead.messages().is_empty()).await;
    kill(&twin, &sink, relays, refuses).await;
    let relays = setup.start();
    let status = ended(&relays.replays(), &id).await;
    let (parked, rejected) = (twin.dead.messages(), status.progress.totals.rejected);
    let keys: std::collections::BTreeSet<_> = parked.iter().map(|letter| letter.headers.get("St-Key").map(str::to_owned)).collect();
    assert_eq!((parked.len() as u64, keys.len() as u64), (rejected, rejected), "each has one letter");
    assert_eq!(status.progress.totals.delivered + rejected, 40);
    relays.stop(STOP_MAX).await;
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_replay_stays_cancelled_and_one_of_a_relay_that_is_gone_fails() {
    let twin = Twin::new(u64::MAX);
    let (mut setup, relays, id, at) = running(&twin).await;
    let cancelled = relays.replays().cancel(&id).await.expect("it runs here").expect("it is known");
    assert_eq!(cancelled.outcome, None, "not yet");
    assert_eq!(ended(&relays.replays(), &id).await.outcome, Some(Outcome::Stopped));
    let other = ask(&relays, Request { rate: Some(1), ..request(at, at + 100 * SLOT) }).await.id;
    drop(relays);
    setup.relays[0].name = "two".to_owned();
    setup.sinks.insert("two".to_owned(), setup.sink("one"));
    let relays = setup.start();
    let status = ended(&relays.replays(), &other).await;
    assert_eq!((status.outcome, status.error.as_deref()), (Some(Outcome::Failed), Some("relay 'one' is not configured any more")));
    let all: Vec<_> = relays.replays().list().await.expect("up").into_iter().map(|status| (status.id, status.outcome)).collect();
    assert_eq!(all, [(id.clone(), Some(Outcome::Stopped)), (other, Some(Outcome::Failed))]);
    assert!(twin.state.keys("replay.").await.expect("up").is_empty(), "neither holds anything");
    let again = relays.replays().cancel(&id).await.expect("it has ended").expect("it is known");
    assert_eq!(again.outcome, Some(Outcome::Stopped));
    assert!(matches!(relays.replays().ask(asked(Bound::Seq(1), Bound::Seq(1))).await, Err(Refused::NoRelay(name)) if name == "one"));
    relays.stop(STOP_MAX).await;
}

#[tokio::test(start_paused = true)]
async fn a_dry_run_that_is_killed_counts_anew() {
    let twin = Twin::new(u64::MAX);
    let (setup, relays, id, at) = running(&twin).await;
    relays.replays().cancel(&id).await.expect("it runs");
    let dry = ask(&relays, Request { rate: Some(2), dry_run: true, ..request(at, at + 100 * SLOT) }).await.id;
    let replays = relays.replays();
    for _ in 0..20_000 {
        if seen(&replays, &dry).await.progress.position > 8 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop(relays);
    let relays = setup.start();
    let status = ended(&relays.replays(), &dry).await;
    assert_eq!((status.outcome, status.jobs["local"], status.progress.totals.delivered), (Some(Outcome::Done), 40, 40));
    assert!(calls(&setup.sink("one"), &dry).is_empty());
    relays.stop(STOP_MAX).await;
}

#[tokio::test(start_paused = true)]
async fn who_takes_the_relays_over_goes_on_with_their_replays() {
    let twin = Twin::new(1 << 30);
    let setup = Setup::one(&twin);
    let (sink, at) = (setup.sink("one"), slot(0));
    published(&twin, at, 1..=20).await;
    let first = process(&setup, "first", twin.streams());
    let wanted = Request { rate: Some(2), ..request(at, at + 100 * SLOT) };
    let id = ask(&first, wanted.clone()).await.id;
    let second = process(&setup, "second", twin.streams());
    stands_by(&second, "first").await;
    let elsewhere = |refused| matches!(refused, Refused::Elsewhere(Some(owner)) if owner == "first");
    assert!(elsewhere(second.replays().ask(wanted).await.expect_err("it stands by")));
    assert!(elsewhere(second.replays().cancel(&id).await.expect_err("it stands by")));
    until("some was sent", || calls(&sink, &id).len() > 5).await;
    let shown = seen(&second.replays(), &id).await;
    assert!(shown.outcome.is_none() && shown.progress.position > 0, "it shows how far the owner is: {shown:?}");
    kill(&twin, &sink, first, takes).await;
    let status = ended(&second.replays(), &id).await;
    assert_eq!((status.outcome, status.progress.totals.delivered), (Some(Outcome::Done), 40));
    let (lines, repeated) = came(&sink, &id);
    assert!(lines.len() == 40 && repeated == 2 && status.progress.repeated >= 2, "{repeated}, {status:?}");
    second.stop(TAKEOVER_MAX).await;
}

#[tokio::test(start_paused = true)]
async fn a_state_store_that_is_away_stops_no_replay() {
    let twin = Twin::new(u64::MAX);
    let (setup, relays, id, _) = running(&twin).await;
    let sink = setup.sink("one");
    until("some was sent", || calls(&sink, &id).len() > 3).await;
    twin.state.set_down(true);
    let so_far = calls(&sink, &id).len();
    until("it goes on", || calls(&sink, &id).len() > so_far + 3).await;
    drop(relays);
    // Nobody knows of it until the store is back.
    let relays = setup.start();
    tokio::time::sleep(Duration::from_secs(30)).await;
    twin.state.set_down(false);
    let status = ended(&relays.replays(), &id).await;
    assert_eq!(status.outcome, Some(Outcome::Done));
    assert_eq!(came(&sink, &id).0.len(), 40);
    relays.stop(STOP_MAX).await;
}

#[tokio::test(start_paused = true)]
async fn a_replay_whose_answer_was_lost_begins_all_the_same() {
    let twin = Twin::new(u64::MAX);
    let (setup, relays, id, at) = running(&twin).await;
    ended(&relays.replays(), &id).await;
    twin.state.lose_answers(1);
    // The registration is the only write: the relay stands still.
    assert!(matches!(relays.replays().ask(request(at, at + 100 * SLOT)).await, Err(Refused::Replay(_))));
    let all = relays.replays().list().await.expect("up");
    let stray = all.iter().find(|status| status.outcome.is_none()).expect("it is registered").id.clone();
    // It was asked for by the wall clock, which stands still: as if that was long ago.
    let key = format!("replay.one.{stray}");
    let entry = twin.state.get(&key).await.expect("up").expect("it is there");
    let mut value: serde_json::Value = serde_json::from_slice(&entry.value).expect("JSON");
    value["asked_ms"] = 0.into();
    twin.state.put(&key, value.to_string().into(), entry.revision).await.expect("nobody else writes");
    assert_eq!(ended(&relays.replays(), &stray).await.outcome, Some(Outcome::Done));
    assert_eq!(came(&setup.sink("one"), &stray).0.len(), 40);
    relays.stop(STOP_MAX).await;
}

#[tokio::test(start_paused = true)]
async fn a_life_that_was_stopped_neither_goes_on_nor_brings_back_what_another_has_ended() {
    let twin = Twin::new(1 << 30);
    let setup = Setup::one(&twin);
    let (sink, at) = (setup.sink("one"), slot(0));
    published(&twin, at, 1..=20).await;
    // Two that do not know of each other, as after a partition.
    let (first, second) = (setup.start(), Setup { sinks: setup.sinks.clone(), ..Setup::one(&twin) });
    let id = ask(&first, Request { rate: Some(2), ..request(at, at + 100 * SLOT) }).await.id;
    until("some was sent", || calls(&sink, &id).len() > 5).await;
    let second = second.start();
    let status = ended(&second.replays(), &id).await;
    assert_eq!((status.outcome, status.progress.totals.delivered), (Some(Outcome::Done), 40));
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert!(twin.state.keys("replay.").await.expect("up").is_empty());
    let (lines, repeated) = came(&sink, &id);
    assert!(lines.len() == 40 && repeated <= 4, "{repeated}");
    drop(first);
    drop(second);
}

#[tokio::test(start_paused = true)]
async fn a_replay_that_missed_something_has_failed_and_says_how_much() {
    let twin = Twin::new(u64::MAX);
    let (setup, relays, id, _) = running(&twin).await;
    let sink = setup.sink("one");
    until("some was sent", || calls(&sink, &id).len() > 3).await;
    // As a full stream does.
    twin.raw.purge(18).await.expect("up");
    let status = ended(&relays.replays(), &id).await;
    let (gone, totals) = (status.progress.gone, &status.progress.totals);
    assert!(gone > 0 && status.outcome == Some(Outcome::Failed), "{status:?}");
    assert!(status.error.is_some_and(|error| error.starts_with(&format!("{gone} messages of the range were gone"))));
    // What hung on a base that went with them cannot be read either.
    assert!(totals.lost >= 2 * gone && totals.delivered + totals.lost == 40, "{totals:?}");
    relays.stop(STOP_MAX).await;
}

#[tokio::test(start_paused = true)]
async fn a_replay_holds_its_place_whoever_runs_it() {
    let twin = Twin::new(u64::MAX);
    let (setup, relays, id, _) = running(&twin).await;
    until("some was sent", || calls(&setup.sink("one"), &id).len() > 3).await;
    drop(relays);
    tokio::time::advance(Duration::from_secs(3600)).await;
    // The relay itself needs nothing of what was any more.
    let mut producer = Producer::new(&twin, "p", 2);
    producer.publish(&[scrape(1, slot(0), &[("a", 21.0), ("b_total", 21.0)])]).await;
    let relays = setup.start();
    let status = ended(&relays.replays(), &id).await;
    assert_eq!((status.outcome, status.progress.gone, status.progress.totals.delivered), (Some(Outcome::Done), 0, 40));
    for _ in 0..200 {
        if twin.raw.info().await.expect("up").first_seq > 20 {
            return relays.stop(STOP_MAX).await;
        }
        // What is old was so half a minute before.
        producer.publish(&[scrape(1, slot(0), &[("a", 21.0), ("b_total", 21.0)])]).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    panic!("it holds space after its end");
}

#[tokio::test(start_paused = true)]
async fn no_more_than_eight_are_asked_for_at_a_time() {
    let twin = Twin::new(u64::MAX);
    let (_setup, relays, _, at) = running(&twin).await;
    let slow = || Request { rate: Some(1), ..request(at, at + 100 * SLOT) };
    for _ in 1..relay::replays::RUNNING_MAX {
        ask(&relays, slow()).await;
    }
    let replays: Arc<Replays> = relays.replays();
    assert!(matches!(replays.ask(slow()).await, Err(Refused::Full)));
    let first = replays.list().await.expect("up")[0].id.clone();
    ended(&replays, &first).await;
    replays.ask(slow()).await.expect("there is room again");
    relays.stop(STOP_MAX).await;
}
