//! Where the running Strata is that a command talks to.
//!
//! *In*: flags, or the configuration's data folder. *Out*: an address and, where it can be read, the token. *Bound*: two small files.
//! *When full*: does not apply.

use std::path::PathBuf;
use std::process::ExitCode;

use crate::client::Api;
use crate::{Source, USAGE, check, run, token};

/// Flags of every command that talks to a running Strata.
#[derive(clap::Args, Clone, Default)]
pub(crate) struct Place {
    #[command(flatten)]
    source: Source,
    /// Address of the running Strata; default: the one that runs on the configuration's data folder.
    #[arg(long, visible_alias = "server", value_name = "URL")]
    url: Option<String>,
    /// File of its token; default: in the configuration's data folder.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// PEM file of the authorities that its certificate may come from; default: the system's.
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
}

impl Place {
    /// A client of it. `needs_token`: without a token there is no use in asking.
    ///
    /// *Errors*: an exit code; what is wrong was printed.
    pub(crate) fn api(&self, needs_token: bool) -> Result<Api, ExitCode> {
        let (address, token_file) = self.find()?;
        let token = match token::read(&token_file) {
            Ok(token) => token,
            Err(error) if needs_token || self.token_file.is_some() => {
                eprintln!("error: {error:#}; name it with --token-file");
                return Err(ExitCode::from(USAGE));
            }
            // Reads on loopback need none; where they do, the answer says so.
            Err(_) => String::new(),
        };
        Api::new(&address, token, self.ca_file.as_deref()).map_err(|error| {
            eprintln!("error: {error:#}");
            ExitCode::from(USAGE)
        })
    }

    /// The configuration that it may be found by.
    pub(crate) const fn source(&self) -> &Source {
        &self.source
    }

    /// The configuration is read only where the flags leave something open, and may be absent where it is not named.
    fn find(&self) -> Result<(String, PathBuf), ExitCode> {
        if let (Some(url), Some(file)) = (&self.url, &self.token_file) {
            return Ok((url.clone(), file.clone()));
        }
        let is_absent = self.source.config.as_os_str() == crate::CONFIG && !self.source.config.exists();
        let config = if is_absent { config::Config::default() } else { check::load_or_report(&self.source)? };
        let data_dir = &config.buffer.data_dir;
        // What it really listens on is beside the token: with port 0 only that file knows.
        let listens =
            || std::fs::read_to_string(run::address_file(data_dir)).map_or_else(|_| config.server.listen.clone(), |a| a.trim().to_owned());
        Ok((self.url.clone().unwrap_or_else(listens), self.token_file.clone().unwrap_or_else(|| token::file(data_dir))))
    }
}
