//! The Container Device Interface: files in which drivers describe what a container with one of their devices is given
//! (<https://github.com/cncf-tags/container-device-interface>, versions 0.3.0 to 1.1.0).
//!
//! Hooks, network devices and cache control are not among what containers can be given here; a device that wants one
//! is refused.

use gantry_container::runtime::{ContainerConfig, Device as HostDevice, Mount, MountSource, Propagation};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Where the files are; a device of the later directory goes before one of the same name in the earlier.
pub(crate) const DIRECTORIES: [&str; 2] = ["/etc/cdi", "/var/run/cdi"];

const VERSIONS: [&str; 8] = ["0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0"];

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Spec {
    cdi_version: String,
    kind: String,
    #[serde(default)]
    #[allow(dead_code, reason = "may be given, changes nothing")]
    annotations: BTreeMap<String, String>,
    devices: Vec<Device>,
    #[serde(default)]
    container_edits: Edits,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Device {
    name: String,
    #[serde(default)]
    #[allow(dead_code, reason = "may be given, changes nothing")]
    annotations: BTreeMap<String, String>,
    #[serde(default)]
    container_edits: Edits,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Edits {
    #[serde(default)]
    env: Vec<String>,
    #[serde(default)]
    device_nodes: Vec<DeviceNode>,
    #[serde(default)]
    net_devices: Vec<serde_json::Value>,
    #[serde(default)]
    hooks: Vec<Hook>,
    #[serde(default)]
    mounts: Vec<MountEdit>,
    #[serde(default)]
    intel_rdt: Option<serde_json::Value>,
    #[serde(default)]
    additional_gids: Vec<u32>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct DeviceNode {
    path: PathBuf,
    #[serde(default)]
    host_path: Option<PathBuf>,
    #[serde(default, rename = "type")]
    kind: String,
    #[serde(default)]
    #[allow(dead_code, reason = "the host's node says it")]
    major: i64,
    #[serde(default)]
    #[allow(dead_code, reason = "the host's node says it")]
    minor: i64,
    #[serde(default)]
    file_mode: Option<u32>,
    #[serde(default)]
    permissions: String,
    #[serde(default)]
    uid: Option<u32>,
    #[serde(default)]
    gid: Option<u32>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Hook {
    hook_name: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct MountEdit {
    host_path: PathBuf,
    container_path: PathBuf,
    #[serde(default)]
    options: Vec<String>,
    #[serde(default, rename = "type")]
    kind: String,
}

/// A vendor or class: a letter, then letters, digits, `_`, `-` and `.`, and no such sign at the end.
fn is_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name.ends_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c))
}

/// A device's name may begin with a digit and have colons, too.
fn is_device_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.ends_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "_-.:".contains(c))
}

fn read(path: &Path) -> Result<Spec, String> {
    let text = std::fs::read_to_string(path).map_err(|e| e.to_string())?;
    let spec: Spec = serde_saphyr::from_str(&text).map_err(|e| e.to_string())?;
    if !VERSIONS.contains(&spec.cdi_version.trim_start_matches('v')) {
        return Err(format!("invalid version {:?}", spec.cdi_version));
    }
    if !spec.kind.split_once('/').is_some_and(|(vendor, class)| is_name(vendor) && is_name(class)) {
        return Err(format!("invalid kind {:?}", spec.kind));
    }
    let mut seen = BTreeSet::new();
    for device in &spec.devices {
        if !is_device_name(&device.name) {
            return Err(format!("invalid device name {:?}", device.name));
        }
        if !seen.insert(&device.name) {
            return Err(format!("invalid spec, multiple device {:?}", device.name));
        }
    }
    Ok(spec)
}

/// Everything that is described, with the device's place in its file.
struct Registry {
    specs: Vec<Spec>,
    /// By qualified name; None where two files of one directory describe the same.
    devices: BTreeMap<String, Option<(usize, usize)>>,
}

impl Registry {
    fn load(directories: &[PathBuf]) -> Self {
        let mut registry = Self { specs: Vec::new(), devices: BTreeMap::new() };
        for directory in directories {
            let Ok(entries) = std::fs::read_dir(directory) else { continue };
            let mut files: Vec<PathBuf> = entries.flatten().map(|e| e.path()).collect();
            files.retain(|f| matches!(f.extension().and_then(|e| e.to_str()), Some("json" | "yaml")));
            files.sort();
            let mut here: BTreeMap<String, Option<(usize, usize)>> = BTreeMap::new();
            for file in files {
                let spec = match read(&file) {
                    Ok(spec) => spec,
                    Err(error) => {
                        tracing::warn!(file = %file.display(), error, "a CDI file cannot be used");
                        continue;
                    }
                };
                let number = registry.specs.len();
                for (i, device) in spec.devices.iter().enumerate() {
                    let name = format!("{}={}", spec.kind, device.name);
                    here.entry(name).and_modify(|twice| *twice = None).or_insert(Some((number, i)));
                }
                registry.specs.push(spec);
            }
            registry.devices.extend(here);
        }
        registry
    }
}

/// Gives a container the devices with these CDI ids.
///
/// # Errors
/// Which of them nobody describes, or what cannot be given.
pub(crate) fn inject(config: &mut ContainerConfig, ids: &[String], directories: &[PathBuf]) -> Result<(), String> {
    if ids.is_empty() {
        return Ok(());
    }
    let failed = |why: String| format!("CDI device injection failed: {why}");
    let registry = Registry::load(directories);
    let found: Vec<_> = ids.iter().map(|id| (id, registry.devices.get(id).copied().flatten())).collect();
    let missing: Vec<&str> = found.iter().filter(|(_, at)| at.is_none()).map(|(id, _)| id.as_str()).collect();
    if !missing.is_empty() {
        return Err(failed(format!("unresolvable CDI devices {}", missing.join(", "))));
    }
    let (mut specs, mut devices) = (BTreeSet::new(), BTreeSet::new());
    for (id, at) in found {
        let Some((spec, device)) = at else { continue };
        // What goes for all devices of a file is given once, and so is a device that two claims name.
        if specs.insert(spec) {
            apply(config, &registry.specs[spec].container_edits).map_err(|e| failed(format!("{id}: {e}")))?;
        }
        if devices.insert((spec, device)) {
            let edits = &registry.specs[spec].devices[device].container_edits;
            apply(config, edits).map_err(|e| failed(format!("{id}: {e}")))?;
        }
    }
    Ok(())
}

fn apply(config: &mut ContainerConfig, edits: &Edits) -> Result<(), String> {
    if let Some(hook) = edits.hooks.first() {
        return Err(format!("containers are made without hooks here, and it has a {} hook", hook.hook_name));
    }
    if !edits.net_devices.is_empty() {
        return Err("network devices cannot be given to containers here".into());
    }
    if edits.intel_rdt.is_some() {
        return Err("intelRdt cannot be set here".into());
    }
    for variable in &edits.env {
        let (name, value) =
            variable.split_once('=').ok_or_else(|| format!("invalid environment variable {variable:?}"))?;
        config.env.retain(|(known, _)| known != name);
        config.env.push((name.to_owned(), value.to_owned()));
    }
    for node in &edits.device_nodes {
        if !matches!(node.kind.as_str(), "" | "b" | "c" | "u") {
            return Err(format!("device {}: invalid type {:?}", node.path.display(), node.kind));
        }
        config.devices.retain(|d| d.container_path != node.path);
        let own = |id: Option<u32>, user: Option<u32>| id.or(user.filter(|u| *u > 0));
        config.devices.push(HostDevice {
            host_path: node.host_path.clone().unwrap_or_else(|| node.path.clone()),
            container_path: node.path.clone(),
            permissions: if node.permissions.is_empty() { "rwm".into() } else { node.permissions.clone() },
            mode: node.file_mode,
            uid: own(node.uid, config.security.uid),
            gid: own(node.gid, config.security.gid),
        });
    }
    for edit in &edits.mounts {
        let mount = mount(edit)?;
        config.mounts.retain(|m| m.destination != mount.destination);
        config.mounts.push(mount);
    }
    for gid in &edits.additional_gids {
        if *gid != 0 && !config.security.supplementary_groups.contains(gid) {
            config.security.supplementary_groups.push(*gid);
        }
    }
    Ok(())
}

fn mount(edit: &MountEdit) -> Result<Mount, String> {
    let mut mount = Mount::bind(&edit.host_path, &edit.container_path);
    let mut size = None;
    for option in &edit.options {
        match option.as_str() {
            "ro" => mount.read_only = true,
            "rro" => (mount.read_only, mount.recursive_read_only) = (true, true),
            "rshared" | "shared" => mount.propagation = Propagation::Bidirectional,
            "rslave" | "slave" => mount.propagation = Propagation::HostToContainer,
            // How binds are made anyway, or stricter than what is asked.
            "rw" | "bind" | "rbind" | "private" | "rprivate" | "nosuid" | "nodev" | "noexec" | "exec" | "relatime" => {}
            other => match other.strip_prefix("size=").filter(|_| edit.kind == "tmpfs") {
                Some(text) => size = Some(bytes(text).ok_or_else(|| format!("invalid size {text:?} of a tmpfs"))?),
                None if edit.kind == "tmpfs" && other.starts_with("mode=") => {}
                None => return Err(format!("mount {}: unknown option {other:?}", edit.container_path.display())),
            },
        }
    }
    match edit.kind.as_str() {
        "" | "bind" | "none" => {}
        "tmpfs" => mount.source = MountSource::Tmpfs { size },
        other => return Err(format!("mount {}: unknown type {other:?}", edit.container_path.display())),
    }
    Ok(mount)
}

/// A size as mount options have it: bytes, or with `k`, `m`, `g`.
fn bytes(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" => 1,
        "k" => 1 << 10,
        "m" => 1 << 20,
        "g" => 1 << 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(names: &[&str]) -> Vec<String> {
        names.iter().map(|n| (*n).to_owned()).collect()
    }

    #[test]
    fn what_files_describe_is_given_to_the_container() {
        let (low, high) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let directories = [low.path().to_owned(), high.path().to_owned()];
        let write =
            |dir: &tempfile::TempDir, name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write(
            &low,
            "a.yaml",
            "cdiVersion: 0.7.0\nkind: example.com/gpu\ncontainerEdits: {env: [ALL=yes]}\ndevices:\n\
             - name: '0'\n  containerEdits:\n    env: [A=1=2]\n    \
             deviceNodes: [{path: /dev/gpu, hostPath: /dev/null, permissions: rw}]\n    \
             mounts: [{hostPath: /lib, containerPath: /gpu, options: [ro, rbind]}]\n    additionalGids: [44, 0]\n\
             - name: '1'\n  containerEdits: {env: [B=old]}\n",
        );
        write(&low, "ignored.txt", "no");
        write(&low, "broken.json", "{");
        write(
            &high,
            "b.json",
            r#"{"cdiVersion": "0.3.0", "kind": "example.com/gpu", "devices": [{"name": "1", "containerEdits": {"env": ["B=new"]}}]}"#,
        );
        let mut config = ContainerConfig {
            env: vec![("A".into(), "0".into()), ("KEPT".into(), "1".into())],
            mounts: vec![Mount::bind("/x", "/gpu")],
            ..ContainerConfig::default()
        };
        config.security.uid = Some(1000);
        let all = ids(&["example.com/gpu=0", "example.com/gpu=1", "example.com/gpu=0"]);
        inject(&mut config, &all, &directories).unwrap();
        let env: Vec<String> = config.env.iter().map(|(n, v)| format!("{n}={v}")).collect();
        assert_eq!(env, ["KEPT=1", "ALL=yes", "A=1=2", "B=new"]);
        assert_eq!(config.mounts, [Mount::bind("/lib", "/gpu").read_only()]);
        let device = &config.devices[0];
        assert_eq!((config.devices.len(), device.host_path.as_path()), (1, Path::new("/dev/null")));
        assert_eq!((device.permissions.as_str(), device.uid, device.gid), ("rw", Some(1000), None));
        assert_eq!(config.security.supplementary_groups, [44]);

        let error = inject(&mut config, &ids(&["example.com/gpu=0", "a/b=c", "x"]), &directories).unwrap_err();
        assert_eq!(error, "CDI device injection failed: unresolvable CDI devices a/b=c, x");
        write(&high, "c.json", &std::fs::read_to_string(high.path().join("b.json")).unwrap());
        let error = inject(&mut config, &ids(&["example.com/gpu=1"]), &directories).unwrap_err();
        assert_eq!(error, "CDI device injection failed: unresolvable CDI devices example.com/gpu=1", "described twice");
        inject(&mut config, &[], &directories).unwrap();
    }

    #[test]
    fn what_cannot_be_given_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let directories = [directory.path().to_owned()];
        let with = |edits: &str| {
            let text =
                format!("cdiVersion: 1.1.0\nkind: e.com/d\ndevices: [{{name: x, containerEdits: {{{edits}}}}}]\n");
            std::fs::write(directory.path().join("d.yaml"), text).unwrap();
            inject(&mut ContainerConfig::default(), &ids(&["e.com/d=x"]), &directories).unwrap_err()
        };
        assert!(with("hooks: [{hookName: createContainer, path: /bin/x}]").contains("has a createContainer hook"));
        assert!(with("netDevices: [{hostInterfaceName: a, name: b}]").contains("network devices"));
        assert!(with("intelRdt: {closID: a}").contains("intelRdt"));
        assert!(with("mounts: [{hostPath: /a, containerPath: /b, type: nfs}]").contains("unknown type \"nfs\""));
        assert!(with("mounts: [{hostPath: /a, containerPath: /b, options: [x]}]").contains("unknown option \"x\""));
        assert!(with("env: [X]").contains("invalid environment variable \"X\""));
        assert!(with("surprise: 1").contains("unresolvable"), "the file is not understood");
        assert_eq!((bytes("64k"), bytes("1G"), bytes("x")), (Some(65536), Some(1 << 30), None));
    }
}
