//! PodSecurity: namespaces ask by their labels for a Pod Security Standard, and pods that violate it are refused or warned
//! of. Workloads are not refused for their templates, but their authors are warned.

mod checks;
mod policy;
mod settings;
#[cfg(test)]
mod tests;

use super::{Attributes, Operation, ValidatingPlugin};
use crate::audit;
use crate::cluster::Cluster;
use async_trait::async_trait;
use checks::{Violation, violations};
use gantry_api::ObjectMeta;
use gantry_api::k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use gantry_api::k8s_openapi::api::batch::v1::{CronJob, Job};
use gantry_api::k8s_openapi::api::core::v1::{
    Container, Namespace, Pod, PodSpec, PodTemplate, PodTemplateSpec, ReplicationController,
};
use gantry_api::meta::field::ErrorList;
use gantry_api::meta::object::Meta;
use gantry_api::meta::status::ApiError;
pub use policy::Level;
use policy::{LevelVersion, Policy};
pub use settings::Settings;
use std::collections::{BTreeMap, BTreeSet};

/// Pods of a namespace that are looked at when its labels change.
const PODS_MAX: usize = 3000;
/// Subresources of pods that change nothing the standards are about.
const HARMLESS: &[&str] = &["exec", "attach", "binding", "eviction", "log", "portforward", "proxy", "status"];

pub(super) struct PodSecurity(pub(super) Settings);

fn note(key: &str, value: &str) {
    audit::annotate(&format!("pod-security.kubernetes.io/{key}"), value);
}

/// Tells the audit log what the namespace wants to be told.
fn note_violations(policy: &Policy, errors: &ErrorList, meta: &ObjectMeta, spec: &PodSpec) {
    if !errors.is_empty() {
        let why: Vec<String> = errors.0.iter().map(ToString::to_string).collect();
        note("error", &format!("Failed to parse policy: {}", why.join(", ")));
    }
    if let Some(violations) = warn_of(&policy.audit, meta, spec) {
        note("audit-violations", &violations);
    }
}

fn check(of: &LevelVersion, meta: &ObjectMeta, spec: &PodSpec) -> Vec<Violation> {
    violations(of.level, of.checked_version(), meta, spec)
}

/// `reason (detail), reason (detail)`.
fn details(found: &[Violation]) -> String {
    let one = |v: &Violation| {
        if v.detail.is_empty() { v.reason.clone() } else { format!("{} ({})", v.reason, v.detail) }
    };
    found.iter().map(one).collect::<Vec<_>>().join(", ")
}

fn reasons(found: &[Violation]) -> String {
    found.iter().map(|v| v.reason.as_str()).collect::<Vec<_>>().join(", ")
}

fn warn_of(of: &LevelVersion, meta: &ObjectMeta, spec: &PodSpec) -> Option<String> {
    let found = check(of, meta, spec);
    (!found.is_empty()).then(|| format!("would violate PodSecurity \"{of}\": {}", details(&found)))
}

/// Whether an update of a pod changes what the standards are about: images, and which containers there are.
fn is_significant(new: &Pod, old: &Pod) -> bool {
    let (Some(new), Some(old)) = (&new.spec, &old.spec) else { return true };
    fn images(containers: &[Container]) -> Vec<Option<&str>> {
        containers.iter().map(|c| c.image.as_deref()).collect()
    }
    let init = |s: &PodSpec| s.init_containers.clone().unwrap_or_default();
    if images(&new.containers) != images(&old.containers) || images(&init(new)) != images(&init(old)) {
        return true;
    }
    new.ephemeral_containers.iter().flatten().any(|c| {
        let before = old.ephemeral_containers.iter().flatten().find(|o| o.name == c.name);
        before.is_none_or(|b| b.image != c.image)
    })
}

/// The pods a workload is to make.
fn template<'a>(a: &'a Attributes<'_>) -> Option<&'a PodTemplateSpec> {
    let info = a.resource.info();
    match (info.group, info.plural) {
        ("", "podtemplates") => a.object_as::<PodTemplate>()?.template.as_ref(),
        ("", "replicationcontrollers") => a.object_as::<ReplicationController>()?.spec.as_ref()?.template.as_ref(),
        ("apps", "replicasets") => a.object_as::<ReplicaSet>()?.spec.template.as_ref(),
        ("apps", "deployments") => Some(&a.object_as::<Deployment>()?.spec.template),
        ("apps", "daemonsets") => Some(&a.object_as::<DaemonSet>()?.spec.template),
        ("apps", "statefulsets") => Some(&a.object_as::<StatefulSet>()?.spec.template),
        ("batch", "jobs") => a.object_as::<Job>()?.spec.as_ref().map(|s| &s.template),
        ("batch", "cronjobs") => a.object_as::<CronJob>()?.spec.job_template.spec.as_ref().map(|s| &s.template),
        _ => None,
    }
}

impl PodSecurity {
    fn policy(&self, of: &Namespace) -> (Policy, ErrorList) {
        policy::of_labels(of.metadata.labels.as_ref(), &self.0.defaults)
    }

    /// Whether the pods of the request are let alone, which the audit log tells.
    fn exempts(&self, a: &Attributes<'_>) -> bool {
        if !self.0.exempts(a.namespace, &a.user.username) {
            return false;
        }
        note("exempt", if self.0.exempts_namespace(a.namespace) { "namespace" } else { "user" });
        true
    }

    /// The same for their runtime class.
    fn exempts_class(&self, spec: &PodSpec) -> bool {
        let exempt = self.0.exempts_class(spec);
        if exempt {
            note("exempt", "runtimeClass");
        }
        exempt
    }

    async fn validate_pod(&self, a: &mut Attributes<'_>, cluster: &Cluster) -> Result<(), ApiError> {
        if self.exempts(a) {
            return Ok(());
        }
        let Some(namespace) = cluster.shared::<Namespace>("", a.namespace).await? else {
            return Err(ApiError::internal(format!("failed to lookup namespace {:?}", a.namespace)));
        };
        let (policy, errors) = self.policy(&namespace);
        let Some(pod) = a.object_as::<Pod>() else { return Ok(()) };
        if a.operation == Operation::Update && a.old_as::<Pod>().is_some_and(|old| !is_significant(pod, old)) {
            return Ok(());
        }
        let Some(spec) = pod.spec.as_ref().filter(|s| !self.exempts_class(s)) else { return Ok(()) };
        note("enforce-policy", &policy.enforce.to_string());
        note_violations(&policy, &errors, &pod.metadata, spec);
        let found = check(&policy.enforce, &pod.metadata, spec);
        if !found.is_empty() {
            return Err(a.forbidden(&format!("violates PodSecurity \"{}\": {}", policy.enforce, details(&found))));
        }
        let warning = warn_of(&policy.warn, &pod.metadata, spec);
        a.warnings.extend(warning);
        Ok(())
    }

    async fn validate_workload(&self, a: &mut Attributes<'_>, cluster: &Cluster) -> Result<(), ApiError> {
        if template(a).is_none() || self.exempts(a) {
            return Ok(());
        }
        let Some(namespace) = cluster.shared::<Namespace>("", a.namespace).await? else { return Ok(()) };
        let (policy, errors) = self.policy(&namespace);
        let warning = template(a).and_then(|t| {
            let meta = t.metadata.clone().unwrap_or_default();
            let spec = t.spec.as_ref().filter(|s| !self.exempts_class(s))?;
            note_violations(&policy, &errors, &meta, spec);
            warn_of(&policy.warn, &meta, spec)
        });
        a.warnings.extend(warning);
        Ok(())
    }

    /// What is answered to labels of a namespace whose pods are not looked at.
    fn exempt_warning(&self, namespace: &Namespace, policy: &Policy) -> Option<String> {
        if policy.is_privileged() || *policy == self.0.defaults {
            return None;
        }
        let named = policy::named(namespace.metadata.labels.as_ref(), policy);
        let name = namespace.metadata.name();
        Some(format!("namespace {name:?} is exempt from Pod Security, and the policy ({named}) will be ignored"))
    }

    async fn validate_namespace(&self, a: &mut Attributes<'_>, cluster: &Cluster) -> Result<(), ApiError> {
        let Some(namespace) = a.object_as::<Namespace>() else { return Ok(()) };
        let (new, errors) = self.policy(namespace);
        let before = a.old_as::<Namespace>().map(|o| self.policy(o));
        let texts = |e: &ErrorList| e.0.iter().map(ToString::to_string).collect::<Vec<_>>();
        if !errors.is_empty() && before.as_ref().is_none_or(|(_, old)| texts(old) != texts(&errors)) {
            return Err(ApiError::invalid("", "Namespace", a.name, &errors));
        }
        let exempt = self.0.exempts_namespace(namespace.metadata.name());
        let Some((old, _)) = before else {
            let warning = self.exempt_warning(namespace, &new).filter(|_| exempt);
            a.warnings.extend(warning);
            return Ok(());
        };
        let relaxed = new.enforce.version == old.enforce.version && new.enforce.level <= old.enforce.level;
        if new.enforce == old.enforce || new.enforce.level == Level::Privileged || relaxed {
            return Ok(());
        }
        if exempt {
            let warning = self.exempt_warning(namespace, &new);
            a.warnings.extend(warning);
            return Ok(());
        }
        let name = namespace.metadata.name();
        let mut pods = cluster.list::<Pod>(name).await?;
        pods.retain(|p| p.spec.as_ref().is_none_or(|s| !self.0.exempts_class(s)));
        let warnings = warnings_of_pods(name, &new.enforce, pods);
        a.warnings.extend(warnings);
        Ok(())
    }
}

/// What a newly enforced standard has against the pods that are there already.
fn warnings_of_pods(namespace: &str, enforce: &LevelVersion, pods: Vec<Pod>) -> Vec<String> {
    let total = pods.len();
    // One pod of each controller first, as the others are most likely the same.
    let mut seen = BTreeSet::new();
    let (mut first, again): (Vec<Pod>, Vec<Pod>) = pods.into_iter().partition(|p| {
        let owner = p.metadata.owner_references.iter().flatten().find(|o| o.controller == Some(true));
        owner.is_none_or(|o| seen.insert(o.uid.clone()))
    });
    first.extend(again);
    let mut warnings = Vec::new();
    if total > PODS_MAX {
        first.truncate(PODS_MAX);
        warnings.push(format!(
            "new PodSecurity enforce level only checked against the first {PODS_MAX} of {total} existing pods"
        ));
    }
    let mut by_reason: BTreeMap<String, (String, usize)> = BTreeMap::new();
    for pod in &first {
        let Some(spec) = &pod.spec else { continue };
        let found = check(enforce, &pod.metadata, spec);
        if found.is_empty() {
            continue;
        }
        let name = pod.metadata.name().to_owned();
        let entry = by_reason.entry(reasons(&found)).or_insert_with(|| (name.clone(), 0));
        entry.0 = entry.0.clone().min(name);
        entry.1 += 1;
    }
    if !by_reason.is_empty() {
        warnings.push(format!(
            "existing pods in namespace {namespace:?} violate the new PodSecurity enforce level \"{enforce}\""
        ));
    }
    let mut told: Vec<String> = by_reason
        .into_iter()
        .map(|(reason, (name, count))| match count {
            1 => format!("{name}: {reason}"),
            2 => format!("{name} (and 1 other pod): {reason}"),
            n => format!("{name} (and {} other pods): {reason}", n - 1),
        })
        .collect();
    told.sort();
    warnings.extend(told);
    warnings
}

#[async_trait]
impl ValidatingPlugin for PodSecurity {
    fn name(&self) -> &'static str {
        "PodSecurity"
    }

    async fn validate(&self, a: &mut Attributes<'_>, cluster: &Cluster) -> Result<(), ApiError> {
        if !matches!(a.operation, Operation::Create | Operation::Update) {
            return Ok(());
        }
        let info = a.resource.info();
        match (info.group, info.plural, a.subresource) {
            ("", "pods", sub) if HARMLESS.contains(&sub) => Ok(()),
            ("", "pods", _) => self.validate_pod(a, cluster).await,
            ("", "namespaces", "") => self.validate_namespace(a, cluster).await,
            (_, _, "") => self.validate_workload(a, cluster).await,
            _ => Ok(()),
        }
    }
}
