//! `pods/binding` and `bindings`: the assignment of a pod to a node.

mod commits;
mod fit;

use super::{Handler, Services, body};
use crate::admission::pod_topology_labels::TOPOLOGY_LABELS;
use crate::admission::rounds::Rounds;
use crate::admission::{Attributes, Operation};
use crate::cluster::resource_of;
use crate::request::{HandlerResult, RequestContext};
use async_trait::async_trait;
use bytes::Bytes;
use commits::Commit;
pub(super) use commits::Commits;
use gantry_api::Time;
use gantry_api::k8s_openapi::api::core::v1::{Binding, Node, Pod, PodCondition};
use gantry_api::kind::{Object, downcast_mut};
use gantry_api::meta::field::{ErrorList, Path};
use gantry_api::meta::object::Meta;
use gantry_api::meta::status::ApiError;
use std::collections::BTreeMap;

/// `pods/NAME/binding`.
pub(super) struct PodBinding(pub(super) Commits);
/// `bindings`, where the body names the pod.
pub(super) struct Bindings(pub(super) Commits);

fn validate(binding: &Binding) -> ErrorList {
    let mut e = ErrorList::default();
    let at = Path::new("target");
    let kind = binding.target.kind.as_deref().unwrap_or_default();
    if !matches!(kind, "" | "Node") {
        e.not_supported(&at.child("kind"), kind, &["Node", "<empty>"]);
    }
    if binding.target.name.as_deref().unwrap_or_default().is_empty() {
        e.required(&at.child("name"), "");
    }
    e
}

/// Assigns an unscheduled pod.
fn assign(pod: &mut Pod, binding: &Binding, labels: &BTreeMap<String, String>, now: &Time) -> Result<(), ApiError> {
    let name = pod.metadata.name().to_owned();
    let conflict = |why: String| Err(ApiError::conflict("", "pods/binding", &name, &why));
    let expected = (binding.metadata.uid(), binding.metadata.resource_version());
    if !expected.0.is_empty() && expected.0 != pod.metadata.uid() {
        let (wanted, have) = (expected.0, pod.metadata.uid());
        return conflict(format!("Precondition failed: UID in precondition: {wanted}, UID in object meta: {have}"));
    }
    if !expected.1.is_empty() && expected.1 != pod.metadata.resource_version() {
        let (wanted, have) = (expected.1, pod.metadata.resource_version());
        return conflict(format!(
            "Precondition failed: ResourceVersion in precondition: {wanted}, ResourceVersion in object meta: {have}"
        ));
    }
    if pod.metadata.is_deleting() {
        return conflict(format!("pod {name} is being deleted, cannot be assigned to a host"));
    }
    let spec = pod.spec.get_or_insert_default();
    if let Some(node) = spec.node_name.as_deref().filter(|n| !n.is_empty()) {
        return conflict(format!("pod {name} is already assigned to node {node:?}"));
    }
    if spec.scheduling_gates.iter().flatten().next().is_some() {
        return conflict(format!("pod {name} has non-empty .spec.schedulingGates"));
    }
    spec.node_name.clone_from(&binding.target.name);
    for (key, value) in binding.metadata.annotations.iter().flatten() {
        pod.metadata.annotations.get_or_insert_default().insert(key.clone(), value.clone());
    }
    for (key, value) in labels.iter().chain(binding.metadata.labels.iter().flatten()) {
        pod.metadata.labels.get_or_insert_default().insert(key.clone(), value.clone());
    }
    // Being assigned is not a change of what the pod's author asked for: the generation stays.
    let status = pod.status.get_or_insert_default();
    status.nominated_node_name = None;
    let conditions = status.conditions.get_or_insert_default();
    let scheduled = PodCondition {
        type_: "PodScheduled".into(),
        status: "True".into(),
        last_transition_time: Some(now.clone()),
        ..Default::default()
    };
    match conditions.iter_mut().find(|c| c.type_ == "PodScheduled") {
        Some(c) if c.status == "True" => {
            c.reason = None;
            c.message = None;
        }
        Some(c) => *c = PodCondition { last_probe_time: c.last_probe_time.clone(), ..scheduled },
        None => conditions.push(scheduled),
    }
    Ok(())
}

/// Returns texts for `Warning` headers.
async fn bind(
    cx: &RequestContext,
    name: &str,
    binding: Binding,
    services: &Services,
    commits: &Commits,
) -> Result<Vec<String>, ApiError> {
    let dry_run = body::dry_run(cx)?;
    let namespace = cx.info.namespace.as_str();
    let mut binding = binding;
    let resource = resource_of::<Pod>();
    let mut attributes = Attributes {
        operation: Operation::Create,
        resource,
        subresource: "binding",
        namespace,
        name,
        user: &cx.user,
        dry_run,
        object: Some(&mut binding),
        old_object: None,
        options: serde_json::Value::Null,
        warnings: Vec::new(),
        rounds: Rounds::default(),
        held: Vec::new(),
    };
    services.admission.run(&mut attributes, &services.cluster).await?;
    let warnings = attributes.warnings;
    let errors = validate(&binding);
    if !errors.is_empty() {
        return Err(ApiError::invalid("", "Binding", name, &errors));
    }
    let node = binding.target.name.as_deref().unwrap_or_default();
    let mut labels = BTreeMap::new();
    if let Some(values) = services.cluster.labels::<Node>("", node, &TOPOLOGY_LABELS).await? {
        let known = TOPOLOGY_LABELS.iter().zip(values);
        labels.extend(known.filter_map(|(key, value)| Some(((*key).to_owned(), value?))));
    }
    let seen = match cx.param("ifFits") {
        Some(text) => Some(text.parse().map_err(|_| ApiError::bad_request("ifFits is a resource version"))?),
        None => None,
    };
    // A dry run binds nothing that others would have to know of.
    let commit = if dry_run && seen.is_none() {
        None
    } else {
        Some(commits.begin(node, cx.param("decidedBy").unwrap_or_default(), seen).await)
    };
    if commit.as_ref().is_some_and(Commit::compares)
        && let Err(e) = fit::check(&services.cluster, namespace, name, node).await
    {
        commit.into_iter().for_each(Commit::refused);
        return Err(e);
    }
    let now = services.cluster.clock.time();
    let mut change = |object: &mut dyn Object| match downcast_mut::<Pod>(object) {
        Some(pod) => assign(pod, &binding, &labels, &now),
        None => Err(ApiError::internal("the object to bind is no pod")),
    };
    let bound = services.cluster.objects.guaranteed_update(resource, namespace, name, dry_run, &mut change).await;
    match (&bound, commit) {
        (Ok(pod), Some(commit)) if !dry_run => {
            commit.written(pod.meta().resource_version().parse().unwrap_or(u64::MAX));
        }
        (Ok(_), Some(commit)) => commit.refused(),
        (Err(e), Some(commit)) if e.code < 500 => commit.refused(),
        _ => {}
    }
    bound?;
    Ok(warnings)
}

#[async_trait]
impl Handler for PodBinding {
    fn target(&self) -> (&'static str, &'static str, &'static str, &'static str) {
        ("", "v1", "pods", "binding")
    }

    async fn handle(&self, request: RequestContext, bytes: Bytes, services: &Services) -> HandlerResult {
        body::only_create(&request)?;
        let (binding, mut warnings) = body::decode::<Binding>(&request, &bytes)?;
        let name = request.info.name.clone();
        if !binding.metadata.name().is_empty() && binding.metadata.name() != name {
            return Err(ApiError::bad_request("name in URL does not match name in Binding object"));
        }
        warnings.extend(bind(&request, &name, binding, services, &self.0).await?);
        body::success(&request, 201, &warnings)
    }
}

#[async_trait]
impl Handler for Bindings {
    fn target(&self) -> (&'static str, &'static str, &'static str, &'static str) {
        ("", "v1", "bindings", "")
    }

    async fn handle(&self, request: RequestContext, bytes: Bytes, services: &Services) -> HandlerResult {
        body::only_create(&request)?;
        let (binding, mut warnings) = body::decode::<Binding>(&request, &bytes)?;
        let name = binding.metadata.name().to_owned();
        if name.is_empty() {
            return Err(ApiError::bad_request("name is required in the Binding object"));
        }
        warnings.extend(bind(&request, &name, binding, services, &self.0).await?);
        body::success(&request, 201, &warnings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gantry_api::kind::Kind;
    use serde_json::{Value, json};

    fn try_assign(pod: Value, binding: Value) -> Result<Pod, String> {
        let mut pod = Pod::from_value(pod).unwrap();
        let binding = Binding::from_value(binding).unwrap();
        let now = Time("2026-01-01T00:00:00Z".parse().unwrap());
        let labels = [("topology.kubernetes.io/zone".to_owned(), "z".to_owned())].into();
        assign(&mut pod, &binding, &labels, &now).map(|()| pod).map_err(|e| e.message)
    }

    #[test]
    fn an_unscheduled_pod_is_assigned() {
        let pod = json!({"metadata": {"name": "p", "uid": "u", "generation": 1}, "spec": {"containers": []},
            "status": {"nominatedNodeName": "m", "conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}]}});
        let pod = try_assign(pod, json!({"metadata": {"uid": "u"}, "target": {"name": "n"}})).unwrap();
        assert_eq!(pod.spec.unwrap().node_name.as_deref(), Some("n"));
        assert_eq!(pod.metadata.generation, Some(1));
        assert_eq!(pod.status.as_ref().unwrap().nominated_node_name, None);
        assert_eq!(pod.metadata.label("topology.kubernetes.io/zone"), Some("z"));
        let conditions = pod.status.unwrap().conditions.unwrap();
        assert_eq!((conditions.len(), conditions[0].status.as_str(), &conditions[0].reason), (1, "True", &None));
    }

    #[test]
    fn others_are_not() {
        let cases = [
            (json!({"nodeName": "m", "containers": []}), json!({}), r#"pod p is already assigned to node "m""#),
            (
                json!({"schedulingGates": [{"name": "g"}], "containers": []}),
                json!({}),
                "pod p has non-empty .spec.schedulingGates",
            ),
            (
                json!({"containers": []}),
                json!({"uid": "v"}),
                "Precondition failed: UID in precondition: v, UID in object meta: u",
            ),
        ];
        for (spec, meta, want) in cases {
            let pod = json!({"metadata": {"name": "p", "uid": "u"}, "spec": spec});
            let got = try_assign(pod, json!({"metadata": meta, "target": {"name": "n"}})).unwrap_err();
            assert_eq!(got, format!("Operation cannot be fulfilled on pods/binding \"p\": {want}"));
        }
    }
}
