//! Which kernel parameters a pod may set: those that belong to its own namespaces and harm no neighbour.

use super::admission::Refusal;
use k8s_openapi::api::core::v1::Pod;

/// Parameters of the pod's IPC namespace.
const IPC: &[&str] = &["kernel.shm_rmid_forced"];
/// Parameters of the pod's network namespace.
const NET: &[&str] = &[
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
];

/// The name with dots between its parts. Where the first separator is a slash, slashes separate and a dot is part of a
/// name (`net/ipv4/conf/eth0.1/rp_filter`), as sysctl(8) has it.
pub(crate) fn normalized(name: &str) -> String {
    let swap = |c| match c {
        '/' => '.',
        '.' => '/',
        c => c,
    };
    match name.find(['.', '/']) {
        Some(at) if name[at..].starts_with('/') => name.chars().map(swap).collect(),
        _ => name.to_owned(),
    }
}

/// Refuses a pod that asks for a parameter the node does not let it set.
pub(crate) fn admit(pod: &Pod) -> Result<(), Refusal> {
    let Some(spec) = pod.spec.as_ref() else { return Ok(()) };
    let wanted = spec.security_context.iter().flat_map(|c| c.sysctls.iter().flatten());
    for sysctl in wanted {
        let name = normalized(&sysctl.name);
        let why = if IPC.contains(&name.as_str()) {
            (spec.host_ipc == Some(true)).then(|| format!("{name:?} not allowed with host IPC enabled"))
        } else if NET.contains(&name.as_str()) {
            (spec.host_network == Some(true)).then(|| format!("{name:?} not allowed with host Net enabled"))
        } else {
            Some(format!("{name:?} not allowlisted"))
        };
        if let Some(why) = why {
            return Err(Refusal { reason: "SysctlForbidden".into(), message: format!("forbidden sysctl: {why}") });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use gantry_api::kind::Kind;
    use serde_json::json;

    #[test]
    fn names_are_written_with_dots_or_slashes() {
        for (name, wanted) in [
            ("kernel.shm_rmid_forced", "kernel.shm_rmid_forced"),
            ("net/ipv4/tcp_rmem", "net.ipv4.tcp_rmem"),
            ("net/ipv4/conf/eno2.100/rp_filter", "net.ipv4.conf.eno2/100.rp_filter"),
            ("net.ipv4.conf.eno2/100.rp_filter", "net.ipv4.conf.eno2/100.rp_filter"),
            ("plain", "plain"),
        ] {
            assert_eq!(normalized(name), wanted);
        }
    }

    #[test]
    fn only_safe_parameters_of_own_namespaces() {
        let refused = |name: &str, more: serde_json::Value| {
            let mut spec = json!({"containers": [], "securityContext": {"sysctls": [{"name": name, "value": "1"}]}});
            spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            let pod = Pod::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap();
            admit(&pod).err().map(|r| r.message)
        };
        assert_eq!(refused("kernel/shm_rmid_forced", json!({})), None);
        assert_eq!(refused("net.ipv4.tcp_rmem", json!({})), None);
        for (name, more, wanted) in [
            ("kernel.msgmax", json!({}), "forbidden sysctl: \"kernel.msgmax\" not allowlisted"),
            (
                "kernel.shm_rmid_forced",
                json!({"hostIPC": true}),
                "forbidden sysctl: \"kernel.shm_rmid_forced\" not allowed with host IPC enabled",
            ),
            (
                "net.ipv4.tcp_rmem",
                json!({"hostNetwork": true}),
                "forbidden sysctl: \"net.ipv4.tcp_rmem\" not allowed with host Net enabled",
            ),
        ] {
            assert_eq!(refused(name, more).as_deref(), Some(wanted));
        }
    }
}
