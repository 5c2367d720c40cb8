//! A filter, encoder or sink as written in the configuration, and what a kind of one must say of itself.

use serde_json::Value;

/// A one-key map (`drop: '{…}'`), or a bare name (`ndjson`): the kind's name and its options, not yet typed.
///
/// Deserialized from `"name"` (options `null`) or `{name: options}`; anything else is an error.
#[derive(Debug, Clone, PartialEq)]
pub struct Component {
    /// The kind's name.
    pub name: String,
    /// Its options as written; `null` where only the name was.
    pub options: Value,
}

/// What every registry row says of itself: read by the configuration check, the schema, the docs and the conformance tests.
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

/// Options that a kind refuses.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct OptionsError {
    /// Path inside the options: `"min"`, `"headers.X"`; empty: the options themselves.
    pub path: String,
    /// What is wrong and how it is mended.
    pub message: String,
}
