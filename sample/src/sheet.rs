//! Sheets: what became of samples and slots, counted per target and minute of nominal slots.
//!
//! *In*: counts of one frame or slot at a time. *Out*: their sums, and a compact form of them for the ledger. *Bound*: [`Sheet::rows`] rows of 16 bytes, and one
//! line per target; the writer books before that is much. *When full*: does not apply. A reader refuses more than [`CELLS_MAX`] rows.
//!
//! Most targets have the same counts in every slot. So a row says how many slots it has, and only what differs from the target's **usual** counts; and a
//! sheet may be written as the rest of another one, whose targets and usual counts its reader has.

mod form;

use std::collections::{BTreeMap, HashMap};

use crate::{Origin, TargetId};

/// The most rows, empty ones included, that a reader accepts.
pub const CELLS_MAX: usize = 4 << 20;
/// Minutes of an hour, the other span a row may have.
pub const HOUR: u8 = 60;

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Kind {
    /// Samples that a relay read, or that are known to be missing.
    Read = 0,
    /// Samples that its sink acknowledged, or that are of no consequence for it.
    Delivered = 1,
    /// Samples dropped on purpose, by filter or other reason.
    Filtered = 2,
    /// Samples that its sink will never take.
    Rejected = 3,
    /// Samples lost for it, by reason.
    Lost = 4,
    /// Slots in which no scrape began, by reason.
    Missed = 5,
    /// Slots whose scrape failed, by reason.
    Failed = 6,
}

/// One column: what is counted, and why.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Term {
    /// What.
    pub kind: Kind,
    /// Why; empty where there is one way only.
    pub reason: Box<str>,
}

/// A target as a sheet names it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Named {
    /// Its identity; 0: nobody knows whose samples they are.
    pub id: TargetId,
    /// Its job's name in the configuration.
    pub job: Box<str>,
    /// Its label `instance`.
    pub instance: Box<str>,
    /// Its attribute `namespace`, where a frame said it; no sheet's bytes have it.
    pub namespace: Box<str>,
}

/// Counts of one target and minute, or hour.
#[derive(Debug, Clone, Copy)]
pub struct Cell<'a> {
    /// The minute since the Unix epoch; of an hour its first.
    pub minute: i64,
    /// How many minutes: 1 or [`HOUR`].
    pub span: u8,
    /// The target.
    pub target: &'a Named,
    /// Slots, or frames.
    pub slots: u32,
    /// Per term of the sheet.
    pub counts: &'a [i64],
}

/// Counts of many targets and minutes.
#[derive(Debug, Clone, Default)]
pub struct Sheet {
    terms: Vec<Term>,
    lines: Vec<Line>,
    places: HashMap<TargetId, u32>,
    rows: BTreeMap<(i64, u8), Vec<Row>>,
}

#[derive(Debug, Clone, Default)]
struct Line {
    named: Named,
    /// None: no slot was counted yet.
    usual: Option<Vec<i64>>,
    /// The counts of the newest slot: the next usual ones.
    last: Vec<i64>,
}

#[derive(Debug, Clone, Default)]
struct Row {
    slots: u32,
    /// What the counts are above `slots` times the usual ones.
    #[expect(clippy::box_collection, reason = "most rows have none: 8 bytes instead of 24")]
    more: Option<Box<Vec<i64>>>,
}

impl Kind {
    /// Every kind, by number.
    pub const ALL: [Self; 7] = [Self::Read, Self::Delivered, Self::Filtered, Self::Rejected, Self::Lost, Self::Missed, Self::Failed];
}

impl Named {
    /// The name in a target's origin.
    #[must_use]
    pub fn of(origin: &Origin) -> Self {
        let label = |name: &str| origin.labels.iter().find(|(n, _)| n == name).map_or("", |(_, value)| value.as_str());
        Self {
            id: origin.target,
            job: origin.attribute("job").unwrap_or_else(|| label("job")).into(),
            instance: label("instance").into(),
            namespace: origin.attribute("namespace").unwrap_or_default().into(),
        }
    }
}

/// The minute of a slot.
#[must_use]
pub fn minute_of(slot_ms: i64) -> i64 {
    slot_ms.div_euclid(60_000)
}

impl Sheet {
    /// The column of a term; a new one at the end if there is none.
    pub fn term(&mut self, kind: Kind, reason: &str) -> u32 {
        let known = self.terms.iter().position(|term| term.kind == kind && &*term.reason == reason);
        let place = known.unwrap_or_else(|| {
            self.terms.push(Term { kind, reason: reason.into() });
            self.terms.len() - 1
        });
        place as u32
    }

    /// The columns.
    #[must_use]
    pub fn terms(&self) -> &[Term] {
        &self.terms
    }

    /// The line of a target; `named` is asked for a new one.
    pub fn line(&mut self, id: TargetId, named: impl FnOnce() -> Named) -> u32 {
        *self.places.entry(id).or_insert_with(|| {
            self.lines.push(Line { named: named(), ..Line::default() });
            (self.lines.len() - 1) as u32
        })
    }

    /// The targets, in the order of their lines.
    pub fn targets(&self) -> impl ExactSizeIterator<Item = &Named> {
        self.lines.iter().map(|line| &line.named)
    }

    /// The number of rows, empty ones included.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows.values().map(Vec::len).sum()
    }

    /// Whether nothing is counted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Counts at a line and minute: so many slots, and per term what they came to. Terms named twice add up.
    pub fn add(&mut self, line: u32, minute: i64, slots: u32, counts: &[(u32, u64)]) {
        let mut once: Vec<(u32, i64)> = Vec::with_capacity(counts.len());
        for (term, n) in counts.iter().filter(|(_, n)| *n > 0) {
            match once.iter_mut().find(|(known, _)| known == term) {
                Some((_, sum)) => *sum = sum.wrapping_add(*n as i64),
                None => once.push((*term, *n as i64)),
            }
        }
        self.add_to((minute, 1), line, slots, &once);
    }

    /// Moves samples that are counted already: per term what is added or, below 0, taken away.
    pub fn amend(&mut self, line: u32, minute: i64, counts: &[(u32, i64)]) {
        self.add_to((minute, 1), line, 0, counts);
    }

    /// Counts slots at equal distances, each as one of a term: by the minute, or by the hour where they reach over more than two.
    ///
    /// *Units*: ms. *Limits*: one row per minute or hour, however many slots are in it.
    pub fn add_slots(&mut self, line: u32, term: u32, first_ms: i64, every_ms: i64, slots: u64) {
        let every_ms = every_ms.max(1);
        let reach_ms = every_ms.saturating_mul(i64::try_from(slots).unwrap_or(i64::MAX));
        let span = if reach_ms > 2 * i64::from(HOUR) * 60_000 { HOUR } else { 1 };
        let (mut at_ms, mut left) = (first_ms, slots);
        while left > 0 {
            let minute = minute_of(at_ms).div_euclid(i64::from(span)) * i64::from(span);
            let end_ms = (minute + i64::from(span)) * 60_000;
            let here = (end_ms - at_ms).unsigned_abs().div_ceil(every_ms.unsigned_abs()).min(left);
            let slots = u32::try_from(here).unwrap_or(u32::MAX);
            self.add_to((minute, span), line, slots, &[(term, i64::from(slots))]);
            left -= here;
            at_ms = at_ms.saturating_add(every_ms.saturating_mul(here.cast_signed()));
        }
    }

    fn add_to(&mut self, at: (i64, u8), line: u32, slots: u32, counts: &[(u32, i64)]) {
        let index = line as usize;
        let Some(of) = self.lines.get_mut(index) else { return };
        let rows = self.rows.entry(at).or_default();
        if rows.len() <= index {
            rows.resize(index + 1, Row::default());
        }
        let row = &mut rows[index];
        row.slots = row.slots.saturating_add(slots);
        if slots == 1
            && of.last.iter().filter(|n| **n != 0).count() == counts.len()
            && same(&of.last, counts)
            && of.usual.as_ref() == Some(&of.last)
        {
            return;
        }
        let width = self.terms.len();
        let mut dense = vec![0i64; width];
        counts.iter().for_each(|(term, n)| dense[*term as usize] = dense[*term as usize].wrapping_add(*n));
        if slots > 0 {
            let each = i64::from(slots);
            let per_slot = dense.iter().all(|n| n % each == 0).then(|| dense.iter().map(|n| n / each).collect::<Vec<_>>());
            of.usual.get_or_insert_with(|| per_slot.clone().unwrap_or_default());
            of.last = per_slot.unwrap_or_else(|| std::mem::take(&mut of.last));
        }
        for (term, n) in dense.iter_mut().enumerate() {
            *n = n.wrapping_sub(of.usual().get(term).copied().unwrap_or(0).wrapping_mul(i64::from(slots)));
        }
        row.differ(&dense);
    }

    /// Looks at every count that is not 0.
    pub fn each(&self, mut look: impl FnMut(Cell<'_>)) {
        let mut counts = vec![0i64; self.terms.len()];
        for ((minute, span), rows) in &self.rows {
            for (line, row) in self.lines.iter().zip(rows) {
                if row.slots == 0 && row.more.is_none() {
                    continue;
                }
                for (term, count) in counts.iter_mut().enumerate() {
                    let usual = line.usual().get(term).copied().unwrap_or(0).wrapping_mul(i64::from(row.slots));
                    *count = usual.wrapping_add(row.more.as_ref().and_then(|more| more.get(term)).copied().unwrap_or(0));
                }
                look(Cell { minute: *minute, span: *span, target: &line.named, slots: row.slots, counts: &counts });
            }
        }
    }

    /// Adds all of another sheet; cells of which `folds` says so to their hour.
    pub fn take(&mut self, other: &Self, mut folds: impl FnMut(&Cell<'_>, &[Term]) -> bool) {
        let terms: Vec<u32> = other.terms.iter().map(|term| self.term(term.kind, &term.reason)).collect();
        other.each(|cell| {
            let hour = cell.span == HOUR || folds(&cell, &other.terms);
            let at = if hour { (cell.minute.div_euclid(i64::from(HOUR)) * i64::from(HOUR), HOUR) } else { (cell.minute, 1) };
            let counts: Vec<(u32, i64)> = terms.iter().copied().zip(cell.counts.iter().copied()).filter(|(_, n)| *n != 0).collect();
            let line = self.line(cell.target.id, || cell.target.clone());
            self.add_to(at, line, cell.slots, &counts);
        });
    }

    /// Makes the newest counts the usual ones, and forgets targets of which nothing is counted: before it is written whole.
    pub fn settle(&mut self) {
        for (index, line) in self.lines.iter_mut().enumerate() {
            if line.usual.as_ref() == Some(&line.last) {
                continue;
            }
            for rows in self.rows.values_mut() {
                let Some(row) = rows.get_mut(index).filter(|row| row.slots > 0) else { continue };
                let width = line.usual().len().max(line.last.len());
                let at = |counts: &[i64], term: usize| counts.get(term).copied().unwrap_or(0);
                let moved = |term| at(line.usual(), term).wrapping_sub(at(&line.last, term)).wrapping_mul(i64::from(row.slots));
                let difference: Vec<i64> = (0..width).map(moved).collect();
                row.differ(&difference);
            }
            line.usual = Some(line.last.clone());
        }
        let mut keep = vec![false; self.lines.len()];
        for rows in self.rows.values() {
            rows.iter().zip(&mut keep).filter(|(row, _)| row.slots > 0 || row.more.is_some()).for_each(|(_, keep)| *keep = true);
        }
        retain(&mut self.lines, &keep);
        self.rows.values_mut().for_each(|rows| retain(rows, &keep));
        self.places = self.lines.iter().zip(0..).map(|(line, place)| (line.named.id, place)).collect();
    }

    /// The same in parts of fewer targets each.
    #[must_use]
    pub fn parts(&self, count: usize) -> Vec<Self> {
        let each = self.lines.len().div_ceil(count.max(1)).max(1);
        let mut parts = vec![Self::default(); self.lines.len().div_ceil(each)];
        self.each(|cell| {
            let part = &mut parts[self.places[&cell.target.id] as usize / each];
            let counts = self.terms.iter().zip(cell.counts).filter(|(_, n)| **n != 0);
            let counts: Vec<(u32, i64)> = counts.map(|(term, n)| (part.term(term.kind, &term.reason), *n)).collect();
            let line = part.line(cell.target.id, || cell.target.clone());
            part.add_to((cell.minute, cell.span), line, cell.slots, &counts);
        });
        parts
    }

    /// Forgets the rows; targets and their usual counts stay: what a reader of the whole sheet knows.
    pub fn clear(&mut self) {
        self.rows.clear();
    }
}

impl Line {
    fn usual(&self) -> &[i64] {
        self.usual.as_deref().unwrap_or_default()
    }
}

impl Row {
    fn differ(&mut self, difference: &[i64]) {
        if difference.iter().all(|n| *n == 0) {
            return;
        }
        let more = self.more.get_or_insert_default();
        if more.len() < difference.len() {
            more.resize(difference.len(), 0);
        }
        more.iter_mut().zip(difference).for_each(|(sum, n)| *sum = sum.wrapping_add(*n));
        if more.iter().all(|n| *n == 0) {
            self.more = None;
        }
    }
}

/// Whether these are the counts, in any order, each term once.
fn same(dense: &[i64], counts: &[(u32, i64)]) -> bool {
    counts.iter().all(|(term, n)| *n != 0 && dense.get(*term as usize) == Some(n))
}

fn retain<T>(all: &mut Vec<T>, keep: &[bool]) {
    let mut place = 0;
    all.retain(|_| {
        place += 1;
        keep[place - 1]
    });
}

#[cfg(test)]
mod tests;
