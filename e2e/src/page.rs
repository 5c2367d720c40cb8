//! Text pages whose values move, and the independent reading of them.
//!
//! *In*: a page in text format 0.0.4, a seed. *Out*: the page of any round, as text and as rows. *Bound*: the page is held
//! once; a round is computed, not stored. [`read_line`] is a plain split of a line and shares nothing with the product.

use std::collections::BTreeMap;
use std::fmt::Write;

use anyhow::{Context, Result};

/// The sample that says which round a page is.
pub const ROUND: &str = "e2e_round";
/// A family whose series are new in every round and live for [`CHURN_LIFE`] rounds.
pub const CHURN: &str = "e2e_churn";
const CHURN_LIFE: u64 = 4;

/// A series: its name and its labels.
///
/// *Shape*: labels without the name; an empty value is no label, as Prometheus has it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity {
    /// Metric name.
    pub name: String,
    /// Labels by name.
    pub labels: BTreeMap<String, String>,
}

impl Identity {
    /// The series as Prometheus stores it when it is scraped from a target with these labels (`honor_labels: false`).
    pub fn scraped_from(&self, target: &BTreeMap<String, String>) -> Self {
        let mut labels = BTreeMap::new();
        for (name, value) in self.labels.iter().filter(|(_, v)| !v.is_empty()) {
            let taken = target.contains_key(name);
            labels.insert(if taken { format!("exported_{name}") } else { name.clone() }, value.clone());
        }
        labels.extend(target.iter().map(|(n, v)| (n.clone(), v.clone())));
        Self { name: self.name.clone(), labels }
    }
}

/// A line of a page, read.
#[derive(Debug, Clone, PartialEq)]
pub struct Line<'a> {
    /// Name and braces as written.
    pub head: &'a str,
    /// The value as written.
    pub value: &'a str,
    /// ms since the Unix epoch.
    pub timestamp_ms: Option<i64>,
}

/// Splits a sample line; `None`: a comment or nothing.
///
/// *Errors*: a line that is neither.
pub fn read_line(line: &str) -> Result<Option<Line<'_>>> {
    if line.trim().is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    let head_end = match line.find('{') {
        Some(brace) if !line[..brace].contains(' ') => brace + closing_brace(&line[brace..]).context("labels never end")? + 1,
        _ => line.find(' ').context("no value")?,
    };
    let mut rest = line[head_end..].split_whitespace();
    let value = rest.next().context("no value")?;
    let timestamp_ms = rest.next().map(str::parse).transpose()?;
    Ok(Some(Line { head: line[..head_end].trim(), value, timestamp_ms }))
}

fn closing_brace(text: &str) -> Option<usize> {
    let (mut quoted, mut escaped) = (false, false);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'}' if !quoted => return Some(at),
            _ => {}
        }
    }
    None
}

/// The series that a line's head names.
///
/// *Errors*: labels that do not follow the format.
pub fn read_head(head: &str) -> Result<Identity> {
    let Some((name, rest)) = head.split_once('{') else {
        return Ok(Identity { name: head.trim().to_owned(), labels: BTreeMap::new() });
    };
    let mut labels = BTreeMap::new();
    let mut rest = rest.strip_suffix('}').context("no closing brace")?.trim();
    while !rest.is_empty() {
        let (label, after) = rest.split_once('=').context("label without a value")?;
        let mut value = String::new();
        let mut chars = after.trim_start().strip_prefix('"').context("value without quotes")?.chars();
        loop {
            match chars.next().context("value never ends")? {
                '"' => break,
                '\\' => match chars.next().context("value never ends")? {
                    'n' => value.push('\n'),
                    other => value.push(other),
                },
                other => value.push(other),
            }
        }
        labels.insert(label.trim().to_owned(), value);
        rest = chars.as_str().trim_start().trim_start_matches(',').trim_start();
    }
    Ok(Identity { name: name.trim().to_owned(), labels })
}

/// Sum of a metric's samples on a page whose labels contain all of `labels` (`relay="a"`); 0 where there is none.
///
/// *Errors*: a line that does not follow the format.
pub fn sum(page: &str, name: &str, labels: &[&str]) -> Result<f64> {
    let mut sum = 0.0;
    for line in page.lines() {
        if let Some(line) = read_line(line)? {
            let (found, rest) = line.head.split_once('{').unwrap_or((line.head, ""));
            if found == name && labels.iter().all(|label| rest.contains(label)) {
                sum += read_value(line.value)?;
            }
        }
    }
    Ok(sum)
}

/// The number a value text stands for.
///
/// *Errors*: not a number of the format.
pub fn read_value(text: &str) -> Result<f64> {
    Ok(match text {
        "+Inf" | "Inf" => f64::INFINITY,
        "-Inf" => f64::NEG_INFINITY,
        "NaN" => f64::NAN,
        number => number.parse()?,
    })
}

/// One sample that a round of a page exposes.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// The series as the page names it.
    pub series: Identity,
    /// Its value.
    pub value: f64,
    /// ms since the Unix epoch, where the page gives one.
    pub timestamp_ms: Option<i64>,
}

enum Part {
    /// Comments and blank lines, as written.
    Text(String),
    Sample(Sample),
}

struct Sample {
    head: String,
    value_text: String,
    value: f64,
    timestamp_ms: Option<i64>,
    motion: Motion,
    /// Some come and go: absent in one of these many spans of rounds; 0: always there.
    absent_every: u64,
    phase: u64,
}

#[derive(Clone, Copy)]
enum Motion {
    Still,
    /// By this much a round.
    Steps(f64),
    /// Anywhere: no two rounds have a digit in common. The number is the series' own seed.
    Wild(u64),
}

/// A page that changes from round to round, the same way for the same seed.
pub struct Page {
    /// Where it comes from.
    pub name: String,
    parts: Vec<Part>,
}

impl Page {
    /// Reads a page.
    ///
    /// *Errors*: a line that is no sample, comment or blank, with its number.
    pub fn new(name: &str, text: &str, seed: u64) -> Result<Self> {
        let mut parts = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let Some(read) = read_line(line).with_context(|| format!("{name}:{}", number + 1))? else {
                parts.push(Part::Text(line.to_owned()));
                continue;
            };
            let value = read_value(read.value).with_context(|| format!("{name}:{}", number + 1))?;
            let chance = mix(seed ^ mix(number as u64));
            let whole = value.fract() == 0.0 && value.abs() < 1e15;
            let motion = match chance % 3 {
                0 if whole => Motion::Steps((1 + chance / 7 % 1000) as f64),
                0 if value.is_finite() => Motion::Steps(value / 1024.0),
                _ => Motion::Still,
            };
            parts.push(Part::Sample(Sample {
                head: read.head.to_owned(),
                value_text: read.value.to_owned(),
                value,
                timestamp_ms: read.timestamp_ms,
                motion,
                absent_every: if (chance / 3).is_multiple_of(101) { 3 + chance / 303 % 5 } else { 0 },
                phase: chance / 1515 % 64,
            }));
        }
        Ok(Self { name: name.to_owned(), parts })
    }

    /// The same page with values that have nothing to do with each other, so that they fill a stream.
    pub fn wild(mut self) -> Self {
        for (number, part) in self.parts.iter_mut().enumerate() {
            if let Part::Sample(sample) = part {
                sample.motion = Motion::Wild(mix(number as u64));
            }
        }
        self
    }

    /// The text of a round.
    pub fn render(&self, round: u64, out: &mut String) {
        out.clear();
        for part in &self.parts {
            match part {
                Part::Text(text) => out.push_str(text),
                Part::Sample(sample) if !sample.is_there(round) => continue,
                Part::Sample(sample) => {
                    out.push_str(&sample.head);
                    out.push(' ');
                    match sample.moved(round) {
                        Some(value) => write!(out, "{value}").expect("a string takes all"),
                        None => out.push_str(&sample.value_text),
                    }
                    if let Some(timestamp) = sample.timestamp(round) {
                        write!(out, " {timestamp}").expect("a string takes all");
                    }
                }
            }
            out.push('\n');
        }
        writeln!(out, "# HELP {ROUND} The round of this page.\n# TYPE {ROUND} gauge\n{ROUND} {round}").expect("a string takes all");
        writeln!(out, "# TYPE {CHURN} gauge").expect("a string takes all");
        for born in churned(round) {
            writeln!(out, "{CHURN}{{born=\"{born}\"}} {}", round - born).expect("a string takes all");
        }
    }

    /// The samples of a round.
    ///
    /// *Errors*: none for a page that [`Page::new`] took whole, but for a label text that does not follow the format.
    pub fn rows(&self, round: u64) -> Result<Vec<Row>> {
        let mut rows = Vec::with_capacity(self.parts.len());
        for part in &self.parts {
            if let Part::Sample(sample) = part
                && sample.is_there(round)
            {
                let value = sample.moved(round).unwrap_or(sample.value);
                rows.push(Row { series: read_head(&sample.head)?, value, timestamp_ms: sample.timestamp(round) });
            }
        }
        rows.push(Row { series: read_head(ROUND)?, value: round as f64, timestamp_ms: None });
        for born in churned(round) {
            let series = read_head(&format!("{CHURN}{{born=\"{born}\"}}"))?;
            rows.push(Row { series, value: (round - born) as f64, timestamp_ms: None });
        }
        Ok(rows)
    }

    /// How many samples a round has.
    pub fn count(&self, round: u64) -> usize {
        let there = self.parts.iter().filter(|part| matches!(part, Part::Sample(sample) if sample.is_there(round))).count();
        there + 1 + churned(round).count()
    }

    /// How many samples the page as captured has.
    pub fn len(&self) -> usize {
        self.parts.iter().filter(|p| matches!(p, Part::Sample(_))).count()
    }

    /// Whether the page has no samples.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Sample {
    fn is_there(&self, round: u64) -> bool {
        self.absent_every == 0 || !((round + self.phase) / 5).is_multiple_of(self.absent_every)
    }

    fn moved(&self, round: u64) -> Option<f64> {
        match self.motion {
            Motion::Still => None,
            Motion::Steps(step) => Some(self.value + step * round as f64),
            Motion::Wild(seed) => Some((mix(seed ^ mix(round)) >> 11) as f64 / (1_u64 << 53) as f64),
        }
    }

    fn timestamp(&self, round: u64) -> Option<i64> {
        self.timestamp_ms.map(|t| t + 1000 * round as i64)
    }
}

fn churned(round: u64) -> std::ops::RangeInclusive<u64> {
    round.saturating_sub(CHURN_LIFE - 1)..=round
}

/// Spreads bits: a number that looks random and is the same for the same input.
pub fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let x = (x ^ (x >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    x ^ (x >> 33)
}

#[cfg(test)]
mod tests;
