//! Labels of one series text, read only when somebody needs them.
//!
//! - *In:* the bytes of `name{label="value",…}`. *Out:* name and labels as they stand, escapes still in; [`unescape`] takes those out.
//! - *Bound:* [`super::SERIES_BYTES_MAX`] bytes, [`super::LABELS_MAX`] labels. *When full:* a located error.

use std::borrow::Cow;

use memchr::{memchr, memchr2};

use super::{LABELS_MAX, Rule, SERIES_BYTES_MAX};

/// A broken rule and the offset in the text at which it is broken.
pub(crate) type Fault = (usize, Rule);

/// Words of a value that are looked at one by one.
const NEAR: usize = 6;

/// What a byte may be in a name.
const CLASSES: [u8; 256] = {
    let (mut classes, mut byte) = ([0; 256], 0u8);
    loop {
        classes[byte as usize] = match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'_' => LETTER,
            b'0'..=b'9' => DIGIT,
            b':' => COLON,
            _ => 0,
        };
        if byte == u8::MAX {
            break classes;
        }
        byte += 1;
    }
};
const LETTER: u8 = 1;
const DIGIT: u8 = 2;
const COLON: u8 = 4;

/// What a series text is made of, in its own order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece<'a> {
    /// The metric name; exactly once.
    Name(&'a [u8]),
    /// A label: name and value, with escapes.
    Label(&'a [u8], &'a [u8]),
}

/// Walks over a series text from `at` in `text`, hands each piece to `take`, and says where the series ends.
///
/// It reads exactly one series and does not look at what follows: neither the value nor the end of the line.
#[inline]
pub(crate) fn walk<'a>(text: &'a [u8], start: usize, mut take: impl FnMut(Piece<'a>)) -> Result<usize, Fault> {
    let bare = start + name_length(&text[start..], true);
    let named = bare > start;
    if named {
        take(Piece::Name(&text[start..bare]));
    }
    let brace = skip_blanks(text, bare);
    if text.get(brace) != Some(&b'{') {
        return if !named {
            Err((start, Rule::Start))
        } else if bare - start > SERIES_BYTES_MAX {
            Err((start, Rule::SeriesTooLong))
        } else {
            Ok(bare)
        };
    }
    bounded(start, braces(text, brace + 1, (named, 0), &mut take)?)
}

/// The end of a series, if it is no longer than it may be.
pub(super) fn bounded(start: usize, end: usize) -> Result<usize, Fault> {
    if end - start > SERIES_BYTES_MAX { Err((start, Rule::SeriesTooLong)) } else { Ok(end) }
}

/// Walks on from `start`, behind the comma of the last of `labels` labels of a text that has its name.
pub(super) fn walk_on<'a>(text: &'a [u8], start: usize, labels: usize, mut take: impl FnMut(Piece<'a>)) -> Result<usize, Fault> {
    bounded(0, braces(text, start, (true, labels), &mut take)?)
}

/// Walks over what stands in braces from `start` on, behind the opening one or a comma; the series may be named already, and has so many
/// labels before.
pub(super) fn braces<'a>(
    text: &'a [u8],
    start: usize,
    (mut named, mut labels): (bool, usize),
    take: &mut impl FnMut(Piece<'a>),
) -> Result<usize, Fault> {
    let mut at = skip_blanks(text, start);
    // A value with a line break and no comma behind it: its quote was probably left open.
    let mut suspect = None;
    let place = |suspect: Option<usize>, fault| suspect.map_or(fault, |at| (at, Rule::Unclosed));
    loop {
        let (name, after, quoted) = match text.get(at) {
            Some(b'}') if named => return Ok(at + 1),
            Some(b'}') => return Err((at, Rule::NameMissing)),
            Some(b'"') => {
                let end = quote_end(text, at)?;
                (&text[at + 1..end - 1], end, true)
            }
            _ => {
                let length = name_length(&text[at.min(text.len())..], false);
                (&text[at..at + length], at + length, false)
            }
        };
        if name.is_empty() {
            return Err(place(suspect, (at, if quoted { Rule::NameEmpty } else { Rule::LabelName })));
        }
        let next = skip_blanks(text, after);
        if quoted && matches!(text.get(next), Some(b',' | b'}')) {
            if named {
                return Err((at, Rule::NameTwice));
            }
            named = true;
            take(Piece::Name(name));
            at = if text[next] == b',' { skip_blanks(text, next + 1) } else { next };
            continue;
        }
        if text.get(next) != Some(&b'=') {
            return Err(place(suspect, (next, Rule::Equal)));
        }
        let value = skip_blanks(text, next + 1);
        if text.get(value) != Some(&b'"') {
            return Err(place(suspect, (value, Rule::LabelValue)));
        }
        let end = quote_end(text, value)?;
        labels += 1;
        if labels > LABELS_MAX {
            return Err((at, Rule::TooManyLabels));
        }
        take(Piece::Label(name, &text[value + 1..end - 1]));
        at = skip_blanks(text, end);
        match text.get(at) {
            Some(b',') => at = skip_blanks(text, at + 1),
            Some(b'}') => {}
            next => {
                suspect = suspect.or_else(|| memchr(b'\n', &text[value..end]).map(|_| value));
                // Prometheus needs no comma between labels.
                let is_label = next.is_some_and(|byte| *byte == b'"' || name_length(&[*byte], false) > 0);
                if !is_label {
                    return Err(place(suspect, (at, Rule::Separator)));
                }
            }
        }
    }
}

/// The length of a name at the start of `text`: letters, digits and `_`, for a metric `:` too, and no digit first.
#[inline]
pub(crate) fn name_length(text: &[u8], colon: bool) -> usize {
    let first = if colon { LETTER | COLON } else { LETTER };
    let is = |byte: &u8, classes| CLASSES[usize::from(*byte)] & classes != 0;
    if !text.first().is_some_and(|byte| is(byte, first)) {
        return 0;
    }
    // Names are long: as many bytes as a vector has are looked at at once.
    let whole = text.as_chunks().0.iter().take_while(|chunk| all_of_names(chunk, colon)).count() * STEP;
    whole + text[whole..].iter().position(|byte| !is(byte, first | DIGIT)).unwrap_or(text.len() - whole)
}

const STEP: usize = 16;

/// Whether all bytes may stand in a name, but at its start.
#[inline]
fn all_of_names(chunk: &[u8; STEP], colon: bool) -> bool {
    chunk.iter().fold(true, |all, byte| {
        let is_letter = (byte | 0x20).wrapping_sub(b'a') < 26;
        let is_digit = byte.wrapping_sub(b'0') < 10;
        all & (is_letter | is_digit | (*byte == b'_') | (colon & (*byte == b':')))
    })
}

/// The offset after the quote that closes the one at `open`. A backslash hides the byte after it; line breaks may stand inside.
#[inline]
pub(crate) fn quote_end(text: &[u8], open: usize) -> Result<usize, Fault> {
    let mut at = open + 1;
    let found = |rest: &[u8]| {
        // Most values are shorter than what a search by vectors takes to begin.
        let (words, _) = rest.as_chunks();
        for (index, word) in words.iter().take(NEAR).enumerate() {
            if let Some(place) = quote_or_backslash(*word) {
                return Some(8 * index + place);
            }
        }
        let near = 8 * words.len().min(NEAR);
        memchr2(b'"', b'\\', &rest[near..]).map(|place| near + place)
    };
    while let Some(found) = text.get(at..).and_then(found) {
        at += found;
        if text[at] == b'"' {
            return Ok(at + 1);
        }
        // A backslash before a line break is no escape: the quote was left open.
        if text.get(at + 1).is_none_or(|byte| *byte == b'\n') {
            break;
        }
        at += 2;
        if at - open > SERIES_BYTES_MAX {
            return Err((open, Rule::SeriesTooLong));
        }
    }
    Err((open, Rule::Unclosed))
}

/// Where in eight bytes the first quote or backslash is.
#[inline]
fn quote_or_backslash(word: [u8; 8]) -> Option<usize> {
    const ONES: u64 = u64::MAX / 255;
    let word = u64::from_le_bytes(word);
    // The highest bit of the first byte that is zero, and perhaps of some behind it.
    let zero = |word: u64| word.wrapping_sub(ONES) & !word & (ONES << 7);
    let found = zero(word ^ (ONES * b'"' as u64)) | zero(word ^ (ONES * b'\\' as u64));
    (found != 0).then_some(found.trailing_zeros() as usize / 8)
}

#[inline]
pub(crate) fn skip_blanks(text: &[u8], mut at: usize) -> usize {
    while matches!(text.get(at), Some(b' ' | b'\t')) {
        at += 1;
    }
    at
}

/// Takes the escapes `\\`, `\"` and `\n` out; a backslash before anything else stays, as in Prometheus.
pub fn unescape(text: &[u8]) -> Cow<'_, [u8]> {
    replace(text, true)
}

/// Takes the escapes of help texts out: `\\` and `\n`.
pub fn unescape_help(text: &[u8]) -> Cow<'_, [u8]> {
    replace(text, false)
}

/// A name or a value without its escapes. Unescaping UTF-8 leaves UTF-8: it only replaces ASCII by ASCII.
pub(crate) fn text(bytes: &[u8]) -> Cow<'_, str> {
    lossy(unescape(bytes))
}

/// A name of a family without its escapes.
pub(crate) fn name(text: &str) -> Cow<'_, str> {
    plain(text, unescape(text.as_bytes()))
}

/// A help text of the Prometheus text format without its escapes.
pub(crate) fn help(text: &str) -> Cow<'_, str> {
    plain(text, unescape_help(text.as_bytes()))
}

/// A text whose bytes without escapes are known; most have none.
fn plain<'a>(text: &'a str, bytes: Cow<'_, [u8]>) -> Cow<'a, str> {
    match bytes {
        Cow::Borrowed(_) => Cow::Borrowed(text),
        Cow::Owned(bytes) => Cow::Owned(String::from_utf8_lossy(&bytes).into_owned()),
    }
}

fn lossy(bytes: Cow<'_, [u8]>) -> Cow<'_, str> {
    match bytes {
        Cow::Borrowed(bytes) => String::from_utf8_lossy(bytes),
        Cow::Owned(bytes) => Cow::Owned(String::from_utf8_lossy(&bytes).into_owned()),
    }
}

fn replace(text: &[u8], quotes: bool) -> Cow<'_, [u8]> {
    if memchr(b'\\', text).is_none() {
        return Cow::Borrowed(text);
    }
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = memchr(b'\\', rest) {
        out.extend_from_slice(&rest[..at]);
        let replaced = match rest.get(at + 1) {
            Some(b'\\') => Some(b'\\'),
            Some(b'n') => Some(b'\n'),
            Some(b'"') if quotes => Some(b'"'),
            _ => None,
        };
        out.push(replaced.unwrap_or(b'\\'));
        rest = &rest[at + 1 + usize::from(replaced.is_some())..];
    }
    out.extend_from_slice(rest);
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2048))]

        #[test]
        fn a_quote_is_found_as_byte_by_byte(text in proptest::collection::vec(proptest::sample::select(b"aaaaaaaaab!#[]\x01\xa2\xdc\xff\\\"".to_vec()), 0..90)) {
            let (mut at, mut found) = (1, None);
            while let (None, Some(byte)) = (found, text.get(at)) {
                match byte {
                    b'"' => found = Some(at + 1),
                    b'\\' => at += 2,
                    _ => at += 1,
                }
            }
            prop_assert_eq!(quote_end(&text, 0).ok(), found);
        }

        #[test]
        fn a_name_is_measured_as_byte_by_byte(text in "[a-zA-Z_:09]{0,50}[\\x00-\\x7fé]{0,3}[a-z]{0,20}", colon: bool) {
            let is = |(at, byte): (usize, u8)| byte.is_ascii_alphabetic() || byte == b'_' || colon && byte == b':' || at > 0 && byte.is_ascii_digit();
            let expect = text.bytes().enumerate().take_while(|byte| is(*byte)).count();
            prop_assert_eq!(name_length(text.as_bytes(), colon), expect);
        }
    }

    #[test]
    fn every_byte_ends_a_name_or_does_not_wherever_it_stands() {
        for byte in 0..=u8::MAX {
            for at in 1..40 {
                let mut text = [b'a'; 40];
                text[at] = byte;
                for colon in [false, true] {
                    let is_name = byte.is_ascii_alphanumeric() || byte == b'_' || colon && byte == b':';
                    assert_eq!(name_length(&text, colon), if is_name { 40 } else { at }, "{byte} at {at}");
                }
            }
        }
    }
}
