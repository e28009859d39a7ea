//! What it takes to write claims of devices besides the right to write claims: admin access needs a label of the
//! namespace (KEP-5018), and the parts of a claim's status belong to the scheduler and to the drivers (KEP-4817).

use super::write::Target;
use crate::authn::{EXTRA_NODE_NAME, UserInfo, service_account};
use crate::authz::{Attributes, Authorizer, Decision};
use crate::cluster::{Cluster, resource_of};
use gantry_api::k8s_openapi::api::core::v1::Namespace;
use gantry_api::k8s_openapi::api::resource::v1::{
    AllocatedDeviceStatus, AllocationResult, DeviceClaim, ResourceClaim, ResourceClaimStatus, ResourceClaimTemplate,
};
use gantry_api::kind::{Object, downcast};
use gantry_api::meta::field::{ErrorList, Path};
use gantry_api::meta::object::{Meta, semantically_equal};
use std::collections::BTreeSet;

/// Label of namespaces whose claims may have admin access.
const ADMIN_ACCESS: &str = "resource.kubernetes.io/admin-access";

/// Field errors of what the writer or the namespace may not have.
pub(super) async fn errors(
    target: &Target<'_>,
    verb: &str,
    object: &dyn Object,
    old: Option<&dyn Object>,
    cluster: &Cluster,
) -> ErrorList {
    let namespace = object.meta().namespace();
    if let Some(template) = downcast::<ResourceClaimTemplate>(object) {
        let spec = template.spec.as_ref().and_then(|s| s.spec.as_ref()).filter(|_| old.is_none());
        return admin_access(requested(spec.and_then(|s| s.devices.as_ref())), namespace, cluster).await;
    }
    let Some(claim) = downcast::<ResourceClaim>(object) else { return ErrorList::default() };
    let Some(old) = old.and_then(downcast::<ResourceClaim>) else {
        let spec = claim.spec.as_ref();
        return admin_access(requested(spec.and_then(|s| s.devices.as_ref())), namespace, cluster).await;
    };
    if target.subresource != "status" {
        return ErrorList::default();
    }
    let status = |c: &ResourceClaim| c.status.clone().unwrap_or_default();
    let (new, old) = (status(claim), status(old));
    let had = granted(old.allocation.as_ref()).is_some();
    let mut errors = admin_access(granted(new.allocation.as_ref()).filter(|_| !had), namespace, cluster).await;
    if let Some(authorizer) = target.authorizer {
        let asked = Asked { target, verb, authorizer };
        asked.for_binding(&new, &old, &mut errors).await;
        asked.for_devices(&new, &old, &mut errors).await;
    }
    errors
}

/// The first request of admin access.
fn requested(claim: Option<&DeviceClaim>) -> Option<Path> {
    let requests = claim?.requests.as_deref()?;
    let i = requests.iter().position(|r| r.exactly.as_ref().is_some_and(|x| x.admin_access == Some(true)))?;
    Some(Path::new("spec").child("devices").child("requests").index(i).child("adminAccess"))
}

/// The first result with admin access.
fn granted(allocation: Option<&AllocationResult>) -> Option<Path> {
    let results = allocation?.devices.as_ref()?.results.as_deref()?;
    let i = results.iter().position(|r| r.admin_access == Some(true))?;
    let devices = Path::new("status").child("allocation").child("devices");
    Some(devices.child("results").index(i).child("adminAccess"))
}

async fn admin_access(path: Option<Path>, namespace: &str, cluster: &Cluster) -> ErrorList {
    let mut errors = ErrorList::default();
    let Some(path) = path else { return errors };
    let found = cluster.objects.labels(resource_of::<Namespace>(), "", namespace, &[ADMIN_ACCESS]).await;
    let why = match found {
        Ok(Some(labels)) => {
            if labels.first().and_then(Option::as_deref) != Some("true") {
                let why = format!(
                    "admin access to devices requires the `{ADMIN_ACCESS}: true` label on the containing namespace"
                );
                errors.forbidden(&path, &why);
            }
            return errors;
        }
        Ok(None) => format!("namespaces {namespace:?} not found"),
        Err(e) => e.message,
    };
    errors.internal(&path, &format!("could not retrieve namespace to verify admin access: {why}"));
    errors
}

/// The node that an allocation is for, where it is for one.
fn node_of(allocation: Option<&AllocationResult>) -> Option<&str> {
    let [term] = allocation?.node_selector.as_ref()?.node_selector_terms.as_slice() else { return None };
    let [field] = term.match_fields.as_deref().unwrap_or_default() else { return None };
    let plain = term.match_expressions.as_ref().is_none_or(Vec::is_empty);
    let [name] = field.values.as_deref().unwrap_or_default() else { return None };
    (plain && field.key == "metadata.name" && field.operator == "In").then_some(name.as_str())
}

/// Whether the user is a service account of a pod on this node.
fn is_on(user: &UserInfo, node: Option<&str>) -> bool {
    let told = user.extra.get(EXTRA_NODE_NAME).map(Vec::as_slice).unwrap_or_default();
    let [name] = told else { return false };
    service_account::split_username(&user.username).is_some() && node == Some(name.as_str())
}

/// The drivers whose entries are not as they were, in order.
fn changed_drivers(new: &ResourceClaimStatus, old: &ResourceClaimStatus) -> BTreeSet<String> {
    let key = |d: &AllocatedDeviceStatus| (d.driver.clone(), d.pool.clone(), d.device.clone(), d.share_id.clone());
    let (new, old) = (new.devices.as_deref().unwrap_or_default(), old.devices.as_deref().unwrap_or_default());
    let differs = |d: &&AllocatedDeviceStatus, others: &[AllocatedDeviceStatus]| {
        others.iter().find(|o| key(o) == key(d)).is_none_or(|o| !semantically_equal(o, *d))
    };
    let written = new.iter().filter(|d| differs(d, old));
    let removed = old.iter().filter(|d| !new.iter().any(|n| key(n) == key(d)));
    written.chain(removed).map(|d| d.driver.clone()).collect()
}

/// Who asks for what.
struct Asked<'a> {
    target: &'a Target<'a>,
    verb: &'a str,
    authorizer: &'a dyn Authorizer,
}

impl Asked<'_> {
    /// Why the user may not.
    async fn refused(&self, verb: &str, subresource: &str, namespace: &str, name: &str) -> Option<String> {
        let info = self.target.resource.info();
        let attributes = Attributes {
            user: self.target.user.clone(),
            verb: verb.to_owned(),
            namespace: namespace.to_owned(),
            group: info.group.to_owned(),
            version: info.version.to_owned(),
            resource: info.plural.to_owned(),
            subresource: subresource.to_owned(),
            name: name.to_owned(),
            is_resource: true,
            ..Default::default()
        };
        match self.authorizer.authorize(&attributes).await {
            Decision::Allow(_) => None,
            Decision::Deny(why) | Decision::NoOpinion(why) | Decision::Failed { why, .. } => {
                Some(attributes.forbidden(&why).message)
            }
        }
    }

    async fn for_binding(&self, new: &ResourceClaimStatus, old: &ResourceClaimStatus, errors: &mut ErrorList) {
        let same = semantically_equal(&new.allocation, &old.allocation)
            && semantically_equal(&new.reserved_for, &old.reserved_for);
        if same {
            return;
        }
        if let Some(why) = self.refused(self.verb, "binding", "", "").await {
            let verb = self.verb;
            let detail = format!(
                "changing status.allocation or status.reservedFor requires resource=\"resourceclaims/binding\", \
                 verb=\"{verb}\" permission: {why}"
            );
            errors.forbidden(&Path::new("status"), &detail);
        }
    }

    async fn for_devices(&self, new: &ResourceClaimStatus, old: &ResourceClaimStatus, errors: &mut ErrorList) {
        let mut verbs = vec![format!("arbitrary-node:{}", self.verb)];
        if is_on(self.target.user, node_of(new.allocation.as_ref())) {
            verbs.insert(0, format!("associated-node:{}", self.verb));
        }
        for driver in changed_drivers(new, old) {
            let mut refusals = Vec::new();
            for verb in &verbs {
                refusals.extend(self.refused(verb, "driver", self.target.namespace, &driver).await);
            }
            // Any of the verbs is enough.
            if let Some(why) = refusals.first().filter(|_| refusals.len() == verbs.len()) {
                let verbs = verbs.join(" ");
                let detail = format!(
                    "changing status.devices requires resource=\"resourceclaims/driver\", verb=\"[{verbs}]\" \
                     permission: {why}"
                );
                errors.forbidden(&Path::new("status").child("devices"), &detail);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn drivers_answer_for_what_they_wrote() {
        let status =
            |devices: Value| -> ResourceClaimStatus { serde_json::from_value(json!({"devices": devices})).unwrap() };
        let device = |driver: &str, data: Value| json!({"driver": driver, "pool": "p", "device": "d", "data": data});
        let old = status(json!([device("a", json!({})), device("b", json!({})), device("c", json!({}))]));
        let new = status(json!([device("a", json!({})), device("b", json!({"x": 1})), device("d", json!({}))]));
        let changed: Vec<String> = changed_drivers(&new, &old).into_iter().collect();
        assert_eq!(changed, ["b", "c", "d"]);
    }

    #[test]
    fn the_node_of_an_allocation() {
        let of = |term: Value| {
            let a: AllocationResult =
                serde_json::from_value(json!({"nodeSelector": {"nodeSelectorTerms": [term]}})).unwrap();
            node_of(Some(&a)).map(ToOwned::to_owned)
        };
        let field = json!({"key": "metadata.name", "operator": "In", "values": ["n"]});
        assert_eq!(of(json!({"matchFields": [field]})), Some("n".to_owned()));
        let two = json!({"key": "metadata.name", "operator": "In", "values": ["n", "m"]});
        assert_eq!(of(json!({"matchFields": [two]})), None);
        assert_eq!(of(json!({"matchFields": [field], "matchExpressions": [{"key": "k", "operator": "Exists"}]})), None);
        let user = |name: &str| UserInfo {
            extra: [(EXTRA_NODE_NAME.to_owned(), vec!["n".to_owned()])].into(),
            ..UserInfo::new(name, &[])
        };
        assert!(is_on(&user("system:serviceaccount:a:b"), Some("n")));
        assert!(!is_on(&user("system:serviceaccount:a:b"), Some("m")) && !is_on(&user("someone"), Some("n")));
    }
}
