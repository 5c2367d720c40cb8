//! Targets: what to scrape, under which labels, and the identity that survives restarts.
//!
//! *In*: a [`Job`] and the [`TargetGroup`]s found for it. *Out*: [`Target`]s with their URL, labels and schedule, and what relabeling
//! dropped. *Bound*: as many as are found; [`DROPPED_MAX`] dropped ones are remembered per job. *When full*: dropped ones are only
//! counted. A target that cannot be built is an [`Error`] of its own; the others go on.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use config::relabel::{self, Labels};
use config::{Global, Millis, RelabelConfig, Scheme, ScrapeConfig};
use http::Uri;
use sample::{Origin, TargetId};
use serde::Serialize;
use xxhash_rust::xxh3::Xxh3;

use crate::discovery::TargetGroup;

/// Dropped targets remembered per job where `keep_dropped_targets` sets nothing. Larger: discovery of everything, kept in part, takes
/// memory; smaller: a person who looks for a missing target may not see it.
pub const DROPPED_MAX: usize = 10_000;
/// The label by which discovery says in which namespace a target is.
const NAMESPACE: &str = "__meta_kubernetes_namespace";

/// One `scrape_configs` entry, with what all its targets share.
#[derive(Debug, Clone)]
pub struct Job {
    /// The entry.
    pub scrape: Arc<ScrapeConfig>,
    /// Its `metric_relabel_configs`.
    pub metric_relabel: Arc<[RelabelConfig]>,
    settings: Arc<ScrapeConfig>,
    access: Arc<http_client::Client>,
    /// How many targets there are while they are more than `target_limit`; 0 otherwise.
    over_limit: Arc<AtomicUsize>,
    interval: Millis,
    timeout: Millis,
}

/// One thing to scrape.
#[derive(Debug)]
pub struct Target {
    /// Identity: a hash of job, URL and labels.
    pub id: TargetId,
    /// Where it is scraped.
    pub url: Uri,
    /// Its own labels, sorted by name: `job`, `instance` and what relabeling left. A series' own label of the same name is renamed.
    pub labels: Vec<(String, String)>,
    /// Its labels before relabeling, sorted by name.
    pub discovered_labels: Vec<(String, String)>,
    /// What a frame says of its source: the labels above, and the job's name as an attribute. External labels are the relays' business.
    pub origin: Arc<Origin>,
    /// How often.
    pub interval: Duration,
    /// How long a scrape may take, all in all; never above the interval.
    pub timeout: Duration,
    /// The entry it comes from.
    pub scrape: Arc<ScrapeConfig>,
    /// What of the entry decides about its scrapes.
    settings: Arc<ScrapeConfig>,
    /// The entry's `metric_relabel_configs`.
    pub metric_relabel: Arc<[RelabelConfig]>,
    /// How it is spoken to.
    pub access: Arc<http_client::Client>,
    over_limit: Arc<AtomicUsize>,
}

/// A target that was found and is not scraped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Dropped {
    /// The job's name in the configuration.
    pub job: String,
    /// Its labels before relabeling, sorted by name.
    #[serde(serialize_with = "as_map")]
    pub discovered_labels: Vec<(String, String)>,
    /// Why.
    pub reason: Reason,
    /// The rule, or what is wrong.
    pub detail: String,
}

/// Why a target that was found is not scraped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Reason {
    /// A rule of `relabel_configs` dropped it.
    Relabeled,
    /// Another one of its job has the same URL and labels.
    Duplicate,
    /// Its labels make no target.
    Invalid,
}

/// What a job's groups come to.
#[derive(Debug, Default)]
pub struct Found {
    /// What is scraped.
    pub targets: Vec<Target>,
    /// The first of those that are not scraped.
    pub dropped: Vec<Dropped>,
    /// All that relabeling dropped.
    pub dropped_count: usize,
    /// What is wrong with those that are missing.
    pub errors: Vec<Error>,
}

/// A target that cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address is not `host` or `host:port`.
    #[error("cannot scrape '{address}' of job '{job}': a target is written host:port, without scheme or path")]
    Address {
        /// The job's name.
        job: String,
        /// As written.
        address: String,
    },
    /// Address, path and parameters do not make a URL.
    #[error("cannot scrape '{address}' of job '{job}': '{url}' is not a URL")]
    Url {
        /// The job's name.
        job: String,
        /// As written.
        address: String,
        /// What it would have been.
        url: String,
        /// Why it is none.
        #[source]
        source: http::uri::InvalidUri,
    },
    /// `__scheme__` is neither `http` nor `https`.
    #[error("cannot scrape '{address}' of job '{job}': scheme '{scheme}' is not http or https")]
    Scheme {
        /// The job's name.
        job: String,
        /// As written.
        address: String,
        /// The label's value.
        scheme: String,
    },
    /// `__scrape_interval__` or `__scrape_timeout__` is no usable duration.
    #[error("cannot scrape '{address}' of job '{job}': label '{label}' is '{value}': {reason}")]
    Schedule {
        /// The job's name.
        job: String,
        /// As written.
        address: String,
        /// Which of the two.
        label: &'static str,
        /// Its value.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The same job, URL and labels are found twice.
    #[error("cannot scrape '{url}' of job '{job}' twice with the same labels")]
    Twice {
        /// The job's name.
        job: String,
        /// Its URL.
        url: Uri,
    },
}

impl Target {
    /// Why it may not be scraped: its job has more targets than `target_limit` allows, and then none of them is.
    pub fn over_limit(&self) -> Option<String> {
        let (count, limit) = (self.over_limit.load(Ordering::Relaxed), self.scrape.target_limit);
        (count > 0).then(|| format!("the job has {count} targets, over the limit of {limit} (`target_limit`): none of them is scraped"))
    }
}

impl Found {
    /// Keeps an error; its text.
    fn wrong(&mut self, error: Error) -> String {
        let text = crate::scrape::with_causes(&error);
        self.errors.push(error);
        text
    }
}

impl Job {
    /// An entry with the defaults it leaves to `global`.
    pub fn new(global: &Global, scrape: ScrapeConfig) -> Self {
        let interval = Millis(scrape.scrape_interval.unwrap_or(global.scrape_interval).0.max(1));
        let timeout = scrape.scrape_timeout.unwrap_or(global.scrape_timeout).0.max(1).min(interval.0);
        let metric_relabel = scrape.metric_relabel_configs.as_slice().into();
        let access = Arc::new(http_client::Client::new(scrape.http.clone()));
        let settings = Arc::new(settings(&scrape));
        let over_limit = Arc::default();
        Self { scrape: Arc::new(scrape), metric_relabel, settings, access, over_limit, interval, timeout: Millis(timeout) }
    }

    /// This entry in place of an earlier one: what both agree in is shared, connections included.
    pub(crate) fn replacing(self, earlier: &Self) -> Self {
        // Targets that go on look there.
        let job = Self { over_limit: earlier.over_limit.clone(), ..self };
        if job.settings != earlier.settings {
            return job;
        }
        let (metric_relabel, settings, access) = (&earlier.metric_relabel, &earlier.settings, &earlier.access);
        Self { metric_relabel: metric_relabel.clone(), settings: settings.clone(), access: access.clone(), ..job }
    }

    /// Whether nothing about the job is different.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        (&self.scrape, self.interval, self.timeout) == (&other.scrape, other.interval, other.timeout)
    }

    /// The job's name.
    pub fn name(&self) -> &str {
        &self.scrape.job_name
    }

    /// What is to be scraped of the job's groups.
    pub fn find<'g>(&self, groups: impl IntoIterator<Item = &'g TargetGroup>) -> Found {
        let (mut found, mut seen) = (Found::default(), HashSet::new());
        let dropped_max = match usize::try_from(self.scrape.keep_dropped_targets) {
            Ok(0) | Err(_) => DROPPED_MAX,
            Ok(limit) => limit,
        };
        for group in groups {
            for target in &group.targets {
                let labels = self.discovered(target, &group.labels);
                let discovered_labels = labels.sorted();
                let (reason, detail) = match self.target(labels) {
                    Ok(Ok(target)) if seen.insert(target.id) => {
                        found.targets.push(target);
                        continue;
                    }
                    Ok(Ok(target)) => {
                        let error = Error::Twice { job: self.name().to_owned(), url: target.url };
                        (Reason::Duplicate, found.wrong(error))
                    }
                    Ok(Err(rule)) => {
                        found.dropped_count += 1;
                        let action = self.scrape.relabel_configs.get(rule).map_or("", |rule| rule.action.as_str());
                        (Reason::Relabeled, format!("relabel_configs[{rule}]: {action}"))
                    }
                    Err(error) => (Reason::Invalid, found.wrong(error)),
                };
                if found.dropped.len() < dropped_max {
                    found.dropped.push(Dropped { job: self.name().to_owned(), discovered_labels, reason, detail });
                }
            }
        }
        let (count, limit) = (found.targets.len(), self.scrape.target_limit);
        self.over_limit.store(if limit > 0 && count as u64 > limit { count } else { 0 }, Ordering::Relaxed);
        found
    }

    /// Labels as relabeling finds them: the target's, the group's, the configuration's, in this order of precedence.
    fn discovered(&self, target: &BTreeMap<String, String>, group: &BTreeMap<String, String>) -> Labels {
        let scheme = match self.scrape.scheme {
            Scheme::Http => "http",
            Scheme::Https => "https",
        };
        let fixed = [
            ("__metrics_path__", self.scrape.metrics_path.clone()),
            ("__scheme__", scheme.to_owned()),
            ("__scrape_interval__", self.interval.to_string()),
            ("__scrape_timeout__", self.timeout.to_string()),
            ("job", self.name().to_owned()),
        ];
        let params = self.scrape.params.iter().filter_map(|(name, values)| Some((format!("__param_{name}"), values.first()?.clone())));
        let defaults: BTreeMap<String, String> = fixed.into_iter().map(|(name, value)| (name.to_owned(), value)).chain(params).collect();
        let found: BTreeMap<&String, &String> = group.iter().chain(target).collect();
        let empty = |name: &String| found.get(name).is_none_or(|value| value.is_empty());
        let defaults = defaults.iter().filter(|(name, _)| empty(name));
        Labels::new(
            found.iter().map(|(name, value)| ((*name).clone(), (*value).clone())).chain(defaults.map(|(n, v)| (n.clone(), v.clone()))),
        )
    }

    /// The target that labels make, or the number of the rule that dropped them.
    fn target(&self, mut labels: Labels) -> Result<Result<Target, usize>, Error> {
        let discovered_labels = labels.sorted();
        let written = labels.get("__address__").to_owned();
        let rules = &self.scrape.relabel_configs;
        if let Some(rule) = rules.iter().position(|rule| !relabel::apply(std::slice::from_ref(rule), &mut labels)) {
            return Ok(Err(rule));
        }
        let (job, address) = (self.name().to_owned(), labels.get("__address__").to_owned());
        if address.is_empty() || address.contains(|c: char| matches!(c, '/' | '?' | '#' | '@') || c.is_whitespace()) {
            return Err(Error::Address { job, address });
        }
        let scheme = labels.get("__scheme__");
        if !matches!(scheme, "http" | "https") {
            return Err(Error::Scheme { job, address, scheme: scheme.to_owned() });
        }
        let interval = self.duration(&written, &labels, "__scrape_interval__")?;
        let timeout = self.duration(&written, &labels, "__scrape_timeout__")?;
        if timeout > interval {
            let reason = format!("longer than the interval {interval}");
            return Err(Error::Schedule { job, address: written, label: "__scrape_timeout__", value: timeout.to_string(), reason });
        }
        let path = labels.get("__metrics_path__");
        let slash = if path.starts_with('/') { "" } else { "/" };
        let url = format!("{scheme}://{address}{slash}{}{}", escaped(path), query(&self.scrape, &labels, path.contains('?')));
        let uri = url.parse().map_err(|source| Error::Url { job, address: address.clone(), url: url.clone(), source })?;
        if labels.get("instance").is_empty() {
            labels.set("instance", address);
        }
        labels.retain(|name| !name.starts_with("__"));
        let labels = labels.sorted();
        let id = identity(self.name(), &url, &labels);
        // What relays select by: whatever rules make of the labels, the target is where it is.
        let namespace =
            discovered_labels.iter().find(|(name, _)| name == NAMESPACE).map(|(_, value)| ("namespace".to_owned(), value.clone()));
        let attributes = [("job".to_owned(), self.name().to_owned())].into_iter().chain(namespace).collect();
        let origin = Origin { target: id, labels: labels.clone(), attributes };
        Ok(Ok(Target {
            id,
            url: uri,
            labels,
            discovered_labels,
            origin: Arc::new(origin),
            interval: interval.duration(),
            timeout: timeout.duration(),
            scrape: self.scrape.clone(),
            settings: self.settings.clone(),
            metric_relabel: self.metric_relabel.clone(),
            access: self.access.clone(),
            over_limit: self.over_limit.clone(),
        }))
    }

    fn duration(&self, address: &str, labels: &Labels, label: &'static str) -> Result<Millis, Error> {
        let value = labels.get(label);
        let reason = match value.parse::<Millis>() {
            Ok(Millis(0)) => "0 is no duration here".to_owned(),
            Ok(duration) => return Ok(duration),
            Err(error) => error.to_string(),
        };
        Err(Error::Schedule { job: self.name().to_owned(), address: address.to_owned(), label, value: value.to_owned(), reason })
    }
}

impl Target {
    /// Whether a target of the same identity can be scraped on as this one is: same schedule, same settings.
    pub(crate) fn goes_on_as(&self, other: &Self) -> bool {
        self.is_read_like(other) && (self.interval, self.timeout) == (other.interval, other.timeout)
    }

    /// Whether the pages of a target mean the same as this one's: same identity, same settings.
    pub(crate) fn is_read_like(&self, other: &Self) -> bool {
        self.id == other.id && self.settings == other.settings
    }
}

/// What of an entry decides about the scrapes of a target that is found: all but what finds it, and what is in its URL, labels and schedule
/// anyway.
///
/// *Limits*: what is not named here counts as deciding, so a new field of the entry restarts a target rather than being ignored.
fn settings(scrape: &ScrapeConfig) -> ScrapeConfig {
    ScrapeConfig {
        scrape_interval: None,
        scrape_timeout: None,
        metrics_path: String::new(),
        scheme: Scheme::default(),
        params: BTreeMap::new(),
        keep_dropped_targets: 0,
        static_configs: Vec::new(),
        file_sd_configs: Vec::new(),
        http_sd_configs: Vec::new(),
        dns_sd_configs: Vec::new(),
        kubernetes_sd_configs: Vec::new(),
        kubernetes_annotations: None,
        relabel_configs: Vec::new(),
        ..scrape.clone()
    }
}

/// Parameters in order of name; a label `__param_<name>` replaces the first value of that name.
fn query(scrape: &ScrapeConfig, labels: &Labels, appended: bool) -> String {
    let mut params = scrape.params.clone();
    for (name, value) in labels.iter().filter_map(|(name, value)| Some((name.strip_prefix("__param_")?, value))) {
        let values = params.entry(name.to_owned()).or_default();
        match values.first_mut() {
            Some(first) => value.clone_into(first),
            None => values.push(value.to_owned()),
        }
    }
    let mut query = String::new();
    for (name, value) in params.iter().flat_map(|(name, values)| values.iter().map(move |value| (name, value))) {
        query.push(if query.is_empty() && !appended { '?' } else { '&' });
        percent_encode(name, &mut query);
        query.push('=');
        percent_encode(value, &mut query);
    }
    query
}

/// A part of a query, as a form writes it: a space is `+`.
fn percent_encode(text: &str, out: &mut String) {
    for byte in text.bytes() {
        match byte {
            b' ' => out.push('+'),
            _ if is_unreserved(byte) => out.push(char::from(byte)),
            _ => push_escape(byte, out),
        }
    }
}

/// A path with what no URL takes escaped; `%` and `?` stay, as they are how a person writes escapes and a query.
fn escaped(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for byte in path.bytes() {
        match byte {
            _ if is_unreserved(byte) || b"$&+,/:;=@%?".contains(&byte) => out.push(char::from(byte)),
            _ => push_escape(byte, &mut out),
        }
    }
    out
}

const fn is_unreserved(byte: u8) -> bool {
    matches!(byte, b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~')
}

fn push_escape(byte: u8, out: &mut String) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    out.extend(['%', char::from(HEX[usize::from(byte >> 4)]), char::from(HEX[usize::from(byte & 15)])]);
}

/// Labels as a map in JSON.
pub(crate) fn as_map<S: serde::Serializer>(labels: &[(String, String)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(labels.iter().map(|(name, value)| (name, value)))
}

fn identity(job: &str, url: &str, labels: &[(String, String)]) -> TargetId {
    let mut hash = Xxh3::new();
    let mut text = |text: &str| {
        hash.update(&(text.len() as u64).to_le_bytes());
        hash.update(text.as_bytes());
    };
    text(job);
    text(url);
    for (name, value) in labels {
        text(name);
        text(value);
    }
    TargetId(hash.digest())
}

#[cfg(test)]
mod tests;
