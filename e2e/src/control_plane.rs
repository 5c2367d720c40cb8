//! A real Kubernetes API server, and all that speaks with it, in a network namespace of the test's own.
//!
//! *In*: kube-apiserver, kubectl and helm of the cache, etcd from apt. *Out*: an API server with RBAC at [`SERVER`], objects, tokens, kubeconfigs.
//! *Bound*: no kubelet runs, and of controllers those that a test starts: it writes itself what others would ([`objects`]); about 400 MiB. *When a test
//! fails*: the end of the server's log is printed, and the folder kept.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use kube::Client;
use kube::api::{DeleteParams, GetParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::{Request, Resource};
use rcgen::KeyPair;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;

use crate::process::Program;
use crate::strata::Output;
use crate::tls::Authority;
use crate::{http1, process, wait};

mod accounts;
mod controllers;
mod gate;
mod kubelet;
mod namespace;
pub mod objects;

pub use accounts::Account;
pub use gate::{Asked, Gate, Refusal};
pub use kubelet::RunningPod;
pub use namespace::in_namespace;

/// Where the API server is: the service `default/kubernetes`, as a pod's environment names it.
pub const SERVER: &str = "https://10.96.0.1:443";
/// What that environment is.
pub const ENVIRONMENT: [(&str, &str); 2] = [("KUBERNETES_SERVICE_HOST", "10.96.0.1"), ("KUBERNETES_SERVICE_PORT", "443")];
/// Where the server says it is: a service is never an endpoint.
const ADVERTISED: &str = "10.255.0.1";
/// Addresses that services may have.
const SERVICES: &str = "10.96.0.0/16,fd00:96::/112";
const ETCD_PORT: u16 = 2379;
const READY_WITHIN: Duration = Duration::from_secs(180);
const COMMAND_WITHIN: Duration = Duration::from_secs(120);
/// Last lines of the server's log that a failed test prints.
const LOG_LINES: usize = 40;
/// Requests in flight where many objects are made: more than this and the server's own limit answers.
const AT_ONCE: usize = 64;

/// etcd and an API server; both are killed when dropped.
pub struct ControlPlane {
    /// None: killed. Dropped before what it writes to.
    server: Option<Program>,
    _etcd: Program,
    flags: Vec<String>,
    authority: Authority,
    signer: KeyPair,
    client: Client,
    folder: TempDir,
    has_passed: bool,
}

/// Runs a test with a control plane, in a namespace.
///
/// *Errors*: those of the test, of [`in_namespace`] and of [`ControlPlane::start`].
pub fn test<T: Send>(test: impl AsyncFnOnce(&mut ControlPlane) -> Result<T> + Send) -> Result<T> {
    test_with(&[], test)
}

/// The same with more flags of the API server.
///
/// *Errors*: as above.
pub fn test_with<T: Send>(flags: &[&str], test: impl AsyncFnOnce(&mut ControlPlane) -> Result<T> + Send) -> Result<T> {
    in_namespace(async || {
        let mut plane = ControlPlane::start(flags).await?;
        let result = test(&mut plane).await;
        plane.has_passed = result.is_ok();
        result
    })
}

impl ControlPlane {
    /// Starts both and waits until the API server is ready. Only in a namespace: its ports are fixed.
    ///
    /// *Errors*: a program is absent or does not start.
    async fn start(flags: &[&str]) -> Result<Self> {
        let folder = TempDir::with_prefix("strata-e2e-kube-")?;
        let authority = Authority::new("kubernetes")?;
        let signer = KeyPair::generate()?;
        accounts::write_signer(folder.path(), &signer)?;
        let serving = authority.server_of(&["10.96.0.1", ADVERTISED, "127.0.0.1", "localhost", "kubernetes.default.svc"])?;
        for (name, text) in [("ca.crt", &authority.pem()), ("serving.crt", &serving.cert), ("serving.key", &serving.key)] {
            std::fs::write(folder.path().join(name), text)?;
        }
        let admin = accounts::by_certificate(&authority.user("admin", "system:masters")?);
        let path = folder.path().join("admin.kubeconfig");
        std::fs::write(&path, accounts::kubeconfig(SERVER, &authority.pem(), "default", &admin))?;
        let config = kube::Config::from_custom_kubeconfig(Kubeconfig::read_from(&path)?, &KubeConfigOptions::default()).await?;
        let client = Client::try_from(config)?;
        let etcd = start_etcd(folder.path())?;
        let flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
        let mut plane = Self { server: None, _etcd: etcd, flags, authority, signer, client, folder, has_passed: false };
        plane.resume().await?;
        Ok(plane)
    }

    /// Questions of RBAC since the API server's start that were not answered with yes.
    ///
    /// *Errors*: it does not answer, or with something else.
    pub async fn refused(&self) -> Result<f64> {
        let page = self.metrics().await?;
        let refused = |line: &&str| line.starts_with("authorization_attempts_total{") && !line.contains("result=\"allowed\"");
        page.lines().filter(refused).map(|line| Ok(line.rsplit_once(' ').context("a value")?.1.parse::<f64>()?)).sum()
    }

    /// Whether a list of these was streamed since the API server's start.
    ///
    /// *Errors*: it does not answer.
    pub async fn streamed(&self, resource: &str) -> Result<bool> {
        let label = format!("resource=\"{resource}\"");
        let is_it = |line: &str| line.starts_with("apiserver_watch_list_duration_seconds_count{") && line.contains(&label);
        Ok(self.metrics().await?.lines().any(is_it))
    }

    async fn metrics(&self) -> Result<String> {
        Ok(self.client.request_text(http::Request::get("/metrics").body(Vec::new())?).await?)
    }

    /// Ends the API server with SIGKILL.
    ///
    /// *Errors*: it does not run.
    pub fn kill(&mut self) -> Result<()> {
        drop(self.server.take().context("the API server does not run")?);
        Ok(())
    }

    /// More flags of the API server, from its next start on.
    pub fn set(&mut self, flags: impl IntoIterator<Item = String>) {
        self.flags.extend(flags);
    }

    /// Starts the API server and waits until it is ready.
    ///
    /// *Errors*: it is absent, or not ready in time.
    pub async fn resume(&mut self) -> Result<()> {
        let folder = self.folder.path().join("api");
        std::fs::create_dir_all(&folder)?;
        let file = |name: &str| self.folder.path().join(name).display().to_string();
        let mut arguments = vec![
            format!("--etcd-servers=http://127.0.0.1:{ETCD_PORT}"),
            "--bind-address=0.0.0.0".to_owned(),
            "--secure-port=443".to_owned(),
            format!("--advertise-address={ADVERTISED}"),
            format!("--service-cluster-ip-range={SERVICES}"),
            format!("--tls-cert-file={}", file("serving.crt")),
            format!("--tls-private-key-file={}", file("serving.key")),
            format!("--client-ca-file={}", file("ca.crt")),
            format!("--service-account-issuer={}", accounts::ISSUER),
            format!("--service-account-key-file={}", file("signer.pub")),
            format!("--service-account-signing-key-file={}", file("signer.key")),
            "--authorization-mode=RBAC".to_owned(),
            // Nobody makes the account that it would want of each pod.
            "--disable-admission-plugins=ServiceAccount".to_owned(),
        ];
        arguments.extend(self.flags.iter().cloned());
        let mut server = Program::start(&program("kube-apiserver")?, &folder, &arguments)?;
        let ended = wait::until("the API server is ready", READY_WITHIN, async || {
            if server.has_ended() {
                return Some(true);
            }
            let request = http::Request::get("/readyz").body(Vec::new()).ok()?;
            self.client.request_text(request).await.is_ok_and(|text| text == "ok").then_some(false)
        })
        .await?;
        ensure!(!ended, "the API server ended");
        self.server = Some(server);
        Ok(())
    }

    /// The administrator's client.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.path().join("admin.kubeconfig")
    }

    /// Who signed the server's certificate, PEM.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }

    /// A folder for files of the test.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The API server's process.
    ///
    /// *Errors*: it does not run.
    pub fn server_pid(&self) -> Result<u32> {
        Ok(self.server.as_ref().context("the API server does not run")?.id())
    }

    /// Makes a namespace.
    ///
    /// *Errors*: the server refuses.
    pub async fn namespace(&self, name: &str) -> Result<()> {
        self.put::<Namespace>(&json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } })).await.map(drop)
    }

    /// Makes an object, and gives it its status, if it has one.
    ///
    /// *Errors*: the server refuses.
    pub async fn put<K: Resource<DynamicType = ()>>(&self, object: &Value) -> Result<Value> {
        let metadata = &object["metadata"];
        let (namespace, name) = (metadata["namespace"].as_str(), metadata["name"].as_str().context("no name")?);
        let made: Value = self.ask(request::<K>(namespace).create(&PostParams::default(), object.to_string().into_bytes())?).await?;
        match &object["status"] {
            Value::Null => Ok(made),
            status => {
                let key = namespace.map_or_else(|| name.to_owned(), |namespace| format!("{namespace}/{name}"));
                self.patch_status::<K>(&key, &json!({ "status": status })).await
            }
        }
    }

    /// [`ControlPlane::put`] for many, many at a time.
    ///
    /// *Errors*: the first that the server refuses.
    pub async fn put_all<K: Resource<DynamicType = ()>>(&self, objects: impl IntoIterator<Item = Value>) -> Result<()> {
        let puts = objects.into_iter().map(|object| async move { self.put::<K>(&object).await.map(drop) });
        futures::stream::iter(puts).buffer_unordered(AT_ONCE).try_collect().await
    }

    /// An object by `namespace/name`.
    ///
    /// *Errors*: there is none.
    pub async fn get<K: Resource<DynamicType = ()>>(&self, key: &str) -> Result<Value> {
        let (namespace, name) = objects::split(key);
        self.ask(request::<K>(namespace).get(name, &GetParams::default())?).await
    }

    /// A merge patch of an object.
    ///
    /// *Errors*: the server refuses.
    pub async fn patch<K: Resource<DynamicType = ()>>(&self, key: &str, patch: &Value) -> Result<Value> {
        let (namespace, name) = objects::split(key);
        self.ask(request::<K>(namespace).patch(name, &PatchParams::default(), &Patch::Merge(patch))?).await
    }

    /// A merge patch of an object's status.
    ///
    /// *Errors*: the server refuses.
    pub async fn patch_status<K: Resource<DynamicType = ()>>(&self, key: &str, patch: &Value) -> Result<Value> {
        let (namespace, name) = objects::split(key);
        self.ask(request::<K>(namespace).patch_subresource("status", name, &PatchParams::default(), &Patch::Merge(patch))?).await
    }

    /// Deletes an object at once; of a pod no kubelet will say that it has ended.
    ///
    /// *Errors*: the server refuses.
    pub async fn delete<K: Resource<DynamicType = ()>>(&self, key: &str) -> Result<()> {
        let (namespace, name) = objects::split(key);
        let now = DeleteParams::default().grace_period(0);
        self.ask(request::<K>(namespace).delete(name, &now)?).await.map(drop)
    }

    async fn ask(&self, request: http::Request<Vec<u8>>) -> Result<Value> {
        let what = format!("{} {}", request.method(), request.uri());
        self.client.request(request).await.with_context(|| what)
    }

    /// Applies manifests as a person would.
    ///
    /// *Errors*: the server refuses one.
    pub async fn apply(&self, yaml: &str) -> Result<()> {
        let output = self.kubectl(&["apply", "-f", "-"], yaml).await?;
        ensure!(output.code == 0, "kubectl apply: {}{}", output.stdout, output.stderr);
        Ok(())
    }

    /// Runs `kubectl` as the administrator.
    ///
    /// *Errors*: it is absent, or runs for two minutes.
    pub async fn kubectl(&self, arguments: &[&str], stdin: &str) -> Result<Output> {
        let mut command = tokio::process::Command::new(program("kubectl")?);
        command.arg("--kubeconfig").arg(self.kubeconfig()).arg("--cache-dir").arg(self.folder.path().join("cache")).args(arguments);
        run(command, stdin).await
    }

    /// Runs `helm` as the administrator.
    ///
    /// *Errors*: it is absent, fails, or runs for two minutes.
    pub async fn helm(&self, arguments: &[&str]) -> Result<String> {
        let kubeconfig = self.kubeconfig();
        let mut all = vec!["--kubeconfig", kubeconfig.to_str().context("a path of text")?];
        all.extend(arguments);
        helm(&all).await
    }

    /// Makes a ServiceAccount, `namespace/name`.
    ///
    /// *Errors*: the server refuses.
    pub async fn service_account(&self, key: &str) -> Result<Account> {
        let (namespace, name) = objects::split(key);
        let object = json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "namespace": namespace, "name": name } });
        self.put::<ServiceAccount>(&object).await?;
        self.account(key).await
    }

    /// Lets a ServiceAccount do what discovery by annotation needs, and no more.
    ///
    /// *Errors*: the server refuses.
    pub async fn grant_discovery(&self, key: &str) -> Result<()> {
        let (namespace, name) = objects::split(key);
        let role = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": { "name": name },
            "rules": [
                { "apiGroups": [""], "resources": ["pods", "services"], "verbs": ["list", "watch"] },
                { "apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"] },
            ],
        });
        let binding = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": { "name": name },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name },
            "subjects": [{ "kind": "ServiceAccount", "name": name, "namespace": namespace }],
        });
        self.apply(&format!("{role}\n---\n{binding}\n")).await
    }

    /// The files of a ServiceAccount that is there, with a token of an hour.
    ///
    /// *Errors*: there is none.
    pub async fn account(&self, key: &str) -> Result<Account> {
        let namespace = objects::split(key).0.context("namespace/name")?;
        let folder = self.folder.path().join("accounts").join(key.replace('/', "."));
        Account::new(folder, SERVER, &self.authority.pem(), namespace, &self.token(key).await?)
    }

    /// A way to the API server on which requests are seen and may be held.
    ///
    /// *Errors*: no free port.
    pub async fn gate(&self) -> Result<Gate> {
        Gate::open(&self.authority).await
    }

    /// A token of a ServiceAccount, for an hour.
    ///
    /// *Errors*: there is no such account.
    pub async fn token(&self, key: &str) -> Result<String> {
        let (namespace, name) = objects::split(key);
        let asked = json!({ "spec": { "audiences": [], "expirationSeconds": 3600 } }).to_string().into_bytes();
        let made = self.ask(request::<ServiceAccount>(namespace).create_subresource("token", name, &PostParams::default(), asked)?).await?;
        let made: TokenRequest = serde_json::from_value(made)?;
        made.status.map(|status| status.token).context("no token")
    }

    /// A token of a ServiceAccount that the server takes for so long; what was taken once may be for ten seconds more, which it remembers.
    ///
    /// *Errors*: there is no such account.
    pub async fn short_token(&self, key: &str, lasts: Duration) -> Result<String> {
        let account = self.get::<ServiceAccount>(key).await?;
        accounts::short_token(&self.signer, key, account["metadata"]["uid"].as_str().context("no uid")?, lasts)
    }

    /// Forgets what etcd held before now: a watch from before gets 410, where the server has no cache of it (`--watch-cache=false`).
    ///
    /// *Errors*: etcd refuses.
    pub async fn compact(&self) -> Result<()> {
        let key = json!({ "key": "AA==" });
        let now = http1::post_json(ETCD_PORT, "/v3/kv/range", &key.to_string()).await?;
        let now: Value = serde_json::from_slice(&now.body)?;
        let compaction = json!({ "revision": now["header"]["revision"], "physical": true });
        let answer = http1::post_json(ETCD_PORT, "/v3/kv/compaction", &compaction.to_string()).await?;
        ensure!(answer.status() == 200, "etcd: {}", String::from_utf8_lossy(&answer.body));
        Ok(())
    }

    fn log_tail(&self) -> String {
        let log = std::fs::read(self.folder.path().join("api/programs.log")).unwrap_or_default();
        let text = String::from_utf8_lossy(&log).into_owned();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        if !self.has_passed {
            eprintln!("--- {} (kept), last {LOG_LINES} lines of the API server:\n{}", self.folder.path().display(), self.log_tail());
            self.folder.disable_cleanup(true);
        }
    }
}

/// What `helm` says to these arguments; nothing but them reaches it.
///
/// *Errors*: it is absent, fails, or runs for two minutes.
pub async fn helm(arguments: &[&str]) -> Result<String> {
    let home = TempDir::with_prefix("strata-e2e-helm-")?;
    let mut command = tokio::process::Command::new(program("helm")?);
    command.args(arguments).env("HELM_CACHE_HOME", home.path()).env("HELM_CONFIG_HOME", home.path()).env("HELM_DATA_HOME", home.path());
    let output = run(command, "").await?;
    ensure!(output.code == 0, "helm {}: {}{}", arguments.join(" "), output.stdout, output.stderr);
    Ok(output.stdout)
}

fn program(name: &str) -> Result<PathBuf> {
    process::cached(&format!("kubernetes-1.35.4-cert-manager-1.20.1/{name}"))
}

fn start_etcd(folder: &Path) -> Result<Program> {
    let data = folder.join("etcd");
    std::fs::create_dir_all(&data)?;
    let peers = "http://127.0.0.1:2380";
    let clients = format!("http://127.0.0.1:{ETCD_PORT}");
    let arguments = [
        format!("--data-dir={}", data.join("data").display()),
        format!("--listen-client-urls={clients}"),
        format!("--advertise-client-urls={clients}"),
        format!("--listen-peer-urls={peers}"),
        format!("--initial-advertise-peer-urls={peers}"),
        format!("--initial-cluster=default={peers}"),
        "--quota-backend-bytes=8589934592".to_owned(),
        "--log-level=error".to_owned(),
    ];
    Program::start(&process::cached("debian-etcd-3.4.23/usr/bin/etcd")?, &data, &arguments)
}

async fn run(mut command: tokio::process::Command, stdin: &str) -> Result<Output> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().with_context(|| format!("cannot start {:?}", command.as_std().get_program()))?;
    let mut input = child.stdin.take().context("piped")?;
    let output = tokio::time::timeout(COMMAND_WITHIN, async {
        // It may end before it has read everything.
        let write = async {
            drop(input.write_all(stdin.as_bytes()).await);
            drop(input);
        };
        tokio::join!(write, child.wait_with_output()).1
    });
    let output = output.await.map_err(|_| anyhow!("{:?} runs for {COMMAND_WITHIN:?}", command.as_std()))??;
    Ok(Output::of(&output))
}

fn request<K: Resource<DynamicType = ()>>(namespace: Option<&str>) -> Request {
    Request::new(K::url_path(&(), namespace))
}
