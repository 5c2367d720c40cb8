//! The bounds of buckets and the quantiles as texts: metrics of one family have the same ones, in the same order.
//!
//! - *In:* the bits of a bound. *Out:* what Prometheus writes for it, and the hash of that. *Bound:* [`KNOWN_MAX`]. *When full:* all are forgotten.

use super::hash::TextHash;
use crate::parse::go_float;

/// Bounds that are known. More: longer searches where each bound is another one; fewer: more of them are written again.
const KNOWN_MAX: usize = 128;

#[derive(Debug, Default)]
pub(super) struct Bounds {
    known: Vec<Bound>,
    /// The one that came behind the last before.
    next: usize,
}

#[derive(Debug)]
struct Bound {
    bits: u64,
    text: String,
    hash: u64,
}

impl Bounds {
    /// The text of a bound, and its hash.
    pub(super) fn text(&mut self, hash: TextHash, bits: u64) -> (&str, u64) {
        let is = |bound: &Bound| bound.bits == bits;
        let at = match self.known.get(self.next) {
            Some(bound) if is(bound) => self.next,
            _ => self.known.iter().position(is).unwrap_or_else(|| self.add(hash, bits)),
        };
        self.next = if at + 1 < self.known.len() { at + 1 } else { 0 };
        let Bound { text, hash, .. } = &self.known[at];
        (text, *hash)
    }

    fn add(&mut self, hash: TextHash, bits: u64) -> usize {
        if self.known.len() == KNOWN_MAX {
            self.known.clear();
        }
        let text = go_float(f64::from_bits(bits));
        self.known.push(Bound { bits, hash: hash.of(text.as_bytes()), text });
        self.known.len() - 1
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_bound_has_its_own_text_whatever_came_before(bounds in proptest::collection::vec(0u16..2 * KNOWN_MAX as u16, 0..600)) {
            let (mut known, hash) = (Bounds::default(), TextHash::new());
            for bound in bounds.into_iter().map(|bound| f64::from(bound) / 8.0) {
                let text = go_float(bound);
                prop_assert_eq!(known.text(hash, bound.to_bits()), (text.as_str(), hash.of(text.as_bytes())));
                prop_assert!(known.known.len() <= KNOWN_MAX);
            }
        }
    }
}
