//! `/metrics` and `/metrics/resource` in Prometheus' text format.

use super::stats::{node_cpu_ns, node_memory, read};
use super::{Body, Server, answer};
use crate::pod::names;
use http::{Response, StatusCode};
use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Metrics under construction.
#[derive(Default)]
struct Text(String);

impl Text {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: f64, at: Option<SystemTime>) {
        let escape = |v: &str| v.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let labels: Vec<String> = labels.iter().map(|(n, v)| format!("{n}=\"{}\"", escape(v))).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let at = at.and_then(|t| t.duration_since(UNIX_EPOCH).ok()).map(|d| format!(" {}", d.as_millis()));
        let _ = writeln!(self.0, "{name}{labels} {value}{}", at.unwrap_or_default());
    }
}

fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

/// What a metrics server reads.
pub(crate) async fn resource(server: &Server) -> Response<Body> {
    let mut out = Text::default();
    let now = SystemTime::now();
    let mut errors = 0;
    let usages = match read(server).await {
        Ok(usages) => usages,
        Err(error) => {
            tracing::warn!(%error, "cannot read usage");
            errors = 1;
            Vec::new()
        }
    };
    let pod_labels = |u: &super::stats::PodUsage| {
        let get = |n: &str| u.sandbox.labels.get(n).cloned().unwrap_or_default();
        (get(names::POD_NAMESPACE), get(names::POD_NAME))
    };
    type Value = fn(&gantry_container::runtime::Stats) -> f64;
    let of_containers: [(&str, &str, &str, Value); 2] = [
        (
            "container_cpu_usage_seconds_total",
            "counter",
            "[STABLE] Cumulative cpu time consumed by the container in core-seconds",
            |s| seconds(s.cpu_ns),
        ),
        (
            "container_memory_working_set_bytes",
            "gauge",
            "[STABLE] Current working set of the container in bytes",
            |s| s.memory_working_set as f64,
        ),
    ];
    for (name, kind, help, value) in of_containers {
        out.family(name, kind, help);
        for u in &usages {
            let (namespace, pod) = pod_labels(u);
            for (c, s) in &u.containers {
                let labels = [("container", c.name.as_str()), ("namespace", &namespace), ("pod", &pod)];
                out.sample(name, &labels, value(s), Some(s.at));
            }
        }
    }
    let name = "container_start_time_seconds";
    out.family(name, "gauge", "[STABLE] Start time of the container since unix epoch in seconds");
    for u in &usages {
        let (namespace, pod) = pod_labels(u);
        for (c, _) in &u.containers {
            let labels = [("container", c.name.as_str()), ("namespace", &namespace), ("pod", &pod)];
            let started = c.started_at.unwrap_or(c.created_at).duration_since(UNIX_EPOCH).unwrap_or_default();
            out.sample(name, &labels, started.as_secs_f64(), None);
        }
    }
    let name = "node_cpu_usage_seconds_total";
    out.family(name, "counter", "[STABLE] Cumulative cpu time consumed by the node in core-seconds");
    match node_cpu_ns() {
        Some(ns) => out.sample(name, &[], seconds(ns), Some(now)),
        None => errors = 1,
    }
    let name = "node_memory_working_set_bytes";
    out.family(name, "gauge", "[STABLE] Current working set of the node in bytes");
    match node_memory() {
        Some((_, used)) => out.sample(name, &[], used as f64, Some(now)),
        None => errors = 1,
    }
    let of_pods: [(&str, &str, &str, Value); 2] = [
        (
            "pod_cpu_usage_seconds_total",
            "counter",
            "[STABLE] Cumulative cpu time consumed by the pod in core-seconds",
            |s| seconds(s.cpu_ns),
        ),
        ("pod_memory_working_set_bytes", "gauge", "[STABLE] Current working set of the pod in bytes", |s| {
            s.memory_working_set as f64
        }),
    ];
    for (name, kind, help, value) in of_pods {
        out.family(name, kind, help);
        for u in &usages {
            let (namespace, pod) = pod_labels(u);
            if let Some(s) = &u.total {
                out.sample(name, &[("namespace", &namespace), ("pod", &pod)], value(s), Some(s.at));
            }
        }
    }
    let name = "resource_scrape_error";
    out.family(name, "gauge", "[STABLE] 1 if there was an error while getting container metrics, 0 otherwise");
    out.sample(name, &[], f64::from(errors), None);
    answer(StatusCode::OK, CONTENT_TYPE, out.0)
}

/// The agent's own metrics.
pub(crate) fn own(server: &Server) -> Response<Body> {
    let mut out = Text::default();
    let name = "kubelet_node_name";
    out.family(name, "gauge", "[ALPHA] The node's name. The count is always 1.");
    out.sample(name, &[("node", &server.agent.cfg.node_name)], 1.0, None);
    let pods = server.manager.list();
    let name = "kubelet_active_pods";
    out.family(name, "gauge", "[ALPHA] The number of pods the kubelet considers active and which are being considered when admitting new pods.");
    let active = pods
        .iter()
        .filter(|p| !matches!(p.status.as_ref().and_then(|s| s.phase.as_deref()), Some("Succeeded" | "Failed")));
    out.sample(name, &[("static", "")], active.count() as f64, None);
    let name = "kubelet_running_pods";
    out.family(name, "gauge", "[ALPHA] Number of pods that have a running pod sandbox");
    let running = pods.iter().filter(|p| p.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Running"));
    out.sample(name, &[], running.count() as f64, None);
    answer(StatusCode::OK, CONTENT_TYPE, out.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_prometheus_text() {
        let mut t = Text::default();
        t.family("x_total", "counter", "help");
        t.sample(
            "x_total",
            &[("a", "b\"c"), ("d", "")],
            1.5,
            Some(UNIX_EPOCH + std::time::Duration::from_millis(1234)),
        );
        t.sample("y", &[], 2.0, None);
        assert_eq!(t.0, "# HELP x_total help\n# TYPE x_total counter\nx_total{a=\"b\\\"c\",d=\"\"} 1.5 1234\ny 2\n");
    }
}
