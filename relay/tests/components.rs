//! What every filter, encoder and sink owes: the registries are walked, so a new row is tested without a new test.

use config::{Component, Kind, OptionsError};
use relay::sink::Files;
use serde_json::{Value, json};

type Build = fn(&Component) -> Result<(), OptionsError>;

/// Builds a sink outside of any process.
fn in_no_place(component: &Component) -> relay::sink::Built {
    let (files, feeds) = (Files::default(), bundled_nats::feed::Feeds::default());
    relay::sink::build(component, &relay::sink::Place { files: &files, feeds: &feeds, relay: "r", encoder: "ndjson" })
}

/// Every row of every registry, with its builder.
fn rows() -> Vec<(&'static str, Kind, Build)> {
    let filters = relay::filter::kinds().map(|kind| ("filter", kind, (|c| relay::filter::build(c).map(drop)) as Build));
    let encoders = relay::encode::kinds().map(|kind| ("encoder", kind, (|c| relay::encode::build(c).map(drop)) as Build));
    let sinks = relay::sink::kinds().map(|kind| ("sink", kind, (|c| in_no_place(c).map(drop)) as Build));
    filters.chain(encoders).chain(sinks).collect()
}

fn example(kind: &Kind) -> Value {
    serde_yaml::from_str(kind.example).unwrap_or_else(|error| panic!("the example of {} is YAML: {error}", kind.name))
}

#[test]
fn every_example_builds_and_passes_its_own_check() {
    for (what, kind, build) in rows() {
        let options = example(&kind);
        (kind.check)(&options).unwrap_or_else(|error| panic!("{what} {}: {error}", kind.name));
        build(&Component { name: kind.name.to_owned(), options }).unwrap_or_else(|error| panic!("{what} {}: {error}", kind.name));
    }
}

#[test]
fn an_unknown_option_is_refused_with_its_path() {
    for (what, kind, build) in rows() {
        let Value::Object(mut options) = example(&kind) else { continue };
        options.insert("no_such_option".to_owned(), json!(1));
        let error = build(&Component { name: kind.name.to_owned(), options: Value::Object(options) }).expect_err(kind.name);
        assert_eq!(error.path, "no_such_option", "{what} {}", kind.name);
        assert!(error.message.contains("no_such_option"), "{what} {}: {error}", kind.name);
    }
}

#[test]
fn options_of_the_wrong_shape_are_refused() {
    for (what, kind, _) in rows() {
        // Some take a number or a list by itself.
        let taken = example(&kind);
        let list = if taken.is_array() { json!([true]) } else { json!([1]) };
        for wrong in [json!(7), list, json!(true)].into_iter().filter(|wrong| !(wrong.is_number() && taken.is_number())) {
            assert!((kind.check)(&wrong).is_err(), "{what} {} takes {wrong}", kind.name);
        }
    }
}

#[test]
fn every_row_says_what_it_is() {
    let mut names = std::collections::BTreeSet::new();
    for (what, kind, _) in rows() {
        assert!(names.insert((what, kind.name)), "{what} {} is there twice", kind.name);
        assert!(kind.summary.ends_with('.') && kind.summary.len() > 20, "{what} {}", kind.name);
        let schema = Value::from((kind.schema)());
        let described = schema["properties"].as_object().map_or(0, serde_json::Map::len);
        if let Value::Object(options) = example(&kind) {
            assert!(described >= options.len(), "{what} {}: the schema lacks options of the example", kind.name);
            for name in options.keys() {
                assert!(schema["properties"].get(name).is_some(), "{what} {}: '{name}' is not in the schema", kind.name);
            }
            for (name, property) in schema["properties"].as_object().into_iter().flatten() {
                assert!(property.get("description").is_some(), "{what} {}: '{name}' is not described", kind.name);
            }
        } else {
            let shapes = schema["oneOf"].as_array().cloned().unwrap_or_else(|| vec![schema.clone()]);
            let wanted = if example(&kind).is_array() {
                "array"
            } else if example(&kind).is_number() {
                "number"
            } else {
                "string"
            };
            assert!(shapes.iter().any(|shape| shape["type"] == wanted), "{what} {}: {schema}", kind.name);
        }
    }
}

#[test]
fn a_bare_name_is_enough_where_nothing_is_required() {
    for name in ["ndjson", "json", "json_object", "strata_v1", "prometheus", "influx", "statsd", "dogstatsd"] {
        assert!(relay::encode::build(&Component { name: name.to_owned(), options: Value::Null }).is_ok(), "{name}");
    }
    assert!(in_no_place(&Component { name: "stdout".to_owned(), options: Value::Null }).is_ok());
}
