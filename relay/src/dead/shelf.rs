//! The shelf: what there is of dead letters, for a person.
//!
//! *In*: `STRATA_DEAD`. *Out*: sums per relay, or single samples with the sink's answers. *Bound*: one letter at a time; [`ANSWERS_MAX`] answers per relay,
//! [`LETTERS_READ_MAX`] letters that are read for them; [`SAMPLES_MAX`] samples. *When full*: what is beyond is counted, or left out.

use std::collections::BTreeMap;
use std::sync::Arc;

use bundled_nats::port::{Error, Log, Message};
use sample::MetricType;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::attempts::Attempts;
use super::letter::Page;
use super::{Kept, Letter, relay_of, subject};
use crate::existing::Existing;
use crate::filter::{Selector, Series};

/// Different answers that are told per relay.
pub const ANSWERS_MAX: usize = 20;
/// Letters per relay whose answers are read. Larger: a full shelf takes long to look at; smaller: rare answers are not seen.
pub const LETTERS_READ_MAX: u64 = 10_000;
/// Samples that are shown at once.
pub const SAMPLES_MAX: usize = 1000;

/// The dead letters of one relay.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Shelved {
    /// The relay.
    pub relay: String,
    /// Letters of it.
    pub letters: u64,
    /// Samples in them.
    pub samples: u64,
    /// Messages among them that hold frames which cannot be decoded, or that cannot be read: they are shown and discarded, not sent again.
    pub undecodable: u64,
    /// When the oldest was parked, ms.
    pub oldest_ms: i64,
    /// When the newest was parked, ms.
    pub newest_ms: i64,
    /// What the sink said, with the samples it said it of, most first; of the oldest letters, where there are very many.
    pub answers: Vec<Answer>,
}

/// Samples with the same answer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Answer {
    /// What the sink said.
    pub answer: String,
    /// Samples it said it of.
    pub samples: u64,
}

/// One sample on the shelf.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Shown {
    /// The sequence of its letter.
    pub letter: u64,
    /// When it was parked, ms.
    pub parked_ms: i64,
    /// Its series, with its target's labels.
    pub series: String,
    /// Its value; empty: a native histogram.
    pub value: String,
    /// Its slot, ms.
    pub slot_ms: i64,
    /// What the sink said of it.
    pub answer: String,
}

/// Sums of every relay that has dead letters.
pub async fn list(dead: &Arc<dyn Log>, ledger: &Arc<dyn Log>) -> Result<Vec<Shelved>, Error> {
    let mut all: BTreeMap<String, (Shelved, Attempts, BTreeMap<String, u64>)> = BTreeMap::new();
    let mut messages = Existing::open(dead, 0).await?;
    while let Some(message) = messages.next().await? {
        let relay = relay_of(&message);
        if !all.contains_key(relay) {
            let shelved = Shelved { relay: relay.to_owned(), oldest_ms: message.time_ms, ..Shelved::default() };
            all.insert(relay.to_owned(), (shelved, Attempts::read(ledger, relay).await?, BTreeMap::new()));
        }
        let Some((shelved, attempts, answers)) = all.get_mut(relay) else { continue };
        let kept = Kept::of(&message);
        if attempts.is_void(&kept) {
            continue;
        }
        (shelved.letters, shelved.samples, shelved.newest_ms) = (shelved.letters + 1, shelved.samples + kept.count, message.time_ms);
        shelved.undecodable += u64::from(kept.letter.is_none());
        if shelved.letters <= LETTERS_READ_MAX {
            for sample in kept.letter.into_iter().flat_map(|letter| letter.samples) {
                if answers.len() < ANSWERS_MAX || answers.contains_key(&sample.answer) {
                    *answers.entry(sample.answer).or_default() += 1;
                }
            }
        }
        tokio::task::yield_now().await;
    }
    let told = |(mut shelved, _, answers): (Shelved, Attempts, BTreeMap<String, u64>)| {
        shelved.answers = answers.into_iter().map(|(answer, samples)| Answer { answer, samples }).collect();
        shelved.answers.sort_by_key(|answer| std::cmp::Reverse(answer.samples));
        shelved
    };
    Ok(all.into_values().map(told).filter(|shelved| shelved.letters > 0).collect())
}

/// Samples of a relay's letters, oldest first; at most `count` of them.
pub async fn show(
    dead: &Arc<dyn Log>,
    ledger: &Arc<dyn Log>,
    relay: &str,
    selector: Option<&Selector>,
    count: usize,
) -> Result<Vec<Shown>, Error> {
    let (mut shown, attempts) = (Vec::new(), Attempts::read(ledger, relay).await?);
    let mut messages = Existing::open(dead, 0).await?;
    while shown.len() < count
        && let Some(message) = messages.next().await?
    {
        if message.subject != subject(relay) {
            continue;
        }
        let kept = Kept::of(&message);
        if attempts.is_void(&kept) {
            continue;
        }
        match &kept.letter {
            Some(letter) => {
                let wanted = selected(letter, letter.pages().as_deref(), selector);
                let samples = letter.samples.iter().zip(wanted.iter().flatten()).filter(|(_, wanted)| **wanted);
                shown.extend(samples.take(count - shown.len()).map(|(sample, _)| Shown {
                    letter: message.seq,
                    parked_ms: message.time_ms,
                    series: sample.series.clone(),
                    value: sample.value.clone(),
                    slot_ms: sample.slot_ms,
                    answer: sample.answer.clone(),
                }));
            }
            None if selector.is_none() => shown.push(undecodable(&message, kept.count)),
            None => {}
        }
        tokio::task::yield_now().await;
    }
    Ok(shown)
}

/// A message whose samples cannot be named.
fn undecodable(message: &Message, samples: u64) -> Shown {
    let described = message.headers.get(super::LETTER).unwrap_or("a letter that cannot be read");
    Shown {
        letter: message.seq,
        parked_ms: message.time_ms,
        series: format!("{samples} samples that cannot be decoded"),
        value: String::new(),
        slot_ms: 0,
        answer: described.to_owned(),
    }
}

/// Which samples a selector takes, page by page; without pages: all, or with a selector none.
pub(super) fn selected(letter: &Letter, pages: Option<&[Page]>, selector: Option<&Selector>) -> Vec<Vec<bool>> {
    let Some(pages) = pages else { return vec![vec![selector.is_none(); letter.samples.len()]] };
    let of_page = |page: &Page| {
        let target: Vec<(&str, &str)> = page.decoded.origin.labels.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        let takes = |series: sample::Series<'_>| {
            let own: Vec<(&str, &str)> = series.labels().collect();
            let mut merged = Vec::new();
            crate::resolve::merge(&target, &own, &mut merged);
            let family = series.family();
            let kind: MetricType = family.kind;
            let (name, cumulative) = (series.name(), series.is_cumulative());
            let series = Series { name, labels: &merged, kind, cumulative, help: family.help, unit: family.unit };
            selector.is_none_or(|selector| selector.selects(&series))
        };
        page.decoded.layout.iter().map(takes).collect()
    };
    pages.iter().map(of_page).collect()
}
