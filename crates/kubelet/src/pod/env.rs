//! A container's environment: service variables, `envFrom`, `env`, and the expansion of `$(NAME)`.

use super::env_file;
use super::fields::{self, FieldContext};
use crate::references::{Lookup, ReferenceError, References};
use crate::volumes::Volumes;
use k8s_openapi::api::core::v1::{ConfigMap, Container, EnvVar, Pod, Secret, Service};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Variables in order, names unique.
#[derive(Debug, Default, Clone)]
pub(crate) struct Environment {
    order: Vec<String>,
    values: BTreeMap<String, String>,
}

impl Environment {
    pub(crate) fn set(&mut self, name: &str, value: String) {
        if self.values.insert(name.to_owned(), value).is_none() {
            self.order.push(name.to_owned());
        }
    }

    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str)
    }

    pub(crate) fn into_pairs(mut self) -> Vec<(String, String)> {
        self.order.iter().map(|n| (n.clone(), self.values.remove(n).unwrap_or_default())).collect()
    }
}

/// Replaces `$(NAME)` by its value, `$$` by `$`; a name that is not known stays as it is written.
pub(crate) fn expand(text: &str, lookup: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some(after) = rest.strip_prefix('(') {
            match after.find(')') {
                Some(end) => {
                    let name = &after[..end];
                    match lookup(name) {
                        Some(value) => out.push_str(&value),
                        None => out.push_str(&format!("$({name})")),
                    }
                    rest = &after[end + 1..];
                }
                None => {
                    out.push_str("$(");
                    rest = after;
                }
            }
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    out
}

/// Variables for the services a pod may see: those of its namespace (with `enableServiceLinks`) and the API server's own.
pub(crate) fn service_variables(services: &[Arc<Service>], namespace: &str, links: bool) -> BTreeMap<String, String> {
    let mut out = BTreeMap::new();
    for service in services {
        let (Some(name), Some(spec)) = (service.metadata.name.as_deref(), service.spec.as_ref()) else { continue };
        let own = service.metadata.namespace.as_deref().unwrap_or_default();
        let master = own == "default" && name == "kubernetes";
        if !(master || (links && own == namespace)) {
            continue;
        }
        let ip = spec.cluster_ip.as_deref().unwrap_or_default();
        if ip.is_empty() || ip == "None" {
            continue;
        }
        let prefix = name.to_uppercase().replace('-', "_");
        let mut put = |suffix: String, value: String| {
            out.insert(format!("{prefix}_{suffix}"), value);
        };
        let ports = spec.ports.as_deref().unwrap_or_default();
        let Some(first) = ports.first() else { continue };
        put("SERVICE_HOST".into(), ip.to_owned());
        put("SERVICE_PORT".into(), first.port.to_string());
        for port in ports {
            if let Some(n) = port.name.as_deref().filter(|n| !n.is_empty()) {
                put(format!("SERVICE_PORT_{}", n.to_uppercase().replace('-', "_")), port.port.to_string());
            }
        }
        let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
        for (i, port) in ports.iter().enumerate() {
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            let url = format!("{}://{host}:{}", protocol.to_lowercase(), port.port);
            if i == 0 {
                put("PORT".into(), url.clone());
            }
            let each = format!("PORT_{}_{}", port.port, protocol.to_uppercase());
            put(each.clone(), url);
            put(format!("{each}_PROTO"), protocol.to_lowercase());
            put(format!("{each}_PORT"), port.port.to_string());
            put(format!("{each}_ADDR"), ip.to_owned());
        }
    }
    out
}

fn lookup_error(kind: &str, namespace: &str, name: &str, error: ReferenceError) -> String {
    match error {
        ReferenceError::NotFound => format!("{kind} {name:?} not found"),
        ReferenceError::Unavailable(why) => format!("couldn't get {kind} {namespace}/{name}: {why}"),
    }
}

/// Keys that may be variable names: anything printable without `=`.
fn is_variable_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| (0x20..0x7f).contains(&b) && b != b'=')
}

/// Reads what `envFrom` and `valueFrom` name.
pub(crate) struct Sources<'a> {
    pub config_maps: &'a References<ConfigMap>,
    pub secrets: &'a References<Secret>,
    pub fields: &'a FieldContext,
    /// The pod's volumes, for variables that stand in a file.
    pub volumes: &'a Volumes,
}

impl Sources<'_> {
    async fn config_map(&self, namespace: &str, name: &str, optional: bool) -> Result<Option<Arc<ConfigMap>>, String> {
        match self.config_maps.get(namespace, name).await {
            Ok(found) => Ok(Some(found)),
            Err(ReferenceError::NotFound) if optional => Ok(None),
            Err(e) => Err(lookup_error("configmap", namespace, name, e)),
        }
    }

    async fn secret(&self, namespace: &str, name: &str, optional: bool) -> Result<Option<Arc<Secret>>, String> {
        match self.secrets.get(namespace, name).await {
            Ok(found) => Ok(Some(found)),
            Err(ReferenceError::NotFound) if optional => Ok(None),
            Err(e) => Err(lookup_error("secret", namespace, name, e)),
        }
    }

    async fn value_of(&self, pod: &Pod, container: &Container, variable: &EnvVar) -> Result<Option<String>, String> {
        let Some(from) = &variable.value_from else { return Ok(Some(String::new())) };
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        if let Some(f) = &from.field_ref {
            return fields::field(pod, &f.field_path, self.fields).map(Some);
        }
        if let Some(r) = &from.resource_field_ref {
            let named = r.container_name.as_deref().filter(|n| !n.is_empty());
            let of = match named {
                Some(n) => container_named(pod, n).ok_or_else(|| format!("container {n} not found"))?,
                None => container,
            };
            return fields::resource(of, r, self.fields).map(Some);
        }
        if let Some(k) = &from.config_map_key_ref {
            let optional = k.optional == Some(true);
            let Some(map) = self.config_map(namespace, &k.name, optional).await? else { return Ok(None) };
            return match map.data.as_ref().and_then(|d| d.get(&k.key)) {
                Some(v) => Ok(Some(v.clone())),
                None if optional => Ok(None),
                None => Err(format!("couldn't find key {} in ConfigMap {namespace}/{}", k.key, k.name)),
            };
        }
        if let Some(k) = &from.secret_key_ref {
            let optional = k.optional == Some(true);
            let Some(secret) = self.secret(namespace, &k.name, optional).await? else { return Ok(None) };
            return match secret.data.as_ref().and_then(|d| d.get(&k.key)) {
                Some(v) => Ok(Some(String::from_utf8_lossy(&v.0).into_owned())),
                None if optional => Ok(None),
                None => Err(format!("couldn't find key {} in Secret {namespace}/{}", k.key, k.name)),
            };
        }
        if let Some(k) = &from.file_key_ref {
            let volume = self.volumes.directory_of(&k.volume_name);
            let volume = volume
                .ok_or_else(|| format!("cannot find the volume {:?} referenced by FileKeyRef", k.volume_name))?
                .to_owned();
            let (file, key) = (k.path.clone(), k.key.clone());
            // The pod may have put anything there: it is read away from the other pods' tasks.
            let shown = volume.join(&file);
            let read = tokio::task::spawn_blocking(move || env_file::value(&volume, &file, &key)).await;
            let value = read.map_err(|e| e.to_string())?.map_err(|error| {
                tracing::info!(file = %shown.display(), error, "cannot parse a file of variables");
                "couldn't parse env file".to_owned()
            })?;
            return match value.filter(|v| !v.is_empty()) {
                Some(v) => Ok(Some(v)),
                None if k.optional == Some(true) => Ok(None),
                None => Err(format!("environment variable key {:?} not found in file {shown:?}", k.key)),
            };
        }
        Err(format!("environment variable {} has a source that is not supported", variable.name))
    }

    /// The whole environment of `container`.
    pub(crate) async fn environment(
        &self,
        pod: &Pod,
        container: &Container,
        services: &BTreeMap<String, String>,
    ) -> Result<Environment, String> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let mut own = Environment::default();
        for from in container.env_from.iter().flatten() {
            let prefix = from.prefix.as_deref().unwrap_or_default();
            let mut pairs: Vec<(String, String)> = Vec::new();
            if let Some(r) = &from.config_map_ref
                && let Some(map) = self.config_map(namespace, &r.name, r.optional == Some(true)).await?
            {
                pairs.extend(map.data.iter().flatten().map(|(k, v)| (k.clone(), v.clone())));
            }
            if let Some(r) = &from.secret_ref
                && let Some(secret) = self.secret(namespace, &r.name, r.optional == Some(true)).await?
            {
                let text = |v: &k8s_openapi::ByteString| String::from_utf8_lossy(&v.0).into_owned();
                pairs.extend(secret.data.iter().flatten().map(|(k, v)| (k.clone(), text(v))));
            }
            for (key, value) in pairs {
                let name = format!("{prefix}{key}");
                if is_variable_name(&name) {
                    own.set(&name, value);
                }
            }
        }
        for variable in container.env.iter().flatten() {
            let value = match variable.value.as_deref().filter(|v| !v.is_empty()) {
                Some(text) => {
                    Some(expand(text, |n| own.get(n).map(str::to_owned).or_else(|| services.get(n).cloned())))
                }
                None => self.value_of(pod, container, variable).await?,
            };
            if let Some(value) = value {
                own.set(&variable.name, value);
            }
        }
        // Service variables come last and never hide the pod's own.
        for (name, value) in services {
            if own.get(name).is_none() {
                own.set(name, value.clone());
            }
        }
        Ok(own)
    }
}

/// The container, init container or ephemeral container of this name (ephemeral ones are not resource sources).
pub(crate) fn container_named<'a>(pod: &'a Pod, name: &str) -> Option<&'a Container> {
    let spec = pod.spec.as_ref()?;
    spec.containers.iter().chain(spec.init_containers.iter().flatten()).find(|c| c.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use gantry_api::kind::Kind;
    use serde_json::json;

    #[test]
    fn expansion_follows_the_rules_for_dollars() {
        let lookup = |n: &str| match n {
            "A" => Some("1".to_owned()),
            "B" => Some("$(A)".to_owned()),
            _ => None,
        };
        for (text, want) in [
            ("$(A)", "1"),
            ("x$(A)y$(A)", "x1y1"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1"),
            ("$(C)", "$(C)"),
            ("$(A", "$(A"),
            ("$A", "$A"),
            ("cost $", "cost $"),
            ("$(B)", "$(A)"),
            ("ü$(A)", "ü1"),
        ] {
            assert_eq!(expand(text, lookup), want, "{text}");
        }
    }

    #[test]
    fn services_of_the_namespace_and_the_api_server() {
        let service = |ns: &str, name: &str, ip: &str| {
            Arc::new(
                Service::from_value(json!({"metadata": {"name": name, "namespace": ns}, "spec": {"clusterIP": ip,
                    "ports": [{"name": "web-ui", "port": 80, "protocol": "TCP"}, {"name": "dns", "port": 53, "protocol": "UDP"}]}}))
                .unwrap(),
            )
        };
        let all = [
            service("ns", "my-app", "10.96.0.5"),
            service("ns", "headless", "None"),
            service("other", "x", "10.96.0.6"),
            service("default", "kubernetes", "10.96.0.1"),
        ];
        let v = service_variables(&all, "ns", true);
        for (name, value) in [
            ("MY_APP_SERVICE_HOST", "10.96.0.5"),
            ("MY_APP_SERVICE_PORT", "80"),
            ("MY_APP_SERVICE_PORT_WEB_UI", "80"),
            ("MY_APP_PORT", "tcp://10.96.0.5:80"),
            ("MY_APP_PORT_53_UDP", "udp://10.96.0.5:53"),
            ("MY_APP_PORT_53_UDP_PROTO", "udp"),
            ("MY_APP_PORT_80_TCP_ADDR", "10.96.0.5"),
            ("KUBERNETES_SERVICE_HOST", "10.96.0.1"),
        ] {
            assert_eq!(v.get(name).map(String::as_str), Some(value), "{name}");
        }
        assert!(!v.keys().any(|k| k.starts_with("X_") || k.starts_with("HEADLESS")));
        let none = service_variables(&all, "ns", false);
        assert!(none.keys().all(|k| k.starts_with("KUBERNETES_")) && !none.is_empty());
    }

    #[tokio::test]
    async fn later_variables_win_and_see_earlier_ones() {
        let config_maps = References::<ConfigMap>::fixed(vec![
            ConfigMap::from_value(json!({"metadata": {"name": "c", "namespace": "ns"},
                "data": {"A": "cm", "K": "v", "bad=": "x"}}))
            .unwrap(),
        ]);
        let secrets = References::<Secret>::fixed(vec![
            Secret::from_value(json!({"metadata": {"name": "s", "namespace": "ns"}, "data": {"P": "cHc="}})).unwrap(),
        ]);
        let cx = FieldContext::default();
        let volumes = Volumes::new("/nowhere".into());
        let sources = Sources { config_maps: &config_maps, secrets: &secrets, fields: &cx, volumes: &volumes };
        let pod = Pod::from_value(json!({"metadata": {"name": "p", "namespace": "ns"}, "spec": {"containers": [{
            "name": "a",
            "envFrom": [{"configMapRef": {"name": "c"}}, {"prefix": "S_", "secretRef": {"name": "s"}},
                        {"configMapRef": {"name": "missing", "optional": true}}],
            "env": [{"name": "A", "value": "own"}, {"name": "B", "value": "$(A)-$(HOST)-$(NO)"},
                    {"name": "C", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "K"}}},
                    {"name": "D", "valueFrom": {"secretKeyRef": {"name": "s", "key": "none", "optional": true}}},
                    {"name": "E", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]}]}}))
        .unwrap();
        let services = BTreeMap::from([("HOST".to_owned(), "h".to_owned()), ("A".to_owned(), "service".to_owned())]);
        let mut container = pod.spec.as_ref().unwrap().containers[0].clone();
        let pairs = sources.environment(&pod, &container, &services).await.unwrap().into_pairs();
        let pairs: Vec<_> = pairs.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(
            pairs,
            [("A", "own"), ("K", "v"), ("S_P", "pw"), ("B", "own-h-$(NO)"), ("C", "v"), ("E", "p"), ("HOST", "h")]
        );
        container.env_from.as_mut().unwrap()[2].config_map_ref.as_mut().unwrap().optional = None;
        let error = sources.environment(&pod, &container, &services).await.unwrap_err();
        assert_eq!(error, "configmap \"missing\" not found");
    }
}
