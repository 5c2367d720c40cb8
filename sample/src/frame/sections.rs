//! What follows the values: explicit timestamps, start timestamps, exemplars, native histograms; each only where there is one.
//!
//! *In*: columns, and the base's time groups and starts. *Out*: sections of an id, a length and bytes. *Bound*: counts are checked
//! against the bytes that remain. *When full*: [`DecodeError::Corrupt`].

use std::collections::HashMap;

use super::base::{Base, Times};
use crate::varint::{Reader, put, put_pairs, put_signed};
use crate::{Columns, DecodeError, Exemplar, NO_TIME, NativeHistogram, State};

const TIMES: u64 = 1;
const STARTS: u64 = 2;
const EXEMPLARS: u64 = 3;
const HISTOGRAMS: u64 = 4;
/// Sections from here on may be skipped by a reader that does not know them.
const SKIPPABLE: u64 = 64;

/// Groups are the frame's own.
const OWN_GROUPS: u8 = 0;
/// Groups are the base's, with exceptions.
const BASE_GROUPS: u8 = 1;

/// What the writer reuses.
#[derive(Default)]
pub(crate) struct Scratch {
    section: Vec<u8>,
    /// Time groups of the frame just written, if it made its own.
    pub(crate) times: Times,
    table: Vec<i64>,
    exceptions: Vec<(u32, i64)>,
    found: HashMap<i64, u32>,
}

/// Appends all sections that are needed.
pub(crate) fn write(columns: &Columns, slot_ms: i64, base: &Base, scratch: &mut Scratch, out: &mut Vec<u8>) {
    scratch.times.groups.clear();
    scratch.times.count = 0;
    scratch.section.clear();
    write_times(columns, slot_ms, &base.times, scratch);
    finish(TIMES, &mut scratch.section, out);
    write_starts(columns, slot_ms, &base.starts, scratch);
    finish(STARTS, &mut scratch.section, out);
    if !columns.exemplars.is_empty() {
        put(&mut scratch.section, columns.exemplars.len() as u64);
        let mut previous = 0;
        for (index, exemplar) in &columns.exemplars {
            put_signed(&mut scratch.section, i64::from(*index) - previous);
            previous = i64::from(*index);
            write_exemplar(exemplar, slot_ms, &mut scratch.section);
        }
        finish(EXEMPLARS, &mut scratch.section, out);
    }
    if !columns.histograms.is_empty() {
        put(&mut scratch.section, columns.histograms.len() as u64);
        let mut previous = 0;
        for (index, histogram) in &columns.histograms {
            put_signed(&mut scratch.section, i64::from(*index) - previous);
            previous = i64::from(*index);
            histogram.write(&mut scratch.section);
        }
        finish(HISTOGRAMS, &mut scratch.section, out);
    }
}

fn finish(id: u64, section: &mut Vec<u8>, out: &mut Vec<u8>) {
    if !section.is_empty() {
        put(out, id);
        put(out, section.len() as u64);
        out.append(section);
    }
}

fn write_times(columns: &Columns, slot_ms: i64, base: &Times, scratch: &mut Scratch) {
    let present = |index: usize| columns.states[index] != State::Absent;
    if !columns.timestamps.iter().enumerate().any(|(index, time)| *time != NO_TIME && present(index)) {
        return;
    }
    if !base.groups.is_empty() && fits_base_groups(columns, base, scratch) {
        let Scratch { section, table, exceptions, .. } = scratch;
        section.push(BASE_GROUPS);
        write_table(table, slot_ms, section);
        put(section, exceptions.len() as u64);
        let mut next = 0;
        for (index, time) in exceptions.iter() {
            put(section, u64::from(index - next));
            next = index + 1;
            put_signed(section, time.wrapping_sub(slot_ms));
        }
        return;
    }
    let Scratch { section, times, table, found, .. } = scratch;
    table.clear();
    found.clear();
    let mut last = (NO_TIME, 0);
    for (index, time) in columns.timestamps.iter().enumerate() {
        let time = if present(index) { *time } else { NO_TIME };
        if time == NO_TIME {
            times.groups.push(0);
            continue;
        }
        if time != last.0 {
            let group = *found.entry(time).or_insert_with(|| {
                table.push(time);
                table.len() as u32
            });
            last = (time, group);
        }
        times.groups.push(last.1);
    }
    times.count = table.len();
    section.push(OWN_GROUPS);
    put(section, table.len() as u64);
    write_table(table, slot_ms, section);
    times.groups.iter().for_each(|group| put(section, u64::from(*group)));
}

fn write_table(table: &[i64], slot_ms: i64, out: &mut Vec<u8>) {
    let mut previous = slot_ms;
    for time in table {
        put_signed(out, time.wrapping_sub(previous));
        previous = *time;
    }
}

/// Finds the time of each of the base's groups, and the series that have another one; too many of those: the groups don't fit.
fn fits_base_groups(columns: &Columns, base: &Times, scratch: &mut Scratch) -> bool {
    let Scratch { table, exceptions, .. } = scratch;
    table.clear();
    table.resize(base.count, NO_TIME);
    exceptions.clear();
    let most = columns.values.len() / 8;
    for (index, time) in columns.timestamps.iter().enumerate() {
        if columns.states[index] == State::Absent {
            continue;
        }
        let expected = match base.groups.get(index).copied().unwrap_or(0).checked_sub(1) {
            None => NO_TIME,
            Some(group) => {
                let expected = &mut table[group as usize];
                if *expected == NO_TIME {
                    *expected = *time;
                }
                *expected
            }
        };
        // A series without a time of its own is no example of its group's.
        let misfit = *time == NO_TIME && base.groups.get(index).is_some_and(|group| *group != 0);
        if misfit || *time != expected {
            if exceptions.len() >= most {
                return false;
            }
            exceptions.push((index as u32, *time));
        }
    }
    true
}

fn write_starts(columns: &Columns, slot_ms: i64, base: &[i64], scratch: &mut Scratch) {
    if columns.starts.is_empty() && base.is_empty() {
        return;
    }
    let time = |starts: &[i64], index: usize| starts.get(index).copied().unwrap_or(NO_TIME);
    let moved = |index: &usize| columns.states[*index] != State::Absent && time(&columns.starts, *index) != time(base, *index);
    let count = (0..columns.values.len()).filter(moved).count();
    if count == 0 {
        return;
    }
    put(&mut scratch.section, count as u64);
    let (mut next, mut previous) = (0, slot_ms);
    for index in (0..columns.values.len()).filter(moved) {
        let start = time(&columns.starts, index);
        put(&mut scratch.section, (index - next) as u64);
        next = index + 1;
        put_signed(&mut scratch.section, start.wrapping_sub(previous));
        previous = start;
    }
}

fn write_exemplar(exemplar: &Exemplar, slot_ms: i64, out: &mut Vec<u8>) {
    put_pairs(out, &exemplar.labels);
    out.extend_from_slice(&exemplar.value.to_le_bytes());
    out.push(u8::from(exemplar.timestamp_ms.is_some()));
    if let Some(time) = exemplar.timestamp_ms {
        put_signed(out, time.wrapping_sub(slot_ms));
    }
}

/// Reads all sections into columns whose values and states are complete; gives the time groups if the frame has its own.
pub(crate) fn read(from: &mut Reader<'_>, slot_ms: i64, base: &Base, out: &mut Columns) -> Result<Option<Times>, DecodeError> {
    let mut own = None;
    let mut previous = 0;
    if !base.starts.is_empty() {
        out.starts.extend_from_slice(&base.starts);
        out.starts.resize(out.values.len(), NO_TIME);
    }
    while from.remaining() > 0 {
        let id = from.varint("section id")?;
        if id <= previous {
            return Err(from.corrupt("section order"));
        }
        previous = id;
        let len = from.count(1, "section length")?;
        let section = &mut Reader::new(from.take(len, "section")?);
        match id {
            TIMES => own = read_times(section, slot_ms, &base.times, out)?,
            STARTS => read_starts(section, slot_ms, out)?,
            EXEMPLARS => read_exemplars(section, slot_ms, out)?,
            HISTOGRAMS => read_histograms(section, out)?,
            SKIPPABLE.. => continue,
            _ => return Err(DecodeError::UnknownSection(id)),
        }
        if section.remaining() > 0 {
            return Err(section.corrupt("section end"));
        }
    }
    settle(&mut out.timestamps, &out.states);
    settle(&mut out.starts, &out.states);
    Ok(own)
}

/// Absent series have no time, and a column that says nothing is empty.
fn settle(times: &mut Vec<i64>, states: &[State]) {
    let mut any = false;
    for (time, state) in times.iter_mut().zip(states) {
        if *state == State::Absent {
            *time = NO_TIME;
        }
        any |= *time != NO_TIME;
    }
    if !any {
        times.clear();
    }
}

fn read_times(from: &mut Reader<'_>, slot_ms: i64, base: &Times, out: &mut Columns) -> Result<Option<Times>, DecodeError> {
    let series = out.values.len();
    match from.u8("timestamp groups")? {
        OWN_GROUPS => {
            let count = from.count(1, "timestamp group count")?;
            let table = read_table(from, slot_ms, count)?;
            let mut own = Times { groups: Vec::with_capacity(series.min(from.remaining())), count };
            for _ in 0..series {
                let group: u32 = from.small("timestamp group")?;
                let time = match group.checked_sub(1) {
                    None => NO_TIME,
                    Some(at) => *table.get(at as usize).ok_or_else(|| from.corrupt("timestamp group"))?,
                };
                own.groups.push(group);
                out.timestamps.push(time);
            }
            Ok(Some(own))
        }
        BASE_GROUPS if !base.groups.is_empty() => {
            let table = read_table(from, slot_ms, base.count)?;
            let time = |group: &u32| group.checked_sub(1).map_or(NO_TIME, |at| table[at as usize]);
            out.timestamps.extend(base.groups.iter().map(time));
            out.timestamps.resize(series, NO_TIME);
            let mut next = 0usize;
            for _ in 0..from.count(2, "timestamp exception count")? {
                let index = gap(from, &mut next, series)?;
                out.timestamps[index] = slot_ms.wrapping_add(from.signed("timestamp")?);
            }
            Ok(None)
        }
        _ => Err(from.corrupt("timestamp groups")),
    }
}

fn read_table(from: &mut Reader<'_>, slot_ms: i64, count: usize) -> Result<Vec<i64>, DecodeError> {
    let mut time = slot_ms;
    let mut table = Vec::with_capacity(count.min(from.remaining()));
    for _ in 0..count {
        time = time.wrapping_add(from.signed("timestamp")?);
        table.push(time);
    }
    Ok(table)
}

/// The index of the next entry of a list that names series in ascending order.
fn gap(from: &mut Reader<'_>, next: &mut usize, series: usize) -> Result<usize, DecodeError> {
    let index = next.saturating_add(from.small("series gap")?);
    if index >= series {
        return Err(from.corrupt("series gap"));
    }
    *next = index + 1;
    Ok(index)
}

fn read_starts(from: &mut Reader<'_>, slot_ms: i64, out: &mut Columns) -> Result<(), DecodeError> {
    let series = out.values.len();
    out.starts.resize(series, NO_TIME);
    let (mut next, mut start) = (0usize, slot_ms);
    for _ in 0..from.count(2, "start count")? {
        let index = gap(from, &mut next, series)?;
        start = start.wrapping_add(from.signed("start")?);
        out.starts[index] = start;
    }
    Ok(())
}

fn read_exemplars(from: &mut Reader<'_>, slot_ms: i64, out: &mut Columns) -> Result<(), DecodeError> {
    let mut previous = 0;
    for _ in 0..from.count(11, "exemplar count")? {
        let index = entry(from, &mut previous, out.values.len())?;
        let labels = from.pairs("exemplar label")?;
        let value = from.u64("exemplar value")?;
        let timestamp_ms = match from.u8("exemplar time")? {
            0 => None,
            1 => Some(slot_ms.wrapping_add(from.signed("exemplar time")?)),
            _ => return Err(from.corrupt("exemplar time")),
        };
        out.exemplars.push((index, Exemplar { labels, value, timestamp_ms }));
    }
    Ok(())
}

fn read_histograms(from: &mut Reader<'_>, out: &mut Columns) -> Result<(), DecodeError> {
    let mut previous = 0;
    for _ in 0..from.count(26, "histogram count")? {
        let index = entry(from, &mut previous, out.values.len())?;
        out.histograms.push((index, NativeHistogram::read(from)?));
    }
    Ok(())
}

/// The series of the next entry of a list in any order.
fn entry(from: &mut Reader<'_>, previous: &mut i64, series: usize) -> Result<u32, DecodeError> {
    *previous = previous.wrapping_add(from.signed("series index")?);
    let index = u32::try_from(*previous).ok().filter(|index| (*index as usize) < series);
    index.ok_or_else(|| from.corrupt("series index"))
}
