//! Targets: what to scrape, under which labels, and the identity that survives restarts.
//!
//! *In*: `scrape_configs` and `global`. *Out*: [`Target`]s with their URL, labels and schedule. *Bound*: as many as are configured.
//! *When full*: a target that cannot be built is an [`Error`] of its own; the others go on.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use config::{Global, Scheme, ScrapeConfig};
use http::Uri;
use sample::{Origin, TargetId};
use xxhash_rust::xxh3::Xxh3;

/// One thing to scrape.
#[derive(Debug)]
pub struct Target {
    /// Identity: a hash of job, URL and labels.
    pub id: TargetId,
    /// Where it is scraped.
    pub url: Uri,
    /// Its own labels, sorted by name: `job`, `instance` and the static ones. A series' own label of the same name is renamed.
    pub labels: Vec<(String, String)>,
    /// What a frame says of its source: the labels above, and the job's name as an attribute. External labels are the relays' business.
    pub origin: Arc<Origin>,
    /// How often.
    pub interval: Duration,
    /// How long a scrape may take, all in all; never above the interval.
    pub timeout: Duration,
    /// The entry it comes from.
    pub scrape: Arc<ScrapeConfig>,
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
    /// The same job, URL and labels are configured twice.
    #[error("cannot scrape '{url}' of job '{job}' twice with the same labels")]
    Twice {
        /// The job's name.
        job: String,
        /// Its URL.
        url: Uri,
    },
}

/// All static targets, and what is wrong with those that are missing.
pub fn targets(global: &Global, scrape_configs: &[ScrapeConfig]) -> (Vec<Target>, Vec<Error>) {
    let (mut found, mut errors, mut seen) = (Vec::new(), Vec::new(), HashSet::new());
    for scrape in scrape_configs.iter().cloned().map(Arc::new) {
        for group in &scrape.static_configs {
            for address in &group.targets {
                match Target::new(global, &scrape, address, &group.labels) {
                    Ok(target) if seen.insert(target.id) => found.push(target),
                    Ok(target) => errors.push(Error::Twice { job: scrape.job_name.clone(), url: target.url }),
                    Err(error) => errors.push(error),
                }
            }
        }
    }
    (found, errors)
}

impl Target {
    fn new(global: &Global, scrape: &Arc<ScrapeConfig>, address: &str, labels: &BTreeMap<String, String>) -> Result<Self, Error> {
        let (job, meta) = (&scrape.job_name, |name: &str| labels.get(name).filter(|value| !value.is_empty()));
        let address = meta("__address__").map_or(address, String::as_str);
        if address.is_empty() || address.contains(|c: char| matches!(c, '/' | '?' | '#' | '@') || c.is_whitespace()) {
            return Err(Error::Address { job: job.clone(), address: address.to_owned() });
        }
        let scheme = match (meta("__scheme__").map(String::as_str), scrape.scheme) {
            (Some("http"), _) | (None, Scheme::Http) => "http",
            (Some("https"), _) | (None, Scheme::Https) => "https",
            (Some(other), _) => {
                return Err(Error::Scheme { job: job.clone(), address: address.to_owned(), scheme: other.to_owned() });
            }
        };
        let path = meta("__metrics_path__").unwrap_or(&scrape.metrics_path);
        let slash = if path.starts_with('/') { "" } else { "/" };
        let url = format!("{scheme}://{address}{slash}{path}{}", query(scrape, labels, path.contains('?')));
        let uri = url.parse().map_err(|source| Error::Url { job: job.clone(), address: address.to_owned(), url: url.clone(), source })?;
        let labels = own_labels(job, address, labels);
        let id = identity(job, &url, &labels);
        let interval = Duration::from_millis(scrape.scrape_interval.unwrap_or(global.scrape_interval).0.max(1));
        let timeout = Duration::from_millis(scrape.scrape_timeout.unwrap_or(global.scrape_timeout).0.max(1)).min(interval);
        let origin = Arc::new(Origin { target: id, labels: labels.clone(), attributes: vec![("job".to_owned(), job.clone())] });
        Ok(Self { id, url: uri, labels, origin, interval, timeout, scrape: scrape.clone() })
    }
}

/// Parameters in order of name; a label `__param_<name>` replaces the first value of that name.
fn query(scrape: &ScrapeConfig, labels: &BTreeMap<String, String>, appended: bool) -> String {
    let mut params = scrape.params.clone();
    for (name, value) in labels.iter().filter_map(|(name, value)| Some((name.strip_prefix("__param_")?, value))) {
        let values = params.entry(name.to_owned()).or_default();
        match values.first_mut() {
            Some(first) => first.clone_from(value),
            None => values.push(value.clone()),
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

fn percent_encode(text: &str, out: &mut String) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(char::from(byte)),
            _ => out.extend(['%', char::from(HEX[usize::from(byte >> 4)]), char::from(HEX[usize::from(byte & 15)])]),
        }
    }
}

fn own_labels(job: &str, address: &str, labels: &BTreeMap<String, String>) -> Vec<(String, String)> {
    let mut own = BTreeMap::from([("job".to_owned(), job.to_owned()), ("instance".to_owned(), address.to_owned())]);
    own.extend(labels.iter().filter(|(name, _)| !name.starts_with("__")).map(|(name, value)| (name.clone(), value.clone())));
    own.retain(|_, value| !value.is_empty());
    own.into_iter().collect()
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
mod tests {
    use super::*;
    use config::{Millis, StaticConfig};

    fn scrape(targets: &[&str], labels: &[(&str, &str)]) -> ScrapeConfig {
        ScrapeConfig {
            job_name: "node".to_owned(),
            scrape_interval: None,
            scrape_timeout: None,
            metrics_path: "/metrics".to_owned(),
            scheme: Scheme::Http,
            params: BTreeMap::new(),
            honor_labels: false,
            honor_timestamps: true,
            basic_auth: None,
            authorization: None,
            enable_compression: true,
            body_size_limit: config::ByteSize(0),
            sample_limit: 0,
            label_limit: 0,
            label_name_length_limit: 0,
            label_value_length_limit: 0,
            static_configs: vec![StaticConfig {
                targets: targets.iter().map(|t| (*t).to_owned()).collect(),
                labels: labels.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect(),
            }],
        }
    }

    fn global() -> Global {
        Global {
            scrape_interval: Millis(15_000),
            scrape_timeout: Millis(20_000),
            external_labels: BTreeMap::from([("cluster".to_owned(), "eu-1".to_owned()), ("env".to_owned(), "outside".to_owned())]),
        }
    }

    fn pairs(labels: &[(String, String)]) -> Vec<(&str, &str)> {
        labels.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect()
    }

    #[test]
    fn labels_are_set_as_prometheus_sets_them() {
        let (targets, errors) = targets(&global(), &[scrape(&["a:9100"], &[("env", "dev"), ("__meta_x", "y")])]);
        assert!(errors.is_empty());
        assert_eq!(pairs(&targets[0].labels), [("env", "dev"), ("instance", "a:9100"), ("job", "node")]);
        assert_eq!(targets[0].origin.labels, targets[0].labels, "external labels are added on the way out");
        assert_eq!(pairs(&targets[0].origin.attributes), [("job", "node")]);
        assert_eq!(targets[0].timeout, Duration::from_secs(15));
    }

    #[test]
    fn parameters_and_meta_labels_make_the_url() {
        let mut config = scrape(&["a:9100"], &[("__param_target", "b c"), ("__scheme__", "https"), ("__metrics_path__", "probe")]);
        config.params = BTreeMap::from([("module".to_owned(), vec!["x".to_owned(), "y&z".to_owned()])]);
        let (targets, _) = targets(&global(), &[config]);
        assert_eq!(targets[0].url.to_string(), "https://a:9100/probe?module=x&module=y%26z&target=b%20c");
    }

    #[test]
    fn an_identity_depends_on_nothing_but_job_url_and_labels() {
        let id = |config: ScrapeConfig| targets(&global(), &[config]).0[0].id;
        let base = id(scrape(&["a:9100"], &[("env", "dev")]));
        let mut slower = scrape(&["a:9100"], &[("env", "dev")]);
        slower.scrape_interval = Some(Millis(60_000));
        assert_eq!(base, id(slower));
        assert_ne!(base, id(scrape(&["a:9100"], &[("env", "prod")])));
        assert_ne!(base, id(scrape(&["b:9100"], &[("env", "dev")])));
    }

    #[test]
    fn a_bad_target_does_not_stop_the_others() {
        let (targets, errors) = targets(&global(), &[scrape(&["http://a:1/x", "b:2", "b:2", ""], &[])]);
        assert_eq!(targets.len(), 1);
        let texts: Vec<_> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(texts[0], "cannot scrape 'http://a:1/x' of job 'node': a target is written host:port, without scheme or path");
        assert_eq!(texts[1], "cannot scrape 'http://b:2/metrics' of job 'node' twice with the same labels");
        assert_eq!(texts.len(), 3);
    }
}
