//! The options of the HTTP client and sink against real servers: OAuth 2.0, a forward proxy, templates of URL and header.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result};
use e2e::compare;
use e2e::http_sink::{Answer, HttpSink};
use e2e::http1::{self, Connection};
use e2e::strata::Strata;
use e2e::wait;
use serde_json::Value;
use tokio::net::TcpListener;

use crate::scene;

const LIMIT: Duration = Duration::from_secs(120);
/// Requests that a token is good for.
const USES: u64 = 3;

/// A token server that numbers its tokens and knows clients by basic authentication only; it can be told to fail.
struct Issuer {
    url: String,
    issued: Arc<AtomicU64>,
    fails: Arc<AtomicBool>,
}

impl Issuer {
    async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}/token", listener.local_addr()?);
        let (issued, fails) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let (count, broken) = (issued.clone(), fails.clone());
        tokio::spawn(async move {
            // A client that was refused so asks once more, with its secret in the form.
            let mut refused = false;
            while let Ok((stream, _)) = listener.accept().await {
                let mut connection = Connection::new(stream);
                while let Ok(Some(request)) = http1::read(&mut connection).await {
                    let basic = request.header("authorization").is_some();
                    let form = String::from_utf8_lossy(&request.body);
                    if basic {
                        assert_eq!(request.header("authorization"), Some("Basic c3RyYXRhOmh1c2gtaHVzaA=="));
                        assert_eq!(form, "grant_type=client_credentials&scope=write");
                    } else {
                        assert_eq!(form, "grant_type=client_credentials&scope=write&client_id=strata&client_secret=hush-hush");
                        assert!(refused, "the form comes only after a refusal");
                    }
                    let fails = !basic || broken.load(Ordering::SeqCst);
                    refused = basic && fails;
                    let answer = if fails {
                        http1::respond(&mut connection, 400, &[], br#"{"error": "invalid_client"}"#).await
                    } else {
                        let n = count.fetch_add(1, Ordering::SeqCst) + 1;
                        let body = format!(r#"{{"access_token": "t{n}", "token_type": "Bearer", "expires_in": 3600}}"#);
                        http1::respond(&mut connection, 200, &[], body.as_bytes()).await
                    };
                    if answer.is_err() {
                        break;
                    }
                }
            }
        });
        Ok(Self { url, issued, fails })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_expires_is_replaced_and_nothing_is_lost() -> Result<()> {
    let exporters = scene::exporters(&["node_exporter"]).await?;
    let (sink, issuer) = (HttpSink::start().await?, Issuer::start().await?);
    let (issued, refused, used) = (issuer.issued.clone(), Arc::<AtomicU64>::default(), Arc::<Mutex<BTreeMap<String, u64>>>::default());
    let count = refused.clone();
    sink.follow(move |request, _| {
        // Only the newest token is good, and not for long.
        let newest = format!("Bearer t{}", issued.load(Ordering::SeqCst));
        let token = request.header("authorization").unwrap_or_default().to_owned();
        let mut used = used.lock().expect("no holder panics");
        let uses = used.entry(token.clone()).or_default();
        *uses += 1;
        if token != newest || *uses > USES {
            count.fetch_add(1, Ordering::SeqCst);
            return Answer::Status(401);
        }
        Answer::Status(204)
    });
    let oauth2 = format!(", oauth2: {{client_id: strata, client_secret: hush-hush, token_url: \"{}\", scopes: [write]}}", issuer.url);
    let relays = scene::http_relay("oauth", &sink, &oauth2);
    let mut strata = Strata::start(&format!("{}relays:\n{relays}", scene::scrape("250ms", &exporters))).await?;
    wait::until_true("several tokens were used up", LIMIT, || issuer.issued.load(Ordering::SeqCst) >= 4).await?;
    scene::caught_up(&sink, &exporters, LIMIT).await?;

    issuer.fails.store(true, Ordering::SeqCst);
    let reason = format!("cannot get a token from '{}': 400 Bad Request: invalid_client", issuer.url);
    scene::held(&strata, "oauth", &reason, LIMIT).await?;
    issuer.fails.store(false, Ordering::SeqCst);
    scene::caught_up(&sink, &exporters, LIMIT).await?;
    scene::stop(&mut strata, &exporters).await?;
    scene::assert_orderly(&sink);
    compare::all(&sink.ledger().records, &exporters, scene::JOB, scene::GRACE)?;
    assert!(refused.load(Ordering::SeqCst) >= 3, "tokens did expire");
    assert!(!strata.log_tail(usize::MAX).contains("hush-hush"));
    Ok(())
}

/// A forward proxy for plain HTTP; it counts what went through.
async fn proxy() -> Result<(String, Arc<AtomicU64>)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://u:p@{}", listener.local_addr()?);
    let count = Arc::<AtomicU64>::default();
    let through = count.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let through = through.clone();
            tokio::spawn(async move {
                let mut connection = Connection::new(stream);
                while let Ok(Some(request)) = http1::read(&mut connection).await {
                    assert_eq!(request.header("proxy-authorization"), Some("Basic dTpw"));
                    let rest = request.path().strip_prefix("http://127.0.0.1:").expect("a whole URL");
                    let (port, path) = rest.split_once('/').expect("a path");
                    through.fetch_add(1, Ordering::SeqCst);
                    let Ok(page) = http1::get(port.parse().expect("a port"), &format!("/{path}")).await else { return };
                    let kind = page.header("content-type").unwrap_or_default().to_owned();
                    if http1::respond(&mut connection, page.status(), &[("content-type", kind)], &page.body).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    Ok((url, count))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scrape_goes_through_a_forward_proxy() -> Result<()> {
    let exporters = scene::exporters(&["node_exporter"]).await?;
    let (sink, (url, through)) = (HttpSink::start().await?, proxy().await?);
    let scrape =
        scene::scrape("250ms", &exporters).replace("    static_configs:", &format!("    proxy_url: \"{url}\"\n    static_configs:"));
    let mut strata = Strata::start(&format!("{scrape}relays:\n{}", scene::http_relay("all", &sink, ""))).await?;
    scene::more_rounds(&exporters, 10, LIMIT).await?;
    scene::caught_up(&sink, &exporters, LIMIT).await?;
    scene::stop(&mut strata, &exporters).await?;
    scene::assert_orderly(&sink);
    compare::all(&sink.ledger().records, &exporters, scene::JOB, scene::GRACE)?;
    let served: usize = exporters.iter().map(|exporter| exporter.served().len()).sum();
    assert!(served >= 10 && through.load(Ordering::SeqCst) >= served as u64, "{served} pages, {through:?} through the proxy");
    Ok(())
}

/// The label `mode` of an NDJSON line, as the template has it.
fn mode(line: &[u8]) -> Result<(String, String)> {
    let line: Value = serde_json::from_slice(line)?;
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let mode = text(&line["labels"]["mode"]).filter(|mode| !mode.is_empty()).unwrap_or_else(|| "none".to_owned());
    Ok((text(&line["name"]).context("a name")?, mode))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_url_gets_exactly_its_samples() -> Result<()> {
    const POISON: &str = "node_load1";
    let exporters = scene::exporters(&["node_exporter"]).await?;
    let sink = HttpSink::start().await?;
    let (taken, wrong) = (Arc::<Mutex<BTreeMap<String, u64>>>::default(), Arc::<Mutex<Vec<String>>>::default());
    let (per_url, mistakes) = (taken.clone(), wrong.clone());
    sink.follow(move |request, body| {
        let mut lines = 0;
        for line in body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let (name, mode) = mode(line).expect("an NDJSON line");
            if name == POISON {
                return Answer::Status(400);
            }
            let expect = (format!("/in/{}/{mode}?all=1", scene::JOB), Some(format!("m-{mode}")));
            if (request.path(), request.header("x-mode").map(str::to_owned)) != (expect.0.as_str(), expect.1.clone()) {
                mistakes.lock().expect("no holder panics").push(format!("{} {expect:?}", request.path()));
            }
            lines += 1;
        }
        *per_url.lock().expect("no holder panics").entry(request.path().to_owned()).or_default() += lines;
        Answer::Status(204)
    });
    let url = format!("{}/{{{{job}}}}/{{{{mode:none}}}}?all=1", sink.url());
    let relay = format!(
        "  - {{name: apart, start: earliest, encode: ndjson, sink: {{http: {{url: \"{url}\", headers: {{X-Mode: \"m-{{{{mode:none}}}}\"}}, items_max: 200}}}}}}\n"
    );
    let mut strata = Strata::start(&format!("{}relays:\n{relay}", scene::scrape("500ms", &exporters))).await?;
    scene::more_rounds(&exporters, 6, LIMIT).await?;
    scene::caught_up(&sink, &exporters, LIMIT).await?;
    let relays: Value = serde_json::from_slice(&http1::get(strata.port(), "/api/v1/relays").await?.body)?;
    scene::stop(&mut strata, &exporters).await?;

    scene::assert_orderly(&sink);
    let wrong = wrong.lock().expect("no holder panics");
    assert!(wrong.is_empty(), "{} in a wrong place, such as {}", wrong.len(), wrong[0]);
    let ledger = sink.ledger();
    let mut expect = BTreeMap::<String, u64>::new();
    for record in ledger.records.all() {
        let labels = &ledger.records.series(record.series).labels;
        let mode = labels.get("mode").map_or("none", String::as_str);
        *expect.entry(format!("/in/{}/{mode}?all=1", scene::JOB)).or_default() += 1;
    }
    assert_eq!(*taken.lock().expect("no holder panics"), expect);
    assert!(expect.len() > 3, "{expect:?}");
    // Every round has the poisoned series once, and all others arrived.
    let rounds: std::collections::BTreeSet<i64> = ledger.records.all().iter().map(|record| record.timestamp_ms).collect();
    let of = |name: &str| ledger.records.all().iter().filter(|record| ledger.records.series(record.series).name == name).count();
    assert_eq!((of(POISON), of("node_load5")), (0, of("node_load15")), "{} rounds", rounds.len());
    let totals = &relays["relays"][0]["totals"];
    let rejected = totals["rejected"].as_u64().with_context(|| relays.to_string())?;
    assert!(rejected > 0 && rejected <= of("node_load5") as u64, "{totals}");
    Ok(())
}
