//! ResourceQuota: how much all objects of a namespace may ask for together.

use crate::apps::workload;
use crate::core::pod::validate::resources::{validate_name, validate_quantity};
use crate::kind::{Column, Context, Kind, ResourceInfo, STATUS};
use crate::meta::field::{ErrorList, Path};
use crate::meta::object::Meta;
use crate::meta::quantity::{ResourceList, canonicalize_list};
use crate::meta::table;
use k8s_openapi::api::core::v1::{ResourceQuota, ResourceQuotaSpec, ResourceQuotaStatus};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// Resources without a domain that a quota can bound.
const STANDARD: &[&str] = &[
    "cpu",
    "memory",
    "ephemeral-storage",
    "requests.cpu",
    "requests.memory",
    "requests.storage",
    "requests.ephemeral-storage",
    "limits.cpu",
    "limits.memory",
    "limits.ephemeral-storage",
    "pods",
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "persistentvolumeclaims",
    "configmaps",
    "services.nodeports",
    "services.loadbalancers",
];
const POD_COMPUTE: &[&str] = &["cpu", "memory", "limits.cpu", "limits.memory", "requests.cpu", "requests.memory"];

fn is_standard(name: &str) -> bool {
    STANDARD.contains(&name) || name.starts_with("hugepages-") || name.starts_with("requests.hugepages-")
}

/// Whether a quota can be told to count only what is in this scope.
#[must_use]
pub fn is_scope(scope: &str) -> bool {
    matches!(
        scope,
        "Terminating"
            | "NotTerminating"
            | "BestEffort"
            | "NotBestEffort"
            | "PriorityClass"
            | "CrossNamespacePodAffinity"
            | "VolumeAttributesClass"
    )
}

/// Whether a quota of the scope can bound the resource.
#[must_use]
pub fn scope_covers(scope: &str, resource: &str) -> bool {
    match scope {
        "BestEffort" => resource == "pods",
        "Terminating" | "NotTerminating" | "NotBestEffort" | "PriorityClass" | "CrossNamespacePodAffinity" => {
            resource == "pods" || POD_COMPUTE.contains(&resource)
        }
        "VolumeAttributesClass" => matches!(resource, "persistentvolumeclaims" | "requests.storage"),
        _ => true,
    }
}

fn canonicalize(q: &mut ResourceQuota) -> Result<(), String> {
    canonicalize_list(q.spec.as_mut().and_then(|s| s.hard.as_mut()))?;
    let Some(status) = &mut q.status else { return Ok(()) };
    canonicalize_list(status.hard.as_mut())?;
    canonicalize_list(status.used.as_mut())
}

impl Kind for ResourceQuota {
    const INFO: ResourceInfo = ResourceInfo {
        short_names: &["quota"],
        subresources: &[STATUS],
        ..ResourceInfo::new("", "v1", "ResourceQuota", "resourcequotas", "resourcequota", true)
    };
    const COLUMNS: &'static [Column] = &[
        workload::NAME,
        workload::column("Request", "string", "What is asked for at least, of how much that may be."),
        workload::column("Limit", "string", "What is allowed at most, of how much that may be."),
        workload::AGE,
    ];
    crate::kind_codec!(canonical: canonicalize);

    fn prepare_for_create(&mut self, _: &Context<'_>) {
        self.status = Some(Default::default());
    }

    fn validate(&self) -> ErrorList {
        validate_spec(&self.spec.clone().unwrap_or_default())
    }

    fn prepare_for_update(&mut self, old: &Self, _: &Context<'_>) {
        self.status.clone_from(&old.status);
    }

    fn validate_update(&self, old: &Self) -> ErrorList {
        let mut e = self.validate();
        let scopes = |q: &Self| -> BTreeSet<String> {
            q.spec.iter().flat_map(|s| s.scopes.clone().unwrap_or_default()).collect()
        };
        if scopes(self) != scopes(old) {
            let now = self.spec.as_ref().and_then(|s| s.scopes.clone());
            e.invalid(&Path::new("spec").child("scopes"), json!(now), "field is immutable");
        }
        e
    }

    fn prepare_for_status_update(&mut self, old: &Self, _: &Context<'_>) {
        self.spec.clone_from(&old.spec);
    }

    fn validate_status_update(&self, _: &Self) -> ErrorList {
        validate_status(&self.status.clone().unwrap_or_default())
    }

    fn cells(&self, now: Timestamp) -> Vec<Value> {
        let status = self.status.clone().unwrap_or_default();
        let (mut requests, mut limits) = (Vec::new(), Vec::new());
        for (name, hard) in status.hard.iter().flatten() {
            let used = status.used.as_ref().and_then(|u| u.get(name)).map_or("0", |q| &q.0);
            let of = if name.starts_with("limits.") { &mut limits } else { &mut requests };
            of.push(format!("{name}: {used}/{}", hard.0));
        }
        vec![
            self.metadata.name().into(),
            requests.join(", ").into(),
            limits.join(", ").into(),
            table::age(&self.metadata, now).into(),
        ]
    }

    fn reset_fields() -> (&'static [&'static [&'static str]], &'static [&'static [&'static str]]) {
        (&[&["status"]], &[&["spec"]])
    }
}

fn validate_list(list: Option<&ResourceList>, path: &Path, e: &mut ErrorList) {
    for (name, q) in list.into_iter().flatten() {
        let path = path.key(name);
        validate_name(name, &path, e);
        if !name.contains('/') && !is_standard(name) {
            e.invalid(&path, name.as_str(), "must be a standard resource for quota");
        }
        validate_quantity(name, q, &path, e);
    }
}

fn validate_status(status: &ResourceQuotaStatus) -> ErrorList {
    let mut e = ErrorList::default();
    let path = Path::new("status");
    validate_list(status.hard.as_ref(), &path.child("hard"), &mut e);
    validate_list(status.used.as_ref(), &path.child("used"), &mut e);
    e
}

fn validate_spec(spec: &ResourceQuotaSpec) -> ErrorList {
    let mut e = ErrorList::default();
    let path = Path::new("spec");
    validate_list(spec.hard.as_ref(), &path.child("hard"), &mut e);
    let scopes = spec.scopes.as_deref().unwrap_or_default();
    let at = path.child("scopes");
    for scope in scopes {
        if !is_scope(scope) {
            e.invalid(&at, json!(scopes), "unsupported scope");
        }
        for _ in uncovered(spec, scope) {
            e.invalid(&at, json!(scopes), "unsupported scope applied to resource");
        }
    }
    validate_conflicts(scopes.iter().map(String::as_str).collect(), spec, &at, &mut e);
    validate_scope_selector(spec, &path.child("scopeSelector").child("matchExpressions"), &mut e);
    e
}

/// The bounded resources that the scope has nothing of.
fn uncovered<'a>(spec: &'a ResourceQuotaSpec, scope: &'a str) -> impl Iterator<Item = &'a String> {
    let names = spec.hard.iter().flat_map(|h| h.keys());
    names.filter(move |name| is_standard(name) && !scope_covers(scope, name))
}

fn validate_conflicts(scopes: BTreeSet<&str>, spec: &ResourceQuotaSpec, path: &Path, e: &mut ErrorList) {
    for pair in [["BestEffort", "NotBestEffort"], ["Terminating", "NotTerminating"]] {
        if pair.iter().all(|s| scopes.contains(s)) {
            e.invalid(path, json!(spec.scopes), "conflicting scopes");
        }
    }
}

fn validate_scope_selector(spec: &ResourceQuotaSpec, path: &Path, e: &mut ErrorList) {
    let Some(selector) = &spec.scope_selector else { return };
    let mut seen = BTreeSet::new();
    for r in selector.match_expressions.iter().flatten() {
        let scope = r.scope_name.as_str();
        if !is_scope(scope) {
            e.invalid(&path.child("scopeName"), scope, "unsupported scope");
        }
        for _ in uncovered(spec, scope) {
            e.invalid(path, json!(selector), "unsupported scope applied to resource");
        }
        let valueless = matches!(
            scope,
            "BestEffort" | "NotBestEffort" | "Terminating" | "NotTerminating" | "CrossNamespacePodAffinity"
        );
        if valueless && r.operator != "Exists" {
            let detail = "must be 'Exist' when scope is any of ResourceQuotaScopeTerminating, \
                          ResourceQuotaScopeNotTerminating, ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort \
                          or ResourceQuotaScopeCrossNamespacePodAffinity";
            e.invalid(&path.child("operator"), r.operator.as_str(), detail);
        }
        let values = r.values.as_deref().unwrap_or_default();
        match (r.operator.as_str(), values.is_empty()) {
            ("In" | "NotIn", true) => {
                let detail = "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector";
                e.required(&path.child("values"), detail);
            }
            ("Exists" | "DoesNotExist", false) => {
                let detail = "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector";
                e.invalid(&path.child("values"), json!(values), detail);
            }
            ("In" | "NotIn" | "Exists" | "DoesNotExist", _) => {}
            (other, _) => e.invalid(&path.child("operator"), other, "not a valid selector operator"),
        }
        seen.insert(scope);
    }
    validate_conflicts(seen, spec, path, e);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quota(spec: &Value) -> ResourceQuota {
        <ResourceQuota as Kind>::from_value(json!({"metadata": {"name": "q"}, "spec": spec})).unwrap()
    }

    fn texts(e: &ErrorList) -> Vec<String> {
        e.0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn faults_have_upstreams_words() {
        let select = |r: Value| json!({"scopeSelector": {"matchExpressions": [r]}});
        let cases: [(Value, &[&str]); 9] = [
            (json!({"hard": {"cpu": "1", "count/pods": "3", "requests.a.b/gpu": "1", "hugepages-2Mi": "4Mi"}}), &[]),
            (
                json!({"hard": {"x": "1"}}),
                &[
                    "spec.hard[x]: Invalid value: \"x\": must be a standard resource type or fully qualified",
                    "spec.hard[x]: Invalid value: \"x\": must be a standard resource for quota",
                ],
            ),
            (
                json!({"hard": {"storage": "1"}}),
                &["spec.hard[storage]: Invalid value: \"storage\": must be a standard resource for quota"],
            ),
            (
                json!({"hard": {"pods": "1500m", "cpu": "-1"}}),
                &[
                    "spec.hard[cpu]: Invalid value: \"-1\": must be greater than or equal to 0",
                    "spec.hard[pods]: Invalid value: \"1500m\": must be an integer",
                ],
            ),
            (json!({"scopes": ["x"]}), &["spec.scopes: Invalid value: [\"x\"]: unsupported scope"]),
            (
                json!({"scopes": ["BestEffort"], "hard": {"cpu": "1"}}),
                &["spec.scopes: Invalid value: [\"BestEffort\"]: unsupported scope applied to resource"],
            ),
            (
                json!({"scopes": ["Terminating", "NotTerminating"]}),
                &["spec.scopes: Invalid value: [\"Terminating\",\"NotTerminating\"]: conflicting scopes"],
            ),
            (
                select(json!({"scopeName": "PriorityClass", "operator": "In"})),
                &[
                    "spec.scopeSelector.matchExpressions.values: Required value: must be at least one value when `operator` is \
                   'In' or 'NotIn' for scope selector",
                ],
            ),
            (
                select(json!({"scopeName": "PriorityClass", "operator": "x"})),
                &["spec.scopeSelector.matchExpressions.operator: Invalid value: \"x\": not a valid selector operator"],
            ),
        ];
        for (spec, want) in cases {
            assert_eq!(texts(&quota(&spec).validate()), want);
        }
        let told = texts(&quota(&select(json!({"scopeName": "BestEffort", "operator": "DoesNotExist"}))).validate());
        assert!(told.len() == 1 && told[0].contains("must be 'Exist' when scope is any of"), "{told:?}");
    }

    #[test]
    fn scopes_stay_and_status_has_its_own_door() {
        let old = quota(&json!({"scopes": ["BestEffort"], "hard": {"pods": "1"}}));
        let new = quota(&json!({"hard": {"pods": "2"}}));
        assert_eq!(texts(&new.validate_update(&old)), ["spec.scopes: Invalid value: null: field is immutable"]);
        let mut status = old.clone();
        status.spec = None;
        status.status = serde_json::from_value(json!({"used": {"pods": "-1"}})).unwrap();
        status.prepare_for_status_update(&old, &Context { now: Timestamp::UNIX_EPOCH, username: "u" });
        assert_eq!(status.spec, old.spec);
        assert_eq!(
            texts(&status.validate_status_update(&old)),
            ["status.used[pods]: Invalid value: \"-1\": must be greater than or equal to 0"]
        );
    }

    #[test]
    fn table_row() {
        let mut q = quota(&json!({}));
        q.status = serde_json::from_value(
            json!({"hard": {"limits.cpu": "2", "requests.cpu": "1", "pods": "3"}, "used": {"pods": "1", "limits.cpu": "0"}}),
        )
        .unwrap();
        assert_eq!(
            &q.cells(Timestamp::UNIX_EPOCH)[..3],
            &[json!("q"), json!("pods: 1/3, requests.cpu: 0/1"), json!("limits.cpu: 0/2")]
        );
    }
}
