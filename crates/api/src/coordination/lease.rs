//! Lease: a heartbeat or an elected leader.

use crate::kind::{Column, Kind, ResourceInfo};
use crate::meta::field::{ErrorList, Path};
use crate::meta::object::Meta;
use crate::meta::{names, table, text};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

impl Kind for Lease {
    const INFO: ResourceInfo = ResourceInfo {
        create_on_update: true,
        unconditional_update: false,
        ..ResourceInfo::new("coordination.k8s.io", "v1", "Lease", "leases", "lease", true)
    };
    const COLUMNS: &'static [Column] =
        &[table::NAME, table::text_column("Holder", "Who holds the lease.", 0), table::AGE];
    crate::kind_codec!();

    fn validate(&self) -> ErrorList {
        let mut errors = ErrorList::default();
        let Some(spec) = &self.spec else { return errors };
        let path = Path::new("spec");
        if let Some(s) = spec.lease_duration_seconds.filter(|s| *s <= 0) {
            errors.invalid(&path.child("leaseDurationSeconds"), s, "must be greater than 0");
        }
        if let Some(n) = spec.lease_transitions.filter(|n| *n < 0) {
            errors.invalid(&path.child("leaseTransitions"), n, "must be greater than or equal to 0");
        }
        let strategy = text(&spec.strategy);
        if spec.strategy.is_some() {
            let path = path.child("strategy").child("strategy");
            if strategy.contains('/') {
                names::push_invalid(&mut errors, &path, strategy, &names::qualified_name(strategy));
            } else if strategy != "OldestEmulationVersion" {
                errors.not_supported(&path, strategy, &["OldestEmulationVersion"]);
            }
        }
        if !text(&spec.preferred_holder).is_empty() && strategy.is_empty() {
            errors.forbidden(&path.child("preferredHolder"), "may only be specified if `strategy` is defined");
        }
        errors
    }
    fn cells(&self, now: Timestamp) -> Vec<Value> {
        let holder = self.spec.as_ref().map(|s| text(&s.holder_identity)).unwrap_or_default();
        vec![self.metadata.name().into(), holder.into(), table::age(&self.metadata, now).into()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn field_errors_and_row() {
        let l = <Lease as Kind>::from_value(
            json!({"metadata": {"name": "l"}, "spec": {"leaseDurationSeconds": 0, "leaseTransitions": -1,
            "holderIdentity": "h", "preferredHolder": "x"}}),
        )
        .unwrap();
        let texts: Vec<String> = l.validate().0.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "spec.leaseDurationSeconds: Invalid value: 0: must be greater than 0",
                "spec.leaseTransitions: Invalid value: -1: must be greater than or equal to 0",
                "spec.preferredHolder: Forbidden: may only be specified if `strategy` is defined",
            ]
        );
        assert_eq!(json!(l.cells(Timestamp::UNIX_EPOCH)), json!(["l", "h", "<unknown>"]));
    }
}
