//! A self-contained run of series: symbols, families, label shapes, and one row per series.
//!
//! *In*: tables that their maker has checked. *Out*: names, labels, families; the chained id. *Bound*: 16 bytes per series and 4 per label
//! beside the text, each distinct text once. *When full*: tables are indexed by `u32`; the reader's limits stay far below.

use xxhash_rust::xxh3::xxh3_64;

use super::{Family, LayoutId};
use crate::MetricType;
use crate::varint::put;

/// A run of series with everything needed to name them.
#[derive(Default)]
pub(crate) struct Segment {
    pub(crate) text: String,
    /// Where each symbol ends in `text`.
    pub(crate) ends: Vec<u32>,
    pub(crate) families: Vec<FamilyRow>,
    /// Label names of each shape, one after the other, as symbols.
    pub(crate) shape_names: Vec<u32>,
    /// Where each shape ends in `shape_names`.
    pub(crate) shape_ends: Vec<u32>,
    pub(crate) rows: Vec<Row>,
    /// Label values of each row, one after the other, as symbols.
    pub(crate) values: Vec<u32>,
}

/// A family in symbols, with the hash that goes into the chain.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct FamilyRow {
    pub(crate) name: u32,
    pub(crate) help: u32,
    pub(crate) unit: u32,
    pub(crate) kind: MetricType,
    pub(crate) hash: u64,
}

/// A series: indices into the tables; `values` is where its label values start.
#[derive(Clone, Copy)]
pub(crate) struct Row {
    pub(crate) family: u32,
    pub(crate) name: u32,
    pub(crate) shape: u32,
    pub(crate) values: u32,
}

impl Segment {
    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.text.capacity()
            + 4 * (self.ends.capacity() + self.shape_names.capacity() + self.shape_ends.capacity() + self.values.capacity())
            + size_of::<FamilyRow>() * self.families.capacity()
            + size_of::<Row>() * self.rows.capacity()
    }

    pub(crate) fn symbol(&self, symbol: u32) -> &str {
        let start = symbol.checked_sub(1).map_or(0, |before| self.ends[before as usize]);
        &self.text[start as usize..self.ends[symbol as usize] as usize]
    }

    pub(crate) fn shape(&self, shape: u32) -> &[u32] {
        let start = shape.checked_sub(1).map_or(0, |before| self.shape_ends[before as usize]);
        &self.shape_names[start as usize..self.shape_ends[shape as usize] as usize]
    }

    pub(crate) fn name(&self, row: usize) -> &str {
        self.symbol(self.rows[row].name)
    }

    pub(crate) fn labels(&self, row: usize) -> impl ExactSizeIterator<Item = (&str, &str)> + Clone {
        let Row { shape, values, .. } = self.rows[row];
        let names = self.shape(shape);
        let values = &self.values[values as usize..values as usize + names.len()];
        names.iter().zip(values).map(|(name, value)| (self.symbol(*name), self.symbol(*value)))
    }

    pub(crate) fn family(&self, row: usize) -> Family<'_> {
        let family = &self.families[self.rows[row].family as usize];
        Family { name: self.symbol(family.name), kind: family.kind, help: self.symbol(family.help), unit: self.symbol(family.unit) }
    }

    /// The chained id after the first `len` rows, from the id before the segment.
    pub(crate) fn chain(&self, mut id: LayoutId, len: usize) -> LayoutId {
        let mut item = Vec::new();
        for row in 0..len {
            let family = self.families[self.rows[row].family as usize].hash;
            id = step(id, family, self.name(row), self.labels(row), &mut item);
        }
        id
    }

    /// Gives back what the tables reserved too much.
    pub(crate) fn shrink(&mut self) {
        self.text.shrink_to_fit();
        self.ends.shrink_to_fit();
        self.families.shrink_to_fit();
        self.shape_names.shrink_to_fit();
        self.shape_ends.shrink_to_fit();
        self.rows.shrink_to_fit();
        self.values.shrink_to_fit();
    }
}

/// The part of a family in a layout's id.
pub(crate) fn family_hash(family: Family<'_>) -> u64 {
    let mut item = Vec::with_capacity(family.name.len() + family.help.len() + family.unit.len() + 16);
    put_text(&mut item, family.name);
    item.push(family.kind as u8);
    put_text(&mut item, family.help);
    put_text(&mut item, family.unit);
    xxh3_64(&item)
}

/// One link of the chain: the id after a series, from the id before it.
pub(crate) fn step<'t>(
    id: LayoutId,
    family: u64,
    name: &str,
    labels: impl ExactSizeIterator<Item = (&'t str, &'t str)>,
    item: &mut Vec<u8>,
) -> LayoutId {
    item.clear();
    item.extend_from_slice(&id.0.to_le_bytes());
    item.extend_from_slice(&family.to_le_bytes());
    put_text(item, name);
    put(item, labels.len() as u64);
    for (name, value) in labels {
        put_text(item, name);
        put_text(item, value);
    }
    LayoutId(xxh3_64(item))
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    put(out, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}
