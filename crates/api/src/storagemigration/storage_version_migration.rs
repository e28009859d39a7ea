//! StorageVersionMigration: has every object of a resource written anew, in the version and the encryption that are current
//! (KEP-4192).

use crate::apps::workload;
use crate::kind::{Context, Kind, ResourceInfo, STATUS};
use crate::meta::conditions::validate_conditions;
use crate::meta::field::{ErrorList, Path};
use crate::meta::names;
use crate::meta::object::{IMMUTABLE, reset_for_status};
use k8s_openapi::api::storagemigration::v1::{StorageVersionMigration, StorageVersionMigrationStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use serde_json::json;

/// Condition of a migration that has begun and not ended.
pub const RUNNING: &str = "Running";
/// Condition of a migration that wrote every object.
pub const SUCCEEDED: &str = "Succeeded";
/// Condition of a migration that gave up.
pub const FAILED: &str = "Failed";

fn conditions(migration: &StorageVersionMigration) -> &[Condition] {
    migration.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default()
}

/// Whether the migration has a condition of this type that is true.
#[must_use]
pub fn is(migration: &StorageVersionMigration, r#type: &str) -> bool {
    conditions(migration).iter().any(|c| c.type_ == r#type && c.status == "True")
}

/// The resource version the migration began with, empty where it has not begun.
#[must_use]
pub fn begun_at(migration: &StorageVersionMigration) -> &str {
    migration.status.as_ref().and_then(|s| s.resource_version.as_deref()).unwrap_or_default()
}

/// Notes that a condition of this type became true at `now`; where the migration ends with it, it no longer runs.
pub fn set(migration: &mut StorageVersionMigration, r#type: &str, reason: &str, message: &str, now: Timestamp) {
    if is(migration, r#type) {
        return;
    }
    let now = Time(Timestamp::from_second(now.as_second()).unwrap_or(now));
    let conditions = migration.status.get_or_insert_default().conditions.get_or_insert_default();
    if r#type != RUNNING {
        for running in conditions.iter_mut().filter(|c| c.type_ == RUNNING) {
            running.status = "False".to_owned();
        }
    }
    conditions.push(Condition {
        type_: r#type.to_owned(),
        status: "True".to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        last_transition_time: now,
        observed_generation: None,
    });
}

/// Conditions as field errors show them, in the order of their fields.
fn shown(conditions: &[Condition]) -> String {
    let one = |c: &Condition| {
        let mut fields = vec![("type", json!(c.type_)), ("status", json!(c.status))];
        fields.extend(c.observed_generation.map(|g| ("observedGeneration", json!(g))));
        let rest = [("lastTransitionTime", json!(c.last_transition_time)), ("reason", json!(c.reason))];
        fields.extend(rest);
        fields.push(("message", json!(c.message)));
        workload::shown_as(&fields)
    };
    format!("[{}]", conditions.iter().map(one).collect::<Vec<_>>().join(","))
}

impl Kind for StorageVersionMigration {
    const INFO: ResourceInfo = ResourceInfo {
        subresources: &[STATUS],
        unconditional_update: false,
        ..ResourceInfo::new(
            "storagemigration.k8s.io",
            "v1",
            "StorageVersionMigration",
            "storageversionmigrations",
            "storageversionmigration",
            false,
        )
    };
    crate::kind_codec!();

    fn prepare_for_create(&mut self, _cx: &Context<'_>) {
        self.status = Some(StorageVersionMigrationStatus::default());
    }

    fn validate(&self) -> ErrorList {
        let mut e = ErrorList::default();
        let at = Path::new("spec").child("resource");
        let spec = self.spec.clone().unwrap_or_default();
        let resource = &spec.resource;
        if resource.resource.is_empty() {
            e.required(&at.child("resource"), "resource is required to be set");
        }
        let wrong = names::dns1035_label(&resource.resource, false);
        if !wrong.is_empty() && !resource.resource.is_empty() {
            e.invalid(&at.child("resource"), resource.resource.as_str(), &wrong.join(","));
        }
        let wrong = names::dns1123_subdomain(&resource.group, false);
        if !wrong.is_empty() && !resource.group.is_empty() {
            e.invalid(&at.child("group"), resource.group.as_str(), &wrong.join(","));
        }
        e
    }

    fn prepare_for_update(&mut self, old: &Self, _cx: &Context<'_>) {
        self.status.clone_from(&old.status);
    }

    fn validate_update(&self, old: &Self) -> ErrorList {
        let mut e = self.validate();
        if self.spec != old.spec {
            // Upstream's own type has its own name of the field.
            let shown = workload::shown_as(&[("Resource", json!(self.spec.as_ref().map(|s| &s.resource)))]);
            workload::invalid_shown(&mut e, &Path::new("spec"), &shown, IMMUTABLE);
        }
        e
    }

    fn prepare_for_status_update(&mut self, old: &Self, _cx: &Context<'_>) {
        self.spec.clone_from(&old.spec);
        reset_for_status(&mut self.metadata, &old.metadata);
    }

    fn validate_status_update(&self, old: &Self) -> ErrorList {
        let mut e = ErrorList::default();
        let path = Path::new("status");
        let (version, before) = (begun_at(self), begun_at(old));
        let at = path.child("resourceVersion");
        // A migration may fail before it has a version.
        let well_formed = version.bytes().all(|b| b.is_ascii_digit()) && !version.starts_with('0');
        if !well_formed {
            e.invalid(&at, version, &format!("resource version is not well formed: {version}"));
        }
        let of_conditions = path.child("conditions");
        e.extend(validate_conditions(conditions(self), &of_conditions));
        if !before.is_empty() && before != version {
            e.invalid(&at, version, IMMUTABLE);
        }
        let (succeeded, failed, running) = (is(self, SUCCEEDED), is(self, FAILED), is(self, RUNNING));
        for (wrong, told) in [
            (succeeded && failed, "Both success and failed conditions cannot be true at the same time"),
            (succeeded && running, "Running condition cannot be true when success condition is true"),
            (failed && running, "Running condition cannot be true when failed condition is true"),
            (is(old, SUCCEEDED) && !succeeded, "Success condition cannot be set to false once it is true"),
            (is(old, FAILED) && !failed, "Failed condition cannot be set to false once it is true"),
        ] {
            if wrong {
                workload::invalid_shown(&mut e, &of_conditions, &shown(conditions(self)), told);
            }
        }
        e
    }

    fn reset_fields() -> (&'static [&'static [&'static str]], &'static [&'static [&'static str]]) {
        (&[&["status"]], &[&["metadata"], &["spec"]])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn migration(resource: Value, status: Value) -> StorageVersionMigration {
        StorageVersionMigration::from_value(
            json!({"metadata": {"name": "m"}, "spec": {"resource": resource}, "status": status}),
        )
        .unwrap()
    }

    fn texts(errors: &ErrorList) -> Vec<String> {
        errors.0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn which_resource_it_is_stays() {
        let good = migration(json!({"group": "", "resource": "secrets"}), json!({}));
        assert!(good.validate().is_empty());
        let none = migration(json!({"group": "A_b", "resource": ""}), json!({}));
        let told = texts(&none.validate());
        assert_eq!(told[0], "spec.resource.resource: Required value: resource is required to be set");
        assert!(told[1].starts_with("spec.resource.group: Invalid value: \"A_b\": a lowercase RFC 1123 subdomain"));
        let other = migration(json!({"group": "", "resource": "pods"}), json!({}));
        assert_eq!(
            texts(&other.validate_update(&good)),
            ["spec: Invalid value: {\"Resource\":{\"group\":\"\",\"resource\":\"pods\"}}: field is immutable"]
        );
    }

    #[test]
    fn what_has_ended_stays_ended() {
        let secrets = || json!({"group": "", "resource": "secrets"});
        let fresh = migration(secrets(), json!({}));
        let mut run = fresh.clone();
        run.status = serde_json::from_value(json!({"resourceVersion": "7"})).unwrap();
        set(&mut run, RUNNING, "StorageVersionMigrationInProgress", "", Timestamp::UNIX_EPOCH);
        assert!(run.validate_status_update(&fresh).is_empty());
        let mut done = run.clone();
        set(&mut done, SUCCEEDED, "StorageVersionMigrationSucceeded", "", Timestamp::UNIX_EPOCH);
        assert!(done.validate_status_update(&run).is_empty(), "{done:?}");
        assert!(!is(&done, RUNNING) && is(&done, SUCCEEDED));
        let told = texts(&run.validate_status_update(&done));
        assert!(told[0].ends_with("Success condition cannot be set to false once it is true"), "{told:?}");
        let mut both = done.clone();
        set(&mut both, FAILED, "StorageVersionMigrationFailed", "", Timestamp::UNIX_EPOCH);
        let told = texts(&both.validate_status_update(&done));
        assert!(told[0].ends_with("Both success and failed conditions cannot be true at the same time"), "{told:?}");
        let mut moved = done.clone();
        moved.status.as_mut().unwrap().resource_version = Some("x8".into());
        assert_eq!(
            texts(&moved.validate_status_update(&done)),
            [
                "status.resourceVersion: Invalid value: \"x8\": resource version is not well formed: x8",
                "status.resourceVersion: Invalid value: \"x8\": field is immutable",
            ]
        );
    }
}
