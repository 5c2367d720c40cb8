//! The reference of all options, written from the types: `docs/configuration.md`.
//!
//! *In*: the schema and the registries. *Out*: Markdown. *Bound*: the size of the types. *When full*: does not apply.

use std::fmt::Write as _;

use serde_json::Value;

use crate::component::{Kind, Kinds};
use crate::schema::{exact, registries, resolved};

/// What stands before the tables.
const INTRODUCTION: &str = include_str!("reference/introduction.md");
/// The example on top.
const EXAMPLE: &str = include_str!("../examples/strata.yaml");
/// Definitions that are values, described once in the introduction: name and word.
const VALUES: [(&str, &str); 6] = [
    ("Duration", "duration"),
    ("Size", "size"),
    ("Secret", "secret"),
    ("Path", "path"),
    ("Pattern", "regular expression"),
    ("Selector", "selector"),
];
/// Definitions of relays' components, and the headings they lead to.
const COMPONENTS: [(&str, &str, &str); 3] =
    [("Filter", "filter", "#filters"), ("Encoder", "encoder", "#encoders"), ("Sink", "sink", "#sinks")];

/// Writes the reference.
pub fn reference(kinds: &Kinds) -> String {
    let schema = exact(kinds);
    let mut page = Page { schema: &schema, out: INTRODUCTION.replace("EXAMPLE", EXAMPLE.trim_end()), known: Vec::new() };
    page.say("\n## The whole file\n");
    for (key, property) in properties(&schema) {
        if let Some((name, _)) = page.object(property) {
            page.known.push((name, format!("#{key}")));
        }
    }
    page.table(&schema);
    page.known.clear();
    for (key, property) in properties(&schema) {
        if let Some((name, definition)) = page.object(property) {
            page.say(&format!("\n## `{key}`\n"));
            page.definition(&name, key, definition);
        }
    }
    for ((name, _, list), heading) in registries(kinds).into_iter().zip(["Filters", "Encoders", "Sinks"]) {
        let what = heading.trim_end_matches('s');
        page.say(&format!("\n## {heading}\n"));
        page.say(match name {
            "Filter" => "A relay's `filters` run in their order; each sees what the one before it left. One that takes no options is written by name alone.\n",
            "Encoder" => "A relay's `encode` says how a sample is written; without it the sink's own default holds.\n",
            _ => "A relay's `sink` says where samples go.\n",
        });
        let links: Vec<_> = list.iter().map(|kind| format!("[`{0}`](#{1}-{0})", kind.name, what.to_lowercase())).collect();
        page.say(&format!("{}.\n", links.join(", ")));
        for kind in list {
            page.kind(what, kind);
        }
    }
    page.out
}

struct Page<'s> {
    schema: &'s Value,
    out: String,
    /// Definitions that have a heading, and which.
    known: Vec<(String, String)>,
}

fn properties(schema: &Value) -> impl Iterator<Item = (&String, &Value)> {
    schema.get("properties").and_then(Value::as_object).into_iter().flatten()
}

fn text<'v>(value: &'v Value, key: &str) -> &'v str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// Without the ways to write nothing: `anyOf: [X, null]` is X.
fn present(schema: &Value) -> &Value {
    let choices = ["anyOf", "oneOf"].iter().find_map(|key| schema.get(*key)?.as_array());
    let mut some = choices.into_iter().flatten().filter(|choice| text(choice, "type") != "null");
    match (some.next(), some.next()) {
        (Some(one), None) => one,
        _ => schema,
    }
}

fn definition_name(schema: &Value) -> Option<&str> {
    text(schema, "$ref").strip_prefix("#/$defs/")
}

/// Text as it may stand in a table's cell.
fn cell(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', "\\|")
}

impl<'s> Page<'s> {
    fn say(&mut self, text: &str) {
        self.out.push_str(text);
        self.out.push('\n');
    }

    /// The map of keys that a property leads to, through lists and maps of names; values and components lead to none.
    fn object(&self, property: &'s Value) -> Option<(String, &'s Value)> {
        let inner = present(property);
        if let Some(name) = definition_name(inner) {
            let definition = resolved(self.schema, inner);
            let is_component = COMPONENTS.iter().any(|(component, ..)| *component == name);
            return (definition.get("properties").is_some() && !is_component).then(|| (name.to_owned(), definition));
        }
        self.object(inner.get("items").or_else(|| inner.get("additionalProperties"))?)
    }

    /// What a definition says of itself, its keys, and the definitions it leads to, each once.
    fn definition(&mut self, name: &str, key: &str, definition: &'s Value) {
        self.known.push((name.to_owned(), format!("#{key}")));
        let mut sections = vec![(key.to_owned(), definition)];
        let mut at = 0;
        while let Some((_, definition)) = sections.get(at) {
            for (key, property) in properties(definition) {
                if let Some((name, definition)) = self.object(property).filter(|(name, _)| self.link(name).is_none()) {
                    self.known.push((name, format!("#{key}")));
                    sections.push((key.clone(), definition));
                }
            }
            at += 1;
        }
        for (index, (key, definition)) in sections.into_iter().enumerate() {
            if index > 0 {
                self.say(&format!("\n### `{key}`\n"));
            }
            self.say(&format!("{}\n", text(definition, "description")));
            self.table(definition);
        }
    }

    fn link(&self, name: &str) -> Option<&str> {
        self.known.iter().find(|(known, _)| known == name).map(|(_, link)| link.as_str())
    }

    fn kind(&mut self, what: &str, kind: &Kind) {
        let (name, lower) = (kind.name, what.to_lowercase());
        self.say(&format!("\n### {what} `{name}`\n\n{}\n", kind.summary));
        let bare = kind.example.is_empty() || matches!(kind.example, "{}" | "null" | "~");
        let example = match (lower.as_str(), bare) {
            ("filter", false) => format!("filters:\n  - {name}: {}", kind.example),
            ("filter", true) => format!("filters: [{name}]"),
            ("encoder", false) => format!("encode: {{{name}: {}}}", kind.example),
            ("encoder", true) => format!("encode: {name}"),
            (_, false) => format!("sink: {{{name}: {}}}", kind.example),
            (_, true) => format!("sink: {name}"),
        };
        self.say(&format!("```yaml\n{example}\n```\n"));
        let schema = self.schema;
        let variants = schema["$defs"].get(if what == "Encoder" { "Encoder" } else { what }).and_then(|def| def["oneOf"].as_array());
        let variant = variants.into_iter().flatten().find_map(|variant| variant.get("properties")?.get(name));
        let Some(options) = variant.map(|options| resolved(schema, present(options))) else { return };
        if options.get("properties").is_none_or(|properties| properties.as_object().is_some_and(serde_json::Map::is_empty)) {
            let takes = if options.get("properties").is_some() || options["type"] == "object" {
                "no options".to_owned()
            } else {
                self.kind_of(options)
            };
            return self.say(&format!("It takes {takes}."));
        }
        let prefix = format!("{lower}-{name}-");
        let nested: Vec<_> = properties(options).filter_map(|(key, property)| Some((key, self.object(property)?))).collect();
        let nested: Vec<_> = nested.into_iter().filter(|(_, (name, _))| self.link(name).is_none()).collect();
        for (key, (definition, _)) in &nested {
            self.known.push((definition.clone(), format!("#{prefix}{key}")));
        }
        self.table(options);
        for (key, (_, definition)) in nested {
            self.say(&format!("\n#### {what} `{name}`: `{key}`\n\n{}\n", text(definition, "description")));
            self.table(definition);
        }
    }

    fn table(&mut self, schema: &'s Value) {
        self.say("| Key | Type | Default | |\n|---|---|---|---|");
        let required: Vec<_> = schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
        for (key, property) in properties(schema) {
            let default = match property.get("default") {
                _ if required.contains(&key.as_str()) => "required".to_owned(),
                None | Some(Value::Null) => String::new(),
                Some(Value::String(word)) if word.is_empty() => String::new(),
                Some(Value::String(word)) if word == "0B" => "`0`".to_owned(),
                Some(Value::String(word)) => format!("`{word}`"),
                Some(Value::Array(items)) if items.is_empty() => String::new(),
                Some(Value::Object(_)) => String::new(),
                Some(other) => format!("`{other}`"),
            };
            let kind = self.kind_of(property);
            let mut meaning = cell(text(property, "description"));
            let inner = present(property);
            let inner = inner.get("items").unwrap_or(inner);
            for (word, said) in self.words(inner) {
                if !said.is_empty() {
                    write!(meaning, "<br>`{word}`: {}", cell(said)).expect("a string takes all text");
                }
            }
            self.say(&format!("| `{key}` | {} | {} | {meaning} |", cell(&kind), cell(&default)));
        }
    }

    /// The words that may be written, with what they mean.
    fn words(&self, schema: &'s Value) -> Vec<(&'s str, &'s str)> {
        let schema = resolved(self.schema, schema);
        let mut words: Vec<_> =
            schema.get("enum").and_then(Value::as_array).into_iter().flatten().filter_map(|w| Some((w.as_str()?, ""))).collect();
        for choice in schema.get("oneOf").and_then(Value::as_array).into_iter().flatten() {
            match choice.get("const").and_then(Value::as_str) {
                Some(word) => words.push((word, text(choice, "description"))),
                None => {
                    words.extend(choice.get("enum").and_then(Value::as_array).into_iter().flatten().filter_map(|w| Some((w.as_str()?, ""))))
                }
            }
        }
        words
    }

    /// What may be written, in a few words.
    fn kind_of(&self, schema: &'s Value) -> String {
        let schema = present(schema);
        if let Some((_, word)) = VALUES.iter().find(|(value, _)| *value == text(schema, "title")) {
            return format!("a [{word}](#values)");
        }
        if let Some(name) = definition_name(schema) {
            let short = name.rsplit('.').next().unwrap_or(name);
            if let Some((_, word)) = VALUES.iter().find(|(value, _)| *value == short) {
                return format!("[{word}](#values)");
            }
            if let Some((_, word, link)) = COMPONENTS.iter().find(|(component, ..)| *component == name) {
                return format!("[{word}]({link})");
            }
            if let Some(link) = self.link(name) {
                return format!("[map]({link})");
            }
            return self.kind_of(resolved(self.schema, schema));
        }
        let words = self.words(schema);
        let numbers = schema.get("oneOf").and_then(Value::as_array).into_iter().flatten().any(|choice| text(choice, "type") == "number");
        if !words.is_empty() {
            let words: Vec<_> = words.iter().map(|(word, _)| format!("`{word}`")).collect();
            return format!("{}{}", if numbers { "number, " } else { "" }, words.join(", "));
        }
        if let Some(choices) = ["anyOf", "oneOf"].iter().find_map(|key| schema.get(*key)?.as_array()) {
            let choices: Vec<_> = choices.iter().map(|choice| self.kind_of(choice)).collect();
            return choices.join(" or ");
        }
        let kind = match &schema["type"] {
            Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).find(|kind| *kind != "null").unwrap_or_default(),
            kind => kind.as_str().unwrap_or_default(),
        };
        match kind {
            "array" => format!("list: {}", schema.get("items").map_or_else(String::new, |items| self.kind_of(items))),
            "object" => match schema.get("additionalProperties").filter(|more| more.is_object()) {
                Some(more) => format!("map: name to {}", self.kind_of(more)),
                None => "map".to_owned(),
            },
            "boolean" => "`true`, `false`".to_owned(),
            "integer" => "whole number".to_owned(),
            "string" if schema.get("format").is_some_and(|format| format == "password") => "[secret](#values)".to_owned(),
            "string" => "text".to_owned(),
            other => other.to_owned(),
        }
    }
}
