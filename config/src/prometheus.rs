//! What a prometheus.yml has beside `global` and `scrape_configs`.
//!
//! *In*: the tree of the file. *Out*: the tree with the entries of `scrape_config_files` in it, and without what is no business of
//! Strata's, which is told in one warning. *Bound*: that of every file of a configuration. *When full*: a problem at the pattern.

use std::path::Path;

use crate::include::{Reader, named};
use crate::problem::{Problem, Warning};
use crate::tree::{Content, Entry, Map, Node, show, steps};

/// Keys of a prometheus.yml that are for storing, asking and alerting.
const NOT_OURS: [&str; 8] = ["alerting", "otlp", "remote_read", "remote_write", "rule_files", "runtime", "storage", "tracing"];
/// The same under `global`.
const NOT_OURS_GLOBAL: [&str; 4] = ["evaluation_interval", "query_log_file", "rule_query_offset", "scrape_failure_log_file"];

/// The same in a scrape configuration.
const NOT_OURS_SCRAPE: [&str; 1] = ["scrape_failure_log_file"];

/// Takes out what is not Strata's to do; one warning names all of it.
pub(crate) fn set_aside(root: &mut Node) -> Option<Warning> {
    let mut found = Vec::new();
    for (parent, keys) in [(&[][..], &NOT_OURS[..]), (&steps!["global"][..], &NOT_OURS_GLOBAL[..])] {
        let Some(Node { content: Content::Map(map), .. }) = root.at_mut(parent) else { continue };
        let (aside, kept) = map.entries.drain(..).partition(|entry: &Entry| keys.contains(&entry.key.as_str()));
        map.entries = kept;
        let prefix = show(parent);
        found.extend(aside.into_iter().map(|entry: Entry| {
            let dot = if prefix.is_empty() { "" } else { "." };
            (entry.key_place, format!("{prefix}{dot}{}", entry.key))
        }));
    }
    // What failed is in the log, in `/api/v1/targets` and counted by reason: a file of its own would say it again.
    if let Some(Node { content: Content::List(jobs), .. }) = root.at_mut(&steps!["scrape_configs"]) {
        for (i, job) in jobs.iter_mut().enumerate() {
            let Content::Map(map) = &mut job.content else { continue };
            let (aside, kept) = map.entries.drain(..).partition(|entry: &Entry| NOT_OURS_SCRAPE.contains(&entry.key.as_str()));
            map.entries = kept;
            found.extend(aside.into_iter().map(|entry: Entry| (entry.key_place, format!("scrape_configs[{i}].{}", entry.key))));
        }
    }
    found.sort();
    let place = found.first()?.0.clone();
    let names: Vec<_> = found.iter().map(|(_, name)| name.as_str()).collect();
    let sent = if names.contains(&"remote_write") { "; what is collected goes where relays say" } else { "" };
    let message = format!("left out, as Strata neither stores, queries nor alerts: {}{sent}", names.join(", "));
    Some(Warning(Problem { place, field: String::new(), message }))
}

/// Puts the entries of `scrape_config_files` behind those of the file; paths are relative to `folder`.
pub(crate) fn include(root: &mut Node, folder: &Path, reader: &mut Reader<'_>) {
    let Content::Map(map) = &mut root.content else { return };
    // Where an entry is no text, typing says what is wrong with it.
    let Some(patterns) = map.get("scrape_config_files").and_then(|entry| named(&entry.node)) else { return };
    let mut included = Vec::new();
    for (index, place, pattern) in patterns {
        let field = format!("scrape_config_files[{index}]");
        let before = reader.problems.len();
        let files = reader.find(folder, &pattern, &place, &field);
        if files.is_empty() && reader.problems.len() == before {
            let message = format!("no file fits '{pattern}'");
            reader.warnings.push(Warning(Problem { place, field, message }));
            continue;
        }
        for file in files {
            if let Some(root) = reader.open(&file, &place, &field) {
                included.extend(entries(root, reader.problems));
            }
        }
    }
    map.entries.retain(|entry| entry.key != "scrape_config_files");
    if included.is_empty() {
        return;
    }
    match map.entries.iter_mut().find(|entry| entry.key == "scrape_configs").map(|entry| &mut entry.node.content) {
        Some(Content::List(list)) => list.extend(included),
        Some(_) => {}
        None => {
            let place = included[0].place.clone();
            let node = Node::new(place.clone(), Content::List(included));
            map.entries.push(Entry { key: "scrape_configs".to_owned(), key_place: place, node });
        }
    }
}

/// The entries of one file, which has `scrape_configs` and nothing else.
fn entries(root: Node, problems: &mut Vec<Problem>) -> Vec<Node> {
    let mut found = Vec::new();
    let Content::Map(Map { entries, .. }) = root.content else {
        let message = "expected a map with scrape_configs".to_owned();
        problems.push(Problem { place: root.place, field: String::new(), message });
        return found;
    };
    for entry in entries {
        match (entry.key.as_str(), entry.node.content) {
            ("scrape_configs", Content::List(list)) => found = list,
            ("scrape_configs", Content::Plain { value, .. }) if value.is_null() => {}
            ("scrape_configs", _) => {
                let message = "expected a list".to_owned();
                problems.push(Problem { place: entry.node.place, field: "scrape_configs".to_owned(), message });
            }
            (key, _) => {
                let message =
                    format!("'{key}' cannot stand in a file of scrape_config_files: only scrape_configs can; `include` takes whole files");
                problems.push(Problem { place: entry.key_place, field: key.to_owned(), message });
            }
        }
    }
    found
}
