//! Numbers and strings of the wire: LEB128, zigzag, length-prefixed text, and a reader that never goes beyond its bytes.
//!
//! *In*: numbers, or bytes from outside. *Out*: bytes, or numbers. *Bound*: a [`Reader`] hands out borrows only, so nothing is
//! allocated here. *When full*: bytes that end early are [`DecodeError::Corrupt`].

use crate::DecodeError;

/// Appends a LEB128 number.
#[inline]
pub(crate) fn put(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Maps small magnitudes of either sign to small numbers.
#[inline]
pub(crate) fn zigzag(value: i64) -> u64 {
    (value.wrapping_shl(1) ^ (value >> 63)) as u64
}

/// The inverse of [`zigzag`].
#[inline]
pub(crate) fn unzigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

/// Appends a signed number.
#[inline]
pub(crate) fn put_signed(out: &mut Vec<u8>, value: i64) {
    put(out, zigzag(value));
}

/// Appends a text with its length.
pub(crate) fn put_str(out: &mut Vec<u8>, text: &str) {
    put(out, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}

/// Reads a byte slice from its front.
#[derive(Clone)]
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    pub(crate) fn at(&self) -> usize {
        self.at
    }

    pub(crate) fn remaining(&self) -> usize {
        self.bytes.len() - self.at
    }

    pub(crate) fn corrupt(&self, what: &'static str) -> DecodeError {
        DecodeError::Corrupt { what, at: self.at }
    }

    pub(crate) fn u8(&mut self, what: &'static str) -> Result<u8, DecodeError> {
        let byte = *self.bytes.get(self.at).ok_or_else(|| self.corrupt(what))?;
        self.at += 1;
        Ok(byte)
    }

    pub(crate) fn take(&mut self, len: usize, what: &'static str) -> Result<&'a [u8], DecodeError> {
        if len > self.remaining() {
            return Err(self.corrupt(what));
        }
        let taken = &self.bytes[self.at..self.at + len];
        self.at += len;
        Ok(taken)
    }

    pub(crate) fn rest(&mut self) -> &'a [u8] {
        let rest = &self.bytes[self.at..];
        self.at = self.bytes.len();
        rest
    }

    pub(crate) fn u64(&mut self, what: &'static str) -> Result<u64, DecodeError> {
        let bytes = self.take(8, what)?;
        Ok(bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    #[inline]
    pub(crate) fn varint(&mut self, what: &'static str) -> Result<u64, DecodeError> {
        let first = self.u8(what)?;
        if first < 0x80 {
            return Ok(u64::from(first));
        }
        let mut value = u64::from(first & 0x7f);
        for shift in (7..64).step_by(7) {
            let byte = self.u8(what)?;
            if shift == 63 && byte > 1 {
                break;
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(self.corrupt(what))
    }

    #[inline]
    pub(crate) fn signed(&mut self, what: &'static str) -> Result<i64, DecodeError> {
        self.varint(what).map(unzigzag)
    }

    /// A number that fits the target type.
    pub(crate) fn small<T: TryFrom<u64>>(&mut self, what: &'static str) -> Result<T, DecodeError> {
        let value = self.varint(what)?;
        T::try_from(value).map_err(|_| self.corrupt(what))
    }

    /// A count of items that take at least `least` bytes each of what remains.
    pub(crate) fn count(&mut self, least: usize, what: &'static str) -> Result<usize, DecodeError> {
        let count: usize = self.small(what)?;
        if count > self.remaining() / least { Err(self.corrupt(what)) } else { Ok(count) }
    }

    pub(crate) fn str(&mut self, what: &'static str) -> Result<&'a str, DecodeError> {
        let len = self.count(1, what)?;
        let bytes = self.take(len, what)?;
        std::str::from_utf8(bytes).map_err(|_| self.corrupt(what))
    }

    pub(crate) fn pairs(&mut self, what: &'static str) -> Result<Vec<(String, String)>, DecodeError> {
        let count = self.count(2, what)?;
        if count > PAIRS_MAX {
            return Err(DecodeError::TooLarge { what, size: count as u64, max: PAIRS_MAX as u64 });
        }
        (0..count).map(|_| Ok((self.str(what)?.to_owned(), self.str(what)?.to_owned()))).collect()
    }
}

/// The most labels of one origin or exemplar: each costs two allocations, so the bytes alone are no bound.
pub(crate) const PAIRS_MAX: usize = 1024;

/// Appends label pairs with their count.
pub(crate) fn put_pairs(out: &mut Vec<u8>, pairs: &[(String, String)]) {
    put(out, pairs.len() as u64);
    for (name, value) in pairs {
        put_str(out, name);
        put_str(out, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(value: u64, bytes: &[u8]) {
        let mut out = Vec::new();
        put(&mut out, value);
        assert_eq!(out, bytes);
        assert_eq!(Reader::new(bytes).varint("n"), Ok(value));
    }

    #[test]
    fn numbers_survive_at_every_width() {
        check(0, &[0]);
        check(127, &[127]);
        check(128, &[128, 1]);
        check(u64::MAX, &[255, 255, 255, 255, 255, 255, 255, 255, 255, 1]);
        for value in [0, -1, 1, i64::MIN, i64::MAX] {
            assert_eq!(unzigzag(zigzag(value)), value);
        }
        assert_eq!((zigzag(-1), zigzag(1)), (1, 2));
    }

    #[test]
    fn numbers_beyond_64_bits_and_cut_ones_are_refused() {
        for bytes in [&[255, 255, 255, 255, 255, 255, 255, 255, 255, 2][..], &[128; 11], &[128], &[]] {
            assert!(Reader::new(bytes).varint("n").is_err());
        }
        assert!(Reader::new(&[5, b'a']).str("text").is_err());
        assert!(Reader::new(&[1, 0xff]).str("text").is_err());
    }

    #[test]
    fn more_pairs_than_the_limit_are_refused() {
        let pairs = |count: usize| {
            let mut bytes = Vec::new();
            put_pairs(&mut bytes, &vec![Default::default(); count]);
            Reader::new(&bytes).pairs("label").map(|pairs| pairs.len())
        };
        assert_eq!(pairs(PAIRS_MAX), Ok(PAIRS_MAX));
        assert!(matches!(pairs(PAIRS_MAX + 1), Err(DecodeError::TooLarge { .. })));
    }
}
