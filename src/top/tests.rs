//! The screen, drawn into memory; `docs/top.txt` is what the book shows.

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use serde_json::{Value, json};
use tokio::time::{Duration, Instant};

use super::state::{Action, App, Pane, Snapshot};
use super::view;
use crate::api::model::Pause;

/// 2026-01-02T03:04:05Z.
const NOW: i64 = 1_767_323_045_000;

fn relay(name: &str, more: &Value) -> Value {
    let mut relay = json!({
        "name": name, "state": "running", "lag": {"seconds": 0.3, "samples": 0, "messages": 0, "bytes": 0, "catch_up_seconds": null},
        "retention": {"left_seconds": null, "limit": null, "text": "nothing is lost at the present rate"},
        "rates": {"read_samples": 84_120.0, "delivered_samples": 84_120.0},
        "totals": {"read": 9_000_000, "delivered": 9_000_000, "filtered": 0, "rejected": 0, "lost": 0, "retries": 0}, "dead_letters": 0, "kept_letters": 0,
        "error": null, "last_error": null, "pause": null, "sink": "kafka", "encoder": "json", "from": [], "filters": [],
        "filtered": {}, "lost": {}, "hold": {"max_age": null, "max_bytes": null, "on_full": "drop"},
        "history": {"every_seconds": 2.0, "lag_seconds": [0.2, 0.3, 0.2, 0.2, 0.3, 0.4, 0.3, 0.2, 0.3, 0.3], "delivered_samples": [84000.0, 84100.0, 84200.0]},
    });
    for (key, value) in more.as_object().into_iter().flatten() {
        relay[key] = value.clone();
    }
    relay
}

fn snapshot() -> Snapshot {
    let status = json!({
        "version": "0.1.0", "role": "run", "pid": 1, "started_ms": 0, "uptime_seconds": 93_780, "is_ready": true, "ready": [],
        "durability": {"acknowledged_means": "fsynced", "promise": ""}, "nats": {"state": "ready", "reason": null, "pid": 2},
        "stream": {"messages": 1, "bytes": 1, "max_bytes": 21_474_836_480_u64, "fill": 0.34, "first_seq": 1, "last_seq": 2, "first_ms": 0,
                   "last_ms": 1, "window_seconds": 86_400, "in_bytes_per_second": 131_072.0},
        "dead_letters": null,
        "collection": {"targets_up": 2798, "targets_down": 2, "targets_unknown": 0, "scraped_samples": 1, "published_samples": 1,
                       "dropped_samples": 0, "queue_samples": 0, "queue_bytes": 20_480, "samples_per_second": 84_120.0,
                       "history": {"every_seconds": 2.0, "scraped_samples": [84_000.0]}},
        "buffer": config::Buffer::default(),
    });
    let rising: Vec<f64> = (0..16).map(|k| f64::from(k) * 12.0).collect();
    let relays = [
        relay("warehouse", &json!({})),
        relay(
            "archive",
            &json!({
                "state": "retrying", "sink": "http", "lag": {"seconds": 184.0, "samples": 15_478_080, "messages": 92, "bytes": 24_117_248, "catch_up_seconds": null},
                "retention": {"left_seconds": 2820, "limit": "buffer.max_bytes", "text": "loses data in 47 min (buffer.max_bytes)"},
                "rates": {"read_samples": 0.0, "delivered_samples": 0.0}, "history": {"every_seconds": 2.0, "lag_seconds": rising, "delivered_samples": []},
                "error": {"text": "503 Service Unavailable", "since_ms": NOW - 184_000, "next_retry_ms": NOW + 12_000},
                "filters": [{"name": "drop", "options": "{__name__=~\"go_.*\"}"}], "filtered": {"drop": 1200, "late": 0},
            }),
        ),
        relay("legacy", &json!({"state": "paused", "sink": "statsd", "pause": {"since_ms": NOW - 60_000, "until_ms": null}})),
    ];
    let target = |id: &str, url: &str, health: &str, error: Option<&str>| {
        json!({
            "id": id, "job": "node", "url": url, "health": health, "last_error": error, "last_scrape_ms": NOW - 4200, "last_duration_s": 0.012,
            "samples": if error.is_none() { 1_234 } else { 0 }, "missed": 0, "labels": {"instance": "a:9100", "job": "node"}, "discovered_labels": {"__address__": "a:9100"},
        })
    };
    let targets = [
        target("1", "http://10.0.0.1:9100/metrics", "up", None),
        target("2", "http://10.0.0.2:9100/metrics", "down", Some("connection refused")),
        target("3", "http://10.0.0.3:9100/metrics", "up", None),
        target("4", "http://10.0.0.4:9100/metrics", "down", Some("no answer within 10 s")),
    ];
    Snapshot {
        asked: Instant::now(),
        status: serde_json::from_value(status).expect("a status"),
        relays: relays.into_iter().map(|relay| serde_json::from_value(relay).expect("a relay")).collect(),
        targets: Some(targets.into_iter().map(|target| serde_json::from_value(target).expect("a target")).collect()),
    }
}

fn app() -> App {
    let mut app = App::new("127.0.0.1:9600".to_owned());
    app.take(Ok(snapshot()), NOW);
    app
}

fn press(app: &mut App, code: KeyCode) -> Option<Action> {
    app.key(KeyEvent::new(code, KeyModifiers::NONE), NOW)
}

fn screen(app: &App, width: u16, height: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a terminal in memory");
    terminal.draw(|frame| view::draw(frame, app, NOW)).expect("it draws");
    let buffer = terminal.backend().buffer().clone();
    let line = |y: u16| (0..width).map(|x| buffer[(x, y)].symbol().to_owned()).collect::<String>().trim_end().to_owned();
    (0..height).map(|y| line(y) + "\n").collect()
}

#[test]
fn the_screen_in_the_book_is_this_one() {
    let (mut app, path) = (app(), concat!(env!("CARGO_MANIFEST_DIR"), "/docs/top.txt"));
    press(&mut app, KeyCode::Down);
    let mut text = screen(&app, 132, 22);
    press(&mut app, KeyCode::Enter);
    text.push('\n');
    text.push_str(&screen(&app, 132, 26));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(path, &text).expect("it can be written");
    }
    let page = include_str!("../../docs/operations.md");
    assert!(page.contains(&screen_of(&text)), "docs/operations.md shows another screen:\n{text}");
    let book = std::fs::read_to_string(path).unwrap_or_default();
    assert!(book == text, "docs/top.txt is not this (UPDATE_GOLDEN=1 writes it):\n{text}");
}

/// The first of two screens.
fn screen_of(text: &str) -> String {
    text.split("\n\n").next().unwrap_or_default().to_owned()
}

#[test]
fn a_backlog_behind_what_is_new_is_shown() {
    let mut app = app();
    let mut snapshot = snapshot();
    let behind =
        json!({"position": 44, "end": 100, "pending_samples": 1234, "fresh_lag_seconds": 2.0, "last_error": "429 Too Many Requests"});
    snapshot.relays = vec![serde_json::from_value(relay("warehouse", &json!({ "behind": behind }))).expect("a relay")];
    app.take(Ok(snapshot), NOW);
    assert!(screen(&app, 160, 22).contains("1234 samples wait"), "{}", screen(&app, 160, 22));
    press(&mut app, KeyCode::Enter);
    let page = screen(&app, 160, 26);
    assert!(page.contains("1234 samples, 56 messages beside what is new") && page.contains("429 Too Many Requests"), "{page}");
}

#[test]
fn every_size_draws_every_page() {
    let mut app = app();
    for page in 0..4 {
        app.pane = if page % 2 == 0 { Pane::Relays } else { Pane::Targets };
        app.is_open = page > 1;
        for width in (0..60).chain([80, 200]) {
            for height in (0..20).chain([60]) {
                screen(&app, width, height);
            }
        }
    }
    screen(&App::new(String::new()), 80, 24);
}

#[test]
fn the_worst_target_is_first_and_the_filter_narrows() {
    let mut app = app();
    assert_eq!(app.shown_targets().iter().map(|t| t.id.as_str()).collect::<Vec<_>>(), ["2", "4", "1", "3"]);
    for c in "/Refused".chars() {
        press(&mut app, KeyCode::Char(c));
    }
    press(&mut app, KeyCode::Enter);
    assert_eq!(app.shown_targets().iter().map(|t| t.id.as_str()).collect::<Vec<_>>(), ["2"]);
    assert!(app.shown_relays().is_empty() && press(&mut app, KeyCode::Char('p')).is_none() && press(&mut app, KeyCode::Enter).is_none());
    press(&mut app, KeyCode::Esc);
    assert_eq!(app.shown_targets().len(), 4);
}

#[test]
fn keys_select_open_pause_and_quit() {
    let mut app = app();
    let paused = |relay: &str, paused| Some(Action::Pause { relay: relay.to_owned(), paused });
    assert_eq!(press(&mut app, KeyCode::Char('p')), paused("warehouse", false));
    press(&mut app, KeyCode::Char('j'));
    press(&mut app, KeyCode::Down);
    assert_eq!(press(&mut app, KeyCode::Char('p')), paused("legacy", true));
    press(&mut app, KeyCode::Down);
    assert_eq!((app.pane, app.selected_target().map(|t| t.id.as_str())), (Pane::Targets, Some("2")));
    press(&mut app, KeyCode::Char('o'));
    let page = screen(&app, 100, 20);
    assert!(app.is_open && page.contains("connection refused") && page.contains("instance=\"a:9100\""), "{page}");
    press(&mut app, KeyCode::Char('q'));
    assert!(!app.is_open && !app.is_over());
    press(&mut app, KeyCode::Up);
    assert_eq!((app.pane, app.selected_relay().map(|r| r.name.as_str())), (Pane::Relays, Some("legacy")));
    press(&mut app, KeyCode::Char('q'));
    assert!(app.is_over());
}

#[test]
fn the_second_key_turns_round_what_the_first_asked_for() {
    let mut app = app();
    let paused = |paused| Some(Action::Pause { relay: "warehouse".to_owned(), paused });
    let answer = |pause: Value, note: &str| {
        serde_json::from_value(json!({ "relay": relay("warehouse", &json!({ "pause": pause })), "note": note })).map_err(|e| e.to_string())
    };
    let is_paused = |app: &App| app.relays[0].pause.is_some();
    // Before the answer.
    assert_eq!(press(&mut app, KeyCode::Char('p')), paused(false));
    assert_eq!(press(&mut app, KeyCode::Char('p')), paused(true));
    assert_eq!(press(&mut app, KeyCode::Char('p')), paused(false));
    app.take(Ok(snapshot()), NOW);
    assert!(is_paused(&app), "a look does not undo what is asked for");
    let pause = json!({ "since_ms": NOW, "until_ms": null });
    app.settle("warehouse", answer(pause.clone(), "holds"), Instant::now());
    app.settle("warehouse", answer(Value::Null, "goes on"), Instant::now());
    assert!(is_paused(&app) && screen(&app, 132, 22).contains("warehouse: goes on"), "nor does the answer to an earlier one");
    let before = snapshot();
    app.settle("warehouse", answer(pause, "holds"), before.asked + Duration::from_millis(1));
    // After the answer, and a look that began before it.
    app.take(Ok(before), NOW);
    assert!(is_paused(&app));
    assert_eq!(press(&mut app, KeyCode::Char('p')), paused(true));
    app.settle("warehouse", Err("a token is needed".to_owned()), Instant::now());
    assert!(screen(&app, 132, 22).contains("warehouse: a token is needed"));
    let mut truth = Snapshot { asked: Instant::now() + Duration::from_millis(1), ..snapshot() };
    truth.relays[0].pause = Some(Pause { since_ms: NOW, until_ms: None });
    assert!(!is_paused(&app));
    app.take(Ok(truth), NOW);
    assert!(is_paused(&app), "it was not resumed");
}

#[test]
fn a_frozen_screen_stays_and_a_lost_connection_is_shown() {
    let mut app = app();
    press(&mut app, KeyCode::Char(' '));
    let mut other = snapshot();
    other.relays.clear();
    app.take(Ok(other.clone()), NOW);
    assert!(app.relays.len() == 3 && screen(&app, 132, 22).contains("frozen"));
    press(&mut app, KeyCode::Char(' '));
    app.take(Err("cannot reach Strata".to_owned()), NOW - 5000);
    app.take(Err("cannot reach Strata".to_owned()), NOW - 1000);
    let text = screen(&app, 132, 22);
    assert!(text.contains("connection lost 5 s ago") && text.contains("cannot reach Strata") && text.contains("warehouse"), "{text}");
    app.take(Ok(other), NOW);
    assert!(app.relays.is_empty() && app.lost.is_none());
}
