//! Sheets as bytes: what the ledger keeps.
//!
//! *In*: a sheet, or bytes. *Out*: the other. *Bound*: 64 MiB before compression, 1,024 terms, [`CELLS_MAX`] rows. *When full*: an error.

use super::{CELLS_MAX, HOUR, Kind, Line, Named, Row, Sheet, Term};
use crate::frame::{decode, encode, limit};
use crate::varint::{Reader, put, put_signed, put_str};
use crate::{DecodeError, TargetId};

/// Version of the form.
const VERSION: u8 = 1;
/// The most bytes of a sheet before compression that a reader accepts.
const RAW_BYTES_MAX: usize = 64 << 20;
/// The most terms.
const TERMS_MAX: usize = 1024;

impl Sheet {
    /// Writes it as the rest of a sheet with the first `known` targets; 0: whole.
    #[must_use]
    pub fn encode(&self, known: usize) -> Vec<u8> {
        let mut raw = Vec::new();
        put(&mut raw, self.terms.len() as u64);
        for term in &self.terms {
            raw.push(term.kind as u8);
            put_str(&mut raw, &term.reason);
        }
        let known = known.min(self.lines.len());
        put(&mut raw, known as u64);
        let new = &self.lines[known..];
        put(&mut raw, new.len() as u64);
        new.iter().for_each(|line| raw.extend_from_slice(&line.named.id.0.to_le_bytes()));
        new.iter().for_each(|line| put_str(&mut raw, &line.named.job));
        new.iter().for_each(|line| put_str(&mut raw, &line.named.instance));
        for term in 0..self.terms.len() {
            new.iter().for_each(|line| put_signed(&mut raw, line.usual().get(term).copied().unwrap_or(0)));
        }
        put(&mut raw, self.rows.len() as u64);
        let mut before = 0;
        for ((minute, span), rows) in &self.rows {
            put_signed(&mut raw, minute.wrapping_sub(before));
            before = *minute;
            raw.push(*span);
            put(&mut raw, rows.len() as u64);
            rows.iter().for_each(|row| put(&mut raw, u64::from(row.slots)));
            let more = || rows.iter().enumerate().filter_map(|(line, row)| Some((line, row.more.as_ref()?)));
            put(&mut raw, more().count() as u64);
            let mut after = 0;
            for (line, counts) in more() {
                put(&mut raw, (line - after) as u64);
                after = line;
                put(&mut raw, counts.iter().filter(|n| **n != 0).count() as u64);
                for (term, n) in counts.iter().enumerate().filter(|(_, n)| **n != 0) {
                    put(&mut raw, term as u64);
                    put_signed(&mut raw, *n);
                }
            }
        }
        let (mut out, mut packed) = (vec![VERSION, 0], Vec::new());
        if encode::pack(&mut None, &raw, &mut packed) && packed.len() + 10 < raw.len() {
            out[1] = 1;
            put(&mut out, raw.len() as u64);
            out.extend_from_slice(&packed);
        } else {
            out.extend_from_slice(&raw);
        }
        out
    }

    /// Reads one; `base`: the sheet it is the rest of, its rows are not looked at.
    ///
    /// *Errors*: [`DecodeError::Version`] from a newer writer, [`DecodeError::Corrupt`] also where it is the rest of another sheet than `base`.
    pub fn decode(bytes: &[u8], base: Option<&Self>) -> Result<Self, DecodeError> {
        let mut head = Reader::new(bytes);
        let version = head.u8("sheet version")?;
        if version != VERSION {
            return Err(DecodeError::Version(version));
        }
        let mut unpacked = Vec::new();
        let raw = match head.u8("sheet codec")? {
            0 => head.rest(),
            1 => {
                let len = head.varint("sheet length")?;
                limit("sheet", len, RAW_BYTES_MAX)?;
                decode::unpack(&mut None, head.rest(), len as usize, &mut unpacked)?;
                &unpacked
            }
            _ => return Err(head.corrupt("sheet codec")),
        };
        let mut from = Reader::new(raw);
        let mut sheet = Self { terms: read_terms(&mut from)?, ..Self::default() };
        let known: usize = from.small("known targets")?;
        let lines = base.map_or(&[][..], |base| &base.lines);
        if known > lines.len() || base.is_some_and(|base| known > 0 && !sheet.terms.starts_with(&base.terms)) {
            return Err(from.corrupt("known targets"));
        }
        sheet.lines.extend_from_slice(&lines[..known]);
        read_lines(&mut from, &mut sheet.lines, sheet.terms.len())?;
        sheet.places = sheet.lines.iter().zip(0..).map(|(line, place)| (line.named.id, place)).collect();
        sheet.read_rows(&mut from)?;
        Ok(sheet)
    }

    fn read_rows(&mut self, from: &mut Reader<'_>) -> Result<(), DecodeError> {
        let (mut minute, mut cells) = (0i64, 0);
        for _ in 0..from.count(4, "minutes")? {
            minute = minute.wrapping_add(from.signed("minute")?);
            let span = from.u8("span")?;
            let count = from.count(1, "rows")?;
            cells += count;
            limit("rows", cells as u64, CELLS_MAX)?;
            if count > self.lines.len() || !matches!(span, 1 | HOUR) {
                return Err(from.corrupt("rows"));
            }
            let mut rows = Vec::with_capacity(count);
            for _ in 0..count {
                rows.push(Row { slots: from.small("slots")?, more: None });
            }
            let mut line = 0usize;
            for _ in 0..from.count(2, "differences")? {
                line = line.saturating_add(from.small("line")?);
                let mut more = vec![0; self.terms.len()];
                for _ in 0..from.count(2, "terms")? {
                    let term: usize = from.small("term")?;
                    *more.get_mut(term).ok_or_else(|| from.corrupt("term"))? = from.signed("count")?;
                }
                rows.get_mut(line).ok_or_else(|| from.corrupt("line"))?.more = Some(Box::new(more));
            }
            self.rows.insert((minute, span), rows);
        }
        Ok(())
    }
}

fn read_terms(from: &mut Reader<'_>) -> Result<Vec<Term>, DecodeError> {
    let count = from.count(2, "terms")?;
    limit("terms", count as u64, TERMS_MAX)?;
    let mut terms = Vec::with_capacity(count);
    for _ in 0..count {
        let kind = usize::from(from.u8("kind")?);
        let kind = Kind::ALL.get(kind).copied().ok_or_else(|| from.corrupt("kind"))?;
        terms.push(Term { kind, reason: from.str("reason")?.into() });
    }
    Ok(terms)
}

fn read_lines(from: &mut Reader<'_>, lines: &mut Vec<Line>, terms: usize) -> Result<(), DecodeError> {
    let (first, count) = (lines.len(), from.count(10, "targets")?);
    for _ in 0..count {
        lines.push(Line { named: Named { id: TargetId(from.u64("target")?), ..Named::default() }, ..Line::default() });
    }
    let new = &mut lines[first..];
    for line in new.iter_mut() {
        line.named.job = from.str("job")?.into();
    }
    for line in new.iter_mut() {
        line.named.instance = from.str("instance")?.into();
    }
    for _ in 0..terms {
        for line in new.iter_mut() {
            line.last.push(from.signed("usual count")?);
        }
    }
    new.iter_mut().for_each(|line| line.usual = Some(line.last.clone()));
    Ok(())
}
