//! How a configuration comes to be: out of which files, over what, with which values.
//!
//! The kinds here are stand-ins; what is said of mistakes, with the real ones, is in `src/check/mistakes` of the root package.

use config::{Kind, Kinds, OptionsError, Overrides, options};
use serde::Deserialize;
use serde_json::Value;

#[derive(Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "only their names and types matter here")]
struct Clamp {
    #[serde(rename = "if")]
    selector: Option<String>,
    min: Option<f64>,
    max: Option<f64>,
}

#[derive(Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "only their names and types matter here")]
struct Kafka {
    brokers: Vec<String>,
    topic: String,
}

#[derive(Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
struct Http {
    url: String,
    #[serde(default)]
    #[expect(dead_code, reason = "only its name and type matter here")]
    headers: std::collections::BTreeMap<String, String>,
}

#[derive(Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
struct Nothing {}

fn check_http(value: &Value) -> Result<(), OptionsError> {
    let http: Http = options(value)?;
    if http.url.starts_with("http://") || http.url.starts_with("https://") {
        Ok(())
    } else {
        Err(OptionsError::new("url", format!("'{}' is no URL: it begins with http:// or https://", http.url)))
    }
}

fn check_selector(value: &Value) -> Result<(), OptionsError> {
    let text: String = options(value)?;
    if text.starts_with('{') && text.ends_with('}') { Ok(()) } else { Err(OptionsError::new("", format!("'{text}' is no selector"))) }
}

fn kind<T: schemars::JsonSchema>(name: &'static str, check: fn(&Value) -> Result<(), OptionsError>) -> Kind {
    Kind { name, summary: "", schema: || schemars::schema_for!(T), example: "", check }
}

/// Stand-ins with the shapes of the real kinds; the real ones are checked where they are.
fn kinds() -> Kinds {
    Kinds {
        filters: vec![
            kind::<String>("keep", check_selector),
            kind::<String>("drop", check_selector),
            kind::<Clamp>("clamp", |v| options::<Clamp>(v).map(drop)),
        ],
        encoders: vec![
            kind::<Nothing>("ndjson", |v| options::<Nothing>(v).map(drop)),
            kind::<Nothing>("json", |v| options::<Nothing>(v).map(drop)),
            kind::<Nothing>("dogstatsd", |v| options::<Nothing>(v).map(drop)),
        ],
        sinks: vec![
            kind::<Nothing>("stdout", |v| options::<Nothing>(v).map(drop)),
            kind::<Http>("http", check_http),
            kind::<Kafka>("kafka", |v| options::<Kafka>(v).map(drop)),
        ],
        refuses: None,
        out_of_order: None,
        says: None,
        consumers: Some(|sink| (sink.name == "stdout").then(|| vec!["agent".to_owned()])),
        owns: None,
    }
}

/// Each file says a part, and what they say is one configuration.
#[test]
fn a_configuration_is_made_of_what_its_files_say() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    std::fs::create_dir_all(path("relays.d/more")).expect("a folder");
    let main =
        "include: ['relays.d/*.yaml', 'absent.d/*.yaml', jobs.yaml]\nbuffer: {max_bytes: 1GiB}\nrelays: [{name: own, sink: stdout}]\n";
    for (name, text) in [
        ("strata.yaml", main),
        ("relays.d/b.yaml", "relays: [{name: b, sink: stdout}]\nbuffer: {linger: 1s}\n"),
        ("relays.d/a.yaml", "include: ['more/*']\nrelays:\n  - {name: a, sink: stdout}\n"),
        ("relays.d/more/deep.yaml", "relays: [{name: deep, sink: stdout}]\nscrape_configs:\n"),
        ("jobs.yaml", "scrape_configs: [{job_name: j, file_sd_configs: [{files: ['t/*.json']}]}]\nrelays:\n"),
    ] {
        std::fs::write(path(name), text).expect("written");
    }
    let loaded = config::load(&path("strata.yaml"), &Overrides::default(), &kinds()).expect("a good configuration");
    let relays: Vec<_> = loaded.config.relays.iter().map(|relay| relay.name.as_str()).collect();
    assert_eq!(relays, ["own", "a", "deep", "b"]);
    assert_eq!((loaded.config.buffer.max_bytes, loaded.config.buffer.linger), (config::ByteSize::gib(1), config::Millis(1000)));
    assert_eq!(loaded.config.scrape_configs[0].file_sd_configs[0].files, [path("t/*.json")]);
    assert_eq!(loaded.config.include, Vec::<std::path::PathBuf>::new());
    let names = ["strata.yaml", "relays.d/a.yaml", "relays.d/more/deep.yaml", "relays.d/b.yaml", "jobs.yaml"];
    assert_eq!(loaded.sources.files, names.map(path));
    assert_eq!(loaded.places.of("relays[2].name").to_string(), format!("{}:1:17", path("relays.d/more/deep.yaml").display()));
    assert_eq!(loaded.sources.patterns.len(), 3, "also the one that nothing fits");
}

#[test]
fn environment_and_flags_win_over_the_file() {
    let env = [("STRATA_BUFFER__MAX_BYTES", "1GiB"), ("STRATA_SERVER__LISTEN", "127.0.0.1:1"), ("STRATA_CORPORA", "/x"), ("PATH", "/bin")];
    let overrides = Overrides::environment(env.map(|(k, v)| (k.to_owned(), v.to_owned())));
    let overrides = overrides.flag("--set server.listen", "server.listen", "127.0.0.1:2");
    let text = "buffer: {max_bytes: 5GiB, linger: 1s}\nserver: {listen: '127.0.0.1:3'}\nscrape_configs:\n";
    let (config, _) = config::parse("x.yaml", text, &overrides, &kinds()).expect("a good configuration");
    assert_eq!(config.buffer.max_bytes, config::ByteSize::gib(1));
    assert_eq!(config.buffer.linger, config::Millis(1000));
    assert_eq!(config.server.listen, "127.0.0.1:2");
    assert_eq!(config.buffer.memory, config::MEMORY);
}

#[test]
fn numbers_are_text_where_text_is_wanted() {
    let text = "scrape_configs: [{job_name: 7, static_configs: [{targets: ['a:1'], labels: {port: 9100, up: true, version: 1.10}}]}]";
    let (config, _) = config::parse("x.yaml", text, &Overrides::default(), &kinds()).expect("a good configuration");
    let job = &config.scrape_configs[0];
    let labels: Vec<_> = job.static_configs[0].labels.values().map(String::as_str).collect();
    assert_eq!((job.job_name.as_str(), labels), ("7", vec!["9100", "true", "1.10"]));
}

#[test]
fn a_timeout_nobody_wrote_fits_the_interval() {
    let (config, _) =
        config::parse("x.yaml", "global: {scrape_interval: 5s}", &Overrides::default(), &kinds()).expect("a good configuration");
    assert_eq!(config.global.scrape_timeout, config::Millis::from_secs(5));
}

#[test]
fn a_job_that_says_which_names_are_names_does_not_inherit_how_others_are_asked_for() {
    use config::{EscapingScheme::*, ValidationScheme::*};
    let text = "global: {metric_name_validation_scheme: legacy, metric_name_escaping_scheme: dots}\nscrape_configs:\n  - job_name: neither\n  \
                - {job_name: utf8, metric_name_validation_scheme: utf8}\n  - {job_name: legacy, metric_name_validation_scheme: legacy}\n  \
                - {job_name: escaping, metric_name_escaping_scheme: values}\n";
    let (config, _) = config::parse("x.yaml", text, &Overrides::default(), &kinds()).expect("a good configuration");
    let schemes: Vec<_> = config.scrape_configs.iter().map(|job| (job.metric_name_validation_scheme, job.escaping())).collect();
    assert_eq!(schemes, [(Some(Legacy), Dots), (Some(Utf8), AllowUtf8), (Some(Legacy), Underscores), (Some(Legacy), Values)]);
}

#[test]
fn anchors_and_merge_keys_are_read() {
    let text = "scrape_configs:\n  - &a {job_name: a, static_configs: [{targets: ['h:1']}]}\n  - {<<: *a, job_name: b}\n";
    let (config, _) = config::parse("x.yaml", text, &Overrides::default(), &kinds()).expect("a good configuration");
    assert_eq!(config.scrape_configs[1].static_configs, config.scrape_configs[0].static_configs);
    assert_eq!(config.scrape_configs[1].job_name, "b");
}

#[test]
fn numbers_in_options_are_text_where_text_is_wanted() {
    let text = "relays: [{name: a, sink: {kafka: {brokers: [1], topic: 2.50}}}]";
    let (config, _) = config::parse("x.yaml", text, &Overrides::default(), &kinds()).expect("a good configuration");
    assert_eq!(config.relays[0].sink.options, serde_json::json!({"brokers": ["1"], "topic": "2.50"}));
}

#[test]
fn what_was_read_can_be_written_and_read_again() {
    let text = include_str!("../examples/demo.yaml");
    let (config, _) = config::parse("x.yaml", text, &Overrides::default(), &all()).expect("a good configuration");
    let json = serde_json::to_string(&config).expect("it has a text form");
    let (again, _) = config::parse("x.yaml", &json, &Overrides::default(), &all()).expect("a good configuration");
    assert_eq!(again, config);
}

/// Both readers of YAML see the same values: the one that keeps places, and `serde_yaml`.
#[test]
fn examples_are_read_alike_by_serde_yaml() {
    for (name, text) in EXAMPLES {
        let (config, warnings) = config::parse(name, text, &Overrides::default(), &all()).expect(name);
        let plain: Value = serde_yaml::from_str(text).expect(name);
        let by_serde: config::Config = serde_json::from_value(plain).expect(name);
        assert_eq!(config.relays, by_serde.relays, "{name}");
        assert_eq!(config.scrape_configs, by_serde.scrape_configs, "{name}");
        assert_eq!(config.buffer, by_serde.buffer, "{name}");
        assert_eq!(config.tests, by_serde.tests, "{name}");
        assert_eq!(warnings, [], "{name}");
    }
}

const EXAMPLES: [(&str, &str); 6] = [
    ("strata.yaml", include_str!("../examples/strata.yaml")),
    ("quickstart.yaml", include_str!("../examples/quickstart.yaml")),
    ("demo.yaml", include_str!("../examples/demo.yaml")),
    ("kafka.yaml", include_str!("../examples/kafka.yaml")),
    ("kafka-secure.yaml", include_str!("../examples/kafka-secure.yaml")),
    ("statsd.yaml", include_str!("../examples/statsd.yaml")),
];

/// Kinds that take everything: what the real ones say of the examples is tested where they are.
fn all() -> Kinds {
    let any = |name| Kind { name, summary: "", schema: || schemars::schema_for!(Nothing), example: "", check: |_| Ok(()) };
    Kinds {
        filters: ["keep", "drop", "clip", "clamp", "exclude"].map(any).to_vec(),
        encoders: ["ndjson", "json", "statsd", "dogstatsd", "remote_write"].map(any).to_vec(),
        sinks: ["file", "stdout", "http", "kafka", "statsd", "remote_write"].map(any).to_vec(),
        refuses: None,
        out_of_order: None,
        says: None,
        consumers: Some(|sink| (sink.name == "stdout").then(|| vec!["agent".to_owned()])),
        owns: None,
    }
}

/// A prometheus.yml with all it may have, in a folder with the files that it names.
#[test]
fn a_whole_prometheus_yml_is_read_with_its_files() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    std::fs::create_dir(path("jobs")).expect("a folder");
    std::fs::write(path("prometheus.yml"), include_str!("prometheus.yml")).expect("written");
    let job = "scrape_configs:\n  - job_name: extra\n    authorization: {credentials_file: token}\n    file_sd_configs: [{files: ['*.json']}]\n    \
         scrape_classic_histograms: true\n";
    std::fs::write(path("jobs/extra.yml"), job).expect("written");
    let loaded = config::load(&path("prometheus.yml"), &Overrides::default(), &all()).expect("a good configuration");
    let config::Loaded { config, warnings, sources, places } = loaded;
    assert_eq!(sources.files, ["prometheus.yml", "jobs/extra.yml"].map(path));
    assert_eq!(sources.patterns.len(), 2);
    assert_eq!(places.of("scrape_configs[1].job_name").to_string(), format!("{}:2:15", path("jobs/extra.yml").display()));
    let jobs: Vec<_> = config.scrape_configs.iter().map(|scrape| scrape.job_name.as_str()).collect();
    assert_eq!(jobs, ["prometheus", "extra"]);
    let [own, extra] = &config.scrape_configs[..] else { panic!("two jobs") };
    assert_eq!(own.file_sd_configs[0].files, [path("targets/*.json")], "relative to the file");
    assert_eq!(extra.file_sd_configs[0].files, [path("jobs/*.json")], "relative to its own file");
    assert_eq!(extra.http.authorization.as_ref().and_then(|a| a.credentials_file.clone()), Some(path("jobs/token")));
    assert_eq!((own.sample_limit, extra.sample_limit), (5, 100), "the general limit where there is no other");
    assert_eq!((own.always_scrape_classic_histograms, extra.always_scrape_classic_histograms), (None, Some(true)), "by its older name");
    let relays: Vec<_> = config.relays.iter().map(|relay| (relay.name.as_str(), relay.sink.name.as_str())).collect();
    assert_eq!(relays, [("remote-write-localhost-9009-5be116", "remote_write")]);
    let warnings: Vec<_> = warnings.iter().map(|w| w.to_string().replace(&folder.path().display().to_string(), "DIR")).collect();
    assert_eq!(
        warnings,
        [
            "DIR/prometheus.yml:3:3: left out, as Strata neither stores, queries nor alerts: global.evaluation_interval, rule_files, \
             alerting, storage",
            "DIR/jobs/extra.yml:5:5: scrape_configs[0].scrape_classic_histograms: read as 'always_scrape_classic_histograms', which is its \
             name since Prometheus 3",
            "DIR/prometheus.yml:9:35: scrape_config_files[1]: no file fits 'jobs/*.yaml'",
        ]
    );
}

/// Its own `global` holds for its own jobs, and for those of the files that it names.
#[test]
fn a_whole_prometheus_yml_can_be_one_of_the_scrape_config_files() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    std::fs::create_dir_all(path("other/more")).expect("a folder");
    for (name, text) in [
        (
            "strata.yaml",
            "global: {scrape_interval: 15s, scrape_timeout: 7s, sample_limit: 9}\nscrape_config_files: [other/prometheus.yml]\n\
             scrape_configs: [{job_name: own}]\nrelays: [{name: r, sink: stdout}]\n",
        ),
        (
            "other/prometheus.yml",
            "global:\n  scrape_interval: 30s\n  scrape_timeout: 20s\n  sample_limit: 100\n  external_labels: {a: b}\n  \
             evaluation_interval: 1m\nrule_files: []\nremote_write: [{url: 'http://h/'}]\nscrape_config_files: [more/*.yml]\nscrape_configs:\n  - job_name: plain\n  \
             - {job_name: fast, scrape_interval: 5s}\n  - {job_name: set, sample_limit: 3, scrape_timeout: 1s}\n",
        ),
        ("other/more/one.yml", "scrape_configs: [{job_name: deep, bearer_token_file: token}]\n"),
    ] {
        std::fs::write(path(name), text).expect("written");
    }
    let loaded = config::load(&path("strata.yaml"), &Overrides::default(), &kinds()).expect("a good configuration");
    let seconds = |millis: Option<config::Millis>| millis.map(|millis| millis.0 / 1000);
    let told =
        |job: &config::ScrapeConfig| (job.job_name.clone(), seconds(job.scrape_interval), seconds(job.scrape_timeout), job.sample_limit);
    let jobs: Vec<_> = loaded.config.scrape_configs.iter().map(told).collect();
    let job = |name: &str, interval, timeout, limit| (name.to_owned(), interval, timeout, limit);
    assert_eq!(
        jobs,
        [
            job("own", None, None, 9),
            job("plain", Some(30), Some(20), 100),
            job("fast", Some(5), Some(5), 100),
            job("set", Some(30), Some(1), 3),
            job("deep", Some(30), Some(20), 100),
        ]
    );
    assert_eq!(loaded.config.global.external_labels.len(), 0);
    assert_eq!(loaded.config.scrape_configs[4].http.bearer_token_file, Some(path("other/more/token")));
    let warnings: Vec<_> = loaded.warnings.iter().map(|w| w.to_string().replace(&folder.path().display().to_string(), "DIR")).collect();
    assert_eq!(
        warnings,
        ["DIR/other/prometheus.yml:5:3: left out, as Strata neither stores, queries nor alerts: global.external_labels, \
          global.evaluation_interval, rule_files, remote_write; what is collected goes where the file that names this one says; \
          labels of all series are those of the file that names this one"]
    );
    assert_eq!(loaded.sources.files, ["strata.yaml", "other/prometheus.yml", "other/more/one.yml"].map(path));

    std::fs::write(path("other/more/one.yml"), "scrape_config_files: [../prometheus.yml]\n").expect("written");
    let refused = config::load(&path("strata.yaml"), &Overrides::default(), &kinds()).expect_err("it names itself");
    let said = refused.problems[0].to_string();
    assert!(said.contains("prometheus.yml' includes itself through 'one.yml' (named in "), "{said}");
}

#[test]
fn a_mistake_in_an_included_file_is_told_with_its_place() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    std::fs::write(path("a.yml"), "scrape_config_files: [b.yml, c.yml, d.yml]\nscrape_configs: [{job_name: x}]\n").expect("written");
    std::fs::write(path("b.yml"), "scrape_configs:\n  - {job_name: x}\n  - {job_nam: y}\nrelays: []\nglobal: {scrape_intervall: 1s}\n")
        .expect("written");
    std::fs::write(path("c.yml"), "[]").expect("written");
    let refused = config::load(&path("a.yml"), &Overrides::default(), &kinds()).expect_err("mistakes");
    assert_eq!(refused.sources.files, ["a.yml", "b.yml", "c.yml", "d.yml"].map(path));
    let said: Vec<_> = refused.problems.iter().map(|p| p.to_string().replace(&folder.path().display().to_string(), "DIR")).collect();
    assert_eq!(
        said,
        [
            "DIR/a.yml:1:37: scrape_config_files[2]: cannot read 'DIR/d.yml': it does not exist",
            "DIR/b.yml:2:16: scrape_configs[1].job_name: 'x' is here a second time, first in DIR/a.yml:2:29: each needs a name of its own",
            "DIR/b.yml:3:5: scrape_configs[2]: 'job_name' is missing",
            "DIR/b.yml:3:6: scrape_configs[2].job_nam: unknown key 'job_nam', did you mean 'job_name'?",
            "DIR/b.yml:4:1: relays: 'relays' cannot stand in a file of scrape_config_files: only what a prometheus.yml has can; \
             `include` takes whole files",
            "DIR/b.yml:5:10: global.scrape_intervall: unknown key 'scrape_intervall', did you mean 'scrape_interval'?",
            "DIR/c.yml:1:1: expected a map with scrape_configs",
        ]
    );
}
