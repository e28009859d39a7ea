//! Tenants that live from more than pods: from what is measured, from where they may be, from each other.

use crate::driver::Driver;
use crate::tenants::{pod, selector};
use gantry_sim::{Stuck, hollow, measured};
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod};
use serde_json::{Value, json};

/// Label and taint of the node that is kept for [`Driver::tolerant`].
pub const KEPT: &str = "lab.gantry.io/kept";
/// The name of that node.
pub const KEPT_NODE: &str = "node-4";
/// Taint of that node which comes and goes.
const LEAVE: &str = "lab.gantry.io/leave";

impl Driver {
    /// A Deployment that is scaled by its load, which changes.
    pub async fn scaled(&self) -> Result<(), Stuck> {
        let load = || json!({"data": {"w": self.draw(0, 170).to_string()}});
        let mut loads = load();
        loads["metadata"] = json!({"name": measured::LOADS});
        self.create::<ConfigMap>(loads).await;
        self.create::<Deployment>(json!({"metadata": {"name": "d"}, "spec": {
            "replicas": self.draw(1, 3), "selector": selector(), "template": pod("w", 1, "Always", "50m"),
        }}))
        .await;
        let grows = json!({"type": "Pods", "value": self.draw(1, 3), "periodSeconds": self.one_of(&[15, 30])});
        let cpu = json!({"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}});
        self.create::<HorizontalPodAutoscaler>(json!({"metadata": {"name": "h"}, "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"},
            "minReplicas": self.draw(1, 2), "maxReplicas": self.draw(4, 6),
            "metrics": [{"type": "Resource", "resource": cpu}],
            "behavior": {
                "scaleUp": {"stabilizationWindowSeconds": 0, "policies": [grows]},
                "scaleDown": {"stabilizationWindowSeconds": self.one_of(&[0, 30])},
            },
        }}))
        .await;
        for _ in 0..self.draw(2, 3) {
            self.pause(60).await;
            self.merge::<ConfigMap>(measured::LOADS, load()).await;
        }
        Ok(())
    }

    async fn taint(&self, leave: bool) {
        let mut taints = vec![json!({"key": KEPT, "effect": "NoSchedule"})];
        if leave {
            taints.push(json!({"key": LEAVE, "effect": "NoExecute"}));
        }
        self.at_large().merge::<Node>(KEPT_NODE, json!({"spec": {"taints": taints}})).await;
    }

    /// A Deployment on a node of its own, from which its pods have to go again and again, at once or after a while.
    pub async fn tolerant(&self) -> Result<(), Stuck> {
        let mut tolerations = vec![json!({"key": KEPT, "operator": "Exists", "effect": "NoSchedule"})];
        if self.chance(70) {
            tolerations.push(json!({
                "key": LEAVE, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": self.draw(2, 25),
            }));
        }
        let mut template = pod("w", 1, "Always", "10m");
        template["spec"]["tolerations"] = json!(tolerations);
        template["spec"]["nodeSelector"] = json!({KEPT: "true"});
        self.create::<Deployment>(json!({"metadata": {"name": "d"}, "spec": {
            "replicas": self.draw(1, 3), "selector": selector(), "template": template,
        }}))
        .await;
        for _ in 0..self.draw(2, 3) {
            self.between().await?;
            self.taint(true).await;
            self.pause(45).await;
            self.taint(false).await;
        }
        Ok(())
    }

    /// Gangs that come mixed, and together ask for most of what there is.
    pub async fn together(&self) -> Result<(), Stuck> {
        let mut coming: Vec<Value> = Vec::new();
        for gang in 0..self.draw(1, 3) {
            let size = self.draw(2, 4);
            let ends = self.draw(1000, 9000).to_string();
            coming.extend((0..size).map(|n| {
                let mut one = pod("w", 1, "Never", "800m");
                one["metadata"]["name"] = json!(format!("g{gang}-{n}"));
                one["metadata"]["annotations"] = json!({
                    "gantry.io/pod-group": format!("g{gang}"), "gantry.io/pod-group-min-count": size.to_string(),
                    hollow::ENDS_AFTER: ends,
                });
                one
            }));
        }
        let total = coming.len();
        while !coming.is_empty() {
            let next = usize::try_from(self.chance.below(coming.len() as u64)).unwrap_or(0);
            self.create::<Pod>(coming.swap_remove(next)).await;
            self.pause(1).await;
        }
        let here = format!("core/pods/{}", self.namespace);
        let done = |(_, p): &(&str, &std::sync::Arc<Value>)| p["status"]["phase"] == "Succeeded";
        self.until("all gangs have run", |w| w.all(&here).filter(done).count() == total).await
    }

    /// Deletes a StatefulSet; its claims stay, or go with it where it says so.
    pub async fn leaves_claims(&self) -> Result<(), Stuck> {
        let set = self.cluster.log.look(|w| w.get("apps/statefulsets", &format!("{}/s", self.namespace)).cloned());
        let policy = set.map(|s| s["spec"]["persistentVolumeClaimRetentionPolicy"]["whenDeleted"].clone());
        let goes = policy.is_some_and(|p| p == "Delete");
        let claims = self.names("core/persistentvolumeclaims");
        self.delete::<StatefulSet>("s", "Foreground").await;
        let pods = format!("core/pods/{}", self.namespace);
        let set = format!("{}/s", self.namespace);
        self.until("the set and its pods are gone", |w| {
            w.get("apps/statefulsets", &set).is_none() && w.all(&pods).next().is_none()
        })
        .await?;
        if goes {
            let here = format!("core/persistentvolumeclaims/{}", self.namespace);
            return self.until("its claims went with it", |w| w.all(&here).next().is_none()).await;
        }
        self.is_so("its claims stay", self.names("core/persistentvolumeclaims") == claims).await
    }
}
