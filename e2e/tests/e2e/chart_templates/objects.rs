//! What the objects are: least in rights, whole in their names, and rolled only when they must be.

use e2e::strata;

use super::*;

#[test]
fn no_container_has_more_than_it_needs() -> Result<()> {
    for (name, path) in cases()? {
        let objects = parse(&render(&["--values", &path])?)?;
        ensure!(!pods(&objects).is_empty(), "{name}: no pods");
        for (object, spec) in pods(&objects) {
            let place = format!("{name}: {} {}", word(object, "kind"), word(object, "metadata.name"));
            let is_set = |path: &str| at(spec, path).as_bool() == Some(true);
            ensure!(is_set("securityContext.runAsNonRoot"), "{place}: may be root");
            ensure!(word(spec, "securityContext.seccompProfile.type") == "RuntimeDefault", "{place}: no seccomp");
            ensure!(!is_set("hostPID") && !is_set("hostIPC") && (!is_set("hostNetwork") || name == "everything"), "{place}: on the host");
            ensure!(at(spec, "enableServiceLinks").as_bool() == Some(false), "{place}: variables of services look like ours");
            ensure!(list(spec, "volumes").iter().all(|volume| volume.get("hostPath").is_none()), "{place}: a path of the host");
            for container in list(spec, "containers").iter().chain(list(spec, "initContainers")) {
                let context = at(container, "securityContext");
                ensure!(at(context, "privileged").as_bool() != Some(true), "{place}: privileged");
                ensure!(at(context, "allowPrivilegeEscalation").as_bool() == Some(false), "{place}: may become more");
                ensure!(at(context, "readOnlyRootFilesystem").as_bool() == Some(true), "{place}: its root can be written");
                ensure!(words(context, "capabilities.drop").contains("ALL"), "{place}: has capabilities");
                ensure!(at(container, "resources.requests.memory").is_string(), "{place}: asks for no memory");
            }
        }
    }
    Ok(())
}

/// Group, resource, verbs, and names, of every rule; one line each.
fn rights(objects: &[Value]) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for object in objects.iter().filter(|object| ["Role", "ClusterRole"].contains(&word(object, "kind"))) {
        for rule in list(object, "rules") {
            for group in words(rule, "apiGroups") {
                for resource in words(rule, "resources") {
                    let mut verbs: Vec<_> = words(rule, "verbs").into_iter().collect();
                    verbs.sort();
                    let names: Vec<_> = words(rule, "resourceNames").into_iter().collect();
                    let kind = word(object, "kind");
                    found.insert(format!("{kind} {group}/{resource} {} {}", verbs.join(","), names.join(",")).trim_end().to_owned());
                }
            }
        }
    }
    found
}

#[test]
fn rights_are_those_that_are_needed_and_no_others() -> Result<()> {
    let expect: BTreeSet<String> = [
        "ClusterRole /endpoints list,watch",
        "ClusterRole /pods list,watch",
        "ClusterRole /services list,watch",
        "ClusterRole discovery.k8s.io/endpointslices list,watch",
        "ClusterRole events.k8s.io/events create,patch",
        "ClusterRole monitoring.coreos.com/podmonitors list,watch",
        "ClusterRole monitoring.coreos.com/probes list,watch",
        "ClusterRole monitoring.coreos.com/scrapeconfigs list,watch",
        "ClusterRole monitoring.coreos.com/servicemonitors list,watch",
        "ClusterRole strata.ctx.sh/collectors list,watch",
        "ClusterRole strata.ctx.sh/collectors/status patch",
        "ClusterRole strata.ctx.sh/discoveries list,watch",
        "ClusterRole strata.ctx.sh/discoveries/status patch",
        "ClusterRole strata.ctx.sh/relays list,watch",
        "ClusterRole strata.ctx.sh/relays/status patch",
        "Role coordination.k8s.io/leases create,get,update",
    ]
    .map(str::to_owned)
    .into();
    let found = rights(&parse(&render(&[])?)?);
    ensure!(found == expect, "{:#?}", found.symmetric_difference(&expect).collect::<Vec<_>>());
    for (name, path) in cases()? {
        let values: Value = serde_yaml::from_str(&fs::read_to_string(&path)?)?;
        let rights = rights(&parse(&render(&["--values", &path])?)?);
        ensure!(!rights.iter().any(|right| right.contains('*')), "{name}: a wildcard in {rights:?}");
        let secrets: Vec<_> = rights.iter().filter(|right| right.contains("/secrets ")).collect();
        // To make one needs no name; to read one does, unless it was switched on.
        let is_open = |right: &&&String| right.ends_with(" list,watch");
        let is_on = at(&values, "rbac.secrets").as_bool() == Some(true);
        ensure!(secrets.iter().any(|right| is_open(&right)) == is_on, "{name}: {secrets:?}");
        ensure!(secrets.iter().all(|right| is_open(&right) || !right.starts_with("Cluster")), "{name}: {secrets:?}");
    }
    let split = parse(&render(&["--set", "roles.split=true"])?)?;
    for (role, statuses, leases) in [
        ("collector", "discoveries/status", "create,delete,get,list,patch,update,watch"),
        ("relay", "collectors/status relays/status", "create,get,update"),
    ] {
        let names = [format!("metrics-strata-{role}"), format!("strata-{role}")];
        let own: Vec<_> = split.iter().filter(|object| names.iter().any(|name| word(object, "metadata.name") == name)).cloned().collect();
        let rights = rights(&own);
        let written = rights.iter().filter_map(|right| right.strip_prefix("ClusterRole strata.ctx.sh/")?.strip_suffix(" patch"));
        ensure!(written.collect::<Vec<_>>().join(" ") == statuses, "{role}: {rights:?}");
        ensure!(rights.contains(&format!("Role coordination.k8s.io/leases {leases}")), "{role}: {rights:?}");
        ensure!(rights.iter().any(|right| right.contains("monitoring.coreos.com")) == (role == "collector"), "{role}: {rights:?}");
    }
    let namespaced = parse(&render(&["--set", "config.kubernetes.namespaces={team-a,team-b}"])?)?;
    ensure!(of_kind(&namespaced, "ClusterRole").is_empty(), "a ClusterRole in spite of a list of namespaces");
    let places: BTreeSet<_> = of_kind(&namespaced, "Role").iter().map(|role| word(role, "metadata.namespace").to_owned()).collect();
    ensure!(places == ["metrics", "team-a", "team-b"].map(str::to_owned).into(), "{places:?}");
    Ok(())
}

#[test]
fn what_objects_name_is_there() -> Result<()> {
    for (name, path) in cases()? {
        let objects = parse(&render(&["--values", &path])?)?;
        let names = |kind: &str| -> BTreeSet<&str> { of_kind(&objects, kind).iter().map(|object| word(object, "metadata.name")).collect() };
        let (accounts, maps, claims) = (names("ServiceAccount"), names("ConfigMap"), names("PersistentVolumeClaim"));
        for (object, spec) in pods(&objects) {
            let place = format!("{name}: {}", word(object, "metadata.name"));
            let account = word(spec, "serviceAccountName");
            ensure!(account.is_empty() || accounts.contains(account), "{place}: no account {account}");
            for volume in list(spec, "volumes") {
                let (map, claim) = (word(volume, "configMap.name"), word(volume, "persistentVolumeClaim.claimName"));
                ensure!(map.is_empty() || maps.contains(map), "{place}: no ConfigMap {map}");
                ensure!(claim.is_empty() || claims.contains(claim), "{place}: no claim {claim}");
            }
            let replicas = at(object, "spec.replicas").as_u64().unwrap_or_default();
            for template in list(object, "spec.volumeClaimTemplates") {
                for i in 0..replicas {
                    let claim = format!("{}-{}-{i}", word(template, "metadata.name"), word(object, "metadata.name"));
                    ensure!(claims.contains(claim.as_str()), "{place}: no claim {claim}");
                }
            }
            let templates = list(object, "spec.volumeClaimTemplates").iter().map(|template| word(template, "metadata.name"));
            let volumes: BTreeSet<&str> = list(spec, "volumes").iter().map(named).chain(templates).collect();
            let mounts: Vec<_> = list(spec, "containers").iter().flat_map(|container| list(container, "volumeMounts")).collect();
            for mount in &mounts {
                ensure!(volumes.contains(named(mount)), "{place}: no volume {}", named(mount));
                ensure!(mount.get("subPath").is_none(), "{place}: a subPath never changes");
                let is_inside = |outer: &&Value| word(mount, "mountPath").starts_with(&format!("{}/", word(outer, "mountPath")));
                ensure!(!mounts.iter().any(is_inside), "{place}: a mount inside of another that cannot be written");
            }
        }
        for service in of_kind(&objects, "Service") {
            let selector = at(service, "spec.selector").as_mapping().context("a selector")?;
            let is_selected = |labels: &Value| selector.iter().all(|(key, value)| labels.get(key) == Some(value));
            let found = pods(&objects)
                .into_iter()
                .filter(|(object, _)| is_selected(at(object, "spec.template.metadata.labels")))
                .collect::<Vec<_>>();
            let [(_, spec)] = found[..] else { anyhow::bail!("{name}: {} selects {} pods", named(at(service, "metadata")), found.len()) };
            let ports: BTreeSet<&str> = list(spec, "containers").iter().flat_map(|container| list(container, "ports")).map(named).collect();
            ensure!(list(service, "spec.ports").iter().all(|port| ports.contains(word(port, "targetPort"))), "{name}: {service:?}");
        }
    }
    Ok(())
}

fn named(value: &Value) -> &str {
    word(value, "name").trim()
}

/// The configuration that a chart renders, and the environment of each process that reads it.
pub(super) fn configuration(objects: &[Value]) -> Result<String> {
    let maps = of_kind(objects, "ConfigMap");
    let found = maps.iter().find_map(|map| at(map, "data").get("strata.yaml")?.as_str());
    Ok(found.context("no strata.yaml")?.to_owned())
}

#[test]
fn strata_takes_every_configuration_as_each_of_its_pods_reads_it() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("strata.yaml");
    for (name, path) in cases()? {
        let objects = parse(&render(&["--values", &path])?)?;
        fs::write(&file, configuration(&objects)?)?;
        for (object, spec) in pods(&objects) {
            let mut command = Command::new(strata::binary()?);
            command.env_clear().arg("check");
            for variable in list(spec, "containers").iter().flat_map(|container| list(container, "env")) {
                command.env(named(variable), variable.get("value").and_then(Value::as_str).unwrap_or("of-a-secret"));
            }
            let output = command.arg("--config").arg(&file).output()?;
            let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
            ensure!(output.status.success(), "{name}, {}: {said}", word(object, "metadata.name"));
        }
    }
    Ok(())
}

/// What a pod of each role is rolled by.
fn rolls(arguments: &[&str]) -> Result<Vec<String>> {
    let objects = parse(&render(arguments)?)?;
    let sum = |(object, _): (&Value, &Value)| {
        let sum = at(object, "spec.template.metadata.annotations").get("checksum/restart")?.as_str()?;
        Some(format!("{} {sum}", word(object, "metadata.name")))
    };
    Ok(pods(&objects).into_iter().filter_map(sum).collect())
}

#[test]
fn pods_are_rolled_for_what_needs_a_restart_and_for_nothing_else() -> Result<()> {
    let relays = r#"config.relays=[{"name":"a","sink":{"file":{"path":"/tmp/a"}}}]"#;
    let feed = r#"config.relays=[{"name":"a","sink":{"nats":{"max_bytes":"1GiB"}}}]"#;
    for set in ["config.buffer.max_bytes=\"9GiB\"", "config.buffer.memory=\"9MiB\"", "config.global.scrape_interval=\"1s\"", relays, feed] {
        ensure!(rolls(&["--set-json", set])? == rolls(&[])?, "{set} rolls a pod");
    }
    for set in [
        "config.server.listen=\"0.0.0.0:9601\"",
        "config.buffer.nats_memory=\"64MiB\"",
        "config.kubernetes.resources=false",
        "config.feeds.listen=\"0.0.0.0:4222\"",
    ] {
        ensure!(rolls(&["--set-json", set])? != rolls(&[])?, "{set} rolls no pod");
    }
    // A server learns of a new feed at its start, the others while they run.
    let split = ["--set", "roles.split=true"];
    let (before, after) = (rolls(&split)?, rolls(&[split[0], split[1], "--set-json", feed])?);
    let changed: Vec<_> = before.iter().zip(&after).filter(|(one, other)| one != other).map(|(one, _)| one.split(' ').next()).collect();
    ensure!(changed == [Some("strata-nats")], "{changed:?}");
    Ok(())
}

#[test]
fn each_process_has_the_seeds_of_its_role_alone() -> Result<()> {
    let feed = r#"config.relays=[{"name":"agents","sink":{"nats":{"max_bytes":"1GiB"}}}]"#;
    let objects = parse(&render(&["--set", "roles.split=true", "--set-json", feed])?)?;
    let mut seen = Vec::new();
    for (object, spec) in pods(&objects) {
        for volume in list(spec, "volumes").iter().filter(|volume| named(volume) == "seeds") {
            let keys: Vec<_> = list(volume, "secret.items").iter().map(|item| word(item, "key")).collect();
            seen.push(format!("{} {}", word(object, "metadata.name"), keys.join(",")));
        }
    }
    seen.sort();
    let expect = ["strata-collector collector.seed", "strata-nats ", "strata-relay control.seed,relay.seed,feed-agents.seed"];
    ensure!(seen == expect, "{seen:?}");
    Ok(())
}
