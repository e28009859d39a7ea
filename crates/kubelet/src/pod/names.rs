//! How a pod and its containers are named in the runtime, on disk, in messages and events.

use gantry_api::core::pod::MIRROR_ANNOTATION;
use k8s_openapi::api::core::v1::{Container, EphemeralContainer, ObjectReference, Pod, PodSpec};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Label: the pod's name.
pub(crate) const POD_NAME: &str = "io.kubernetes.pod.name";
/// Label: the pod's namespace.
pub(crate) const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
/// Label: the pod's UID.
pub(crate) const POD_UID: &str = "io.kubernetes.pod.uid";
/// Label: the container's name.
pub(crate) const CONTAINER_NAME: &str = "io.kubernetes.container.name";
/// Annotation: what of the container's spec demands a new container when it changes.
pub(crate) const HASH: &str = "io.kubernetes.container.hash";
/// Annotation: the file on the host that holds the termination message.
pub(crate) const TERMINATION_FILE: &str = "io.kubernetes.container.terminationMessageFile";
/// Annotation: `File` or `FallbackToLogsOnError`.
pub(crate) const TERMINATION_POLICY: &str = "io.kubernetes.container.terminationMessagePolicy";

/// Annotation of a static pod: where it comes from (`file`).
pub(crate) const CONFIG_SOURCE: &str = "kubernetes.io/config.source";
/// Annotation of a static pod: what tells its manifest from others.
pub(crate) const CONFIG_HASH: &str = "kubernetes.io/config.hash";
/// Annotation of a static pod: when the node first saw it.
pub(crate) const CONFIG_SEEN: &str = "kubernetes.io/config.seen";

/// Prefix of container ids in statuses.
pub(crate) const ID_SCHEME: &str = "gantry://";

pub(crate) fn namespace(pod: &Pod) -> &str {
    pod.metadata.namespace.as_deref().unwrap_or_default()
}

pub(crate) fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

pub(crate) fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

fn annotated(pod: &Pod, key: &str) -> bool {
    pod.metadata.annotations.as_ref().is_some_and(|a| a.contains_key(key))
}

/// Whether this is the API's image of a static pod.
pub(crate) fn is_mirror(pod: &Pod) -> bool {
    annotated(pod, MIRROR_ANNOTATION)
}

/// Whether this is a pod of the node's own, from a manifest. Only the node's own objects lack a version of the API's.
pub(crate) fn is_static(pod: &Pod) -> bool {
    pod.metadata.resource_version.is_none() && annotated(pod, CONFIG_SOURCE)
}

/// `name_namespace(uid)`, as messages name a pod.
pub(crate) fn pod_description(pod: &Pod) -> String {
    format!("{}_{}({})", name(pod), namespace(pod), uid(pod))
}

/// What the network knows the pod by.
pub(crate) fn network_key(pod: &Pod) -> String {
    format!("{}/{}/{}", namespace(pod), name(pod), uid(pod))
}

/// Labels of a sandbox, and with the container's name of its containers.
pub(crate) fn labels(pod: &Pod, container: Option<&str>) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::from([
        (POD_NAME.to_owned(), name(pod).to_owned()),
        (POD_NAMESPACE.to_owned(), namespace(pod).to_owned()),
        (POD_UID.to_owned(), uid(pod).to_owned()),
    ]);
    labels.extend(container.map(|c| (CONTAINER_NAME.to_owned(), c.to_owned())));
    labels
}

/// The part of a container's spec whose change demands a restart: its name and image.
pub(crate) fn hash(container: &Container) -> String {
    let digest = Sha256::digest(format!("{}\0{}", container.name, container.image.as_deref().unwrap_or_default()));
    digest[..8].iter().map(|b| format!("{b:02x}")).collect()
}

/// An ephemeral container as an ordinary one.
pub(crate) fn as_container(e: &EphemeralContainer) -> Container {
    Container {
        name: e.name.clone(),
        image: e.image.clone(),
        command: e.command.clone(),
        args: e.args.clone(),
        working_dir: e.working_dir.clone(),
        env: e.env.clone(),
        env_from: e.env_from.clone(),
        volume_mounts: e.volume_mounts.clone(),
        image_pull_policy: e.image_pull_policy.clone(),
        security_context: e.security_context.clone(),
        stdin: e.stdin,
        stdin_once: e.stdin_once,
        tty: e.tty,
        termination_message_path: e.termination_message_path.clone(),
        termination_message_policy: e.termination_message_policy.clone(),
        ..Container::default()
    }
}

/// Any container of the pod by name, ephemeral ones as ordinary ones.
pub(crate) fn container(spec: &PodSpec, name: &str) -> Option<Container> {
    let ordinary = spec.containers.iter().chain(spec.init_containers.iter().flatten()).find(|c| c.name == name);
    ordinary.cloned().or_else(|| spec.ephemeral_containers.iter().flatten().find(|e| e.name == name).map(as_container))
}

/// How events name a container: `spec.containers{name}`.
pub(crate) fn container_reference(pod: &Pod, container: &str) -> ObjectReference {
    let mut about = gantry_reconcile::reference(pod);
    let spec = pod.spec.as_ref();
    let is = |list: Option<&Vec<Container>>| list.into_iter().flatten().any(|c| c.name == container);
    let list = if is(spec.and_then(|s| s.init_containers.as_ref())) {
        "initContainers"
    } else if is(spec.map(|s| &s.containers)) {
        "containers"
    } else {
        "ephemeralContainers"
    };
    about.field_path = Some(format!("spec.{list}{{{container}}}"));
    about
}

/// The directory of a pod's logs: `<logs>/<namespace>_<name>_<uid>`.
pub(crate) fn log_directory(logs: &Path, namespace: &str, name: &str, uid: &str) -> PathBuf {
    logs.join(format!("{namespace}_{name}_{uid}"))
}

/// A container's log file: `<pod's logs>/<container>/<attempt>.log`.
pub(crate) fn log_path(logs: &Path, pod: &Pod, container: &str, attempt: u32) -> PathBuf {
    log_directory(logs, namespace(pod), name(pod), uid(pod)).join(container).join(format!("{attempt}.log"))
}
