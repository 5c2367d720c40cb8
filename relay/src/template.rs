//! Templates: text with the labels of a series in it, for topics, URLs, headers and keys.
//!
//! *In*: text such as `metrics.{{namespace}}`, once; then the labels of a series, once per series. *Out*: text, or the name of the
//! label that the series does not have. *Bound*: pure; what it renders is shared by all series that say the same. *When full*: does not apply.
//!
//! | Written | Becomes |
//! |---|---|
//! | `{{namespace}}` | the value of the label; a series without it (or with an empty one) has no text |
//! | `{{namespace:none}}` | the value of the label, `none` where there is none |
//! | `{{namespace:}}` | the value of the label, nothing where there is none |
//! | `{{__name__}}` | the name of the metric |
//!
//! A label is written as it is called, blanks around it do not count; a colon or brace cannot be in its name. All else stands for itself,
//! single braces too.

use config::OptionsError;

use crate::filter::Series;

/// Bytes of a rendered text, unless a sink bounds it tighter. Larger: a long label value costs memory per series; smaller: legal ones are refused.
pub const RENDERED_BYTES_MAX: usize = 4096;

/// How a label's value is written into the text: the place may not allow every character.
pub type Escape = fn(&str, &mut String);

/// A text with labels in it.
#[derive(Debug, Clone)]
pub struct Template {
    pieces: Vec<Piece>,
    escape: Escape,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    Label { name: String, default: Option<String> },
}

/// Text that is no template.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("at character {at}: {why}")]
pub struct ParseError {
    /// Character of the text, from 1.
    pub at: usize,
    why: &'static str,
}

/// Why a series has no text.
#[derive(Debug, Clone, PartialEq, Eq, Hash, thiserror::Error)]
pub enum RenderError {
    /// It does not have the label, and the template no default for it.
    #[error("the series has no label '{0}': give the template a default, '{{{{{0}:…}}}}'")]
    Missing(String),
    /// The text is longer than [`RENDERED_BYTES_MAX`].
    #[error("the template gives a text of {0} bytes, above {RENDERED_BYTES_MAX}")]
    Long(usize),
}

/// What a sink's templates say of a series, in the sink's order.
pub type Route = Box<[Result<Box<str>, RenderError>]>;

impl Template {
    /// Reads a template. *Errors*: braces that do not close, or a label without a name.
    pub fn parse(text: &str, escape: Escape) -> Result<Self, ParseError> {
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some(open) = rest.find("{{") {
            let at = text[..text.len() - rest.len() + open].chars().count() + 1;
            if open > 0 {
                pieces.push(Piece::Text(rest[..open].to_owned()));
            }
            let inside = &rest[open + 2..];
            let end = inside.find("}}").ok_or(ParseError { at, why: "'{{' without its '}}'" })?;
            let (name, default) = match inside[..end].split_once(':') {
                Some((name, default)) => (name, Some(default.to_owned())),
                None => (&inside[..end], None),
            };
            let name = name.trim();
            if name.is_empty() {
                return Err(ParseError { at, why: "a label's name belongs between '{{' and '}}'" });
            }
            if [name, default.as_deref().unwrap_or_default()].iter().any(|text| text.contains(['{', '}'])) {
                return Err(ParseError { at, why: "a brace between '{{' and '}}'" });
            }
            pieces.push(Piece::Label { name: name.to_owned(), default });
            rest = &inside[end + 2..];
        }
        if !rest.is_empty() {
            pieces.push(Piece::Text(rest.to_owned()));
        }
        Ok(Self { pieces, escape })
    }

    /// Reads the template of an option. *Errors*: as [`Template::parse`], with the option's path and text.
    pub fn option(path: &str, text: &str, escape: Escape) -> Result<Self, OptionsError> {
        Self::parse(text, escape).map_err(|error| OptionsError::new(path, format!("cannot read '{text}' as a template: {error}")))
    }

    /// The text, where it names no label.
    pub fn fixed(&self) -> Option<&str> {
        match &self.pieces[..] {
            [] => Some(""),
            [Piece::Text(text)] => Some(text),
            _ => None,
        }
    }

    /// What stands in it besides values of labels: its own text and the defaults.
    pub fn own(&self) -> impl Iterator<Item = &str> {
        self.pieces.iter().filter_map(|piece| match piece {
            Piece::Text(text) => Some(text.as_str()),
            Piece::Label { default, .. } => default.as_deref(),
        })
    }

    /// The text of a series; `series.labels` are all of its labels. Defaults go through the escape too.
    pub fn render(&self, series: &Series<'_>) -> Result<String, RenderError> {
        let mut out = String::new();
        for piece in &self.pieces {
            match piece {
                Piece::Text(text) => out.push_str(text),
                Piece::Label { name, default } => {
                    let found = match name.as_str() {
                        "__name__" => Some(series.name),
                        name => series.labels.iter().find(|(label, _)| *label == name).map(|(_, value)| *value),
                    };
                    match found.filter(|value| !value.is_empty()).or(default.as_deref()) {
                        Some(value) => (self.escape)(value, &mut out),
                        None => return Err(RenderError::Missing(name.clone())),
                    }
                }
            }
        }
        if out.len() > RENDERED_BYTES_MAX { Err(RenderError::Long(out.len())) } else { Ok(out) }
    }
}

/// Writes a value as it is.
pub fn plain(value: &str, out: &mut String) {
    out.push_str(value);
}

/// Percent-encodes all that RFC 3986 does not call unreserved, so that a value is one segment of a path or one value of a query.
pub fn percent(value: &str, out: &mut String) {
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
            out.extend(['%', char::from(DIGITS[usize::from(byte >> 4)]), char::from(DIGITS[usize::from(byte & 15)])]);
        }
    }
}

/// What all of a sink's templates say of a series.
pub(crate) fn route(templates: &[Template], series: &Series<'_>) -> Route {
    templates.iter().map(|template| template.render(series).map(String::into_boxed_str)).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use sample::MetricType;

    use super::*;

    fn series<'a>(labels: &'a [(&'a str, &'a str)]) -> Series<'a> {
        Series { name: "up", labels, kind: MetricType::Gauge, cumulative: false, help: "", unit: "" }
    }

    #[track_caller]
    fn check(text: &str, expect: Result<&str, &str>) {
        let labels = [("a.b", "dotted"), ("empty", ""), ("ns", "shop/eu")];
        let rendered =
            Template::parse(text, plain).map_err(|e| e.to_string()).and_then(|t| t.render(&series(&labels)).map_err(|e| e.to_string()));
        assert_eq!(rendered.as_deref().map_err(String::as_str), expect, "{text}");
    }

    #[test]
    fn labels_stand_between_double_braces() {
        check("", Ok(""));
        check("plain {text} }} {", Ok("plain {text} }} {"));
        check("m.{{ns}}", Ok("m.shop/eu"));
        check("{{ ns }}-{{__name__}}-{{a.b}}é", Ok("shop/eu-up-dottedé"));
        check("{{zone:none}}/{{empty:e}}/{{zone:}}/{{ns:x}}/{{zone:a:b c}}", Ok("none/e//shop/eu/a:b c"));
        check("{{zone}}", Err("the series has no label 'zone': give the template a default, '{{zone:…}}'"));
        check("{{empty}}", Err("the series has no label 'empty': give the template a default, '{{empty:…}}'"));
    }

    #[test]
    fn a_mistake_has_its_place() {
        check("é.{{ns", Err("at character 3: '{{' without its '}}'"));
        check("{{ns}}{{ }}", Err("at character 7: a label's name belongs between '{{' and '}}'"));
        check("{{:x}}", Err("at character 1: a label's name belongs between '{{' and '}}'"));
        check("{{a{b}}", Err("at character 1: a brace between '{{' and '}}'"));
        let error = Template::option("topic", "{{", plain).expect_err("no template");
        assert_eq!(
            (error.path.as_str(), error.message.as_str()),
            ("topic", "cannot read '{{' as a template: at character 1: '{{' without its '}}'")
        );
    }

    #[test]
    fn fixed_text_is_known_as_such() {
        let read = |text| Template::parse(text, plain).expect("a template");
        assert_eq!(read("").fixed(), Some(""));
        assert_eq!(read("metrics").fixed(), Some("metrics"));
        assert_eq!(read("metrics.{{a}}").fixed(), None);
        assert_eq!(read("m.{{a:x y}}.{{b}}").own().collect::<Vec<_>>(), ["m.", "x y", "."]);
    }

    #[test]
    fn values_pass_through_the_escape() {
        let labels = [("ns", "a/b c?é")];
        let template = Template::parse("/in/{{ns}}?x={{y:1 2}}", percent).expect("a template");
        assert_eq!(template.render(&series(&labels)).as_deref(), Ok("/in/a%2Fb%20c%3F%C3%A9?x=1%202"));
    }

    #[test]
    fn a_long_text_is_refused() {
        let long = "x".repeat(RENDERED_BYTES_MAX + 1);
        let labels = [("ns", long.as_str())];
        let template = Template::parse("{{ns}}", plain).expect("a template");
        assert_eq!(template.render(&series(&labels)), Err(RenderError::Long(4097)));
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[{}:a é]{0,12}") {
            if let Ok(template) = Template::parse(&text, percent) {
                drop(template.render(&series(&[("a", "b")])));
            }
        }

        #[test]
        fn escaped_values_hold_nothing_reserved(value in "\\PC{0,20}") {
            let mut out = String::new();
            percent(&value, &mut out);
            prop_assert!(out.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~%".contains(&byte)));
        }
    }
}
