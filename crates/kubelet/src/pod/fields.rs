//! The pod's own fields and its containers' resources, as `fieldRef` and `resourceFieldRef` name them.

use gantry_api::meta::quantity::{Amount, amount_of};
use k8s_openapi::api::core::v1::{Container, Pod, ResourceFieldSelector};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// What a field reference may need besides the pod.
#[derive(Debug, Clone, Default)]
pub(crate) struct FieldContext {
    pub pod_ips: Vec<IpAddr>,
    pub host_ips: Vec<IpAddr>,
    pub node_name: String,
    /// Allocatable CPU of the node in thousandths of a core, for limits that are not set.
    pub allocatable_cpu_milli: i64,
    /// Allocatable memory of the node in bytes.
    pub allocatable_memory: i64,
    /// Allocatable ephemeral storage of the node in bytes.
    pub allocatable_storage: i64,
}

fn joined(ips: &[IpAddr]) -> String {
    ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// `name['key']` split into name and key.
fn subscript(path: &str) -> Option<(&str, &str)> {
    let (name, rest) = path.split_once('[')?;
    let key = rest.strip_suffix(']')?;
    let key = key
        .strip_prefix('\'')
        .and_then(|k| k.strip_suffix('\''))
        .or_else(|| key.strip_prefix('"').and_then(|k| k.strip_suffix('"')))?;
    Some((name, key))
}

/// Labels or annotations as the downward API writes them: `key="escaped value"` lines in key order.
fn map_lines(map: Option<&BTreeMap<String, String>>) -> String {
    let lines = map.into_iter().flatten().map(|(k, v)| format!("{k}={}", go_quote(v)));
    lines.collect::<Vec<_>>().join("\n")
}

/// A string as Go's `%q` prints it.
pub(crate) fn go_quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            '\u{b}' => out.push_str("\\v"),
            c if (c as u32) < 0x20 || c as u32 == 0x7f => out.push_str(&format!("\\x{:02x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// The value of a `fieldRef` path.
pub(crate) fn field(pod: &Pod, path: &str, cx: &FieldContext) -> Result<String, String> {
    let meta = &pod.metadata;
    let text = |v: &Option<String>| v.clone().unwrap_or_default();
    if let Some((name, key)) = subscript(path) {
        let map = match name {
            "metadata.labels" => meta.labels.as_ref(),
            "metadata.annotations" => meta.annotations.as_ref(),
            _ => return Err(format!("fieldPath {path:?} does not support subscript")),
        };
        return Ok(map.and_then(|m| m.get(key)).cloned().unwrap_or_default());
    }
    let spec = pod.spec.as_ref();
    Ok(match path {
        "metadata.name" => text(&meta.name),
        "metadata.namespace" => text(&meta.namespace),
        "metadata.uid" => text(&meta.uid),
        "metadata.labels" => map_lines(meta.labels.as_ref()),
        "metadata.annotations" => map_lines(meta.annotations.as_ref()),
        "spec.nodeName" => cx.node_name.clone(),
        "spec.serviceAccountName" => spec.and_then(|s| s.service_account_name.clone()).unwrap_or_default(),
        "status.hostIP" => cx.host_ips.first().map(ToString::to_string).unwrap_or_default(),
        "status.hostIPs" => joined(&cx.host_ips),
        "status.podIP" => cx.pod_ips.first().map(ToString::to_string).unwrap_or_default(),
        "status.podIPs" => joined(&cx.pod_ips),
        other => return Err(format!("unsupported fieldPath: {other}")),
    })
}

/// The value of a `resourceFieldRef`, in units of its divisor, rounded up.
pub(crate) fn resource(
    container: &Container,
    selector: &ResourceFieldSelector,
    cx: &FieldContext,
) -> Result<String, String> {
    let (limits, requests) = match &container.resources {
        Some(r) => (r.limits.as_ref(), r.requests.as_ref()),
        None => (None, None),
    };
    let (kind, name) = selector
        .resource
        .split_once('.')
        .ok_or_else(|| format!("unsupported container resource : {}", selector.resource))?;
    let list = match kind {
        "limits" => limits,
        "requests" => requests,
        _ => return Err(format!("unsupported container resource : {}", selector.resource)),
    };
    let set = list.is_some_and(|l| l.contains_key(name));
    let mut amount = amount_of(list, name);
    if !set {
        amount = match (kind, name) {
            // A limit that is not set is the whole node; a request that is not set is the limit, or nothing.
            ("limits", "cpu") => Amount::from_milli(cx.allocatable_cpu_milli),
            ("limits", "memory") => Amount::from_bytes(cx.allocatable_memory),
            ("limits", "ephemeral-storage") => Amount::from_bytes(cx.allocatable_storage),
            _ => amount,
        };
    }
    let divisor = selector.divisor.as_ref().and_then(|q| Amount::parse(&q.0).ok()).filter(|d| !d.is_zero());
    let divisor = divisor.map_or(1_000_000_000, |d| d.nano_value());
    let nano = amount.nano_value();
    Ok(((nano + divisor - 1) / divisor).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use gantry_api::kind::Kind;
    use serde_json::json;

    fn context() -> FieldContext {
        FieldContext {
            pod_ips: vec!["10.0.0.2".parse().unwrap(), "fd00::2".parse().unwrap()],
            host_ips: vec!["192.0.2.1".parse().unwrap()],
            node_name: "n1".into(),
            allocatable_cpu_milli: 1900,
            allocatable_memory: 3 << 30,
            allocatable_storage: 0,
        }
    }

    #[test]
    fn fields_of_the_pod() {
        let pod = Pod::from_value(json!({"metadata": {"name": "p", "namespace": "ns", "uid": "u",
            "labels": {"b": "2", "a": "x\"y\n"}, "annotations": {"k/v": "z"}},
            "spec": {"containers": [], "serviceAccountName": "sa"}}))
        .unwrap();
        for (path, want) in [
            ("metadata.name", "p"),
            ("metadata.namespace", "ns"),
            ("metadata.uid", "u"),
            ("metadata.labels", "a=\"x\\\"y\\n\"\nb=\"2\""),
            ("metadata.labels['b']", "2"),
            ("metadata.annotations['k/v']", "z"),
            ("metadata.annotations['none']", ""),
            ("spec.nodeName", "n1"),
            ("spec.serviceAccountName", "sa"),
            ("status.podIP", "10.0.0.2"),
            ("status.podIPs", "10.0.0.2,fd00::2"),
            ("status.hostIP", "192.0.2.1"),
        ] {
            assert_eq!(field(&pod, path, &context()).unwrap(), want, "{path}");
        }
        assert!(field(&pod, "spec.containers", &context()).is_err());
    }

    #[test]
    fn resources_are_divided_and_rounded_up() {
        let c = |v| serde_json::from_value::<Container>(v).unwrap();
        let set = c(json!({"name": "a", "resources": {"limits": {"cpu": "1500m", "memory": "100Mi"}}}));
        let select = |resource: &str, divisor: Option<&str>| {
            serde_json::from_value::<ResourceFieldSelector>(json!({"resource": resource, "divisor": divisor})).unwrap()
        };
        for (resource_name, divisor, want) in [
            ("limits.cpu", None, "2"),
            ("limits.cpu", Some("1m"), "1500"),
            ("limits.memory", None, "104857600"),
            ("limits.memory", Some("1Mi"), "100"),
            ("requests.cpu", Some("1m"), "0"),
        ] {
            assert_eq!(resource(&set, &select(resource_name, divisor), &context()).unwrap(), want);
        }
        let open = c(json!({"name": "a"}));
        assert_eq!(resource(&open, &select("limits.cpu", Some("1m")), &context()).unwrap(), "1900");
        assert_eq!(resource(&open, &select("limits.memory", Some("1Gi")), &context()).unwrap(), "3");
        assert!(resource(&open, &select("size", None), &context()).is_err());
    }
}
