//! Every dependency has its reason in `docs/decisions/0001-dependencies.md`, and no reason outlives its dependency.

const MANIFEST: &str = include_str!("../../Cargo.toml");
const NOTE: &str = include_str!("../../docs/decisions/0001-dependencies.md");

/// Names in `[workspace.dependencies]`.
fn dependencies() -> Vec<&'static str> {
    let section = MANIFEST.split("[workspace.dependencies]\n").nth(1).and_then(|rest| rest.split("\n[").next());
    section.into_iter().flat_map(str::lines).filter_map(|line| line.split_once(" = ")).map(|(name, _)| name).collect()
}

#[test]
fn every_dependency_has_its_reason() {
    let missing: Vec<_> = dependencies().into_iter().filter(|name| !NOTE.contains(&format!("- `{name}`: "))).collect();
    assert_eq!(missing, Vec::<&str>::new(), "add one sentence each to docs/decisions/0001-dependencies.md");
}

#[test]
fn every_reason_has_its_dependency() {
    let dependencies = dependencies();
    let named = NOTE.lines().filter_map(|line| line.strip_prefix("- `")?.split_once("`: ")).map(|(name, _)| name);
    let stale: Vec<_> = named.filter(|name| !dependencies.contains(name)).collect();
    assert_eq!(stale, Vec::<&str>::new(), "these are no dependencies any more");
}
