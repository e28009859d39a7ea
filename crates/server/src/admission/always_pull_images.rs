//! AlwaysPullImages: images are pulled for every pod anew, so that nobody runs an image he could not pull himself only
//! because it is on the node.

use super::{Attributes, MutatingPlugin, Operation, ValidatingPlugin};
use crate::cluster::Cluster;
use async_trait::async_trait;
use gantry_api::k8s_openapi::api::core::v1::{Pod, PodSpec};
use gantry_api::meta::field::{ErrorList, Path};
use gantry_api::meta::status::ApiError;
use std::collections::BTreeSet;

const ALWAYS: &str = "Always";

pub(super) struct AlwaysPullImages;

/// The images of all containers and volumes.
fn images(spec: &PodSpec) -> BTreeSet<&str> {
    let init = spec.init_containers.iter().flatten();
    let containers = init.chain(&spec.containers).filter_map(|c| c.image.as_deref());
    let ephemeral = spec.ephemeral_containers.iter().flatten().filter_map(|c| c.image.as_deref());
    let volumes = spec.volumes.iter().flatten().filter_map(|v| v.image.as_ref()?.reference.as_deref());
    containers.chain(ephemeral).chain(volumes).collect()
}

/// Whether the write brings no image that the pod did not have.
fn brings_nothing(a: &Attributes<'_>) -> bool {
    let spec = |p: Option<&'_ Pod>| p.and_then(|p| p.spec.clone());
    match (spec(a.object_as()), spec(a.old_as())) {
        (Some(new), Some(old)) => images(&new).is_subset(&images(&old)),
        _ => false,
    }
}

fn is_concerned(a: &Attributes<'_>) -> bool {
    matches!(a.operation, Operation::Create | Operation::Update)
        && a.is("", "pods", "")
        && !(a.operation == Operation::Update && brings_nothing(a))
}

/// Refuses a pull policy other than `Always` that something after this plugin has set.
fn check(spec: &PodSpec) -> ErrorList {
    let mut errors = ErrorList::default();
    let at = Path::new("spec");
    let mut check = |path: &Path, policy: Option<&String>| {
        let policy = policy.map_or("", String::as_str);
        if policy != ALWAYS {
            errors.not_supported(path, policy, &[ALWAYS]);
        }
    };
    let of = |list: &str, i: usize| at.child(list).index(i).child("imagePullPolicy");
    for (i, c) in spec.init_containers.iter().flatten().enumerate() {
        check(&of("initContainers", i), c.image_pull_policy.as_ref());
    }
    for (i, c) in spec.containers.iter().enumerate() {
        check(&of("containers", i), c.image_pull_policy.as_ref());
    }
    for (i, c) in spec.ephemeral_containers.iter().flatten().enumerate() {
        check(&of("ephemeralContainers", i), c.image_pull_policy.as_ref());
    }
    for (i, v) in spec.volumes.iter().flatten().enumerate() {
        if let Some(image) = &v.image {
            check(&at.child("volumes").index(i).child("image").child("pullPolicy"), image.pull_policy.as_ref());
        }
    }
    errors
}

#[async_trait]
impl MutatingPlugin for AlwaysPullImages {
    fn name(&self) -> &'static str {
        "AlwaysPullImages"
    }

    async fn admit(&self, a: &mut Attributes<'_>, _: &Cluster) -> Result<(), ApiError> {
        if !is_concerned(a) {
            return Ok(());
        }
        let Some(spec) = a.object_as_mut::<Pod>().and_then(|p| p.spec.as_mut()) else { return Ok(()) };
        let always = || Some(ALWAYS.to_owned());
        for c in spec.init_containers.iter_mut().flatten().chain(&mut spec.containers) {
            c.image_pull_policy = always();
        }
        spec.ephemeral_containers.iter_mut().flatten().for_each(|c| c.image_pull_policy = always());
        for image in spec.volumes.iter_mut().flatten().filter_map(|v| v.image.as_mut()) {
            image.pull_policy = always();
        }
        Ok(())
    }
}

#[async_trait]
impl ValidatingPlugin for AlwaysPullImages {
    fn name(&self) -> &'static str {
        "AlwaysPullImages"
    }

    async fn validate(&self, a: &mut Attributes<'_>, _: &Cluster) -> Result<(), ApiError> {
        if !is_concerned(a) {
            return Ok(());
        }
        let errors = a.object_as::<Pod>().and_then(|p| p.spec.as_ref()).map(check).unwrap_or_default();
        match errors.0.first() {
            Some(first) => Err(a.forbidden(&first.to_string())),
            None => Ok(()),
        }
    }
}
