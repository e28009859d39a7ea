//! Pods and the field errors they get.

use super::*;
use crate::core::pod::{canonicalize_pod_spec, default_pod};
use k8s_openapi::api::core::v1::Pod;
use serde_json::Value;

/// The errors of a pod with these spec fields over a minimal valid spec.
fn errors_of(fields: Value) -> Vec<String> {
    let mut spec = json!({"containers": [{"name": "c", "image": "i:1"}]});
    for (k, v) in fields.as_object().unwrap() {
        spec[k] = v.clone();
    }
    let mut pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap();
    default_pod(&mut pod);
    canonicalize_pod_spec(pod.spec.as_mut().unwrap()).unwrap();
    let spec = pod.spec.unwrap();
    validate_pod_spec(&spec, Some(&pod.metadata), &Path::new("spec"), Options { is_pod: true })
        .0
        .iter()
        .map(ToString::to_string)
        .collect()
}

/// As [`errors_of`] with these fields of the only container.
fn container_errors(fields: Value) -> Vec<String> {
    let mut c = json!({"name": "c", "image": "i:1"});
    for (k, v) in fields.as_object().unwrap() {
        c[k] = v.clone();
    }
    errors_of(
        json!({"containers": [c], "volumes": [{"name": "v"}, {"name": "claim", "persistentVolumeClaim": {"claimName": "x"}}]}),
    )
}

fn check(cases: Vec<(Value, Vec<&str>)>, errors: fn(Value) -> Vec<String>) {
    for (fields, want) in cases {
        assert_eq!(errors(fields.clone()), want, "{fields}");
    }
}

#[test]
fn containers() {
    check(
        vec![
            (json!({}), vec![]),
            (
                json!({"name": "", "image": ""}),
                vec!["spec.containers[0].name: Required value", "spec.containers[0].image: Required value"],
            ),
            (
                json!({"name": "A.b"}),
                vec![
                    "spec.containers[0].name: Invalid value: \"A.b\": a lowercase RFC 1123 label must consist of lower case \
                 alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or \
                 '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')",
                ],
            ),
            (
                json!({"imagePullPolicy": "Often"}),
                vec![
                    "spec.containers[0].imagePullPolicy: Unsupported value: \"Often\": supported values: \"Always\", \
                 \"IfNotPresent\", \"Never\"",
                ],
            ),
            (
                json!({"ports": [{"containerPort": 0}, {"containerPort": 70000, "protocol": "X", "name": "UP"}]}),
                vec![
                    "spec.containers[0].ports[0].containerPort: Required value",
                    "spec.containers[0].ports[1].name: Invalid value: \"UP\": must contain only alpha-numeric characters (a-z, 0-9), \
                 and hyphens (-)",
                    "spec.containers[0].ports[1].name: Invalid value: \"UP\": must contain at least one letter (a-z)",
                    "spec.containers[0].ports[1].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
                    "spec.containers[0].ports[1].protocol: Unsupported value: \"X\": supported values: \"SCTP\", \"TCP\", \"UDP\"",
                ],
            ),
            (
                json!({"ports": [{"containerPort": 1, "hostPort": 80}, {"containerPort": 2, "hostPort": 80}]}),
                vec!["spec.containers[0].ports[1].hostPort: Duplicate value: \"TCP//80\""],
            ),
            (
                json!({"volumeMounts": [{"name": "w", "mountPath": "/a"}, {"name": "v", "mountPath": "/a", "subPath": "../x"}]}),
                vec![
                    "spec.containers[0].volumeMounts[0].name: Not found: \"w\"",
                    "spec.containers[0].volumeMounts[1].mountPath: Invalid value: \"/a\": must be unique",
                    "spec.containers[0].volumeMounts.subPath: Invalid value: \"../x\": must not contain '..'",
                ],
            ),
            (
                json!({"volumeMounts": [{"name": "v", "mountPath": "/a", "mountPropagation": "Bidirectional"}]}),
                vec![
                    "spec.containers[0].volumeMounts.mountPropagation: Forbidden: Bidirectional mount propagation is available only \
                 to privileged containers",
                ],
            ),
            (
                json!({"volumeDevices": [{"name": "v", "devicePath": "/d"}]}),
                vec![
                    "spec.containers[0].volumeDevices[0].name: Invalid value: \"v\": can only use volume source type of \
                 PersistentVolumeClaim or Ephemeral for block mode",
                ],
            ),
            (json!({"volumeDevices": [{"name": "claim", "devicePath": "/d"}]}), vec![]),
        ],
        container_errors,
    );
    assert_eq!(errors_of(json!({"containers": []})), ["spec.containers: Required value"]);
    assert_eq!(
        errors_of(json!({"containers": [{"name": "c", "image": "i"}, {"name": "c", "image": "i"}]})),
        ["spec.containers[1].name: Duplicate value: \"c\""]
    );
}

#[test]
fn environment() {
    check(
        vec![
            (
                json!({"env": [{"name": "a=b"}, {"name": ""}]}),
                vec![
                    "spec.containers[0].env[0].name: Invalid value: \"a=b\": a valid environment variable name must consist only of \
                 printable ASCII characters other than '='",
                    "spec.containers[0].env[1].name: Required value",
                ],
            ),
            (
                json!({"env": [{"name": "a", "valueFrom": {"fieldRef": {"fieldPath": "spec.foo"}}}]}),
                vec![
                    "spec.containers[0].env[0].valueFrom.fieldRef.fieldPath: Invalid value: \"spec.foo\": error converting fieldPath: \
                 field label not supported: spec.foo",
                ],
            ),
            (
                json!({"env": [{"name": "a", "valueFrom": {"fieldRef": {"fieldPath": "status.phase"}}}]}),
                vec![
                    "spec.containers[0].env[0].valueFrom.fieldRef.fieldPath: Unsupported value: \"status.phase\": supported values: \
                 \"metadata.name\", \"metadata.namespace\", \"metadata.uid\", \"spec.nodeName\", \"spec.serviceAccountName\", \
                 \"status.hostIP\", \"status.hostIPs\", \"status.podIP\", \"status.podIPs\"",
                ],
            ),
            (
                json!({"env": [{"name": "a", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['x/y']"}}}]}),
                vec![],
            ),
            (
                json!({"env": [{"name": "a", "value": "x", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]}),
                vec![
                    "spec.containers[0].env[0].valueFrom: Invalid value: \"\": may not be specified when `value` is not empty",
                ],
            ),
            (
                json!({"env": [{"name": "a", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu", "divisor": "2"}}}]}),
                vec![
                    "spec.containers[0].env[0].valueFrom.resourceFieldRef.divisor: Invalid value: \"limits.cpu\": only divisor's \
                 values 1m and 1 are supported with the cpu resource",
                ],
            ),
            (
                json!({"envFrom": [{}]}),
                vec![
                    "spec.containers[0].envFrom: Invalid value: \"\": must specify one of: `configMapRef` or `secretRef`",
                ],
            ),
        ],
        container_errors,
    );
}

#[test]
fn probes_and_hooks() {
    check(
        vec![
            (
                json!({"livenessProbe": {"successThreshold": 2, "tcpSocket": {"port": 0}}}),
                vec![
                    "spec.containers[0].livenessProbe.tcpSocket.port: Invalid value: 0: must be between 1 and 65535, inclusive",
                    "spec.containers[0].livenessProbe.successThreshold: Invalid value: 2: must be 1",
                ],
            ),
            (
                json!({"readinessProbe": {}}),
                vec!["spec.containers[0].readinessProbe: Required value: must specify a handler type"],
            ),
            (
                json!({"startupProbe": {"exec": {"command": []}, "httpGet": {"port": "x"}, "periodSeconds": -1}}),
                vec![
                    "spec.containers[0].startupProbe.exec.command: Required value",
                    "spec.containers[0].startupProbe.httpGet: Forbidden: may not specify more than 1 handler type",
                    "spec.containers[0].startupProbe.periodSeconds: Invalid value: -1: must be greater than or equal to 0",
                ],
            ),
            (
                json!({"lifecycle": {"preStop": {"sleep": {"seconds": 60}}}}),
                vec![
                    "spec.containers[0].lifecycle.preStop.sleep: Invalid value: 60: must be non-negative and less than \
                 terminationGracePeriodSeconds (30)",
                ],
            ),
        ],
        container_errors,
    );
}

#[test]
fn resource_requirements() {
    check(
        vec![
            (
                json!({"resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}}),
                vec![
                    "spec.containers[0].resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1",
                ],
            ),
            (
                json!({"resources": {"requests": {"cpus": "2"}}}),
                vec![
                    "spec.containers[0].resources.requests[cpus]: Invalid value: \"cpus\": must be a standard resource type or fully \
                 qualified",
                    "spec.containers[0].resources.requests[cpus]: Invalid value: \"cpus\": must be a standard resource for containers",
                ],
            ),
            (
                json!({"resources": {"requests": {"a.b/gpu": "1"}}}),
                vec![
                    "spec.containers[0].resources.limits: Required value: Limit must be set for non overcommitable resources",
                ],
            ),
            (
                json!({"resources": {"limits": {"a.b/gpu": "1500m"}}}),
                vec![
                    "spec.containers[0].resources.limits[a.b/gpu]: Invalid value: \"1500m\": must be an integer",
                    "spec.containers[0].resources.requests[a.b/gpu]: Invalid value: \"1500m\": must be an integer",
                ],
            ),
            (
                json!({"resources": {"limits": {"hugepages-2Mi": "3Mi"}}}),
                vec![
                    "spec.containers[0].resources.limits[hugepages-2Mi]: Invalid value: \"3Mi\": 3Mi is not positive integer multiple \
                 of hugepages-2Mi",
                    "spec.containers[0].resources.requests[hugepages-2Mi]: Invalid value: \"3Mi\": 3Mi is not positive integer \
                 multiple of hugepages-2Mi",
                    "spec.containers[0].resources: Forbidden: HugePages require cpu or memory",
                ],
            ),
            (
                json!({"resources": {"claims": [{"name": "x"}]}}),
                vec![
                    "spec.containers[0].resources.claims[0]: Not found: \"x\": must be one of the names in pod.spec.resourceClaims \
                 which is empty",
                ],
            ),
        ],
        container_errors,
    );
    assert_eq!(
        errors_of(json!({"containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": "2"}}}],
            "resources": {"requests": {"cpu": "1"}}})),
        [
            "spec.resources.requests[cpu]: Invalid value: \"1\": must be greater than or equal to aggregate container requests of 2"
        ]
    );
}

#[test]
fn init_and_ephemeral_containers() {
    let probe = json!({"exec": {"command": ["x"]}});
    check(
        vec![
            (
                json!({"initContainers": [{"name": "c", "image": "i", "livenessProbe": probe}]}),
                vec![
                    "spec.initContainers[0].name: Duplicate value: \"c\"",
                    "spec.initContainers[0].livenessProbe: Forbidden: may not be set for init containers without restartPolicy=Always",
                ],
            ),
            (
                json!({"initContainers": [{"name": "s", "image": "i", "restartPolicy": "Always", "livenessProbe": probe}]}),
                vec![],
            ),
            (
                json!({"ephemeralContainers": [{"name": "e", "image": "i", "targetContainerName": "z", "ports": [{"containerPort": 1}]}]}),
                vec![
                    "spec.ephemeralContainers[0].targetContainerName: Not found: \"z\"",
                    "spec.ephemeralContainers[0].ports: Forbidden: cannot be set for an Ephemeral Container",
                ],
            ),
        ],
        errors_of,
    );
}

#[test]
fn volumes() {
    let v = |source: Value| {
        let mut v = json!({"name": "v"});
        for (k, s) in source.as_object().unwrap() {
            v[k] = s.clone();
        }
        json!({"volumes": [v]})
    };
    check(
        vec![
            (v(json!({})), vec![]),
            (
                v(json!({"emptyDir": {}, "hostPath": {"path": "/x"}})),
                vec!["spec.volumes[0].hostPath: Forbidden: may not specify more than 1 volume type"],
            ),
            (
                v(json!({"hostPath": {"path": "/a/../b", "type": "Dir"}})),
                vec![
                    "spec.volumes[0].hostPath.path: Invalid value: \"/a/../b\": must not contain '..'",
                    "spec.volumes[0].hostPath.type: Unsupported value: \"Dir\": supported values: \"\", \"BlockDevice\", \
                 \"CharDevice\", \"Directory\", \"DirectoryOrCreate\", \"File\", \"FileOrCreate\", \"Socket\"",
                ],
            ),
            (
                v(json!({"configMap": {"defaultMode": 512, "items": [{"key": "", "path": "/x"}]}})),
                vec![
                    "spec.volumes[0].configMap.name: Required value",
                    "spec.volumes[0].configMap.defaultMode: Invalid value: 512: must be a number between 0 and 0777 (octal), both \
                 inclusive",
                    "spec.volumes[0].configMap.items[0].key: Required value",
                    "spec.volumes[0].configMap.items[0].path: Invalid value: \"/x\": must be a relative path",
                ],
            ),
            (v(json!({"secret": {}})), vec!["spec.volumes[0].secret.secretName: Required value"]),
            (
                v(json!({"downwardAPI": {"items": [{"path": "p"}]}})),
                vec!["spec.volumes[0].downwardAPI: Required value: one of fieldRef and resourceFieldRef is required"],
            ),
            (
                v(json!({"projected": {"sources": [{"serviceAccountToken": {"path": "t", "expirationSeconds": 5}},
                {"secret": {"name": "s", "items": [{"key": "k", "path": "p"}]}}, {"configMap": {"name": "m", "items": [{"key": "k", "path": "p"}]}}]}})),
                vec![
                    "spec.volumes[0].projected.sources[0].serviceAccountToken.expirationSeconds: Invalid value: 5: may not specify a \
                 duration less than 10 minutes",
                    "spec.volumes[0].projected: Invalid value: \"m\": conflicting duplicate paths",
                ],
            ),
            (
                v(json!({"nfs": {"server": "", "path": "x"}})),
                vec![
                    "spec.volumes[0].nfs.server: Required value",
                    "spec.volumes[0].nfs.path: Invalid value: \"x\": must be an absolute path",
                ],
            ),
            (
                v(json!({"ephemeral": {"volumeClaimTemplate": {"spec": {"accessModes": []}}}})),
                vec![
                    "spec.volumes[0].ephemeral.volumeClaimTemplate.spec.accessModes: Required value: at least 1 access mode is required",
                    "spec.volumes[0].ephemeral.volumeClaimTemplate.spec.resources[storage]: Required value",
                ],
            ),
            (v(json!({"csi": {"driver": "a.b"}})), vec![]),
            (
                v(json!({"iscsi": {"targetPortal": "1.2.3.4:3260", "iqn": "iqn.2015-02.example.com:test", "lun": 0}})),
                vec![],
            ),
        ],
        errors_of,
    );
    assert_eq!(
        errors_of(json!({"volumes": [{"name": "a"}, {"name": "a"}]})),
        ["spec.volumes[1].name: Duplicate value: \"a\""]
    );
}

#[test]
fn security() {
    check(
        vec![
            (
                json!({"securityContext": {"runAsUser": -1, "seccompProfile": {"type": "Localhost"}}}),
                vec![
                    "spec.securityContext.runAsUser: Invalid value: -1: must be between 0 and 2147483647, inclusive",
                    "spec.securityContext.seccompProfile.localhostProfile: Required value: must be set when seccomp type is Localhost",
                ],
            ),
            (
                json!({"hostNetwork": true, "securityContext": {"sysctls": [{"name": "net.core.somaxconn", "value": "1"}]}}),
                vec![
                    "spec.securityContext.sysctls[0].name: Invalid value: \"net.core.somaxconn\": may not be specified when \
                 'hostNetwork' is true",
                ],
            ),
            (
                json!({"hostUsers": false, "hostPID": true}),
                vec!["spec.HostPID: Forbidden: when `pod.Spec.HostUsers` is false"],
            ),
            (
                json!({"hostPID": true, "shareProcessNamespace": true}),
                vec![
                    "spec.securityContext.shareProcessNamespace: Invalid value: true: ShareProcessNamespace and HostPID cannot both be \
                 enabled",
                ],
            ),
            (
                json!({"os": {"name": "plan9"}}),
                vec!["spec.os: Unsupported value: \"plan9\": supported values: \"linux\", \"windows\""],
            ),
            (
                json!({"os": {"name": "windows"}, "hostIPC": true, "securityContext": {"fsGroup": 1}}),
                vec![
                    "spec.hostIPC: Forbidden: cannot be set for a windows pod",
                    "spec.securityContext.fsGroup: Forbidden: cannot be set for a windows pod",
                ],
            ),
            (
                json!({"securityContext": {"appArmorProfile": {"type": "Localhost", "localhostProfile": " a"}}}),
                vec![
                    "spec.securityContext.appArmorProfile.localhostProfile: Invalid value: \" a\": must not be padded with whitespace",
                ],
            ),
        ],
        errors_of,
    );
    check(
        vec![(
            json!({"securityContext": {"allowPrivilegeEscalation": false, "privileged": true}}),
            vec![
                "spec.containers[0].securityContext: Invalid value: {\"allowPrivilegeEscalation\":false,\"privileged\":true}: cannot \
             set `allowPrivilegeEscalation` to false and `privileged` to true",
            ],
        )],
        container_errors,
    );
}

#[test]
fn placement() {
    let node = |term: Value| json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}}});
    const TERM: &str = "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0]";
    let gt = format!(
        "{TERM}.matchExpressions[0].values: Required value: must be specified single value when `operator` is 'Lt' or 'Gt'"
    );
    let field = format!("{TERM}.matchFields[0].key: Invalid value: \"x\": not a valid field selector key");
    check(
        vec![
            (node(json!({"matchExpressions": [{"key": "a", "operator": "Gt"}]})), vec![&gt]),
            (node(json!({"matchFields": [{"key": "x", "operator": "In", "values": ["n"]}]})), vec![&field]),
            (
                json!({"affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 0,
                "podAffinityTerm": {"topologyKey": "zone"}}]}}}),
                vec![
                    "spec.affinity.podAntiAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].weight: Invalid value: 0: must be \
                 in the range 1-100",
                ],
            ),
            (
                json!({"tolerations": [{"operator": "Equal"}, {"key": "k", "operator": "Exists", "value": "v"},
                {"key": "k", "tolerationSeconds": 1}, {"key": "k", "operator": "Is", "effect": "Never"}]}),
                vec![
                    "spec.tolerations[0].operator: Invalid value: \"Equal\": operator must be Exists when `key` is empty, which means \
                 \"match all values and all keys\"",
                    "spec.tolerations[1].operator: Invalid value: \"v\": value must be empty when `operator` is 'Exists'",
                    "spec.tolerations[2].effect: Invalid value: \"\": effect must be 'NoExecute' when `tolerationSeconds` is set",
                    "spec.tolerations[3].operator: Unsupported value: \"Is\": supported values: \"Equal\", \"Exists\"",
                    "spec.tolerations[3].effect: Unsupported value: \"Never\": supported values: \"NoSchedule\", \"PreferNoSchedule\", \
                 \"NoExecute\"",
                ],
            ),
            (
                json!({"topologySpreadConstraints": [{"maxSkew": 0, "topologyKey": "z", "whenUnsatisfiable": "ScheduleAnyway", "minDomains": 1},
                {"maxSkew": 1, "topologyKey": "z", "whenUnsatisfiable": "ScheduleAnyway"}]}),
                vec![
                    "spec.topologySpreadConstraints[0].maxSkew: Invalid value: 0: must be greater than zero",
                    "spec.topologySpreadConstraints[0].{topologyKey, whenUnsatisfiable}: Duplicate value: \"{z, ScheduleAnyway}\"",
                    "spec.topologySpreadConstraints[0].minDomains: Invalid value: 1: can only use minDomains if \
                 whenUnsatisfiable=DoNotSchedule, not ScheduleAnyway",
                ],
            ),
            (
                json!({"schedulingGates": [{"name": "a.b/c"}, {"name": "a.b/c"}]}),
                vec!["spec.schedulingGates[1]: Duplicate value: \"a.b/c\""],
            ),
        ],
        errors_of,
    );
}

#[test]
fn the_rest_of_the_spec() {
    check(
        vec![
            (
                json!({"restartPolicy": "Sometimes", "dnsPolicy": "None"}),
                vec![
                    "spec.restartPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"OnFailure\", \"Never\"",
                    "spec.dnsConfig: Required value: must provide `dnsConfig` when `dnsPolicy` is None",
                ],
            ),
            (
                json!({"dnsConfig": {"nameservers": ["x"], "searches": ["a_b.c", "."]}}),
                vec![
                    "spec.dnsConfig.nameservers[0]: Invalid value: \"x\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
                ],
            ),
            (
                json!({"activeDeadlineSeconds": 0}),
                vec!["spec.activeDeadlineSeconds: Invalid value: 0: must be between 1 and 2147483647, inclusive"],
            ),
            (
                json!({"hostAliases": [{"ip": "1.2.3"}]}),
                vec![
                    "spec.hostAliases[0].ip: Invalid value: \"1.2.3\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
                ],
            ),
            (
                json!({"resourceClaims": [{"name": "a"}]}),
                vec![
                    "spec.resourceClaims[0]: Invalid value: {\"name\":\"a\"}: must specify one of: `resourceClaimName`, \
                 `resourceClaimTemplateName`",
                ],
            ),
            (
                json!({"preemptionPolicy": "x"}),
                vec![
                    "spec.preemptionPolicy: Unsupported value: \"x\": supported values: \"PreemptLowerPriority\", \"Never\"",
                ],
            ),
        ],
        errors_of,
    );
}
