use crate::OptionsError;
use crate::component::{Component, Kind};

use super::*;

/// A sink with a secret, a file and a name that it has for itself.
#[derive(serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
struct Post {
    url: String,
    #[serde(default)]
    token: Option<crate::Secret>,
    #[serde(default)]
    #[schemars(with = "Option<FilePath>")]
    ca_file: Option<PathBuf>,
}

fn check_post(options: &Value) -> Result<(), OptionsError> {
    let Post { url, token, ca_file } = crate::options(options)?;
    match url.starts_with("http") || token.is_none() || ca_file.is_none() {
        true => Ok(()),
        false => Err(OptionsError::new("url", "no URL")),
    }
}

fn kinds() -> Kinds {
    let sink = Kind { name: "post", summary: "Posts.", schema: || schemars::schema_for!(Post), example: "{url: x}", check: check_post };
    let owns = |sink: &Component| {
        let thing = sink.options["url"].as_str()?.strip_prefix("own:")?.to_owned();
        Some(Owned { option: "url", thing, why: "only one" })
    };
    Kinds { sinks: vec![sink], owns: Some(owns), ..Kinds::default() }
}

fn secret(key: &str) -> Value {
    json!({ "secret": { "name": "s", "key": key } })
}

fn relay(sink: Value) -> Entries {
    let value = json!({ "name": "a_one", "sink": { "post": sink } });
    Entries { jobs: Vec::new(), relays: vec![Written { field: "spec".to_owned(), value }] }
}

fn checked(entries: &Entries, is_trusted: bool) -> Result<Part, Vec<String>> {
    let variables = BTreeMap::from([("HOME".to_owned(), "of strata".to_owned())]);
    let nothing = BTreeMap::new();
    let ground = Ground {
        file: &Config::default(),
        kinds: &kinds(),
        variables: if is_trusted { &variables } else { &nothing },
        allows_files: is_trusted,
        folder: Path::new("/made"),
    };
    let content = |key: &str, text: &str| (Reference { store: Store::Secret, name: "s".to_owned(), key: key.to_owned() }, text.to_owned());
    let contents = BTreeMap::from([content("a", "hush"), content("b", "${HOME}"), content("c", "$${HOME}")]);
    entries
        .check("Relay a/one", &contents, &ground)
        .map_err(|problems| problems.iter().map(|p| format!("{}: {}", p.field, p.message)).collect())
}

#[test]
fn a_secret_stands_in_the_place_of_a_secret_or_a_file() {
    for (key, text) in [("a", "hush"), ("b", "${HOME}"), ("c", "$${HOME}")] {
        for is_trusted in [false, true] {
            let part = checked(&relay(json!({ "url": "http://x", "token": secret(key) })), is_trusted).expect("a relay");
            assert_eq!(part.relays[0].sink.options["token"], json!(text), "what a Secret holds is not expanded");
        }
    }
    let part = checked(&relay(json!({ "url": "http://x", "ca_file": secret("a") })), false).expect("a relay");
    let [(path, contents)] = &part.files[..] else { panic!("one file: {:?}", part.files) };
    assert_eq!((path.parent(), contents.0.as_str()), (Some(Path::new("/made")), "hush"));
    assert_eq!(part.relays[0].sink.options["ca_file"], json!(path.display().to_string()));
    assert!(!format!("{part:?}").contains("hush"));
}

#[test]
fn a_feed_is_for_the_file_to_make_where_its_user_must_be_known_first() {
    let kinds = Kinds { consumers: Some(|sink| (sink.name == "post").then(Vec::new)), ..kinds() };
    let check = |nats: &str| {
        let file = Config { buffer: serde_json::from_str(nats).expect("a buffer"), ..Config::default() };
        let (nothing, folder) = (BTreeMap::new(), Path::new("/made"));
        let ground = Ground { file: &file, kinds: &kinds, variables: &nothing, allows_files: false, folder };
        let checked = relay(json!({ "url": "http://x" })).check("Relay a/one", &BTreeMap::new(), &ground);
        checked.map(drop).map_err(|problems| format!("{}: {}", problems[0].field, problems[0].message))
    };
    let said = check(r#"{"nats": {"urls": ["nats://host:4222"], "seeds_dir": "/seeds"}}"#).expect_err("the server does not know it");
    assert!(said.starts_with("spec.sink: the server of `strata nats` knows the feeds of the file alone"), "{said}");
    for nats in [r#"{"nats": "bundled"}"#, r#"{"nats": {"urls": ["nats://host:4222"], "token": "x"}}"#] {
        assert_eq!(check(nats), Ok(()), "{nats}");
    }
}

#[test]
fn what_may_not_be_is_said_with_its_field() {
    for (sink, is_trusted, expect) in [
        (json!({ "url": secret("a") }), true, "spec.sink.post.url: a Secret stands in the place of a secret or a file only"),
        (json!({ "url": "http://x", "token": secret("z") }), false, "spec.sink.post.token: key 'z' of the Secret 's' is not there"),
        (json!({ "url": "http://x", "token": "${HOME}" }), false, "spec.sink.post.token: the environment variable HOME is not set"),
        (json!({ "url": "http://x", "ca_file": "/etc/passwd" }), false, "spec.sink.post.ca_file: names a file of Strata's own"),
        (json!({ "url": "unix:///run/x" }), false, "spec.sink.post.url: names a file of Strata's own"),
        (json!({ "url": "http://x", "tokn": "y" }), false, "spec.sink.post.tokn: unknown key 'tokn', did you mean 'token'?"),
    ] {
        let problems = checked(&relay(sink.clone()), is_trusted).expect_err("wrong");
        assert!(problems.len() == 1 && problems[0].starts_with(expect), "{sink}: {problems:?}");
    }
    checked(&relay(json!({ "url": "http://x", "ca_file": null })), false).expect("null is nothing");
    for sink in [json!({ "url": "http://x", "token": "${HOME}" }), json!({ "url": "unix:///run/x", "ca_file": "/etc/ca" })] {
        checked(&relay(sink), true).expect("trusted");
    }
}

#[test]
fn a_relay_may_name_jobs_that_are_not_there() {
    let mut entries = relay(json!({ "url": "http://x" }));
    entries.relays[0].value["from"] = json!(["a/web", "b/web"]);
    let part = checked(&entries, false).expect("a relay");
    assert_eq!((part.relays[0].from.len(), part.jobs.len(), part.warnings.len()), (2, 0, 0));
}

#[test]
fn the_file_has_its_names_first() {
    let part = |name: &str, url: &str| {
        let mut entries = relay(json!({ "url": url }));
        entries.relays[0].value["name"] = json!(name);
        checked(&entries, false).expect("a relay")
    };
    let file = Config { relays: part("main", "own:x").relays, ..Config::default() };
    let parts =
        [part("main", "http://x"), part("two", "own:x"), part("three", "own:y"), part("three", "http://x"), part("four", "http://x")];
    let (merged, left_out) = merge(&file, &parts, &kinds());
    assert_eq!(merged.relays.iter().map(|relay| relay.name.as_str()).collect::<Vec<_>>(), ["main", "three", "four"]);
    let expect = ["there is a relay 'main' already", "another relay's sink 'post' has 'x' for itself", "there is a relay 'three' already"];
    assert_eq!(left_out.iter().map(|(index, _)| *index).collect::<Vec<_>>(), [0, 1, 3]);
    for ((_, why), expect) in left_out.iter().zip(expect) {
        assert!(why.starts_with(expect), "{why}");
    }
}
