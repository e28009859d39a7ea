//! What the controllers measure, under upstream's names. Numbers of the work queues are in
//! [`gantry_reconcile::measured`]; here is what upstream calls each of them.
//!
//! What has no meaning here has no series: attach and detach (the agents mount by themselves), leader election (there is
//! one server), cloud providers.

use gantry_reconcile::measured::{Histograms, tell};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct JobSync {
    action: &'static str,
    completion_mode: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct JobFinished {
    completion_mode: &'static str,
    reason: String,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct JobPods {
    completion_mode: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Zone {
    zone: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Collected {
    namespace: String,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Operation {
    operation: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SyncResult {
    result: &'static str,
}

struct Series {
    job_durations: Histograms<JobSync>,
    job_syncs: Family<JobSync, Counter>,
    jobs_finished: Family<JobFinished, Counter>,
    job_pods_finished: Family<JobPods, Counter>,
    cron_job_skew: Histogram,
    node_evictions: Family<Zone, Counter>,
    taint_deletions: Counter,
    taint_latency: Histogram,
    collected: Family<Collected, Counter>,
    not_collected: Family<Collected, Counter>,
    slice_changes: Family<Operation, Counter>,
    slice_syncs: Family<SyncResult, Counter>,
    ttl_latency: Histogram,
}

/// What all controllers measure; clones are one.
#[derive(Clone)]
pub struct Measured(Arc<Series>);

impl fmt::Debug for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Measured")
    }
}

impl Default for Measured {
    fn default() -> Self {
        let job_durations: fn() -> Histogram = || Histogram::new(exponential_buckets(0.004, 2.0, 15));
        let bearing = [0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 10.0, 30.0, 60.0, 120.0, 180.0, 240.0];
        Self(Arc::new(Series {
            job_durations: Histograms::new_with_constructor(job_durations),
            job_syncs: Family::default(),
            jobs_finished: Family::default(),
            job_pods_finished: Family::default(),
            cron_job_skew: Histogram::new(exponential_buckets(1.0, 2.0, 10)),
            node_evictions: Family::default(),
            taint_deletions: Counter::default(),
            taint_latency: Histogram::new(bearing),
            collected: Family::default(),
            not_collected: Family::default(),
            slice_changes: Family::default(),
            slice_syncs: Family::default(),
            ttl_latency: Histogram::new(exponential_buckets(0.1, 2.0, 14)),
        }))
    }
}

const fn mode(indexed: bool) -> &'static str {
    if indexed { "Indexed" } else { "NonIndexed" }
}

impl Measured {
    /// A Job was looked at; `action` is what came of it.
    pub(crate) fn job_synced(&self, indexed: bool, well: bool, action: &'static str, took: Duration) {
        let result = if well { "success" } else { "error" };
        let labels = JobSync { action, completion_mode: mode(indexed), result };
        self.0.job_durations.get_or_create(&labels).observe(took.as_secs_f64());
        self.0.job_syncs.get_or_create(&labels).inc();
    }

    /// A Job ended.
    pub(crate) fn job_finished(&self, indexed: bool, succeeded: bool, reason: &str) {
        let result = if succeeded { "succeeded" } else { "failed" };
        let labels = JobFinished { completion_mode: mode(indexed), reason: reason.to_owned(), result };
        self.0.jobs_finished.get_or_create(&labels).inc();
    }

    /// So many more pods of a Job were counted.
    pub(crate) fn job_pods_finished(&self, indexed: bool, succeeded: i32, failed: i32) {
        for (result, more) in [("succeeded", succeeded), ("failed", failed)] {
            if let Some(more) = u64::try_from(more).ok().filter(|more| *more > 0) {
                let labels = JobPods { completion_mode: mode(indexed), result };
                self.0.job_pods_finished.get_or_create(&labels).inc_by(more);
            }
        }
    }

    /// A CronJob's Job was made so many seconds after its time.
    pub(crate) fn cron_job_started(&self, late: f64) {
        self.0.cron_job_skew.observe(late);
    }

    /// The pods of a node in this zone are to be evicted.
    pub(crate) fn node_evicted(&self, zone: String) {
        self.0.node_evictions.get_or_create(&Zone { zone }).inc();
    }

    /// A pod was deleted for a taint, so many seconds after it was due.
    pub(crate) fn taint_deleted(&self, late: f64) {
        self.0.taint_deletions.inc();
        self.0.taint_latency.observe(late);
    }

    /// A pod was deleted without its node's help, or could not be.
    pub(crate) fn pod_collected(&self, namespace: &str, reason: &'static str, well: bool) {
        let labels = Collected { namespace: namespace.to_owned(), reason };
        self.0.collected.get_or_create(&labels).inc();
        if !well {
            self.0.not_collected.get_or_create(&labels).inc();
        }
    }

    /// EndpointSlices were written: `create`, `update` or `delete`.
    pub(crate) fn slices_changed(&self, operation: &'static str, number: usize) {
        if number > 0 {
            self.0.slice_changes.get_or_create(&Operation { operation }).inc_by(number as u64);
        }
    }

    /// A Service's EndpointSlices were looked at: `success`, `stale` or `error`.
    pub(crate) fn slices_synced(&self, result: &'static str) {
        self.0.slice_syncs.get_or_create(&SyncResult { result }).inc();
    }

    /// A Job that ended was deleted so many seconds after its time.
    pub(crate) fn job_expired(&self, late: f64) {
        self.0.ttl_latency.observe(late);
    }
}

impl Collector for Measured {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let (s, to) = (&self.0, &mut encoder);
        tell(to, "job_controller_job_sync_duration_seconds", "The time it took to sync a job", &s.job_durations)?;
        tell(to, "job_controller_job_syncs", "The number of job syncs", &s.job_syncs)?;
        tell(to, "job_controller_jobs_finished", "The number of finished jobs", &s.jobs_finished)?;
        let told = "The number of finished Pods that are fully tracked";
        tell(to, "job_controller_job_pods_finished", told, &s.job_pods_finished)?;
        let told = "Time between when a cronjob is scheduled to be run, and when the corresponding job is created";
        tell(to, "cronjob_controller_job_creation_skew_duration_seconds", told, &s.cron_job_skew)?;
        let told = "Number of Node evictions that happened since current instance of NodeController started.";
        tell(to, "node_collector_evictions", told, &s.node_evictions)?;
        let told = "Total number of Pods deleted by TaintEvictionController since its start.";
        tell(to, "taint_eviction_controller_pod_deletions", told, &s.taint_deletions)?;
        let told = "Latency, in seconds, between the time when a taint effect has been activated for the Pod and its \
                    deletion via TaintEvictionController.";
        tell(to, "taint_eviction_controller_pod_deletion_duration_seconds", told, &s.taint_latency)?;
        let told = "Number of pods that are being forcefully deleted since the Pod GC Controller started.";
        tell(to, "pod_gc_collector_force_delete_pods", told, &s.collected)?;
        let told =
            "Number of errors encountered when forcefully deleting the pods since the Pod GC Controller started.";
        tell(to, "pod_gc_collector_force_delete_pod_errors", told, &s.not_collected)?;
        tell(to, "endpoint_slice_controller_changes", "Number of EndpointSlice changes", &s.slice_changes)?;
        tell(to, "endpoint_slice_controller_syncs", "Number of EndpointSlice syncs", &s.slice_syncs)?;
        let told = "The time it took to delete the job since it became eligible for deletion";
        tell(to, "ttl_after_finished_controller_job_deletion_duration_seconds", told, &s.ttl_latency)
    }
}

/// What upstream calls the work queue of a controller; queues that it has no equal of keep their own name.
#[must_use]
pub fn queue_name(own: &'static str) -> &'static str {
    match own {
        "bootstrap-signer" => "bootstrap_signer_queue",
        "certificate-controller" => "certificate",
        "clusterrole-aggregation-controller" => "ClusterRoleAggregator",
        "cronjob-controller" => "cronjob",
        "daemon-set-controller" => "daemonset",
        "deployment-controller" => "deployment",
        "disruption-controller" => "disruption",
        "endpoint-controller" => "endpoint",
        "endpointslice-controller" => "endpoint_slice",
        "endpointslicemirroring-controller" => "endpoint_slice_mirroring",
        "ephemeral-volume-controller" => "ephemeral_volume",
        "expand-controller" => "volume_expand",
        "generic-garbage-collector" => "garbage_collector_attempt_to_delete",
        "horizontal-pod-autoscaler" => "horizontalpodautoscaler",
        "job-controller" => "job",
        "job-orphan-pods" => "job_orphan_pod",
        "namespace-controller" => "namespace",
        "node-controller" => "node_lifecycle_controller",
        "node-ipam-controller" => "cidrallocator-node",
        "persistent-volume-binder" => "claims",
        "pod-garbage-collector" => "orphaned_pods_nodes",
        "pv-protection-controller" => "pvprotection",
        "pvc-protection-controller" => "pvcprotection",
        "replicaset-controller" => "replicaset",
        "replication-controller" => "replicationmanager",
        "resource-claim-controller" => "resource_claim",
        "resourcequota-controller" => "resourcequota_primary",
        "root-ca-cert-publisher" => "root_ca_cert_publisher",
        "service-account-controller" => "serviceaccount",
        "stale-disruption-targets" => "stale_pod_disruption",
        "statefulset-controller" => "statefulset",
        "taint-eviction-controller" => "noexec_taint_pod",
        "token-cleaner" => "token_cleaner",
        "tokens-controller" => "serviceaccount_tokens_secret",
        "ttl-after-finished-controller" => "ttl_jobs_to_delete",
        "ttl-controller" => "ttlcontroller",
        own => own,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::encoding::text::encode;
    use prometheus_client::registry::Registry;

    #[test]
    fn what_is_counted_is_told() {
        let measured = Measured::default();
        measured.job_synced(false, true, "pods_created", Duration::from_secs(2));
        measured.job_finished(true, false, "BackoffLimitExceeded");
        measured.job_pods_finished(true, 2, 0);
        measured.cron_job_started(3.0);
        measured.node_evicted(String::new());
        measured.pod_collected("n", "orphaned", false);
        measured.slices_changed("create", 2);
        measured.slices_changed("delete", 0);
        let mut registry = Registry::default();
        registry.register_collector(Box::new(measured));
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        let sync = "action=\"pods_created\",completion_mode=\"NonIndexed\",result=\"success\"";
        let collected = "namespace=\"n\",reason=\"orphaned\"";
        for line in [
            format!("job_controller_job_sync_duration_seconds_sum{{{sync}}} 2.0"),
            format!("job_controller_job_syncs_total{{{sync}}} 1"),
            "job_controller_jobs_finished_total{completion_mode=\"Indexed\",reason=\"BackoffLimitExceeded\",\
             result=\"failed\"} 1"
                .to_owned(),
            "job_controller_job_pods_finished_total{completion_mode=\"Indexed\",result=\"succeeded\"} 2".to_owned(),
            "cronjob_controller_job_creation_skew_duration_seconds_sum 3.0".to_owned(),
            "node_collector_evictions_total{zone=\"\"} 1".to_owned(),
            format!("pod_gc_collector_force_delete_pods_total{{{collected}}} 1"),
            format!("pod_gc_collector_force_delete_pod_errors_total{{{collected}}} 1"),
            "endpoint_slice_controller_changes_total{operation=\"create\"} 2".to_owned(),
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
        assert!(!text.contains("operation=\"delete\"") && !text.contains("Indexed\",result=\"failed\"} 0"));
    }

    #[test]
    fn every_name_is_of_a_queue_there_is() {
        let names = crate::ALL.iter().map(|e| e.name).chain(["job-orphan-pods", "stale-disruption-targets"]);
        let known: std::collections::BTreeSet<&str> = names.map(queue_name).collect();
        assert!(
            known.contains("statefulset") && known.contains("noexec_taint_pod") && known.contains("job_orphan_pod")
        );
        assert_eq!(queue_name("cluster-dns-controller"), "cluster-dns-controller");
    }
}
