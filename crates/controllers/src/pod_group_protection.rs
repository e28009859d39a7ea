//! A group of pods that is deleted stays as long as pods that have not ended are of it (KEP-4671). The finalizer that holds it
//! is put on by admission.

use crate::config::Setup;
use crate::pod_state;
use crate::rules::{EVENTS, Rule};
use crate::volume::protection::{has, set};
use async_trait::async_trait;
use gantry_api::meta::object::Meta;
use gantry_client::Api;
use gantry_reconcile::store::{key, key_of};
use gantry_reconcile::{Change, Controller, Error, Index, Informer, Outcome, Queue, runner, wait_synced};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::scheduling::v1beta1::PodGroup;
use std::sync::Arc;

/// Holds a group.
pub const FINALIZER: &str = "scheduling.k8s.io/podgroup-protection";

/// What the controller may do.
pub const RULES: &[Rule] = &[
    Rule::new(&["scheduling.k8s.io"], &["podgroups"], &["get", "list", "update", "watch"]),
    Rule::new(&[""], &["pods"], &["get", "list", "watch"]),
    EVENTS,
];

struct Protection {
    groups: Informer<PodGroup>,
    pods: Index<Pod>,
    setup: Setup,
}

/// The key of the group that the pod is of.
fn group_of(pod: &Pod) -> Option<String> {
    let group = pod.spec.as_ref()?.scheduling_group.as_ref()?.pod_group_name.as_ref()?;
    Some(key(pod.metadata.namespace(), group))
}

/// The group that an unfinished pod holds.
fn held_group(pod: &Pod) -> Vec<String> {
    group_of(pod).filter(|_| !pod_state::is_finished(pod)).into_iter().collect()
}

/// Runs the controller; where groups are not served there is nothing to do.
pub async fn run(setup: Setup) {
    let cancel = setup.cancel.clone();
    if !setup.config.pod_groups {
        cancel.cancelled().await;
        return;
    }
    let groups = setup.informers.get::<PodGroup>();
    let pods = setup.informers.get::<Pod>();
    let by_group = pods.index("group held", held_group);
    let queue = Queue::new(setup.name);
    let q = queue.clone();
    groups.on_change(move |change| {
        let group = change.object();
        if group.metadata.is_deleting() {
            q.add(key_of(&**group));
        }
    });
    let q = queue.clone();
    pods.on_change(move |change| {
        let pod = change.object();
        let frees = matches!(change, Change::Deleted(_)) || pod_state::is_finished(pod);
        group_of(pod).filter(|_| frees).into_iter().for_each(|k| q.add(k));
    });
    if !wait_synced(&[&groups, &pods], &cancel).await {
        return;
    }
    runner::run(Arc::new(Protection { groups, pods: by_group, setup }), queue, 1, cancel).await;
}

#[async_trait]
impl Controller for Protection {
    fn name(&self) -> &'static str {
        self.setup.name
    }

    async fn reconcile(&self, key: &str) -> Result<Outcome, Error> {
        let Some(group) = self.groups.store().by_key(key) else { return Ok(Outcome::done()) };
        if group.metadata.is_deleting() && has(&group.metadata, FINALIZER) && self.pods.count(key) == 0 {
            let api = Api::<PodGroup>::namespaced(self.setup.client.clone(), group.metadata.namespace());
            set(&api, group.as_ref(), FINALIZER, false).await?;
        }
        Ok(Outcome::done())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gantry_api::kind::Kind;
    use serde_json::json;

    #[test]
    fn pods_that_have_not_ended_hold_their_group() {
        let pod = |phase: &str, spec: serde_json::Value| {
            let value = json!({"metadata": {"name": "p", "namespace": "n"}, "spec": spec, "status": {"phase": phase}});
            held_group(&Pod::from_value(value).unwrap())
        };
        let grouped = json!({"containers": [], "schedulingGroup": {"podGroupName": "g"}});
        assert_eq!(pod("Running", grouped.clone()), ["n/g"]);
        assert_eq!(pod("Pending", grouped.clone()), ["n/g"]);
        assert!(pod("Succeeded", grouped.clone()).is_empty() && pod("Failed", grouped).is_empty());
        assert!(pod("Running", json!({"containers": []})).is_empty());
    }
}
