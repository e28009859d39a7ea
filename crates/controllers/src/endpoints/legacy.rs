//! Endpoints of Services with a selector.

use super::legacy_plan::{Wanted, plan};
use super::pods::{self, TriggerTimes};
use crate::config::Setup;
use crate::rules::{EVENTS, Rule};
use async_trait::async_trait;
use gantry_api::meta::object::Meta;
use gantry_client::{Api, DeleteParams, PostParams};
use gantry_reconcile::store::{key_of, split_key};
use gantry_reconcile::{Controller, Error, EventRecorder, Informer, Outcome, Queue, runner, wait_synced};
use k8s_openapi::api::core::v1::{Endpoints, Pod, Service};
use std::sync::Arc;

const WORKERS: usize = 5;

/// What the controller may do.
pub const RULES: &[Rule] = &[
    Rule::new(&[""], &["pods", "services"], &["get", "list", "watch"]),
    Rule::new(&[""], &["endpoints"], &["create", "delete", "get", "list", "update", "watch"]),
    Rule::new(&[""], &["endpoints/restricted"], &["create"]),
    EVENTS,
];

struct Legacy {
    services: Informer<Service>,
    pods: Informer<Pod>,
    endpoints: Informer<Endpoints>,
    triggers: TriggerTimes,
    setup: Setup,
    recorder: EventRecorder,
}

/// Runs the controller.
pub async fn run(setup: Setup) {
    let services = setup.informers.get::<Service>();
    let all_pods = setup.informers.get::<Pod>();
    let endpoints = setup.informers.get::<Endpoints>();
    let queue = Queue::new(setup.name);
    pods::watch_services(&services, &all_pods, &queue);
    let q = queue.clone();
    endpoints.on_change(move |change| q.add(key_of(&**change.object())));
    if !wait_synced(&[&services, &all_pods, &endpoints], &setup.cancel).await {
        return;
    }
    let (recorder, cancel) = (setup.recorder("endpoint-controller"), setup.cancel.clone());
    let triggers = TriggerTimes::default();
    let controller = Arc::new(Legacy { services, pods: all_pods, endpoints, triggers, setup, recorder });
    runner::run(controller, queue, WORKERS, cancel).await;
}

#[async_trait]
impl Controller for Legacy {
    fn name(&self) -> &'static str {
        self.setup.name
    }

    async fn reconcile(&self, key: &str) -> Result<Outcome, Error> {
        let (namespace, name) = split_key(key);
        let api = Api::<Endpoints>::namespaced(self.setup.client.clone(), namespace);
        let current = self.endpoints.store().by_key(key);
        let Some(service) = self.services.store().by_key(key) else {
            self.triggers.forget(key);
            // Endpoints that were written by hand, or hold a lock of old, have no Service and are left alone.
            let ours = current
                .as_ref()
                .is_some_and(|e| e.metadata.label("endpoints.kubernetes.io/managed-by") == Some("endpoint-controller"));
            if ours {
                return match api.delete(name, &DeleteParams::default()).await {
                    Ok(_) => Ok(Outcome::done()),
                    Err(e) if e.is("NotFound") => Ok(Outcome::done()),
                    Err(e) => Err(Error::api(format!("delete Endpoints {key}"), e)),
                };
            }
            return Ok(Outcome::done());
        };
        let Some(selector) = pods::selector(&service) else { return Ok(Outcome::done()) };
        let selected: Vec<Arc<Pod>> = self
            .pods
            .store()
            .list_in(namespace)
            .into_iter()
            .filter(|p| selector.matches_optional(p.metadata.labels.as_ref()))
            .collect();
        let trigger = self.triggers.next(key, &service, &selected).map(pods::trigger_text);
        let params = PostParams::default();
        match plan(&service, &selected, current.as_deref(), trigger) {
            Wanted::Nothing => Ok(Outcome::done()),
            Wanted::Create(e) => match api.create(&params, &e).await {
                Ok(_) => Ok(Outcome::done()),
                Err(e) if crate::replicas::is_namespace_terminating(&e) => Ok(Outcome::done()),
                Err(e) => {
                    if !e.is("AlreadyExists") {
                        let message = format!("Failed to create endpoint for service {key}: {e}");
                        self.recorder.warning(&*service, "FailedToCreateEndpoint", &message);
                    }
                    Err(Error::api(format!("create Endpoints {key}"), e))
                }
            },
            Wanted::Update(changed) => match api.update(&params, &changed).await {
                Ok(_) => Ok(Outcome::done()),
                Err(e) => {
                    if !e.is("Conflict") && !e.is("NotFound") {
                        let message = format!("Failed to update endpoint {key}: {e}");
                        self.recorder.warning(&*service, "FailedToUpdateEndpoint", &message);
                    }
                    Err(Error::api(format!("update Endpoints {key}"), e))
                }
            },
        }
    }
}
