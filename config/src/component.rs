//! A filter, encoder or sink as written in the configuration, and what a kind of one must say of itself.
//!
//! *In*: a bare name or a one-key map. *Out*: a [`Component`] with untyped options, typed by [`options`] where the kind is known.
//! *Bound*: the size of the configuration file. *When full*: does not apply.

use std::fmt;

use serde::de::{self, DeserializeOwned, Deserializer, MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;

use crate::{OutOfOrder, Relay, words};

/// A one-key map (`drop: '{…}'`), or a bare name (`ndjson`): the kind's name and its options, not yet typed.
///
/// Deserialized from `"name"` (options `null`) or `{name: options}`; anything else is an error. Options may hold secrets: `Debug` shows none
/// of them, and what is shown to anybody goes through [`crate::show`].
#[derive(Clone, PartialEq)]
pub struct Component {
    /// The kind's name.
    pub name: String,
    /// Its options as written; `null` where only the name was.
    pub options: Value,
}

/// What every registry row says of itself: read by the configuration check, the schema, the docs and the conformance tests.
#[derive(Clone, Copy)]
pub struct Kind {
    /// The word in the configuration.
    pub name: &'static str,
    /// One line for the reference.
    pub summary: &'static str,
    /// Options as JSON schema.
    pub schema: fn() -> schemars::Schema,
    /// A worked example: the options as YAML.
    pub example: &'static str,
    /// Checks options without side effects; the error names the field path inside the options.
    pub check: fn(&Value) -> Result<(), OptionsError>,
}

/// Tells the durable consumers of the feed that a sink writes; none: it writes no feed.
pub type Consumers = fn(&Component) -> Option<Vec<String>>;

/// What of a sink's options must be named by one relay only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owned {
    /// The option that names it.
    pub option: &'static str,
    /// What it names, in the one form in which two can be compared.
    pub thing: String,
    /// Why there is only one, and what to do.
    pub why: &'static str,
}

/// The kinds that exist, handed in by the caller: the configuration knows their names, not their code.
#[derive(Clone, Default)]
pub struct Kinds {
    /// Filters.
    pub filters: Vec<Kind>,
    /// Encoders.
    pub encoders: Vec<Kind>,
    /// Sinks.
    pub sinks: Vec<Kind>,
    /// Why a sink (first) refuses an encoder (second), and what to do; none: every sink takes every encoder.
    pub refuses: Option<fn(&str, &str) -> Option<String>>,
    /// What a relay's sink and encoder make of samples that come after newer ones; none: nothing is to be said of it.
    pub out_of_order: Option<fn(&Relay) -> Option<OutOfOrder>>,
    /// What a filter that is written with a short word means; none: nothing is to be said of it.
    pub says: Option<fn(&Component) -> Option<String>>,
    /// The durable consumers of the feed that a sink writes; none: it writes no feed.
    pub consumers: Option<Consumers>,
    /// What a sink alone must have; none: nothing.
    pub owns: Option<fn(&Component) -> Option<Owned>>,
}

/// Options that a kind refuses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct OptionsError {
    /// Path inside the options: `"min"`, `"headers.X"`, `"brokers[0]"`; empty: the options themselves.
    pub path: String,
    /// What is wrong and how it is mended.
    pub message: String,
}

impl OptionsError {
    /// An error at a path inside the options.
    pub fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { path: path.into(), message: message.into() }
    }
}

/// Types options: `null` reads as an empty map, and errors are worded as everywhere in the configuration.
///
/// *Errors*: the first that serde meets, with its path; the configuration check asks again without that field for the next.
pub fn options<T: DeserializeOwned>(value: &Value) -> Result<T, OptionsError> {
    let empty = Value::Object(serde_json::Map::new());
    let given = if value.is_null() { &empty } else { value };
    serde_path_to_error::deserialize(given).map_err(|error| {
        let path = error.path().to_string();
        let path = if path == "." { String::new() } else { path };
        let wording = words::reword(&error.inner().to_string());
        let text = if value.is_null() { wording.text.replace(", found a map", ", found nothing") } else { wording.text };
        let message = words::discreet(path.split(['.', '[']).filter(|key| !key.ends_with(']')), text);
        OptionsError { path, message }
    })
}

impl fmt::Debug for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kind").field("name", &self.name).finish_non_exhaustive()
    }
}

impl fmt::Debug for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Component").field("name", &self.name).finish_non_exhaustive()
    }
}

impl<'de> Deserialize<'de> for Component {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Written;

        impl<'de> Visitor<'de> for Written {
            type Value = Component;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a name, or a map with one key")
            }

            fn visit_str<E: de::Error>(self, name: &str) -> Result<Component, E> {
                Ok(Component { name: name.to_owned(), options: Value::Null })
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Component, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry::<String, Value>()? {
                    entries.push(entry);
                }
                let mut entries = entries.into_iter();
                match (entries.next(), entries.next()) {
                    (Some((name, options)), None) => Ok(Component { name, options }),
                    (Some((first, _)), Some((second, _))) => Err(de::Error::custom(format!(
                        "one key is expected, found '{first}' and '{second}': each needs an entry of its own"
                    ))),
                    (None, _) => Err(de::Error::custom("one key is expected, found none: name a kind")),
                }
            }
        }

        deserializer.deserialize_any(Written)
    }
}

impl Serialize for Component {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.options.is_null() {
            return serializer.serialize_str(&self.name);
        }
        let mut map = serializer.serialize_map(Some(1))?;
        map.serialize_entry(&self.name, &self.options)?;
        map.end()
    }
}

impl schemars::JsonSchema for Component {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Component".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "description": "A kind by name, or a map of one key: the kind and its options.",
            "oneOf": [{ "type": "string" }, { "type": "object", "minProperties": 1, "maxProperties": 1 }]
        })
    }
}
