//! The identity of series: what stays the same from scrape to scrape.
//!
//! *In*: families and series through a [`builder::LayoutBuilder`], or a segment of the wire. *Out*: an immutable [`Layout`], shared by `Arc`.
//! *Bound*: a layout is a list of self-contained segments that later layouts share, so appending a series costs one small segment.
//! *When full*: the wire's limits are checked by the reader; the writer splits a target into parts.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use crate::MetricType;
pub use numbers::Values;
use segment::{Kind, Row, Segment};

pub mod builder;
pub mod interner;
pub(crate) mod numbers;
pub(crate) mod segment;

/// The hash over exactly what a layout says: two layouts with the same id have the same series in the same order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LayoutId(pub u64);

/// The ordered series of one part of a target, with their families.
///
/// *Shape*: a series is named by its index; its labels are its own only, those of the target are in [`crate::Origin`].
#[derive(Clone, Default)]
pub struct Layout {
    pieces: Vec<Piece>,
}

/// One series of a layout; borrows the layout.
#[derive(Clone, Copy)]
pub struct Series<'a> {
    segment: &'a Segment,
    row: Row,
}

/// One series by the numbers of its texts, for those who translate each text once and not for each series.
///
/// *Shape*: a number means a text of one piece of a layout, [`Series::text`] of any of its series. In a piece the same text has the same number,
/// unless another program made the layout and did not see to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Numbered<'a> {
    /// Its metric name.
    pub name: u32,
    /// One number for the same list of label names.
    pub shape: u32,
    /// Its label names, sorted by their texts.
    pub label_names: &'a [u32],
    /// Their values.
    pub values: Values<'a>,
    /// Type of its family.
    pub kind: MetricType,
    /// Help of its family.
    pub help: u32,
    /// Unit of its family.
    pub unit: u32,
}

/// Neighbours of a layout that differ in the values of their labels only, for those who find out once what such series have in common.
#[derive(Clone)]
pub struct Run<'a> {
    segment: &'a Segment,
    row: Row,
    piece: usize,
    series: Range<usize>,
}

/// A metric family as the exposition declared it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Family<'a> {
    /// Its name, without the suffixes of its series.
    pub name: &'a str,
    /// Its type.
    pub kind: MetricType,
    /// Its help text.
    pub help: &'a str,
    /// Its unit.
    pub unit: &'a str,
}

/// A segment at its place in the chain.
#[derive(Clone)]
struct Piece {
    segment: Arc<Segment>,
    /// Number of series up to and with this segment.
    end: usize,
    /// Chained id at its end.
    id: LayoutId,
}

impl fmt::Display for LayoutId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Layout({} series, {})", self.len(), self.id())
    }
}

impl Layout {
    /// The hash over its series in order; it does not depend on how the layout came to be.
    #[must_use]
    pub fn id(&self) -> LayoutId {
        self.pieces.last().map_or(LayoutId(0), |piece| piece.id)
    }

    /// The number of series.
    #[must_use]
    pub fn len(&self) -> usize {
        self.pieces.last().map_or(0, |piece| piece.end)
    }

    /// Whether it has no series.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The series at an index.
    ///
    /// *Limits*: panics at or beyond [`Layout::len`], as a slice does; indices come from the layout itself.
    #[must_use]
    pub fn series(&self, index: usize) -> Series<'_> {
        self.find(index).1
    }

    /// How many texts and shapes each of its pieces has: see [`Numbered`].
    pub fn pieces(&self) -> impl ExactSizeIterator<Item = (usize, usize)> + '_ {
        self.pieces.iter().map(|piece| (piece.segment.ends.len(), piece.segment.shape_ends.len()))
    }

    /// The series at an index, and which of [`Layout::pieces`] it is in.
    ///
    /// *Limits*: as [`Layout::series`].
    #[must_use]
    pub fn find(&self, index: usize) -> (usize, Series<'_>) {
        let at = self.pieces.partition_point(|piece| piece.end <= index);
        let piece = &self.pieces[at];
        let row = piece.segment.row(piece.segment.len() - (piece.end - index));
        (at, Series { segment: &piece.segment, row })
    }

    /// The series at an index, with its neighbours that are like it.
    ///
    /// *Limits*: as [`Layout::series`].
    #[must_use]
    pub fn run(&self, index: usize) -> Run<'_> {
        let at = self.pieces.partition_point(|piece| piece.end <= index);
        let Piece { segment, end, .. } = &self.pieces[at];
        let start = end - segment.len();
        let (row, rows) = segment.run(index - start);
        Run { segment, row, piece: at, series: start + rows.start..start + rows.end }
    }

    /// All series in order.
    pub fn iter(&self) -> impl Iterator<Item = Series<'_>> + '_ {
        self.pieces.iter().flat_map(|piece| piece.segment.rows().map(|row| Series { segment: &piece.segment, row }))
    }

    /// The memory its segments hold, text and tables; segments may be shared with other layouts.
    #[must_use]
    pub fn label_bytes(&self) -> usize {
        self.pieces.iter().map(|piece| piece.segment.bytes()).sum()
    }

    /// Whether its first series are exactly those of the other layout.
    #[must_use]
    pub fn extends(&self, base: &Layout) -> bool {
        self.prefix_id(base.len()) == Some(base.id())
    }

    /// A layout of the series that are wanted, in order.
    #[must_use]
    pub fn compact(&self, keep: impl Fn(usize) -> bool) -> Layout {
        let mut builder = builder::LayoutBuilder::new();
        for (_, series) in self.iter().enumerate().filter(|(index, _)| keep(*index)) {
            builder.copy(series);
        }
        builder.build()
    }

    /// The chained id of the first series.
    fn prefix_id(&self, len: usize) -> Option<LayoutId> {
        if len > self.len() {
            return None;
        }
        let whole = self.pieces.partition_point(|piece| piece.end <= len);
        let (mut id, start) = whole.checked_sub(1).map_or((LayoutId(0), 0), |at| (self.pieces[at].id, self.pieces[at].end));
        if let Some(piece) = self.pieces.get(whole) {
            id = piece.segment.chain(id, len - start);
        }
        Some(id)
    }

    /// Appends a segment; `id` is the chained id at its end.
    pub(crate) fn push(&mut self, segment: Arc<Segment>, id: LayoutId) {
        if segment.len() > 0 {
            let end = self.len() + segment.len();
            self.pieces.push(Piece { segment, end, id });
        }
    }

    /// The segments that hold the series from `start` on: the layout's own where they begin there, else one built anew.
    pub(crate) fn segments_from(&self, start: usize) -> Vec<Arc<Segment>> {
        let whole = self.pieces.partition_point(|piece| piece.end <= start);
        let aligned = whole.checked_sub(1).map_or(0, |at| self.pieces[at].end) == start;
        if aligned {
            return self.pieces[whole..].iter().map(|piece| Arc::clone(&piece.segment)).collect();
        }
        let mut builder = builder::LayoutBuilder::new();
        (start..self.len()).for_each(|index| builder.copy(self.series(index)));
        builder.build().pieces.into_iter().map(|piece| piece.segment).collect()
    }

    /// Whether both say the same, compared in full: ids are hashes that a hostile exporter could make collide. Segments that both share
    /// are not read.
    fn same(&self, other: &Layout) -> bool {
        let shared = self.pieces.iter().zip(&other.pieces).take_while(|(a, b)| Arc::ptr_eq(&a.segment, &b.segment)).count();
        let rest = |layout: &Layout| shared.checked_sub(1).map_or(0, |last| layout.pieces[last].end)..layout.len();
        self.len() == other.len() && rest(self).zip(rest(other)).all(|(a, b)| self.series(a).same(other.series(b)))
    }
}

impl<'a> Run<'a> {
    /// Which of [`Layout::pieces`] it is in.
    #[must_use]
    pub const fn piece(&self) -> usize {
        self.piece
    }

    /// The indices of its series.
    #[must_use]
    #[inline]
    pub const fn indices(&self) -> &Range<usize> {
        &self.series
    }

    /// Its series at an index of the layout.
    ///
    /// *Limits*: one of [`Run::indices`]; another one is not what is there.
    #[must_use]
    #[inline]
    pub fn series(&self, index: usize) -> Series<'a> {
        Series { segment: self.segment, row: self.segment.further(self.row, index - self.series.start) }
    }
}

impl<'a> Series<'a> {
    /// The metric name.
    #[must_use]
    pub fn name(&self) -> &'a str {
        self.segment.symbol(self.row.kind.name)
    }

    /// Its own labels, sorted by name, without the metric name; an empty value hides a label of the target.
    pub fn labels(&self) -> impl ExactSizeIterator<Item = (&'a str, &'a str)> + Clone + 'a {
        self.segment.labels(self.row)
    }

    /// Its family.
    #[must_use]
    pub fn family(&self) -> Family<'a> {
        self.segment.family(self.row)
    }

    /// Whether its values only grow until a reset: counters, and the parts of histograms and summaries but quantiles.
    #[must_use]
    pub fn is_cumulative(&self) -> bool {
        let family = self.family();
        let suffix = self.name().strip_prefix(family.name).unwrap_or_default();
        match family.kind {
            MetricType::Counter | MetricType::Histogram => suffix != "_created",
            MetricType::Summary => matches!(suffix, "_sum" | "_count"),
            _ => false,
        }
    }

    /// Itself by numbers.
    #[must_use]
    pub fn numbered(&self) -> Numbered<'a> {
        let Kind { family, name, shape } = self.row.kind;
        let family = &self.segment.families[family as usize];
        Numbered {
            name,
            shape,
            label_names: self.segment.shape(shape),
            values: self.segment.values(self.row),
            kind: family.kind,
            help: family.help,
            unit: family.unit,
        }
    }

    /// The numbers of its label values, as in [`Series::numbered`].
    #[must_use]
    #[inline]
    pub fn values(&self) -> Values<'a> {
        self.segment.values(self.row)
    }

    /// The text of a number of its piece.
    ///
    /// *Limits*: panics where the piece has no such number; those of [`Series::numbered`] it has.
    #[must_use]
    #[inline]
    pub fn text(&self, number: u32) -> &'a str {
        self.segment.symbol(number)
    }

    fn same(self, other: Series<'_>) -> bool {
        self.name() == other.name() && self.family() == other.family() && self.labels().eq(other.labels())
    }
}

#[cfg(test)]
mod tests;
