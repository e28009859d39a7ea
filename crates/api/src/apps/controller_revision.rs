//! ControllerRevision: an earlier template of a StatefulSet or DaemonSet, to go back to.

use super::workload;
use crate::kind::{Column, Kind, ResourceInfo};
use crate::meta::field::{ErrorList, Path};
use crate::meta::object::{Meta, immutable, split_api_version};
use crate::meta::table;
use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

impl Kind for ControllerRevision {
    const INFO: ResourceInfo =
        ResourceInfo::new("apps", "v1", "ControllerRevision", "controllerrevisions", "controllerrevision", true);
    const COLUMNS: &'static [Column] = &[
        workload::NAME,
        workload::column("Controller", "string", "Controller of the object"),
        workload::column("Revision", "string", "Place of the state among those its controller knows."),
        workload::AGE,
    ];
    crate::kind_codec!();

    fn validate(&self) -> ErrorList {
        let mut e = ErrorList::default();
        if self.data.0.is_null() {
            e.required(&Path::new("data"), "data is mandatory");
        }
        workload::nonnegative(&mut e, &Path::new("revision"), self.revision.unwrap_or(0));
        e
    }

    fn validate_update(&self, old: &Self) -> ErrorList {
        let mut e = self.validate();
        immutable(&mut e, &Path::new("data"), &self.data.0, &old.data.0);
        e
    }

    fn cells(&self, now: Timestamp) -> Vec<Value> {
        let controller = self.metadata.controller_of().map_or_else(
            || "<none>".to_owned(),
            |c| match split_api_version(&c.api_version).0 {
                "" => format!("{}/{}", c.kind.to_lowercase(), c.name),
                group => format!("{}.{group}/{}", c.kind.to_lowercase(), c.name),
            },
        );
        vec![
            self.metadata.name().into(),
            controller.into(),
            self.revision.unwrap_or(0).into(),
            table::age(&self.metadata, now).into(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn revision(value: Value) -> ControllerRevision {
        <ControllerRevision as Kind>::from_value(value).unwrap()
    }

    fn texts(e: &ErrorList) -> Vec<String> {
        e.0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn data_is_given_once() {
        let none = revision(json!({"revision": -1}));
        assert_eq!(
            texts(&none.validate()),
            [
                "data: Required value: data is mandatory",
                "revision: Invalid value: -1: must be greater than or equal to 0",
            ]
        );
        let old = revision(json!({"revision": 1, "data": {"a": 1}}));
        let new = revision(json!({"revision": 2, "data": {"a": 2}}));
        assert_eq!(texts(&new.validate_update(&old)), ["data: Invalid value: {\"a\":2}: field is immutable"]);
        let later = revision(json!({"revision": 2, "data": {"a": 1}}));
        assert!(later.validate_update(&old).is_empty());
    }

    #[test]
    fn table_row() {
        let r = revision(json!({"revision": 3, "data": {}, "metadata": {"name": "web-1", "ownerReferences": [
            {"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "web", "uid": "u", "controller": true}]}}));
        let cells = r.cells(Timestamp::UNIX_EPOCH);
        assert_eq!(&cells[..3], &[json!("web-1"), json!("statefulset.apps/web"), json!(3)]);
        assert_eq!(cells.len(), ControllerRevision::COLUMNS.len());
    }
}
