//! The configuration as written: values that know their place.
//!
//! *In*: nodes from the YAML reader and from overrides. *Out*: JSON for serde, and the place of any path. *Bound*: what the reader
//! let through. *When full*: does not apply.

use std::fmt::Write as _;

use serde_json::Value;

use crate::problem::Place;

/// One value and where it begins.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) place: Place,
    pub(crate) content: Content,
    /// A problem of this node was told already, so nothing about it or below it is told again.
    pub(crate) reported: bool,
    /// The path under which it was written, where it stands under another one now.
    pub(crate) written_as: Option<Box<str>>,
}

/// What a node holds.
#[derive(Debug, Clone)]
pub(crate) enum Content {
    /// A plain scalar and its text: `9100` is a number until a string is wanted.
    Plain {
        value: Value,
        text: String,
    },
    /// A quoted scalar, or any other text.
    Text(String),
    List(Vec<Node>),
    Map(Map),
}

/// Entries in the order they were written.
#[derive(Debug, Clone, Default)]
pub(crate) struct Map {
    pub(crate) entries: Vec<Entry>,
    /// Keys that were taken out because of a problem: their absence is no second problem.
    pub(crate) removed: Vec<String>,
}

/// A key with its own place, and its value.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) key_place: Place,
    pub(crate) node: Node,
}

/// A step down.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Step {
    Key(String),
    Index(usize),
}

/// Builds a path: `steps!["relays", 0, "name"]`.
macro_rules! steps {
    ($($step:expr),* $(,)?) => { [$($crate::tree::Step::from($step)),*] };
}
pub(crate) use steps;

impl From<&str> for Step {
    fn from(key: &str) -> Self {
        Self::Key(key.to_owned())
    }
}

impl From<usize> for Step {
    fn from(index: usize) -> Self {
        Self::Index(index)
    }
}

impl Map {
    pub(crate) fn get(&self, key: &str) -> Option<&Entry> {
        self.entries.iter().find(|e| e.key == key)
    }

    /// Takes a key out and remembers it.
    pub(crate) fn remove(&mut self, key: &str) {
        self.entries.retain(|e| e.key != key);
        self.removed.push(key.to_owned());
    }
}

impl Node {
    pub(crate) const fn new(place: Place, content: Content) -> Self {
        Self { place, content, reported: false, written_as: None }
    }

    /// An empty map.
    pub(crate) fn empty(place: Place) -> Self {
        Self::new(place, Content::Map(Map::default()))
    }

    pub(crate) fn is_null(&self) -> bool {
        matches!(&self.content, Content::Plain { value: Value::Null, .. })
    }

    /// The value below, if the step exists.
    pub(crate) fn child(&self, step: &Step) -> Option<&Self> {
        match (&self.content, step) {
            (Content::List(items), Step::Index(i)) => items.get(*i),
            (Content::Map(map), Step::Key(key)) => map.get(key).map(|e| &e.node),
            _ => None,
        }
    }

    /// As [`Node::child`], to change it.
    pub(crate) fn child_mut(&mut self, step: &Step) -> Option<&mut Self> {
        match (&mut self.content, step) {
            (Content::List(items), Step::Index(i)) => items.get_mut(*i),
            (Content::Map(map), Step::Key(key)) => map.entries.iter_mut().find(|e| e.key == *key).map(|e| &mut e.node),
            _ => None,
        }
    }

    /// The node at a path.
    pub(crate) fn at(&self, path: &[Step]) -> Option<&Self> {
        path.iter().try_fold(self, |node, step| node.child(step))
    }

    /// As [`Node::at`], to change it.
    pub(crate) fn at_mut(&mut self, path: &[Step]) -> Option<&mut Self> {
        path.iter().try_fold(self, |node, step| node.child_mut(step))
    }

    /// Whether a problem was told of this path or anything above it.
    pub(crate) fn is_reported(&self, path: &[Step]) -> bool {
        let mut node = self;
        for step in path {
            if node.reported {
                return true;
            }
            match node.child(step) {
                Some(child) => node = child,
                None => return false,
            }
        }
        node.reported
    }

    /// The place of a path, or of the nearest thing above it that was written by somebody.
    pub(crate) fn place_of(&self, path: &[Step]) -> Place {
        let mut node = self;
        let mut place = self.place.clone();
        for step in path {
            match node.child(step) {
                Some(child) => node = child,
                None => break,
            }
            if node.place != Place::Default {
                place = node.place.clone();
            }
        }
        place
    }

    /// The place of the last key of a path.
    pub(crate) fn key_place_of(&self, path: &[Step]) -> Place {
        if let Some((Step::Key(key), parent)) = path.split_last()
            && let Some(Self { content: Content::Map(map), .. }) = self.at(parent)
            && let Some(entry) = map.get(key)
        {
            return entry.key_place.clone();
        }
        self.place_of(path)
    }

    /// A path as it was written: `relays[0].sink`.
    pub(crate) fn written(&self, path: &[Step]) -> String {
        let (mut node, mut found) = (self, None);
        for (depth, step) in path.iter().enumerate() {
            let Some(child) = node.child(step) else { break };
            node = child;
            found = node.written_as.as_deref().map(|written| (depth + 1, written)).or(found);
        }
        match found.map(|(depth, written)| (written, &path[depth..])) {
            None => show(path),
            Some((written, rest @ [Step::Key(_), ..])) => format!("{written}.{}", show(rest)),
            Some((written, rest)) => format!("{written}{}", show(rest)),
        }
    }

    /// Without the places.
    pub(crate) fn to_json(&self) -> Value {
        match &self.content {
            Content::Plain { value, .. } => value.clone(),
            Content::Text(text) => Value::String(text.clone()),
            Content::List(items) => items.iter().map(Self::to_json).collect(),
            Content::Map(map) => Value::Object(map.entries.iter().map(|e| (e.key.clone(), e.node.to_json())).collect()),
        }
    }
}

/// `9100` where text is wanted is the text `9100`, as in Prometheus: changes it and says what it is now.
pub(crate) fn quote(tree: &mut Node, path: &[Step]) -> Option<String> {
    let node = tree.at_mut(path)?;
    match &node.content {
        Content::Plain { text, value } if !value.is_null() => {
            let text = text.clone();
            node.content = Content::Text(text.clone());
            Some(text)
        }
        _ => None,
    }
}

/// `relays[0].sink`.
pub(crate) fn show(path: &[Step]) -> String {
    let mut text = String::new();
    for step in path {
        match step {
            Step::Key(key) => {
                if !text.is_empty() {
                    text.push('.');
                }
                text.push_str(key);
            }
            Step::Index(index) => {
                // Writing to a String cannot fail.
                write!(text, "[{index}]").expect("a string takes all text");
            }
        }
    }
    text
}

/// Reads `headers.X`, `brokers[0]` or `brokers.0` down from a node; a step that is not there ends the path with it.
pub(crate) fn parse(text: &str) -> Vec<Step> {
    let mut path = Vec::new();
    for part in text.split('.').filter(|p| !p.is_empty()) {
        let (key, rest) = part.split_at(part.find('[').unwrap_or(part.len()));
        if !key.is_empty() {
            path.push(key.parse::<usize>().map_or_else(|_| Step::Key(key.to_owned()), Step::Index));
        }
        for index in rest.split(['[', ']']).filter(|i| !i.is_empty()) {
            path.push(index.parse::<usize>().map_or_else(|_| Step::Key(index.to_owned()), Step::Index));
        }
    }
    path
}
