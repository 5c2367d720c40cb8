//! What went wrong for users of the first Strata's objects, each on a real API server: a status that stayed 0, buckets with one another's bounds, filters that
//! outlived their object, targets that were not found.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::control_plane::{self, objects};
use e2e::http_sink::{Answer, HttpSink};
use e2e::strata::Strata;
use e2e::wait;
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::{Value, json};

use crate::kubernetes_discovery::Seen;
use crate::kubernetes_resources::{configuration, object, prepared, relay, until};
use crate::roles::asked;

/// Within what a change of an object has its effect.
const LIMIT: Duration = Duration::from_secs(120);

/// Values on each side of a filter, and what one line of it says only together with the others.
const PAGE: &str = "\
# TYPE depth gauge\ndepth{side=\"below\"} -5\ndepth{side=\"zero\"} 0\ndepth{side=\"inside\"} 3\ndepth{side=\"above\"} 20\n\
# TYPE endless gauge\nendless +Inf\n\
# TYPE took histogram\ntook_bucket{le=\"1\"} 1\ntook_bucket{le=\"2\"} 2\ntook_bucket{le=\"+Inf\"} 4\ntook_sum 9\ntook_count 4\n\
# TYPE size summary\nsize{quantile=\"0.5\"} 6\nsize{quantile=\"0.9\"} 7\nsize_sum 30\nsize_count 5\n";

const OBJECTS: &str = r#"
apiVersion: strata.ctx.sh/v1beta1
kind: Collector
metadata: {name: out, namespace: team}
spec:
  includeLabels: [app.*]
  includeAnnotations: ['*/owner']
  includeMetadata: true
  filters: {clip: {max: 10, inclusive: true}}
---
apiVersion: strata.ctx.sh/v1beta1
kind: Discovery
metadata: {name: pods, namespace: team}
spec: {collector: [{name: out}], intervalSeconds: 1, resources: {services: false, endpoints: false}}
---
apiVersion: strata.ctx.sh/v1beta1
kind: Discovery
metadata: {name: endpoints, namespace: team}
spec: {collector: [{name: out}], intervalSeconds: 1, resources: {pods: false, services: false}}
"#;

/// A sample as the first Strata wrote it.
#[derive(Debug)]
struct Line(Value);

impl Line {
    fn tag(&self, name: &str) -> &str {
        self.0["tags"][name].as_str().unwrap_or_default()
    }

    fn is(&self, name: &str) -> bool {
        self.0["name"] == name
    }
}

/// What Strata wrote to its standard output after a mark of the log.
fn written(strata: &Strata, after: Option<&str>) -> Vec<Line> {
    let log = strata.log_tail(usize::MAX);
    let rest = after.map_or(log.as_str(), |mark| log.rfind(mark).map_or("", |at| &log[at..]));
    rest.lines().filter(|line| line.starts_with("{\"name\"")).filter_map(|line| serde_json::from_str(line).ok().map(Line)).collect()
}

/// The pairs of a tag and the value of a series at one target.
fn pairs(lines: &[Line], name: &str, tag: &str, instance: &str) -> BTreeSet<(String, String)> {
    let at = lines.iter().filter(|line| line.is(name) && line.tag("instance") == instance && !line.tag(tag).is_empty());
    at.map(|line| (line.tag(tag).to_owned(), line.0["value"].to_string())).collect()
}

fn expected(pairs: &[(&str, &str)]) -> BTreeSet<(String, String)> {
    pairs.iter().map(|(tag, value)| ((*tag).to_owned(), (*value).to_owned())).collect()
}

fn annotated(mut object: Value) -> Value {
    object["metadata"]["annotations"] = json!({ "prometheus.io/scrape": "true", "prometheus.io/port": "9100" });
    object
}

#[test]
fn what_went_wrong_with_the_first_stratas_objects_does_not() -> Result<()> {
    control_plane::test(async |plane| {
        prepared(plane).await?;
        Seen::start(PAGE).await?;
        let [four, six, one, two]: [IpAddr; 4] = ["10.1.0.1".parse()?, "fd00::1".parse()?, "10.2.0.1".parse()?, "10.2.0.2".parse()?];
        let mut pod = annotated(objects::pod("team/four", &[four], &[("metrics", 9100)]));
        pod["metadata"]["labels"] = json!({ "app.kubernetes.io/name": "web", "tier": "a" });
        pod["metadata"]["annotations"]["team.example/owner"] = json!("shop");
        plane.put::<Pod>(&pod).await?;
        plane.put::<Pod>(&annotated(objects::pod("team/six", &[six], &[("metrics", 9100)]))).await?;
        // Two headless services; behind the second one is no object.
        for (name, address) in [("first", one), ("second", two)] {
            let key = format!("team/{name}");
            plane.put::<Service>(&annotated(objects::service(&key, None, &[("metrics", 9100)]))).await?;
            let mut slice = objects::endpoint_slice(&key, "a", &[(address, "nobody")], &[("metrics", 9100)]);
            if name == "second" {
                slice["endpoints"][0].as_object_mut().context("an endpoint")?.remove("targetRef");
            }
            plane.put::<EndpointSlice>(&slice).await?;
        }
        plane.apply(OBJECTS).await?;
        let mut strata = Strata::start(&configuration(plane, "")).await?;

        // Each target is found: by endpoints where no pod is asked for, behind every headless service, without an object, in IPv6's brackets.
        let all = ["10.1.0.1:9100", "[fd00::1]:9100", "10.2.0.1:9100", "10.2.0.2:9100"];
        wait::until_true("each target's samples are written", LIMIT, || {
            let lines = written(&strata, None);
            all.iter().all(|instance| lines.iter().any(|line| line.is("size_count") && line.tag("instance") == *instance))
        })
        .await?;
        let lines = written(&strata, None);
        for instance in all {
            let inside = expected(&[("below", "-5"), ("zero", "0"), ("inside", "3")]);
            assert_eq!(pairs(&lines, "depth", "side", instance), inside, "an upper bound is no lower one");
            assert_eq!(pairs(&lines, "took", "bucket", instance), expected(&[("1", "1"), ("2", "2"), ("+Inf", "4")]));
            assert_eq!(pairs(&lines, "size", "quantile", instance), expected(&[("0.5", "6"), ("0.9", "7")]));
        }
        let kinds: BTreeSet<&str> = lines.iter().filter(|line| line.is("took_sum")).map(|line| line.tag("kind")).collect();
        assert_eq!(kinds, BTreeSet::from(["Endpoints", "Pod"]));
        // What a Collector asks for of the objects is in its samples, and nothing else of them.
        for line in lines.iter().filter(|line| line.is("took_sum")) {
            let tags = ["app_kubernetes_io_name", "team_example_owner", "tier", "prometheus_io_scrape"].map(|tag| line.tag(tag));
            let is_four = line.tag("instance") == "10.1.0.1:9100";
            assert_eq!(tags, if is_four { ["web", "shop", "", ""] } else { [""; 4] }, "{line:?}");
        }

        // An infinite value is no error: it is counted as what the encoding has no place for, once the filter lets it through.
        plane.apply(&OBJECTS.replace("{clip: {max: 10, inclusive: true}}", "{exclude: {values: [3]}}")).await?;
        let restarted = "relay restarted: team_out";
        let changed = |lines: &[Line]| lines.iter().filter(|line| line.is("depth") && line.tag("side") == "above").count();
        wait::until_true("what the old filter dropped is written", LIMIT, || changed(&written(&strata, Some(restarted))) >= 12).await?;
        let lines = written(&strata, Some(restarted));
        let inside = lines.iter().filter(|line| line.is("depth") && line.tag("side") == "inside").count();
        assert_eq!(inside, 0, "nothing works by the old filters");
        wait::until("infinite values are counted", LIMIT, async || {
            (strata.metric("strata_relay_filtered_samples_total", &["relay=\"team_out\"", "reason=\"inf\""]).await.ok()? > 0.0)
                .then_some(())
        })
        .await?;
        wait::until("the status counts", LIMIT, async || {
            let status = object(plane, "cx", "team/out").await.ok()?["status"].clone();
            (status["totalSent"].as_i64()? > 0 && status["totalErrors"] == 0).then_some(())
        })
        .await?;

        // A Discovery that is not enabled has no targets, and another one keeps its own.
        for (is_enabled, expect) in [(false, ("False", "Disabled")), (true, ("True", "Running"))] {
            let patch = json!({ "spec": { "enabled": is_enabled } }).to_string();
            let patched = plane.kubectl(&["-n", "team", "patch", "dx", "pods", "--type=merge", "-p", &patch], "").await?;
            ensure!(patched.code == 0, "{patched:?}");
            until(plane, "dx", "team/pods", ("Ready", expect.0, expect.1)).await?;
            wait::until("the targets are those of the enabled ones", LIMIT, async || {
                let found = asked(&strata, "/api/v1/targets").await.ok()?;
                let is_there = |instance: &str| {
                    found["targets"].as_array().into_iter().flatten().any(|target| target["labels"]["instance"] == instance)
                };
                (all.map(is_there) == [is_enabled, is_enabled, true, true]).then_some(())
            })
            .await?;
        }

        // A sink that does not answer keeps nobody waiting, and an output that cannot be is said.
        let sink = HttpSink::start().await?;
        let was_asked = Arc::new(AtomicBool::new(false));
        let note = Arc::clone(&was_asked);
        sink.follow(move |_, _| {
            note.store(true, Ordering::Relaxed);
            Answer::Hang
        });
        plane.apply(&relay("team", "stuck", &json!({ "sink": { "http": { "url": sink.url() } } }))).await?;
        wait::until_true("it was sent to", LIMIT, || was_asked.load(Ordering::Relaxed)).await?;
        plane.apply(&OBJECTS.replace("name: out", "name: other")).await?;
        wait::until_true("another Collector begins", LIMIT, || strata.log_tail(usize::MAX).contains("relay added: team_other")).await?;
        let deleted = plane.kubectl(&["-n", "team", "delete", "cx", "other"], "").await?;
        ensure!(deleted.code == 0, "{deleted:?}");
        wait::until_true("and ends", LIMIT, || strata.log_tail(usize::MAX).contains("relay removed: team_other")).await?;
        let nats = "apiVersion: strata.ctx.sh/v1beta1\nkind: Collector\nmetadata: {name: out, namespace: team}\n\
                    spec: {output: {nats: {url: 'nats://127.0.0.1', subject: s}}}\n";
        plane.apply(nats).await?;
        let message = until(plane, "cx", "team/out", ("Ready", "False", "NoSuchOutput")).await?;
        assert!(message.contains("spec.output.nats"), "{message}");
        strata.stop().await
    })
}
