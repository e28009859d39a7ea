//! Claims, makes, deletes and lets go a Job's pods.

use super::indexed::{FAILURES, IGNORED, INDEX, add_environment, failures_with};
use super::survey::{Survey, is_tracked};
use super::{FINALIZER, Jobs, is_indexed};
use crate::claiming::ensure_alive;
use crate::pod_state;
use crate::replicas::is_namespace_terminating;
use futures::future::join_all;
use gantry_api::ObjectMeta;
use gantry_api::meta::labels::Selector;
use gantry_api::meta::object::Meta;
use gantry_client::{Api, DeleteParams, Patch, PatchParams, PostParams};
use gantry_reconcile::Error;
use gantry_reconcile::owner::{Claim, adoption, claim, controller_reference, release};
use gantry_reconcile::store::key_of;
use k8s_openapi::api::batch::v1::{Job, JobSpec};
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Longest prefix of a generated name.
const MAX_PREFIX: usize = 58;

/// Pods that were deleted.
pub(super) struct Gone {
    pub(super) count: usize,
    /// Those among them that were ready.
    pub(super) ready: usize,
    /// The first failure.
    pub(super) result: Result<(), Error>,
}

/// The patch that takes the finalizer from a pod.
pub(super) fn untracked() -> Patch {
    Patch::Strategic(json!({"metadata": {"$deleteFromPrimitiveList/finalizers": [FINALIZER]}}))
}

/// A claim's patch that also gives or takes the finalizer.
fn with_finalizer(patch: Patch, field: &str) -> Patch {
    let Patch::Strategic(mut body) = patch else { return patch };
    body["metadata"][field] = json!([FINALIZER]);
    Patch::Strategic(body)
}

fn pods_api(jobs: &Jobs, namespace: &str) -> Api<Pod> {
    Api::namespaced(jobs.setup.client.clone(), namespace)
}

impl Jobs {
    /// The Job's pods, after adopting what matches and letting go what no longer does.
    pub(super) async fn claim(&self, job: &Job, spec: &JobSpec) -> Result<Vec<Arc<Pod>>, Error> {
        let meta = &job.metadata;
        let selector = Selector::from_label_selector(spec.selector.as_ref())
            .map_err(|e| Error::Other(format!("couldn't convert Job selector: {e}")))?;
        let mut candidates = self.pods_by_controller.get(meta.uid());
        candidates.extend(self.pods_by_controller.get(&pod_state::orphans_of(meta.namespace())));
        let api = pods_api(self, meta.namespace());
        let params = PatchParams::default();
        let (mut pods, mut errors, mut alive) = (Vec::new(), Vec::new(), false);
        for pod in candidates {
            let (name, uid) = (pod.metadata.name(), pod.metadata.uid());
            let matches = !selector.is_empty() && selector.matches_optional(pod.metadata.labels.as_ref());
            match claim(meta, &pod.metadata, matches) {
                Claim::Ignore => {}
                Claim::Keep => pods.push(pod),
                Claim::Adopt => {
                    if !alive {
                        ensure_alive(&self.setup.client, job).await?;
                        alive = true;
                    }
                    match api.patch(name, &params, &with_finalizer(adoption(job, uid), "finalizers")).await {
                        Ok(adopted) => pods.push(Arc::new(adopted)),
                        Err(e) if e.is("NotFound") => {}
                        Err(e) => errors.push(Error::api(format!("adopt pod {}", pod.metadata.key()), e)),
                    }
                }
                Claim::Release => {
                    let patch = release(meta.uid(), uid);
                    let patch = with_finalizer(patch, "$deleteFromPrimitiveList/finalizers");
                    match api.patch(name, &params, &patch).await {
                        Ok(_) => {}
                        // Gone, or a new pod of the same name: nothing to let go.
                        Err(e) if e.is("NotFound") || e.is("Invalid") => {}
                        Err(e) => errors.push(Error::api(format!("release pod {}", pod.metadata.key()), e)),
                    }
                }
            }
        }
        Error::collect(errors)?;
        Ok(pods)
    }

    /// Deletes the pods of a Job that is to end. Their finalizers stay: they are to be counted.
    pub(super) async fn delete_to_end(&self, job: &Job, pods: &[Arc<Pod>]) -> Gone {
        let api = pods_api(self, job.metadata.namespace());
        let results = join_all(pods.iter().map(|pod| self.delete(job, &api, pod))).await;
        gone(pods, results)
    }

    /// Deletes pods that are too many. They are not counted.
    pub(super) async fn delete_surplus(&self, key: &str, job: &Job, pods: &[Arc<Pod>]) -> Gone {
        let api = pods_api(self, job.metadata.namespace());
        self.expectations.set(key, 0, pods.iter().map(|p| key_of(&**p)));
        let one = |pod: &Arc<Pod>| {
            let (api, pod) = (&api, pod.clone());
            async move {
                let freed = if is_tracked(&pod) {
                    // What a cache that is behind shows of it from now on counts for nothing.
                    self.removals.expect(key, pod.metadata.uid());
                    let freed = self.free(api, &pod).await;
                    if freed.is_err() {
                        self.removals.observed(key, pod.metadata.uid());
                    }
                    freed
                } else {
                    Ok(())
                };
                let result = match freed {
                    Ok(()) => self.delete(job, api, &pod).await,
                    Err(e) => Err(e),
                };
                if !matches!(result, Ok(true)) {
                    self.expectations.deletion_observed(key, &key_of(&*pod));
                }
                result
            }
        };
        let results = join_all(pods.iter().map(one)).await;
        gone(pods, results)
    }

    /// Deletes a pod. Whether it was still there.
    async fn delete(&self, job: &Job, api: &Api<Pod>, pod: &Pod) -> Result<bool, Error> {
        let params = DeleteParams { precondition_uid: pod.metadata.uid.clone(), ..Default::default() };
        match api.delete(pod.metadata.name(), &params).await {
            Ok(_) => {
                let message = format!("Deleted pod: {}", pod.metadata.name());
                self.recorder.normal(job, "SuccessfulDelete", &message);
                Ok(true)
            }
            // Gone already, or replaced by another pod of that name.
            Err(e) if e.is("NotFound") || e.is("Conflict") => Ok(false),
            Err(e) => {
                self.recorder.warning(job, "FailedDelete", &format!("Error deleting: {e}"));
                Err(Error::api(format!("delete pod {}", pod.metadata.key()), e))
            }
        }
    }

    async fn free(&self, api: &Api<Pod>, pod: &Pod) -> Result<(), Error> {
        match api.patch(pod.metadata.name(), &PatchParams::default(), &untracked()).await {
            Ok(_) => Ok(()),
            Err(e) if e.is("NotFound") => Ok(()),
            Err(e) => Err(Error::api(format!("remove the finalizer of pod {}", pod.metadata.key()), e)),
        }
    }

    /// Takes the finalizer from pods that are written down to be counted. The uids of those that have it no longer, and
    /// the first failure.
    pub(super) async fn release(&self, key: &str, pods: &[Arc<Pod>]) -> (BTreeSet<String>, Result<(), Error>) {
        for pod in pods {
            self.removals.expect(key, pod.metadata.uid());
        }
        let one = |pod: &Arc<Pod>| {
            let pod = pod.clone();
            async move {
                let api = pods_api(self, pod.metadata.namespace());
                match api.patch(pod.metadata.name(), &PatchParams::default(), &untracked()).await {
                    Ok(_) => Ok(pod.metadata.uid().to_owned()),
                    // The cache will show that it is gone, and until then it must not be counted again.
                    Err(e) if e.is("NotFound") => Ok(pod.metadata.uid().to_owned()),
                    Err(e) => {
                        // No change of the pod may tell of it.
                        self.removals.observed(key, pod.metadata.uid());
                        Err(Error::api(format!("remove the finalizer of pod {}", pod.metadata.key()), e))
                    }
                }
            }
        };
        let (mut released, mut result) = (BTreeSet::new(), Ok(()));
        for outcome in join_all(pods.iter().map(one)).await {
            match outcome {
                Ok(uid) => {
                    released.insert(uid);
                }
                Err(e) if result.is_ok() => result = Err(e),
                Err(_) => {}
            }
        }
        (released, result)
    }

    /// Makes a pod for each of `indexes`, in batches of 1, 2, 4, …, so that what fails for all fails only a few times.
    /// How many were made, and the first failure.
    pub(super) async fn create(
        &self,
        key: &str,
        job: &Job,
        spec: &JobSpec,
        survey: &Survey,
        indexes: &[Option<i32>],
    ) -> (usize, Result<(), Error>) {
        self.expectations.set(key, indexes.len(), []);
        let api = pods_api(self, job.metadata.namespace());
        let (mut left, mut batch, mut made) = (indexes, 1, 0);
        while !left.is_empty() {
            let (now, later) = left.split_at(batch.min(left.len()));
            let pods: Vec<Pod> = now.iter().map(|i| new_pod(job, spec, survey, *i)).collect();
            let results = join_all(pods.iter().map(|pod| self.create_one(key, job, &api, pod))).await;
            made += results.iter().filter(|r| matches!(r, Ok(true))).count();
            if let Some(error) = results.into_iter().find_map(Result::err) {
                for _ in later {
                    self.expectations.creation_observed(key);
                }
                return (made, Err(error));
            }
            left = later;
            batch *= 2;
        }
        (made, Ok(()))
    }

    /// Makes a pod. Whether it came into being: none does where the namespace is going, and the Job goes with it.
    async fn create_one(&self, key: &str, job: &Job, api: &Api<Pod>, pod: &Pod) -> Result<bool, Error> {
        match api.create(&PostParams::default(), pod).await {
            Ok(created) => {
                let message = format!("Created pod: {}", created.metadata.name());
                self.recorder.normal(job, "SuccessfulCreate", &message);
                Ok(true)
            }
            Err(e) => {
                self.expectations.creation_observed(key);
                if is_namespace_terminating(&e) {
                    return Ok(false);
                }
                self.recorder.warning(job, "FailedCreate", &format!("Error creating: {e}"));
                Err(Error::api(format!("create pod for {key}"), e))
            }
        }
    }
}

fn gone(pods: &[Arc<Pod>], results: Vec<Result<bool, Error>>) -> Gone {
    let mut gone = Gone { count: 0, ready: 0, result: Ok(()) };
    for (pod, result) in pods.iter().zip(results) {
        match result {
            Ok(_) => {
                gone.count += 1;
                gone.ready += usize::from(pod_state::is_ready(pod));
            }
            Err(e) if gone.result.is_ok() => gone.result = Err(e),
            Err(_) => {}
        }
    }
    gone
}

/// A new pod as the Job's template says, with its index where it has one.
pub(super) fn new_pod(job: &Job, spec: &JobSpec, survey: &Survey, index: Option<i32>) -> Pod {
    let template = spec.template.metadata.clone().unwrap_or_default();
    let mut finalizers = template.finalizers.unwrap_or_default();
    if !finalizers.iter().any(|f| f == FINALIZER) {
        finalizers.push(FINALIZER.to_owned());
    }
    let name = job.metadata.name();
    let mut pod = Pod {
        metadata: ObjectMeta {
            generate_name: Some(format!("{name}-")),
            namespace: job.metadata.namespace.clone(),
            labels: template.labels,
            annotations: template.annotations,
            finalizers: Some(finalizers),
            owner_references: Some(vec![controller_reference(job)]),
            ..Default::default()
        },
        spec: spec.template.spec.clone(),
        status: None,
    };
    let Some(i) = index.filter(|_| is_indexed(spec)) else { return pod };
    let suffix = format!("-{i}-");
    // Names are ASCII.
    let prefix = &name[..name.len().min(MAX_PREFIX.saturating_sub(suffix.len()))];
    pod.metadata.generate_name = Some(format!("{prefix}{suffix}"));
    pod.metadata.labels.get_or_insert_default().insert(INDEX.to_owned(), i.to_string());
    let annotations = pod.metadata.annotations.get_or_insert_default();
    annotations.insert(INDEX.to_owned(), i.to_string());
    if spec.backoff_limit_per_index.is_some() {
        let (counted, ignored) = failures_with(spec, survey.replaced.get(&i).map(|p| &**p));
        annotations.insert(FAILURES.to_owned(), counted.to_string());
        if ignored > 0 {
            annotations.insert(IGNORED.to_owned(), ignored.to_string());
        }
    }
    if let Some(spec) = &mut pod.spec {
        spec.hostname = Some(format!("{name}-{i}"));
        add_environment(spec);
    }
    pod
}
