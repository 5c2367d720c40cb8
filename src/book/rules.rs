//! The rules of remote write name the tests that hold them, and these are there. Those of the exposition formats: `collector/tests`.

use super::{Page, root};

/// Where a test is that the page names without a file.
const HOME: &str = "relay/src/sink/remote_write/tests.rs";

/// A file that the page names: from the root of the repository, or of the relay's or its sources.
fn source(name: &str) -> Option<String> {
    ["", "relay/", "relay/src/"].iter().find_map(|folder| std::fs::read_to_string(root().join(folder).join(name)).ok())
}

/// What is wrong with what a row says of its tests.
fn mistakes(cell: &str) -> Vec<String> {
    let (files, tests): (Vec<&str>, Vec<&str>) = cell.split('`').skip(1).step_by(2).partition(|word| word.ends_with(".rs"));
    if files.is_empty() && tests.is_empty() {
        return vec![format!("no test is named: {cell}")];
    }
    let mut mistakes = Vec::new();
    let mut sources = vec![source(HOME).unwrap_or_default()];
    for file in files {
        match source(file) {
            Some(source) => sources.push(source),
            None => mistakes.push(format!("there is no {file}")),
        }
    }
    for test in tests {
        let start = match test.strip_suffix('…') {
            Some(start) => format!("fn {start}"),
            None => format!("fn {}(", test.trim_end_matches("()")),
        };
        if !sources.iter().any(|source| source.contains(&start)) {
            mistakes.push(format!("there is no test {test}"));
        }
    }
    mistakes
}

#[test]
fn every_rule_of_remote_write_names_a_test_that_is_there() {
    let page = Page::read(root().join("docs/remote-write.md"));
    let (_, table) = page.text.split_once("| Rule | Test |\n|---|---|\n").expect("the table");
    let rows: Vec<&str> = table.lines().take_while(|line| line.starts_with('|')).collect();
    assert!(rows.len() > 15, "only {} rules", rows.len());
    let cells = rows.iter().filter_map(|row| row.trim_end_matches([' ', '|']).rsplit('|').next());
    let wrong: Vec<String> = cells.flat_map(mistakes).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
