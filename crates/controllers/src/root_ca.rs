//! Every namespace has a ConfigMap `kube-root-ca.crt` with the certificate that vouches for the API server.

use crate::config::Setup;
use crate::replicas::is_namespace_terminating;
use crate::rules::{EVENTS, Rule};
use crate::service_account::is_active;
use async_trait::async_trait;
use gantry_api::ObjectMeta;
use gantry_api::meta::object::Meta;
use gantry_reconcile::{
    Action, Controller, Error, EventRecorder, Informer, Outcome, Plan, Queue, plan, runner, wait_synced,
};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use std::sync::Arc;

/// Name of the ConfigMap.
pub const NAME: &str = "kube-root-ca.crt";
const DESCRIPTION: (&str, &str) = (
    "kubernetes.io/description",
    "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the internal \
     service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes clusters.",
);

/// What the controller may do.
pub const RULES: &[Rule] = &[
    Rule::new(&[""], &["namespaces"], &["get", "list", "watch"]),
    Rule::new(&[""], &["configmaps"], &["create", "list", "update", "watch"]),
    EVENTS,
];

struct RootCa {
    namespaces: Informer<Namespace>,
    published: Informer<ConfigMap>,
    recorder: EventRecorder,
    setup: Setup,
}

/// Runs the controller.
pub async fn run(setup: Setup) {
    let namespaces = setup.informers.get::<Namespace>();
    let published = setup.informers.get_filtered::<ConfigMap>(Some(&format!("metadata.name={NAME}")), None);
    let queue = Queue::new(setup.name);
    let q = queue.clone();
    namespaces.on_change(move |change| q.add(change.object().metadata.name().to_owned()));
    let q = queue.clone();
    published.on_change(move |change| q.add(change.object().metadata.namespace().to_owned()));
    if !wait_synced(&[&namespaces, &published], &setup.cancel).await {
        return;
    }
    let (recorder, cancel) = (setup.recorder("root-ca-cert-publisher"), setup.cancel.clone());
    let controller = Arc::new(RootCa { namespaces, published, recorder, setup });
    runner::run(controller, queue, 1, cancel).await;
}

/// What to do so that `namespace` has the certificate.
#[must_use]
pub fn decide(namespace: &str, current: Option<&ConfigMap>, ca_pem: &str) -> Plan {
    let mut plan = Plan::default();
    let data = || Some([("ca.crt".to_owned(), ca_pem.to_owned())].into());
    match current {
        None => plan.push(Action::ensure(&ConfigMap {
            metadata: ObjectMeta {
                name: Some(NAME.into()),
                namespace: Some(namespace.to_owned()),
                annotations: Some([(DESCRIPTION.0.to_owned(), DESCRIPTION.1.to_owned())].into()),
                ..Default::default()
            },
            data: data(),
            ..Default::default()
        })),
        Some(c) if c.data == data() && c.metadata.annotation(DESCRIPTION.0) == Some(DESCRIPTION.1) => {}
        Some(c) => {
            let mut changed = c.clone();
            changed.data = data();
            let annotations = changed.metadata.annotations.get_or_insert_default();
            annotations.insert(DESCRIPTION.0.to_owned(), DESCRIPTION.1.to_owned());
            plan.push(Action::update(&changed));
        }
    }
    plan
}

#[async_trait]
impl Controller for RootCa {
    fn name(&self) -> &'static str {
        self.setup.name
    }

    async fn reconcile(&self, key: &str) -> Result<Outcome, Error> {
        if !self.namespaces.get("", key).is_some_and(|n| is_active(&n)) {
            return Ok(Outcome::done());
        }
        let current = self.published.get(key, NAME);
        let steps = decide(key, current.as_deref(), &self.setup.config.ca_cert_pem);
        match plan::execute(&self.setup.client, &self.recorder, &steps).await {
            // Nothing comes into being any more in a namespace that is going.
            Err(Error::Api { source, .. }) if is_namespace_terminating(&source) => Ok(Outcome::done()),
            other => other.map(|()| Outcome::done()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gantry_api::kind::Kind;

    #[test]
    fn published_once_and_repaired() {
        let first = decide("n", None, "PEM");
        let [Action::Ensure(target, body)] = first.actions.as_slice() else { panic!("{first:?}") };
        assert_eq!(target.to_string(), "configmaps n/kube-root-ca.crt");
        let there = ConfigMap::from_value(body.clone()).unwrap();
        assert!(decide("n", Some(&there), "PEM").is_empty());
        let changed = decide("n", Some(&there), "NEW");
        assert!(matches!(changed.actions.as_slice(), [Action::Update(_, b)] if b["data"]["ca.crt"] == "NEW"));
        let mut bare = there;
        bare.metadata.annotations = None;
        assert_eq!(decide("n", Some(&bare), "PEM").actions.len(), 1);
    }
}
