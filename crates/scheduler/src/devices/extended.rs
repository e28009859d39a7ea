//! Extended resources that device classes stand for (KEP-5004): a pod that requests `example.com/gpu` where no node's agent
//! has any gets a claim made of its requests.

use gantry_api::core::pod::validate::resources::is_extended;
use gantry_api::k8s_openapi::api::core::v1::{Container, ContainerExtendedResourceRequest, Pod};
use gantry_api::k8s_openapi::api::resource::v1::{DeviceClass, DeviceRequest, ExactDeviceRequest, ResourceClaim};
use gantry_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use gantry_api::meta::object::Meta;
use gantry_api::meta::quantity::Amount;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Begins the resource that each class is without being told so.
const IMPLICIT: &str = "deviceclass.resource.kubernetes.io/";
/// Marks the claims made for extended resources.
const ANNOTATION: &str = "resource.kubernetes.io/extended-resource-claim";

/// Classes by the resources they stand for.
pub type Backed = BTreeMap<String, Arc<DeviceClass>>;

/// Whether devices may stand for the resource at all.
#[must_use]
pub fn may_be_backed(resource: &str) -> bool {
    is_extended(resource) || resource.starts_with(IMPLICIT)
}

/// Which class stands for which resource. Of several the newest does, or the first by name.
#[must_use]
pub fn backed(classes: Vec<Arc<DeviceClass>>) -> Backed {
    let mut out = Backed::new();
    let newness = |c: &DeviceClass| c.metadata.creation_timestamp.as_ref().map(|t| t.0);
    for class in classes {
        out.insert(format!("{IMPLICIT}{}", class.metadata.name()), class.clone());
        let Some(name) = class.spec.as_ref().and_then(|s| s.extended_resource_name.clone()) else { continue };
        let before = out.get(&name).is_none_or(|known| {
            let (new, old) = (newness(&class), newness(known));
            new > old || (new == old && class.metadata.name() < known.metadata.name())
        });
        if before {
            out.insert(name, class);
        }
    }
    out
}

/// The claim that was made for the pod's extended resources, if any.
pub fn find<'a>(pod: &Pod, claims: impl Iterator<Item = &'a Arc<ResourceClaim>>) -> Option<Arc<ResourceClaim>> {
    let owned = |c: &ResourceClaim| {
        let owners = c.metadata.owner_references.iter().flatten();
        let mut owners = owners.filter(|o| o.controller == Some(true));
        owners.any(|o| o.name == pod.metadata.name() && o.uid == pod.metadata.uid())
    };
    let mut claims = claims;
    claims.find(|c| c.metadata.annotation(ANNOTATION) == Some("true") && owned(c)).cloned()
}

/// The claim for these requests, as it is created.
#[must_use]
pub fn claim(pod: &Pod, requests: Vec<DeviceRequest>) -> ResourceClaim {
    let mut claim = ResourceClaim {
        metadata: ObjectMeta {
            namespace: pod.metadata.namespace.clone(),
            generate_name: Some(format!("{}-extended-resources-", pod.metadata.name())),
            annotations: Some([(ANNOTATION.to_owned(), "true".to_owned())].into()),
            owner_references: Some(vec![OwnerReference {
                api_version: "v1".to_owned(),
                kind: "Pod".to_owned(),
                name: pod.metadata.name().to_owned(),
                uid: pod.metadata.uid().to_owned(),
                controller: Some(true),
                block_owner_deletion: None,
            }]),
            ..ObjectMeta::default()
        },
        ..ResourceClaim::default()
    };
    claim.spec.get_or_insert_default().devices.get_or_insert_default().requests = Some(requests);
    claim
}

/// The devices a pod needs for these resources, and which request serves which container.
///
/// Containers that run to their end before the others start share one request, as large as the largest of them needs
/// besides the devices of containers that start later.
#[must_use]
pub fn requests(pod: &Pod, backed: &Backed) -> (Vec<DeviceRequest>, Vec<ContainerExtendedResourceRequest>) {
    let spec = pod.spec.as_ref();
    let first = spec.and_then(|s| s.init_containers.as_deref()).unwrap_or_default();
    let containers: Vec<&Container> = first.iter().chain(spec.iter().flat_map(|s| &s.containers)).collect();
    let is_short = |i: usize| i < first.len() && containers[i].restart_policy.as_deref() != Some("Always");
    let (mut requests, mut mappings) = (Vec::new(), Vec::new());
    for (resource, class) in backed {
        let mut long: Vec<Option<DeviceRequest>> = vec![None; containers.len()];
        for (i, container) in containers.iter().enumerate().filter(|(i, _)| !is_short(*i)) {
            let (request, mapped) = request(i, container, resource, class.metadata.name(), &[]);
            long[i] = request;
            mappings.extend(mapped);
        }
        let mut greatest: Option<DeviceRequest> = None;
        let (mut names, mut short) = (Vec::new(), Vec::new());
        for (i, container) in containers.iter().enumerate().filter(|(i, _)| is_short(*i)) {
            let (request, mapped) = request(i, container, resource, class.metadata.name(), &long[i..]);
            short.extend(mapped);
            let Some(request) = request else { continue };
            names.push(request.name.clone());
            if greatest.as_ref().is_none_or(|g| count(g) < count(&request)) {
                greatest = Some(request);
            }
        }
        if let Some(greatest) = greatest {
            for mapping in short.iter_mut().filter(|m| names.contains(&m.request_name)) {
                mapping.request_name.clone_from(&greatest.name);
            }
            requests.push(greatest);
        }
        requests.extend(long.into_iter().flatten());
        mappings.extend(short);
    }
    requests.sort_by(|a: &DeviceRequest, b| a.name.cmp(&b.name));
    (requests, mappings)
}

fn count(request: &DeviceRequest) -> i64 {
    request.exactly.as_ref().and_then(|r| r.count).unwrap_or(0)
}

/// What one container needs besides what it may use of others, and where it finds all of it.
fn request(
    index: usize,
    container: &Container,
    resource: &str,
    class: &str,
    reusable: &[Option<DeviceRequest>],
) -> (Option<DeviceRequest>, Vec<ContainerExtendedResourceRequest>) {
    let mut mappings = Vec::new();
    let list = container.resources.as_ref().and_then(|r| r.requests.as_ref());
    let wanted = list.and_then(|l| l.get(resource)).and_then(|q| Amount::parse(&q.0).ok());
    let Some(wanted) = wanted.filter(|a| a.is_integer() && !a.is_zero()).map(|a| a.value()) else {
        return (None, mappings);
    };
    let mapping = |request: &str| ContainerExtendedResourceRequest {
        container_name: container.name.clone(),
        resource_name: resource.to_owned(),
        request_name: request.to_owned(),
    };
    let mut had = 0;
    for other in reusable.iter().flatten() {
        had += count(other);
        mappings.push(mapping(&other.name));
        if had >= wanted {
            return (None, mappings);
        }
    }
    // The number of the resource among all that the container requests, by name.
    let number = list.into_iter().flat_map(BTreeMap::keys).position(|name| name == resource).unwrap_or(0);
    let name = format!("container-{index}-request-{number}");
    mappings.push(mapping(&name));
    let exactly = ExactDeviceRequest {
        device_class_name: class.to_owned(),
        allocation_mode: Some("ExactCount".to_owned()),
        count: Some(wanted - had),
        ..ExactDeviceRequest::default()
    };
    (Some(DeviceRequest { name, exactly: Some(exactly), first_available: None }), mappings)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn class(name: &str, resource: &str, second: i64) -> Arc<DeviceClass> {
        let created = format!("2026-01-01T00:00:0{second}Z");
        let value = json!({"metadata": {"name": name, "creationTimestamp": created},
            "spec": {"extendedResourceName": resource}});
        Arc::new(serde_json::from_value(value).unwrap())
    }

    #[test]
    fn the_newest_class_stands_for_a_resource() {
        let found = backed(vec![
            class("b", "x.io/gpu", 1),
            class("a", "x.io/gpu", 1),
            class("old", "x.io/gpu", 0),
            class("c", "x.io/nic", 0),
        ]);
        let names: Vec<(&str, &str)> = found.iter().map(|(r, c)| (r.as_str(), c.metadata.name())).collect();
        assert_eq!(
            names,
            [
                ("deviceclass.resource.kubernetes.io/a", "a"),
                ("deviceclass.resource.kubernetes.io/b", "b"),
                ("deviceclass.resource.kubernetes.io/c", "c"),
                ("deviceclass.resource.kubernetes.io/old", "old"),
                ("x.io/gpu", "a"),
                ("x.io/nic", "c"),
            ]
        );
        assert!(may_be_backed("x.io/gpu") && may_be_backed("deviceclass.resource.kubernetes.io/a"));
        assert!(!may_be_backed("cpu") && !may_be_backed("hugepages-2Mi"));
    }

    #[test]
    fn containers_share_what_they_do_not_use_together() {
        let container = |name: &str, n: i64, more: Value| {
            let requests = json!({"cpu": "1", "x.io/gpu": n.to_string()});
            let mut c = json!({"name": name, "resources": {"requests": requests}});
            c.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            c
        };
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": {
            "initContainers": [container("i", 2, json!({})), container("s", 1, json!({"restartPolicy": "Always"})),
                container("j", 5, json!({}))],
            "containers": [container("a", 1, json!({})), container("b", 0, json!({}))]}}))
        .unwrap();
        let (found, mappings) = requests(&pod, &backed(vec![class("a", "x.io/gpu", 0)]));
        let shown: Vec<(String, i64)> = found.iter().map(|r| (r.name.clone(), count(r))).collect();
        let want = [("container-1-request-1", 1), ("container-2-request-1", 4), ("container-3-request-1", 1)];
        assert_eq!(shown, want.map(|(name, n)| (name.to_owned(), n)));
        let mapped: Vec<String> = mappings.iter().map(|m| format!("{}:{}", m.container_name, m.request_name)).collect();
        assert_eq!(
            mapped,
            [
                "s:container-1-request-1",
                "a:container-3-request-1",
                "i:container-1-request-1",
                "i:container-3-request-1",
                "j:container-3-request-1",
                "j:container-2-request-1",
            ]
        );
    }
}
