//! The few parts of protobuf's wire format that remote write is made of, written and read by hand.
//!
//! *In*: field keys and values. *Out*: bytes, or the fields of a message. *Bound*: no allocation but the output's growth; reading borrows.
//! *When full*: does not apply.

/// Bytes that are no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the bytes are no protobuf message")]
pub(crate) struct Malformed;

/// The key of a varint field.
pub(crate) const fn int(field: u32) -> u32 {
    field << 3
}

/// The key of a float64 field.
pub(crate) const fn double(field: u32) -> u32 {
    field << 3 | 1
}

/// The key of a field of bytes: a text, a message, packed numbers.
pub(crate) const fn len(field: u32) -> u32 {
    field << 3 | 2
}

/// Appends a varint.
#[inline]
pub(crate) fn varint(mut value: u64, out: &mut Vec<u8>) {
    // Most are this short.
    if value < 0x80 {
        return out.push(value as u8);
    }
    if value < 0x4000 {
        return out.extend_from_slice(&[value as u8 | 0x80, (value >> 7) as u8]);
    }
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// A signed number as `sint32` and `sint64` have it.
pub(crate) const fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)).cast_unsigned()
}

/// Appends a varint field.
#[inline]
pub(crate) fn put_int(key: u32, value: u64, out: &mut Vec<u8>) {
    varint(u64::from(key), out);
    varint(value, out);
}

/// Appends a float64 field by its bits.
#[inline]
pub(crate) fn put_double(key: u32, bits: u64, out: &mut Vec<u8>) {
    varint(u64::from(key), out);
    out.extend_from_slice(&bits.to_le_bytes());
}

/// Appends a field of bytes.
#[inline]
pub(crate) fn put_bytes(key: u32, bytes: &[u8], out: &mut Vec<u8>) {
    varint(u64::from(key), out);
    varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

/// Appends a field of bytes that `write` writes: its length is put before it when it is known.
#[inline]
pub(crate) fn put_message(key: u32, out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    varint(u64::from(key), out);
    let start = out.len();
    write(out);
    let bytes = out.len() - start;
    varint(bytes as u64, out);
    let head = out.len() - start - bytes;
    out[start..].rotate_right(head);
}

/// How many bytes a varint takes.
pub(crate) const fn varint_bytes(value: usize) -> usize {
    (70 - (value | 1).leading_zeros() as usize) / 7
}

/// How many bytes a field of so many bytes takes, where its number is below 16.
pub(crate) const fn field_bytes(len: usize) -> usize {
    1 + varint_bytes(len) + len
}

/// A field's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Value<'a> {
    Int(u64),
    Bits(u64),
    Bytes(&'a [u8]),
}

impl<'a> Value<'a> {
    pub(crate) fn bytes(self) -> Result<&'a [u8], Malformed> {
        match self {
            Value::Bytes(bytes) => Ok(bytes),
            _ => Err(Malformed),
        }
    }

    pub(crate) fn int(self) -> Result<u64, Malformed> {
        match self {
            Value::Int(value) => Ok(value),
            _ => Err(Malformed),
        }
    }
}

/// The fields of a message, in the order they were written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fields<'a> {
    /// What is not read yet.
    pub rest: &'a [u8],
}

impl<'a> Fields<'a> {
    pub(crate) const fn new(message: &'a [u8]) -> Self {
        Self { rest: message }
    }

    /// The next field's key and value; `None` at the end.
    #[inline]
    pub(crate) fn field(&mut self) -> Result<Option<(u32, Value<'a>)>, Malformed> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let key = u32::try_from(self.read()?).map_err(|_| Malformed)?;
        let value = match key & 7 {
            0 => Value::Int(self.read()?),
            1 => {
                let (bits, rest) = self.rest.split_first_chunk::<8>().ok_or(Malformed)?;
                self.rest = rest;
                Value::Bits(u64::from_le_bytes(*bits))
            }
            2 => {
                let bytes = usize::try_from(self.read()?).map_err(|_| Malformed)?;
                let (bytes, rest) = self.rest.split_at_checked(bytes).ok_or(Malformed)?;
                self.rest = rest;
                Value::Bytes(bytes)
            }
            _ => return Err(Malformed),
        };
        Ok(Some((key, value)))
    }

    #[inline]
    fn read(&mut self) -> Result<u64, Malformed> {
        let mut value = 0;
        for (i, byte) in self.rest.iter().take(10).enumerate() {
            value |= u64::from(byte & 0x7f) << (7 * i);
            if byte & 0x80 == 0 {
                self.rest = &self.rest[i + 1..];
                return Ok(value);
            }
        }
        Err(Malformed)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_written_reads_back(number in any::<u64>(), bits in any::<u64>(), bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut out = Vec::new();
            put_int(int(3), number, &mut out);
            put_double(double(16), bits, &mut out);
            put_message(len(2), &mut out, |out| put_bytes(len(1), &bytes, out));
            let mut fields = Fields::new(&out);
            prop_assert_eq!(fields.field(), Ok(Some((int(3), Value::Int(number)))));
            prop_assert_eq!(fields.field(), Ok(Some((double(16), Value::Bits(bits)))));
            let (key, inner) = fields.field().expect("a message").expect("a field");
            prop_assert_eq!(key, len(2));
            let mut inner = Fields::new(inner.bytes().expect("bytes"));
            prop_assert_eq!(inner.field(), Ok(Some((len(1), Value::Bytes(&bytes[..])))));
            prop_assert_eq!((inner.field(), fields.field()), (Ok(None), Ok(None)));
        }

        #[test]
        fn any_bytes_read_to_an_end(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let mut fields = Fields::new(&bytes);
            while let Ok(Some(_)) = fields.field() {}
        }
    }

    #[test]
    fn a_varint_is_as_long_as_it_is_said_to_be() {
        for value in [0, 1, 127, 128, 16_383, 16_384, usize::MAX] {
            let mut out = Vec::new();
            varint(value as u64, &mut out);
            assert_eq!(varint_bytes(value), out.len(), "{value}");
        }
    }

    #[test]
    fn signs_take_turns() {
        assert_eq!([0, -1, 1, i64::MAX, i64::MIN].map(zigzag), [0, 1, 2, u64::MAX - 1, u64::MAX]);
    }
}
