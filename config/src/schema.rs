//! The configuration as JSON Schema, with the options of every kind that exists.
//!
//! *In*: the types, the registries. *Out*: one schema (draft 2020-12), and the secrets and paths that a tree has by it. *Bound*: the size of the
//! types. *When full*: does not apply.

use serde_json::{Map as Object, Value, json};

use crate::Config;
use crate::component::{Kind, Kinds};
use crate::tree::{Content, Node, Step};

/// How deep references are followed without going down in the tree: a schema that refers to itself ends.
const REFERENCES_MAX: usize = 16;
/// The format of a secret.
pub(crate) const SECRET: &str = "password";

/// The JSON Schema of a configuration file.
///
/// *Shape*: draft 2020-12. A number or a truth value is taken where text is wanted, as the reader does it; `default` is what holds where
/// nothing is written. What a schema cannot say (names that must be unique, values that must fit each other) `strata check` says.
pub fn schema(kinds: &Kinds) -> Value {
    let mut root = exact(kinds);
    relax(&mut root);
    root
}

/// As [`schema`], with text as text only: what the reference is written from.
pub(crate) fn exact(kinds: &Kinds) -> Value {
    let mut root = schemars::schema_for!(Config).to_value();
    root["title"] = json!("Strata");
    let mut defs = root.get_mut("$defs").and_then(Value::as_object_mut).map(std::mem::take).unwrap_or_default();
    defs.remove("Component");
    let mut own = Object::new();
    for (name, what, list) in registries(kinds) {
        let variants: Vec<_> = list.iter().map(|kind| variant(what, kind, &defs, &mut own)).collect();
        let bare: Vec<_> = list.iter().filter(|kind| (kind.check)(&Value::Null).is_ok()).map(|kind| kind.name).collect();
        let bare = (!bare.is_empty()).then(|| json!({ "description": "One that needs no options, by name.", "enum": bare }));
        let choices: Vec<_> = bare.into_iter().chain(variants).collect();
        own.insert(
            name.to_owned(),
            json!({ "description": format!("A {what}: one of the kinds there are, with its options."), "oneOf": choices }),
        );
    }
    defs.append(&mut own);
    root["$defs"] = Value::Object(defs);
    if let Some(relay) = root.pointer_mut("/$defs/Relay/properties") {
        relay["filters"]["items"] = json!({ "$ref": "#/$defs/Filter" });
        relay["encode"]["anyOf"] = json!([{ "$ref": "#/$defs/Encoder" }, { "type": "null" }]);
        relay["sink"]["$ref"] = json!("#/$defs/Sink");
    }
    root
}

/// The registries: name of the definition, what one is called, its kinds.
pub(crate) fn registries(kinds: &Kinds) -> [(&'static str, &'static str, &[Kind]); 3] {
    [("Filter", "filter", &kinds.filters), ("Encoder", "encoder", &kinds.encoders), ("Sink", "sink", &kinds.sinks)]
}

/// `{name: options}` of one kind; its definitions go to `own`, but for those that the configuration shares.
fn variant(what: &str, kind: &Kind, shared: &Object<String, Value>, own: &mut Object<String, Value>) -> Value {
    let mut options = (kind.schema)().to_value();
    let Some(map) = options.as_object_mut() else { return options };
    map.remove("$schema");
    // Of options that are a value, the value's name.
    if map.contains_key("properties") {
        map.remove("title");
    }
    let defs = map.remove("$defs").and_then(|defs| if let Value::Object(defs) = defs { Some(defs) } else { None }).unwrap_or_default();
    let rename = |name: &str| match shared.get(name) == defs.get(name) {
        true => name.to_owned(),
        false => format!("{what}.{}.{name}", kind.name),
    };
    for (name, def) in &defs {
        if shared.get(name) != Some(def) {
            let mut def = def.clone();
            rename_references(&mut def, &rename);
            own.insert(rename(name), def);
        }
    }
    rename_references(&mut options, &rename);
    if (kind.check)(&Value::Null).is_ok() {
        options = json!({ "anyOf": [options, { "type": "null" }] });
    }
    json!({
        "description": kind.summary,
        "type": "object",
        "properties": { kind.name: options },
        "required": [kind.name],
        "additionalProperties": false,
    })
}

fn rename_references(schema: &mut Value, rename: &impl Fn(&str) -> String) {
    match schema {
        Value::Object(map) => {
            for (key, value) in map {
                match value {
                    Value::String(text) if key == "$ref" => {
                        *text = format!("#/$defs/{}", rename(text.trim_start_matches("#/$defs/")));
                    }
                    value => rename_references(value, rename),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| rename_references(item, rename)),
        _ => {}
    }
}

/// `9100` is fine where text is wanted: so says the schema too.
fn relax(schema: &mut Value) {
    if let Value::Object(map) = schema {
        let is_free = !["enum", "const", "pattern"].iter().any(|key| map.contains_key(*key));
        match map.get_mut("type") {
            Some(kind) if kind == "string" && is_free => *kind = json!(["string", "number", "boolean"]),
            Some(Value::Array(kinds)) if kinds.contains(&json!("string")) && is_free => {
                for more in ["number", "boolean"] {
                    if !kinds.contains(&json!(more)) {
                        kinds.push(json!(more));
                    }
                }
            }
            _ => {}
        }
    }
    match schema {
        Value::Object(map) => map.iter_mut().filter(|(key, _)| *key != "default").for_each(|(_, value)| relax(value)),
        Value::Array(items) => items.iter_mut().for_each(relax),
        _ => {}
    }
}

/// The definition that a schema refers to, or itself.
pub(crate) fn resolved<'s>(root: &'s Value, mut schema: &'s Value) -> &'s Value {
    for _ in 0..REFERENCES_MAX {
        let Some(name) = schema.get("$ref").and_then(Value::as_str) else { break };
        let Some(def) = name.strip_prefix("#/$defs/").and_then(|name| root.get("$defs")?.get(name)) else { break };
        schema = def;
    }
    schema
}

/// Where a tree has the values of a format.
pub(crate) fn formatted(root: &Value, tree: &Node, format: &str) -> Vec<Vec<Step>> {
    let mut found = Found { root, format, paths: Vec::new() };
    found.visit(root, tree, &mut Vec::new(), 0);
    found.paths
}

struct Found<'s> {
    root: &'s Value,
    format: &'s str,
    paths: Vec<Vec<Step>>,
}

impl Found<'_> {
    fn visit(&mut self, schema: &Value, node: &Node, path: &mut Vec<Step>, depth: usize) {
        if depth > REFERENCES_MAX {
            return;
        }
        let schema = resolved(self.root, schema);
        for choice in ["anyOf", "oneOf", "allOf"].iter().filter_map(|key| schema.get(*key)?.as_array()).flatten() {
            self.visit(choice, node, path, depth + 1);
        }
        match &node.content {
            Content::Plain { .. } | Content::Text(_) => {
                if schema.get("format").is_some_and(|format| format == self.format) && self.paths.last() != Some(path) {
                    self.paths.push(path.clone());
                }
            }
            Content::List(items) => {
                let Some(schema) = schema.get("items") else { return };
                for (index, item) in items.iter().enumerate() {
                    path.push(Step::Index(index));
                    self.visit(schema, item, path, 0);
                    path.pop();
                }
            }
            Content::Map(map) => {
                let properties = schema.get("properties");
                for entry in &map.entries {
                    let known = properties.and_then(|properties| properties.get(&entry.key));
                    let Some(schema) = known.or_else(|| schema.get("additionalProperties").filter(|more| more.is_object())) else {
                        continue;
                    };
                    path.push(Step::Key(entry.key.clone()));
                    self.visit(schema, &entry.node, path, 0);
                    path.pop();
                }
            }
        }
    }
}
