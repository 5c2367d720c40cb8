//! What a prometheus.yml has beside `global` and `scrape_configs`.
//!
//! *In*: the tree of the file. *Out*: the tree with the entries of `scrape_config_files` in it, and without what is no business of
//! Strata's, which is told in one warning. *Bound*: that of every file of a configuration. *When full*: a problem at the pattern.

use std::path::Path;

use crate::include::{Reader, named};
use crate::problem::{Problem, Warning};
use crate::tree::{Content, Entry, Map, Node, show, steps};
use crate::{Global, Millis, words};

/// Keys of a prometheus.yml that are for storing, asking and alerting.
const NOT_OURS: [&str; 7] = ["alerting", "otlp", "remote_read", "rule_files", "runtime", "storage", "tracing"];
/// The same under `global`.
const NOT_OURS_GLOBAL: [&str; 4] = ["evaluation_interval", "query_log_file", "rule_query_offset", "scrape_failure_log_file"];

/// The same in a scrape configuration.
const NOT_OURS_SCRAPE: [&str; 1] = ["scrape_failure_log_file"];

/// What Prometheus 2.45 to 2.55 call a key of a scrape configuration, and what it is called since.
const RENAMED: [(&str, &str); 1] = [("scrape_classic_histograms", "always_scrape_classic_histograms")];

/// Under `global` of a file that `scrape_config_files` names: what is said of all jobs, not of its own.
const OF_ALL: &str = "external_labels";
/// At the top of such a file: where samples go is said by the file that names it.
const SENT: &str = "remote_write";

/// Takes out what is not Strata's to do; one warning names all of it. `is_named`: the file is one that `scrape_config_files` names.
pub(crate) fn set_aside(root: &mut Node, is_named: bool) -> Option<Warning> {
    let mut found = Vec::new();
    let more = |key| if is_named { vec![key] } else { Vec::new() };
    let (top, global) = ([&NOT_OURS[..], &more(SENT)].concat(), [&NOT_OURS_GLOBAL[..], &more(OF_ALL)].concat());
    for (parent, keys) in [(&[][..], top), (&steps!["global"][..], global)] {
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
    let sent = if names.contains(&SENT) { "; what is collected goes where the file that names this one says" } else { "" };
    let of_all = if is_named && names.contains(&format!("global.{OF_ALL}").as_str()) {
        "; labels of all series are those of the file that names this one"
    } else {
        ""
    };
    let message = format!("left out, as Strata neither stores, queries nor alerts: {}{sent}{of_all}", names.join(", "));
    Some(Warning(Problem { place, field: String::new(), message }))
}

/// Gives keys of older versions the name that they have now, each with a warning; where both are written the newer one holds.
pub(crate) fn rename(root: &mut Node) -> Vec<Warning> {
    let mut warnings = Vec::new();
    let Some(Node { content: Content::List(jobs), .. }) = root.at_mut(&steps!["scrape_configs"]) else { return warnings };
    for (i, job) in jobs.iter_mut().enumerate() {
        let Content::Map(map) = &mut job.content else { continue };
        for (old, new) in RENAMED {
            let Some(at) = map.entries.iter().position(|entry| entry.key == old) else { continue };
            let (is_both, place) = (map.get(new).is_some(), map.entries[at].key_place.clone());
            let message = if is_both {
                map.entries.remove(at);
                format!("left out, as '{new}' is there too, which is its name since Prometheus 3")
            } else {
                map.entries[at].key = new.to_owned();
                format!("read as '{new}', which is its name since Prometheus 3")
            };
            warnings.push(Warning(Problem { place, field: format!("scrape_configs[{i}].{old}"), message }));
        }
    }
    warnings
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
            let root = reader.nested(&file, &place, &field, |reader, root, folder| {
                reader.warnings.extend(set_aside(root, true));
                reader.warnings.extend(rename(root));
                include(root, folder, reader);
            });
            included.extend(root.into_iter().flat_map(|root| entries(root, reader.problems)));
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

/// The entries of one file, each with what the file's own `global` says where it says nothing itself.
fn entries(root: Node, problems: &mut Vec<Problem>) -> Vec<Node> {
    let (mut found, mut general) = (Vec::new(), Map::default());
    let Content::Map(Map { entries, .. }) = root.content else {
        let message = "expected a map with scrape_configs".to_owned();
        problems.push(Problem { place: root.place, field: String::new(), message });
        return found;
    };
    for Entry { key, key_place, node } in entries {
        let (place, is_null) = (node.place.clone(), node.is_null());
        let expected = match (key.as_str(), node.content) {
            ("scrape_configs" | "global" | "scrape_config_files", _) if is_null => continue,
            ("scrape_configs", Content::List(list)) => {
                found = list;
                continue;
            }
            ("global", Content::Map(map)) => {
                general = map;
                continue;
            }
            ("scrape_configs", _) => "a list",
            ("global", _) => "a map",
            ("scrape_config_files", _) => "a list of files",
            _ => {
                let message = format!(
                    "'{key}' cannot stand in a file of scrape_config_files: only what a prometheus.yml has can; `include` takes whole files"
                );
                problems.push(Problem { place: key_place, field: key, message });
                continue;
            }
        };
        problems.push(Problem { place, field: key, message: format!("expected {expected}") });
    }
    let known: Vec<String> = serde_json::to_value(Global::default())
        .ok()
        .and_then(|global| Some(global.as_object()?.keys().cloned().collect()))
        .unwrap_or_default();
    general.entries.retain(|entry| {
        let is_known = known.contains(&entry.key);
        if !is_known {
            let (place, field) = (entry.key_place.clone(), format!("global.{}", entry.key));
            problems.push(Problem { place, field, message: words::unknown("key", &entry.key, &known) });
        }
        is_known && !entry.node.is_null()
    });
    for job in found.iter_mut().filter_map(|job| if let Content::Map(job) = &mut job.content { Some(job) } else { None }) {
        inherit(job, &general);
    }
    found
}

/// Puts into a job what it leaves to its file's `global`: every key there is a job's too.
fn inherit(job: &mut Map, general: &Map) {
    for entry in &general.entries {
        if job.get(&entry.key).is_none_or(|own| own.node.is_null()) {
            job.entries.retain(|own| own.key != entry.key);
            job.entries.push(entry.clone());
        }
    }
    // As in Prometheus, a general timeout is never above the interval of a job.
    let millis = |key: &str| match &job.get(key)?.node.content {
        Content::Text(text) | Content::Plain { text, .. } => text.parse::<Millis>().ok(),
        _ => None,
    };
    if let (Some(interval), Some(timeout)) = (millis("scrape_interval"), millis("scrape_timeout"))
        && timeout > interval
        && let (Some(interval), Some(general)) = (job.get("scrape_interval").map(|entry| entry.node.clone()), general.get("scrape_timeout"))
        && let Some(timeout) = job.entries.iter_mut().find(|own| own.key == general.key && own.key_place == general.key_place)
    {
        timeout.node = interval;
    }
}
