//! A pod's volumes: made ready on the host, kept up to date while the pod runs, taken down after it.

pub(crate) mod atomic;
pub(crate) mod claim;
mod host;
pub(crate) mod local_path;
pub(crate) mod payload;
pub(crate) mod pod_certificate;
pub(crate) mod subpath;
pub(crate) mod token;
pub(crate) mod trust_bundle;

use crate::pod::env::{Environment, expand};
use crate::pod::resources;
use crate::references::{Held, References};
use gantry_api::meta::quantity::Amount;
use gantry_container::runtime::{Device, Mount, MountSource, Propagation};
use k8s_openapi::api::core::v1::{ConfigMap, Container, Pod, Secret, Volume, VolumeDevice};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use payload::Sources;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::Notify;
use tokio::time::Instant;

/// A volume that could not be made ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MountError {
    pub volume: String,
    pub message: String,
    pub stage: Stage,
}

/// How far a volume came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// What the volume is could not be found out.
    Process,
    NewMounter,
    MountDevice,
    SetUp,
    /// Stages of block volumes.
    SetUpDevice,
    MapDevice,
}

impl MountError {
    /// The reason of the event.
    pub(crate) fn reason(&self) -> &'static str {
        match self.stage {
            Stage::SetUpDevice | Stage::MapDevice => "FailedMapVolume",
            _ => "FailedMount",
        }
    }

    /// The message of the event.
    pub(crate) fn event(&self) -> String {
        let (volume, message) = (&self.volume, &self.message);
        match self.stage {
            Stage::Process => format!(
                "Unable to attach or mount volumes: unmounted volumes=[{volume}], unattached volumes=[], failed to \
                 process volumes=[{volume}]: {message}"
            ),
            Stage::NewMounter => {
                format!("MountVolume.NewMounter initialization failed for volume {volume:?} : {message}")
            }
            Stage::MountDevice => format!("MountVolume.MountDevice failed for volume {volume:?} : {message}"),
            Stage::SetUp => format!("MountVolume.SetUp failed for volume {volume:?} : {message}"),
            Stage::SetUpDevice => format!("MapVolume.SetUpDevice failed for volume {volume:?} : {message}"),
            Stage::MapDevice => format!("MapVolume.MapPodDevice failed for volume {volume:?} : {message}"),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Ready {
    /// A directory (or file) of the host.
    Host {
        path: PathBuf,
        /// Volumes whose content comes from the API are read-only in containers.
        read_only: bool,
    },
    /// A block device of the host, which containers see as a device.
    Block { path: PathBuf, read_only: bool },
    /// An image, by reference. The runtime mounts it; it is pulled with the images of the containers that mount it.
    Image(String),
}

/// The volumes of one pod.
pub(crate) struct Volumes {
    /// `<data>/pods/<uid>`.
    directory: PathBuf,
    ready: BTreeMap<String, Ready>,
    held_maps: Vec<Held<ConfigMap>>,
    held_secrets: Vec<Held<Secret>>,
    refresh: Option<Instant>,
    generations: u64,
}

impl Volumes {
    pub(crate) fn new(directory: PathBuf) -> Self {
        Self {
            directory,
            ready: BTreeMap::new(),
            held_maps: Vec::new(),
            held_secrets: Vec::new(),
            refresh: None,
            generations: 0,
        }
    }

    /// When tokens must be renewed.
    pub(crate) fn refresh_at(&self) -> Option<Instant> {
        self.refresh
    }

    /// Keeps every ConfigMap and Secret the pod refers to watched; `wake` is told of changes to those that are mounted.
    pub(crate) fn hold(
        &mut self,
        pod: &Pod,
        maps: &References<ConfigMap>,
        secrets: &References<Secret>,
        wake: &Arc<Notify>,
    ) {
        let Some(spec) = pod.spec.as_ref() else { return };
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let (mut map_names, mut secret_names) = (Vec::new(), Vec::new());
        for v in spec.volumes.iter().flatten() {
            map_names.extend(v.config_map.iter().map(|c| c.name.clone()));
            secret_names.extend(v.secret.iter().filter_map(|s| s.secret_name.clone()));
            for source in v.projected.iter().flat_map(|p| p.sources.iter().flatten()) {
                map_names.extend(source.config_map.iter().map(|c| c.name.clone()));
                secret_names.extend(source.secret.iter().map(|s| s.name.clone()));
            }
        }
        let mut fresh_maps: Vec<_> = map_names.iter().map(|n| maps.hold(namespace, n, Some(wake))).collect();
        let mut fresh_secrets: Vec<_> = secret_names.iter().map(|n| secrets.hold(namespace, n, Some(wake))).collect();
        let every = spec.containers.iter().chain(spec.init_containers.iter().flatten());
        for c in every {
            for from in c.env_from.iter().flatten() {
                fresh_maps.extend(from.config_map_ref.iter().map(|r| maps.hold(namespace, &r.name, None)));
                fresh_secrets.extend(from.secret_ref.iter().map(|r| secrets.hold(namespace, &r.name, None)));
            }
            for from in c.env.iter().flatten().filter_map(|e| e.value_from.as_ref()) {
                fresh_maps.extend(from.config_map_key_ref.iter().map(|r| maps.hold(namespace, &r.name, None)));
                fresh_secrets.extend(from.secret_key_ref.iter().map(|r| secrets.hold(namespace, &r.name, None)));
            }
        }
        // The old handles go only now, so that nothing is watched anew in between.
        self.held_maps = fresh_maps;
        self.held_secrets = fresh_secrets;
    }

    fn path(&self, plugin: &str, volume: &str) -> PathBuf {
        self.directory.join("volumes").join(plugin).join(volume)
    }

    /// Makes every volume ready, or up to date where it is already.
    pub(crate) async fn prepare(&mut self, pod: &Pod, sources: &Sources<'_>) -> Result<(), MountError> {
        let spec = pod.spec.as_ref();
        let group = spec.and_then(|s| s.security_context.as_ref()).and_then(|c| c.fs_group);
        let group = group.and_then(|g| u32::try_from(g).ok());
        let volumes: Vec<Volume> = spec.and_then(|s| s.volumes.clone()).unwrap_or_default();
        let mut refresh: Option<Instant> = None;
        for volume in &volumes {
            let failed = |message: String| MountError { volume: volume.name.clone(), message, stage: Stage::SetUp };
            let ready = if let Some(content) = sources.content(pod, volume).await.map_err(failed)? {
                if let Some(at) = content.refresh {
                    refresh = Some(refresh.map_or(at, |r| r.min(at)));
                }
                let path = self.path(plugin_of(volume), &volume.name);
                self.generations += 1;
                let stamp = format!(
                    "{}.{:06}",
                    k8s_openapi::jiff::Timestamp::now().strftime("%Y_%m_%d_%H_%M_%S"),
                    k8s_openapi::jiff::Timestamp::now().subsec_nanosecond() as u64 / 1000 * 100
                        + self.generations % 100
                );
                let target = path.clone();
                // Secrets and tokens never reach a disk.
                let memory = volume.config_map.is_none();
                let written = tokio::task::spawn_blocking(move || {
                    fs::create_dir_all(&target).map_err(|e| format!("create {}: {e}", target.display()))?;
                    // As an empty volume is made, which upstream's are underneath; containers see it read-only.
                    if memory {
                        mount_tmpfs(&target, "mode=1777")?;
                    } else {
                        open_to_all(&target).map_err(|e| format!("chmod {}: {e}", target.display()))?;
                    }
                    atomic::write(&target, &content.payload, group, &stamp).map_err(|e| e.to_string())
                });
                written.await.map_err(|e| failed(e.to_string()))?.map_err(failed)?;
                Ready::Host { path, read_only: true }
            } else if self.ready.contains_key(&volume.name) {
                continue;
            } else if let Some(empty) = &volume.empty_dir {
                let path = self.path("kubernetes.io~empty-dir", &volume.name);
                let memory = empty.medium.as_deref() == Some("Memory");
                let own = empty.size_limit.as_ref().and_then(|q| Amount::parse(&q.0).ok()).map(|a| a.value());
                let pod_limit = spec.and_then(|s| resources::of_pod(s, None).memory_limit);
                let size = memory_size(own, pod_limit, sources.fields.allocatable_memory);
                if let Some(other) = empty.medium.as_deref().filter(|m| !matches!(*m, "" | "Memory")) {
                    return Err(failed(format!("unknown storage medium {other:?}")));
                }
                let mode = empty.mode.and_then(|m| u32::try_from(m).ok()).unwrap_or(0o777);
                empty_dir(&path, memory, size, mode, group).map_err(failed)?;
                Ready::Host { path, read_only: false }
            } else if let Some(h) = &volume.host_path {
                let path = PathBuf::from(&h.path);
                host::check(&path, h.type_.as_deref().unwrap_or_default()).map_err(failed)?;
                Ready::Host { path, read_only: false }
            } else if volume.persistent_volume_claim.is_some() || volume.ephemeral.is_some() {
                let policy = spec.and_then(|s| s.security_context.as_ref()?.fs_group_change_policy.as_deref());
                let on_root_mismatch = policy == Some("OnRootMismatch");
                let group = group.map(|id| claim::Group { id, on_root_mismatch });
                let directory = self.directory.join("volumes/kubernetes.io~persistent-volume");
                let found = sources.claims.prepare(pod, volume, &directory, group).await?;
                let claim::Found { path, read_only, block } = found;
                if block { Ready::Block { path, read_only } } else { Ready::Host { path, read_only } }
            } else if let Some(nfs) = volume.nfs.clone() {
                let path = self.path(plugin_of(volume), &volume.name);
                let (target, read_only) = (path.clone(), nfs.read_only == Some(true));
                let mounted = tokio::task::spawn_blocking(move || claim::mount_nfs(&nfs, &[], &target));
                mounted.await.map_err(|e| failed(e.to_string()))?.map_err(failed)?;
                Ready::Host { path, read_only }
            } else if let Some(csi) = &volume.csi {
                return Err(failed(claim::no_driver("mounter.SetUpAt failed to get CSI client", &csi.driver)));
            } else if let Some(image) = &volume.image {
                Ready::Image(image.reference.clone().unwrap_or_default())
            } else {
                return Err(failed(format!("volumes of kind {} are not supported by this node", plugin_of(volume))));
            };
            self.ready.insert(volume.name.clone(), ready);
        }
        self.refresh = refresh;
        Ok(())
    }

    /// The mounts of a container. `env` expands `subPathExpr`.
    pub(crate) fn mounts(&self, container: &Container, env: &Environment) -> Result<Vec<Mount>, String> {
        let mut out = Vec::new();
        for (i, m) in container.volume_mounts.iter().flatten().enumerate() {
            let ready = self.ready.get(&m.name).ok_or_else(|| {
                format!("cannot find volume {:?} to mount into container {:?}", m.name, container.name)
            })?;
            let sub = match m.sub_path_expr.as_deref().filter(|s| !s.is_empty()) {
                Some(expr) => {
                    let missing = std::cell::Cell::new(false);
                    let expanded = expand(expr, |n| {
                        let value = env.get(n).map(str::to_owned);
                        missing.set(missing.get() || value.is_none());
                        value
                    });
                    if missing.get() {
                        return Err(format!("missing value for {expr:?}"));
                    }
                    Some(expanded)
                }
                None => m.sub_path.clone().filter(|s| !s.is_empty()),
            };
            let (source, content_is_fixed) = match (ready, sub) {
                (Ready::Host { path, read_only }, Some(sub)) => {
                    let mode = fs::metadata(path).map(|m| m.permissions().mode() & 0o777).unwrap_or(0o755);
                    let place = self.subpath_place(&m.name, &container.name, i);
                    (MountSource::Bind(subpath::prepare(path, &sub, mode, &place)?), *read_only)
                }
                (Ready::Host { path, read_only }, None) => (MountSource::Bind(path.clone()), *read_only),
                // Preparing refuses a pod that mounts a block volume.
                (Ready::Block { .. }, _) => return Err(claim::wrong_mode(&m.name, true)),
                (Ready::Image(reference), sub) => {
                    sub.as_deref().map_or(Ok(()), subpath::check)?;
                    (MountSource::Image { reference: reference.clone(), sub_path: sub.map(PathBuf::from) }, true)
                }
            };
            out.push(Mount {
                destination: PathBuf::from("/").join(&m.mount_path),
                source,
                read_only: m.read_only == Some(true) || content_is_fixed,
                recursive_read_only: m.read_only == Some(true)
                    && matches!(m.recursive_read_only.as_deref(), Some("Enabled" | "IfPossible")),
                propagation: match m.mount_propagation.as_deref() {
                    Some("HostToContainer") => Propagation::HostToContainer,
                    Some("Bidirectional") => Propagation::Bidirectional,
                    _ => Propagation::Private,
                },
            });
        }
        // A mount below another must come after it.
        out.sort_by_key(|m| m.destination.components().count());
        Ok(out)
    }

    /// The block volumes of a container.
    pub(crate) fn devices(&self, container: &Container) -> Result<Vec<Device>, String> {
        let device = |d: &VolumeDevice| match self.ready.get(&d.name) {
            Some(Ready::Block { path, read_only }) => Ok(Device {
                host_path: path.clone(),
                container_path: PathBuf::from(&d.device_path),
                permissions: if *read_only { "r" } else { "mrw" }.to_owned(),
                mode: None,
                uid: None,
                gid: None,
            }),
            Some(_) => Err(claim::wrong_mode(&d.name, false)),
            None => Err(format!("cannot find volume {:?} to pass into container {:?}", d.name, container.name)),
        };
        container.volume_devices.iter().flatten().map(device).collect()
    }

    /// Where on the host the volume lies that `fileKeyRef` may read from.
    pub(crate) fn directory_of(&self, volume: &str) -> Option<&Path> {
        match self.ready.get(volume)? {
            Ready::Host { path, .. } => Some(path),
            Ready::Block { .. } | Ready::Image(_) => None,
        }
    }

    fn subpath_place(&self, volume: &str, container: &str, index: usize) -> PathBuf {
        self.directory.join("volume-subpaths").join(volume).join(container).join(index.to_string())
    }

    /// Unmounts everything and removes the pod's directory.
    pub(crate) async fn teardown(&mut self) -> Result<(), String> {
        self.held_maps.clear();
        self.held_secrets.clear();
        self.ready.clear();
        let directory = self.directory.clone();
        let done = tokio::task::spawn_blocking(move || remove_pod_directory(&directory));
        done.await.map_err(|e| e.to_string())?
    }
}

/// Unmounts what is mounted below a pod's directory, then removes the directory. Never descends into another file system.
pub(crate) fn remove_pod_directory(directory: &Path) -> Result<(), String> {
    let inside = mounts_below(directory)?;
    // Later mounts may lie on earlier ones.
    for point in inside.iter().rev() {
        match umount2(point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) | Err(nix::Error::EINVAL | nix::Error::ENOENT) => {}
            Err(e) => return Err(format!("unmount {}: {e}", point.display())),
        }
    }
    if let Some(left) = mounts_below(directory)?.first() {
        return Err(format!("{} is still mounted", left.display()));
    }
    match fs::remove_dir_all(directory) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(format!("remove {}: {e}", directory.display())),
    }
}

fn mounts_below(directory: &Path) -> Result<Vec<PathBuf>, String> {
    let table = fs::read_to_string("/proc/self/mountinfo").map_err(|e| format!("read /proc/self/mountinfo: {e}"))?;
    let points = table.lines().filter_map(|l| l.split(' ').nth(4)).map(|p| PathBuf::from(unescape(p)));
    Ok(points.filter(|p| p.starts_with(directory)).collect())
}

/// Undoes the octal escapes of mountinfo.
fn unescape(text: &str) -> String {
    let mut out = Vec::new();
    let bytes = text.as_bytes();
    let mut i = 0;
    while i < bytes.len() {
        let octal = (bytes[i] == b'\\')
            .then(|| bytes.get(i + 1..i + 4))
            .flatten()
            .and_then(|d| std::str::from_utf8(d).ok())
            .and_then(|d| u8::from_str_radix(d, 8).ok());
        match octal {
            Some(b) => {
                out.push(b);
                i += 4;
            }
            None => {
                out.push(bytes[i]);
                i += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Mounts a tmpfs on an existing directory, unless something is mounted there.
fn mount_tmpfs(path: &Path, options: &str) -> Result<(), String> {
    let at = |what: &str, e: std::io::Error| format!("{what} {}: {e}", path.display());
    let device = |p: &Path| fs::metadata(p).map(|m| m.dev());
    let parent = path.parent().ok_or("a volume has a parent directory")?;
    if device(path).map_err(|e| at("stat", e))? == device(parent).map_err(|e| at("stat", e))? {
        mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::empty(), Some(options))
            .map_err(|e| at("mount tmpfs on", e.into()))?;
    }
    Ok(())
}

/// Bytes a volume in memory may hold: its own limit, the pod's memory or the node's, whichever is least.
fn memory_size(own: Option<i64>, pod: Option<i64>, node: i64) -> Option<i64> {
    [own, pod, Some(node)].into_iter().flatten().filter(|n| *n > 0).min()
}

/// Gives everybody all rights to a directory; further bits it has stay.
fn open_to_all(directory: &Path) -> std::io::Result<()> {
    let mode = fs::metadata(directory)?.permissions().mode();
    if mode & 0o777 == 0o777 {
        return Ok(());
    }
    fs::set_permissions(directory, fs::Permissions::from_mode(mode & 0o7777 | 0o777))
}

fn empty_dir(path: &Path, memory: bool, size: Option<i64>, mode: u32, group: Option<u32>) -> Result<(), String> {
    let at = |what: &str, e: std::io::Error| format!("{what} {}: {e}", path.display());
    fs::create_dir_all(path).map_err(|e| at("create", e))?;
    if memory {
        let options = match size {
            Some(bytes) => format!("size={bytes},mode=0777"),
            None => "mode=0777".to_owned(),
        };
        mount_tmpfs(path, &options)?;
    }
    let mode = match group {
        Some(group) => {
            std::os::unix::fs::chown(path, None, Some(group)).map_err(|e| at("chown", e))?;
            mode | 0o2770
        }
        None => mode,
    };
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(|e| at("chmod", e))
}

/// The directory name upstream's plugin for this kind of volume uses; also what messages call the kind.
fn plugin_of(v: &Volume) -> &'static str {
    match v {
        Volume { config_map: Some(_), .. } => "kubernetes.io~configmap",
        Volume { secret: Some(_), .. } => "kubernetes.io~secret",
        Volume { downward_api: Some(_), .. } => "kubernetes.io~downward-api",
        Volume { projected: Some(_), .. } => "kubernetes.io~projected",
        Volume { empty_dir: Some(_), .. } => "kubernetes.io~empty-dir",
        Volume { host_path: Some(_), .. } => "kubernetes.io~host-path",
        Volume { persistent_volume_claim: Some(_), .. } => "persistentVolumeClaim",
        Volume { csi: Some(_), .. } => "csi",
        Volume { ephemeral: Some(_), .. } => "ephemeral",
        Volume { image: Some(_), .. } => "image",
        Volume { nfs: Some(_), .. } => "kubernetes.io~nfs",
        Volume { iscsi: Some(_), .. } => "iscsi",
        Volume { fc: Some(_), .. } => "fc",
        Volume { git_repo: Some(_), .. } => "gitRepo",
        _ => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gantry_api::kind::Kind;
    use serde_json::json;

    #[test]
    fn kinds_that_are_not_built_are_named() {
        let v: Volume =
            serde_json::from_value(json!({"name": "v", "iscsi": {"targetPortal": "p", "iqn": "i", "lun": 0}})).unwrap();
        assert_eq!(plugin_of(&v), "iscsi");
        let message = "volumes of kind iscsi are not supported by this node".into();
        let e = MountError { volume: "v".into(), message, stage: Stage::SetUp };
        assert_eq!(
            e.event(),
            "MountVolume.SetUp failed for volume \"v\" : volumes of kind iscsi are not supported by this node"
        );
    }

    #[tokio::test]
    async fn disk_volumes_are_made_mounted_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("pods/u");
        let pod = Pod::from_value(json!({"metadata": {"name": "p", "namespace": "ns"}, "spec": {
            "volumes": [{"name": "e", "emptyDir": {}}, {"name": "c", "configMap": {"name": "c"}},
                        {"name": "h", "hostPath": {"path": dir.path(), "type": "Directory"}}],
            "containers": [{"name": "a", "volumeMounts": [
                {"name": "e", "mountPath": "/data/deep"}, {"name": "c", "mountPath": "/data"},
                {"name": "h", "mountPath": "/host", "readOnly": true, "mountPropagation": "HostToContainer"}]}]}}))
        .unwrap();
        let maps = References::fixed(vec![
            ConfigMap::from_value(json!({"metadata": {"name": "c", "namespace": "ns"}, "data": {"k": "v"}})).unwrap(),
        ]);
        let secrets = References::fixed(vec![]);
        let (tokens, claims, fields) = (token::Tokens::none(), claim::Claims::none(), Default::default());
        let (bundles, certificates) = (trust_bundle::TrustBundles::none(), pod_certificate::PodCertificates::none());
        let sources = Sources {
            config_maps: &maps,
            secrets: &secrets,
            tokens: &tokens,
            trust_bundles: &bundles,
            pod_certificates: &certificates,
            wake: &Arc::default(),
            claims: &claims,
            fields: &fields,
        };
        let mut volumes = Volumes::new(root.clone());
        volumes.prepare(&pod, &sources).await.unwrap();
        volumes.prepare(&pod, &sources).await.unwrap();
        let empty = root.join("volumes/kubernetes.io~empty-dir/e");
        assert_eq!(fs::metadata(&empty).unwrap().permissions().mode() & 0o7777, 0o777);
        assert_eq!(fs::read_to_string(root.join("volumes/kubernetes.io~configmap/c/k")).unwrap(), "v");
        let container = &pod.spec.as_ref().unwrap().containers[0];
        let mounts = volumes.mounts(container, &Environment::default()).unwrap();
        let seen: Vec<_> = mounts.iter().map(|m| (m.destination.to_str().unwrap(), m.read_only)).collect();
        assert_eq!(seen, [("/data", true), ("/host", true), ("/data/deep", false)]);
        assert_eq!(mounts[1].propagation, Propagation::HostToContainer);
        volumes.teardown().await.unwrap();
        assert!(!root.exists() && dir.path().exists());
    }

    #[test]
    fn volumes_in_memory_have_the_least_limit() {
        for (own, pod, node, wanted) in [
            (None, None, 100, Some(100)),
            (None, Some(50), 100, Some(50)),
            (Some(70), Some(50), 100, Some(50)),
            (Some(20), Some(50), 100, Some(20)),
            (Some(0), None, 0, None),
        ] {
            assert_eq!(memory_size(own, pod, node), wanted);
        }
    }

    #[test]
    fn mountinfo_escapes() {
        assert_eq!(unescape("/a\\040b\\134c"), "/a b\\c");
        assert_eq!(unescape("/plain"), "/plain");
    }
}
