//! PriorityClass: a named pod priority.

use crate::kind::{Column, Context, Kind, ResourceInfo};
use crate::meta::field::{ErrorList, Path};
use crate::meta::object::{Meta, immutable};
use crate::meta::{table, text};
use k8s_openapi::api::scheduling::v1::PriorityClass;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

/// The largest priority a user may give to a class of their own.
pub const HIGHEST_USER_PRIORITY: i32 = 1_000_000_000;
/// Names starting like this are reserved for the classes of [`system_classes`].
pub const SYSTEM_PREFIX: &str = "system-";

/// The classes every cluster has: `system-node-critical` and `system-cluster-critical`.
#[must_use]
pub fn system_classes() -> Vec<PriorityClass> {
    let class = |name: &str, value, description: &str| PriorityClass {
        metadata: crate::ObjectMeta { name: Some(name.to_owned()), ..Default::default() },
        value: Some(value),
        description: Some(description.to_owned()),
        preemption_policy: Some("PreemptLowerPriority".to_owned()),
        global_default: None,
    };
    vec![
        class(
            "system-node-critical",
            2_000_001_000,
            "Used for system critical pods that must not be moved from their current node.",
        ),
        class(
            "system-cluster-critical",
            2_000_000_000,
            "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
        ),
    ]
}

/// Why a class with a reserved name is not one of the system's.
fn unlike_system_class(class: &PriorityClass) -> Option<String> {
    let name = class.metadata.name();
    let known = system_classes();
    let Some(own) = known.iter().find(|c| c.metadata.name() == name) else {
        return Some(format!("{name} is not a known system priority class"));
    };
    if own.value != class.value {
        return Some(format!("value of {name} PriorityClass must be {}", own.value.unwrap_or(0)));
    }
    (class.global_default == Some(true)).then(|| format!("globalDefault of {name} PriorityClass must be false"))
}

impl Kind for PriorityClass {
    const INFO: ResourceInfo = ResourceInfo {
        short_names: &["pc"],
        ..ResourceInfo::new("scheduling.k8s.io", "v1", "PriorityClass", "priorityclasses", "priorityclass", false)
    };
    const COLUMNS: &'static [Column] = &[
        table::NAME,
        Column {
            name: "Value",
            r#type: "integer",
            format: "",
            description: "Priority of pods of the class.",
            priority: 0,
        },
        Column {
            name: "Global-Default",
            r#type: "boolean",
            format: "",
            description: "Whether pods that name no class get this one.",
            priority: 0,
        },
        table::AGE,
        table::text_column("PreemptionPolicy", "Whether pods of the class may preempt others.", 0),
    ];
    crate::kind_codec!();

    fn set_defaults(&mut self) {
        self.value.get_or_insert(0);
        self.preemption_policy.get_or_insert_with(|| "PreemptLowerPriority".to_owned());
    }
    fn prepare_for_create(&mut self, _cx: &Context<'_>) {
        self.metadata.generation = Some(1);
    }
    fn validate(&self) -> ErrorList {
        let mut errors = ErrorList::default();
        if self.metadata.name().starts_with(SYSTEM_PREFIX) {
            if let Some(why) = unlike_system_class(self) {
                let path = Path::new("metadata").child("name");
                let detail = format!(
                    "priority class names with 'system-' prefix are reserved for system use only. error: {why}"
                );
                errors.forbidden(&path, &detail);
            }
        } else if self.value.unwrap_or(0) > HIGHEST_USER_PRIORITY {
            let detail = format!("maximum allowed value of a user defined priority is {HIGHEST_USER_PRIORITY}");
            errors.forbidden(&Path::new("value"), &detail);
        }
        let path = Path::new("preemptionPolicy");
        match self.preemption_policy.as_deref() {
            None | Some("PreemptLowerPriority" | "Never") => {}
            Some("") => errors.required(&path, ""),
            Some(other) => errors.not_supported(&path, other, &["PreemptLowerPriority", "Never"]),
        }
        errors
    }
    fn validate_update(&self, old: &Self) -> ErrorList {
        let mut errors = ErrorList::default();
        if self.value.unwrap_or(0) != old.value.unwrap_or(0) {
            errors.forbidden(&Path::new("value"), "may not be changed in an update.");
        }
        let path = Path::new("preemptionPolicy");
        immutable(&mut errors, &path, &json!(self.preemption_policy), &json!(old.preemption_policy));
        errors
    }
    fn cells(&self, now: Timestamp) -> Vec<Value> {
        vec![
            self.metadata.name().into(),
            self.value.unwrap_or(0).into(),
            self.global_default.unwrap_or(false).into(),
            table::age(&self.metadata, now).into(),
            text(&self.preemption_policy).into(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(name: &str, value: i32) -> PriorityClass {
        let mut c = <PriorityClass as Kind>::from_value(json!({"metadata": {"name": name}, "value": value})).unwrap();
        c.set_defaults();
        c
    }

    fn texts(errors: &ErrorList) -> Vec<String> {
        errors.0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn reserved_names_and_values() {
        const RESERVED: &str = "metadata.name: Forbidden: priority class names with 'system-' prefix are reserved for system use only. error: ";
        for c in system_classes() {
            assert_eq!(texts(&c.validate()), Vec::<String>::new());
        }
        let cases = [
            (class("mine", HIGHEST_USER_PRIORITY), vec![]),
            (
                class("mine", HIGHEST_USER_PRIORITY + 1),
                vec!["value: Forbidden: maximum allowed value of a user defined priority is 1000000000".to_owned()],
            ),
            (class("system-mine", 1), vec![format!("{RESERVED}system-mine is not a known system priority class")]),
            (
                class("system-node-critical", 1),
                vec![format!("{RESERVED}value of system-node-critical PriorityClass must be 2000001000")],
            ),
        ];
        for (c, want) in cases {
            assert_eq!(texts(&c.validate()), want);
        }
    }

    #[test]
    fn the_value_stays() {
        assert_eq!(
            texts(&class("a", 2).validate_update(&class("a", 1))),
            ["value: Forbidden: may not be changed in an update."]
        );
        assert_eq!(
            json!(class("a", 2).cells(Timestamp::UNIX_EPOCH)),
            json!(["a", 2, false, "<unknown>", "PreemptLowerPriority"])
        );
    }
}
