//! Containers of all three kinds: what they have in common, and what each may not have.

use crate::core::pod::resources::is_sidecar;
use crate::core::pod::validate::probe::{PodContext, Role, validate_lifecycle, validate_probe};
use crate::core::pod::validate::volume::{Volumes, validate_descending_path, validate_pull_policy};
use crate::core::pod::validate::{env, resources, security};
use crate::meta::field::{ErrorList, Path};
use crate::meta::{names, text};
use k8s_openapi::api::core::v1::{
    Container, ContainerPort, ContainerResizePolicy, EphemeralContainer, PodSpec, VolumeDevice, VolumeMount,
};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};

const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];

/// What containers may refer to in their pod.
pub(super) struct Scope<'a> {
    pub(super) spec: &'a PodSpec,
    pub(super) volumes: &'a Volumes<'a>,
    pub(super) claims: &'a BTreeSet<&'a str>,
    pub(super) is_pod: bool,
}

impl Scope<'_> {
    fn pod_context(&self) -> PodContext<'_> {
        PodContext {
            grace_period: self.spec.termination_grace_period_seconds,
            os: self.spec.os.as_ref().map(|o| o.name.as_str()),
        }
    }

    fn host_users(&self) -> bool {
        self.spec.host_users != Some(false)
    }
}

/// Adds the errors of `containers`.
pub(super) fn validate_containers(scope: &Scope<'_>, path: &Path, errors: &mut ErrorList) {
    let containers = &scope.spec.containers;
    if containers.is_empty() {
        return errors.required(path, "");
    }
    let mut seen = BTreeSet::new();
    for (i, c) in containers.iter().enumerate() {
        let path = path.index(i);
        validate_common(c, scope, &path, errors);
        if !seen.insert(c.name.as_str()) {
            errors.duplicate(&path.child("name"), c.name.as_str());
        }
        validate_hooks(c, scope, &path, errors);
        validate_restart(c, &["Always", "OnFailure", "Never"], &path, errors);
    }
    let mut ports = BTreeSet::new();
    for (i, c) in containers.iter().enumerate() {
        validate_host_ports(c, &mut ports, &path.index(i), errors);
    }
}

fn validate_hooks(c: &Container, scope: &Scope<'_>, path: &Path, errors: &mut ErrorList) {
    let cx = scope.pod_context();
    if let Some(l) = &c.lifecycle {
        validate_lifecycle(l, cx, &path.child("lifecycle"), errors);
    }
    let probes = [
        ("livenessProbe", &c.liveness_probe, Role::Liveness),
        ("readinessProbe", &c.readiness_probe, Role::Readiness),
        ("startupProbe", &c.startup_probe, Role::Startup),
    ];
    for (field, probe, role) in probes {
        if let Some(p) = probe {
            validate_probe(p, role, cx, &path.child(field), errors);
        }
    }
}

fn validate_restart(c: &Container, supported: &[&str], path: &Path, errors: &mut ErrorList) {
    let rules = c.restart_policy_rules.as_deref().unwrap_or_default();
    match c.restart_policy.as_deref() {
        Some(p) if !supported.contains(&p) => errors.not_supported(&path.child("restartPolicy"), p, supported),
        None if !rules.is_empty() => {
            errors.required(&path.child("restartPolicy"), "must specify restartPolicy when restart rules are used");
        }
        _ => {}
    }
    let path = path.child("restartPolicyRules");
    if rules.len() > 20 {
        errors.too_many(&path, rules.len(), 20);
    }
    for (i, rule) in rules.iter().enumerate() {
        let path = path.index(i);
        if !matches!(rule.action.as_str(), "Restart" | "RestartAllContainers") {
            errors.not_supported(&path.child("action"), &rule.action, &["Restart", "RestartAllContainers"]);
        }
        let Some(codes) = &rule.exit_codes else {
            errors.required(&path.child("exitCodes"), "must be specified");
            continue;
        };
        if !matches!(codes.operator.as_str(), "In" | "NotIn") {
            errors.not_supported(&path.child("exitCodes").child("operator"), &codes.operator, &["In", "NotIn"]);
        }
        let count = codes.values.as_ref().map_or(0, Vec::len);
        if count > 255 {
            errors.too_many(&path.child("exitCodes").child("values"), count, 255);
        }
    }
}

/// Adds the errors of `initContainers`.
pub(super) fn validate_init_containers(scope: &Scope<'_>, path: &Path, errors: &mut ErrorList) {
    let mut seen: BTreeSet<&str> = scope.spec.containers.iter().map(|c| c.name.as_str()).collect();
    for (i, c) in scope.spec.init_containers.iter().flatten().enumerate() {
        let index_path = path.index(i);
        validate_common(c, scope, &index_path, errors);
        validate_restart(c, &["Always", "OnFailure", "Never"], &index_path, errors);
        if seen.contains(c.name.as_str()) {
            errors.duplicate(&index_path.child("name"), c.name.as_str());
        } else if !c.name.is_empty() {
            seen.insert(&c.name);
        }
        // Init containers run one by one, so that ports conflict only within each.
        validate_host_ports(c, &mut BTreeSet::new(), &path.index(0), errors);
        if is_sidecar(c) {
            validate_hooks(c, scope, &index_path, errors);
            continue;
        }
        let fields = [
            ("lifecycle", c.lifecycle.is_some()),
            ("livenessProbe", c.liveness_probe.is_some()),
            ("readinessProbe", c.readiness_probe.is_some()),
            ("startupProbe", c.startup_probe.is_some()),
        ];
        for (field, _) in fields.iter().filter(|(_, set)| *set) {
            let detail = "may not be set for init containers without restartPolicy=Always";
            errors.forbidden(&index_path.child(field), detail);
        }
        if c.resize_policy.as_ref().is_some_and(|p| !p.is_empty()) {
            errors.invalid(
                &index_path.child("resizePolicy"),
                json!(c.resize_policy),
                "must not be set for init containers",
            );
        }
    }
}

/// An ephemeral container as a container, without its target.
pub(crate) fn as_container(e: &EphemeralContainer) -> Container {
    let e = e.clone();
    Container {
        args: e.args,
        command: e.command,
        env: e.env,
        env_from: e.env_from,
        image: e.image,
        image_pull_policy: e.image_pull_policy,
        lifecycle: e.lifecycle,
        liveness_probe: e.liveness_probe,
        name: e.name,
        ports: e.ports,
        readiness_probe: e.readiness_probe,
        resize_policy: e.resize_policy,
        resources: e.resources,
        restart_policy: e.restart_policy,
        restart_policy_rules: e.restart_policy_rules,
        security_context: e.security_context,
        startup_probe: e.startup_probe,
        stdin: e.stdin,
        stdin_once: e.stdin_once,
        termination_message_path: e.termination_message_path,
        termination_message_policy: e.termination_message_policy,
        tty: e.tty,
        volume_devices: e.volume_devices,
        volume_mounts: e.volume_mounts,
        working_dir: e.working_dir,
    }
}

/// Adds the errors of `ephemeralContainers`.
pub(super) fn validate_ephemeral_containers(scope: &Scope<'_>, path: &Path, errors: &mut ErrorList) {
    const FORBIDDEN: &str = "cannot be set for an Ephemeral Container";
    let spec = scope.spec;
    let others: BTreeSet<&str> =
        spec.containers.iter().chain(spec.init_containers.iter().flatten()).map(|c| c.name.as_str()).collect();
    let mut seen = others.clone();
    for (i, e) in spec.ephemeral_containers.iter().flatten().enumerate() {
        let path = path.index(i);
        let c = as_container(e);
        validate_common(&c, scope, &path, errors);
        validate_image_trimmed(&c, &path, errors);
        if !seen.insert(e.name.as_str()) {
            errors.duplicate(&path.child("name"), e.name.as_str());
        }
        let target = text(&e.target_container_name);
        if !target.is_empty() && !others.contains(target) {
            errors.not_found(&path.child("targetContainerName"), target);
        }
        let resources = c.resources.as_ref().is_some_and(|r| *r != Default::default());
        let fields = [
            ("ports", c.ports.as_ref().is_some_and(|p| !p.is_empty())),
            ("resources", resources),
            ("resizePolicy", c.resize_policy.as_ref().is_some_and(|p| !p.is_empty())),
            ("restartPolicy", c.restart_policy.is_some()),
            ("restartPolicyRules", c.restart_policy_rules.as_ref().is_some_and(|r| !r.is_empty())),
            ("livenessProbe", c.liveness_probe.is_some()),
            ("readinessProbe", c.readiness_probe.is_some()),
            ("startupProbe", c.startup_probe.is_some()),
            ("lifecycle", c.lifecycle.is_some()),
        ];
        for (field, _) in fields.iter().filter(|(_, set)| *set) {
            errors.forbidden(&path.child(field), FORBIDDEN);
        }
        for (i, mount) in c.volume_mounts.iter().flatten().enumerate() {
            let path = path.child("volumeMounts").index(i);
            for (field, value) in [("subPath", &mount.sub_path), ("subPathExpr", &mount.sub_path_expr)] {
                if !text(value).is_empty() {
                    errors.forbidden(&path.child(field), FORBIDDEN);
                }
            }
        }
    }
}

/// Adds the error of an image name with blanks around it, which templates may have for historical reasons.
pub(crate) fn validate_image_trimmed(c: &Container, path: &Path, errors: &mut ErrorList) {
    let image = text(&c.image);
    if image.trim() != image {
        errors.invalid(&path.child("image"), image, "must not have leading or trailing whitespace");
    }
}

fn validate_common(c: &Container, scope: &Scope<'_>, path: &Path, errors: &mut ErrorList) {
    if c.name.is_empty() {
        errors.required(&path.child("name"), "");
    } else {
        names::push_invalid(errors, &path.child("name"), &c.name, &names::dns1123_label(&c.name, false));
    }
    if text(&c.image).is_empty() {
        errors.required(&path.child("image"), "");
    }
    let policy_path = path.child("terminationMessagePolicy");
    match text(&c.termination_message_policy) {
        "File" | "FallbackToLogsOnError" => {}
        "" => errors.required(&policy_path, ""),
        other => errors.not_supported(&policy_path, other, &["File", "FallbackToLogsOnError"]),
    }
    let mounts = c.volume_mounts.as_deref().unwrap_or_default();
    let devices = c.volume_devices.as_deref().unwrap_or_default();
    validate_ports(c.ports.as_deref().unwrap_or_default(), &path.child("ports"), errors);
    env::validate_env(c.env.as_deref().unwrap_or_default(), &path.child("env"), errors);
    env::validate_env_from(c.env_from.as_deref().unwrap_or_default(), &path.child("envFrom"), errors);
    validate_mounts(c, mounts, devices, scope.volumes, &path.child("volumeMounts"), errors);
    validate_devices(devices, mounts, scope.volumes, &path.child("volumeDevices"), errors);
    validate_pull_policy(text(&c.image_pull_policy), &path.child("imagePullPolicy"), errors);
    if let Some(r) = &c.resources {
        resources::validate_container(r, scope.claims, &path.child("resources"), errors);
    }
    let resize = c.resize_policy.as_deref().unwrap_or_default();
    validate_resize_policy(resize, text(&scope.spec.restart_policy), &path.child("resizePolicy"), errors);
    security::validate_context(c.security_context.as_ref(), scope.host_users(), &path.child("securityContext"), errors);
}

fn validate_ports(ports: &[ContainerPort], path: &Path, errors: &mut ErrorList) {
    let mut seen = BTreeSet::new();
    for (i, port) in ports.iter().enumerate() {
        let path = path.index(i);
        let name = text(&port.name);
        if !name.is_empty() {
            let bad = names::port_name(name);
            names::push_invalid(errors, &path.child("name"), name, &bad);
            if bad.is_empty() && !seen.insert(name) {
                errors.duplicate(&path.child("name"), name);
            }
        }
        if port.container_port == 0 {
            errors.required(&path.child("containerPort"), "");
        } else {
            for message in names::port_number(port.container_port) {
                errors.invalid(&path.child("containerPort"), port.container_port, &message);
            }
        }
        if let Some(host_port) = port.host_port.filter(|p| *p != 0) {
            for message in names::port_number(host_port) {
                errors.invalid(&path.child("hostPort"), host_port, &message);
            }
        }
        match text(&port.protocol) {
            "" => errors.required(&path.child("protocol"), ""),
            p if !PROTOCOLS.contains(&p) => errors.not_supported(&path.child("protocol"), p, PROTOCOLS),
            _ => {}
        }
    }
}

fn validate_host_ports(c: &Container, seen: &mut BTreeSet<String>, path: &Path, errors: &mut ErrorList) {
    for (i, port) in c.ports.iter().flatten().enumerate() {
        let Some(host_port) = port.host_port.filter(|p| *p != 0) else { continue };
        let key = format!("{}/{}/{host_port}", text(&port.protocol), text(&port.host_ip));
        if seen.contains(&key) {
            errors.duplicate(&path.child("ports").index(i).child("hostPort"), key);
        } else {
            seen.insert(key);
        }
    }
}

/// Adds the errors of host ports in pods on the host's network.
pub(super) fn validate_host_network_ports(scope: &Scope<'_>, path: &Path, errors: &mut ErrorList) {
    if scope.spec.host_network != Some(true) {
        return;
    }
    for (i, c) in scope.spec.containers.iter().enumerate() {
        for (j, port) in c.ports.iter().flatten().enumerate() {
            let host_port = port.host_port.unwrap_or(0);
            if (scope.is_pod || host_port != 0) && host_port != port.container_port {
                let path = path.child("containers").index(i).child("ports").index(j).child("hostPort");
                errors.invalid(&path, host_port, "must match `containerPort` when `hostNetwork` is true");
            }
        }
    }
}

fn validate_mounts(
    c: &Container,
    mounts: &[VolumeMount],
    devices: &[VolumeDevice],
    volumes: &Volumes<'_>,
    path: &Path,
    errors: &mut ErrorList,
) {
    let mut seen = BTreeSet::new();
    for (i, m) in mounts.iter().enumerate() {
        let index_path = path.index(i);
        let (name_path, mount_path) = (index_path.child("name"), index_path.child("mountPath"));
        if m.name.is_empty() {
            errors.required(&name_path, "");
        }
        let volume = volumes.get(m.name.as_str());
        if volume.is_none() {
            errors.not_found(&name_path, m.name.as_str());
        }
        if m.mount_path.is_empty() {
            errors.required(&mount_path, "");
        }
        if !seen.insert(m.mount_path.as_str()) {
            errors.invalid(&mount_path, m.mount_path.as_str(), "must be unique");
        }
        if devices.iter().any(|d| d.name == m.name) {
            errors.invalid(&name_path, m.name.as_str(), "must not already exist in volumeDevices");
        }
        if devices.iter().any(|d| d.device_path == m.mount_path) {
            errors.invalid(&mount_path, m.mount_path.as_str(), "must not already exist as a path in volumeDevices");
        }
        let (sub_path, expression) = (text(&m.sub_path), text(&m.sub_path_expr));
        if !sub_path.is_empty() {
            validate_descending_path(sub_path, &path.child("subPath"), errors);
        }
        if !expression.is_empty() {
            if !sub_path.is_empty() {
                errors.invalid(
                    &index_path.child("subPathExpr"),
                    expression,
                    "subPathExpr and subPath are mutually exclusive",
                );
            }
            validate_descending_path(expression, &path.child("subPathExpr"), errors);
        }
        validate_propagation(c, m, path, errors);
    }
}

fn validate_propagation(c: &Container, m: &VolumeMount, path: &Path, errors: &mut ErrorList) {
    if let Some(propagation) = m.mount_propagation.as_deref() {
        let path = path.child("mountPropagation");
        let supported = ["Bidirectional", "HostToContainer", "None"];
        if !supported.contains(&propagation) {
            errors.not_supported(&path, propagation, &supported);
        }
        let privileged = c.security_context.as_ref().is_some_and(|c| c.privileged == Some(true));
        if propagation == "Bidirectional" && !privileged {
            errors.forbidden(&path, "Bidirectional mount propagation is available only to privileged containers");
        }
    }
    let path = path.child("recursiveReadOnly");
    match m.recursive_read_only.as_deref() {
        None | Some("Disabled") => {}
        Some("Enabled" | "IfPossible") => {
            if m.read_only != Some(true) {
                errors.forbidden(&path, "may only be specified when readOnly is true");
            }
            if m.mount_propagation.as_deref().is_some_and(|p| p != "None") {
                errors.forbidden(&path, "may only be specified when mountPropagation is None or not specified");
            }
        }
        Some(other) => errors.not_supported(&path, other, &["Disabled", "Enabled", "IfPossible"]),
    }
}

fn validate_devices(
    devices: &[VolumeDevice],
    mounts: &[VolumeMount],
    volumes: &Volumes<'_>,
    path: &Path,
    errors: &mut ErrorList,
) {
    let (mut names_seen, mut paths_seen) = (BTreeSet::new(), BTreeSet::new());
    let mounted: BTreeMap<&str, &str> = mounts.iter().map(|m| (m.name.as_str(), m.mount_path.as_str())).collect();
    for (i, d) in devices.iter().enumerate() {
        let path = path.index(i);
        let (name_path, device_path) = (path.child("name"), path.child("devicePath"));
        let (name, device) = (d.name.as_str(), d.device_path.as_str());
        if name.is_empty() {
            errors.required(&name_path, "");
        }
        if names_seen.contains(name) {
            errors.invalid(&name_path, name, "must be unique");
        }
        match volumes.get(name) {
            Some(v) if v.persistent_volume_claim.is_none() && v.ephemeral.is_none() => errors.invalid(
                &name_path,
                name,
                "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode",
            ),
            Some(_) => {}
            None => errors.not_found(&name_path, name),
        }
        if device.is_empty() {
            errors.required(&device_path, "");
        }
        if paths_seen.contains(device) {
            errors.invalid(&device_path, device, "must be unique");
        }
        if device.split('/').any(|part| part == "..") {
            errors.invalid(&device_path, device, "can not contain backsteps ('..')");
        } else {
            paths_seen.insert(device);
        }
        if mounted.contains_key(name) {
            errors.invalid(&name_path, name, "must not already exist in volumeMounts");
        }
        if mounted.values().any(|p| *p == device) {
            errors.invalid(&device_path, device, "must not already exist as a path in volumeMounts");
        }
        if !name.is_empty() {
            names_seen.insert(name);
        }
    }
}

fn validate_resize_policy(policies: &[ContainerResizePolicy], pod_policy: &str, path: &Path, errors: &mut ErrorList) {
    let mut seen = BTreeSet::new();
    for (i, p) in policies.iter().enumerate() {
        if !seen.insert(p.resource_name.as_str()) {
            errors.duplicate(&path.index(i), p.resource_name.as_str());
        }
        let checks = [(&p.resource_name, ["cpu", "memory"]), (&p.restart_policy, ["NotRequired", "RestartContainer"])];
        for (value, supported) in checks {
            match value.as_str() {
                "" => errors.required(path, ""),
                v if !supported.contains(&v) => errors.not_supported(path, v, &supported),
                _ => {}
            }
        }
        if pod_policy == "Never" && p.restart_policy != "NotRequired" {
            let detail = "must be 'NotRequired' when `restartPolicy` is 'Never'";
            errors.invalid(path, p.restart_policy.as_str(), detail);
        }
    }
}
