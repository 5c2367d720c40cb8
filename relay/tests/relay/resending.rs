//! Dead letters once more: each sample counts once, whatever becomes of it.

use std::time::Duration;

use bundled_nats::ledger::Stage;
use bundled_nats::twin::Twin;
use relay::audit::Terms;
use relay::dead::again::{self, Error, Outcome, Request, What};
use relay::dead::shelf::{self, Shelved};
use relay::sink::Answer;
use tokio_util::sync::CancellationToken;

use crate::harness::*;

const PAGE: [(&str, f64); 4] = [("a", 1.0), ("bad_1", 2.5), ("b", f64::NAN), ("bad_2", f64::INFINITY)];

fn refuse(word: &'static str) -> impl FnMut(&[String]) -> Answer {
    move |lines| if lines.iter().any(|line| line.contains(word)) { reject() } else { Answer::Delivered }
}

/// A relay that has parked two samples of each of six slots of two targets; and where these slots begin.
async fn parked(twin: &Twin) -> (Setup, i64) {
    let setup = Setup::one(twin);
    setup.sink("one").set(refuse("bad"));
    let relays = setup.start();
    let mut producer = Producer::new(twin, "p", 1);
    let (at, mut last) = (slot(0), 0);
    for k in 0..6 {
        last = producer.publish(&[scrape(1, at + k * SLOT, &PAGE), scrape(2, at + k * SLOT, &PAGE)]).await;
    }
    passed(twin, "one", last).await;
    relays.stop(Duration::from_secs(5)).await;
    (setup, at)
}

fn request(setup: &Setup, selector: &str, what: What) -> Request {
    let selector = (!selector.is_empty()).then(|| selector.parse().expect("a selector"));
    Request { relay: setup.relays[0].clone(), selector, what }
}

async fn run(setup: &Setup, selector: &str, what: What) -> Result<Outcome, Error> {
    again::run(request(setup, selector, what), setup.twin.streams(), setup.options(), CancellationToken::new(), |_| ()).await
}

fn send() -> What {
    What::Send { relabel: Vec::new(), rate: None }
}

async fn list(twin: &Twin) -> Vec<Shelved> {
    shelf::list(&twin.streams().dead, &twin.streams().ledger).await.expect("the twin is up")
}

/// Scraped, delivered, filtered, rejected, lost.
async fn terms(setup: &Setup, at: i64) -> (u64, u64, u64, u64, u64) {
    let statement = audited(setup, (at, at + 10 * SLOT)).await;
    assert!(statement.balanced, "{:?}", statement.holes);
    let Terms { scraped, delivered, filtered, rejected, lost, .. } = &statement.relays[0];
    (*scraped, *delivered, filtered.values().sum(), *rejected, lost.values().sum())
}

#[tokio::test(start_paused = true)]
async fn what_a_mended_sink_takes_is_what_it_refused_and_was_rejected_no_longer() {
    let twin = Twin::new(u64::MAX);
    let (setup, at) = parked(&twin).await;
    let sink = setup.sink("one");
    let refused: Vec<String> = sink.calls().into_iter().filter(|call| call.lines.len() == 1).flat_map(|call| call.lines).collect();
    assert_eq!(terms(&setup, at).await, (48, 24, 0, 24, 0));
    let shelved = &list(&twin).await[0];
    assert_eq!((shelved.relay.as_str(), shelved.samples, shelved.undecodable), ("one", 24, 0));
    assert_eq!((shelved.answers[0].answer.as_str(), shelved.answers[0].samples), ("no", 24));
    let shown =
        shelf::show(&twin.streams().dead, &twin.streams().ledger, "one", Some(&"bad_2".parse().expect("a selector")), 3).await.expect("up");
    assert_eq!(shown.len(), 3);
    assert_eq!((shown[0].series.as_str(), shown[0].value.as_str()), ("bad_2{instance=\"t1\",job=\"local\",k=\"v\"}", "inf"));

    // Still refused: all of it, so the sink is taken to be broken, and nothing changes.
    let error = run(&setup, "", send()).await.expect_err("it takes nothing");
    assert!(error.to_string().contains("rejects every sample"), "{error}");
    assert_eq!((list(&twin).await[0].samples, terms(&setup, at).await), (24, (48, 24, 0, 24, 0)));

    // Mended for some: the others are parked again.
    sink.script(|script| script.calls.clear());
    sink.set(refuse("bad_2"));
    let outcome = run(&setup, "", send()).await.expect("it takes some");
    assert_eq!(outcome, Outcome { selected: 24, delivered: 12, rejected: 12, ..Outcome::default() });
    assert_eq!((list(&twin).await[0].samples, terms(&setup, at).await), (12, (48, 36, 0, 12, 0)));
    sink.set(|_| Answer::Delivered);
    let outcome = run(&setup, "", send()).await.expect("it takes all");
    assert_eq!(outcome, Outcome { selected: 12, delivered: 12, ..Outcome::default() });
    assert_eq!((list(&twin).await, terms(&setup, at).await), (vec![], (48, 48, 0, 0, 0)));
    let mut delivered = sink.delivered();
    assert_eq!(delivered.len(), 24);
    delivered.sort_unstable();
    let mut refused: Vec<String> = refused.into_iter().filter(|line| line.contains("bad")).collect();
    refused.sort_unstable();
    refused.dedup();
    assert_eq!(delivered, refused, "the same samples, value for value");
    assert_eq!(run(&setup, "", send()).await.expect("nothing is there"), Outcome::default());
}

#[tokio::test(start_paused = true)]
async fn a_selector_takes_some_and_rules_make_them_fit() {
    let twin = Twin::new(u64::MAX);
    let (setup, at) = parked(&twin).await;
    let relabel = serde_json::json!([
        {"source_labels": ["__name__"], "regex": "bad_(.*)", "target_label": "__name__", "replacement": "good_$1"},
        {"regex": "instance", "action": "labeldrop"},
    ]);
    let relabel = serde_json::from_value(relabel).expect("rules");
    let outcome = run(&setup, "{instance=\"t2\", __name__=\"bad_1\"}", What::Send { relabel, rate: None }).await.expect("it fits");
    assert_eq!(outcome, Outcome { selected: 6, delivered: 6, left: 18, ..Outcome::default() });
    assert_eq!((list(&twin).await[0].samples, terms(&setup, at).await), (18, (48, 30, 0, 18, 0)));
    let good: Vec<String> = setup.sink("one").delivered().into_iter().filter(|line| line.contains("good_1")).collect();
    assert!(good.len() == 6 && good.iter().all(|line| line.contains("2.5") && !line.contains("instance")), "{good:?}");
    // What rules drop is filtered.
    let relabel = serde_json::from_value(serde_json::json!([{"action": "drop"}])).expect("rules");
    let outcome = run(&setup, "{instance=\"t2\"}", What::Send { relabel, rate: None }).await.expect("nothing is sent");
    assert_eq!(outcome, Outcome { selected: 6, filtered: 6, left: 12, ..Outcome::default() });
    assert_eq!(terms(&setup, at).await, (48, 30, 6, 12, 0));
}

#[tokio::test(start_paused = true)]
async fn what_is_discarded_is_booked_as_lost() {
    let twin = Twin::new(u64::MAX);
    let (setup, at) = parked(&twin).await;
    let outcome = run(&setup, "bad_1", What::Discard).await.expect("it goes");
    assert_eq!(outcome, Outcome { selected: 12, lost: 12, left: 12, ..Outcome::default() });
    assert_eq!(terms(&setup, at).await, (48, 24, 0, 12, 12));
    let statement = audited(&setup, (at, at + 10 * SLOT)).await;
    let holes: u64 =
        statement.holes.iter().filter(|hole| hole.stage == "dead" && hole.reason == "discarded").map(|hole| hole.samples).sum();
    assert_eq!((holes, statement.relays[0].lost["discarded"]), (12, 12));
    let entries: Vec<_> = ledger(&twin).into_iter().filter(|entry| entry.stage == Stage::Dead).collect();
    assert_eq!(entries.iter().map(|entry| (entry.reason.as_str(), entry.samples)).collect::<Vec<_>>(), [("discarded", 12)]);
    assert_eq!(run(&setup, "", What::Discard).await.expect("the rest").lost, 12);
    assert!(twin.dead.messages().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_kill_in_between_neither_loses_nor_doubles_what_is_booked() {
    let twin = Twin::new(u64::MAX);
    let (setup, at) = parked(&twin).await;
    let sink = setup.sink("one");
    // After the others were put behind, while the sink has its answer, the ledger goes away: nothing is booked.
    let down = twin.clone();
    sink.set(move |lines| {
        down.ledger.set_down(true);
        if lines.iter().any(|line| line.contains("\"t1\"")) { Answer::Delivered } else { reject() }
    });
    let work = run(&setup, "bad_1", send());
    assert!(tokio::time::timeout(Duration::from_secs(60), work).await.is_err(), "it waits for the ledger");
    twin.ledger.set_down(false);
    assert!(twin.dead.messages().len() > 6, "letters are there twice");
    assert_eq!((list(&twin).await[0].samples, terms(&setup, at).await), (24, (48, 24, 0, 24, 0)));
    sink.set(|_| Answer::Delivered);
    let outcome = run(&setup, "bad_1", send()).await.expect("the second one");
    assert_eq!(outcome, Outcome { selected: 12, delivered: 12, left: 12, ..Outcome::default() });
    assert_eq!((list(&twin).await[0].samples, terms(&setup, at).await), (12, (48, 36, 0, 12, 0)));
    // Booked, and killed before the purge.
    let down = twin.clone();
    sink.set(move |_| {
        down.dead.set_down(true);
        Answer::Delivered
    });
    assert!(matches!(run(&setup, "", send()).await, Err(Error::Port(_))));
    twin.dead.set_down(false);
    assert_eq!((twin.dead.messages().is_empty(), terms(&setup, at).await), (false, (48, 48, 0, 0, 0)));
    assert_eq!(run(&setup, "", send()).await.expect("the letters go"), Outcome::default());
    assert_eq!((list(&twin).await, terms(&setup, at).await), (vec![], (48, 48, 0, 0, 0)));
}

#[tokio::test(start_paused = true)]
async fn letters_of_a_replay_change_no_minutes() {
    let twin = Twin::new(u64::MAX);
    let (setup, at) = parked(&twin).await;
    run(&setup, "", What::Discard).await.expect("they go");
    let asked = crate::replaying::request(at, at + 10 * SLOT);
    let (streams, options, token) = (twin.streams(), setup.options(), CancellationToken::new());
    let replay = relay::replay::Replay::start(&setup.relays[0], asked, &streams, &options, &token).await.expect("it starts");
    assert_eq!(replay.finish().await.expect("it ends").totals.rejected, 24);
    let before = terms(&setup, at).await;
    setup.sink("one").set(|_| Answer::Delivered);
    assert_eq!(run(&setup, "", send()).await.expect("all is taken").delivered, 24);
    assert_eq!((terms(&setup, at).await, list(&twin).await), (before, vec![]));
}
