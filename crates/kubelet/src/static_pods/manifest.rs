//! From a manifest to a pod: decoding, the node's own defaults, validation, and what a static pod may not ask for.

use crate::pod::names::{CONFIG_HASH, CONFIG_SEEN, CONFIG_SOURCE};
use gantry_api::clock::Clock;
use gantry_api::core::pod::{MIRROR_ANNOTATION, referenced_kind};
use gantry_api::kind::Kind;
use k8s_openapi::api::core::v1::{Node, Pod, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::path::Path;

/// Decodes a manifest (YAML or JSON) that was found in `file` of the node `node`.
///
/// # Errors
/// Why it is no pod that the node can run, in upstream's words.
pub(super) fn decode(text: &str, file: &Path, node: &str, clock: &Clock) -> Result<Pod, String> {
    let unparsed = |why: String| format!("{}: couldn't parse as pod({why}), please check config file", file.display());
    let options = serde_saphyr::options! { legacy_octal_numbers: true, strict_booleans: false, with_snippet: false };
    let tree: Value = serde_saphyr::from_str_with_options(text, options).map_err(|e| unparsed(e.to_string()))?;
    let field = |name: &str| tree.get(name).and_then(Value::as_str).unwrap_or_default();
    let (version, kind) = (field("apiVersion"), field("kind"));
    if kind.is_empty() {
        return Err(unparsed("Object 'Kind' is missing".into()));
    }
    if (version, kind) != ("v1", "Pod") {
        return Err(unparsed(format!("invalid pod: {version}, Kind={kind}")));
    }
    let digest = digest(&tree, file, node);
    let mut pod = Pod::from_value(tree).map_err(|e| unparsed(e.to_string()))?;
    let meta = &mut pod.metadata;
    let Some(name) = meta.name.clone().filter(|n| !n.is_empty()) else {
        return Err("invalid pod: name is needed for the pod".into());
    };
    meta.name = Some(format!("{name}-{}", node.to_lowercase()));
    meta.namespace.get_or_insert_with(|| "default".into());
    let uid = meta.uid.get_or_insert(digest).clone();
    let annotations = meta.annotations.get_or_insert_default();
    annotations.insert(CONFIG_HASH.into(), uid);
    annotations.insert(CONFIG_SOURCE.into(), "file".into());
    annotations.insert(CONFIG_SEEN.into(), clock.now().to_string());
    let spec = pod.spec.get_or_insert_default();
    spec.node_name = Some(node.to_owned());
    // The node's troubles must not take away what may be its cure.
    let lasting =
        Toleration { operator: Some("Exists".into()), effect: Some("NoExecute".into()), ..Toleration::default() };
    let tolerations = spec.tolerations.get_or_insert_default();
    if !tolerations.contains(&lasting) {
        tolerations.push(lasting);
    }
    pod.status = None;
    pod.set_defaults();
    let mut errors: Vec<String> = pod.validate().0.iter().map(ToString::to_string).collect();
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    errors
        .extend(Pod::validate_name(name, false).iter().map(|e| format!("metadata.name: Invalid value: {name:?}: {e}")));
    if !errors.is_empty() {
        return Err(format!("invalid pod: [{}]", errors.join(", ")));
    }
    match pod.spec.as_ref().and_then(referenced_kind) {
        Some(resource) => Err(format!("static pods may not reference {resource}")),
        None => Ok(pod),
    }
}

/// The UID of a pod that brings none: another for every content, file and node.
fn digest(tree: &Value, file: &Path, node: &str) -> String {
    let digest = Sha256::digest(format!("host:{node}file:{}{tree}", file.display()));
    digest[..16].iter().map(|b| format!("{b:02x}")).collect()
}

/// The API's image of a static pod, owned by its Node.
pub(super) fn mirror(pod: &Pod, node: &Node) -> Pod {
    let mut mirror = pod.clone();
    let meta = &mut mirror.metadata;
    let hash = meta.uid.take().unwrap_or_default();
    meta.annotations.get_or_insert_default().insert(MIRROR_ANNOTATION.into(), hash);
    meta.owner_references = Some(vec![OwnerReference {
        api_version: "v1".into(),
        kind: "Node".into(),
        name: node.metadata.name.clone().unwrap_or_default(),
        uid: node.metadata.uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: None,
    }]);
    mirror.status = None;
    mirror
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::jiff::Timestamp;
    use serde_json::json;

    fn read(text: &str) -> Result<Pod, String> {
        let clock = Clock::starting_at(Timestamp::UNIX_EPOCH);
        decode(text, Path::new("/etc/pods/web.yaml"), "node-1", &clock)
    }

    const WEB: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec:\n  containers: [{name: c, image: i}]\n";

    #[tokio::test(start_paused = true)]
    async fn a_manifest_becomes_a_pod_of_this_node() {
        let pod = read(WEB).unwrap();
        assert_eq!(pod.metadata.name.as_deref(), Some("web-node-1"));
        assert_eq!(pod.metadata.namespace.as_deref(), Some("default"));
        let annotations = pod.metadata.annotations.as_ref().unwrap();
        assert_eq!(Some(&annotations[CONFIG_HASH]), pod.metadata.uid.as_ref());
        assert_eq!(annotations[CONFIG_SOURCE], "file");
        let spec = pod.spec.as_ref().unwrap();
        assert_eq!(spec.node_name.as_deref(), Some("node-1"));
        assert_eq!(spec.restart_policy.as_deref(), Some("Always"), "defaults apply");
        assert_eq!(spec.tolerations.as_ref().unwrap()[0].effect.as_deref(), Some("NoExecute"));
        let changed = read(&WEB.replace("image: i", "image: j")).unwrap();
        assert_ne!(changed.metadata.uid, pod.metadata.uid);
        assert_eq!(read(WEB).unwrap().metadata.uid, pod.metadata.uid, "the same manifest is the same pod");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_no_static_pod_is_named() {
        for (text, says) in [
            ("a: [", "/etc/pods/web.yaml: couldn't parse as pod("),
            ("kind: ConfigMap\napiVersion: v1\n", "invalid pod: v1, Kind=ConfigMap"),
            ("apiVersion: v1\nkind: Pod\nspec: {}\n", "invalid pod: name is needed for the pod"),
            ("apiVersion: v1\nkind: Pod\nmetadata: {name: x}\nspec: {}\n", "spec.containers: Required value"),
            (&format!("{WEB}  serviceAccountName: s\n"), "static pods may not reference serviceaccounts"),
            (&format!("{WEB}  volumes: [{{name: v, secret: {{secretName: s}}}}]\n"), "may not reference secrets"),
            (&format!("{WEB}  volumes: [{{name: v, configMap: {{name: s}}}}]\n"), "may not reference configmaps"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_mirror_belongs_to_the_node() {
        let pod = read(WEB).unwrap();
        let node = Node::from_value(json!({"metadata": {"name": "node-1", "uid": "u"}})).unwrap();
        let mirror = mirror(&pod, &node);
        assert_eq!(mirror.metadata.uid, None);
        assert_eq!(Some(&mirror.metadata.annotations.unwrap()[MIRROR_ANNOTATION]), pod.metadata.uid.as_ref());
        let owner = &mirror.metadata.owner_references.unwrap()[0];
        assert_eq!((owner.kind.as_str(), owner.uid.as_str(), owner.controller), ("Node", "u", Some(true)));
    }
}
