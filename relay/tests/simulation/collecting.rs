//! The collector's side: targets whose pages change, and the real publisher.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bundled_nats::ambient::now_ms;
use collector::publish::{Left, Link, Options, Publisher};
use collector::queue::Frame;
use collector::slot::Clock;
use collector::telemetry::Telemetry;
use rand::Rng;
use sample::{Columns, Encoder, Flags, Layout, LayoutBuilder, MetricType, Origin, State, TargetId};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::net::Client;
use crate::sim::Sim;

/// A series that the sinks refuse.
pub const BAD: &str = "bad";
/// A series that one relay drops.
pub const NOISE: &str = "noise";

/// What is scraped.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    pub targets: u64,
    pub interval_ms: i64,
    pub memory: usize,
    pub max_bytes: u64,
}

/// One life of a collector; dropping it is a kill.
pub struct Collecting {
    pub client: Client,
    publisher: Publisher,
    scrapes: JoinSet<()>,
    ended: CancellationToken,
    telemetry: Telemetry,
}

/// One part of a target's page.
struct Part {
    names: Vec<String>,
    layout: Arc<Layout>,
    encoder: Encoder,
}

struct Target {
    sim: Sim,
    id: u64,
    life: u32,
    shape: Shape,
    link: Link,
    parts: Vec<Part>,
    named: u32,
}

impl Collecting {
    pub fn start(sim: &Sim, client: Client, shape: Shape, full: &Arc<Notify>) -> Self {
        let telemetry = Telemetry::new(&prometheus::Registry::new()).expect("a registry of its own");
        let options = Options {
            producer: "west".to_owned(),
            memory: shape.memory,
            max_bytes: shape.max_bytes,
            linger: Duration::from_millis(250),
            clock: Clock::from_fn(now_ms),
            full: full.clone(),
        };
        let publisher = Publisher::start(options, &client.streams(), telemetry.clone());
        let (mut scrapes, ended) = (JoinSet::new(), CancellationToken::new());
        for id in 1..=shape.targets {
            let target = Target::new(sim, id, client.life, shape, publisher.link(TargetId(id)));
            scrapes.spawn(target.run(ended.clone()));
        }
        Self { client, publisher, scrapes, ended, telemetry }
    }

    /// Scrapes no more, publishes what there is.
    pub async fn stop(mut self, within: Duration) -> Left {
        self.ended.cancel();
        while self.scrapes.join_next().await.is_some() {}
        self.publisher.stop(within).await
    }

    /// Samples scraped, published and dropped.
    pub fn counted(telemetry: &Telemetry) -> (u64, u64, u64) {
        let dropped =
            collector::queue::Dropped::ALL.map(|why| telemetry.dropped_samples.with_label_values(&["publish", why.as_str()]).get());
        (telemetry.scraped_samples.get(), telemetry.published_samples.get(), dropped.iter().sum())
    }

    pub fn telemetry(&self) -> Telemetry {
        self.telemetry.clone()
    }
}

impl Target {
    fn new(sim: &Sim, id: u64, life: u32, shape: Shape, link: Link) -> Self {
        let labels = vec![("instance".to_owned(), format!("t{id}")), ("job".to_owned(), "local".to_owned())];
        let origin = Arc::new(Origin { target: TargetId(id), labels, attributes: vec![("job".to_owned(), "local".to_owned())] });
        // The second target's page is in two parts.
        let parts = (0..if id == 2 { 2 } else { 1 })
            .map(|part| {
                let names = ["a", "b", NOISE].map(|name| format!("{name}{}", if name == NOISE { String::new() } else { part.to_string() }));
                let names = names.into_iter().filter(|name| part == 0 || name != NOISE).collect();
                Part { names, layout: Arc::new(LayoutBuilder::new().build()), encoder: Encoder::new(origin.clone(), part) }
            })
            .collect();
        Self { sim: sim.clone(), id, life, shape, link, parts, named: 0 }
    }

    async fn run(mut self, ended: CancellationToken) {
        let phase = i64::try_from(self.id).unwrap_or(0) * 137 % self.shape.interval_ms;
        loop {
            let now = now_ms();
            let slot_ms = now + 1 + (phase - now - 1).rem_euclid(self.shape.interval_ms);
            let due = sleep(Duration::from_millis((slot_ms - now).unsigned_abs()));
            if ended.run_until_cancelled(due).await.is_none() {
                return;
            }
            self.scrape(slot_ms).await;
        }
    }

    async fn scrape(&mut self, slot_ms: i64) {
        // The page is on its way.
        let way = self.sim.with(|world| Duration::from_millis(world.random.random_range(0..100)));
        sleep(way).await;
        let count = u16::try_from(self.parts.len()).unwrap_or(1);
        if self.link.rebase_due(count) {
            self.parts.iter_mut().for_each(|part| part.encoder.rebase());
        }
        self.edit();
        let frames = (0..count).map(|number| self.frame(slot_ms, number, count)).collect();
        self.link.push(frames);
    }

    /// Series come and go.
    fn edit(&mut self) {
        let Self { sim, parts, named, .. } = self;
        sim.with(|world| {
            let names = &mut parts[0].names;
            names.retain(|name| name != BAD);
            match world.random.random_range(0..12) {
                0 => {
                    *named += 1;
                    names.push(format!("more{named}"));
                }
                1 if names.len() > 3 => drop(names.pop()),
                2 if world.faults > 0.0 => names.push(BAD.to_owned()),
                _ => {}
            }
        });
    }

    fn frame(&mut self, slot_ms: i64, number: u16, count: u16) -> Frame {
        let part = &mut self.parts[usize::from(number)];
        let known: Vec<String> = part.layout.iter().map(|series| series.name().to_owned()).collect();
        if known != part.names {
            let extends = part.names.starts_with(&known) && !known.is_empty();
            let mut builder = if extends { LayoutBuilder::append_to(&part.layout) } else { LayoutBuilder::new() };
            for name in &part.names[if extends { known.len() } else { 0 }..] {
                let family = builder.family(name, MetricType::Gauge, "", "");
                builder.series(family, name, [("k", "v")]);
            }
            part.layout = Arc::new(builder.build());
        }
        let place = (self.id, slot_ms, number);
        let first = self.sim.with(|world| world.model.scrape(place, &part.names, self.life));
        let values = (first..).take(part.names.len()).map(|id| (id as f64).to_bits()).collect();
        let columns = Columns { values, states: vec![State::Present; part.names.len()], ..Columns::default() };
        let mut bytes = Vec::new();
        let encoded = part.encoder.encode(slot_ms, count, Flags::default(), &part.layout, &columns, &mut bytes);
        Frame { target: TargetId(self.id), part: number, kind: encoded.kind, samples: encoded.samples, slot_ms, bytes: bytes.into() }
    }
}

/// What of each life was never stored, by life.
pub fn unstored(sim: &Sim) -> BTreeMap<u32, u64> {
    sim.with(|world| {
        let mut unstored = BTreeMap::new();
        for scraped in world.model.scraped.values().filter(|scraped| scraped.messages.is_empty()) {
            *unstored.entry(scraped.life).or_default() += scraped.ids.end - scraped.ids.start;
        }
        unstored
    })
}
