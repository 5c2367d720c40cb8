//! What every object has: name, labels, annotations, owner.
//!
//! *In*: `metadata`. *Out*: a [`Meta`]; who manages which field is never kept. *Bound*: see above. *When full*: does not apply.

use std::fmt;
use std::sync::LazyLock;

use kube::core::ObjectMeta;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// Names and values.
///
/// *Shape*: sorted by name, each once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pairs(Box<[(Box<str>, Box<str>)]>);

/// What every object has.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, remote = "Self")]
pub struct Meta {
    /// The object's name.
    pub name: Box<str>,
    /// Its namespace; empty: it is in none.
    pub namespace: Box<str>,
    /// Its identity.
    pub uid: Box<str>,
    /// Its version.
    pub resource_version: Box<str>,
    /// Its labels.
    #[serde(deserialize_with = "super::nullable")]
    pub labels: Pairs,
    /// Its annotations.
    #[serde(deserialize_with = "super::nullable")]
    pub annotations: Pairs,
    /// Who controls it.
    #[serde(rename = "ownerReferences", deserialize_with = "controller")]
    pub controller: Option<Owner>,
    /// Whether it is being deleted.
    #[serde(rename = "deletionTimestamp", deserialize_with = "is_there")]
    pub is_deleted: bool,
    #[serde(skip)]
    for_watch: Option<Box<ObjectMeta>>,
}

/// An object that controls another one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Owner {
    /// Its kind.
    pub kind: Box<str>,
    /// Its name, in the same namespace.
    pub name: Box<str>,
    controller: bool,
}

impl Pairs {
    /// The value of a name.
    pub fn get(&self, name: &str) -> Option<&str> {
        let index = self.0.binary_search_by(|(key, _)| (**key).cmp(name)).ok()?;
        Some(&self.0[index].1)
    }

    /// All of them, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (&**name, &**value))
    }
}

impl FromIterator<(Box<str>, Box<str>)> for Pairs {
    fn from_iter<I: IntoIterator<Item = (Box<str>, Box<str>)>>(pairs: I) -> Self {
        let mut pairs: Vec<_> = pairs.into_iter().collect();
        pairs.sort();
        pairs.dedup_by(|later, earlier| later.0 == earlier.0);
        Self(pairs.into())
    }
}

impl Meta {
    /// What kube asks of an object: its version.
    pub(crate) fn for_watch(&self) -> &ObjectMeta {
        static NOTHING: LazyLock<ObjectMeta> = LazyLock::new(ObjectMeta::default);
        self.for_watch.as_deref().unwrap_or(&NOTHING)
    }

    pub(crate) fn for_watch_mut(&mut self) -> &mut ObjectMeta {
        self.for_watch.get_or_insert_default()
    }

    pub(crate) fn strip(&mut self) {
        self.for_watch = None;
    }
}

impl<'de> Deserialize<'de> for Meta {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut meta = Self::deserialize(deserializer)?;
        meta.for_watch_mut().resource_version = Some(meta.resource_version.to_string());
        Ok(meta)
    }
}

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = Pairs;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of text")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs, A::Error> {
                let mut pairs = Vec::with_capacity(map.size_hint().unwrap_or_default());
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(pairs.into_iter().collect())
            }
        }
        deserializer.deserialize_map(Read)
    }
}

/// The one of the owners that controls.
fn controller<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Owner>, D::Error> {
    let owners: Vec<Owner> = super::nullable(deserializer)?;
    Ok(owners.into_iter().find(|owner| owner.controller))
}

fn is_there<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    Ok(Option::<IgnoredAny>::deserialize(deserializer)?.is_some())
}
