//! What is taken from a page, what is tolerated and what is refused: cases for every rule, the page in the book that lists them, the
//! comparison with Prometheus 3, and what holds for any page.

mod book;
mod cases;
mod nhcb;
mod oracle;
mod pages;
mod properties;
mod proto;

use std::collections::BTreeMap;

use collector::parse::Format;
use collector::series::{Counts, Options, PageError, SeriesCache};
use sample::{NO_TIME, NativeHistogram, State};

/// The samples of a page by series: name and labels, sorted.
pub(crate) type Read = BTreeMap<Vec<(String, String)>, Sample>;

/// One sample as it is in the columns.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Sample {
    pub(crate) value: u64,
    pub(crate) time: Option<i64>,
    pub(crate) start: Option<i64>,
    pub(crate) exemplars: Vec<sample::Exemplar>,
    pub(crate) histogram: Option<NativeHistogram>,
    /// Family, type, help, unit.
    pub(crate) family: [String; 4],
}

pub(crate) fn cache() -> SeriesCache {
    SeriesCache::new(Options { honor_timestamps: true, ..Options::default() })
}

/// Reads a page that nothing came before.
pub(crate) fn read(format: Format, page: &[u8]) -> Result<(Read, Counts), PageError> {
    read_with(Options { honor_timestamps: true, ..Options::default() }, format, page)
}

/// The same with other options.
pub(crate) fn read_with(options: Options, format: Format, page: &[u8]) -> Result<(Read, Counts), PageError> {
    let mut cache = SeriesCache::new(options);
    let counts = cache.page_in(format, page)?;
    Ok((samples(&cache), counts))
}

/// The samples of the last page.
pub(crate) fn samples(cache: &SeriesCache) -> Read {
    let mut read = Read::new();
    for part in cache.parts() {
        let columns = &part.columns;
        let mut by_index: BTreeMap<u32, (Vec<sample::Exemplar>, Option<NativeHistogram>)> = BTreeMap::new();
        for (index, exemplar) in &columns.exemplars {
            by_index.entry(*index).or_default().0.push(exemplar.clone());
        }
        for (index, histogram) in &columns.histograms {
            by_index.entry(*index).or_default().1 = Some(histogram.clone());
        }
        for ((index, series), state) in (0..).zip(part.layout.iter()).zip(&columns.states) {
            let value = columns.values[index];
            if *state == State::Absent || (*state == State::Present && sample::is_stale(value)) {
                continue;
            }
            let own = |list: &[i64]| list.get(index).copied().filter(|time| *time != NO_TIME);
            let labels = series.labels().filter(|(_, value)| !value.is_empty()).map(|(name, value)| (name.to_owned(), value.to_owned()));
            let mut labels: Vec<_> = labels.chain([("__name__".to_owned(), series.name().to_owned())]).collect();
            labels.sort();
            let (exemplars, histogram) = by_index.remove(&(index as u32)).unwrap_or_default();
            let family = series.family();
            let family = [family.name, family.kind.as_str(), family.help, family.unit].map(str::to_owned);
            let sample = Sample { value, time: own(&columns.timestamps), start: own(&columns.starts), exemplars, histogram, family };
            assert!(read.insert(labels, sample).is_none(), "a series has one sample");
        }
    }
    read
}
