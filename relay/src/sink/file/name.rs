//! Names of rotated files: a pattern with the time in it, a running number, and back from a name to its number.
//!
//! *In*: `path` as configured; a number and a time. *Out*: names. *Bound*: [`NAME_BYTES_MAX`] of a name. *When full*: does not apply, nothing is kept.
//!
//! `samples-%Y%m%d.ndjson` becomes `samples-20260102-000007.ndjson`, with `.gz` or `.zst` behind it where it is compressed. While it is written it is
//! hidden: `.samples-20260102-000007.ndjson.part`.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use config::OptionsError;

/// Bytes of a configured file name. Larger: what is added to it no longer fits into the 255 bytes of a file system; smaller: legal ones are refused.
pub const NAME_BYTES_MAX: usize = 160;

/// What stands before the number where the configured name has no time.
const DEFAULT_TIME: &str = "-%Y%m%dT%H%M%SZ";

/// Digits of a number, with zeros in front. Larger: longer names; smaller: names stop to sort by number earlier.
const NUMBER_DIGITS: usize = 6;

/// The last millisecond of the year 9999.
const TIME_MAX_MS: u64 = 253_402_300_799_999;

/// Endings of compressed files.
const SUFFIXES: [&str; 3] = ["", ".gz", ".zst"];

/// The conversions that a name may have, and where they stand in `2026-01-02T03:04:05Z`.
const TIMES: [(char, std::ops::Range<usize>); 7] =
    [('Y', 0..4), ('m', 5..7), ('d', 8..10), ('H', 11..13), ('M', 14..16), ('S', 17..19), ('F', 0..10)];

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    /// A range of the time as text.
    Time(std::ops::Range<usize>),
}

/// The names of one sink's files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    /// The folder of all of them.
    pub folder: PathBuf,
    stem: Vec<Piece>,
    extension: String,
    /// Whether the configured name has a time in it.
    pub has_time: bool,
}

impl Names {
    /// Reads the pattern. *Errors*: no file name, a conversion that is none, or one in the folder.
    pub fn parse(path: &Path) -> Result<Self, OptionsError> {
        let refuse = |why: String| Err(OptionsError::new("path", why));
        let shown = path.display();
        let Some(name) = path.file_name().and_then(|name| name.to_str()).filter(|_| !path.as_os_str().is_empty()) else {
            return refuse(format!("'{shown}' names no file"));
        };
        if name.len() > NAME_BYTES_MAX {
            return refuse(format!("the file's name has {} bytes, more than {NAME_BYTES_MAX}", name.len()));
        }
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or_else(|| Path::new(".")).to_owned();
        if TIMES.iter().any(|(letter, _)| folder.to_str().is_some_and(|folder| folder.contains(&format!("%{letter}")))) {
            return refuse(format!("'{shown}' has a time in its folder: only the file's name can have one"));
        }
        let name = SUFFIXES[1..].iter().find_map(|suffix| name.strip_suffix(suffix)).filter(|rest| !rest.is_empty()).unwrap_or(name);
        let dot = name.rfind('.').filter(|dot| *dot > 0 && !name[*dot..].contains('%')).unwrap_or(name.len());
        let (stem, extension) = name.split_at(dot);
        let mut stem = pieces(stem).map_err(|why| OptionsError::new("path", format!("cannot read the name '{name}': {why}")))?;
        let has_time = stem.iter().any(|piece| matches!(piece, Piece::Time(_)));
        if !has_time {
            stem.extend(pieces(DEFAULT_TIME).unwrap_or_default());
        }
        Ok(Self { folder, stem, extension: extension.to_owned(), has_time })
    }

    /// The name of the finished file with this number, begun at this time.
    pub fn finished(&self, number: u64, at_ms: i64, suffix: &str) -> String {
        let ms = u64::try_from(at_ms).unwrap_or(0).min(TIME_MAX_MS);
        let time = humantime::format_rfc3339_seconds(SystemTime::UNIX_EPOCH + Duration::from_millis(ms)).to_string();
        let mut name = String::new();
        for piece in &self.stem {
            name.push_str(match piece {
                Piece::Text(text) => text,
                Piece::Time(range) => &time[range.clone()],
            });
        }
        format!("{name}-{number:0NUMBER_DIGITS$}{}{suffix}", self.extension)
    }

    /// The number in the name of a finished file; `None`: it is no file of ours.
    pub fn number(&self, name: &str) -> Option<u64> {
        let mut rest = name;
        for piece in &self.stem {
            rest = match piece {
                Piece::Text(text) => rest.strip_prefix(text.as_str())?,
                Piece::Time(range) => {
                    let (digits, behind) = rest.split_at_checked(range.len())?;
                    let is_time = digits.bytes().enumerate().all(|(i, b)| if i == 4 || i == 7 { b == b'-' } else { b.is_ascii_digit() });
                    is_time.then_some(behind)?
                }
            };
        }
        let rest = rest.strip_prefix('-')?;
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let behind = rest[digits..].strip_prefix(self.extension.as_str())?;
        (digits >= NUMBER_DIGITS && SUFFIXES.contains(&behind)).then(|| rest[..digits].parse().ok()).flatten()
    }
}

/// The name of a file while it is written.
pub fn part_of(finished: &str) -> String {
    format!(".{finished}.part")
}

/// The name that a file gets when it is finished.
pub fn finished_of(part: &str) -> Option<&str> {
    part.strip_prefix('.')?.strip_suffix(".part")
}

fn pieces(text: &str) -> Result<Vec<Piece>, String> {
    let mut pieces = Vec::new();
    let mut plain = String::new();
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        if letter != '%' {
            plain.push(letter);
            continue;
        }
        match letters.next() {
            Some('%') => plain.push('%'),
            Some(letter) if TIMES.iter().any(|(known, _)| *known == letter) => {
                if !plain.is_empty() {
                    pieces.push(Piece::Text(std::mem::take(&mut plain)));
                }
                pieces.extend(TIMES.iter().find(|(known, _)| *known == letter).map(|(_, range)| Piece::Time(range.clone())));
            }
            other => {
                let what = other.map(String::from).unwrap_or_default();
                return Err(format!(
                    "'%{what}' is no part of a time: they are %Y %m %d %H %M %S, and %F for %Y-%m-%d; %% is a percent sign"
                ));
            }
        }
    }
    if !plain.is_empty() {
        pieces.push(Piece::Text(plain));
    }
    Ok(pieces)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn names(path: &str) -> Names {
        Names::parse(Path::new(path)).expect("a pattern it takes")
    }

    #[test]
    fn a_name_has_time_number_and_ending() {
        let at = 1_767_323_045_000;
        for (path, suffix, name) in [
            ("/d/samples.ndjson", "", "samples-20260102T030405Z-000007.ndjson"),
            ("/d/samples.ndjson.zst", ".zst", "samples-20260102T030405Z-000007.ndjson.zst"),
            ("samples-%F.json", ".gz", "samples-2026-01-02-000007.json.gz"),
            ("/d/%Y.%m.%d", "", "2026.01.02-000007"),
            ("/d/100%%-%H", "", "100%-03-000007"),
            ("/d/.hidden", "", ".hidden-20260102T030405Z-000007"),
        ] {
            let names = names(path);
            assert_eq!(names.finished(7, at, suffix), name);
            assert_eq!(names.number(name), Some(7), "{name}");
            assert_eq!(finished_of(&part_of(name)), Some(name));
        }
    }

    #[test]
    fn only_own_files_have_a_number() {
        let names = names("/d/a-%Y.ndjson");
        for other in
            ["a-2026-1.ndjson", "a-2026-000001.json", "a-20x6-000001.ndjson", "b-2026-000001.ndjson", "a-2026-000001.ndjson.bak", "a-é", ""]
        {
            assert_eq!(names.number(other), None, "{other}");
        }
        assert_eq!(names.number("a-2026-1234567.ndjson.gz"), Some(1_234_567));
    }

    proptest! {
        #[test]
        fn every_name_gives_its_number_back(path in "[a-zA-Z0-9._-]{1,20}(%[YmdHMSF%])?[a-zA-Z.0-9-]{1,12}", number in 0_u64..10_000_000, at in 0_i64..300_000_000_000_000) {
            let path = format!("/d/x{path}");
            let names = names(&path);
            for suffix in SUFFIXES {
                prop_assert_eq!(names.number(&names.finished(number, at, suffix)), Some(number));
            }
        }

        #[test]
        fn no_name_breaks_it(path in ".*", name in ".*") {
            if let Ok(names) = Names::parse(Path::new(&path)) {
                names.number(&name);
            }
        }
    }
}
