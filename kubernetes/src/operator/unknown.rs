//! Fields of an object that nothing here reads: each is told, so that nobody waits for what it says.
//!
//! *In*: what a struct of the object leaves over. *Out*: a note per field. *Bound*: one object. *When full*: does not apply.

use serde::Deserialize;
use serde_json::{Map, Value};

/// The fields that a struct does not know: its last field, flattened, so that those before it are the one list of what is known.
#[derive(Debug, Default, Deserialize)]
#[serde(transparent)]
pub(super) struct Unknown(Map<String, Value>);

impl Unknown {
    /// Those that say something: empty ones some clients send.
    pub(super) fn keys(&self) -> impl Iterator<Item = &str> {
        let is_empty = |value: &Value| match value {
            Value::Null => true,
            Value::String(text) => text.is_empty(),
            Value::Array(items) => items.is_empty(),
            Value::Object(map) => map.is_empty(),
            Value::Bool(_) | Value::Number(_) => false,
        };
        self.0.iter().filter(move |(_, value)| !is_empty(value)).map(|(key, _)| key.as_str())
    }

    /// A note for each of them; `at`: the field whose fields they are.
    pub(super) fn notes(&self, at: &str) -> impl Iterator<Item = String> {
        self.keys().map(move |key| no_effect(&format!("{at}.{key}")))
    }
}

/// The note of one field.
pub(super) fn no_effect(field: &str) -> String {
    format!("{field} has no effect: Strata does not know it; take it out, or write what it is for into Strata's configuration")
}
