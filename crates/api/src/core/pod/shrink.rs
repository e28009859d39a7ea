//! Room that decoding takes and a cached pod does not need. A list that grows by one element takes room for four; of
//! containers and volumes, which are large, that is most of the memory of a pod.

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, PodStatus, Volume};

fn list<T>(list: &mut Option<Vec<T>>) {
    if let Some(list) = list {
        list.shrink_to_fit();
    }
}

fn container(c: &mut Container) {
    list(&mut c.args);
    list(&mut c.command);
    list(&mut c.env);
    list(&mut c.env_from);
    list(&mut c.ports);
    list(&mut c.resize_policy);
    list(&mut c.volume_mounts);
}

fn volume(v: &mut Volume) {
    if let Some(projected) = &mut v.projected {
        list(&mut projected.sources);
    }
}

fn spec(s: &mut PodSpec) {
    s.containers.shrink_to_fit();
    s.containers.iter_mut().for_each(container);
    list(&mut s.init_containers);
    s.init_containers.iter_mut().flatten().for_each(container);
    list(&mut s.ephemeral_containers);
    list(&mut s.volumes);
    s.volumes.iter_mut().flatten().for_each(volume);
    list(&mut s.tolerations);
    list(&mut s.topology_spread_constraints);
    list(&mut s.image_pull_secrets);
}

fn status(s: &mut PodStatus) {
    list(&mut s.conditions);
    list(&mut s.container_statuses);
    list(&mut s.init_container_statuses);
    list(&mut s.host_ips);
    list(&mut s.pod_ips);
}

/// Gives the room back.
pub(super) fn pod(pod: &mut Pod) {
    list(&mut pod.metadata.owner_references);
    list(&mut pod.metadata.finalizers);
    pod.spec.as_mut().map(spec);
    pod.status.as_mut().map(status);
}

#[cfg(test)]
mod tests {
    use crate::kind::Kind;
    use k8s_openapi::api::core::v1::Pod;

    #[test]
    fn a_cached_pod_has_room_for_what_it_has() {
        let text = br#"{"metadata":{"name":"p"},"spec":{
            "containers":[{"name":"c","ports":[{"containerPort":80}]}],
            "volumes":[{"name":"v","projected":{"sources":[{"configMap":{"name":"m"}}]}}]}}"#;
        let mut pod = Pod::from_json(text).unwrap();
        let before = pod.clone();
        pod.shrink();
        assert_eq!(pod, before);
        let spec = pod.spec.unwrap();
        let volumes = spec.volumes.unwrap();
        let sources = volumes[0].projected.as_ref().unwrap().sources.as_ref().unwrap();
        assert_eq!([spec.containers.capacity(), volumes.capacity(), sources.capacity()], [1, 1, 1]);
    }
}
