//! `docs/alerts.yml`: sound by promtool's word, made of metrics that there are, each with its section in the runbook.

use std::process::Command;

use super::{Page, root};

/// Every `alert` of the rules, with its expression and the link to its section.
fn alerts() -> Vec<(String, String, String)> {
    let text = Page::read(root().join("docs/alerts.yml")).text;
    let rules: serde_yaml::Value = serde_yaml::from_str(&text).expect("YAML");
    let list = |value: &serde_yaml::Value, key: &str| value[key].as_sequence().cloned().unwrap_or_default();
    let word = |value: &serde_yaml::Value| value.as_str().unwrap_or_default().to_owned();
    list(&rules, "groups")
        .iter()
        .flat_map(|group| list(group, "rules"))
        .map(|rule| (word(&rule["alert"]), word(&rule["expr"]), word(&rule["annotations"]["runbook_url"])))
        .collect()
}

#[test]
fn every_alert_has_its_section_in_the_runbook() {
    let runbook = Page::read(root().join("docs/runbook.md"));
    let sections: Vec<_> = runbook.headings().into_iter().filter(|heading| heading.starts_with("Strata")).map(str::to_owned).collect();
    let names: Vec<_> = alerts().into_iter().map(|(name, ..)| name).collect();
    assert!(names.len() > 15, "{names:?}");
    assert_eq!(sections, names, "docs/runbook.md has a section for each alert, in the order of docs/alerts.yml");
    for (name, _, url) in alerts() {
        assert_eq!(url, format!("runbook.md#{}", name.to_lowercase()));
    }
}

#[test]
fn alerts_ask_for_metrics_that_there_are() {
    let page = Page::read(root().join("docs/metrics.md")).text;
    for (alert, expression, _) in alerts() {
        let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let metrics: Vec<_> = words.filter(|word| word.starts_with("strata_") || word.starts_with("process_")).collect();
        assert!(!metrics.is_empty(), "{alert}: {expression}");
        for metric in metrics {
            assert!(page.contains(&format!("| `{metric}` |")), "{alert}: there is no metric {metric}");
        }
    }
}

/// The words of an enum's variants, in lower case, from the source that declares it.
fn variants(file: &str, declaration: &str) -> Vec<String> {
    let source = Page::read(root().join(file)).text;
    let (_, rest) = source.split_once(&format!("{declaration} {{\n")).unwrap_or_else(|| panic!("{file}: no {declaration}"));
    let body = rest.split("\n}").next().unwrap_or_default();
    let code = body.lines().map(str::trim).filter(|line| line.starts_with(|c: char| c.is_ascii_uppercase()));
    code.map(|line| line.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default().to_lowercase()).collect()
}

/// What `/readyz`, `/api/v1/relays` and `/api/v1/targets` call a state has a row in the runbook.
#[test]
fn every_state_is_in_the_runbook() {
    let runbook = Page::read(root().join("docs/runbook.md")).text;
    let board = Page::read(root().join("src/board.rs")).text;
    let checks = board.split("Check {").skip(1).filter_map(|rest| rest.trim_start().strip_prefix("name: \"")?.split_once('"'));
    let mut states: Vec<_> = checks.map(|(name, _)| name.to_owned()).collect();
    assert!(states.len() >= 5, "{states:?}");
    states.extend(variants("relay/src/telemetry.rs", "pub enum Activity"));
    states.extend(variants("collector/src/scrape.rs", "pub enum Health"));
    states.extend(variants("bundled-nats/src/server.rs", "pub enum ServerState"));
    assert!(["server", "retrying", "unknown", "down"].iter().all(|known| states.iter().any(|state| state == known)), "{states:?}");
    for state in states {
        assert!(runbook.contains(&format!("| `{state}`")), "docs/runbook.md says nothing of the state '{state}'");
    }
}

#[test]
fn promtool_takes_the_rules_and_their_cases() {
    let Some(folder) = Command::new(root().join("tools/debian.sh")).arg("prometheus").output().ok().filter(|o| o.status.success()) else {
        panic!("tools/debian.sh failed");
    };
    let folder = String::from_utf8_lossy(&folder.stdout).trim().to_owned();
    if folder.is_empty() {
        eprintln!("apt does not have this version of promtool here: the rules are not checked");
        return;
    }
    for arguments in [["check", "rules", "docs/alerts.yml"], ["test", "rules", "src/book/alerts_test.yml"]] {
        let run = Command::new(format!("{folder}/usr/bin/promtool")).args(arguments).current_dir(root()).output().expect("promtool runs");
        let said = [run.stdout, run.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
        assert!(run.status.success() && said.contains("SUCCESS"), "promtool {}: {said}", arguments.join(" "));
    }
}
