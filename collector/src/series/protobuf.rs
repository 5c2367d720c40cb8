//! Protobuf pages: the same cache, its entries keyed by the bytes of the labels.
//!
//! - *In:* a page of delimited `MetricFamily` messages. *Out:* the same columns as of a text page with the same series.
//! - *Bound:* [`TEXT_BYTES_MAX`] of names and labels of series that are new. *When full:* the page is refused.
//!
//! A metric stands for one series or for many (`_count`, `_sum`, `_bucket{le=…}`, `{quantile=…}`). The entry of each is the hash of its
//! family's hash, of its label bytes' hash, and of what sets it apart, so a steady page reads no label and writes no bound as text.

use sample::NO_TIME;

use super::bounds::Bounds;
use super::hash::TextHash;
use super::labels::{Identity, Scratch, Suffix, link};
use super::nhcb::Classic;
use super::store::{PENDING, Put, Slot};
use super::{DROPPED, Halt, Options, PageError, Point, Reading, SeriesCache};
use crate::parse::Defect;
use crate::parse::protobuf::{self, Error, Exemplar, Family, Histogram, Kind, Messages, Metric, Role, Rule};

/// Bytes of names and labels of the new series of one page: larger lets a small page with long labels and many buckets take more memory
/// than any text page could, smaller refuses large first pages.
pub(super) const TEXT_BYTES_MAX: usize = if cfg!(test) { 1 << 20 } else { 256 << 20 };
/// Bytes of a series for which room is made: larger grows tables more often, smaller takes more memory than series of many labels need.
const SERIES_BYTES: usize = 64;

/// A metric on its way into the columns.
struct Place<'m, 'a> {
    family: &'m Family<'a>,
    metric: &'m Metric<'a>,
    scratch: &'m mut Scratch<'a>,
    bounds: &'m mut Bounds,
    /// How many labels it has, which `scratch` has as its first ones.
    labels: Option<usize>,
    hash: u64,
    /// Counted from 1.
    number: usize,
    timestamp_ms: Option<i64>,
    start_ms: Option<i64>,
}

impl SeriesCache {
    /// Reads all messages of a block but a last one that is cut, if the page goes on behind it.
    pub(super) fn read_protobuf(&mut self, reading: &mut Reading, block: &[u8], is_last: bool) -> (usize, Result<(), Halt>) {
        let (mut messages, mut scratch, mut bounds) = (Messages::new(block), Scratch::default(), Bounds::default());
        self.reserve(reading, block.len() / SERIES_BYTES);
        loop {
            let at = messages.offset();
            if !is_last && messages.is_cut() {
                return (at, Ok(()));
            }
            match messages.family() {
                Ok(Some(family)) => {
                    if let Err(error) = self.metrics(reading, block, family, &mut scratch, &mut bounds) {
                        return (at, Err(Halt::Refused(error)));
                    }
                }
                Ok(None) => return (at, Ok(())),
                Err(error) => return (at, Err(Halt::Refused(error.into()))),
            }
        }
    }

    fn metrics<'a>(
        &mut self,
        reading: &mut Reading,
        block: &'a [u8],
        mut family: Family<'a>,
        scratch: &mut Scratch<'a>,
        bounds: &mut Bounds,
    ) -> Result<(), PageError> {
        if !family.filled {
            return Ok(());
        }
        self.family(reading, &family);
        let name = self.mix([self.hash.of(family.name.as_bytes()), family.kind as u64, 0, 0]);
        scratch.family();
        while let Some(metric) = family.metric()? {
            reading.metrics += 1;
            let number = reading.metrics;
            let labels = self.hash.of(metric.label_bytes(block, &mut self.scratch)?);
            let timestamp_ms = metric.timestamp_ms().filter(|_| self.options.honor_timestamps);
            let (family, metric, hash) = (&family, &metric, link(name, labels));
            let mut place = Place { family, metric, scratch, bounds, labels: None, hash, number, timestamp_ms, start_ms: None };
            self.metric(reading, &mut place)?;
        }
        Ok(())
    }

    pub(super) fn mix(&self, parts: [u64; 4]) -> u64 {
        let mut bytes = [0; 32];
        for (part, bytes) in parts.iter().zip(bytes.chunks_exact_mut(8)) {
            bytes.copy_from_slice(&part.to_le_bytes());
        }
        self.hash.of(&bytes)
    }

    /// Takes a family's metadata.
    fn family(&mut self, reading: &mut Reading, family: &Family<'_>) {
        let text = |text: &str| self.hash.of(text.as_bytes());
        let hash = self.mix([text(family.name) ^ family.kind as u64, text(family.help), text(family.unit), 1]);
        let Some(entry) = reading.walk.hashed(&self.order, hash, true) else {
            if self.order.is_empty() {
                reading.families.take_message(family);
            } else {
                self.metadata.push(family.at);
            }
            return self.place_metadata(reading, hash, Some(0));
        };
        if reading.diverged {
            self.next.push(entry);
        }
        self.metadata.push(family.at);
    }

    fn metric(&mut self, reading: &mut Reading, place: &mut Place<'_, '_>) -> Result<(), PageError> {
        let kind = place.family.kind;
        let Some(value) = place.metric.value() else {
            reading.counts.defects.add(Defect::ValueMissing, true);
            return Ok(());
        };
        match kind {
            Kind::Counter | Kind::Gauge | Kind::Untyped => {
                let (point, start_ms) = protobuf::simple(value, kind)?;
                place.start_ms = start_ms;
                self.point(reading, place, &point)
            }
            Kind::Summary => protobuf::summary(&value, |point, start_ms| {
                place.start_ms = start_ms;
                self.point(reading, place, &point)
            }),
            Kind::Histogram | Kind::GaugeHistogram => {
                let histogram = Histogram::read(value)?;
                place.start_ms = histogram.start_ms;
                let native = !self.options.ignore_native_histograms && histogram.is_native();
                if native {
                    self.native(reading, place, &histogram)?;
                }
                let converted = self.options.convert_histograms && !native;
                let classic = match (native, converted) {
                    (true, _) => histogram.has_buckets() && !self.options.native_histograms_only,
                    (false, true) => self.options.keep_converted,
                    (false, false) => true,
                };
                if classic {
                    histogram.classic(|point| self.point(reading, place, &point))?;
                }
                if converted { self.converted(reading, place, &histogram) } else { Ok(()) }
            }
        }
    }

    /// Takes one float.
    fn point(&mut self, reading: &mut Reading, place: &mut Place<'_, '_>, point: &protobuf::Point<'_>) -> Result<(), PageError> {
        let (slot, put) = self.put(reading, place, point.role, point.value, false)?;
        if let Some(exemplar) = &point.exemplar {
            let exemplar = Exemplar::read(exemplar.clone())?;
            self.exemplar(reading, slot, put, &exemplar);
        }
        Ok(())
    }

    /// Takes one native histogram with its exemplars.
    fn native(&mut self, reading: &mut Reading, place: &mut Place<'_, '_>, histogram: &Histogram<'_>) -> Result<(), PageError> {
        histogram.check_native()?;
        self.whole(reading, place, histogram, |out| histogram.fill(place.family.kind, out))
    }

    /// Takes a classic histogram as a native one with custom buckets.
    fn converted(&mut self, reading: &mut Reading, place: &mut Place<'_, '_>, histogram: &Histogram<'_>) -> Result<(), PageError> {
        let mut classic = Classic::default();
        let (count, sum) = histogram.totals();
        classic.count(count);
        classic.sum(sum);
        histogram.buckets(|bound, count| classic.bucket(bound, count))?;
        // As in Prometheus: in this format one that cannot be converted costs the page.
        let Some(custom) = classic.close() else { return Err(Error { at: place.metric.at, rule: Rule::Buckets }.into()) };
        self.whole(reading, place, histogram, |out| custom.fill(place.family.kind == Kind::GaugeHistogram, out))
    }

    /// Puts one native histogram with its exemplars.
    fn whole(
        &mut self,
        reading: &mut Reading,
        place: &mut Place<'_, '_>,
        histogram: &Histogram<'_>,
        fill: impl FnOnce(&mut sample::NativeHistogram),
    ) -> Result<(), PageError> {
        let (slot, put) = self.put(reading, place, Role::Bare, 0, true)?;
        if put == Put::Taken {
            if slot & PENDING == 0 { self.store.histogram(slot, fill) } else { reading.fresh.histogram(slot, fill) }
        }
        histogram.exemplars(|exemplar| {
            self.timed_exemplar(reading, slot, put, &exemplar);
            Ok(())
        })
    }

    /// Puts a sample whose series is known by a hash that its reader made, not by its text.
    pub(super) fn put_hashed<'s, 'i: 's>(
        &mut self,
        reading: &mut Reading,
        hash: u64,
        point: Point,
        identity: impl FnOnce(&Options) -> Result<Option<&'s Identity<'i>>, PageError>,
    ) -> Result<(Slot, Put), PageError> {
        let Some(entry) = reading.walk.hashed(&self.order, hash, false) else {
            return self.place(reading, hash, 0, point, identity);
        };
        if reading.diverged {
            self.next.push(entry);
        }
        reading.counts.scraped += 1;
        if entry.slot == DROPPED {
            // Like a double, it takes nothing.
            return Ok((DROPPED, Put::Duplicate));
        }
        reading.counts.post_relabel += 1;
        if point.timestamp_ms == Some(NO_TIME) {
            reading.counts.defects.add(Defect::TimestampRange, true);
            return Ok((DROPPED, Put::Duplicate));
        }
        let put = self.store.put_or_claim(entry.slot, point);
        reading.counts.duplicates += u64::from(put == Put::Duplicate);
        Ok((entry.slot, put))
    }

    fn put(
        &mut self,
        reading: &mut Reading,
        place: &mut Place<'_, '_>,
        role: Role,
        value: u64,
        native: bool,
    ) -> Result<(Slot, Put), PageError> {
        let (tag, bits) = match role {
            Role::Bare => (0, 0),
            Role::Count => (1, 0),
            Role::Sum => (2, 0),
            Role::Bucket(bits) => (3, bits),
            Role::Quantile(bits) => (4, bits),
        };
        // The bounds of a metric differ in their upper bits: the second link brings these down to where tables look.
        let hash = link(link(place.hash, bits), tag);
        let point = Point { value, timestamp_ms: place.timestamp_ms, native };
        let (hash_of, is_full, timed) = (self.hash, reading.fresh.all_text_bytes() > TEXT_BYTES_MAX, place.start_ms);
        let (slot, put) = self.put_hashed(reading, hash, point, move |options| {
            if is_full {
                return Err(Error { at: place.metric.at, rule: Rule::TooMuchText }.into());
            }
            let count = place.describe(hash_of, role)?;
            place.scratch.identity(options, hash_of, count, || place.number)
        })?;
        if put == Put::Taken
            && let Some(start_ms) = timed
        {
            if slot & PENDING == 0 { self.store.start(slot, start_ms) } else { reading.fresh.start(slot, start_ms) }
        }
        Ok((slot, put))
    }
}

impl Place<'_, '_> {
    /// Names a series that the metric stands for as Prometheus does; how many labels it has.
    fn describe(&mut self, hash: TextHash, role: Role) -> Result<usize, Error> {
        let (suffix, label) = match role {
            Role::Bare => (Suffix::None, None),
            Role::Count => (Suffix::Count, None),
            Role::Sum => (Suffix::Sum, None),
            Role::Bucket(bits) => (Suffix::Bucket, Some(("le", bits))),
            Role::Quantile(bits) => (Suffix::None, Some(("quantile", bits))),
        };
        self.scratch.name(hash, self.family.name, suffix);
        let count = match self.labels {
            Some(labels) => labels,
            None => *self.labels.insert(self.scratch.metric(hash, self.metric)?),
        };
        if let Some((name, bits)) = label {
            self.scratch.bound(hash, count, name, self.bounds.text(hash, bits));
        }
        Ok(count + usize::from(label.is_some()))
    }
}
