//! Regular expressions as Prometheus reads them: RE2 syntax, anchored at both ends, `.` takes line breaks.
//!
//! *In*: RE2 as a person writes it. *Out*: a compiled [`Pattern`]. *Bound*: [`PATTERN_BYTES_MAX`] compiled. *When full*: an error that says so.
//!
//! The `regex` crate reads nearly the same language. [`translate`] settles what differs: `\d`, `\w`, `\s` are ASCII in RE2, `\Q…\E` quotes,
//! and `[`, `&&`, `--`, `~~` mean nothing inside a class.

use std::fmt;
use std::sync::LazyLock;

use regex::{Regex, RegexBuilder};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Memory of one compiled expression. Larger: a mistake takes it; smaller: long lists of names do not compile.
const PATTERN_BYTES_MAX: usize = 4 << 20;
/// Columns by which the regex crate indents an expression in its messages.
const DRAWING_INDENT: usize = 4;
/// The expression that takes everything and captures it.
const EVERYTHING: &str = "(.*)";

/// An anchored regular expression; two are equal if they were written alike.
#[derive(Clone)]
pub struct Pattern {
    text: String,
    regex: Regex,
}

/// Why a text is no regular expression.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' is no regular expression: {reason}")]
pub struct PatternError {
    text: String,
    reason: String,
}

impl Pattern {
    /// Compiles an expression.
    ///
    /// *Errors*: it is not RE2, or takes too much memory.
    pub fn new(text: &str) -> Result<Self, PatternError> {
        let failed = |reason: String| PatternError { text: text.to_owned(), reason };
        let body = translate(text).map_err(|reason| failed(reason.to_owned()))?;
        // By itself first: `a)(b` must not be made whole by the brackets around it.
        let compile = |whole: &str| RegexBuilder::new(whole).size_limit(PATTERN_BYTES_MAX).octal(true).build();
        let regex = compile(&body).and_then(|_| compile(&format!("^(?s:{body})$")));
        let regex = regex.map_err(|error| {
            let said = error.to_string();
            let last = said.lines().next_back().unwrap_or_default().trim_start_matches("error: ");
            // The crate draws its finding below the expression, which it indents; it is of use where nothing was translated.
            let drawn = said.lines().find(|line| line.contains('^') && line.trim_matches([' ', '^']).is_empty());
            match drawn.and_then(|line| line.find('^')?.checked_sub(DRAWING_INDENT)).filter(|_| body == text && !text.contains('\n')) {
                Some(column) => failed(format!("{last}, at character {}", column + 1)),
                None => failed(last.to_owned()),
            }
        })?;
        Ok(Self { text: text.to_owned(), regex })
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether it is the default, `(.*)`.
    pub fn is_everything(&self) -> bool {
        self.text == EVERYTHING
    }

    /// Whether it takes the whole of `text`.
    pub fn is_match(&self, text: &str) -> bool {
        self.regex.is_match(text)
    }

    /// What its groups take, if it takes the whole of `text`.
    pub fn captures<'t>(&self, text: &'t str) -> Option<regex::Captures<'t>> {
        self.regex.captures(text)
    }
}

impl Default for Pattern {
    fn default() -> Self {
        static DEFAULT: LazyLock<Pattern> = LazyLock::new(|| Pattern::new(EVERYTHING).expect("a constant expression"));
        DEFAULT.clone()
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}/", self.text)
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Pattern {}

impl Serialize for Pattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for Pattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for Pattern {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Pattern".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "description": "An RE2 regular expression, anchored at both ends." })
    }
}

/// From RE2 to the syntax of the `regex` crate.
fn translate(text: &str) -> Result<String, &'static str> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    let mut class = false;
    while let Some(c) = rest.chars().next() {
        let after = &rest[c.len_utf8()..];
        match c {
            '\\' => {
                rest = escape(after, class, &mut out)?;
                continue;
            }
            '[' if !class => {
                class = true;
                out.push('[');
                // `]` and `^]` at the start of a class stand for themselves.
                let negated = after.strip_prefix('^');
                out.push_str(if negated.is_some() { "^" } else { "" });
                let inside = negated.unwrap_or(after);
                let literal = inside.strip_prefix(']');
                out.push_str(if literal.is_some() { "\\]" } else { "" });
                rest = literal.unwrap_or(inside);
                continue;
            }
            '[' => match after.find(":]").filter(|_| after.starts_with(':')) {
                // `[:alpha:]`.
                Some(end) => {
                    out.push_str(&rest[..end + 3]);
                    rest = &rest[end + 3..];
                    continue;
                }
                None => out.push_str("\\["),
            },
            ']' if class => {
                class = false;
                out.push(']');
            }
            '&' | '~' if class => out.extend(['\\', c]),
            '-' if class && after.starts_with('-') => out.push_str("\\-"),
            '{' if !class && !is_count(after) => out.push_str("\\{"),
            _ => out.push(c),
        }
        rest = after;
    }
    Ok(out)
}

/// Whether `{` begins a repetition: `{n}`, `{n,}` or `{n,m}`; anything else is itself.
fn is_count(after: &str) -> bool {
    let Some((inside, _)) = after.split_once('}') else { return false };
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    match inside.split_once(',') {
        None => digits(inside),
        Some((least, most)) => digits(least) && (most.is_empty() || digits(most)),
    }
}

/// What stands behind a backslash; what is left after it.
fn escape<'t>(after: &'t str, class: bool, out: &mut String) -> Result<&'t str, &'static str> {
    let Some(c) = after.chars().next() else { return Err("a backslash at the end") };
    let rest = &after[c.len_utf8()..];
    let (bare, negated) = match c {
        'd' | 'D' => ("0-9", c == 'D'),
        'w' | 'W' => ("0-9A-Za-z_", c == 'W'),
        's' | 'S' => ("\\t\\n\\f\\r ", c == 'S'),
        'Q' => {
            let (quoted, rest) = rest.split_once("\\E").unwrap_or((rest, ""));
            out.push_str(&regex::escape(quoted));
            return Ok(rest);
        }
        'b' if !class => {
            out.push_str("(?-u:\\b)");
            return Ok(rest);
        }
        // `\\x{fc}`, `\\p{Greek}`: the brace is no repetition.
        'x' | 'p' | 'P' if rest.starts_with('{') => {
            let end = rest.find('}').map_or(rest.len(), |end| end + 1);
            out.extend(['\\', c]);
            out.push_str(&rest[..end]);
            return Ok(&rest[end..]);
        }
        'C' => return Err("'\\C' (any byte) is not supported"),
        '1'..='9' if !rest.starts_with(|c: char| c.is_digit(8)) => return Err("there are no back references"),
        '<' | '>' => {
            out.push(c);
            return Ok(rest);
        }
        _ => {
            out.extend(['\\', c]);
            return Ok(rest);
        }
    };
    match (class, negated) {
        (true, false) => out.push_str(bare),
        (_, true) => out.extend(["[^", bare, "]"]),
        (false, false) => out.extend(["[", bare, "]"]),
    }
    Ok(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_takes_the_whole_text_as_re2_does() {
        for (pattern, text, expect) in [
            ("a", "a", true),
            ("a", "ba", false),
            ("a|b", "b", true),
            ("a|b", "ab", false),
            ("a.b", "a\nb", true),
            ("", "", true),
            ("", "x", false),
            (r"\d+", "12", true),
            (r"\d+", "٣", false),
            (r"\w+", "é", false),
            (r"\W", "é", true),
            (r"[\D]", "é", true),
            (r"[^\d]", "5", false),
            (r"[\w.-]+", "a.b-c", true),
            (r"\Qa.b\E.", "a.bx", true),
            (r"\Qa.b\E.", "axbx", false),
            (r"[[]", "[", true),
            (r"[[:alpha:]]+", "abc", true),
            (r"[]a]+", "]a", true),
            (r"[^]]", "x", true),
            (r"[a&&b]+", "&ab", true),
            (r"a{", "a{", true),
            (r"a{2}", "aa", true),
            (r"a{,2}", "a{,2}", true),
            (r"\bx\b", "x", true),
            (r"\<a\>", "<a>", true),
            (r"\101", "A", true),
            (r"(?i)ABC", "abc", true),
            (r"\pL", "é", true),
            (r"\p{Greek}{2}", "αβ", true),
            (r"\P{Greek}", "α", false),
            (r"[\x{fc}\x61]+", "üa", true),
            (r"\x{fc}?b", "b", true),
            (r"\_", "_", true),
        ] {
            let compiled = Pattern::new(pattern).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(compiled.is_match(text), expect, "{pattern} on {text:?}");
        }
    }

    #[test]
    fn what_is_no_expression_says_why() {
        for (pattern, expect) in [
            ("a)(b", "'a)(b' is no regular expression: unopened group, at character 2"),
            ("(a", "'(a' is no regular expression: unclosed group, at character 1"),
            ("\\", "'\\' is no regular expression: a backslash at the end"),
            (r"(a)\1", "'(a)\\1' is no regular expression: there are no back references"),
        ] {
            assert_eq!(Pattern::new(pattern).expect_err(pattern).to_string(), expect);
        }
    }
}
