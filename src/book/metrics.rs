//! `docs/metrics.md` lists every metric that the sources declare, with the help text they declare it with.
//!
//! `UPDATE_GOLDEN=1` writes the tables anew. That type, labels and help on a live page are the same is checked by the end-to-end tests.

use std::path::{Path, PathBuf};

use super::root;

/// Where metrics are declared.
const SOURCES: [&str; 4] = ["collector/src", "relay/src", "bundled-nats/src", "src"];
/// The tables: title, and what the names in it begin with. A name stands in the first table that fits.
const TABLES: [(&str, &[&str]); 5] = [
    ("Relays", &["strata_relay_", "strata_feed_"]),
    ("The bundled server", &["strata_nats_"]),
    ("Configuration", &["strata_config_"]),
    ("The process", &["process_", "strata_build_"]),
    ("Collection and the stream", &["strata_"]),
];
const BEGIN: &str = "<!-- written by `make docs` from the sources -->\n";
const END: &str = "<!-- end of what is written -->\n";

/// One declaration.
struct Metric {
    name: String,
    help: String,
    labels: Vec<String>,
}

impl Metric {
    fn kind(&self) -> &'static str {
        if self.name.ends_with("_total") { "counter" } else { "gauge" }
    }

    fn unit(&self) -> &'static str {
        let base = self.name.trim_end_matches("_total");
        let units = [
            ("_timestamp_seconds", "s since 1970"),
            ("_start_time_seconds", "s since 1970"),
            ("_seconds", "s"),
            ("_bytes", "bytes"),
            ("_samples", "samples"),
            ("_messages", "messages"),
        ];
        units.into_iter().find(|(end, _)| base.ends_with(end)).map_or("", |(_, unit)| unit)
    }

    fn row(&self) -> String {
        let labels: Vec<_> = self.labels.iter().map(|label| format!("`{label}`")).collect();
        format!("| `{}` | {} | {} | {} | {} |\n", self.name, self.kind(), labels.join(", "), self.unit(), self.help)
    }
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).expect("the folder is there").filter_map(Result::ok) {
        let path = entry.path();
        if path.is_dir() {
            files.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

/// The string literals of a source, with the code before each.
fn literals(source: &str) -> Vec<(String, String)> {
    let code: String =
        source.lines().filter(|line| !line.trim_start().starts_with("//")).fold(String::new(), |all, line| all + line + "\n");
    let mut found = Vec::new();
    let (mut before, mut text, mut inside) = (String::new(), String::new(), false);
    let mut chars = code.chars();
    while let Some(c) = chars.next() {
        match c {
            '"' if inside => found.push((std::mem::take(&mut before), std::mem::take(&mut text))),
            '\\' if inside => text.extend(chars.next()),
            c if inside => text.push(c),
            '"' => {}
            c => before.push(c),
        }
        inside ^= c == '"';
    }
    found.push((before, String::new()));
    found
}

/// What one source declares: a name, then its help (or the word `help` for the literal before it), then its labels.
fn declared(source: &str) -> Vec<Metric> {
    let product = source.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    if !product.contains("prometheus::") {
        return Vec::new();
    }
    let literals = literals(product);
    let is_name = |text: &str| {
        ["strata_", "process_"].iter().any(|begin| text.starts_with(begin)) && text.chars().all(|c| c.is_ascii_lowercase() || c == '_')
    };
    let mut metrics = Vec::new();
    for (at, (_, name)) in literals.iter().enumerate().filter(|(_, (_, text))| is_name(text)) {
        let named_before = literals.get(at + 1).is_some_and(|(code, _)| code.contains("help"));
        let (help, first_label) = if named_before { (at.saturating_sub(1), at + 1) } else { (at + 1, at + 2) };
        let mut labels = Vec::new();
        for (code, label) in literals.iter().skip(first_label) {
            let opens = if labels.is_empty() { code.contains("&[") && !code.contains('?') } else { code.trim() == "," };
            if !opens {
                break;
            }
            labels.push(label.clone());
        }
        if labels.is_empty() && name.starts_with("strata_relay_") {
            labels.push("relay".to_owned());
        }
        let help = literals.get(help).map(|(_, text)| text.clone()).unwrap_or_default();
        metrics.push(Metric { name: name.clone(), help, labels });
    }
    metrics
}

fn all() -> Vec<Metric> {
    let files = SOURCES.iter().flat_map(|folder| sources(&root().join(folder))).filter(|file| !file.starts_with(root().join("src/book")));
    let mut metrics: Vec<_> = files.flat_map(|file| declared(&std::fs::read_to_string(file).expect("a source"))).collect();
    metrics.sort_by(|a, b| a.name.cmp(&b.name));
    metrics
}

fn tables(metrics: &[Metric]) -> String {
    let mut text = String::from(BEGIN);
    let table_of = |metric: &Metric| TABLES.iter().position(|(_, begins)| begins.iter().any(|begin| metric.name.starts_with(begin)));
    for table in [4, 0, 1, 2, 3] {
        text.push_str(&format!("\n## {}\n\n| Metric | Type | Labels | Unit | |\n|---|---|---|---|---|\n", TABLES[table].0));
        metrics.iter().filter(|metric| table_of(metric) == Some(table)).for_each(|metric| text.push_str(&metric.row()));
    }
    text.push('\n');
    text + END
}

#[test]
fn the_page_lists_what_the_sources_declare() {
    let metrics = all();
    assert!(metrics.len() > 40, "only {} metrics found", metrics.len());
    for pair in metrics.windows(2) {
        assert_ne!(pair[0].name, pair[1].name, "declared twice");
    }
    for metric in &metrics {
        assert!(metric.help.ends_with('.') && metric.help.contains(' '), "{}: no help: {:?}", metric.name, metric.help);
    }
    let file = root().join("docs/metrics.md");
    let page = std::fs::read_to_string(&file).expect("the page is there");
    let (before, rest) = page.split_once(BEGIN).expect("the mark where the tables begin");
    let (_, after) = rest.split_once(END).expect("the mark where the tables end");
    let expect = format!("{before}{}{after}", tables(&metrics));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&file, &expect).expect("the page can be written");
    } else {
        assert!(page == expect, "docs/metrics.md is old: run `make docs`");
    }
}

#[test]
fn a_declaration_is_read_with_help_and_labels() {
    let source = r#"use prometheus::X;
        // "strata_not_this"
        a: counter("strata_a_total", "Of a.", &["x", "y"])?,
        b: { let help = "Of b."; counters("strata_b", help, &["z"])? },
        c: gauge("strata_c_bytes", "Of c.")?,
        d: IntGaugeVec::new(Opts::new("strata_d", "Of d."), &["w"])?,
        #[cfg(test)]
mod tests { "strata_e" }"#;
    let found: Vec<_> = declared(source).iter().map(Metric::row).collect();
    let expect = [
        "| `strata_a_total` | counter | `x`, `y` |  | Of a. |\n",
        "| `strata_b` | gauge | `z` |  | Of b. |\n",
        "| `strata_c_bytes` | gauge |  | bytes | Of c. |\n",
        "| `strata_d` | gauge | `w` |  | Of d. |\n",
    ];
    assert_eq!(found, expect);
}
