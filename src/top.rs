//! `strata top`: relays, targets and the stream on one screen, as they are now.
//!
//! *In*: the API of a running Strata, keys. *Out*: a screen; the terminal is as before when it ends, however it ends. *Bound*: one look per
//! [`LOOK`]. *When full*: a lost connection is shown with the last numbers, and tried again.

mod state;
mod view;

#[cfg(test)]
mod tests;

use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use ratatui::crossterm::event::{self, Event, KeyEventKind};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::time::Instant;

use crate::api::model::{Changed, PauseRequest, Relays, Status, Targets};
use crate::client::Api;
use crate::place::Place;
use crate::{fail, times};

use state::{Action, App, Snapshot};

/// Time between two looks.
const LOOK: Duration = Duration::from_secs(1);
/// Looks per look at all targets, whose list is long.
const LOOKS_PER_TARGETS: u64 = 3;
/// How often the terminal is asked for keys while there are none: the end is noticed so late.
const KEYS: Duration = Duration::from_millis(100);
/// Keys that wait, and changes that are asked for. Larger and smaller do not matter: a person types them.
const KEYS_MAX: usize = 64;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    place: Place,
}

/// What arrives while the screen is shown.
enum News {
    Key(Event),
    Look(Box<anyhow::Result<Snapshot>>),
    Changed { relay: String, answer: Box<anyhow::Result<Changed>> },
}

pub(crate) fn main(args: &Args) -> ExitCode {
    let api = match args.place.api(false) {
        Ok(api) => api,
        Err(code) => return code,
    };
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().context("cannot start the async runtime");
    let shown = runtime.and_then(|runtime| {
        let shown = runtime.block_on(show(Arc::new(api)));
        // The thread that waits for keys looks up only now and then.
        runtime.shutdown_background();
        shown
    });
    match shown {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

async fn show(api: Arc<Api>) -> anyhow::Result<()> {
    if !std::io::stdout().is_terminal() || !std::io::stdin().is_terminal() {
        bail!("strata top needs a terminal; 'strata targets' and the API (/api/v1/relays) speak to programs");
    }
    // The first look is before the screen: what cannot be reached is said in one line.
    let first = look(&api, None).await?;
    let mut app = App::new(api.base().trim_start_matches("http://").to_owned());
    app.take(Ok(first), times::now_ms());
    let mut terminal = ratatui::try_init().context("cannot use this terminal")?;
    let ended = follow(&api, &mut app, &mut terminal).await;
    ratatui::try_restore().context("cannot restore the terminal: 'reset' does")?;
    ended
}

async fn follow(api: &Arc<Api>, app: &mut App, terminal: &mut ratatui::DefaultTerminal) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot watch for SIGTERM")?;
    let mut hangup = signal(SignalKind::hangup()).context("cannot watch for SIGHUP")?;
    let (sender, mut news) = mpsc::channel(KEYS_MAX);
    let (keys, looks) = (sender.clone(), sender.clone());
    tokio::task::spawn_blocking(move || read_keys(&keys));
    let looking = tokio::spawn(keep_looking(Arc::clone(api), looks));
    let (changes, asked) = mpsc::channel(KEYS_MAX);
    let changing = tokio::spawn(keep_changing(Arc::clone(api), asked, sender));
    let mut clock = tokio::time::interval(LOOK);
    let mut last_targets = None;
    while !app.is_over() {
        terminal.draw(|frame| view::draw(frame, app, times::now_ms())).context("cannot draw")?;
        let action = tokio::select! {
            biased;
            _ = terminate.recv() => break,
            _ = hangup.recv() => break,
            _ = clock.tick() => None,
            some = news.recv() => match some {
                Some(News::Key(Event::Key(key))) if key.kind != KeyEventKind::Release => app.key(key, times::now_ms()),
                Some(News::Key(_)) => None,
                Some(News::Look(found)) => {
                    let found = found.map(|mut found| {
                        if found.targets.is_none() {
                            found.targets = last_targets.take();
                        }
                        last_targets = found.targets.clone();
                        found
                    });
                    app.take(found.map_err(|error| format!("{error:#}")), times::now_ms());
                    None
                }
                Some(News::Changed { relay, answer }) => {
                    app.settle(&relay, answer.map_err(|error| format!("{error:#}")), Instant::now());
                    None
                }
                None => break,
            },
        };
        if let Some(Action::Pause { relay, paused }) = action
            && let Err(error) = changes.try_send((relay, paused))
        {
            let (TrySendError::Full((relay, _)) | TrySendError::Closed((relay, _))) = error;
            app.settle(&relay, Err("too many changes wait for their answers".to_owned()), Instant::now());
        }
    }
    looking.abort();
    changing.abort();
    Ok(())
}

fn read_keys(keys: &mpsc::Sender<News>) {
    while !keys.is_closed() {
        match event::poll(KEYS) {
            Ok(false) => {}
            Ok(true) => {
                let Ok(event) = event::read() else { return };
                if keys.blocking_send(News::Key(event)).is_err() {
                    return;
                }
            }
            Err(_) => return,
        }
    }
}

async fn keep_looking(api: Arc<Api>, looks: mpsc::Sender<News>) {
    for k in 1u64.. {
        tokio::time::sleep(LOOK).await;
        let found = look(&api, Some(k)).await;
        if looks.send(News::Look(Box::new(found))).await.is_err() {
            return;
        }
    }
}

/// Asks for one change after the other, in the order of the keys.
async fn keep_changing(api: Arc<Api>, mut asked: mpsc::Receiver<(String, bool)>, answers: mpsc::Sender<News>) {
    while let Some((relay, paused)) = asked.recv().await {
        let answer = Box::new(change(&api, &relay, paused).await);
        if answers.send(News::Changed { relay, answer }).await.is_err() {
            return;
        }
    }
}

/// `k`: the number of the look; without one everything is looked at.
async fn look(api: &Api, k: Option<u64>) -> anyhow::Result<Snapshot> {
    let asked = Instant::now();
    let status = api.read::<Status>("/api/v1/status").await?;
    let relays = api.read::<Relays>("/api/v1/relays").await?.relays;
    let targets = match k.is_none_or(|k| k.is_multiple_of(LOOKS_PER_TARGETS)) {
        true => Some(api.read::<Targets>("/api/v1/targets").await?.targets),
        false => None,
    };
    Ok(Snapshot { asked, status, relays, targets })
}

async fn change(api: &Api, relay: &str, paused: bool) -> anyhow::Result<Changed> {
    let path = format!("/api/v1/relays/{relay}/{}", if paused { "resume" } else { "pause" });
    let answer = api.post(&path, &PauseRequest::default()).await?;
    serde_json::from_value(answer).context("another version of the API")
}
