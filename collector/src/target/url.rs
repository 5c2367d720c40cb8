//! What stands behind a target's address: path and query, escaped as Prometheus escapes them.
//!
//! *In*: a job's parameters, a target's labels. *Out*: text for a URL. *Bound*: three bytes per byte. *When full*: does not apply.

use config::ScrapeConfig;
use config::relabel::Labels;

/// Parameters in order of name; a label `__param_<name>` replaces the first value of that name.
pub(super) fn query(scrape: &ScrapeConfig, labels: &Labels, appended: bool) -> String {
    let mut params = scrape.params.clone();
    for (name, value) in labels.iter().filter_map(|(name, value)| Some((name.strip_prefix("__param_")?, value))) {
        let values = params.entry(name.to_owned()).or_default();
        match values.first_mut() {
            Some(first) => value.clone_into(first),
            None => values.push(value.to_owned()),
        }
    }
    let mut query = String::new();
    for (name, value) in params.iter().flat_map(|(name, values)| values.iter().map(move |value| (name, value))) {
        query.push(if query.is_empty() && !appended { '?' } else { '&' });
        percent_encode(name, &mut query);
        query.push('=');
        percent_encode(value, &mut query);
    }
    query
}

/// A part of a query, as a form writes it: a space is `+`.
fn percent_encode(text: &str, out: &mut String) {
    for byte in text.bytes() {
        match byte {
            b' ' => out.push('+'),
            _ if is_unreserved(byte) => out.push(char::from(byte)),
            _ => push_escape(byte, out),
        }
    }
}

/// A path with what no URL takes escaped; `%` and `?` stay, as they are how a person writes escapes and a query.
pub(super) fn escaped(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for byte in path.bytes() {
        match byte {
            _ if is_unreserved(byte) || b"$&+,/:;=@%?".contains(&byte) => out.push(char::from(byte)),
            _ => push_escape(byte, &mut out),
        }
    }
    out
}

const fn is_unreserved(byte: u8) -> bool {
    matches!(byte, b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~')
}

fn push_escape(byte: u8, out: &mut String) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    out.extend(['%', char::from(HEX[usize::from(byte >> 4)]), char::from(HEX[usize::from(byte & 15)])]);
}
