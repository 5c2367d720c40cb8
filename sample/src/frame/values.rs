//! The column of values: a class of two bits per series, and bytes for those that moved.
//!
//! *In*: values and states, and those of the base. *Out*: classes, specials, planes of XORs, planes of differences, in this order, and back.
//! *Bound*: a quarter byte per series that did not move; at most 11 for one that did. *When full*: the reader's checks of what remains.

use crate::varint::{Reader, unzigzag, zigzag};
use crate::{DecodeError, STALE_NAN, State};

/// Same state and bits as the base.
const SAME: u8 = 0;
/// A whole number: the difference of mantissas at exponent 0.
const INTEGER: u8 = 1;
/// The bits XOR the base's bits.
const XOR: u8 = 2;
/// What the byte among the specials says.
const SPECIAL: u8 = 3;

const SPECIAL_ABSENT: u8 = 0;
const SPECIAL_STALE: u8 = 1;
const SPECIAL_HISTOGRAM: u8 = 2;
/// Special bytes above this: a decimal with so many digits after the point.
const SPECIAL_DECIMAL: u8 = 2;
/// The most digits after the point.
const DIGITS_MAX: usize = 12;
/// Mantissas up to here are exact in a float64.
const MANTISSA_MAX: i64 = 1 << 53;

const POWERS: [f64; DIGITS_MAX + 1] = [1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12];

/// What the writer collects before it knows the order; reused.
#[derive(Default)]
pub(crate) struct Scratch {
    classes: Vec<u8>,
    specials: Vec<u8>,
    xors: Vec<u64>,
    differences: Vec<u64>,
}

/// The bits as a whole number that is exact, and not -0.
#[inline]
fn integer(bits: u64) -> Option<i64> {
    let value = f64::from_bits(bits);
    let whole = value as i64;
    ((whole as f64).to_bits() == bits && (-MANTISSA_MAX..=MANTISSA_MAX).contains(&whole)).then_some(whole)
}

/// The nearest whole number to the value at a power of ten, ties to even; 0 where there is none in range.
#[inline]
fn mantissa(bits: u64, digits: usize) -> i64 {
    if digits == 0
        && let Some(whole) = integer(bits)
    {
        return whole;
    }
    let scaled = (f64::from_bits(bits) * POWERS[digits]).round_ties_even();
    if scaled.abs() <= MANTISSA_MAX as f64 { scaled as i64 } else { 0 }
}

/// The fewest digits after the point, and the mantissa, that give back exactly these bits.
fn decimal(bits: u64) -> Option<(usize, i64)> {
    let exact = |digits: usize| {
        let whole = mantissa(bits, digits);
        ((whole as f64 / POWERS[digits]).to_bits() == bits).then_some((digits, whole))
    };
    // A value with few digits is exact with more too, as long as the mantissa is in range: one try refuses most others.
    let magnitude = f64::from_bits(bits).abs();
    let most = (1..=DIGITS_MAX).rev().find(|digits| magnitude * POWERS[*digits] <= MANTISSA_MAX as f64)?;
    exact(most)?;
    (1..=most).find_map(exact)
}

/// Appends the column.
///
/// *Shape*: all slices have one length; `base_states` may be empty: all present.
pub(crate) fn write(values: &[u64], states: &[State], base: &[u64], base_states: &[State], scratch: &mut Scratch, out: &mut Vec<u8>) {
    let Scratch { classes, specials, xors, differences } = scratch;
    classes.clear();
    specials.clear();
    xors.clear();
    differences.clear();
    let mut moved = Moved { specials, xors, differences };
    if base_states.is_empty() && states.iter().all(|state| *state == State::Present) {
        for (four, base) in values.chunks(4).zip(base.chunks(4)) {
            let class = |(shift, (value, base)): (usize, (&u64, &u64))| moved.class(*value, *base) << (2 * shift);
            classes.push(if four == base { 0 } else { four.iter().zip(base).enumerate().map(class).sum() });
        }
    } else {
        for start in (0..values.len()).step_by(4) {
            let end = values.len().min(start + 4);
            let class = |index: usize| {
                let before = base_states.get(index).copied().unwrap_or_default();
                moved.stateful(values[index], states[index], base[index], before) << (2 * (index - start))
            };
            classes.push((start..end).map(class).sum());
        }
    }
    out.extend_from_slice(classes);
    out.extend_from_slice(specials);
    write_planes(xors, out);
    write_planes(differences, out);
}

/// Where the bytes of series that moved are collected.
struct Moved<'s> {
    specials: &'s mut Vec<u8>,
    xors: &'s mut Vec<u64>,
    differences: &'s mut Vec<u64>,
}

impl Moved<'_> {
    #[inline]
    fn class(&mut self, value: u64, base: u64) -> u8 {
        if value == base {
            return SAME;
        }
        if let Some(whole) = integer(value) {
            self.differences.push(zigzag(whole - mantissa(base, 0)));
            return INTEGER;
        }
        self.fraction(value, base)
    }

    fn fraction(&mut self, value: u64, base: u64) -> u8 {
        if value == STALE_NAN {
            self.specials.push(SPECIAL_STALE);
            return SPECIAL;
        }
        if let Some((digits, whole)) = decimal(value) {
            self.specials.push(SPECIAL_DECIMAL + digits as u8);
            self.differences.push(zigzag(whole - mantissa(base, digits)));
            return SPECIAL;
        }
        self.xors.push(value ^ base);
        XOR
    }

    fn stateful(&mut self, value: u64, state: State, base: u64, before: State) -> u8 {
        let special = match state {
            State::Present if before == State::Present => return self.class(value, base),
            State::Present if value != base => return self.class(value, base),
            State::Present => {
                // The same bits, but the base had no float: a difference of nothing says that there is one.
                self.xors.push(0);
                return XOR;
            }
            state if state == before => return SAME,
            State::Absent => SPECIAL_ABSENT,
            State::Histogram => SPECIAL_HISTOGRAM,
        };
        self.specials.push(special);
        SPECIAL
    }
}

/// Byte planes, most significant first, after a byte that tells which of them are there (not all zero).
fn write_planes(xors: &[u64], out: &mut Vec<u8>) {
    if xors.is_empty() {
        return;
    }
    let any = xors.iter().fold(0, |any, xor| any | xor);
    let planes = (0..8).filter(|plane| any >> (8 * plane) & 0xff != 0);
    out.push(planes.clone().map(|plane| 1u8 << plane).sum());
    for plane in planes.rev() {
        out.extend(xors.iter().map(|xor| (xor >> (8 * plane)) as u8));
    }
}

/// Reads the column into values and states that hold the base's.
pub(crate) fn read(from: &mut Reader<'_>, values: &mut [u64], states: &mut [State]) -> Result<(), DecodeError> {
    let classes = from.take(values.len().div_ceil(4), "classes")?;
    let mut counts = [0usize; 4];
    for byte in classes.iter().filter(|byte| **byte != 0) {
        (0..4).for_each(|shift| counts[usize::from(byte >> (2 * shift) & 3)] += 1);
    }
    if !values.len().is_multiple_of(4) && classes.last().is_some_and(|last| last >> (2 * (values.len() % 4)) != 0) {
        return Err(from.corrupt("classes"));
    }
    let specials = from.take(counts[usize::from(SPECIAL)], "specials")?;
    let decimals = specials.iter().filter(|special| **special > SPECIAL_DECIMAL).count();
    let mut specials = specials.iter();
    let mut xors = Planes::read(from, counts[usize::from(XOR)])?;
    let mut differences = Planes::read(from, counts[usize::from(INTEGER)] + decimals)?;
    for (at, byte) in classes.iter().enumerate().filter(|(_, byte)| **byte != 0) {
        for index in 4 * at..values.len().min(4 * at + 4) {
            let (value, state) = (&mut values[index], &mut states[index]);
            match byte >> (2 * (index - 4 * at)) & 3 {
                SAME => continue,
                INTEGER => *value = difference(*value, differences.next(), 0).ok_or_else(|| from.corrupt("difference"))?,
                XOR => *value ^= xors.next(),
                _ => {
                    let special = specials.next().copied().unwrap_or(SPECIAL_ABSENT);
                    (*value, *state) = special_value(special, *value, &mut differences).ok_or_else(|| from.corrupt("special"))?;
                    continue;
                }
            }
            *state = State::Present;
        }
    }
    Ok(())
}

fn special_value(special: u8, base: u64, differences: &mut Planes<'_>) -> Option<(u64, State)> {
    match special {
        SPECIAL_ABSENT => Some((0, State::Absent)),
        SPECIAL_STALE => Some((STALE_NAN, State::Present)),
        SPECIAL_HISTOGRAM => Some((0, State::Histogram)),
        digits => {
            let digits = Some(usize::from(digits - SPECIAL_DECIMAL)).filter(|digits| *digits <= DIGITS_MAX)?;
            difference(base, differences.next(), digits).map(|value| (value, State::Present))
        }
    }
}

#[inline]
fn difference(base: u64, difference: u64, digits: usize) -> Option<u64> {
    let whole = mantissa(base, digits).wrapping_add(unzigzag(difference));
    (-MANTISSA_MAX..=MANTISSA_MAX).contains(&whole).then(|| (whole as f64 / POWERS[digits]).to_bits())
}

/// Byte planes while they are read, value by value.
struct Planes<'a> {
    /// Each plane that is there, with its shift.
    planes: [(&'a [u8], u32); 8],
    len: usize,
    at: usize,
}

impl<'a> Planes<'a> {
    fn read(from: &mut Reader<'a>, count: usize) -> Result<Self, DecodeError> {
        let mut planes = Self { planes: [(&[], 0); 8], len: 0, at: 0 };
        if count == 0 {
            return Ok(planes);
        }
        let there = from.u8("plane mask")?;
        for plane in (0..8u32).rev().filter(|plane| there >> plane & 1 != 0) {
            planes.planes[planes.len] = (from.take(count, "plane")?, 8 * plane);
            planes.len += 1;
        }
        Ok(planes)
    }

    #[inline]
    fn next(&mut self) -> u64 {
        let at = self.at;
        self.at += 1;
        self.planes[..self.len].iter().fold(0, |xor, (plane, shift)| xor | u64::from(plane[at]) << shift)
    }
}
