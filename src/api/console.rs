//! The console: one page that shows a person what the API says.
//!
//! *In*: the files of `src/console/`, built in. *Out*: the page, which asks the API for everything it shows. *Bound*: pure. *When full*: does not
//! apply.

use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS};
use axum::response::{IntoResponse, Response};

/// What a browser may do on the page: run, show and ask what comes from here, and nothing else.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; \
                      form-action 'none'; frame-ancestors 'none'";

/// A file of the console.
#[derive(Clone, Copy)]
pub(crate) struct File {
    pub(crate) media_type: &'static str,
    text: &'static str,
}

pub(crate) const PAGE: File = File { media_type: "text/html", text: include_str!("../console/page.html") };
pub(crate) const STYLE: File = File { media_type: "text/css", text: include_str!("../console/page.css") };
pub(crate) const SCRIPT: File = File { media_type: "text/javascript", text: include_str!("../console/page.js") };
pub(crate) const ICON: File = File { media_type: "image/svg+xml", text: include_str!("../console/icon.svg") };

impl IntoResponse for File {
    fn into_response(self) -> Response {
        let headers = [
            (CONTENT_TYPE, format!("{}; charset=utf-8", self.media_type)),
            (CONTENT_SECURITY_POLICY, POLICY.to_owned()),
            (X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
            (REFERRER_POLICY, "no-referrer".to_owned()),
            // Asked for anew each time: a newer Strata has a newer page.
            (CACHE_CONTROL, "no-cache".to_owned()),
        ];
        (headers, self.text).into_response()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::api::routes::ROUTES;

    /// Bytes of all files together.
    const BYTES_MAX: usize = 40_000;
    const FILES: [File; 4] = [PAGE, STYLE, SCRIPT, ICON];

    /// What the text refers to below these roots, with `{}` for what is filled in.
    fn references(text: &str) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        for (at, _) in ["\"api/", "`api/", "\"console/"].iter().flat_map(|root| text.match_indices(root)) {
            let (quote, rest) = text[at..].split_at(1);
            let path = rest.split(quote).next().unwrap_or_default().split('?').next().unwrap_or_default();
            let parts = path.split('/').map(|part| if part.starts_with("${") { "{}" } else { part });
            found.insert(format!("/{}", parts.collect::<Vec<_>>().join("/")));
        }
        found
    }

    #[test]
    fn the_page_refers_to_routes_that_exist_and_to_nothing_else() {
        let known: BTreeSet<String> = ROUTES
            .iter()
            .map(|route| route.path.split('/').map(|part| if part.starts_with('{') { "{}" } else { part }).collect::<Vec<_>>().join("/"))
            .collect();
        let used: BTreeSet<String> = FILES.iter().flat_map(|file| references(file.text)).collect();
        let unknown: Vec<_> = used.difference(&known).collect();
        assert!(unknown.is_empty(), "there is no {unknown:?}");
        for path in ["/api/v1/status", "/api/v1/relays", "/api/v1/targets", "/api/v1/tap", "/api/v1/relays/{}/pause", "/console/page.js"] {
            assert!(used.contains(path), "{path} is not among {used:?}");
        }
        for file in FILES {
            let elsewhere = file.text.replace("http://www.w3.org/2000/svg", "");
            assert!(!elsewhere.contains("http:") && !elsewhere.contains("https:") && !elsewhere.contains("url("), "{}", file.media_type);
        }
    }

    #[test]
    fn the_page_keeps_to_its_policy_and_is_small() {
        for inline in ["<style", " style=", " onclick", " onload", "javascript:"] {
            assert!(!PAGE.text.contains(inline), "{inline}");
        }
        assert!(PAGE.text.matches("<script").count() == 1 && PAGE.text.contains("<script src="));
        for unsafe_way in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "localStorage"] {
            assert!(!SCRIPT.text.contains(unsafe_way), "{unsafe_way}");
        }
        let bytes: usize = FILES.iter().map(|file| file.text.len()).sum();
        assert!(bytes < BYTES_MAX, "{bytes} bytes");
    }
}
