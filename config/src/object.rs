//! Objects: jobs and relays that are written elsewhere than in the file, such as in a cluster, each checked by itself.
//!
//! *In*: a job or relay as JSON, who wrote it, what the file says, the contents of the Secrets that it names. *Out*: a [`Part`] of a configuration that
//! cannot be wrong, or everything that is wrong with it. *Bound*: [`PROBLEMS_MAX`](crate::PROBLEMS_MAX). *When full*: a last line says how many more
//! there are.
//!
//! The checks are those of a file: the object is one, laid over the file's `global` and the size of its `buffer`.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::component::{Kinds, Owned};
use crate::layers;
use crate::load::{self, Inserted};
use crate::nats::Nats;
use crate::problem::{Place, Problem, Warning};
use crate::schema;
use crate::tree::{Content, Node, Step, steps};
use crate::units::FilePath;
use crate::{Config, Relay, ScrapeConfig};

/// Where what is secret often stands beside what is not: keys of texts that a Secret may hold, too.
const OPEN: [&str; 4] = ["ca", "cert", "client_id", "username"];
/// What stands for a content until it is put in: nothing that any check of text reads as something else.
const AWAITED: &str = "awaited";
/// How many references deep a map may be: objects are bounded, and so is this.
const DEPTH_MAX: usize = 64;

/// Where a content is kept, beside the object that names it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Reference {
    /// In what.
    pub store: Store,
    /// Its name.
    pub name: String,
    /// The key in it.
    pub key: String,
}

/// What keeps contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Store {
    /// A Secret: `{secret: {name, key}}`.
    Secret,
    /// A ConfigMap: `{config_map: {name, key}}`.
    ConfigMap,
}

/// A job or a relay as somebody wrote it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Written {
    /// What problems call it: `spec`, `spec.endpoints[0]`.
    pub field: String,
    /// As in the configuration, with references in the place of secrets.
    pub value: Value,
}

/// The jobs and relays of one object.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Entries {
    /// Entries of `scrape_configs`.
    pub jobs: Vec<Written>,
    /// Entries of `relays`.
    pub relays: Vec<Written>,
}

/// What an object is checked against.
pub struct Ground<'a> {
    /// The file's configuration.
    pub file: &'a Config,
    /// The kinds of filters, encoders and sinks there are.
    pub kinds: &'a Kinds,
    /// What `${NAME}` stands for; none: nothing, who wrote it may not read Strata's environment.
    pub variables: &'a BTreeMap<String, String>,
    /// Whether it may name files of Strata's own file system.
    pub allows_files: bool,
    /// Where contents are put that must be in a file.
    pub folder: &'a Path,
}

/// Jobs and relays that may be used.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Part {
    /// Jobs.
    pub jobs: Vec<ScrapeConfig>,
    /// Relays.
    pub relays: Vec<Relay>,
    /// What works, but probably not as meant.
    pub warnings: Vec<Warning>,
    /// Files that must be there before: path and content. They hold secrets.
    pub files: Vec<(PathBuf, Contents)>,
}

/// The content of a file that nobody prints.
#[derive(Clone, PartialEq, Eq)]
pub struct Contents(pub String);

impl std::fmt::Debug for Contents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("<secret>")
    }
}

impl Store {
    const fn word(self) -> &'static str {
        match self {
            Self::Secret => "Secret",
            Self::ConfigMap => "ConfigMap",
        }
    }

    const fn key(self) -> &'static str {
        match self {
            Self::Secret => "secret",
            Self::ConfigMap => "config_map",
        }
    }
}

impl Reference {
    /// As it is written in the place of a text.
    pub fn value(&self) -> Value {
        json!({ self.store.key(): { "name": self.name, "key": self.key } })
    }

    fn read(value: &Value) -> Option<Self> {
        let map = value.as_object().filter(|map| map.len() == 1)?;
        [Store::Secret, Store::ConfigMap].into_iter().find_map(|store| {
            let inner = map.get(store.key())?.as_object().filter(|inner| inner.len() == 2)?;
            let text = |key: &str| inner.get(key)?.as_str().map(str::to_owned);
            Some(Self { store, name: text("name")?, key: text("key")? })
        })
    }
}

impl std::fmt::Display for Reference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "key '{}' of the {} '{}'", self.key, self.store.word(), self.name)
    }
}

impl Entries {
    /// All contents that it names, each once.
    pub fn references(&self) -> Vec<Reference> {
        let mut found = Vec::new();
        self.jobs.iter().chain(&self.relays).for_each(|written| collect(&written.value, &mut found, 0));
        found.sort_unstable();
        found.dedup();
        found
    }

    /// Checks them as if they were in the file; `name` says whose they are. A content that is not in `contents` is a problem at its place.
    ///
    /// *Errors*: every problem there is; no text of them holds a content.
    pub fn check(&self, name: &str, contents: &BTreeMap<Reference, String>, ground: &Ground<'_>) -> Result<Part, Vec<Problem>> {
        let place = Place::Override(name.to_owned());
        let mut awaited = Vec::new();
        let mut root = layers::json(&self.around(ground.file), &place);
        for (list, entries) in [("scrape_configs", &self.jobs), ("relays", &self.relays)] {
            for (index, written) in entries.iter().enumerate() {
                let path = steps![list, index].to_vec();
                if let Some(node) = root.at_mut(&path) {
                    *node = layers::json(&without_references(&written.value, path, &mut awaited, 0), &place);
                    node.written_as = Some(written.field.as_str().into());
                }
            }
        }
        let (mut problems, mut inserted, mut files) = (Vec::new(), Vec::new(), Vec::new());
        let schema = schema::exact(ground.kinds);
        let (secrets, paths) = (formatted(&schema, &root, schema::SECRET), formatted(&schema, &root, FilePath::FORMAT));
        let tell = |path: &[Step], message: String| Problem { place: place.clone(), field: root.written(path), message };
        for (path, reference) in awaited {
            let is_open = matches!(path.last(), Some(Step::Key(key)) if OPEN.contains(&key.as_str()));
            let is_file = paths.contains(&path);
            match contents.get(&reference) {
                _ if !is_open && !is_file && !secrets.contains(&path) => {
                    let message = "a Secret stands in the place of a secret or a file only: write the text itself here";
                    problems.push(tell(&path, message.to_owned()));
                }
                None => problems.push(tell(&path, format!("{reference} is not there: make it, or name another"))),
                Some(content) if is_file => {
                    let file = ground.folder.join(digest(content));
                    inserted.push(Inserted { path, text: file.display().to_string() });
                    files.push((file, Contents(content.clone())));
                }
                Some(content) => inserted.push(Inserted { path, text: content.clone() }),
            }
        }
        let own: HashSet<&[Step]> = inserted.iter().map(|inserted| inserted.path.as_slice()).collect();
        // `null` is the default, as everywhere.
        let is_written = |path: &[Step]| root.at(path).is_some_and(|node| !node.is_null());
        let local = paths.iter().filter(|path| is_written(path) && !own.contains(path.as_slice())).cloned().chain(sockets(&root, "relays"));
        if !ground.allows_files {
            let message = "names a file of Strata's own file system: take it from a Secret, {secret: {name: …, key: …}}; only objects in Strata's own namespace may, or all with kubernetes.allow_local_files";
            problems.extend(local.map(|path| tell(&path, message.to_owned())));
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        let (config, mut warnings) = load::object(root, &place, ground.variables, ground.kinds, &inserted)?;
        // That there are no relays or no jobs is no fault of an object.
        warnings.retain(|Warning(warning)| !["relays", "scrape_configs"].contains(&warning.field.as_str()));
        // A user of its own must be known to the server there before the process starts, which would not start any more otherwise.
        let has_users = matches!(&ground.file.buffer.nats, Nats::External(nats) if nats.seeds_dir.is_some());
        let is_feed = |relay: &Relay| ground.kinds.consumers.is_some_and(|consumers| consumers(&relay.sink).is_some());
        if let Some(index) = config.relays.iter().position(|relay| has_users && is_feed(relay)) {
            let message = "the server of `strata nats` knows the feeds of the file alone: write this relay into 'relays' of the configuration, or take another sink";
            let field = format!("{}.sink", self.relays.get(index).map_or("spec", |written| &written.field));
            return Err(vec![Problem { place, field, message: message.to_owned() }]);
        }
        let jobs = config.scrape_configs.into_iter().take(self.jobs.len()).collect();
        Ok(Part { jobs, relays: config.relays, warnings, files })
    }

    /// A file that has as much as the checks look at: the jobs that relays name need not be there.
    fn around(&self, file: &Config) -> Value {
        let placeholders = |entries: &[Written]| vec![Value::Null; entries.len()];
        let named = self.relays.iter().filter_map(|relay| relay.value.get("from")?.as_array()).flatten().filter_map(Value::as_str);
        let own: Vec<&str> = self.jobs.iter().filter_map(|job| job.value.get("job_name")?.as_str()).collect();
        let mut named: Vec<&str> = named.filter(|job| !own.contains(job) && !job.is_empty()).collect();
        named.sort_unstable();
        named.dedup();
        let mut jobs = placeholders(&self.jobs);
        jobs.extend(named.into_iter().map(|job| json!({ "job_name": job })));
        json!({
            "global": file.global,
            "buffer": { "max_bytes": file.buffer.max_bytes, "replay_window": file.buffer.replay_window },
            "scrape_configs": jobs,
            "relays": placeholders(&self.relays),
        })
    }
}

/// Lays parts over the file's configuration. What has a name that is taken, or needs for itself what another has, is left out; the file is first, then
/// the parts in their order.
///
/// *Shape*: beside the configuration the place of each part that was left out, and why.
pub fn merge<'p>(file: &Config, parts: impl IntoIterator<Item = &'p Part>, kinds: &Kinds) -> (Config, Vec<(usize, String)>) {
    let mut merged = file.clone();
    let mut jobs: HashSet<String> = file.scrape_configs.iter().map(|job| job.job_name.clone()).collect();
    let mut relays: HashSet<String> = file.relays.iter().map(|relay| relay.name.clone()).collect();
    let owned = |relay: &Relay| kinds.owns.and_then(|owns| owns(&relay.sink)).map(|Owned { thing, .. }| (relay.sink.name.clone(), thing));
    let mut things: HashSet<(String, String)> = file.relays.iter().filter_map(owned).collect();
    let mut left_out = Vec::new();
    for (index, part) in parts.into_iter().enumerate() {
        let job = part.jobs.iter().find(|job| jobs.contains(&job.job_name)).map(|job| format!("there is a job '{}' already", job.job_name));
        let relay = part.relays.iter().find(|relay| relays.contains(&relay.name));
        let relay = relay.map(|relay| format!("there is a relay '{}' already", relay.name));
        let thing = part.relays.iter().filter_map(owned).find(|thing| things.contains(thing));
        let thing = thing.map(|(sink, thing)| format!("another relay's sink '{sink}' has '{thing}' for itself"));
        if let Some(why) = job.or(relay).or(thing) {
            left_out.push((index, format!("{why}: give it another name, or take that one away")));
            continue;
        }
        jobs.extend(part.jobs.iter().map(|job| job.job_name.clone()));
        relays.extend(part.relays.iter().map(|relay| relay.name.clone()));
        things.extend(part.relays.iter().filter_map(owned));
        merged.scrape_configs.extend(part.jobs.iter().cloned());
        merged.relays.extend(part.relays.iter().cloned());
    }
    (merged, left_out)
}

fn collect(value: &Value, found: &mut Vec<Reference>, depth: usize) {
    if let Some(reference) = Reference::read(value) {
        found.push(reference);
        return;
    }
    let below: Box<dyn Iterator<Item = &Value>> = match value {
        Value::Array(items) => Box::new(items.iter()),
        Value::Object(map) => Box::new(map.values()),
        _ => return,
    };
    if depth < DEPTH_MAX {
        below.for_each(|value| collect(value, found, depth + 1));
    }
}

/// The value with [`AWAITED`] in the place of references, and where these were.
fn without_references(value: &Value, path: Vec<Step>, awaited: &mut Vec<(Vec<Step>, Reference)>, depth: usize) -> Value {
    if let Some(reference) = Reference::read(value) {
        awaited.push((path, reference));
        return Value::String(AWAITED.to_owned());
    }
    let below = |step: Step| [path.as_slice(), &[step]].concat();
    match value {
        Value::Array(items) if depth < DEPTH_MAX => {
            items.iter().enumerate().map(|(index, item)| without_references(item, below(index.into()), awaited, depth + 1)).collect()
        }
        Value::Object(map) if depth < DEPTH_MAX => {
            let entry =
                |(key, value): (&String, &Value)| (key.clone(), without_references(value, below(key.as_str().into()), awaited, depth + 1));
            Value::Object(map.iter().map(entry).collect())
        }
        _ => value.clone(),
    }
}

fn formatted(schema: &Value, tree: &Node, format: &str) -> HashSet<Vec<Step>> {
    schema::formatted(schema, tree, format).into_iter().collect()
}

/// Texts below a key that name a socket of the file system.
fn sockets(tree: &Node, key: &str) -> Vec<Vec<Step>> {
    fn visit(node: &Node, path: &mut Vec<Step>, found: &mut Vec<Vec<Step>>) {
        let mut below = |step: Step, node: &Node| {
            path.push(step);
            visit(node, path, found);
            path.pop();
        };
        match &node.content {
            Content::Text(text) if text.starts_with("unix") && text.contains("://") => found.push(path.clone()),
            Content::Text(_) | Content::Plain { .. } => {}
            Content::List(items) => items.iter().enumerate().for_each(|(index, item)| below(index.into(), item)),
            Content::Map(map) => map.entries.iter().for_each(|entry| below(entry.key.as_str().into(), &entry.node)),
        }
    }
    let (mut found, path) = (Vec::new(), steps![key].to_vec());
    if let Some(node) = tree.at(&path) {
        visit(node, &mut path.clone(), &mut found);
    }
    found
}

/// A file's name for a content: another content has another name, so whoever reads the file sees one or the other, whole.
fn digest(content: &str) -> String {
    let hash = Sha256::digest(content.as_bytes());
    hash.iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
