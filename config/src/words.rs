//! The wording of problems: serde's messages said in the words of a configuration file, and "did you mean".
//!
//! *In*: an error text, a word and the words that would have been right. *Out*: a sentence with its fix. *Bound*: pure, nothing is
//! kept. *When full*: does not apply.

/// Similarity (Jaro-Winkler) below which a guess would rather confuse: `relay`/`relays` is 0.97, `sink`/`name` 0.5.
const SIMILAR: f64 = 0.8;

/// What a serde message was about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum About {
    /// A key that does not exist.
    UnknownKey,
    /// A key that must be there, by name.
    MissingKey(String),
    /// A value of the wrong type.
    Type {
        /// What would be right, in serde's words.
        expected: String,
    },
    /// Anything else.
    Value,
}

/// A serde message reworded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wording {
    pub(crate) text: String,
    pub(crate) about: About,
}

/// Says a serde message in the words of a configuration file; what it does not know it passes on as it is.
pub(crate) fn reword(message: &str) -> Wording {
    if let Some(rest) = message.strip_prefix("unknown field `")
        && let Some((word, known)) = rest.split_once("`, ")
    {
        let known = quoted(known);
        return Wording { text: unknown("key", word, &known), about: About::UnknownKey };
    }
    if let Some(rest) = message.strip_prefix("missing field `")
        && let Some((word, _)) = rest.split_once('`')
    {
        return Wording { text: format!("'{word}' is missing"), about: About::MissingKey(word.to_owned()) };
    }
    if let Some(rest) = message.strip_prefix("unknown variant `")
        && let Some((word, known)) = rest.split_once("`, ")
    {
        return Wording { text: unknown("value", word, &quoted(known)), about: About::Value };
    }
    for prefix in ["invalid type: ", "invalid value: "] {
        if let Some(rest) = message.strip_prefix(prefix)
            && let Some((found, expected)) = rest.split_once(", expected ")
        {
            let expected = plain(expected);
            let text = format!("expected {expected}, found {}", plain_found(found));
            return Wording { text, about: About::Type { expected } };
        }
    }
    Wording { text: message.to_owned(), about: About::Value }
}

/// `unknown key 'relay', did you mean 'relays'?`, or the words there are where none is close.
pub(crate) fn unknown(what: &str, word: &str, known: &[String]) -> String {
    // A name that is there twice, which is a problem of its own, is one word.
    let known: Vec<String> =
        known.iter().enumerate().filter(|(k, word)| !known[..*k].contains(word)).map(|(_, word)| word.clone()).collect();
    match closest(word, &known) {
        Some(near) => format!("unknown {what} '{word}', did you mean '{near}'?"),
        None if known.is_empty() => format!("unknown {what} '{word}': none is expected here"),
        None if known.len() == 1 => format!("unknown {what} '{word}': the only one is {}", known[0]),
        None => format!("unknown {what} '{word}': it is one of {}", listed(&known)),
    }
}

/// The same for a text in a place where a map may stand: the text is not repeated, as it may be all that was meant to be in the map.
pub(crate) fn unknown_text(what: &str, word: &str, known: &[String]) -> String {
    match closest(word, known) {
        Some(near) => format!("unknown {what}, did you mean '{near}'?"),
        None => format!("unknown {what}: it is one of {}", listed(known)),
    }
}

/// Keys whose values are secret or hold secrets: what was written in their place is not repeated.
const DISCREET: [&str; 19] = [
    "authorization",
    "basic_auth",
    "client_secret",
    "credentials",
    "headers",
    "http_headers",
    "key",
    "key_password",
    "nats",
    "nkey",
    "oauth2",
    "password",
    "proxy_connect_header",
    "sasl",
    "secrets",
    "tls",
    "tls_config",
    "token",
    "users",
];

/// Keys below which everything may be a secret: values by names that the user gives.
const DISCREET_BELOW: [&str; 4] = ["headers", "http_headers", "proxy_connect_header", "secrets"];

/// A message about the value at the end of a path of keys, without that value where it may be a secret in the wrong place: also where it
/// stands for a whole map or list, of which any part may be one.
pub(crate) fn discreet<'a>(path: impl Iterator<Item = &'a str>, text: String) -> String {
    let (mut last, mut below) = ("", false);
    for key in path {
        below |= DISCREET_BELOW.contains(&key);
        last = key;
    }
    match text.split_once(", found '") {
        Some((before, _)) if below || DISCREET.contains(&last) || before.contains("a map") || before.contains("a list") => {
            format!("{before}, found text")
        }
        _ => text,
    }
}

/// A URL without the credentials in it.
pub fn shown_url(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let authority = rest.find(['/', '?', '#']).map_or(rest, |end| &rest[..end]);
    match authority.rfind('@') {
        Some(at) => format!("{scheme}{}…{}", if scheme.is_empty() { "" } else { "://" }, &rest[at..]),
        None => url.to_owned(),
    }
}

/// The known word that this one was probably meant to be.
pub(crate) fn closest<'a>(word: &str, known: &'a [String]) -> Option<&'a str> {
    let lower = word.to_lowercase();
    let scored = known.iter().map(|k| (strsim::jaro_winkler(&lower, &k.to_lowercase()), k.as_str()));
    scored.filter(|(score, _)| *score >= SIMILAR).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, k)| k)
}

/// `a, b and c`.
pub(crate) fn listed(words: &[String]) -> String {
    match words {
        [] => String::new(),
        [one] => one.clone(),
        [init @ .., last] => format!("{} and {last}", init.join(", ")),
    }
}

/// The words between backquotes in serde's lists.
fn quoted(text: &str) -> Vec<String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// serde's "expected …" without Rust's type names.
fn plain(expected: &str) -> String {
    let expected = expected.split(" at line ").next().unwrap_or(expected);
    match expected {
        "a sequence" => "a list".to_owned(),
        "u16" | "u32" | "u64" | "usize" => "a whole number, 0 or more".to_owned(),
        "i32" | "i64" => "a whole number".to_owned(),
        "f64" | "f32" => "a number".to_owned(),
        "a boolean" => "true or false".to_owned(),
        "unit" => "nothing".to_owned(),
        "path string" => "a path".to_owned(),
        text if text.starts_with("struct ") || text.starts_with("internally tagged") => "a map".to_owned(),
        text => text.to_owned(),
    }
}

/// serde's "found …" in the words of YAML.
fn plain_found(found: &str) -> String {
    match found {
        "map" => "a map".to_owned(),
        "sequence" => "a list".to_owned(),
        "null" | "unit value" | "Option value" => "nothing".to_owned(),
        text => {
            let value = quoted(text).pop().or_else(|| text.split_once('"').map(|(_, rest)| rest.trim_end_matches('"').to_owned()));
            value.map_or_else(|| text.to_owned(), |value| format!("'{value}'"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_a_secret_is_not_repeated() {
        for (url, expect) in
            [("http://h/p@x", "http://h/p@x"), ("http://u:p@h/x", "http://…@h/x"), ("ftp://u:p@ss@h?q", "ftp://…@h?q"), ("u:p@h", "…@h")]
        {
            assert_eq!(shown_url(url), expect);
        }
        let text = || "expected a map, found 'hunter2'".to_owned();
        assert_eq!(discreet(["basic_auth"].into_iter(), text()), "expected a map, found text");
        assert_eq!(discreet(["http_headers", "X-Key", "values"].into_iter(), text()), "expected a map, found text");
        for expected in ["a map", "a list", "a name, or a map with one key"] {
            let said = discreet(["scrape_configs"].into_iter(), format!("expected {expected}, found 'hunter2'"));
            assert_eq!(said, format!("expected {expected}, found text"));
        }
        let text = || "expected a number, found 'hunter2'".to_owned();
        assert_eq!(discreet(["labels"].into_iter(), text()), text());
        let known = ["file".to_owned(), "kafka".to_owned()];
        assert_eq!(unknown_text("sink", "kafka2", &known), "unknown sink, did you mean 'kafka'?");
        assert_eq!(unknown_text("sink", "hunter2", &known), "unknown sink: it is one of file and kafka");
    }

    #[test]
    fn a_known_word_is_listed_once() {
        let known = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        assert_eq!(unknown("job", "x", &known(&["a", "a"])), "unknown job 'x': the only one is a");
        assert_eq!(unknown("job", "x", &known(&["a", "b", "a"])), "unknown job 'x': it is one of a and b");
    }
}
