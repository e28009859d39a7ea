//! The spreading a pod has without asking for it: among the pods of the same Services and controller.

use crate::pod::PodInfo;
use crate::profile::{Profile, SpreadDefaults};
use crate::spread::DefaultConstraints;
use gantry_api::k8s_openapi::api::apps::v1::{ReplicaSet, StatefulSet};
use gantry_api::k8s_openapi::api::core::v1::{ReplicationController, Service, TopologySpreadConstraint};
use gantry_api::meta::labels::Selector;
use gantry_reconcile::{Index, Informer, Informers};
use std::collections::BTreeMap;

/// What pods may belong to.
pub(crate) struct Owners {
    services: Index<Service>,
    replica_sets: Informer<ReplicaSet>,
    stateful_sets: Informer<StatefulSet>,
    controllers: Informer<ReplicationController>,
}

fn soft(key: &str, max_skew: i32) -> TopologySpreadConstraint {
    TopologySpreadConstraint {
        max_skew,
        topology_key: key.into(),
        when_unsatisfiable: "ScheduleAnyway".into(),
        ..Default::default()
    }
}

impl Owners {
    pub(crate) fn new(informers: &Informers) -> Self {
        let by_namespace = |s: &Service| vec![s.metadata.namespace.clone().unwrap_or_default()];
        Self {
            services: informers.get::<Service>().index("scheduler-namespace", by_namespace),
            replica_sets: informers.get(),
            stateful_sets: informers.get(),
            controllers: informers.get(),
        }
    }

    /// The constraints of a pod that has none of its own.
    pub(crate) fn constraints(&self, pod: &PodInfo, profile: &Profile) -> DefaultConstraints {
        if pod.spec().topology_spread_constraints.as_ref().is_some_and(|c| !c.is_empty()) {
            return DefaultConstraints::default();
        }
        let (constraints, system) = match &profile.spread_defaults {
            SpreadDefaults::System => {
                (vec![soft("kubernetes.io/hostname", 3), soft("topology.kubernetes.io/zone", 5)], true)
            }
            SpreadDefaults::List(list) if list.is_empty() => return DefaultConstraints::default(),
            SpreadDefaults::List(list) => (list.clone(), false),
        };
        let selector = self.selector(pod);
        let selector = (!selector.is_empty()).then_some(selector);
        DefaultConstraints { constraints, selector, system }
    }

    /// Selects the pods of the same Services and controller.
    fn selector(&self, pod: &PodInfo) -> Selector {
        let mut set: BTreeMap<String, String> = BTreeMap::new();
        for service in self.services.get(pod.namespace()) {
            if let Some(selector) = service.spec.as_ref().and_then(|s| s.selector.as_ref()).filter(|s| !s.is_empty())
                && selector.iter().all(|(k, v)| pod.labels().get(k) == Some(v))
            {
                set.extend(selector.clone());
            }
        }
        let mut selector = Selector::from_set(&set);
        let Some(owner) = gantry_reconcile::owner::controller_of(&pod.pod.metadata) else { return selector };
        let own = match (owner.api_version.as_str(), owner.kind.as_str()) {
            ("apps/v1", "ReplicaSet") => {
                let found = self.replica_sets.get(pod.namespace(), &owner.name);
                found.and_then(|o| Selector::from_label_selector(Some(&o.spec.selector)).ok())
            }
            ("apps/v1", "StatefulSet") => {
                let found = self.stateful_sets.get(pod.namespace(), &owner.name);
                found.and_then(|o| Selector::from_label_selector(Some(&o.spec.selector)).ok())
            }
            ("v1", "ReplicationController") => {
                let found = self.controllers.get(pod.namespace(), &owner.name);
                found.and_then(|o| Some(Selector::from_set(o.spec.as_ref()?.selector.as_ref()?)))
            }
            _ => None,
        };
        own.iter().flat_map(|s| s.requirements()).cloned().for_each(|r| selector.add(r));
        selector
    }
}
