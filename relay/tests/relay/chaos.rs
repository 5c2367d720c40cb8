//! Everything at once, by seed: kills, lost state, retries, closed readers, poison; what arrives is what was published.

use std::collections::BTreeMap;
use std::time::Duration;

use bundled_nats::twin::Twin;
use config::Millis;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use relay::sink::{Answer, Limits};

use crate::harness::*;

#[tokio::test(start_paused = true)]
async fn through_any_order_of_troubles_every_sample_arrives_and_repeats_carry_their_key() {
    let mut repeated = 0;
    for seed in 0..12 {
        repeated += run(seed, Millis(0)).await;
    }
    assert!(repeated > 0, "some kill fell between answer and checkpoint");
}

#[tokio::test(start_paused = true)]
async fn messages_that_share_batches_go_through_the_same_troubles() {
    let mut repeated = 0;
    for seed in 0..12 {
        repeated += run(seed, Millis(20)).await;
    }
    assert!(repeated > 0, "some kill fell between answer and checkpoint");
}

/// Says how many samples were sent again.
async fn run(seed: u64, batch_time: Millis) -> usize {
    let mut rng = StdRng::seed_from_u64(seed);
    let twin = Twin::new(u64::MAX);
    let mut setup = Setup::new(&twin, &[config::Relay { batch_time, ..relay("one") }]);
    setup.limits = Limits { bytes_max: 1 << 20, items_max: 3 };
    let sink = setup.sink("one");
    let mut answers = StdRng::seed_from_u64(seed ^ 0xabcd);
    sink.set(move |lines| {
        if answers.random_bool(0.2) {
            return retry();
        }
        if lines.iter().any(|line| line.contains("bad")) { reject() } else { Answer::Delivered }
    });
    let mut relays = Some(setup.start());
    let mut producers = [Producer::new(&twin, "p", 1), Producer::new(&twin, "q", 1)];
    let at = slot(0);
    let (mut good, mut bad, mut twins) = (0u64, 0u64, 0u64);
    for k in 0..120 {
        let target = rng.random_range(1..4u64);
        let values: &[(&str, f64)] = match rng.random_range(0..4) {
            0 => &[("a", 1.0), ("b", 2.0), ("bad", 3.0)],
            1 => &[("a", 1.0), ("b", 2.0), ("c", 3.0), ("d", 4.0), ("e", 5.0)],
            _ => &[("a", 1.0), ("b", 2.0), ("c", 3.0), ("d", 4.0)],
        };
        let which = rng.random_range(0..2);
        let page = scrape(target, at + k * SLOT, values);
        producers[which].publish(std::slice::from_ref(&page)).await;
        bad += values.iter().filter(|(n, _)| *n == "bad").count() as u64;
        good += values.iter().filter(|(n, _)| *n != "bad").count() as u64;
        if rng.random_bool(0.1) {
            producers[1 - which].publish(&[page]).await;
            twins += values.len() as u64;
        }
        match rng.random_range(0..20) {
            0 => twin.raw.close_readers(),
            1 => twin.state.lose_answers(1),
            2 => twin.state.set_down(true),
            3 | 4 => twin.state.set_down(false),
            5 => relays = None,
            6 => {
                if let Some(relays) = relays.take() {
                    relays.stop(Duration::from_secs(10)).await;
                }
            }
            7 => producers[which].rebase(),
            8 => {
                producers[which].epoch += 1;
                producers[which].n = 0;
                producers[which].total = 0;
                producers[which].rebase();
            }
            _ => tokio::time::sleep(Duration::from_millis(rng.random_range(0..400))).await,
        }
        if relays.is_none() && rng.random_bool(0.5) {
            relays = Some(setup.start());
        }
    }
    // A batch of nothing but offenders at the very end would wait for one that the sink takes.
    producers[0].publish(&[scrape(9, at + 120 * SLOT, &[("a", 1.0), ("b", 2.0), ("c", 3.0)])]).await;
    good += 3;
    twin.state.set_down(false);
    let relays = relays.unwrap_or_else(|| setup.start());
    let last = twin.raw.messages().last().map_or(0, |message| message.seq);
    let after = passed(&twin, "one", last).await;
    balanced(&after);
    assert_eq!((after.totals.rejected, after.totals.filtered, after.totals.lost), (bad, twins, 0), "seed {seed}");
    assert_eq!(after.totals.delivered, good, "seed {seed}");
    relays.stop(Duration::from_secs(10)).await;
    let statement = audited(&setup, (0, at + 120 * SLOT)).await;
    let terms = &statement.relays[0];
    assert!(statement.balanced, "seed {seed}: {:?}", statement.holes);
    let told = (terms.delivered, terms.rejected, terms.filtered.get("twin").copied().unwrap_or(0), terms.in_stream);
    assert_eq!(told, (good, bad, twins, 0), "seed {seed}");
    assert_eq!(terms.scraped, good + bad + twins, "seed {seed}");
    let mut by_key: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for call in sink.calls() {
        assert_eq!(*by_key.entry(call.key.clone()).or_insert_with(|| call.lines.clone()), call.lines, "seed {seed}: one key, one body");
    }
    let mut unique = sink.delivered();
    let all = unique.len();
    unique.sort();
    unique.dedup();
    assert_eq!(unique.len() as u64, good, "seed {seed}: nothing is missing");
    let letters: u64 = twin.dead.messages().iter().filter_map(|m| m.headers.get("St-Samples")?.parse::<u64>().ok()).sum();
    assert_eq!(letters, bad, "seed {seed}: each offender is parked once");
    all - good as usize
}
