//! The parameters of a binding: objects of the policy's `paramKind`.

use super::Binding;
use crate::cluster::Cluster;
use gantry_api::k8s_openapi::api::admissionregistration::v1::ParamKind;
use gantry_api::kind::{Object, Resource};
use gantry_api::meta::labels::Selector;
use gantry_api::meta::object::split_api_version;
use serde_json::Value;
use std::sync::Arc;

/// The resource of a `paramKind`.
///
/// # Errors
/// Where no such kind is served.
pub(super) fn resource_of_kind(kind: &ParamKind, cluster: &Cluster) -> Result<&'static dyn Resource, String> {
    let name = kind.kind.as_deref().unwrap_or_default();
    let (group, version) = split_api_version(kind.api_version.as_deref().unwrap_or_default());
    let found = cluster.objects.served().into_iter().find(|r| {
        let i = r.info();
        (i.group, i.version, i.kind) == (group, version, name) && !i.virtual_only
    });
    found.ok_or_else(|| format!("failed to find resource referenced by paramKind: '{group}/{version}, Kind={name}'"))
}

/// The parameters a binding is evaluated with, one after the other; None among them is an evaluation without. Empty
/// where there are none and the binding does not mind.
///
/// # Errors
/// What is wrong with the binding.
pub(super) async fn collect(
    binding: &Binding,
    resource: Option<&'static dyn Resource>,
    namespace: &str,
    cluster: &Cluster,
) -> Result<Vec<Option<Value>>, String> {
    let (Some(resource), Some(wanted)) = (resource, &binding.params) else { return Ok(vec![None]) };
    let given = wanted.namespace.as_deref().unwrap_or_default();
    let place = match (resource.info().namespaced, given) {
        (true, "") if namespace.is_empty() => {
            return Err("cannot use namespaced paramRef in policy binding that matches cluster-scoped resources".into());
        }
        (true, "") => namespace,
        (false, "") => "",
        (true, given) => given,
        (false, _) => return Err("paramRef.namespace must not be provided for a cluster-scoped `paramKind`".into()),
    };
    let found: Vec<Arc<dyn Object>> = match (wanted.name.as_deref().unwrap_or_default(), &wanted.selector) {
        ("", None) => return Err("one of name or selector must be provided".into()),
        ("", Some(selector)) => {
            let selector = Selector::from_label_selector(Some(selector))?;
            let mut all = cluster.objects.list(resource, place).await.map_err(|e| e.message)?;
            all.retain(|o| selector.matches_optional(o.meta().labels.as_ref()));
            all
        }
        (_, Some(_)) => return Err("paramRef.name and paramRef.selector are mutually exclusive".into()),
        (name, None) => {
            let mut found = cluster.objects.get(resource, place, name, false).await.map_err(|e| e.message)?;
            if found.is_none() {
                found = cluster.objects.get(resource, place, name, true).await.map_err(|e| e.message)?;
            }
            found.into_iter().collect()
        }
    };
    if found.is_empty() && wanted.parameter_not_found_action.as_deref() == Some("Deny") {
        return Err("no params found for policy binding with `Deny` parameterNotFoundAction".into());
    }
    Ok(found.iter().map(|o| Some(shown(resource, o.as_ref()))).collect())
}

/// A parameter as expressions see it: upstream's typed objects do not tell their type.
fn shown(resource: &dyn Resource, object: &dyn Object) -> Value {
    let mut value = object.to_value();
    if let Some(fields) = value.as_object_mut().filter(|_| resource.learned().is_none()) {
        fields.remove("apiVersion");
        fields.remove("kind");
    }
    value
}
