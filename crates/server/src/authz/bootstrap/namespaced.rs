//! Roles and bindings in `kube-system` and `kube-public`.

use super::{events, meta, named, on, reference, user};
use gantry_api::k8s_openapi::api::rbac::v1::{PolicyRule, Role, RoleBinding, Subject};

fn role(namespace: &str, name: &str, rules: Vec<PolicyRule>) -> Role {
    Role { metadata: meta(name, Some(namespace), &[]), rules: Some(rules) }
}

fn bind(namespace: &str, name: &str, subjects: Vec<Subject>) -> RoleBinding {
    RoleBinding {
        metadata: meta(name, Some(namespace), &[]),
        role_ref: reference("Role", name),
        subjects: Some(subjects),
    }
}

pub(super) fn policy() -> (Vec<Role>, Vec<RoleBinding>) {
    let system = "kube-system";
    let leases = || vec![on(&["coordination.k8s.io"], "leases leasecandidates", "create get list update watch")];
    let reader = "extension-apiserver-authentication-reader";
    let (manager, scheduler) =
        ("system::leader-locking-kube-controller-manager", "system::leader-locking-kube-scheduler");
    let (signer, cleaner) = ("system:controller:bootstrap-signer", "system:controller:token-cleaner");
    let info = "kubeadm:bootstrap-signer-clusterinfo";
    let account = |name: &str| vec![super::account(system, name)];
    let roles = vec![
        role(system, reader, vec![named("", "configmaps", "extension-apiserver-authentication", "get list watch")]),
        role(system, manager, leases()),
        role(system, scheduler, leases()),
        role(system, signer, vec![on(&[""], "secrets", "get list watch")]),
        role(system, cleaner, vec![on(&[""], "secrets", "delete get list watch"), events()]),
        role(
            "kube-public",
            signer,
            vec![
                on(&[""], "configmaps", "get list watch"),
                named("", "configmaps", "cluster-info", "update"),
                events(),
            ],
        ),
        // Where a machine that joins reads which CA is the cluster's, before it is anybody.
        role("kube-public", info, vec![named("", "configmaps", "cluster-info", "get")]),
    ];
    let controller_manager = user("system:kube-controller-manager");
    let kube_scheduler = user("system:kube-scheduler");
    let bindings = vec![
        bind(system, reader, vec![controller_manager.clone(), kube_scheduler.clone()]),
        bind(system, manager, [vec![controller_manager], account("kube-controller-manager")].concat()),
        bind(system, scheduler, [vec![kube_scheduler], account("kube-scheduler")].concat()),
        bind(system, signer, account("bootstrap-signer")),
        bind(system, cleaner, account("token-cleaner")),
        bind("kube-public", signer, account("bootstrap-signer")),
        bind("kube-public", info, vec![user("system:anonymous")]),
    ];
    (roles, bindings)
}
