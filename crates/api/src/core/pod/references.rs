//! What a pod needs beside itself: Secrets, ConfigMaps and claims that its spec names.

use k8s_openapi::api::core::v1::{Container, EnvFromSource, EnvVar, EphemeralContainer, PodSpec};

/// Whether a pod needs the object `name` of a resource: `secrets`, `configmaps`, else of claims. The claims of ephemeral volumes
/// are named after the pod (`pod_name`).
#[must_use]
pub fn references(spec: &PodSpec, pod_name: Option<&str>, resource: &str, name: &str) -> bool {
    let is = |n: Option<&str>| n == Some(name);
    let env = |c: EnvOf<'_>| {
        let single = c.env.iter().flatten().filter_map(|e| e.value_from.as_ref()).any(|v| match resource {
            "secrets" => v.secret_key_ref.as_ref().is_some_and(|r| r.name == name),
            "configmaps" => v.config_map_key_ref.as_ref().is_some_and(|r| r.name == name),
            _ => false,
        });
        single
            || c.env_from.iter().flatten().any(|f| match resource {
                "secrets" => f.secret_ref.as_ref().is_some_and(|r| r.name == name),
                "configmaps" => f.config_map_ref.as_ref().is_some_and(|r| r.name == name),
                _ => false,
            })
    };
    let pull = resource == "secrets" && spec.image_pull_secrets.iter().flatten().any(|r| r.name == name);
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten()).map(EnvOf::container);
    let ephemeral = spec.ephemeral_containers.iter().flatten().map(EnvOf::ephemeral);
    let volumes = spec.volumes.iter().flatten().any(|v| {
        let projected = || v.projected.iter().flat_map(|p| p.sources.iter().flatten());
        match resource {
            "secrets" => {
                v.secret.as_ref().is_some_and(|s| is(s.secret_name.as_deref()))
                    || projected().any(|s| s.secret.as_ref().is_some_and(|r| r.name == name))
                    || v.csi.as_ref().and_then(|c| c.node_publish_secret_ref.as_ref()).is_some_and(|r| r.name == name)
            }
            "configmaps" => {
                v.config_map.as_ref().is_some_and(|c| c.name == name)
                    || projected().any(|s| s.config_map.as_ref().is_some_and(|r| r.name == name))
            }
            _ => {
                let generated = || pod_name.is_some_and(|p| format!("{p}-{}", v.name) == name);
                v.persistent_volume_claim.as_ref().is_some_and(|c| c.claim_name == name)
                    || (v.ephemeral.is_some() && generated())
            }
        }
    });
    pull || volumes || containers.chain(ephemeral).any(env)
}

/// The first kind of API object that a pod needs, as refusals name it; None where it needs none. What runs on a node by
/// itself (static pods and their mirrors) may need none.
#[must_use]
pub fn referenced_kind(spec: &PodSpec) -> Option<&'static str> {
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten()).map(EnvOf::container);
    let environments: Vec<EnvOf<'_>> =
        containers.chain(spec.ephemeral_containers.iter().flatten().map(EnvOf::ephemeral)).collect();
    let env = || environments.iter().flat_map(|c| c.env.iter().flatten()).filter_map(|e| e.value_from.as_ref());
    let env_from = || environments.iter().flat_map(|c| c.env_from.iter().flatten());
    let volumes = || spec.volumes.iter().flatten();
    let sources = || volumes().filter_map(|v| v.projected.as_ref()).flat_map(|p| p.sources.iter().flatten());
    let secrets = || {
        spec.image_pull_secrets.iter().flatten().next().is_some()
            || env().any(|e| e.secret_key_ref.is_some())
            || env_from().any(|e| e.secret_ref.is_some())
            || volumes().any(|v| v.secret.is_some())
            || volumes().any(|v| v.csi.as_ref().is_some_and(|c| c.node_publish_secret_ref.is_some()))
            || sources().any(|s| s.secret.is_some())
    };
    let config_maps = || {
        env().any(|e| e.config_map_key_ref.is_some())
            || env_from().any(|e| e.config_map_ref.is_some())
            || volumes().any(|v| v.config_map.is_some())
            || sources().any(|s| s.config_map.is_some())
    };
    if spec.service_account_name.as_deref().is_some_and(|n| !n.is_empty()) {
        return Some("serviceaccounts");
    }
    if secrets() {
        return Some("secrets");
    }
    if config_maps() {
        return Some("configmaps");
    }
    if spec.resource_claims.iter().flatten().next().is_some() {
        return Some("resourceclaims");
    }
    volumes().find_map(|v| {
        let projected = || v.projected.iter().flat_map(|p| p.sources.iter().flatten());
        if v.csi.is_some() {
            Some("csidrivers (via CSI volumes)")
        } else if v.persistent_volume_claim.is_some() {
            Some("persistentvolumeclaims")
        } else if v.ephemeral.is_some() {
            Some("persistentvolumeclaims (via ephemeral volumes)")
        } else {
            projected().find_map(|s| {
                let token = s.service_account_token.as_ref().map(|_| "serviceaccounts (via projected volumes)");
                let bundle = s.cluster_trust_bundle.as_ref().map(|_| "clustertrustbundles");
                token.or(bundle).or(s.pod_certificate.as_ref().map(|_| "podcertificates"))
            })
        }
    })
}

/// The environment of any sort of container.
struct EnvOf<'a> {
    env: &'a Option<Vec<EnvVar>>,
    env_from: &'a Option<Vec<EnvFromSource>>,
}

impl<'a> EnvOf<'a> {
    fn container(c: &'a Container) -> Self {
        Self { env: &c.env, env_from: &c.env_from }
    }
    fn ephemeral(c: &'a EphemeralContainer) -> Self {
        Self { env: &c.env, env_from: &c.env_from }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_first_kind_that_a_pod_needs() {
        let kind = |extra: serde_json::Value| {
            let mut spec = json!({"containers": [{"name": "c"}]});
            spec.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            referenced_kind(&serde_json::from_value(spec).unwrap())
        };
        let volume = |source: serde_json::Value| {
            let mut volume = json!({"name": "v"});
            volume.as_object_mut().unwrap().extend(source.as_object().unwrap().clone());
            kind(json!({"volumes": [{"name": "e", "emptyDir": {}}, volume]}))
        };
        let projected = |source: serde_json::Value| volume(json!({"projected": {"sources": [source]}}));
        assert_eq!(kind(json!({})), None);
        assert_eq!(projected(json!({"downwardAPI": {}})), None);
        assert_eq!(
            kind(json!({"serviceAccountName": "s", "imagePullSecrets": [{"name": "p"}]})),
            Some("serviceaccounts")
        );
        assert_eq!(kind(json!({"imagePullSecrets": [{"name": "p"}]})), Some("secrets"));
        assert_eq!(volume(json!({"secret": {}})), Some("secrets"));
        assert_eq!(volume(json!({"configMap": {"name": "m"}})), Some("configmaps"));
        assert_eq!(kind(json!({"resourceClaims": [{"name": "c"}]})), Some("resourceclaims"));
        assert_eq!(volume(json!({"csi": {"driver": "d"}})), Some("csidrivers (via CSI volumes)"));
        assert_eq!(volume(json!({"persistentVolumeClaim": {"claimName": "c"}})), Some("persistentvolumeclaims"));
        assert_eq!(volume(json!({"ephemeral": {}})), Some("persistentvolumeclaims (via ephemeral volumes)"));
        let token = projected(json!({"serviceAccountToken": {"path": "t"}}));
        assert_eq!(token, Some("serviceaccounts (via projected volumes)"));
        assert_eq!(projected(json!({"clusterTrustBundle": {"path": "b"}})), Some("clustertrustbundles"));
        let certificate = json!({"podCertificate": {"signerName": "a/b", "keyType": "ED25519"}});
        assert_eq!(projected(certificate), Some("podcertificates"));
    }

    #[test]
    fn every_place_that_names_an_object() {
        let spec: PodSpec = serde_json::from_value(json!({
            "imagePullSecrets": [{"name": "pull"}],
            "containers": [{"name": "c", "env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "env", "key": "k"}}},
                {"name": "B", "valueFrom": {"configMapKeyRef": {"name": "map-env", "key": "k"}}}]}],
            "initContainers": [{"name": "i", "envFrom": [{"secretRef": {"name": "from"}},
                {"configMapRef": {"name": "map-from"}}]}],
            "volumes": [{"name": "s", "secret": {"secretName": "volume"}},
                {"name": "p", "projected": {"sources": [{"secret": {"name": "projected"}},
                    {"configMap": {"name": "map-projected"}}]}},
                {"name": "m", "configMap": {"name": "map-volume"}},
                {"name": "c", "csi": {"driver": "d", "nodePublishSecretRef": {"name": "csi"}}},
                {"name": "data", "persistentVolumeClaim": {"claimName": "claim"}}, {"name": "e", "ephemeral": {}}],
        }))
        .unwrap();
        let cases = [
            ("secrets", vec!["pull", "env", "from", "volume", "projected", "csi"]),
            ("configmaps", vec!["map-env", "map-from", "map-projected", "map-volume"]),
            ("persistentvolumeclaims", vec!["claim", "pod-e"]),
        ];
        for (resource, names) in &cases {
            for name in names {
                assert!(references(&spec, Some("pod"), resource, name), "{resource} {name}");
                let others = cases.iter().filter(|(other, _)| other != resource);
                assert!(others.into_iter().all(|(other, _)| !references(&spec, Some("pod"), other, name)), "{name}");
            }
        }
    }
}
