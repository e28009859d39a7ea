//! A ClusterRole with an `aggregationRule` has the rules of the roles it selects.

use crate::config::Setup;
use crate::rules::Rule;
use async_trait::async_trait;
use gantry_api::meta::labels::Selector;
use gantry_api::meta::object::Meta;
use gantry_reconcile::{
    Action, Controller, Error, EventRecorder, Informer, Outcome, Plan, Queue, plan, runner, wait_synced,
};
use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};
use std::sync::Arc;

/// What the controller may do. It may `escalate`, as it writes rules it has not itself.
pub const RULES: &[Rule] = &[Rule::new(
    &["rbac.authorization.k8s.io"],
    &["clusterroles"],
    &["escalate", "get", "list", "patch", "update", "watch"],
)];

struct Aggregation {
    roles: Informer<ClusterRole>,
    recorder: EventRecorder,
    setup: Setup,
}

/// Runs the controller.
pub async fn run(setup: Setup) {
    let roles = setup.informers.get::<ClusterRole>();
    let queue = Queue::new(setup.name);
    let (q, known) = (queue.clone(), roles.clone());
    // Any role may be part of any sum.
    roles.on_change(move |_| {
        for role in known.list().iter().filter(|r| r.aggregation_rule.is_some()) {
            q.add(role.metadata.name().to_owned());
        }
    });
    if !wait_synced(&[&roles], &setup.cancel).await {
        return;
    }
    let (recorder, cancel) = (setup.recorder("clusterrole-aggregation-controller"), setup.cancel.clone());
    runner::run(Arc::new(Aggregation { roles, recorder, setup }), queue, 1, cancel).await;
}

/// What to do so that `role` has the rules of those among `all` it selects, in the order of their names.
#[must_use]
pub fn decide(role: &ClusterRole, all: &[Arc<ClusterRole>]) -> Plan {
    let mut plan = Plan::default();
    let Some(aggregation) = &role.aggregation_rule else { return plan };
    let mut sum: Vec<PolicyRule> = Vec::new();
    for selector in aggregation.cluster_role_selectors.iter().flatten() {
        // A selector that cannot be read selects nothing; writing one is refused by validation.
        let Ok(selector) = Selector::from_label_selector(Some(selector)) else { continue };
        let mut parts: Vec<&Arc<ClusterRole>> = all
            .iter()
            .filter(|r| r.metadata.name() != role.metadata.name())
            .filter(|r| selector.matches_optional(r.metadata.labels.as_ref()))
            .collect();
        parts.sort_by_key(|r| r.metadata.name());
        for rule in parts.iter().flat_map(|r| r.rules.iter().flatten()) {
            if !sum.contains(rule) {
                sum.push(rule.clone());
            }
        }
    }
    if role.rules.as_deref().unwrap_or_default() != sum.as_slice() {
        plan.push(Action::update(&ClusterRole { rules: Some(sum), ..role.clone() }));
    }
    plan
}

#[async_trait]
impl Controller for Aggregation {
    fn name(&self) -> &'static str {
        self.setup.name
    }

    async fn reconcile(&self, key: &str) -> Result<Outcome, Error> {
        if let Some(role) = self.roles.get("", key) {
            let steps = decide(&role, &self.roles.list());
            plan::execute(&self.setup.client, &self.recorder, &steps).await?;
        }
        Ok(Outcome::done())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gantry_api::kind::Kind;
    use serde_json::{Value, json};

    fn role(name: &str, rest: Value) -> Arc<ClusterRole> {
        let mut value = json!({"metadata": {"name": name, "labels": {"part": name}}});
        value.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
        Arc::new(ClusterRole::from_value(value).unwrap())
    }

    #[test]
    fn rules_are_the_sum_of_the_selected_roles_without_repetition() {
        let rule = |resource: &str| json!({"apiGroups": [""], "resources": [resource], "verbs": ["get"]});
        let sum = role(
            "sum",
            json!({"aggregationRule": {"clusterRoleSelectors": [{"matchExpressions": [
                {"key": "part", "operator": "In", "values": ["b", "a", "sum"]}]}]},
                "rules": [rule("written-by-hand")]}),
        );
        let a = role("a", json!({"rules": [rule("pods"), rule("nodes")]}));
        let b = role("b", json!({"rules": [rule("nodes"), rule("secrets")]}));
        let c = role("c", json!({"rules": [rule("events")]}));
        let plan = decide(&sum, &[b.clone(), c.clone(), a.clone(), sum.clone()]);
        let [Action::Update(target, body)] = plan.actions.as_slice() else { panic!("{plan:?}") };
        assert_eq!(target.name, "sum");
        assert_eq!(body["rules"], json!([rule("pods"), rule("nodes"), rule("secrets")]));
        let settled = Arc::new(ClusterRole::from_value(body.clone()).unwrap());
        assert!(decide(&settled, &[a.clone(), b, c, settled.clone()]).is_empty());
        assert!(decide(&a, std::slice::from_ref(&a)).is_empty(), "a role without an aggregationRule is left alone");
    }
}
