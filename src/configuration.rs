//! `strata config`, `strata completions` and `strata man`: what Strata can say of itself.
//!
//! *In*: a configuration, or nothing. *Out*: text on standard output; exit code 0, or 2 for a configuration that cannot be read. *Bound*:
//! the size of the configuration. *When full*: does not apply.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::CommandFactory as _;
use config::{Refused, Show};

use crate::{Cli, Source, USAGE, check, fail};

/// Arguments of `strata completions`.
#[derive(clap::Args)]
pub(crate) struct Completions {
    /// The shell, like bash, zsh or fish.
    #[arg(value_enum)]
    shell: clap_complete::Shell,
}

/// Arguments of `strata man`.
#[derive(clap::Args)]
pub(crate) struct Man {
    /// Write a page per command into this folder, instead of all of them to standard output.
    #[arg(value_name = "FOLDER")]
    folder: Option<PathBuf>,
}

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Print the effective configuration as YAML that loads again; secrets are shown as <secret>.
    Show {
        #[command(flatten)]
        source: Source,
        /// Also print what nobody wrote.
        #[arg(long)]
        defaults: bool,
        /// Say behind each value where it was written: file and line, variable, flag or default.
        #[arg(long)]
        origins: bool,
    },
    /// Print the JSON Schema of configuration files, for editors and checks.
    Schema,
}

pub(crate) fn main(args: &Args) -> ExitCode {
    match &args.command {
        Command::Schema => {
            println!("{:#}", config::schema(&check::kinds()));
            ExitCode::SUCCESS
        }
        Command::Show { source, defaults, origins } => match check::load(source) {
            Ok(loaded) => {
                loaded.warnings.iter().for_each(|warning| eprintln!("warning: {warning}"));
                print!("{}", config::show(&loaded, &check::kinds(), Show { defaults: *defaults, origins: *origins }));
                ExitCode::SUCCESS
            }
            Err(Refused { problems, .. }) => {
                problems.iter().for_each(|problem| eprintln!("error: {problem}"));
                ExitCode::from(USAGE)
            }
        },
    }
}

/// Prints a script that completes Strata's commands and flags.
pub(crate) fn completions(args: &Completions) -> ExitCode {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "strata", &mut script);
    printed(&script)
}

/// Writes man pages, one per command.
pub(crate) fn man(args: &Man) -> ExitCode {
    let mut pages = Vec::new();
    let mut command = Cli::command();
    command.build();
    let written = pages_of(&command, "", &mut pages).context("cannot render the man pages").and_then(|()| match &args.folder {
        None => Ok(printed(&pages.into_iter().flat_map(|(_, page)| page).collect::<Vec<_>>())),
        Some(folder) => save(folder, &pages).map(|()| ExitCode::SUCCESS),
    });
    written.unwrap_or_else(|error| fail(&error))
}

fn save(folder: &Path, pages: &[(String, Vec<u8>)]) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make '{}'", folder.display()))?;
    for (name, page) in pages {
        let file = folder.join(format!("{name}.1"));
        std::fs::write(&file, page).with_context(|| format!("cannot write '{}'", file.display()))?;
    }
    Ok(())
}

/// `strata.1`, `strata-run.1`, …: a command and all below it.
fn pages_of(command: &clap::Command, parent: &str, pages: &mut Vec<(String, Vec<u8>)>) -> io::Result<()> {
    let name = if parent.is_empty() { command.get_name().to_owned() } else { format!("{parent}-{}", command.get_name()) };
    let mut page = Vec::new();
    clap_mangen::Man::new(command.clone().version(env!("CARGO_PKG_VERSION"))).render(&mut page)?;
    pages.push((name.clone(), page));
    command.get_subcommands().filter(|sub| sub.get_name() != "help").try_for_each(|sub| pages_of(sub, &name, pages))
}

/// Text on standard output; a reader that closes early, such as `head`, is no failure.
fn printed(text: &[u8]) -> ExitCode {
    match io::stdout().lock().write_all(text) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => fail(&error.into()),
        _ => ExitCode::SUCCESS,
    }
}

#[cfg(test)]
mod tests {
    use config::Overrides;
    use serde_json::Value;

    use super::*;

    /// Every command has a page, and the one of `check` names its flags.
    #[test]
    fn every_command_has_its_man_page() {
        let mut command = Cli::command();
        command.build();
        let mut pages = Vec::new();
        pages_of(&command, "", &mut pages).expect("rendered");
        let page = |name: &str| pages.iter().find(|(page, _)| page == name).map(|(_, page)| String::from_utf8_lossy(page).into_owned());
        for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
            assert!(page(&format!("strata-{}", sub.get_name())).is_some(), "{}", sub.get_name());
        }
        assert!(page("strata-config-show").is_some_and(|page| page.contains("origins")));
    }

    #[test]
    fn completions_know_commands_and_flags() {
        for shell in <clap_complete::Shell as clap::ValueEnum>::value_variants() {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "strata", &mut script);
            let script = String::from_utf8(script).expect("UTF-8");
            assert!(script.contains("completions") && script.contains("origins"), "{shell}");
        }
    }

    fn yaml(text: &str) -> Value {
        serde_yaml::from_str::<Value>(text).unwrap_or(Value::Null)
    }

    /// What the reader takes the schema takes, by an independent validator: examples, and what `config show` prints of them.
    #[test]
    fn the_schema_takes_every_example() {
        let kinds = check::kinds();
        let schema = config::schema(&kinds);
        let validator = jsonschema::draft202012::new(&schema).expect("a schema");
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/examples");
        let files = std::fs::read_dir(folder).expect("the folder is there").filter_map(|entry| Some(entry.ok()?.path()));
        for file in files.filter(|file| file.extension().is_some_and(|end| end == "yaml")) {
            let loaded = config::load(&file, &Overrides::default(), &kinds).unwrap_or_else(|refused| panic!("{refused:#?}"));
            let written = std::fs::read_to_string(&file).expect("readable");
            let [short, long] = [false, true].map(|defaults| config::show(&loaded, &kinds, Show { defaults, origins: defaults }));
            for text in [&written, &short, &long] {
                let errors: Vec<_> =
                    validator.iter_errors(&yaml(text)).map(|error| format!("{}: {error}", error.instance_path())).collect();
                assert_eq!(errors, Vec::<String>::new(), "{}\n{text}", file.display());
                let (again, _) =
                    config::parse("shown.yaml", text, &Overrides::default(), &kinds).unwrap_or_else(|found| panic!("{found:#?}"));
                assert_eq!(again.relays.len(), loaded.config.relays.len());
            }
            let (again, _) =
                config::parse("shown.yaml", &short, &Overrides::default(), &kinds).unwrap_or_else(|found| panic!("{found:#?}"));
            assert_eq!(again, loaded.config, "{}", file.display());
        }
    }

    /// Mistakes of keys, kinds and types are refused by the schema too; the others only `strata check` sees.
    #[test]
    fn the_schema_refuses_mistakes_of_shape() {
        let schema = config::schema(&check::kinds());
        let validator = jsonschema::draft202012::new(&schema).expect("a schema");
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/check/mistakes");
        for name in SHAPE {
            let text = std::fs::read_to_string(folder.join(format!("{name}.yaml"))).expect(name);
            assert!(!validator.is_valid(&yaml(&text)), "{name}");
        }
    }

    /// Mistakes of shape.
    const SHAPE: [&str; 20] = [
        "bad_duration",
        "empty_names",
        "filter_options",
        "include_no_list",
        "include_no_text",
        "list_for_map",
        "missing_keys",
        "not_a_map",
        "numbers",
        "prometheus_kinds",
        "secret_in_the_wrong_place",
        "sink_options",
        "test_mistakes",
        "two_kinds",
        "unknown_encoder",
        "unknown_filter",
        "unknown_key_nested",
        "unknown_key_top",
        "unknown_sink",
        "wrong_type_inside",
    ];

    /// `docs/configuration.md` is what the types say; `UPDATE_GOLDEN=1` (as `make docs` sets it) writes it anew.
    #[test]
    fn the_reference_is_up_to_date() {
        let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/configuration.md");
        let reference = config::reference(&check::kinds());
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&file, &reference).expect("the folder can be written");
        }
        assert!(std::fs::read_to_string(&file).is_ok_and(|text| text == reference), "docs/configuration.md is old: run `make docs`");
    }

    #[test]
    fn secrets_of_the_http_client_are_not_shown_wherever_they_stand() {
        let client = "proxy_url: 'http://u:hush@p:1', bearer_token: hush";
        let oauth2 = "{client_id: a, token_url: 'http://x/t', client_secret: hush, tls_config: {key: hush, cert: x}}";
        let text = format!(
            "scrape_configs: [{{job_name: a, {client}, http_sd_configs: [{{url: 'http://x', oauth2: {oauth2}}}], static_configs: [{{targets: ['a:1']}}]}}]\n\
             relays: [{{name: a, sink: {{http: {{url: 'http://x', {client}}}}}}}, {{name: b, sink: {{remote_write: {{url: 'http://x', oauth2: {oauth2}}}}}}}]\n"
        );
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), text).expect("a text");
        let loaded = config::load(file.path(), &Overrides::default(), &check::kinds()).unwrap_or_else(|refused| panic!("{refused:#?}"));
        let shown = config::show(&loaded, &check::kinds(), Show::default());
        assert!(!shown.contains("hush") && shown.matches("<secret>").count() == 8, "{shown}");
    }
}
