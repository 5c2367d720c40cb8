//! Where a redirect leads, and which ones are followed.
//!
//! *In*: a request and the answer's status and `Location`. *Out*: the next URL. *Bound*: one header. *When full*: does not apply.

use http::{Method, StatusCode, Uri};

/// Whether a request goes on where it is sent: a body only where method and body stay as they are.
pub(crate) fn is_followed(method: &Method, status: StatusCode) -> bool {
    match status.as_u16() {
        307 | 308 => true,
        301..=303 => method == Method::GET,
        _ => false,
    }
}

/// A redirect's target: absolute, or a path on the same host. `None`: it is no URL, or one with another scheme than `http` and `https`.
pub(crate) fn join(base: &Uri, location: &str) -> Option<Uri> {
    match scheme(location).map(str::to_ascii_lowercase).as_deref() {
        Some("http" | "https") if !location.contains("://") => return None,
        Some("http" | "https") => return location.parse().ok().filter(|url: &Uri| url.authority().is_some()),
        Some(_) => return None,
        None => {}
    }
    let (scheme, authority) = (base.scheme_str()?, base.authority()?);
    if let Some(rest) = location.strip_prefix("//") {
        return format!("{scheme}://{rest}").parse().ok();
    }
    if location.starts_with('/') {
        return format!("{scheme}://{authority}{location}").parse().ok();
    }
    let folder = base.path().rsplit_once('/').map_or("", |(folder, _)| folder);
    format!("{scheme}://{authority}{folder}/{location}").parse().ok()
}

/// What stands before the colon, where that can be a scheme (RFC 3986, 3.1): a path with a colon begins with `./` or has a slash before it.
fn scheme(location: &str) -> Option<&str> {
    let (scheme, _) = location.split_once(':')?;
    let is_scheme = scheme.starts_with(|first: char| first.is_ascii_alphabetic())
        && scheme.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'));
    is_scheme.then_some(scheme)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redirect_is_resolved_against_its_page() {
        let base: Uri = "http://a:1/x/metrics?y=z".parse().expect("a URL");
        for (location, expect) in [
            ("http://b:2/m", "http://b:2/m"),
            ("//b:2/m", "http://b:2/m"),
            ("/m?q", "http://a:1/m?q"),
            ("other", "http://a:1/x/other"),
            ("/metrics/", "http://a:1/metrics/"),
        ] {
            assert_eq!(join(&base, location).map(|url| url.to_string()).as_deref(), Some(expect));
        }
    }

    #[test]
    fn a_redirect_to_another_scheme_leads_nowhere() {
        let base: Uri = "http://a:1/x/metrics".parse().expect("a URL");
        for location in ["file:///etc/passwd", "FILE:/etc/passwd", "ftp://b/m", "unix:/run/x", "javascript:1", "http:m", "https:///m"] {
            assert_eq!(join(&base, location), None, "{location}");
        }
        for (location, expect) in [("HTTPS://b/m", "https://b/m"), ("/a:b", "http://a:1/a:b"), ("?a:b", "http://a:1/x/?a:b")] {
            assert_eq!(join(&base, location).map(|url| url.to_string()).as_deref(), Some(expect));
        }
    }

    #[test]
    fn a_body_goes_on_only_as_it_is() {
        for (status, get, post) in [(301, true, false), (303, true, false), (304, false, false), (307, true, true), (308, true, true)] {
            let status = StatusCode::from_u16(status).expect("a status");
            assert_eq!((is_followed(&Method::GET, status), is_followed(&Method::POST, status)), (get, post), "{status}");
        }
    }
}
