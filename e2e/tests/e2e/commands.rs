//! What a person does about relays, by the commands for it: forget one that left, mend and give up dead letters, look at a replay before it is run, hold
//! the stream for a relay that is paused. Each says what it did, and the audit says the same.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::exporter::Exporter;
use e2e::http_sink::{Answer, HttpSink, KEY};
use e2e::process;
use e2e::store::Store;
use e2e::strata::Strata;
use e2e::{http1, wait};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::roles::asked;
use crate::scene;

const LIMIT: Duration = Duration::from_secs(120);
/// What the sink does not take, and what it is to be called.
const WRONG: &str = "go_goroutines";
const RIGHT: &str = "goroutines";
/// Sent again under that name.
const RULES: &str = "- {source_labels: [__name__], regex: go_(.*), target_label: __name__, replacement: $1}\n";

fn is_wrong(line: &[u8]) -> bool {
    line.windows(WRONG.len()).any(|window| window == WRONG.as_bytes())
}

/// Refuses what has the wrong name.
fn refuse(sink: &HttpSink) {
    sink.follow(|_, body| Answer::Status(if is_wrong(body) { 422 } else { 204 }));
}

/// A command that must end well, and its JSON.
pub async fn done(strata: &Strata, arguments: &[&str]) -> Result<Value> {
    let output = strata.command_as_written(&[arguments, &["--output", "json"]].concat()).await?;
    ensure!(output.code == 0, "{arguments:?}: {output:?}");
    Ok(serde_json::from_str(&output.stdout)?)
}

/// A command that must be refused in these words.
async fn refused(strata: &Strata, arguments: &[&str], words: &str) -> Result<()> {
    let output = strata.command_as_written(arguments).await?;
    ensure!(output.code == 1 && output.stderr.contains(words), "{arguments:?}: {output:?}");
    Ok(())
}

/// A number of an answer, 0 where there is none.
pub fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

/// Samples of a relay that the ledger says are lost for this reason.
async fn booked(strata: &Strata, relay: &str, reason: &str) -> Result<u64> {
    let entries = Store::open(strata).await?.letters("STRATA_LEDGER").await?;
    let of = entries.iter().filter(|entry| entry["relay"] == relay && entry["reason"] == reason);
    Ok(of.map(|entry| number(&entry["samples"])).sum())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_commands_say_of_relays_is_what_becomes_of_samples() -> Result<()> {
    let mut exporters = Vec::new();
    for page in scene::pages(&["scheduler", "controller-manager", "etcd"]).await? {
        exporters.push(Exporter::start(page.wild()).await?);
    }
    let (sink, mut gone) = (HttpSink::start().await?, HttpSink::start().await?);
    gone.close().await;
    let picky = format!(
        "  - {{name: picky, start: earliest, encode: ndjson, hold: {{on_full: block}}, sink: {{http: {{url: \"{}\"}}}}}}\n",
        sink.url()
    );
    let before = format!("{}buffer:\n  max_bytes: 4MiB\n  replay_window: 1s\nrelays:\n{picky}", scene::scrape("200ms", &exporters));
    let mut strata = Strata::start(&(before.clone() + &scene::http_relay("left", &gone, ""))).await?;
    scene::more_rounds(&exporters, 10, LIMIT).await?;

    forgets(&strata, &before).await?;
    mends_and_discards(&strata, &sink, &exporters).await?;
    holds_and_replays(&strata, &sink, &exporters).await?;

    scene::caught_up(&sink, &exporters, LIMIT).await?;
    let lost = strata.metric("strata_relay_lost_samples_total", &["relay=\"picky\""]).await?;
    let dropped = strata.metric("strata_dropped_samples_total", &[]).await?;
    let discarded = booked(&strata, "picky", "discarded").await?;
    let (statement, code) = scene::audit(&strata, "now").await?;
    let terms = scene::terms(&statement, "picky");
    ensure!(code == 0 && statement["balanced"] == true, "{statement}");
    ensure!((lost, dropped) == (0.0, 0.0), "{lost} lost, {dropped} dropped: with 'block' nothing is given up");
    ensure!(discarded > 0 && number(&terms["lost"]["discarded"]) == discarded, "{discarded} samples were discarded: {terms}");
    ensure!(terms["lost"].as_object().is_some_and(|lost| lost.len() == 1), "{terms}");
    scene::stop(&mut strata, &exporters).await
}

/// A relay that left the configuration is forgotten, with all that it had not delivered; one that did not is not.
async fn forgets(strata: &Strata, without: &str) -> Result<()> {
    refused(strata, &["relay", "forget", "left"], "relay 'left' is configured").await?;
    strata.configure(without)?;
    process::signal(strata.pid()?, Signal::SIGHUP);
    wait::until("the relay has left", LIMIT, async || {
        let relays = asked(strata, "/api/v1/relays").await.ok()?;
        (relays["relays"].as_array()?.len() == 1).then_some(())
    })
    .await?;
    let forgotten = done(strata, &["relay", "forget", "left"]).await?;
    let booked = booked(strata, "left", "forgotten").await?;
    ensure!(booked > 0 && number(&forgotten["lost_samples"]) == booked, "{booked} samples are booked: {forgotten}");
    refused(strata, &["relay", "forget", "left"], "there is no relay 'left'").await
}

/// Dead letters of one target are sent again under another name, those of another are given up, and those of the third stay.
async fn mends_and_discards(strata: &Strata, sink: &HttpSink, exporters: &[Exporter]) -> Result<()> {
    let [mended, given_up, kept] = exporters else { anyhow::bail!("three targets") };
    let of = |exporter: &Exporter| format!("{{instance=\"{}\"}}", exporter.target());
    let shown = async |exporter: &Exporter| -> Result<usize> {
        let shown = done(strata, &["dlq", "show", "picky", "--limit", "1000", "--match", &of(exporter)]).await?;
        Ok(shown["samples"].as_array().map_or(0, Vec::len))
    };
    // It has taken some before: a first batch would be held, not taken apart.
    scene::caught_up(sink, exporters, LIMIT).await?;
    refuse(sink);
    for exporter in exporters {
        wait::until("its samples were refused", LIMIT, async || (shown(exporter).await.ok()? >= 3).then_some(())).await?;
    }
    sink.recover();
    // Nothing is refused from now on, and nothing is sent: what there is stays as it is.
    scene::caught_up(sink, exporters, LIMIT).await?;
    let paused = strata.command(&["pause", "picky"]).await?;
    ensure!(paused.code == 0, "{paused:?}");
    let (there, stay) = ([shown(mended).await?, shown(given_up).await?], shown(kept).await?);
    refuse(sink);

    let rules = strata.folder().join("rules.yml");
    std::fs::write(&rules, RULES)?;
    let replayed = done(strata, &["dlq", "replay", "picky", "--match", &of(mended), "--relabel", &rules.display().to_string()]).await?;
    ensure!(number(&replayed["delivered"]) == there[0] as u64 && number(&replayed["rejected"]) == 0, "{there:?}: {replayed}");
    let renamed = {
        let ledger = sink.ledger();
        let records = ledger.records.all().iter().map(|record| ledger.records.series(record.series));
        records.filter(|series| series.name == RIGHT && series.labels["instance"] == mended.target()).count()
    };
    ensure!(renamed == there[0], "{renamed} samples came under another name, of {}", there[0]);
    let discarded = done(strata, &["dlq", "discard", "picky", "--match", &of(given_up)]).await?;
    ensure!(number(&discarded["lost"]) == there[1] as u64, "{there:?}: {discarded}");
    let left = (shown(mended).await?, shown(given_up).await?, shown(kept).await?);
    ensure!(left == (0, 0, stay), "{left:?} are left of {there:?} and {stay}");
    sink.recover();
    let resumed = strata.command(&["resume", "picky"]).await?;
    ensure!(resumed.code == 0, "{resumed:?}");
    Ok(())
}

/// A pause that would cost samples is refused. One that is forced fills the stream, which then takes nothing; what it holds is counted by a dry run and sent
/// by a replay, one metric of it; and all goes on after it.
async fn holds_and_replays(strata: &Strata, sink: &HttpSink, exporters: &[Exporter]) -> Result<()> {
    refused(
        strata,
        &["pause", "picky", "--until", "10h"],
        "samples would be lost: at the present rate there is room (buffer.max_bytes) for",
    )
    .await?;
    let paused = strata.command(&["pause", "picky", "--until", "10h", "--force"]).await?;
    ensure!(paused.code == 0 && paused.stdout.contains("is paused until"), "{paused:?}");
    wait::until("the stream is full, and takes nothing", LIMIT, async || {
        let answer = http1::get(strata.port(), "/readyz?verbose").await.ok()?;
        let waiting = strata.metric("strata_publish_queue_bytes", &[]).await.ok()?;
        (answer.status() == 503 && waiting > 0.0).then_some(())
    })
    .await?;
    let stream = asked(strata, "/api/v1/status").await?["stream"].clone();
    let range = ["first_seq", "last_seq"].map(|end| format!("seq:{}", number(&stream[end])));
    let replay = ["replay", "--relay", "picky", "--from", &range[0], "--to", &range[1], "--match", "up"];
    let requests = sink.ledger().requests;
    let counted = done(strata, &[&replay[..], &["--dry-run"]].concat()).await?;
    ensure!(sink.ledger().requests == requests, "a dry run sends nothing");
    let sent = done(strata, &replay).await?;
    let would = number(&counted["jobs"][scene::JOB]);
    ensure!(would > 0 && number(&sent["delivered_samples"]) == would, "{counted}, then {sent}");
    let ledger = sink.ledger().keys().filter(|key| key.starts_with("replay-")).count();
    ensure!(ledger > 0, "no request has a {KEY} of a replay");
    let resumed = strata.command(&["resume", "picky"]).await?;
    ensure!(resumed.code == 0, "{resumed:?}");
    scene::more_rounds(exporters, 2, LIMIT).await.context("after the pause")
}
