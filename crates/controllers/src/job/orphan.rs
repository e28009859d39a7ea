//! Takes the finalizer from pods whose Job will not: those without a controller, and those of Jobs that have ended or
//! are gone.

use super::condition::finished;
use super::pods::untracked;
use super::survey::is_tracked;
use crate::config::Setup;
use crate::pod_state;
use async_trait::async_trait;
use gantry_api::batch::job::is_ours;
use gantry_api::kind::Kind;
use gantry_api::meta::object::Meta;
use gantry_client::{Api, PatchParams};
use gantry_reconcile::{Controller, Error, Informer, Outcome, Store};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;

pub(super) struct Orphans {
    pub(super) jobs: Store<Job>,
    pub(super) pods: Informer<Pod>,
    pub(super) setup: Setup,
}

#[async_trait]
impl Controller for Orphans {
    fn name(&self) -> &'static str {
        self.setup.name
    }

    async fn reconcile(&self, key: &str) -> Result<Outcome, Error> {
        let Some(pod) = self.pods.store().by_key(key) else { return Ok(Outcome::done()) };
        if let Some(owner) = pod_state::controller(&pod) {
            if owner.kind != Job::INFO.kind || owner.api_version != Job::INFO.api_version() {
                return Ok(Outcome::done());
            }
            let job = self.jobs.get(pod.metadata.namespace(), &owner.name);
            let job = job.filter(|j| j.metadata.uid() == owner.uid);
            // A Job that goes on counts its own pods, and another's manager sees to his.
            if job.is_some_and(|j| !is_ours(&j) || finished(&j).is_none()) {
                return Ok(Outcome::done());
            }
        }
        if !is_tracked(&pod) {
            return Ok(Outcome::done());
        }
        let api = Api::<Pod>::namespaced(self.setup.client.clone(), pod.metadata.namespace());
        match api.patch(pod.metadata.name(), &PatchParams::default(), &untracked()).await {
            Ok(_) => Ok(Outcome::done()),
            Err(e) if e.is("NotFound") => Ok(Outcome::done()),
            Err(e) => Err(Error::api(format!("remove the finalizer of pod {key}"), e)),
        }
    }
}
