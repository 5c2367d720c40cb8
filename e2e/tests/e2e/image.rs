//! The image: small, without a shell, and content with what a cluster allows.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use e2e::strata;

/// Compressed, nats-server included.
const BYTES_MAX: u64 = 25 << 20;

#[test]
fn the_image_runs_as_nobody_on_a_root_that_cannot_be_written_without_a_network() -> Result<()> {
    let tool = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tools/image.sh");
    let output = Command::new(tool).arg(strata::binary()?).arg("--no-sbom").stdin(Stdio::null()).output()?;
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
    Ok(())
}
