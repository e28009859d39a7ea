//! Volumes behind claims: the claim, the volume it is bound to, and what that is on this node.

use super::{MountError, host};
use crate::config::KubeletConfig;
use gantry_api::meta::object::Meta;
use gantry_api::storage::binding;
use gantry_client::{Api, Client};
use k8s_openapi::api::core::v1::{
    NFSVolumeSource, PersistentVolume, PersistentVolumeClaim, PersistentVolumeSpec, Pod, Volume,
};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Reads claims and volumes.
pub(crate) struct Claims {
    client: Option<Client>,
    root: PathBuf,
}

/// A claim's volume, ready on the host.
pub(crate) struct Found {
    pub path: PathBuf,
    pub read_only: bool,
    /// Whether it is a block device.
    pub block: bool,
}

/// What is wrong where a pod uses a volume as what it is not: mounts a block device, or takes a file system for a device.
pub(super) fn wrong_mode(volume: &str, block: bool) -> String {
    let (mode, place) = if block { ("Block", "volumeMounts") } else { ("Filesystem", "volumeDevices") };
    format!("volume {volume} has volumeMode {mode}, but is specified in {place}")
}

/// Whether a container of the pod mounts the volume (`block`), or takes it as a device (not `block`).
fn is_misused(pod: &Pod, volume: &str, block: bool) -> bool {
    let spec = pod.spec.as_ref();
    let containers = spec.into_iter().flat_map(|s| s.containers.iter().chain(s.init_containers.iter().flatten()));
    containers.into_iter().any(|c| {
        if block {
            c.volume_mounts.iter().flatten().any(|m| m.name == volume)
        } else {
            c.volume_devices.iter().flatten().any(|d| d.name == volume)
        }
    })
}

/// How to hand a volume to a group of users.
#[derive(Clone, Copy)]
pub(crate) struct Group {
    pub id: u32,
    /// Only where the top directory does not belong to the group yet.
    pub on_root_mismatch: bool,
}

impl Claims {
    pub(crate) fn new(client: Client, cfg: &KubeletConfig) -> Self {
        Self { client: Some(client), root: cfg.local_volumes_directory() }
    }

    /// Without an API server: every request fails.
    #[cfg(test)]
    pub(crate) fn none() -> Self {
        Self { client: None, root: PathBuf::new() }
    }

    async fn volume_of(&self, pod: &Pod, volume: &Volume) -> Result<PersistentVolume, String> {
        let client = self.client.clone().ok_or("there is no API server")?;
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let name = binding::claim_name(pod, volume).unwrap_or_default();
        let failed = |why: String| format!("error processing PVC {namespace}/{name}: {why}");
        let claims = Api::<PersistentVolumeClaim>::namespaced(client.clone(), namespace);
        let claim = claims.get(&name).await;
        let claim = claim.map_err(|e| failed(format!("failed to fetch PVC from API server: {e}")))?;
        if volume.ephemeral.is_some() {
            binding::check_ephemeral(&claim, pod).map_err(failed)?;
        }
        // A pod must not begin to use what is going away.
        if claim.metadata.deletion_timestamp.is_some() {
            return Err(failed("PVC is being deleted".into()));
        }
        if claim.status.as_ref().and_then(|s| s.phase.as_deref()) != Some("Bound") {
            return Err(failed("PVC is not bound".into()));
        }
        let name = binding::volume_name(&claim).to_owned();
        if name.is_empty() {
            return Err(failed("PVC has empty pvc.Spec.VolumeName".into()));
        }
        let found = Api::<PersistentVolume>::all(client).get(&name).await;
        let found = found.map_err(|e| failed(format!("failed to fetch PV {name} from API server: {e}")))?;
        let uid = claim.metadata.uid.as_deref().unwrap_or_default();
        match binding::claim_ref(&found).map(|r| r.uid.as_deref().unwrap_or_default()) {
            None => {
                let why = format!(
                    "found PV object {name} with nil pv.Spec.ClaimRef indicating it is not yet bound to the claim"
                );
                Err(failed(why))
            }
            Some(other) if other != uid => Err(failed(format!(
                "found PV object {name} with a pv.Spec.ClaimRef.UID {other} that does not point to the claim. Expected \
                 claim UID {uid}"
            ))),
            Some(_) => Ok(found),
        }
    }

    /// Makes the volume ready; `directory` is where it is mounted if it must be.
    pub(crate) async fn prepare(
        &self,
        pod: &Pod,
        volume: &Volume,
        directory: &Path,
        group: Option<Group>,
    ) -> Result<Found, MountError> {
        let unprocessed =
            |message: String| MountError { volume: volume.name.clone(), message, stage: super::Stage::Process };
        let found = self.volume_of(pod, volume).await.map_err(unprocessed)?;
        let name = found.metadata.name.clone().unwrap_or_default();
        let spec = found.spec.clone().unwrap_or_default();
        let block = spec.volume_mode.as_deref() == Some("Block");
        if is_misused(pod, &volume.name, block) {
            return Err(unprocessed(wrong_mode(&volume.name, block)));
        }
        let read_only = volume.persistent_volume_claim.as_ref().and_then(|c| c.read_only) == Some(true);
        let (root, inside) = (self.root.clone(), directory.join(&name));
        let made_here = found.metadata.annotation(binding::PROVISIONED_BY) == Some(binding::LOCAL_PATH);
        let shown = name.clone();
        if block {
            let failed = |Failure { stage, message }| MountError { volume: name.clone(), message, stage };
            let path = block_device(&spec).map_err(failed)?;
            return Ok(Found { path, read_only, block });
        }
        let ready = tokio::task::spawn_blocking(move || {
            let path = ready(&spec, &name, &inside, made_here.then_some(root.as_path()))?;
            // A path of the host belongs to the host: its owners stay.
            if let Some(group) = group.filter(|_| spec.host_path.is_none() && !read_only) {
                let failed = |e: std::io::Error| format!("applyFSGroup failed for vol {name}: {e}");
                hand_over(&path, group).map_err(failed)?;
            }
            Ok(path)
        });
        let failed = |(stage, message)| MountError { volume: shown.clone(), message, stage };
        let path = match ready.await {
            Ok(result) => result.map_err(|e: Failure| failed((e.stage, e.message)))?,
            Err(panic) => return Err(failed((super::Stage::SetUp, panic.to_string()))),
        };
        Ok(Found { path, read_only, block })
    }
}

struct Failure {
    stage: super::Stage,
    message: String,
}

impl From<String> for Failure {
    fn from(message: String) -> Self {
        Self { stage: super::Stage::SetUp, message }
    }
}

/// The device of a block volume on this node.
fn block_device(spec: &PersistentVolumeSpec) -> Result<PathBuf, Failure> {
    if let Some(local) = &spec.local {
        let failed = |message: String| Failure { stage: super::Stage::MapDevice, message };
        // A path below /dev/disk is a link, and its target may be another after a start of the machine.
        let path = fs::canonicalize(&local.path).map_err(|e| failed(format!("{}: {e}", local.path)))?;
        let meta = fs::metadata(&path).map_err(|e| failed(format!("{}: {e}", local.path)))?;
        if !meta.file_type().is_block_device() {
            return Err(failed(format!("{} is not a block device", local.path)));
        }
        return Ok(path);
    }
    if let Some(csi) = &spec.csi {
        let message = no_driver("blockMapper.SetUpDevice failed to get CSI client", &csi.driver);
        return Err(Failure { stage: super::Stage::SetUpDevice, message });
    }
    let message = "MapVolume.FindMapperPluginBySpec failed to find BlockVolumeMapper plugin. Volume plugin is nil.";
    Err(Failure { stage: super::Stage::Process, message: message.into() })
}

/// Where the volume is on the host. `root` is given where this node's agent keeps it.
fn ready(spec: &PersistentVolumeSpec, name: &str, inside: &Path, root: Option<&Path>) -> Result<PathBuf, Failure> {
    if let Some(h) = &spec.host_path {
        let path = PathBuf::from(&h.path);
        host::check(&path, h.type_.as_deref().unwrap_or_default())?;
        return Ok(path);
    }
    if let Some(local) = &spec.local {
        let path = PathBuf::from(&local.path);
        if root.is_some_and(|root| path == root.join(name)) {
            make(&path).map_err(|e| format!("create {}: {e}", path.display()))?;
        }
        if !path.exists() {
            let message = format!("path {:?} does not exist", local.path);
            return Err(Failure { stage: super::Stage::NewMounter, message });
        }
        return Ok(path);
    }
    if let Some(nfs) = &spec.nfs {
        mount_nfs(nfs, spec.mount_options.as_deref().unwrap_or_default(), inside)?;
        return Ok(inside.to_owned());
    }
    if let Some(csi) = &spec.csi {
        let message = no_driver("attacher.MountDevice failed to create newCsiDriverClient", &csi.driver);
        return Err(Failure { stage: super::Stage::MountDevice, message });
    }
    Err(Failure { stage: super::Stage::NewMounter, message: "no volume plugin matched".into() })
}

/// No storage drivers run on this node: what upstream says where one that is needed has not registered.
pub(super) fn no_driver(what: &str, driver: &str) -> String {
    format!("kubernetes.io/csi: {what}: driver name {driver} not found in the list of registered CSI drivers")
}

/// Makes the directory of a volume, for whichever user the pod runs as.
pub(super) fn make(path: &Path) -> std::io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o777))
}

/// Mounts an NFS export with the machine's own `mount`, unless it is there already.
pub(super) fn mount_nfs(nfs: &NFSVolumeSource, options: &[String], target: &Path) -> Result<(), String> {
    fs::create_dir_all(target).map_err(|e| format!("create {}: {e}", target.display()))?;
    let device = |p: &Path| fs::metadata(p).map(|m| m.dev()).map_err(|e| format!("stat {}: {e}", p.display()));
    let parent = target.parent().ok_or("a volume has a parent directory")?;
    if device(target)? != device(parent)? {
        return Ok(());
    }
    let read_only = (nfs.read_only == Some(true)).then_some("ro");
    // In order and each once, as upstream joins them.
    let options: BTreeSet<&str> =
        options.iter().map(String::as_str).chain(read_only).filter(|o| !o.is_empty()).collect();
    let source = format!("{}:{}", nfs.server, nfs.path);
    let mut arguments = vec!["-t".to_owned(), "nfs".to_owned()];
    if !options.is_empty() {
        arguments.extend(["-o".to_owned(), Vec::from_iter(options).join(",")]);
    }
    arguments.extend([source, target.display().to_string()]);
    let told = |status: String, output: &str| {
        let arguments = arguments.join(" ");
        format!("mount failed: {status}\nMounting command: mount\nMounting arguments: {arguments}\nOutput: {output}")
    };
    match Command::new("mount").args(&arguments).output() {
        Ok(done) if done.status.success() => Ok(()),
        Ok(done) => {
            let output = [done.stdout, done.stderr].concat();
            Err(told(done.status.to_string().replace("exit status:", "exit status"), &String::from_utf8_lossy(&output)))
        }
        Err(e) => Err(told(e.to_string(), "")),
    }
}

/// Gives a volume to a group: it owns everything, may read and write, and what is made later is its own too.
fn hand_over(path: &Path, group: Group) -> std::io::Result<()> {
    let meta = fs::symlink_metadata(path)?;
    let right = meta.gid() == group.id && meta.mode() & 0o2070 == 0o2070;
    if group.on_root_mismatch && right {
        return Ok(());
    }
    hand_over_tree(path, group.id)
}

fn hand_over_tree(path: &Path, group: u32) -> std::io::Result<()> {
    let meta = fs::symlink_metadata(path)?;
    std::os::unix::fs::lchown(path, None, Some(group))?;
    if meta.is_symlink() {
        return Ok(());
    }
    let more = if meta.is_dir() { 0o2770 } else { 0o660 };
    fs::set_permissions(path, fs::Permissions::from_mode(meta.mode() & 0o7777 | more))?;
    if meta.is_dir() {
        for entry in fs::read_dir(path)? {
            hand_over_tree(&entry?.path(), group)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn spec(value: Value) -> PersistentVolumeSpec {
        serde_json::from_value(value).unwrap()
    }

    fn failure(value: Value, dir: &Path) -> (super::super::Stage, String) {
        let e = ready(&spec(value), "v", &dir.join("mounted"), None).unwrap_err();
        (e.stage, e.message)
    }

    #[test]
    fn volumes_of_this_node_are_made_and_others_must_exist() {
        use super::super::Stage;
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let own = spec(json!({"local": {"path": at("v")}}));
        assert_eq!(failure(json!({"local": {"path": at("v")}}), dir.path()).0, Stage::NewMounter);
        assert_eq!(ready(&own, "v", &at("m"), Some(dir.path())).ok(), Some(at("v")));
        assert_eq!(fs::metadata(at("v")).unwrap().permissions().mode() & 0o777, 0o777);
        let elsewhere = spec(json!({"local": {"path": at("w")}}));
        let e = ready(&elsewhere, "v", &at("m"), Some(dir.path())).unwrap_err();
        assert_eq!(e.message, format!("path {:?} does not exist", at("w").display().to_string()));
        let csi = failure(json!({"csi": {"driver": "d", "volumeHandle": "h"}}), dir.path());
        assert_eq!(csi.0, Stage::MountDevice);
        assert!(csi.1.ends_with("driver name d not found in the list of registered CSI drivers"));
    }

    #[test]
    fn block_volumes_are_devices_of_this_node() {
        use super::super::Stage;
        let dir = tempfile::tempdir().unwrap();
        let failure = |value: Value| block_device(&spec(value)).map_err(|e| (e.stage, e.message)).unwrap_err();
        let told = failure(json!({"local": {"path": dir.path()}}));
        assert_eq!(told, (Stage::MapDevice, format!("{} is not a block device", dir.path().display())));
        assert_eq!(failure(json!({"local": {"path": "/nowhere"}})).0, Stage::MapDevice);
        let csi = failure(json!({"csi": {"driver": "d", "volumeHandle": "h"}}));
        assert_eq!(csi.0, Stage::SetUpDevice);
        assert_eq!(failure(json!({"nfs": {"server": "s", "path": "/"}})).0, Stage::Process);
        let pod = |container: Value| {
            let mut container = container;
            container["name"] = json!("c");
            Pod { spec: serde_json::from_value(json!({"containers": [container]})).unwrap(), ..Pod::default() }
        };
        let mounts = pod(json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}]}));
        let takes = pod(json!({"volumeDevices": [{"name": "v", "devicePath": "/dev/v"}]}));
        assert!(is_misused(&mounts, "v", true) && !is_misused(&mounts, "v", false) && !is_misused(&mounts, "w", true));
        assert!(is_misused(&takes, "v", false) && !is_misused(&takes, "v", true));
        assert_eq!(wrong_mode("v", true), "volume v has volumeMode Block, but is specified in volumeMounts");
    }

    #[test]
    fn a_group_gets_the_whole_tree() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("d/f");
        fs::create_dir(dir.path().join("d")).unwrap();
        fs::write(&file, "x").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        let own = fs::metadata(dir.path()).unwrap().gid();
        hand_over(dir.path(), Group { id: own, on_root_mismatch: true }).unwrap();
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o660);
        assert_eq!(fs::metadata(dir.path().join("d")).unwrap().mode() & 0o2070, 0o2070);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        hand_over(dir.path(), Group { id: own, on_root_mismatch: true }).unwrap();
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o600, "the top is right: nothing is looked at");
    }
}
