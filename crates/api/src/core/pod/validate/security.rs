//! Security contexts, profiles, sysctls and what each operating system allows.

use crate::core::pod::validate::each_container;
use crate::core::pod::validate::volume::validate_descending_path;
use crate::meta::field::{ErrorList, Path};
use crate::meta::object::Meta;
use crate::meta::{names, text};
use k8s_openapi::api::core::v1::{
    AppArmorProfile, PodSecurityContext, PodSpec, SeccompProfile, SecurityContext, WindowsSecurityContextOptions,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Value, json};
use std::collections::BTreeSet;

const PROFILE_TYPES: &[&str] = &["Localhost", "RuntimeDefault", "Unconfined"];
const SECCOMP_POD: &str = "seccomp.security.alpha.kubernetes.io/pod";
const SECCOMP_CONTAINER: &str = "container.seccomp.security.alpha.kubernetes.io/";
/// Prefix of the former per-container AppArmor annotations.
pub(crate) const APPARMOR_CONTAINER: &str = "container.apparmor.security.beta.kubernetes.io/";

fn validate_id(id: Option<i64>, path: &Path, errors: &mut ErrorList) {
    if let Some(id) = id {
        for message in names::user_id(id) {
            errors.invalid(path, id, &message);
        }
    }
}

fn validate_one_of(value: &Option<String>, supported: &[&str], path: &Path, errors: &mut ErrorList) {
    if let Some(v) = value.as_deref().filter(|v| !supported.contains(v)) {
        errors.not_supported(path, v, supported);
    }
}

/// Adds the errors of the pod's own security context.
pub(super) fn validate_pod_context(spec: &PodSpec, path: &Path, errors: &mut ErrorList) {
    let Some(c) = &spec.security_context else { return };
    validate_id(c.fs_group, &path.child("fsGroup"), errors);
    validate_id(c.run_as_user, &path.child("runAsUser"), errors);
    validate_id(c.run_as_group, &path.child("runAsGroup"), errors);
    for (i, gid) in c.supplemental_groups.iter().flatten().enumerate() {
        validate_id(Some(*gid), &path.child("supplementalGroups").index(i), errors);
    }
    if spec.share_process_namespace == Some(true) && spec.host_pid == Some(true) {
        let detail = "ShareProcessNamespace and HostPID cannot both be enabled";
        errors.invalid(&path.child("shareProcessNamespace"), true, detail);
    }
    validate_sysctls(spec, c, &path.child("sysctls"), errors);
    validate_one_of(
        &c.fs_group_change_policy,
        &["Always", "OnRootMismatch"],
        &path.child("fsGroupChangePolicy"),
        errors,
    );
    validate_seccomp(c.seccomp_profile.as_ref(), &path.child("seccompProfile"), errors);
    validate_windows_options(c.windows_options.as_ref(), &path.child("windowsOptions"), errors);
    validate_apparmor(c.app_armor_profile.as_ref(), &path.child("appArmorProfile"), errors);
    validate_one_of(
        &c.supplemental_groups_policy,
        &["Merge", "Strict"],
        &path.child("supplementalGroupsPolicy"),
        errors,
    );
    validate_one_of(
        &c.se_linux_change_policy,
        &["MountOption", "Recursive"],
        &path.child("seLinuxChangePolicy"),
        errors,
    );
}

fn is_sysctl_name(name: &str) -> bool {
    let edge = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    let segment = |s: &str| {
        let b = s.as_bytes();
        !b.is_empty() && edge(b[0]) && edge(b[b.len() - 1]) && b.iter().all(|c| edge(*c) || b"-_".contains(c))
    };
    name.len() <= 253 && name.split(['.', '/']).all(segment)
}

fn validate_sysctls(spec: &PodSpec, c: &PodSecurityContext, path: &Path, errors: &mut ErrorList) {
    let mut seen = BTreeSet::new();
    for (i, sysctl) in c.sysctls.iter().flatten().enumerate() {
        let path = path.index(i).child("name");
        let name = sysctl.name.as_str();
        if name.is_empty() {
            errors.required(&path, "");
        } else if !is_sysctl_name(name) {
            let segment = "[a-z0-9]([-_a-z0-9]*[a-z0-9])?";
            let detail = format!("must have at most 253 characters and match regex ^({segment}[\\./])*{segment}$");
            errors.invalid(&path, name, &detail);
        } else if seen.contains(name) {
            errors.duplicate(&path, name);
        }
        let dotted = name.replace('/', ".");
        let ipc = ["kernel.shm", "kernel.msg", "kernel.sem", "fs.mqueue."].iter().any(|p| dotted.starts_with(p));
        if spec.host_network == Some(true) && dotted.starts_with("net.") {
            errors.invalid(&path, name, "may not be specified when 'hostNetwork' is true");
        } else if spec.host_ipc == Some(true) && ipc {
            errors.invalid(&path, name, "may not be specified when 'hostIPC' is true");
        }
        seen.insert(name);
    }
}

/// Adds the errors of a container's security context.
pub(super) fn validate_context(c: Option<&SecurityContext>, host_users: bool, path: &Path, errors: &mut ErrorList) {
    let Some(c) = c else { return };
    validate_id(c.run_as_user, &path.child("runAsUser"), errors);
    validate_id(c.run_as_group, &path.child("runAsGroup"), errors);
    validate_one_of(&c.proc_mount, &["Default", "Unmasked"], &path.child("procMount"), errors);
    if host_users && c.proc_mount.as_deref() == Some("Unmasked") {
        errors.invalid(&path.child("procMount"), "Unmasked", "`hostUsers` must be false to use `Unmasked`");
    }
    validate_seccomp(c.seccomp_profile.as_ref(), &path.child("seccompProfile"), errors);
    if c.allow_privilege_escalation == Some(false) {
        if c.privileged == Some(true) {
            errors.invalid(path, json!(c), "cannot set `allowPrivilegeEscalation` to false and `privileged` to true");
        }
        for _ in c.capabilities.iter().flat_map(|c| c.add.iter().flatten()).filter(|a| *a == "CAP_SYS_ADMIN") {
            let detail = "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
            errors.invalid(path, json!(c), detail);
        }
    }
    validate_windows_options(c.windows_options.as_ref(), &path.child("windowsOptions"), errors);
    validate_apparmor(c.app_armor_profile.as_ref(), &path.child("appArmorProfile"), errors);
}

fn validate_seccomp(profile: Option<&SeccompProfile>, path: &Path, errors: &mut ErrorList) {
    let Some(p) = profile else { return };
    match p.type_.as_str() {
        "" => errors.required(&path.child("type"), "type is required when seccompProfile is set"),
        t if !PROFILE_TYPES.contains(&t) => errors.not_supported(&path.child("type"), t, PROFILE_TYPES),
        _ => {}
    }
    let local = path.child("localhostProfile");
    match (&p.localhost_profile, p.type_ == "Localhost") {
        (None, true) => errors.required(&local, "must be set when seccomp type is Localhost"),
        (Some(file), true) => validate_descending_path(file, &local, errors),
        (Some(_), false) => errors.invalid(&local, json!(p), "can only be set when seccomp type is Localhost"),
        (None, false) => {}
    }
}

fn validate_apparmor(profile: Option<&AppArmorProfile>, path: &Path, errors: &mut ErrorList) {
    let Some(p) = profile else { return };
    let local = path.child("localhostProfile");
    match (p.type_.as_str(), &p.localhost_profile) {
        ("Localhost", None) => errors.required(&local, "must be set when AppArmor type is Localhost"),
        ("Localhost", Some(name)) => {
            if name.trim() != name {
                errors.invalid(&local, name.as_str(), "must not be padded with whitespace");
            } else if name.is_empty() {
                errors.required(&local, "must be set when AppArmor type is Localhost");
            }
            if name.len() > 4095 {
                errors.too_long(&local, 4095);
            }
        }
        ("RuntimeDefault" | "Unconfined", Some(name)) => {
            errors.invalid(&local, name.as_str(), "can only be set when AppArmor type is Localhost");
        }
        ("RuntimeDefault" | "Unconfined", None) => {}
        ("", _) => errors.required(&path.child("type"), "type is required when appArmorProfile is set"),
        (other, _) => errors.not_supported(&path.child("type"), other, PROFILE_TYPES),
    }
}

fn validate_windows_options(options: Option<&WindowsSecurityContextOptions>, path: &Path, errors: &mut ErrorList) {
    let Some(o) = options else { return };
    if let Some(name) = &o.gmsa_credential_spec_name {
        let path = path.child("gmsaCredentialSpecName");
        names::push_invalid(errors, &path, name, &names::dns1123_subdomain(name, false));
    }
    if let Some(spec) = &o.gmsa_credential_spec {
        let path = path.child("gmsaCredentialSpec");
        if spec.is_empty() {
            errors.invalid(&path, "", "gmsaCredentialSpec cannot be an empty string");
        } else if spec.len() > 64 * 1024 {
            errors.invalid(&path, spec.as_str(), "gmsaCredentialSpec size must be under 64 KiB");
        }
    }
    if let Some(name) = &o.run_as_user_name {
        validate_windows_user(name, &path.child("runAsUserName"), errors);
    }
}

fn is_dns_like(domain: &str) -> bool {
    let label = |l: &str| {
        let b = l.as_bytes();
        (1..=63).contains(&b.len())
            && b[0].is_ascii_alphanumeric()
            && b[b.len() - 1].is_ascii_alphanumeric()
            && b.iter().all(|c| c.is_ascii_alphanumeric() || *c == b'-')
    };
    domain.split('.').all(label)
}

fn validate_windows_user(name: &str, path: &Path, errors: &mut ErrorList) {
    let parts: Vec<&str> = name.split('\\').collect();
    let early = if name.is_empty() {
        Some("runAsUserName cannot be an empty string")
    } else if name.chars().any(|c| c.is_ascii_control()) {
        Some("runAsUserName cannot contain control characters")
    } else if parts.len() > 2 {
        Some("runAsUserName cannot contain more than one backslash")
    } else {
        None
    };
    if let Some(detail) = early {
        return errors.invalid(path, name, detail);
    }
    let (domain, user) = match parts.as_slice() {
        [domain, user] => (Some(*domain), *user),
        _ => (None, name),
    };
    if let Some(domain) = domain {
        if domain.len() >= 256 {
            errors.invalid(path, name, "runAsUserName's Domain length must be under 256 characters");
        }
        let net_bios = (1..=15).contains(&domain.chars().count())
            && !domain.starts_with('.')
            && !domain.contains(|c: char| "\\/:*?\"<>|".contains(c));
        if !net_bios && !is_dns_like(domain) {
            errors.invalid(path, name, "runAsUserName's Domain doesn't match the NetBios nor the DNS format");
        }
    }
    if user.is_empty() {
        errors.invalid(path, name, "runAsUserName's User cannot be empty");
    } else if user.len() > 104 {
        errors.invalid(path, name, "runAsUserName's User length must not be longer than 104 characters");
    }
    if !user.is_empty() && user.chars().all(|c| c == '.' || c == ' ') {
        errors.invalid(path, name, "runAsUserName's User cannot contain only periods or spaces");
    }
    if user.contains(|c: char| "\"/\\:;|=,+*?<>@[]".contains(c)) {
        errors.invalid(path, name, "runAsUserName's User cannot contain the following characters: \"/\\:;|=,+*?<>@[]");
    }
}

/// Adds the errors of Windows host-process containers.
pub(super) fn validate_host_process(spec: &PodSpec, path: &Path, errors: &mut ErrorList) {
    let pod = spec.security_context.as_ref().and_then(|c| c.windows_options.as_ref()).and_then(|o| o.host_process);
    let (mut all, mut host) = (0, 0);
    each_container(spec, path, |c, path| {
        all += 1;
        let own = c.security_context.and_then(|c| c.windows_options.as_ref()).and_then(|o| o.host_process);
        if let (Some(pod), Some(own)) = (pod, own)
            && pod != own
        {
            let path = path.child("securityContext").child("windowsOptions").child("hostProcess");
            let detail = format!("pod hostProcess value must be identical if both are specified, was {pod}");
            errors.invalid(&path, own, &detail);
        }
        host += usize::from(own.or(pod) == Some(true));
    });
    if host == 0 {
        return;
    }
    if host != all {
        let detail = "If pod contains any hostProcess containers then all containers must be HostProcess containers";
        errors.invalid(path, "", detail);
    }
    if spec.host_network != Some(true) {
        let detail = "hostNetwork must be true if pod contains any hostProcess containers";
        errors.invalid(&path.child("hostNetwork"), false, detail);
    }
}

/// Adds the errors of user namespaces together with namespaces of the host.
pub(super) fn validate_host_users(spec: &PodSpec, path: &Path, errors: &mut ErrorList) {
    if spec.host_users != Some(false) {
        return;
    }
    let shared = [("hostNetwork", spec.host_network), ("HostPID", spec.host_pid), ("HostIPC", spec.host_ipc)];
    for (field, _) in shared.iter().filter(|(_, on)| *on == Some(true)) {
        errors.forbidden(&path.child(field), "when `pod.Spec.HostUsers` is false");
    }
}

/// Adds the errors of `os`, and of fields the named system does not have.
pub(super) fn validate_os(spec: &PodSpec, path: &Path, errors: &mut ErrorList) {
    let Some(os) = &spec.os else { return };
    match os.name.as_str() {
        "" => errors.required(&path.child("os").child("name"), "cannot be empty"),
        "linux" => {
            const DETAIL: &str = "windows options cannot be set for a linux pod";
            if spec.security_context.as_ref().is_some_and(|c| c.windows_options.is_some()) {
                errors.forbidden(&path.child("securityContext").child("windowsOptions"), DETAIL);
            }
            each_container(spec, path, |c, path| {
                if c.security_context.is_some_and(|c| c.windows_options.is_some()) {
                    errors.forbidden(&path.child("securityContext").child("windowsOptions"), DETAIL);
                }
            });
        }
        "windows" => validate_windows_pod(spec, path, errors),
        other => errors.not_supported(&path.child("os"), other, &["linux", "windows"]),
    }
}

fn validate_windows_pod(spec: &PodSpec, path: &Path, errors: &mut ErrorList) {
    const DETAIL: &str = "cannot be set for a windows pod";
    let context = path.child("securityContext");
    let mut forbid = |fields: &[&str], set: &Value, path: &Path| {
        for field in fields.iter().filter(|f| set.get(**f).is_some()) {
            errors.forbidden(&path.child(field), DETAIL);
        }
    };
    if let Some(c) = &spec.security_context {
        let c = json!(c);
        let host = json!({"hostUsers": spec.host_users, "hostPID": spec.host_pid.filter(|on| *on),
            "hostIPC": spec.host_ipc.filter(|on| *on), "shareProcessNamespace": spec.share_process_namespace});
        let host: Value = host
            .as_object()
            .map(|o| o.iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k.clone(), v.clone())).collect())
            .unwrap_or_default();
        forbid(&["appArmorProfile", "seLinuxOptions"], &c, &context);
        forbid(&["hostUsers", "hostPID", "hostIPC"], &host, path);
        forbid(&["seccompProfile", "fsGroup", "fsGroupChangePolicy", "sysctls"], &c, &context);
        forbid(&["shareProcessNamespace"], &host, path);
        let last = ["runAsUser", "runAsGroup", "supplementalGroups", "supplementalGroupsPolicy", "seLinuxChangePolicy"];
        forbid(&last, &c, &context);
    }
    each_container(spec, path, |c, path| {
        if let Some(c) = c.security_context {
            let fields = [
                "appArmorProfile",
                "seLinuxOptions",
                "seccompProfile",
                "capabilities",
                "readOnlyRootFilesystem",
                "privileged",
                "allowPrivilegeEscalation",
                "procMount",
                "runAsUser",
                "runAsGroup",
            ];
            forbid(&fields, &json!(c), &path.child("securityContext"));
        }
    });
}

/// Adds the errors of the annotations that mean something for pods.
pub(super) fn validate_annotations(meta: &ObjectMeta, spec: &PodSpec, path: &Path, errors: &mut ErrorList) {
    if let Some(value) = meta.annotation(crate::core::pod::MIRROR_ANNOTATION)
        && text(&spec.node_name).is_empty()
    {
        let path = path.key(crate::core::pod::MIRROR_ANNOTATION);
        errors.invalid(&path, value, "must set spec.nodeName if mirror pod annotation is set");
    }
    const COST: &str = "controller.kubernetes.io/pod-deletion-cost";
    if let Some(cost) = meta.annotation(COST)
        && (cost.parse::<i32>().is_err() || cost.starts_with('+') || (cost.len() > 1 && cost.starts_with('0')))
    {
        errors.invalid(&path.key(COST), cost, "must be a 32bit integer");
    }
    for (key, profile) in meta.annotations.iter().flatten() {
        if key == SECCOMP_POD || key.starts_with(SECCOMP_CONTAINER) {
            let path = path.child(key);
            match profile.strip_prefix("localhost/") {
                Some(file) => validate_descending_path(file, &path, errors),
                None if matches!(profile.as_str(), "runtime/default" | "docker/default" | "unconfined") => {}
                None => errors.invalid(&path, profile.as_str(), "must be a valid seccomp profile"),
            }
        }
        let Some(container) = key.strip_prefix(APPARMOR_CONTAINER) else { continue };
        let mut known = false;
        each_container(spec, path, |c, _| known |= c.name == container);
        if !known {
            errors.invalid(&path.key(key), container, "container not found");
        }
        if !matches!(profile.as_str(), "" | "runtime/default" | "unconfined") && !profile.starts_with("localhost/") {
            errors.invalid(&path.key(key), profile.as_str(), &format!("invalid AppArmor profile name: {profile:?}"));
        }
    }
}

/// The profile an annotation names, as type and file.
fn annotated(value: &str) -> (&str, Option<&str>) {
    match value {
        "unconfined" => ("Unconfined", None),
        "runtime/default" | "docker/default" => ("RuntimeDefault", None),
        v => ("Localhost", v.strip_prefix("localhost/")),
    }
}

/// Adds the errors of profiles that former annotations and fields state differently.
pub(super) fn validate_profiles_agree(meta: &ObjectMeta, spec: &PodSpec, path: &Path, errors: &mut ErrorList) {
    let mut compare = |what: &str, annotation: Option<&str>, field: (&str, Option<&str>), path: &Path| {
        let Some((kind, file)) = annotation.map(annotated) else { return };
        if kind != field.0 || (kind == "Localhost" && file.is_none()) {
            errors.forbidden(&path.child("type"), &format!("{what} type in annotation and field must match"));
        } else if file != field.1 {
            errors.forbidden(
                &path.child("localhostProfile"),
                &format!("{what} profile in annotation and field must match"),
            );
        }
    };
    let pod = spec.security_context.as_ref();
    if let Some(p) = pod.and_then(|c| c.seccomp_profile.as_ref()) {
        let path = path.child("securityContext").child("seccompProfile");
        compare("seccomp", meta.annotation(SECCOMP_POD), (&p.type_, p.localhost_profile.as_deref()), &path);
    }
    each_container(spec, path, |c, path| {
        if let Some(p) = c.security_context.and_then(|c| c.seccomp_profile.as_ref()) {
            let path = path.child("securityContext").child("seccompProfile");
            let annotation = meta.annotation(&format!("{SECCOMP_CONTAINER}{}", c.name));
            compare("seccomp", annotation, (&p.type_, p.localhost_profile.as_deref()), &path);
        }
    });
    if spec.os.as_ref().is_some_and(|o| o.name == "windows") {
        return;
    }
    each_container(spec, path, |c, path| {
        let own = c.security_context.and_then(|c| c.app_armor_profile.as_ref());
        if let Some(p) = own.or_else(|| pod.and_then(|c| c.app_armor_profile.as_ref())) {
            let path = path.child("securityContext").child("appArmorProfile");
            let annotation = meta.annotation(&format!("{APPARMOR_CONTAINER}{}", c.name));
            compare("apparmor", annotation, (&p.type_, p.localhost_profile.as_deref()), &path);
        }
    });
}
