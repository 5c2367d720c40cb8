//! The book, `docs/` and `README.md`, held against the program: its links, its configurations, its metrics, its alerts.
//!
//! *In*: pages and sources as they stand in the repository. *Out*: a test that fails with the page and the line. *Bound*: the book.
//! *When full*: does not apply.

mod alerts;
mod links;
mod metrics;
mod rules;
mod snippets;
mod values;

use std::path::{Path, PathBuf};

/// Where the repository is.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A page and its text.
struct Page {
    path: PathBuf,
    text: String,
}

impl Page {
    fn read(path: PathBuf) -> Self {
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Self { path, text }
    }

    /// As a person names it.
    fn name(&self) -> String {
        self.path.strip_prefix(root()).unwrap_or(&self.path).display().to_string()
    }

    /// Headings outside of code blocks, without their marks.
    fn headings(&self) -> Vec<&str> {
        let mut in_code = false;
        let mut headings = Vec::new();
        for line in self.text.lines() {
            if line.trim_start().starts_with("```") {
                in_code = !in_code;
            }
            let text = line.trim_start_matches('#');
            if !in_code && text.len() < line.len() && text.starts_with(' ') {
                headings.push(text.trim());
            }
        }
        headings
    }
}

/// Every page of the book.
fn pages() -> Vec<Page> {
    let mut pages: Vec<_> = ["docs", "docs/decisions"]
        .iter()
        .flat_map(|folder| std::fs::read_dir(root().join(folder)).expect("the folder is there"))
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "md"))
        .chain([root().join("README.md")])
        .collect();
    pages.sort();
    pages.into_iter().map(Page::read).collect()
}
