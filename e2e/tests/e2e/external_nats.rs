//! Strata on a NATS server that somebody else runs: killed and started again in between, no sample is lost or doubled.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::compare;
use e2e::http_sink::HttpSink;
use e2e::http1;
use e2e::process;
use e2e::strata::Strata;

use crate::scene;

const LIMIT: Duration = Duration::from_secs(120);

/// The foreign server; it is killed when dropped.
struct Foreign {
    folder: tempfile::TempDir,
    program: std::path::PathBuf,
    port: u16,
    child: Option<Child>,
}

impl Foreign {
    fn new() -> Result<Self> {
        let folder = tempfile::TempDir::with_prefix("strata-e2e-nats-")?;
        let program = process::nats_server()?;
        let port = process::free_port()?;
        let store = folder.path().join("store");
        let configuration = format!(
            "listen: \"127.0.0.1:{port}\"\njetstream {{ store_dir: {store:?} }}\n\
             accounts {{ METRICS {{ jetstream: enabled, users: [ {{ user: strata, password: \"s3cret\" }} ] }} }}\n"
        );
        std::fs::write(folder.path().join("nats.conf"), configuration)?;
        Ok(Self { folder, program, port, child: None })
    }

    fn start(&mut self) -> Result<()> {
        let log = std::fs::File::options().create(true).append(true).open(self.folder.path().join("log"))?;
        let mut command = Command::new(&self.program);
        command.arg("-c").arg(self.folder.path().join("nats.conf")).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.child = Some(command.spawn()?);
        Ok(())
    }

    fn kill(&mut self) -> Result<()> {
        let mut child = self.child.take().context("it does not run")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        if self.child.is_some()
            && let Err(error) = self.kill()
        {
            eprintln!("cannot end the foreign server: {error}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_external_server_is_killed_and_nothing_is_lost_or_doubled() -> Result<()> {
    let exporters = scene::exporters(&["node_exporter", "etcd"]).await?;
    let sink = HttpSink::start().await?;
    let mut foreign = Foreign::new()?;
    let buffer =
        format!("buffer:\n  nats: {{urls: ['nats://127.0.0.1:{}'], user: strata, password: s3cret}}\n  max_bytes: 256MiB\n", foreign.port);
    let configuration = format!("{buffer}{}relays:\n{}", scene::scrape("500ms", &exporters), scene::http_relay("http", &sink, ""));
    // Strata is there first, and waits.
    let mut strata = Strata::prepare(&configuration)?;
    strata.launch()?;
    foreign.start()?;
    strata.ready().await?;
    ensure!(strata.nats_pid().is_err(), "no server of its own runs");
    let said = http1::get(strata.port(), "/readyz?verbose").await?.body;
    let said = String::from_utf8_lossy(&said).into_owned();
    ensure!(said.contains("up to 2 min of acknowledged samples"), "{said}");

    for _ in 0..3 {
        scene::more_rounds(&exporters, 6, LIMIT).await?;
        foreign.kill()?;
        // Collected meanwhile waits in memory.
        scene::more_rounds(&exporters, 4, LIMIT).await?;
        foreign.start()?;
        strata.ready().await?;
    }
    scene::more_rounds(&exporters, 6, LIMIT).await?;
    scene::caught_up(&sink, &exporters, LIMIT).await?;
    scene::stop(&mut strata, &exporters).await?;
    scene::assert_orderly(&sink);
    ensure!(strata.log_tail(100_000).contains("external NATS is connected"), "the log states the promise");
    let ledger = sink.ledger();
    compare::all(&ledger.records, &exporters, scene::JOB, scene::GRACE)?;
    ensure!(ledger.repeated_samples == 0, "{} samples came twice", ledger.repeated_samples);
    println!("{} samples over three kills of the foreign server", ledger.records.all().len());
    Ok(())
}
