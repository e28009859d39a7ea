//! Cells that tables share.

use crate::kind::Column;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

/// The leading column of every table.
pub const NAME: Column = Column {
    name: "Name",
    r#type: "string",
    format: "name",
    description: "Name of the object, unique within its namespace and resource.",
    priority: 0,
};

/// The age column.
pub const AGE: Column = Column {
    name: "Age",
    r#type: "string",
    format: "",
    description: "Time since the object was created.",
    priority: 0,
};

/// When an object was created, for kinds whose age nobody watches.
pub const CREATED_AT: Column =
    Column { name: "Created At", r#type: "date", format: "", description: "When the object was created.", priority: 0 };

/// A text column, shown always (priority 0) or with `-o wide` only (1).
#[must_use]
pub const fn text_column(name: &'static str, description: &'static str, priority: i32) -> Column {
    Column { name, r#type: "string", format: "", description, priority }
}

/// A column of any OpenAPI type that is always shown.
#[must_use]
pub const fn column(name: &'static str, r#type: &'static str, description: &'static str) -> Column {
    Column { name, r#type, format: "", description, priority: 0 }
}

/// The first `shown` items, and how many more there are.
#[must_use]
pub fn shortened(items: &[String], shown: usize) -> String {
    if items.len() <= shown {
        return items.join(",");
    }
    format!("{} + {} more...", items[..shown].join(","), items.len() - shown)
}

/// The time since `then`, `<unknown>` where it is not known.
#[must_use]
pub fn since(then: Option<Timestamp>, now: Timestamp) -> String {
    then.map_or_else(|| "<unknown>".into(), |t| human_duration(t, now))
}

/// Name and creation time of an object, the latter as RFC 3339.
#[must_use]
pub fn name_and_created(meta: &ObjectMeta) -> Vec<Value> {
    let created = meta.creation_timestamp.as_ref().map(|t| t.0.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
    vec![meta.name.clone().unwrap_or_default().into(), created.into()]
}

/// The object's age as `kubectl` prints it, `<unknown>` where it was never created.
#[must_use]
pub fn age(meta: &ObjectMeta, now: Timestamp) -> String {
    meta.creation_timestamp.as_ref().map_or_else(|| "<unknown>".into(), |t| human_duration(t.0, now))
}

/// The time from `then` to `now` in the short form of `kubectl get` (`duration.HumanDuration`): `5s`, `3m20s`, `4d3h`.
#[must_use]
pub fn human_duration(then: Timestamp, now: Timestamp) -> String {
    let s = now.as_second() - then.as_second();
    let two = |a: i64, ua: &str, b: i64, ub: &str| if b == 0 { format!("{a}{ua}") } else { format!("{a}{ua}{b}{ub}") };
    match s {
        s if s < -1 => "<invalid>".into(),
        s if s < 0 => "0s".into(),
        s if s < 120 => format!("{s}s"),
        s if s < 600 => two(s / 60, "m", s % 60, "s"),
        s if s < 3 * 3600 => format!("{}m", s / 60),
        s if s < 8 * 3600 => two(s / 3600, "h", s % 3600 / 60, "m"),
        s if s < 48 * 3600 => format!("{}h", s / 3600),
        s if s < 8 * 86400 => two(s / 86400, "d", s % 86400 / 3600, "h"),
        s if s < 2 * 365 * 86400 => format!("{}d", s / 86400),
        s if s < 8 * 365 * 86400 => two(s / (365 * 86400), "y", s / 86400 % 365, "d"),
        s => format!("{}y", s / (365 * 86400)),
    }
}
