//! What tests of a control plane begin with.

use crate::control_plane::ControlPlane;
use crate::log::{Stuck, World};
use gantry_api::kind::Kind;
use gantry_client::PostParams;
use k8s_openapi::api::core::v1::Namespace;
use serde_json::{Value, json};
use std::time::Duration;

/// Nothing a cluster begins with takes longer in virtual time.
const LIMIT: Duration = Duration::from_secs(900);

impl ControlPlane {
    /// Makes an object as its administrator, in a namespace or in none where it is empty.
    ///
    /// # Panics
    /// Where the object is not well formed, or the server does not take it.
    pub async fn create<K: Kind>(&self, namespace: &str, value: Value) {
        let object = K::from_value(value).expect("the object is well formed");
        self.api::<K>(namespace).create(&PostParams::default(), &object).await.expect("the object is created");
    }

    /// Makes a namespace, and waits until it can take pods and so many nodes are ready for them.
    ///
    /// # Errors
    /// Where that does not come about.
    pub async fn furnish(&self, namespace: &str, nodes: usize) -> Result<(), Stuck> {
        self.create::<Namespace>("", json!({"metadata": {"name": namespace}})).await;
        let account = format!("{namespace}/default");
        let ready = |w: &World| {
            let untainted = |n: &Value| n["spec"]["taints"].as_array().is_none_or(Vec::is_empty);
            w.get("core/serviceaccounts", &account).is_some()
                && w.all("core/nodes").filter(|(_, n)| untainted(n)).count() == nodes
        };
        self.log.until("the cluster is ready", LIMIT, ready).await
    }
}
