//! The effective configuration as YAML that loads again.
//!
//! *In*: a loaded configuration. *Out*: YAML, secrets as `<secret>` or as the reference they were written as, each value with its origin
//! if that is wanted. *Bound*: the configuration's. *When full*: does not apply.

use std::fmt::Write as _;

use serde_json::{Map, Value};

use crate::component::Kinds;
use crate::load::Loaded;
use crate::problem::Place;
use crate::schema::{self, resolved};
use crate::secrets::SHOWN;
use crate::tree::{Node, Step};

/// Words in a component's keys whose values are not shown, should a kind not have typed them as secrets.
const SENSITIVE: [&str; 8] = ["password", "secret", "token", "credential", "api_key", "api-key", "authorization", "cookie"];

/// What is shown of a configuration.
#[derive(Debug, Clone, Copy, Default)]
pub struct Show {
    /// Also what nobody wrote.
    pub defaults: bool,
    /// Behind each value, where it was written.
    pub origins: bool,
}

/// Writes a configuration as YAML.
///
/// *Shape*: loads again to the same configuration, but for secrets that stood in it as text. Lists of files are gone, what they said is there.
pub fn show(loaded: &Loaded, kinds: &Kinds, what: Show) -> String {
    let mut value = serde_json::to_value(&loaded.config).unwrap_or_default();
    let schema = schema::exact(kinds);
    for secret in &loaded.places.secrets {
        if let Some(value) = at(&mut value, &secret.path) {
            *value = Value::String(secret.reference.clone().unwrap_or_else(|| SHOWN.to_owned()));
        }
    }
    for key in ["filters", "encode", "sink"] {
        value["relays"].as_array_mut().into_iter().flatten().filter_map(|relay| relay.get_mut(key)).for_each(hide);
    }
    if what.defaults {
        fill(&schema, &schema, &mut value);
        // Feeds are the bundled server's: beside another one they would be a contradiction.
        if value["buffer"]["nats"].is_object()
            && let Value::Object(map) = &mut value
        {
            map.retain(|key, _| {
                key != "feeds" || loaded.places.tree.at(&[Step::from("feeds")]).is_some_and(|node| node.place != Place::Default)
            });
        }
    }
    let mut writer = Writer { tree: &loaded.places.tree, what, out: String::new() };
    if let Value::Object(map) = &value {
        writer.map(map, &mut Vec::new(), false);
    }
    if writer.out.is_empty() { "{}\n".to_owned() } else { writer.out }
}

fn at<'v>(value: &'v mut Value, path: &[Step]) -> Option<&'v mut Value> {
    path.iter().try_fold(value, |value, step| match step {
        Step::Key(key) => value.get_mut(key.as_str()),
        Step::Index(index) => value.get_mut(*index),
    })
}

/// Text under a key that sounds secret, in a component's options; names of files are shown.
fn hide(value: &mut Value) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let lower = key.to_ascii_lowercase();
                let is_sensitive =
                    SENSITIVE.iter().any(|word| lower.contains(word)) && !lower.ends_with("_file") && !lower.ends_with("url");
                match value {
                    Value::String(text) if is_sensitive && !text.starts_with("${") => *text = SHOWN.to_owned(),
                    value => hide(value),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(hide),
        _ => {}
    }
}

/// Puts the defaults of a component's options where nothing was written.
fn fill(root: &Value, schema: &Value, value: &mut Value) {
    let schema = resolved(root, schema);
    for choice in ["anyOf", "oneOf"].iter().filter_map(|key| schema.get(*key)?.as_array()).flatten() {
        let choice = resolved(root, choice);
        // Of the kinds, the one that is named.
        let only = choice.get("required").and_then(|required| required.get(0)?.as_str());
        if let (Value::String(name), Some(only)) = (&*value, only)
            && name == only
        {
            let mut filled = Value::Object(Map::from_iter([(name.clone(), Value::Object(Map::new()))]));
            fill(root, choice, &mut filled);
            if filled[only].as_object().is_some_and(|options| !options.is_empty()) {
                *value = filled;
            }
            return;
        }
        if only.is_none_or(|only| value.get(only).is_some()) {
            fill(root, choice, value);
        }
    }
    match value {
        Value::Object(map) => {
            let Some(properties) = schema.get("properties").and_then(Value::as_object) else {
                if let Some(more) = schema.get("additionalProperties").filter(|more| more.is_object()) {
                    map.values_mut().for_each(|value| fill(root, more, value));
                }
                return;
            };
            for (key, property) in properties {
                if let Some(default) = property.get("default").filter(|default| !default.is_null())
                    && !map.contains_key(key)
                {
                    map.insert(key.clone(), default.clone());
                } else if let Some(value) = map.get_mut(key) {
                    fill(root, property, value);
                }
            }
        }
        Value::Array(items) => {
            if let Some(schema) = schema.get("items") {
                items.iter_mut().for_each(|item| fill(root, schema, item));
            }
        }
        _ => {}
    }
}

struct Writer<'a> {
    tree: &'a Node,
    what: Show,
    out: String,
}

impl Writer<'_> {
    /// Whether anything of it is to be shown.
    fn is_shown(&self, value: &Value, path: &mut Vec<Step>) -> bool {
        if value.is_null() && !is_option(path) {
            return false;
        }
        if self.what.defaults {
            return true;
        }
        self.tree.at(path).is_some_and(|node| node.place != Place::Default)
            || match value {
                Value::Object(map) => map.iter().any(|(key, value)| {
                    path.push(Step::Key(key.clone()));
                    let shown = self.is_shown(value, path);
                    path.pop();
                    shown
                }),
                _ => false,
            }
    }

    /// Entries one per line; the first stands behind a `- ` that is there already.
    fn map(&mut self, map: &Map<String, Value>, path: &mut Vec<Step>, in_item: bool) {
        let mut is_first = in_item;
        let depth = indent(path);
        for (key, value) in map {
            path.push(Step::Key(key.clone()));
            if self.is_shown(value, path) {
                if !std::mem::take(&mut is_first) {
                    self.out.push_str(&" ".repeat(depth));
                }
                self.out.push_str(&scalar(&Value::String(key.clone())));
                self.out.push(':');
                self.value(value, path);
            }
            path.pop();
        }
    }

    /// What stands behind a `:`.
    fn value(&mut self, value: &Value, path: &mut Vec<Step>) {
        match value {
            Value::Object(map) if !map.is_empty() => {
                self.out.push('\n');
                self.map(map, path, false);
            }
            Value::Array(items) if !items.is_empty() => {
                self.out.push('\n');
                for (index, item) in items.iter().enumerate() {
                    path.push(Step::Index(index));
                    self.out.push_str(&" ".repeat(indent(path) - 2));
                    self.out.push('-');
                    match item {
                        Value::Object(map) if !map.is_empty() => {
                            self.out.push(' ');
                            self.map(map, path, true);
                        }
                        item => self.value(item, path),
                    }
                    path.pop();
                }
            }
            leaf => {
                self.out.push(' ');
                self.out.push_str(&scalar(leaf));
                self.origin(path);
                self.out.push('\n');
            }
        }
    }

    fn origin(&mut self, path: &[Step]) {
        if !self.what.origins {
            return;
        }
        let place = self.tree.at(path).map_or(&Place::Default, |node| &node.place);
        let written = match place {
            Place::File { file, line, .. } => write!(self.out, "  # {file}:{line}"),
            other => write!(self.out, "  # {other}"),
        };
        written.expect("a string takes all text");
    }
}

/// Whether a path leads into a component: there nothing is left out.
fn is_option(path: &[Step]) -> bool {
    matches!(path, [Step::Key(relays), Step::Index(_), Step::Key(key), _, ..] if relays == "relays" && matches!(key.as_str(), "filters" | "encode" | "sink"))
}

/// Columns before an entry: two per map or list around it.
fn indent(path: &[Step]) -> usize {
    2 * path.len()
}

/// A scalar, an empty list or an empty map.
fn scalar(value: &Value) -> String {
    let Value::String(text) = value else { return value.to_string() };
    let yaml = serde_yaml::to_string(text).unwrap_or_default();
    let yaml = yaml.trim_end_matches('\n');
    if text.contains('\n') || yaml.contains('\n') { value.to_string() } else { yaml.to_owned() }
}
