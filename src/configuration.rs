//! `strata config`, `strata completions` and `strata man`: what Strata can say of itself.
//!
//! *In*: a configuration, or nothing. *Out*: text on standard output; exit code 0, or 2 for a configuration that cannot be read. *Bound*:
//! the size of the configuration. *When full*: does not apply.

use std::process::ExitCode;

use config::{Refused, Show};

use crate::{Source, USAGE, check};

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

#[cfg(test)]
mod tests {
    use super::*;

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
}
