//! What the per-sample loop needs of each series of a target, column by column.
//!
//! *In*: rows in the layout's order. *Out*: a row by its place. *Bound*: 10 bytes per series, 2 more where filters changed labels of one.
//! *When full*: does not apply; a part has fewer series than a column's numbers can say.

use std::collections::HashMap;

use sample::MetricType;

/// Of a series whose text is shared with other targets.
pub(super) const SHARED: u16 = u16::MAX;
/// Bits of [`Said::rule`] below the rule: whether it only grows, and its type.
const RULE_SHIFT: u32 = 4;

/// One series of a target as the per-sample loop needs it.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// Hash of its whole identity.
    pub hash: u64,
    said: Said,
    /// Its place among the texts that have all labels, so that the target's part is empty; [`SHARED`]: it has none there.
    pub(super) whole: u16,
}

/// What many series of a target have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Said {
    /// What filters said and what its values are: its rule's number in the chain, above [`RULE_SHIFT`] bits for the others.
    rule: u32,
    /// Which of the target's routes it takes: there are no more of them than series of a part.
    route: u16,
}

/// The rows of one target's part.
#[derive(Debug, Default)]
pub struct Rows {
    hashes: Vec<u64>,
    /// Per series which of `kinds`.
    numbers: Vec<u16>,
    kinds: Vec<Said>,
    /// Per series its place among the texts with all labels; series beyond its end have none.
    whole: Vec<u16>,
}

/// Rows that are being added, with what is known of those before them.
pub(super) struct Filling<'a> {
    rows: &'a mut Rows,
    known: HashMap<Said, u16>,
}

impl Row {
    pub(super) fn new(hash: u64, rule: u32, kind: MetricType, cumulative: bool, route: u16, whole: u16) -> Self {
        assert!(rule < 1 << (u32::BITS - RULE_SHIFT), "a rule is a combination of verdicts on at least one series");
        let rule = rule << RULE_SHIFT | (kind as u32) << 1 | u32::from(cumulative);
        Self { hash, said: Said { rule, route }, whole }
    }

    /// What filters said: its rule's number in the chain.
    pub fn rule(&self) -> u32 {
        self.said.rule >> RULE_SHIFT
    }

    /// Type of its family.
    pub fn kind(&self) -> MetricType {
        MetricType::ALL[(self.said.rule >> 1 & 7) as usize]
    }

    /// Whether it only grows until a reset.
    pub fn cumulative(&self) -> bool {
        self.said.rule & 1 == 1
    }

    /// Which of [`super::Resolved::routes`] it takes.
    pub fn route(&self) -> u16 {
        self.said.route
    }
}

impl Rows {
    /// How many they are.
    pub fn len(&self) -> usize {
        self.hashes.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The row at a place below [`Rows::len`].
    #[inline]
    pub fn at(&self, i: usize) -> Row {
        let said = self.kinds[usize::from(self.numbers[i])];
        Row { hash: self.hashes[i], said, whole: self.whole.get(i).copied().unwrap_or(SHARED) }
    }

    /// All of them in order.
    pub fn iter(&self) -> impl Iterator<Item = Row> + '_ {
        (0..self.len()).map(|i| self.at(i))
    }

    pub(super) fn filling(&mut self) -> Filling<'_> {
        Filling { known: self.kinds.iter().copied().zip(0..).collect(), rows: self }
    }

    /// Gives back what doubling has reserved beyond some headroom.
    pub(super) fn shrink(&mut self) {
        self.hashes.shrink_to(super::headroom(self.hashes.len()));
        self.numbers.shrink_to(super::headroom(self.numbers.len()));
        self.whole.shrink_to(super::headroom(self.whole.len()));
    }
}

impl Filling<'_> {
    pub(super) fn push(&mut self, row: Row) {
        let rows = &mut *self.rows;
        if row.whole != SHARED {
            rows.whole.resize(rows.hashes.len(), SHARED);
            rows.whole.push(row.whole);
        }
        rows.hashes.push(row.hash);
        rows.numbers.push(*self.known.entry(row.said).or_insert_with(|| {
            rows.kinds.push(row.said);
            (rows.kinds.len() - 1) as u16
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_what_was_put() {
        let row = |i: u64| {
            let whole = if i % 5 == 2 { i as u16 } else { SHARED };
            Row::new(i, i as u32 % 3, MetricType::ALL[i as usize % 7], i.is_multiple_of(2), i as u16 % 4, whole)
        };
        let mut rows = Rows::default();
        for part in [0..100, 100..101, 101..400] {
            let mut filling = rows.filling();
            part.for_each(|i| filling.push(row(i)));
            rows.shrink();
        }
        assert!(rows.kinds.len() <= 3 * 7 * 4 && rows.len() == 400);
        for (i, found) in (0..).zip(rows.iter()) {
            let said = |row: &Row| (row.hash, row.rule(), row.kind(), row.cumulative(), row.route(), row.whole);
            assert_eq!(said(&found), said(&row(i)));
        }
    }
}
