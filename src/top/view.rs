//! How `strata top` looks.
//!
//! *In*: the state. *Out*: a frame. *Bound*: what fits; a terminal of any size. *When full*: what does not fit is cut.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize as _};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, BorderType, Cell, Paragraph, Row, Sparkline, Table, TableState, Wrap};

use crate::api::model::{Relay, Status};
use crate::pulse::span;
use crate::times;

use super::state::{App, Pane};

/// Below this nothing can be read.
const SIZE_MIN: (u16, u16) = (24, 6);
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
const DIM: Style = Style::new().fg(Color::DarkGray);
const ACCENT: Color = Color::Cyan;

/// Draws everything.
pub(super) fn draw(frame: &mut Frame<'_>, app: &App, now_ms: i64) {
    let area = frame.area();
    if area.width < SIZE_MIN.0 || area.height < SIZE_MIN.1 {
        frame.render_widget(Paragraph::new("too small").dim(), area);
        return;
    }
    let [top, middle, bottom] = Layout::vertical([Constraint::Length(1), Constraint::Min(0), Constraint::Length(1)]).areas(area);
    header(frame, top, app, now_ms);
    footer(frame, bottom, app);
    match (app.is_open, app.pane) {
        (true, Pane::Relays) => relay(frame, middle, app, now_ms),
        (true, Pane::Targets) => target(frame, middle, app, now_ms),
        (false, _) => lists(frame, middle, app, now_ms),
    }
}

fn header(frame: &mut Frame<'_>, area: Rect, app: &App, now_ms: i64) {
    let mut spans = vec![Span::styled(" Strata ", Style::new().fg(Color::Black).bg(ACCENT).add_modifier(Modifier::BOLD))];
    if let Some(status) = &app.status {
        let (mark, color) = if status.is_ready { ("● ready", Color::Green) } else { ("● not ready", Color::Red) };
        let role = if status.role == "run" { String::new() } else { format!("  {}", status.role) };
        spans.push(Span::raw(format!(" {}{role}  {}  up {}  ", status.version, app.base, span(status.uptime_seconds as f64))));
        spans.push(Span::styled(mark, color));
        spans.push(Span::styled(format!("  {:?}", status.durability.acknowledged_means).to_lowercase(), DIM));
    }
    let right = match (&app.lost, app.frozen) {
        (Some((since, _)), _) => Span::styled(
            format!("connection lost {} ago ", span((now_ms - since) as f64 / 1000.0)),
            Style::new().fg(Color::White).bg(Color::Red),
        ),
        (None, true) => Span::styled(" frozen ", Style::new().fg(Color::Black).bg(Color::Yellow)),
        (None, false) => Span::styled(format!("{} UTC ", &times::clock_ms(now_ms)[..8]), DIM),
    };
    frame.render_widget(Line::from(spans), area);
    let width = (right.width() as u16).min(area.width);
    frame.render_widget(Line::from(right), Rect { x: area.right() - width, width, ..area });
}

fn footer(frame: &mut Frame<'_>, area: Rect, app: &App) {
    let line = if app.is_typing {
        Line::from(format!(" /{}▏", app.filter))
    } else if let Some((_, why)) = &app.lost {
        Line::from(format!(" {why}")).red()
    } else if let Some(note) = &app.note {
        Line::from(format!(" {note}")).fg(ACCENT)
    } else {
        let keys = [
            ("↑↓", "select"),
            ("tab", "list"),
            ("enter", "open"),
            ("p", "pause/resume"),
            ("space", "freeze"),
            ("/", "filter"),
            ("q", "quit"),
        ];
        let mut spans = Vec::new();
        for (key, what) in keys {
            spans.push(Span::styled(format!(" {key} "), Style::new().fg(ACCENT)));
            spans.push(Span::styled(what, DIM));
        }
        if !app.filter.is_empty() {
            spans.push(Span::styled(format!("   filter: {}", app.filter), Color::Yellow));
        }
        Line::from(spans)
    };
    frame.render_widget(line, area);
}

fn lists(frame: &mut Frame<'_>, area: Rect, app: &App, now_ms: i64) {
    let relays = (app.shown_relays().len() as u16).saturating_add(3).min(area.height.saturating_sub(4) / 2 + 2).max(4);
    let [above, middle, below] = Layout::vertical([Constraint::Length(4), Constraint::Length(relays), Constraint::Min(0)]).areas(area);
    if let Some(status) = &app.status {
        stream(frame, above, status);
    }
    relay_table(frame, middle, app);
    target_table(frame, below, app, now_ms);
}

fn block(title: String, is_active: bool) -> Block<'static> {
    let style = if is_active { Style::new().fg(ACCENT) } else { DIM };
    Block::bordered().border_type(BorderType::Rounded).border_style(style).title(Span::styled(title, Style::new().bold()))
}

fn stream(frame: &mut Frame<'_>, area: Rect, status: &Status) {
    let block = block(" Stream ".to_owned(), false);
    let inner = block.inner(area);
    frame.render_widget(block, area);
    let collection = &status.collection;
    let mut lines = Vec::new();
    match &status.stream {
        None => lines.push(
            Line::from(format!(
                " the server is {}{}",
                status.nats.state,
                status.nats.reason.as_ref().map(|r| format!(": {r}")).unwrap_or_default()
            ))
            .red(),
        ),
        Some(stream) => {
            let fill = stream.fill.clamp(0.0, 1.0);
            let color = if fill > 0.92 {
                Color::Red
            } else if fill > 0.8 {
                Color::Yellow
            } else {
                Color::Green
            };
            let width = usize::from(inner.width.saturating_sub(70).clamp(8, 40));
            let full = (fill * width as f64).round() as usize;
            lines.push(Line::from(vec![
                Span::raw(" "),
                Span::styled("█".repeat(full), color),
                Span::styled("░".repeat(width - full), DIM),
                Span::raw(format!(" {:.1} % of {}", fill * 100.0, bytes(stream.max_bytes as f64))),
                Span::styled("   window ", DIM),
                Span::raw(span(stream.window_seconds as f64)),
                Span::styled("   in ", DIM),
                Span::raw(format!("{}/s", bytes(stream.in_bytes_per_second))),
            ]));
        }
    }
    let down =
        Span::styled(format!("{} down", collection.targets_down), if collection.targets_down > 0 { Color::Red } else { Color::DarkGray });
    let mut second = vec![
        Span::styled(" samples ", DIM),
        Span::raw(format!("{}/s", count(collection.samples_per_second))),
        Span::styled("   targets ", DIM),
        Span::raw(format!("{} up ", collection.targets_up)),
        down,
    ];
    if collection.targets_elsewhere > 0 {
        second.push(Span::raw(format!(" {} elsewhere", collection.targets_elsewhere)));
    }
    second.extend([Span::styled("   waiting ", DIM), Span::raw(bytes(collection.queue_bytes as f64))]);
    if collection.dropped_samples > 0 {
        second.push(Span::styled(format!("   {} samples dropped before the stream", count(collection.dropped_samples as f64)), Color::Red));
    }
    lines.push(Line::from(second));
    frame.render_widget(Paragraph::new(lines), inner);
}

fn color_of(state: &str) -> Color {
    match state {
        "running" | "up" => Color::Green,
        "retrying" | "starting" | "unknown" => Color::Yellow,
        "paused" => Color::Blue,
        "stopped" | "standby" => Color::DarkGray,
        _ => Color::Red,
    }
}

fn relay_table(frame: &mut Frame<'_>, area: Rect, app: &App) {
    let relays = app.shown_relays();
    let rows = relays.iter().map(|relay| {
        let color = color_of(&relay.state);
        let what = match (&relay.error, &relay.owner, &relay.behind, &relay.last_error) {
            (Some(error), ..) => Span::styled(error.text.clone(), color),
            (None, Some(owner), ..) => Span::styled(format!("runs in {owner}"), DIM),
            (None, None, Some(behind), _) => Span::styled(
                format!("new first, {} behind; {} samples wait", seconds(behind.fresh_lag_seconds), behind.pending_samples),
                Color::Yellow,
            ),
            (None, None, None, Some(past)) => Span::styled(format!("was: {}", past.text), DIM),
            (None, None, None, None) => Span::default(),
        };
        Row::new([
            Cell::from(relay.name.clone()),
            Cell::from(Span::styled(format!("● {}", relay.state), color)),
            Cell::from(Span::styled(
                spark(&relay.history.lag_seconds, 16),
                if relay.lag.seconds > 10.0 { Color::Yellow } else { Color::Green },
            )),
            Cell::from(Line::from(seconds(relay.lag.seconds)).right_aligned()),
            Cell::from(Line::from(format!("{}/s", count(relay.rates.delivered_samples))).right_aligned()),
            Cell::from(Line::from(bytes(relay.lag.bytes as f64)).right_aligned()),
            Cell::from(retention(relay)),
            Cell::from(what),
        ])
    });
    let widths = [
        Constraint::Length(16),
        Constraint::Length(11),
        Constraint::Length(16),
        Constraint::Length(7),
        Constraint::Length(9),
        Constraint::Length(9),
        Constraint::Length(22),
        Constraint::Min(8),
    ];
    let head = Row::new(["relay", "state", "lag, 5 min", "    lag", "delivered", "  waiting", "retention", "error"]).style(DIM);
    let title = format!(" Relays {} ", relays.len());
    render(frame, area, Table::new(rows, widths).header(head), title, app, Pane::Relays, relays.len());
}

fn retention(relay: &Relay) -> Span<'static> {
    let text = || relay.retention.text.split(" (").next().unwrap_or_default().to_owned();
    match (relay.retention.left_seconds, relay.lag.catch_up_seconds) {
        (Some(left), _) => Span::styled(text(), if left < 3600 { Color::Red } else { Color::Yellow }),
        (None, Some(_)) => Span::styled(text(), Color::Green),
        (None, None) => Span::styled("keeps all", DIM),
    }
}

fn target_table(frame: &mut Frame<'_>, area: Rect, app: &App, now_ms: i64) {
    let targets = app.shown_targets();
    let rows = targets.iter().map(|target| {
        let color = color_of(&target.health);
        let age = target.last_scrape_ms.map_or_else(|| "never".to_owned(), |at| seconds((now_ms - at).max(0) as f64 / 1000.0));
        Row::new([
            Cell::from(Span::styled(format!("● {}", target.health), color)),
            Cell::from(target.job.clone()),
            Cell::from(target.url.clone()),
            Cell::from(Line::from(count(target.samples as f64)).right_aligned()),
            Cell::from(Line::from(format!("{:.0} ms", target.last_duration_s * 1000.0)).right_aligned()),
            Cell::from(Line::from(age).right_aligned()),
            Cell::from(Span::styled(target.last_error.clone().unwrap_or_default(), color)),
        ])
    });
    let widths = [
        Constraint::Length(10),
        Constraint::Length(16),
        Constraint::Fill(1),
        Constraint::Length(7),
        Constraint::Length(8),
        Constraint::Length(7),
        Constraint::Fill(1),
    ];
    let head = Row::new(["health", "job", "target", "samples", "    took", "    ago", "error"]).style(DIM);
    let title = format!(" Targets {} ", targets.len());
    render(frame, area, Table::new(rows, widths).header(head), title, app, Pane::Targets, targets.len());
}

fn render(frame: &mut Frame<'_>, area: Rect, table: Table<'_>, title: String, app: &App, pane: Pane, len: usize) {
    let is_active = app.pane == pane;
    let highlight = if is_active { Style::new().add_modifier(Modifier::REVERSED) } else { Style::new() };
    let table = table.block(block(title, is_active)).column_spacing(1).row_highlight_style(highlight);
    let selected = (len > 0).then(|| app.selected(pane).min(len - 1));
    frame.render_stateful_widget(table, area, &mut TableState::new().with_selected(selected));
}

/// The page of one relay.
fn relay(frame: &mut Frame<'_>, area: Rect, app: &App, now_ms: i64) {
    let Some(relay) = app.selected_relay() else { return };
    let title = format!(" {} → {} ({}) ", relay.name, relay.sink, relay.encoder);
    let block = block(title, true);
    let inner = block.inner(area);
    frame.render_widget(block, area);
    let [text, lag, rate] = Layout::vertical([Constraint::Min(0), Constraint::Length(5), Constraint::Length(5)]).areas(inner);
    let ago = |at: i64| span((now_ms - at).max(0) as f64 / 1000.0);
    let mut lines = vec![Line::from(vec![key("state"), Span::styled(relay.state.clone(), color_of(&relay.state))])];
    if let Some(pause) = relay.pause {
        let until = pause.until_ms.map_or_else(|| "until it is resumed".to_owned(), |until| format!("until {}", times::show(until)));
        lines.push(pair("paused", format!("for {}, {until}", ago(pause.since_ms))));
    }
    if let Some(error) = &relay.error {
        let since = error.since_ms.map(|since| format!(" (for {})", ago(since))).unwrap_or_default();
        let next =
            error.next_retry_ms.map(|next| format!("; next try in {}", span((next - now_ms).max(0) as f64 / 1000.0))).unwrap_or_default();
        lines.push(Line::from(vec![key("error"), Span::styled(format!("{}{since}{next}", error.text), Color::Red)]));
    }
    if let Some(past) = &relay.last_error {
        lines.push(pair("last error", format!("{} ({} ago)", past.text, ago(past.at_ms))));
    }
    let waiting = format!(
        "{}, {} samples, {} messages, {}",
        seconds(relay.lag.seconds),
        relay.lag.samples,
        relay.lag.messages,
        bytes(relay.lag.bytes as f64)
    );
    lines.push(pair("lag", waiting));
    if let Some(behind) = &relay.behind {
        let error = behind.last_error.as_ref().map(|error| format!("; {error}")).unwrap_or_default();
        let (samples, messages) = (behind.pending_samples, behind.end.saturating_sub(behind.position));
        let fresh = seconds(behind.fresh_lag_seconds);
        lines.push(pair("behind", format!("{samples} samples, {messages} messages beside what is new, which lags {fresh}{error}")));
    }
    lines.push(pair("retention", relay.retention.text.clone()));
    let totals = &relay.totals;
    let became = format!(
        "{} delivered, {} filtered, {} rejected, {} lost of {} read; {} retries",
        totals.delivered, totals.filtered, totals.rejected, totals.lost, totals.read, totals.retries
    );
    lines.push(pair("samples", became));
    lines.push(pair("dead letters", format!("{} kept; {} samples refused", relay.kept_letters, relay.dead_letters)));
    lines.push(pair("jobs", if relay.from.is_empty() { "all".to_owned() } else { relay.from.join(", ") }));
    if !relay.namespaces.is_empty() {
        lines.push(pair("namespaces", relay.namespaces.join(", ")));
    }
    for filter in &relay.filters {
        let dropped = relay.filtered.get(&filter.name).copied().unwrap_or(0);
        lines.push(pair("filter", format!("{}: {} ({dropped} samples)", filter.name, filter.options)));
    }
    let of = |counts: &std::collections::BTreeMap<String, u64>| {
        counts.iter().filter(|(_, n)| **n > 0).map(|(reason, n)| format!("{reason} {n}")).collect::<Vec<_>>().join(", ")
    };
    for (name, counts) in [("filtered", &relay.filtered), ("lost", &relay.lost)] {
        if counts.values().any(|n| *n > 0) {
            lines.push(pair(name, of(counts)));
        }
    }
    frame.render_widget(Paragraph::new(lines).wrap(Wrap { trim: false }), text);
    let plot = |frame: &mut Frame<'_>, area: Rect, title: String, points: &[f64], scale: f64, color: Color| {
        let points: Vec<u64> =
            points.iter().rev().take(usize::from(area.width)).rev().map(|point| (point * scale).max(0.0) as u64).collect();
        frame.render_widget(Sparkline::default().data(points).style(color).block(Block::new().title(Span::styled(title, DIM))), area);
    };
    let max = |points: &[f64]| points.iter().copied().fold(0.0, f64::max);
    let history = &relay.history;
    plot(frame, lag, format!(" lag, at most {}", seconds(max(&history.lag_seconds))), &history.lag_seconds, 1000.0, Color::Yellow);
    let title = format!(" delivered samples, at most {}/s", count(max(&history.delivered_samples)));
    plot(frame, rate, title, &history.delivered_samples, 1.0, Color::Green);
}

/// The page of one target.
fn target(frame: &mut Frame<'_>, area: Rect, app: &App, now_ms: i64) {
    let Some(target) = app.selected_target() else { return };
    let block = block(format!(" {} ", target.url), true);
    let inner = block.inner(area);
    frame.render_widget(block, area);
    let mut lines = vec![
        Line::from(vec![key("health"), Span::styled(target.health.clone(), color_of(&target.health))]),
        pair("job", target.job.clone()),
        pair("samples", target.samples.to_string()),
        pair("took", format!("{:.1} ms", target.last_duration_s * 1000.0)),
        pair("missed slots", target.missed.to_string()),
    ];
    if let Some(at) = target.last_scrape_ms {
        lines.push(pair("last scrape", format!("{} ago", seconds((now_ms - at).max(0) as f64 / 1000.0))));
    }
    if let Some(error) = &target.last_error {
        lines.push(Line::from(vec![key("error"), Span::styled(error.clone(), Color::Red)]));
    }
    for (title, labels) in [("labels", &target.labels), ("found as", &target.discovered_labels)] {
        lines.extend(labels.iter().map(|(name, value)| pair(title, format!("{name}={value:?}"))));
    }
    frame.render_widget(Paragraph::new(lines).wrap(Wrap { trim: false }), inner);
}

fn key(name: &str) -> Span<'static> {
    Span::styled(format!(" {name:<13}"), DIM)
}

fn pair(name: &str, value: String) -> Line<'static> {
    Line::from(vec![key(name), Span::raw(value)])
}

/// All values as bars; where they are more than fit, a bar is the highest of its neighbours.
pub(super) fn spark(values: &[f64], width: usize) -> String {
    let per_bar = values.len().div_ceil(width.max(1)).max(1);
    let newest: Vec<f64> = values.chunks(per_bar).map(|near| near.iter().copied().fold(0.0, f64::max)).collect();
    // Below a second of lag there is nothing to see.
    let most = newest.iter().copied().fold(1.0, f64::max);
    let bar = |value: &f64| BARS[((value / most * 7.0).round().clamp(0.0, 7.0)) as usize];
    let bars: String = newest.iter().map(bar).collect();
    format!("{}{bars}", " ".repeat(width - newest.len()))
}

/// `12.3 MiB`.
pub(super) fn bytes(bytes: f64) -> String {
    let mut value = bytes;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            return if unit == "B" { format!("{value:.0} {unit}") } else { format!("{value:.1} {unit}") };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

/// `84.1k`.
pub(super) fn count(count: f64) -> String {
    match count {
        c if c < 1000.0 => format!("{c:.0}"),
        c if c < 1e6 => format!("{:.1}k", c / 1e3),
        c if c < 1e9 => format!("{:.1}M", c / 1e6),
        c => format!("{:.1}G", c / 1e9),
    }
}

fn seconds(seconds: f64) -> String {
    if seconds < 10.0 { format!("{seconds:.1} s") } else { span(seconds) }
}
