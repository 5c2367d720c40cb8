//! The chart as text: what it renders is valid, least, the same each time, and what the book says of it is so.
//!
//! What is rendered here is run by `chart`. `UPDATE_GOLDEN=1` writes the kustomize base and the table of values anew.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, ensure};
use serde_yaml::Value;

mod alerts;
mod objects;
mod selectors;
mod values;

/// Where releases of these tests go.
pub const NAMESPACE: &str = "metrics";

/// A file of the repository.
fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

pub fn read(path: &str) -> Result<String> {
    fs::read_to_string(repository(path)).with_context(|| path.to_owned())
}

/// What a script of `tools/` installs.
fn tool(script: &str, arguments: &[&str]) -> Result<PathBuf> {
    let said = Command::new(repository("tools").join(script)).args(arguments).stdin(Stdio::null()).output()?;
    ensure!(said.status.success(), "tools/{script}: {}", String::from_utf8_lossy(&said.stderr));
    Ok(PathBuf::from(String::from_utf8(said.stdout)?.trim()))
}

/// Text that must be in a file. With `UPDATE_GOLDEN` it is written there.
fn golden(path: &str, text: &str) -> Result<()> {
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        return Ok(fs::write(repository(path), text)?);
    }
    ensure!(read(path)? == text, "{path} is not what the chart says: UPDATE_GOLDEN=1 writes it");
    Ok(())
}

fn helm(arguments: &[&str]) -> Result<Output> {
    let helm = tool("kubernetes.sh", &[])?.join("helm");
    Ok(Command::new(helm).args(arguments).current_dir(repository("charts")).stdin(Stdio::null()).output()?)
}

/// What the chart renders with these arguments more.
///
/// *Errors*: helm's.
pub fn render(arguments: &[&str]) -> Result<String> {
    let mut all = vec!["template", "strata", "strata", "--namespace", NAMESPACE];
    all.extend(arguments);
    let output = helm(&all)?;
    ensure!(output.status.success(), "helm {}: {}", all.join(" "), String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// What helm says to these arguments, which it must refuse.
fn refusal(arguments: &[&str]) -> Result<String> {
    let error = render(arguments).err().with_context(|| format!("{arguments:?} is taken"))?;
    Ok(error.to_string())
}

/// The files of values that the chart is tested with: their names, and their paths.
pub fn cases() -> Result<Vec<(String, String)>> {
    let mut cases = Vec::new();
    for entry in fs::read_dir(repository("charts/strata/ci"))? {
        let path = entry?.path();
        let name = path.file_stem().context("a name")?.to_string_lossy().into_owned();
        cases.push((name, path.to_string_lossy().into_owned()));
    }
    cases.sort();
    ensure!(cases.len() >= 10, "{cases:?}");
    Ok(cases)
}

/// The objects of a rendered text.
pub fn parse(text: &str) -> Result<Vec<Value>> {
    let mut objects = Vec::new();
    for document in serde_yaml::Deserializer::from_str(text) {
        let object: Value = serde::Deserialize::deserialize(document)?;
        if !object.is_null() {
            objects.push(object);
        }
    }
    Ok(objects)
}

/// What stands at keys below each other; null where nothing does.
fn at<'v>(value: &'v Value, path: &str) -> &'v Value {
    path.split('.').fold(value, |value, key| value.get(key).unwrap_or(&Value::Null))
}

fn word<'v>(value: &'v Value, path: &str) -> &'v str {
    at(value, path).as_str().unwrap_or_default()
}

fn list<'v>(value: &'v Value, path: &str) -> &'v [Value] {
    at(value, path).as_sequence().map_or(&[], Vec::as_slice)
}

fn words(value: &Value, path: &str) -> BTreeSet<String> {
    list(value, path).iter().map(|one| one.as_str().unwrap_or_default().to_owned()).collect()
}

/// Whether an object is of a kind that others define.
pub fn is_foreign(object: &Value) -> bool {
    ["Certificate", "Issuer", "ServiceMonitor", "PrometheusRule"].contains(&word(object, "kind"))
}

fn of_kind<'o>(objects: &'o [Value], kind: &str) -> Vec<&'o Value> {
    objects.iter().filter(|object| word(object, "kind") == kind).collect()
}

/// Every specification of a pod: what it is of, and its labels.
fn pods(objects: &[Value]) -> Vec<(&Value, &Value)> {
    let pod = |object| match word(object, "kind") {
        "Pod" => Some((object, at(object, "spec"))),
        "StatefulSet" | "Deployment" | "DaemonSet" | "Job" => Some((object, at(object, "spec.template.spec"))),
        _ => None,
    };
    objects.iter().filter_map(pod).collect()
}

#[test]
fn helm_finds_no_fault_with_any_values() -> Result<()> {
    for (name, path) in cases()? {
        let output = helm(&["lint", "strata", "--strict", "--namespace", NAMESPACE, "--values", &path])?;
        ensure!(output.status.success(), "{name}: {}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

#[test]
fn a_second_render_is_the_same_byte_for_byte() -> Result<()> {
    for (name, path) in cases()? {
        ensure!(render(&["--values", &path])? == render(&["--values", &path])?, "{name} differs");
    }
    Ok(())
}

#[test]
fn every_object_is_valid_by_the_published_schemas() -> Result<()> {
    let python = tool("python.sh", &[])?;
    let folder = tempfile::tempdir()?;
    let (mut files, mut count) = (Vec::new(), 0);
    for (name, path) in cases()? {
        let text = render(&["--values", &path])?;
        // There is no schema of others' kinds.
        count += parse(&text)?.iter().filter(|object| !is_foreign(object)).count();
        files.push(folder.path().join(format!("{name}.yaml")));
        fs::write(&files[files.len() - 1], text)?;
    }
    for version in ["1.31", "1.35"] {
        let output = Command::new(python.with_file_name("kubernetes-validate")).args(["--strict", "-k", version]).args(&files).output()?;
        let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
        ensure!(output.status.success(), "{said}");
        let passed = said.lines().filter(|line| line.contains("passed for resource")).count();
        ensure!(passed == count, "{version}: {passed} of {count}: {said}");
    }
    Ok(())
}

#[test]
fn the_kustomize_base_is_what_the_chart_renders() -> Result<()> {
    // What only a release of helm has.
    let is_helms = |line: &&str| ["helm.sh/", "managed-by: Helm", "# Source: "].iter().any(|mark| line.contains(mark));
    let text = render(&["--include-crds", "--set", "tests.enabled=false,persistence.keep=false"])?;
    let objects: String = text.lines().filter(|line| !is_helms(line)).map(|line| format!("{line}\n")).collect();
    golden("charts/kustomize/base/strata.yaml", &format!("# Written from charts/strata by its tests; change the chart.\n{objects}"))
}

/// The book's version, the chart's and the binary's are one.
#[test]
fn the_chart_is_for_this_version() -> Result<()> {
    let chart: Value = serde_yaml::from_str(&read("charts/strata/Chart.yaml")?)?;
    ensure!(word(&chart, "appVersion") == env!("CARGO_PKG_VERSION"), "Chart.yaml: {chart:?}");
    ensure!(read("Dockerfile")?.contains(&format!("ARG VERSION={}\n", env!("CARGO_PKG_VERSION"))), "Dockerfile: another version");
    Ok(())
}
