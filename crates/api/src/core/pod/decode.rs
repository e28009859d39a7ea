//! Quantities inside pods and templates: checked when decoded and kept in canonical form, as the API server's codec does.

use crate::meta::quantity::{canonicalize, canonicalize_list};
use k8s_openapi::api::core::v1::{EnvVar, PodSpec, ResourceRequirements, Volume};

fn requirements(r: Option<&mut ResourceRequirements>) -> Result<(), String> {
    let Some(r) = r else { return Ok(()) };
    canonicalize_list(r.limits.as_mut())?;
    canonicalize_list(r.requests.as_mut())
}

fn env<'a>(vars: impl Iterator<Item = &'a mut EnvVar>) -> Result<(), String> {
    vars.filter_map(|e| e.value_from.as_mut()?.resource_field_ref.as_mut()?.divisor.as_mut()).try_for_each(canonicalize)
}

fn volume(v: &mut Volume) -> Result<(), String> {
    if let Some(limit) = v.empty_dir.as_mut().and_then(|e| e.size_limit.as_mut()) {
        canonicalize(limit)?;
    }
    let projected =
        v.projected.iter_mut().flat_map(|p| p.sources.iter_mut().flatten()).filter_map(|s| s.downward_api.as_mut());
    for item in v
        .downward_api
        .iter_mut()
        .flat_map(|d| d.items.iter_mut().flatten())
        .chain(projected.flat_map(|d| d.items.iter_mut().flatten()))
    {
        if let Some(divisor) = item.resource_field_ref.as_mut().and_then(|r| r.divisor.as_mut()) {
            canonicalize(divisor)?;
        }
    }
    if let Some(r) =
        v.ephemeral.as_mut().and_then(|e| e.volume_claim_template.as_mut()).and_then(|t| t.spec.resources.as_mut())
    {
        canonicalize_list(r.limits.as_mut())?;
        canonicalize_list(r.requests.as_mut())?;
    }
    Ok(())
}

/// Puts every quantity of a pod spec in canonical form. Kinds with a pod template call this when they decode.
///
/// # Errors
/// The sentence for the first value that is no quantity.
pub fn canonicalize_pod_spec(spec: &mut PodSpec) -> Result<(), String> {
    for c in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
        requirements(c.resources.as_mut())?;
        env(c.env.iter_mut().flatten())?;
    }
    for c in spec.ephemeral_containers.iter_mut().flatten() {
        requirements(c.resources.as_mut())?;
        env(c.env.iter_mut().flatten())?;
    }
    spec.volumes.iter_mut().flatten().try_for_each(volume)?;
    canonicalize_list(spec.overhead.as_mut())?;
    requirements(spec.resources.as_mut())
}
