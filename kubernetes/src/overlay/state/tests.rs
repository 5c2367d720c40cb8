use serde_json::{Value, json};

use super::*;

fn state() -> State {
    let options =
        Options { kubernetes: config::Kubernetes::default(), kinds: kinds(), variables: BTreeMap::new(), data_dir: PathBuf::new() };
    State::new(&options, "strata".to_owned(), PathBuf::from("/made"))
}

/// A sink that takes a number of lanes, and a token.
#[derive(serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
struct Post {
    #[serde(default)]
    lanes: u8,
    #[serde(default)]
    token: Option<config::Secret>,
}

fn kinds() -> Kinds {
    let check = |options: &Value| {
        let Post { lanes, token } = config::options(options)?;
        match lanes > 9 && token.is_none() {
            true => Err(config::OptionsError::new("lanes", "too many")),
            false => Ok(()),
        }
    };
    let sink = config::Kind { name: "post", summary: "Posts.", schema: || schemars::schema_for!(Post), example: "{}", check };
    Kinds { sinks: vec![sink], ..Kinds::default() }
}

fn relay(name: &str, sink: Value) -> Object {
    let id = Id { kind: Kind::Relay, namespace: "a".to_owned(), name: name.to_owned() };
    let spec = json!({ "sink": { "post": sink } });
    Object { id, uid: "u".to_owned(), generation: 1, version: "1".to_owned(), spec, status: Value::Null }
}

fn scraped(namespace: &str) -> Object {
    let id = Id { kind: Kind::ScrapeConfig, namespace: namespace.to_owned(), name: "list".to_owned() };
    let spec = json!({ "httpSDConfigs": [{ "url": "http://list" }] });
    Object { id, uid: "u".to_owned(), generation: 1, version: "1".to_owned(), spec, status: Value::Null }
}

fn names(layer: &Layer) -> Vec<(String, Value)> {
    let relays = layer.parts.iter().flat_map(|(_, part)| &part.relays);
    relays.map(|relay| (relay.name.clone(), relay.sink.options.clone())).collect()
}

#[test]
fn one_that_is_wrong_stops_no_other_and_what_it_was_goes_on() {
    let (mut state, file) = (state(), Config::default());
    state.changed(relay("good", json!({ "lanes": 1 })));
    state.changed(relay("bad", json!({ "lines": 2 })));
    assert_eq!(names(&state.evaluate(&file)), [("a_good".to_owned(), json!({ "lanes": 1 }))]);
    let verdicts = state.said().verdicts;
    let of = |name: &str| &verdicts[&relay(name, Value::Null).id];
    assert!(of("good").is_ready && !of("bad").is_ready);
    assert_eq!(of("bad").message, "spec.sink.post.lines: unknown key 'lines', did you mean 'lanes'?");
    state.changed(relay("good", json!({ "lanes": 10 })));
    assert_eq!(names(&state.evaluate(&file)), [("a_good".to_owned(), json!({ "lanes": 1 }))]);
    let good = &state.said().verdicts[&relay("good", Value::Null).id];
    assert_eq!((good.is_ready, good.message.as_str()), (false, "spec.sink.post.lanes: too many; what it said before goes on"));
    state.gone(&relay("good", Value::Null).id);
    assert_eq!(names(&state.evaluate(&file)), []);
}

#[test]
fn what_an_object_finds_is_its_namespaces_outside_of_stratas_own() {
    let (mut state, file) = (state(), Config::default());
    state.changed(scraped("a"));
    state.changed(scraped("strata"));
    let layer = state.evaluate(&file);
    let namespaces: Vec<_> = layer.parts.iter().flat_map(|(_, part)| &part.jobs).map(|job| job.namespace.as_deref()).collect();
    assert_eq!(namespaces, [Some("a"), None]);
}

#[test]
fn a_secret_is_waited_for_and_read_again() {
    let (mut state, file) = (state(), Config::default());
    let object = relay("one", json!({ "token": { "secret": { "name": "s", "key": "k" } } }));
    state.changed(object.clone());
    assert_eq!(names(&state.evaluate(&file)), []);
    assert_eq!(state.references(), BTreeSet::from([("a".to_owned(), Store::Secret, "s".to_owned())]));
    assert_eq!(state.said().verdicts[&object.id].reason, "Waiting");
    for (contents, expect, reason) in [
        (Some(BTreeMap::from([("k".to_owned(), "hush".to_owned())])), "hush", "Running"),
        (Some(BTreeMap::from([("k".to_owned(), "hush2".to_owned())])), "hush2", "Running"),
        (None, "hush2", "Invalid"),
    ] {
        state.contents("a".to_owned(), Store::Secret, "s".to_owned(), contents);
        assert_eq!(names(&state.evaluate(&file)), [("a_one".to_owned(), json!({ "token": expect }))]);
        let verdict = &state.said().verdicts[&object.id];
        assert!(verdict.reason == reason && !verdict.message.contains("hush"), "{verdict:?}");
    }
}

#[test]
fn what_is_remembered_holds_until_the_api_server_says_otherwise() {
    let (mut first, file) = (state(), Config::default());
    let object = relay("one", json!({ "token": { "secret": { "name": "s", "key": "k" } } }));
    first.changed(object);
    first.contents("a".to_owned(), Store::Secret, "s".to_owned(), Some(BTreeMap::from([("k".to_owned(), "hush".to_owned())])));
    let layer = first.evaluate(&file);
    let bytes = serde_json::to_vec(&first.remembered()).expect("JSON");
    let mut second = state();
    second.remember(serde_json::from_slice(&bytes).expect("remembered"));
    assert_eq!(second.evaluate(&file), layer);
    second.listed(Kind::Collector, None, Vec::new());
    second.listed(Kind::Relay, Some("b"), Vec::new());
    assert_eq!(second.evaluate(&file), layer, "of other kinds and namespaces");
    second.listed(Kind::Relay, None, Vec::new());
    assert_eq!(second.evaluate(&file), Layer::default());
}

#[test]
fn a_name_of_the_file_is_the_files() {
    let (mut state, mut file) = (state(), Config::default());
    let object = relay("one", json!({}));
    state.changed(object.clone());
    let layer = state.evaluate(&file);
    assert_eq!(names(&layer).len(), 1);
    file.relays = layer.parts[0].1.relays.clone();
    assert_eq!(state.evaluate(&file), Layer::default());
    let verdict = &state.said().verdicts[&object.id];
    assert!(verdict.reason == "NameTaken" && verdict.message.starts_with("there is a relay 'a_one' already: "), "{verdict:?}");
    file.relays.clear();
    assert_eq!(names(&state.evaluate(&file)).len(), 1);
}
