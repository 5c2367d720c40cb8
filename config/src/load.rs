//! Loading: the file is read, laid over, typed and checked, and everything that is wrong is said at once.
//!
//! *In*: a path, overrides, the kinds that exist. *Out*: a [`Config`] that cannot be wrong, or every problem with its place.
//! *Bound*: [`PROBLEMS_MAX`]. *When full*: a last line says how many more there are.
//!
//! serde stops at the first error. So the value that it stumbled over is taken out of the tree (or replaced by an empty one of the
//! wanted type), and the rest is typed again, until it passes.

use std::collections::BTreeMap;
use std::path::Path;

use crate::check;
use crate::component::Kinds;
use crate::files;
use crate::include::{self, Reader, Sources};
use crate::layers::{self, Overrides};
use crate::problem::{PROBLEMS_MAX, Place, Problem, Warning};
use crate::schema;
use crate::secrets::{self, Found};
use crate::tree::{self, Content, Entry, Map, Node, Step, steps};
use crate::words::{self, About};
use crate::yaml;
use crate::{Config, Millis, ValidationScheme};

/// Rounds of typing; far above [`PROBLEMS_MAX`], so it ends even where taking out never helps.
const ROUNDS_MAX: usize = 2000;

/// Keys of Prometheus and of the design that this version does not read: said as such instead of "unknown".
const NOT_YET: &[&str] = &[
    "azure_sd_configs",
    "consul_sd_configs",
    "digitalocean_sd_configs",
    "docker_sd_configs",
    "dockerswarm_sd_configs",
    "ec2_sd_configs",
    "eureka_sd_configs",
    "gce_sd_configs",
    "hetzner_sd_configs",
    "ionos_sd_configs",
    "kuma_sd_configs",
    "lightsail_sd_configs",
    "linode_sd_configs",
    "marathon_sd_configs",
    "native_histogram_bucket_limit",
    "native_histogram_min_bucket_factor",
    "nerve_sd_configs",
    "nomad_sd_configs",
    "openstack_sd_configs",
    "ovhcloud_sd_configs",
    "puppetdb_sd_configs",
    "scaleway_sd_configs",
    "serverset_sd_configs",
    "sigv4",
    "stackit_sd_configs",
    "triton_sd_configs",
    "uyuni_sd_configs",
    "vultr_sd_configs",
];

/// What a person writes instead of a key of [`NOT_YET`].
fn instead(key: &str) -> &'static str {
    match key {
        "native_histogram_bucket_limit" | "native_histogram_min_bucket_factor" => {
            "histograms keep their resolution on the way; set it where they are stored"
        }
        key if key.ends_with("_sd_configs") => "have the targets written to a file for file_sd_configs, or served for http_sd_configs",
        _ => "take it out",
    }
}

/// A configuration that may be used, and what is known of how it came to be.
#[derive(Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// What works, but probably not as meant.
    pub warnings: Vec<Warning>,
    /// The files it was made of.
    pub sources: Sources,
    /// Where each value was written.
    pub places: Places,
}

/// A configuration that cannot be used.
#[derive(Debug)]
pub struct Refused {
    /// Everything that is wrong.
    pub problems: Vec<Problem>,
    /// The files it was made of, as far as they are known: when one changes, it is time to try again.
    pub sources: Sources,
}

/// Where each value of a configuration was written.
pub struct Places {
    /// What was written, over the defaults.
    pub(crate) tree: Node,
    /// What must not be shown of it.
    pub(crate) secrets: Vec<Found>,
}

/// The tree holds secrets.
impl std::fmt::Debug for Places {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Places").finish_non_exhaustive()
    }
}

impl Places {
    /// The place of a path like `relays[0].sink`, or of the nearest thing above it that somebody wrote.
    pub fn of(&self, path: &str) -> Place {
        self.tree.place_of(&tree::parse(path))
    }
}

/// Reads and checks a configuration file with all that it includes.
///
/// *Shape*: paths are relative to the folder of the file in which they stand, as in Prometheus; `buffer.data_dir` is to the working directory.
/// *Errors*: every problem there is, in the order of the files.
pub fn load(path: &Path, overrides: &Overrides, kinds: &Kinds) -> Result<Loaded, Refused> {
    let (mut problems, mut warnings) = (Vec::new(), Vec::new());
    let read = include::read(path, &mut problems);
    let mut reader = Reader::new(path, &mut problems, &mut warnings);
    let read = read.map(|mut root| {
        reader.complete(&mut root, path.parent().unwrap_or_else(|| Path::new("")));
        root
    });
    let sources = reader.sources;
    let file = Place::File { file: path.display().to_string(), line: 0, column: 0 };
    let built = match read {
        Ok(root) => build(root, &file, overrides, kinds, problems, warnings, &[]),
        Err(include::Failed::Inside(problem)) => Err(vec![problem]),
        Err(include::Failed::Whole(message)) => {
            Err(vec![Problem { place: file, field: String::new(), message: format!("cannot read it: {message}") }])
        }
    };
    match built {
        Ok((config, warnings, places)) => Ok(Loaded { config, warnings, sources, places }),
        Err(problems) => Err(Refused { problems, sources }),
    }
}

/// Checks the text of a configuration file; `file` is the name in messages, and paths begin at its folder.
///
/// *Errors*: as [`load`].
pub fn parse(file: &str, text: &str, overrides: &Overrides, kinds: &Kinds) -> Result<(Config, Vec<Warning>), Vec<Problem>> {
    let yaml::Read { mut root, mut problems } = yaml::read(file, text).map_err(|problem| vec![problem])?;
    let mut warnings = Vec::new();
    Reader::new(Path::new(file), &mut problems, &mut warnings).complete(&mut root, Path::new(""));
    let whole = Place::File { file: file.to_owned(), line: 0, column: 0 };
    build(root, &whole, overrides, kinds, problems, warnings, &[]).map(|(config, warnings, _)| (config, warnings))
}

/// A text that is put into a tree once nothing in it is expanded any more.
pub(crate) struct Inserted {
    pub(crate) path: Vec<Step>,
    pub(crate) text: String,
}

/// Checks a tree that is not in a file; what is inserted is put where it belongs, as it is.
///
/// *Errors*: as [`load`].
pub(crate) fn object(
    root: Node,
    place: &Place,
    variables: &BTreeMap<String, String>,
    kinds: &Kinds,
    inserted: &[Inserted],
) -> Result<(Config, Vec<Warning>), Vec<Problem>> {
    let overrides = Overrides::variables(variables.clone());
    build(root, place, &overrides, kinds, Vec::new(), Vec::new(), inserted).map(|(config, warnings, _)| (config, warnings))
}

type Built = Result<(Config, Vec<Warning>, Places), Vec<Problem>>;

fn build(
    mut root: Node,
    file: &Place,
    overrides: &Overrides,
    kinds: &Kinds,
    mut problems: Vec<Problem>,
    mut warnings: Vec<Warning>,
    inserted: &[Inserted],
) -> Built {
    drop_nulls(&mut root, 0);
    problems.extend(refuse_lists(&mut root));
    let mut tree = layers::merge(&root, overrides).map_err(|problem| vec![problem])?;
    let schema = schema::exact(kinds);
    let secrets = secrets::expand(&mut tree, &schema, &overrides.variables, &mut problems, &mut warnings);
    for Inserted { path, text } in inserted {
        if let Some(node) = tree.at_mut(path) {
            node.content = Content::Text(text.clone());
        }
    }
    let typed = type_all(&mut tree, &mut problems);
    if let Some(mut config) = typed {
        settle_names(&mut config);
        let mut findings = check::Findings::new(&mut tree, kinds);
        findings.check(&config);
        problems.append(&mut findings.problems);
        warnings.extend(findings.warnings);
        let is_requoted = findings.requoted;
        // Only now: what is wrong with a path is told as it was written.
        let is_resolved = problems.is_empty() && files::resolve(&mut tree, &schema);
        if is_requoted || is_resolved {
            config = type_all(&mut tree, &mut problems).unwrap_or(config);
        }
        problems.extend(name_nodes(&mut config, &tree, &overrides.variables));
        if problems.is_empty() {
            settle(&mut config, &tree);
            for value in config.global.external_labels.values_mut() {
                *value = expand(value, &overrides.variables);
            }
            return Ok((config, warnings, Places { tree, secrets }));
        }
    }
    problems.sort_by(|a, b| (&a.place, &a.field).cmp(&(&b.place, &b.field)));
    problems.dedup();
    if problems.len() > PROBLEMS_MAX {
        let more = problems.len() - PROBLEMS_MAX;
        problems.truncate(PROBLEMS_MAX);
        problems.push(Problem { place: file.clone(), field: String::new(), message: format!("and {more} more problems") });
    }
    Err(problems)
}

/// Nodes that the environment names; one that it does not name is a problem: every pod without a node would be meant.
fn name_nodes(config: &mut Config, tree: &Node, environment: &BTreeMap<String, String>) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (i, scrape) in config.scrape_configs.iter_mut().enumerate() {
        let Some(node) = scrape.kubernetes_annotations.as_mut().and_then(|annotations| annotations.node.as_mut()) else { continue };
        let named = expand(node, environment);
        if named.is_empty() && !node.is_empty() {
            let path = steps!["scrape_configs", i, "kubernetes_annotations", "node"];
            let message = format!("'{node}' is empty in this environment: set the variable, in a pod from the field spec.nodeName");
            problems.push(Problem { place: tree.place_of(&path), field: tree.written(&path), message });
        }
        *node = named;
    }
    problems
}

/// A timeout that nobody wrote is never above the interval, and a limit that nobody wrote is the general one, as in Prometheus.
fn settle(config: &mut Config, tree: &Node) {
    let written = tree.at(&steps!["global", "scrape_timeout"]).is_some_and(|n| n.place != Place::Default);
    if !written {
        config.global.scrape_timeout = Millis(config.global.scrape_timeout.0.min(config.global.scrape_interval.0));
    }
    let global = &config.global;
    for scrape in &mut config.scrape_configs {
        for (own, general) in [
            (&mut scrape.body_size_limit.0, global.body_size_limit.0),
            (&mut scrape.sample_limit, global.sample_limit),
            (&mut scrape.label_limit, global.label_limit),
            (&mut scrape.label_name_length_limit, global.label_name_length_limit),
            (&mut scrape.label_value_length_limit, global.label_value_length_limit),
            (&mut scrape.target_limit, global.target_limit),
            (&mut scrape.keep_dropped_targets, global.keep_dropped_targets),
        ] {
            if *own == 0 {
                *own = general;
            }
        }
        scrape.scrape_protocols = scrape.scrape_protocols.take().or_else(|| global.scrape_protocols.clone());
        for (own, general) in [
            (&mut scrape.scrape_native_histograms, global.scrape_native_histograms),
            (&mut scrape.always_scrape_classic_histograms, global.always_scrape_classic_histograms),
            (&mut scrape.extra_scrape_metrics, global.extra_scrape_metrics),
        ] {
            *own = own.or(general);
        }
    }
    settle_names(config);
}

/// Which names are names, and what targets are asked to do with others: as in Prometheus, a job that says the first inherits neither.
fn settle_names(config: &mut Config) {
    let global = &config.global;
    for scrape in &mut config.scrape_configs {
        if scrape.metric_name_validation_scheme.is_none() {
            scrape.metric_name_validation_scheme = global.metric_name_validation_scheme;
            scrape.metric_name_escaping_scheme = scrape.metric_name_escaping_scheme.or(global.metric_name_escaping_scheme);
        }
        let is_legacy = scrape.metric_name_validation_scheme == Some(ValidationScheme::Legacy);
        for rule in scrape.relabel_configs.iter_mut().chain(&mut scrape.metric_relabel_configs) {
            rule.is_legacy = is_legacy;
        }
    }
}

/// `$NAME` and `${NAME}` as the environment has them, `$$` as `$`; what is not set is nothing, as in Prometheus.
fn expand(text: &str, environment: &BTreeMap<String, String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(before);
        let braced = after.strip_prefix('{').and_then(|inside| inside.split_once('}'));
        let bare = || after.split_at(after.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(after.len()));
        rest = match (after.strip_prefix('$'), braced) {
            (Some(after), _) => {
                out.push('$');
                after
            }
            (None, Some((name, after))) => {
                out.push_str(environment.get(name).map_or("", String::as_str));
                after
            }
            (None, None) => {
                let (name, after) = bare();
                out.push_str(if name.is_empty() { "$" } else { environment.get(name).map_or("", String::as_str) });
                after
            }
        };
    }
    out + rest
}

/// `key:` with nothing behind it means the default; inside a component's options it is the component's business.
fn drop_nulls(node: &mut Node, depth: usize) {
    match &mut node.content {
        Content::Map(map) => {
            map.entries.retain(|e| !e.node.is_null());
            let options = |key: &str| depth > 0 && matches!(key, "filters" | "encode" | "sink");
            map.entries.iter_mut().filter(|e| !options(&e.key)).for_each(|e| drop_nulls(&mut e.node, depth + 1));
        }
        Content::List(items) => items.iter_mut().for_each(|item| drop_nulls(item, depth + 1)),
        Content::Plain { .. } | Content::Text(_) => {}
    }
}

/// serde would read a list as a map's values in order: nobody means that.
fn refuse_lists(tree: &mut Node) -> Vec<Problem> {
    let mut maps =
        vec![Vec::new(), steps!["global"].to_vec(), steps!["buffer"].to_vec(), steps!["feeds"].to_vec(), steps!["server"].to_vec()];
    for list in ["scrape_configs", "relays", "tests"] {
        if let Some(Node { content: Content::List(items), .. }) = tree.at(&steps![list]) {
            maps.extend((0..items.len()).map(|i| steps![list, i].to_vec()));
        }
    }
    let mut problems = Vec::new();
    for path in maps {
        let found = match tree.at(&path).map(|n| &n.content) {
            Some(Content::List(_)) => "a list",
            Some(Content::Text(_) | Content::Plain { .. }) if path.is_empty() => "one word: is it the right file?",
            _ => continue,
        };
        problems.extend(told(tree, &path, tree.place_of(&path), format!("expected a map, found {found}")));
        take_out(tree, &path, Some("a map"));
    }
    problems
}

/// Types the tree, collecting every error on the way.
fn type_all(tree: &mut Node, problems: &mut Vec<Problem>) -> Option<Config> {
    for _ in 0..ROUNDS_MAX {
        let json = tree.to_json();
        match serde_path_to_error::deserialize::<_, Config>(&json) {
            Ok(config) => return Some(config),
            Err(error) => {
                let path: Vec<Step> = error.path().iter().filter_map(step).collect();
                problems.extend(mend(tree, path, &error.inner().to_string()));
            }
        }
    }
    None
}

fn step(segment: &serde_path_to_error::Segment) -> Option<Step> {
    match segment {
        serde_path_to_error::Segment::Seq { index } => Some(Step::Index(*index)),
        serde_path_to_error::Segment::Map { key } => Some(Step::Key(key.clone())),
        serde_path_to_error::Segment::Enum { .. } | serde_path_to_error::Segment::Unknown => None,
    }
}

/// Takes what serde refused out of the tree; the problem, unless it only follows from one that was told.
fn mend(tree: &mut Node, mut path: Vec<Step>, message: &str) -> Option<Problem> {
    let wording = words::reword(message);
    match wording.about {
        About::UnknownKey => {
            let word = message.split('`').nth(1).unwrap_or_default().to_owned();
            if path.last() != Some(&Step::Key(word.clone())) {
                path.push(Step::Key(word.clone()));
            }
            let text = if NOT_YET.contains(&word.as_str()) {
                format!("'{word}' is not read by this version: {}", instead(&word))
            } else {
                wording.text
            };
            let problem = told(tree, &path, tree.key_place_of(&path), text);
            take_out(tree, &path, None);
            problem
        }
        About::MissingKey(key) => add_missing(tree, &path, key, wording.text),
        About::Type { expected } => {
            if expected.contains("a string") && tree::quote(tree, &path).is_some() {
                return None;
            }
            let keys = path.iter().filter_map(|step| if let Step::Key(key) = step { Some(key.as_str()) } else { None });
            let text = words::discreet(keys, wording.text);
            let problem = told(tree, &path, tree.place_of(&path), text);
            take_out(tree, &path, Some(&expected));
            problem
        }
        About::Value => {
            let problem = told(tree, &path, tree.place_of(&path), wording.text);
            take_out(tree, &path, None);
            problem
        }
    }
}

/// The problem, unless something above it was told already.
fn told(tree: &Node, path: &[Step], place: Place, message: String) -> Option<Problem> {
    (!tree.is_reported(path)).then(|| Problem { place, field: tree.written(path), message })
}

/// Removes a value from its map, or empties it where it stands in a list (so that the others keep their numbers).
fn take_out(tree: &mut Node, path: &[Step], expected: Option<&str>) {
    let empty = |node: &mut Node| {
        node.content = match (expected, &node.content) {
            (Some(e), _) if e.contains("a list") => Content::List(Vec::new()),
            (Some("a map"), _) => Content::Map(Map::default()),
            (_, Content::Text(_)) if node.reported => Content::Map(Map::default()),
            _ => Content::Text("placeholder".to_owned()),
        };
        node.reported = true;
    };
    match path.split_last() {
        None => {
            tree.content = Content::Map(Map::default());
            tree.reported = true;
        }
        Some((Step::Key(key), parent)) => {
            if let Some(Node { content: Content::Map(map), .. }) = tree.at_mut(parent) {
                map.remove(key);
            }
        }
        Some((Step::Index(_), _)) => {
            if let Some(node) = tree.at_mut(path) {
                empty(node);
            }
        }
    }
}

/// Puts something in the place of a key that must be there: text first, then a list, then a map.
fn add_missing(tree: &mut Node, path: &[Step], key: String, message: String) -> Option<Problem> {
    let place = tree.place_of(path);
    let (field, reported) = (tree.written(path), tree.is_reported(path));
    let Some(Node { content: Content::Map(map), .. }) = tree.at_mut(path) else { return None };
    let tries = map.removed.iter().filter(|k| **k == key).count();
    let content = match tries {
        0 | 1 => Content::Text(if key == "expect" { "kept" } else { "placeholder" }.to_owned()),
        2 => Content::List(Vec::new()),
        _ => Content::Map(Map::default()),
    };
    let mut node = Node::new(place.clone(), content);
    node.reported = true;
    map.removed.push(key.clone());
    map.entries.push(Entry { key, key_place: place.clone(), node });
    (tries == 0 && !reported).then_some(Problem { place, field, message })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn external_labels_take_the_environment() {
        let environment = BTreeMap::from([("ZONE".to_owned(), "eu-1".to_owned())]);
        for (text, expect) in [
            ("a", "a"),
            ("$ZONE", "eu-1"),
            ("x-${ZONE}-y", "x-eu-1-y"),
            ("$ZONE.$NONE.", "eu-1.."),
            ("$$ZONE", "$ZONE"),
            ("5$", "5$"),
            ("${", "${"),
        ] {
            assert_eq!(expand(text, &environment), expect, "{text}");
        }
    }
}
