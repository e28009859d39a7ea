//! From security contexts to the runtime's terms.

use gantry_container::runtime::{Seccomp, Security};
use k8s_openapi::api::core::v1::{Container, Pod, SeccompProfile};
use std::path::Path;

/// Why a container may not be made with its security context.
pub(crate) type Refusal = String;

fn id(value: Option<i64>) -> Option<u32> {
    value.and_then(|v| u32::try_from(v).ok())
}

fn seccomp(profile: Option<&SeccompProfile>, profiles: &Path) -> Seccomp {
    match profile.map(|p| (p.type_.as_str(), p.localhost_profile.as_deref())) {
        Some(("RuntimeDefault", _)) => Seccomp::RuntimeDefault,
        Some(("Localhost", Some(file))) => Seccomp::Localhost(profiles.join(file)),
        _ => Seccomp::Unconfined,
    }
}

/// The container's effective security settings.
pub(crate) fn of(pod: &Pod, container: &Container, profiles: &Path) -> Security {
    let outer = pod.spec.as_ref().and_then(|s| s.security_context.clone()).unwrap_or_default();
    let own = container.security_context.clone().unwrap_or_default();
    let groups = outer.supplemental_groups.iter().flatten().chain(outer.fs_group.iter());
    let capabilities = own.capabilities.clone().unwrap_or_default();
    let profile = own.seccomp_profile.as_ref().or(outer.seccomp_profile.as_ref());
    let privileged = own.privileged == Some(true);
    Security {
        uid: id(own.run_as_user.or(outer.run_as_user)),
        user_name: None,
        gid: id(own.run_as_group.or(outer.run_as_group)),
        supplementary_groups: groups.filter_map(|g| id(Some(*g))).collect(),
        strict_supplementary_groups: outer.supplemental_groups_policy.as_deref() == Some("Strict"),
        capabilities_add: capabilities.add.unwrap_or_default(),
        capabilities_drop: capabilities.drop.unwrap_or_default(),
        privileged,
        read_only_root: own.read_only_root_filesystem == Some(true),
        no_new_privileges: own.allow_privilege_escalation == Some(false) && !privileged,
        seccomp: seccomp(profile, profiles),
        unmasked_proc: own.proc_mount.as_deref() == Some("Unmasked"),
    }
}

/// Refuses a pod that wants an AppArmor profile: this runtime sets none, as on a host without AppArmor.
pub(crate) fn admit_apparmor(pod: &Pod) -> Result<(), super::admission::Refusal> {
    let Some(spec) = pod.spec.as_ref() else { return Ok(()) };
    let outer = spec.security_context.as_ref().and_then(|c| c.app_armor_profile.as_ref());
    let own = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let own = own.map(|c| c.security_context.as_ref().and_then(|c| c.app_armor_profile.as_ref()));
    let ephemeral = spec.ephemeral_containers.iter().flatten();
    let ephemeral = ephemeral.map(|c| c.security_context.as_ref().and_then(|c| c.app_armor_profile.as_ref()));
    if own.chain(ephemeral).any(|profile| profile.or(outer).is_some_and(|p| p.type_ != "Unconfined")) {
        return Err(super::admission::Refusal {
            reason: "AppArmor".into(),
            message: "Cannot enforce AppArmor: AppArmor is not enabled on the host".into(),
        });
    }
    Ok(())
}

/// Checks `runAsNonRoot` against the user that will run. `image_user` is the image's `USER`.
pub(crate) fn verify_non_root(pod: &Pod, container: &Container, image_user: &str) -> Result<(), Refusal> {
    let outer = pod.spec.as_ref().and_then(|s| s.security_context.as_ref());
    let own = container.security_context.as_ref();
    let wanted = own.and_then(|c| c.run_as_non_root).or(outer.and_then(|c| c.run_as_non_root));
    if wanted != Some(true) {
        return Ok(());
    }
    let which = format!("(pod: {:?}, container: {})", super::names::pod_description(pod), container.name);
    match own.and_then(|c| c.run_as_user).or(outer.and_then(|c| c.run_as_user)) {
        Some(0) => return Err(format!("container's runAsUser breaks non-root policy {which}")),
        Some(_) => return Ok(()),
        None => {}
    }
    let user = image_user.split(':').next().unwrap_or_default();
    match user.parse::<i64>() {
        Ok(0) => Err(format!("container has runAsNonRoot and image will run as root {which}")),
        Ok(_) => Ok(()),
        Err(_) if user.is_empty() => Err(format!("container has runAsNonRoot and image will run as root {which}")),
        Err(_) => Err(format!(
            "container has runAsNonRoot and image has non-numeric user ({user}), cannot verify user is non-root {which}"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gantry_api::kind::Kind;
    use serde_json::json;

    #[test]
    fn containers_override_pods() {
        let pod = Pod::from_value(json!({"metadata": {"name": "p"}, "spec": {
            "securityContext": {"runAsUser": 1000, "runAsGroup": 2000, "fsGroup": 3000, "supplementalGroups": [4000],
                "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [
                {"name": "a"},
                {"name": "b", "securityContext": {"runAsUser": 5, "allowPrivilegeEscalation": false,
                    "seccompProfile": {"type": "Localhost", "localhostProfile": "x.json"},
                    "capabilities": {"add": ["NET_ADMIN"], "drop": ["ALL"]}, "readOnlyRootFilesystem": true}}]}}))
        .unwrap();
        let spec = pod.spec.as_ref().unwrap();
        let a = of(&pod, &spec.containers[0], Path::new("/profiles"));
        assert_eq!((a.uid, a.gid, a.supplementary_groups.as_slice()), (Some(1000), Some(2000), &[4000, 3000][..]));
        assert_eq!(a.seccomp, Seccomp::RuntimeDefault);
        assert!(!a.no_new_privileges && !a.read_only_root);
        let b = of(&pod, &spec.containers[1], Path::new("/profiles"));
        assert_eq!((b.uid, b.gid), (Some(5), Some(2000)));
        assert_eq!(b.seccomp, Seccomp::Localhost("/profiles/x.json".into()));
        assert_eq!((b.capabilities_add, b.capabilities_drop), (vec!["NET_ADMIN".to_owned()], vec!["ALL".to_owned()]));
        assert!(b.no_new_privileges && b.read_only_root);
    }

    #[test]
    fn apparmor_profiles_are_refused_unless_unconfined() {
        let admitted = |pod: &str, container: &str| {
            let context = |t: &str| if t.is_empty() { json!({}) } else { json!({"appArmorProfile": {"type": t}}) };
            let pod = Pod::from_value(json!({"metadata": {"name": "p"}, "spec": {"securityContext": context(pod),
                "containers": [{"name": "a", "securityContext": context(container)}]}}));
            admit_apparmor(&pod.unwrap())
        };
        for (pod, container) in [("", ""), ("Unconfined", ""), ("RuntimeDefault", "Unconfined")] {
            assert_eq!(admitted(pod, container), Ok(()));
        }
        for (pod, container) in [("RuntimeDefault", ""), ("", "Localhost"), ("Unconfined", "RuntimeDefault")] {
            assert_eq!(admitted(pod, container).unwrap_err().reason, "AppArmor");
        }
    }

    #[test]
    fn non_root_is_checked_against_context_and_image() {
        let pod = |user: serde_json::Value| {
            Pod::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": {
                "securityContext": {"runAsNonRoot": true, "runAsUser": user}, "containers": [{"name": "a"}]}}))
            .unwrap()
        };
        for (user, image, ok) in [
            (json!(0), "5", false),
            (json!(5), "", true),
            (json!(null), "", false),
            (json!(null), "0:0", false),
            (json!(null), "5:0", true),
            (json!(null), "nobody", false),
        ] {
            let p = pod(user.clone());
            let result = verify_non_root(&p, &p.spec.as_ref().unwrap().containers[0], image);
            assert_eq!(result.is_ok(), ok, "{user} {image:?}: {result:?}");
        }
        let p = pod(json!(null));
        assert_eq!(
            verify_non_root(&p, &p.spec.as_ref().unwrap().containers[0], "nobody").unwrap_err(),
            "container has runAsNonRoot and image has non-numeric user (nobody), cannot verify user is non-root \
             (pod: \"p_n(u)\", container: a)"
        );
    }
}
