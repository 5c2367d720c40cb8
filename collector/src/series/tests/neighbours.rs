//! What a series has in common with the one above it is not read again: each is what it is on a page of its own.

use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use super::*;

/// Label names: the target's, what these are renamed to, and others.
const NAMES: [&str; 7] = ["a", "b", "exported_job", "instance", "job", "le", "\"with blank\""];
/// As they stand between quotes.
const VALUES: [&str; 7] = ["", "x", "xy", "é", r"x\n", r#"\"x,b=\""#, "x,y}"];

fn series() -> impl Strategy<Value = String> {
    let labels = subsequence(NAMES.to_vec(), 0..=5).prop_shuffle();
    let values = proptest::collection::vec((select(VALUES.to_vec()), select(vec![",", ", ", " ,"])), 5);
    (select(vec!["m", "mn", ""]), labels, values).prop_map(|(name, labels, values)| {
        let quoted = if name.is_empty() { "\"q\"," } else { "" };
        let labels: String = labels.iter().zip(values).map(|(label, (value, comma))| format!("{label}=\"{value}\"{comma}")).collect();
        format!("{name}{{{quoted}{labels}}}")
    })
}

/// Series of one page: some as they come, most with the value of one label changed in the one above.
fn page() -> impl Strategy<Value = Vec<String>> {
    let change = (any::<proptest::sample::Index>(), select(VALUES.to_vec()));
    proptest::collection::vec((series(), proptest::option::weighted(0.7, change)), 1..12).prop_map(|lines| {
        let mut page: Vec<String> = Vec::new();
        for (line, change) in lines {
            let changed = page.last().zip(change).and_then(|(above, (at, value))| {
                let starts: Vec<usize> = above.match_indices("=\"").map(|(at, _)| at + 2).collect();
                let start = *starts.get(at.index(starts.len().max(1)))?;
                let end = parse_end(&above[start..])?;
                Some(format!("{}{value}{}", &above[..start], &above[start + end..]))
            });
            page.push(changed.unwrap_or(line));
        }
        page
    })
}

/// The length of a value up to the quote that closes it.
fn parse_end(value: &str) -> Option<usize> {
    let mut escaped = false;
    value.bytes().position(|byte| {
        let ends = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        ends
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn a_series_does_not_depend_on_those_above_it(page in page(), honor_labels: bool, drops: bool) {
        let options = || Options { honor_labels, ..relabeling(if drops { r#"[{"action": "labeldrop", "regex": "a"}]"# } else { "[]" }) };
        let read = |page: &str| {
            let mut cache = SeriesCache::new(options());
            cache.page(page.as_bytes()).map(|_| said(&cache).into_keys().collect::<Vec<_>>()).map_err(|error| error.to_string())
        };
        let alone: Result<Vec<_>, _> = page.iter().map(|series| read(&format!("{series} 1\n"))).collect();
        let together = read(&page.iter().map(|series| format!("{series} 1\n")).collect::<String>());
        match alone {
            Ok(alone) => {
                let mut alone: Vec<_> = alone.into_iter().flatten().collect();
                alone.sort();
                alone.dedup();
                prop_assert_eq!(together, Ok(alone));
            }
            Err(_) => prop_assert!(together.is_err()),
        }
    }
}
