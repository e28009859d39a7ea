//! What kubectl reads, with the newest version and with 1.20.

mod cluster;

use cluster::{Cluster, newest_kubectl, old_kubectl};

const OBJECTS: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {app: web}}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{name: web, image: gantry.local/self, args: [serve], ports: [{containerPort: 8080}]}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: settings, labels: {tier: x}}
data: {key: value}
";

const KINDS: &[&str] = &[
    "nodes",
    "namespaces",
    "pods",
    "services",
    "endpoints",
    "endpointslices",
    "configmaps",
    "secrets",
    "serviceaccounts",
    "events",
    "leases",
    "deployments",
    "replicasets",
    "replicationcontrollers",
    "priorityclasses",
    "roles",
    "rolebindings",
    "clusterroles",
    "clusterrolebindings",
    "poddisruptionbudgets",
    "certificatesigningrequests",
];

fn reads(cluster: &Cluster, kubectl: &str) {
    let try_run = |arguments: &[&str]| cluster.command_of(kubectl, arguments).output().unwrap();
    let run = |arguments: &[&str]| cluster::run(&mut cluster.command_of(kubectl, arguments));
    let error = |arguments: &[&str]| {
        let out = try_run(arguments);
        assert!(!out.status.success(), "{arguments:?}: {out:?}");
        String::from_utf8_lossy(&out.stderr).into_owned()
    };
    assert!(run(&["version"]).contains("v1.37"));
    assert!(run(&["cluster-info"]).contains("https://127.0.0.1:6443"));
    assert!(run(&["api-versions"]).lines().any(|l| l == "apps/v1"));
    let resources = run(&["api-resources"]);
    for kind in KINDS {
        assert!(resources.contains(&format!("{kind} ")), "{kind} in:\n{resources}");
        if *kind == "endpointslices" && kubectl == old_kubectl() {
            // 1.20 reads them for this in version v1beta1, which Kubernetes serves no more since 1.25.
            let gone = "Error from server (NotFound): the server could not find the requested resource\n";
            assert_eq!(error(&["describe", kind, "-A"]), gone);
        } else {
            run(&["describe", kind, "-A"]);
        }
    }
    // Everything that is served, with every field of it, also where two groups have the same name.
    for line in resources.lines().skip(1) {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let (version, kind) = (columns[columns.len() - 3], columns[columns.len() - 1]);
        // 1.20 goes by the kind that a name has in the first of its groups.
        let kind_name = kind.to_lowercase();
        let name = if version.starts_with("metrics.k8s.io/") { &kind_name } else { columns[0] };
        let explained = run(&["explain", name, "--api-version", version, "--recursive"]);
        let head =
            |word: &str, is: &str| explained.lines().any(|l| l.split_whitespace().collect::<Vec<_>>() == [word, is]);
        assert!(head("KIND:", kind) && explained.contains("FIELDS:\n"), "{name} of {version}:\n{explained}");
        assert!(explained.contains("apiVersion\t<string>"), "{name} of {version}:\n{explained}");
    }
    let usage = run(&["explain", "podmetrics.containers.usage"]);
    assert!(usage.contains("What is used of each resource."), "{usage}");
    let explained = run(&["explain", "deployments", "--recursive"]);
    assert!(explained.contains("maxSurge") && !explained.contains("<ObjectMeta> -required-"), "{explained}");

    // Output forms.
    assert_eq!(run(&["get", "cm", "settings", "-o", "name"]), "configmap/settings\n");
    assert_eq!(run(&["get", "cm", "settings", "-o", "jsonpath={.data.key}"]), "value");
    assert_eq!(run(&["get", "cm", "settings", "-o", "go-template={{.data.key}}"]), "value");
    assert_eq!(run(&["get", "cm", "settings", "-o", "custom-columns=N:.metadata.name"]), "N\nsettings\n");
    assert!(run(&["get", "cm", "settings", "-o", "yaml"]).contains("  key: value\n"));
    assert!(run(&["get", "pods", "-o", "wide"]).contains("NOMINATED NODE"));
    // Selection.
    assert_eq!(run(&["get", "pods", "-l", "app in (web),!z", "--no-headers"]).lines().count(), 2);
    assert_eq!(run(&["get", "pods", "--field-selector", "status.phase=Running", "--no-headers"]).lines().count(), 2);
    let chunked = run(&["get", "cm", "-A", "--chunk-size=1", "-o", "name"]);
    assert_eq!(chunked, run(&["get", "cm", "-A", "-o", "name"]));
    assert!(chunked.lines().count() > 4, "{chunked}");
    let sorted = run(&["get", "cm", "-A", "--sort-by=.metadata.namespace", "--no-headers"]);
    let namespaces: Vec<&str> = sorted.lines().filter_map(|l| l.split_whitespace().next()).collect();
    assert!(namespaces.is_sorted(), "{sorted}");
    // By a field that only some have; by one that none has, which a table shows as nothing and the others refuse.
    let count = |path: &str| run(&["get", "svc", "--sort-by", path, "--no-headers"]).lines().count();
    assert_eq!((count(".spec.selector.app"), count(".metadata.creationTimestamp")), (2, 2));
    assert_eq!(count(".spec.nope"), 0);
    assert_eq!(
        error(&["get", "svc", "--sort-by=.spec.nope", "-o", "name"]),
        "error: couldn't find any field with path \"{.spec.nope}\" in the list of objects\n"
    );
    let generations = run(&["get", "pods", "-o", "jsonpath={.items[*].metadata.generation}"]);
    assert_eq!(generations, "1 1", "being bound to a node is no new generation");
    // Mistakes.
    assert_eq!(error(&["get", "pods", "nope"]), "Error from server (NotFound): pods \"nope\" not found\n");
    assert_eq!(error(&["get", "nope"]), "error: the server doesn't have a resource type \"nope\"\n");
    assert_eq!(
        error(&["get", "pods", "--field-selector", "foo=bar"]),
        "Error from server (BadRequest): Unable to find \"/v1, Resource=pods\" that match label selector \"\", field \
         selector \"foo=bar\": field label not supported: foo\n"
    );
    // Who may do what.
    assert_eq!(run(&["auth", "can-i", "create", "pods"]), "yes\n");
    assert_eq!(String::from_utf8_lossy(&try_run(&["auth", "can-i", "list", "secrets", "--as=bob"]).stdout), "no\n");
    run(&["wait", "--for=condition=Available", "deploy/web"]);
    let warned = try_run(&["get", "endpoints", "web"]);
    assert!(
        String::from_utf8_lossy(&warned.stderr)
            .contains("Warning: v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice")
    );
}

#[test]
fn the_newest_kubectl_and_1_20_read() {
    let cluster = Cluster::start();
    cluster.apply(OBJECTS);
    cluster.rolled_out("web");
    for kubectl in [newest_kubectl(), old_kubectl()] {
        reads(&cluster, &kubectl);
    }
    assert_eq!(
        cluster.kubectl_error(&["get", "pods", "-l", "app in (web"]),
        "Error from server (BadRequest): Unable to find \"/v1, Resource=pods\" that match label selector \"app in \
         (web\", field selector \"\": unable to parse requirement: found '', expected: ',' or ')'\n"
    );
    // An aggregated role gets the rules of the roles it selects.
    cluster.kubectl(&["create", "clusterrole", "sum", "--aggregation-rule=part=yes"]);
    cluster.kubectl(&["create", "clusterrole", "part", "--verb=get", "--resource=pods"]);
    cluster.kubectl(&["label", "clusterrole", "part", "part=yes"]);
    cluster.wait_for("the sum has the part's rule", || {
        (cluster.jsonpath(&["clusterrole", "sum"], "{.rules[0].resources[0]}") == "pods").then_some(())
    });
    assert_eq!(cluster.kubectl(&["create", "token", "default"]).split('.').count(), 3);
    assert_eq!(
        cluster.kubectl_error(&["create", "token", "default", "--duration=1m"]),
        "error: failed to create token: TokenRequest.authentication.k8s.io \"\" is invalid: spec.expirationSeconds: \
         Invalid value: 60: may not specify a duration less than 10 minutes\n"
    );
    assert!(cluster.kubectl(&["events"]).contains("Scheduled"));
    for what in ["node", "pod"] {
        cluster.wait_for("metrics are there", || cluster.try_kubectl(&["top", what]).status.success().then_some(()));
    }
}
