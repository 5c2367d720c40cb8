//! What an object's annotations say of how it is scraped, over what the job says.
//!
//! *In*: annotations `<prefix>/…`. *Out*: an [`Order`], or what is wrong in words that name annotation and fix. *Bound*: that of the object. *When
//! full*: does not apply.

use config::{INTERVAL_MIN, KubernetesAnnotations, Millis};

use crate::labels::{Labels, sanitized};
use crate::object::Meta;

/// The port of an object that neither says one nor names one for metrics.
pub const PORT: u16 = 9090;
/// A port of this name, or whose name ends in it behind a `-`, is the one for metrics.
const METRICS: &str = "metrics";
/// Names of labels that no object may set by being included.
const OWN: [&str; 7] = ["container", "instance", "job", "namespace", "node", "pod", "service"];

/// Whether an object asks to be scraped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wish {
    /// It does not say.
    None,
    /// It must not be.
    No,
    /// It shall be.
    Yes,
}

/// A port as an annotation says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Port {
    /// Its number.
    Number(u16),
    /// Its name.
    Name(String),
}

/// How the annotations of an object are read.
#[derive(Debug, Clone, Copy)]
pub struct Reader<'a> {
    /// The job's options.
    pub options: &'a KubernetesAnnotations,
    /// The job's `scrape_timeout`.
    pub timeout: Millis,
}

/// An annotation that cannot be followed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("annotation '{annotation}' is '{value}': {fix}")]
pub struct Error {
    annotation: String,
    value: String,
    fix: String,
}

/// The port of an object that says none, and its name, where it is taken for that.
pub fn usual<'p>(ports: impl Iterator<Item = (&'p str, u16)> + Clone) -> (u16, Option<&'p str>) {
    let ending = |name: &str| name.strip_suffix(METRICS).is_some_and(|rest| rest.ends_with('-'));
    let named = ports.clone().find(|(name, _)| *name == METRICS).or_else(|| ports.clone().find(|(name, _)| ending(name)));
    named.map_or((PORT, None), |(name, number)| (number, Some(name)))
}

impl Wish {
    /// Of an annotation `<prefix>/scrape`. *Errors*: what it says instead.
    pub fn of(annotation: Option<&str>) -> Result<Self, &str> {
        match annotation {
            None => Ok(Self::None),
            Some("true") => Ok(Self::Yes),
            Some("false") => Ok(Self::No),
            Some(other) => Err(other),
        }
    }
}

impl<'a> Reader<'a> {
    /// Whether the object asks to be scraped.
    pub fn wish(&self, metadata: &Meta) -> Result<Wish, Error> {
        Wish::of(self.get(metadata, "scrape")).map_err(|other| self.error("scrape", other, "write \"true\" or \"false\""))
    }

    /// The port that the object says.
    pub fn port(&self, metadata: &Meta) -> Result<Option<Port>, Error> {
        let Some(value) = self.get(metadata, "port") else { return Ok(None) };
        let is_name = value.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') && value.bytes().any(|b| b.is_ascii_alphabetic());
        match value.parse::<u16>() {
            Ok(0) | Err(_) if !is_name => Err(self.error("port", value, "write a number from 1 to 65535, or the name of a port")),
            Ok(number) => Ok(Some(Port::Number(number))),
            Err(_) => Ok(Some(Port::Name(value.to_owned()))),
        }
    }

    /// The port to take of those that the object has, as (name, number) in its own order.
    pub fn choose<'p>(&self, metadata: &Meta, ports: impl Iterator<Item = (&'p str, u16)> + Clone) -> Result<u16, Error> {
        let named = |name: &str| ports.clone().find(|(known, _)| *known == name).map(|(_, number)| number);
        match self.port(metadata)? {
            Some(Port::Number(number)) => Ok(number),
            Some(Port::Name(name)) => named(&name).ok_or_else(|| {
                let known: Vec<_> = ports.clone().map(|(name, _)| name).filter(|name| !name.is_empty()).collect();
                let fix = if known.is_empty() {
                    "no port has a name: write its number".to_owned()
                } else {
                    format!("the ports are {}", known.join(", "))
                };
                self.error("port", &name, &fix)
            }),
            None => Ok(usual(ports).0),
        }
    }

    /// Writes what the object says of scheme, path, schedule and parameters.
    pub fn steer(&self, metadata: &Meta, labels: &mut Labels) -> Result<(), Error> {
        match self.get(metadata, "scheme") {
            None => {}
            Some(scheme @ ("http" | "https")) => labels.set("__scheme__", scheme),
            Some(other) => return Err(self.error("scheme", other, "write http or https")),
        }
        if let Some(path) = self.get(metadata, "path") {
            if path.is_empty() || path.contains(|c: char| c.is_whitespace() || c == '#') {
                return Err(self.error("path", path, "write a path, like /metrics"));
            }
            labels.set("__metrics_path__", path);
        }
        let interval = self.duration(metadata, "interval")?;
        if let Some(interval) = interval.filter(|interval| *interval < INTERVAL_MIN) {
            return Err(self.error("interval", &interval.to_string(), &format!("it is too short: {INTERVAL_MIN} or more")));
        }
        // A timeout that the object does not say is never above the interval that it says.
        let timeout = self.duration(metadata, "timeout")?.or_else(|| Some(self.timeout.min(interval?)));
        for (label, value) in [("__scrape_interval__", interval), ("__scrape_timeout__", timeout)] {
            labels.set(label, &value.map(|value| value.to_string()).unwrap_or_default());
        }
        self.params(metadata, labels)
    }

    fn params(&self, metadata: &Meta, labels: &mut Labels) -> Result<(), Error> {
        let Some(query) = self.get(metadata, "params") else { return Ok(()) };
        let mut seen = Vec::new();
        for (name, value) in form_urlencoded::parse(query.trim_start_matches('?').as_bytes()) {
            if name.is_empty() || value.is_empty() {
                return Err(self.error("params", query, "write name=value, with & between several"));
            }
            if seen.contains(&name) {
                return Err(self.error(
                    "params",
                    query,
                    &format!("'{name}' is there twice: one value per name, or all of them in the path"),
                ));
            }
            labels.set(&format!("__param_{name}"), &value);
            seen.push(name);
        }
        Ok(())
    }

    /// Writes what of the object itself becomes labels: by its own annotations, or else as the job says.
    pub fn include(&self, kind: &str, metadata: &Meta, labels: &mut Labels) -> Result<(), Error> {
        let lists = [
            ("includeAnnotations", &self.options.include_annotations, &metadata.annotations),
            ("includeLabels", &self.options.include_labels, &metadata.labels),
        ];
        for (annotation, default, pairs) in lists {
            let own = self.get(metadata, annotation).map(|list| list.split(',').map(str::trim).map(str::to_owned).collect::<Vec<_>>());
            let patterns = own.as_ref().unwrap_or(default);
            for (name, value) in pairs.iter().filter(|(name, _)| patterns.iter().any(|pattern| fits(pattern, name))) {
                let name = label_name(name);
                if !OWN.contains(&&*name) && !name.starts_with("__") {
                    labels.set(&name, value);
                }
            }
        }
        let is_wanted = match self.get(metadata, "includeMetadata") {
            None => self.options.include_metadata,
            Some("true") => true,
            Some("false") => false,
            Some(other) => return Err(self.error("includeMetadata", other, "write \"true\" or \"false\"")),
        };
        if is_wanted {
            labels.set("kind", kind);
            labels.set("resource_version", &metadata.resource_version);
        }
        Ok(())
    }

    fn duration(&self, metadata: &Meta, name: &str) -> Result<Option<Millis>, Error> {
        let Some(value) = self.get(metadata, name) else { return Ok(None) };
        match value.parse::<Millis>() {
            Ok(Millis(0)) => Err(self.error(name, value, "0 is no duration here: write one, like 30s")),
            Ok(duration) => Ok(Some(duration)),
            Err(error) => Err(self.error(name, value, &error.to_string())),
        }
    }

    fn get<'m>(&self, metadata: &'m Meta, name: &str) -> Option<&'m str> {
        metadata.annotations.get(&format!("{}/{name}", self.options.prefix))
    }

    fn error(&self, name: &str, value: &str, fix: &str) -> Error {
        Error { annotation: format!("{}/{name}", self.options.prefix), value: value.to_owned(), fix: fix.to_owned() }
    }
}

/// Whether a name is what a pattern says; `*` stands for anything.
fn fits(pattern: &str, name: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(name) = name.strip_prefix(start) else { return false };
    (0..=name.len()).filter(|at| name.is_char_boundary(*at)).any(|at| fits(rest, &name[at..]))
}

/// A name of an object's label as the name of a series' label.
fn label_name(name: &str) -> String {
    let name = sanitized(name);
    if name.starts_with(|c: char| c.is_ascii_digit()) { format!("_{name}") } else { name }
}
