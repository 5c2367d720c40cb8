//! Any text as one token of a subject.
//!
//! *In*: a name from the configuration, the environment or a label. *Out*: an escaped token. *Bound*: [`NAME_BYTES_MAX`].
//! *When full*: a longer name is cut, and its hash put behind it.

use std::fmt::Write as _;

use xxhash_rust::xxh3::xxh3_64;

/// Longest name before escaping; larger: subjects near the server's limit, smaller: long pod names lose their end.
pub const NAME_BYTES_MAX: usize = 128;

/// Makes one subject token of any text, reversibly: what is not a letter, a digit, `-` or `_` becomes `%XX`.
pub fn escape(name: &str) -> String {
    let mut cut = String::new();
    let name = if name.len() > NAME_BYTES_MAX {
        let mut end = NAME_BYTES_MAX - 17;
        while !name.is_char_boundary(end) {
            end -= 1;
        }
        write!(cut, "{}-{:016x}", &name[..end], xxh3_64(name.as_bytes())).expect("writing to a string cannot fail");
        &cut
    } else {
        name
    };
    let mut token = String::with_capacity(name.len());
    for byte in name.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' => token.push(char::from(byte)),
            _ => write!(token, "%{byte:02X}").expect("writing to a string cannot fail"),
        }
    }
    token
}
