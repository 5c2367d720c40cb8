//! The checks of `scrape_configs`.
//!
//! *In*: one entry and what it leaves to `global`. *Out*: problems and warnings with places. *Bound*: one pass. *When full*: does not apply.

use std::collections::HashMap;

use super::{Findings, LabelUse, host_port};
use crate::tree::{Step, steps};
use crate::{Global, RelabelConfig, ScrapeConfig};

/// Whether rules of its own may change what a target is.
fn relabeled(scrape: &ScrapeConfig) -> bool {
    !scrape.relabel_configs.is_empty()
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
        self.credentials(i, scrape);
        for (j, group) in scrape.static_configs.iter().enumerate() {
            let mut seen = HashMap::new();
            for (k, target) in group.targets.iter().enumerate() {
                let here = steps!["scrape_configs", i, "static_configs", j, "targets", k];
                // Relabeling may make an address of anything, as it does for probes.
                if let Err(message) = host_port(target, 9100).or_else(|m| if relabeled(scrape) { Ok(()) } else { Err(m) }) {
                    self.problem(&here, message);
                } else if seen.insert(target, k).is_some() {
                    self.warning(&here, format!("target '{target}' is listed twice"));
                }
            }
            let labels = if relabeled(scrape) { LabelUse::Relabeled } else { LabelUse::Target };
            self.labels(&steps!["scrape_configs", i, "static_configs", j, "labels"], &group.labels, labels);
        }
        self.rules(i, "relabel_configs", &scrape.relabel_configs);
        self.rules(i, "metric_relabel_configs", &scrape.metric_relabel_configs);
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

    fn credentials(&mut self, i: usize, scrape: &ScrapeConfig) {
        let at = |keys: [&str; 2]| steps!["scrape_configs", i, keys[0], keys[1]];
        if let Some(basic) = &scrape.basic_auth {
            if basic.username.is_empty() {
                self.problem(&at(["basic_auth", "username"]), "a user name is missing");
            }
            if basic.password.is_some() && basic.password_file.is_some() {
                self.problem(&at(["basic_auth", "password_file"]), "both password and password_file are set: keep one of them");
            }
        }
        if let Some(authorization) = &scrape.authorization {
            if authorization.kind.eq_ignore_ascii_case("basic") {
                self.problem(&at(["authorization", "type"]), "type 'Basic' is what basic_auth is for: use that");
            }
            match (&authorization.credentials, &authorization.credentials_file) {
                (Some(_), Some(_)) => {
                    self.problem(
                        &at(["authorization", "credentials_file"]),
                        "both credentials and credentials_file are set: keep one of them",
                    );
                }
                (None, None) => self.problem(&steps!["scrape_configs", i, "authorization"], "credentials or credentials_file is missing"),
                _ => {}
            }
            if scrape.basic_auth.is_some() {
                self.problem(&steps!["scrape_configs", i, "authorization"], "both basic_auth and authorization are set: keep one of them");
            }
        }
    }
}
