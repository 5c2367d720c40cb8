//! The layers of a configuration: defaults ← file ← environment ← flags.
//!
//! *In*: the file's tree and overrides by dotted key. *Out*: one tree in which every value still knows who wrote it. *Bound*: the file's
//! and the environment's. *When full*: does not apply.

use std::collections::BTreeMap;

use figment::providers::Serialized;
use figment::value::{Dict, Value};
use figment::{Figment, Metadata, Profile, Provider};

use crate::Config;
use crate::problem::{Place, Problem};
use crate::tree::{Content, Entry, Map, Node};

/// What overrides the file, weakest first, and the variables that secrets may refer to.
#[derive(Clone, Default)]
pub struct Overrides {
    list: Vec<Override>,
    /// The whole environment, for `${NAME}` in the place of a secret.
    pub(crate) variables: BTreeMap<String, String>,
}

/// Values may be secret.
impl std::fmt::Debug for Overrides {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.list.iter().map(|layer| &layer.source)).finish()
    }
}

#[derive(Clone)]
struct Override {
    /// `STRATA_BUFFER__MAX_BYTES` or `--set buffer.max_bytes`.
    source: String,
    /// `buffer.max_bytes`.
    key: String,
    value: String,
}

impl Overrides {
    /// Takes `STRATA_<SECTION>__<KEY>` variables as values; all others are there for secrets to refer to.
    pub fn environment(vars: impl IntoIterator<Item = (String, String)>) -> Self {
        let variables: BTreeMap<String, String> = vars.into_iter().collect();
        let layer = |(source, value): (&String, &String)| {
            let key = source.strip_prefix("STRATA_").filter(|key| key.contains("__"))?.to_lowercase().replace("__", ".");
            Some(Override { key, source: source.clone(), value: value.clone() })
        };
        Self { list: variables.iter().filter_map(layer).collect(), variables }
    }

    /// No layer, only variables for secrets to refer to.
    pub(crate) const fn variables(variables: BTreeMap<String, String>) -> Self {
        Self { list: Vec::new(), variables }
    }

    /// Adds a flag: `flag` as the user wrote it (for messages), a dotted key, and its value.
    #[must_use]
    pub fn flag(mut self, flag: impl Into<String>, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.list.push(Override { source: flag.into(), key: key.into(), value: value.into() });
        self
    }
}

impl Provider for Override {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.source.clone())
    }

    fn data(&self) -> Result<figment::value::Map<Profile, Dict>, figment::Error> {
        // figment reads what looks like a number, a boolean, a list or a map as one; parsing never fails.
        let value: Value = self.value.parse().unwrap_or_else(|never| match never {});
        let nested = figment::util::nest(&self.key, value).into_dict().unwrap_or_default();
        Ok(Profile::Default.collect(nested))
    }
}

/// The file as one layer.
struct File(Value);

/// Name of the file's layer.
const FILE: &str = "file";

impl Provider for File {
    fn metadata(&self) -> Metadata {
        Metadata::named(FILE)
    }

    fn data(&self) -> Result<figment::value::Map<Profile, Dict>, figment::Error> {
        Ok(Profile::Default.collect(self.0.clone().into_dict().unwrap_or_default()))
    }
}

/// Lays the overrides over the file, and the file over the defaults.
pub(crate) fn merge(file: &Node, overrides: &Overrides) -> Result<Node, Problem> {
    let failed = |error: figment::Error| Problem { place: file.place.clone(), field: String::new(), message: error.to_string() };
    let written = Value::serialize(file.to_json()).map_err(failed)?;
    let mut figment = Figment::from(Serialized::defaults(Config::default())).merge(File(written));
    for layer in &overrides.list {
        figment = figment.merge(layer.clone());
    }
    let merged: Value = figment.find_value("").map_err(failed)?;
    Ok(restore(&figment, &merged, Some(file)))
}

/// Gives merged values their places back.
fn restore(figment: &Figment, value: &Value, written: Option<&Node>) -> Node {
    let source = figment.get_metadata(value.tag()).map_or_else(|| FILE.to_owned(), |m| m.name.to_string());
    let place = match (source.as_str(), written) {
        (FILE, Some(node)) => node.place.clone(),
        (name, _) if name.starts_with("STRATA_") || name.starts_with('-') => Place::Override(source.clone()),
        _ => Place::Default,
    };
    match (value, written) {
        (Value::Dict(_, dict), _) => {
            let file_map = written.and_then(|n| if let Content::Map(map) = &n.content { Some(map) } else { None });
            let place = written.map_or(place, |n| n.place.clone());
            Node::new(place, Content::Map(restore_map(figment, dict, file_map)))
        }
        (_, Some(node)) if source == FILE => node.clone(),
        _ => json(&serde_json::to_value(value).unwrap_or_default(), &place),
    }
}

/// Keys in the file's order, then those of the other layers.
fn restore_map(figment: &Figment, dict: &Dict, written: Option<&Map>) -> Map {
    let mut map = Map::default();
    let file_keys = written.into_iter().flat_map(|m| &m.entries).filter(|e| dict.contains_key(&e.key)).map(|e| &e.key);
    let other_keys = dict.keys().filter(|key| written.is_none_or(|m| m.get(key).is_none()));
    for key in file_keys.chain(other_keys) {
        let entry = written.and_then(|m| m.get(key));
        let node = restore(figment, &dict[key], entry.map(|e| &e.node));
        let key_place = entry.map_or_else(|| node.place.clone(), |e| e.key_place.clone());
        map.entries.push(Entry { key: key.clone(), key_place, node });
    }
    map
}

/// A value that was not in the file, all at one place.
pub(crate) fn json(value: &serde_json::Value, place: &Place) -> Node {
    let content = match value {
        serde_json::Value::String(text) => Content::Text(text.clone()),
        serde_json::Value::Array(items) => Content::List(items.iter().map(|i| json(i, place)).collect()),
        serde_json::Value::Object(entries) => {
            let entry = |(key, value): (&String, _)| Entry { key: key.clone(), key_place: place.clone(), node: json(value, place) };
            Content::Map(Map { entries: entries.iter().map(entry).collect(), removed: Vec::new() })
        }
        scalar => Content::Plain { value: scalar.clone(), text: scalar.to_string() },
    };
    Node::new(place.clone(), content)
}
