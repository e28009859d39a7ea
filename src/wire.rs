//! How the control plane is put together on top of a running API server: once, for the server role and for the simulation.

use crate::in_process::{self, Connect};
use gantry_api::clock::Clock;
use gantry_api::entropy::Entropy;
use gantry_api::kind::Kind;
use gantry_controllers::{ControllersConfig, node_ipam};
use gantry_reconcile::Informers;
use gantry_reconcile::measured::Queues;
use gantry_scheduler::config::Configuration;
use gantry_scheduler::{Explainer, SchedulerConfig};
use gantry_server::Server;
use gantry_server::authn::UserInfo;
use gantry_server::config::ComponentRole;
use k8s_openapi::api::rbac::v1::PolicyRule;
use k8s_openapi::api::scheduling::v1beta1::PodGroup;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// What controllers and scheduler are given from outside.
pub struct Components {
    /// The cluster authority's certificate, PEM.
    pub ca_cert_pem: String,
    /// Its key, PEM.
    pub ca_key_pem: String,
    /// Time.
    pub clock: Clock,
    /// Chance.
    pub entropy: Entropy,
    /// Lifetime of the certificates that are signed; Kubernetes' one year where none is given.
    pub signing_duration: Option<Duration>,
    /// How long a node may be silent; Kubernetes' fifty seconds where it is not given.
    pub node_grace_period: Option<Duration>,
    /// How often autoscalers look; Kubernetes' fifteen seconds where it is not given.
    pub autoscaling_period: Option<Duration>,
    /// Addresses of the cluster's DNS Service, where the nodes serve DNS.
    pub cluster_dns: Vec<IpAddr>,
    /// How long tokens in Secrets stay that nobody uses; Kubernetes' year where it is not given.
    pub legacy_token_period: Option<Duration>,
    /// What the nodes' ranges of pod addresses are cut out of; None where nodes bring their own.
    pub node_ranges: Option<node_ipam::Ranges>,
    /// Profiles of the scheduler.
    pub scheduling: Configuration,
}

/// The RBAC every controller states beside its code.
#[must_use]
pub fn component_roles() -> Vec<ComponentRole> {
    gantry_controllers::ALL
        .iter()
        .map(|e| ComponentRole { name: e.name.to_owned(), rules: e.rules.iter().map(PolicyRule::from).collect() })
        .collect()
}

/// Runs controllers and scheduler, in process and on shared caches, with clients from `connect`, until `cancel`.
pub async fn run(server: Arc<Server>, connect: Connect, components: Components, cancel: CancellationToken) {
    let Components {
        ca_cert_pem,
        ca_key_pem,
        clock,
        entropy,
        signing_duration,
        node_grace_period,
        autoscaling_period,
        cluster_dns,
        legacy_token_period,
        node_ranges,
        scheduling,
    } = components;
    let factory = connect.clone();
    let client_for = Arc::new(move |name: &str| factory(in_process::controller(name), name));
    let mut config = ControllersConfig::new(clock, entropy.clone(), client_for, ca_cert_pem);
    config.ca_key_pem = Some(ca_key_pem);
    config.certificate_duration = signing_duration.unwrap_or(config.certificate_duration);
    config.node_grace_period = node_grace_period.unwrap_or(config.node_grace_period);
    config.autoscaling_period = autoscaling_period.unwrap_or(config.autoscaling_period);
    config.cluster_dns = cluster_dns;
    config.legacy_token_period = legacy_token_period.unwrap_or(config.legacy_token_period);
    config.node_ranges = node_ranges;
    config.pod_groups =
        server.registry.find(PodGroup::INFO.group, PodGroup::INFO.version, PodGroup::INFO.plural).is_some();
    let pod_groups = config.pod_groups;
    let measured = config.measured.clone();
    let manager = "kube-controller-manager";
    let manager = connect(UserInfo::new(&format!("system:{manager}"), &[]), manager);
    let informers = Informers::new(manager);
    let scheduler = connect(UserInfo::new("system:kube-scheduler", &[]), "kube-scheduler");
    let explainer = Explainer::default();
    let asked = explainer.clone();
    // One server has one scheduler; in a second wiring of the same server the first stays.
    let _ = server.services.explain.set(Arc::new(move |namespace, name| asked.explain(namespace, name)));
    let queues = Queues { known_as: gantry_controllers::measured::queue_name };
    server.metrics.tell_of(vec![Box::new(explainer.clone()), Box::new(measured), Box::new(queues)]);
    let scheduling = SchedulerConfig { configuration: scheduling, clock, entropy, pod_groups, explainer };
    tokio::join!(
        // In order: an unordered choice draws lots, and two simulations from one seed would differ.
        biased;
        server.components.run("controller-manager", gantry_controllers::run(&informers, config, cancel.clone())),
        server.components.run("scheduler", gantry_scheduler::run(scheduler, &informers, scheduling, cancel.clone())),
    );
}
