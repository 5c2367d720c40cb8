//! The image: small, without a shell, content with what a cluster allows, and honest about what is in it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use e2e::strata;
use serde_json::Value;

/// Compressed, nats-server included.
const BYTES_MAX: u64 = 25 << 20;
/// Holds a list of contents against the published schema, its licences against SPDX's, its package URLs against their grammar.
const VALIDATE: &str = r"
import json, sys
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from license_expression import get_spdx_licensing
from packageurl import PackageURL

text = open(sys.argv[1]).read()
wrong = [str(found) for found in [JsonStrictValidator(SchemaVersion.V1_5).validate_str(text)] if found]
for component in json.loads(text)['components']:
    for licence in component.get('licenses', []):
        wrong += get_spdx_licensing().validate(licence['expression']).errors
    if 'purl' in component:
        url = PackageURL.from_string(component['purl'])
        if url.version.lstrip('v') != component['version']:
            wrong.append(f'{url} is not of {component}')
sys.exit('\n'.join(wrong) or 0)
";

#[test]
fn the_image_runs_as_nobody_on_a_root_that_cannot_be_written_without_a_network_and_says_what_is_in_it() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let contents = folder.path().join("strata.cdx.json");
    let mut tool = Command::new(repository().join("tools/image.sh"));
    let output = tool.arg(strata::binary()?).arg("--sbom").arg(&contents).stdin(Stdio::null()).output()?;
    let said = String::from_utf8(output.stdout)?;
    ensure!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    print!("{said}");
    let line = |start: &str| said.lines().find_map(|line| line.strip_prefix(start)).with_context(|| format!("no '{start}' in: {said}"));
    let bytes: u64 = line("compressed: ")?.trim_end_matches(" bytes").parse()?;
    // A debug binary is no measure.
    if strata::binary()?.components().any(|part| part.as_os_str() == "release") {
        ensure!(bytes <= BYTES_MAX, "{bytes} bytes are more than {BYTES_MAX}");
    }
    ensure!(said.contains("strata.yaml is fine: 1 job with 1 target, 1 relay"), "{said}");
    ensure!(line("ready: ")? == "user 65532, group 65532, capabilities 0000000000000000, root ro, new privileges never", "{said}");
    let delivered: u64 = line("stopped: ")?.trim_end_matches(" samples delivered").parse()?;
    ensure!(delivered > 0, "nothing was scraped and delivered");

    validate(&contents)?;
    let contents: Value = serde_json::from_slice(&std::fs::read(&contents)?)?;
    let strata = line("version: strata ")?;
    ensure!(contents["metadata"]["component"]["version"] == strata, "the image's binary is strata {strata}: {}", contents["metadata"]);
    let mut expect = crates()?;
    expect.insert(("nats-server".to_owned(), line("server: nats-server: v")?.to_owned()));
    let components = contents["components"].as_array().context("components")?;
    let listed: BTreeSet<_> = components.iter().map(|component| (word(component, "name"), word(component, "version"))).collect();
    let missing: Vec<_> = expect.difference(&listed).collect();
    ensure!(missing.is_empty(), "in the image and not in its list: {missing:?}");
    let openssl = listed.iter().find_map(|(name, version)| (name == "openssl-src").then_some(version)).context("no OpenSSL")?;
    let openssl = format!("OpenSSL {} ", openssl.rsplit_once('+').context("the version of OpenSSL itself")?.1);
    let binary = std::fs::read(strata::binary()?)?;
    ensure!(memchr::memmem::find(&binary, openssl.as_bytes()).is_some(), "the binary has not '{openssl}' in it");
    // What belongs to nothing is a mistake of the list, and so is what is depended upon and not in it.
    let depended = contents["dependencies"].as_array().context("dependencies")?.iter();
    let depended: BTreeSet<_> = depended.flat_map(|of| of["dependsOn"].as_array().into_iter().flatten()).map(Value::to_string).collect();
    let listed: BTreeSet<_> = components.iter().map(|component| component["bom-ref"].to_string()).collect();
    ensure!(depended == listed, "differ: {:?}", depended.symmetric_difference(&listed).collect::<Vec<_>>());
    Ok(())
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn word(of: &Value, key: &str) -> String {
    of[key].as_str().unwrap_or_default().to_owned()
}

fn validate(contents: &Path) -> Result<()> {
    let python = Command::new(repository().join("tools/python.sh")).output()?;
    let python = String::from_utf8(python.stdout)?;
    let output = Command::new(python.trim()).args(["-c", VALIDATE]).arg(contents).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Every crate that the binary is made of, by name and version; without Strata itself.
fn crates() -> Result<BTreeSet<(String, String)>> {
    let mut cargo = Command::new("cargo");
    cargo.current_dir(repository()).args(["tree", "-p", "strata", "-e", "normal", "--locked", "--prefix", "none", "--format", "{p}"]);
    let output = cargo.output()?;
    ensure!(output.status.success(), "{output:?}");
    let tree = String::from_utf8(output.stdout)?;
    let named = |line: &str| line.split_once(" v").map(|(name, rest)| (name.to_owned(), rest.split(' ').next().unwrap_or(rest).to_owned()));
    let crates: BTreeSet<_> = tree.lines().skip(1).filter_map(named).collect();
    ensure!(crates.len() > 100, "{tree}");
    Ok(crates)
}
