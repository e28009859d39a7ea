//! The one visible list of controllers.

use crate::config::{ControllersConfig, Setup};
use crate::rules::Rule;
use futures::FutureExt;
use futures::future::BoxFuture;
use gantry_reconcile::Informers;
use std::sync::Arc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// A controller: its name, what it may do, how it starts.
pub struct Entry {
    /// Name; the identity is `system:serviceaccount:kube-system:<name>`, the role `system:controller:<name>`.
    pub name: &'static str,
    /// What its role allows.
    pub rules: &'static [Rule],
    /// Runs it until its token is cancelled.
    pub start: fn(Setup) -> BoxFuture<'static, ()>,
}

macro_rules! entry {
    ($name:literal, $rules:expr, $run:path) => {
        Entry { name: $name, rules: $rules, start: |setup| $run(setup).boxed() }
    };
}

/// Every controller.
pub static ALL: &[Entry] = &[
    entry!("bootstrap-signer", crate::bootstrap_token::RULES, crate::bootstrap_token::run_signer),
    entry!("certificate-controller", crate::certificate::RULES, crate::certificate::run),
    entry!("cluster-dns-controller", crate::cluster_dns::RULES, crate::cluster_dns::run),
    entry!(
        "clusterrole-aggregation-controller",
        crate::cluster_role_aggregation::RULES,
        crate::cluster_role_aggregation::run
    ),
    entry!("cronjob-controller", crate::cronjob::RULES, crate::cronjob::run),
    entry!("daemon-set-controller", crate::daemonset::RULES, crate::daemonset::run),
    entry!("deployment-controller", crate::deployment::RULES, crate::deployment::run),
    entry!("device-taint-eviction-controller", crate::device_taint_eviction::RULES, crate::device_taint_eviction::run),
    entry!("disruption-controller", crate::disruption::RULES, crate::disruption::run),
    entry!("endpoint-controller", crate::endpoints::LEGACY_RULES, crate::endpoints::run_legacy),
    entry!("endpointslice-controller", crate::endpoints::SLICE_RULES, crate::endpoints::run_slices),
    entry!("endpointslicemirroring-controller", crate::endpoints::MIRROR_RULES, crate::endpoints::run_mirror),
    entry!("ephemeral-volume-controller", crate::volume::ephemeral::RULES, crate::volume::ephemeral::run),
    entry!("expand-controller", crate::volume::expand::RULES, crate::volume::expand::run),
    entry!("generic-garbage-collector", crate::garbage::RULES, crate::garbage::run),
    entry!("horizontal-pod-autoscaler", crate::horizontal_pod_autoscaler::RULES, crate::horizontal_pod_autoscaler::run),
    entry!("ipallocator-repair-controller", crate::service_cidr::repair::RULES, crate::service_cidr::repair::run),
    entry!("job-controller", crate::job::RULES, crate::job::run),
    entry!("kube-apiserver-serving-clustertrustbundle-publisher", crate::trust_bundle::RULES, crate::trust_bundle::run),
    entry!(
        "legacy-service-account-token-cleaner",
        crate::service_account_token::CLEANER_RULES,
        crate::service_account_token::run_cleaner
    ),
    entry!("local-path-provisioner", crate::volume::provisioner::RULES, crate::volume::provisioner::run),
    entry!("namespace-controller", crate::namespace::RULES, crate::namespace::run),
    entry!("node-controller", crate::node_lifecycle::RULES, crate::node_lifecycle::run),
    entry!("node-ipam-controller", crate::node_ipam::RULES, crate::node_ipam::run),
    entry!("persistent-volume-binder", crate::volume::binder::RULES, crate::volume::binder::run),
    entry!("pod-garbage-collector", crate::pod_gc::RULES, crate::pod_gc::run),
    entry!(
        "podcertificaterequestcleaner",
        crate::certificate::pod_request::RULES,
        crate::certificate::pod_request::run
    ),
    entry!("podgroup-protection-controller", crate::pod_group_protection::RULES, crate::pod_group_protection::run),
    entry!("pv-protection-controller", crate::volume::protection::VOLUME_RULES, crate::volume::protection::run_volumes),
    entry!("pvc-protection-controller", crate::volume::protection::CLAIM_RULES, crate::volume::protection::run_claims),
    entry!("replicaset-controller", crate::replicas::REPLICASET_RULES, crate::replicas::run_replicasets),
    entry!("replication-controller", crate::replicas::REPLICATION_RULES, crate::replicas::run_replication_controllers),
    entry!("resource-claim-controller", crate::resource_claim::RULES, crate::resource_claim::run),
    entry!("resourcequota-controller", crate::resource_quota::RULES, crate::resource_quota::run),
    entry!("root-ca-cert-publisher", crate::root_ca::RULES, crate::root_ca::run),
    entry!("service-account-controller", crate::service_account::RULES, crate::service_account::run),
    entry!("service-cidrs-controller", crate::service_cidr::protection::RULES, crate::service_cidr::protection::run),
    entry!("statefulset-controller", crate::statefulset::RULES, crate::statefulset::run),
    entry!(
        "storage-version-migrator-controller",
        crate::storage_version_migration::RULES,
        crate::storage_version_migration::run
    ),
    entry!("taint-eviction-controller", crate::taint_eviction::RULES, crate::taint_eviction::run),
    entry!("token-cleaner", crate::bootstrap_token::RULES, crate::bootstrap_token::run_cleaner),
    entry!("tokens-controller", crate::service_account_token::TOKEN_RULES, crate::service_account_token::run_tokens),
    entry!("ttl-after-finished-controller", crate::ttl_after_finished::RULES, crate::ttl_after_finished::run),
    entry!("ttl-controller", crate::ttl::RULES, crate::ttl::run),
    entry!(
        "volumeattributesclass-protection-controller",
        crate::volume::protection::CLASS_RULES,
        crate::volume::protection::run_classes
    ),
];

/// Runs all controllers until `cancel`. The caches of `informers` are filled under an identity that may list and watch for
/// all of them (`system:kube-controller-manager`); each controller writes through its own client from the config.
pub async fn run(informers: &Informers, config: ControllersConfig, cancel: CancellationToken) {
    informers.start(&cancel);
    let config = Arc::new(config);
    let mut tasks = JoinSet::new();
    for entry in ALL {
        let setup = Setup {
            name: entry.name,
            client: (config.client_for)(entry.name),
            informers: informers.clone(),
            config: config.clone(),
            cancel: cancel.clone(),
        };
        tasks.spawn((entry.start)(setup).map(move |()| entry.name));
    }
    info!(controllers = ALL.len(), "controllers started");
    while let Some(ended) = tasks.join_next().await {
        match ended {
            Ok(_) if cancel.is_cancelled() => {}
            Ok(name) => warn!(controller = name, "controller ended early"),
            Err(e) => warn!(error = %e, "controller broke"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_every_controller_states_its_rules() {
        for (i, e) in ALL.iter().enumerate() {
            assert!(!e.rules.is_empty(), "{}", e.name);
            assert!(ALL[..i].iter().all(|o| o.name < e.name), "{} is out of order", e.name);
        }
    }
}
