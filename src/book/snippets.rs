//! Every `yaml` block of the book is a configuration that loads, without a problem.
//!
//! A block that has the keys of a relay (`filters`, `encode`, `sink`) is loaded as one. The comment `<!-- not ours: … -->` before a block
//! says that it is for another program, and `<!-- prometheus.yml -->` that it is the file of that name to which another block refers.

use std::path::Path;

use config::{Overrides, Refused};

use super::pages;
use crate::check::kinds;

/// A block of code.
struct Block {
    line: usize,
    text: String,
    /// The comment before it.
    marker: String,
}

fn blocks(text: &str, language: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut open: Option<Block> = None;
    let mut marker = String::new();
    let mut fence = String::new();
    for (number, line) in text.lines().enumerate() {
        let trimmed = line.trim_start();
        match &mut open {
            Some(_) if trimmed == "```" => blocks.extend(open.take().filter(|_| fence == language)),
            Some(block) => {
                block.text.push_str(line);
                block.text.push('\n');
            }
            None if trimmed.starts_with("```") => {
                fence = trimmed.trim_start_matches('`').to_owned();
                open = Some(Block { line: number + 1, text: String::new(), marker: std::mem::take(&mut marker) });
            }
            None if trimmed.starts_with("<!--") => marker = trimmed.trim_matches(|c| "<!->".contains(c)).trim().to_owned(),
            None if !trimmed.is_empty() => marker.clear(),
            None => {}
        }
    }
    blocks
}

/// The text as a whole configuration.
fn whole(text: &str) -> String {
    let value: serde_yaml::Value = serde_yaml::from_str(text).unwrap_or_default();
    let has = |key: &str| value.get(key).is_some();
    if !["filters", "encode", "sink"].iter().any(|key| has(key)) {
        return text.to_owned();
    }
    let mut whole = String::from("relays:\n  - name: relay\n");
    for line in text.lines() {
        whole.push_str(&format!("    {line}\n"));
    }
    if !has("sink") {
        whole.push_str("    sink: stdout\n");
    }
    whole
}

fn load(folder: &Path, text: &str) -> Result<(), Refused> {
    let file = folder.join("strata.yaml");
    std::fs::write(&file, whole(text)).expect("the folder can be written");
    // What a page takes from the environment is there.
    let variables = ["KAFKA_PASSWORD", "TOKEN", "INFLUX_TOKEN", "NODE_NAME"].map(|name| (name.to_owned(), "x".to_owned()));
    config::load(&file, &Overrides::environment(variables), &kinds()).map(|_| ())
}

#[test]
fn every_configuration_in_the_book_loads() {
    let mut wrong = Vec::new();
    let mut loaded = 0;
    for page in &pages() {
        let folder = tempfile::tempdir().expect("a folder");
        for name in ["relays.d", "jobs.d"] {
            std::fs::create_dir(folder.path().join(name)).expect("a new folder");
        }
        let blocks = blocks(&page.text, "yaml");
        let prometheus = blocks.iter().find(|block| block.marker == "prometheus.yml").map_or("{}", |block| block.text.as_str());
        std::fs::write(folder.path().join("prometheus.yml"), prometheus).expect("the folder can be written");
        for block in blocks.iter().filter(|block| block.marker != "prometheus.yml" && !block.marker.starts_with("not ours")) {
            loaded += 1;
            if let Err(refused) = load(folder.path(), &block.text) {
                for problem in refused.problems {
                    wrong.push(format!("{}:{}: {problem}", page.name(), block.line));
                }
            }
        }
    }
    assert!(loaded > 20, "only {loaded} blocks found");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_wrong_block_is_found() {
    let folder = tempfile::tempdir().expect("a folder");
    let page = "<!-- not ours: vector -->\n\n```yaml\nsinks: {}\n```\n\n```yaml\nfilters:\n  - dropp: up\n```\n";
    let found = blocks(page, "yaml");
    assert_eq!(found.iter().map(|block| (block.line, block.marker.as_str())).collect::<Vec<_>>(), [(3, "not ours: vector"), (7, "")]);
    let refused = load(folder.path(), &found[1].text).expect_err("there is no such filter");
    assert!(refused.problems[0].to_string().contains("did you mean 'drop'"), "{}", refused.problems[0]);
}
