//! What is done in one namespace: a workload drawn from the seed, and things done to it at times drawn from it.

use crate::driver::{Driver, LIMIT};
use gantry_client::Patch;
use gantry_sim::check::{Weather, unsettled};
use gantry_sim::{Stuck, hollow};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, ReplicationController, ResourceQuota};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::Duration;

/// What a namespace may be given to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tenant {
    Rolling,
    Recreating,
    Replicas,
    Ordered,
    Parallel,
    Daemon,
    Counting,
    Indexed,
    Failing,
    Suspended,
    Cron,
    Budget,
    Quota,
    Owners,
    Leaving,
    Scaled,
    Tolerant,
    Together,
}

pub const ALL: [Tenant; 18] = [
    Tenant::Rolling,
    Tenant::Counting,
    Tenant::Ordered,
    Tenant::Replicas,
    Tenant::Indexed,
    Tenant::Budget,
    Tenant::Cron,
    Tenant::Parallel,
    Tenant::Quota,
    Tenant::Owners,
    Tenant::Failing,
    Tenant::Recreating,
    Tenant::Leaving,
    Tenant::Suspended,
    Tenant::Daemon,
    Tenant::Scaled,
    Tenant::Tolerant,
    Tenant::Together,
];

/// The template of a pod.
pub fn pod(app: &str, version: i64, policy: &str, cpu: &str) -> Value {
    json!({
        "metadata": {"labels": {"app": app}},
        "spec": {
            "restartPolicy": policy, "terminationGracePeriodSeconds": 5,
            "containers": [{
                "name": "c", "image": format!("image:{version}"),
                "resources": {"requests": {"cpu": cpu, "memory": "8Mi"}},
            }],
        },
    })
}

fn template(version: i64) -> Value {
    json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": format!("image:{version}")}]}}}})
}

/// Selects the pods of the application `w`.
pub fn selector() -> Value {
    json!({"matchLabels": {"app": "w"}})
}

impl Driver {
    /// Waits until everything in the namespace is as declared.
    pub async fn settled(&self) -> Result<(), Stuck> {
        let wrong = || self.cluster.log.look(|w| unsettled(w, &self.namespace));
        // A look at everything costs more than most writes.
        for _ in 0..LIMIT.as_secs() {
            if wrong().is_empty() {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        self.is_so(&format!("all is as declared:\n{}", wrong().join("\n")), false).await
    }

    /// Between two things that are done: until all is quiet, or for a moment.
    pub async fn between(&self) -> Result<(), Stuck> {
        if self.chance(40) {
            return self.settled().await;
        }
        self.pause(12).await;
        Ok(())
    }

    /// Takes a pod away, as a person may.
    async fn lose_a_pod(&self) {
        let pods = self.names("core/pods");
        if !pods.is_empty() {
            let n = self.chance.below(pods.len() as u64);
            self.delete::<Pod>(&pods[usize::try_from(n).unwrap_or(0)], "Background").await;
        }
    }

    /// Plays the tenant to its end; everything is then as declared. In rough weather pods may be taken away.
    pub async fn play(&self, tenant: Tenant, weather: Weather) -> Result<(), Stuck> {
        let rough = weather.rough;
        self.at_large().create::<Namespace>(json!({"metadata": {"name": self.namespace}})).await;
        let account = format!("{}/default", self.namespace);
        self.until("there is a service account", |w| w.get("core/serviceaccounts", &account).is_some()).await?;
        match tenant {
            Tenant::Rolling => self.rolling(rough).await?,
            Tenant::Recreating => self.recreating(rough).await?,
            Tenant::Replicas => self.replicas(weather).await?,
            Tenant::Ordered => self.stateful("OrderedReady", rough).await?,
            Tenant::Parallel => self.stateful("Parallel", rough).await?,
            Tenant::Daemon => self.daemon().await?,
            Tenant::Counting => self.counting().await?,
            Tenant::Indexed => self.indexed().await?,
            Tenant::Failing => self.failing().await?,
            Tenant::Suspended => self.suspended().await?,
            Tenant::Cron => self.cron().await?,
            Tenant::Budget => self.budget().await?,
            Tenant::Quota => self.quota().await?,
            Tenant::Owners => self.owners().await?,
            Tenant::Leaving => self.leaving().await?,
            Tenant::Scaled => self.scaled().await?,
            Tenant::Tolerant => self.tolerant().await?,
            // Who is taken away before the others of its gang have come is never replaced, and they wait for ever.
            Tenant::Together if rough => {}
            Tenant::Together => self.together().await?,
        }
        self.settled().await
    }

    async fn rolling(&self, rough: bool) -> Result<(), Stuck> {
        let (surge, unavailable) = self.one_of(&[(1, 0), (0, 1), (2, 1), (1, 1)]);
        let strategy = if self.chance(25) {
            json!({"rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}})
        } else {
            json!({"rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}})
        };
        self.create::<Deployment>(json!({"metadata": {"name": "d"}, "spec": {
            "replicas": self.draw(1, 4), "selector": selector(), "strategy": strategy,
            "template": pod("w", 1, "Always", "10m"),
            "minReadySeconds": self.one_of(&[0, 0, 3]), "revisionHistoryLimit": self.draw(0, 2),
        }}))
        .await;
        for _ in 0..self.draw(2, 4) {
            self.between().await?;
            match self.draw(0, if rough { 5 } else { 4 }) {
                0 => self.merge::<Deployment>("d", json!({"spec": {"replicas": self.draw(0, 5)}})).await,
                1 | 2 => self.patch::<Deployment>("d", &Patch::Strategic(template(self.draw(1, 3)))).await,
                3 => {
                    self.merge::<Deployment>("d", json!({"spec": {"paused": true}})).await;
                    self.patch::<Deployment>("d", &Patch::Strategic(template(self.draw(1, 3)))).await;
                    self.pause(5).await;
                    self.merge::<Deployment>("d", json!({"spec": {"paused": false}})).await;
                }
                4 => {
                    // What cannot start holds the update up, until something else is declared.
                    self.patch::<Deployment>("d", &Patch::Strategic(template(4))).await;
                    self.pause(3).await;
                    self.patch::<Deployment>("d", &Patch::Strategic(template(self.draw(1, 3)))).await;
                }
                _ => self.lose_a_pod().await,
            }
        }
        if self.chance(30) {
            self.between().await?;
            self.delete::<Deployment>("d", self.one_of(&["Foreground", "Background"])).await;
            self.until("nothing is left of it", |w| {
                ["core/pods", "apps/replicasets", "apps/deployments"]
                    .iter()
                    .all(|r| w.all(&format!("{r}/{}", self.namespace)).next().is_none())
            })
            .await?;
        }
        Ok(())
    }

    async fn recreating(&self, rough: bool) -> Result<(), Stuck> {
        self.create::<Deployment>(json!({"metadata": {"name": "d"}, "spec": {
            "replicas": self.draw(1, 3), "selector": selector(), "strategy": {"type": "Recreate"},
            "template": pod("w", 1, "Always", "10m"),
        }}))
        .await;
        for version in 2..=3 {
            self.between().await?;
            self.patch::<Deployment>("d", &Patch::Strategic(template(version))).await;
            if rough {
                self.pause(4).await;
                self.lose_a_pod().await;
            }
        }
        Ok(())
    }

    async fn replicas(&self, weather: Weather) -> Result<(), Stuck> {
        let rough = weather.rough;
        let template = pod("w", 1, "Always", "10m");
        let controller = self.chance(40);
        if controller {
            let spec = json!({"replicas": self.draw(0, 5), "selector": {"app": "w"}, "template": template});
            self.create::<ReplicationController>(json!({"metadata": {"name": "r"}, "spec": spec})).await;
        } else {
            let spec = json!({"replicas": self.draw(0, 5), "selector": selector(), "template": template});
            self.create::<ReplicaSet>(json!({"metadata": {"name": "r"}, "spec": spec})).await;
        }
        for _ in 0..self.draw(2, 4) {
            self.between().await?;
            if rough && self.chance(40) {
                self.lose_a_pod().await;
                continue;
            }
            let scale = json!({"spec": {"replicas": self.draw(0, 6)}});
            if controller {
                self.merge::<ReplicationController>("r", scale).await;
            } else {
                self.merge::<ReplicaSet>("r", scale).await;
            }
        }
        if !controller && self.chance(30) {
            // Its pods outlive it, and are another's then.
            self.settled().await?;
            let before = self.names("core/pods");
            self.delete::<ReplicaSet>("r", "Orphan").await;
            self.until("it is gone", |w| w.get("apps/replicasets", &format!("{}/r", self.namespace)).is_none()).await?;
            self.is_so("orphaned pods are left alone", self.names("core/pods") == before).await?;
            let spec =
                json!({"replicas": before.len(), "selector": selector(), "template": pod("w", 1, "Always", "10m")});
            self.create::<ReplicaSet>(json!({"metadata": {"name": "s"}, "spec": spec})).await;
            self.settled().await?;
            // Who does not see yet that they are orphans makes others first, as upstream, and then has too many.
            if !rough && !weather.stale {
                self.is_so("orphaned pods are taken over", self.names("core/pods") == before).await?;
            }
        }
        Ok(())
    }

    async fn stateful(&self, policy: &str, rough: bool) -> Result<(), Stuck> {
        let mut spec = json!({
            "replicas": self.draw(1, 3), "selector": selector(), "serviceName": "s", "podManagementPolicy": policy,
            "template": pod("w", 1, "Always", "10m"), "ordinals": {"start": self.one_of(&[0, 0, 2])},
        });
        let claims = self.chance(40);
        if claims {
            let claim = json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}});
            spec["volumeClaimTemplates"] = json!([{"metadata": {"name": "v"}, "spec": claim}]);
            spec["template"]["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]);
            spec["persistentVolumeClaimRetentionPolicy"] = json!({
                "whenScaled": self.one_of(&["Retain", "Delete"]), "whenDeleted": self.one_of(&["Retain", "Delete"]),
            });
        }
        self.create::<StatefulSet>(json!({"metadata": {"name": "s"}, "spec": spec})).await;
        for _ in 0..self.draw(2, 3) {
            self.between().await?;
            match self.draw(0, if rough { 3 } else { 2 }) {
                0 => self.merge::<StatefulSet>("s", json!({"spec": {"replicas": self.draw(0, 4)}})).await,
                1 => {
                    let partition = json!({"rollingUpdate": {"partition": self.draw(0, 2)}});
                    self.merge::<StatefulSet>("s", json!({"spec": {"updateStrategy": partition}})).await;
                    self.pause(3).await;
                    self.patch::<StatefulSet>("s", &Patch::Strategic(template(self.draw(1, 3)))).await;
                }
                2 => self.patch::<StatefulSet>("s", &Patch::Strategic(template(self.draw(1, 3)))).await,
                _ => self.lose_a_pod().await,
            }
        }
        if claims && self.chance(40) {
            self.settled().await?;
            self.leaves_claims().await?;
        }
        Ok(())
    }

    async fn daemon(&self) -> Result<(), Stuck> {
        let update =
            if self.chance(50) { json!({"maxSurge": 1, "maxUnavailable": 0}) } else { json!({"maxUnavailable": 1}) };
        let mut template_of = pod("w", 1, "Always", "5m");
        if self.chance(30) {
            template_of["spec"]["tolerations"] = json!([{"operator": "Exists"}]);
        }
        self.create::<DaemonSet>(json!({"metadata": {"name": "d"}, "spec": {
            "selector": selector(), "template": template_of, "updateStrategy": {"rollingUpdate": update},
        }}))
        .await;
        for _ in 0..self.draw(1, 3) {
            self.between().await?;
            self.patch::<DaemonSet>("d", &Patch::Strategic(template(self.draw(1, 3)))).await;
        }
        Ok(())
    }

    fn ending(&self, policy: &str, fails: i64) -> Value {
        let mut template = pod("w", 1, policy, "10m");
        template["metadata"]["annotations"] = json!({
            hollow::ENDS_AFTER: self.draw(200, 9000).to_string(), hollow::FAILS: fails.to_string(),
        });
        template
    }

    async fn counting(&self) -> Result<(), Stuck> {
        let (completions, parallelism) = (self.draw(1, 6), self.draw(1, 4));
        let mut spec = json!({
            "completions": completions, "parallelism": parallelism, "backoffLimit": 60,
            "template": self.ending(self.one_of(&["Never", "OnFailure"]), self.one_of(&[0, 15, 30])),
        });
        let brief = self.chance(30);
        if brief {
            spec["ttlSecondsAfterFinished"] = json!(self.draw(0, 20));
        }
        self.create::<Job>(json!({"metadata": {"name": "j"}, "spec": spec})).await;
        if self.chance(40) {
            self.pause(8).await;
            self.merge::<Job>("j", json!({"spec": {"parallelism": self.draw(0, 4)}})).await;
            self.pause(8).await;
            self.merge::<Job>("j", json!({"spec": {"parallelism": 3}})).await;
        }
        self.settled().await?;
        if brief {
            self.until("its pods went with it", |w| w.all(&format!("core/pods/{}", self.namespace)).next().is_none())
                .await?;
        }
        Ok(())
    }

    async fn indexed(&self) -> Result<(), Stuck> {
        let count = self.draw(1, 5);
        let mut spec = json!({
            "completionMode": "Indexed", "completions": count, "parallelism": self.draw(1, 4), "backoffLimit": 60,
            "template": self.ending("Never", self.one_of(&[0, 20])),
        });
        match self.draw(0, 2) {
            0 => spec["backoffLimitPerIndex"] = json!(self.draw(0, 1)),
            1 => spec["successPolicy"] = json!({"rules": [{"succeededCount": 1}]}),
            _ => {}
        }
        self.create::<Job>(json!({"metadata": {"name": "j"}, "spec": spec})).await;
        self.settled().await
    }

    async fn failing(&self) -> Result<(), Stuck> {
        let mut spec = json!({
            "completions": self.draw(1, 3), "parallelism": self.draw(1, 3), "backoffLimit": self.draw(0, 2),
            "template": self.ending("Never", 100),
        });
        match self.draw(0, 2) {
            0 => {
                let rule = json!({"action": "FailJob", "onExitCodes": {"operator": "In", "values": [1]}});
                spec["podFailurePolicy"] = json!({"rules": [rule]});
            }
            1 => {
                spec["activeDeadlineSeconds"] = json!(self.draw(2, 20));
                spec["backoffLimit"] = json!(60);
            }
            _ => {}
        }
        self.create::<Job>(json!({"metadata": {"name": "j"}, "spec": spec})).await;
        self.settled().await
    }

    async fn suspended(&self) -> Result<(), Stuck> {
        let spec = json!({
            "completions": self.draw(2, 5), "parallelism": self.draw(1, 3), "suspend": self.chance(50),
            "template": self.ending("Never", 0),
        });
        self.create::<Job>(json!({"metadata": {"name": "j"}, "spec": spec})).await;
        for suspend in [false, true, false] {
            self.pause(6).await;
            self.merge::<Job>("j", json!({"spec": {"suspend": suspend}})).await;
            if suspend && self.chance(50) {
                self.settled().await?;
            }
        }
        self.settled().await
    }

    async fn cron(&self) -> Result<(), Stuck> {
        let policy = self.one_of(&["Allow", "Allow", "Forbid", "Replace"]);
        let job = json!({"spec": {"template": self.ending("Never", 0)}});
        self.create::<CronJob>(json!({"metadata": {"name": "c"}, "spec": {
            "schedule": self.one_of(&["*/1 * * * *", "*/2 * * * *"]), "concurrencyPolicy": policy, "jobTemplate": job,
            "timeZone": self.one_of(&["Etc/UTC", "Europe/Berlin", "America/New_York"]),
            "successfulJobsHistoryLimit": self.draw(0, 2),
        }}))
        .await;
        tokio::time::sleep(Duration::from_secs(330)).await;
        Ok(())
    }

    async fn budget(&self) -> Result<(), Stuck> {
        let replicas = self.draw(2, 4);
        self.create::<Deployment>(json!({"metadata": {"name": "d"}, "spec": {
            "replicas": replicas, "selector": selector(), "template": pod("w", 1, "Always", "10m"),
        }}))
        .await;
        let mut spec = json!({"selector": selector()});
        if self.chance(50) {
            spec["maxUnavailable"] = json!(1);
        } else {
            spec["minAvailable"] = json!(replicas - 1);
        }
        self.create::<PodDisruptionBudget>(json!({"metadata": {"name": "b"}, "spec": spec})).await;
        self.settled().await?;
        let evictions = self.names("core/pods").into_iter().map(|pod| async move { self.evict(&pod, 60).await });
        futures::future::join_all(evictions).await;
        self.settled().await
    }

    async fn quota(&self) -> Result<(), Stuck> {
        let most = self.draw(2, 4);
        let hard = json!({"pods": most.to_string(), "requests.cpu": "500m"});
        self.create::<ResourceQuota>(json!({"metadata": {"name": "q"}, "spec": {"hard": hard}})).await;
        let quota = format!("{}/q", self.namespace);
        self.until("the quota was counted", |w| {
            w.get("core/resourcequotas", &quota).is_some_and(|q| !q["status"]["used"].is_null())
        })
        .await?;
        let set = |name: &str, replicas: i64| {
            let labels = json!({"app": name});
            json!({"metadata": {"name": name}, "spec": {
                "replicas": replicas, "selector": {"matchLabels": labels}, "template": pod(name, 1, "Always", "20m"),
            }})
        };
        for name in ["one", "two"] {
            self.create::<ReplicaSet>(set(name, most)).await;
        }
        self.until("the quota is used up", |w| {
            i64::try_from(w.all(&format!("core/pods/{}", self.namespace)).count()).is_ok_and(|n| n >= most)
        })
        .await?;
        self.pause(20).await;
        self.lose_a_pod().await;
        self.pause(20).await;
        self.merge::<ReplicaSet>("one", json!({"spec": {"replicas": 1}})).await;
        self.merge::<ReplicaSet>("two", json!({"spec": {"replicas": most - 1}})).await;
        self.settled().await
    }

    /// A graph of owners; one is deleted, and what is left is what must be.
    async fn owners(&self) -> Result<(), Stuck> {
        let count = self.draw(5, 9);
        let mut owners: Vec<Vec<usize>> = Vec::new();
        let path = |n: usize| format!("{}/o{n}", self.namespace);
        for n in 0..usize::try_from(count).unwrap_or(0) {
            let mut of: BTreeSet<usize> = BTreeSet::new();
            let many = if n < 2 { 0 } else { self.draw(0, 2) };
            for _ in 0..many {
                of.insert(usize::try_from(self.chance.below(n as u64)).unwrap_or(0));
            }
            let references: Vec<Value> = of
                .iter()
                .map(|o| {
                    let uid = self
                        .cluster
                        .log
                        .look(|w| w.get("core/configmaps", &path(*o)).map(|c| c["metadata"]["uid"].clone()));
                    json!({
                        "apiVersion": "v1", "kind": "ConfigMap", "name": format!("o{o}"), "uid": uid,
                        "blockOwnerDeletion": self.chance(50),
                    })
                })
                .collect();
            self.create::<ConfigMap>(json!({"metadata": {"name": format!("o{n}"), "ownerReferences": references}}))
                .await;
            self.until("it is there", |w| w.get("core/configmaps", &path(n)).is_some()).await?;
            owners.push(of.into_iter().collect());
        }
        let mut there: BTreeSet<usize> = (0..owners.len()).collect();
        for _ in 0..2 {
            let all: Vec<usize> = there.iter().copied().collect();
            let Some(gone) = all.get(usize::try_from(self.chance.below(all.len().max(1) as u64)).unwrap_or(0)).copied()
            else {
                break;
            };
            let policy = self.one_of(&["Background", "Foreground", "Orphan"]);
            self.delete::<ConfigMap>(&format!("o{gone}"), policy).await;
            there.remove(&gone);
            if policy == "Orphan" {
                owners.iter_mut().for_each(|of| of.retain(|o| *o != gone));
            }
            // Whoever had owners and has none of them left goes; an owner that is left is reason enough to stay.
            while let Some(next) =
                there.iter().copied().find(|n| !owners[*n].is_empty() && owners[*n].iter().all(|o| !there.contains(o)))
            {
                there.remove(&next);
            }
            let left: BTreeSet<String> = there.iter().map(|n| format!("o{n}")).collect();
            let here = format!("core/configmaps/{}", self.namespace);
            self.until(&format!("{left:?} are left after {policy} of o{gone}"), |w| {
                let all = w.all(&here).filter(|(name, _)| name.starts_with('o'));
                all.map(|(name, _)| name.to_owned()).collect::<BTreeSet<_>>() == left
            })
            .await?;
        }
        Ok(())
    }

    async fn leaving(&self) -> Result<(), Stuck> {
        for (name, replicas) in [("d", 2), ("e", 1)] {
            let spec = json!({"replicas": replicas, "selector": {"matchLabels": {"app": name}},
                "template": pod(name, 1, "Always", "10m")});
            self.create::<Deployment>(json!({"metadata": {"name": name}, "spec": spec})).await;
        }
        let job = json!({"completions": 3, "template": self.ending("Never", 0)});
        self.create::<Job>(json!({"metadata": {"name": "j"}, "spec": job})).await;
        self.pause(15).await;
        self.at_large().delete::<Namespace>(&self.namespace, "Background").await;
        self.until("the namespace is gone", |w| w.get("core/namespaces", &self.namespace).is_none()).await
    }
}
