//! Secrets towards a NATS server that somebody else runs: every way to sign in, taken and refused, and nothing that Strata writes, says or
//! shows has the secret.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::exporter::Exporter;
use e2e::http_sink::{Answer, HttpSink};
use e2e::nats::{Nats, Operator};
use e2e::strata::Strata;
use e2e::tls::Authority;
use e2e::{http1, wait};
use nkeys::KeyPair;
use serde_json::{Value, json};

use crate::{scene, secrets};

const LIMIT: Duration = Duration::from_secs(120);
const PASSWORD: &str = "PlAnTeD-password";
const TOKEN: &str = "PlAnTeD-token";

/// One way to sign in.
struct Way {
    /// The field of `buffer.nats`, and what it has; a file's content where that is a file.
    field: &'static str,
    secret: String,
    /// Its other fields.
    beside: Value,
    /// What the server's configuration says of it.
    server: String,
    /// What may be found nowhere.
    texts: Vec<String>,
}

fn ways() -> Result<Vec<Way>> {
    let way = |field, secret: &str, beside, server: &str| Way {
        field,
        secret: secret.to_owned(),
        beside,
        server: server.to_owned(),
        texts: vec![secret.to_owned()],
    };
    let user = format!("accounts {{ A {{ jetstream: enabled, users: [ {{ user: strata, password: \"{PASSWORD}\" }} ] }} }}");
    let token = format!("authorization {{ token: \"{TOKEN}\" }}");
    let (pair, operator) = (KeyPair::new_user(), Operator::new()?);
    let (seed, public) = (pair.seed()?, pair.public_key());
    let nkey = format!("accounts {{ A {{ jetstream: enabled, users: [ {{ nkey: {public} }} ] }} }}");
    Ok(vec![
        way("password", PASSWORD, json!({ "user": "strata" }), &user),
        way("password_file", PASSWORD, json!({ "user": "strata" }), &user),
        way("token", TOKEN, json!({}), &token),
        way("token_file", TOKEN, json!({}), &token),
        way("nkey", &seed, json!({}), &nkey),
        way("nkey_file", &seed, json!({}), &nkey),
        Way { texts: vec![operator.seed], ..way("credentials_file", &operator.credentials, json!({}), &operator.configuration) },
    ])
}

/// The server's TLS, which asks for a client's certificate, and what `buffer.nats.tls` says; the key's text comes last.
fn tls(folder: &Path) -> Result<(String, Value, String)> {
    let authority = Authority::new("nats")?;
    let (server, client) = (authority.server("127.0.0.1", false)?, authority.client("strata")?);
    let write = |name: &str, text: &str| -> Result<String> {
        let path = folder.join(name);
        std::fs::write(&path, text)?;
        Ok(path.display().to_string())
    };
    let (cert, key, ca) = (write("server.pem", &server.cert)?, write("server.key", &server.key)?, write("ca.pem", &authority.pem())?);
    let options = json!({ "ca_file": ca, "cert_file": write("client.pem", &client.cert)?, "key_file": write("client.key", &client.key)? });
    let secret = client.key.lines().nth(1).context("a PEM text")?.to_owned();
    Ok((format!("tls {{ cert_file: {cert:?}, key_file: {key:?}, ca_file: {ca:?}, verify: true }}\n"), options, secret))
}

/// Waits until the check of the server says something.
async fn server_is(strata: &Strata, said: &str) -> Result<()> {
    wait::until(&format!("/readyz says {said}"), LIMIT, async || {
        let answer = http1::get(strata.port(), "/readyz?verbose").await.ok()?;
        String::from_utf8_lossy(&answer.body).lines().any(|line| line.starts_with("server: ") && line.contains(said)).then_some(())
    })
    .await
}

async fn leaks(way: &Way, exporters: &[Exporter], sink: &HttpSink) -> Result<Vec<String>> {
    let mut nats = Nats::new("")?;
    let (server_tls, client_tls, key) = tls(nats.folder())?;
    nats.configure(&format!("{server_tls}{}", way.server))?;
    nats.start()?;
    let mut options = way.beside.clone();
    let file = nats.folder().join("secret");
    std::fs::write(&file, &way.secret)?;
    options[way.field] = if way.field.ends_with("_file") { json!(file) } else { json!(way.secret) };
    options["urls"] = json!([format!("tls://127.0.0.1:{}", nats.port())]);
    options["tls"] = client_tls;
    let (scrape, relays) = (scene::scrape("500ms", exporters), scene::http_relay("sink", sink, ""));
    let mut strata = Strata::prepare(&format!("buffer:\n  nats: {options}\n  max_bytes: 256MiB\n{scrape}relays:\n{relays}"))?;
    strata.set("STRATA_LOG_LEVEL", "trace");
    strata.launch()?;
    strata.ready().await.with_context(|| nats.log())?;
    let token = std::fs::read_to_string(strata.data_dir().join("token"))?.trim().to_owned();
    scene::more_rounds(exporters, 3, LIMIT).await?;
    wait::until("samples are parked", LIMIT, async || (strata.metric("strata_dead_letter_messages", &[]).await.ok()? > 0.0).then_some(()))
        .await?;
    let mut heard = secrets::everything_said(&strata, "sink", &token).await?;

    // The same secret is refused, which says more than one that is taken.
    nats.kill()?;
    nats.configure(&format!("{server_tls}authorization {{ user: other, password: other }}"))?;
    nats.start()?;
    server_is(&strata, "down").await?;
    wait::until_true("it is refused", LIMIT, || nats.log().contains("authentication error")).await?;
    heard.extend(secrets::everything_said(&strata, "sink", &token).await?);
    nats.kill()?;
    nats.configure(&format!("{server_tls}{}", way.server))?;
    nats.start()?;
    strata.ready().await?;
    scene::stop(&mut strata, exporters).await?;
    heard.push(("the log".to_owned(), strata.log_tail(usize::MAX).into_bytes()));

    let texts: Vec<&str> = way.texts.iter().map(String::as_str).chain([key.as_str()]).collect();
    let mut leaks = secrets::leaks_in(&heard, &texts);
    leaks.extend(secrets::leaking_files(&strata.data_dir(), &texts, &[])?);
    // Ledger, dead letters and positions are in the server's store.
    let mut stored = Vec::new();
    secrets::files(&nats.store(), &mut stored)?;
    for stream in ["STRATA_RAW", "STRATA_DEAD", "STRATA_LEDGER", "KV_STRATA_STATE"] {
        ensure!(stored.iter().any(|path| path.components().any(|part| part.as_os_str() == stream)), "{stream} is not among {stored:?}");
    }
    for path in &stored {
        let bytes = std::fs::read(path)?;
        leaks.extend(texts.iter().filter(|text| secrets::has(&bytes, text)).map(|text| format!("{} has {}…", path.display(), &text[..8])));
    }
    Ok(leaks.into_iter().map(|leak| format!("{}: {leak}", way.field)).collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_shows_how_strata_signs_in_to_a_foreign_server() -> Result<()> {
    let ways = ways()?;
    let fields: BTreeSet<String> = ways.iter().map(|way| way.field.to_owned()).collect();
    let known = secrets::paths_below("buffer.nats.").await?;
    ensure!(known.len() > 4 && known.is_subset(&fields), "a way to sign in is not tried: {known:?}");
    let exporters = scene::exporters(&["etcd"]).await?;
    let sink = HttpSink::start().await?;
    // One sample of each page is parked.
    sink.follow(|_, body| Answer::Status(if secrets::has(body, "\"scrape_samples_scraped\"") { 400 } else { 204 }));
    let mut found = Vec::new();
    for way in &ways {
        found.extend(leaks(way, &exporters, &sink).await.with_context(|| format!("with {}", way.field))?);
    }
    assert!(found.is_empty(), "{} leaks:\n{}", found.len(), found.join("\n"));
    Ok(())
}
