//! What `kubectl get pods` shows.

use crate::core::pod::resources::is_sidecar;
use crate::kind::Column;
use crate::meta::object::Meta;
use crate::meta::{table, text};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodSpec, PodStatus};
use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

use table::text_column as column;

/// Columns of a pod.
pub(super) const COLUMNS: &[Column] = &[
    table::NAME,
    column("Ready", "The aggregate readiness state of this pod for accepting traffic.", 0),
    column("Status", "The aggregate status of the containers in this pod.", 0),
    column(
        "Restarts",
        "The number of times the containers in this pod have been restarted and when the last container in this pod has restarted.",
        0,
    ),
    table::AGE,
    column("IP", "The first address of the pod.", 1),
    column("Node", "The node the pod is bound to.", 1),
    column("Nominated Node", "The node on which room is being made for the pod by preemption.", 1),
    column("Readiness Gates", "How many of the pod's readiness gates are true.", 1),
];

fn or_none(text: &str) -> Value {
    if text.is_empty() { "<none>".into() } else { text.into() }
}

/// Cells of a pod.
pub(super) fn cells(pod: &Pod, now: Timestamp) -> Vec<Value> {
    let (no_spec, empty) = (PodSpec::default(), PodStatus::default());
    let spec = pod.spec.as_ref().unwrap_or(&no_spec);
    let status = pod.status.as_ref().unwrap_or(&empty);
    let summary = Summary::of(pod, status);
    let restarts = match summary.last_restart {
        Some(at) if summary.restarts != 0 => format!("{} ({} ago)", summary.restarts, table::human_duration(at, now)),
        _ => summary.restarts.to_string(),
    };
    let first_ip = status.pod_ips.iter().flatten().next().map_or(text(&status.pod_ip), |ip| ip.ip.as_str());
    let gates = spec.readiness_gates.as_deref().unwrap_or_default();
    let open = |t: &str| status.conditions.iter().flatten().find(|c| c.type_ == t).is_some_and(|c| c.status == "True");
    let gates = match gates.len() {
        0 => "<none>".to_owned(),
        n => format!("{}/{n}", gates.iter().filter(|g| open(&g.condition_type)).count()),
    };
    vec![
        pod.metadata.name().into(),
        format!("{}/{}", summary.ready, summary.total).into(),
        summary.reason.into(),
        restarts.into(),
        table::age(&pod.metadata, now).into(),
        or_none(first_ip),
        or_none(text(&spec.node_name)),
        or_none(text(&status.nominated_node_name)),
        gates.into(),
    ]
}

/// The reason `kubectl get pods` shows as STATUS, e.g. `Running`, `Init:0/1`, `CrashLoopBackOff`.
#[must_use]
pub fn display_status(pod: &Pod) -> String {
    let empty = PodStatus::default();
    Summary::of(pod, pod.status.as_ref().unwrap_or(&empty)).reason
}

struct Summary {
    reason: String,
    ready: usize,
    total: usize,
    restarts: i32,
    last_restart: Option<Timestamp>,
}

fn last_finished(c: &ContainerStatus) -> Option<Timestamp> {
    c.last_state.as_ref()?.terminated.as_ref()?.finished_at.as_ref().map(|t| t.0)
}

/// `Signal:9` or `ExitCode:1`, for a container that ended without a reason.
fn ending(t: &k8s_openapi::api::core::v1::ContainerStateTerminated) -> String {
    match t.signal.unwrap_or(0) {
        0 => format!("ExitCode:{}", t.exit_code),
        signal => format!("Signal:{signal}"),
    }
}

impl Summary {
    fn of(pod: &Pod, status: &PodStatus) -> Self {
        let init_containers = pod.spec.iter().flat_map(|s| s.init_containers.iter().flatten());
        let sidecar = |name: &str| init_containers.clone().any(|c| c.name == name && is_sidecar(c));
        let init_total = init_containers.clone().count();
        let containers = pod.spec.as_ref().map_or(0, |s| s.containers.len());
        let mut s = Summary {
            reason: if text(&status.reason).is_empty() { text(&status.phase) } else { text(&status.reason) }.to_owned(),
            ready: 0,
            total: containers + init_containers.clone().filter(|c| is_sidecar(c)).count(),
            restarts: 0,
            last_restart: None,
        };
        let condition = |t: &str| status.conditions.iter().flatten().find(|c| c.type_ == t);
        if condition("PodScheduled").is_some_and(|c| c.reason.as_deref() == Some("SchedulingGated")) {
            s.reason = "SchedulingGated".to_owned();
        }
        let (mut sidecar_restarts, mut sidecar_last, mut initializing) = (0, None, false);
        for (i, c) in status.init_container_statuses.iter().flatten().enumerate() {
            s.restarts += c.restart_count;
            s.last_restart = s.last_restart.max(last_finished(c));
            let is_sidecar = sidecar(&c.name);
            if is_sidecar {
                sidecar_restarts += c.restart_count;
                sidecar_last = sidecar_last.max(last_finished(c));
            }
            let terminated = c.state.as_ref().and_then(|s| s.terminated.as_ref());
            let waiting =
                c.state.as_ref().and_then(|s| s.waiting.as_ref()).map(|w| text(&w.reason)).unwrap_or_default();
            if terminated.is_some_and(|t| t.exit_code == 0) {
                continue;
            }
            if is_sidecar && c.started == Some(true) {
                s.ready += usize::from(c.ready);
                continue;
            }
            s.reason = match terminated {
                Some(t) if text(&t.reason).is_empty() => format!("Init:{}", ending(t)),
                Some(t) => format!("Init:{}", text(&t.reason)),
                None if !waiting.is_empty() && waiting != "PodInitializing" => format!("Init:{waiting}"),
                None => format!("Init:{i}/{init_total}"),
            };
            initializing = true;
            break;
        }
        if !initializing || condition("Initialized").is_some_and(|c| c.status == "True") {
            s.restarts = sidecar_restarts;
            s.last_restart = sidecar_last;
            s.add_containers(status, condition("Ready").is_some_and(|c| c.status == "True"));
        }
        let terminal = matches!(text(&status.phase), "Succeeded" | "Failed");
        if pod.metadata.is_deleting() && text(&status.reason) == "NodeLost" {
            s.reason = "Unknown".to_owned();
        } else if pod.metadata.is_deleting() && !terminal {
            s.reason = "Terminating".to_owned();
        }
        s
    }

    fn add_containers(&mut self, status: &PodStatus, pod_ready: bool) {
        let mut running = false;
        for c in status.container_statuses.iter().flatten().rev() {
            self.restarts += c.restart_count;
            self.last_restart = self.last_restart.max(last_finished(c));
            let Some(state) = &c.state else { continue };
            let waiting = state.waiting.as_ref().map(|w| text(&w.reason)).unwrap_or_default();
            if !waiting.is_empty() {
                self.reason = waiting.to_owned();
            } else if let Some(t) = &state.terminated {
                self.reason = if text(&t.reason).is_empty() { ending(t) } else { text(&t.reason).to_owned() };
            } else if c.ready && state.running.is_some() {
                running = true;
                self.ready += 1;
            }
        }
        if self.reason == "Completed" && running {
            self.reason = if pod_ready { "Running" } else { "NotReady" }.to_owned();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::Kind;
    use serde_json::json;

    fn row(spec: Value, status: Value, deleting: bool) -> Vec<String> {
        let mut meta = json!({"name": "p", "creationTimestamp": "2026-01-01T00:00:00Z"});
        if deleting {
            meta["deletionTimestamp"] = "2026-01-01T00:01:00Z".into();
        }
        let pod = <Pod as Kind>::from_value(json!({"metadata": meta, "spec": spec, "status": status})).unwrap();
        let cells = cells(&pod, "2026-01-01T00:10:00Z".parse().unwrap());
        assert_eq!(cells.len(), COLUMNS.len());
        cells.iter().map(|c| c.as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn rows_read_as_kubectls() {
        let one = json!({"containers": [{"name": "c"}]});
        let init = json!({"containers": [{"name": "c"}], "initContainers": [{"name": "i"}, {"name": "s", "restartPolicy": "Always"}]});
        let waiting =
            |r: &str| json!([{"name": "c", "ready": false, "restartCount": 0, "state": {"waiting": {"reason": r}}}]);
        let cases: Vec<(Value, Value, bool, [&str; 4])> = vec![
            (one.clone(), json!({"phase": "Pending"}), false, ["p", "0/1", "Pending", "0"]),
            (
                one.clone(),
                json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}]}),
                false,
                ["p", "0/1", "SchedulingGated", "0"],
            ),
            (
                one.clone(),
                json!({"phase": "Pending", "containerStatuses": waiting("ContainerCreating")}),
                false,
                ["p", "0/1", "ContainerCreating", "0"],
            ),
            (
                one.clone(),
                json!({"phase": "Running", "containerStatuses": [{"name": "c", "ready": true, "restartCount": 2,
                "state": {"running": {}}, "lastState": {"terminated": {"exitCode": 1, "finishedAt": "2026-01-01T00:05:00Z"}}}]}),
                false,
                ["p", "1/1", "Running", "2 (5m ago)"],
            ),
            (
                one.clone(),
                json!({"phase": "Running", "containerStatuses": waiting("CrashLoopBackOff")}),
                false,
                ["p", "0/1", "CrashLoopBackOff", "0"],
            ),
            (one.clone(), json!({"phase": "Running"}), true, ["p", "0/1", "Terminating", "0"]),
            (
                one.clone(),
                json!({"phase": "Succeeded", "containerStatuses": [{"name": "c", "ready": false, "restartCount": 0,
                "state": {"terminated": {"exitCode": 0, "reason": "Completed"}}}]}),
                true,
                ["p", "0/1", "Completed", "0"],
            ),
            (
                one.clone(),
                json!({"phase": "Failed", "containerStatuses": [{"name": "c", "ready": false, "restartCount": 0,
                "state": {"terminated": {"exitCode": 3}}}]}),
                false,
                ["p", "0/1", "ExitCode:3", "0"],
            ),
            (one, json!({"phase": "Failed", "reason": "Evicted"}), false, ["p", "0/1", "Evicted", "0"]),
            (
                init.clone(),
                json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "state": {"running": {}}}]}),
                false,
                ["p", "0/2", "Init:0/2", "0"],
            ),
            (
                init.clone(),
                json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "restartCount": 1,
                "state": {"terminated": {"exitCode": 1, "reason": "Error"}}}]}),
                false,
                ["p", "0/2", "Init:Error", "1"],
            ),
            (
                init,
                json!({"phase": "Running", "initContainerStatuses": [{"name": "i", "restartCount": 3, "state": {"terminated": {"exitCode": 0}}},
                {"name": "s", "restartCount": 1, "started": true, "ready": true, "state": {"running": {}}}],
                "containerStatuses": [{"name": "c", "ready": true, "restartCount": 0, "state": {"running": {}}}]}),
                false,
                ["p", "2/2", "Running", "1"],
            ),
        ];
        for (spec, status, deleting, want) in cases {
            let got = row(spec, status.clone(), deleting);
            assert_eq!(got[..4], want.map(str::to_owned), "{status}");
            assert_eq!(got[4], "10m");
        }
    }

    #[test]
    fn wide_columns() {
        let got = row(
            json!({"containers": [], "nodeName": "n1", "readinessGates": [{"conditionType": "a"}, {"conditionType": "b"}]}),
            json!({"podIPs": [{"ip": "10.0.0.1"}], "conditions": [{"type": "a", "status": "True"}]}),
            false,
        );
        assert_eq!(got[5..], ["10.0.0.1", "n1", "<none>", "1/2"].map(str::to_owned));
    }
}
