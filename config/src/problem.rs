//! What is wrong with a configuration, and where.
//!
//! *In*: a place, a field and a sentence. *Out*: one line for a person, fields for a machine. *Bound*: [`PROBLEMS_MAX`] per check.
//! *When full*: the rest is counted in a last line.

use std::fmt;

use serde::ser::SerializeMap as _;
use serde::{Serialize, Serializer};

/// Problems listed in one go. Larger: a wall of text; smaller: a second round for a file that is wrong everywhere.
pub const PROBLEMS_MAX: usize = 100;

/// Where something was written.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// In a file; line and column count from 1, 0 means the file as a whole.
    File {
        /// As it was named.
        file: String,
        /// Line.
        line: usize,
        /// Column in characters.
        column: usize,
    },
    /// An environment variable or a flag, by name.
    Override(String),
    /// Nowhere: a default.
    Default,
}

/// Something that makes a configuration unusable.
///
/// *Shape*: as JSON one flat object: `file`, `line`, `column` (or `source`: a variable or flag), `field`, `message`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Problem {
    /// Where it was written.
    pub place: Place,
    /// Path of the field: `relays[0].sink.http.url`; empty: the whole.
    pub field: String,
    /// What is wrong and how it is mended.
    pub message: String,
}

/// Something that works, but probably not as meant. Same shape as a [`Problem`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Warning(pub Problem);

impl Serialize for Problem {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        match &self.place {
            Place::File { file, line, column } => {
                map.serialize_entry("file", file)?;
                map.serialize_entry("line", line)?;
                map.serialize_entry("column", column)?;
            }
            Place::Override(source) => map.serialize_entry("source", source)?,
            Place::Default => map.serialize_entry("source", "default")?,
        }
        map.serialize_entry("field", &self.field)?;
        map.serialize_entry("message", &self.message)?;
        map.end()
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { file, line: 0, .. } => f.write_str(file),
            Self::File { file, line, column } => write!(f, "{file}:{line}:{column}"),
            Self::Override(name) => f.write_str(name),
            Self::Default => f.write_str("default"),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.place)?;
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.message)
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
