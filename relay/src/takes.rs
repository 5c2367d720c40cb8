//! Whose samples a relay takes: by the job that scraped them, and by the namespace in which their target is.
//!
//! *In*: a relay's `from` and `namespaces`; where samples come from. *Out*: yes or no, the same wherever it is asked. *Bound*: the size of the
//! configuration. *When full*: does not apply.

use std::collections::HashSet;

use config::Relay;
use sample::Origin;
use sample::sheet::Named;

/// Whose samples a relay takes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Takes {
    /// Empty: all.
    jobs: HashSet<String>,
    /// Empty: all, and targets of no namespace too.
    namespaces: HashSet<String>,
}

impl Takes {
    /// Those of a relay.
    pub fn of(relay: &Relay) -> Self {
        Self { jobs: relay.from.iter().cloned().collect(), namespaces: relay.namespaces.iter().cloned().collect() }
    }

    /// The same, of these jobs only; none: of all.
    #[must_use]
    pub fn of_jobs(self, jobs: impl IntoIterator<Item = String>) -> Self {
        Self { jobs: jobs.into_iter().collect(), ..self }
    }

    /// Whether it takes everything.
    pub fn is_all(&self) -> bool {
        self.jobs.is_empty() && self.namespaces.is_empty()
    }

    /// Whether it takes samples of an origin.
    pub fn origin(&self, origin: &Origin) -> bool {
        self.is_all() || self.takes(origin.attribute("job"), origin.attribute("namespace"))
    }

    /// The same by the name of a target; none: nobody knows whose they are.
    pub fn named(&self, named: Option<&Named>) -> bool {
        self.is_all() || named.is_some_and(|named| self.takes(Some(&named.job), Some(&named.namespace)))
    }

    /// Whether too little is known of a target to say whether it is taken: a sheet names no namespaces.
    pub fn is_unsure(&self, named: Option<&Named>) -> bool {
        match named {
            None => !self.is_all(),
            Some(named) => !self.namespaces.is_empty() && named.namespace.is_empty(),
        }
    }

    fn takes(&self, job: Option<&str>, namespace: Option<&str>) -> bool {
        let is_in = |all: &HashSet<String>, one: Option<&str>| all.is_empty() || one.is_some_and(|one| all.contains(one));
        is_in(&self.jobs, job) && is_in(&self.namespaces, namespace)
    }
}

#[cfg(test)]
mod tests {
    use sample::TargetId;
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(relay: serde_json::Value, expect: [bool; 4]) {
        let mut all = json!({ "name": "one", "sink": "stdout" });
        all.as_object_mut().expect("a map").extend(relay.as_object().expect("a map").clone());
        let takes = Takes::of(&serde_json::from_value(all).expect("a relay"));
        let origins = [("a", Some("x")), ("a", Some("y")), ("b", Some("x")), ("a", None)].map(|(job, namespace)| {
            let attribute = |name: &str, value: &str| (name.to_owned(), value.to_owned());
            let attributes = [attribute("job", job)].into_iter().chain(namespace.map(|namespace| attribute("namespace", namespace)));
            Origin { target: TargetId(1), labels: Vec::new(), attributes: attributes.collect() }
        });
        assert_eq!(origins.each_ref().map(|origin| takes.origin(origin)), expect, "{relay}");
        assert_eq!(origins.each_ref().map(|origin| takes.named(Some(&Named::of(origin)))), expect, "{relay}");
    }

    #[test]
    fn a_relay_takes_what_is_of_its_jobs_and_of_its_namespaces() {
        check(json!({}), [true; 4]);
        check(json!({ "from": ["a"] }), [true, true, false, true]);
        check(json!({ "namespaces": ["x"] }), [true, false, true, false]);
        check(json!({ "from": ["a"], "namespaces": ["x", "z"] }), [true, false, false, false]);
    }

    #[test]
    fn what_is_not_known_is_said() {
        let of = |namespaces: &[&str]| Takes { namespaces: namespaces.iter().map(|n| (*n).to_owned()).collect(), ..Takes::default() };
        assert!(of(&["x"]).is_unsure(None) && of(&["x"]).is_unsure(Some(&Named::default())));
        assert!(!of(&[]).is_unsure(None) && !of(&["x"]).is_unsure(Some(&Named { namespace: "y".into(), ..Named::default() })));
    }
}
