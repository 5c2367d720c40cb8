//! Where a record goes: topic, key and headers, fixed or rendered from the labels of its series.
//!
//! *In*: options, then items with their routes. *Out*: an [`Address`], or why the item has none. *Bound*: `topics_max` topics.
//! *When full*: an item of one topic more is refused.

use std::collections::HashSet;

use config::OptionsError;
use rdkafka::message::{Header, OwnedHeaders};

use super::options::{Options, UnknownTopic};
use crate::sink::Batch;
use crate::template::{RenderError, Route, Template, plain};

/// Characters of a topic's name. *Source*: Kafka.
const TOPIC_MAX: usize = 249;

/// What a topic's name may be.
pub(super) const TOPIC_RULE: &str = "1 to 249 of a-z A-Z 0-9 . _ -";

/// How records are addressed.
pub(super) struct Addressing {
    topic: Text,
    key: Key,
    headers: Vec<(String, Text)>,
    templates: Vec<Template>,
    topics_max: usize,
    topics: HashSet<Box<str>>,
    /// What becomes of items whose topic does not exist.
    pub unknown_topic: UnknownTopic,
}

/// A text of a record: the same for all, or the template at this place.
enum Text {
    Fixed(String),
    Template(usize),
}

enum Key {
    None,
    Series,
    Target,
    Text(Text),
}

/// One record's.
pub(super) struct Address<'a> {
    pub topic: &'a str,
    pub key: Option<KeyBytes<'a>>,
    pub headers: Option<OwnedHeaders>,
}

/// A key's bytes.
pub(super) enum KeyBytes<'a> {
    Digits([u8; 16]),
    Text(&'a str),
}

impl KeyBytes<'_> {
    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            Self::Digits(digits) => digits,
            Self::Text(text) => text.as_bytes(),
        }
    }
}

/// Whether a topic may have this name.
pub(super) fn is_topic(name: &str) -> bool {
    (1..=TOPIC_MAX).contains(&name.len()) && ![".", ".."].contains(&name) && name.chars().all(is_legal)
}

fn is_legal(c: char) -> bool {
    c.is_ascii_alphanumeric() || "._-".contains(c)
}

/// Writes a label's value as a part of a topic's name.
fn topic_part(value: &str, out: &mut String) {
    out.extend(value.chars().map(|c| if is_legal(c) { c } else { '_' }));
}

impl Addressing {
    /// *Errors*: a topic that cannot be one, a key that is none, a template with a mistake.
    pub(super) fn new(options: &Options) -> Result<Self, OptionsError> {
        let mut templates = Vec::new();
        let mut text = |template: Template| match template.fixed() {
            Some(fixed) => Text::Fixed(fixed.to_owned()),
            None => {
                templates.push(template);
                Text::Template(templates.len() - 1)
            }
        };
        let topic = Template::option("topic", &options.topic, topic_part)?;
        let legal = topic.own().all(|own| own.chars().all(is_legal));
        if !legal || topic.fixed().is_some_and(|name| !is_topic(name)) {
            return Err(OptionsError::new("topic", format!("'{}' is no topic: {TOPIC_RULE}", options.topic)));
        }
        let topic = text(topic);
        let key = match options.key.as_str() {
            "none" => Key::None,
            "series" => Key::Series,
            "target" => Key::Target,
            other => {
                let template = Template::option("key", other, plain)?;
                if template.fixed().is_some() {
                    let message =
                        format!("unknown value '{other}': it is one of none, series and target, or a template such as '{{{{instance}}}}'");
                    return Err(OptionsError::new("key", message));
                }
                Key::Text(text(template))
            }
        };
        let mut headers = Vec::new();
        for (name, value) in &options.headers {
            if name.is_empty() || name.contains('\0') {
                return Err(OptionsError::new("headers", format!("'{name}' is no name of a header")));
            }
            headers.push((name.clone(), text(Template::option(&format!("headers.{name}"), value, plain)?)));
        }
        let (topics_max, unknown_topic) = (options.topics_max, options.unknown_topic);
        Ok(Self { topic, key, headers, templates, topics_max, topics: HashSet::new(), unknown_topic })
    }

    /// The one topic of all records; none: labels decide.
    pub(super) fn fixed_topic(&self) -> Option<&str> {
        match &self.topic {
            Text::Fixed(topic) => Some(topic),
            Text::Template(_) => None,
        }
    }

    /// What is wanted of every series.
    pub(super) fn templates(&self) -> Vec<Template> {
        self.templates.clone()
    }

    /// Where an item goes; `Err`: nowhere, and why.
    pub(super) fn of<'a>(&'a mut self, batch: &'a Batch, i: usize) -> Result<Address<'a>, String> {
        let item = &batch.items[i];
        let route = batch.route(i).map(|route| &**route);
        if let Text::Template(_) = self.topic {
            let name = self.topic.get(route).map_err(|error| format!("cannot make a topic: {error}"))?;
            if name.is_empty() || name.len() > TOPIC_MAX || name == "." || name == ".." {
                return Err(format!("cannot make a topic: '{name}' is none (1 to {TOPIC_MAX} characters)"));
            }
            if !self.topics.contains(name) {
                if self.topics.len() >= self.topics_max {
                    return Err(format!("topic '{name}' would be one more than the {} of 'topics_max'", self.topics_max));
                }
                self.topics.insert(name.into());
            }
        }
        let topic = self.topic.get(route).map_err(|error| error.to_string())?;
        let key = match &self.key {
            Key::None => None,
            Key::Series => Some(KeyBytes::Digits(digits(item.series))),
            Key::Target => Some(KeyBytes::Digits(digits(batch.sections[item.section as usize].origin.target.0))),
            Key::Text(text) => Some(KeyBytes::Text(text.get(route).map_err(|error| format!("cannot make a key: {error}"))?)),
        };
        let mut headers = None;
        for (name, text) in &self.headers {
            if let Ok(value) = text.get(route) {
                let known = headers.take().unwrap_or_else(|| OwnedHeaders::new_with_capacity(self.headers.len()));
                headers = Some(known.insert(Header { key: name, value: Some(value) }));
            }
        }
        Ok(Address { topic, key, headers })
    }

    /// The topic of an item that had an address.
    pub(super) fn topic<'a>(&'a self, batch: &'a Batch, i: usize) -> &'a str {
        self.topic.get(batch.route(i).map(|route| &**route)).unwrap_or_default()
    }
}

impl Text {
    fn get<'a>(&'a self, route: Option<&'a Route>) -> Result<&'a str, RenderError> {
        match self {
            Self::Fixed(text) => Ok(text),
            Self::Template(place) => match route.and_then(|route| route.get(*place)) {
                Some(Ok(text)) => Ok(text),
                Some(Err(error)) => Err(error.clone()),
                // The resolver renders every template of every series.
                None => Err(RenderError::Missing(String::new())),
            },
        }
    }
}

fn digits(hash: u64) -> [u8; 16] {
    std::array::from_fn(|i| b"0123456789abcdef"[(hash >> (60 - 4 * i) & 15) as usize])
}
