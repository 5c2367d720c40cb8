//! `strata check`: everything that is wrong with a configuration, at once.
//!
//! *In*: a configuration file. *Out*: its problems, warnings and failed tests; exit code 0, 1 where a test failed, 2 where it cannot be
//! used. *Bound*: [`config::PROBLEMS_MAX`]. Nothing is asked over the network.
//! *When full*: the rest is counted.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use config::{ByteSize, Config, Kinds, Loaded, Millis, Overrides, Problem, Refused, Warning};
use serde_json::json;

use crate::{FAILED, Output, Source, USAGE, page, trial};

/// Bytes of a sample in the stream, for an estimate: between a steady page's 1 and a wild one's 9. Larger: warnings that are none; smaller: a
/// window that does not fit goes unnoticed.
const SAMPLE_BYTES: f64 = 2.0;
/// Series that a target has at least in all likelihood: less room than that is worth a warning. node_exporter has about 1,000.
const SERIES_LIKELY: f64 = 500.0;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    source: Source,
    /// Check a page of metrics instead, by every rule of its format's specification, as `strict` does.
    #[arg(long, value_name = "FILE")]
    page: Option<PathBuf>,
    /// The format of the page; left out: what it looks like.
    #[arg(long, value_enum, requires = "page")]
    format: Option<page::Kind>,
    /// How the findings are printed.
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

impl Args {
    /// As `strata run --check` does it.
    pub(crate) const fn of(source: Source) -> Self {
        Self { source, page: None, format: None, output: Output::Text }
    }
}

/// The kinds of filters, encoders and sinks in this binary.
pub(crate) fn kinds() -> Kinds {
    Kinds {
        filters: relay::filter::kinds().collect(),
        encoders: relay::encode::kinds().collect(),
        sinks: relay::sink::kinds().collect(),
        refuses: Some(relay::sink::refuses),
        out_of_order: Some(relay::sink::out_of_order),
        says: Some(relay::filter::says),
        consumers: Some(relay::sink::consumers),
        owns: Some(relay::sink::owns),
    }
}

/// Reads the configuration with its overrides from environment and flags.
pub(crate) fn load(source: &Source) -> Result<Loaded, Refused> {
    let vars = std::env::vars_os().filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)));
    let overrides = Overrides::environment(vars);
    let overrides = source.set.iter().fold(overrides, |o, (key, value)| o.flag(format!("--set {key}"), key.clone(), value.clone()));
    config::load(&source.config, &overrides, &kinds())
}

/// As [`load`], for commands that do something with it: findings are printed, and problems end the command.
pub(crate) fn load_or_report(source: &Source) -> Result<Config, ExitCode> {
    report(load(source)).map(|loaded| loaded.config)
}

/// Prints what was found; problems become the exit code.
pub(crate) fn report(found: Result<Loaded, Refused>) -> Result<Loaded, ExitCode> {
    match found {
        Ok(loaded) => {
            loaded.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
            Ok(loaded)
        }
        Err(Refused { problems, .. }) => {
            problems.iter().for_each(|problem| eprintln!("error: {problem}"));
            Err(ExitCode::from(USAGE))
        }
    }
}

pub(crate) fn main(args: &Args) -> ExitCode {
    if let Some(file) = &args.page {
        return page::main(file, args.format, args.output);
    }
    let mut report = Report::default();
    match load(&args.source) {
        Ok(loaded) => report.look(&args.source, loaded),
        Err(Refused { problems, .. }) => report.problems = problems,
    }
    if args.output == Output::Json {
        println!("{}", json!(report));
    } else {
        report.print();
    }
    match report {
        Report { problems, .. } if !problems.is_empty() => ExitCode::from(USAGE),
        Report { failed_tests, .. } if !failed_tests.is_empty() => ExitCode::from(FAILED),
        _ => ExitCode::SUCCESS,
    }
}

/// What there is to say of a configuration.
#[derive(Default, serde::Serialize)]
struct Report {
    problems: Vec<Problem>,
    warnings: Vec<Warning>,
    /// Tests that did not come out as expected.
    failed_tests: Vec<Problem>,
    /// Tests that were run.
    tests: usize,
    jobs: usize,
    /// Targets that were written, or found in files.
    targets: usize,
    relays: usize,
    /// What an external server promises less.
    #[serde(skip_serializing_if = "Option::is_none")]
    promise: Option<String>,
    #[serde(skip)]
    summary: String,
}

impl Report {
    /// Looks at what the configuration names on this machine, and runs its tests.
    fn look(&mut self, source: &Source, loaded: Loaded) {
        self.warnings = loaded.warnings.clone();
        (self.jobs, self.relays, self.tests) = (loaded.config.scrape_configs.len(), loaded.config.relays.len(), loaded.config.tests.len());
        self.failed_tests = trial::failures(&loaded.config, &loaded.places);
        self.survey(&loaded);
        self.promise = crate::nats::weaker(&loaded.config).map(str::to_owned);
        if self.promise.is_none() {
            self.warnings.extend(in_memory(&loaded));
        }
        let (jobs, targets, relays) = (count(self.jobs, "job"), count(self.targets, "target"), count(self.relays, "relay"));
        let tests = if self.tests == 0 { String::new() } else { format!(", {}", count(self.tests, "test")) };
        let asks = |scrape: &config::ScrapeConfig| !scrape.kubernetes_sd_configs.is_empty() || scrape.kubernetes_annotations.is_some();
        let cluster = match loaded.config.scrape_configs.iter().any(asks) {
            true => "; no cluster was asked for targets: `strata targets --find` does that",
            false => "",
        };
        self.summary = format!("{} is fine: {jobs} with {targets}, {relays}{tests}{cluster}", source.config.display());
    }

    /// Counts the targets that need no network to be found, and compares what they bring with what may be kept.
    fn survey(&mut self, loaded: &Loaded) {
        let mut config = loaded.config.clone();
        for scrape in &mut config.scrape_configs {
            scrape.http_sd_configs.clear();
            scrape.dns_sd_configs.clear();
            scrape.kubernetes_sd_configs.clear();
            scrape.kubernetes_annotations = None;
        }
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
        // What cannot be found is a warning of the check, not a line in a log.
        let surveyed = || runtime.block_on(collector::survey::survey(&config, |_| true, || {}));
        let Ok(survey) = tracing::subscriber::with_default(tracing::subscriber::NoSubscriber::new(), surveyed) else { return };
        self.targets = survey.targets.len();
        for (job, failure) in survey.failures {
            let index = config.scrape_configs.iter().position(|scrape| scrape.job_name == job).unwrap_or_default();
            self.warn(loaded, &format!("scrape_configs[{index}]"), failure);
        }
        let interval = |job: &str| {
            let scrape = config.scrape_configs.iter().find(|scrape| scrape.job_name == job);
            scrape.and_then(|scrape| scrape.scrape_interval).unwrap_or(config.global.scrape_interval)
        };
        let scrapes_per_second: f64 = survey.targets.iter().map(|target| 1000.0 / interval(&target.job).0.max(1) as f64).sum();
        if scrapes_per_second > 0.0 {
            self.room(loaded, scrapes_per_second);
        }
    }

    /// Says which of two wishes wins where both cannot hold.
    fn room(&mut self, loaded: &Loaded, scrapes_per_second: f64) {
        let buffer = &loaded.config.buffer;
        let series = |within: Millis, bytes: ByteSize| {
            let seconds = (within.0 as f64 / 1000.0).max(1.0);
            bytes.0 as f64 / SAMPLE_BYTES / seconds / scrapes_per_second
        };
        let fits = series(buffer.replay_window, buffer.max_bytes);
        if fits < SERIES_LIKELY {
            let (window, bytes) = (buffer.replay_window, buffer.max_bytes);
            self.warn(
                loaded,
                "buffer.replay_window",
                format!(
                    "{window} will hardly fit buffer.max_bytes ({bytes}): that is room for {fits:.0} series per target at about {SAMPLE_BYTES} \
                     bytes a sample; max_bytes wins, and less can be replayed"
                ),
            );
        }
        for (index, relay) in loaded.config.relays.iter().enumerate() {
            let Some(age) = relay.hold.max_age else { continue };
            let bytes = relay.hold.max_bytes.map_or(buffer.max_bytes, |bytes| bytes.min(buffer.max_bytes));
            let fits = series(age, bytes);
            if fits < SERIES_LIKELY {
                let wall = if bytes < buffer.max_bytes { "hold.max_bytes" } else { "buffer.max_bytes" };
                self.warn(
                    loaded,
                    &format!("relays[{index}].hold.max_age"),
                    format!(
                        "{age} will hardly fit {wall} ({bytes}): that is room for {fits:.0} series per target at about {SAMPLE_BYTES} bytes a \
                         sample; {wall} wins, and the relay may lose samples sooner"
                    ),
                );
            }
        }
    }

    fn warn(&mut self, loaded: &Loaded, field: &str, message: String) {
        self.warnings.push(Warning(Problem { place: loaded.places.of(field), field: field.to_owned(), message }));
    }

    fn print(&self) {
        self.problems.iter().for_each(|problem| println!("{problem}"));
        self.warnings.iter().for_each(|warning| println!("warning: {warning}"));
        self.failed_tests.iter().for_each(|failed| println!("test failed: {failed}"));
        if let Some(promise) = &self.promise {
            println!("note: buffer.nats is external: {promise}");
        }
        match (self.problems.len(), self.failed_tests.len()) {
            (0, 0) => println!("{}", self.summary),
            (0, failed) => eprintln!("{failed} of {} failed", count(self.tests, "test")),
            (problems, _) => eprintln!("{}", count(problems, "problem")),
        }
    }
}

/// A stream that a restart of the machine empties.
fn in_memory(loaded: &Loaded) -> Option<Warning> {
    let data_dir = &loaded.config.buffer.data_dir;
    let there = data_dir
        .ancestors()
        .map(|folder| if folder.as_os_str().is_empty() { Path::new(".") } else { folder })
        .find(|folder| folder.exists())?;
    let kind = nix::sys::statfs::statfs(there).ok()?.filesystem_type();
    let field = "buffer.data_dir";
    let message = format!(
        "'{}' is in memory (tmpfs): what waits there is gone when the machine restarts; choose a folder on a disk",
        data_dir.display()
    );
    (kind == nix::sys::statfs::TMPFS_MAGIC).then(|| Warning(Problem { place: loaded.places.of(field), field: field.to_owned(), message }))
}

fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

#[cfg(test)]
mod mistakes;
#[cfg(test)]
mod tests {
    use super::*;

    /// The shipped examples pass with the real kinds, and without a warning.
    #[test]
    fn examples_are_fine() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("config/examples");
        let files: Vec<_> = std::fs::read_dir(folder).expect("the folder is there").filter_map(|e| Some(e.ok()?.path())).collect();
        assert!(files.len() >= 4);
        for file in files.into_iter().filter(|file| file.extension().is_some_and(|end| end == "yaml")) {
            let loaded = config::load(&file, &Overrides::default(), &kinds()).unwrap_or_else(|p| panic!("{p:#?}"));
            assert_eq!(loaded.warnings, [], "{}", file.display());
            assert_eq!(trial::failures(&loaded.config, &loaded.places), [], "{}", file.display());
        }
    }

    /// Every option that names a file is one by its schema: by that a relative one begins at the folder of its configuration file.
    #[test]
    fn every_option_that_names_a_file_is_a_path() {
        fn look(schema: &serde_json::Value, found: &mut usize, wrong: &mut Vec<String>) {
            let properties = schema.get("properties").and_then(serde_json::Value::as_object);
            for (key, property) in properties.into_iter().flatten() {
                let is_file = key.ends_with("_file") || key == "files" || key == "path";
                if is_file && !property.to_string().contains("\"#/$defs/Path\"") {
                    wrong.push(format!("{key}: {property}"));
                }
                *found += usize::from(is_file);
            }
            match schema {
                serde_json::Value::Object(map) => map.values().for_each(|inner| look(inner, found, wrong)),
                serde_json::Value::Array(items) => items.iter().for_each(|inner| look(inner, found, wrong)),
                _ => {}
            }
        }
        let (mut found, mut wrong) = (0, Vec::new());
        look(&config::schema(&kinds()), &mut found, &mut wrong);
        assert!(found > 20 && wrong.is_empty(), "{found} found, these are no paths: {wrong:#?}");
    }

    #[test]
    fn paths_begin_at_the_folder_of_the_file_that_holds_them() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        std::fs::create_dir(path("more")).expect("a folder");
        let main = "include: [more/*.yaml]\nbuffer: {data_dir: here}\nserver: {tls: {cert_file: c.pem, key_file: /etc/k.pem}}\n\
                    scrape_configs: [{job_name: j, tls_config: {ca_file: ../ca.pem}, file_sd_configs: [{files: ['t/*.json']}]}]\n";
        let relays = "relays:\n\
            - {name: file, sink: {file: {path: out.ndjson}}}\n\
            - {name: kafka, sink: {kafka: {brokers: ['b:1'], topic: t, tls: {ca_file: ca.pem}, sasl: {mechanism: PLAIN, username: u, password_file: pw}}}}\n\
            - {name: http, sink: {http: {url: 'https://h/', authorization: {credentials_file: token}, http_headers: {X: {files: [x]}}}}}\n\
            - {name: write, sink: {remote_write: {url: 'https://h/', oauth2: {client_id: i, token_url: 'https://h/', client_secret_file: s}}}}\n";
        std::fs::write(path("strata.yaml"), main).expect("written");
        std::fs::write(path("more/relays.yaml"), relays).expect("written");
        let loaded = config::load(&path("strata.yaml"), &Overrides::default(), &kinds()).unwrap_or_else(|p| panic!("{p:#?}"));
        let written = serde_json::to_value(&loaded.config).expect("it has a text form");
        for (pointer, expect) in [
            ("/server/tls/cert_file", path("c.pem")),
            ("/server/tls/key_file", "/etc/k.pem".into()),
            ("/scrape_configs/0/tls_config/ca_file", path("../ca.pem")),
            ("/scrape_configs/0/file_sd_configs/0/files/0", path("t/*.json")),
            ("/relays/0/sink/file/path", path("more/out.ndjson")),
            ("/relays/1/sink/kafka/tls/ca_file", path("more/ca.pem")),
            ("/relays/1/sink/kafka/sasl/password_file", path("more/pw")),
            ("/relays/2/sink/http/authorization/credentials_file", path("more/token")),
            ("/relays/2/sink/http/http_headers/X/files/0", path("more/x")),
            ("/relays/3/sink/remote_write/oauth2/client_secret_file", path("more/s")),
            ("/buffer/data_dir", "here".into()),
        ] {
            let found = written.pointer(pointer).and_then(serde_json::Value::as_str);
            assert_eq!(found.map(std::path::Path::new), Some(expect.as_path()), "{pointer}");
        }
        // What a flag says begins where the command is run.
        let flag = Overrides::default().flag("--set", "server.tls.cert_file", "f.pem");
        let loaded = config::load(&path("strata.yaml"), &flag, &kinds()).unwrap_or_else(|p| panic!("{p:#?}"));
        assert_eq!(loaded.config.server.tls.map(|tls| tls.cert_file), Some("f.pem".into()));
    }

    /// A sink that reads its items takes no other encoder's.
    #[test]
    fn an_encoder_that_the_sink_refuses_is_a_problem_with_its_place() {
        let text = "relays:\n  - name: r\n    encode: ndjson\n    sink:\n      remote_write: {url: 'http://h/'}\n";
        let problems = config::parse("f", text, &Overrides::default(), &kinds()).expect_err("refused");
        let found: Vec<_> = problems.iter().map(|p| (p.field.as_str(), p.message.as_str())).collect();
        let expect = "the sink 'remote_write' takes only the encoder 'remote_write': remove 'encode'";
        assert_eq!(found, [("relays[0].encode", expect)]);
        let fine = text.replace("ndjson", "remote_write");
        assert!(config::parse("f", &fine, &Overrides::default(), &kinds()).is_ok());
    }

    /// What adds up, or is read in the order in which it was written, takes nothing that is older than what it has.
    #[test]
    fn the_newest_first_is_refused_where_order_is_needed() {
        let check = |more: &str, catch_up: &str| {
            let text = format!(
                "scrape_configs: [{{job_name: j, static_configs: [{{targets: ['h:1']}}]}}]\nrelays:\n  - name: r\n    catch_up: {catch_up}\n    {more}\n"
            );
            let found = config::parse("f", &text, &Overrides::default(), &kinds());
            let said = |problems: Vec<config::Problem>| problems.iter().map(|p| format!("{}: {}", p.field, p.message)).collect::<Vec<_>>();
            found.map(|(_, warnings)| warnings.iter().map(ToString::to_string).collect::<Vec<_>>()).map_err(said)
        };
        let fresh = "{order: fresh_first, rate: 20k/s}";
        let ordered = [
            "sink: {statsd: {address: 'udp://h:1'}}",
            "sink: {file: {path: /tmp/x}}",
            "sink: {kafka: {brokers: ['h:1'], topic: t, transactional_id: id}}",
            "encode: dogstatsd\n    sink: stdout",
        ];
        for needs in ordered {
            let problems = check(needs, fresh).expect_err("refused");
            assert!(matches!(&problems[..], [one] if one.starts_with("relays[0].catch_up.order: the ")), "{problems:?}");
            assert_eq!(check(needs, "{order: in_order}"), Ok(Vec::new()));
        }
        let warnings = check("sink: {remote_write: {url: 'http://h/'}}", fresh).expect("taken");
        assert!(matches!(&warnings[..], [one] if one.contains("out_of_order_time_window")), "{warnings:?}");
        assert_eq!(check("sink: stdout", fresh), Ok(Vec::new()));
        let warnings = check("sink: stdout", "{rate: 20k/s}").expect("taken");
        assert!(matches!(&warnings[..], [one] if one.contains("relays[0].catch_up.rate: has no effect in order")), "{warnings:?}");
        let short = check("batch_time: 10s\n    sink: stdout", "{order: fresh_first, after: 15s}").expect_err("refused");
        assert_eq!(short, ["relays[0].catch_up.after: 15s is too short: 20s or more"]);
        let none = check("sink: stdout", "{order: fresh_first, rate: 0}").expect_err("refused");
        assert!(none[0].starts_with("relays[0].catch_up.rate: "), "{none:?}");
    }

    /// Wherever the same file is named from; a device is anybody's.
    #[test]
    fn a_file_of_two_relays_is_a_problem_with_both_places() {
        let folder = std::env::current_dir().expect("a folder").display().to_string();
        let relay = |name: &str, path: &str| format!("  - name: {name}\n    sink: {{file: {{path: '{path}'}}}}\n");
        let check = |paths: [&str; 3]| {
            let relays: String = ["a", "b", "c"].iter().zip(paths).map(|(name, path)| relay(name, path)).collect();
            let found = config::parse("f", &format!("relays:\n{relays}"), &Overrides::default(), &kinds());
            found.map(drop).map_err(|problems| problems.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        let message = format!(
            "f:5:25: relays[1].sink.file.path: '{folder}/x.ndjson' is here a second time, first in line 3: \
             two relays cannot write to one file, give each its own path"
        );
        assert_eq!(check(["x.ndjson", &format!("{folder}/./x.ndjson"), "y.ndjson"]), Err(vec![message]));
        assert_eq!(check(["x.ndjson", "/dev/null", "/dev/null"]), Ok(()));
    }

    /// A prometheus.yml that writes to two places runs as it is; what the sink says of an entry is said where it was written.
    #[test]
    fn remote_write_of_a_prometheus_yml_is_checked_as_the_sink_that_it_becomes() {
        let text = "scrape_configs:\n  - {job_name: a, static_configs: [{targets: ['a:1']}]}\nremote_write:\n  - url: http://h/w\n    \
                    queue_config: {max_shards: 50, max_samples_per_send: 2000}\n  - url: https://m/api/v1/push\n    name: mimir\n    \
                    protobuf_message: io.prometheus.write.v2.Request\n    write_relabel_configs: [{regex: x, action: labeldrop}]\n";
        let (config, warnings) = config::parse("f", text, &Overrides::default(), &kinds()).expect("a good configuration");
        let names: Vec<_> = config.relays.iter().map(|relay| relay.name.as_str()).collect();
        assert_eq!((names, warnings), (vec!["remote-write-h-9c19f4", "mimir"], Vec::new()));
        let said = |wrong: String| {
            let problems = config::parse("f", &wrong, &Overrides::default(), &kinds()).expect_err("refused");
            problems.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(
            said(text.replace("max_shards: 50", "max_shards: 0")),
            ["f:5:32: remote_write[0].queue_config.max_shards: 'requests_max' cannot be 0"]
        );
        assert_eq!(
            said(text.replace("http://h/w", "ftp://h/w").replace("2.Request", "2.Reqest")),
            [
                "f:4:10: remote_write[0].url: 'ftp://h/w' is no http:// or https:// URL",
                "f:8:23: remote_write[1].protobuf_message: unknown value 'io.prometheus.write.v2.Reqest', did you mean \
                 'io.prometheus.write.v2.Request'?",
            ]
        );
        assert!(
            said(text.replace("action: labeldrop", "action: hashmod"))
                .contains(&"f:9:29: remote_write[1].write_relabel_configs[0]: action 'hashmod' needs a target_label".to_owned())
        );
    }

    /// What a registry row shows as its example is what its own check takes.
    #[test]
    fn every_kinds_example_passes_its_own_check() {
        let Kinds { filters, encoders, sinks, .. } = kinds();
        for kind in filters.iter().chain(&encoders).chain(&sinks) {
            let options: serde_json::Value = serde_yaml::from_str(kind.example).unwrap_or_else(|e| panic!("{}: {e}", kind.name));
            let options = options.get(kind.name).cloned().unwrap_or(options);
            (kind.check)(&options).unwrap_or_else(|e| panic!("{}: {}: {e}", kind.name, e.path));
        }
    }
}
