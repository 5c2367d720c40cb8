//! Times as people type them.
//!
//! *In*: `2026-01-02T03:04:05Z`, `03:04`, `10m`, `10 min ago`, `now`; `20k/s`. *Out*: ms since the Unix epoch; samples per second.
//! *Bound*: pure. *When full*: does not apply.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

const DAY_MS: i64 = 86_400_000;

/// A point in time relative to `now_ms`.
///
/// `HH:MM` is UTC, and the last time the clock showed it. *Errors*: a sentence with the forms there are.
pub(crate) fn parse(text: &str, now_ms: i64) -> Result<i64, String> {
    let text = text.trim();
    if text == "now" {
        return Ok(now_ms);
    }
    if let Some(ms) = clock(text) {
        let today = now_ms - now_ms.rem_euclid(DAY_MS) + ms;
        return Ok(if today > now_ms { today - DAY_MS } else { today });
    }
    if let Some(ms) = date(text) {
        return Ok(ms);
    }
    let span: String = text.trim_end_matches("ago").chars().filter(|c| !c.is_whitespace()).collect();
    match humantime::parse_duration(&span) {
        Ok(ago) => {
            i64::try_from(ago.as_millis()).ok().and_then(|ago| now_ms.checked_sub(ago)).ok_or_else(|| format!("'{text}' is too far back"))
        }
        Err(_) => Err(format!("'{text}' is no time: write 2026-01-02T03:04:05Z, 03:04 (UTC, the last one), 10m (ago) or now")),
    }
}

/// The range of `--from` and `--to`, at least `span_min_ms` long. *Errors*: a sentence that names the flag.
pub(crate) fn range(from: &str, to: &str, now_ms: i64, span_min_ms: i64) -> Result<(i64, i64), String> {
    let from = parse(from, now_ms).map_err(|message| format!("--from: {message}"))?;
    let to = parse(to, now_ms).map_err(|message| format!("--to: {message}"))?;
    if to.saturating_sub(from) < span_min_ms {
        return Err(format!("--from {} is not before --to {}", show(from), show(to)));
    }
    Ok((from, to))
}

/// A point in time after `now_ms`: `in 10m`, `10m`, `HH:MM` (UTC, the next one) or RFC 3339.
pub(crate) fn later(text: &str, now_ms: i64) -> Result<i64, String> {
    let text = text.trim();
    let found = match (clock(text), date(text)) {
        (Some(ms), _) => {
            let today = now_ms - now_ms.rem_euclid(DAY_MS) + ms;
            if today > now_ms { today } else { today + DAY_MS }
        }
        (None, Some(ms)) => ms,
        (None, None) => {
            let span: String = text.trim_start_matches("in ").chars().filter(|c| !c.is_whitespace()).collect();
            let span = humantime::parse_duration(&span)
                .map_err(|_| format!("'{text}' is no time: write 2026-01-02T03:04:05Z, 03:04 (UTC, the next one) or 10m"))?;
            i64::try_from(span.as_millis())
                .ok()
                .and_then(|span| now_ms.checked_add(span))
                .ok_or_else(|| format!("'{text}' is too far off"))?
        }
    };
    if found > now_ms { Ok(found) } else { Err(format!("'{text}' has passed already")) }
}

/// The time of the day in UTC, to the millisecond.
pub(crate) fn clock_ms(ms: i64) -> String {
    let (seconds, ms) = (ms.rem_euclid(DAY_MS) / 1000, ms.rem_euclid(1000));
    format!("{:02}:{:02}:{:02}.{ms:03}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

/// Now, ms since the Unix epoch.
pub(crate) fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// RFC 3339, to the second; far-off times print as their number.
pub(crate) fn show(ms: i64) -> String {
    let time = u64::try_from(ms).ok().and_then(|ms| UNIX_EPOCH.checked_add(Duration::from_millis(ms)));
    // Years beyond 9999 have no RFC 3339 form.
    match time.filter(|_| ms < 253_402_300_800_000) {
        Some(time) => humantime::format_rfc3339_seconds(time).to_string(),
        None => ms.to_string(),
    }
}

/// `HH:MM` or `HH:MM:SS` as ms of the day.
fn clock(text: &str) -> Option<i64> {
    let parts: Vec<&str> = text.split(':').collect();
    if !(2..=3).contains(&parts.len()) || parts.iter().any(|p| p.len() != 2 || !p.bytes().all(|b| b.is_ascii_digit())) {
        return None;
    }
    let numbers: Vec<i64> = parts.iter().filter_map(|p| p.parse().ok()).collect();
    let (hours, minutes, seconds) = (*numbers.first()?, *numbers.get(1)?, numbers.get(2).copied().unwrap_or(0));
    (hours < 24 && minutes < 60 && seconds < 60).then_some(((hours * 60 + minutes) * 60 + seconds) * 1000)
}

/// RFC 3339 with `Z`, an offset, or neither (then UTC).
fn date(text: &str) -> Option<i64> {
    let (base, offset_minutes) = match text.char_indices().rev().nth(5) {
        Some((at, sign @ ('+' | '-'))) if text.len() > 16 && text[at..].contains(':') => {
            let ms = clock(&text[at + 1..])?;
            (&text[..at], if sign == '+' { ms } else { -ms })
        }
        _ => (text, 0),
    };
    let time = humantime::parse_rfc3339_weak(base).ok()?;
    let ms = i64::try_from(time.duration_since(UNIX_EPOCH).ok()?.as_millis()).ok()?;
    ms.checked_sub(offset_minutes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-01-02T03:04:05Z.
    const NOW: i64 = 1_767_323_045_000;

    #[test]
    fn times_are_read_as_typed() {
        let day = NOW - NOW.rem_euclid(DAY_MS);
        for (text, ms) in [
            ("now", NOW),
            ("10m", NOW - 600_000),
            ("10 min ago", NOW - 600_000),
            ("1h 30m", NOW - 5_400_000),
            ("02:10", day + 7_800_000),
            ("02:10:30", day + 7_830_000),
            ("23:10", day + 83_400_000 - DAY_MS),
            ("2026-01-02T03:04:05Z", NOW),
            ("2026-01-02T03:04:05", NOW),
            ("2026-01-02 03:04:05", NOW),
            ("2026-01-02T04:34:05+01:30", NOW),
            ("2026-01-02T02:04:05-01:00", NOW),
        ] {
            assert_eq!(parse(text, NOW), Ok(ms), "{text}");
        }
        for text in ["", "yesterday", "25:00", "2026-13-01T00:00:00Z", "10", "-5m", "ago"] {
            assert!(parse(text, NOW).is_err(), "{text}");
        }
        assert_eq!(show(NOW), "2026-01-02T03:04:05Z");
    }

    #[test]
    fn times_to_come_are_read_as_typed() {
        let day = NOW - NOW.rem_euclid(DAY_MS);
        for (text, ms) in
            [("10m", NOW + 600_000), ("in 1 h", NOW + 3_600_000), ("02:10", day + 7_800_000 + DAY_MS), ("2026-01-02T03:04:06Z", NOW + 1000)]
        {
            assert_eq!(later(text, NOW), Ok(ms), "{text}");
        }
        for text in ["", "now", "0s", "2026-01-02T03:04:05Z"] {
            assert!(later(text, NOW).is_err(), "{text}");
        }
    }
}
