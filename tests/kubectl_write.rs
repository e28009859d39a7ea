//! What kubectl writes.

mod cluster;

use cluster::{Cluster, old_kubectl};

const DEPLOYMENT: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{name: web, image: gantry.local/self, args: [serve], env: [{name: COLOUR, value: red}]}]
";

fn settings(value: &str) -> String {
    format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: settings}}\ndata: {{key: {value}}}\n")
}

#[test]
fn objects_are_created_changed_and_deleted() {
    let cluster = Cluster::start();
    let input = |arguments: &[&str], text: &str| {
        let out = cluster.try_kubectl_with(arguments, text);
        (out.status.code(), String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned())
    };
    let said = |arguments: &[&str], expected: &str| assert_eq!(cluster.kubectl(arguments), format!("{expected}\n"));

    // Server-side apply: conflict, force.
    let apply = ["apply", "--server-side", "-f", "-", "--field-manager"];
    let by = |manager: &'static str| [&apply[..], &[manager]].concat();
    assert_eq!(input(&by("one"), &settings("a")).1, "configmap/settings serverside-applied\n");
    let (code, text) = input(&by("two"), &settings("b"));
    assert_eq!(code, Some(1));
    assert!(text.starts_with("error: Apply failed with 1 conflict: conflict with \"one\": .data.key\n"), "{text}");
    let forced = [&by("two")[..], &["--force-conflicts"]].concat();
    assert_eq!(input(&forced, &settings("b")).0, Some(0));
    // diff: 0 where nothing differs, 1 and the lines where something does.
    assert_eq!(input(&["diff", "-f", "-"], &settings("b")), (Some(0), String::new()));
    let (code, text) = input(&["diff", "-f", "-"], &settings("c"));
    assert!(code == Some(1) && text.contains("\n-  key: b\n+  key: c\n"), "{text}");

    // The three patches.
    said(&["patch", "cm", "settings", "-p", r#"{"data":{"more":"1"}}"#], "configmap/settings patched");
    said(&["patch", "cm", "settings", "--type=merge", "-p", r#"{"data":{"more":null}}"#], "configmap/settings patched");
    let json = r#"[{"op":"replace","path":"/data/key","value":"d"}]"#;
    said(&["patch", "cm", "settings", "--type=json", "-p", json], "configmap/settings patched");
    assert_eq!(cluster.jsonpath(&["cm", "settings"], "{.data}"), r#"{"key":"d"}"#);

    // Labels, annotations, edit, replace.
    said(&["label", "cm", "settings", "a=b"], "configmap/settings labeled");
    assert_eq!(
        cluster.kubectl_error(&["label", "cm", "settings", "a=c"]),
        "error: 'a' already has a value (b), and --overwrite is false\n"
    );
    said(&["annotate", "cm", "settings", "a=b"], "configmap/settings annotated");
    let mut edit = cluster.command(&["edit", "cm", "settings"]);
    cluster::run(edit.env("KUBE_EDITOR", "sed -i 's/key: d/key: edited/'"));
    assert_eq!(cluster.jsonpath(&["cm", "settings"], "{.data.key}"), "edited");
    assert_eq!(input(&["replace", "-f", "-"], &settings("e")).1, "configmap/settings replaced\n");
    assert_eq!(input(&["replace", "--force", "-f", "-"], &settings("f")).0, Some(0));

    // Usual mistakes.
    assert_eq!(
        input(&["create", "-f", "-"], &settings("f")),
        (Some(1), "Error from server (AlreadyExists): error when creating \"STDIN\": configmaps \"settings\" already exists\n".into())
    );
    let (_, text) = input(
        &["create", "-f", "-"],
        "{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {containers: [{name: c, imagee: x}]}}",
    );
    assert_eq!(
        text,
        "Error from server (BadRequest): error when creating \"STDIN\": Pod in version \"v1\" cannot be handled as a \
         Pod: strict decoding error: unknown field \"spec.containers[0].imagee\"\n"
    );
    let mut old = cluster.command_of(&old_kubectl(), &["create", "cm", "by-old", "--from-literal=a=b"]);
    assert_eq!(cluster::run(&mut old), "configmap/by-old created\n");
    said(&["delete", "cm", "by-old"], "configmap \"by-old\" deleted");
}

#[test]
fn a_deployment_is_rolled_back_and_forth() {
    let cluster = Cluster::start();
    cluster.apply(DEPLOYMENT);
    cluster.rolled_out("web");
    let said = |arguments: &[&str], expected: &str| assert_eq!(cluster.kubectl(arguments), format!("{expected}\n"));
    let colour = || cluster.jsonpath(&["deploy", "web"], "{.spec.template.spec.containers[0].env[0].value}");
    said(&["set", "env", "deploy/web", "COLOUR=blue"], "deployment.apps/web env updated");
    cluster.rolled_out("web");
    let history = cluster.kubectl(&["rollout", "history", "deploy/web"]);
    assert!(history.contains("\n1 ") && history.contains("\n2 "), "{history}");
    said(&["rollout", "undo", "deploy/web"], "deployment.apps/web rolled back");
    assert_eq!(colour(), "red");
    assert_eq!(
        cluster.kubectl_error(&["rollout", "undo", "deploy/web", "--to-revision=77"]),
        "error: unable to find specified revision 77 in history\n"
    );
    said(&["rollout", "pause", "deploy/web"], "deployment.apps/web paused");
    said(&["rollout", "resume", "deploy/web"], "deployment.apps/web resumed");
    said(&["rollout", "restart", "deploy/web"], "deployment.apps/web restarted");
    said(&["scale", "deploy/web", "--replicas=1"], "deployment.apps/web scaled");
    cluster.rolled_out("web");
    said(&["expose", "deploy/web", "--port=80", "--target-port=8080"], "service/web exposed");

    // cordon, drain, uncordon.
    said(&["cordon", "node-1"], "node/node-1 cordoned");
    assert!(cluster.kubectl(&["get", "node", "node-1"]).contains("Ready,SchedulingDisabled"));
    cluster.kubectl(&["drain", "node-1", "--ignore-daemonsets", "--timeout=60s"]);
    said(&["uncordon", "node-1"], "node/node-1 uncordoned");
    cluster.rolled_out("web");

    // Dependents: orphaned, then gone with their owner.
    cluster.kubectl(&["delete", "deploy/web", "--cascade=orphan"]);
    let owned = cluster.jsonpath(&["rs", "-l", "app=web"], "{.items[*].metadata.ownerReferences}");
    assert_eq!(owned, "", "orphans have no owner");
    cluster.kubectl(&["delete", "rs", "-l", "app=web", "--cascade=foreground", "--timeout=60s"]);
    assert_eq!(cluster.kubectl(&["get", "rs,pods", "-l", "app=web", "-o", "name"]), "");
}
