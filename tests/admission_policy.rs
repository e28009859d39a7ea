//! Validating and mutating admission policies through kubectl.

mod cluster;

use cluster::Cluster;
use serde_json::json;

/// The matchConstraints of policies over the Deployments and ConfigMaps of one namespace.
fn constraints(namespace: &str) -> String {
    format!(
        "matchConstraints:\n    namespaceSelector: {{matchLabels: {{kubernetes.io/metadata.name: {namespace}}}}}\n    \
         resourceRules:\n    - {{operations: [CREATE, UPDATE], apiGroups: [apps], apiVersions: [v1], resources: \
         [deployments, deployments/scale]}}\n    - {{operations: [CREATE, UPDATE, DELETE], apiGroups: [\"\"], \
         apiVersions: [v1], resources: [configmaps]}}"
    )
}

#[test]
fn policies() {
    let cluster = Cluster::start();
    for namespace in ["judged", "changed", "free"] {
        cluster.kubectl(&["create", "namespace", namespace]);
        cluster.wait_for("the namespace's own ConfigMap", || {
            let made = cluster.try_kubectl(&["get", "configmap", "-n", namespace, "kube-root-ca.crt"]);
            made.status.success().then_some(())
        });
    }
    replicas_are_limited(&cluster);
    expressions_must_compile(&cluster);
    warnings(&cluster);
    objects_are_changed(&cluster);
}

/// The example of upstream's documentation: a limit of replicas in a parameter.
fn replicas_are_limited(cluster: &Cluster) {
    let policy = format!(
        "apiVersion: admissionregistration.k8s.io/v1\nkind: ValidatingAdmissionPolicy\nmetadata: {{name: replicas}}\n\
         spec:\n  failurePolicy: Fail\n  paramKind: {{apiVersion: v1, kind: ConfigMap}}\n  {}\n  matchConditions:\n  \
         - {{name: deployments, expression: \"request.resource.resource == 'deployments'\"}}\n  variables:\n  - {{name: \
         max, expression: int(params.data.max)}}\n  validations:\n  - expression: object.spec.replicas <= \
         variables.max\n    messageExpression: \"'at most ' + string(variables.max) + ' in ' + \
         namespaceObject.metadata.name\"\n---\napiVersion: admissionregistration.k8s.io/v1\nkind: \
         ValidatingAdmissionPolicyBinding\nmetadata: {{name: few}}\nspec:\n  policyName: replicas\n  paramRef: {{name: \
         limit, namespace: free, parameterNotFoundAction: Deny}}\n  validationActions: [Deny]\n",
        constraints("judged")
    );
    cluster.apply(&policy);
    let create = |name: &str, namespace: &str, replicas: u32| {
        let replicas = format!("--replicas={replicas}");
        cluster.try_kubectl(&["create", "deployment", name, "-n", namespace, "--image=x", &replicas])
    };
    let refused = |output: std::process::Output| {
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).trim().to_owned()
    };
    let by = "ValidatingAdmissionPolicy 'replicas' with binding 'few' denied request:";
    assert_eq!(
        refused(create("d", "judged", 1)),
        format!(
            "error: failed to create deployment: deployments.apps \"d\" is forbidden: {by} failed to configure binding: no params found for policy binding \
             with `Deny` parameterNotFoundAction"
        )
    );
    cluster.kubectl(&["create", "configmap", "limit", "-n", "free", "--from-literal=max=2"]);
    assert!(create("d", "judged", 2).status.success());
    assert!(create("d", "free", 9).status.success());
    assert_eq!(
        refused(create("e", "judged", 3)),
        format!("error: failed to create deployment: deployments.apps \"e\" is forbidden: {by} at most 2 in judged")
    );
    let scaled = cluster.try_kubectl(&["scale", "deployment", "d", "-n", "judged", "--replicas=3"]);
    assert!(refused(scaled).contains("at most 2 in judged"));
    cluster.kubectl(&["patch", "configmap", "limit", "-n", "free", "-p", r#"{"data": {"max": "3"}}"#]);
    cluster.kubectl(&["scale", "deployment", "d", "-n", "judged", "--replicas=3"]);
    // The judges are not judged.
    cluster.kubectl(&["delete", "validatingadmissionpolicy", "replicas"]);
    assert!(create("e", "judged", 4).status.success());
}

fn expressions_must_compile(cluster: &Cluster) {
    let policy = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": "broken"}, "spec": {"matchConstraints": {"resourceRules": [{"operations": ["*"],
            "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}]},
        "validations": [{"expression": "object.x == "}, {"expression": "'text'"}, {"expression": "nobody.there"}]}});
    let output = cluster.try_kubectl_with(&["create", "-f", "-"], &policy.to_string());
    let why = String::from_utf8_lossy(&output.stderr);
    for part in [
        "spec.validations[0].expression: Invalid value: \"object.x == \": compilation failed: ERROR: <input>:1:",
        "spec.validations[1].expression: Invalid value: \"'text'\": must evaluate to bool but got string",
        "undeclared reference to 'nobody' (in container '')",
    ] {
        assert!(why.contains(part), "{part}\n{why}");
    }
}

fn warnings(cluster: &Cluster) {
    let policy = format!(
        "apiVersion: admissionregistration.k8s.io/v1\nkind: ValidatingAdmissionPolicy\nmetadata: {{name: warn}}\n\
         spec:\n  {}\n  validations:\n  - expression: request.operation != 'DELETE'\n    message: think twice\n---\n\
         apiVersion: admissionregistration.k8s.io/v1\nkind: ValidatingAdmissionPolicyBinding\nmetadata: {{name: warn}}\n\
         spec: {{policyName: warn, validationActions: [Warn]}}\n",
        constraints("judged")
    );
    cluster.apply(&policy);
    cluster.kubectl(&["create", "configmap", "m", "-n", "judged"]);
    let output = cluster.try_kubectl(&["delete", "configmap", "m", "-n", "judged"]);
    assert!(output.status.success());
    assert_eq!(
        String::from_utf8_lossy(&output.stderr).trim(),
        "Warning: Validation failed for ValidatingAdmissionPolicy 'warn' with binding 'warn': think twice"
    );
}

fn objects_are_changed(cluster: &Cluster) {
    let policy = format!(
        "apiVersion: admissionregistration.k8s.io/v1\nkind: MutatingAdmissionPolicy\nmetadata: {{name: change}}\n\
         spec:\n  reinvocationPolicy: IfNeeded\n  {}\n  matchConditions:\n  - {{name: maps, expression: \
         \"request.resource.resource == 'configmaps' && request.operation != 'DELETE'\"}}\n  mutations:\n  - patchType: \
         ApplyConfiguration\n    applyConfiguration:\n      expression: \"Object{{metadata: Object.metadata{{labels: \
         {{'by': request.userInfo.username}}}}}}\"\n  - patchType: JSONPatch\n    jsonPatch:\n      expression: \
         \"[JSONPatch{{op: 'add', path: '/data', value: {{'patched': 'yes'}}}}]\"\n---\napiVersion: \
         admissionregistration.k8s.io/v1\nkind: MutatingAdmissionPolicyBinding\nmetadata: {{name: change}}\nspec: \
         {{policyName: change}}\n",
        constraints("changed")
    );
    cluster.apply(&policy);
    cluster.kubectl(&["create", "configmap", "m", "-n", "changed", "--from-literal=a=b"]);
    let made = cluster.get(&["configmap", "m", "-n", "changed"]);
    assert_eq!(made["data"], json!({"patched": "yes"}));
    let who = cluster.kubectl(&["auth", "whoami", "-o", "jsonpath={.status.userInfo.username}"]);
    assert_eq!(made["metadata"]["labels"]["by"], who);
    cluster.kubectl(&["create", "configmap", "m", "-n", "free", "--from-literal=a=b"]);
    assert_eq!(cluster.get(&["configmap", "m", "-n", "free"])["data"], json!({"a": "b"}));
}
