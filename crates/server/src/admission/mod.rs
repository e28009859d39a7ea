//! Admission: plugins that may change (mutating) or refuse (validating) a write, in one visible order.

mod always;
mod always_pull_images;
mod certificate;
mod configuration;
mod default_class;
mod default_toleration_seconds;
mod deny_external_ips;
mod event_rate_limit;
pub mod expression;
mod extended_resource_toleration;
mod hard_anti_affinity;
mod image_policy;
mod in_use_protection;
mod limit_ranger;
mod matching;
pub mod measured;
#[cfg(test)]
pub mod memory_objects;
mod mirror_pod;
mod namespace_exists;
mod namespace_lifecycle;
mod node_restriction;
mod owner_references;
mod plugins;
mod pod_group_protection;
mod pod_node_selector;
mod pod_security;
mod pod_toleration_restriction;
pub mod pod_topology_labels;
mod policy;
mod priority;
mod rbac_escalation;
mod request;
mod resource_quota;
pub mod rounds;
mod runtime_class;
mod service_account;
pub mod service_allocation;
mod taint_nodes;
#[cfg(test)]
mod tests;
mod token_secret;
mod tolerations;
mod volume_claim;
mod webhook;

pub use configuration::{AdmissionConfig, Files};

use crate::authz::Authorizer;
use crate::config::ServerConfig;
use crate::registry::hooks::Hook;
use gantry_api::kind::{Kind, downcast, downcast_mut};
use gantry_api::meta::object::Meta;
use std::any::Any;
use std::sync::Arc;

use crate::authn::UserInfo;
use crate::cluster::Cluster;
use async_trait::async_trait;
use gantry_api::kind::{Object, Resource};
use gantry_api::meta::status::ApiError;
use measured::{Measured, Step, Timed};
use rounds::Rounds;
use serde_json::Value;
use tokio::time::Instant;

/// Type checking of policies.
pub mod policy_types {
    pub use super::policy::{GroupVersionKind, check, kinds};
}

/// What is being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Operation {
    Create,
    Update,
    Delete,
    Connect,
}

impl Operation {
    /// `CREATE`, `UPDATE`, `DELETE`, `CONNECT`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Operation::Create => "CREATE",
            Operation::Update => "UPDATE",
            Operation::Delete => "DELETE",
            Operation::Connect => "CONNECT",
        }
    }
}

/// A write on its way to the store.
pub struct Attributes<'a> {
    /// What is being done.
    pub operation: Operation,
    /// The resource addressed.
    pub resource: &'a dyn Resource,
    /// The subresource addressed, may be empty.
    pub subresource: &'a str,
    /// Namespace, empty for cluster scope.
    pub namespace: &'a str,
    /// Name, may be empty on create with generateName.
    pub name: &'a str,
    /// Who asks.
    pub user: &'a UserInfo,
    /// Whether nothing will be persisted; plugins must then have no side effects.
    pub dry_run: bool,
    /// The new object; None on delete and connect.
    pub object: Option<&'a mut dyn Object>,
    /// The object as stored; None on create.
    pub old_object: Option<&'a dyn Object>,
    /// Create/update/delete options as JSON, or the parameters of a connection, each with the list of its values.
    pub options: Value,
    /// Texts for `Warning` headers.
    pub warnings: Vec<String>,
    /// Which round of mutating plugins this is.
    pub rounds: Rounds,
    /// What plugins hold until the write has been stored or given up.
    pub held: Vec<Box<dyn Any + Send + Sync>>,
}

impl Attributes<'_> {
    /// Whether this resource (by group and plural) and subresource are addressed.
    #[must_use]
    pub fn is(&self, group: &str, resource: &str, subresource: &str) -> bool {
        let info = self.resource.info();
        info.group == group && info.plural == resource && self.subresource == subresource
    }

    /// The new object as kind `K`.
    #[must_use]
    pub fn object_as<K: Kind>(&self) -> Option<&K> {
        self.object.as_deref().and_then(downcast::<K>)
    }

    /// The new object as kind `K`, to be changed.
    #[must_use]
    pub fn object_as_mut<K: Kind>(&mut self) -> Option<&mut K> {
        self.object.as_deref_mut().and_then(downcast_mut::<K>)
    }

    /// The stored object as kind `K`.
    #[must_use]
    pub fn old_as<K: Kind>(&self) -> Option<&K> {
        self.old_object.and_then(downcast::<K>)
    }

    /// 403 naming the object, or what its name will begin with.
    #[must_use]
    pub fn forbidden(&self, why: &str) -> ApiError {
        let info = self.resource.info();
        let of_object = || {
            let meta = self.object.as_deref().map(Object::meta)?;
            let name =
                if meta.name().is_empty() { meta.generate_name.as_deref().unwrap_or_default() } else { meta.name() };
            Some(name.to_owned())
        };
        let name = if self.name.is_empty() { of_object().unwrap_or_default() } else { self.name.to_owned() };
        let name = if name.is_empty() { "Unknown".to_owned() } else { name };
        ApiError::forbidden(info.group, info.plural, &name, why)
    }
}

/// A plugin that may change the object.
#[async_trait]
pub trait MutatingPlugin: Send + Sync {
    /// Name as in `--enable-admission-plugins`.
    fn name(&self) -> &'static str;
    /// Changes `attributes.object` or refuses.
    ///
    /// # Errors
    /// A refusal, answered to the client as it is.
    async fn admit(&self, attributes: &mut Attributes<'_>, cluster: &Cluster) -> Result<(), ApiError>;
}

/// A plugin that may refuse.
#[async_trait]
pub trait ValidatingPlugin: Send + Sync {
    /// Name as in `--enable-admission-plugins`.
    fn name(&self) -> &'static str;
    /// Accepts or refuses.
    ///
    /// # Errors
    /// A refusal, answered to the client as it is.
    async fn validate(&self, attributes: &mut Attributes<'_>, cluster: &Cluster) -> Result<(), ApiError>;
    /// The write that was accepted was not stored after all: gives back what was taken for it.
    async fn abandoned(&self, _attributes: &Attributes<'_>, _cluster: &Cluster) {}
}

/// The plugins in the order they run.
#[derive(Default)]
pub struct Chain {
    /// Mutating plugins, in order.
    pub mutating: Vec<Timed<dyn MutatingPlugin>>,
    /// Validating plugins, in order.
    pub validating: Vec<Timed<dyn ValidatingPlugin>>,
    /// How long it all takes.
    pub measured: Arc<Measured>,
}

impl Chain {
    /// Runs the mutating plugins, then the validating ones, for what is not a write through the registry (connections,
    /// bindings, evictions, token requests).
    ///
    /// # Errors
    /// The first refusal.
    pub async fn run(&self, attributes: &mut Attributes<'_>, cluster: &Cluster) -> Result<(), ApiError> {
        self.admit(attributes, cluster).await?;
        self.validate(attributes, cluster).await
    }

    /// Runs the mutating plugins, a second time where one of them changed the object in a way the others should see.
    ///
    /// # Errors
    /// The first refusal.
    pub async fn admit(&self, attributes: &mut Attributes<'_>, cluster: &Cluster) -> Result<(), ApiError> {
        let began = Instant::now();
        let mut outcome = self.round(attributes, cluster).await;
        if outcome.is_ok() && attributes.rounds.wanted {
            attributes.rounds.again = true;
            outcome = self.round(attributes, cluster).await;
        }
        self.measured.step(Step::Admit, attributes.operation, outcome.is_err(), began.elapsed());
        outcome
    }

    async fn round(&self, attributes: &mut Attributes<'_>, cluster: &Cluster) -> Result<(), ApiError> {
        let mut at = Instant::now();
        for timed in &self.mutating {
            let outcome = timed.plugin.admit(attributes, cluster).await;
            timed.observe(attributes.operation, outcome.is_err(), &mut at);
            outcome?;
        }
        Ok(())
    }

    /// Runs the validating plugins.
    ///
    /// # Errors
    /// The first refusal.
    pub async fn validate(&self, attributes: &mut Attributes<'_>, cluster: &Cluster) -> Result<(), ApiError> {
        let began = Instant::now();
        let mut at = began;
        let mut outcome = Ok(());
        for timed in &self.validating {
            outcome = timed.plugin.validate(attributes, cluster).await;
            timed.observe(attributes.operation, outcome.is_err(), &mut at);
            if outcome.is_err() {
                break;
            }
        }
        self.measured.step(Step::Validate, attributes.operation, outcome.is_err(), at.duration_since(began));
        outcome
    }

    /// Appends the measurements, without an end mark.
    ///
    /// # Errors
    /// None that a string can have.
    pub fn render(&self, out: &mut String) -> std::fmt::Result {
        let mutating = self.mutating.iter().map(|t| (t.plugin.name(), Step::Admit, &t.cells));
        let validating = self.validating.iter().map(|t| (t.plugin.name(), Step::Validate, &t.cells));
        self.measured.render(out, mutating.chain(validating))
    }
}

/// The plugins that run, in upstream's order. `authorizer` is asked about approving, signing, granting, binding and owning.
#[must_use]
pub fn chain(authorizer: Arc<dyn Authorizer>, config: &AdmissionConfig) -> Chain {
    let measured = Arc::new(Measured::default());
    let selector = || pod_node_selector::PodNodeSelector(config.node_selectors.clone());
    let restriction = || pod_toleration_restriction::PodTolerationRestriction(config.tolerations.clone());
    let mutating: Vec<Box<dyn MutatingPlugin>> = vec![
        Box::new(namespace_exists::NamespaceAutoProvision),
        Box::new(namespace_lifecycle::NamespaceLifecycle::default()),
        Box::new(limit_ranger::LimitRanger),
        Box::new(service_account::ServiceAccountPlugin),
        Box::new(node_restriction::NodeRestriction),
        Box::new(taint_nodes::TaintNodesByCondition),
        Box::new(always_pull_images::AlwaysPullImages),
        Box::new(selector()),
        Box::new(priority::Priority),
        Box::new(default_toleration_seconds::DefaultTolerationSeconds),
        Box::new(restriction()),
        Box::new(extended_resource_toleration::ExtendedResourceToleration),
        Box::new(default_class::DefaultStorageClass),
        Box::new(in_use_protection::InUseProtection),
        Box::new(pod_group_protection::PodGroupProtection),
        Box::new(runtime_class::RuntimeClassPlugin),
        Box::new(certificate::Requestor),
        Box::new(default_class::DefaultIngressClass),
        Box::new(pod_topology_labels::PodTopologyLabels),
        Box::new(policy::MutatingPolicies::new(authorizer.clone())),
        Box::new(webhook::MutatingWebhooks::new(authorizer.clone(), measured.clone())),
        Box::new(always::AlwaysDeny),
    ];
    let validating: Vec<Box<dyn ValidatingPlugin>> = vec![
        Box::new(always::AlwaysAdmit),
        Box::new(namespace_exists::NamespaceExists),
        Box::new(hard_anti_affinity::HardAntiAffinity),
        Box::new(limit_ranger::LimitRanger),
        Box::new(service_account::ServiceAccountPlugin),
        Box::new(mirror_pod::MirrorPod),
        Box::new(always_pull_images::AlwaysPullImages),
        Box::new(image_policy::ImagePolicyWebhook::new(config.image_policy.as_ref())),
        Box::new(pod_security::PodSecurity(config.pod_security.clone())),
        Box::new(selector()),
        Box::new(priority::Priority),
        Box::new(restriction()),
        Box::new(event_rate_limit::EventRateLimit::new(&config.event_limits)),
        Box::new(pod_group_protection::PodGroupProtection),
        Box::new(owner_references::OwnerReferences(authorizer.clone())),
        Box::new(volume_claim::Resize),
        Box::new(runtime_class::RuntimeClassPlugin),
        Box::new(certificate::Approval(authorizer.clone())),
        Box::new(certificate::Signing(authorizer.clone())),
        Box::new(certificate::TrustBundleAttest(authorizer.clone())),
        Box::new(certificate::PodCertificateSigning(authorizer.clone())),
        Box::new(certificate::SubjectRestriction),
        Box::new(deny_external_ips::DenyServiceExternalIps),
        Box::new(rbac_escalation::RbacEscalation(authorizer.clone())),
        Box::new(policy::ValidatingPolicies::new(authorizer.clone(), measured.clone())),
        Box::new(webhook::ValidatingWebhooks::new(authorizer, measured.clone())),
        // Last: what it charges for is stored next.
        Box::new(resource_quota::Quota::new(config.limited_resources.clone())),
    ];
    plugins::select(mutating, validating, config, measured)
}

/// The steps of writes that allocate what is unique in the cluster, and those that keep derived objects right.
pub async fn hooks(config: &ServerConfig, _cluster: &Cluster) -> Vec<Arc<dyn Hook>> {
    let mut hooks: Vec<Arc<dyn Hook>> = vec![
        Arc::new(service_allocation::ServiceAllocation::new(config)),
        Arc::new(rbac_escalation::AggregateClusterRoles),
    ];
    match token_secret::TokenSecret::new(config) {
        Ok(hook) => hooks.push(Arc::new(hook)),
        Err(e) => tracing::error!(error = %e, "token secrets are not filled"),
    }
    hooks
}
