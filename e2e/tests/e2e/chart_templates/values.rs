//! The values: each is known to the schema and to the README, wrong ones are refused, sizes add up.

use std::collections::BTreeMap;

use super::*;

#[test]
fn wrong_values_are_refused_with_their_place() -> Result<()> {
    let check = |set: &str, expect: &str| -> Result<()> {
        let said = refusal(&["--set-json", set])?;
        ensure!(said.contains(expect), "{set}: '{said}' does not say '{expect}'");
        Ok(())
    };
    check("roles.spilt=true", "at '/roles': additional properties 'spilt' not allowed")?;
    check("nats.replicas=2", "at '/nats/replicas': value must be one of 1, 3")?;
    check("image.pullPolicy=\"Sometimes\"", "at '/image/pullPolicy'")?;
    check("image.digest=\"sha256:1\"", "at '/image/digest'")?;
    check("config.bufer={}", "at '/config': additional properties 'bufer' not allowed")?;
    check("config.buffer.max_bytes=\"20GX\"", "at '/config/buffer/max_bytes'")?;
    check("config.relays=[{\"name\":\"a\"}]", "at '/config/relays/0': missing property 'sink'")?;
    check("config.server.listen=\"9600\"", "at '/config/server/listen'")?;
    check("nats.external.urls=[\"nats.example.com\"]", "at '/nats/external/urls/0'")?;
    check("terminationGracePeriodSeconds=10", "at '/terminationGracePeriodSeconds': minimum: got 10, want 25")?;
    check("persistence.size=\"20GiB\"", "at '/persistence/size'")?;
    check("config.buffer.data_dir=\"/x\"", "config.buffer.data_dir is set by the chart")?;
    check("config.buffer.nats=\"bundled\"", "config.buffer.nats is set by the chart: see the values `nats`")?;
    check("config.kubernetes.webhook={\"listen\":\"x:1\"}", "config.kubernetes.webhook is set by the chart")?;
    check("webhook={\"enabled\":true},config={\"kubernetes\":null}", "webhook.enabled needs config.kubernetes")?;
    check("rbac.nodes=true,config.kubernetes.namespaces=[\"a\"]", "rbac.nodes needs a ClusterRole")?;
    check("roles.split=true,persistence.existingClaim=\"mine\"", "persistence.existingClaim is for one pod")?;
    check("nats.tls.certManager.enabled=true", "nats.tls.certManager.issuerRef.name is missing")?;
    check("nats.external={\"urls\":[\"nats://a:1\"],\"existingSecret\":\"s\",\"signIn\":\"password\"}", "nats.external.user is missing")?;
    check(
        "nats.external.urls=[\"nats://a:1\"],config.feeds={\"listen\":\"0.0.0.0:1\"}",
        "config.feeds are read from the servers of nats.external",
    )
}

#[test]
fn a_volume_holds_all_that_the_configuration_lets_grow() -> Result<()> {
    let check = |set: &str, expect: &str| -> Result<()> {
        let objects = parse(&render(&["--set-json", set])?)?;
        let claims = of_kind(&objects, "PersistentVolumeClaim");
        let size = word(claims.first().context("no claim")?, "spec.resources.requests.storage");
        ensure!(size == expect, "{set}: {size}, not {expect}");
        Ok(())
    };
    // (20 + 1 + 0.2 + 0.0625) GiB and 15 %.
    check("config.buffer.max_bytes=\"20GiB\"", "25Gi")?;
    check("config.buffer.max_bytes=\"20GB\"", "25Gi")?;
    check("config.buffer.max_bytes=21474836480", "25Gi")?;
    check("config.buffer.max_bytes=\"0.5 GiB\"", "1Gi")?;
    // 64 MiB each at the least: (1024 + 64 + 64 + 64) MiB and 15 %.
    check("config.buffer.max_bytes=\"1GiB\"", "2Gi")?;
    check("config.buffer.max_bytes=\"2TiB\"", "2497Gi")?;
    check(
        r#"config.relays=[{"name":"a","sink":{"nats":{"max_bytes":"2GiB"}}},{"name":"b","sink":{"nats":{"max_bytes":"512MiB"}}}]"#,
        "28Gi",
    )?;
    check("persistence.size=\"7Gi\"", "7Gi")?;
    check("nats.external.urls=[\"nats://a:1\"]", "1Gi")
}

/// Keys below each other in values.yaml, with the text of their comments and their defaults, in the order in which they stand.
fn documented() -> Result<Vec<(String, String, String)>> {
    let text = read("charts/strata/values.yaml")?;
    let values: Value = serde_yaml::from_str(&text)?;
    let (mut found, mut path, mut comment) = (Vec::new(), Vec::<(usize, String)>::new(), None::<String>);
    for line in text.lines() {
        let indent = line.len() - line.trim_start().len();
        let line = line.trim();
        if let Some(rest) = line.strip_prefix('#') {
            match rest.trim_start().strip_prefix("-- ") {
                Some(first) => comment = Some(first.to_owned()),
                None => comment = comment.map(|comment| format!("{comment} {}", rest.trim())),
            }
            continue;
        }
        let Some((key, _)) = line.split_once(':').filter(|(key, _)| key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')) else {
            comment = None;
            continue;
        };
        path.retain(|(of, _)| *of < indent);
        path.push((indent, key.to_owned()));
        if let Some(comment) = comment.take() {
            let name = path.iter().map(|(_, key)| key.as_str()).collect::<Vec<_>>().join(".");
            let default = serde_json::to_string(at(&values, &name))?;
            found.push((name, default, comment));
        }
    }
    Ok(found)
}

#[test]
fn the_readme_has_every_value() -> Result<()> {
    let mut table = "| Value | Default | |\n|---|---|---|\n".to_owned();
    for (name, default, comment) in documented()? {
        table += &format!("| `{name}` | `{default}` | {} |\n", comment.replace('|', "\\|"));
    }
    let page = read("charts/strata/README.md")?;
    let (start, end) = ("<!-- written by the tests from values.yaml -->\n", "<!-- end of what is written -->\n");
    let (before, rest) = page.split_once(start).context("no start of the table")?;
    let (_, after) = rest.split_once(end).context("no end of the table")?;
    golden("charts/strata/README.md", &format!("{before}{start}\n{table}\n{end}{after}"))
}

/// Names of all values below a place of the schema, and whether they have values below them.
fn known(schema: &serde_json::Value, root: &serde_json::Value, path: &str, found: &mut BTreeMap<String, bool>) {
    let schema = match schema["$ref"].as_str() {
        Some(place) => &root["$defs"][place.trim_start_matches("#/$defs/")],
        None => schema,
    };
    let is_closed = schema["additionalProperties"] == serde_json::Value::Bool(false);
    if !path.is_empty() {
        found.insert(path.to_owned(), is_closed);
    }
    if is_closed {
        for (key, value) in schema["properties"].as_object().into_iter().flatten() {
            let below = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            known(value, root, &below, found);
        }
    }
}

/// Every value there is has its comment, and its place in the schema; the schema knows no others but those that a role may have of its own.
#[test]
fn the_schema_knows_every_value_and_no_other() -> Result<()> {
    let schema: serde_json::Value = serde_json::from_str(&read("charts/strata/values.schema.json")?)?;
    let values: Value = serde_yaml::from_str(&read("charts/strata/values.yaml")?)?;
    let mut places = BTreeMap::new();
    known(&schema, &schema, "", &mut places);
    let documented: BTreeSet<_> = documented()?.into_iter().map(|(name, ..)| name).collect();
    for name in &documented {
        let is_known = places.contains_key(name)
            || name
                .strip_prefix("config.")
                .is_some_and(|rest| places.contains_key(&format!("config.{}", rest.split('.').next().unwrap_or_default())));
        ensure!(is_known, "{name} is not in values.schema.json");
    }
    for (name, has_more) in &places {
        let (parent, last) = name.rsplit_once('.').unwrap_or(("", name));
        // What is free, or stands at the top for all roles.
        let is_free = parent == "config" || places.get(parent) == Some(&false) || ["global"].contains(&name.as_str());
        let is_of_role = ["collector", "relay", "nats"].contains(&parent) && documented.contains(last);
        let is_part = [
            "requests",
            "limits",
            "claims",
            "initialDelaySeconds",
            "periodSeconds",
            "timeoutSeconds",
            "failureThreshold",
            "successThreshold",
        ]
        .contains(&last)
            || parent.ends_with("issuerRef");
        let is_said = documented.contains(name) || (*has_more && !at(&values, name).is_null());
        ensure!(is_said || is_free || is_of_role || is_part, "{name} has no comment in values.yaml");
    }
    Ok(())
}
