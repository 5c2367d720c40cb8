//! Controllers that a test wants beside the API server: some of Kubernetes' own, or cert-manager's.
//!
//! *In*: their programs of the cache. *Out*: processes with the administrator's rights. *Bound*: each ends when dropped.

use anyhow::{Result, ensure};

use super::{ControlPlane, program};
use crate::process::Program;

impl ControlPlane {
    /// Runs these controllers of kube-controller-manager and no others.
    ///
    /// *Errors*: the program is absent.
    pub fn controllers(&self, names: &[&str]) -> Result<Program> {
        self.start_beside(
            "kube-controller-manager",
            [
                format!("--kubeconfig={}", self.kubeconfig().display()),
                format!("--controllers={}", names.join(",")),
                "--leader-elect=false".to_owned(),
                "--secure-port=0".to_owned(),
            ],
        )
    }

    /// Runs cert-manager with its definitions applied: its issuers that need no one else, and its injector.
    ///
    /// *Errors*: the program is absent, or the API server refuses the definitions.
    pub async fn cert_manager(&self) -> Result<Program> {
        let definitions = std::fs::read_to_string(program("cert-manager.yaml")?)?;
        self.apply(&definitions).await?;
        let wait = ["wait", "--for=condition=Established", "--timeout=60s", "customresourcedefinitions", "--all"];
        let output = self.kubectl(&wait, "").await?;
        ensure!(output.code == 0, "{output:?}");
        self.start_beside("cert-manager", [format!("--kubeconfig={}", self.kubeconfig().display())])
    }

    fn start_beside<const N: usize>(&self, name: &str, arguments: [String; N]) -> Result<Program> {
        let folder = self.folder.path().join(name);
        std::fs::create_dir_all(&folder)?;
        Program::start(&program(name)?, &folder, &arguments)
    }
}
