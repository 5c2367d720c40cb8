//! The checks that types alone cannot make: names that must be unique, values that must fit each other, kinds that must exist.
//!
//! *In*: a typed configuration and the tree it came from. *Out*: problems and warnings with places. *Bound*: one pass.
//! *When full*: does not apply.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};

use crate::component::{Component, Kind, Kinds};
use crate::problem::{Place, Problem, Warning};
use crate::tree::{self, Content, Node, Step, steps};
use crate::{Buffer, ByteSize, CatchUp, Config, Global, Millis, OutOfOrder, Relay, Start, words};

/// Smallest `buffer.max_bytes`. Smaller: a few messages of up to 900 KiB fill it, so every breath of a sink costs samples.
pub const MAX_BYTES_MIN: ByteSize = ByteSize::mib(4);
/// Smallest `buffer.memory`: one message under way and one being filled.
pub const MEMORY_MIN: ByteSize = ByteSize::mib(2);
/// Smallest `buffer.nats_memory`. Smaller: the server does nothing but collect garbage.
pub const NATS_MEMORY_MIN: ByteSize = ByteSize::mib(16);
/// Largest `buffer.linger`. Larger: a clean stop may not drain within its deadline.
pub const LINGER_MAX: Millis = Millis::from_secs(10);
/// Largest `batch_time` of a relay. Larger: a stop leaves more for the next start, and what one message of it needs is kept longer.
pub const BATCH_TIME_MAX: Millis = Millis::from_secs(60);
/// Smallest `relays[].catch_up.after`. Smaller: a relay that is in step would turn away from what it delivers.
const CATCH_UP_AFTER_MIN: Millis = Millis::from_secs(1);
/// Smallest scrape interval. Smaller: timer noise is larger than the slot.
pub const INTERVAL_MIN: Millis = Millis(100);
/// Longest relay name: it becomes a token of a subject, a key and a file name. An object's is its namespace, `_` and its own name, of 63 each.
const NAME_MAX: usize = 127;

/// Target labels that say how it is scraped, as in Prometheus.
const META_LABELS: [&str; 8] = [
    "__address__",
    "__scheme__",
    "__metrics_path__",
    "__scrape_interval__",
    "__scrape_timeout__",
    "__scrape_native_histograms__",
    "__always_scrape_classic_histograms__",
    "__convert_classic_histograms_to_nhcb__",
];

mod cluster;
mod kubernetes;
mod nats;
mod scrape;

/// Where labels are written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum LabelUse {
    /// On what is sent: no reserved name.
    Sent,
    /// On a target: some reserved names steer the scrape, others are lost.
    Target,
    /// On a target that is relabeled: rules may use any of them.
    Relabeled,
}

/// What the checks found.
pub(crate) struct Findings<'a> {
    tree: &'a mut Node,
    kinds: &'a Kinds,
    pub(crate) problems: Vec<Problem>,
    pub(crate) warnings: Vec<Warning>,
    /// An option became text in the tree, as `5` where text is wanted: type it again.
    pub(crate) requoted: bool,
}

impl<'a> Findings<'a> {
    pub(crate) const fn new(tree: &'a mut Node, kinds: &'a Kinds) -> Self {
        Self { tree, kinds, problems: Vec::new(), warnings: Vec::new(), requoted: false }
    }

    /// Runs all checks.
    pub(crate) fn check(&mut self, config: &Config) {
        self.global(&config.global);
        for (i, scrape) in config.scrape_configs.iter().enumerate() {
            self.scrape(&config.global, i, scrape);
        }
        self.unique(config.scrape_configs.iter().map(|s| s.job_name.as_str()), "scrape_configs", "job_name");
        self.scraped_twice(config);
        self.buffer(&config.buffer);
        self.nats(&config.buffer);
        self.feeds(config);
        self.cluster_section(config);
        for (i, relay) in config.relays.iter().enumerate() {
            self.relay(config, i, relay);
        }
        self.unique(config.relays.iter().map(|r| r.name.as_str()), "relays", "name");
        self.owned_twice(config);
        self.listen(&config.server.listen);
        self.tests(config);
        let has_objects = config.kubernetes.as_ref().is_some_and(|kubernetes| kubernetes.resources || kubernetes.prometheus_operator);
        if config.relays.is_empty() && !has_objects && !self.is_taken("relays") {
            self.warning(&steps!["relays"], "no relay is configured: samples are kept for a replay and go nowhere");
        }
        if config.scrape_configs.is_empty() && !has_objects && !self.is_taken("scrape_configs") {
            self.warning(&steps!["scrape_configs"], "nothing is scraped: add a job");
        }
    }

    fn tests(&mut self, config: &Config) {
        let relays: Vec<String> = config.relays.iter().map(|relay| relay.name.clone()).collect();
        let jobs: Vec<String> = config.scrape_configs.iter().map(|scrape| scrape.job_name.clone()).collect();
        for (i, test) in config.tests.iter().enumerate() {
            if !relays.contains(&test.relay) {
                self.problem(&steps!["tests", i, "relay"], words::unknown("relay", &test.relay, &relays));
            }
            if let Some(job) = test.job.as_ref().filter(|job| !jobs.contains(job)) {
                self.problem(&steps!["tests", i, "job"], words::unknown("job", job, &jobs));
            }
            if test.input.0.iter().all(|page| page.trim().is_empty()) {
                self.problem(&steps!["tests", i, "input"], "a test needs a sample, like 'go_threads 1'");
            }
        }
    }

    fn is_taken(&self, key: &str) -> bool {
        matches!(&self.tree.content, Content::Map(map) if map.removed.iter().any(|k| k == key))
    }

    fn problem(&mut self, path: &[Step], message: impl Into<String>) {
        if !self.tree.is_reported(path) {
            self.problems.push(Problem { place: self.tree.place_of(path), field: self.tree.written(path), message: message.into() });
        }
    }

    fn warning(&mut self, path: &[Step], message: impl Into<String>) {
        if !self.tree.is_reported(path) {
            self.warnings.push(Warning(Problem {
                place: self.tree.place_of(path),
                field: self.tree.written(path),
                message: message.into(),
            }));
        }
    }

    fn is_written(&self, path: &[Step]) -> bool {
        self.tree.at(path).is_some_and(|n| n.place != Place::Default)
    }

    fn unique<'n>(&mut self, names: impl Iterator<Item = &'n str>, list: &str, key: &str) {
        let mut seen = HashMap::new();
        for (i, name) in names.enumerate() {
            let here = steps![list, i, key];
            if self.tree.is_reported(&here) {
                continue;
            }
            if let Some(first) = seen.insert(name.to_owned(), i) {
                let first = self.first(&steps![list, first, key], &here);
                self.problem(&here, format!("'{name}' is here a second time{first}: each needs a name of its own"));
            }
        }
    }

    /// What a sink alone must have, no two relays may name.
    fn owned_twice(&mut self, config: &Config) {
        let mut seen = HashMap::new();
        for (i, Relay { sink, .. }) in config.relays.iter().enumerate() {
            let Some(owned) = self.kinds.owns.and_then(|owns| owns(sink)) else { continue };
            let here = steps!["relays", i, "sink", sink.name.as_str(), owned.option];
            match seen.entry((sink.name.clone(), owned.thing)) {
                Entry::Vacant(free) => drop(free.insert(here)),
                Entry::Occupied(taken) => {
                    let (first, (_, thing)) = (self.first(taken.get(), &here), taken.key());
                    let message = format!("'{thing}' is here a second time{first}: {}", owned.why);
                    self.problem(&here, message);
                }
            }
        }
    }

    /// Where the first of two is, as it is said at the second.
    fn first(&self, first: &[Step], second: &[Step]) -> String {
        match (self.tree.place_of(first), self.tree.place_of(second)) {
            (Place::File { file, line, .. }, Place::File { file: other, .. }) if file == other => format!(", first in line {line}"),
            (place @ Place::File { .. }, _) => format!(", first in {place}"),
            _ => String::new(),
        }
    }

    fn interval(&mut self, path: &[Step], interval: Millis) {
        if interval < INTERVAL_MIN {
            self.problem(path, format!("{interval} is too short: {INTERVAL_MIN} or more"));
        }
    }

    fn timeout(&mut self, path: &[Step], timeout: Millis, interval: Millis) {
        if timeout.0 == 0 {
            self.problem(path, "a timeout of 0 would fail every scrape");
        } else if timeout > interval {
            self.problem(path, format!("the timeout {timeout} is longer than the interval {interval}: make it {interval} or less"));
        }
    }

    fn labels(&mut self, path: &[Step], labels: &BTreeMap<String, String>, used: LabelUse) {
        for name in labels.keys() {
            let mut here = path.to_vec();
            here.push(Step::Key(name.clone()));
            if name.is_empty() {
                self.problem(&here, "a label needs a name");
            } else if used != LabelUse::Sent && name.starts_with("__") && name != "__name__" {
                let steers = META_LABELS.contains(&name.as_str()) || name.starts_with("__param_");
                if !steers && used == LabelUse::Target {
                    self.warning(
                        &here,
                        format!(
                            "label '{name}' is not kept: of those that begin with '__', {} and __param_* steer the scrape",
                            META_LABELS.join(", ")
                        ),
                    );
                }
            } else if name.starts_with("__") {
                self.problem(&here, format!("label '{name}': names that begin with '__' are reserved"));
            }
        }
    }

    fn global(&mut self, global: &Global) {
        self.interval(&steps!["global", "scrape_interval"], global.scrape_interval);
        let timeout = steps!["global", "scrape_timeout"];
        if self.is_written(&timeout) {
            self.timeout(&timeout, global.scrape_timeout, global.scrape_interval);
        }
        self.global_formats(global);
        self.labels(&steps!["global", "external_labels"], &global.external_labels, LabelUse::Sent);
    }

    fn buffer(&mut self, buffer: &Buffer) {
        let minimum = [
            ("max_bytes", buffer.max_bytes, MAX_BYTES_MIN),
            ("memory", buffer.memory, MEMORY_MIN),
            ("nats_memory", buffer.nats_memory, NATS_MEMORY_MIN),
        ];
        for (key, value, least) in minimum {
            if value < least {
                self.problem(&steps!["buffer", key], format!("{value} is too small: {least} or more"));
            }
        }
        if buffer.max_bytes.0 > i64::MAX as u64 {
            self.problem(&steps!["buffer", "max_bytes"], format!("{} is more than any disk holds", buffer.max_bytes));
        }
        if buffer.linger > LINGER_MAX {
            self.problem(&steps!["buffer", "linger"], format!("{} is too long: {LINGER_MAX} or less", buffer.linger));
        }
        if buffer.data_dir.as_os_str().is_empty() {
            self.problem(&steps!["buffer", "data_dir"], "a folder is missing: './data' is the default");
        }
    }

    fn listen(&mut self, listen: &str) {
        let here = steps!["server", "listen"];
        if let Some(port) = listen.strip_prefix(':') {
            self.problem(&here, format!("'{listen}' has no address: write '127.0.0.1:{port}', or '0.0.0.0:{port}' for all interfaces"));
        } else if listen.ends_with(":0") {
            // Any free port: the log says which one it became.
        } else if let Err(message) = host_port(listen, 9600) {
            self.problem(&here, message);
            return;
        }
        let host = listen.rsplit_once(':').map_or("", |(host, _)| host).trim_matches(['[', ']']);
        let is_local = host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
        if !is_local && !listen.starts_with(':') && !self.is_written(&steps!["server", "tls"]) {
            self.warning(&here, format!("'{listen}' is open to the network without TLS: whoever is between can read all, the token too"));
        }
    }

    fn relay(&mut self, config: &Config, i: usize, relay: &Relay) {
        let at = |key: &str| steps!["relays", i, key];
        if let Err(message) = relay_name(&relay.name) {
            self.problem(&at("name"), message);
        }
        let jobs: Vec<String> = config.scrape_configs.iter().map(|s| s.job_name.clone()).collect();
        // Those of objects are not known here: `namespace/name`.
        let of_objects = config.kubernetes.as_ref().is_some_and(|k| k.resources || k.prometheus_operator);
        for (j, job) in relay.from.iter().enumerate() {
            if !(jobs.contains(job) || of_objects && job.contains('/')) {
                self.problem(&steps!["relays", i, "from", j], words::unknown("job", job, &jobs));
            } else if relay.from[..j].contains(job) {
                self.warning(&steps!["relays", i, "from", j], format!("job '{job}' is listed twice"));
            }
        }
        if let Some(hold) = relay.hold.max_bytes
            && hold > config.buffer.max_bytes
        {
            let wall = config.buffer.max_bytes;
            self.warning(
                &steps!["relays", i, "hold", "max_bytes"],
                format!("{hold} never fits: buffer.max_bytes is {wall}, and that is the wall"),
            );
        }
        if let Start::Ago(ago) = relay.start
            && ago > config.buffer.replay_window
        {
            let window = config.buffer.replay_window;
            self.warning(&at("start"), format!("{ago} reaches back further than buffer.replay_window keeps ({window})"));
        }
        if relay.batch_time > BATCH_TIME_MAX {
            self.problem(&at("batch_time"), format!("{} is too long: {BATCH_TIME_MAX} or less", relay.batch_time));
        }
        self.catch_up(i, relay);
        let kinds = self.kinds;
        for (j, filter) in relay.filters.iter().enumerate() {
            let here = steps!["relays", i, "filters", j];
            self.component(&here, "filter", filter, &kinds.filters);
            if let Some(meaning) = kinds.says.and_then(|says| says(filter)) {
                self.warning(&here, meaning);
            }
        }
        if let Some(encode) = &relay.encode {
            self.component(&at("encode"), "encoder", encode, &kinds.encoders);
            if let Some(message) = kinds.refuses.and_then(|refuses| refuses(&relay.sink.name, &encode.name)) {
                self.problem(&at("encode"), message);
            }
        }
        self.component(&at("sink"), "sink", &relay.sink, &kinds.sinks);
    }

    fn catch_up(&mut self, i: usize, relay: &Relay) {
        let at = |key: &str| steps!["relays", i, "catch_up", key];
        let CatchUp { after, .. } = relay.catch_up;
        let least = CATCH_UP_AFTER_MIN.max(Millis(relay.batch_time.0.saturating_mul(2)));
        if after < least {
            self.problem(&at("after"), format!("{after} is too short: {least} or more"));
        }
        if !relay.catch_up.is_fresh_first() {
            if relay.catch_up.rate.is_some() {
                self.warning(&at("rate"), "has no effect in order: set catch_up.order to fresh_first, or leave it out");
            }
            return;
        }
        match self.kinds.out_of_order.and_then(|says| says(relay)) {
            Some(OutOfOrder::Refused(message)) => self.problem(&at("order"), message),
            Some(OutOfOrder::Doubtful(message)) => self.warning(&at("order"), message),
            None => {}
        }
    }

    /// A component's kind must exist and take its options.
    fn component(&mut self, path: &[Step], what: &str, component: &Component, kinds: &[Kind]) {
        let Some(kind) = kinds.iter().find(|k| k.name == component.name) else {
            let known: Vec<String> = kinds.iter().map(|k| k.name.to_owned()).collect();
            let mut here = path.to_vec();
            here.push(Step::Key(component.name.clone()));
            let place = self.tree.key_place_of(&here);
            let message = match component.options.is_null() {
                true => words::unknown_text(what, &component.name, &known),
                false => words::unknown(what, &component.name, &known),
            };
            if !self.tree.is_reported(path) {
                self.problems.push(Problem { place, field: self.tree.written(path), message });
            }
            return;
        };
        let mut base = path.to_vec();
        base.push(Step::Key(component.name.clone()));
        if self.tree.at(&base).is_none() {
            base.pop();
        }
        self.options(&base, kind, component);
    }

    /// Asks for the options' first problem, takes its field out, and asks again.
    fn options(&mut self, base: &[Step], kind: &Kind, component: &Component) {
        let mut options = component.options.clone();
        let mut taken: Vec<String> = Vec::new();
        while let Err(error) = (kind.check)(&options) {
            let mut here = base.to_vec();
            let inner = tree::parse(&error.path);
            here.extend(inner.iter().cloned());
            if error.message.starts_with("expected a string")
                && let Some(text) = tree::quote(self.tree, &here)
                && put(&mut options, &inner, text)
            {
                self.requoted = true;
                continue;
            }
            // A field that was taken out is now missing, or its place-holder is wrong: that is no second problem.
            let follows = taken.iter().any(|t| error.path == *t || error.message.contains(&format!("'{}'", last_key(t))));
            if !follows {
                let unknown = error.message.starts_with("unknown key");
                let place = if unknown { self.tree.key_place_of(&here) } else { self.tree.place_of(&here) };
                if !self.tree.is_reported(&here) {
                    self.problems.push(Problem { place, field: self.tree.written(&here), message: error.message.clone() });
                }
            }
            if taken.len() > 50 || taken.contains(&error.path) || !take_out(&mut options, &inner) {
                return;
            }
            taken.push(error.path);
        }
    }
}

fn last_key(path: &str) -> String {
    tree::parse(path).iter().rev().find_map(|s| if let Step::Key(key) = s { Some(key.clone()) } else { None }).unwrap_or_default()
}

/// Puts a text where a path leads to.
fn put(options: &mut serde_json::Value, path: &[Step], text: String) -> bool {
    let found = path.iter().try_fold(options, |value, step| match step {
        Step::Key(key) => value.get_mut(key.as_str()),
        Step::Index(index) => value.get_mut(*index),
    });
    found.is_some_and(|value| {
        *value = serde_json::Value::String(text);
        true
    })
}

/// Removes what a path names from options.
fn take_out(options: &mut serde_json::Value, path: &[Step]) -> bool {
    let Some((last, parents)) = path.split_last() else { return false };
    let parent = parents.iter().try_fold(options, |value, step| match step {
        Step::Key(key) => value.get_mut(key.as_str()),
        Step::Index(index) => value.get_mut(*index),
    });
    match (parent, last) {
        (Some(serde_json::Value::Object(map)), Step::Key(key)) => map.remove(key).is_some(),
        (Some(serde_json::Value::Array(items)), Step::Index(index)) if *index + 1 == items.len() => items.pop().is_some(),
        _ => false,
    }
}

/// `host:port`, as a target and a listener are written.
fn host_port(text: &str, port: u16) -> Result<(), String> {
    if let Some((scheme, rest)) = text.split_once("://") {
        let rest = rest.split('/').next().unwrap_or_default();
        return Err(format!("'{text}' is a URL: write '{rest}', the scheme '{scheme}' goes to scheme, the path to metrics_path"));
    }
    if text.contains('/') {
        let host = text.split('/').next().unwrap_or_default();
        return Err(format!("'{text}' has a path: write '{host}', the path goes to metrics_path"));
    }
    let Some((host, port)) = text.rsplit_once(':').filter(|(host, _)| !host.contains(':') || host.ends_with(']')) else {
        let host = if text.contains(':') { format!("[{text}]") } else { text.to_owned() };
        let host = if host.is_empty() { "host".to_owned() } else { host };
        return Err(format!("'{text}' is no host:port: write it like '{host}:{port}'"));
    };
    if host.is_empty() || host.contains(char::is_whitespace) || host.starts_with('[') != host.ends_with(']') {
        return Err(format!("'{text}' is no host:port: the host '{host}' cannot be one"));
    }
    match port.parse::<u16>() {
        Ok(1..) => Ok(()),
        _ => Err(format!("'{text}' is no host:port: the port is a number from 1 to 65535, found '{port}'")),
    }
}

/// A relay's name is like a DNS label, it becomes part of subjects, keys and file names; `_` is in those that are made of objects, between namespace
/// and name.
fn relay_name(name: &str) -> Result<(), String> {
    let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_');
    let is_edge = |c: char| matches!(c, '-' | '_');
    if name.is_empty() {
        return Err("a relay needs a name".to_owned());
    }
    if name.len() > NAME_MAX {
        return Err(format!("'{name}' has {} characters, {NAME_MAX} are allowed", name.len()));
    }
    if !name.bytes().all(fits) || name.starts_with(is_edge) || name.ends_with(is_edge) {
        let like: String = name.to_lowercase().chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        let like = like.trim_matches('-');
        return Err(format!(
            "'{name}' is no relay name: lower-case letters, digits, and '-' or '_' inside, like '{}'",
            if like.is_empty() { "main" } else { like }
        ));
    }
    Ok(())
}
