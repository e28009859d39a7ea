//! PodDisruptionBudget: how many pods of a group may be down at once by will.

use crate::apps::{int_or_percent, workload};
use crate::kind::{Column, Context, Kind, ResourceInfo, STATUS};
use crate::meta::conditions::validate_conditions;
use crate::meta::field::{ErrorList, Path};
use crate::meta::labels::{SelectorOptions, validate_label_selector};
use crate::meta::{names, table};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

impl Kind for PodDisruptionBudget {
    const INFO: ResourceInfo = ResourceInfo {
        short_names: &["pdb"],
        subresources: &[STATUS],
        unconditional_update: false,
        ..ResourceInfo::new("policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets", "poddisruptionbudget", true)
    };
    const COLUMNS: &'static [Column] = &[
        workload::NAME,
        workload::column("Min Available", "string", "The minimum number of pods that must be available."),
        workload::column("Max Unavailable", "string", "The maximum number of pods that may be unavailable."),
        workload::column(
            "Allowed Disruptions",
            "integer",
            "Calculated number of pods that may be disrupted at this time.",
        ),
        workload::AGE,
    ];
    crate::kind_codec!();

    fn prepare_for_create(&mut self, _: &Context<'_>) {
        self.status = Some(Default::default());
        self.metadata.generation = Some(1);
    }

    fn validate_name(name: &str, prefix: bool) -> Vec<String> {
        names::path_segment(name, prefix)
    }

    fn validate(&self) -> ErrorList {
        let mut e = ErrorList::default();
        let path = Path::new("spec");
        let spec = self.spec.clone().unwrap_or_default();
        if spec.min_available.is_some() && spec.max_unavailable.is_some() {
            let shown = workload::shown_as(&[
                ("MinAvailable", json!(spec.min_available)),
                ("Selector", json!(spec.selector)),
                ("MaxUnavailable", json!(spec.max_unavailable)),
                ("UnhealthyPodEvictionPolicy", json!(spec.unhealthy_pod_eviction_policy)),
            ]);
            workload::invalid_shown(&mut e, &path, &shown, "minAvailable and maxUnavailable cannot be both set");
        }
        for (name, value) in [("minAvailable", &spec.min_available), ("maxUnavailable", &spec.max_unavailable)] {
            if let Some(v) = value {
                int_or_percent::validate(&mut e, &path.child(name), v);
                int_or_percent::validate_at_most_100(&mut e, &path.child(name), v);
            }
        }
        e.extend(validate_label_selector(spec.selector.as_ref(), SelectorOptions::default(), &path.child("selector")));
        if let Some(p) = &spec.unhealthy_pod_eviction_policy {
            const KNOWN: &[&str] = &["AlwaysAllow", "IfHealthyBudget"];
            if !KNOWN.contains(&p.as_str()) {
                e.not_supported(&path.child("unhealthyPodEvictionPolicy"), p, KNOWN);
            }
        }
        e
    }

    fn prepare_for_update(&mut self, old: &Self, _: &Context<'_>) {
        self.status.clone_from(&old.status);
        let changed = self.spec != old.spec;
        workload::bump_generation(&mut self.metadata, &old.metadata, changed);
    }

    fn prepare_for_status_update(&mut self, old: &Self, _: &Context<'_>) {
        self.spec.clone_from(&old.spec);
        self.metadata.generation = old.metadata.generation;
    }

    fn validate_status_update(&self, _: &Self) -> ErrorList {
        let mut e = ErrorList::default();
        let path = Path::new("status");
        let s = self.status.clone().unwrap_or_default();
        e.extend(validate_conditions(s.conditions.as_deref().unwrap_or_default(), &path.child("conditions")));
        for (name, value) in [
            ("disruptionsAllowed", s.disruptions_allowed),
            ("currentHealthy", s.current_healthy),
            ("desiredHealthy", s.desired_healthy),
            ("expectedPods", s.expected_pods),
        ] {
            workload::nonnegative(&mut e, &path.child(name), i64::from(value.unwrap_or(0)));
        }
        e
    }

    fn cells(&self, now: Timestamp) -> Vec<Value> {
        let show = |v: Option<&IntOrString>| match v {
            None => Value::from("N/A"),
            Some(IntOrString::Int(n)) => n.to_string().into(),
            Some(IntOrString::String(s)) => s.as_str().into(),
        };
        let spec = self.spec.as_ref();
        vec![
            self.metadata.name.clone().unwrap_or_default().into(),
            show(spec.and_then(|s| s.min_available.as_ref())),
            show(spec.and_then(|s| s.max_unavailable.as_ref())),
            self.status.as_ref().and_then(|s| s.disruptions_allowed).unwrap_or(0).into(),
            table::age(&self.metadata, now).into(),
        ]
    }

    fn reset_fields() -> (&'static [&'static [&'static str]], &'static [&'static [&'static str]]) {
        (&[&["status"]], &[&["spec"]])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_have_upstreams_words() {
        let cases = [
            (
                json!({"minAvailable": 1, "maxUnavailable": 1}),
                "spec: Invalid value: {\"MinAvailable\":1,\"Selector\":null,\"MaxUnavailable\":1,\
                 \"UnhealthyPodEvictionPolicy\":null}: minAvailable and maxUnavailable cannot be both set",
            ),
            (json!({"minAvailable": -1}), "spec.minAvailable: Invalid value: -1: must be greater than or equal to 0"),
            (
                json!({"maxUnavailable": "200%"}),
                "spec.maxUnavailable: Invalid value: \"200%\": must not be greater than 100%",
            ),
            (
                json!({"unhealthyPodEvictionPolicy": "x"}),
                "spec.unhealthyPodEvictionPolicy: Unsupported value: \"x\": supported values: \"AlwaysAllow\", \"IfHealthyBudget\"",
            ),
        ];
        for (spec, want) in cases {
            let p = PodDisruptionBudget::from_value(json!({"spec": spec})).unwrap();
            let texts: Vec<String> = p.validate().0.iter().map(ToString::to_string).collect();
            assert_eq!(texts, [want]);
        }
    }

    #[test]
    fn table_row() {
        let p = PodDisruptionBudget::from_value(json!({"spec": {"minAvailable": "50%"}})).unwrap();
        let cells = p.cells(Timestamp::UNIX_EPOCH);
        assert_eq!(&cells[1..4], &[json!("50%"), json!("N/A"), json!(0)]);
        assert_eq!(cells.len(), PodDisruptionBudget::COLUMNS.len());
    }
}
