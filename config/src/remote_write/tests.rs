use crate::component::{Kind, Kinds};
use crate::{Config, Overrides, load, parse};

#[derive(schemars::JsonSchema)]
struct Nothing {}

/// Kinds that take everything: what the real ones say is tested where they are.
fn kinds() -> Kinds {
    let any = |name| Kind { name, summary: "", schema: || schemars::schema_for!(Nothing), example: "", check: |_| Ok(()) };
    Kinds {
        filters: vec![any("relabel")],
        encoders: vec![any("remote_write")],
        sinks: vec![any("remote_write"), any("stdout")],
        ..Kinds::default()
    }
}

fn read(text: &str) -> (Config, Vec<String>) {
    let jobs = "scrape_configs: [{job_name: a, static_configs: [{targets: ['a:1']}]}]\n";
    let (config, warnings) = parse("p.yml", &format!("{jobs}{text}"), &Overrides::default(), &kinds()).expect("a good configuration");
    (config, warnings.iter().map(ToString::to_string).collect())
}

#[track_caller]
fn check(theirs: &str, ours: &str, warnings: &[&str]) {
    let (config, said) = read(theirs);
    assert_eq!(config.relays, read(ours).0.relays);
    assert_eq!(said, warnings);
}

#[test]
fn an_entry_with_nothing_but_a_url_is_what_prometheus_sends() {
    check(
        "remote_write:\n  - url: https://user@mimir.example.com:9009/api/v1/push\n",
        "relays:
  - name: remote-write-mimir-example-com-9009-fc90e0
    encode: {remote_write: {exemplars: false, native_histograms: false}}
    sink: {remote_write: {url: 'https://user@mimir.example.com:9009/api/v1/push', enable_http2: false}}
",
        &[],
    );
}

#[test]
fn every_field_has_its_place_in_a_relay() {
    check(
        "remote_write:
  - url: http://h/w
    name: Long Term_1
    remote_timeout: 10s
    protobuf_message: io.prometheus.write.v2.Request
    headers: {X-Scope-OrgID: a}
    send_exemplars: true
    send_native_histograms: false
    write_relabel_configs: [{action: labeldrop, regex: pod}]
    basic_auth: {username: u, password: p}
    tls_config: {insecure_skip_verify: true}
    proxy_url: http://proxy:3128
    follow_redirects: false
    enable_http2: true
    round_robin_dns: false
    metadata_config: {send: true, send_interval: 5m}
    queue_config: {max_shards: 10, max_samples_per_send: 5000, sample_age_limit: 2h}
",
        "relays:
  - name: long-term-1
    filters: [{relabel: [{action: labeldrop, regex: pod}]}]
    encode: {remote_write: {exemplars: true, native_histograms: true}}
    hold: {max_age: 2h}
    sink:
      remote_write:
        url: http://h/w
        timeout: 10s
        headers: {X-Scope-OrgID: a}
        protobuf_message: io.prometheus.write.v2.Request
        items_max: 5000
        requests_max: 10
        metadata_interval: 5m
        basic_auth: {username: u, password: p}
        tls_config: {insecure_skip_verify: true}
        proxy_url: http://proxy:3128
        follow_redirects: false
        enable_http2: true
",
        &[],
    );
}

#[test]
fn what_changes_nothing_is_named_once_per_section_and_what_is_off_is_off() {
    check(
        "remote_write:
  - url: http://h/w
    name: a
    send_native_histograms: true
    round_robin_dns: true
    write_relabel_configs: []
    headers:
    metadata_config: {send: false, send_interval: 5m, max_samples_per_send: 500}
    queue_config: {capacity: 100, min_shards: 2, max_shards: 200, sample_age_limit: 0s, retry_on_http_429: false}
",
        "relays:
  - name: a
    encode: {remote_write: {exemplars: false, native_histograms: true}}
    sink: {remote_write: {url: http://h/w, requests_max: 200, metadata_interval: 0s, enable_http2: false}}
",
        &[
            "p.yml:6:5: remote_write[0]: left out, as it changes nothing here: round_robin_dns",
            "p.yml:10:20: remote_write[0].queue_config: left out, as samples wait in the stream and are tried without end: capacity, min_shards",
            "p.yml:9:55: remote_write[0].metadata_config: left out, as 2000 metrics go with each request: max_samples_per_send",
        ],
    );
}

#[test]
fn mistakes_are_told_where_they_were_written() {
    let text = "relays: [{name: a, sink: stdout}]
remote_write:
  - url: http://h/w
    name: a
    sigv4: {region: eu}
    urll: x
    queue_config: {shards: 1}
    metadata_config: [a]
  - 5
  - url: http://h/w
    queue_config: {sample_age_limit: soon}
  - url: http://h/w
";
    let problems = parse("p.yml", text, &Overrides::default(), &kinds()).expect_err("mistakes");
    let said: Vec<_> = problems.iter().map(ToString::to_string).collect();
    assert_eq!(
        said,
        [
            "p.yml:4:11: remote_write[0].name: 'a' is here a second time, first in line 1: each needs a name of its own",
            "p.yml:5:5: remote_write[0].sigv4: 'sigv4' is not read by this version: send through a proxy that signs, or use basic_auth, \
             authorization or oauth2",
            "p.yml:6:5: remote_write[0].urll: unknown key 'urll', did you mean 'url'?",
            "p.yml:7:20: remote_write[0].queue_config.shards: unknown key 'shards', did you mean 'min_shards'?",
            "p.yml:8:22: remote_write[0].metadata_config: expected a map",
            "p.yml:9:5: remote_write[1]: expected a map",
            "p.yml:11:38: remote_write[2].queue_config.sample_age_limit: 'soon' is no duration: write a number with its unit, largest unit first, \
             like 250ms, 15s or 1h30m",
            "p.yml:12:5: remote_write[3]: 'remote-write-h-9c19f4' is here a second time, first in line 10: each needs a name of its own",
        ]
    );
}

#[test]
fn its_files_are_beside_its_own_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    std::fs::create_dir(path("p")).expect("a folder");
    std::fs::write(path("strata.yaml"), "include: [p/prometheus.yml]\nrelays: [{name: a, sink: stdout}]\n").expect("written");
    let theirs = "remote_write:
  - url: http://h/w
    authorization: {credentials_file: token}
    tls_config: {ca_file: /etc/ca.pem, cert_file: tls/cert.pem, key_file: ''}
    http_headers: {X-Key: {files: [key]}}
";
    std::fs::write(path("p/prometheus.yml"), theirs).expect("written");
    let loaded = load(&path("strata.yaml"), &Overrides::default(), &kinds()).expect("a good configuration");
    let [_, relay] = &loaded.config.relays[..] else { panic!("two relays") };
    let options = &relay.sink.options;
    let file = |name: &str| serde_json::Value::from(path("p").join(name).display().to_string());
    assert_eq!(options["authorization"]["credentials_file"], file("token"));
    assert_eq!(options["tls_config"]["ca_file"], "/etc/ca.pem");
    assert_eq!((&options["tls_config"]["cert_file"], &options["tls_config"]["key_file"]), (&file("tls/cert.pem"), &"".into()));
    assert_eq!(options["http_headers"]["X-Key"]["files"][0], file("key"));
}
