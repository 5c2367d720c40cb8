//! What a kubelet would make of a workload's pod: its volumes, its environment and its process, as root of nothing.
//!
//! *In*: a Deployment, StatefulSet, DaemonSet or Job, or a pod by itself, as the API server has it. *Out*: the pod as an object, and Strata as a process with
//! the container's arguments, environment, user and mounts. *Bound*: one container at a time; volumes of ConfigMaps, Secrets, claims and emptyDir. The root is read-only and holds the
//! machine's `/usr`; of the network it has what the test has.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, Service};
use kube::api::ListParams;
use kube::core::Resource;
use kube::{Api, ResourceExt};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::{ControlPlane, ENVIRONMENT, objects};
use crate::strata::Output;
use crate::{http1, page, process, strata, wait};

/// Where the image has the binary.
const PROGRAM: &str = "/usr/local/bin/strata";
/// What the image is made by.
const DOCKERFILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../Dockerfile");
const HOSTS: &str = "/etc/hosts";
const TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Last lines of the log that a failed test prints.
const LOG_LINES: usize = 40;
/// How long a pod that somebody makes may let wait for itself.
const MADE_WITHIN: Duration = Duration::from_secs(120);
/// How long a pod that ends by itself may run.
const ENDS_WITHIN: Duration = Duration::from_secs(180);
/// Mounts what the arguments say, in pairs of source and target, with `ro` or `rw` before them, under a root that is read-only in the end.
const MOUNTS: &str = r#"
set -eu
root=$1 user=$2 group=$3 program=$4
shift 4
mount --bind "$root" "$root"
mount --rbind /usr "$root/usr"
mount --rbind /dev "$root/dev"
mount --rbind /proc "$root/proc"
mount -t tmpfs tmpfs "$root/usr/local/bin"
install -m 755 /dev/null "$root$program"
mount --bind "$STRATA_BINARY" "$root$program"
unset STRATA_BINARY
while [ "$1" != -- ]; do
  mount --bind "$2" "$root$3"
  [ "$1" = rw ] || mount -o "remount,bind,ro" "$root$3"
  shift 3
done
shift
mount -o remount,bind,ro "$root"
exec chroot "$root" setpriv --reuid "$user" --regid "$group" --clear-groups --no-new-privs --bounding-set=-all --inh-caps=-all -- "$program" "$@"
"#;

/// A pod that runs; killed when dropped.
pub struct RunningPod {
    key: String,
    ip: IpAddr,
    folder: PathBuf,
    child: Option<Child>,
    grace: Duration,
    environment: Vec<(String, String)>,
}

/// A volume's files, as a pod sees them.
struct Mount {
    source: PathBuf,
    target: String,
    is_read_only: bool,
}

impl ControlPlane {
    /// Makes pod number `ordinal` of a workload (`namespace/name`) on a node, and starts its process. More than one at a time need `environment` to give
    /// each an address of its own to listen at: all share the test's network.
    ///
    /// *Errors*: the server has no such workload, or lacks what its volumes name.
    pub async fn run_pod<K: Resource<DynamicType = ()>>(
        &self,
        workload: &str,
        ordinal: usize,
        (node, ip): (&str, IpAddr),
        environment: &[(&str, String)],
    ) -> Result<RunningPod> {
        let found = self.get::<K>(workload).await?;
        let key = format!("{workload}-{ordinal}");
        let mut template = found["spec"]["template"].clone();
        template["spec"]["nodeName"] = json!(node);
        claim(&mut template, &found["spec"]["volumeClaimTemplates"], objects::split(&key).1);
        let pod = self.pod_of(&key, &template, ip);
        self.put::<Pod>(&pod).await?;
        if let (Some(service), (Some(namespace), name)) = (found["spec"]["serviceName"].as_str(), objects::split(&key)) {
            self.name(&format!("{name}.{service}.{namespace}.svc"), ip)?;
        }
        self.container(key, &template["spec"], ip, environment).await
    }

    /// Runs the containers of a pod that is made by somebody else and of no workload, one after the other, each to its end; then the pod has succeeded.
    ///
    /// *Errors*: it is not made in time, or a container ends in an error, or not in time.
    pub async fn run_made(&self, key: &str, (node, ip): (&str, IpAddr)) -> Result<()> {
        let pod = wait::until(&format!("{key} is made"), MADE_WITHIN, async || self.get::<Pod>(key).await.ok()).await?;
        self.name_services(objects::split(key).0.context("namespace/name")?).await?;
        for container in list(&pod["spec"]["containers"]) {
            let mut spec = pod["spec"].clone();
            (spec["nodeName"], spec["containers"]) = (json!(node), json!([container]));
            self.container(key.to_owned(), &spec, ip, &[]).await?.end().await.with_context(|| container["args"].to_string())?;
        }
        self.patch_status::<Pod>(key, &json!({ "status": { "phase": "Succeeded" } })).await.map(drop)
    }

    /// What a claim (`namespace/name`) has on its volume.
    pub fn claimed(&self, key: &str) -> PathBuf {
        self.folder().join("claims").join(key.replace('/', "."))
    }

    /// Starts the container of a pod.
    async fn container(&self, key: String, spec: &Value, ip: IpAddr, environment: &[(&str, String)]) -> Result<RunningPod> {
        let folder = self.folder().join("pods").join(key.replace('/', "."));
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        let mut running = RunningPod { key, ip, folder, child: None, grace: grace(spec), environment: Vec::new() };
        let mounts = self.mounts(&running, spec).await?;
        running.start(spec, &mounts, environment)?;
        Ok(running)
    }

    /// What pods find by name.
    fn hosts(&self) -> Result<PathBuf> {
        let path = self.folder().join("hosts");
        if !path.exists() {
            fs::copy("/etc/hosts", &path)?;
        }
        Ok(path)
    }

    /// Lets every pod find an address by this name, as the cluster's DNS does.
    fn name(&self, full: &str, ip: IpAddr) -> Result<()> {
        let (path, end) = (self.hosts()?, format!(" {full}"));
        let others = fs::read_to_string(&path)?;
        let others = others.lines().filter(|line| !line.ends_with(&end)).map(|line| format!("{line}\n"));
        // Written in place: pods that run have this very file.
        Ok(fs::write(&path, others.chain([format!("{ip}{end}\n")]).collect::<String>())?)
    }

    /// Lets every pod find the services of a namespace that have an address. Here it is this machine's: there is no proxy to the pods behind it.
    async fn name_services(&self, namespace: &str) -> Result<()> {
        let services: Api<Service> = Api::namespaced(self.client(), namespace);
        for service in services.list(&ListParams::default()).await? {
            let address = service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()?.parse().ok());
            if let Some(ip) = address {
                self.name(&format!("{}.{namespace}.svc", service.name_any()), ip)?;
            }
        }
        Ok(())
    }

    fn pod_of(&self, key: &str, template: &Value, ip: IpAddr) -> Value {
        let mut pod = objects::pod(key, &[ip], &[]);
        for part in ["labels", "annotations"] {
            pod["metadata"][part] = template["metadata"][part].clone();
        }
        let container = &template["spec"]["containers"][0];
        for name in ["name", "image"] {
            pod["status"]["containerStatuses"][0][name] = container[name].clone();
        }
        pod["spec"] = template["spec"].clone();
        pod
    }

    /// Everything that is mounted into the container, with the files in place.
    async fn mounts(&self, pod: &RunningPod, spec: &Value) -> Result<Vec<Mount>> {
        let (namespace, _) = objects::split(&pod.key);
        let namespace = namespace.context("namespace/name")?;
        let owner = id(spec, "fsGroup");
        let mut mounts = Vec::new();
        for wanted in list(&spec["containers"][0]["volumeMounts"]) {
            let name = wanted["name"].as_str().context("a mount without a name")?;
            let volume = list(&spec["volumes"]).find(|volume| volume["name"] == name).with_context(|| format!("no volume {name}"))?;
            let source = match volume["persistentVolumeClaim"]["claimName"].as_str() {
                Some(claim) => self.claimed(&format!("{namespace}/{claim}")),
                None => pod.folder.join("volumes").join(name),
            };
            fs::create_dir_all(&source)?;
            chown(&source, None, Some(owner))?;
            fs::set_permissions(&source, fs::Permissions::from_mode(0o2770))?;
            if let Some(files) = self.files(namespace, volume).await? {
                write_atomically(&source, &files, owner)?;
            }
            let target = wanted["mountPath"].as_str().context("a mount without a path")?.to_owned();
            mounts.push(Mount { source, target, is_read_only: wanted["readOnly"] == true });
        }
        if spec["automountServiceAccountToken"] != false {
            let account = self.account(&format!("{namespace}/{}", spec["serviceAccountName"].as_str().unwrap_or("default"))).await?;
            account.own(owner)?;
            mounts.push(Mount { source: account.folder, target: TOKEN.to_owned(), is_read_only: true });
        }
        mounts.push(Mount { source: self.hosts()?, target: HOSTS.to_owned(), is_read_only: true });
        Ok(mounts)
    }

    /// The files that a volume has from an object; `None`: it has none of its own.
    async fn files(&self, namespace: &str, volume: &Value) -> Result<Option<BTreeMap<String, Vec<u8>>>> {
        let text = |value: &Value| value.as_str().unwrap_or_default().as_bytes().to_vec();
        let (all, items): (BTreeMap<String, Vec<u8>>, &Value) = if let Some(name) = volume["configMap"]["name"].as_str() {
            let map = self.get::<ConfigMap>(&format!("{namespace}/{name}")).await?;
            let files = map["data"].as_object().into_iter().flatten().map(|(name, value)| (name.clone(), text(value)));
            (files.collect(), &volume["configMap"]["items"])
        } else if let Some(name) = volume["secret"]["secretName"].as_str() {
            let secret = self.get::<Secret>(&format!("{namespace}/{name}")).await?;
            let files = secret["data"].as_object().into_iter().flatten();
            let files = files.map(|(name, value)| Ok((name.clone(), STANDARD.decode(text(value))?)));
            (files.collect::<Result<_>>()?, &volume["secret"]["items"])
        } else {
            return Ok(None);
        };
        let Some(items) = items.as_array() else { return Ok(Some(all)) };
        let chosen = items.iter().map(|item| {
            let (key, path) = (item["key"].as_str().context("a key")?, item["path"].as_str().context("a path")?);
            Ok((path.to_owned(), all.get(key).with_context(|| format!("no key {key}"))?.clone()))
        });
        chosen.collect::<Result<_>>().map(Some)
    }
}

impl RunningPod {
    fn start(&mut self, spec: &Value, mounts: &[Mount], more: &[(&str, String)]) -> Result<()> {
        let root = self.folder.join("root");
        for folder in ["usr", "dev", "proc", "etc", "tmp", "var"] {
            fs::create_dir_all(root.join(folder))?;
        }
        for mount in mounts {
            let place = root.join(mount.target.trim_start_matches('/'));
            if mount.source.is_dir() {
                fs::create_dir_all(place)?;
            } else {
                File::create(place)?;
            }
        }
        for (link, target) in [("lib", "usr/lib"), ("lib64", "usr/lib64"), ("bin", "usr/bin")] {
            symlink(target, root.join(link))?;
        }
        for file in ["nsswitch.conf", "passwd"] {
            fs::copy(Path::new("/etc").join(file), root.join("etc").join(file))?;
        }
        File::create(root.join("etc/resolv.conf"))?;
        let container = &spec["containers"][0];
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", MOUNTS, "sh"]).arg(&root);
        command.args([id(spec, "runAsUser").to_string(), id(spec, "runAsGroup").to_string(), PROGRAM.to_owned()]);
        for mount in mounts {
            command.arg(if mount.is_read_only { "ro" } else { "rw" }).arg(&mount.source).arg(&mount.target);
        }
        command.arg("--").args(list(&container["args"]).map(|argument| argument.as_str().unwrap_or_default()));
        self.environment = image_environment()?;
        self.environment.push(("HOSTNAME".to_owned(), objects::split(&self.key).1.to_owned()));
        self.environment.extend(self.environment(spec)?);
        self.environment.extend(ENVIRONMENT.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        self.environment.extend(more.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
        self.environment.push(("PATH".to_owned(), "/usr/local/bin:/usr/bin:/usr/sbin".to_owned()));
        command.env_clear().envs(self.environment.iter().cloned()).env("STRATA_BINARY", strata::binary()?.canonicalize()?);
        let log = File::options().create(true).append(true).open(self.folder.join("log"))?;
        self.child = Some(command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?);
        Ok(())
    }

    /// The container's own environment, with what it takes from the pod.
    fn environment(&self, spec: &Value) -> Result<Vec<(String, String)>> {
        let (namespace, name) = objects::split(&self.key);
        let variables = list(&spec["containers"][0]["env"]).map(|variable| {
            let value = match (variable["value"].as_str(), variable["valueFrom"]["fieldRef"]["fieldPath"].as_str()) {
                (Some(value), _) => value.to_owned(),
                (None, Some("spec.nodeName")) => spec["nodeName"].as_str().unwrap_or_default().to_owned(),
                (None, Some("metadata.name")) => name.to_owned(),
                (None, Some("metadata.namespace")) => namespace.unwrap_or_default().to_owned(),
                (None, Some("status.podIP")) => self.ip.to_string(),
                // Helm leaves an empty value out.
                (None, None) if variable.get("valueFrom").is_none() => String::new(),
                _ => bail!("a variable that no kubelet of the tests knows: {variable}"),
            };
            Ok((variable["name"].as_str().context("a variable without a name")?.to_owned(), value))
        });
        variables.collect()
    }

    /// `namespace/name`.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Waits until its readiness probe would pass at this port.
    ///
    /// *Errors*: it ended, or not in time.
    pub async fn ready(&mut self, port: u16) -> Result<()> {
        self.ready_within(port, strata::READY_WITHIN).await
    }

    /// The same for one that waits for others itself.
    ///
    /// *Errors*: as above.
    pub async fn ready_within(&mut self, port: u16, limit: Duration) -> Result<()> {
        let address = SocketAddr::from((self.ip, port));
        let child = self.child.as_mut().context("it does not run")?;
        let ended = wait::until(&format!("{} is ready", self.key), limit, async || {
            if let Ok(Some(status)) = child.try_wait() {
                return Some(Some(status));
            }
            let answer = http1::get_at(address, "/readyz").await.ok()?;
            (answer.status() == 200).then_some(None)
        })
        .await?;
        match ended {
            Some(status) => bail!("{} ended with {status}: {}", self.key, self.log_tail(LOG_LINES)),
            None => Ok(()),
        }
    }

    /// Sum of a metric's samples at this port; 0 where there is none.
    ///
    /// *Errors*: no answer.
    pub async fn metric(&self, port: u16, name: &str) -> Result<f64> {
        page::sum(&String::from_utf8(http1::get_at(SocketAddr::from((self.ip, port)), "/metrics").await?.body)?, name, &[])
    }

    /// Brings the files of its ConfigMaps and Secrets up to date, as a kubelet does within a minute.
    ///
    /// *Errors*: one is gone.
    pub async fn refresh(&self, plane: &ControlPlane) -> Result<()> {
        let pod = plane.get::<Pod>(&self.key).await?;
        plane.mounts(self, &pod["spec"]).await.map(drop)
    }

    /// Ends it as a kubelet does: SIGTERM, its grace, and the object goes.
    ///
    /// *Errors*: it needs longer than its grace, or ends in an error.
    pub async fn stop(mut self, plane: &ControlPlane) -> Result<()> {
        let mut child = self.child.take().context("it does not run")?;
        process::signal(child.id(), Signal::SIGTERM);
        let status = wait::until("the pod ends", self.grace, async || child.try_wait().ok().flatten()).await?;
        ensure!(status.success(), "{} ended with {status}: {}", self.key, self.log_tail(LOG_LINES));
        plane.delete::<Pod>(&self.key).await?;
        Ok(fs::remove_dir_all(&self.folder)?)
    }

    /// Waits until it ends by itself.
    ///
    /// *Errors*: it does so in an error, or not in time.
    pub async fn end(mut self) -> Result<()> {
        let mut child = self.child.take().context("it does not run")?;
        let ended = wait::until("the pod ends by itself", ENDS_WITHIN, async || child.try_wait().ok().flatten()).await;
        if ended.is_err() {
            child.kill()?;
            child.wait()?;
        }
        let status = ended.with_context(|| self.log_tail(LOG_LINES))?;
        ensure!(status.success(), "{} ended with {status}: {}", self.key, self.log_tail(LOG_LINES));
        Ok(())
    }

    /// Ends it with SIGKILL, as a node that is gone; the object stays.
    ///
    /// *Errors*: it does not run, or a child of it lives on.
    pub async fn kill(&mut self) -> Result<()> {
        let mut child = self.child.take().context("it does not run")?;
        let children = process::children(child.id());
        child.kill()?;
        child.wait()?;
        wait::until_true("its child is gone too", strata::GONE_WITHIN, || !children.iter().any(|pid| process::is_alive(*pid))).await
    }

    /// Runs the same program beside it, as `kubectl exec` does.
    ///
    /// *Errors*: it does not run, or the command does for a minute.
    pub async fn exec(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = tokio::process::Command::new("nsenter");
        command.args(["--mount", "--root", "--wd", "--target"]).arg(self.pid()?.to_string()).arg(PROGRAM).args(arguments);
        command.env_clear().envs(self.environment.iter().cloned()).stdin(Stdio::null()).kill_on_drop(true);
        Ok(Output::of(&tokio::time::timeout(Duration::from_secs(60), command.output()).await??))
    }

    /// Its process.
    ///
    /// *Errors*: it does not run.
    pub fn pid(&self) -> Result<u32> {
        Ok(self.child.as_ref().context("it does not run")?.id())
    }

    /// The last lines it logged.
    pub fn log_tail(&self, lines: usize) -> String {
        let text = fs::read_to_string(self.folder.join("log")).unwrap_or_default();
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }
}

impl Drop for RunningPod {
    fn drop(&mut self) {
        // A test that passes stops its pods; one that still runs here was left by an error.
        if let Some(mut child) = self.child.take() {
            eprintln!("--- {}, last {LOG_LINES} lines of its log:\n{}", self.key, self.log_tail(LOG_LINES));
            // It may have ended in the meantime.
            drop(child.kill());
            drop(child.wait());
        }
    }
}

/// Strata's variables that the image brings along.
fn image_environment() -> Result<Vec<(String, String)>> {
    let text = fs::read_to_string(DOCKERFILE)?;
    let line = text.lines().rev().find_map(|line| line.strip_prefix("ENV ")).context("no ENV in the Dockerfile")?;
    let variables = line.split_whitespace().filter_map(|variable| variable.split_once('='));
    Ok(variables.filter(|(name, _)| name.starts_with("STRATA_")).map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
}

/// Gives a pod of a StatefulSet its claims as volumes.
fn claim(template: &mut Value, claims: &Value, pod: &str) {
    for claim in list(claims) {
        let name = claim["metadata"]["name"].as_str().unwrap_or_default();
        let volume = json!({ "name": name, "persistentVolumeClaim": { "claimName": format!("{name}-{pod}") } });
        match template["spec"]["volumes"].as_array_mut() {
            Some(volumes) => volumes.push(volume),
            None => template["spec"]["volumes"] = json!([volume]),
        }
    }
}

/// Writes files as a kubelet does: all change at one moment, by one link.
fn write_atomically(folder: &Path, files: &BTreeMap<String, Vec<u8>>, owner: u32) -> Result<()> {
    let count = fs::read_dir(folder)?.count();
    let version = folder.join(format!("..version_{count}"));
    fs::create_dir(&version)?;
    for (name, text) in files {
        let path = version.join(name);
        fs::write(&path, text)?;
        chown(&path, None, Some(owner))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o440))?;
        let link = folder.join(name);
        if !link.is_symlink() {
            symlink(Path::new("..data").join(name), link)?;
        }
    }
    let new = folder.join("..data_new");
    symlink(version.file_name().context("a name")?, &new)?;
    Ok(fs::rename(new, folder.join("..data"))?)
}

/// An id of the pod's security context; nobody's where it has none.
fn id(spec: &Value, name: &str) -> u32 {
    spec["securityContext"][name].as_u64().map_or(65534, |id| id as u32)
}

fn grace(spec: &Value) -> Duration {
    Duration::from_secs(spec["terminationGracePeriodSeconds"].as_u64().unwrap_or(30))
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}
