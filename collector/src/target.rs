//! Targets: what to scrape, under which labels, and the identity that survives restarts.
//!
//! *In*: a [`Job`] and the [`TargetGroup`]s found for it. *Out*: [`Target`]s with their URL, labels and schedule, and what relabeling
//! dropped. *Bound*: as many as are found; [`DROPPED_MAX`] dropped ones are remembered per job. *When full*: dropped ones are only
//! counted. A target that cannot be built is an [`Error`] of its own; the others go on.

mod histograms;
mod url;

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use config::relabel::{self, Labels};
use config::{Global, Kubernetes, LeftOut, Millis, RelabelConfig, Scheme, ScrapeConfig};
use http::Uri;
use sample::{Origin, TargetId};
use serde::Serialize;
use xxhash_rust::xxh3::Xxh3;

use crate::discovery::TargetGroup;
use histograms::{Histograms, NoBoolean};
use url::{escaped, query};

pub use config::Reason;

/// Dropped targets remembered per job where `keep_dropped_targets` sets nothing. Larger: discovery of everything, kept in part, takes
/// memory; smaller: a person who looks for a missing target may not see it.
pub const DROPPED_MAX: usize = 10_000;
/// The label whose value is the attribute `namespace` of a target's origin, whatever rules make of it, unless the job is of a namespace itself.
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
    cluster: Arc<Kubernetes>,
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
    pub discovered_labels: Arc<[(String, String)]>,
    /// What a frame says of its source: the labels above, and the job's name and the namespace in Kubernetes as attributes. External labels are the relays' business.
    pub origin: Arc<Origin>,
    /// How often.
    pub interval: Duration,
    /// How long a scrape may take, all in all; never above the interval.
    pub timeout: Duration,
    /// The entry it comes from.
    pub scrape: Arc<ScrapeConfig>,
    /// What is done with its histograms, whatever the entry says.
    pub(crate) histograms: Histograms,
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

/// What a job's groups come to.
#[derive(Debug, Default)]
pub struct Found {
    /// What is scraped.
    pub targets: Vec<Arc<Target>>,
    /// The first of those that are not scraped.
    pub dropped: Vec<Dropped>,
    /// All that relabeling dropped.
    pub dropped_count: usize,
    /// What is wrong with those that are missing.
    pub errors: Vec<Arc<Error>>,
}

/// What one group comes to, by itself.
#[derive(Debug)]
pub(crate) struct Resolved {
    /// The group.
    pub(crate) group: Arc<TargetGroup>,
    targets: Vec<Arc<Target>>,
    /// Those of its targets that are not scraped: which of them, and why.
    missing: Vec<(usize, Missing)>,
}

/// Why one of a group's targets is not scraped.
#[derive(Debug)]
enum Missing {
    /// This rule dropped it.
    Rule(usize),
    Wrong(Arc<Error>),
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
    /// A label that says when or how it is scraped has no usable value.
    #[error("cannot scrape '{address}' of job '{job}': label '{label}' is '{value}': {reason}")]
    Label {
        /// The job's name.
        job: String,
        /// As written.
        address: String,
        /// Which one.
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

impl Job {
    /// An entry with the defaults it leaves to `global`.
    pub fn new(global: &Global, scrape: ScrapeConfig) -> Self {
        let interval = Millis(scrape.scrape_interval.unwrap_or(global.scrape_interval).0.max(1));
        let timeout = scrape.scrape_timeout.unwrap_or(global.scrape_timeout).0.max(1).min(interval.0);
        let metric_relabel = scrape.metric_relabel_configs.as_slice().into();
        let access = Arc::new(http_client::Client::new(scrape.http.clone()));
        let settings = Arc::new(settings(&scrape));
        let over_limit = Arc::default();
        let cluster = Arc::default();
        Self { scrape: Arc::new(scrape), metric_relabel, settings, access, over_limit, interval, timeout: Millis(timeout), cluster }
    }

    /// The same entry, in the cluster of this section.
    pub fn in_cluster(self, cluster: &Arc<Kubernetes>) -> Self {
        Self { cluster: Arc::clone(cluster), ..self }
    }

    /// The cluster that its discoveries look at unless they name another one.
    pub(crate) fn cluster(&self) -> &Kubernetes {
        &self.cluster
    }

    /// How long a scrape may take where a target's labels do not say.
    pub(crate) const fn timeout(&self) -> Millis {
        self.timeout
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
        (&self.scrape, self.interval, self.timeout, &self.cluster) == (&other.scrape, other.interval, other.timeout, &other.cluster)
    }

    /// Whether its targets are those of this process' own node: no other member sees them.
    pub(crate) fn is_of_node(&self) -> bool {
        self.scrape.kubernetes_annotations.as_ref().is_some_and(|annotations| annotations.node.is_some())
    }

    /// The job's name.
    pub fn name(&self) -> &str {
        &self.scrape.job_name
    }

    /// What is to be scraped of the job's groups.
    pub fn find<'g>(&self, groups: impl IntoIterator<Item = &'g Arc<TargetGroup>>) -> Found {
        let resolved: Vec<Resolved> = groups.into_iter().map(|group| self.resolve(group)).collect();
        let mut found = self.join(&resolved);
        let duplicates = std::mem::take(&mut found.dropped);
        found.dropped = self.dropped(&resolved, &duplicates);
        found
    }

    /// What is to be scraped of one group, whatever other groups there are.
    pub(crate) fn resolve(&self, group: &Arc<TargetGroup>) -> Resolved {
        let (mut targets, mut missing) = (Vec::new(), Vec::new());
        for (index, target) in group.targets.iter().enumerate() {
            match self.target(self.discovered(target, &group.labels)) {
                Ok(Ok(target)) => targets.push(Arc::new(target)),
                Ok(Err(rule)) => missing.push((index, Missing::Rule(rule))),
                Err(error) => missing.push((index, Missing::Wrong(Arc::new(error)))),
            }
        }
        Resolved { group: Arc::clone(group), targets, missing }
    }

    /// What is to be scraped of all groups together. Of `dropped` only the duplicates are there.
    pub(crate) fn join(&self, resolved: &[Resolved]) -> Found {
        let (mut found, mut seen) = (Found::default(), HashSet::new());
        for Resolved { targets, missing, .. } in resolved {
            for target in targets {
                if seen.insert(target.id) {
                    found.targets.push(Arc::clone(target));
                    continue;
                }
                let error = Error::Twice { job: self.name().to_owned(), url: target.url.clone() };
                if found.dropped.len() < self.dropped_max() {
                    found.dropped.push(self.left(target.discovered_labels.to_vec(), Reason::Duplicate, error.to_string()));
                }
                found.errors.push(Arc::new(error));
            }
            for (_, missing) in missing {
                match missing {
                    Missing::Rule(_) => found.dropped_count += 1,
                    Missing::Wrong(error) => found.errors.push(Arc::clone(error)),
                }
            }
        }
        let (count, limit) = (found.targets.len(), self.scrape.target_limit);
        self.over_limit.store(if limit > 0 && count as u64 > limit { count } else { 0 }, Ordering::Relaxed);
        found
    }

    /// The first of what is not scraped.
    pub(crate) fn dropped(&self, resolved: &[Resolved], duplicates: &[Dropped]) -> Vec<Dropped> {
        let of = |group: &Resolved| {
            let labels = |target: &BTreeMap<String, String>| self.discovered(target, &group.group.labels).sorted();
            let missing = group.missing.iter().filter_map(|(index, missing)| {
                let labels = labels(group.group.targets.get(*index)?);
                Some(match missing {
                    Missing::Rule(rule) => {
                        let action = self.scrape.relabel_configs.get(*rule).map_or("", |rule| rule.action.as_str());
                        self.left(labels, Reason::Relabeled, format!("relabel_configs[{rule}]: {action}"))
                    }
                    Missing::Wrong(error) => self.left(labels, Reason::Invalid, crate::scrape::with_causes(&**error)),
                })
            });
            let left_out = group.group.left_out.iter();
            let left_out = left_out.map(|LeftOut { labels: own, reason, detail }| self.left(labels(own), *reason, detail.clone()));
            missing.chain(left_out).collect::<Vec<_>>()
        };
        resolved.iter().flat_map(of).chain(duplicates.iter().cloned()).take(self.dropped_max()).collect()
    }

    fn left(&self, discovered_labels: Vec<(String, String)>, reason: Reason, detail: String) -> Dropped {
        Dropped { job: self.name().to_owned(), discovered_labels, reason, detail }
    }

    fn dropped_max(&self) -> usize {
        match usize::try_from(self.scrape.keep_dropped_targets) {
            Ok(0) | Err(_) => DROPPED_MAX,
            Ok(limit) => limit,
        }
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
        let fixed = fixed.into_iter().chain(Histograms::of(&self.scrape).labels());
        let defaults: BTreeMap<String, String> = fixed.map(|(name, value)| (name.to_owned(), value)).chain(params).collect();
        let found: BTreeMap<&String, &String> = group.iter().chain(target).collect();
        let empty = |name: &String| found.get(name).is_none_or(|value| value.is_empty());
        let defaults = defaults.iter().filter(|(name, _)| empty(name));
        Labels::new(
            found.iter().map(|(name, value)| ((*name).clone(), (*value).clone())).chain(defaults.map(|(n, v)| (n.clone(), v.clone()))),
        )
    }

    /// The target that labels make, or the number of the rule that dropped them.
    fn target(&self, mut labels: Labels) -> Result<Result<Target, usize>, Error> {
        let discovered_labels = labels.sorted().into();
        // A list that a team serves says what it likes: whose a team's targets are is not for it to say.
        let namespace = self.scrape.namespace.clone().unwrap_or_else(|| labels.get(NAMESPACE).to_owned());
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
            return Err(Error::Label { job, address: written, label: "__scrape_timeout__", value: timeout.to_string(), reason });
        }
        let histograms = Histograms::of(&self.scrape).steered(&labels).map_err(|NoBoolean { label, value }| Error::Label {
            job: job.clone(),
            address: written,
            label,
            value,
            reason: "neither true nor false".to_owned(),
        })?;
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
        let namespace = (!namespace.is_empty()).then(|| ("namespace".to_owned(), namespace));
        let attributes = std::iter::once(("job".to_owned(), self.name().to_owned())).chain(namespace).collect();
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
            histograms,
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
        Err(Error::Label { job: self.name().to_owned(), address: address.to_owned(), label, value: value.to_owned(), reason })
    }
}

impl Target {
    /// Whether a target of the same identity can be scraped on as this one is: same schedule, same settings.
    pub(crate) fn goes_on_as(&self, other: &Self) -> bool {
        self.is_read_like(other) && (self.interval, self.timeout) == (other.interval, other.timeout)
    }

    /// Whether the pages of a target mean the same as this one's: same identity, same settings.
    pub(crate) fn is_read_like(&self, other: &Self) -> bool {
        self.id == other.id
            && self.settings == other.settings
            && self.histograms == other.histograms
            && self.origin.attributes == other.origin.attributes
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
