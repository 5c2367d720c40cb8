//! Which part of a page is known to be UTF-8: it is looked at in stretches, not text by text.
//!
//! - *In:* a page and parts of it, mostly one behind the other. *Out:* their text. *Bound:* [`AHEAD`] bytes are looked at beyond what was asked for.
//! - *When broken:* the fault of the part itself, whatever stands around it.

use std::ops::Range;
use std::str::{Utf8Error, from_utf8};

/// Bytes looked at at once. Larger: more for one new series of a steady page; smaller: more beginnings and ends, which cost more than what is
/// between them.
const AHEAD: usize = 4096;

/// A stretch of a page that is UTF-8.
#[derive(Debug, Clone, Default)]
pub(crate) struct Checked<'a> {
    start: usize,
    text: &'a str,
}

impl<'a> Checked<'a> {
    /// A part of `body`, always the same one, as text.
    #[inline]
    pub(crate) fn text(&mut self, body: &'a [u8], part: Range<usize>) -> Result<&'a str, Utf8Error> {
        let known = part.start.checked_sub(self.start).and_then(|from| self.text.get(from..part.end - self.start));
        known.map_or_else(|| self.look(body, part), Ok)
    }

    #[inline(never)]
    fn look(&mut self, body: &'a [u8], part: Range<usize>) -> Result<&'a str, Utf8Error> {
        let ahead = &body[part.start..part.end.max(part.start + AHEAD).min(body.len())];
        self.start = part.start;
        let up_to_fault = || from_utf8(ahead).or_else(|fault| from_utf8(&ahead[..fault.valid_up_to()])).unwrap_or_default();
        self.text = utf8(ahead).unwrap_or_else(up_to_fault);
        self.text.get(..part.len()).map_or_else(|| from_utf8(&body[part]), Ok)
    }
}

/// Bytes as text; where they are none, the standard library says why.
#[inline]
pub(super) fn utf8(bytes: &[u8]) -> Option<&str> {
    simdutf8::basic::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_part_is_what_it_is_by_itself(
            bytes in proptest::collection::vec(proptest::sample::select(b"aaaaaaab\xc3\xa9\xe2\x82\xac\xff".to_vec()), 0..3 * AHEAD),
            parts in proptest::collection::vec((any::<proptest::sample::Index>(), 0..40usize), 0..40),
        ) {
            let (mut checked, body) = (Checked::default(), bytes.as_slice());
            for (start, length) in parts {
                let start = start.index(body.len() + 1);
                let part = start..(start + length).min(body.len());
                prop_assert_eq!(checked.text(body, part.clone()), from_utf8(&body[part]));
            }
        }
    }
}
