use config::{Kinds, Overrides};

use super::*;

const RUNNING: &str = "
global: {external_labels: {site: north}}
scrape_configs:
  - {job_name: a, static_configs: [{targets: ['h:1']}]}
buffer: {max_bytes: 4GiB, replay_window: 1h}
relays:
  - {name: r, sink: stdout}
";

fn load(text: &str) -> Loaded {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("s.yaml");
    std::fs::write(&path, text).expect("written");
    let kinds = Kinds { sinks: relay::sink::kinds().collect(), ..Kinds::default() };
    config::load(&path, &Overrides::default(), &kinds).unwrap_or_else(|refused| panic!("{:#?}", refused.problems))
}

#[track_caller]
fn check(edit: impl Fn(&str) -> String, expect: &[(&str, &str)]) {
    let wanted = load(&edit(RUNNING));
    let problems = needs_restart(&load(RUNNING).config, &wanted.config, &wanted.places);
    let found: Vec<_> = problems.iter().map(|p| (p.field.as_str(), p.message.split(';').next().unwrap_or_default())).collect();
    assert_eq!(found, expect);
}

#[test]
fn what_runs_can_be_changed_and_the_rest_needs_a_restart_by_name() {
    check(str::to_owned, &[]);
    check(|text| text.replace("north", "south"), &[]);
    check(|text| text.replace("'h:1'", "'h:2'"), &[]);
    check(|text| text.replace("name: r", "name: s"), &[]);
    check(|text| text.replace("replay_window: 1h", "replay_window: 2h"), &[]);
    check(|text| text.replace("4GiB", "8GiB, linger: 1s, memory: 4MiB"), &[]);
    check(
        |text| text.replace("4GiB", "4GiB, replicas: 1, nats_memory: 64MiB"),
        &[("buffer.nats_memory", "needs a restart: '32MiB' runs now")],
    );
    check(
        |text| format!("{text}server: {{listen: '127.0.0.1:1'}}\n").replace("replay_window: 1h", "data_dir: /elsewhere"),
        &[("buffer.data_dir", "needs a restart: './data' runs now"), ("server.listen", "needs a restart: '127.0.0.1:9600' runs now")],
    );
}

#[test]
fn a_field_that_needs_a_restart_is_told_where_it_stands() {
    let wanted = load(&RUNNING.replace("4GiB", "4GiB, nats_memory: 64MiB"));
    let problems = needs_restart(&load(RUNNING).config, &wanted.config, &wanted.places);
    let Place::File { line, column, .. } = problems[0].place else { panic!("{problems:?}") };
    assert_eq!((line, column), (5, 40));
}

#[test]
fn fields_of_the_buffer_that_changed_are_named() {
    let (running, wanted) = (load(RUNNING), load(&RUNNING.replace("4GiB, replay_window: 1h", "5GiB, linger: 1s, replay_window: 1h")));
    assert_eq!(settings(&running.config.buffer, &wanted.config.buffer), ["buffer.linger", "buffer.max_bytes"]);
}
