//! What the registries of filters, encoders and sinks share: finding a row by name, and saying which names there are.
//!
//! *In*: a name as written. *Out*: its row, or an error that lists the names. *Bound*: pure, the tables are constants.
//! *When full*: does not apply.

use config::{Kind, OptionsError};

/// Similarity (Jaro-Winkler) below which a guess would rather confuse; the configuration check uses the same.
const SIMILAR: f64 = 0.8;

/// Finds the row of a name. *Errors*: the name is unknown; the text names the closest, or all that exist.
pub(crate) fn find<'a, T>(what: &str, rows: &[&'a T], kind: impl Fn(&T) -> &Kind, name: &str) -> Result<&'a T, OptionsError> {
    if let Some(row) = rows.iter().find(|row| kind(row).name == name) {
        return Ok(row);
    }
    let known: Vec<&str> = rows.iter().map(|row| kind(row).name).collect();
    let lower = name.to_lowercase();
    let closest = known
        .iter()
        .map(|word| (strsim::jaro_winkler(&lower, word), *word))
        .filter(|(score, _)| *score >= SIMILAR)
        .max_by(|a, b| a.0.total_cmp(&b.0));
    Err(OptionsError::new(
        "",
        match closest {
            Some((_, word)) => format!("unknown {what} '{name}', did you mean '{word}'? ({what}s: {})", known.join(", ")),
            None => format!("unknown {what} '{name}': it is one of {}", known.join(", ")),
        },
    ))
}
