//! Every namespace has a ServiceAccount `default`.

use crate::config::Setup;
use crate::replicas::is_namespace_terminating;
use crate::rules::{EVENTS, Rule};
use async_trait::async_trait;
use gantry_api::ObjectMeta;
use gantry_api::meta::object::Meta;
use gantry_client::{Api, PostParams};
use gantry_reconcile::{Change, Controller, Error, Informer, Outcome, Queue, runner, wait_synced};
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use std::sync::Arc;

/// What the controller may do.
pub const RULES: &[Rule] = &[
    Rule::new(&[""], &["namespaces"], &["get", "list", "watch"]),
    Rule::new(&[""], &["serviceaccounts"], &["create", "list", "watch"]),
    EVENTS,
];

struct ServiceAccounts {
    namespaces: Informer<Namespace>,
    accounts: Informer<ServiceAccount>,
    setup: Setup,
}

/// Whether the namespace takes new objects.
pub(crate) fn is_active(namespace: &Namespace) -> bool {
    let phase = namespace.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or("Active");
    phase == "Active" && namespace.metadata.deletion_timestamp.is_none()
}

/// Runs the controller.
pub async fn run(setup: Setup) {
    let namespaces = setup.informers.get::<Namespace>();
    let accounts = setup.informers.get_filtered::<ServiceAccount>(Some("metadata.name=default"), None);
    let queue = Queue::new(setup.name);
    let q = queue.clone();
    namespaces.on_change(move |change| {
        if !matches!(change, Change::Deleted(_)) {
            q.add(change.object().metadata.name().to_owned());
        }
    });
    let q = queue.clone();
    accounts.on_change(move |change| {
        if let Change::Deleted(account) = change {
            q.add(account.metadata.namespace().to_owned());
        }
    });
    if !wait_synced(&[&namespaces, &accounts], &setup.cancel).await {
        return;
    }
    let cancel = setup.cancel.clone();
    let controller = Arc::new(ServiceAccounts { namespaces, accounts, setup });
    runner::run(controller, queue, 1, cancel).await;
}

#[async_trait]
impl Controller for ServiceAccounts {
    fn name(&self) -> &'static str {
        self.setup.name
    }

    async fn reconcile(&self, key: &str) -> Result<Outcome, Error> {
        let active = self.namespaces.get("", key).is_some_and(|n| is_active(&n));
        if !active || self.accounts.get(key, "default").is_some() {
            return Ok(Outcome::done());
        }
        let account = ServiceAccount {
            metadata: ObjectMeta {
                name: Some("default".into()),
                namespace: Some(key.to_owned()),
                ..Default::default()
            },
            ..Default::default()
        };
        let api = Api::namespaced(self.setup.client.clone(), key);
        match api.create(&PostParams::default(), &account).await {
            Ok(_) => Ok(Outcome::done()),
            Err(e) if e.is("AlreadyExists") || is_namespace_terminating(&e) => Ok(Outcome::done()),
            Err(e) => Err(Error::api(format!("create serviceaccount {key}/default"), e)),
        }
    }
}
