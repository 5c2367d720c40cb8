//! The lines of a text page: names, labels, metadata, exemplars, each for itself.
//!
//! - *In:* a page in the Prometheus text format or in OpenMetrics. *Out:* findings; what lines have to do with each other is for
//!   [`super::family`]. *Bound:* the page. *When broken:* it ends where the reader gives up.

use sample::MetricType;

use super::Findings;
use super::family::{Set, Spoken};
use crate::parse::{self, Defect, Exemplar, Fact, Metadata, Page, Piece, Row, Sample, unescape};

/// Looks at one line after another.
struct Lines<'a, 'f> {
    body: &'a [u8],
    open_metrics: bool,
    findings: &'f mut Findings,
}

pub(super) fn check(open_metrics: bool, body: &[u8], findings: &mut Findings) {
    let mut page = if open_metrics { Page::open_metrics(body) } else { Page::new(body) };
    let mut set = Set::new(open_metrics);
    let mut lines = Lines { body, open_metrics, findings };
    let mut spoken = Spoken::default();
    while let Ok(Some(row)) = page.row() {
        match row {
            Row::Metadata(metadata) => {
                lines.metadata(&metadata);
                let name = parse::text(metadata.family.as_bytes());
                set.metadata(lines.offset(metadata.line), &name, &metadata.fact, lines.findings);
            }
            Row::Sample(sample) => {
                lines.sample(&sample, &mut spoken);
                set.sample(lines.offset(sample.series_text), &spoken, lines.findings);
            }
        }
    }
    set.finish(lines.findings);
    let is_cut = !open_metrics && body.last().is_some_and(|byte| *byte != b'\n');
    findings.note(body.len(), Defect::LineBreak, is_cut);
    // Where the page has any bytes the reader refuses it.
    findings.note(0, Defect::EofMissing, open_metrics && body.is_empty());
}

impl<'a> Lines<'a, '_> {
    /// Where `part` lies on the page.
    fn offset(&self, part: &[u8]) -> usize {
        (part.as_ptr() as usize).saturating_sub(self.body.as_ptr() as usize)
    }

    /// Whether a quote stands before `name`.
    fn is_quoted(&self, name: &[u8]) -> bool {
        self.offset(name).checked_sub(1).and_then(|before| self.body.get(before)) == Some(&b'"')
    }

    fn metadata(&mut self, metadata: &Metadata<'_>) {
        let at = self.offset(metadata.line);
        if !self.open_metrics {
            let own = matches!(metadata.fact, Fact::Type(MetricType::GaugeHistogram | MetricType::Info | MetricType::StateSet));
            let unknown = metadata.fact == Fact::Type(MetricType::Unknown) && !metadata.line.trim_ascii_end().ends_with(b"untyped");
            self.findings.note(at, Defect::TypeWord, own || unknown);
            if let Fact::Help(help) = metadata.fact {
                self.escapes(help.as_bytes());
            }
            return;
        }
        self.name(metadata.family.as_bytes());
        self.findings.note(at, Defect::CarriageReturn, metadata.line.ends_with(b"\r\n"));
        if let Fact::Help(help) = metadata.fact
            && let Some(found) = unescaped(help.as_bytes())
        {
            self.findings.add(self.offset(help.as_bytes()) + found, Defect::Escape);
        }
    }

    /// A name that OpenMetrics writes without quotes.
    fn name(&mut self, name: &[u8]) {
        let at = self.offset(name);
        let is_quoted = self.open_metrics && self.is_quoted(name);
        self.findings.note(at.saturating_sub(1), Defect::QuotedName, is_quoted);
    }

    /// What stands in quotes, or is a help text, in a page in the Prometheus text format.
    fn escapes(&mut self, text: &[u8]) {
        if let Some(found) = bare(text).filter(|_| !self.open_metrics) {
            self.findings.add(self.offset(text) + found, Defect::Escape);
        }
    }

    fn label_name(&mut self, name: &[u8]) {
        self.name(name);
        let is_reserved = self.open_metrics && name.first() == Some(&b'_');
        self.findings.note(self.offset(name), Defect::LabelReserved, is_reserved);
    }

    /// Commas stand between labels; in OpenMetrics, where no blanks are, none behind the last one.
    fn commas(&mut self, text: &[u8]) {
        let at = self.offset(text);
        if self.open_metrics {
            let end = at + text.len();
            return self.findings.note(end.saturating_sub(2), Defect::TrailingComma, text.ends_with(b",}"));
        }
        let (mut quoted, mut escaped, mut closed) = (false, false, false);
        for (byte, at) in text.iter().zip(at..) {
            let is_blank = matches!(byte, b' ' | b'\t') && !quoted;
            self.findings.note(at, Defect::CommaMissing, closed && !is_blank && !matches!(byte, b',' | b'}' | b'='));
            let is_quote = *byte == b'"' && !escaped;
            closed = (quoted && is_quote) || (closed && is_blank);
            quoted ^= is_quote;
            escaped = *byte == b'\\' && !escaped;
        }
    }

    fn sample(&mut self, sample: &Sample<'a>, spoken: &mut Spoken<'a>) {
        spoken.labels.clear();
        *spoken = Spoken {
            labels: std::mem::take(&mut spoken.labels),
            value: f64::from_bits(sample.value),
            timestamp_ms: sample.timestamp_ms,
            ..Spoken::default()
        };
        sample.pieces(|piece| match piece {
            Piece::Name(name) => {
                self.name(name);
                self.escapes(name);
                spoken.name = parse::text(name);
            }
            Piece::Label(name, value) => {
                self.label_name(name);
                self.escapes(name);
                self.escapes(value);
                // An empty label is as good as none.
                if !value.is_empty() {
                    spoken.labels.push((parse::text(name), parse::text(value)));
                }
            }
        });
        spoken.labels.sort();
        self.commas(sample.series_text);
        if let Some(exemplar) = &sample.exemplar {
            spoken.exemplar = Some((self.offset(exemplar.labels_text), f64::from_bits(exemplar.value)));
            self.exemplar(exemplar);
        }
    }

    fn exemplar(&mut self, exemplar: &Exemplar<'a>) {
        let at = self.offset(exemplar.labels_text);
        let (mut characters, mut names) = (0, Vec::new());
        exemplar.labels(|name, value| {
            self.label_name(name);
            characters += [name, value].map(|text| parse::text(text).chars().count()).iter().sum::<usize>();
            names.push(unescape(name));
        });
        self.commas(exemplar.labels_text);
        self.findings.note(at, Defect::ExemplarTooLong, characters > parse::EXEMPLAR_CHARACTERS_MAX);
        names.sort();
        self.findings.note(at, Defect::ExemplarLabel, names.windows(2).any(|pair| pair[0] == pair[1]));
    }
}

/// The first line feed, or backslash that begins none of the three escapes.
fn bare(text: &[u8]) -> Option<usize> {
    let mut at = 0;
    while let Some(found) = memchr::memchr2(b'\n', b'\\', &text[at..]) {
        at += found;
        if text[at] == b'\n' || !matches!(text.get(at + 1), Some(b'n' | b'"' | b'\\')) {
            return Some(at);
        }
        at += 2;
    }
    None
}

/// The first quote or backslash of a help text that no backslash stands before or that hides nothing.
///
/// A quote behind two backslashes is let pass: the specification's own pages have one.
fn unescaped(help: &[u8]) -> Option<usize> {
    let mut at = 0;
    while let Some(byte) = help.get(at) {
        match byte {
            b'\\' if at + 1 == help.len() => return Some(at),
            b'\\' => at += 1,
            b'"' if at == 0 || help[at - 1] != b'\\' => return Some(at),
            _ => {}
        }
        at += 1;
    }
    None
}
