//! The chain of one subject: each step from the object in the cluster to each relay's last acknowledgement.
//!
//! *In*: what a person asks, what the API says. *Out*: [`Step`]s. *Bound*: [`TARGETS_MAX`] targets, [`LOOKS`] looks at a time. *When full*: the other
//! targets are only counted.
//!
//! A process knows its own part. What only another one knows is a step of its own, with whom to ask and what: a member knows its targets, and only who
//! scrapes the others; a collector has no relays, and a relay no targets.

use std::collections::BTreeSet;

use anyhow::{Context as _, bail};
use config::Config;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use kubernetes::client::Cluster;
use kubernetes::examine::{self, Annotated, Kind, Step, Verdict};
use serde_json::Value;

use super::look::look;
use super::wanted::{Wanted, selector_of};
use super::{Question, Subject};
use crate::api::model::{Dropped, Elsewhere, Others, Relay, Relays, Status, Target, Targets};
use crate::client::Api;
use crate::role::Role;
use crate::times;

/// Looks at a time, of the taps that a Strata has.
const LOOKS: usize = 4;
/// Targets that are followed to their relays.
const TARGETS_MAX: usize = 5;
/// How far back a series is looked for, ms.
const BACK_MS: i64 = 5 * 60_000;

/// The steps so far.
pub(super) struct Chain<'a> {
    api: &'a Api,
    question: &'a Question,
    role: Role,
    status: Status,
    relays: Vec<Relay>,
    steps: Vec<Step>,
}

/// What is followed through the stream to the relays.
struct Samples<'a> {
    /// What a person calls them.
    name: &'a str,
    /// The job that scrapes them, where that is known.
    job: Option<&'a str>,
    selector: &'a str,
    from_ms: i64,
}

impl<'a> Chain<'a> {
    /// *Errors*: the API does not answer, or this process has neither targets nor relays.
    pub(super) async fn new(api: &'a Api, question: &'a Question) -> anyhow::Result<Self> {
        let status: Status = api.read("/api/v1/status").await?;
        let role = Role::of(&status.role).unwrap_or(Role::Run);
        if !role.collects() && !role.relays() {
            bail!(
                "this is `strata {}`: ask a `strata collector` for a target, and a `strata relay` for what becomes of its samples",
                role.name()
            );
        }
        let Relays { relays } = api.read("/api/v1/relays").await?;
        Ok(Self { api, question, role, status, relays, steps: Vec::new() })
    }

    pub(super) async fn follow(mut self, config: &Config) -> anyhow::Result<Vec<Step>> {
        let Targets { targets, dropped, elsewhere, annotated } = self.api.read("/api/v1/targets").await?;
        let others = if elsewhere > 0 { self.api.read::<Others>("/api/v1/targets/elsewhere").await?.targets } else { Vec::new() };
        let Some(wanted) = self.wanted(config, &annotated).await? else {
            self.stream();
            return Ok(self.steps);
        };
        let targets: Vec<Target> = targets.into_iter().filter(|target| wanted.is_own(target)).collect();
        let others: Vec<Elsewhere> = others.into_iter().filter(|target| wanted.is_other(target)).collect();
        let is_found = !targets.is_empty() || !others.is_empty();
        self.left_out(&wanted, &dropped, is_found);
        if is_found && matches!(wanted, Wanted::Object { .. }) {
            // Another job scrapes it: that one leaves it is often meant so.
            for step in self.steps.iter_mut().filter(|step| step.stage == "annotation" && step.verdict == Verdict::Bad) {
                (step.verdict, step.fix) = (Verdict::Note, None);
            }
        }
        let selected = if let Wanted::Series { selector, .. } = &wanted { Some(selector.as_str()) } else { None };
        for target in targets.iter().take(TARGETS_MAX) {
            self.scrape(target);
            let Some(last_ms) = target.last_scrape_ms else { continue };
            let (own, from_ms) = (selector_of(&target.labels), last_ms - 2 * interval_ms(target));
            let samples = Samples { name: &target.url, job: Some(&target.job), selector: selected.unwrap_or(&own), from_ms };
            self.samples(&samples).await?;
        }
        let from_ms = times::now_ms() - BACK_MS;
        for target in others.iter().take(TARGETS_MAX.saturating_sub(targets.len())) {
            self.steps.push(scraped_elsewhere(target, self.question, self.role));
            if self.role.relays() && selected.is_none() {
                let selector = selector_of(&target.labels);
                self.samples(&Samples { name: &target.url, job: Some(&target.job), selector: &selector, from_ms }).await?;
            }
        }
        if targets.len() + others.len() > TARGETS_MAX {
            self.steps
                .push(Step::note("target", format!("{} more targets are not followed here", targets.len() + others.len() - TARGETS_MAX)));
        }
        // Where no target of this process is meant, a relay knows the samples all the same.
        if targets.is_empty() && (selected.is_some() || !self.role.collects()) {
            let selector = wanted.selector();
            self.samples(&Samples { name: &selector, job: None, selector: &selector, from_ms }).await?;
        }
        self.stream();
        Ok(self.steps)
    }

    /// Which targets are meant; none: nothing is known of them here.
    async fn wanted(&mut self, config: &Config, annotated: &[Annotated]) -> anyhow::Result<Option<Wanted>> {
        Ok(match &self.question.subject {
            Subject::Object(kind, name) => {
                let (kind, name, namespace) = (*kind, name.clone(), self.object(*kind, name, config, annotated).await?);
                Some(Wanted::Object { kind, namespace, name })
            }
            Subject::Address(address) => Some(Wanted::Address(address.clone())),
            Subject::Series(selector) if self.role.relays() => self.series(selector).await?,
            Subject::Series(selector) => {
                let text = format!("series are looked for in the stream, and this is `strata {}`", self.role.name());
                self.steps.push(Step::elsewhere("stream", text, format!("ask a `strata relay`: strata why '{selector}'")));
                None
            }
        })
    }

    /// What the cluster says of an object; its namespace.
    async fn object(&mut self, kind: Kind, name: &str, config: &Config, jobs: &[Annotated]) -> anyhow::Result<String> {
        let cluster = Cluster::open(&config.kubernetes.clone().unwrap_or_default()).await?;
        let namespace = self.question.namespace.as_ref().unwrap_or(&cluster.namespace).clone();
        let looked = config.kubernetes.iter().flat_map(|kubernetes| &kubernetes.namespaces).collect::<Vec<_>>();
        if !looked.is_empty() && !looked.contains(&&namespace) {
            let text = format!("Strata does not look at namespace '{namespace}'");
            self.steps.push(Step::bad("access", text, "add it to kubernetes.namespaces"));
        }
        let mut steps = examine::examine(&cluster, kind, &namespace, name, jobs).await.context("cannot ask the API server")?;
        if !self.role.collects() {
            // Discovery is not its part, so it needs no right for that; it knows the samples all the same.
            for step in steps.iter_mut().filter(|step| step.stage == "access" && step.verdict == Verdict::Bad) {
                (step.verdict, step.fix) = (Verdict::Note, None);
            }
        }
        self.steps.extend(steps);
        Ok(namespace)
    }

    /// The targets that a series comes from; none: there is no such series.
    async fn series(&mut self, selector: &str) -> anyhow::Result<Option<Wanted>> {
        let look = look(self.api, None, selector, times::now_ms() - BACK_MS).await?;
        let origins: BTreeSet<_> =
            look.iter().map(|series| (series.label("job").to_owned(), series.label("instance").to_owned())).collect();
        if origins.is_empty() {
            let text = format!("no sample of the last {} minutes in the stream matches {selector}", BACK_MS / 60_000);
            let fix =
                "see whether the page has it (`curl` the target), and whether metric_relabel_configs drop it; then ask for its target here";
            self.steps.push(Step::bad("stream", text, fix));
            return Ok(None);
        }
        self.steps.push(Step::good("stream", format!("{} series of {} targets match in the stream", look.len(), origins.len())));
        Ok(Some(Wanted::Series { selector: selector.to_owned(), origins }))
    }

    /// What is known of targets that are meant and left out, and what is to be said where there are none at all.
    fn left_out(&mut self, wanted: &Wanted, dropped: &[Dropped], is_found: bool) {
        let before = self.steps.len();
        for dropped in dropped.iter().filter(|dropped| wanted.is_left_out(&dropped.discovered_labels)) {
            let address = dropped.discovered_labels.get("__address__").map_or("", String::as_str);
            let text = format!("job '{}' found {address} and leaves it out ({}): {}", dropped.job, dropped.reason, dropped.detail);
            // Often meant so, as where one port of several is taken.
            self.steps.push(if is_found {
                Step::note("target", text)
            } else {
                Step::bad("target", text, "see `strata targets --dropped`")
            });
        }
        if !self.role.collects() {
            self.steps.push(Step::note("target", "targets are scraped in `strata collector`: what is said here is of their samples"));
        } else if !is_found && self.steps.len() == before && !matches!(wanted, Wanted::Series { .. }) {
            self.steps.push(Step::bad("target", "no job has it as a target", "see `strata targets`, and which jobs the configuration has"));
        }
    }

    /// How a target's last scrape was.
    fn scrape(&mut self, target: &Target) {
        let Target { job, url, missed, samples, .. } = target;
        let seen = target.last_scrape_ms.map(times::show);
        self.steps.push(match (target.health.as_str(), &target.last_error, seen) {
            ("up", _, Some(at)) => {
                Step::good("scrape", format!("job '{job}' scrapes {url}: {samples} samples at {at}, {missed} slots missed since the start"))
            }
            (_, Some(error), Some(at)) => {
                let since = target.down_since_ms.map(times::show).unwrap_or_default();
                let text = format!("job '{job}' cannot scrape {url}: {error} (last at {at}, since {since})");
                Step::bad("scrape", text, format!("ask it as Strata does, from where it runs: curl -v '{url}'"))
            }
            _ => Step::note("scrape", format!("job '{job}' has not scraped {url} yet")),
        });
    }

    /// What each relay makes of samples.
    async fn samples(&mut self, samples: &Samples<'_>) -> anyhow::Result<()> {
        let Samples { name, selector, from_ms, .. } = *samples;
        if !self.role.relays() {
            let text = format!("relays run in `strata relay`, and this is `strata {}`", self.role.name());
            self.steps.push(Step::elsewhere("relay", text, format!("ask there what becomes of its samples: strata why '{selector}'")));
            return Ok(());
        }
        let raw = look(self.api, None, selector, from_ms).await?.len();
        self.steps.push(match raw {
            0 => {
                let fix = match self.role.collects() {
                    true => "see `strata top` for what the stream says".to_owned(),
                    false => format!("ask a `strata collector` for its target: {}", self.question),
                };
                Step::bad("stream", format!("nothing of {name} is in the stream since {}", times::show(from_ms)), fix)
            }
            count => Step::good("stream", format!("{count} series of {name} are in the stream")),
        });
        if self.relays.is_empty() {
            self.steps.push(Step::bad(
                "relay",
                "there is no relay: samples stay in the stream",
                "configure one under `relays`, or apply a Relay object",
            ));
        }
        let looks = self.relays.iter().map(|relay| self.relay(relay, samples, raw));
        let steps: Vec<Step> = stream::iter(looks).buffered(LOOKS).try_collect().await?;
        self.steps.extend(steps);
        Ok(())
    }

    async fn relay(&self, relay: &Relay, samples: &Samples<'_>, raw: usize) -> anyhow::Result<Step> {
        let name = &relay.name;
        if let Some(job) = samples.job.filter(|job| !relay.from.is_empty() && !relay.from.iter().any(|from| from == job)) {
            return Ok(Step::note("relay", format!("relay '{name}' does not take job '{job}'")));
        }
        let kept = look(self.api, Some(name), samples.selector, samples.from_ms).await?.len();
        let how = format!("{kept} of {raw} series pass its filters");
        if kept == 0 && raw > 0 {
            let filters: Vec<&str> = relay.filters.iter().map(|filter| filter.name.as_str()).collect();
            let by = if filters.is_empty() {
                "it takes other targets only".to_owned()
            } else {
                format!("its filters are {}", filters.join(", "))
            };
            return Ok(Step::note("relay", format!("relay '{name}' takes none of it: {by}")));
        }
        let (place, state) = (place(relay, times::now_ms()), relay.state.as_str());
        if let Some(trouble) = &relay.error {
            let text = format!("relay '{name}' ({}) is {state}, {place}: {}; {how}", relay.sink, trouble.text);
            return Ok(Step::bad("relay", text, "its samples wait in the stream; mend the sink, see docs/runbook.md"));
        }
        if state == "paused" {
            return Ok(Step::bad("relay", format!("relay '{name}' is paused, {place}; {how}"), format!("strata resume {name}")));
        }
        let delivered = relay.rates.delivered_samples;
        Ok(Step::good(
            "relay",
            format!("relay '{name}' ({}) is {state}, {place}, {delivered:.0} samples/s acknowledged; {how}", relay.sink),
        ))
    }

    /// What the stream as a whole is like.
    fn stream(&mut self) {
        let Some(stream) = &self.status.stream else {
            let text = format!("the stream does not answer: nats is {}", self.status.nats.state);
            self.steps.push(Step::bad("stream", text, "see the log of Strata"));
            return;
        };
        let last = stream.last_ms.map_or_else(|| "never".to_owned(), times::show);
        self.steps.push(Step::good("stream", format!("the stream ends at sequence {}, stored {last}", stream.last_seq)));
    }
}

/// A target that another member scrapes. A process with relays follows its samples nevertheless.
fn scraped_elsewhere(target: &Elsewhere, question: &Question, role: Role) -> Step {
    let Elsewhere { job, url, owner, .. } = target;
    let who = owner.as_ref().map_or_else(|| "another member".to_owned(), |owner| format!("'{owner}'"));
    let text = format!("job '{job}' has {url}, and {who} scrapes it");
    match role.relays() {
        true => Step::note("target", format!("{text}: how its scrapes are, `{question}` says there")),
        false => Step::elsewhere("target", text, format!("ask there: {question}")),
    }
}

/// How far a relay is: which slots are acknowledged, and its place in the stream.
fn place(relay: &Relay, now_ms: i64) -> String {
    let (seconds, position) = (relay.lag.seconds, relay.position);
    if seconds <= 0.0 {
        return format!("0 s behind (acknowledged to sequence {position} of the stream)");
    }
    let before = times::show(now_ms - (seconds * 1000.0) as i64);
    format!("{seconds:.0} s behind (slots before {before} are acknowledged, to sequence {position} of the stream)")
}

fn interval_ms(target: &Target) -> i64 {
    (target.more.get("interval_s").and_then(Value::as_f64).unwrap_or(60.0) * 1000.0) as i64
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn relay(lag: f64) -> Relay {
        serde_json::from_value(json!({
            "name": "one", "state": "running", "lag": {"seconds": lag, "samples": 7, "messages": 1, "bytes": 900, "catch_up_seconds": null},
            "retention": {"left_seconds": null, "limit": null, "text": ""}, "rates": {"read_samples": 1.5, "delivered_samples": 0.0},
            "totals": {"read": 9, "delivered": 2, "filtered": 0, "rejected": 0, "lost": 0, "retries": 3}, "dead_letters": 0, "kept_letters": 0,
            "position": 42, "sink": "http", "encoder": "ndjson", "from": [], "filters": [], "filtered": {}, "lost": {},
            "hold": {"max_age": "1d", "max_bytes": null, "on_full": "drop"},
            "history": {"every_seconds": 2.0, "lag_seconds": [], "delivered_samples": []},
        }))
        .expect("a relay")
    }

    #[test]
    fn a_relays_place_is_the_slots_that_are_acknowledged_and_a_sequence() {
        let now_ms = 1_760_000_000_000;
        assert_eq!(place(&relay(0.0), now_ms), "0 s behind (acknowledged to sequence 42 of the stream)");
        let behind = "35 s behind (slots before 2025-10-09T08:52:45Z are acknowledged, to sequence 42 of the stream)";
        assert_eq!(place(&relay(35.0), now_ms), behind);
    }

    #[test]
    fn a_target_of_another_member_is_told_with_its_member_and_the_question_to_ask_there() {
        let question = Question {
            subject: Subject::Object(Kind::Pod, "web-0".to_owned()),
            text: "pod/web-0".to_owned(),
            namespace: Some("shop".to_owned()),
        };
        let target = |owner: Option<&str>| Elsewhere {
            id: "0a".to_owned(),
            job: "web".to_owned(),
            url: "http://h:1/metrics".to_owned(),
            labels: Default::default(),
            discovered_labels: Default::default(),
            owner: owner.map(str::to_owned),
        };
        let step = scraped_elsewhere(&target(Some("strata-collector-1")), &question, Role::Collector);
        assert_eq!(
            (step.verdict, step.text.as_str()),
            (Verdict::Elsewhere, "job 'web' has http://h:1/metrics, and 'strata-collector-1' scrapes it")
        );
        assert_eq!(step.fix.as_deref(), Some("ask there: strata why 'pod/web-0' -n shop"));
        let step = scraped_elsewhere(&target(None), &question, Role::Run);
        assert!(step.verdict == Verdict::Note && step.text.contains("another member scrapes it"), "{step:?}");
    }
}
