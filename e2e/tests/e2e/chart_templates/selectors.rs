//! What chooses pods by their labels chooses those it is of, and lets in where their processes listen.

use super::objects::configuration;
use super::*;

fn labels(object: &Value) -> &Value {
    at(object, if word(object, "kind") == "Pod" { "metadata.labels" } else { "spec.template.metadata.labels" })
}

/// The pods of a rendered text that have all labels of a selector, by the names of what makes them.
fn chosen<'o>(objects: &'o [Value], selector: &Value) -> Result<BTreeSet<&'o str>> {
    let wanted = at(selector, "matchLabels").as_mapping().filter(|wanted| !wanted.is_empty()).context("a selector of all pods")?;
    let is_chosen = |object: &Value| wanted.iter().all(|(key, value)| labels(object).get(key) == Some(value));
    Ok(pods(objects).into_iter().filter(|(object, _)| is_chosen(object)).map(|(object, _)| word(object, "metadata.name")).collect())
}

#[test]
fn budgets_policies_and_spreads_choose_the_pods_that_they_are_of() -> Result<()> {
    let mut count = [0; 3];
    for (name, path) in cases()? {
        let objects = parse(&render(&["--values", &path])?)?;
        for budget in of_kind(&objects, "PodDisruptionBudget") {
            let own = word(budget, "metadata.name");
            ensure!(chosen(&objects, at(budget, "spec.selector"))? == [own].into(), "{name}: {budget:?}");
            let (object, _) = pods(&objects).into_iter().find(|(object, _)| word(object, "metadata.name") == own).context("pods")?;
            let replicas = at(object, "spec.replicas").as_u64();
            ensure!(replicas > at(budget, "spec.maxUnavailable").as_u64(), "{name}: {own} may lose all of {replicas:?}");
            count[0] += 1;
        }
        for policy in of_kind(&objects, "NetworkPolicy") {
            let own = word(policy, "metadata.name");
            ensure!(chosen(&objects, at(policy, "spec.podSelector"))? == [own].into(), "{name}: {policy:?}");
            count[1] += 1;
        }
        for (object, spec) in pods(&objects) {
            let own = word(object, "metadata.name");
            for spread in list(spec, "topologySpreadConstraints") {
                let found = chosen(&objects, at(spread, "labelSelector"))?;
                // What the values say of all roles is of all of them.
                ensure!(found == [own].into() || (name == "everything" && found.contains(own)), "{name}: {own} {spread:?}");
                count[2] += 1;
            }
        }
    }
    ensure!(count.iter().all(|count| *count > 3), "{count:?}");
    Ok(())
}

/// The ports at which a process of a role listens, by their names in the chart.
fn listened(config: &Value, role: &str) -> Vec<(&'static str, u16)> {
    let port = |path: &str| word(config, path).rsplit_once(':').and_then(|(_, port)| port.parse().ok());
    let mut all = vec![("http", port("server.listen"))];
    if ["nats", "run"].contains(&role) {
        all.push(("nats", port("feeds.listen")));
    }
    if role == "nats" {
        all.push(("cluster", port("buffer.nats.cluster.listen")));
    }
    all.into_iter().filter_map(|(name, port)| Some((name, port?))).collect()
}

#[test]
fn a_policy_lets_in_where_processes_listen() -> Result<()> {
    for (name, path) in cases()? {
        let values: Value = serde_yaml::from_str(&fs::read_to_string(&path)?)?;
        let objects = parse(&render(&["--values", &path])?)?;
        let config: Value = serde_yaml::from_str(&configuration(&objects)?)?;
        for policy in of_kind(&objects, "NetworkPolicy") {
            let own = word(policy, "metadata.name");
            let (_, spec) = pods(&objects).into_iter().find(|(object, _)| word(object, "metadata.name") == own).context("pods")?;
            let [container] = list(spec, "containers") else { anyhow::bail!("{name}: {own} has several containers") };
            let named = |port: &Value| Some((word(port, "name").to_owned(), u16::try_from(at(port, "containerPort").as_u64()?).ok()?));
            let ports: BTreeSet<(String, u16)> = list(container, "ports").iter().filter_map(named).collect();
            let role = words(container, "args").into_iter().next().unwrap_or_default();
            let listened: BTreeSet<_> = listened(&config, &role).into_iter().map(|(name, port)| (name.to_owned(), port)).collect();
            let rest: Vec<_> = ports.symmetric_difference(&listened).filter(|(name, _)| name != "webhook").collect();
            ensure!(rest.is_empty(), "{name}: {own} listens at {listened:?}, and its ports are {ports:?}");
            let rules = list(policy, "spec.ingress").iter();
            let open: BTreeSet<&str> = rules.flat_map(|rule| list(rule, "ports")).map(|port| word(port, "port")).collect();
            // Nobody reads feeds who is not named.
            let is_closed = role == "run" && list(&values, "networkPolicy.feedsFrom").is_empty();
            let names = ports.iter().map(|(name, _)| name.as_str());
            let expect: BTreeSet<&str> = names.filter(|name| *name != "nats" || !is_closed).collect();
            ensure!(open == expect, "{name}: {own} lets in at {open:?}, and its ports are {ports:?}");
            for peer in list(policy, "spec.ingress").iter().flat_map(|rule| list(rule, "from")).filter_map(|peer| peer.get("podSelector")) {
                ensure!(name == "everything" || !chosen(&objects, peer)?.is_empty(), "{name}: {own} lets nobody in by {peer:?}");
            }
        }
    }
    Ok(())
}
