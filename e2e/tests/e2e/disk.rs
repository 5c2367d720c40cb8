//! The file system that loses power does lose what was not synced, and nothing else: what the test beside it rests on.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use e2e::power::{Left, Power};
use nix::fcntl::OFlag;

const PAGE: usize = 4096;

/// What a file holds after the power was lost; none: it is not there.
struct Case {
    name: &'static str,
    does: fn(&Path) -> std::io::Result<()>,
    expect: Option<&'static str>,
}

const CASES: &[Case] = &[
    Case { name: "written", does: |path| fs::write(path, "a"), expect: None },
    Case { name: "synced", does: |path| synced(path, "a"), expect: Some("a") },
    Case {
        name: "appended",
        does: |path| {
            synced(path, "a")?;
            OpenOptions::new().append(true).open(path)?.write_all(b"b")
        },
        expect: Some("a"),
    },
    Case {
        name: "appended-data-synced",
        does: |path| {
            synced(path, "a")?;
            let mut file = OpenOptions::new().append(true).open(path)?;
            file.write_all(b"b")?;
            file.sync_data()
        },
        expect: Some("ab"),
    },
    Case {
        name: "opened-for-synced-writes",
        does: |path| OpenOptions::new().write(true).create(true).custom_flags(OFlag::O_SYNC.bits()).open(path)?.write_all(b"a"),
        expect: Some("a"),
    },
    Case {
        name: "overwritten",
        does: |path| {
            synced(path, "a")?;
            fs::write(path, "b")
        },
        expect: Some("a"),
    },
    Case {
        name: "replaced",
        does: |path| {
            synced(path, "a")?;
            synced(&path.with_extension("new"), "b")?;
            fs::rename(path.with_extension("new"), path)
        },
        expect: Some("a"),
    },
    Case {
        name: "replaced-folder-synced",
        does: |path| {
            synced(path, "a")?;
            synced(&path.with_extension("new"), "b")?;
            fs::rename(path.with_extension("new"), path)?;
            File::open(path.with_file_name(""))?.sync_all()
        },
        expect: Some("b"),
    },
    Case {
        name: "removed",
        does: |path| {
            synced(path, "a")?;
            fs::remove_file(path)
        },
        expect: Some("a"),
    },
    Case {
        name: "removed-folder-synced",
        does: |path| {
            synced(path, "a")?;
            fs::remove_file(path)?;
            File::open(path.with_file_name(""))?.sync_all()
        },
        expect: None,
    },
];

fn synced(path: &Path, text: &str) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

fn read(path: &Path) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[tokio::test]
async fn what_was_not_synced_is_gone_and_what_was_is_there() -> Result<()> {
    let mut power = Power::on()?;
    for case in CASES {
        let folder = power.path().join(case.name);
        fs::create_dir(&folder)?;
        (case.does)(&folder.join("file")).with_context(|| case.name)?;
    }
    power.cut(Left::Nothing);
    ensure!(fs::write(power.path().join("late"), "a").is_err_and(|error| error.raw_os_error() == Some(nix::errno::Errno::EIO as i32)));
    power.restore().await?;
    for case in CASES {
        let found = read(&power.path().join(case.name).join("file"))?;
        ensure!(found.as_deref() == case.expect, "{}: {found:?}, and not {:?}", case.name, case.expect);
    }
    Ok(())
}

#[tokio::test]
async fn a_disk_that_lies_keeps_nothing() -> Result<()> {
    let mut power = Power::on()?;
    synced(&power.path().join("before"), "a")?;
    power.lie();
    synced(&power.path().join("after"), "a")?;
    power.cut(Left::Nothing);
    power.restore().await?;
    ensure!(read(&power.path().join("before"))?.is_some() && read(&power.path().join("after"))?.is_none());
    Ok(())
}

#[tokio::test]
async fn a_cut_comes_in_place_of_a_sync() -> Result<()> {
    let mut power = Power::on()?;
    // A name, and then the sync.
    power.cut_after(1, Left::Nothing);
    ensure!(synced(&power.path().join("file"), "a").is_err() && power.is_cut());
    power.restore().await?;
    ensure!(fs::read_dir(power.path())?.next().is_none());
    Ok(())
}

#[tokio::test]
async fn some_of_what_was_not_synced_may_be_left() -> Result<()> {
    let (mut lengths, mut torn) = (std::collections::BTreeSet::new(), 0);
    for seed in 0..16 {
        let mut power = Power::on()?;
        let (old, new) = (power.path().join("old"), power.path().join("new"));
        let mut file = File::create(&old)?;
        file.write_all(&[1; 2 * PAGE])?;
        file.sync_all()?;
        file.write_all(&[2; 8 * PAGE])?;
        drop(file);
        fs::write(&new, [3; PAGE])?;
        power.cut(Left::Some(seed));
        power.restore().await?;
        let bytes = fs::read(&old)?;
        ensure!(bytes[..2 * PAGE] == [1; 2 * PAGE], "what was synced is there");
        let pages: Vec<u8> = bytes[2 * PAGE..].chunks(PAGE).map(|page| page[0]).collect();
        ensure!(bytes[2 * PAGE..].chunks(PAGE).all(|page| page.iter().all(|byte| *byte == page[0])), "by the page");
        torn += usize::from(pages.contains(&0) && pages.contains(&2));
        lengths.insert((bytes.len(), fs::read(&new).map_or(0, |bytes| bytes.len())));
    }
    ensure!(torn > 0 && lengths.len() > 2, "{torn} torn, {lengths:?}");
    Ok(())
}
