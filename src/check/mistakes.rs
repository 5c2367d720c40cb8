//! Every mistake has its exact message: `mistakes/NAME.yaml` (or a folder with a `strata.yaml`) and what `strata check` says of it in
//! `mistakes/NAME.txt`, with the real filters, encoders and sinks.
//!
//! `UPDATE_GOLDEN=1` writes the texts anew.

use std::fmt::Write as _;
use std::path::Path;

use config::Overrides;

use super::kinds;

/// What a person reads; lines `# env: NAME=VALUE` and `# flag: KEY=VALUE` set what overrides the file.
fn said(name: &str, text: &str) -> String {
    found(config::parse(name, text, &overrides(text), &kinds()).map(|(_, warnings)| warnings))
}

/// The same for a folder: its `strata.yaml` with all that it includes.
fn said_of_folder(folder: &Path) -> String {
    let file = folder.join("strata.yaml");
    let overrides = overrides(&std::fs::read_to_string(&file).unwrap_or_default());
    let loaded = config::load(&file, &overrides, &kinds());
    found(loaded.map(|loaded| loaded.warnings).map_err(|refused| refused.problems)).replace(&format!("{}/", folder.display()), "")
}

fn overrides(text: &str) -> Overrides {
    let pairs = |prefix| text.lines().filter_map(move |l: &str| l.strip_prefix(prefix)?.split_once('='));
    let env = pairs("# env: ").map(|(k, v)| (k.to_owned(), v.to_owned()));
    pairs("# flag: ").fold(Overrides::environment(env), |overrides, (key, value)| overrides.flag(format!("--set {key}"), key, value))
}

fn found(found: Result<Vec<config::Warning>, Vec<config::Problem>>) -> String {
    let mut out = String::new();
    match found {
        Ok(warnings) => warnings.iter().for_each(|w| writeln!(out, "warning: {w}").expect("a string takes all text")),
        Err(problems) => problems.iter().for_each(|p| writeln!(out, "{p}").expect("a string takes all text")),
    }
    out
}

#[test]
fn every_mistake_has_its_exact_message() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/check/mistakes");
    let mut names: Vec<_> =
        std::fs::read_dir(&folder).expect("the folder is there").filter_map(|e| e.ok()?.file_name().into_string().ok()).collect();
    names.retain(|n| !n.ends_with(".txt"));
    names.sort();
    assert!(names.len() >= 30, "{} files", names.len());
    let mut wrong = String::new();
    for name in names {
        let path = folder.join(&name);
        let said = match std::fs::read_to_string(&path) {
            Ok(text) => said(&name, &text),
            Err(_) => said_of_folder(&path),
        };
        let golden = folder.join(format!("{}.txt", name.trim_end_matches(".yaml")));
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&golden, &said).expect("the folder can be written");
        }
        let expected = std::fs::read_to_string(&golden).unwrap_or_default();
        if said != expected || said.is_empty() {
            writeln!(wrong, "== {name}\n-- expected\n{expected}-- said\n{said}").expect("a string takes all text");
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn no_text_makes_the_reader_panic() {
    let good = include_str!("mistakes/many.yaml");
    for cut in (0..good.len()).filter(|c| good.is_char_boundary(*c)) {
        let _said = said("cut.yaml", &good[..cut]);
        let _said = said("cut.yaml", &good[cut..]);
    }
}
