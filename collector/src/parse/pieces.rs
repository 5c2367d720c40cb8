//! The pieces of one series text after another: neighbours on a page mostly differ in their last labels, and what a text has in common with
//! the one before is not read again.
//!
//! - *In:* a page and where a series starts. *Out:* where its name and its labels are. *Bound:* 16 bytes per label of one series.
//! - *When full or broken:* as [`labels::walk`](super::labels::walk), whose pieces these are, whatever came before.

use std::ops::Range;

use super::labels::{self, Fault, Piece};

/// What a series text is made of, by places in it.
#[derive(Debug, Default)]
pub(crate) struct Pieces<'a> {
    text: &'a [u8],
    name: Range<usize>,
    labels: Vec<[Range<u32>; 2]>,
    /// So many of the first ones stand behind the name and have nothing but a comma behind them.
    plain: usize,
    /// Labels that the last text had in common with the one before it.
    known: usize,
    /// Labels, those included, of which it had at least the names in common.
    named: usize,
    /// Whether it had the name in common.
    is_named: bool,
    /// Where the part of the last text that was read starts and ends.
    read: Range<usize>,
}

impl<'a> Pieces<'a> {
    /// Reads the series at `start`: the part of `body` that was looked at, which ends where the series does.
    pub(crate) fn walk(&mut self, body: &'a [u8], start: usize) -> Result<Range<usize>, Fault> {
        let text = body.get(start..).unwrap_or_default();
        // What is broken has nothing in common with what follows.
        let before = std::mem::take(&mut self.text);
        let common = common(before, text);
        self.known = self.labels[..self.plain].partition_point(|label| behind(label) <= common);
        let mut from = self.start(self.known);
        self.read = from..from;
        if from == 0 && self.is_name_common(common) {
            from = self.name.end + 1;
        }
        self.is_named = from > 0;
        self.named = self.known;
        if self.is_named {
            // Most of the others differ in their values only.
            while let Some((label, is_last)) = self.labels.get(self.named).and_then(|label| like(before, label, text, from)) {
                self.labels[self.named] = label;
                self.named += 1;
                from = behind(&self.labels[self.named - 1]);
                if is_last {
                    self.labels.truncate(self.named);
                    self.plain = self.named - 1;
                    return self.end(text, start, from);
                }
            }
        } else {
            self.name = Range::default();
        }
        self.labels.truncate(self.named);
        self.plain = self.named;
        let place = |part: &[u8]| (part.as_ptr() as usize).saturating_sub(text.as_ptr() as usize);
        let Self { name, labels, plain, .. } = self;
        let take = |piece| match piece {
            Piece::Name(found) => *name = place(found)..place(found) + found.len(),
            Piece::Label(label, value) => {
                let (label_at, value_at) = (place(label), place(value));
                let end = value_at + value.len();
                if *plain == labels.len() && name.end > 0 && text.get(end + 1) == Some(&b',') {
                    *plain += 1;
                }
                labels.push([label_at as u32..(label_at + label.len()) as u32, value_at as u32..end as u32]);
            }
        };
        let walked = if from == 0 { labels::walk(text, 0, take) } else { labels::walk_on(text, from, self.named, take) };
        let end = walked.map_err(|(at, rule)| (start + at, rule))?;
        self.end(text, start, end)
    }

    /// Ends the series at `start`: the part of the body that was looked at.
    fn end(&mut self, text: &'a [u8], start: usize, end: usize) -> Result<Range<usize>, Fault> {
        let end = labels::bounded(0, end).map_err(|(at, rule)| (start + at, rule))?;
        self.text = &text[..end];
        self.read.end = end;
        Ok(start + self.read.start..start + end)
    }
}

impl Pieces<'_> {
    /// Where its name is.
    pub(crate) fn name(&self) -> Range<usize> {
        self.name.clone()
    }

    /// Where name and value of a label are.
    pub(crate) fn label(&self, index: usize) -> [Range<usize>; 2] {
        self.labels[index].clone().map(|part| part.start as usize..part.end as usize)
    }

    /// Whether a text that begins with so many bytes of the last one has its name, with a brace and labels behind it.
    fn is_name_common(&self, common: usize) -> bool {
        let first = self.labels.first().map_or(0, |[label, _]| label.start as usize);
        self.name.start == 0 && self.name.end > 0 && first == self.name.end + 1 && first <= common
    }

    /// Whether the last text had its name in common with the one before it.
    pub(crate) fn is_named(&self) -> bool {
        self.is_named
    }

    /// How many labels it had at least the names in common.
    pub(crate) fn named(&self) -> usize {
        self.named
    }

    /// How many labels the last text had in common with the one before it.
    pub(crate) fn known(&self) -> usize {
        self.known
    }

    /// Where in the text it goes on behind so many of the labels that it had in common.
    pub(crate) fn start(&self, labels: usize) -> usize {
        labels.checked_sub(1).map_or(0, |last| behind(&self.labels[last]))
    }

    pub(crate) fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether what was read of the last text is a name and labels, with nothing between them but the bytes that must be: their lengths leave no
    /// room for blanks or for quotes around names, and a comma stands behind each label but the last. False says nothing.
    pub(crate) fn is_dense(&self) -> bool {
        let labels = self.labels.get(self.known..).unwrap_or_default();
        let bytes = |label: &[Range<u32>; 2]| label.iter().map(Range::len).sum::<usize>() + "=\"\",".len();
        let name = if self.read.start == 0 { self.name.len() + "{".len() } else { 0 };
        // The brace at the end takes the place of a comma.
        !labels.is_empty() && self.plain + 1 == self.labels.len() && name + labels.iter().map(bytes).sum::<usize>() == self.read.len()
    }
}

/// Where it goes on behind a label and its comma.
fn behind([_, value]: &[Range<u32>; 2]) -> usize {
    value.end as usize + "\",".len()
}

/// A label at `at` in a text that is written as one of the text before it and differs in its value only; and whether it is the last.
#[inline]
fn like(before: &[u8], [name, value]: &[Range<u32>; 2], text: &[u8], at: usize) -> Option<([Range<u32>; 2], bool)> {
    // The name, `=` and a quote.
    let head = before.get(name.start as usize..value.start as usize).filter(|head| head.len() == name.len() + 2)?;
    let open = at + head.len() - 1;
    if !is_same(head, text.get(at..=open)?) {
        return None;
    }
    let end = labels::quote_end(text, open).ok()?;
    let is_last = match text.get(end) {
        Some(b',') => false,
        Some(b'}') => true,
        _ => return None,
    };
    let place = |from: usize, end: usize| from as u32..end as u32;
    Some(([place(at, open - 1), place(open + 1, end - 1)], is_last))
}

/// Whether two short texts of one length are the same.
#[inline]
fn is_same(one: &[u8], other: &[u8]) -> bool {
    fn ends<const N: usize>(one: &[u8], other: &[u8]) -> bool {
        one.first_chunk::<N>() == other.first_chunk() && one.last_chunk::<N>() == other.last_chunk()
    }
    match one.len() {
        4..=8 => ends::<4>(one, other),
        9..=16 => ends::<8>(one, other),
        _ => one == other,
    }
}

/// Bytes that both begin with.
fn common(one: &[u8], other: &[u8]) -> usize {
    const STEP: usize = 16;
    let (ones, others) = (one.as_chunks::<STEP>().0, other.as_chunks::<STEP>().0);
    let steps = ones.iter().zip(others).take_while(|(one, other)| one == other).count() * STEP;
    steps + one[steps..].iter().zip(&other[steps..]).take_while(|(one, other)| one == other).count()
}
