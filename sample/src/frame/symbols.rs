//! Layouts on the wire: the id, and segments of symbols, families, label shapes and runs of series.
//!
//! *In*: a layout, or the bytes of one. *Out*: bytes, or a layout whose id was checked. *Bound*: every table is checked against the
//! bytes that remain before it is made. *When full*: [`DecodeError::Corrupt`].

use crate::layout::builder::append;
use crate::layout::segment::{FamilyRow, Kind, Segment, family_hash};
use crate::layout::{Family, LayoutId, Values};
use crate::varint::{Reader, put, put_signed};
use crate::{DecodeError, Layout, MetricType};

/// Appends the series from `start` on, after the id of the whole layout, with its length in front.
pub(crate) fn write(layout: &Layout, start: usize, block: &mut Vec<u8>, part: &mut Vec<u8>, out: &mut Vec<u8>) {
    block.clear();
    block.extend_from_slice(&layout.id().0.to_le_bytes());
    let segments = layout.segments_from(start);
    put(block, segments.len() as u64);
    for segment in segments {
        part.clear();
        write_segment(&segment, part);
        put(block, part.len() as u64);
        block.extend_from_slice(part);
    }
    put(out, block.len() as u64);
    out.extend_from_slice(block);
}

fn write_segment(segment: &Segment, out: &mut Vec<u8>) {
    put(out, segment.ends.len() as u64);
    let mut start = 0;
    for end in &segment.ends {
        put(out, u64::from(end - start));
        start = *end;
    }
    out.extend_from_slice(segment.text.as_bytes());
    put(out, segment.families.len() as u64);
    for family in &segment.families {
        put(out, u64::from(family.name));
        out.push(family.kind as u8);
        put(out, u64::from(family.help));
        put(out, u64::from(family.unit));
    }
    put(out, segment.shape_ends.len() as u64);
    for shape in 0..segment.shape_ends.len() {
        let names = segment.shape(shape as u32);
        put(out, names.len() as u64);
        names.iter().for_each(|name| put(out, u64::from(*name)));
    }
    put(out, segment.len() as u64);
    for (Kind { family, name, shape }, rows, values) in segment.runs() {
        [family, name, shape, rows as u32].iter().for_each(|number| put(out, u64::from(*number)));
        let labels = segment.shape(shape).len();
        // Most differences take a byte.
        out.reserve(rows * labels);
        for label in 0..labels {
            match values {
                Values::Narrow(values) => write_column(values.iter().skip(label).step_by(labels).map(|value| i64::from(*value)), out),
                Values::Wide(values) => write_column(values.iter().skip(label).step_by(labels).map(|value| i64::from(*value)), out),
            }
        }
    }
}

/// Writes the values of one label, each as the difference from the one before it.
fn write_column(symbols: impl Iterator<Item = i64>, out: &mut Vec<u8>) {
    let mut previous = 0;
    for symbol in symbols {
        put_signed(out, symbol - previous);
        previous = symbol;
    }
}

/// Reads the series of a layout block, appended to `layout`, which then has exactly `series` of them.
pub(crate) fn read(block: &[u8], mut layout: Layout, series: usize) -> Result<Layout, DecodeError> {
    let mut from = Reader::new(block);
    let id = LayoutId(from.u64("layout id")?);
    let appends = !layout.is_empty();
    let count = from.count(1, "segment count")?;
    for _ in 0..count {
        let len = from.count(1, "segment length")?;
        let segment = read_segment(&mut Reader::new(from.take(len, "segment")?), series - layout.len())?;
        let id = segment.chain(layout.id(), segment.len());
        if appends { append(&mut layout, segment, id) } else { layout.push(segment.into(), id) }
    }
    if from.remaining() > 0 || layout.len() != series || layout.id() != id {
        return Err(from.corrupt("layout id"));
    }
    Ok(layout)
}

fn read_segment(from: &mut Reader<'_>, series_max: usize) -> Result<Segment, DecodeError> {
    let mut segment = Segment::default();
    read_symbols(from, &mut segment)?;
    read_families(from, &mut segment)?;
    read_shapes(from, &mut segment)?;
    read_runs(from, &mut segment, series_max)?;
    if from.remaining() > 0 { Err(from.corrupt("segment end")) } else { Ok(segment) }
}

fn read_symbols(from: &mut Reader<'_>, segment: &mut Segment) -> Result<(), DecodeError> {
    let count = from.count(1, "symbol count")?;
    let mut end = 0usize;
    segment.ends.reserve_exact(count);
    for _ in 0..count {
        end = end.saturating_add(from.small("symbol length")?);
        segment.ends.push(u32::try_from(end).map_err(|_| from.corrupt("symbol length"))?);
    }
    let text = from.take(end, "symbol text")?;
    let text = std::str::from_utf8(text).map_err(|_| from.corrupt("symbol text"))?;
    if !segment.ends.iter().all(|end| text.is_char_boundary(*end as usize)) {
        return Err(from.corrupt("symbol text"));
    }
    segment.text = text.to_owned();
    Ok(())
}

fn read_families(from: &mut Reader<'_>, segment: &mut Segment) -> Result<(), DecodeError> {
    let count = from.count(4, "family count")?;
    let mut item = Vec::new();
    segment.families.reserve_exact(count);
    for _ in 0..count {
        let name = index(from, segment.ends.len(), "family name")?;
        let kind = MetricType::from_wire(from.u8("metric type")?).ok_or_else(|| from.corrupt("metric type"))?;
        let (help, unit) = (index(from, segment.ends.len(), "help")?, index(from, segment.ends.len(), "unit")?);
        let family = Family { name: segment.symbol(name), kind, help: segment.symbol(help), unit: segment.symbol(unit) };
        let hash = family_hash(family, &mut item);
        segment.families.push(FamilyRow { name, help, unit, kind, hash });
    }
    Ok(())
}

fn read_shapes(from: &mut Reader<'_>, segment: &mut Segment) -> Result<(), DecodeError> {
    let count = from.count(1, "shape count")?;
    for _ in 0..count {
        let labels = from.count(1, "label count")?;
        let start = segment.shape_names.len();
        for _ in 0..labels {
            let name = index(from, segment.ends.len(), "label name")?;
            segment.shape_names.push(name);
        }
        if !segment.shape_names[start..].is_sorted_by(|a, b| segment.symbol(*a) < segment.symbol(*b)) {
            return Err(from.corrupt("label order"));
        }
        segment.shape_ends.push(segment.shape_names.len() as u32);
    }
    Ok(())
}

fn read_runs(from: &mut Reader<'_>, segment: &mut Segment, series_max: usize) -> Result<(), DecodeError> {
    let series: usize = from.small("segment series count")?;
    if series > series_max {
        return Err(from.corrupt("segment series count"));
    }
    let mut values = Vec::new();
    while segment.len() < series {
        let family = index(from, segment.families.len(), "family")?;
        let name = index(from, segment.ends.len(), "metric name")?;
        let shape = index(from, segment.shape_ends.len(), "shape")?;
        let run = from.small::<usize>("run length")?;
        let labels = segment.shape(shape).len();
        if run == 0 || run > series - segment.len() || run.saturating_mul(labels) > from.remaining() {
            return Err(from.corrupt("run length"));
        }
        values.clear();
        values.resize(run * labels, 0);
        for label in 0..labels {
            let mut symbol = 0i64;
            for row in 0..run {
                symbol = symbol.wrapping_add(from.signed("label value")?);
                let in_range = u32::try_from(symbol).ok().filter(|symbol| (*symbol as usize) < segment.ends.len());
                values[row * labels + label] = in_range.ok_or_else(|| from.corrupt("label value"))?;
            }
        }
        for row in 0..run {
            segment.push(Kind { family, name, shape }, values[row * labels..][..labels].iter().copied());
        }
    }
    segment.shrink();
    Ok(())
}

fn index(from: &mut Reader<'_>, len: usize, what: &'static str) -> Result<u32, DecodeError> {
    let index: u32 = from.small(what)?;
    if (index as usize) < len { Ok(index) } else { Err(from.corrupt(what)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two series of one run: symbols, families, shapes, runs.
    const GOOD: [&[u8]; 4] = [&[3, 0, 1, 1, b'a', b'b'], &[1, 1, 2, 0, 0], &[1, 2, 1, 2], &[2, 0, 1, 0, 2, 2, 0, 4, 0]];

    fn check(table: usize, bytes: &[u8], expect: &'static str) {
        let mut tables = GOOD;
        tables[table] = bytes;
        let bytes = tables.concat();
        match read_segment(&mut Reader::new(&bytes), 1 << 20) {
            Ok(segment) => assert_eq!((expect, segment.len()), ("", 2)),
            Err(DecodeError::Corrupt { what, .. }) => assert_eq!(what, expect),
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn tables_that_contradict_themselves_are_refused() {
        check(0, GOOD[0], "");
        check(0, &[3, 0, 1, 1, b'a', 0xff], "symbol text");
        check(0, &[3, 0, 1, 1, 0xc3, 0xbc], "symbol text");
        check(0, &[0xff, 0xff, 3], "symbol count");
        check(1, &[1, 3, 2, 0, 0], "family name");
        check(1, &[1, 1, 8, 0, 0], "metric type");
        check(2, &[1, 2, 2, 1], "label order");
        check(2, &[1, 2, 1, 1], "label order");
        check(2, &[1, 2, 1, 3], "label name");
        check(3, &[2, 0, 1, 0, 0], "run length");
        check(3, &[2, 0, 1, 0, 3, 2, 0, 0, 4, 0, 0], "run length");
        check(3, &[0x80, 0x80, 0x40, 0, 1, 0, 0x80, 0x80, 0x40, 2, 0], "run length");
        check(3, &[0x81, 0x80, 0x40, 0, 1, 0], "segment series count");
        check(3, &[2, 1, 1, 0, 2, 2, 0, 4, 0], "family");
        check(3, &[2, 0, 1, 1, 2, 2, 0, 4, 0], "shape");
        check(3, &[2, 0, 1, 0, 2, 2, 0, 6, 0], "label value");
        check(3, &[2, 0, 1, 0, 2, 1, 0, 4, 0], "label value");
        check(3, &[2, 0, 1, 0, 2, 2, 0, 4, 0, 0], "segment end");
    }
}
