//! The checks of `scrape_configs`.
//!
//! *In*: one entry and what it leaves to `global`. *Out*: problems and warnings with places. *Bound*: one pass. *When full*: does not apply.

use std::collections::HashMap;

use super::{Findings, LabelUse, host_port};
use crate::tree::{self, Content, Step, steps};
use crate::words::shown_url;
use crate::{
    Config, DnsType, EscapingScheme, Global, HttpClientConfig, Millis, RelabelConfig, Scheme, ScrapeConfig, ScrapeProtocol,
    ValidationScheme,
};

/// Smallest refresh interval of a discovery. Smaller: a server is asked all the time.
const REFRESH_MIN: Millis = Millis(100);
/// Whether rules of its own may change what a target is.
fn relabeled(scrape: &ScrapeConfig) -> bool {
    !scrape.relabel_configs.is_empty()
}

/// Whether it is a host alone, which is asked at the port of its scheme: a name, or an address, that of IPv6 in brackets.
fn is_host(text: &str) -> bool {
    let inside = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let host = inside.unwrap_or(text);
    let is_odd = |c: char| matches!(c, '/' | '?' | '#' | '@' | '[' | ']') || c.is_whitespace() || (inside.is_none() && c == ':');
    !host.is_empty() && !host.contains(is_odd)
}

impl Findings<'_> {
    pub(super) fn scrape(&mut self, global: &Global, i: usize, scrape: &ScrapeConfig) {
        let at = |key: &str| steps!["scrape_configs", i, key];
        if scrape.job_name.is_empty() {
            self.problem(&at("job_name"), "a job needs a name");
        }
        let interval = scrape.scrape_interval.unwrap_or(global.scrape_interval);
        if scrape.scrape_interval.is_some() {
            self.interval(&at("scrape_interval"), interval);
        }
        if let Some(timeout) = scrape.scrape_timeout {
            self.timeout(&at("scrape_timeout"), timeout, interval);
        }
        if !scrape.metrics_path.starts_with('/') {
            let path = &scrape.metrics_path;
            self.problem(&at("metrics_path"), format!("'{path}' is no path: write '/{path}'"));
        }
        self.http(&steps!["scrape_configs", i], &scrape.http);
        self.discovery(i, scrape);
        self.kubernetes(i, scrape);
        if let Some(protocols) = &scrape.scrape_protocols {
            self.protocols(&at("scrape_protocols"), protocols);
        }
        if scrape.metric_name_validation_scheme == Some(ValidationScheme::Legacy)
            && scrape.metric_name_escaping_scheme == Some(EscapingScheme::AllowUtf8)
        {
            let message = "'allow-utf-8' asks for names that the validation scheme 'legacy' refuses: write underscores, dots or values";
            self.problem(&at("metric_name_escaping_scheme"), message);
        }
        for (j, group) in scrape.static_configs.iter().enumerate() {
            let mut seen = HashMap::new();
            for (k, target) in group.targets.iter().enumerate() {
                let here = steps!["scrape_configs", i, "static_configs", j, "targets", k];
                // Relabeling may make an address of anything, as it does for probes.
                let is_whole = relabeled(scrape) || is_host(target);
                if let Err(message) = host_port(target, 9100).or_else(|m| if is_whole { Ok(()) } else { Err(m) }) {
                    self.problem(&here, message);
                } else if seen.insert(target, k).is_some() {
                    self.warning(&here, format!("target '{target}' is listed twice"));
                } else if scrape.scheme == Scheme::Http && !relabeled(scrape) && is_host(target) {
                    let message = format!("'{target}' has no port, so 80 is asked: write it like '{target}:9100' if another is meant");
                    self.warning(&here, message);
                }
            }
            let labels = if relabeled(scrape) { LabelUse::Relabeled } else { LabelUse::Target };
            self.labels(&steps!["scrape_configs", i, "static_configs", j, "labels"], &group.labels, labels);
        }
        self.rules(i, "relabel_configs", &scrape.relabel_configs);
        self.rules(i, "metric_relabel_configs", &scrape.metric_relabel_configs);
    }

    /// The same page under two jobs is stored and sent twice.
    pub(super) fn scraped_twice(&mut self, config: &Config) {
        let mut seen: HashMap<_, (usize, usize, usize)> = HashMap::new();
        for (i, scrape) in config.scrape_configs.iter().enumerate().filter(|(_, scrape)| !relabeled(scrape)) {
            let targets = scrape.static_configs.iter().enumerate();
            for (j, k, target) in targets.flat_map(|(j, group)| group.targets.iter().enumerate().map(move |(k, target)| (j, k, target))) {
                let page = (target, scrape.scheme == Scheme::Https, &scrape.metrics_path, &scrape.params);
                let (first, _, _) = *seen.entry(page).or_insert((i, j, k));
                if first != i {
                    let (job, here) =
                        (&config.scrape_configs[first].job_name, steps!["scrape_configs", i, "static_configs", j, "targets", k]);
                    self.warning(&here, format!("target '{target}' is scraped by job '{job}' too: every sample is kept and sent twice"));
                }
            }
        }
    }

    /// What `global` says of formats.
    pub(super) fn global_formats(&mut self, global: &Global) {
        if let Some(protocols) = &global.scrape_protocols {
            self.protocols(&steps!["global", "scrape_protocols"], protocols);
        }
    }

    fn protocols(&mut self, at: &[Step], protocols: &[ScrapeProtocol]) {
        if protocols.is_empty() {
            self.problem(at, "no format to ask for: list one, or leave the key out for the default");
        }
        if let Some(j) = (1..protocols.len()).find(|j| protocols[..*j].contains(&protocols[*j])) {
            let path = [at, &steps![j]].concat();
            self.problem(&path, "this format is listed before");
        }
    }

    fn rules(&mut self, i: usize, list: &str, rules: &[RelabelConfig]) {
        for (j, rule) in rules.iter().enumerate() {
            if let Some((field, message)) = rule.mistake() {
                let here = steps!["scrape_configs", i, list, j];
                let mut path = here.to_vec();
                path.extend((!field.is_empty()).then(|| Step::from(field)));
                self.problem(&path, message);
            }
        }
    }

    /// What is written of an HTTP server, at `path`.
    pub(super) fn http(&mut self, path: &[Step], http: &HttpClientConfig) {
        for mistake in http.mistakes() {
            self.problem(&[path.to_vec(), tree::parse(&mistake.path)].concat(), mistake.message);
        }
    }

    fn discovery(&mut self, i: usize, scrape: &ScrapeConfig) {
        let at = |list: &str, j: usize| steps!["scrape_configs", i, list, j].to_vec();
        for (j, sd) in scrape.file_sd_configs.iter().enumerate() {
            let here = at("file_sd_configs", j);
            self.refresh(&here, sd.refresh_interval);
            if sd.files.is_empty() {
                self.problem(&here, "files is empty: name one, like 'targets/*.json'");
            }
            for (k, file) in sd.files.iter().enumerate() {
                let text = file.to_string_lossy();
                let folder = text.rsplit_once('/').map_or("", |(folder, _)| folder);
                let fits = [".json", ".yml", ".yaml"].iter().any(|end| text.to_ascii_lowercase().ends_with(end));
                if !fits || folder.contains('*') || text.matches('*').count() > 1 {
                    let path = [here.clone(), steps!["files", k].to_vec()].concat();
                    self.problem(&path, format!("'{text}' must end in .json, .yml or .yaml, with one '*' at most, behind the last '/'"));
                }
            }
        }
        for (j, sd) in scrape.http_sd_configs.iter().enumerate() {
            let here = at("http_sd_configs", j);
            self.refresh(&here, sd.refresh_interval);
            let host = sd.url.strip_prefix("http://").or_else(|| sd.url.strip_prefix("https://")).map(|rest| rest.split('/').next());
            if host.flatten().is_none_or(str::is_empty) || sd.url.contains(char::is_whitespace) {
                let path = [here.clone(), steps!["url"].to_vec()].concat();
                self.problem(&path, format!("'{}' is no URL: it begins with http:// or https:// and names a host", shown_url(&sd.url)));
            } else if shown_url(&sd.url) != sd.url {
                let path = [here.clone(), steps!["url"].to_vec()].concat();
                self.problem(&path, "credentials in a URL end up in logs: use basic_auth");
            }
            self.http(&here, &sd.http);
        }
        for (j, sd) in scrape.dns_sd_configs.iter().enumerate() {
            let here = at("dns_sd_configs", j);
            self.refresh(&here, sd.refresh_interval);
            if sd.names.is_empty() {
                self.problem(&here, "names is empty");
            }
            let told =
                matches!(self.tree.at(&here).map(|node| &node.content), Some(Content::Map(map)) if map.removed.iter().any(|k| k == "type"));
            if told {
                // What the type is, nobody knows.
            } else if sd.port == 0 && sd.kind != DnsType::Srv {
                self.problem(&here, "port is missing: only an SRV record has one");
            }
        }
    }

    fn refresh(&mut self, path: &[Step], interval: Millis) {
        if interval < REFRESH_MIN {
            let path = [path.to_vec(), steps!["refresh_interval"].to_vec()].concat();
            self.problem(&path, format!("{interval} is too short: {REFRESH_MIN} or more"));
        }
    }
}
