//! The HTTP sink over TLS: whatever is wrong with a certificate holds the relay with its reason, and nothing is lost.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use e2e::compare;
use e2e::exporter::Exporter;
use e2e::http_sink::HttpSink;
use e2e::strata::Strata;
use e2e::tls::{Authority, acceptor};

use crate::scene;

const LIMIT: Duration = Duration::from_secs(120);

/// A replaced file is a new one, as tools that renew certificates write it.
fn replace(path: &Path, text: &str) -> Result<()> {
    let next = path.with_extension("next");
    std::fs::write(&next, text)?;
    Ok(std::fs::rename(&next, path)?)
}

async fn flows(sink: &HttpSink, exporters: &[Exporter]) -> Result<()> {
    scene::caught_up(sink, exporters, LIMIT).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_certificate_holds_with_its_reason_and_loses_nothing() -> Result<()> {
    let exporters = scene::exporters(&["node_exporter"]).await?;
    let (ours, theirs) = (Authority::new("ours")?, Authority::new("theirs")?);
    let good = ours.server("localhost", false)?;
    let mut sink = HttpSink::secure(acceptor(&good, Some(&ours))?).await?;
    let mut asking = HttpSink::secure(acceptor(&good, Some(&ours))?).await?;
    let folder = tempfile::tempdir()?;
    let path = |name: &str| folder.path().join(name);
    let client = ours.client("strata.test")?;
    for (name, text) in [("ca.pem", &ours.pem()), ("client.pem", &client.cert), ("client.key", &client.key)] {
        std::fs::write(path(name), text)?;
    }
    let (ca, cert, key) = (path("ca.pem"), path("client.pem"), path("client.key"));
    let shown = format!(", cert_file: {}, key_file: {}", cert.display(), key.display());
    let tls = |more: &str| format!(", tls_config: {{ca_file: {}{more}}}", ca.display());
    let relays = scene::http_relay("mutual", &sink, &tls(&shown)) + &scene::http_relay("anonymous", &asking, &tls(""));
    let mut strata = Strata::start(&format!("{}relays:\n{relays}", scene::scrape("500ms", &exporters))).await?;

    flows(&sink, &exporters).await?;
    scene::held(&strata, "anonymous", "the server asked for a client certificate: set cert_file and key_file of tls_config", LIMIT).await?;

    // Another authority, until the file with those that are trusted has it.
    sink.certify(acceptor(&theirs.server("localhost", false)?, Some(&ours))?).await?;
    scene::held(&strata, "mutual", "invalid peer certificate: UnknownIssuer", LIMIT).await?;
    replace(&ca, &theirs.pem())?;
    flows(&sink, &exporters).await?;

    replace(&ca, &ours.pem())?;
    sink.certify(acceptor(&ours.server("other.test", false)?, Some(&ours))?).await?;
    scene::held(&strata, "mutual", "certificate not valid for name \"localhost\"", LIMIT).await?;
    sink.certify(acceptor(&good, Some(&ours))?).await?;
    flows(&sink, &exporters).await?;

    sink.certify(acceptor(&ours.server("localhost", true)?, Some(&ours))?).await?;
    scene::held(&strata, "mutual", "certificate expired", LIMIT).await?;
    sink.certify(acceptor(&good, Some(&ours))?).await?;
    flows(&sink, &exporters).await?;

    // A client certificate that the server does not trust, until another one is in its file.
    sink.certify(acceptor(&good, Some(&theirs))?).await?;
    scene::held(&strata, "mutual", "cannot speak TLS", LIMIT).await?;
    let client = theirs.client("strata.test")?;
    replace(&key, &client.key)?;
    replace(&cert, &client.cert)?;
    flows(&sink, &exporters).await?;

    asking.certify(acceptor(&good, None)?).await?;
    flows(&asking, &exporters).await?;
    flows(&sink, &exporters).await?;
    scene::stop(&mut strata, &exporters).await?;
    for sink in [&sink, &asking] {
        scene::assert_orderly(sink);
        compare::all(&sink.ledger().records, &exporters, scene::JOB, scene::GRACE)?;
    }
    Ok(())
}
