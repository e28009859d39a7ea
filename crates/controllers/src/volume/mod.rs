//! Storage: what binds claims to volumes, makes volumes on the nodes, keeps what is in use, and makes the claims of
//! ephemeral volumes.

pub mod binder;
pub mod ephemeral;
pub mod expand;
pub mod protection;
pub mod provisioner;

use gantry_api::meta::object::Meta;
use gantry_api::storage::binding::claim_name;
use k8s_openapi::api::core::v1::Pod;

/// Keys `namespace/name` of the claims a pod uses.
#[must_use]
pub fn claims_of(pod: &Pod) -> Vec<String> {
    let volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
    volumes
        .filter_map(|v| claim_name(pod, v))
        .map(|name| gantry_reconcile::store::key(pod.metadata.namespace(), &name))
        .collect()
}
