//! What was sent that must not be shown: peers that echo a request in their answer would put it into logs.
//!
//! *In*: the headers of each request, secrets of its form. *Out*: texts without the values of those that never print. *Bound*: the last [`KEPT_MAX`] different values.
//! *When full*: the oldest is forgotten.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::HeaderMap;
use http::header::AUTHORIZATION;

/// Values that are remembered. Larger: more to compare each answer with; smaller: a late echo of a rotated secret is shown.
const KEPT_MAX: usize = 32;
/// Shortest text that is taken out. Larger: short passwords are shown; smaller: a password like `a` makes every text unreadable.
const LENGTH_MIN: usize = 4;
/// What stands in its place.
const SHOWN: &str = "<secret>";

/// Secrets that were sent lately.
#[derive(Debug, Default)]
pub(crate) struct Sent(Mutex<VecDeque<Value>>);

/// A header's value, and the secrets in it.
struct Value {
    whole: Vec<u8>,
    secrets: Vec<String>,
}

impl std::fmt::Debug for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(SHOWN)
    }
}

impl Sent {
    /// Remembers the values that never print.
    pub(crate) fn note(&self, headers: &HeaderMap) {
        for (_, value) in headers.iter().filter(|(name, value)| value.is_sensitive() || *name == AUTHORIZATION) {
            self.keep(value.as_bytes(), secrets);
        }
    }

    /// Remembers a secret that goes into a form, or came in an answer.
    pub(crate) fn note_text(&self, secret: &str) {
        self.keep(secret.as_bytes(), encodings);
    }

    fn keep(&self, whole: &[u8], secrets: fn(&str) -> Vec<String>) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.iter().any(|known| known.whole == whole) {
            return;
        }
        if kept.len() >= KEPT_MAX {
            kept.pop_front();
        }
        kept.push_back(Value { whole: whole.to_vec(), secrets: secrets(&String::from_utf8_lossy(whole)) });
    }

    /// A peer's text without what it was sent.
    pub(crate) fn redact(&self, mut text: String) -> String {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut secrets: Vec<&String> = kept.iter().flat_map(|value| &value.secrets).collect();
        // The longest first: one may be a part of another.
        secrets.sort_unstable_by_key(|secret| std::cmp::Reverse(secret.len()));
        for secret in secrets {
            if text.contains(secret.as_str()) {
                text = text.replace(secret.as_str(), SHOWN);
            }
        }
        text
    }
}

/// All forms in which a peer may show a header's value: as it came, without its scheme, decoded, the password alone.
fn secrets(value: &str) -> Vec<String> {
    let mut found = vec![value.to_owned()];
    if let Some((scheme, rest)) = value.split_once(' ') {
        found.push(rest.to_owned());
        let decoded = STANDARD.decode(rest).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        if let Some(pair) = decoded.filter(|_| scheme.eq_ignore_ascii_case("basic")) {
            found.extend(pair.split_once(':').map(|(_, password)| password.to_owned()));
            found.push(pair);
        }
    }
    found.retain(|secret| secret.len() >= LENGTH_MIN);
    found
}

/// A secret as it is, and as it stands in forms and URLs.
fn encodings(secret: &str) -> Vec<String> {
    let in_form: String = form_urlencoded::byte_serialize(secret.as_bytes()).collect();
    let in_url = in_form.replace('+', "%20");
    let mut found = vec![secret.to_owned(), in_form, in_url];
    found.dedup();
    found.retain(|secret| secret.len() >= LENGTH_MIN);
    found
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn sent(name: &'static str, value: &str) -> Sent {
        let (sent, mut headers) = (Sent::default(), HeaderMap::new());
        let mut value = HeaderValue::from_str(value).expect("a value");
        value.set_sensitive(true);
        headers.insert(name, value);
        headers.insert("accept", HeaderValue::from_static("text/plain"));
        sent.note(&headers);
        sent
    }

    #[test]
    fn an_echo_is_not_shown_in_any_of_its_forms() {
        let basic = format!("Basic {}", STANDARD.encode("user:hunter22"));
        let cases = [
            ("authorization", "Bearer abcdef", "401: 'Bearer abcdef' (abcdef) text/plain", "401: '<secret>' (<secret>) text/plain"),
            ("authorization", basic.as_str(), "no hunter22 for user:hunter22", "no <secret> for <secret>"),
            ("authorization", basic.as_str(), basic.as_str(), SHOWN),
            ("x-api-key", "key with blanks", "key with blanks is expired", "<secret> is expired"),
            ("x-api-key", "no", "no such key", "no such key"),
        ];
        for (name, value, text, expect) in cases {
            assert_eq!(sent(name, value).redact(text.to_owned()), expect, "{value}");
        }
    }

    #[test]
    fn a_secret_of_a_form_is_not_shown_in_any_of_its_forms() {
        let sent = Sent::default();
        sent.note_text("hush hush&");
        sent.note_text("abc");
        assert_eq!(sent.redact("abc: hush hush&, hush+hush%26, hush%20hush%26".to_owned()), "abc: <secret>, <secret>, <secret>");
    }

    #[test]
    fn rotated_secrets_are_forgotten_in_the_end() {
        let sent = Sent::default();
        for k in 0..1000 {
            let mut headers = HeaderMap::new();
            headers.insert(AUTHORIZATION, HeaderValue::try_from(format!("Bearer token-{k}")).expect("a value"));
            sent.note(&headers);
        }
        assert_eq!(sent.redact("token-999 token-0".to_owned()), "<secret> token-0");
        assert!(!format!("{sent:?}").contains("token"));
    }
}
