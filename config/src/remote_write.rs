//! `remote_write` of a prometheus.yml: each entry becomes a relay.
//!
//! *In*: the tree of a file. *Out*: the same tree, its entries as relays with the sink `remote_write`; every value keeps its place, and the name
//! under which it was written. *Bound*: that of the file. *When full*: does not apply.

use std::path::Path;

use md5::{Digest, Md5};
use serde_json::Value;

use crate::HttpClientConfig;
use crate::problem::{Place, Problem, Warning};
use crate::tree::{Content, Entry, Map, Node};
use crate::words;

/// Keys that the sink has under another name or in another form.
const OWN: [&str; 10] = [
    "headers",
    "metadata_config",
    "name",
    "protobuf_message",
    "queue_config",
    "remote_timeout",
    "send_exemplars",
    "send_native_histograms",
    "url",
    "write_relabel_configs",
];

/// Keys that change nothing here, and are named in a warning.
const ASIDE: [&str; 2] = ["failed_request_logging", "round_robin_dns"];

/// Ways to sign requests that this version does not have.
const SIGNED: [&str; 3] = ["azuread", "google_iam", "sigv4"];

/// Keys of `queue_config` that change nothing: a relay waits in the stream, not in memory, and tries without end.
const QUEUE_ASIDE: [&str; 6] = ["batch_send_deadline", "capacity", "max_backoff", "min_backoff", "min_shards", "retry_on_http_429"];

/// Keys of `metadata_config` that change nothing.
const METADATA_ASIDE: [&str; 1] = ["max_samples_per_send"];

/// Characters of a host in a relay's name, which has 63.
const HOST_CHARS: usize = 40;

/// What is wrong, and what is left out.
pub(crate) struct Findings<'a> {
    pub(crate) problems: &'a mut Vec<Problem>,
    pub(crate) warnings: &'a mut Vec<Warning>,
}

/// Turns the entries of `remote_write` into relays behind those of the file; paths are relative to `folder`.
pub(crate) fn become_relays(root: &mut Node, folder: &Path, findings: &mut Findings<'_>) {
    let Content::Map(map) = &mut root.content else { return };
    let Some(at) = map.entries.iter().position(|entry| entry.key == "remote_write") else { return };
    let Entry { key_place, node, .. } = map.entries.remove(at);
    let entries = match node.content {
        Content::List(entries) => entries,
        Content::Plain { value: Value::Null, .. } => return,
        _ => return findings.problem(node.place, "remote_write".to_owned(), "expected a list"),
    };
    let relays: Vec<Node> = entries.into_iter().enumerate().filter_map(|(i, entry)| relay(entry, i, folder, findings)).collect();
    match map.entries.iter_mut().find(|entry| entry.key == "relays").map(|entry| &mut entry.node.content) {
        Some(Content::List(list)) => list.extend(relays),
        Some(nothing @ Content::Plain { value: Value::Null, .. }) => *nothing = Content::List(relays),
        // Typing says what is wrong with it.
        Some(_) => {}
        None => {
            let node = Node::new(key_place.clone(), Content::List(relays));
            map.entries.push(Entry { key: "relays".to_owned(), key_place, node });
        }
    }
}

impl Findings<'_> {
    fn problem(&mut self, place: Place, field: String, message: impl Into<String>) {
        self.problems.push(Problem { place, field, message: message.into() });
    }

    fn warning(&mut self, place: Place, field: String, message: impl Into<String>) {
        self.warnings.push(Warning(Problem { place, field, message: message.into() }));
    }

    /// Takes keys out of a map that change nothing, and says so once.
    fn set_aside(&mut self, map: &mut Map, keys: &[&str], field: &str, why: &str) {
        let aside: Vec<_> = map.entries.extract_if(.., |entry| keys.contains(&entry.key.as_str()) && !is_off(&entry.node)).collect();
        map.entries.retain(|entry| !keys.contains(&entry.key.as_str()));
        if let Some(first) = aside.first() {
            let names: Vec<_> = aside.iter().map(|entry| entry.key.as_str()).collect();
            self.warning(first.key_place.clone(), field.to_owned(), format!("left out, as {why}: {}", names.join(", ")));
        }
    }

    /// Says of every key that is left what it should have been.
    fn unknown(&mut self, map: &Map, field: &str, known: &[&str]) {
        let known: Vec<String> = known.iter().map(|key| (*key).to_owned()).collect();
        for entry in &map.entries {
            self.problem(entry.key_place.clone(), format!("{field}.{}", entry.key), words::unknown("key", &entry.key, &known));
        }
    }

    /// A section that is a map; none: it is not there, or something else, which is told.
    fn section(&mut self, map: &mut Map, key: &str, field: &str) -> Option<Map> {
        let entry = take(map, key)?;
        match entry.node.content {
            Content::Map(map) => Some(map),
            _ => {
                self.problem(entry.node.place, format!("{field}.{key}"), "expected a map");
                None
            }
        }
    }
}

/// One entry as a relay.
fn relay(entry: Node, i: usize, folder: &Path, findings: &mut Findings<'_>) -> Option<Node> {
    let (place, field) = (entry.place, format!("remote_write[{i}]"));
    let Content::Map(mut from) = entry.content else {
        findings.problem(place, field, "expected a map");
        return None;
    };
    for key in SIGNED {
        if let Some(entry) = take(&mut from, key) {
            let message =
                format!("'{key}' is not read by this version: send through a proxy that signs, or use basic_auth, authorization or oauth2");
            findings.problem(entry.key_place, format!("{field}.{key}"), message);
        }
    }
    findings.set_aside(&mut from, &ASIDE, &field, "it changes nothing here");
    let built = Built { place: place.clone(), field: field.clone() };
    let version_2 = matches!(from.get("protobuf_message"), Some(Entry { node: Node { content: Content::Text(text), .. }, .. })
        if text == "io.prometheus.write.v2.Request");
    let name = name(take(&mut from, "name"), from.get("url"), &built);
    let mut sink = Map::default();
    let (mut filters, mut hold) = (Vec::new(), None);
    for (key, to) in [("url", "url"), ("remote_timeout", "timeout"), ("headers", "headers"), ("protobuf_message", "protobuf_message")] {
        sink.entries.extend(take(&mut from, key).map(|entry| built.renamed(entry, to, key)));
    }
    if let Some(rules) = take(&mut from, "write_relabel_configs").filter(|entry| !is_empty(&entry.node)) {
        filters.push(built.map(vec![built.renamed(rules, "relabel", "write_relabel_configs")]));
    }
    let exemplars = built.flag(take(&mut from, "send_exemplars"), "exemplars", "send_exemplars", false);
    let histograms = take(&mut from, "send_native_histograms");
    let histograms = built.flag(histograms.filter(|_| !version_2), "native_histograms", "send_native_histograms", version_2);
    if let Some(section) = findings.section(&mut from, "queue_config", &field) {
        hold = queue(section, &built, &mut sink, findings);
    }
    if let Some(section) = findings.section(&mut from, "metadata_config", &field) {
        metadata(section, &built, &mut sink, findings);
    }
    for key in HttpClientConfig::KEYS {
        sink.entries.extend(take(&mut from, key).map(|mut entry| {
            relative(&mut entry, folder);
            entry
        }));
    }
    // As Prometheus does it here, and only here.
    if sink.get("enable_http2").is_none() {
        sink.entries.push(built.entry("enable_http2", built.bool(false)));
    }
    findings.unknown(&from, &field, &[&OWN[..], &ASIDE[..], &HttpClientConfig::KEYS[..]].concat());
    let encode = built.map(vec![built.entry("remote_write", built.map(vec![exemplars, histograms]))]);
    let mut options = Node::new(place.clone(), Content::Map(sink));
    options.written_as = Some(field.clone().into());
    let mut relay = vec![
        built.entry("name", name),
        built.entry("encode", encode),
        built.entry("sink", built.map(vec![built.entry("remote_write", options)])),
    ];
    if !filters.is_empty() {
        relay.push(built.entry("filters", Node::new(place, Content::List(filters))));
    }
    relay.extend(hold.map(|hold| built.entry("hold", hold)));
    Some(built.map(relay))
}

/// What of `queue_config` the sink has, and the relay's `hold`.
fn queue(mut from: Map, built: &Built, sink: &mut Map, findings: &mut Findings<'_>) -> Option<Node> {
    let field = format!("{}.queue_config", built.field);
    findings.set_aside(&mut from, &QUEUE_ASIDE, &field, "samples wait in the stream and are tried without end");
    for (key, to) in [("max_samples_per_send", "items_max"), ("max_shards", "requests_max")] {
        sink.entries.extend(take(&mut from, key).map(|entry| built.renamed(entry, to, &format!("queue_config.{key}"))));
    }
    let limit = take(&mut from, "sample_age_limit").filter(|entry| !is_off(&entry.node));
    findings.unknown(&from, &field, &[&QUEUE_ASIDE[..], &["max_samples_per_send", "max_shards", "sample_age_limit"]].concat());
    limit.map(|entry| built.map(vec![built.renamed(entry, "max_age", "queue_config.sample_age_limit")]))
}

/// What of `metadata_config` the sink has.
fn metadata(mut from: Map, built: &Built, sink: &mut Map, findings: &mut Findings<'_>) {
    let field = format!("{}.metadata_config", built.field);
    findings.set_aside(&mut from, &METADATA_ASIDE, &field, "2000 metrics go with each request");
    let is_sent = take(&mut from, "send").is_none_or(|entry| !is_off(&entry.node));
    let interval = take(&mut from, "send_interval").filter(|_| is_sent);
    sink.entries.extend(interval.map(|entry| built.renamed(entry, "metadata_interval", "metadata_config.send_interval")));
    if !is_sent {
        sink.entries.push(built.entry("metadata_interval", built.text("0s")));
    }
    findings.unknown(&from, &field, &["send", "send_interval", "max_samples_per_send"]);
}

/// Makes nodes of one entry: what nobody wrote stands where the entry does.
struct Built {
    place: Place,
    field: String,
}

impl Built {
    fn node(&self, content: Content) -> Node {
        let mut node = Node::new(self.place.clone(), content);
        node.written_as = Some(self.field.clone().into());
        node
    }

    fn map(&self, entries: Vec<Entry>) -> Node {
        self.node(Content::Map(Map { entries, removed: Vec::new() }))
    }

    fn text(&self, text: &str) -> Node {
        self.node(Content::Text(text.to_owned()))
    }

    fn bool(&self, value: bool) -> Node {
        self.node(Content::Plain { value: Value::Bool(value), text: value.to_string() })
    }

    fn entry(&self, key: &str, node: Node) -> Entry {
        Entry { key: key.to_owned(), key_place: node.place.clone(), node }
    }

    /// An entry under another key, which remembers its own.
    fn renamed(&self, mut entry: Entry, key: &str, written: &str) -> Entry {
        entry.node.written_as = Some(format!("{}.{written}", self.field).into());
        Entry { key: key.to_owned(), ..entry }
    }

    /// A switch as written, or its default.
    fn flag(&self, entry: Option<Entry>, key: &str, written: &str, default: bool) -> Entry {
        match entry {
            Some(entry) => self.renamed(entry, key, written),
            None => self.entry(key, self.bool(default)),
        }
    }
}

/// The relay's name: as written, in the letters that a relay's name may have; or by the URL, so that it stays when anything else changes.
fn name(written: Option<Entry>, url: Option<&Entry>, built: &Built) -> Node {
    if let Some(mut entry) = written {
        if let Content::Text(text) | Content::Plain { text, .. } = &entry.node.content {
            entry.node.content = Content::Text(label(text, usize::MAX));
        }
        entry.node.written_as = Some(format!("{}.name", built.field).into());
        return entry.node;
    }
    let url = match url {
        Some(Entry { node: Node { content: Content::Text(text), .. }, .. }) => text.as_str(),
        _ => "",
    };
    let host = url.split_once("://").map_or(url, |(_, rest)| rest).split(['/', '?', '#']).next().unwrap_or_default();
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
    let hash: String = Md5::digest(url).iter().take(3).map(|byte| format!("{byte:02x}")).collect();
    built.text(&label(&format!("remote-write-{}-{hash}", label(host, HOST_CHARS)), usize::MAX))
}

/// A text in the letters of a DNS label.
fn label(text: &str, most: usize) -> String {
    let fits = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    text.chars().map(fits).take(most).collect::<String>().trim_matches('-').to_owned()
}

/// Takes a key out; none: it is not there, or nothing is written behind it.
fn take(map: &mut Map, key: &str) -> Option<Entry> {
    let at = map.entries.iter().position(|entry| entry.key == key)?;
    Some(map.entries.remove(at)).filter(|entry| !entry.node.is_null())
}

fn is_empty(node: &Node) -> bool {
    matches!(&node.content, Content::List(items) if items.is_empty())
}

/// `false`, nothing, or a duration of 0.
fn is_off(node: &Node) -> bool {
    match &node.content {
        Content::Plain { value, .. } => matches!(value, Value::Null | Value::Bool(false)) || value.as_u64() == Some(0),
        Content::Text(text) => text.parse::<crate::Millis>().is_ok_and(|millis| millis.0 == 0),
        Content::List(_) | Content::Map(_) => false,
    }
}

/// Makes the files that an entry names relative to `folder`.
fn relative(entry: &mut Entry, folder: &Path) {
    let is_file = entry.key.ends_with("_file");
    let is_files = entry.key == "files";
    match &mut entry.node.content {
        Content::Text(text) if is_file && !text.is_empty() => *text = folder.join(&*text).display().to_string(),
        Content::List(items) if is_files => {
            for item in items {
                if let Content::Text(text) = &mut item.content {
                    *text = folder.join(&*text).display().to_string();
                }
            }
        }
        Content::Map(map) => map.entries.iter_mut().for_each(|entry| relative(entry, folder)),
        _ => {}
    }
}

#[cfg(test)]
mod tests;
