//! Getting a container's image: pull policy, credentials, back-off, events.

use super::backoff::{Backoffs, go_duration};
use super::names;
use crate::agent::Agent;
use crate::references::Lookup;
use base64::Engine;
use gantry_container::Error as RuntimeError;
use gantry_container::image_service::{Image, RegistryAuth};
use gantry_reconcile::EventType;
use k8s_openapi::api::core::v1::{Container, Pod, Secret};
use serde_json::Value;
use std::time::Duration;
use tokio::time::Instant;

/// Why a container has no image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    /// Reason of the waiting state.
    pub reason: &'static str,
    /// Its message.
    pub message: String,
    /// Another try may succeed.
    pub retry: bool,
}

/// An image that a container needs: the container's name and the image's reference.
pub(crate) type Wanted = (String, String);

/// The images a container needs: its own, then those of the volumes it mounts, each as a container that had it as its own.
pub(crate) fn needed(pod: &Pod, container: &Container) -> Vec<Container> {
    let volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
    let mounted = volumes.filter(|v| container.volume_mounts.iter().flatten().any(|m| m.name == v.name));
    let of_volumes = mounted.filter_map(|v| v.image.as_ref()).map(|source| Container {
        name: container.name.clone(),
        image: source.reference.clone(),
        image_pull_policy: source.pull_policy.clone(),
        ..Container::default()
    });
    std::iter::once(container.clone()).chain(of_volumes).collect()
}

/// Whether an image that is present must still be pulled.
pub(crate) fn policy(container: &Container) -> &str {
    match container.image_pull_policy.as_deref() {
        Some(p) if !p.is_empty() => p,
        _ => {
            let image = container.image.as_deref().unwrap_or_default();
            let name = image.rsplit('/').next().unwrap_or_default();
            if image.contains('@') || (name.contains(':') && !name.ends_with(":latest")) {
                "IfNotPresent"
            } else {
                "Always"
            }
        }
    }
}

/// The registry an image reference names.
pub(crate) fn registry(image: &str) -> &str {
    match image.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => host,
        _ => "docker.io",
    }
}

/// Whether a `.dockerconfigjson` key is for `registry` (and, where it has a path, for `image`).
fn key_matches(key: &str, image: &str) -> bool {
    let key = key.trim_start_matches("https://").trim_start_matches("http://");
    let (host, path) = key.split_once('/').unwrap_or((key, ""));
    let wanted = registry(image);
    let docker_hub = |h: &str| matches!(h, "docker.io" | "index.docker.io" | "registry-1.docker.io");
    let same =
        host == wanted || (docker_hub(host) && docker_hub(wanted)) || (host.contains('*') && glob_host(host, wanted));
    let path = path.trim_end_matches('/');
    // The legacy API versions of the hub's key are no image path.
    let any_path = path.is_empty() || matches!(path, "v1" | "v2");
    let repository = image.split_once('/').map_or("", |(_, r)| r);
    same && (any_path || repository.starts_with(path))
}

fn glob_host(pattern: &str, host: &str) -> bool {
    let (p, h): (Vec<&str>, Vec<&str>) = (pattern.split('.').collect(), host.split('.').collect());
    p.len() == h.len() && p.iter().zip(&h).all(|(p, h)| *p == "*" || p == h)
}

/// The credentials in a pull secret that fit `image`.
pub(crate) fn credentials(secret: &Secret, image: &str) -> Vec<RegistryAuth> {
    let data = secret.data.as_ref();
    let parse = |key: &str| data.and_then(|d| d.get(key)).and_then(|v| serde_json::from_slice::<Value>(&v.0).ok());
    let auths = match parse(".dockerconfigjson") {
        Some(config) => config.get("auths").cloned(),
        None => parse(".dockercfg"),
    };
    let Some(Value::Object(auths)) = auths else { return Vec::new() };
    let text = |v: &Value, k: &str| v.get(k).and_then(Value::as_str).filter(|s| !s.is_empty()).map(str::to_owned);
    let matching = auths.iter().filter(|(key, _)| key_matches(key, image));
    let read = matching.filter_map(|(_, entry)| {
        if let Some(token) = text(entry, "identitytoken").or_else(|| text(entry, "registrytoken")) {
            return Some(RegistryAuth::Bearer(token));
        }
        if let (Some(username), Some(password)) = (text(entry, "username"), text(entry, "password")) {
            return Some(RegistryAuth::Basic { username, password });
        }
        let auth = base64::engine::general_purpose::STANDARD.decode(text(entry, "auth")?.trim()).ok()?;
        let auth = String::from_utf8(auth).ok()?;
        let (username, password) = auth.split_once(':')?;
        Some(RegistryAuth::Basic { username: username.to_owned(), password: password.to_owned() })
    });
    read.collect()
}

impl Agent {
    fn image_event(&self, pod: &Pod, container: &str, kind: EventType, reason: &str, message: &str) {
        self.recorder.record(&names::container_reference(pod, container), kind, reason, message);
    }

    async fn pull_credentials(&self, pod: &Pod, image: &str) -> Vec<RegistryAuth> {
        let mut out = Vec::new();
        let secrets = pod.spec.as_ref().and_then(|s| s.image_pull_secrets.as_ref());
        for reference in secrets.into_iter().flatten() {
            match self.secrets.get(names::namespace(pod), &reference.name).await {
                Ok(secret) => out.extend(credentials(&secret, image)),
                Err(_) => {
                    let message = format!(
                        "Unable to retrieve some image pull secrets ({}); attempting to pull the image may not succeed.",
                        reference.name
                    );
                    self.recorder.warning(pod, "FailedToRetrieveImagePullSecret", &message);
                }
            }
        }
        out
    }

    /// The image, where it is here and the policy does not ask for more; `None` where it has to be pulled.
    pub(crate) async fn local_image(&self, pod: &Pod, container: &Container) -> Result<Option<Image>, Failure> {
        let image = container.image.as_deref().unwrap_or_default();
        let here = match self.images.status(image).await {
            Ok(here) => here,
            Err(error) => {
                let message = match &error {
                    RuntimeError::InvalidReference { .. } => {
                        format!(
                            "Failed to apply default image tag {image:?}: couldn't parse image name {image:?}: invalid reference format"
                        )
                    }
                    other => format!("Failed to inspect image {image:?}: {other}"),
                };
                self.image_event(pod, &container.name, EventType::Warning, "InspectFailed", &message);
                let invalid = matches!(error, RuntimeError::InvalidReference { .. });
                let reason = if invalid { "InvalidImageName" } else { "ImageInspectError" };
                return Err(Failure { reason, message, retry: !invalid });
            }
        };
        match (policy(container), here) {
            ("Always", _) => Ok(None),
            ("Never", None) => {
                let message = format!("Container image {image:?} is not present with pull policy of Never");
                self.image_event(pod, &container.name, EventType::Warning, "ErrImageNeverPull", &message);
                Err(Failure { reason: "ErrImageNeverPull", message, retry: true })
            }
            (_, None) => Ok(None),
            (_, Some(found)) => {
                let message = format!("Container image {image:?} already present on machine");
                self.image_event(pod, &container.name, EventType::Normal, "Pulled", &message);
                Ok(Some(found))
            }
        }
    }

    /// Pulls the image, with every fitting credential in turn.
    pub(crate) async fn pull(&self, pod: &Pod, container: &Container) -> Result<Image, Failure> {
        let image = container.image.as_deref().unwrap_or_default();
        let asked = Instant::now();
        // The semaphore is never closed.
        let _turn = self.pulls.acquire().await;
        self.image_event(pod, &container.name, EventType::Normal, "Pulling", &format!("Pulling image {image:?}"));
        let began = Instant::now();
        let mut auths = self.pull_credentials(pod, image).await;
        auths.push(RegistryAuth::Anonymous);
        let mut last = None;
        for auth in &auths {
            match self.images.pull(image, auth, None).await {
                Ok(found) => {
                    let message = format!(
                        "Successfully pulled image {image:?} in {} ({} including waiting). Image size: {} bytes.",
                        go_duration(began.elapsed()),
                        go_duration(asked.elapsed()),
                        found.size
                    );
                    self.image_event(pod, &container.name, EventType::Normal, "Pulled", &message);
                    return Ok(found);
                }
                Err(error) => {
                    let refused = matches!(&error, RuntimeError::Registry { unauthorized: true, .. });
                    // The first refusal says more than the anonymous one after it.
                    last = last.or(Some(error));
                    if !refused {
                        break;
                    }
                }
            }
        }
        let error = last.map(|e| e.to_string()).unwrap_or_default();
        let message = format!("Failed to pull image {image:?}: {error}");
        self.image_event(pod, &container.name, EventType::Warning, "Failed", &message);
        Err(Failure { reason: "ErrImagePull", message: error, retry: true })
    }

    /// The failure to show while a pull waits for its next try, or `None` when it may be tried now.
    pub(crate) fn pull_back_off(
        &self,
        pod: &Pod,
        container: &Container,
        backoffs: &Backoffs,
        failed: Option<&(Instant, Failure)>,
    ) -> Option<(Failure, Instant)> {
        let image = container.image.as_deref().unwrap_or_default();
        let (at, failure) = failed?;
        let due = backoffs.until(image, *at, Instant::now())?;
        let message = format!("Back-off pulling image {image:?}");
        self.image_event(pod, &container.name, EventType::Normal, "BackOff", &message);
        let shown = format!("{message}: {}: {}", failure.reason, failure.message);
        Some((Failure { reason: "ImagePullBackOff", message: shown, retry: true }, due))
    }
}

/// How long a container waits whose image cannot be had for another reason than a failed pull.
pub(crate) const RETRY: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;
    use gantry_api::kind::Kind;
    use serde_json::json;

    #[test]
    fn default_policy_follows_the_tag() {
        for (image, want) in [
            ("busybox", "Always"),
            ("busybox:latest", "Always"),
            ("busybox:1.36", "IfNotPresent"),
            ("localhost:5000/x", "Always"),
            ("localhost:5000/x:1", "IfNotPresent"),
            ("x@sha256:00", "IfNotPresent"),
        ] {
            let c = Container { image: Some(image.into()), ..Container::default() };
            assert_eq!(policy(&c), want, "{image}");
        }
    }

    #[test]
    fn pull_secrets_are_matched_by_registry_and_path() {
        let config = json!({"auths": {
            "https://index.docker.io/v1/": {"auth": "aHViOnB3"},
            "localhost:5000": {"username": "u", "password": "p"},
            "*.example.com": {"username": "wild", "password": "p"},
            "reg.io/team": {"username": "team", "password": "p"}}});
        let encoded = base64::engine::general_purpose::STANDARD.encode(config.to_string());
        let secret =
            Secret::from_value(json!({"metadata": {"name": "s"}, "data": {".dockerconfigjson": encoded}})).unwrap();
        let user = |image: &str| match credentials(&secret, image).as_slice() {
            [RegistryAuth::Basic { username, .. }] => username.clone(),
            other => format!("{}", other.len()),
        };
        assert_eq!(user("busybox"), "hub");
        assert_eq!(user("library/busybox:1"), "hub");
        assert_eq!(user("localhost:5000/a/b"), "u");
        assert_eq!(user("eu.example.com/a"), "wild");
        assert_eq!(user("reg.io/team/app"), "team");
        assert_eq!(user("reg.io/other/app"), "0");
        assert_eq!(user("other.io/x"), "0");
    }
}
