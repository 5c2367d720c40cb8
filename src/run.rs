//! `strata run`: everything in one process, with the bundled server as its child; `strata nats`, `collector` and `relay`: a part of it.
//!
//! *In*: a configuration. *Out*: a running appliance until SIGTERM or SIGINT; exit code 0 after a clean stop. *Bound*:
//! [`DRAIN`] from the signal to the last checkpoint. *When full*: what was late is named in the log, and stays in the stream.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use config::Loaded;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::api::serve::{HEAD_TIMEOUT, Serve};
use crate::api::tls::Tls;
use crate::appliance::Appliance;
use crate::board::Board;
use crate::objects::Objects;
use crate::reload::{self, Reloader};
use crate::role::Role;
use crate::watch::{Read, Stamp};
use crate::webhook::Webhook;
use crate::{FAILED, Source, api, check, fail, process};

/// From the signal to the last checkpoint. Larger: orchestrators kill first (Kubernetes after 30 s); smaller: slow sinks get more twice.
pub(crate) const DRAIN: Duration = Duration::from_secs(20);
/// How long the writer of statuses may take to let go of its Lease: it had the whole drain before.
const WATCH_GRACE: Duration = Duration::from_secs(1);
/// How long open HTTP connections may finish after everything else stopped.
const HTTP_GRACE: Duration = Duration::from_secs(1);

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    source: Source,
    /// Only check the configuration, as `strata check` does.
    #[arg(long)]
    check: bool,
}

/// Where the address that is really listened on is written: with port 0 only the system knows it.
pub(crate) fn address_file(data_dir: &Path) -> PathBuf {
    data_dir.join("address")
}

pub(crate) fn main(args: &Args, role: Role) -> ExitCode {
    if args.check {
        return check::main(&check::Args::of(args.source.clone()));
    }
    let Read { outcome, stamp } = Read::now(&args.source);
    let loaded = match check::report(outcome) {
        Ok(loaded) => loaded,
        Err(code) => return code,
    };
    raise_file_limit();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&anyhow!(error).context("cannot start the async runtime")),
    };
    let ran = runtime.block_on(run(&args.source, role, loaded, stamp));
    // What still blocks a thread now is a sink's library that does not come back; the process ends without it.
    runtime.shutdown_timeout(Duration::from_secs(1));
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

async fn run(source: &Source, role: Role, loaded: Loaded, stamp: Stamp) -> anyhow::Result<()> {
    let (stop, hangup) = (watch_signals()?, reload::watch_hangup()?);
    let Loaded { config, sources, .. } = loaded;
    let config = Arc::new(config);
    let listener = listen("server.listen", &config.server.listen).await?;
    let address = listener.local_addr().context("cannot read the address of server.listen")?;
    let objects = Objects::open(&config, role).await?;
    let start = objects.as_ref().map_or_else(|| Arc::clone(&config), |objects| objects.over(&config));
    let board = Arc::new(Board::new(&start, role)?);
    let http_stop = CancellationToken::new();
    let mut http = JoinSet::new();
    let tls = config.server.tls.clone().map(|tls| Tls::new("server.tls", tls)).transpose()?;
    let scheme = if tls.is_some() { "https" } else { "http" };
    let router = api::router(Arc::clone(&board) as Arc<dyn api::Backend>, board.registry().clone(), address.ip().is_loopback());
    let serve = Serve { router, tls: tls.map(Arc::new), head_timeout: HEAD_TIMEOUT };
    http.spawn(serve.run(listener, http_stop.clone()));
    if let Some(webhook) = Webhook::open(&config, &board).await? {
        http.spawn(webhook.run(http_stop.clone()));
    }
    tracing::info!(%address, data_dir = %config.buffer.data_dir.display(), version = env!("CARGO_PKG_VERSION"), "strata {} starts", role.name());

    // The first start may recover a large store: a signal ends the wait.
    let appliance = tokio::select! {
        biased;
        () = stop.cancelled() => return Ok(()),
        started = Appliance::start(start, Arc::clone(&board)) => started?,
    };
    let file = address_file(&config.buffer.data_dir);
    std::fs::write(&file, format!("{scheme}://{address}\n"))
        .with_context(|| format!("cannot write '{}' (buffer.data_dir)", file.display()))?;
    let (mut watching, watch_stop) = (JoinSet::new(), CancellationToken::new());
    let laid = objects.map(|objects| objects.run(&config, &board, &watch_stop, &mut watching));
    let (reloader, handle) = Reloader::new(source.clone(), (sources, stamp), Arc::clone(&config), laid, Arc::clone(&board), hangup)?;
    board.set_reloads(handle);
    tokio::spawn(process::give_back());
    tracing::info!("strata runs: {scheme}://{address}/readyz?verbose says how it is");

    let ended = tokio::select! {
        biased;
        () = stop.cancelled() => Ok(()),
        error = appliance.failed() => Err(error),
        () = reloader.run() => Err(anyhow!("reloads ended")),
        served = http.join_next() => Err(anyhow!("an HTTP listener ended: {served:?}")),
    };
    watch_stop.cancel();
    let drained = appliance.stop(DRAIN).await;
    if tokio::time::timeout(WATCH_GRACE, async { while watching.join_next().await.is_some() {} }).await.is_err() {
        tracing::info!("the API server was not waited for");
    }
    http_stop.cancel();
    if tokio::time::timeout(HTTP_GRACE, async { while http.join_next().await.is_some() {} }).await.is_err() {
        tracing::info!("open HTTP connections were cut");
    }
    if let Err(error) = std::fs::remove_file(&file) {
        tracing::debug!(%error, "cannot remove the address file");
    }
    ended?;
    if drained {
        tracing::info!("strata stopped, everything is in order")
    } else {
        tracing::warn!("strata stopped, some parts were late: see above")
    }
    Ok(())
}

/// Each target keeps a connection: takes as many descriptors as the system allows this process, where shells often give 1,024.
fn raise_file_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| match soft < hard {
        true => setrlimit(Resource::RLIMIT_NOFILE, hard, hard),
        false => Ok(()),
    });
    if let Err(error) = raised {
        tracing::warn!(%error, "cannot raise the limit of open files: many targets may fail to connect");
    }
}

/// A token that the first SIGTERM or SIGINT cancels; the second ends the process at once.
fn watch_signals() -> anyhow::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot watch for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot watch for SIGINT")?;
    let stop = CancellationToken::new();
    let token = stop.clone();
    // Lives as long as the process: it ends it.
    tokio::spawn(async move {
        for is_second in [false, true] {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if is_second {
                tracing::warn!("second signal: ending at once, without draining");
                #[expect(clippy::disallowed_methods, reason = "the second signal means: skip the drain")]
                std::process::exit(i32::from(FAILED));
            }
            tracing::info!("stopping: draining for at most {} s; a second signal ends it at once", DRAIN.as_secs());
            token.cancel();
        }
    });
    Ok(stop)
}

/// Binds the address of a field. *Errors*: what to change, in one line.
pub(crate) async fn listen(field: &str, address: &str) -> anyhow::Result<TcpListener> {
    match TcpListener::bind(address).await {
        Ok(listener) => Ok(listener),
        Err(error) if error.kind() == ErrorKind::AddrInUse => {
            bail!("{field}: port taken: another process listens on {address}; end it, or choose another port (0: any free one)")
        }
        Err(error) => Err(error).with_context(|| format!("{field}: cannot listen on {address}")),
    }
}
