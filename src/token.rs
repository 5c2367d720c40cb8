//! The token of the API: whoever can read the data folder may change things; and what the folder's process is known by to others.
//!
//! *In*: the data folder. *Out*: random text, made at the first start. *Bound*: two short files. *When full*: an error that names the field.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use relay::lease::Applicant;

use crate::{Source, check, fail};

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    source: Source,
}

/// `strata token`: prints it, for who may read it and has no other way to the folder, as in a container without a shell.
pub(crate) fn main(args: &Args) -> ExitCode {
    let config = match check::load_or_report(&args.source) {
        Ok(config) => config,
        Err(code) => return code,
    };
    match read(&file(&config.buffer.data_dir)) {
        Ok(token) => {
            println!("{token}");
            ExitCode::SUCCESS
        }
        Err(error) => fail(&error),
    }
}

/// Where the token of a data folder is.
pub(crate) fn file(data_dir: &Path) -> PathBuf {
    data_dir.join("token")
}

/// Reads the token, or makes one that only the owner can read.
pub(crate) fn read_or_make(data_dir: &Path) -> anyhow::Result<String> {
    let path = file(data_dir);
    let (token, is_new) = keep(&path)?;
    if is_new {
        tracing::info!(file = %path.display(), "made the token that commands which change something need");
    }
    Ok(token)
}

/// This process among those that may run the same relays: the same one after a restart on its data folder, which nobody shares.
pub(crate) fn applicant(data_dir: &Path) -> anyhow::Result<Applicant> {
    let (id, _) = keep(&data_dir.join("instance"))?;
    Ok(Applicant { id, name: format!("{}/{}", collector::publish::producer(None), std::process::id()) })
}

/// Random text that a file has or is given, and whether it was given now. The folder is held: nobody else gives it one meanwhile.
fn keep(path: &Path) -> anyhow::Result<(String, bool)> {
    if path.try_exists().with_context(|| format!("cannot look for '{}'", path.display()))? {
        return Ok((read(path)?, false));
    }
    let made: String = rand::random::<[u8; 24]>().iter().map(|b| format!("{b:02x}")).collect();
    write(path, &made).with_context(|| format!("cannot write '{}'", path.display()))?;
    Ok((made, true))
}

/// Whole and durable or not there at all: after a loss of power an empty one would be refused.
fn write(path: &Path, text: &str) -> std::io::Result<()> {
    let temporary = path.with_extension("new");
    match std::fs::remove_file(&temporary) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    writeln!(file, "{text}")?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

/// Reads a token.
pub(crate) fn read(path: &Path) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read '{}'", path.display()))?;
    let token = text.trim();
    if token.len() < 16 {
        bail!("what is in '{}' is too short: remove the file, the next start makes a new one", path.display());
    }
    Ok(token.to_owned())
}

/// Whether a request's token is the right one, in a time that does not tell how much of it is.
pub(crate) fn is_same(given: &str, token: &str) -> bool {
    given.len() == token.len() && given.bytes().zip(token.bytes()).fold(0, |differing, (a, b)| differing | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_token_is_made_once_and_for_its_owner() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("token.new"), "").expect("what a loss of power left");
        let token = read_or_make(folder.path()).expect("a token");
        assert_eq!(read_or_make(folder.path()).expect("the same"), token);
        let mode = std::fs::metadata(file(folder.path())).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(is_same(&token, &token) && !is_same(&token[1..], &token) && !is_same("", &token));
    }
}
