//! StorageVersionMigrations: has the server write every object of a resource anew, by an apply that changes nothing.
//! What is stored otherwise than it would be now, in another version or under another key, the server then replaces.

use crate::config::Setup;
use crate::discovery::discover;
use crate::rules::{EVENTS, Rule};
use async_trait::async_trait;
use gantry_api::meta::object::Meta;
use gantry_api::storagemigration::storage_version_migration::{FAILED, RUNNING, SUCCEEDED, begun_at, is, set};
use gantry_client::{
    Api, Error as ClientError, ListParams, MetadataApi, PartialObject, Patch, PostParams, ResourceRef,
};
use gantry_reconcile::store::key_of;
use gantry_reconcile::{Controller, Error, Informer, Outcome, Queue, runner, wait_synced};
use k8s_openapi::api::storagemigration::v1::StorageVersionMigration;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, CustomResourceDefinitionCondition,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use std::sync::Arc;

const WORKERS: usize = 5;
/// Objects listed at once.
const PAGE: u64 = 500;
const IN_PROGRESS: &str = "StorageVersionMigrationInProgress";
const HAS_SUCCEEDED: &str = "StorageVersionMigrationSucceeded";
const HAS_FAILED: &str = "StorageVersionMigrationFailed";
/// Condition of a definition whose objects are being migrated.
const MIGRATING: &str = "StorageMigrating";

/// What the controller may do.
pub const RULES: &[Rule] = &[
    // Any resource may be named.
    Rule::new(&["*"], &["*"], &["get", "list", "patch", "watch"]),
    Rule::new(&["storagemigration.k8s.io"], &["storageversionmigrations/status"], &["update"]),
    Rule::new(&["apiextensions.k8s.io"], &["customresourcedefinitions/status"], &["update"]),
    EVENTS,
];

struct Migrator {
    migrations: Informer<StorageVersionMigration>,
    setup: Setup,
}

/// Runs the controller.
pub async fn run(setup: Setup) {
    let migrations = setup.informers.get::<StorageVersionMigration>();
    let queue = Queue::new(setup.name);
    let (q, known) = (queue.clone(), migrations.clone());
    // Those of the same resource wait for each other.
    migrations.on_change(move |change| {
        let resource = named(change.object());
        for other in known.list().iter().filter(|m| named(m) == resource && !has_ended(m)) {
            q.add(key_of(other.as_ref()));
        }
    });
    if !wait_synced(&[&migrations], &setup.cancel).await {
        return;
    }
    let cancel = setup.cancel.clone();
    runner::run(Arc::new(Migrator { migrations, setup }), queue, WORKERS, cancel).await;
}

/// The resource that a migration names.
fn named(migration: &StorageVersionMigration) -> Option<(&str, &str)> {
    migration.spec.as_ref().map(|s| (s.resource.group.as_str(), s.resource.resource.as_str()))
}

fn has_ended(migration: &StorageVersionMigration) -> bool {
    is(migration, SUCCEEDED) || is(migration, FAILED)
}

/// Whether another migration of the resource has to end first: one that runs, or an older one.
fn waits(migration: &StorageVersionMigration, all: &[Arc<StorageVersionMigration>]) -> bool {
    let age = |m: &StorageVersionMigration| {
        (m.metadata.creation_timestamp.as_ref().map(|t| t.0), m.metadata.name().to_owned())
    };
    let runs = is(migration, RUNNING);
    all.iter()
        .filter(|o| named(o) == named(migration) && o.metadata.name() != migration.metadata.name())
        .filter(|o| !has_ended(o))
        .any(|o| (is(o, RUNNING) && !runs) || (is(o, RUNNING) == runs && age(o) < age(migration)))
}

/// The apply that changes nothing of the object as it was seen, and of no other in its place.
fn touch(resource: &ResourceRef, object: &PartialObject) -> Value {
    let meta = &object.metadata;
    json!({"apiVersion": resource.api_version(), "kind": resource.kind,
        "metadata": {"name": meta.name(), "uid": meta.uid, "resourceVersion": meta.resource_version}})
}

/// Whether an object was written after the migration began, in which case it is as it should be.
fn is_newer(object: &PartialObject, begun_at: &str) -> bool {
    let version = object.metadata.resource_version.as_deref().unwrap_or_default();
    (version.len(), version) > (begun_at.len(), begun_at)
}

/// Why a migration did not come to its end.
enum Stopped {
    /// It cannot go on.
    Failed(String),
    /// It is to be tried again.
    Again(Error),
}

impl Stopped {
    fn of(action: &str, error: ClientError) -> Self {
        if error.is_retryable() {
            return Self::Again(Error::api(action, error));
        }
        Self::Failed(format!("migration encountered unhandled error: {error}"))
    }
}

impl Migrator {
    /// The resource a migration names.
    async fn resource(&self, migration: &StorageVersionMigration) -> Result<ResourceRef, Stopped> {
        let spec = migration.spec.clone().unwrap_or_default();
        let wanted = &spec.resource;
        let found =
            discover(&self.setup.client).await.map_err(|e| Stopped::Again(Error::api("discover resources", e)))?;
        let named = found
            .resources
            .into_iter()
            .find(|d| d.resource.group == wanted.group && d.resource.plural == wanted.resource);
        if let Some((version, why)) = found.failures.iter().find(|(version, _)| version.starts_with(&wanted.group)) {
            // It may be in the version that did not answer.
            if named.is_none() && !wanted.group.is_empty() {
                return Err(Stopped::Again(Error::Other(format!("discover resources of {version}: {why}"))));
            }
        }
        let named = named.filter(|d| d.answers(&["list", "patch"]));
        named.map(|d| d.resource).ok_or_else(|| Stopped::Failed("resource does not exist in discovery".into()))
    }

    /// Writes every object anew that has not been written since.
    async fn rewrite(&self, api: &MetadataApi, begun_at: &str) -> Result<(), Stopped> {
        let resource = api.resource();
        let mut params = ListParams { limit: PAGE, ..Default::default() };
        loop {
            let page = api.list("", &params).await.map_err(|e| Stopped::of("list objects", e))?;
            for object in page.items.iter().filter(|o| !is_newer(o, begun_at)) {
                let meta = &object.metadata;
                match api.patch(meta.namespace(), meta.name(), &Patch::Apply(touch(resource, object))).await {
                    Ok(_) => {}
                    // Whoever changed or replaced it had it written; what is gone needs no writing.
                    Err(e) if e.is("Conflict") || e.is("NotFound") => {}
                    Err(e) => return Err(Stopped::of(&format!("migrate {} {}", resource.qualified(), meta.name()), e)),
                }
            }
            if page.continue_token.is_empty() {
                return Ok(());
            }
            params.continue_token = Some(page.continue_token);
        }
    }

    /// The definition of the resource, where it is a custom one.
    async fn definition(&self, resource: &ResourceRef) -> Result<Option<CustomResourceDefinition>, Error> {
        if !resource.group.contains('.') {
            return Ok(None);
        }
        let api = Api::<CustomResourceDefinition>::all(self.setup.client.clone());
        let name = resource.qualified();
        api.get_opt(&name).await.map_err(|e| Error::api(format!("get definition {name}"), e))
    }

    /// Notes on the definition of the resource what `change` makes of it.
    async fn note(
        &self,
        resource: &ResourceRef,
        change: impl FnOnce(&mut CustomResourceDefinition, Timestamp) + Send,
    ) -> Result<(), Error> {
        let Some(before) = self.definition(resource).await? else { return Ok(()) };
        let mut after = before.clone();
        change(&mut after, self.setup.config.clock.now());
        if after == before {
            return Ok(());
        }
        let api = Api::<CustomResourceDefinition>::all(self.setup.client.clone());
        let noted = api.update_status(&PostParams::default(), &after).await;
        noted.map(drop).map_err(|e| Error::api(format!("update status of definition {}", after.metadata.name()), e))
    }

    async fn write(&self, migration: &StorageVersionMigration) -> Result<StorageVersionMigration, Error> {
        let api = Api::<StorageVersionMigration>::all(self.setup.client.clone());
        let name = migration.metadata.name();
        let written = api.update_status(&PostParams::default(), migration).await;
        written.map_err(|e| Error::api(format!("update status of migration {name}"), e))
    }

    /// Begins where it has not begun, and comes to the end.
    async fn migrate(&self, migration: &mut StorageVersionMigration) -> Result<(), Stopped> {
        let resource = self.resource(migration).await?;
        let name = migration.metadata.name().to_owned();
        let api = MetadataApi::new(self.setup.client.clone(), resource.clone());
        if begun_at(migration).is_empty() {
            let first = ListParams { limit: 1, ..Default::default() };
            let version = api.list("", &first).await.map_err(|e| Stopped::of("list objects", e))?.resource_version;
            migration.status.get_or_insert_default().resource_version = Some(version);
        }
        if !is(migration, RUNNING) {
            self.note(&resource, |crd, now| begun(crd, &name, now)).await.map_err(Stopped::Again)?;
            set(migration, RUNNING, IN_PROGRESS, "", self.setup.config.clock.now());
            *migration = self.write(migration).await.map_err(Stopped::Again)?;
        }
        let rewritten = self.rewrite(&api, begun_at(migration)).await;
        if matches!(rewritten, Err(Stopped::Again(_))) {
            return rewritten;
        }
        let succeeded = rewritten.is_ok();
        self.note(&resource, |crd, now| ended(crd, succeeded, now)).await.map_err(Stopped::Again)?;
        rewritten
    }
}

/// Sets the condition of a definition that tells of a migration.
fn set_migrating(crd: &mut CustomResourceDefinition, status: &str, reason: &str, message: String, now: Timestamp) {
    let generation = crd.metadata.generation;
    let conditions = crd.status.get_or_insert_default().conditions.get_or_insert_default();
    let now = Time(Timestamp::from_second(now.as_second()).unwrap_or(now));
    let at = conditions.iter().position(|c| c.type_ == MIGRATING);
    let before = at.map(|i| conditions[i].clone()).filter(|c| c.status == status);
    let condition = CustomResourceDefinitionCondition {
        type_: MIGRATING.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message),
        last_transition_time: before.and_then(|c| c.last_transition_time).or(Some(now)),
        observed_generation: generation,
    };
    match at {
        Some(i) => conditions[i] = condition,
        None => conditions.push(condition),
    }
}

fn begun(crd: &mut CustomResourceDefinition, migration: &str, now: Timestamp) {
    set_migrating(crd, "True", "MigrationRunning", format!("Migration {migration} is running"), now);
}

/// Of a definition that nobody changed meanwhile the objects are now stored in the one version.
fn ended(crd: &mut CustomResourceDefinition, succeeded: bool, now: Timestamp) {
    if !succeeded {
        return set_migrating(crd, "True", "MigrationFailed", "The migration has failed".to_owned(), now);
    }
    let conditions = crd.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    let seen = conditions.iter().find(|c| c.type_ == MIGRATING).and_then(|c| c.observed_generation);
    let same = seen.is_some() && seen == crd.metadata.generation;
    let told = if same {
        "The migration has succeeded and the stored versions have been updated"
    } else {
        "The migration has succeeded but the stored versions have not been updated due to a generation mismatch"
    };
    set_migrating(crd, "False", "MigrationSucceeded", told.to_owned(), now);
    if same {
        let stored = crd.spec.versions.iter().filter(|v| v.storage).map(|v| v.name.clone()).collect();
        crd.status.get_or_insert_default().stored_versions = Some(stored);
    }
}

#[async_trait]
impl Controller for Migrator {
    fn name(&self) -> &'static str {
        self.setup.name
    }

    async fn reconcile(&self, key: &str) -> Result<Outcome, Error> {
        let Some(found) = self.migrations.store().by_key(key) else { return Ok(Outcome::done()) };
        if has_ended(&found) || found.metadata.is_deleting() || waits(&found, &self.migrations.list()) {
            return Ok(Outcome::done());
        }
        let mut migration = (*found).clone();
        let (condition, reason, message) = match self.migrate(&mut migration).await {
            Ok(()) => (SUCCEEDED, HAS_SUCCEEDED, String::new()),
            Err(Stopped::Failed(why)) => (FAILED, HAS_FAILED, why),
            Err(Stopped::Again(error)) => return Err(error),
        };
        set(&mut migration, condition, reason, &message, self.setup.config.clock.now());
        self.write(&migration).await?;
        Ok(Outcome::done())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn migration(name: &str, resource: &str, second: i64, condition: Option<&str>) -> Arc<StorageVersionMigration> {
        let made = Timestamp::from_second(second).unwrap();
        let mut out: StorageVersionMigration = serde_json::from_value(
            json!({"apiVersion": "storagemigration.k8s.io/v1", "kind": "StorageVersionMigration",
            "metadata": {"name": name, "creationTimestamp": made},
            "spec": {"resource": {"group": "", "resource": resource}}}),
        )
        .unwrap();
        if let Some(condition) = condition {
            set(&mut out, condition, "R", "", made);
        }
        Arc::new(out)
    }

    #[test]
    fn migrations_of_a_resource_take_turns() {
        let all = [
            migration("a", "secrets", 3, None),
            migration("b", "secrets", 2, Some(RUNNING)),
            migration("c", "secrets", 1, Some(SUCCEEDED)),
            migration("d", "pods", 9, None),
            migration("e", "pods", 8, None),
        ];
        let waiting: Vec<&str> =
            all.iter().filter(|m| !has_ended(m) && waits(m, &all)).map(|m| m.metadata.name()).collect();
        assert_eq!(waiting, ["a", "d"]);
    }

    #[test]
    fn only_what_is_older_is_written() {
        let object = |version: &str| PartialObject {
            metadata: serde_json::from_value(json!({"name": "o", "uid": "1", "resourceVersion": version})).unwrap(),
            ..Default::default()
        };
        let newer: Vec<bool> = ["9", "10", "11", "100"].map(|v| is_newer(&object(v), "10")).to_vec();
        assert_eq!(newer, [false, false, true, true]);
        let secrets = ResourceRef { version: "v1".into(), kind: "Secret".into(), ..Default::default() };
        assert_eq!(
            touch(&secrets, &object("9")),
            json!({"apiVersion": "v1", "kind": "Secret",
                "metadata": {"name": "o", "uid": "1", "resourceVersion": "9"}})
        );
    }

    #[test]
    fn a_definition_is_told_of_its_migration() {
        let now = Timestamp::UNIX_EPOCH;
        let mut crd = CustomResourceDefinition::default();
        crd.metadata.generation = Some(3);
        crd.spec.versions = serde_json::from_value(json!([{"name": "v1", "served": true, "storage": false},
            {"name": "v2", "served": true, "storage": true}]))
        .unwrap();
        crd.status.get_or_insert_default().stored_versions = Some(vec!["v1".into(), "v2".into()]);
        let condition = |crd: &CustomResourceDefinition| {
            let status = crd.status.clone().unwrap();
            let [c] = <[CustomResourceDefinitionCondition; 1]>::try_from(status.conditions.unwrap()).unwrap();
            (c.status, c.reason.unwrap(), status.stored_versions.unwrap().len())
        };
        begun(&mut crd, "m", now);
        assert_eq!(condition(&crd), ("True".into(), "MigrationRunning".into(), 2));
        let mut changed = crd.clone();
        changed.metadata.generation = Some(4);
        ended(&mut changed, true, now);
        assert_eq!(condition(&changed), ("False".into(), "MigrationSucceeded".into(), 2));
        ended(&mut crd, true, now);
        assert_eq!(condition(&crd), ("False".into(), "MigrationSucceeded".into(), 1));
        ended(&mut crd, false, now);
        assert_eq!(condition(&crd), ("True".into(), "MigrationFailed".into(), 1));
    }
}
