//! The fields of one message, in place.
//!
//! - *In:* a range of the page. *Out:* [`Field`]s. *Bound:* the range. *When full or broken:* an [`Error`] with its offset.

use super::{Error, Rule};

/// Bytes of the longest varint.
pub(super) const VARINT_BYTES_MAX: usize = 10;

/// What is left of a message.
#[derive(Debug, Clone)]
pub(crate) struct Fields<'a> {
    rest: &'a [u8],
    /// Where it begins on the page.
    at: usize,
}

/// One field.
#[derive(Debug, Clone)]
pub(crate) struct Field<'a> {
    /// The offset of its tag.
    pub(crate) at: usize,
    pub(crate) number: u32,
    value: Value<'a>,
}

#[derive(Debug, Clone)]
enum Value<'a> {
    Varint(u64),
    Fixed64(u64),
    Bytes(Fields<'a>),
    /// 32 bits, which no field of these messages has.
    Other,
}

impl<'a> Fields<'a> {
    /// `body` from `at` on, which must lie in it.
    pub(super) fn new(body: &'a [u8], at: usize) -> Self {
        Self { rest: body.get(at..).unwrap_or_default(), at }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// The offset of the next byte.
    pub(super) fn offset(&self) -> usize {
        self.at
    }

    pub(super) fn bytes(&self) -> &'a [u8] {
        self.rest
    }

    /// The next field, if it has this tag and less than 128 bytes.
    #[inline]
    pub(super) fn short(&mut self, tag: u8) -> Option<Self> {
        match self.rest {
            [first, length @ 0..0x80, rest @ ..] if *first == tag => {
                let field = Self { rest: rest.get(..usize::from(*length))?, at: self.at + 2 };
                self.advance(2 + usize::from(*length));
                Some(field)
            }
            _ => None,
        }
    }

    #[inline]
    pub(super) fn advance(&mut self, bytes: usize) {
        self.rest = &self.rest[bytes..];
        self.at += bytes;
    }

    /// The next field; `None` at the end.
    #[inline]
    pub(crate) fn next(&mut self) -> Result<Option<Field<'a>>, Error> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let at = self.at;
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).ok().filter(|number| (1..1 << 29).contains(number));
        let number = number.ok_or(Error { at, rule: Rule::WireType })?;
        let value = match tag & 7 {
            0 => Value::Varint(self.varint()?),
            1 => Value::Fixed64(u64::from_le_bytes(self.fixed()?)),
            2 => Value::Bytes(self.delimited()?),
            5 => {
                self.fixed::<4>()?;
                Value::Other
            }
            _ => return Err(Error { at, rule: Rule::WireType }),
        };
        Ok(Some(Field { at, number, value }))
    }

    /// A length and as many bytes.
    #[inline]
    pub(super) fn delimited(&mut self) -> Result<Self, Error> {
        let at = self.at;
        let length = self.varint()?;
        match usize::try_from(length).ok().and_then(|length| self.rest.split_at_checked(length)) {
            Some((bytes, _)) => {
                let fields = Self { rest: bytes, at: self.at };
                self.advance(bytes.len());
                Ok(fields)
            }
            None => Err(Error { at, rule: Rule::Length }),
        }
    }

    #[inline]
    pub(super) fn varint(&mut self) -> Result<u64, Error> {
        match self.rest {
            [byte @ 0..0x80, ..] => {
                self.advance(1);
                Ok(u64::from(*byte))
            }
            [low, high @ 0..0x80, ..] => {
                self.advance(2);
                Ok(u64::from(low & 0x7f) | u64::from(*high) << 7)
            }
            _ => self.long_varint(),
        }
    }

    fn long_varint(&mut self) -> Result<u64, Error> {
        let mut value = 0u64;
        for (byte, shift) in self.rest.iter().zip((0..64).step_by(7)) {
            // The tenth byte has room for one bit.
            if shift == 63 && *byte > 1 {
                break;
            }
            value |= u64::from(byte & 0x7f) << shift;
            if *byte < 0x80 {
                self.advance(shift / 7 + 1);
                return Ok(value);
            }
        }
        Err(Error { at: self.at, rule: Rule::Varint })
    }

    #[inline]
    pub(super) fn fixed<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        match self.rest.first_chunk::<N>() {
            Some(bytes) => {
                self.advance(N);
                Ok(*bytes)
            }
            None => Err(Error { at: self.at, rule: Rule::Length }),
        }
    }
}

impl<'a> Field<'a> {
    #[cold]
    pub(super) fn error(&self, rule: Rule) -> Error {
        Error { at: self.at, rule }
    }

    #[inline]
    pub(crate) fn varint(&self) -> Result<u64, Error> {
        if let Value::Varint(value) = self.value { Ok(value) } else { Err(self.error(Rule::WireType)) }
    }

    /// The bits of a double.
    #[inline]
    pub(super) fn double(&self) -> Result<u64, Error> {
        if let Value::Fixed64(bits) = self.value { Ok(bits) } else { Err(self.error(Rule::WireType)) }
    }

    #[inline]
    pub(crate) fn message(&self) -> Result<Fields<'a>, Error> {
        if let Value::Bytes(fields) = &self.value { Ok(fields.clone()) } else { Err(self.error(Rule::WireType)) }
    }

    /// A text of at most `limit` bytes; a longer one breaks `rule`.
    pub(super) fn text(&self, limit: usize, rule: Rule) -> Result<&'a str, Error> {
        let bytes = self.message()?.bytes();
        if bytes.len() > limit {
            return Err(self.error(rule));
        }
        std::str::from_utf8(bytes).map_err(|_| self.error(Rule::Utf8))
    }

    /// Hands each number of a repeated field to `take`, packed or not: `read` takes one off a packed run.
    pub(super) fn numbers(&self, read: impl Fn(&mut Fields<'a>) -> Result<u64, Error>, mut take: impl FnMut(u64)) -> Result<(), Error> {
        match &self.value {
            Value::Varint(value) | Value::Fixed64(value) => take(*value),
            Value::Bytes(run) => {
                let mut run = run.clone();
                while !run.is_empty() {
                    take(read(&mut run)?);
                }
            }
            Value::Other => return Err(self.error(Rule::WireType)),
        }
        Ok(())
    }
}

/// A `sint` from its varint.
pub(super) fn signed(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

pub(super) fn put_varint(mut value: usize, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// A field of a text.
pub(super) fn put_text(number: u8, text: &str, out: &mut Vec<u8>) {
    out.push(number << 3 | 2);
    put_varint(text.len(), out);
    out.extend_from_slice(text.as_bytes());
}
