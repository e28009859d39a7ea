//! `--scheduler-config`: profiles by name, plugins switched off, weights, and refusals.

mod cluster;

use cluster::Cluster;
use cluster::https::Https;
use serde_json::{Value, json};
use std::process::Stdio;
use std::sync::Arc;

const CONFIGURATION: &str = "apiVersion: kubescheduler.config.k8s.io/v1
kind: KubeSchedulerConfiguration
podMaxBackoffSeconds: 5
profiles:
- schedulerName: default-scheduler
  pluginConfig:
  - name: NodeAffinity
    args:
      addedAffinity:
        requiredDuringSchedulingIgnoredDuringExecution:
          nodeSelectorTerms: [{matchExpressions: [{key: reserved, operator: DoesNotExist}]}]
- schedulerName: careless
  plugins:
    filter:
      disabled: [{name: TaintToleration}, {name: NodeUnschedulable}]
";

fn pod(cluster: &Cluster, name: &str, scheduler: &str) {
    cluster.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  schedulerName: {scheduler}\n  \
         terminationGracePeriodSeconds: 0\n  containers: [{{name: c, image: gantry.local/self, args: [sleep, inf]}}]"
    ));
}

fn explained(cluster: &Cluster, name: &str, state: &str) -> Value {
    let path = format!("/api/v1/namespaces/default/pods/{name}/explain");
    let ask = || serde_json::from_str::<Value>(&cluster.kubectl(&["get", "--raw", &path])).unwrap();
    cluster.wait_for(&format!("{name} is {state}"), || Some(ask()).filter(|e| e["state"] == state))
}

#[test]
fn profiles() {
    let mut cluster = Cluster::prepare(&[]);
    let file = cluster.data_dir().join("scheduler.yaml");
    std::fs::write(&file, CONFIGURATION).unwrap();
    cluster.add_options(&["--scheduler-config", file.to_str().unwrap()]);
    cluster.up();
    // What every pod of a profile is bound to besides its own affinity.
    cluster.kubectl(&["label", "node", "node-1", "reserved=yes"]);
    pod(&cluster, "ordinary", "default-scheduler");
    let e = explained(&cluster, "ordinary", "Unschedulable");
    let want = "0/1 nodes are available: 1 node(s) didn't match scheduler-enforced node affinity. ";
    assert!(e["message"].as_str().unwrap().starts_with(want), "{e:#}");
    pod(&cluster, "other", "careless");
    assert_eq!(explained(&cluster, "other", "Placed")["scheduler"], "careless");
    cluster.kubectl(&["label", "node", "node-1", "reserved-"]);
    explained(&cluster, "ordinary", "Placed");
    // A filter that one profile does without.
    cluster.kubectl(&["cordon", "node-1"]);
    pod(&cluster, "kept-out", "default-scheduler");
    explained(&cluster, "kept-out", "Unschedulable");
    pod(&cluster, "let-in", "careless");
    explained(&cluster, "let-in", "Placed");
    // Nobody's pod waits for its own scheduler.
    pod(&cluster, "nobodys", "another");
    explained(&cluster, "nobodys", "NotOurs");
}

#[test]
fn an_extender_is_asked() {
    let mut cluster = Cluster::prepare(&[]);
    let extender = Https::start(&cluster, |_| {
        Arc::new(|path: &str, body: &Value| {
            assert_eq!((path, &body["NodeNames"]), ("/x/filter", &json!(["node-1"])), "{body}");
            let welcome = body["Pod"]["metadata"]["name"] == "welcome";
            let kept: &[&str] = if welcome { &["node-1"] } else { &[] };
            json!({"NodeNames": kept, "FailedNodes": {"node-1": "node(s) the extender does not like"}})
        })
    });
    let ca = cluster::api::base64(extender.ca_pem.as_bytes());
    let url = extender.url("/x");
    let text = format!(
        "apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\nextenders:\n- urlPrefix: {url}\n  \
         filterVerb: filter\n  enableHTTPS: true\n  nodeCacheCapable: true\n  tlsConfig: {{caData: {ca}}}\n"
    );
    let file = cluster.data_dir().join("scheduler.yaml");
    std::fs::write(&file, text).unwrap();
    cluster.add_options(&["--scheduler-config", file.to_str().unwrap()]);
    cluster.up();
    pod(&cluster, "unwelcome", "default-scheduler");
    let condition = "{.status.conditions[?(@.type=='PodScheduled')].message}";
    let message = || cluster.kubectl(&["get", "pod", "unwelcome", "-o", &format!("jsonpath={condition}")]);
    let want = "0/1 nodes are available: 1 node(s) the extender does not like. ";
    cluster.wait_for("the extender's reason", || message().starts_with(want).then_some(()));
    pod(&cluster, "welcome", "default-scheduler");
    explained(&cluster, "welcome", "Placed");
}

#[test]
fn what_is_not_there_is_refused_by_name() {
    let cluster = Cluster::prepare(&[]);
    for (more, want) in [
        ("parallelism: 16", "unknown field `parallelism`"),
        (
            "extenders: [{urlPrefix: 'http://x', weight: 0, prioritizeVerb: p}]",
            "extenders[0].weight: Invalid value: 0: ",
        ),
        ("profiles: [{plugins: {score: {enabled: [{name: Mine}]}}}]", "profiles[0].plugins.score: Mine does not exist"),
    ] {
        let file = cluster.data_dir().join("wrong.yaml");
        let text = format!("apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\n{more}\n");
        std::fs::write(&file, text).unwrap();
        let data = cluster.data_dir().join("refused");
        let mut gantry = cluster.inside(cluster::GANTRY);
        gantry.args(["server", "--data-dir", data.to_str().unwrap(), "--scheduler-config", file.to_str().unwrap()]);
        let output = gantry.stdout(Stdio::piped()).stderr(Stdio::piped()).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && error.contains(want), "{error}");
    }
}
