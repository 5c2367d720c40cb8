//! What `strata top` knows, and what keys do to it.
//!
//! *In*: snapshots, keys. *Out*: what is to be shown and done. *Bound*: one snapshot. *When full*: does not apply.

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use tokio::time::Instant;

use crate::api::model::{Changed, Pause, Relay, Status, Target};

/// Bytes of a filter that is typed.
const FILTER_MAX: usize = 60;

/// One look.
#[derive(Clone)]
pub(super) struct Snapshot {
    /// When it began.
    pub(super) asked: Instant,
    pub(super) status: Status,
    pub(super) relays: Vec<Relay>,
    /// None: not looked at this time.
    pub(super) targets: Option<Vec<Target>>,
}

/// Which list the keys move in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pane {
    Relays,
    Targets,
}

/// What a key asks for beyond the screen.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// `paused`: it is now, so it is to be resumed.
    Pause { relay: String, paused: bool },
}

/// The screen's state.
pub(super) struct App {
    pub(super) base: String,
    pub(super) relays: Vec<Relay>,
    pub(super) targets: Vec<Target>,
    pub(super) status: Option<Status>,
    /// Since when nothing is heard, and why.
    pub(super) lost: Option<(i64, String)>,
    pub(super) frozen: bool,
    pub(super) filter: String,
    pub(super) is_typing: bool,
    pub(super) pane: Pane,
    pub(super) is_open: bool,
    pub(super) note: Option<String>,
    /// Changes that are not answered yet.
    changing: usize,
    /// When the last change was answered: a look that began before it may know the relays as they were.
    changed: Option<Instant>,
    relay: usize,
    target: usize,
    is_over: bool,
}

impl App {
    pub(super) const fn new(base: String) -> Self {
        Self {
            base,
            relays: Vec::new(),
            targets: Vec::new(),
            status: None,
            lost: None,
            frozen: false,
            filter: String::new(),
            is_typing: false,
            pane: Pane::Relays,
            is_open: false,
            note: None,
            changing: 0,
            changed: None,
            relay: 0,
            target: 0,
            is_over: false,
        }
    }

    pub(super) const fn is_over(&self) -> bool {
        self.is_over
    }

    /// Takes what became of a change of a relay: its note, or why it failed.
    pub(super) fn settle(&mut self, relay: &str, answer: Result<Changed, String>, at: Instant) {
        self.changing = self.changing.saturating_sub(1);
        self.changed = Some(at);
        let note = match answer {
            Err(why) => why,
            Ok(answer) => {
                // What a later change asks for is shown already.
                if self.changing == 0
                    && let Some(known) = self.relays.iter_mut().find(|known| known.name == relay)
                {
                    *known = answer.relay;
                }
                answer.note
            }
        };
        self.note = Some(format!("{relay}: {note}"));
    }

    /// Takes a look, unless the display is frozen.
    pub(super) fn take(&mut self, found: Result<Snapshot, String>, now_ms: i64) {
        match found {
            Err(why) => self.lost = Some((self.lost.as_ref().map_or(now_ms, |(since, _)| *since), why)),
            Ok(found) => {
                self.lost = None;
                if self.frozen {
                    return;
                }
                // What is selected stays selected when the list changes around it.
                let relay = self.selected_relay().map(|relay| relay.name.clone());
                let target = self.selected_target().map(|target| target.id.clone());
                self.status = Some(found.status);
                if self.changing == 0 && self.changed.is_none_or(|changed| found.asked > changed) {
                    self.relays = found.relays;
                }
                if let Some(mut targets) = found.targets {
                    targets.sort_by(|a, b| badness(a).cmp(&badness(b)).then_with(|| (&a.job, &a.url).cmp(&(&b.job, &b.url))));
                    self.targets = targets;
                }
                let at = |index: Option<usize>, before: usize, len: usize| index.unwrap_or(before).min(len.saturating_sub(1));
                self.relay =
                    at(self.shown_relays().iter().position(|r| Some(&r.name) == relay.as_ref()), self.relay, self.shown_relays().len());
                self.target =
                    at(self.shown_targets().iter().position(|t| Some(&t.id) == target.as_ref()), self.target, self.shown_targets().len());
            }
        }
    }

    pub(super) fn shown_relays(&self) -> Vec<&Relay> {
        let wanted = |relay: &&Relay| self.matches(&[&relay.name, &relay.state, &relay.sink]);
        self.relays.iter().filter(wanted).collect()
    }

    pub(super) fn shown_targets(&self) -> Vec<&Target> {
        let wanted =
            |target: &&Target| self.matches(&[&target.job, &target.url, &target.health, target.last_error.as_deref().unwrap_or_default()]);
        self.targets.iter().filter(wanted).collect()
    }

    fn matches(&self, texts: &[&str]) -> bool {
        let filter = self.filter.to_lowercase();
        texts.iter().any(|text| text.to_lowercase().contains(&filter))
    }

    pub(super) fn selected_relay(&self) -> Option<&Relay> {
        self.shown_relays().get(self.relay).copied()
    }

    pub(super) fn selected_target(&self) -> Option<&Target> {
        self.shown_targets().get(self.target).copied()
    }

    pub(super) const fn selected(&self, pane: Pane) -> usize {
        match pane {
            Pane::Relays => self.relay,
            Pane::Targets => self.target,
        }
    }

    /// What a key does.
    pub(super) fn key(&mut self, key: KeyEvent, now_ms: i64) -> Option<Action> {
        if key.modifiers.contains(KeyModifiers::CONTROL) && key.code == KeyCode::Char('c') {
            self.is_over = true;
            return None;
        }
        if self.is_typing {
            self.typed(key.code);
            return None;
        }
        self.note = None;
        match key.code {
            KeyCode::Char('q') if self.is_open => self.is_open = false,
            KeyCode::Char('q') => self.is_over = true,
            KeyCode::Esc if self.is_open => self.is_open = false,
            KeyCode::Esc => self.filter.clear(),
            KeyCode::Char(' ') => self.frozen = !self.frozen,
            KeyCode::Char('/') => self.is_typing = true,
            KeyCode::Tab | KeyCode::BackTab | KeyCode::Left | KeyCode::Right | KeyCode::Char('h' | 'l') => {
                self.pane = if self.pane == Pane::Relays { Pane::Targets } else { Pane::Relays };
            }
            KeyCode::Enter | KeyCode::Char('o') => {
                self.is_open = match self.pane {
                    Pane::Relays => self.selected_relay().is_some(),
                    Pane::Targets => self.selected_target().is_some(),
                };
            }
            KeyCode::Down | KeyCode::Char('j') => self.step(1),
            KeyCode::Up | KeyCode::Char('k') => self.step(-1),
            KeyCode::PageDown => self.step(10),
            KeyCode::PageUp => self.step(-10),
            KeyCode::Home | KeyCode::Char('g') => self.step(isize::MIN),
            KeyCode::End | KeyCode::Char('G') => self.step(isize::MAX),
            KeyCode::Char('p') if self.pane == Pane::Relays => return self.turn_round(now_ms),
            _ => {}
        }
        None
    }

    /// Pauses the selected relay, or resumes it: shown at once, so that the next key turns round what was asked for.
    fn turn_round(&mut self, now_ms: i64) -> Option<Action> {
        let name = self.selected_relay()?.name.clone();
        let relay = self.relays.iter_mut().find(|relay| relay.name == name)?;
        let paused = relay.pause.is_some();
        relay.pause = (!paused).then_some(Pause { since_ms: now_ms, until_ms: None });
        self.changing += 1;
        Some(Action::Pause { relay: name, paused })
    }

    fn typed(&mut self, code: KeyCode) {
        match code {
            KeyCode::Enter => self.is_typing = false,
            KeyCode::Esc => {
                self.is_typing = false;
                self.filter.clear();
            }
            KeyCode::Backspace => drop(self.filter.pop()),
            KeyCode::Char(c) if self.filter.len() + c.len_utf8() <= FILTER_MAX => self.filter.push(c),
            _ => {}
        }
        (self.relay, self.target) = (0, 0);
    }

    /// Moves the selection; past an end it stays there, but from the last relay to the first target and back.
    fn step(&mut self, by: isize) {
        let (relays, targets) = (self.shown_relays().len(), self.shown_targets().len());
        let (at, len) = match self.pane {
            Pane::Relays => (&mut self.relay, relays),
            Pane::Targets => (&mut self.target, targets),
        };
        if !self.is_open && by == 1 && self.pane == Pane::Relays && *at + 1 >= len && targets > 0 {
            (self.pane, self.target) = (Pane::Targets, 0);
        } else if !self.is_open && by == -1 && self.pane == Pane::Targets && *at == 0 && relays > 0 {
            (self.pane, self.relay) = (Pane::Relays, relays - 1);
        } else {
            *at = at.saturating_add_signed(by).min(len.saturating_sub(1));
        }
    }
}

/// The worst first.
fn badness(target: &Target) -> u8 {
    match target.health.as_str() {
        "down" => 0,
        "unknown" => 1,
        _ => 2,
    }
}
