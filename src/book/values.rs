//! The chart's `values.schema.json`: the sections of the configuration that stand under `config` know the keys and kinds that the types know.
//!
//! `UPDATE_GOLDEN=1` writes them anew. What a value must be beyond its kind the init container's `strata check` says, and a text may name a variable of the
//! environment there, so patterns are left out. Jobs and relays are checked by that, too: their kinds are a registry's.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::root;
use crate::check;

const FILE: &str = "charts/strata/values.schema.json";
const SECTIONS: [&str; 5] = ["global", "kubernetes", "buffer", "feeds", "server"];
/// What says nothing about a key or its kind, and what must be there, some of which the chart itself writes.
const SAID: [&str; 6] = ["description", "default", "format", "pattern", "examples", "required"];

/// A schema without what is said for people, and the definitions that it names.
fn stripped(schema: &Value, named: &mut BTreeSet<String>) -> Value {
    match schema {
        Value::Object(map) => {
            // It has no siblings in the version of the language that Helm reads.
            if let Some(name) = map.get("$ref").and_then(Value::as_str) {
                named.insert(name.trim_start_matches("#/$defs/").to_owned());
                return json!({ "$ref": name });
            }
            // Under `properties` are names, not words of the language.
            let inside = |key: &str, value: &Value, named: &mut BTreeSet<String>| match (key, value) {
                ("properties", Value::Object(all)) => all.iter().map(|(name, one)| (name.clone(), stripped(one, named))).collect(),
                _ => stripped(value, named),
            };
            map.iter()
                .filter(|(key, _)| !SAID.contains(&key.as_str()))
                .map(|(key, value)| (key.clone(), inside(key, value, named)))
                .collect()
        }
        Value::Array(all) => all.iter().map(|one| stripped(one, named)).collect(),
        other => other.clone(),
    }
}

/// The chart's schema with the sections and definitions of the configuration's. Definitions of the chart's own begin with a small letter.
fn with_sections(mut chart: Value, configuration: &Value) -> Value {
    let mut named = BTreeSet::new();
    for section in SECTIONS {
        let schema = stripped(&configuration["properties"][section], &mut named);
        chart["properties"]["config"]["properties"][section]["allOf"] = json!([schema]);
    }
    let definitions = chart["$defs"].as_object_mut().expect("definitions");
    definitions.retain(|name, _| !name.starts_with(|first: char| first.is_ascii_uppercase()));
    let mut done = BTreeSet::new();
    while let Some(name) = named.difference(&done).next().cloned() {
        let schema = stripped(&configuration["$defs"][&name], &mut named);
        definitions.insert(name.clone(), schema);
        done.insert(name);
    }
    chart
}

#[test]
fn the_charts_schema_knows_the_sections_of_the_configuration() {
    let path = root().join(FILE);
    let text = std::fs::read_to_string(&path).expect("the chart's schema");
    let schema = with_sections(serde_json::from_str(&text).expect("JSON"), &json!(config::schema(&check::kinds())));
    let expect = format!("{schema:#}\n");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &expect).expect("the folder can be written");
    }
    assert!(std::fs::read_to_string(&path).is_ok_and(|found| found == expect), "{FILE} is old: run `make docs`");
}
