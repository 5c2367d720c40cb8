//! Two collectors that share targets, on one stream: whoever comes, goes or changes its mind, every slot has a frame and nothing becomes stale.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bundled_nats::twin::Twin;
use collector::members::{HANDOVER, Members, Sharing};
use collector::slot::Clock;
use collector::{Collector, Options};
use config::{Config, Millis};
use prometheus::Registry;
use sample::{Envelope, Flags, TargetId};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const START_MS: i64 = 1_760_000_000_000;
const INTERVAL: Duration = Duration::from_secs(1);
const TARGETS: usize = 20;

/// Nobody listens there: a scrape that fails is a frame too.
fn configuration(targets: usize) -> Config {
    let targets: Vec<String> = (1..=targets).map(|port| format!("127.0.0.1:{port}")).collect();
    let text = format!(
        "{{\"global\": {{\"scrape_interval\": \"1s\", \"scrape_timeout\": \"1s\"}}, \
         \"scrape_configs\": [{{\"job_name\": \"j\", \"target_limit\": 30, \"static_configs\": [{{\"targets\": {targets:?}}}]}}]}}"
    );
    let mut config: Config = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{text}: {error}"));
    config.buffer.linger = Millis(10);
    config
}

struct Scene {
    twin: Twin,
    clock: Clock,
}

/// One of those that share.
struct Member {
    name: &'static str,
    live: watch::Sender<Vec<String>>,
    collector: Collector,
}

/// The slots of each target by producer, in order, and who ended it.
#[derive(Default)]
struct Seen {
    slots: BTreeMap<(TargetId, String), Vec<i64>>,
    ends: BTreeMap<TargetId, Vec<String>>,
}

impl Scene {
    fn new() -> Self {
        Self { twin: Twin::new(1 << 30), clock: Clock::tokio(START_MS) }
    }

    fn start(&self, name: &'static str, live: &[&str]) -> Member {
        let (live, is_live) = watch::channel(names(live));
        let options = Options {
            producer: Some(name.to_owned()),
            clock: self.clock.clone(),
            sharing: Some(Sharing { own: name.to_owned(), live: is_live }),
            ..Options::new(Arc::new(configuration(TARGETS)))
        };
        let collector = Collector::start(options, &self.twin.streams(), &Registry::new(), &CancellationToken::new()).expect("it starts");
        Member { name, live, collector }
    }

    fn seen(&self) -> Seen {
        let mut seen = Seen::default();
        for message in self.twin.raw.messages() {
            let envelope = Envelope::parse(|name| message.headers.get(name)).expect("headers");
            for frame in sample::frames(&message.payload).expect("a message") {
                let frame = frame.expect("a frame");
                if frame.flags.contains(Flags::END) {
                    seen.ends.entry(frame.target).or_default().push(envelope.producer.clone());
                } else {
                    seen.slots.entry((frame.target, envelope.producer.clone())).or_default().push(frame.slot_ms);
                }
            }
        }
        seen
    }
}

impl Member {
    fn knows_of(&self, live: &[&str]) {
        self.live.send_replace(names(live));
    }

    /// The targets it scrapes, and how many are elsewhere.
    fn share(&self) -> (BTreeSet<TargetId>, usize) {
        let targets = self.collector.targets().into_iter().map(|target| target.id).collect();
        let elsewhere = self.collector.elsewhere();
        assert_eq!(self.collector.telemetry().targets_elsewhere.get(), elsewhere as i64);
        (targets, elsewhere)
    }
}

impl Seen {
    /// Every slot from the first to the last is there, and no producer has one twice.
    fn is_whole(&self) {
        let mut all: BTreeMap<TargetId, BTreeSet<i64>> = BTreeMap::new();
        for ((target, producer), slots) in &self.slots {
            assert!(slots.is_sorted_by(|a, b| a < b), "{target:?} of {producer}, a slot twice: {slots:?}");
            all.entry(*target).or_default().extend(slots);
        }
        assert_eq!(all.len(), TARGETS);
        for (target, slots) in all {
            let (first, last) = (slots.first().expect("some"), slots.last().expect("some"));
            assert_eq!((last - first) / 1000 + 1, slots.len() as i64, "{target:?} misses a slot: {slots:?}");
        }
    }

    /// How many slots of a target two had.
    fn overlap(&self, target: TargetId, one: &str, other: &str) -> usize {
        let slots = |producer: &str| self.slots.get(&(target, producer.to_owned())).into_iter().flatten().collect::<BTreeSet<_>>();
        slots(one).intersection(&slots(other)).count()
    }
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

async fn pass(time: Duration) {
    tokio::time::sleep(time).await;
}

#[tokio::test(start_paused = true)]
async fn who_comes_and_goes_moves_its_share_and_no_slot_is_missed() {
    let scene = Scene::new();
    let one = scene.start("one", &["one"]);
    pass(INTERVAL * 3).await;
    assert_eq!((one.share().0.len(), one.share().1), (TARGETS, 0));

    // It begins before the other one lets go.
    let two = scene.start("two", &["one", "two"]);
    pass(Duration::from_millis(300)).await;
    one.knows_of(&["one", "two"]);
    pass(INTERVAL * 8).await;
    let ((ones, elsewhere), (twos, _)) = (one.share(), two.share());
    assert!(ones.is_disjoint(&twos) && ones.len() + twos.len() == TARGETS && elsewhere == twos.len() && !twos.is_empty());
    // Both know how many there are in all, and that they are the same.
    let sums = |member: &Member| member.collector.sums().into_iter().map(|sum| (sum.job, sum.targets, sum.fingerprint)).collect::<Vec<_>>();
    let all = ones.iter().chain(&twos).fold(0, |fingerprint, target| fingerprint ^ target.0);
    assert_eq!(sums(&one), [("j".to_owned(), TARGETS as u64, all)]);
    assert_eq!(sums(&two), sums(&one));
    let members = Members::new("one", names(&["one", "two"]));
    assert!(ones.iter().all(|target| members.owns(*target)) && twos.iter().all(|target| !members.owns(*target)));
    let seen = scene.seen();
    seen.is_whole();
    let most = (INTERVAL + HANDOVER).as_secs() as usize + 1;
    for target in &twos {
        assert!((1..=most).contains(&seen.overlap(*target, "one", "two")), "{target:?}");
    }
    for target in &ones {
        assert_eq!(seen.overlap(*target, "one", "two"), 0, "{target:?} did not move");
    }

    // The other one leaves: it gives its share back and goes on for a while.
    one.knows_of(&["one"]);
    pass(HANDOVER).await;
    two.collector.stop(Duration::from_secs(5)).await;
    pass(INTERVAL * 5).await;
    assert_eq!((one.share().0.len(), one.share().1), (TARGETS, 0));
    let seen = scene.seen();
    seen.is_whole();
    assert_eq!(seen.ends, BTreeMap::new(), "to move is not to end");
    assert_eq!(two.name, "two");
}

#[tokio::test(start_paused = true)]
async fn who_learns_of_it_later_than_the_one_that_lets_go_misses_no_slot() {
    let scene = Scene::new();
    let members = ["one", "two"].map(|name| scene.start(name, &["one"]));
    pass(INTERVAL * 3).await;
    for member in &members {
        member.knows_of(&["one", "two"]);
        pass(HANDOVER).await;
    }
    pass(INTERVAL * 3).await;
    let shares = members.each_ref().map(|member| member.share().0.len());
    assert!(shares.iter().sum::<usize>() == TARGETS && shares[1] > 0, "{shares:?}");
    let seen = scene.seen();
    seen.is_whole();
    assert_eq!(seen.ends, BTreeMap::new());
}

#[tokio::test(start_paused = true)]
async fn who_takes_back_what_it_is_letting_go_of_misses_no_slot_and_has_none_twice() {
    let scene = Scene::new();
    let one = scene.start("one", &["one"]);
    pass(INTERVAL * 3).await;
    for pause in [0, 400, 1700, 2900, 3600] {
        one.knows_of(&["one", "two"]);
        pass(Duration::from_millis(pause)).await;
        one.knows_of(&["one"]);
        pass(INTERVAL * 2).await;
    }
    pass(INTERVAL * 5).await;
    let seen = scene.seen();
    // In the pause that is longer than the overlap it had let go.
    let missing: i64 = seen
        .slots
        .values()
        .map(|slots| (slots[slots.len() - 1] - slots[0]) / 1000 + 1 - slots.len() as i64)
        .inspect(|missing| assert!((0..=1).contains(missing)))
        .sum();
    assert!(missing < TARGETS as i64, "only of the share of the other one: {missing}");
    assert!(seen.slots.values().all(|slots| slots.is_sorted_by(|a, b| a < b)));
    assert_eq!(seen.ends, BTreeMap::new());
    assert_eq!(one.collector.telemetry().slots_missed.with_label_values(&["suspended"]).get(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_target_that_is_gone_ends_with_staleness_by_its_owner_alone() {
    let scene = Scene::new();
    let members = [scene.start("one", &["one", "two"]), scene.start("two", &["one", "two"])];
    pass(INTERVAL * 3).await;
    let owners: BTreeMap<TargetId, Vec<String>> =
        members.iter().flat_map(|member| member.share().0.into_iter().map(|target| (target, vec![member.name.to_owned()]))).collect();
    assert_eq!(owners.len(), TARGETS);
    members.iter().for_each(|member| drop(member.collector.configure(&configuration(0))));
    pass(INTERVAL * 2).await;
    assert_eq!(scene.seen().ends, owners);
    assert!(members.iter().all(|member| member.share() == (BTreeSet::new(), 0)));
}

#[tokio::test(start_paused = true)]
async fn the_limit_of_a_job_counts_what_others_scrape() {
    let scene = Scene::new();
    let one = scene.start("one", &["one", "two", "three"]);
    pass(INTERVAL * 2).await;
    assert!(
        one.share().0.len() < TARGETS / 2 + 5
            && one.collector.targets().iter().all(|target| target.health != collector::scrape::Health::Unknown)
    );
    one.collector.configure(&configuration(31));
    pass(INTERVAL * 2).await;
    let error = one.collector.targets().pop().and_then(|target| target.last_error).unwrap_or_default();
    assert!(error.contains("31 targets, over the limit of 30"), "{error}");
}
