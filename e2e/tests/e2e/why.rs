//! `strata why`: the chain of a target and of a series, with what is wrong in it.

use std::time::Duration;

use anyhow::{Context as _, Result};
use e2e::http_sink::{Answer, HttpSink};
use e2e::process;
use e2e::strata::Strata;
use e2e::wait;
use serde_json::Value;

use crate::scene;

const LIMIT: Duration = Duration::from_secs(120);

/// Asks, and gives the exit code and the steps as `verdict stage: text`, each with its fix.
pub async fn why(strata: &Strata, subject: &str) -> Result<(i32, Vec<String>)> {
    why_in(strata, &[subject]).await
}

/// The same with more arguments, such as a namespace.
pub async fn why_in(strata: &Strata, arguments: &[&str]) -> Result<(i32, Vec<String>)> {
    let output = strata.command(&[&["why", "--output", "json"], arguments].concat()).await?;
    let answer: Value = serde_json::from_str(&output.stdout).with_context(|| format!("{output:?}"))?;
    let text = |step: &Value, key: &str| step[key].as_str().unwrap_or_default().to_owned();
    let step = |step: &Value| format!("{} {}: {} {}", text(step, "verdict"), text(step, "stage"), text(step, "text"), text(step, "fix"));
    Ok((output.code, answer["steps"].as_array().context("steps")?.iter().map(step).collect()))
}

/// Waits until nothing is wrong any more: what was scraped just now is in the stream and acknowledged a while later.
pub async fn why_is_well(strata: &Strata, arguments: &[&str], limit: Duration) -> Result<Vec<String>> {
    let mut last = Vec::new();
    let well = wait::until("nothing is wrong", limit, async || {
        let (code, steps) = why_in(strata, arguments).await.ok()?;
        last.clone_from(&steps);
        (code == 0).then_some(steps)
    });
    well.await.with_context(|| format!("{last:#?}"))
}

fn relay(name: &str, sink: &HttpSink, options: &str) -> String {
    format!("  - {{name: {name}, start: earliest, {options}encode: ndjson, sink: {{http: {{url: \"{}\"}}}}}}\n", sink.url())
}

/// Whether one of the steps begins like this and goes on with a text.
pub fn has(steps: &[String], begin: &str, text: &str) -> bool {
    steps.iter().any(|step| step.starts_with(begin) && step.contains(text))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn why_names_the_step_at_which_samples_end() -> Result<()> {
    let exporters = scene::exporters(&["etcd"]).await?;
    let (sink, refusing) = (HttpSink::start().await?, HttpSink::start().await?);
    refusing.follow(|_, _| Answer::Status(503));
    let gone = process::free_port()?;
    let configuration = format!(
        "{}  - job_name: gone\n    scrape_interval: 500ms\n    scrape_timeout: 500ms\n    static_configs: [{{targets: ['127.0.0.1:{gone}']}}]\nrelays:\n{}{}{}",
        scene::scrape("500ms", &exporters),
        relay("whole", &sink, "filters: [{drop: '{__name__=~\"go_.*\"}'}], "),
        relay("refused", &refusing, ""),
        relay("other", &sink, "from: [gone], "),
    );
    let strata = Strata::start(&configuration).await?;
    scene::more_rounds(&exporters, 4, LIMIT).await?;
    let target = exporters[0].target();
    scene::troubled(&strata, "refused", "retrying", "503", LIMIT).await?;
    let (code, steps) = wait::until("the first samples are acknowledged", LIMIT, async || {
        let (code, steps) = why(&strata, &target).await.ok()?;
        (has(&steps, "good stream", "series of") && has(&steps, "good relay", "relay 'whole'")).then_some((code, steps))
    })
    .await?;
    assert!(code == 1 && has(&steps, "good stream", "series of"), "{steps:#?}");
    assert!(has(&steps, "good scrape", "samples at") && has(&steps, "good relay", "relay 'whole'"), "{steps:#?}");
    assert!(has(&steps, "bad relay", "relay 'refused'") && has(&steps, "note relay", "relay 'other' does not take job"), "{steps:#?}");

    let (code, steps) = why(&strata, "go_goroutines").await?;
    assert!(code == 1 && has(&steps, "good stream", "1 series of 1 targets"), "{steps:#?}");
    assert!(has(&steps, "note relay", "relay 'whole' takes none of it: its filters are drop"), "{steps:#?}");

    let (code, steps) = why(&strata, "no_such_series").await?;
    assert!(code == 1 && has(&steps, "bad stream", "no sample of the last 5 minutes"), "{steps:#?}");
    let (code, steps) = why(&strata, &format!("127.0.0.1:{gone}")).await?;
    assert!(code == 1 && has(&steps, "bad scrape", "cannot scrape"), "{steps:#?}");
    let (code, steps) = why(&strata, "127.0.0.1:1").await?;
    assert!(code == 1 && has(&steps, "bad target", "no job has it"), "{steps:#?}");
    Ok(())
}
