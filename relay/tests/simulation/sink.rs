//! A relay's other end: takes, asks for patience, refuses, forbids, hangs; and may take without its answer ever coming back.

use std::ops::Range;
use std::time::Duration;

use async_trait::async_trait;
use bundled_nats::ambient::now_ms;
use rand::Rng;
use relay::sink::{Answer, Batch, Limits, Sink};
use tokio::time::sleep;

use crate::collecting::BAD;
use crate::model::{Model, Mood, Taken};
use crate::sim::{Mutant, Sim};

/// How long one that hangs takes: longer than a stop waits.
const HANGS: Duration = Duration::from_secs(9);

pub struct Scripted {
    pub sim: Sim,
    pub relay: String,
    pub life: u32,
    /// How often its relay had left the configuration when it was built.
    pub left: u32,
    pub limits: Limits,
    /// Lanes beside it.
    pub lanes: usize,
    /// Whether it names what it refuses.
    pub names: bool,
}

#[async_trait]
impl Sink for Scripted {
    async fn send(&mut self, batch: &Batch, items: Range<usize>) -> Answer {
        let body: Vec<String> = items.map(|item| String::from_utf8_lossy(&batch.item(item)).trim_end().to_owned()).collect();
        let (sim, key, life, left, names) = (self.sim.clone(), batch.key.clone(), self.life, self.left, self.names);
        let relay = whose(&self.relay, &key);
        let (before, after, unanswered, detached) = self.sim.with(|world| {
            let (faults, random) = (world.faults, &mut world.random);
            let delay = Duration::from_millis(random.random_range(0..60));
            let before = if random.random_bool(faults / 8.0) { HANGS } else { delay };
            (before, Duration::from_millis(random.random_range(0..60)), random.random_bool(faults / 2.0), random.random_bool(0.5))
        });
        let early = sim.is(Mutant::AnswersEarly);
        let run = async move {
            sleep(before).await;
            if early && !sim.lives(life) {
                return Answer::Delivered;
            }
            let answer = sim.with(|world| world.model.send(&relay, (life, left), &key, &body, names, unanswered));
            sim.log(|| format!("sink {relay}{life} {key}, {} items: {answer:?}{}", body.len(), if unanswered { ", lost" } else { "" }));
            sleep(after).await;
            match unanswered {
                true => Answer::Retry { after: None, reason: "no answer".to_owned() },
                false => answer,
            }
        };
        if early {
            tokio::spawn(run);
            return Answer::Delivered;
        }
        // What was sent may be taken although its sender is gone.
        if detached { tokio::spawn(run).await.expect("no panics") } else { run.await }
    }

    fn limits(&self) -> Limits {
        self.limits
    }

    fn lanes(&self) -> Vec<Box<dyn Sink>> {
        let lane = || Self { sim: self.sim.clone(), relay: self.relay.clone(), lanes: 0, ..*self };
        (0..self.lanes).map(|_| Box::new(lane()) as Box<dyn Sink>).collect()
    }
}

/// Whose a request under this key is: the relay's, or a replay's.
pub fn whose(relay: &str, key: &str) -> String {
    match key.split(':').next() {
        Some(id) if id.starts_with("replay-") => format!("{relay}/{id}"),
        _ => relay.to_owned(),
    }
}

/// What an item says: the sample's number, if it is one that was scraped, and says so itself.
pub fn number(model: &Model, item: &str) -> Result<u64, String> {
    let value: serde_json::Value = serde_json::from_str(item).map_err(|error| format!("{error}: {item}"))?;
    let id = value["value"].as_u64().ok_or_else(|| format!("no number: {item}"))?;
    let sample = model.samples.get(id as usize).ok_or_else(|| format!("never scraped: {item}"))?;
    let target = format!("t{}", sample.target);
    let said = (value["name"].as_str(), value["labels"]["instance"].as_str(), value["timestamp"].as_i64());
    let scraped = (Some(sample.name.as_str()), Some(target.as_str()), Some(sample.slot_ms));
    if said == scraped { Ok(id) } else { Err(format!("scraped as {sample:?}, sent as {item}")) }
}

impl Model {
    /// What the sink makes of a request.
    fn send(&mut self, relay: &str, (life, left): (u32, u32), key: &str, body: &[String], names: bool, unanswered: bool) -> Answer {
        let mut ids = Vec::with_capacity(body.len());
        for item in body {
            match number(self, item) {
                Ok(id) => ids.push(id),
                Err(why) => self.broken.push(format!("'{relay}' got what nobody scraped: {why}")),
            }
        }
        let bad: Vec<usize> = (0..ids.len()).filter(|item| self.samples[ids[*item] as usize].name == BAD).collect();
        let samples = &self.samples;
        // A replay's sink is its relay's.
        let mood = relay.split('/').next().and_then(|relay| self.outlets.get(relay)).map(|outlet| outlet.mood).unwrap_or_default();
        let outlet = self.outlets.entry(relay.to_owned()).or_default();
        let answer = match mood {
            Mood::Busy => return Answer::Retry { after: None, reason: "503".to_owned() },
            Mood::Forbidding => return Answer::Fatal { reason: "401".to_owned() },
            Mood::Refusing => {
                outlet.refused.extend(&ids);
                return Answer::Reject { items: None, reason: "400".to_owned() };
            }
            Mood::Fine if bad.is_empty() => Answer::Delivered,
            Mood::Fine if names => Answer::Reject { items: Some(bad.clone()), reason: "bad".to_owned() },
            Mood::Fine => return Answer::Reject { items: None, reason: "bad".to_owned() },
        };
        let known = outlet.bodies.entry(key.to_owned()).or_insert_with(|| body.to_vec());
        // A position that is older than what was trimmed finds the bases gone; so does one that was taken over, of what its successor has sent; and one that
        // came back, of what a full stream could not hold for it.
        if known != body && self.rewinds == 0 && (life, left) >= outlet.life && !self.returned.contains_key(relay) {
            outlet.changed.insert(key.to_owned());
        }
        outlet.life = outlet.life.max((life, left));
        for (_, id) in ids.iter().enumerate().filter(|(item, _)| !bad.contains(item)) {
            let taken = outlet.taken.entry(*id).or_default();
            if taken.is_empty() && (life, left) >= outlet.life {
                let sample = &samples[*id as usize];
                outlet.order.entry((sample.target, sample.name.clone())).or_default().push(sample.slot_ms);
            }
            taken.push(Taken { key: key.to_owned(), life, at_ms: now_ms(), unanswered });
        }
        self.upsets += u32::from(unanswered);
        answer
    }
}
