//! `tests:` of a configuration: text through the real parser, metric relabeling, filters and encoder, without any network.
//!
//! *In*: tests. *Out*: what was expected and what came, for each that fails. *Bound*: the configuration's. *When full*: does not apply.

use std::collections::BTreeMap;
use std::sync::Arc;

use collector::series::{Options, SeriesCache};
use config::{Config, Expect, Places, Problem, Relay, Test};
use relay::trial::{Outcome, Page, Writing, run};
use sample::{Encoder, Flags, MessageBuilder, Origin, TargetId};
use serde::Deserialize;
use serde_json::Value;

/// The slot of the last page: 2026-01-01T00:00:00Z.
const SLOT_MS: i64 = 1_767_225_600_000;
/// Between the pages of a test.
const INTERVAL_MS: i64 = 15_000;

/// What the encoder `ndjson` says of a sample.
#[derive(Debug, Deserialize)]
struct Object {
    name: String,
    labels: BTreeMap<String, String>,
    value: Value,
}

/// Runs all tests; the problems of those that fail.
pub(crate) fn failures(config: &Config, places: &Places) -> Vec<Problem> {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().build() else { return Vec::new() };
    let told = |(index, test): (usize, &Test)| {
        let failed = runtime.block_on(fails(config, test)).err()?;
        let place = places.of(&format!("tests[{index}]"));
        Some(Problem { place, field: format!("tests[{index}]"), message: failed })
    };
    config.tests.iter().enumerate().filter_map(told).collect()
}

/// *Errors*: what was expected and what came.
async fn fails(config: &Config, test: &Test) -> Result<(), String> {
    let Some(relay) = config.relays.iter().find(|relay| relay.name == test.relay) else { return Ok(()) };
    let target = target(config, relay, test);
    let pages = pages(config, &target, &test.input.0)?;
    let external: Vec<_> = config.global.external_labels.clone().into_iter().collect();
    let writing = if matches!(test.expect, Expect::Payload(_)) { Writing::Own } else { Writing::Plain };
    let outcome = run(relay, writing, external, &pages).await.map_err(|error| error.to_string())?;
    let samples = pages.last().map_or(0, |page| page.samples);
    if samples == 0 && test.expect != Expect::Dropped {
        return Err("metric_relabel_configs drop every sample before the stream".to_owned());
    }
    if samples > 0 && outcome.read == 0 {
        return Err(format!("relay '{}' takes no samples of job '{}': its 'from' does not name it", relay.name, target.job));
    }
    match &test.expect {
        Expect::Dropped if outcome.items.is_empty() => Ok(()),
        Expect::Kept if outcome.items.len() as u64 == samples => Ok(()),
        Expect::Dropped => Err(format!("expected no sample, got {}", lines(&objects(&outcome)?))),
        Expect::Kept => Err(format!("expected all of {samples} samples, got {} ({})", outcome.items.len(), reasons(&outcome))),
        Expect::Samples(text) => {
            let got = objects(&outcome)?;
            let page = self::pages(&Config::default(), &Target::bare(), std::slice::from_ref(text))
                .map_err(|error| format!("in expect: {error}"))?;
            let plain = run(&all(relay), Writing::Plain, Vec::new(), &page).await.map_err(|error| error.to_string())?;
            compare(&objects(&plain)?, &got, &target, config, &outcome)
        }
        Expect::Payload(text) => match String::from_utf8(outcome.body) {
            Ok(got) if got.trim_end_matches('\n') == text.trim_end_matches('\n') => Ok(()),
            Ok(got) => Err(format!("expected payload '{}', got '{}'", text.trim_end(), got.trim_end())),
            Err(_) => Err("the relay's encoder writes no text: expect samples instead of a payload".to_owned()),
        },
    }
}

/// Whose page it is.
struct Target {
    job: String,
    /// Of a relay that takes some namespaces, one of them.
    namespace: Option<String>,
    labels: Vec<(String, String)>,
}

impl Target {
    const fn bare() -> Self {
        Self { job: String::new(), namespace: None, labels: Vec::new() }
    }
}

fn target(config: &Config, relay: &Relay, test: &Test) -> Target {
    let first = || relay.from.first().cloned().or_else(|| config.scrape_configs.first().map(|scrape| scrape.job_name.clone()));
    let job = test.job.clone().or_else(first).unwrap_or_else(|| "test".to_owned());
    let mut labels = test.labels.clone();
    labels.entry("job".to_owned()).or_insert_with(|| job.clone());
    labels.entry("instance".to_owned()).or_insert_with(|| test.target.clone());
    let namespace = relay.namespaces.first().cloned();
    Target { job, namespace, labels: labels.into_iter().filter(|(_, value)| !value.is_empty()).collect() }
}

/// A relay that takes everything: what is expected goes through it.
fn all(relay: &Relay) -> Relay {
    Relay { from: Vec::new(), namespaces: Vec::new(), filters: Vec::new(), encode: None, ..relay.clone() }
}

/// Texts as messages, as the job's scrapes would make them.
fn pages(config: &Config, target: &Target, texts: &[String]) -> Result<Vec<Page>, String> {
    let scrape = config.scrape_configs.iter().find(|scrape| scrape.job_name == target.job);
    let options = Options {
        honor_labels: scrape.is_some_and(|scrape| scrape.honor_labels),
        honor_timestamps: scrape.is_none_or(|scrape| scrape.honor_timestamps),
        target_labels: target.labels.clone(),
        relabel: scrape.map_or_else(|| Arc::from([]), |scrape| Arc::from(scrape.metric_relabel_configs.clone())),
        ..Options::default()
    };
    let namespace = target.namespace.iter().map(|namespace| ("namespace".to_owned(), namespace.clone()));
    let attributes = [("job".to_owned(), target.job.clone())].into_iter().chain(namespace).collect();
    let origin = Arc::new(Origin { target: TargetId(1), labels: target.labels.clone(), attributes });
    let mut cache = SeriesCache::new(options);
    let mut encoders: Vec<Encoder> = Vec::new();
    let mut pages = Vec::new();
    for (index, text) in texts.iter().enumerate() {
        let text = format!("{}\n", text.trim_end());
        let counts = cache.page(text.as_bytes()).map_err(|error| format!("the input is no Prometheus text: {error}"))?;
        let behind = i64::try_from(texts.len() - 1 - index).unwrap_or(i64::MAX);
        let slot_ms = SLOT_MS - behind * INTERVAL_MS;
        let parts = cache.parts();
        for part in encoders.len()..parts.len() {
            encoders.push(Encoder::new(Arc::clone(&origin), u16::try_from(part).unwrap_or(u16::MAX)));
        }
        let (mut message, count) = (MessageBuilder::new(), u16::try_from(parts.len()).unwrap_or(u16::MAX));
        for (part, encoder) in parts.iter().zip(&mut encoders) {
            let mut frame = Vec::new();
            encoder.encode(slot_ms, count, Flags::default(), &part.layout, &part.columns, &mut frame);
            message.push(&frame);
        }
        pages.push(Page { payload: message.finish(), slot_ms, samples: counts.post_relabel - counts.duplicates });
    }
    Ok(pages)
}

fn objects(outcome: &Outcome) -> Result<Vec<Object>, String> {
    outcome.items.iter().map(|item| serde_json::from_slice(item).map_err(|error| error.to_string())).collect()
}

/// Each expected sample must be there, and no other. Labels of the target count where they are written.
fn compare(expected: &[Object], got: &[Object], target: &Target, config: &Config, outcome: &Outcome) -> Result<(), String> {
    let is_targets = |name: &str| target.labels.iter().any(|(own, _)| own == name) || config.global.external_labels.contains_key(name);
    let fits = |one: &Object, other: &Object| {
        one.name == other.name
            && one.value == other.value
            && one.labels.iter().all(|(name, value)| other.labels.get(name) == Some(value))
            && other.labels.keys().all(|name| one.labels.contains_key(name) || is_targets(name))
    };
    let mut left: Vec<&Object> = got.iter().collect();
    for one in expected {
        match left.iter().position(|other| fits(one, other)) {
            Some(at) => drop(left.remove(at)),
            None if got.is_empty() => return Err(format!("expected {}, got nothing ({})", line(one), reasons(outcome))),
            None => return Err(format!("expected {}, got {}", line(one), lines(got))),
        }
    }
    match left.first() {
        None => Ok(()),
        Some(more) => Err(format!("got {}, which is not expected", line(more))),
    }
}

fn reasons(outcome: &Outcome) -> String {
    let reasons: Vec<_> = outcome.filtered.iter().map(|(reason, samples)| format!("filtered by {reason}: {samples}")).collect();
    if reasons.is_empty() { "nothing was filtered".to_owned() } else { reasons.join(", ") }
}

/// A sample as Prometheus text.
fn line(object: &Object) -> String {
    let labels: Vec<_> = object.labels.iter().map(|(name, value)| format!("{name}={value:?}")).collect();
    let value = object.value.as_str().map_or_else(|| object.value.to_string(), str::to_owned);
    let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
    format!("'{}{labels} {value}'", object.name)
}

fn lines(objects: &[Object]) -> String {
    if objects.is_empty() { "nothing".to_owned() } else { objects.iter().map(line).collect::<Vec<_>>().join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check;

    /// What the tests of a configuration with one relay say.
    fn said(tests: &str) -> Vec<String> {
        let text = format!(
            "global: {{external_labels: {{cluster: eu}}}}\n\
             scrape_configs:\n\
             \x20 - job_name: j\n\
             \x20   metric_relabel_configs: [{{source_labels: [__name__], regex: 'gone.*', action: drop}}]\n\
             \x20 - {{job_name: other}}\n\
             relays:\n\
             \x20 - name: r\n\
             \x20   from: [j]\n\
             \x20   filters: [{{drop: '{{__name__=~\"go_.*\"}}'}}, {{clamp: {{if: depth, max: 60}}}}]\n\
             \x20   encode: statsd\n\
             \x20   sink: stdout\n\
             tests:\n{tests}"
        );
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("c.yaml");
        std::fs::write(&file, text).expect("written");
        let loaded = config::load(&file, &config::Overrides::default(), &check::kinds()).unwrap_or_else(|refused| panic!("{refused:#?}"));
        let shown = |problem: &Problem| problem.to_string().replace(&format!("{}/", folder.path().display()), "");
        failures(&loaded.config, &loaded.places).iter().map(shown).collect()
    }

    #[test]
    fn what_comes_as_expected_passes() {
        let passing = [
            "  - {input: 'go_threads 1', relay: r, expect: dropped}\n",
            "  - {input: 'gone 1', relay: r, expect: dropped}\n",
            "  - {input: \"a 1\\nb{x=\\\"y\\\"} NaN\", relay: r, expect: kept}\n",
            "  - {input: 'depth{x=\"y\"} 75', relay: r, labels: {zone: z}, expect: {samples: 'depth{x=\"y\"} 60'}}\n",
            "  - {input: 'depth 75', relay: r, labels: {zone: z}, expect: {samples: 'depth{zone=\"z\",cluster=\"eu\"} 60'}}\n",
            "  - {input: 'depth 75', relay: r, target: 'h:1', expect: {payload: 'depth.cluster.eu.instance.h_1.job.j:60|g'}}\n",
        ];
        assert_eq!(said(&passing.concat()), Vec::<String>::new());
    }

    #[test]
    fn what_does_not_says_what_came_and_where_it_was_expected() {
        let failing = [
            "  - {input: 'depth 75', relay: r, expect: dropped}\n",
            "  - {input: \"go_threads 1\\na 1\", relay: r, expect: kept}\n",
            "  - {input: 'depth 75', relay: r, expect: {samples: 'depth 75'}}\n",
            "  - {input: 'depth{x=\"y\"} 1', relay: r, expect: {samples: 'depth 1'}}\n",
            "  - {input: 'go_x 1', relay: r, expect: {samples: 'go_x 1'}}\n",
            "  - {input: \"a 1\\nb 2\", relay: r, expect: {samples: 'a 1'}}\n",
            "  - {input: 'a 1', relay: r, job: other, expect: kept}\n",
            "  - {input: 'a one', relay: r, expect: kept}\n",
            "  - {input: 'gone 1', relay: r, expect: kept}\n",
        ];
        let depth = "'depth{cluster=\"eu\",instance=\"localhost:9100\",job=\"j\"} 60'";
        let expect = [
            format!("c.yaml:13:5: tests[0]: expected no sample, got {depth}"),
            "c.yaml:14:5: tests[1]: expected all of 2 samples, got 1 (filtered by drop: 1)".to_owned(),
            format!("c.yaml:15:5: tests[2]: expected 'depth 75', got {depth}"),
            "c.yaml:16:5: tests[3]: expected 'depth 1', got 'depth{cluster=\"eu\",instance=\"localhost:9100\",job=\"j\",x=\"y\"} 1'"
                .to_owned(),
            "c.yaml:17:5: tests[4]: expected 'go_x 1', got nothing (filtered by drop: 1)".to_owned(),
            "c.yaml:18:5: tests[5]: got 'b{cluster=\"eu\",instance=\"localhost:9100\",job=\"j\"} 2', which is not expected".to_owned(),
            "c.yaml:19:5: tests[6]: relay 'r' takes no samples of job 'other': its 'from' does not name it".to_owned(),
            "c.yaml:20:5: tests[7]: the input is no Prometheus text: cannot read line 1, column 3, at \"one\": a value is a decimal \
             number, +Inf, -Inf or NaN"
                .to_owned(),
            "c.yaml:21:5: tests[8]: metric_relabel_configs drop every sample before the stream".to_owned(),
        ];
        assert_eq!(said(&failing.concat()), expect);
    }
}
