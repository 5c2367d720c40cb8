//! Where a target's samples come from: its identity and the labels that all its series share.
//!
//! *In*: what discovery and relabeling decided. *Out*: one [`Origin`] per target, sent with every key frame.
//! *Bound*: 1,024 labels and 1,024 attributes. *When full*: such a frame is refused by its reader.

use std::fmt;

use crate::DecodeError;
use crate::varint::{Reader, put_pairs};

/// The identity of a target: a hash over what makes it the same target across restarts and collectors.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TargetId(pub u64);

/// A target and what its series share; it is not part of a layout, so identical exporters share one layout.
///
/// *Shape*: `labels` are sorted by name; a series' own label of the same name wins, and an own empty value hides the shared one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Origin {
    /// The target.
    pub target: TargetId,
    /// Labels every series of the target has, such as `job` and `instance`.
    pub labels: Vec<(String, String)>,
    /// What relays select by without it being a label, such as the scrape configuration's name (`job`) or `namespace`.
    pub attributes: Vec<(String, String)>,
}

impl fmt::Display for TargetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl Origin {
    /// The value of an attribute, if the target has it.
    #[must_use]
    pub fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        put_pairs(out, &self.labels);
        put_pairs(out, &self.attributes);
    }

    pub(crate) fn read(target: TargetId, from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self { target, labels: from.pairs("origin label")?, attributes: from.pairs("origin attribute")? })
    }
}
