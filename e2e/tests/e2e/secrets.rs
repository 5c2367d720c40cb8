//! Secrets planted wherever the schema knows one, then searched for in everything that the product writes, says and shows.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use e2e::strata::{Strata, binary};
use e2e::{http1, process, wait};
use serde_json::{Map, Value, json};
use tokio::io::BufReader;
use tokio::net::TcpListener;

use crate::scene;

const LIMIT: Duration = Duration::from_secs(120);
/// What is planted begins with this; nothing else has it.
const MARK: &str = "PlAnTeD";
/// The name where names are free: of a header.
const HEADER: &str = "X-Planted";
/// Stands in a document for what is planted.
const HERE: &str = "@here@";
/// How many choices are followed for a value that is only there because it must be.
const DEPTH_MAX: usize = 24;
/// Secrets that must be among those found, or the walk itself is broken.
const KNOWN: [&str; 6] = [
    "scrape_configs.basic_auth.password",
    "scrape_configs.authorization.credentials",
    "scrape_configs.http_headers.secrets",
    "scrape_configs.tls_config.key",
    "relays.sink.http.basic_auth.password",
    "relays.sink.remote_write.tls_config.key",
];

/// A document with one secret in it.
#[derive(Clone, Debug)]
struct Doc {
    path: String,
    value: Value,
    /// Whether the secret is in a file, and the document names that.
    is_file: bool,
}

/// Writes documents by the schema.
struct Planter<'a> {
    root: &'a Value,
    /// A peer's port.
    port: u16,
}

impl Planter<'_> {
    fn resolved<'s>(&'s self, schema: &'s Value) -> &'s Value {
        let Some(name) = schema["$ref"].as_str() else { return schema };
        self.resolved(&self.root["$defs"][name.trim_start_matches("#/$defs/")])
    }

    fn choices<'s>(&'s self, schema: &'s Value) -> impl Iterator<Item = &'s Value> {
        ["anyOf", "oneOf", "allOf"].into_iter().filter_map(|key| schema[key].as_array()).flatten()
    }

    /// Every way to plant one secret in a value of this schema.
    ///
    /// `trail` has the definitions that it is in: none is entered within itself, so a schema that refers to itself ends.
    fn docs(&self, schema: &Value, name: &str, trail: &[&str]) -> Vec<Doc> {
        if let Some(reference) = schema["$ref"].as_str() {
            if trail.contains(&reference) {
                return Vec::new();
            }
            let definition = &self.root["$defs"][reference.trim_start_matches("#/$defs/")];
            return self.docs(definition, name, &[trail, &[reference]].concat());
        }
        if schema["format"] == "password" {
            return vec![Doc { path: name.to_owned(), value: json!(HERE), is_file: false }];
        }
        let mut found: Vec<Doc> = self.choices(schema).flat_map(|choice| self.docs(choice, name, trail)).collect();
        let inside = |key: &str| if name.is_empty() { key.to_owned() } else { format!("{name}.{key}") };
        for (key, property) in schema["properties"].as_object().into_iter().flatten() {
            let file = format!("{key}_file");
            for doc in self.docs(property, &inside(key), trail) {
                let mut map = self.required(schema, key);
                if doc.value == HERE && schema["properties"].get(&file).is_some() {
                    let mut map = map.clone();
                    map.remove(key);
                    map.insert(file.clone(), json!(HERE));
                    found.push(Doc { path: inside(&file), value: Value::Object(map), is_file: true });
                }
                map.insert(key.clone(), doc.value);
                found.push(Doc { value: Value::Object(map), ..doc });
            }
        }
        if schema["items"].is_object() {
            found.extend(self.docs(&schema["items"], name, trail).into_iter().map(|doc| Doc { value: json!([doc.value]), ..doc }));
        }
        if schema["additionalProperties"].is_object() {
            let docs = self.docs(&schema["additionalProperties"], name, trail);
            found.extend(docs.into_iter().map(|doc| Doc { value: json!({ HEADER: doc.value }), ..doc }));
        }
        found
    }

    /// What a map needs beside a key.
    fn required(&self, schema: &Value, but: &str) -> Map<String, Value> {
        let mut map = Map::new();
        for key in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).filter(|key| *key != but) {
            map.insert(key.to_owned(), self.filled(&schema["properties"][key], key, 0));
        }
        // What the schema does not demand, but a check does: a password's user, a client's secret, a proxy for its headers.
        for (key, beside) in [("username", "password"), ("user", "password"), ("client_secret", "client_id"), ("urls", "nkey")] {
            let known = |key: &str| schema["properties"].get(key).is_some();
            let is_needed = key != "user" || but == "password";
            if key != but && is_needed && known(key) && known(beside) {
                map.insert(key.to_owned(), self.filled(&schema["properties"][key], key, 0));
            }
        }
        if but == "proxy_connect_header" {
            map.insert("proxy_url".to_owned(), json!(format!("http://127.0.0.1:{}", self.port)));
        }
        // Nor are the options of a connection without whom to call.
        if !but.is_empty() && but != "api_server" && schema["properties"].get("api_server").is_some() {
            map.insert("api_server".to_owned(), json!(format!("http://127.0.0.1:{}", self.port)));
        }
        // A TLS key is of no use without its certificate.
        if matches!(but, "key" | "key_file") && schema["properties"].get("cert").is_some() {
            map.insert("cert".to_owned(), json!("-----BEGIN CERTIFICATE-----\n"));
        }
        map
    }

    /// Something that fits.
    fn filled(&self, schema: &Value, name: &str, depth: usize) -> Value {
        let schema = self.resolved(schema);
        let address = format!("127.0.0.1:{}", self.port);
        if let Some(first) = schema["enum"].as_array().and_then(|all| all.first()) {
            return first.clone();
        }
        if !schema["const"].is_null() {
            return schema["const"].clone();
        }
        if let Some(choice) = self.choices(schema).find(|choice| choice["type"] != "null") {
            return if depth > DEPTH_MAX { Value::Null } else { self.filled(choice, name, depth + 1) };
        }
        let kind = match &schema["type"] {
            Value::Array(kinds) => kinds[0].as_str(),
            kind => kind.as_str(),
        };
        match (kind, name) {
            (Some("array"), _) => json!([self.filled(&schema["items"], name, depth + 1)]),
            (Some("object"), _) => Value::Object(self.required(schema, "")),
            (Some("boolean"), _) => json!(false),
            (Some("integer" | "number"), _) => json!(1),
            (_, "urls") => json!(format!("nats://{address}")),
            (_, "brokers" | "targets" | "servers") => json!(address),
            (_, "address") => json!(format!("tcp://{address}")),
            (_, name) if name.ends_with("url") => json!(format!("http://{address}/in")),
            (_, name) if name.ends_with("mechanism") => json!("PLAIN"),
            _ => json!("someone"),
        }
    }
}

fn replaced(value: &Value, with: &Value) -> Value {
    match value {
        Value::String(text) if text == HERE => with.clone(),
        Value::Array(items) => items.iter().map(|item| replaced(item, with)).collect(),
        Value::Object(map) => map.iter().map(|(key, value)| (key.clone(), replaced(value, with))).collect::<Map<_, _>>().into(),
        other => other.clone(),
    }
}

/// The document with text in place of the map or list that holds the secret: as one who forgot a line writes it.
fn misplaced(value: &Value, with: &Value) -> Option<Value> {
    let holds = |value: &Value| *value == HERE;
    match value {
        Value::Array(items) if items.iter().any(holds) => Some(with.clone()),
        Value::Object(map) if map.values().any(holds) => Some(with.clone()),
        Value::Array(items) => items.iter().find_map(|item| misplaced(item, with)).map(|item| json!([item])),
        Value::Object(map) => {
            let (key, inner) = map.iter().find_map(|(key, value)| Some((key, misplaced(value, with)?)))?;
            let mut map = map.clone();
            map.insert(key.clone(), inner);
            Some(map.into())
        }
        _ => None,
    }
}

/// The document with text in place of all that a header has; none where the secret is in no header.
fn in_place_of_header(value: &Value, with: &Value) -> Option<Value> {
    match value {
        Value::Object(map) if map.contains_key(HEADER) => Some(json!({ HEADER: with })),
        Value::Object(map) => {
            let (key, inner) = map.iter().find_map(|(key, value)| Some((key, in_place_of_header(value, with)?)))?;
            let mut map = map.clone();
            map.insert(key.clone(), inner);
            Some(map.into())
        }
        Value::Array(items) => items.iter().find_map(|item| in_place_of_header(item, with)).map(|item| json!([item])),
        _ => None,
    }
}

fn yaml(document: &Value) -> String {
    document.as_object().into_iter().flatten().map(|(key, value)| format!("{key}: {value}\n")).collect()
}

/// Runs a command over a document; everything it said, and whether it was content.
async fn said(folder: &Path, document: &Value, arguments: &[&str], variable: Option<&str>) -> Result<(bool, String)> {
    let file = folder.join("planted.yaml");
    std::fs::write(&file, yaml(document))?;
    let mut command = tokio::process::Command::new(binary()?);
    command.args(["--log-level", "trace"]).args(arguments).arg("-c").arg(&file).stdin(Stdio::null()).kill_on_drop(true);
    if let Some(value) = variable {
        command.env("PLANTED", value);
    }
    let output = tokio::time::timeout(LIMIT, command.output()).await??;
    Ok((output.status.success(), [output.stdout, output.stderr].iter().map(|bytes| String::from_utf8_lossy(bytes).into_owned()).collect()))
}

/// A whole configuration with this document in it: what a relay or a job must have comes beside it.
fn whole(document: &Value, number: usize, data: &Path) -> Value {
    let mut whole = document.clone();
    for (list, name) in [("scrape_configs", "job_name"), ("relays", "name")] {
        if let Some(item) =
            whole.get_mut(list).and_then(Value::as_array_mut).and_then(|items| items.first_mut()).and_then(Value::as_object_mut)
        {
            item.insert(name.to_owned(), json!(format!("planted-{number}")));
        }
    }
    // Who may read a feed needs one.
    if let Some(user) = whole.pointer_mut("/feeds/users/0").and_then(Value::as_object_mut) {
        let name = format!("planted-{number}");
        user.extend([("name".to_owned(), json!(name)), ("relay".to_owned(), json!(name))]);
        whole["relays"] = json!([{ "name": name, "sink": { "nats": { "max_bytes": "64MiB" } } }]);
    }
    let buffer = &mut whole["buffer"];
    if buffer.is_null() || buffer.get("nats").is_some_and(Value::is_null) {
        *buffer = json!({ "data_dir": data });
    }
    whole
}

/// What is written for a secret: where that is a URL, it has the mark for its password.
fn planted(doc: &Doc, mark: &str, port: u16) -> String {
    if doc.path.ends_with("proxy_url") { format!("http://someone:{mark}@127.0.0.1:{port}") } else { mark.to_owned() }
}

async fn schema() -> Result<Value> {
    let output = tokio::process::Command::new(binary()?).args(["config", "schema"]).output().await?;
    serde_json::from_slice(&output.stdout).context("a schema")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_command_prints_a_secret_wherever_it_is_written() -> Result<()> {
    let schema = schema().await?;
    let docs = Planter { root: &schema, port: 1 }.docs(&schema, "", &[]);
    let paths: BTreeSet<&str> = docs.iter().map(|doc| doc.path.as_str()).collect();
    for known in KNOWN {
        assert!(paths.contains(known), "{known} is not among the secrets of the schema: {paths:?}");
    }
    let folder = tempfile::tempdir()?;
    let mut leaks = Vec::new();
    for (number, doc) in docs.iter().enumerate() {
        let mark = format!("{MARK}{number}x");
        let file = folder.path().join("secret");
        std::fs::write(&file, &mark)?;
        let secret = planted(doc, &mark, 1);
        let planted = if doc.is_file { json!(file) } else { json!(secret) };
        let mut written = vec![("written", replaced(&doc.value, &planted)), ("in a list", replaced(&doc.value, &json!([planted])))];
        // Not for these: they are among the options of a whole job or sink, and text in place of that is no secret.
        let stands_alone = [".bearer_token", ".bearer_token_file", ".proxy_url"].iter().any(|name| doc.path.ends_with(name));
        let elsewhere = if stands_alone { None } else { misplaced(&doc.value, &planted) };
        written.extend(elsewhere.map(|value| ("in place of its map", value)));
        written.extend(in_place_of_header(&doc.value, &planted).map(|value| ("in place of its header", value)));
        if !doc.is_file {
            written.push(("from the environment", replaced(&doc.value, &json!("${PLANTED}"))));
        }
        for (how, document) in written {
            let document = whole(&document, number, folder.path());
            for arguments in [&["check"][..], &["config", "show", "--defaults", "--origins"]] {
                let (_, text) = said(folder.path(), &document, arguments, Some(&secret)).await?;
                if text.contains(MARK) {
                    let line = text.lines().find(|line| line.contains(MARK)).unwrap_or_default();
                    leaks.push(format!("{} {how}: {arguments:?}: {line}", doc.path));
                }
            }
        }
    }
    assert!(leaks.is_empty(), "{} leaks:\n{}", leaks.len(), leaks.join("\n"));
    Ok(())
}

/// Answers every request with 401 and all that it was sent, as a token server does that where a token is wanted; counts them.
async fn echo(listener: TcpListener, asked: Arc<AtomicU64>) {
    while let Ok((stream, _)) = listener.accept().await {
        let asked = Arc::clone(&asked);
        tokio::spawn(async move {
            let mut connection = BufReader::new(stream);
            while let Ok(Some(request)) = http1::read(&mut connection).await {
                // The last come first: an answer is cut when it is shown, and credentials are added last.
                let echo: String = request.headers.iter().rev().map(|(name, value)| format!("{name}: {value}\n")).collect();
                asked.fetch_add(1, Ordering::Relaxed);
                let form = String::from_utf8_lossy(&request.body);
                let body = match form.starts_with("grant_type=") {
                    true => {
                        let pair = request.header("authorization").and_then(|value| STANDARD.decode(value.strip_prefix("Basic ")?).ok());
                        let pair = String::from_utf8(pair.unwrap_or_default()).unwrap_or_default();
                        json!({"error": "who are you?", "error_description": format!("{pair} {form} {echo}")}).to_string()
                    }
                    false => format!("who are you?\n{echo}"),
                };
                if http1::respond(&mut connection, 401, &[("www-authenticate", echo.replace('\n', " "))], body.as_bytes()).await.is_err() {
                    break;
                }
            }
        });
    }
}

pub fn files(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() { files(&entry.path(), found)? } else { found.push(entry.path()) }
    }
    Ok(())
}

pub fn has(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

/// Files of the data folder with one of the texts in them that are not for the owner alone, or not those that need it.
pub fn leaking_files(data: &Path, texts: &[&str], may: &[&str]) -> Result<Vec<String>> {
    let (mut all, mut leaks) = (Vec::new(), Vec::new());
    files(data, &mut all)?;
    ensure!(all.len() > 1, "{all:?}");
    for path in all {
        // A file of the stream may be gone by now.
        let Ok(bytes) = std::fs::read(&path) else { continue };
        for text in texts.iter().filter(|text| has(&bytes, text)) {
            let name = path.strip_prefix(data)?.to_string_lossy().into_owned();
            let mode = std::fs::metadata(&path)?.permissions().mode() & 0o777;
            if !may.contains(&name.as_str()) || mode != 0o600 {
                leaks.push(format!("{name} (mode {mode:o}) has {}…", &text[..text.len().min(8)]));
            }
        }
    }
    Ok(leaks)
}

/// What a running Strata and its commands say, each with who was asked. `relay`: one of its relays; `token`: that of its API.
pub async fn everything_said(strata: &Strata, relay: &str, token: &str) -> Result<Vec<(String, Vec<u8>)>> {
    let (api, mut heard) = (strata.port(), Vec::new());
    let document: Value = serde_json::from_slice(&http1::get(api, "/api/v1/openapi.json").await?.body)?;
    for (path, methods) in document["paths"].as_object().into_iter().flatten().filter(|(path, _)| !path.ends_with("/tap")) {
        let path = path.replace("{name}", relay).replace("{id}", "1");
        if methods.get("get").is_some() {
            heard.push((format!("GET {path}"), http1::get(api, &path).await?.body));
        } else {
            heard.push((format!("POST {path} with a wrong token"), http1::post(api, &path, "wrong").await?.body));
        }
    }
    ensure!(heard.iter().any(|(asked, _)| asked == "GET /console/page.js"), "{heard:?}");
    for arguments in [&["check"][..], &["config", "show", "--defaults"], &["targets"], &["targets", "--output", "json"]] {
        let output = strata.command_as_written(arguments).await?;
        heard.push((format!("strata {arguments:?}"), format!("{}{}", output.stdout, output.stderr).into_bytes()));
    }
    for pid in [vec![strata.pid()?], process::children(strata.pid()?)].concat() {
        heard.push((format!("the command line of {pid}"), std::fs::read(format!("/proc/{pid}/cmdline"))?));
        ensure!(process::is_alive(pid), "it ended");
    }
    // Reloaded with a mistake, then as it was: what is refused is said too.
    let good = std::fs::read_to_string(strata.config())?;
    std::fs::write(strata.config(), good.replace("job_name", "jobname"))?;
    heard.push(("a refused reload".to_owned(), http1::post(api, "/-/reload", token).await?.body));
    std::fs::write(strata.config(), good)?;
    Ok(heard)
}

/// Where one of the texts was heard.
pub fn leaks_in(heard: &[(String, Vec<u8>)], texts: &[&str]) -> Vec<String> {
    let mut leaks = Vec::new();
    for (what, bytes) in heard {
        for text in texts.iter().filter(|text| has(bytes, text)) {
            let shown = String::from_utf8_lossy(bytes);
            let line = shown.lines().find(|line| line.contains(text)).unwrap_or_default();
            leaks.push(format!("{what}: {}", &line.chars().take(400).collect::<String>()));
        }
    }
    leaks
}

/// The paths of all secrets that the schema knows below a field.
pub async fn paths_below(field: &str) -> Result<BTreeSet<String>> {
    let schema = schema().await?;
    let docs = Planter { root: &schema, port: 1 }.docs(&schema, "", &[]);
    Ok(docs.iter().filter_map(|doc| doc.path.strip_prefix(field)).map(str::to_owned).collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_runs_shows_a_secret() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let (port, asked) = (listener.local_addr()?.port(), Arc::new(AtomicU64::new(0)));
    let peer = tokio::spawn(echo(listener, Arc::clone(&asked)));
    let schema = schema().await?;
    let docs = Planter { root: &schema, port }.docs(&schema, "", &[]);
    let exporters = scene::exporters(&["etcd"]).await?;
    let mut strata = Strata::prepare("")?;
    strata.set("STRATA_LOG_LEVEL", "debug");

    // Everything that can stand together in one configuration.
    let (mut jobs, mut relays, mut users, mut left_out) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (number, doc) in docs.iter().enumerate() {
        let mark = format!("{MARK}{number}x");
        let file = strata.folder().join(format!("secret-{number}"));
        std::fs::write(&file, format!("{mark}\n"))?;
        let planted = if doc.is_file { json!(file) } else { json!(planted(doc, &mark, port)) };
        let mut document = whole(&replaced(&doc.value, &planted), number, &strata.folder().join("other"));
        for job in document.get_mut("scrape_configs").and_then(Value::as_array_mut).into_iter().flatten() {
            job["static_configs"] = json!([{ "targets": [format!("127.0.0.1:{port}")] }]);
            job["scrape_interval"] = json!("1s");
        }
        let (is_fine, _) = said(strata.folder(), &document, &["check"], None).await?;
        if !is_fine || !document["buffer"]["nats"].is_null() {
            left_out.push(doc.path.as_str());
            continue;
        }
        jobs.extend(document["scrape_configs"].as_array().into_iter().flatten().cloned());
        relays.extend(document["relays"].as_array().into_iter().flatten().cloned());
        users.extend(document["feeds"]["users"].as_array().into_iter().flatten().cloned());
    }
    // A token server knows one kind of credentials, and this stream is in the bundled server.
    let cannot_run = ["oauth2.basic_auth.", "oauth2.authorization.", "oauth2.bearer_token", "buffer.nats."];
    left_out.retain(|path| !cannot_run.iter().any(|known| path.contains(known)));
    assert!(left_out.is_empty(), "these do not run: {left_out:?}");
    jobs.push(json!({"job_name": scene::JOB, "scrape_interval": "500ms", "static_configs": [{"targets": [exporters[0].target()]}]}));
    strata.configure(&yaml(&json!({ "scrape_configs": jobs, "relays": relays, "feeds": { "users": users } })))?;
    strata.launch()?;
    strata.ready().await?;

    let api = strata.port();
    let relay_states = async || -> Option<Value> { serde_json::from_slice(&http1::get(api, "/api/v1/relays").await.ok()?.body).ok() };
    wait::until("every relay was refused", LIMIT, async || {
        let states = relay_states().await?;
        let all = states["relays"].as_array()?;
        let refused = all.iter().filter(|relay| relay["error"].is_object()).count();
        // A feed has no peer that could refuse it.
        (all.len() == relays.len() && refused + users.len() == all.len()).then_some(())
    })
    .await?;
    scene::more_rounds(&exporters, 6, LIMIT).await?;
    wait::until_true("the peer was asked often", LIMIT, || asked.load(Ordering::Relaxed) > 40).await?;
    let states = relay_states().await.context("relays")?.to_string();
    assert!(states.contains("who are you?") && states.contains("<secret>"), "the peer's echo is there, without the secrets: {states}");

    let token = std::fs::read_to_string(strata.data_dir().join("token"))?.trim().to_owned();
    let mut heard = everything_said(&strata, "planted-0", &token).await?;
    scene::stop(&mut strata, &exporters).await?;
    heard.push(("the log".to_owned(), strata.log_tail(usize::MAX).into_bytes()));

    // The server needs feeds' passwords in its configuration where they are no hashes, as docs/vendor-agents.md says.
    let mut leaks = leaking_files(&strata.data_dir(), &[MARK], &["nats/nats.conf"])?;
    leaks.extend(leaking_files(&strata.data_dir(), &[&token], &["token"])?);
    leaks.extend(leaks_in(&heard, &[MARK, &token]));
    assert!(leaks.is_empty(), "{} leaks:\n{}", leaks.len(), leaks.join("\n"));
    assert!(heard.iter().all(|(_, bytes)| !bytes.is_empty()));
    peer.abort();
    Ok(())
}
