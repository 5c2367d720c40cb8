//! The console in a real browser: what it shows of a live Strata, and what a person can do on it.

use std::time::Duration;

use anyhow::Result;
use e2e::browser::Browser;
use e2e::http_sink::HttpSink;
use e2e::strata::Strata;
use e2e::{http1, process, wait};
use serde_json::{Value, json};

use crate::scene;

const LIMIT: Duration = Duration::from_secs(120);

async fn is_paused(strata: &Strata, wanted: bool) -> Result<()> {
    wait::until(&format!("paused: {wanted}"), LIMIT, async || {
        let answer = http1::get(strata.port(), "/api/v1/relays/archive").await.ok()?;
        let relay: Value = serde_json::from_slice(&answer.body).ok()?;
        (relay["pause"].is_object() == wanted).then_some(())
    })
    .await
}

/// Presses the button with this text, the first of them.
async fn press(browser: &mut Browser, text: &str) -> Result<()> {
    let button = format!(
        "[...document.querySelectorAll('button')].find((button) => button.checkVisibility() && button.textContent === {})",
        json!(text)
    );
    browser.until(&format!("!!{button}"), LIMIT).await?;
    browser.value(&format!("{button}.click()")).await.map(drop)
}

async fn give(browser: &mut Browser, token: &str) -> Result<()> {
    browser.until("document.getElementById('ask').open", LIMIT).await?;
    browser.value(&format!("document.getElementById('ask-token').value = {}", json!(token))).await?;
    press(browser, "Use it").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_browser_shows_relays_targets_and_samples_and_pauses_with_the_token() -> Result<()> {
    let exporters = scene::exporters(&["etcd"]).await?;
    let sink = HttpSink::start().await?;
    let (dead_sink, dead_target) = (process::free_port()?, process::free_port()?);
    // What comes from outside is text, whatever it says.
    let scrape = format!(
        "{}  - job_name: gone
    scrape_interval: 1s
    static_configs:
      - targets: [\"127.0.0.1:{dead_target}\"]
        labels: {{hostile: '<b id=\"hostile\">x</b>'}}
      - targets: [\"127.0.0.1:1\"]
        labels: {{unwanted: \"yes\"}}
    relabel_configs: [{{source_labels: [unwanted], regex: \"yes\", action: drop}}]
",
        scene::scrape("500ms", &exporters)
    );
    let archive = format!("  - {{name: archive, start: earliest, sink: {{http: {{url: \"http://127.0.0.1:{dead_sink}/in\"}}}}}}\n");
    let relays = format!("{}{archive}", scene::http_relay("warehouse", &sink, ""));
    let mut strata = Strata::start(&format!("{scrape}relays:\n{relays}")).await?;
    scene::more_rounds(&exporters, 4, LIMIT).await?;

    let mut browser = Browser::open(&format!("http://127.0.0.1:{}/", strata.port())).await?;
    for text in ["ready", "warehouse", "running", "archive", "retrying", "keeps all", "http · ndjson · all jobs"] {
        browser.shows(text, LIMIT).await?;
    }
    let (url, dead_url) = (format!("http://{}/metrics", exporters[0].target()), format!("http://127.0.0.1:{dead_target}/metrics"));
    let (hostile, error) = ("<b id=\"hostile\">x</b>", "connection refused · since");
    for text in [url.as_str(), &dead_url, "1 down", "1 target does not answer", "Left out", hostile, error] {
        browser.shows(text, LIMIT).await?;
    }
    assert_eq!(browser.value("location.pathname").await?, "/console");
    assert_eq!(browser.value("document.getElementById('hostile')").await?, Value::Null);
    browser.until("document.querySelector('.figures .plot path.area').getAttribute('d').length > 20", LIMIT).await?;

    browser
        .value("[document.getElementById('filter')].map((field) => (field.value = 'no such', field.dispatchEvent(new Event('input')), 1))")
        .await?;
    browser.shows("No target fits.", LIMIT).await?;

    // The tap, over its whole way.
    browser.value("document.querySelector('#tap [name=selector]').value = 'up'").await?;
    press(&mut browser, "Start").await?;
    browser.until("document.getElementById('lines').textContent.includes('up{')", LIMIT).await?;
    press(&mut browser, "Stop").await?;
    browser.shows("Stopped.", LIMIT).await?;

    // A wrong token changes nothing; the right one stays until it is forgotten.
    let token = std::fs::read_to_string(strata.data_dir().join("token"))?.trim().to_owned();
    let turn = async |browser: &mut Browser| browser.value("document.querySelector('[data-name=archive]').click()").await.map(drop);
    turn(&mut browser).await?;
    give(&mut browser, "wrong").await?;
    browser.shows("archive: this token is not the one.", LIMIT).await?;
    is_paused(&strata, false).await?;
    turn(&mut browser).await?;
    give(&mut browser, &token).await?;
    browser.shows("archive: it holds its place", LIMIT).await?;
    browser.shows("until somebody resumes it", LIMIT).await?;
    is_paused(&strata, true).await?;
    turn(&mut browser).await?;
    browser.shows("archive: it goes on with", LIMIT).await?;
    is_paused(&strata, false).await?;
    assert!(!browser.value("document.documentElement.outerHTML").await?.to_string().contains(&token));
    press(&mut browser, "Forget token").await?;
    assert_eq!(browser.value("sessionStorage.length").await?, 0);

    scene::stop(&mut strata, &exporters).await?;
    browser.shows("Strata does not answer; these are the last numbers.", LIMIT).await?;
    assert_eq!(browser.complaints(), [] as [String; 0]);
    Ok(())
}
