//! Does to a cluster what a person does, however often it has to be tried.

use gantry_api::entropy::Entropy;
use gantry_api::kind::Kind;
use gantry_client::{Api, DeleteParams, Error, Patch, PatchParams, PostParams};
use gantry_sim::{ControlPlane, Stuck, World};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::Eviction;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

/// Nothing takes longer than this in virtual time to come about.
pub const LIMIT: Duration = Duration::from_secs(3600);

/// One who works in one namespace. Cheap to clone.
#[derive(Clone)]
pub struct Driver {
    pub cluster: Arc<ControlPlane>,
    pub namespace: String,
    /// Chance of its own, so that what is done does not depend on what else happens.
    pub chance: Entropy,
}

impl Driver {
    pub fn api<K: Kind>(&self) -> Api<K> {
        self.cluster.api(&self.namespace)
    }

    /// The same, for what has no namespace.
    pub fn at_large(&self) -> Self {
        Self { namespace: String::new(), ..self.clone() }
    }

    /// A number from `least` to `most`.
    pub fn draw(&self, least: i64, most: i64) -> i64 {
        least + i64::try_from(self.chance.below(u64::try_from(most - least + 1).unwrap_or(1))).unwrap_or(0)
    }

    /// True in so many of a hundred cases.
    pub fn chance(&self, percent: u64) -> bool {
        self.chance.below(100) < percent
    }

    pub fn one_of<T: Copy>(&self, all: &[T]) -> T {
        all[usize::try_from(self.chance.below(all.len() as u64)).unwrap_or(0)]
    }

    /// Waits for up to so many seconds.
    pub async fn pause(&self, most: i64) {
        let milliseconds = u64::try_from(self.draw(0, most * 1000)).unwrap_or(0);
        tokio::time::sleep(Duration::from_millis(milliseconds)).await;
    }

    /// Tries until there is an answer that is none of a server that is down. What was done is in the log then: time
    /// passes only once nobody has anything left to do.
    async fn insist<T, F: Future<Output = Result<T, Error>>>(
        &self,
        mut attempt: impl FnMut() -> F,
    ) -> Result<T, Error> {
        for _ in 0..200 {
            let answer = attempt().await;
            let down = matches!(&answer, Err(e) if e.is_retryable() && !e.is("AlreadyExists"));
            tokio::time::sleep(Duration::from_millis(if down { 700 } else { 1 })).await;
            if !down {
                return answer;
            }
        }
        panic!("the server of {} is down for ever", self.namespace);
    }

    pub async fn create<K: Kind>(&self, value: Value) {
        let object = K::from_value(value).expect("the object is well formed");
        let (api, post) = (self.api::<K>(), PostParams::default());
        let created = self.insist(|| api.create(&post, &object)).await;
        match created {
            // The answer to an earlier attempt may have been lost.
            Err(e) if !e.is("AlreadyExists") => panic!("cannot create {}: {e}", K::INFO.plural),
            _ => {}
        }
    }

    /// A patch; no matter where the object is gone.
    pub async fn patch<K: Kind>(&self, name: &str, patch: &Patch) {
        let (api, params) = (self.api::<K>(), PatchParams::default());
        match self.insist(|| api.patch(name, &params, patch)).await {
            Err(e) if !e.is("NotFound") => panic!("cannot patch {} {name}: {e}", K::INFO.plural),
            _ => {}
        }
    }

    pub async fn merge<K: Kind>(&self, name: &str, value: Value) {
        self.patch::<K>(name, &Patch::Merge(value)).await;
    }

    pub async fn delete<K: Kind>(&self, name: &str, policy: &str) {
        let params = DeleteParams { propagation_policy: Some(policy.into()), ..Default::default() };
        let api = self.api::<K>();
        match self.insist(|| api.delete(name, &params)).await {
            Err(e) if !e.is("NotFound") => panic!("cannot delete {} {name}: {e}", K::INFO.plural),
            _ => {}
        }
    }

    /// Evicts a pod as often as its budget says no, at most for so long; whether it was evicted.
    pub async fn evict(&self, pod: &str, tries: u32) -> bool {
        let value = json!({"metadata": {"name": pod, "namespace": self.namespace}});
        let eviction = Eviction::from_value(value).expect("well formed");
        let (api, post) = (self.api::<Pod>(), PostParams::default());
        for _ in 0..tries {
            match api.post_subresource(pod, "eviction", &post, &eviction).await {
                Ok(()) => return true,
                Err(e) if e.is("NotFound") => return false,
                Err(e) if e.is_retryable() => tokio::time::sleep(Duration::from_secs(3)).await,
                Err(e) => panic!("cannot evict {pod}: {e}"),
            }
        }
        false
    }

    /// The names of the objects of a resource in the namespace.
    pub fn names(&self, resource: &str) -> Vec<String> {
        let here = format!("{resource}/{}", self.namespace);
        self.cluster.log.look(|w| w.all(&here).map(|(name, _)| name.to_owned()).collect())
    }

    pub async fn until(&self, what: &str, holds: impl FnMut(&World) -> bool) -> Result<(), Stuck> {
        self.cluster.log.until(&format!("{}: {what}", self.namespace), LIMIT, holds).await
    }

    /// Goes on only where something is so now.
    pub async fn is_so(&self, what: &str, so: bool) -> Result<(), Stuck> {
        self.cluster.log.until(&format!("{}: {what}", self.namespace), Duration::ZERO, |_| so).await
    }
}
