//! What `kubectl get` shows of Strata's objects: every column has the value of its field, every field of the status is there, and its numbers are those that
//! sinks have counted.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::control_plane::{self, ControlPlane};
use e2e::exporter::Exporter;
use e2e::http_sink::{Answer, HttpSink};
use e2e::page::Page;
use e2e::record::{Record, STALE};
use e2e::strata::Strata;
use e2e::wait;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use crate::kubernetes_discovery::{annotated, ip};
use crate::kubernetes_resources::{configuration, object, prepared, relay, until};
use crate::roles::asked;

const LIMIT: Duration = Duration::from_secs(120);
const PODS: usize = 2;
/// One series is filtered, one the sink refuses.
const PAGE: &str = "up_since 1\nnoise 1\npoison 1\n";
const OBJECTS: &str = "
apiVersion: strata.ctx.sh/v1beta1
kind: Collector
metadata: {name: out, namespace: team}
spec: {filters: {exclude: {values: [1]}}}
---
apiVersion: strata.ctx.sh/v1beta1
kind: Discovery
metadata: {name: web, namespace: team}
spec: {collector: [{name: out}, {name: absent}], intervalSeconds: 1}
";
/// The kinds, with the object of each.
const KINDS: [(&str, &str); 3] = [("discoveries", "web"), ("collectors", "out"), ("relays", "all")];

/// A column of a definition.
struct Column {
    name: String,
    path: String,
    is_time: bool,
    is_wide: bool,
}

/// The columns of a kind, and the fields of its status.
async fn definition(plane: &ControlPlane, plural: &str) -> Result<(Vec<Column>, BTreeSet<String>)> {
    let shown = plane.kubectl(&["get", "crd", &format!("{plural}.strata.ctx.sh"), "-o", "json"], "").await?;
    let definition: Value = serde_json::from_str(&shown.stdout)?;
    let version = &definition["spec"]["versions"][0];
    let column = |column: &Value| {
        Some(Column {
            name: column["name"].as_str()?.to_uppercase(),
            path: column["jsonPath"].as_str()?.to_owned(),
            is_time: column["type"] == "date",
            is_wide: column["priority"].as_i64().unwrap_or(0) > 0,
        })
    };
    let columns = version["additionalPrinterColumns"].as_array().context("columns")?.iter().map(column).collect::<Option<_>>();
    let status = version["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"].as_object().context("a status")?;
    Ok((columns.context("names and paths")?, status.keys().cloned().collect()))
}

/// The cells of a line: columns have two spaces between them at least.
fn cells(line: &str) -> Vec<String> {
    line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).map(str::to_owned).collect()
}

/// What a table shows of an object, against its fields; none: it changed meanwhile.
async fn compare(plane: &ControlPlane, (plural, name): (&str, &str), columns: &[&Column], more: &[&str]) -> Result<Option<String>> {
    let get = ["-n", "team", "get", plural, name];
    let paths: String = columns.iter().map(|column| format!("{{{}}}|", column.path)).collect();
    let fields = format!("-o=jsonpath={{.metadata.resourceVersion}}|{paths}");
    let fields = [&get[..], &[&fields]].concat();
    let before = plane.kubectl(&fields, "").await?.stdout;
    let table = plane.kubectl(&[&get[..], more].concat(), "").await?.stdout;
    if before != plane.kubectl(&fields, "").await?.stdout {
        return Ok(None);
    }
    let mut lines = table.lines().map(cells);
    let (names, shown) = (lines.next().context("a header")?, lines.next().context("a line")?);
    let expect: Vec<&str> = ["NAME"].into_iter().chain(columns.iter().map(|column| column.name.as_str())).collect();
    ensure!(names == expect && shown.len() == expect.len(), "{plural}: {expect:?}\n{table}");
    let values: Vec<&str> = before.split('|').skip(1).collect();
    for ((column, value), cell) in columns.iter().zip(values).zip(&shown[1..]) {
        let is_age = || cell.ends_with(['s', 'm', 'h']) && cell.starts_with(|first: char| first.is_ascii_digit());
        let is_so = if column.is_time { !value.is_empty() && is_age() } else { value == cell };
        ensure!(is_so, "{plural}: the column {} has '{cell}', its field '{value}'\n{table}", column.name);
    }
    Ok(Some(table))
}

/// Every column of every kind, wide and not, and every field of each status.
async fn columns(plane: &ControlPlane) -> Result<()> {
    for kind in KINDS {
        let (all, fields) = definition(plane, kind.0).await?;
        let usual: Vec<&Column> = all.iter().filter(|column| !column.is_wide).collect();
        for (columns, more) in [(usual, &[][..]), (all.iter().collect(), &["-o", "wide"][..])] {
            let mut failed = None;
            let table = wait::until("a table of an object that does not change meanwhile", LIMIT, async || {
                compare(plane, kind, &columns, more).await.unwrap_or_else(|error| {
                    failed = Some(error);
                    Some(String::new())
                })
            })
            .await?;
            failed.map_or(Ok(()), Err)?;
            println!("{table}");
        }
        let status = object(plane, kind.0, &format!("team/{}", kind.1)).await?["status"].clone();
        let there: BTreeSet<String> = status.as_object().context("a status")?.keys().cloned().collect();
        ensure!(there == fields, "{}: {status}", kind.0);
    }
    Ok(())
}

/// Lines of the Collector that writes to the standard output.
fn written(strata: &Strata) -> usize {
    strata.log_tail(usize::MAX).lines().filter(|line| line.starts_with("{\"name\"")).count()
}

/// Waits until the numbers of a status are these.
pub async fn counted(plane: &ControlPlane, kind: &str, key: &str, expect: impl Fn() -> Value) -> Result<()> {
    let mut seen = String::new();
    let is_so = wait::until("the status has the numbers of the sink", LIMIT, async || {
        let status = object(plane, kind, key).await.ok()?["status"].clone();
        let expect = expect();
        seen = format!("{status}\n{expect}");
        expect.as_object()?.iter().all(|(field, value)| status[field] == *value).then_some(())
    });
    is_so.await.with_context(|| seen)
}

#[test]
fn every_column_and_status_field_has_the_number_that_the_sinks_counted() -> Result<()> {
    control_plane::test(async |plane| {
        prepared(plane).await?;
        let mut exporters = Vec::new();
        for pod in 0..PODS {
            exporters.push(Exporter::start_at(Page::new("page", PAGE, 1)?, SocketAddr::new(ip(pod + 1), 9100)).await?);
            plane.put::<Pod>(&annotated(&format!("team/web-{pod}"), ip(pod + 1))).await?;
        }
        plane.apply(OBJECTS).await?;
        let sink = HttpSink::start().await?;
        sink.follow(|_, body| {
            let is_poison = String::from_utf8_lossy(body).contains("\"poison\"");
            Answer::Status(if is_poison { 400 } else { 200 })
        });
        let spec = json!({
            "sink": { "http": { "url": sink.url() } }, "encode": "ndjson", "start": "earliest", "filters": [{ "drop": "noise" }],
        });
        plane.apply(&relay("team", "all", &spec)).await?;
        let mut strata = Strata::start(&configuration(plane, "")).await?;
        until(plane, "rx", "team/all", ("Ready", "True", "Running")).await?;
        until(plane, "cx", "team/out", ("Ready", "True", "Running")).await?;
        counted(plane, "dx", "team/web", || json!({ "discoveredResourcesCount": PODS, "readyCollectors": 1, "totalCollectors": 2 }))
            .await?;
        wait::until("samples are delivered, filtered and refused", LIMIT, async || {
            let status = object(plane, "rx", "team/all").await.ok()?["status"].clone();
            ["delivered", "filtered", "rejected"].iter().all(|field| status[*field].as_i64() > Some(0)).then_some(())
        })
        .await?;
        columns(plane).await?;

        for pod in 0..PODS {
            plane.delete::<Pod>(&format!("team/web-{pod}")).await?;
        }
        counted(plane, "dx", "team/web", || json!({ "discoveredResourcesCount": 0, "inFlightResources": 0 })).await?;
        // What is counted from here on is all there will be.
        wait::until_true("the sink was told that the series of each pod end", LIMIT, || {
            let ledger = sink.ledger();
            let is_end = |record: &&Record| record.bits == STALE && ledger.records.series(record.series).name == "up_since";
            ledger.records.all().iter().filter(is_end).count() >= PODS
        })
        .await?;
        let rounds: u64 = exporters.iter().map(Exporter::next_round).sum();
        counted(plane, "rx", "team/all", || {
            let delivered = sink.ledger().records.all().len();
            json!({ "relay": "team_all", "delivered": delivered, "lost": 0, "pending": 0 })
        })
        .await?;
        counted(plane, "cx", "team/out", || json!({ "totalSent": written(&strata), "inFlightResources": 0, "registeredDiscoveries": 1 }))
            .await?;
        let status = object(plane, "rx", "team/all").await?["status"].clone();
        let number = |field: &str| status[field].as_u64().unwrap_or_default();
        // Of a target that is gone the end of each series is told, too.
        let each = rounds..=rounds + PODS as u64;
        ensure!(each.contains(&number("filtered")) && each.contains(&number("rejected")), "{rounds} rounds: {status}");
        ensure!(number("read") == number("delivered") + number("filtered") + number("rejected"), "{status}");
        let totals = asked(&strata, "/api/v1/relays/team_all").await?["totals"].clone();
        for field in ["read", "delivered", "filtered", "rejected", "lost"] {
            ensure!(status[field] == totals[field], "{field}: {status} {totals}");
        }
        let status = object(plane, "cx", "team/out").await?["status"].clone();
        let number = |field: &str| status[field].as_u64().unwrap_or_default();
        ensure!(number("metricsCollected") == number("totalSent") + number("totalFiltered") + number("totalErrors"), "{status}");
        ensure!(number("totalFiltered") > 0 && number("totalErrors") == 0, "{status}");
        strata.stop().await
    })
}
