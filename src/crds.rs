//! `strata crds`: the definitions of the custom resources, for `kubectl apply`.
//!
//! *In*: the types. *Out*: YAML on standard output, the same each time. *Bound*: three kinds. *When full*: does not apply.

use std::io::{self, Write as _};
use std::process::ExitCode;

use anyhow::Context as _;

use crate::fail;

pub(crate) fn main() -> ExitCode {
    let written = kubernetes::resources::yaml().context("cannot write the definitions as YAML").and_then(|yaml| {
        match io::stdout().lock().write_all(yaml.as_bytes()) {
            // A reader that closes early, such as `head`, is no failure.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error).context("cannot write to standard output"),
            _ => Ok(()),
        }
    });
    written.map_or_else(|error| fail(&error), |()| ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    #[track_caller]
    fn same(file: &str, text: &str) {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&path, text).expect("the folder can be written");
        }
        assert!(std::fs::read_to_string(&path).is_ok_and(|found| found == text), "{file} is old: run `make docs`");
    }

    /// The chart's copy is what `strata crds` prints, and the page says the same; `UPDATE_GOLDEN=1` writes both anew.
    #[test]
    fn the_definitions_and_their_page_are_what_the_types_say() {
        same("charts/strata/crds/strata.yaml", &kubernetes::resources::yaml().expect("YAML"));
        same("docs/kubernetes-resources.md", &kubernetes::resources::reference());
    }
}
