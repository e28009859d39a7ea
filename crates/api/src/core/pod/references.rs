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
