use super::*;
use gantry_api::kind::Kind;
use serde_json::{Value, json};

fn pod(spec: Value) -> Pod {
    <Pod as Kind>::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap()
}

fn found(level: Level, version: u32, spec: Value) -> String {
    let pod = pod(spec);
    details(&violations(level, version, &pod.metadata, pod.spec.as_ref().unwrap()))
}

#[test]
fn a_plain_pod_is_not_restricted() {
    let plain = json!({"containers": [{"name": "a"}, {"name": "b"}]});
    assert_eq!(found(Level::Privileged, 37, plain.clone()), "");
    assert_eq!(found(Level::Baseline, 37, plain.clone()), "");
    assert_eq!(
        found(Level::Restricted, 37, plain.clone()),
        "allowPrivilegeEscalation != false (containers \"a\", \"b\" must set \
         securityContext.allowPrivilegeEscalation=false), unrestricted capabilities (containers \"a\", \"b\" must set \
         securityContext.capabilities.drop=[\"ALL\"]), runAsNonRoot != true (pod or containers \"a\", \"b\" must set \
         securityContext.runAsNonRoot=true), seccompProfile (pod or containers \"a\", \"b\" must set \
         securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")"
    );
    // Older forms of the standard asked for less.
    assert!(!found(Level::Restricted, 18, plain.clone()).contains("seccompProfile"));
    assert!(!found(Level::Restricted, 7, plain).contains("allowPrivilegeEscalation"));
    let good = json!({
        "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
        "volumes": [{"name": "v", "emptyDir": {}}],
        "containers": [{"name": "a", "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}}}],
    });
    assert_eq!(found(Level::Restricted, 37, good), "");
}

#[test]
fn what_the_baseline_forbids() {
    let cases = [
        (
            json!({"hostNetwork": true, "hostPID": true, "containers": []}),
            "host namespaces (hostNetwork=true, hostPID=true)",
        ),
        (
            json!({"containers": [], "volumes": [{"name": "v", "hostPath": {"path": "/"}}]}),
            "hostPath volumes (volume \"v\")",
        ),
        (
            json!({"containers": [{"name": "a", "ports": [{"containerPort": 80, "hostPort": 80}, {"containerPort": 8, "hostPort": 8}]}]}),
            "hostPort (container \"a\" uses hostPorts 8, 80)",
        ),
        (
            json!({"containers": [{"name": "a", "securityContext": {"privileged": true}}]}),
            "privileged (container \"a\" must not set securityContext.privileged=true)",
        ),
        (
            json!({"containers": [{"name": "a", "securityContext": {"capabilities": {"add": ["NET_RAW", "KILL"]}}}]}),
            "non-default capabilities (container \"a\" must not include \"NET_RAW\" in securityContext.capabilities.add)",
        ),
        (
            json!({"containers": [], "securityContext": {"sysctls": [{"name": "kernel.msgmax", "value": "1"}]}}),
            "forbidden sysctls (kernel.msgmax)",
        ),
        (
            json!({"containers": [{"name": "a", "securityContext": {"seccompProfile": {"type": "Unconfined"}}}],
                "securityContext": {"seccompProfile": {"type": "Unconfined"}}}),
            "seccompProfile (pod and container \"a\" must not set securityContext.seccompProfile.type to \"Unconfined\")",
        ),
        (
            json!({"containers": [{"name": "a", "securityContext": {"seLinuxOptions": {"type": "x", "user": "u"}}}]}),
            "seLinuxOptions (container \"a\" set forbidden securityContext.seLinuxOptions: type \"x\"; user may not be set)",
        ),
        (
            json!({"containers": [{"name": "a", "livenessProbe": {"httpGet": {"port": 1, "host": "h"}}}]}),
            "probe or lifecycle host (container \"a\" uses probe or lifecycle host \"h\")",
        ),
        (
            json!({"initContainers": [{"name": "i", "securityContext": {"procMount": "Unmasked"}}], "containers": []}),
            "procMount (container \"i\" must not set securityContext.procMount to \"Unmasked\")",
        ),
    ];
    for (spec, want) in cases {
        assert_eq!(found(Level::Baseline, 37, spec), want);
    }
    let own_users =
        json!({"hostUsers": false, "containers": [{"name": "i", "securityContext": {"procMount": "Unmasked"}}]});
    assert_eq!(found(Level::Baseline, 37, own_users.clone()), "");
    assert!(found(Level::Restricted, 37, own_users).contains("procMount ("));
}

#[test]
fn a_narrower_check_takes_the_place_of_the_wider() {
    let spec = json!({"containers": [], "volumes": [{"name": "h", "hostPath": {"path": "/"}}, {"name": "n", "nfs": {"server": "s", "path": "/"}}]});
    assert_eq!(
        found(Level::Restricted, 37, spec),
        "restricted volume types (volumes \"h\", \"n\" use restricted volume types \"hostPath\", \"nfs\")"
    );
    let annotated = <Pod as Kind>::from_value(json!({"metadata": {"name": "p", "annotations": {
        "container.apparmor.security.beta.kubernetes.io/a": "unconfined"}}, "spec": {"containers": [{"name": "a"}]}}))
    .unwrap();
    let found = violations(Level::Baseline, 37, &annotated.metadata, annotated.spec.as_ref().unwrap());
    assert_eq!(
        details(&found),
        "forbidden AppArmor profile (annotation must not set AppArmor profile type to \
         \"container.apparmor.security.beta.kubernetes.io/a=\"unconfined\"\")"
    );
}

#[test]
fn labels_make_the_policy() {
    let of = |labels: Value| policy::of_labels(Some(&serde_json::from_value(labels).unwrap()), &Policy::default());
    let (policy, errors) = of(json!({"pod-security.kubernetes.io/enforce": "baseline",
        "pod-security.kubernetes.io/enforce-version": "v1.25"}));
    assert!(errors.is_empty());
    assert_eq!(policy.enforce.to_string(), "baseline:v1.25");
    assert_eq!(
        (policy.warn.to_string(), policy.audit.to_string()),
        ("baseline:v1.25".into(), "privileged:latest".into())
    );
    let (policy, errors) =
        of(json!({"pod-security.kubernetes.io/enforce": "x", "pod-security.kubernetes.io/warn-version": "v1.01"}));
    assert_eq!((policy.enforce.level, policy.warn.level), (Level::Restricted, Level::Privileged));
    let told: Vec<String> = errors.0.iter().map(ToString::to_string).collect();
    assert_eq!(
        told,
        [
            "metadata.labels[pod-security.kubernetes.io/enforce]: Invalid value: \"x\": must be one of privileged, \
             baseline, restricted",
            "metadata.labels[pod-security.kubernetes.io/warn-version]: Invalid value: \"v1.01\": must be \"latest\" or \
             \"v1.x\""
        ]
    );
}

#[test]
fn pods_that_are_there_are_told_of() {
    let bad = |name: &str| {
        <Pod as Kind>::from_value(json!({"metadata": {"name": name}, "spec": {"hostPID": true, "containers": []}}))
            .unwrap()
    };
    let baseline = LevelVersion { level: Level::Baseline, version: None };
    assert_eq!(
        warnings_of_pods("ns", &baseline, vec![bad("c"), bad("b"), bad("d")]),
        [
            "existing pods in namespace \"ns\" violate the new PodSecurity enforce level \"baseline:latest\"",
            "b (and 2 other pods): host namespaces"
        ]
    );
    assert!(warnings_of_pods("ns", &baseline, vec![pod(json!({"containers": []}))]).is_empty());
}
