//! The nkeys of the roles: one seed each, made once per installation, readable by its owner alone. Members of a cluster have the same ones.
//!
//! *In*: a folder. *Out*: seed and public key per role. *Bound*: one small file per role. *When full*: an error that names the file.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use nkeys::KeyPair;

/// Who connects; each role may do only what its work needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Creates streams, purges, reads everything.
    Control,
    /// Publishes frames and its own losses.
    Collector,
    /// Reads frames, keeps its position, publishes dead letters and losses.
    Relay,
}

impl Role {
    /// Every role once.
    pub const ALL: [Role; 3] = [Role::Control, Role::Collector, Role::Relay];

    /// Its name in file names, client names and inboxes.
    pub fn name(self) -> &'static str {
        match self {
            Role::Control => "control",
            Role::Collector => "collector",
            Role::Relay => "relay",
        }
    }

    /// Where its answers arrive; no other role may listen there.
    pub fn inbox(self) -> &'static str {
        match self {
            Role::Control => "_INBOX_control",
            Role::Collector => "_INBOX_collector",
            Role::Relay => "_INBOX_relay",
        }
    }
}

/// The seed that is no user's: members of a cluster let each other in by it.
const ROUTE: &str = "route";

/// What becomes of a seed that is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// It is made.
    Make,
    /// It is an error: others have it, and made here it would be another one.
    Refuse,
}

/// The key pairs of all roles.
pub struct Keys {
    pairs: Vec<(Role, String, String)>,
}

impl Keys {
    /// Reads the seeds in `folder`.
    ///
    /// *Errors*: a seed that is there but is none is an error, never replaced: a running server may know its public key.
    pub fn open(folder: &Path, missing: Missing) -> io::Result<Keys> {
        let pairs = Role::ALL.into_iter().map(|role| open_one(folder, role, missing)).collect::<io::Result<_>>()?;
        Ok(Keys { pairs })
    }

    /// The key pair of a feed's writer: seed and public key.
    ///
    /// *Errors*: as [`Keys::open`].
    pub fn feed(folder: &Path, relay: &str, missing: Missing) -> io::Result<(String, String)> {
        open_file(folder, &feed(relay), missing)
    }

    /// What members of a cluster know each other by, a word of capital letters and digits.
    ///
    /// *Errors*: as [`Keys::open`].
    pub fn route(folder: &Path, missing: Missing) -> io::Result<String> {
        Ok(open_file(folder, ROUTE, missing)?.0)
    }

    /// The secret a client of this role signs with.
    pub fn seed(&self, role: Role) -> &str {
        &self.of(role).1
    }

    /// The name a server knows this role by.
    pub fn public(&self, role: Role) -> &str {
        &self.of(role).2
    }

    fn of(&self, role: Role) -> &(Role, String, String) {
        self.pairs.iter().find(|(of, _, _)| *of == role).expect("every role has a pair since `open`")
    }
}

/// Makes all seeds of a cluster that are not in `folder` yet; those that are there stay.
///
/// *Errors*: as [`Keys::open`].
pub fn make<'r>(folder: &Path, relays: impl IntoIterator<Item = &'r str>) -> io::Result<()> {
    make_folder(folder)?;
    Keys::open(folder, Missing::Make)?;
    for relay in relays {
        Keys::feed(folder, relay, Missing::Make)?;
    }
    Keys::route(folder, Missing::Make).map(drop)
}

/// The files of all seeds of a cluster, wherever they are kept.
pub fn files<'r>(relays: impl IntoIterator<Item = &'r str>) -> Vec<String> {
    let feeds = relays.into_iter().map(feed);
    Role::ALL.into_iter().map(|role| role.name().to_owned()).chain(feeds).chain([ROUTE.to_owned()]).map(|name| file(&name)).collect()
}

/// A new seed. *Errors*: the system has no randomness.
pub fn fresh() -> io::Result<String> {
    KeyPair::new_user().seed().map_err(io::Error::other)
}

/// A folder for seeds, where it is missing.
pub(crate) fn make_folder(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// The file of a user's seed.
pub(crate) fn file(name: &str) -> String {
    format!("{name}.seed")
}

/// The name of a feed's writer.
pub(crate) fn feed(relay: &str) -> String {
    format!("feed-{relay}")
}

fn open_one(folder: &Path, role: Role, missing: Missing) -> io::Result<(Role, String, String)> {
    let (seed, public) = open_file(folder, role.name(), missing)?;
    Ok((role, seed, public))
}

fn open_file(folder: &Path, name: &str, missing: Missing) -> io::Result<(String, String)> {
    let path = folder.join(file(name));
    let seed = match fs::read_to_string(&path) {
        Ok(seed) => seed.trim().to_owned(),
        Err(error) if error.kind() == io::ErrorKind::NotFound && missing == Missing::Refuse => {
            return Err(io::Error::other(format!(
                "'{}' is missing: all members of a cluster have the same seeds; `strata nats seeds` makes them on one of them, copy the folder to the others",
                path.display()
            )));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let seed = fresh()?;
            write_private(folder, &path, &seed)?;
            seed
        }
        Err(error) => return Err(error),
    };
    let pair = KeyPair::from_seed(&seed).map_err(|_| io::Error::other(format!("'{}' holds no nkey seed", path.display())))?;
    Ok((seed, pair.public_key()))
}

/// Whole and durable or not there at all; never readable by others, not even for a moment.
fn write_private(folder: &Path, path: &Path, text: &str) -> io::Result<()> {
    let temporary = path.with_extension("new");
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// What a Secret gets is what a folder has.
    #[test]
    fn the_files_named_are_those_that_are_made() {
        let folder = tempfile::tempdir().expect("a folder");
        make(folder.path(), ["one"]).expect("made");
        let entries = fs::read_dir(folder.path()).expect("listed").map(|entry| entry.expect("an entry").file_name());
        let mut made: Vec<String> = entries.map(|name| name.to_string_lossy().into_owned()).collect();
        let mut named = files(["one"]);
        made.sort_unstable();
        named.sort_unstable();
        assert_eq!(named, made);
    }

    #[test]
    fn seeds_are_made_once_and_are_private() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let refused = Keys::open(folder.path(), Missing::Refuse).err().expect("none is there").to_string();
        assert!(refused.contains("control.seed' is missing"), "{refused}");
        let first = Keys::open(folder.path(), Missing::Make).expect("made");
        let again = Keys::open(folder.path(), Missing::Refuse).expect("read");
        for role in Role::ALL {
            assert_eq!(first.seed(role), again.seed(role));
            assert!(first.public(role).starts_with('U'));
            let path = folder.path().join(format!("{}.seed", role.name()));
            assert_eq!(fs::metadata(path).expect("its mode").permissions().mode() & 0o777, 0o600);
        }
        make(folder.path(), ["acme"]).expect("what a cluster needs beside");
        assert_eq!(Keys::open(folder.path(), Missing::Refuse).expect("as before").seed(Role::Relay), first.seed(Role::Relay));
        let route = Keys::route(folder.path(), Missing::Refuse).expect("made");
        assert!(route.len() > 50 && route.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit()), "{route}");
        Keys::feed(folder.path(), "acme", Missing::Refuse).expect("made");
        fs::write(folder.path().join("relay.seed"), "garbage").expect("damaged");
        assert!(Keys::open(folder.path(), Missing::Make).is_err_and(|error| error.to_string().contains("relay.seed")));
    }
}
