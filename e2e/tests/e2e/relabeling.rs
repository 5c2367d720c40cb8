//! The same targets and labels as Prometheus: generated relabel configurations through `promtool check service-discovery` and through
//! `strata targets --find`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use e2e::process;
use e2e::strata::Strata;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Map, Value, json};

/// How many configurations are compared.
const CONFIGURATIONS: usize = 500;
/// Of the generator. Another one gives other configurations; every failure names its own.
const SEED: u64 = 42;
/// Groups of a job, of one target each.
const GROUPS: usize = 6;
/// promtool processes at a time.
const AT_ONCE: usize = 2;

const REGEXES: [&str; 34] = [
    "(.*)",
    ".*",
    ".+",
    "",
    "(?:)",
    "a|b",
    "(a|b).*",
    "dev|prod",
    r"([^:]+)(?::\d+)?",
    r"(.+):(\d+)",
    r"\[?([^\]]*)\]?:(?P<port>\d+)",
    "(?i)PROD",
    r"(?P<name>\w+)-(\d+)",
    "^prod$",
    "^(?:prod|dev);?.*$",
    "a{2,3}",
    "[[:alpha:]]+",
    r"\pL+",
    r"[^\s]+",
    r"\Qa.b\E",
    "(?U)a+.*",
    r"\x61.*",
    r"\x{fc}?.*",
    "(a)(b)?(c)?.*",
    "(a*)*",
    r".*?(\d+).*",
    "[a-z[]+",
    r"[\d\-]+",
    "([a-z]+);([a-z]+)",
    "(x)?",
    r".*\.(.*)",
    r"\w+",
    "(.)(.*)",
    "[^[:upper:]]*",
];
/// Each has a group that takes something: a label map to no name at all is Prometheus' to have.
const NAME_REGEXES: [&str; 10] = [
    "__meta_(.+)",
    "__meta_sd_label_(.+)",
    "(.*)",
    "e(.+)",
    "(en)v",
    "__param_(.*)",
    "(?i)(E)NV",
    "__(scheme)__",
    "(nothing)",
    "(env|zone|__.*)",
];
const REPLACEMENTS: [&str; 19] = [
    "$1", "${1}", "$1x", "${1}x", "$$1", "$0", "$name", "${name}", "a$", "$$", "${", "${1", "$2-$1", "${2}", "$12", "$01", "ü$1", "plain",
    "$port",
];
const TARGETS: [&str; 9] = ["env", "zone", "new_label", "__tmp_x", "instance", "job", "__meta_new", "__param_q", "a_b"];
const SOURCES: [&str; 12] = [
    "__address__",
    "__meta_sd_name",
    "__meta_sd_label_app",
    "env",
    "zone",
    "upper",
    "digits",
    "dots",
    "absent",
    "job",
    "__scheme__",
    "__tmp_x",
];
/// What steers the scrape, and what it may become.
const STEERING: [(&str, &str); 12] = [
    ("__address__", "${1}:9100"),
    ("__address__", "other:1"),
    ("__address__", "with/path:1"),
    ("__scheme__", "https"),
    ("__metrics_path__", "/probe"),
    ("__metrics_path__", "relative"),
    ("__metrics_path__", "/ü b/$1"),
    ("__param_q", "a b&c=$1"),
    ("__scrape_interval__", "30s"),
    ("__scrape_interval__", "never"),
    ("__scrape_timeout__", "1h30m"),
    ("__scrape_timeout__", "5s"),
];
const VALUES: [&str; 16] =
    ["a", "b", "ab", "abc", "aab", "dev", "prod", "PROD", "web-12", "a.b", "x", "10", "a;b", "ünï", "Straße ÄÖ", "-1"];
const ADDRESSES: [&str; 8] =
    ["alpha:9100", "beta:1", "10.0.0.1:8080", "[::1]:9100", "plainhost", "x.example.com:9", "web-12:7000", "h:65535"];

/// One job with its own targets and rules.
fn job(random: &mut StdRng, number: usize) -> Value {
    let mut group = |index: usize| {
        let address = ADDRESSES.choose(random);
        let mut labels = Map::new();
        for name in ["env", "zone", "upper", "digits", "dots", "__meta_sd_name", "__meta_sd_label_app", "__meta_sd_label_Tier", "instance"]
        {
            if random.random_bool(if name == "instance" { 0.1 } else { 0.7 }) {
                labels.insert(name.to_owned(), json!(VALUES.choose(random)));
            }
        }
        labels.insert("group".to_owned(), json!(format!("g{index}")));
        json!({ "targets": [address], "labels": labels })
    };
    let groups: Vec<Value> = (0..GROUPS).map(&mut group).collect();
    let count = random.random_range(1..6);
    let rules: Vec<Value> = (0..count).map(|_| rule(random)).collect();
    let mut job = json!({ "job_name": format!("job-{number}"), "static_configs": groups, "relabel_configs": rules });
    if random.random_bool(0.2) {
        job["params"] = json!({ "q": ["one two", "three"], "z": ["ü&="] });
    }
    if random.random_bool(0.1) {
        job["metrics_path"] = json!("/custom/path");
    }
    job
}

fn rule(random: &mut StdRng) -> Value {
    const ACTIONS: [&str; 14] = [
        "replace",
        "replace",
        "replace",
        "steer",
        "keep",
        "drop",
        "keepequal",
        "dropequal",
        "hashmod",
        "labelmap",
        "labeldrop",
        "labelkeep",
        "lowercase",
        "uppercase",
    ];
    let action = *ACTIONS.choose(random).unwrap_or(&"replace");
    let mut rule = Map::new();
    let mut set = |key: &str, value: Value| rule.insert(key.to_owned(), value);
    let count = random.random_range(1..4);
    let sources = json!(SOURCES.choose_multiple(random, count).collect::<Vec<_>>());
    let target = json!(TARGETS.choose(random));
    match action {
        "labelmap" => {
            set("regex", json!(NAME_REGEXES.choose(random)));
            set("replacement", json!(["$1", "x_$1", "copy_${1}", "__meta_x_${1}"].choose(random)));
        }
        "labeldrop" | "labelkeep" => {
            // Most of what is kept or dropped must leave an address, or there is little to compare.
            let regex = if action == "labelkeep" { "__.*|env|g.*" } else { "zone|env|__meta_.*|__tmp_.*" };
            set("regex", json!(if random.random_bool(0.9) { regex } else { "(.*)d.*" }));
        }
        "keepequal" | "dropequal" => {
            set("source_labels", sources);
            set("target_label", target);
        }
        "hashmod" => {
            set("source_labels", sources);
            set("target_label", target);
            set("modulus", json!([1_u64, 2, 7, 1000, u64::from(u32::MAX), 1 << 53].choose(random)));
        }
        "lowercase" | "uppercase" => {
            set("source_labels", sources);
            set("target_label", target);
        }
        "steer" => {
            let (label, value) = STEERING.choose(random).copied().unwrap_or_default();
            set("source_labels", json!([SOURCES.choose(random)]));
            // What can be no host at all is left out here, and down for ever there.
            let regexes = if label == "__address__" {
                [r"([\w.]+)", r"([\w.]+):.*", "(a|dev|alpha).*"]
            } else {
                ["(.*)", r"([^:]+):.*", "(a|dev).*"]
            };
            set("regex", json!(regexes.choose(random)));
            set("target_label", json!(label));
            set("replacement", json!(value));
        }
        _ => {
            set("source_labels", sources);
            set("regex", json!(REGEXES.choose(random)));
            if action == "replace" {
                if random.random_bool(0.1) {
                    // The name is part of what matched, which may be no name; and never an empty replacement.
                    set("regex", json!([r"([a-z]+)(.*)", "(.+)(.*)"].choose(random)));
                    set("target_label", json!(["${1}", "x_$1", "${1}_y"].choose(random)));
                    set("replacement", json!("v$2"));
                } else {
                    set("target_label", target);
                    if random.random_bool(0.8) {
                        set("replacement", json!(REPLACEMENTS.choose(random)));
                    }
                }
            }
        }
    }
    if action != "replace" && action != "steer" {
        set("action", json!(if random.random_bool(0.1) && action == "keep" { "KEEP" } else { action }));
    }
    if random.random_bool(0.2) && !matches!(action, "labeldrop" | "labelkeep" | "labelmap" | "keepequal" | "dropequal") {
        set("separator", json!([";", "", "-", ":"].choose(random)));
    }
    Value::Object(rule)
}

/// What became of a target: nothing, an error, or labels that it keeps, URL, interval and timeout.
type Outcome = Option<Option<(BTreeMap<String, String>, String, String, String)>>;

/// What promtool says of a job's targets, in any order: the labels it shows as discovered have been written to by some rules.
async fn promtool(promtool: &Path, file: &Path, job: &Value) -> Result<Vec<Outcome>> {
    let name = job["job_name"].as_str().context("a name")?;
    // It waits for its time to be over even when it has everything: the shorter the better, unless the machine is busy.
    for timeout in ["20ms", "1s", "10s"] {
        let output = tokio::process::Command::new(promtool)
            .args(["check", "service-discovery", "--enable-feature=no-default-scrape-port"])
            .arg(format!("--timeout={timeout}"))
            .arg(file)
            .arg(name)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let output = tokio::time::timeout(Duration::from_secs(60), output).await??;
        if !output.status.success() {
            bail!("promtool refuses {job}: {}", String::from_utf8_lossy(&output.stderr));
        }
        let found: Vec<Value> = serde_json::from_slice(&output.stdout)?;
        if !found.is_empty() {
            return found.iter().map(|target| theirs(job, target)).collect();
        }
    }
    bail!("promtool finds nothing for {job}")
}

fn theirs(job: &Value, target: &Value) -> Result<Outcome> {
    if target.get("error").is_some() {
        return Ok(Some(None));
    }
    let mut labels = labels(&target["labels"])?;
    if labels.is_empty() {
        return Ok(None);
    }
    let mut params: BTreeMap<String, Vec<String>> = serde_json::from_value(job.get("params").cloned().unwrap_or_else(|| json!({})))?;
    for (name, value) in labels.iter().filter_map(|(name, value)| Some((name.strip_prefix("__param_")?, value))) {
        let values = params.entry(name.to_owned()).or_default();
        values.splice(..values.len().min(1), [value.clone()]);
    }
    let pairs: Vec<_> =
        params.iter().flat_map(|(name, values)| values.iter().map(move |v| format!("{name}={}", escape(v, "", true)))).collect();
    let mut take = |name: &str| labels.remove(name).unwrap_or_default();
    let (scheme, address, path) = (take("__scheme__"), take("__address__"), take("__metrics_path__"));
    let (interval, timeout) = (take("__scrape_interval__"), take("__scrape_timeout__"));
    let (slash, mark) = (if path.starts_with('/') { "" } else { "/" }, if pairs.is_empty() { "" } else { "?" });
    let url = format!("{scheme}://{address}{slash}{}{mark}{}", escape(&path, "$&+,/:;=@", false), pairs.join("&"));
    labels.retain(|name, _| !name.starts_with("__"));
    Ok(Some(Some((labels, url, seconds(&interval)?, seconds(&timeout)?))))
}

fn escape(text: &str, more: &str, is_form: bool) -> String {
    let escape = |byte: u8| match char::from(byte) {
        c if c.is_ascii_alphanumeric() || "-_.~".contains(c) || more.contains(c) => c.to_string(),
        ' ' if is_form => "+".to_owned(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(escape).collect()
}

/// A duration of a few units in seconds.
fn seconds(text: &str) -> Result<String> {
    let mut sum = 0.0;
    let mut number = String::new();
    for c in text.chars() {
        let unit = match c {
            '0'..='9' => {
                number.push(c);
                continue;
            }
            'h' => 3600.0,
            'm' => 60.0,
            's' => 1.0,
            _ => bail!("no duration: {text}"),
        };
        sum += unit * std::mem::take(&mut number).parse::<f64>()?;
    }
    Ok(sum.to_string())
}

fn labels(value: &Value) -> Result<BTreeMap<String, String>> {
    Ok(serde_json::from_value(value.clone())?)
}

/// What Strata says of all targets, by job.
fn ours(found: &Value) -> Result<BTreeMap<String, Vec<Outcome>>> {
    let job = |target: &Value| target["job"].as_str().map(str::to_owned).context("a job");
    let list = |name: &str| found[name].as_array().cloned().with_context(|| format!("no {name}"));
    let mut outcomes: BTreeMap<String, Vec<Outcome>> = BTreeMap::new();
    for target in list("targets")? {
        let seconds = |name: &str| target[name].as_f64().map(|s| s.to_string()).context("seconds");
        let url = target["url"].as_str().context("a URL")?.to_owned();
        let mut labels = labels(&target["labels"])?;
        // Rules that copy every label copy those about histograms too, which this promtool does not know yet.
        labels.retain(|name, _| !name.ends_with("_histograms__") && !name.ends_with("_to_nhcb__"));
        let outcome = (labels, url, seconds("interval_s")?, seconds("timeout_s")?);
        outcomes.entry(job(&target)?).or_default().push(Some(Some(outcome)));
    }
    for target in list("dropped")? {
        let outcome = match target["reason"].as_str() {
            Some("relabeled") => None,
            Some("invalid") => Some(None),
            // Prometheus makes one of them later: the one that stays is compared.
            Some("duplicate") => continue,
            other => bail!("{other:?} is no reason"),
        };
        outcomes.entry(job(&target)?).or_default().push(outcome);
    }
    Ok(outcomes)
}

/// Labels and URL.
type Identity = (BTreeMap<String, String>, String);

/// Which targets are kept, with their schedules, and how many are dropped and invalid.
#[derive(Debug, Default)]
struct Sum {
    kept: BTreeMap<Identity, Vec<(String, String)>>,
    dropped: usize,
    invalid: usize,
}

impl Sum {
    fn of(outcomes: Vec<Outcome>) -> Self {
        let mut sum = Self::default();
        for outcome in outcomes {
            match outcome {
                Some(Some((labels, url, interval, timeout))) => sum.kept.entry((labels, url)).or_default().push((interval, timeout)),
                Some(None) => sum.invalid += 1,
                None => sum.dropped += 1,
            }
        }
        sum
    }

    /// Of targets with the same URL and labels Strata keeps one, with a schedule of one of them.
    fn agrees(&self, theirs: &Self) -> bool {
        let one_of = |(ours, theirs): (&Vec<_>, &Vec<_>)| ours.len() == 1 && theirs.contains(&ours[0]);
        (self.dropped, self.invalid) == (theirs.dropped, theirs.invalid)
            && self.kept.keys().eq(theirs.kept.keys())
            && self.kept.values().zip(theirs.kept.values()).all(one_of)
    }
}

fn program() -> Result<PathBuf> {
    process::cached("debian-prometheus-2.42.0/usr/bin/promtool")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn generated_rules_give_the_targets_and_labels_that_promtool_gives() -> Result<()> {
    let program = program()?;
    let mut random = StdRng::seed_from_u64(SEED);
    let jobs: Vec<Value> = (0..CONFIGURATIONS).map(|number| job(&mut random, number)).collect();
    let strata = Strata::prepare("")?;
    // JSON is YAML. This promtool knows legacy names only.
    let configuration = json!({
        "global": { "metric_name_validation_scheme": "legacy" },
        "scrape_configs": jobs,
        "relays": [{ "name": "a", "sink": "stdout" }],
    });
    std::fs::write(strata.config(), serde_json::to_vec(&configuration)?)?;
    let answer = strata.command(&["targets", "--find", "--output", "json"]).await?;
    assert_eq!(answer.code, 0, "{}", answer.stderr);
    let mut ours = ours(&serde_json::from_str(&answer.stdout)?)?;

    let (mut kept, mut dropped, mut invalid, mut wrong) = (0, 0, 0, Vec::new());
    for pair in jobs.chunks(AT_ONCE) {
        let mut running = Vec::new();
        for job in pair {
            let name = job["job_name"].as_str().context("a name")?.to_owned();
            let file = strata.folder().join(format!("{name}.yml"));
            std::fs::write(&file, serde_json::to_vec(&json!({ "scrape_configs": [job] }))?)?;
            let (program, job) = (program.clone(), job.clone());
            running.push((name, job.clone(), tokio::spawn(async move { promtool(&program, &file, &job).await })));
        }
        for (name, job, task) in running {
            let found = task.await??;
            assert_eq!(found.len(), GROUPS, "{job}");
            let (theirs, ours) = (Sum::of(found), Sum::of(ours.remove(&name).unwrap_or_default()));
            (kept, dropped, invalid) = (kept + theirs.kept.len(), dropped + theirs.dropped, invalid + theirs.invalid);
            if !ours.agrees(&theirs) {
                wrong.push(format!("{job}\n  promtool: {theirs:?}\n  strata:   {ours:?}"));
            }
        }
    }
    println!("{CONFIGURATIONS} configurations: {kept} kept, {dropped} dropped, {invalid} invalid");
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong[..wrong.len().min(8)].join("\n"));
    assert!(kept > CONFIGURATIONS && dropped > CONFIGURATIONS / 2 && invalid > 20, "the generator lost its bite");
    Ok(())
}
