//! What the ephemeralcontainers and resize subresources of pods may change.

use crate::core::pod::qos::qos_class;
use crate::core::pod::resources::is_sidecar;
use crate::core::pod::update::{validate_annotation_updates, validate_metadata_and_spec};
use crate::core::pod::{MIRROR_ANNOTATION, bump_generation, spec_path};
use crate::meta::field::{ErrorList, Path};
use crate::meta::object::{Meta, differences, semantically_equal};
use crate::meta::quantity::ResourceList;
use crate::meta::text;
use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};
use serde_json::json;

/// Metadata is not for these subresources, except that managed fields record the write.
fn reset_metadata(pod: &mut Pod, old: &Pod) {
    let (meta, old) = (&mut pod.metadata, &old.metadata);
    meta.generation = old.generation;
    meta.deletion_timestamp.clone_from(&old.deletion_timestamp);
    meta.deletion_grace_period_seconds = old.deletion_grace_period_seconds;
    meta.labels.clone_from(&old.labels);
    meta.annotations.clone_from(&old.annotations);
    meta.finalizers.clone_from(&old.finalizers);
    meta.owner_references.clone_from(&old.owner_references);
}

/// For the `ephemeralcontainers` subresource: everything but the ephemeral containers is as it was.
pub(super) fn prepare_ephemeral_containers(pod: &mut Pod, old: &Pod) {
    let wanted = pod.spec.as_mut().and_then(|s| s.ephemeral_containers.take());
    pod.spec.clone_from(&old.spec);
    pod.status.clone_from(&old.status);
    reset_metadata(pod, old);
    if let Some(spec) = &mut pod.spec {
        spec.ephemeral_containers = wanted;
    }
    bump_generation(pod, old);
}

/// Field errors of the `ephemeralcontainers` subresource: existing ones stay as they are.
#[must_use]
pub(super) fn validate_ephemeral_containers(pod: &Pod, old: &Pod) -> ErrorList {
    let mut errors = validate_metadata_and_spec(pod);
    validate_annotation_updates(pod, old, &mut errors);
    if old.metadata.annotation(MIRROR_ANNOTATION).is_some() {
        let mut only = ErrorList::default();
        only.forbidden(&Path::new("[]"), "static pods do not support ephemeral containers");
        return only;
    }
    let path = spec_path().child("ephemeralContainers");
    let of = |p: &Pod| p.spec.as_ref().and_then(|s| s.ephemeral_containers.clone()).unwrap_or_default();
    let new = of(pod);
    for before in of(old) {
        match new.iter().find(|c| c.name == before.name) {
            None => {
                let detail = format!("existing ephemeral containers {:?} may not be removed\n", before.name);
                errors.forbidden(&path, &detail);
            }
            Some(now) if *now != before => {
                let changes = differences(&json!(before), &json!(now), &before.name);
                let detail = format!("existing ephemeral containers {:?} may not be changed\n{changes}", before.name);
                errors.forbidden(&path, &detail);
            }
            Some(_) => {}
        }
    }
    errors
}

/// For the `resize` subresource: everything but resources and resize policies is as it was. Where containers were added,
/// removed or renamed the pod is left for [`validate_resize`] to refuse.
pub(super) fn prepare_resize(pod: &mut Pod, old: &Pod) {
    let (Some(new), Some(before)) = (&pod.spec, &old.spec) else { return };
    let names = |c: &[Container]| c.iter().map(|c| c.name.clone()).collect::<Vec<_>>();
    let (init, old_init) =
        (new.init_containers.as_deref().unwrap_or_default(), before.init_containers.as_deref().unwrap_or_default());
    if names(&new.containers) != names(&before.containers) || names(init) != names(old_init) {
        pod.status.clone_from(&old.status);
        return;
    }
    let mut spec = before.clone();
    let wanted = new.containers.iter().chain(init);
    for (c, w) in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()).zip(wanted) {
        c.resources = w.resources.clone();
        c.resize_policy = w.resize_policy.clone();
    }
    spec.resources = new.resources.clone();
    pod.spec = Some(spec);
    pod.status.clone_from(&old.status);
    reset_metadata(pod, old);
    bump_generation(pod, old);
}

/// Field errors of the `resize` subresource.
#[must_use]
pub(super) fn validate_resize(pod: &Pod, old: &Pod) -> ErrorList {
    let mut errors = validate_metadata_and_spec(pod);
    let (new, before) = (pod.spec.clone().unwrap_or_default(), old.spec.clone().unwrap_or_default());
    let refused = if old.metadata.annotation(MIRROR_ANNOTATION).is_some() {
        Some("static pods cannot be resized")
    } else if before.os.as_ref().is_some_and(|o| o.name == "windows") {
        Some("windows pods cannot be resized")
    } else {
        None
    };
    if let Some(why) = refused {
        let mut only = ErrorList::default();
        only.forbidden(&Path::new("[]"), why);
        return only;
    }
    let path = spec_path();
    let class =
        old.status.as_ref().map(|s| text(&s.qos_class)).filter(|c| !c.is_empty()).unwrap_or_else(|| qos_class(&before));
    if class != qos_class(&new) {
        errors.invalid(&path, qos_class(&new), "Pod QOS Class may not change as a result of resizing");
    }
    let init =
        (new.init_containers.as_deref().unwrap_or_default(), before.init_containers.as_deref().unwrap_or_default());
    // What follows compares containers by their place.
    let in_order = errors.0.len();
    validate_order(&new.containers, &before.containers, "containers", &path, &mut errors);
    validate_order(init.0, init.1, "initContainers", &path, &mut errors);
    if errors.0.len() > in_order {
        return errors;
    }
    for (i, (c, o)) in init.0.iter().zip(init.1).enumerate().filter(|(_, (_, o))| is_sidecar(o)) {
        validate_container_resize(c, o, &path.child("initContainers").index(i).child("resources"), &mut errors);
    }
    for (i, (c, o)) in new.containers.iter().zip(&before.containers).enumerate() {
        validate_container_resize(c, o, &path.child("containers").index(i).child("resources"), &mut errors);
    }
    let mut rest = new.clone();
    for (c, o) in rest.containers.iter_mut().zip(&before.containers) {
        put_back_cpu_and_memory(c, o);
        if c != o {
            errors.forbidden(&path, "only cpu and memory resources are mutable");
        }
    }
    for (c, o) in rest.init_containers.iter_mut().flatten().zip(before.init_containers.iter().flatten()) {
        if is_sidecar(o) {
            put_back_cpu_and_memory(c, o);
        }
        if c != o {
            let what = if is_sidecar(o) {
                "only cpu and memory resources for sidecar containers are mutable"
            } else {
                "resources for non-sidecar init containers are immutable"
            };
            errors.forbidden(&path, what);
        }
    }
    rest.resources = before.resources.clone();
    if errors.is_empty() && !semantically_equal(&rest, &before) {
        errors.forbidden(&path, "only cpu and memory resources are mutable");
    }
    errors
}

fn validate_order(new: &[Container], old: &[Container], field: &str, path: &Path, errors: &mut ErrorList) {
    let path = path.child(field);
    if new.len() != old.len() {
        return errors.forbidden(&path, &format!("{field} may not be added or removed on resize"));
    }
    for (i, _) in new.iter().zip(old).enumerate().filter(|(_, (new, old))| new.name != old.name) {
        let detail = format!("{field} may not be renamed or reordered on resize");
        errors.forbidden(&path.index(i).child("name"), &detail);
    }
}

fn lists(c: &Container) -> (ResourceList, ResourceList) {
    let r = c.resources.clone().unwrap_or_default();
    (r.requests.unwrap_or_default(), r.limits.unwrap_or_default())
}

fn validate_container_resize(new: &Container, old: &Container, path: &Path, errors: &mut ErrorList) {
    let ((requests, limits), (old_requests, old_limits)) = (lists(new), lists(old));
    for (field, singular, now, before) in
        [("requests", "requests", &requests, &old_requests), ("limits", "limits", &limits, &old_limits)]
    {
        if before.keys().any(|k| !now.contains_key(k)) {
            errors.forbidden(&path.child(field), &format!("resource {singular} cannot be removed"));
        }
    }
}

fn put_back_cpu_and_memory(c: &mut Container, old: &Container) {
    let ((mut requests, mut limits), (old_requests, old_limits)) = (lists(c), lists(old));
    for (now, before) in [(&mut requests, &old_requests), (&mut limits, &old_limits)] {
        for name in ["cpu", "memory"] {
            match before.get(name) {
                Some(q) => now.insert(name.to_owned(), q.clone()),
                None => now.remove(name),
            };
        }
    }
    let before = old.resources.clone().unwrap_or_default();
    let some = |list: ResourceList, was: &Option<ResourceList>| (!list.is_empty() || was.is_some()).then_some(list);
    let claims = c.resources.as_ref().and_then(|r| r.claims.clone());
    let r = ResourceRequirements {
        requests: some(requests, &before.requests),
        limits: some(limits, &before.limits),
        claims,
    };
    c.resources = (old.resources.is_some() || r != ResourceRequirements::default()).then_some(r);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::pod::default_pod;
    use crate::kind::Kind;
    use serde_json::Value;

    fn pod(spec: Value) -> Pod {
        let mut full = json!({"containers": [{"name": "c", "image": "i:1"}]});
        for (k, v) in spec.as_object().unwrap() {
            full[k] = v.clone();
        }
        let mut p = <Pod as Kind>::from_value(json!({"metadata": {"name": "p"}, "spec": full})).unwrap();
        default_pod(&mut p);
        p
    }

    fn texts(errors: &ErrorList) -> Vec<String> {
        errors.0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn ephemeral_containers_are_only_added() {
        let e = |name: &str, image: &str| json!({"name": name, "image": image});
        let old = pod(json!({"ephemeralContainers": [e("a", "i:1")]}));
        let mut new = pod(json!({"hostname": "ignored", "ephemeralContainers": [e("a", "i:1"), e("b", "i:1")]}));
        prepare_ephemeral_containers(&mut new, &old);
        assert_eq!(new.spec.as_ref().unwrap().hostname, None);
        assert!(validate_ephemeral_containers(&new, &old).is_empty());
        let changed = pod(json!({"ephemeralContainers": [e("a", "i:2")]}));
        assert_eq!(
            texts(&validate_ephemeral_containers(&changed, &old)),
            [
                "spec.ephemeralContainers: Forbidden: existing ephemeral containers \"a\" may not be changed\n- a.image: \"i:1\"\n+ a.image: \
             \"i:2\""
            ]
        );
        assert_eq!(
            texts(&validate_ephemeral_containers(&pod(json!({})), &old)),
            ["spec.ephemeralContainers: Forbidden: existing ephemeral containers \"a\" may not be removed\n"]
        );
    }

    #[test]
    fn containers_keep_their_places() {
        let of = |names: &[&str]| {
            let containers: Vec<Value> = names.iter().map(|n| json!({"name": n, "image": "i:1"})).collect();
            pod(json!({"containers": containers}))
        };
        let old = of(&["a", "b"]);
        let told = |names: &[&str]| {
            let mut new = of(names);
            prepare_resize(&mut new, &old);
            texts(&validate_resize(&new, &old))
        };
        assert_eq!(
            told(&["b", "a"]),
            [
                "spec.containers[0].name: Forbidden: containers may not be renamed or reordered on resize",
                "spec.containers[1].name: Forbidden: containers may not be renamed or reordered on resize",
            ]
        );
        assert_eq!(told(&["a"]), ["spec.containers: Forbidden: containers may not be added or removed on resize"]);
    }

    #[test]
    fn resizing_changes_cpu_and_memory() {
        let sized = |requests: Value, limits: Value| {
            pod(
                json!({"containers": [{"name": "c", "image": "i:1", "resources": {"requests": requests, "limits": limits}}]}),
            )
        };
        let old = sized(json!({"cpu": "1", "memory": "1Gi"}), json!({"cpu": "2", "memory": "2Gi"}));
        let cases = [
            (sized(json!({"cpu": "2", "memory": "1Gi"}), json!({"cpu": "3", "memory": "3Gi"})), vec![]),
            (sized(json!({"cpu": "1", "memory": "1Gi"}), json!({"cpu": "2", "memory": "1Gi"})), vec![]),
            (
                sized(json!({"cpu": "1", "memory": "1Gi"}), json!({"cpu": "2"})),
                vec!["spec.containers[0].resources.limits: Forbidden: resource limits cannot be removed"],
            ),
            (
                sized(json!({"cpu": "2", "memory": "2Gi"}), json!({"cpu": "2", "memory": "2Gi"})),
                vec!["spec: Invalid value: \"Guaranteed\": Pod QOS Class may not change as a result of resizing"],
            ),
            (
                sized(
                    json!({"cpu": "1", "memory": "1Gi", "ephemeral-storage": "1Gi"}),
                    json!({"cpu": "2", "memory": "2Gi"}),
                ),
                vec!["spec: Forbidden: only cpu and memory resources are mutable"],
            ),
        ];
        for (mut new, want) in cases {
            prepare_resize(&mut new, &old);
            assert_eq!(texts(&validate_resize(&new, &old)), want);
        }
    }
}
