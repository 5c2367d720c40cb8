//! A hundred reloads under load: what is untouched misses no slot and no sample, what is changed loses none and gets none twice, and the
//! process does not grow.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use e2e::exporter::Exporter;
use e2e::http_sink::HttpSink;
use e2e::strata::Strata;
use e2e::{compare, http1, process, wait};
use nix::sys::signal::Signal;

use crate::scene;

const RELOADS: u32 = 100;
/// After so many everything that grows once has grown.
const WARM: u32 = 20;
const INTERVAL_MS: i64 = 500;
const WITHIN: Duration = Duration::from_secs(120);
/// What the allocator may keep beyond the resident memory after [`WARM`] reloads.
const MEMORY_SLACK: u64 = 48 << 20;
/// Connections that may just be open or closing.
const DESCRIPTOR_SLACK: usize = 24;

/// What the configuration says; each reload changes one thing.
struct Wanted {
    same: Vec<Exporter>,
    edited: Exporter,
    extra: Exporter,
    sinks: [HttpSink; 3],
    interval_ms: i64,
    has_extra: bool,
    filter: u32,
}

/// How a reload is asked for.
#[derive(Debug, Clone, Copy)]
enum By {
    Signal,
    Request,
    File,
}

impl Wanted {
    fn text(&self) -> String {
        let job = |name: &str, interval_ms: i64, exporters: &[&Exporter]| {
            let targets: Vec<String> = exporters.iter().map(|exporter| format!("\"{}\"", exporter.target())).collect();
            format!(
                "  - job_name: {name}\n    scrape_interval: {interval_ms}ms\n    scrape_timeout: {interval_ms}ms\n    \
                 static_configs: [{{targets: [{}]}}]\n",
                targets.join(", ")
            )
        };
        let mut text = "scrape_configs:\n".to_owned();
        text += &job(scene::JOB, INTERVAL_MS, &self.same.iter().collect::<Vec<_>>());
        text += &job("edited", self.interval_ms, &[&self.edited]);
        if self.has_extra {
            text += &job("extra", INTERVAL_MS, &[&self.extra]);
        }
        let [still, whole, changed] = &self.sinks;
        text += "relays:\n";
        text += &format!("  - {{name: still, from: [{}], start: earliest, encode: ndjson, ", scene::JOB);
        text += &format!("sink: {{http: {{url: \"{}\"}}}}}}\n", still.url());
        text += &scene::http_relay("whole", whole, "");
        text += &format!("  - {{name: changed, from: [{}], start: earliest, encode: ndjson, ", scene::JOB);
        text += &format!("filters: [{{drop: 'never_{}'}}], sink: {{http: {{url: \"{}\"}}}}}}\n", self.filter, changed.url());
        text
    }

    fn all(&self) -> impl Iterator<Item = &Exporter> {
        self.same.iter().chain([&self.edited, &self.extra])
    }
}

/// Asks for a reload of what the file says now, and waits for its outcome.
async fn reload(strata: &Strata, by: By, text: &str, is_good: bool) -> Result<()> {
    let outcome = if is_good { "outcome=\"applied\"" } else { "outcome=\"refused\"" };
    let before = strata.metric("strata_config_reloads_total", &[outcome]).await?;
    strata.configure(text)?;
    match by {
        By::Signal => process::signal(strata.pid()?, Signal::SIGHUP),
        By::File => {}
        By::Request => {
            let token = std::fs::read_to_string(strata.data_dir().join("token"))?;
            let answer = http1::post(strata.port(), "/-/reload", token.trim()).await?;
            let said = String::from_utf8_lossy(&answer.body);
            let is_as_expected = match is_good {
                true => answer.status() == 200 && said.starts_with("reloaded: "),
                false => answer.status() == 400 && said.lines().all(|line| line.contains("strata.yaml:")),
            };
            if !is_as_expected {
                bail!("POST /-/reload answered {}: {said}", answer.status());
            }
        }
    }
    wait::until(&format!("the outcome of a reload by {by:?}"), WITHIN, async || {
        let now = strata.metric("strata_config_reloads_total", &[outcome]).await.ok()?;
        (now > before).then_some(())
    })
    .await?;
    let successful = strata.metric("strata_config_last_reload_successful", &[]).await?;
    if (successful == 1.0) != is_good {
        bail!("strata_config_last_reload_successful is {successful}");
    }
    Ok(())
}

/// Resident memory and descriptors, read when the extra job is gone.
fn size(strata: &Strata) -> Result<(u64, usize)> {
    let pid = strata.pid()?;
    Ok((process::memory(pid).context("no memory")?, process::descriptors(pid).context("no descriptors")?))
}

/// Slots that each target of a job missed, as its own status tells: it would start anew with the target.
pub async fn missed(strata: &Strata, job: &str) -> Result<BTreeMap<String, i64>> {
    let page: serde_json::Value = serde_json::from_slice(&http1::get(strata.port(), "/api/v1/targets").await?.body)?;
    let targets = page["targets"].as_array().context("targets")?.iter().filter(|target| target["job"] == job);
    let missed = |target: &serde_json::Value| {
        let instance = target["labels"]["instance"].as_str()?.to_owned();
        Some((instance, target["missed"].as_i64()?))
    };
    Ok(targets.filter_map(missed).collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_reloads_under_load_touch_only_what_changed() -> Result<()> {
    let mut exporters = scene::exporters(&["etcd", "scheduler", "controller-manager", "node_exporter"]).await?.into_iter();
    let (edited, extra) = (exporters.next().context("a page")?, exporters.next().context("a second page")?);
    let sinks = [HttpSink::start().await?, HttpSink::start().await?, HttpSink::start().await?];
    let same: Vec<Exporter> = exporters.take(2).collect();
    let mut wanted = Wanted { same, edited, extra, sinks, interval_ms: INTERVAL_MS, has_extra: false, filter: 0 };
    let mut strata = Strata::start(&wanted.text()).await?;
    scene::more_rounds(&wanted.same, 2, WITHIN).await?;

    assert_eq!(http1::post(strata.port(), "/-/reload", "not the token").await?.status(), 401);
    let (mut intervals, mut filters, mut added, mut refused, mut warm) = (0, 0, 0, 0, None);
    for n in 0..RELOADS {
        let by = [By::Signal, By::Request, By::Signal, By::Request, By::File, By::Request, By::Signal][n as usize % 7];
        let text = match n % 5 {
            0 => {
                wanted.has_extra = !wanted.has_extra;
                added += u32::from(wanted.has_extra);
                wanted.text()
            }
            1 => {
                wanted.interval_ms = if wanted.interval_ms == INTERVAL_MS { INTERVAL_MS * 2 } else { INTERVAL_MS };
                intervals += 1;
                wanted.text()
            }
            2 => {
                (wanted.filter, filters) = (n, filters + 1);
                wanted.text()
            }
            3 => wanted.text(),
            _ => {
                refused += 1;
                let bad = if n % 2 == 0 { "buffer:\n  nats_memory: 64MiB\n" } else { "relays_: []\n" };
                // What it changes beside must not be applied either.
                let changed =
                    wanted.text().replace("never_", "also_never_").replace(&format!("job_name: {}", scene::JOB), "job_name: other");
                format!("{bad}{changed}")
            }
        };
        reload(&strata, by, &text, n % 5 != 4).await.with_context(|| format!("reload {n} by {by:?}"))?;
        if n == WARM {
            warm = Some(size(&strata)?);
        }
    }
    scene::more_rounds(&wanted.same, 4, WITHIN).await?;
    let (warm, last) = (warm.context("it came by")?, size(&strata)?);
    println!(
        "after {WARM} reloads {warm:?}, after {RELOADS} {last:?} (bytes, descriptors); {intervals} intervals, {filters} filters, {added} jobs added"
    );
    assert!(last.0 <= warm.0 + warm.0 / 4 + MEMORY_SLACK, "memory grows: {warm:?}, then {last:?}");
    assert!(last.1 <= warm.1 + DESCRIPTOR_SLACK, "descriptors are left open: {warm:?}, then {last:?}");

    // Only what changed was started again.
    let starts = async |relay: &str| strata.metric("strata_relay_starts_total", &[&format!("relay=\"{relay}\"")]).await;
    assert_eq!((starts("still").await?, starts("whole").await?), (1.0, 1.0));
    assert_eq!(starts("changed").await?, f64::from(1 + filters));
    let targets = strata.metric("strata_target_starts_total", &[]).await?;
    assert_eq!(targets, (wanted.same.len() + 1) as f64 + f64::from(intervals + added));
    assert_eq!(strata.metric("strata_config_changes_total", &["component=\"relay\""]).await?, f64::from(filters));
    assert!(strata.metric("strata_config_reloads_total", &["outcome=\"refused\""]).await? >= f64::from(refused));
    let seen = String::from_utf8(http1::get(strata.port(), "/readyz?verbose").await?.body)?;
    assert!(seen.contains("configuration: ok: a new one was refused ") && seen.contains("strata.yaml:"), "{seen}");

    let missed = missed(&strata, scene::JOB).await?;
    let [still, whole, changed] = &wanted.sinks;
    for sink in [still, whole, changed] {
        scene::caught_up(sink, &wanted.same, WITHIN).await?;
    }
    strata.stop().await?;
    wanted.all().for_each(Exporter::note_break);
    for sink in [still, whole, changed] {
        scene::assert_orderly(sink);
        let ledger = sink.ledger();
        assert_eq!(ledger.repeats, 0);
        for balance in compare::all(&ledger.records, &wanted.same, scene::JOB, scene::GRACE)? {
            assert!(balance.stale <= balance.samples, "{balance:?}");
        }
    }
    // What the changed relay sent is what the untouched one sent, to the sample.
    let (still, whole, changed) = (still.ledger(), whole.ledger(), changed.ledger());
    assert_eq!(still.records.all().len(), changed.records.all().len());
    compare::within(&still.records, &changed.records)?;
    compare::within(&still.records, &whole.records)?;
    for exporter in &wanted.same {
        let slots: Vec<i64> = compare::slots(&still.records, exporter, scene::JOB)?.into_keys().collect();
        let (first, last) = (slots.first().context("slots")?, slots.last().context("slots")?);
        assert!(slots.iter().all(|slot| (slot - first) % INTERVAL_MS == 0), "the schedule is the same");
        let absent = (last - first) / INTERVAL_MS + 1 - slots.len() as i64;
        let told = missed.get(&exporter.target()).copied().context("its status")?;
        println!("{}: {} slots, {absent} absent, {told} missed as it says", exporter.target(), slots.len());
        assert!(absent <= told, "{}: {absent} slots are absent, {told} were missed for a reason", exporter.target());
    }
    // Every page of the job whose interval changed arrived, and of the one that came and went.
    compare::all(&whole.records, std::slice::from_ref(&wanted.edited), "edited", scene::GRACE)?;
    let arrived: std::collections::HashSet<u64> = compare::rounds(&whole.records, &wanted.extra, "extra").collect();
    let lost: Vec<u64> = wanted.extra.served().iter().map(|served| served.round).filter(|round| !arrived.contains(round)).collect();
    assert!(lost.is_empty() && !arrived.is_empty(), "rounds {lost:?} of the job that came and went never arrived");
    Ok(())
}
