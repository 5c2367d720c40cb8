//! The producer's name: stable over restarts, and one token of a subject.
//!
//! *In*: a name from the configuration, the environment or the kernel. *Out*: an escaped token. *Bound*: [`NAME_BYTES_MAX`].
//! *When full*: a longer name is cut, and its hash put behind it.

use xxhash_rust::xxh3::xxh3_64;

/// Longest name before escaping; larger: subjects near the server's limit, smaller: long pod names lose their end.
pub const NAME_BYTES_MAX: usize = 128;

/// The producer's name: `given`, or `HOSTNAME` (the pod's name in Kubernetes), or the kernel's host name; escaped.
pub fn producer(given: Option<&str>) -> String {
    let named = |name: &str| Some(name.trim().to_owned()).filter(|name| !name.is_empty());
    let name = given
        .and_then(named)
        .or_else(|| std::env::var("HOSTNAME").ok().as_deref().and_then(named))
        .or_else(|| std::fs::read_to_string("/proc/sys/kernel/hostname").ok().as_deref().and_then(named));
    escape(name.as_deref().unwrap_or("strata"))
}

/// Makes one subject token of any text, reversibly: what is not a letter, a digit, `-` or `_` becomes `%XX`.
pub fn escape(name: &str) -> String {
    use std::fmt::Write;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_token_of_a_subject() {
        for (name, token) in
            [("pod-0", "pod-0"), ("node1.example.com", "node1%2Eexample%2Ecom"), ("a b:*>", "a%20b%3A%2A%3E"), ("%", "%25")]
        {
            assert_eq!(escape(name), token);
        }
    }

    #[test]
    fn long_names_stay_apart() {
        let (one, two) = (escape(&"x".repeat(200)), escape(&"x".repeat(201)));
        assert_eq!(one.len(), NAME_BYTES_MAX);
        assert_ne!(one, two);
    }

    #[test]
    fn a_given_name_wins() {
        assert_eq!(producer(Some("west.1")), "west%2E1");
        assert!(!producer(None).is_empty());
    }
}
