//! `strata why`: the whole chain of one target or series, from the object in the cluster to each relay's last acknowledgement.
//!
//! *In*: `pod/NAME`, `svc/NAME`, an address or URL, or a selector of series. *Out*: a line per step, and what to do about each that is wrong; exit code 0:
//! samples get through, 1: not. *Bound*: one connection, [`LOOK`] at the stream per target. *When full*: the first [`TARGETS_MAX`] targets are followed.

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use config::Config;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use kubernetes::client::Cluster;
use kubernetes::examine::{self, Annotated, Kind, Step, Verdict};
use relay::tap::Stage;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};

use crate::api::model::{Dropped, Relay, Relays, Status, Target, Targets};
use crate::api::tap::TapQuery;
use crate::client::Api;
use crate::place::Place;
use crate::{Output, ask, check, tap, times, usage};

/// How long the first sample of a look may take. Larger: a slow answer where there is none; smaller: a busy Strata seems to have none.
const LOOK: Duration = Duration::from_secs(4);
/// How long nothing more may come before a look is over. Larger: a slower answer; smaller: a pause cuts it short.
const QUIET: Duration = Duration::from_millis(750);
/// Looks at a time, of the taps that a Strata has.
const LOOKS: usize = 4;
/// Targets that are followed to their relays.
const TARGETS_MAX: usize = 5;
/// Samples per second of a look: all there are.
const RATE: u32 = 1_000_000;
/// How far back a series is looked for, ms.
const BACK_MS: i64 = 5 * 60_000;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// `pod/NAME`, `svc/NAME` or `service/NAME`; an address or URL of a target; or a PromQL selector of series, such as `up` or '{job="api"}'.
    subject: String,
    /// The object's namespace; default: Strata's own.
    #[arg(short, long)]
    namespace: Option<String>,
    #[command(flatten)]
    place: Place,
    /// How the steps are printed.
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// What is asked about.
#[derive(Debug, PartialEq, Eq)]
enum Subject {
    Object(Kind, String),
    Address(String),
    Series(String),
}

pub(crate) fn main(args: &Args) -> ExitCode {
    let subject = match Subject::of(&args.subject) {
        Ok(subject) => subject,
        Err(message) => return usage(&message),
    };
    let api = match args.place.api(false) {
        Ok(api) => api,
        Err(code) => return code,
    };
    let config = match &subject {
        Subject::Object(..) => match check::load_or_report(args.place.source()) {
            Ok(config) => config,
            Err(code) => return code,
        },
        _ => Config::default(),
    };
    ask(async {
        let steps = Chain { api: &api, steps: Vec::new() }.follow(&subject, args.namespace.as_deref(), &config).await?;
        let reached = steps.iter().all(|step| step.verdict != Verdict::Bad);
        match args.output {
            Output::Json => println!("{}", json!({"subject": args.subject, "reached": reached, "steps": steps})),
            Output::Text => print!("{}", text(&steps)),
        }
        Ok(reached)
    })
}

impl Subject {
    /// *Errors*: what to write instead.
    fn of(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let object = |kind, name: &str| match name.is_empty() || name.contains('/') {
            true => Err(format!(
                "'{text}' names no object: write {}/NAME, and its namespace with -n",
                text.split('/').next().unwrap_or_default()
            )),
            false => Ok(Self::Object(kind, name.to_owned())),
        };
        match text.split_once('/') {
            Some(("pod" | "pods" | "po", name)) => object(Kind::Pod, name),
            Some(("svc" | "service" | "services", name)) => object(Kind::Service, name),
            _ if text.contains("://") => Ok(Self::Address(text.to_owned())),
            _ if !text.contains('{') && text.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok()) => {
                Ok(Self::Address(text.to_owned()))
            }
            _ if text.is_empty() => Err("name something: pod/NAME, svc/NAME, a URL, or a selector of series".to_owned()),
            _ => Ok(Self::Series(text.to_owned())),
        }
    }
}

/// Whether an URL is this one, or one at this host and port: of the whole address, 127.0.0.1:90 is not the beginning of 127.0.0.1:9090.
fn is_at(url: &str, address: &str) -> bool {
    let url = if address.contains("://") { url } else { url.split_once("://").map_or(url, |(_, rest)| rest) };
    url.strip_prefix(address).is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', '?']))
}

/// The steps so far.
struct Chain<'a> {
    api: &'a Api,
    steps: Vec<Step>,
}

impl Chain<'_> {
    async fn follow(mut self, subject: &Subject, namespace: Option<&str>, config: &Config) -> anyhow::Result<Vec<Step>> {
        let found: Targets = self.api.read("/api/v1/targets").await?;
        let relays: Relays = self.api.read("/api/v1/relays").await?;
        let targets = match subject {
            Subject::Object(kind, name) => {
                let namespace = self.object(*kind, name, namespace, config, &found.annotated).await?;
                let label = format!("__meta_kubernetes_{}_name", kind.name());
                let is_it = |labels: &BTreeMap<String, String>| {
                    labels.get("__meta_kubernetes_namespace") == Some(&namespace) && labels.get(&label) == Some(name)
                };
                let targets = self.targets(found, |target| is_it(&target.discovered_labels), |dropped| is_it(&dropped.discovered_labels));
                if !targets.is_empty() {
                    // Another job scrapes it: that one leaves it is often meant so.
                    for step in self.steps.iter_mut().filter(|step| step.stage == "annotation" && step.verdict == Verdict::Bad) {
                        (step.verdict, step.fix) = (Verdict::Note, None);
                    }
                }
                targets
            }
            Subject::Address(address) => {
                let is_it = |target: &Target| is_at(&target.url, address) || target.labels.get("instance") == Some(address);
                self.targets(found, is_it, |dropped| dropped.discovered_labels.get("__address__") == Some(address))
            }
            Subject::Series(selector) => self.series(selector, found).await?,
        };
        let selector = if let Subject::Series(selector) = subject { Some(selector.as_str()) } else { None };
        for target in targets.iter().take(TARGETS_MAX) {
            self.scrape(target);
            self.relays(target, selector, &relays.relays).await?;
        }
        if targets.len() > TARGETS_MAX {
            self.steps.push(Step::note("target", format!("{} more targets are not followed here", targets.len() - TARGETS_MAX)));
        }
        self.stream().await?;
        Ok(self.steps)
    }

    /// What the cluster says of an object; its namespace.
    async fn object(
        &mut self,
        kind: Kind,
        name: &str,
        namespace: Option<&str>,
        config: &Config,
        jobs: &[Annotated],
    ) -> anyhow::Result<String> {
        let cluster = Cluster::open(&config.kubernetes.clone().unwrap_or_default()).await?;
        let namespace = namespace.unwrap_or(&cluster.namespace).to_owned();
        let looked = config.kubernetes.iter().flat_map(|kubernetes| &kubernetes.namespaces).collect::<Vec<_>>();
        if !looked.is_empty() && !looked.contains(&&namespace) {
            let text = format!("Strata does not look at namespace '{namespace}'");
            self.steps.push(Step::bad("access", text, "add it to kubernetes.namespaces"));
        }
        let steps = examine::examine(&cluster, kind, &namespace, name, jobs).await;
        self.steps.extend(steps.context("cannot ask the API server")?);
        Ok(namespace)
    }

    /// Those of the targets that are meant, and what is known of those that are left out.
    fn targets(&mut self, found: Targets, is_it: impl Fn(&Target) -> bool, is_dropped: impl Fn(&Dropped) -> bool) -> Vec<Target> {
        let targets: Vec<Target> = found.targets.into_iter().filter(is_it).collect();
        for dropped in found.dropped.iter().filter(|dropped| is_dropped(dropped)) {
            let address = dropped.discovered_labels.get("__address__").map_or("", String::as_str);
            let text = format!("job '{}' found {address} and leaves it out ({}): {}", dropped.job, dropped.reason, dropped.detail);
            // Often meant so, as where one port of several is taken.
            self.steps.push(if targets.is_empty() {
                Step::bad("target", text, "see `strata targets --dropped`")
            } else {
                Step::note("target", text)
            });
        }
        if targets.is_empty() && found.dropped.iter().all(|dropped| !is_dropped(dropped)) {
            self.steps.push(Step::bad("target", "no job has it as a target", "see `strata targets`, and which jobs the configuration has"));
        }
        targets
    }

    /// The targets that a series comes from.
    async fn series(&mut self, selector: &str, found: Targets) -> anyhow::Result<Vec<Target>> {
        let look = self.look(None, selector, times::now_ms() - BACK_MS).await?;
        let origin = |series: &Series| (series.label("job").to_owned(), series.label("instance").to_owned());
        let origins: BTreeSet<(String, String)> = look.iter().map(origin).collect();
        if origins.is_empty() {
            let text = format!("no sample of the last {} minutes in the stream matches {selector}", BACK_MS / 60_000);
            let fix =
                "see whether the page has it (`curl` the target), and whether metric_relabel_configs drop it; then ask for its target here";
            self.steps.push(Step::bad("stream", text, fix));
            return Ok(Vec::new());
        }
        self.steps.push(Step::good("stream", format!("{} series of {} targets match in the stream", look.len(), origins.len())));
        let is_origin = |target: &Target| {
            let label = |name: &str| target.labels.get(name).cloned().unwrap_or_default();
            origins.contains(&(label("job"), label("instance")))
        };
        Ok(found.targets.into_iter().filter(is_origin).collect())
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

    /// What each relay makes of a target's samples, or of one selection of them.
    async fn relays(&mut self, target: &Target, selector: Option<&str>, relays: &[Relay]) -> anyhow::Result<()> {
        let Some(last_ms) = target.last_scrape_ms else { return Ok(()) };
        let own = format!(
            "{{job={:?},instance={:?}}}",
            target.labels.get("job").map_or("", |l| l),
            target.labels.get("instance").map_or("", |l| l)
        );
        let (selector, from_ms) = (selector.unwrap_or(&own), last_ms - 2 * interval_ms(target));
        let raw = self.look(None, selector, from_ms).await?;
        self.steps.push(match raw.len() {
            0 => Step::bad(
                "stream",
                format!("nothing of {} is in the stream since {}", target.url, times::show(from_ms)),
                "see `strata top` for what the stream says",
            ),
            count => Step::good("stream", format!("{count} series of {} are in the stream", target.url)),
        });
        if relays.is_empty() {
            self.steps.push(Step::bad(
                "relay",
                "there is no relay: samples stay in the stream",
                "configure one under `relays`, or apply a Relay object",
            ));
        }
        let looks = relays.iter().map(|relay| self.relay(relay, target, selector, from_ms, raw.len()));
        let steps: Vec<Step> = stream::iter(looks).buffered(LOOKS).try_collect().await?;
        self.steps.extend(steps);
        Ok(())
    }

    async fn relay(&self, relay: &Relay, target: &Target, selector: &str, from_ms: i64, raw: usize) -> anyhow::Result<Step> {
        let name = &relay.name;
        if !relay.from.is_empty() && !relay.from.contains(&target.job) {
            return Ok(Step::note("relay", format!("relay '{name}' does not take job '{}'", target.job)));
        }
        let kept = self.look(Some(name), selector, from_ms).await?.len();
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
        let (lag, state) = (relay.lag.seconds, relay.state.as_str());
        if let Some(trouble) = &relay.error {
            let text = format!("relay '{name}' ({}) is {state}, {lag:.0} s behind: {}; {how}", relay.sink, trouble.text);
            return Ok(Step::bad("relay", text, "its samples wait in the stream; mend the sink, see docs/runbook.md"));
        }
        if state == "paused" {
            return Ok(Step::bad("relay", format!("relay '{name}' is paused, {lag:.0} s behind; {how}"), format!("strata resume {name}")));
        }
        let delivered = relay.rates.delivered_samples;
        Ok(Step::good(
            "relay",
            format!("relay '{name}' ({}) is {state}, {lag:.0} s behind, {delivered:.0} samples/s acknowledged; {how}", relay.sink),
        ))
    }

    /// What the stream as a whole is like.
    async fn stream(&mut self) -> anyhow::Result<()> {
        let status: Status = self.api.read("/api/v1/status").await?;
        let Some(stream) = &status.stream else {
            self.steps.push(Step::bad(
                "stream",
                format!("the stream does not answer: nats is {}", status.nats.state),
                "see the log of Strata",
            ));
            return Ok(());
        };
        let last = stream.last_ms.map_or_else(|| "never".to_owned(), times::show);
        self.steps.push(Step::good("stream", format!("the stream ends at sequence {}, stored {last}", stream.last_seq)));
        Ok(())
    }

    /// The series that a selector finds from a time to now.
    async fn look(&self, relay: Option<&str>, selector: &str, at_ms: i64) -> anyhow::Result<BTreeSet<Series>> {
        let stage = relay.map(|_| Stage::Filtered);
        let (relay, selector) = (relay.map(str::to_owned), Some(selector.to_owned()));
        let query = TapQuery { selector, relay, stage, job: None, at_ms: Some(at_ms), rate: Some(RATE) };
        let mut lines = self.api.lines(&format!("/api/v1/tap{}", tap::query_text(&query))).await?;
        let (mut found, mut end, asked_ms) = (BTreeSet::new(), Instant::now() + LOOK, times::now_ms());
        loop {
            let line = match timeout_at(end, lines.next()).await {
                Err(_) | Ok(Ok(None)) => return Ok(found),
                Ok(Err(error)) => return Err(error),
                Ok(Ok(Some(line))) => line,
            };
            let value: Value = serde_json::from_slice(&line).context("cannot read the answer")?;
            if let Some(error) = value["error"].as_str() {
                bail!("cannot look into the stream: {error}");
            }
            match Series::of(&value) {
                // What came after the question is the present: all that there was has gone by.
                Some((_, timestamp)) if timestamp > asked_ms => return Ok(found),
                Some((series, _)) => {
                    found.insert(series);
                    end = Instant::now() + QUIET;
                }
                None => {}
            }
        }
    }
}

/// A series that a look found.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Series {
    name: String,
    labels: BTreeMap<String, String>,
}

impl Series {
    fn of(line: &Value) -> Option<(Self, i64)> {
        let labels =
            line.get("labels")?.as_object()?.iter().map(|(name, value)| (name.clone(), value.as_str().unwrap_or_default().to_owned()));
        Some((Self { name: line.get("name")?.as_str()?.to_owned(), labels: labels.collect() }, line.get("timestamp")?.as_i64()?))
    }

    fn label(&self, name: &str) -> &str {
        self.labels.get(name).map_or("", String::as_str)
    }
}

fn interval_ms(target: &Target) -> i64 {
    (target.more.get("interval_s").and_then(Value::as_f64).unwrap_or(60.0) * 1000.0) as i64
}

/// A line per step, and its fix below it.
fn text(steps: &[Step]) -> String {
    let width = steps.iter().map(|step| step.stage.len()).max().unwrap_or_default();
    let mut out = String::new();
    for step in steps {
        let mark = match step.verdict {
            Verdict::Good => "ok ",
            Verdict::Bad => "NO ",
            Verdict::Note => "-  ",
        };
        out.push_str(&format!("{mark} {:width$}  {}\n", step.stage, step.text));
        if let Some(fix) = &step.fix {
            out.push_str(&format!("    {:width$}  → {fix}\n", ""));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subject_is_an_object_an_address_or_a_selector() {
        let check = |text: &str, expect: Subject| assert_eq!(Subject::of(text), Ok(expect), "{text}");
        check("pod/web-1", Subject::Object(Kind::Pod, "web-1".to_owned()));
        check("svc/web", Subject::Object(Kind::Service, "web".to_owned()));
        check("http://a:1/metrics", Subject::Address("http://a:1/metrics".to_owned()));
        check("[fd00::1]:9100", Subject::Address("[fd00::1]:9100".to_owned()));
        check("up", Subject::Series("up".to_owned()));
        check("job:rate:5m", Subject::Series("job:rate:5m".to_owned()));
        check("{instance=\"a:1\"}", Subject::Series("{instance=\"a:1\"}".to_owned()));
        assert!(Subject::of("pod/a/b").is_err_and(|message| message.contains("pod/NAME")));
        assert!(Subject::of(" ").is_err());
    }

    #[test]
    fn an_address_is_matched_whole() {
        let check = |address: &str, expect: bool| assert_eq!(is_at("http://10.0.0.1:9090/metrics?a=b", address), expect, "{address}");
        check("10.0.0.1:9090", true);
        check("10.0.0.1:90", false);
        check("0.0.0.1:9090", false);
        check("http://10.0.0.1:9090", true);
        check("http://10.0.0.1:9090/metrics", true);
        check("http://10.0.0.1:9090/met", false);
        check("http://10.0.0.1:9090/metrics?a=b", true);
    }

    #[test]
    fn what_is_wrong_stands_out_with_its_fix() {
        let steps = [
            Step::good("object", "pod 'a' is Running"),
            Step::bad("annotation", "there is none", "write one"),
            Step::note("relay", "other"),
        ];
        let expect = "ok  object      pod 'a' is Running\n\
                      NO  annotation  there is none\n\
                      \x20               → write one\n\
                      -   relay       other\n";
        assert_eq!(text(&steps), expect);
    }
}
