//! Every test that `docs/exposition.md` names exists.

use std::path::Path;

/// The file behind a name in the page, as its first paragraph says.
fn file(name: &str) -> String {
    match name {
        "text" => "src/parse/tests.rs".to_owned(),
        "value" | "go_float" => format!("src/parse/{name}.rs"),
        "open_metrics" | "protobuf" => format!("src/parse/{name}/tests.rs"),
        "cache" => "src/series/tests.rs".to_owned(),
        "blocks" => "src/series/blocks/tests.rs".to_owned(),
        "formats" => "src/series/tests/formats.rs".to_owned(),
        "negotiate" => "src/client/negotiate.rs".to_owned(),
        "scrape" => "tests/scrape/main.rs".to_owned(),
        "large" | "strict" => format!("tests/scrape/{name}.rs"),
        "real" => "tests/protobuf.rs".to_owned(),
        "nhcb" => "tests/formats/nhcb.rs".to_owned(),
        other => format!("tests/{other}.rs"),
    }
}

#[test]
fn every_test_that_the_page_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(root.join("../docs/exposition.md")).expect("the page");
    let rows = page.lines().filter(|line| line.starts_with('|'));
    let named: Vec<(&str, &str)> = rows.flat_map(|row| row.split('`')).filter_map(|word| word.split_once("::")).collect();
    assert!(named.len() > 50, "only {} tests are named", named.len());
    for (name, test) in named {
        let source = std::fs::read_to_string(root.join(file(name))).unwrap_or_else(|error| panic!("{name}::{test}: {error}"));
        assert!(source.contains(&format!("fn {test}(")), "{name} has no test {test}");
    }
}
