//! Selectors: PromQL's words for a set of series, asked once per series.
//!
//! *In*: the text of a selector; then series. *Out*: whether it selects the series. *Bound*: the size of the text; regular
//! expressions run in linear time. *When full*: does not apply.

use std::fmt;
use std::str::FromStr;

use promql_parser::label::{MatchOp, Matcher};
use promql_parser::parser::{self, Expr, VectorSelector};
use regex::Regex;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::Series;

/// A PromQL instant selector without `offset` and `@`: `name{label="value", other!~"re.*"}`, alternatives with `or` inside the braces.
///
/// *Shape*: a missing label reads as `""`; regular expressions are anchored at both ends and `.` matches line ends, as in Prometheus 3.
/// Unlike in a query, a selector may match everything: `{}` and `{env=""}` are allowed.
#[derive(Debug, Clone)]
pub struct Selector {
    text: String,
    any: Vec<Vec<Condition>>,
}

/// A text that is not a selector.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot read '{text}' as a PromQL selector: {reason}")]
pub struct SelectorError {
    text: String,
    reason: String,
}

/// One matcher.
#[derive(Debug, Clone)]
struct Condition {
    label: String,
    test: Test,
}

#[derive(Debug, Clone)]
enum Test {
    Equal(String),
    NotEqual(String),
    Match(Regex),
    NoMatch(Regex),
}

impl Selector {
    /// Whether the series is in the set.
    pub fn selects(&self, series: &Series<'_>) -> bool {
        self.any.iter().any(|all| all.iter().all(|condition| condition.holds(series.label(&condition.label))))
    }

    /// The text as written.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl FromStr for Selector {
    type Err = SelectorError;

    fn from_str(text: &str) -> Result<Self, SelectorError> {
        let error = |reason: String| SelectorError { text: text.to_owned(), reason };
        let vector = parse(text).map_err(&error)?;
        let mut groups = vector.matchers.or_matchers;
        if !vector.matchers.matchers.is_empty() || groups.is_empty() {
            groups.push(vector.matchers.matchers);
        }
        let mut any = Vec::with_capacity(groups.len());
        for group in groups {
            let mut all = Vec::with_capacity(group.len() + 1);
            if let Some(name) = &vector.name {
                all.push(Condition { label: "__name__".to_owned(), test: Test::Equal(name.clone()) });
            }
            for matcher in group {
                all.push(Condition::new(matcher).map_err(&error)?);
            }
            any.push(all);
        }
        Ok(Self { text: text.to_owned(), any })
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for Selector {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl Serialize for Selector {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl schemars::JsonSchema for Selector {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Selector".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "description": "A PromQL selector: name, {label=\"value\"}, !=, =~, !~, `or` inside the braces.",
            "examples": ["{__name__=~\"go_.*\"}", "queue_depth{env=\"prod\"}"]
        })
    }
}

impl Condition {
    fn new(matcher: Matcher) -> Result<Self, String> {
        let test = match &matcher.op {
            MatchOp::Equal => Test::Equal(matcher.value),
            MatchOp::NotEqual => Test::NotEqual(matcher.value),
            MatchOp::Re(re) => Test::Match(with_line_ends(re)?),
            MatchOp::NotRe(re) => Test::NoMatch(with_line_ends(re)?),
        };
        Ok(Self { label: matcher.name, test })
    }

    fn holds(&self, value: &str) -> bool {
        match &self.test {
            Test::Equal(wanted) => wanted == value,
            Test::NotEqual(unwanted) => unwanted != value,
            Test::Match(re) => re.is_match(value),
            Test::NoMatch(re) => !re.is_match(value),
        }
    }
}

/// Parses a selector. The query language refuses one that matches the empty label set; a filter need not, so such a text is
/// read again with a matcher that always holds in front.
fn parse(text: &str) -> Result<VectorSelector, String> {
    let widened = || text.trim_start().strip_prefix('{').map(|rest| format!("{{__name__!=\"\",{rest}"));
    let parsed = parser::parse(text).or_else(|reason| match widened() {
        Some(text) => parser::parse(&text).map_err(|_| reason),
        None => Err(reason),
    });
    match parsed? {
        Expr::VectorSelector(vector) if vector.offset.is_some() => Err("'offset' has no meaning here".to_owned()),
        Expr::VectorSelector(vector) if vector.at.is_some() => Err("'@' has no meaning here".to_owned()),
        Expr::VectorSelector(vector) => Ok(vector),
        _ => Err("it is an expression, where a selector such as name{label=\"value\"} is expected".to_owned()),
    }
}

/// The parser anchors expressions, but its `.` stops at line ends.
fn with_line_ends(re: &Regex) -> Result<Regex, String> {
    let text = re.as_str();
    let text = text.strip_prefix("^(?:").map_or_else(|| text.to_owned(), |rest| format!("^(?s:{rest}"));
    Regex::new(&text).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::filter::tests::series;

    #[track_caller]
    fn check(selector: &str, name: &str, labels: &[(&str, &str)], expect: bool) {
        let parsed: Selector = selector.parse().expect("a selector");
        assert_eq!(parsed.selects(&series(name, labels)), expect, "{selector} on {name}{labels:?}");
    }

    #[test]
    fn selects_as_promql_does() {
        check("up", "up", &[], true);
        check("up", "upper", &[], false);
        check("up{}", "up", &[("a", "b")], true);
        check(r#"{__name__=~"go_.*"}"#, "go_threads", &[], true);
        check(r#"{__name__=~"go_.*"}"#, "argo_threads", &[], false);
        check(r#"{__name__="up",env!="prod"}"#, "up", &[("env", "dev")], true);
        check(r#"up{env!="prod"}"#, "up", &[], true);
        check(r#"up{env="prod"}"#, "up", &[], false);
        check(r#"up{env=~"a|b"}"#, "up", &[("env", "ab")], false);
        check(r#"up{env=~"a|b"}"#, "up", &[("env", "b")], true);
        check(r#"up{env!~"a|b"}"#, "up", &[("env", "b")], false);
        check(r#"up{env!~"a.+"}"#, "up", &[], true);
        check(r#"up{path=~"a.b"}"#, "up", &[("path", "a\nb")], true);
    }

    #[test]
    fn a_missing_label_is_empty_and_everything_may_be_selected() {
        check(r#"{env=""}"#, "up", &[], true);
        check(r#"{env=""}"#, "up", &[("env", "x")], false);
        check(r#"{env=~".*"}"#, "up", &[], true);
        check("{}", "up", &[("a", "b")], true);
    }

    #[test]
    fn alternatives_inside_the_braces() {
        let selector = r#"up{env="prod" or env="dev", zone="a"}"#;
        check(selector, "up", &[("env", "prod")], true);
        check(selector, "up", &[("env", "dev")], false);
        check(selector, "up", &[("env", "dev"), ("zone", "a")], true);
        check(selector, "down", &[("env", "prod")], false);
    }

    #[test]
    fn refuses_what_is_no_selector() {
        for text in ["", "up offset 5m", "up[5m]", "sum(up)", "1", "up{", r#"up{a=~"("}"#, "up @ 5"] {
            let error = text.parse::<Selector>().expect_err(text).to_string();
            assert!(error.starts_with(&format!("cannot read '{text}' as a PromQL selector: ")), "{error}");
        }
    }
}
