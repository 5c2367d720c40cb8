//! `tests`: what relays must do with samples, run by `strata check`.
//!
//! *In*: exposition text and an expectation. *Out*: typed tests. *Bound*: the size of the file. *When full*: does not apply.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

/// One test: what becomes of samples on their way through a relay. `strata check` runs it without any network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Test {
    /// What a target answers, as Prometheus text: one line or many. A list of texts is one scrape after the other, and what is expected is
    /// expected of the last: increases need a value before.
    pub input: Pages,
    /// The relay.
    pub relay: String,
    /// The job that scraped it; its `metric_relabel_configs` apply. Default: the relay's first, or the first there is.
    #[serde(default)]
    pub job: Option<String>,
    /// The target's address, which becomes its label `instance`.
    #[serde(default = "target")]
    pub target: String,
    /// More labels of the target.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// What must come out.
    pub expect: Expect,
}

/// Pages of a test.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(transparent)]
pub struct Pages(#[schemars(with = "OneOrMany")] pub Vec<String>);

/// How pages are written.
#[derive(Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected a text, or a list of texts")]
enum OneOrMany {
    /// One page.
    One(String),
    /// One after the other.
    Many(Vec<String>),
}

/// What must come out of a relay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Expect {
    /// No sample is sent.
    Dropped,
    /// Every sample is sent, whatever its value became.
    Kept,
    /// These samples are sent, as Prometheus text. Labels of the target need not be written.
    Samples(String),
    /// This text is sent, as the relay's encoder writes it. Slots of tests end at 2026-01-01T00:00:00Z.
    Payload(String),
}

fn target() -> String {
    "localhost:9100".to_owned()
}

impl<'de> Deserialize<'de> for Pages {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(match OneOrMany::deserialize(deserializer)? {
            OneOrMany::One(page) => Self(vec![page]),
            OneOrMany::Many(pages) => Self(pages),
        })
    }
}
