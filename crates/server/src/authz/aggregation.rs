//! Aggregated ClusterRoles: the rules of a role with an `aggregationRule` are the sum of the rules of the roles it selects.

use gantry_api::k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};
use gantry_api::meta::labels::Selector;

fn name(role: &ClusterRole) -> &str {
    role.metadata.name.as_deref().unwrap_or_default()
}

fn collect(role: &ClusterRole, all: &[ClusterRole], visited: &mut Vec<String>, out: &mut Vec<PolicyRule>) {
    let Some(aggregation) = &role.aggregation_rule else {
        for rule in role.rules.iter().flatten() {
            if !out.contains(rule) {
                out.push(rule.clone());
            }
        }
        return;
    };
    visited.push(name(role).to_owned());
    for selector in aggregation.cluster_role_selectors.iter().flatten() {
        // A selector that cannot be read selects nothing; writing one is refused by validation.
        let Ok(selector) = Selector::from_label_selector(Some(selector)) else {
            continue;
        };
        let mut selected: Vec<&ClusterRole> =
            all.iter().filter(|r| selector.matches_optional(r.metadata.labels.as_ref())).collect();
        selected.sort_by_key(|r| name(r));
        for part in selected {
            if !visited.iter().any(|v| v == name(part)) {
                collect(part, all, visited, out);
            }
        }
    }
}

/// The rules of `role` among `all` ClusterRoles: its own, or the sum of those it aggregates, through any number of steps.
#[must_use]
pub fn effective_rules(role: &ClusterRole, all: &[ClusterRole]) -> Vec<PolicyRule> {
    let mut out = Vec::new();
    collect(role, all, &mut Vec::new(), &mut out);
    out
}

/// The aggregating roles among `all` whose stored rules are not the sum they should be, with the rules put right.
#[must_use]
pub fn outdated(all: &[ClusterRole]) -> Vec<ClusterRole> {
    all.iter()
        .filter(|r| r.aggregation_rule.is_some())
        .filter_map(|r| {
            let rules = effective_rules(r, all);
            (r.rules.as_deref().unwrap_or_default() != rules.as_slice())
                .then(|| ClusterRole { rules: Some(rules), ..r.clone() })
        })
        .collect()
}
