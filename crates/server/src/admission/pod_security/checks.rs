//! What the Pod Security Standards forbid, check by check, with the versions of the standards each form is from.

use super::policy::Level;
use gantry_api::ObjectMeta;
use gantry_api::k8s_openapi::api::core::v1::{
    Capabilities, Container, ContainerPort, EphemeralContainer, Lifecycle, LifecycleHandler, PodSpec, Probe,
    SELinuxOptions, SecurityContext, Volume,
};
use std::collections::BTreeSet;

/// What a check has against a pod: a reason and its details.
pub struct Violation {
    /// What is forbidden.
    pub reason: String,
    /// Where it is done.
    pub detail: String,
}

/// A pod as the checks see it.
pub struct Subject<'a> {
    /// The pod's metadata, or its template's.
    pub meta: &'a ObjectMeta,
    /// What it is to be.
    pub spec: &'a PodSpec,
    containers: Vec<View<'a>>,
    version: u32,
}

/// What init, ordinary and ephemeral containers have in common.
struct View<'a> {
    name: &'a str,
    security: Option<&'a SecurityContext>,
    ports: &'a [ContainerPort],
    probes: [Option<&'a Probe>; 3],
    lifecycle: Option<&'a Lifecycle>,
}

type Names = BTreeSet<String>;
type Found = Option<Violation>;

/// A check: its name, by which the results are ordered, its level, since when it is there, and the check of the lower
/// level whose place it takes since some version.
pub struct Check {
    /// Name.
    pub id: &'static str,
    /// The lowest level that has it.
    pub level: Level,
    since: u32,
    replaces: Option<&'static str>,
    run: fn(&Subject<'_>) -> Found,
}

const fn baseline(id: &'static str, since: u32, run: fn(&Subject<'_>) -> Found) -> Check {
    Check { id, level: Level::Baseline, since, replaces: None, run }
}

const fn restricted(
    id: &'static str,
    since: u32,
    replaces: Option<&'static str>,
    run: fn(&Subject<'_>) -> Found,
) -> Check {
    Check { id, level: Level::Restricted, since, replaces, run }
}

/// Every check in the order of the results: the lower level first, by name within each.
const ALL: &[Check] = &[
    baseline("appArmorProfile", 0, app_armor),
    baseline("capabilities_baseline", 0, capabilities),
    baseline("hostNamespaces", 0, host_namespaces),
    baseline("hostPathVolumes", 0, host_path),
    baseline("hostPorts", 0, host_ports),
    baseline("hostProbesAndHostLifecycle", 34, host_probes),
    baseline("privileged", 0, privileged),
    baseline("procMount", 0, proc_mount_baseline),
    baseline("seLinuxOptions", 0, se_linux),
    baseline("seccompProfile_baseline", 0, seccomp_baseline),
    baseline("sysctls", 0, sysctls),
    baseline("windowsHostProcess", 0, windows_host_process),
    restricted("allowPrivilegeEscalation", 8, None, privilege_escalation),
    restricted("capabilities_restricted", 22, Some("capabilities_baseline"), capabilities_restricted),
    restricted("procMount_restricted", 35, Some("procMount"), proc_mount),
    restricted("restrictedVolumes", 0, Some("hostPathVolumes"), volumes),
    restricted("runAsNonRoot", 0, None, non_root),
    restricted("runAsUser", 23, None, run_as_user),
    restricted("seccompProfile_restricted", 19, Some("seccompProfile_baseline"), seccomp_restricted),
];

/// What the standard of this level, as it was in version 1.`version`, has against the pod.
#[must_use]
pub fn violations(level: Level, version: u32, meta: &ObjectMeta, spec: &PodSpec) -> Vec<Violation> {
    if level == Level::Privileged {
        return Vec::new();
    }
    let subject = Subject { meta, spec, containers: views(spec), version };
    let applies = |c: &&Check| c.level <= level && c.since <= version;
    let replaced: Vec<&str> = ALL.iter().filter(applies).filter_map(|c| c.replaces).collect();
    ALL.iter().filter(applies).filter(|c| !replaced.contains(&c.id)).filter_map(|c| (c.run)(&subject)).collect()
}

fn views(spec: &PodSpec) -> Vec<View<'_>> {
    let mut all: Vec<View<'_>> = spec.init_containers.iter().flatten().chain(&spec.containers).map(view).collect();
    all.extend(spec.ephemeral_containers.iter().flatten().map(ephemeral));
    all
}

fn view(c: &Container) -> View<'_> {
    View {
        name: &c.name,
        security: c.security_context.as_ref(),
        ports: c.ports.as_deref().unwrap_or_default(),
        probes: [c.liveness_probe.as_ref(), c.readiness_probe.as_ref(), c.startup_probe.as_ref()],
        lifecycle: c.lifecycle.as_ref(),
    }
}

fn ephemeral(c: &EphemeralContainer) -> View<'_> {
    View {
        name: &c.name,
        security: c.security_context.as_ref(),
        ports: c.ports.as_deref().unwrap_or_default(),
        probes: [c.liveness_probe.as_ref(), c.readiness_probe.as_ref(), c.startup_probe.as_ref()],
        lifecycle: c.lifecycle.as_ref(),
    }
}

fn quoted(items: impl IntoIterator<Item = impl AsRef<str>>) -> String {
    let all: Vec<String> = items.into_iter().map(|i| format!("\"{}\"", i.as_ref())).collect();
    all.join(", ")
}

fn plural<'a>(one: &'a str, many: &'a str, count: usize) -> &'a str {
    if count == 1 { one } else { many }
}

/// `container "a"` or `containers "a", "b"`.
fn containers(names: &[&str]) -> String {
    format!("{} {}", plural("container", "containers", names.len()), quoted(names))
}

/// `pod and container "a"`: where something is set.
fn setters(pod: bool, names: &[&str]) -> Option<String> {
    let all: Vec<String> =
        pod.then(|| "pod".to_owned()).into_iter().chain((!names.is_empty()).then(|| containers(names))).collect();
    (!all.is_empty()).then(|| all.join(" and "))
}

fn violation(reason: &str, detail: String) -> Found {
    Some(Violation { reason: reason.to_owned(), detail })
}

impl Subject<'_> {
    /// Names of the containers for which this holds.
    fn named(&self, holds: impl Fn(&View<'_>) -> bool) -> Vec<&str> {
        self.containers.iter().filter(|c| holds(c)).map(|c| c.name).collect()
    }

    fn is_windows(&self) -> bool {
        self.spec.os.as_ref().is_some_and(|o| o.name == "windows")
    }

    /// Whether root in the pod is nobody outside.
    fn has_own_users(&self) -> bool {
        self.spec.host_users == Some(false)
    }
}

const APP_ARMOR: &str = "container.apparmor.security.beta.kubernetes.io/";

fn app_armor(s: &Subject<'_>) -> Found {
    let bad = |kind: &str| !matches!(kind, "RuntimeDefault" | "Localhost");
    let mut values = Names::new();
    let pod = s.spec.security_context.as_ref().and_then(|c| c.app_armor_profile.as_ref()).filter(|p| bad(&p.type_));
    values.extend(pod.map(|p| p.type_.clone()));
    let of = |c: &View<'_>| c.security.and_then(|c| c.app_armor_profile.as_ref()).map(|p| p.type_.clone());
    values.extend(s.containers.iter().filter_map(of).filter(|t| bad(t)));
    let names = s.named(|c| of(c).is_some_and(|t| bad(&t)));
    let allowed = |v: &str| v.is_empty() || v == "runtime/default" || v.starts_with("localhost/");
    let annotations: Vec<String> = (s.meta.annotations.iter().flatten())
        .filter(|(k, v)| k.starts_with(APP_ARMOR) && !allowed(v))
        .map(|(k, v)| format!("{k}={v:?}"))
        .collect();
    let mut who: Vec<String> = setters(pod.is_some(), &names).into_iter().collect();
    let mut shown: Vec<String> = values.into_iter().collect();
    if !annotations.is_empty() {
        who.push(plural("annotation", "annotations", annotations.len()).to_owned());
        shown.extend(annotations);
    }
    if who.is_empty() {
        return None;
    }
    let reason = plural("forbidden AppArmor profile", "forbidden AppArmor profiles", shown.len());
    violation(reason, format!("{} must not set AppArmor profile type to {}", who.join(" and "), quoted(&shown)))
}

const DEFAULT_CAPABILITIES: &[&str] = &[
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

fn own_capabilities<'a>(c: &View<'a>) -> Option<&'a Capabilities> {
    c.security.and_then(|s| s.capabilities.as_ref())
}

/// Containers that add capabilities that are not allowed, and which.
fn added<'a>(s: &'a Subject<'_>, allowed: &[&str]) -> (Vec<&'a str>, Names) {
    let bad = |c: &View<'_>| -> Names {
        let add = own_capabilities(c).and_then(|c| c.add.as_deref()).unwrap_or_default();
        add.iter().filter(|c| !allowed.contains(&c.as_str())).cloned().collect()
    };
    (s.named(|c| !bad(c).is_empty()), s.containers.iter().flat_map(bad).collect())
}

fn must_not_add(names: &[&str], which: &Names) -> String {
    format!("{} must not include {} in securityContext.capabilities.add", containers(names), quoted(which))
}

fn capabilities(s: &Subject<'_>) -> Found {
    let (names, which) = added(s, DEFAULT_CAPABILITIES);
    if names.is_empty() { None } else { violation("non-default capabilities", must_not_add(&names, &which)) }
}

fn capabilities_restricted(s: &Subject<'_>) -> Found {
    if s.version >= 25 && s.is_windows() {
        return None;
    }
    let drops_all = |c: &View<'_>| own_capabilities(c).is_some_and(|c| c.drop.iter().flatten().any(|d| d == "ALL"));
    let keeping = s.named(|c| !drops_all(c));
    let (adding, which) = added(s, &["NET_BIND_SERVICE"]);
    let mut details = Vec::new();
    if !keeping.is_empty() {
        details.push(format!("{} must set securityContext.capabilities.drop=[\"ALL\"]", containers(&keeping)));
    }
    if !adding.is_empty() {
        details.push(must_not_add(&adding, &which));
    }
    if details.is_empty() { None } else { violation("unrestricted capabilities", details.join("; ")) }
}

fn host_namespaces(s: &Subject<'_>) -> Found {
    let all = [("hostNetwork", s.spec.host_network), ("hostPID", s.spec.host_pid), ("hostIPC", s.spec.host_ipc)];
    let used: Vec<String> = all.iter().filter(|(_, v)| *v == Some(true)).map(|(n, _)| format!("{n}=true")).collect();
    if used.is_empty() { None } else { violation("host namespaces", used.join(", ")) }
}

fn host_path(s: &Subject<'_>) -> Found {
    let used = s.spec.volumes.iter().flatten().filter(|v| v.host_path.is_some());
    let names: Vec<&str> = used.map(|v| v.name.as_str()).collect();
    if names.is_empty() {
        return None;
    }
    violation("hostPath volumes", format!("{} {}", plural("volume", "volumes", names.len()), quoted(&names)))
}

fn host_ports(s: &Subject<'_>) -> Found {
    let taken = |p: &ContainerPort| p.host_port.filter(|p| *p != 0).map(|p| p.to_string());
    let names = s.named(|c| c.ports.iter().any(|p| taken(p).is_some()));
    if names.is_empty() {
        return None;
    }
    let ports: Names = s.containers.iter().flat_map(|c| c.ports).filter_map(taken).collect();
    let list = ports.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
    let uses = plural("uses", "use", names.len());
    let what = plural("hostPort", "hostPorts", ports.len());
    violation("hostPort", format!("{} {uses} {what} {list}", containers(&names)))
}

fn host_probes(s: &Subject<'_>) -> Found {
    let of = |c: &View<'_>| -> Names {
        let handlers = c.lifecycle.iter().flat_map(|l| [l.post_start.as_ref(), l.pre_stop.as_ref()]).flatten();
        let of_handler = |h: &LifecycleHandler| {
            let http = h.http_get.as_ref().and_then(|g| g.host.clone());
            [http, h.tcp_socket.as_ref().and_then(|g| g.host.clone())]
        };
        let of_probe = |p: &&Probe| {
            let http = p.http_get.as_ref().and_then(|g| g.host.clone());
            [http, p.tcp_socket.as_ref().and_then(|g| g.host.clone())]
        };
        let probes = c.probes.iter().flatten().flat_map(of_probe);
        probes.chain(handlers.flat_map(of_handler)).flatten().filter(|h| !h.is_empty()).collect()
    };
    let names: BTreeSet<&str> = s.named(|c| !of(c).is_empty()).into_iter().collect();
    if names.is_empty() {
        return None;
    }
    let names: Vec<&str> = names.into_iter().collect();
    let hosts: Names = s.containers.iter().flat_map(of).collect();
    let uses = plural("uses", "use", names.len());
    let what = plural("probe or lifecycle host", "probe or lifecycle hosts", hosts.len());
    violation("probe or lifecycle host", format!("{} {uses} {what} {}", containers(&names), quoted(&hosts)))
}

fn privileged(s: &Subject<'_>) -> Found {
    let names = s.named(|c| c.security.and_then(|s| s.privileged) == Some(true));
    if names.is_empty() {
        return None;
    }
    violation("privileged", format!("{} must not set securityContext.privileged=true", containers(&names)))
}

fn proc_mount_baseline(s: &Subject<'_>) -> Found {
    if s.version >= 35 && s.has_own_users() { None } else { proc_mount(s) }
}

fn proc_mount(s: &Subject<'_>) -> Found {
    let bad = |c: &View<'_>| c.security.and_then(|s| s.proc_mount.clone()).filter(|p| p != "Default");
    let names = s.named(|c| bad(c).is_some());
    if names.is_empty() {
        return None;
    }
    let kinds: Names = s.containers.iter().filter_map(bad).collect();
    let detail = format!("{} must not set securityContext.procMount to {}", containers(&names), quoted(&kinds));
    violation("procMount", detail)
}

fn se_linux(s: &Subject<'_>) -> Found {
    let allowed = |kind: &str| {
        matches!(kind, "" | "container_t" | "container_init_t" | "container_kvm_t")
            || (s.version >= 31 && kind == "container_engine_t")
    };
    let is_set = |v: &Option<String>| v.as_deref().is_some_and(|v| !v.is_empty());
    let kind = |o: &SELinuxOptions| o.type_.clone().unwrap_or_default();
    let bad = |o: &SELinuxOptions| !allowed(&kind(o)) || is_set(&o.user) || is_set(&o.role);
    let pod = s.spec.security_context.as_ref().and_then(|c| c.se_linux_options.as_ref());
    let of = |c: &View<'_>| c.security.and_then(|c| c.se_linux_options.clone());
    let names = s.named(|c| of(c).is_some_and(|o| bad(&o)));
    let who = setters(pod.is_some_and(bad), &names)?;
    let every: Vec<SELinuxOptions> = pod.cloned().into_iter().chain(s.containers.iter().filter_map(of)).collect();
    let kinds: Names = every.iter().map(kind).filter(|k| !allowed(k)).collect();
    let mut data = Vec::new();
    if !kinds.is_empty() {
        data.push(format!("{} {}", plural("type", "types", kinds.len()), quoted(&kinds)));
    }
    if every.iter().any(|o| is_set(&o.user)) {
        data.push("user may not be set".to_owned());
    }
    if every.iter().any(|o| is_set(&o.role)) {
        data.push("role may not be set".to_owned());
    }
    violation("seLinuxOptions", format!("{who} set forbidden securityContext.seLinuxOptions: {}", data.join("; ")))
}

const SECCOMP_POD: &str = "seccomp.security.alpha.kubernetes.io/pod";
const SECCOMP_CONTAINER: &str = "container.seccomp.security.alpha.kubernetes.io/";

fn seccomp_annotations(s: &Subject<'_>) -> Found {
    let allowed = |v: &str| matches!(v, "runtime/default" | "docker/default") || v.starts_with("localhost/");
    let keys = s.containers.iter().map(|c| format!("{SECCOMP_CONTAINER}{}", c.name));
    let found: Names = std::iter::once(SECCOMP_POD.to_owned())
        .chain(keys)
        .filter_map(|key| {
            let value = s.meta.annotations.as_ref()?.get(&key).filter(|v| !allowed(v))?;
            Some(format!("{key}={value:?}"))
        })
        .collect();
    if found.is_empty() {
        return None;
    }
    let list = found.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
    violation("seccompProfile", format!("forbidden {} {list}", plural("annotation", "annotations", found.len())))
}

fn is_confined(kind: &str) -> bool {
    matches!(kind, "RuntimeDefault" | "Localhost")
}

fn own_seccomp<'a>(c: &View<'a>) -> Option<&'a str> {
    c.security.and_then(|s| s.seccomp_profile.as_ref()).map(|p| p.type_.as_str())
}

fn pod_seccomp<'a>(s: &Subject<'a>) -> Option<&'a str> {
    s.spec.security_context.as_ref().and_then(|c| c.seccomp_profile.as_ref()).map(|p| p.type_.as_str())
}

fn seccomp_set(s: &Subject<'_>) -> Found {
    let bad = |k: Option<&str>| k.is_some_and(|k| !is_confined(k));
    let names = s.named(|c| bad(own_seccomp(c)));
    let who = setters(bad(pod_seccomp(s)), &names)?;
    let every = pod_seccomp(s).into_iter().chain(s.containers.iter().filter_map(own_seccomp));
    let kinds: BTreeSet<&str> = every.filter(|k| !is_confined(k)).collect();
    violation("seccompProfile", format!("{who} must not set securityContext.seccompProfile.type to {}", quoted(kinds)))
}

fn seccomp_baseline(s: &Subject<'_>) -> Found {
    if s.version >= 19 { seccomp_set(s) } else { seccomp_annotations(s) }
}

fn seccomp_restricted(s: &Subject<'_>) -> Found {
    if s.version >= 25 && s.is_windows() {
        return None;
    }
    if let Some(found) = seccomp_set(s) {
        return Some(found);
    }
    if pod_seccomp(s).is_some() {
        return None;
    }
    let names = s.named(|c| own_seccomp(c).is_none());
    if names.is_empty() {
        return None;
    }
    let must = "must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\"";
    violation("seccompProfile", format!("pod or {} {must}", containers(&names)))
}

/// Kernel settings a pod may have, with the version since when.
const SYSCTLS: &[(&str, u32)] = &[
    ("kernel.shm_rmid_forced", 0),
    ("net.ipv4.ip_local_port_range", 0),
    ("net.ipv4.tcp_syncookies", 0),
    ("net.ipv4.ping_group_range", 0),
    ("net.ipv4.ip_unprivileged_port_start", 0),
    ("net.ipv4.ip_local_reserved_ports", 27),
    ("net.ipv4.tcp_keepalive_time", 29),
    ("net.ipv4.tcp_fin_timeout", 29),
    ("net.ipv4.tcp_keepalive_intvl", 29),
    ("net.ipv4.tcp_keepalive_probes", 29),
    ("net.ipv4.tcp_rmem", 32),
    ("net.ipv4.tcp_wmem", 32),
    ("net.ipv4.tcp_slow_start_after_idle", 37),
    ("net.ipv4.tcp_notsent_lowat", 37),
];

fn sysctls(s: &Subject<'_>) -> Found {
    let allowed = |name: &str| SYSCTLS.iter().any(|(n, since)| *n == name && *since <= s.version);
    let set = s.spec.security_context.iter().flat_map(|c| c.sysctls.iter().flatten());
    let names: Vec<&str> = set.map(|s| s.name.as_str()).filter(|n| !allowed(n)).collect();
    if names.is_empty() { None } else { violation("forbidden sysctls", names.join(", ")) }
}

fn windows_host_process(s: &Subject<'_>) -> Found {
    let pod = s.spec.security_context.as_ref().and_then(|c| c.windows_options.as_ref()).and_then(|w| w.host_process);
    let names =
        s.named(|c| c.security.and_then(|s| s.windows_options.as_ref()).and_then(|w| w.host_process) == Some(true));
    let who = setters(pod == Some(true), &names)?;
    violation("hostProcess", format!("{who} must not set securityContext.windowsOptions.hostProcess=true"))
}

fn privilege_escalation(s: &Subject<'_>) -> Found {
    if s.version >= 25 && s.is_windows() {
        return None;
    }
    let names = s.named(|c| c.security.and_then(|s| s.allow_privilege_escalation) != Some(false));
    if names.is_empty() {
        return None;
    }
    let detail = format!("{} must set securityContext.allowPrivilegeEscalation=false", containers(&names));
    violation("allowPrivilegeEscalation != false", detail)
}

/// The source of a volume that a restricted pod may not have.
fn forbidden_source(v: &Volume) -> Option<&'static str> {
    let allowed = v.config_map.is_some()
        || v.csi.is_some()
        || v.downward_api.is_some()
        || v.empty_dir.is_some()
        || v.ephemeral.is_some()
        || v.image.is_some()
        || v.persistent_volume_claim.is_some()
        || v.projected.is_some()
        || v.secret.is_some();
    if allowed {
        return None;
    }
    let sources = [
        (v.host_path.is_some(), "hostPath"),
        (v.gce_persistent_disk.is_some(), "gcePersistentDisk"),
        (v.aws_elastic_block_store.is_some(), "awsElasticBlockStore"),
        (v.git_repo.is_some(), "gitRepo"),
        (v.nfs.is_some(), "nfs"),
        (v.iscsi.is_some(), "iscsi"),
        (v.glusterfs.is_some(), "glusterfs"),
        (v.rbd.is_some(), "rbd"),
        (v.flex_volume.is_some(), "flexVolume"),
        (v.cinder.is_some(), "cinder"),
        (v.cephfs.is_some(), "cephfs"),
        (v.flocker.is_some(), "flocker"),
        (v.fc.is_some(), "fc"),
        (v.azure_file.is_some(), "azureFile"),
        (v.vsphere_volume.is_some(), "vsphereVolume"),
        (v.quobyte.is_some(), "quobyte"),
        (v.azure_disk.is_some(), "azureDisk"),
        (v.photon_persistent_disk.is_some(), "photonPersistentDisk"),
        (v.portworx_volume.is_some(), "portworxVolume"),
        (v.scale_io.is_some(), "scaleIO"),
        (v.storageos.is_some(), "storageos"),
    ];
    Some(sources.iter().find(|(is, _)| *is).map_or("unknown", |(_, name)| name))
}

fn volumes(s: &Subject<'_>) -> Found {
    let bad: Vec<(&str, &str)> =
        s.spec.volumes.iter().flatten().filter_map(|v| Some((v.name.as_str(), forbidden_source(v)?))).collect();
    if bad.is_empty() {
        return None;
    }
    let kinds: BTreeSet<&str> = bad.iter().map(|(_, k)| *k).collect();
    let detail = format!(
        "{} {} {} {} {}",
        plural("volume", "volumes", bad.len()),
        quoted(bad.iter().map(|(n, _)| *n)),
        plural("uses", "use", bad.len()),
        plural("restricted volume type", "restricted volume types", kinds.len()),
        quoted(&kinds)
    );
    violation("restricted volume types", detail)
}

fn non_root(s: &Subject<'_>) -> Found {
    if s.version >= 35 && s.has_own_users() {
        return None;
    }
    let pod = s.spec.security_context.as_ref().and_then(|c| c.run_as_non_root);
    let own = |c: &View<'_>| c.security.and_then(|s| s.run_as_non_root);
    let saying_no = s.named(|c| own(c) == Some(false));
    if let Some(who) = setters(pod == Some(false), &saying_no) {
        let detail = format!("{who} must not set securityContext.runAsNonRoot=false");
        return violation("runAsNonRoot != true", detail);
    }
    let silent = s.named(|c| own(c).is_none());
    if pod == Some(true) || silent.is_empty() {
        return None;
    }
    let detail = format!("pod or {} must set securityContext.runAsNonRoot=true", containers(&silent));
    violation("runAsNonRoot != true", detail)
}

fn run_as_user(s: &Subject<'_>) -> Found {
    if s.version >= 35 && s.has_own_users() {
        return None;
    }
    let pod = s.spec.security_context.as_ref().and_then(|c| c.run_as_user);
    let names = s.named(|c| c.security.and_then(|s| s.run_as_user) == Some(0));
    let who = setters(pod == Some(0), &names)?;
    violation("runAsUser=0", format!("{who} must not set runAsUser=0"))
}
