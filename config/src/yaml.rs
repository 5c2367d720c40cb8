//! The YAML reader that keeps places.
//!
//! *In*: the text of one file. *Out*: its tree and every duplicate key. *Bound*: [`FILE_BYTES_MAX`], [`NODES_MAX`] (aliases count as what
//! they stand for), [`DEPTH_MAX`]. *When full*: a problem at the place where the bound was met.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle, Span, StrInput};
use serde_json::Value;

use crate::problem::{Place, Problem};
use crate::tree::{Content, Entry, Map, Node};

/// Bytes of one file. Larger: a mistaken path may fill the memory; smaller: generated files with thousands of targets do not fit.
pub(crate) const FILE_BYTES_MAX: usize = 8 << 20;
/// Values in one file, aliases expanded. Larger: a few lines of aliases may fill the memory.
const NODES_MAX: usize = 500_000;
/// Lists and maps inside each other.
const DEPTH_MAX: usize = 64;

/// A file's tree, and the problems that still leave a tree to look at.
pub(crate) struct Read {
    pub(crate) root: Node,
    pub(crate) problems: Vec<Problem>,
}

/// Reads one document. *Errors*: the first thing that is no YAML; nothing behind it can be trusted.
pub(crate) fn read(file: &str, text: &str) -> Result<Read, Problem> {
    let mut reader = Reader { file, parser: Parser::new_from_str(text), anchors: HashMap::new(), nodes: 0, problems: Vec::new() };
    let mut root = None;
    loop {
        let (event, span) = reader.next()?;
        match event {
            Event::StreamEnd => break,
            Event::DocumentStart(_) if root.is_some() => return Err(reader.problem(&span, "a second document: one is expected in a file")),
            Event::StreamStart | Event::DocumentStart(_) | Event::DocumentEnd | Event::Nothing => {}
            event => root = Some(reader.node(event, span, 0)?),
        }
    }
    let whole = Place::File { file: file.to_owned(), line: 1, column: 1 };
    let mut root = root.unwrap_or_else(|| Node::empty(whole.clone()));
    if root.is_null() {
        root = Node::empty(whole);
    }
    Ok(Read { root, problems: reader.problems })
}

struct Reader<'a> {
    file: &'a str,
    parser: Parser<'a, StrInput<'a>>,
    anchors: HashMap<usize, (Node, usize)>,
    nodes: usize,
    problems: Vec<Problem>,
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Result<(Event<'a>, Span), Problem> {
        match self.parser.next_event() {
            Some(Ok((event, span))) if is_binary(&event) => Err(self.problem(&span, "bytes in base64 are not read: write the text itself")),
            Some(Ok(next)) => Ok(next),
            Some(Err(error)) => Err(self.at(error.marker().line(), error.marker().col(), format!("this is no YAML: {}", error.info()))),
            None => Ok((Event::StreamEnd, Span::default())),
        }
    }

    fn at(&self, line: usize, column: usize, message: String) -> Problem {
        let place = Place::File { file: self.file.to_owned(), line, column: column + 1 };
        Problem { place, field: String::new(), message }
    }

    fn place(&self, span: &Span) -> Place {
        Place::File { file: self.file.to_owned(), line: span.start.line(), column: span.start.col() + 1 }
    }

    fn problem(&self, span: &Span, message: &str) -> Problem {
        self.at(span.start.line(), span.start.col(), message.to_owned())
    }

    /// The node that begins with this event.
    fn node(&mut self, event: Event<'a>, span: Span, depth: usize) -> Result<Node, Problem> {
        if depth > DEPTH_MAX {
            return Err(self.problem(&span, &format!("more than {DEPTH_MAX} lists and maps inside each other")));
        }
        let before = self.nodes;
        let place = self.place(&span);
        let (anchor, content) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                let is_text = tag.is_some_and(|tag| tag.is_yaml_core_schema() && tag.suffix == "str");
                (anchor, scalar(text.into_owned(), if is_text { ScalarStyle::DoubleQuoted } else { style }))
            }
            Event::SequenceStart(anchor, _) => (anchor, Content::List(self.list(depth)?)),
            Event::MappingStart(anchor, _) => (anchor, Content::Map(self.map(depth)?)),
            Event::Alias(anchor) => return self.alias(anchor, &span),
            _ => return Err(self.problem(&span, "this is no YAML: a value is expected")),
        };
        self.count(&span, 1)?;
        let node = Node::new(place, content);
        if anchor > 0 {
            self.anchors.insert(anchor, (node.clone(), self.nodes - before));
        }
        Ok(node)
    }

    fn count(&mut self, span: &Span, nodes: usize) -> Result<(), Problem> {
        self.nodes += nodes;
        if self.nodes > NODES_MAX {
            return Err(self.problem(span, &format!("more than {NODES_MAX} values, aliases expanded")));
        }
        Ok(())
    }

    /// What an alias stands for; problems in it are told at the anchor, where they can be mended.
    fn alias(&mut self, anchor: usize, span: &Span) -> Result<Node, Problem> {
        let Some(nodes) = self.anchors.get(&anchor).map(|(_, nodes)| *nodes) else {
            return Err(self.problem(span, "this alias stands inside its own anchor"));
        };
        self.count(span, nodes)?;
        Ok(self.anchors[&anchor].0.clone())
    }

    fn list(&mut self, depth: usize) -> Result<Vec<Node>, Problem> {
        let mut items = Vec::new();
        loop {
            match self.next()? {
                (Event::SequenceEnd, _) => return Ok(items),
                (event, span) => items.push(self.node(event, span, depth + 1)?),
            }
        }
    }

    fn map(&mut self, depth: usize) -> Result<Map, Problem> {
        let mut map = Map::default();
        let mut merged = Vec::new();
        loop {
            let (event, span) = self.next()?;
            let key = match event {
                Event::MappingEnd => break,
                Event::Scalar(text, ..) => text.into_owned(),
                _ => return Err(self.problem(&span, "a key must be plain text")),
            };
            let (event, value_span) = self.next()?;
            let node = self.node(event, value_span, depth + 1)?;
            if key == "<<" {
                merged.push(node);
            } else if let Some(first) = map.get(&key) {
                let line = if let Place::File { line, .. } = &first.key_place { *line } else { 0 };
                let problem = self.problem(&span, &format!("key '{key}' is here a second time, first in line {line}: keep one of them"));
                self.problems.push(problem);
            } else {
                map.entries.push(Entry { key, key_place: self.place(&span), node });
            }
        }
        for node in merged {
            merge(&mut map, node);
        }
        Ok(map)
    }
}

/// Whether it is `!!binary`: its base64 would be taken for the text.
fn is_binary(event: &Event<'_>) -> bool {
    matches!(event, Event::Scalar(_, _, _, Some(tag)) if tag.is_yaml_core_schema() && tag.suffix == "binary")
}

/// `<<: *defaults`: keys that are not there yet are taken over.
fn merge(map: &mut Map, node: Node) {
    match node.content {
        Content::Map(other) => {
            for entry in other.entries {
                if map.get(&entry.key).is_none() {
                    map.entries.push(entry);
                }
            }
        }
        Content::List(items) => items.into_iter().for_each(|item| merge(map, item)),
        Content::Plain { .. } | Content::Text(_) => {}
    }
}

/// A plain scalar gets the type that YAML's core schema gives it; JSON has no infinities, so these stay text.
fn scalar(text: String, style: ScalarStyle) -> Content {
    if style != ScalarStyle::Plain {
        return Content::Text(text);
    }
    match serde_yaml::from_str::<Value>(&text) {
        Ok(Value::Null) if !matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL") => Content::Text(text),
        Ok(value @ (Value::Null | Value::Bool(_) | Value::Number(_))) => Content::Plain { value, text },
        _ => Content::Text(text),
    }
}
