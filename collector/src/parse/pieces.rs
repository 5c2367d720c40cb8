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
    /// Where the part of the last text that was read starts and ends.
    read: Range<usize>,
}

impl<'a> Pieces<'a> {
    /// Reads the series at `start`: the part of `body` that was looked at, which ends where the series does.
    pub(crate) fn walk(&mut self, body: &'a [u8], start: usize) -> Result<Range<usize>, Fault> {
        let text = body.get(start..).unwrap_or_default();
        let common = if self.plain > 0 { common(self.text, text) } else { 0 };
        self.known = self.labels[..self.plain].partition_point(|label| behind(label) <= common);
        let from = self.start(self.known);
        self.labels.truncate(self.known);
        self.plain = self.known;
        // What is broken has nothing in common with what follows.
        self.text = &[];
        let place = |part: &[u8]| (part.as_ptr() as usize).saturating_sub(text.as_ptr() as usize);
        let Self { name, labels, plain, known, .. } = self;
        if from == 0 {
            *name = Range::default();
        }
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
        let walked = if from == 0 { labels::walk(text, 0, take) } else { labels::walk_on(text, from, *known, take) };
        let end = walked.map_err(|(at, rule)| (start + at, rule))?;
        self.text = &text[..end];
        self.read = from..end;
        Ok(start + from..start + end)
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

/// Bytes that both begin with.
fn common(one: &[u8], other: &[u8]) -> usize {
    const STEP: usize = 16;
    let (ones, others) = (one.as_chunks::<STEP>().0, other.as_chunks::<STEP>().0);
    let steps = ones.iter().zip(others).take_while(|(one, other)| one == other).count() * STEP;
    steps + one[steps..].iter().zip(&other[steps..]).take_while(|(one, other)| one == other).count()
}
