//! What each figure is to be, and what Kubernetes needs for the same.
//!
//! Upstream is Kubernetes 1.24 with etcd 3.4 (API server, controller manager, scheduler and etcd, without a kubelet), measured
//! on a machine with two cores, client included; pod start and shim memory are containerd 1.6's.

/// One megabyte, as budgets count them.
pub const MB: f64 = 1e6;

/// Which way is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    /// Times and sizes.
    Less,
    /// Rates.
    More,
}

/// What one figure is to be.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// Key in the results.
    pub id: &'static str,
    /// What is measured, for people.
    pub what: &'static str,
    /// Unit of the figure and of the limit.
    pub unit: &'static str,
    /// Which way is better.
    pub better: Better,
    /// The limit.
    pub limit: f64,
    /// What upstream needs, in words.
    pub upstream: &'static str,
}

const fn less(id: &'static str, what: &'static str, limit: f64, unit: &'static str, upstream: &'static str) -> Budget {
    Budget { id, what, unit, better: Better::Less, limit, upstream }
}

const fn more(id: &'static str, what: &'static str, limit: f64, unit: &'static str, upstream: &'static str) -> Budget {
    Budget { id, what, unit, better: Better::More, limit, upstream }
}

/// Every budget, in the order of the report.
pub const BUDGETS: &[Budget] = &[
    less("binary_size", "release binary, stripped", 60.0, "MB", "276 MB in five binaries"),
    less("start_to_ready", "empty data directory to node Ready", 1.0, "s", "API server alone 3.2 s"),
    less(
        "start_to_first_pod",
        "empty data directory to first pod Running and resolvable",
        2.0,
        "s",
        "18.6 s to three pods merely bound",
    ),
    less("idle_memory", "resident memory of the whole, idle", 64.0, "MB", "426 MiB"),
    less("idle_cpu", "idle CPU, one node, no pods changing", 0.5, "% of a core", "3.8 %"),
    less("pending_memory", "resident memory with 10,000 pending pods", 160.0, "MB", "1,040 MiB"),
    less("pod_start", "pod start, image present, median", 50.0, "ms", "containerd 126–138 ms, crun alone 33–42"),
    less("shim_memory", "shim memory per pod (PSS)", 2.0, "MB", "containerd-shim 8 MB"),
    more("creates_1", "durable creates of 1 KB over TLS, 1 client", 1_500.0, "/s", "425"),
    more("creates_16", "durable creates of 1 KB over TLS, 16 clients", 8_000.0, "/s", "1,167"),
    more("creates_64", "durable creates of 1 KB over TLS, 64 clients", 10_000.0, "/s", "1,541"),
    more("pods_64", "durable creates of pods, every plugin on, 64 clients", 6_000.0, "/s", NOT_MEASURED),
    less("writes_p99", "single writes, 1,000 a second: p99", 5.0, "ms", NOT_MEASURED),
    less("apply_create", "server-side apply that creates a Deployment: CPU", 300.0, "µs", NOT_MEASURED),
    less("apply_change", "server-side apply that changes a Deployment: CPU", 300.0, "µs", NOT_MEASURED),
    less("apply_noop", "server-side apply that changes nothing: CPU", 300.0, "µs", NOT_MEASURED),
    more("gets_64", "GET, 64 clients", 20_000.0, "/s", "2,100–2,480"),
    less("list_cpu", "LIST of 10,000 pods: CPU of the server", 60.0, "ms", "480–760 ms"),
    less("list_memory", "LIST of 100,000 pods: extra memory while serving", 16.0, "MB", "RSS 558 → 1,734 MiB"),
    less("cache_memory", "memory per object, relative to its JSON", 1.5, "×", "5–7 × reported"),
    less("cache_memory_unlike", "the same, of objects with nothing in common", 1.5, "×", NOT_MEASURED),
    less("cache_part", "the watch cache's part of that", 1.5, "×", NOT_MEASURED),
    less("watch_cpu", "watch, 1,000 watchers: CPU per delivered event", 5.0, "µs", "53 µs"),
    less("watch_p99", "watch, 1,000 watchers, 10 updates/s: p99 delay", 15.0, "ms", "79 ms"),
    less("watchers_last", "one update to 10,000 watchers: the last one has it", 50.0, "ms", NOT_MEASURED),
    less("resources_memory", "500 CRDs: memory", 100.0, "MB", NOT_MEASURED),
    less("resources_served", "500 CRDs at once: Established to served, the slowest", 1.0, "s", NOT_MEASURED),
    less("resources_discovery", "500 CRDs: discovery, first answer", 50.0, "ms", NOT_MEASURED),
    less("resources_openapi", "500 CRDs: slowest OpenAPI document, first answer", 1_000.0, "ms", NOT_MEASURED),
    less("hostile_stalling", "others' rate, alone to beside a client that stalls", 2.0, "×", NOT_MEASURED),
    less("hostile_flooding", "others' rate, alone to beside a client that floods", 2.0, "×", NOT_MEASURED),
    less("hostile_watching", "others' rate, alone to beside 5,000 watches", 2.0, "×", NOT_MEASURED),
    more("bound_1000", "pods bound, durable, end to end, 1,000 nodes", 10_000.0, "/s", "280–315"),
    more("bound_5000", "pods bound, durable, end to end, 5,000 nodes", 10_000.0, "/s", "231–271"),
    less("decide_plain", "decision alone, 5,000 nodes, plain", 10.0, "µs", NOT_MEASURED),
    less("decide_constrained", "decision alone, spread, affinity, taints", 200.0, "µs", NOT_MEASURED),
    less("decide_anti_affine", "decision alone, anti-affinity", 500.0, "µs", NOT_MEASURED),
    less("decide_preempting", "decision alone, preempting", 1_000.0, "µs", NOT_MEASURED),
    less("bind_p99", "create to bound, 1,000 pods/s, 1,000 nodes: p99", 20.0, "ms", NOT_MEASURED),
    less("cell_peak", "50,000 nodes, 500,000 pods created and bound: highest memory", 8_000.0, "MB", NOT_MEASURED),
    more("cell_bound", "the same: pods bound, durable, end to end", 10_000.0, "/s", NOT_MEASURED),
    less("cell_memory", "memory with 50,000 nodes and 500,000 pods", 8_000.0, "MB", NOT_MEASURED),
    less("snapshot_memory", "the scheduler's part of that", 4_000.0, "MB", NOT_MEASURED),
    more("bound_constrained_1000", "bound, spread, affinity, taints, 1,000 nodes", 5_000.0, "/s", NOT_MEASURED),
    more("bound_anti_affine_1000", "bound, anti-affinity, 1,000 nodes", 2_000.0, "/s", NOT_MEASURED),
    more("bound_preempting_1000", "bound after preempting, 1,000 nodes", 1_000.0, "/s", NOT_MEASURED),
    more("bound_constrained_5000", "bound, spread, affinity, taints, 5,000 nodes", 5_000.0, "/s", NOT_MEASURED),
    more("bound_anti_affine_5000", "bound, anti-affinity, 5,000 nodes", 2_000.0, "/s", NOT_MEASURED),
    more("bound_preempting_5000", "bound after preempting, 5,000 nodes", 1_000.0, "/s", NOT_MEASURED),
];

/// Where there is no figure of Kubernetes on the same machine.
const NOT_MEASURED: &str = "not measured";

impl Budget {
    /// The budget of a figure.
    ///
    /// # Panics
    /// Where there is none: a measure names a figure that is not in the table.
    pub fn of(id: &str) -> &'static Budget {
        BUDGETS.iter().find(|b| b.id == id).unwrap_or_else(|| panic!("no budget for {id}"))
    }

    /// How many times worse than its limit a figure is; up to 1 it meets the budget.
    pub fn ratio(&self, value: f64) -> f64 {
        match self.better {
            Better::Less => value / self.limit,
            Better::More => self.limit / value,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_met_and_more_is_worse() {
        assert_eq!(Budget::of("start_to_ready").ratio(2.0), 2.0);
        assert_eq!(Budget::of("gets_64").ratio(40_000.0), 0.5);
        assert_eq!(Budget::of("gets_64").ratio(5_000.0), 4.0);
    }
}
