//! `docs/conformance.md` lists every rule with its cases: the tables are written from the cases.

use std::path::Path;

use crate::cases::{Case, Suite, suites};

/// The names of a rule's cases whose outcome is of a kind, and what it says further.
fn cell(cases: &[Case], kind: &str) -> String {
    let of_kind = cases.iter().filter(|case| case.outcome.split([' ', ',']).next() == Some(kind));
    let shown = of_kind.map(|case| {
        let mut words: Vec<&str> =
            case.outcome.split(", ").filter_map(|found| found.split(' ').next_back()).filter(|word| *word != "fine").collect();
        words.dedup();
        let words: Vec<String> = words.iter().map(|word| format!("`{word}`")).collect();
        if words.is_empty() { case.name.clone() } else { format!("{} ({})", case.name, words.join(", ")) }
    });
    shown.collect::<Vec<String>>().join("; ")
}

fn table(suite: &Suite) -> String {
    let mut out = "| | Rule | Taken | Tolerated and counted; refused under `strict` | Always refused |\n|---|---|---|---|---|\n".to_owned();
    for rule in &suite.rules {
        let [fine, tolerated, refused] = ["fine", "tolerated", "refused"].map(|kind| cell(&rule.cases, kind));
        out += &format!("| {} | {} | {fine} | {tolerated} | {refused} |\n", rule.level, rule.text.replace('|', "\\|"));
    }
    out
}

#[test]
fn the_book_lists_every_rule_and_case() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/conformance.md");
    let page = std::fs::read_to_string(&file).expect("the page");
    let mut expect = page.clone();
    for suite in suites() {
        let (begin, end) = (format!("<!-- cases: {} -->\n", suite.name), "<!-- end -->\n");
        let (before, rest) = expect.split_once(&begin).unwrap_or_else(|| panic!("no place for {}", suite.name));
        let (_, after) = rest.split_once(end).expect("an end");
        expect = format!("{before}{begin}{}{end}{after}", table(&suite));
    }
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&file, &expect).expect("written");
    } else {
        assert_eq!(page, expect, "run `UPDATE_GOLDEN=1 cargo test -p collector --test formats`");
    }
}
