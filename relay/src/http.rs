//! What every HTTP sink shares: its client's errors, `Retry-After`, and what a status means.
//!
//! *In*: options, answers. *Out*: decisions. *Bound*: an answer's body is read to [`ANSWER_BYTES_MAX`].
//! *When full*: the rest of an answer is not read and its connection not used again.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use config::{ByteSize, Millis, OptionsError};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri};
use http_body_util::BodyExt;
use http_client::Client;
use hyper::body::Incoming;

use crate::sink::{Answer, Limits, Sink};

/// Bytes of an answer's body that are read. Larger: a peer can make us read more; smaller: more connections are given up after errors.
pub(crate) const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// Characters of an answer that go into a reason. Larger: longer log lines; smaller: the peer's explanation is cut.
const EXCERPT_CHARS: usize = 300;

/// The longest `Retry-After` that is believed. Larger: a wrong header stalls a relay for longer; smaller: a peer that means it is asked too often.
pub(crate) const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);

/// As many more of a sink as there may be requests beside its own.
pub(crate) fn lanes(sink: &(impl Sink + Clone + 'static), requests_max: usize) -> Vec<Box<dyn Sink>> {
    (1..requests_max).map(|_| Box::new(sink.clone()) as Box<dyn Sink>).collect()
}

/// What a status means for the items that were sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// Taken.
    Delivered,
    /// Not now.
    Retry,
    /// Not these bytes.
    Reject,
    /// Not anything, until somebody changes something.
    Fatal,
}

/// What a request without an answer means: what only a person can change holds, all else is tried again.
pub(crate) fn unanswered(error: &http_client::Error) -> Answer {
    let reason = http_client::chain(error);
    if error.is_lasting() { Answer::Fatal { reason } } else { Answer::Retry { after: None, reason } }
}

/// How long a try takes at most, where nobody says so.
pub(crate) const fn timeout() -> Millis {
    Millis::from_secs(30)
}

/// Bytes of a body before compression, where nobody says so.
pub(crate) const fn bytes_max() -> ByteSize {
    ByteSize::mib(4)
}

/// Most requests at the same time, whatever is written. Larger: memory and load on the receiver; smaller: a far receiver is not kept busy.
const REQUESTS_MAX: usize = 64;

/// What requests are bound by.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Of one try.
    pub timeout: Duration,
    /// Of one request.
    pub limits: Limits,
    /// Requests at the same time.
    pub requests_max: usize,
}

/// Reads the bounds of requests. *Errors*: one of them is 0.
pub(crate) fn bounds(timeout: Millis, bytes_max: ByteSize, items_max: usize, requests_max: usize) -> Result<Bounds, OptionsError> {
    let zeros =
        [("timeout", timeout.0 == 0), ("bytes_max", bytes_max.0 == 0), ("items_max", items_max == 0), ("requests_max", requests_max == 0)];
    if let Some((path, _)) = zeros.into_iter().find(|(_, zero)| *zero) {
        return Err(OptionsError::new(path, format!("'{path}' cannot be 0")));
    }
    let bytes_max = usize::try_from(bytes_max.0).unwrap_or(usize::MAX);
    Ok(Bounds { timeout: timeout.duration(), limits: Limits { bytes_max, items_max }, requests_max: requests_max.min(REQUESTS_MAX) })
}

/// Reads a sink's URL. *Errors*: it is none of `http://` or `https://`, or has credentials in it.
pub(crate) fn url(text: &str) -> Result<Uri, OptionsError> {
    let shown = config::shown_url(text);
    if shown != text {
        return Err(OptionsError::new("url", "credentials in a URL end up in logs: use 'basic_auth'"));
    }
    let uri: Uri = text.parse().map_err(|error| OptionsError::new("url", format!("cannot read '{text}' as a URL: {error}")))?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.host().is_none_or(str::is_empty) {
        return Err(OptionsError::new("url", format!("'{text}' is no http:// or https:// URL")));
    }
    Ok(uri)
}

/// Reads a sink's own headers. *Errors*: a name or value that HTTP cannot carry.
pub(crate) fn headers(options: &BTreeMap<String, String>) -> Result<HeaderMap, OptionsError> {
    let mut headers = HeaderMap::new();
    for (name, value) in options {
        let path = || format!("headers.{name}");
        let name = HeaderName::try_from(name.as_str()).map_err(|_| OptionsError::new(path(), format!("'{name}' is no header name")))?;
        let mut value = HeaderValue::try_from(value.as_str()).map_err(|_| OptionsError::new(path(), "a header cannot carry this value"))?;
        // Many of them are keys: not for logs, and not for the host of a redirect.
        value.set_sensitive(true);
        headers.insert(name, value);
    }
    Ok(headers)
}

/// What a status means. *Source*: RFC 9110; 413, 400 and 422 are about the bytes, so fewer of them may pass.
pub(crate) fn meaning(status: StatusCode) -> Meaning {
    match status.as_u16() {
        200..=299 => Meaning::Delivered,
        408 | 425 | 429 | 500..=599 => Meaning::Retry,
        401 | 403 | 404 | 405 | 407 | 410 | 415 => Meaning::Fatal,
        400..=499 => Meaning::Reject,
        // What is left of redirects would change the method or leads nowhere, and 1xx never arrives here.
        _ => Meaning::Fatal,
    }
}

/// Reads `Retry-After`: seconds or a date, at most [`RETRY_AFTER_MAX`]; anything else is as if it were not there.
pub(crate) fn retry_after(value: Option<&HeaderValue>, now: SystemTime) -> Option<Duration> {
    let text = value?.to_str().ok()?.trim();
    let after = match text.parse::<u64>() {
        Ok(secs) => Duration::from_secs(secs),
        Err(_) => httpdate::parse_http_date(text).ok()?.duration_since(now).unwrap_or(Duration::ZERO),
    };
    Some(after.min(RETRY_AFTER_MAX))
}

/// Reads an answer's body, bounded, and gives its beginning in one line, without the credentials that the client sent; what cannot be read is
/// left out.
pub(crate) async fn excerpt(mut body: Incoming, client: &Client) -> String {
    let mut read = Vec::new();
    while read.len() < ANSWER_BYTES_MAX {
        match body.frame().await {
            Some(Ok(frame)) => read.extend_from_slice(frame.data_ref().map_or(&[][..], |data| &data[..])),
            Some(Err(_)) | None => break,
        }
    }
    // Before it is cut: a part of a secret would not be known as one.
    let text = client.redact(String::from_utf8_lossy(&read).into_owned());
    let text: String = text.chars().take(4 * EXCERPT_CHARS).collect();
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    words.chars().filter(|c| !c.is_control()).take(EXCERPT_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_has_a_meaning() {
        let cases = [
            (Meaning::Delivered, &[200, 201, 202, 204][..]),
            (Meaning::Retry, &[408, 425, 429, 500, 502, 503, 504, 507]),
            (Meaning::Fatal, &[301, 302, 307, 308, 304, 401, 403, 404, 405, 407, 410, 415]),
            (Meaning::Reject, &[400, 409, 413, 422, 431]),
        ];
        for (expect, codes) in cases {
            for code in codes {
                assert_eq!(meaning(StatusCode::from_u16(*code).expect("a status")), expect, "{code}");
            }
        }
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = httpdate::parse_http_date("Fri, 21 Nov 2025 10:00:00 GMT").expect("a date");
        let cases = [
            ("7", Some(7)),
            ("0", Some(0)),
            ("Fri, 21 Nov 2025 10:00:09 GMT", Some(9)),
            ("Fri, 21 Nov 2025 09:00:00 GMT", Some(0)),
            ("99999999", Some(3600)),
            ("soon", None),
            ("-1", None),
        ];
        for (text, expect) in cases {
            let value = HeaderValue::from_static(text);
            assert_eq!(retry_after(Some(&value), now), expect.map(Duration::from_secs), "{text}");
        }
        assert_eq!(retry_after(None, now), None);
    }
}
