//! What is filled in for fields a pod or pod template leaves out.

use crate::core::pod::disabled::drop_disabled_fields;
use crate::core::pod::resources::{
    aggregate_container_limits, aggregate_container_requests, amounts, is_pod_level_resource, is_sidecar,
};
use crate::meta::quantity::{Amount, ResourceList};
use crate::meta::text;
use k8s_openapi::api::core::v1::{
    Container, EmptyDirVolumeSource, EnvVar, EphemeralContainer, HTTPGetAction, Lifecycle, Pod, PodSecurityContext,
    PodSpec, PodTemplateSpec, Probe, ResourceRequirements, Volume,
};

fn fill(field: &mut Option<String>, value: &str) {
    if text(field).is_empty() {
        *field = Some(value.to_owned());
    }
}

fn fill_number(field: &mut Option<i32>, value: i32) {
    if field.unwrap_or(0) == 0 {
        *field = Some(value);
    }
}

/// Defaults of a pod: those of its spec, and those that templates do not get (requests from limits, service links, host
/// ports of host-network pods).
pub fn default_pod(pod: &mut Pod) {
    let spec = pod.spec.get_or_insert_default();
    default_pod_spec(spec);
    for c in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
        if let Some(r) = &mut c.resources {
            requests_from_limits(r);
        }
    }
    default_pod_level_resources(spec);
    spec.enable_service_links.get_or_insert(true);
    if spec.host_network == Some(true) {
        for c in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
            for port in c.ports.iter_mut().flatten() {
                let container_port = port.container_port;
                fill_number(&mut port.host_port, container_port);
            }
        }
    }
}

fn requests_from_limits(r: &mut ResourceRequirements) {
    if let Some(limits) = r.limits.clone() {
        let requests = r.requests.get_or_insert_default();
        for (k, q) in limits {
            requests.entry(k).or_insert(q);
        }
    }
}

fn default_pod_level_resources(spec: &mut PodSpec) {
    let Some(own) = spec.resources.clone() else { return };
    let mut limits: ResourceList = own.limits.clone().unwrap_or_default();
    let mut requests: ResourceList = own.requests.clone().unwrap_or_default();
    let container_limits = aggregate_container_limits(spec);
    if !limits.is_empty() || !requests.is_empty() {
        for (k, a) in container_limits.iter().filter(|(k, _)| k.starts_with("hugepages-")) {
            if !requests.contains_key(k) {
                limits.entry(k.clone()).or_insert_with(|| a.to_quantity());
            }
        }
    }
    if !limits.is_empty() {
        for (k, a) in aggregate_container_requests(spec) {
            if matches!(k.as_str(), "cpu" | "memory") {
                requests.entry(k).or_insert_with(|| a.to_quantity());
            }
        }
        for (k, q) in limits.iter().filter(|(k, _)| is_pod_level_resource(k)) {
            requests.entry(k.clone()).or_insert_with(|| q.clone());
        }
    }
    if own.requests.as_ref().is_some_and(|r| !r.is_empty()) {
        // A pod whose every container is limited is itself limited to the sum.
        for name in ["cpu", "memory"] {
            let limited =
                |c: &Container| amounts(c.resources.as_ref().and_then(|r| r.limits.as_ref())).contains_key(name);
            let all = spec
                .containers
                .iter()
                .chain(spec.init_containers.iter().flatten().filter(|c| is_sidecar(c)))
                .all(limited);
            if let (true, Some(a)) = (all, container_limits.get(name)) {
                limits.entry(name.to_owned()).or_insert_with(|| a.to_quantity());
            }
        }
    }
    let r = spec.resources.get_or_insert_default();
    r.limits = (!limits.is_empty()).then_some(limits);
    r.requests = (!requests.is_empty()).then_some(requests);
}

/// Defaults of a pod template.
pub fn default_pod_template(template: &mut PodTemplateSpec) {
    default_pod_spec(template.spec.get_or_insert_default());
}

/// Defaults of a pod spec wherever it stands.
pub fn default_pod_spec(spec: &mut PodSpec) {
    drop_disabled_fields(spec);
    fill(&mut spec.dns_policy, "ClusterFirst");
    fill(&mut spec.restart_policy, "Always");
    spec.security_context.get_or_insert_with(PodSecurityContext::default);
    spec.termination_grace_period_seconds.get_or_insert(30);
    fill(&mut spec.scheduler_name, "default-scheduler");
    default_service_account(spec);
    for volume in spec.volumes.iter_mut().flatten() {
        default_volume(volume);
    }
    for c in spec.init_containers.iter_mut().flatten().chain(&mut spec.containers) {
        default_container(c);
    }
    for c in spec.ephemeral_containers.iter_mut().flatten() {
        default_ephemeral_container(c);
    }
    for list in
        [&mut spec.overhead].into_iter().chain(spec.resources.iter_mut().flat_map(|r| [&mut r.limits, &mut r.requests]))
    {
        round_up_to_milli(list.as_mut());
    }
}

/// `serviceAccount` is the former name of `serviceAccountName`; both are always written with one value.
fn default_service_account(spec: &mut PodSpec) {
    if text(&spec.service_account_name).is_empty() {
        spec.service_account_name = spec.service_account.take().filter(|s| !s.is_empty());
    }
    spec.service_account = spec.service_account_name.clone();
}

/// Amounts finer than thousandths are rounded up.
fn round_up_to_milli(list: Option<&mut ResourceList>) {
    for q in list.into_iter().flat_map(|l| l.values_mut()) {
        if let Ok(a) = Amount::parse(&q.0)
            && a.nano_value() % 1_000_000 != 0
        {
            *q = Amount::from_milli(a.milli_value()).to_quantity();
        }
    }
}

fn default_resources(resources: &mut Option<ResourceRequirements>) {
    // An empty `resources: {}` is what every container shows.
    let r = resources.get_or_insert_default();
    round_up_to_milli(r.limits.as_mut());
    round_up_to_milli(r.requests.as_mut());
}

fn default_container(c: &mut Container) {
    let policy = default_pull_policy(text(&c.image));
    fill(&mut c.image_pull_policy, policy);
    fill(&mut c.termination_message_path, "/dev/termination-log");
    fill(&mut c.termination_message_policy, "File");
    for port in c.ports.iter_mut().flatten() {
        fill(&mut port.protocol, "TCP");
    }
    default_env(c.env.iter_mut().flatten());
    default_resources(&mut c.resources);
    for probe in [&mut c.liveness_probe, &mut c.readiness_probe, &mut c.startup_probe].into_iter().flatten() {
        default_probe(probe);
    }
    default_lifecycle(c.lifecycle.as_mut());
}

fn default_ephemeral_container(c: &mut EphemeralContainer) {
    let policy = default_pull_policy(text(&c.image));
    fill(&mut c.image_pull_policy, policy);
    fill(&mut c.termination_message_path, "/dev/termination-log");
    fill(&mut c.termination_message_policy, "File");
    for port in c.ports.iter_mut().flatten() {
        fill(&mut port.protocol, "TCP");
    }
    default_env(c.env.iter_mut().flatten());
    default_resources(&mut c.resources);
    for probe in [&mut c.liveness_probe, &mut c.readiness_probe, &mut c.startup_probe].into_iter().flatten() {
        default_probe(probe);
    }
    default_lifecycle(c.lifecycle.as_mut());
}

fn default_env<'a>(env: impl Iterator<Item = &'a mut EnvVar>) {
    for source in env.filter_map(|e| e.value_from.as_mut()) {
        if let Some(field) = &mut source.field_ref {
            fill(&mut field.api_version, "v1");
        }
        if let Some(field) = &mut source.resource_field_ref {
            field.divisor.get_or_insert_with(|| Amount::ZERO.to_quantity());
        }
        if let Some(key) = &mut source.file_key_ref {
            key.optional.get_or_insert(false);
        }
    }
}

fn default_http_get(http: Option<&mut HTTPGetAction>) {
    if let Some(http) = http {
        fill(&mut http.path, "/");
        fill(&mut http.scheme, "HTTP");
    }
}

fn default_probe(probe: &mut Probe) {
    fill_number(&mut probe.timeout_seconds, 1);
    fill_number(&mut probe.period_seconds, 10);
    fill_number(&mut probe.success_threshold, 1);
    fill_number(&mut probe.failure_threshold, 3);
    default_http_get(probe.http_get.as_mut());
    if let Some(grpc) = &mut probe.grpc {
        grpc.service.get_or_insert_default();
    }
}

fn default_lifecycle(lifecycle: Option<&mut Lifecycle>) {
    if let Some(l) = lifecycle {
        for handler in [&mut l.post_start, &mut l.pre_stop].into_iter().flatten() {
            default_http_get(handler.http_get.as_mut());
        }
    }
}

/// `Always` for images tagged `latest` (or not at all), `IfNotPresent` for the others.
#[must_use]
pub fn default_pull_policy(image: &str) -> &'static str {
    let (reference, digest) = image.split_once('@').map_or((image, false), |(r, _)| (r, true));
    let last = reference.rsplit('/').next().unwrap_or_default();
    let latest = match last.split_once(':') {
        Some((_, tag)) => tag == "latest",
        None => !digest && !reference.is_empty(),
    };
    if latest { "Always" } else { "IfNotPresent" }
}

fn has_source(volume: &Volume) -> bool {
    let bare = Volume { name: volume.name.clone(), ..Volume::default() };
    *volume != bare
}

const FILE_MODE: i32 = 0o644;

fn default_volume(v: &mut Volume) {
    if !has_source(v) {
        v.empty_dir = Some(EmptyDirVolumeSource::default());
    }
    if let Some(s) = &mut v.secret {
        s.default_mode.get_or_insert(FILE_MODE);
    }
    if let Some(s) = &mut v.config_map {
        s.default_mode.get_or_insert(FILE_MODE);
    }
    if let Some(s) = &mut v.host_path {
        s.type_.get_or_insert_default();
    }
    if let Some(s) = &mut v.downward_api {
        s.default_mode.get_or_insert(FILE_MODE);
        for item in s.items.iter_mut().flatten() {
            default_downward_item(item);
        }
    }
    if let Some(s) = &mut v.projected {
        s.default_mode.get_or_insert(FILE_MODE);
        for source in s.sources.iter_mut().flatten() {
            if let Some(token) = &mut source.service_account_token {
                token.expiration_seconds.get_or_insert(3600);
            }
            for item in source.downward_api.iter_mut().flat_map(|d| d.items.iter_mut().flatten()) {
                default_downward_item(item);
            }
        }
    }
    if let Some(s) = &mut v.image {
        let policy = default_pull_policy(text(&s.reference));
        fill(&mut s.pull_policy, policy);
    }
    if let Some(t) = v.ephemeral.as_mut().and_then(|e| e.volume_claim_template.as_mut()) {
        fill(&mut t.spec.volume_mode, "Filesystem");
    }
    if let Some(s) = &mut v.iscsi {
        fill(&mut s.iscsi_interface, "default");
    }
    if let Some(s) = &mut v.rbd {
        fill(&mut s.pool, "rbd");
        fill(&mut s.user, "admin");
        fill(&mut s.keyring, "/etc/ceph/keyring");
    }
    if let Some(s) = &mut v.azure_disk {
        fill(&mut s.caching_mode, "ReadWrite");
        fill(&mut s.kind, "Shared");
        fill(&mut s.fs_type, "ext4");
        s.read_only.get_or_insert(false);
    }
    if let Some(s) = &mut v.scale_io {
        fill(&mut s.storage_mode, "ThinProvisioned");
        fill(&mut s.fs_type, "xfs");
    }
}

fn default_downward_item(item: &mut k8s_openapi::api::core::v1::DownwardAPIVolumeFile) {
    if let Some(field) = &mut item.field_ref {
        fill(&mut field.api_version, "v1");
    }
    if let Some(field) = &mut item.resource_field_ref {
        field.divisor.get_or_insert_with(|| Amount::ZERO.to_quantity());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::Kind;
    use serde_json::json;

    #[test]
    fn pull_policies() {
        let cases = [
            ("nginx", "Always"),
            ("nginx:latest", "Always"),
            ("nginx:1.2", "IfNotPresent"),
            ("r:5000/nginx", "Always"),
            ("r:5000/a/nginx:v1", "IfNotPresent"),
            ("nginx@sha256:ab", "IfNotPresent"),
            ("nginx:latest@sha256:ab", "Always"),
        ];
        for (image, want) in cases {
            assert_eq!(default_pull_policy(image), want, "{image}");
        }
    }

    #[test]
    fn a_small_pod_shows_what_the_api_server_fills_in() {
        let mut pod = <Pod as Kind>::from_value(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {
            "serviceAccount": "sa", "hostNetwork": true,
            "volumes": [{"name": "v"}, {"name": "s", "secret": {"secretName": "x"}}],
            "containers": [{"name": "c", "image": "a:1", "ports": [{"containerPort": 80}],
                "resources": {"limits": {"cpu": 0.5, "memory": "0.1m"}}, "readinessProbe": {"httpGet": {"port": 80}}}]}})).unwrap();
        default_pod(&mut pod);
        let v = Kind::to_value(&pod);
        assert_eq!(
            v["spec"],
            json!({
            "containers": [{"name": "c", "image": "a:1", "imagePullPolicy": "IfNotPresent",
                "ports": [{"containerPort": 80, "hostPort": 80, "protocol": "TCP"}],
                "readinessProbe": {"failureThreshold": 3, "httpGet": {"path": "/", "port": 80, "scheme": "HTTP"},
                    "periodSeconds": 10, "successThreshold": 1, "timeoutSeconds": 1},
                "resources": {"limits": {"cpu": "500m", "memory": "1m"}, "requests": {"cpu": "500m", "memory": "1m"}},
                "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File"}],
            "dnsPolicy": "ClusterFirst", "enableServiceLinks": true, "hostNetwork": true, "restartPolicy": "Always",
            "schedulerName": "default-scheduler", "securityContext": {}, "serviceAccount": "sa", "serviceAccountName": "sa",
            "terminationGracePeriodSeconds": 30,
            "volumes": [{"name": "v", "emptyDir": {}}, {"name": "s", "secret": {"defaultMode": 420, "secretName": "x"}}]})
        );
    }
}
