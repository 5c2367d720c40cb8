//! What watches Strata: the alerts are those of the book, and dashboards ask for what there is.

use super::*;

/// promtool's word on a file of rules.
fn check_rules(text: &str) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("rules.yml");
    fs::write(&file, text)?;
    let promtool = tool("debian.sh", &["prometheus"])?.join("usr/bin/promtool");
    let output = Command::new(promtool).args(["check", "rules"]).arg(&file).output()?;
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    ensure!(output.status.success() && said.contains("SUCCESS"), "promtool: {said}");
    Ok(())
}

#[test]
fn the_rules_are_those_of_the_book_and_sound() -> Result<()> {
    ensure!(read("charts/strata/files/alerts.yml")? == read("docs/alerts.yml")?, "copy docs/alerts.yml to charts/strata/files/");
    let objects =
        parse(&render(&["--set", "metrics.prometheusRule.enabled=true,metrics.prometheusRule.runbookUrl=https://x.example.com/book"])?)?;
    let rules = of_kind(&objects, "PrometheusRule");
    let spec = at(rules.first().context("no PrometheusRule")?, "spec");
    check_rules(&serde_yaml::to_string(spec)?)?;
    let (mut alerts, book): (usize, Value) = (0, serde_yaml::from_str(&read("docs/alerts.yml")?)?);
    for (rendered, written) in list(spec, "groups").iter().zip(list(&book, "groups")) {
        for (rendered, written) in list(rendered, "rules").iter().zip(list(written, "rules")) {
            ensure!(at(rendered, "expr") == at(written, "expr"), "{rendered:?}");
            let url = word(rendered, "annotations.runbook_url");
            ensure!(url.starts_with("https://x.example.com/book#strata"), "{url}");
            alerts += 1;
        }
    }
    ensure!(alerts > 15, "{alerts}");
    Ok(())
}

/// Titles and expressions of a dashboard.
fn expressions(dashboard: &serde_json::Value) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for panel in dashboard["panels"].as_array().into_iter().flatten() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
            found.push((text(&panel["title"]), text(&target["expr"])));
        }
    }
    found
}

#[test]
fn dashboards_ask_for_metrics_that_there_are() -> Result<()> {
    let page = read("docs/metrics.md")?;
    let mut asked = BTreeSet::new();
    let mut rules = "groups:\n  - name: panels\n    rules:\n".to_owned();
    for entry in fs::read_dir(repository("charts/strata/dashboards"))? {
        let dashboard: serde_json::Value = serde_json::from_str(&fs::read_to_string(entry?.path())?)?;
        let ids: BTreeSet<_> = dashboard["panels"].as_array().into_iter().flatten().map(|panel| panel["id"].as_u64()).collect();
        ensure!(Some(ids.len()) == dashboard["panels"].as_array().map(Vec::len), "two panels share a number");
        for (title, expression) in expressions(&dashboard) {
            for metric in expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_') {
                if metric.starts_with("strata_") || metric.starts_with("process_") {
                    ensure!(page.contains(&format!("| `{metric}` |")), "{title}: there is no metric {metric}");
                    asked.insert(metric.to_owned());
                }
            }
            let plain = expression.replace("$__rate_interval", "5m").replace("$__range", "1h");
            rules += &format!("      - {{record: panel, expr: {plain:?}, labels: {{n: \"{}\"}}}}\n", rules.len());
        }
    }
    ensure!(asked.len() > 30, "{asked:?}");
    check_rules(&rules)
}
