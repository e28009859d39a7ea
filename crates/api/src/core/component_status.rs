//! ComponentStatus: how the control plane's parts are, made up when asked for. Never stored, and deprecated since v1.19.

use crate::kind::{Column, Kind, ResourceInfo, Verb};
use crate::meta::object::Meta;
use crate::meta::{table, text};
use k8s_openapi::api::core::v1::{ComponentCondition, ComponentStatus};
use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

impl Kind for ComponentStatus {
    const INFO: ResourceInfo = ResourceInfo {
        short_names: &["cs"],
        verbs: &[Verb::Get, Verb::List],
        virtual_only: true,
        deprecation: "v1 ComponentStatus is deprecated in v1.19+",
        ..ResourceInfo::new("", "v1", "ComponentStatus", "componentstatuses", "componentstatus", false)
    };
    const COLUMNS: &'static [Column] = &[
        table::NAME,
        table::text_column("Status", "Whether the component is healthy.", 0),
        table::text_column("Message", "What the component says of itself.", 0),
        table::text_column("Error", "Why it could not be asked.", 0),
    ];
    crate::kind_codec!();

    fn cells(&self, _now: Timestamp) -> Vec<Value> {
        let healthy = self.conditions.iter().flatten().find(|c| c.type_ == "Healthy");
        let status = match healthy.map(|c| c.status.as_str()) {
            Some("True") => "Healthy",
            Some(_) => "Unhealthy",
            None => "Unknown",
        };
        let say = |field: fn(&ComponentCondition) -> &Option<String>| healthy.map_or("", |c| text(field(c))).to_owned();
        vec![self.metadata.name().into(), status.into(), say(|c| &c.message).into(), say(|c| &c.error).into()]
    }
}

/// The answer of a component that works, or the reason why it does not.
#[must_use]
pub fn of(name: &str, fault: Option<String>) -> ComponentStatus {
    let status = if fault.is_none() { "True" } else { "False" };
    ComponentStatus {
        metadata: crate::ObjectMeta { name: Some(name.to_owned()), ..Default::default() },
        conditions: Some(vec![ComponentCondition {
            type_: "Healthy".to_owned(),
            status: status.to_owned(),
            message: Some(fault.unwrap_or_else(|| "ok".to_owned())),
            error: None,
        }]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn table_row() {
        let cells = of("scheduler", None).cells(Timestamp::UNIX_EPOCH);
        assert_eq!(cells, [json!("scheduler"), json!("Healthy"), json!("ok"), json!("")]);
        let cells = of("scheduler", Some("gone".into())).cells(Timestamp::UNIX_EPOCH);
        assert_eq!(cells, [json!("scheduler"), json!("Unhealthy"), json!("gone"), json!("")]);
        assert_eq!(ComponentStatus::default().cells(Timestamp::UNIX_EPOCH)[1], "Unknown");
    }
}
