//! Publishes the certificate that vouches for the API server as the one ClusterTrustBundle of
//! `kubernetes.io/kube-apiserver-serving`.

use crate::config::Setup;
use crate::rules::{EVENTS, Rule};
use async_trait::async_trait;
use aws_lc_rs::digest;
use gantry_api::ObjectMeta;
use gantry_api::certificates::cluster_trust_bundle::{SIGNER_SERVING, name_prefix};
use gantry_api::meta::object::Meta;
use gantry_reconcile::{
    Action, Controller, Error, EventRecorder, Informer, Outcome, Plan, Queue, plan, runner, wait_synced,
};
use k8s_openapi::api::certificates::v1::{ClusterTrustBundle, ClusterTrustBundleSpec};
use std::sync::Arc;

/// What the controller may do.
pub const RULES: &[Rule] = &[
    Rule { groups: &["certificates.k8s.io"], resources: &["signers"], verbs: &["attest"], names: &[SIGNER_SERVING] },
    Rule::new(
        &["certificates.k8s.io"],
        &["clustertrustbundles"],
        &["create", "delete", "get", "list", "update", "watch"],
    ),
    EVENTS,
];

struct Publisher {
    published: Informer<ClusterTrustBundle>,
    recorder: EventRecorder,
    setup: Setup,
}

/// Runs the controller.
pub async fn run(setup: Setup) {
    let selector = format!("spec.signerName={SIGNER_SERVING}");
    let published = setup.informers.get_filtered::<ClusterTrustBundle>(Some(&selector), None);
    let queue = Queue::new(setup.name);
    let q = queue.clone();
    published.on_change(move |_| q.add(SIGNER_SERVING.to_owned()));
    if !wait_synced(&[&published], &setup.cancel).await {
        return;
    }
    // Without any bundle there is no change to tell of.
    queue.add(SIGNER_SERVING.to_owned());
    let (recorder, cancel) = (setup.recorder(setup.name), setup.cancel.clone());
    runner::run(Arc::new(Publisher { published, recorder, setup }), queue, 1, cancel).await;
}

/// The name of the bundle with this content.
#[must_use]
pub fn name_of(signer: &str, bundle: &str) -> String {
    let hash = digest::digest(&digest::SHA256, bundle.as_bytes());
    let hex: String = hash.as_ref()[..12].iter().map(|b| format!("{b:02x}")).collect();
    format!("{}{hex}", name_prefix(signer))
}

/// What to do so that the signer has this bundle and no other.
#[must_use]
pub fn decide(signer: &str, ca_pem: &str, all: &[Arc<ClusterTrustBundle>]) -> Plan {
    let mut plan = Plan::default();
    let name = name_of(signer, ca_pem);
    match all.iter().find(|b| b.metadata.name() == name) {
        None => plan.push(Action::ensure(&ClusterTrustBundle {
            metadata: ObjectMeta { name: Some(name.clone()), ..Default::default() },
            spec: ClusterTrustBundleSpec { signer_name: Some(signer.to_owned()), trust_bundle: ca_pem.to_owned() },
        })),
        Some(there) if there.spec.trust_bundle == ca_pem => {}
        Some(there) => {
            let mut changed = (**there).clone();
            ca_pem.clone_into(&mut changed.spec.trust_bundle);
            plan.push(Action::update(&changed));
        }
    }
    for other in all.iter().filter(|b| b.metadata.name() != name) {
        plan.push(Action::delete(other.as_ref()));
    }
    plan
}

#[async_trait]
impl Controller for Publisher {
    fn name(&self) -> &'static str {
        self.setup.name
    }

    async fn reconcile(&self, signer: &str) -> Result<Outcome, Error> {
        let steps = decide(signer, &self.setup.config.ca_cert_pem, &self.published.list());
        plan::execute(&self.setup.client, &self.recorder, &steps).await?;
        Ok(Outcome::done())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gantry_api::kind::Kind;

    #[test]
    fn the_one_bundle_and_no_other() {
        let first = decide("a.b/c", "PEM", &[]);
        let [Action::Ensure(target, body)] = first.actions.as_slice() else { panic!("{first:?}") };
        // The first twelve bytes of the hash.
        assert_eq!(target.to_string(), format!("clustertrustbundles.certificates.k8s.io {}", name_of("a.b/c", "PEM")));
        assert!(name_of("a.b/c", "PEM").starts_with("a.b:c:") && name_of("a.b/c", "PEM").len() == 6 + 24);
        let there = Arc::new(ClusterTrustBundle::from_value(body.clone()).unwrap());
        assert!(decide("a.b/c", "PEM", std::slice::from_ref(&there)).is_empty());
        let renewed = decide("a.b/c", "NEW", std::slice::from_ref(&there));
        assert!(
            matches!(renewed.actions.as_slice(), [Action::Ensure(..), Action::Delete { .. }]),
            "the new one is there before the old one goes: {renewed:?}"
        );
        let mut spoilt = (*there).clone();
        spoilt.spec.trust_bundle = "other".into();
        let repaired = decide("a.b/c", "PEM", &[Arc::new(spoilt)]);
        assert!(matches!(repaired.actions.as_slice(), [Action::Update(_, b)] if b["spec"]["trustBundle"] == "PEM"));
    }
}
