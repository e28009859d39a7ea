//! apply in all its forms, and the other commands that write: create, set, label, annotate, replace, patch, edit. With the
//! newest kubectl and with 1.20, each in a namespace of its own.

mod cluster;

use cluster::busybox::{self, BUSYBOX};
use cluster::{Cluster, newest_kubectl, old_kubectl};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// One kubectl with a namespace and a directory for files.
struct User<'a> {
    cluster: &'a Cluster,
    kubectl: String,
    namespace: String,
    files: tempfile::TempDir,
}

impl<'a> User<'a> {
    fn all(cluster: &'a Cluster) -> Vec<Self> {
        let one = |(kubectl, namespace): (String, &str)| {
            cluster.kubectl(&["create", "namespace", namespace]);
            let files = tempfile::tempdir().unwrap();
            User { cluster, kubectl, namespace: namespace.to_owned(), files }
        };
        [(newest_kubectl(), "new"), (old_kubectl(), "old")].into_iter().map(one).collect()
    }
    fn is_old(&self) -> bool {
        self.kubectl == old_kubectl()
    }
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.cluster.command_of(&self.kubectl, &["-n", &self.namespace]);
        command.args(arguments).current_dir(self.files.path());
        command
    }
    fn output(&self, arguments: &[&str], input: &str) -> Output {
        let mut command = self.command(arguments);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // A command that fails early does not read.
        drop(child.stdin.take().unwrap().write_all(input.as_bytes()));
        child.wait_with_output().unwrap()
    }
    /// What a command that succeeds says.
    fn run(&self, arguments: &[&str]) -> String {
        self.run_with(arguments, "")
    }
    fn run_with(&self, arguments: &[&str], input: &str) -> String {
        let out = self.output(arguments, input);
        assert!(out.status.success(), "{} {arguments:?}: {}", self.kubectl, String::from_utf8_lossy(&out.stderr));
        String::from_utf8_lossy(&out.stdout).into_owned()
    }
    /// What a command that fails says.
    fn error(&self, arguments: &[&str], input: &str) -> String {
        let out = self.output(arguments, input);
        assert!(!out.status.success(), "{} {arguments:?}: {}", self.kubectl, String::from_utf8_lossy(&out.stdout));
        String::from_utf8_lossy(&out.stderr).into_owned()
    }
    fn said(&self, arguments: &[&str], expected: &str) {
        assert_eq!(self.run(arguments), format!("{expected}\n"), "{} {arguments:?}", self.kubectl);
    }
    fn jsonpath(&self, what: &[&str], path: &str) -> String {
        let path = format!("jsonpath={path}");
        self.run(&[&["get"], what, &["-o", &path]].concat())
    }
    fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.files.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }
    fn edit(&self, script: &str, arguments: &[&str]) -> Output {
        let mut command = self.command(arguments);
        command.env("KUBE_EDITOR", format!("sed -i {script}")).output().unwrap()
    }
}

fn deployment() -> String {
    format!(
        "apiVersion: apps/v1
kind: Deployment
metadata: {{name: app, labels: {{a: b, gone: soon}}}}
spec:
  replicas: 1
  selector: {{matchLabels: {{app: app}}}}
  template:
    metadata: {{labels: {{app: app}}}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: main
        image: {BUSYBOX}
        command: [sleep, '100000']
        env: [{{name: A, value: '1'}}, {{name: B, value: '2'}}]
      - {{name: side, image: {BUSYBOX}, command: [sleep, '100000']}}
"
    )
}

/// The same with less: a label, a variable and a container are gone.
fn less(deployment: &str) -> String {
    let lines: Vec<&str> = deployment.lines().filter(|l| !l.contains("name: side")).collect();
    lines.join("\n").replace(", gone: soon", "").replace(", {name: B, value: '2'}", "") + "\n"
}

fn settings(name: &str, value: &str) -> String {
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}, labels: {{set: x}}}}\ndata: {{key: '{value}'}}\n"
    )
}

const IMMUTABLE: &str = "The Deployment \"app\" is invalid: spec.selector: Invalid value: \
                         {\"matchLabels\":{\"app\":\"other\"}}: field is immutable\n";

fn client_side(user: &User<'_>) {
    let yaml = deployment();
    let apply = ["apply", "-f", "-"];
    assert_eq!(user.run_with(&apply, &yaml), "deployment.apps/app created\n");
    assert_eq!(user.run_with(&apply, &yaml), "deployment.apps/app unchanged\n");
    // diff says 0 for nothing, 1 for something, more for failure.
    assert_eq!(user.output(&["diff", "-f", "-"], &yaml).status.code(), Some(0));
    let out = user.output(&["diff", "-f", "-"], &less(&yaml));
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert_eq!(out.status.code(), Some(1), "{out:?}");
    assert!(text.contains("\n-    gone: soon\n") && text.contains("\n-        name: side\n"), "{text}");
    assert!(user.output(&["diff", "-f", "nope"], "").status.code() > Some(1));

    // What is applied no more is gone; what others set stays.
    user.said(&["annotate", "deploy/app", "by=hand"], "deployment.apps/app annotated");
    assert_eq!(user.run_with(&apply, &less(&yaml)), "deployment.apps/app configured\n");
    assert_eq!(user.jsonpath(&["deploy", "app"], "{.metadata.labels}"), r#"{"a":"b"}"#);
    let containers = user.jsonpath(&["deploy", "app"], "{.spec.template.spec.containers[*].name}");
    let variables = user.jsonpath(&["deploy", "app"], "{.spec.template.spec.containers[0].env[*].name}");
    assert_eq!((containers.as_str(), variables.as_str()), ("main", "A"));
    assert_eq!(user.jsonpath(&["deploy", "app"], "{.metadata.annotations.by}"), "hand");
    let last = user
        .jsonpath(&["deploy", "app"], r"{.metadata.annotations.kubectl\.kubernetes\.io/last-applied-configuration}");
    let last: serde_json::Value = serde_json::from_str(&last).unwrap();
    assert_eq!(last["metadata"]["labels"], serde_json::json!({"a": "b"}));
    assert_eq!(last["metadata"]["namespace"], user.namespace.as_str());

    // What cannot be changed: refused, or with force made anew.
    let other = yaml.replace("{app: app}", "{app: other}");
    assert_eq!(user.error(&apply, &other), IMMUTABLE);
    let uid = user.jsonpath(&["deploy", "app"], "{.metadata.uid}");
    user.run_with(&["apply", "--force", "--grace-period=0", "-f", "-"], &other);
    assert_ne!(user.jsonpath(&["deploy", "app"], "{.metadata.uid}"), uid);
    assert_eq!(user.jsonpath(&["deploy", "app"], "{.spec.selector}"), r#"{"matchLabels":{"app":"other"}}"#);

    // The annotation by itself.
    let viewed = user.run(&["apply", "view-last-applied", "deploy", "app"]);
    assert!(viewed.contains("\n    gone: soon\n") && !viewed.contains("status"), "{viewed}");
    let edited = user.edit("'s/replicas: 1/replicas: 2/'", &["apply", "edit-last-applied", "deploy/app"]);
    assert_eq!(String::from_utf8_lossy(&edited.stdout), "deployment.apps/app edited\n");
    assert!(user.run(&["apply", "view-last-applied", "deploy/app"]).contains("replicas: 2\n"));
    assert_eq!(user.jsonpath(&["deploy", "app"], "{.spec.replicas}"), "1");
    let file = user.file("set.yaml", &settings("set", "c"));
    user.run(&["create", "cm", "set", "--from-literal=key=b"]);
    let set = ["apply", "set-last-applied", "-f", file.to_str().unwrap()];
    assert_eq!(
        user.error(&set, ""),
        "error: no last-applied-configuration annotation found on resource: set, to create the annotation, run the \
         command with --create-annotation\n"
    );
    user.said(&[&set[..], &["--create-annotation"]].concat(), "configmap/set configured");
    assert!(user.run(&["apply", "view-last-applied", "cm", "set"]).contains("  key: c\n"));
    assert_eq!(user.jsonpath(&["cm", "set"], "{.data.key}"), "b");

    // An object that was not applied before.
    user.run(&["create", "cm", "plain", "--from-literal=key=b", "--from-literal=more=1"]);
    let out = user.output(&apply, &settings("plain", "c"));
    let warning = "is missing the kubectl.kubernetes.io/last-applied-configuration annotation which is required by";
    assert!(out.status.success() && String::from_utf8_lossy(&out.stderr).contains(warning), "{out:?}");
    assert_eq!(user.jsonpath(&["cm", "plain"], "{.data}"), r#"{"key":"c","more":"1"}"#);

    // Prune: what has the label and is applied no more.
    let allow = if user.is_old() { "--prune-whitelist" } else { "--prune-allowlist" };
    let allow = format!("{allow}=core/v1/ConfigMap");
    let prune = ["apply", "--prune", "-l", "set=x", &allow, "-f", "-"];
    let both = format!("{}---\n{}", settings("one", "1"), settings("two", "2"));
    let said = user.run_with(&prune, &both);
    assert!(said.contains("configmap/one created\n") && said.contains("configmap/two created\n"), "{said}");
    let said = user.run_with(&prune, &settings("one", "1"));
    assert!(said.contains("configmap/one unchanged\n") && said.contains("configmap/two pruned\n"), "{said}");
    assert_eq!(user.run(&["get", "cm", "two", "--ignore-not-found"]), "");
    // Not pruned: it was not made by apply.
    user.run(&["create", "cm", "by-hand"]);
    user.run(&["label", "cm", "by-hand", "set=x"]);
    user.run_with(&prune, &settings("one", "1"));
    assert_eq!(user.run(&["get", "cm", "by-hand", "-o", "name"]), "configmap/by-hand\n");

    // Dry runs change nothing.
    let version = user.jsonpath(&["cm", "one"], "{.metadata.resourceVersion}");
    let dry = |how: &str| user.run_with(&["apply", how, "-f", "-"], &settings("one", "9"));
    assert_eq!(dry("--dry-run=client"), "configmap/one configured (dry run)\n");
    assert_eq!(dry("--dry-run=server"), "configmap/one configured (server dry run)\n");
    assert_eq!(user.jsonpath(&["cm", "one"], "{.metadata.resourceVersion}"), version);
    assert_eq!(user.error(&["apply", "--dry-run=server", "-f", "-"], &other.replace("app: other", "app: x")), {
        IMMUTABLE.replace("other", "x")
    });
    assert_eq!(user.error(&["apply", "-f", "nope.yaml"], ""), "error: the path \"nope.yaml\" does not exist\n");
    assert_eq!(user.error(&apply, ""), "error: no objects passed to apply\n");
    user.run(&["delete", "deploy", "app", "--wait=false"]);
}

#[test]
fn client_side_apply() {
    let cluster = Cluster::start();
    for user in User::all(&cluster) {
        client_side(&user);
    }
}

fn server_side(user: &User<'_>) {
    let manager = Path::new(&user.kubectl).file_name().unwrap().to_str().unwrap().to_owned();
    let yaml = deployment();
    // From client-side to server-side: without conflict.
    user.run_with(&["apply", "-f", "-"], &yaml);
    let apply = ["apply", "--server-side", "-f", "-"];
    assert_eq!(user.run_with(&apply, &yaml), "deployment.apps/app serverside-applied\n");
    if !user.is_old() {
        // Newer clients give what client-side apply owned to server-side apply, so that it can be removed.
        user.run_with(&apply, &less(&yaml));
        assert_eq!(user.jsonpath(&["deploy", "app"], "{.metadata.labels}"), r#"{"a":"b"}"#);
        assert_eq!(user.jsonpath(&["deploy", "app"], "{.spec.template.spec.containers[*].name}"), "main");
        assert!(!user.run(&["apply", "view-last-applied", "deploy/app"]).contains("side"));
    }
    // scale takes the replicas; an apply that disagrees is told.
    user.said(&["scale", "deploy/app", "--replicas=2"], "deployment.apps/app scaled");
    let error = user.error(&apply, &less(&yaml));
    let conflict = format!(
        "error: Apply failed with 1 conflict: conflict with \"{manager}\" with subresource \"scale\" using apps/v1: \
         .spec.replicas\nPlease review the fields above--they currently have other managers."
    );
    assert!(error.starts_with(&conflict), "{error}");
    user.run_with(&[&apply[..], &["--force-conflicts"]].concat(), &less(&yaml));
    assert_eq!(user.jsonpath(&["deploy", "app"], "{.spec.replicas}"), "1");
    // Two managers, two conflicts.
    let second = ["apply", "--server-side", "--field-manager=second", "-f", "-"];
    let differing = less(&yaml).replace("replicas: 1", "replicas: 3").replace("a: b", "a: c");
    let error = user.error(&second, &differing);
    // With 1.20 client-side apply is still an owner as well.
    let count = if user.is_old() { 3 } else { 2 };
    assert!(error.starts_with(&format!("error: Apply failed with {count} conflicts: conflicts with ")), "{error}");
    assert!(error.contains("\n- .metadata.labels.a\n- .spec.replicas\n"), "{error}");
    user.run_with(&[&second[..], &["--force-conflicts"]].concat(), &differing);
    assert_eq!(user.jsonpath(&["deploy", "app"], "{.metadata.labels.a} {.spec.replicas}"), "c 3");
    // Equal values are shared: the first to leave does not take them along.
    user.run_with(&["apply", "--server-side", "--field-manager=one", "-f", "-"], &settings("shared", "v"));
    user.run_with(&["apply", "--server-side", "--field-manager=two", "-f", "-"], &settings("shared", "v"));
    let bare = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: shared}\n";
    user.run_with(&["apply", "--server-side", "--field-manager=one", "-f", "-"], bare);
    assert_eq!(user.jsonpath(&["cm", "shared"], "{.data.key}"), "v");
    user.run_with(&["apply", "--server-side", "--field-manager=two", "-f", "-"], bare);
    assert_eq!(user.jsonpath(&["cm", "shared"], "{.data.key}"), "");
    // diff with the server's opinion.
    let out = user.output(&["diff", "--server-side", "-f", "-"], bare);
    assert_eq!(out.status.code(), Some(0), "{out:?}");
    user.run(&["delete", "deploy", "app", "--wait=false"]);
}

#[test]
fn server_side_apply() {
    let cluster = Cluster::start();
    for user in User::all(&cluster) {
        server_side(&user);
    }
}

/// Server-side apply of a Scale owns the replicas of what is scaled.
#[test]
fn a_scale_is_applied() {
    let cluster = Cluster::start();
    let author = ["apply", "--server-side", "--field-manager=author", "-f", "-"];
    cluster.kubectl_with(&author, &deployment());
    let scale = |count: u8| {
        format!(
            "{{\"apiVersion\": \"autoscaling/v1\", \"kind\": \"Scale\", \"metadata\": {{\"name\": \"app\", \
             \"namespace\": \"default\"}}, \"spec\": {{\"replicas\": {count}}}}}"
        )
    };
    let api = cluster::api::Api::new(&cluster);
    let path = "/apis/apps/v1/namespaces/default/deployments/app/scale?fieldManager=";
    let apply = |manager: &str, count: u8| {
        api.request("PATCH", &format!("{path}{manager}"), Some((cluster::api::APPLY, &scale(count))))
    };
    let owners = || {
        let object: serde_json::Value =
            serde_json::from_str(&cluster.kubectl(&["get", "deploy", "app", "-o", "json", "--show-managed-fields"]))
                .unwrap();
        let all = object["metadata"]["managedFields"].as_array().unwrap().clone();
        let owns = |e: &serde_json::Value| !e["fieldsV1"]["f:spec"]["f:replicas"].is_null();
        let name = |e: &serde_json::Value| format!("{} {} {}", e["manager"], e["operation"], e["subresource"]);
        all.iter().filter(|e| owns(e)).map(|e| name(e).replace('"', "")).collect::<Vec<_>>()
    };
    let refused = |answer: &cluster::api::Answer, with: &str| {
        let message = format!("Apply failed with 1 conflict: conflict with {with}: .spec.replicas");
        assert_eq!((answer.code, answer.json()["message"].as_str()), (409, Some(&*message)), "{answer:?}");
    };
    refused(&apply("scaler", 2), "\"author\"");
    // The present number is shared; another one is taken by force.
    assert_eq!(apply("scaler", 1).code, 200);
    assert_eq!(owners(), ["scaler Apply scale", "author Apply null"], "without time comes first");
    let answer = apply("scaler&force=true", 2);
    assert_eq!((answer.code, answer.json()["spec"]["replicas"].as_i64()), (200, Some(2)), "{answer:?}");
    assert_eq!(owners(), ["scaler Apply scale"]);
    // Whoever applies another number to the object or to its Scale is in conflict with the owner.
    let out = cluster.try_kubectl_with(&author, &deployment());
    let error = String::from_utf8_lossy(&out.stderr).into_owned();
    let conflict = "conflict with \"scaler\" with subresource \"scale\": .spec.replicas\n";
    assert!(error.starts_with(&format!("error: Apply failed with 1 conflict: {conflict}")), "{error}");
    refused(&apply("rival", 3), "\"scaler\" with subresource \"scale\"");
    // By force, and by an update, which is another operation.
    assert_eq!(apply("rival&force=true", 3).code, 200);
    assert_eq!(owners(), ["rival Apply scale"]);
    // What a Scale does not have is refused or warned of.
    let unknown = |validation: &str| {
        let path = format!("{path}x&fieldValidation={validation}");
        api.request("PATCH", &path, Some((cluster::api::MERGE, r#"{"spec":{"nope":1}}"#)))
    };
    let answer = unknown("Strict");
    assert!(answer.code == 422 && answer.text.contains("unknown field \\\"spec.nope\\\""), "{answer:?}");
    let answer = unknown("Warn");
    assert!(answer.code == 200 && answer.head.contains("unknown field \\\"spec.nope\\\""), "{answer:?}");
    cluster.kubectl(&["scale", "deploy/app", "--replicas=4"]);
    let owners = owners();
    assert!(owners.len() == 1 && owners[0].ends_with(" Update scale"), "{owners:?}");
}

fn created(user: &User<'_>) {
    let tag = user.namespace.as_str();
    let said = |arguments: &[&str], expected: &str| user.said(arguments, expected);
    user.file("env.txt", "a=1\nb=2\n");
    said(&["create", "cm", "files", "--from-file=env.txt", "--from-file=key=env.txt"], "configmap/files created");
    assert_eq!(user.jsonpath(&["cm", "files"], "{.data}"), r#"{"env.txt":"a=1\nb=2\n","key":"a=1\nb=2\n"}"#);
    said(&["create", "cm", "environment", "--from-env-file=env.txt"], "configmap/environment created");
    assert_eq!(user.jsonpath(&["cm", "environment"], "{.data}"), r#"{"a":"1","b":"2"}"#);
    user.file("binary", "\u{0}");
    std::fs::write(user.files.path().join("binary"), [0xff, 0]).unwrap();
    said(&["create", "cm", "binary", "--from-file=binary"], "configmap/binary created");
    assert_eq!(user.jsonpath(&["cm", "binary"], "{.binaryData.binary}"), "/wA=");
    said(&["create", "secret", "generic", "s", "--from-literal=a=b"], "secret/s created");
    assert_eq!(user.jsonpath(&["secret", "s"], "{.data.a} {.type}"), "Yg== Opaque");
    let registry = ["--docker-server=r.example", "--docker-username=u", "--docker-password=p"];
    said(&[&["create", "secret", "docker-registry", "reg"], &registry[..]].concat(), "secret/reg created");
    assert_eq!(user.jsonpath(&["secret", "reg"], "{.type}"), "kubernetes.io/dockerconfigjson");
    cluster::run(Command::new("openssl").current_dir(user.files.path()).args([
        "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "key.pem", "-out", "crt.pem", "-subj", "/CN=x",
    ]));
    said(&["create", "secret", "tls", "tls", "--cert=crt.pem", "--key=key.pem"], "secret/tls created");
    assert_eq!(user.jsonpath(&["secret", "tls"], "{.type}"), "kubernetes.io/tls");
    let image = format!("--image={BUSYBOX}");
    let deployment = ["create", "deployment", "made", &image, "--replicas=0", "--port=80"];
    said(&deployment, "deployment.apps/made created");
    assert_eq!(
        user.error(&deployment, ""),
        "error: failed to create deployment: deployments.apps \"made\" already exists\n"
    );
    let name = format!("ns-{tag}");
    said(&["create", "namespace", &name, "--dry-run=server", "-o", "name"], &format!("namespace/{name}"));
    assert_eq!(user.run(&["get", "namespace", &name, "--ignore-not-found"]), "");
    assert!(
        user.run(&["create", "namespace", &name, "--dry-run=client", "-o", "yaml"]).starts_with("apiVersion: v1\n")
    );
    said(&["create", "namespace", &name], &format!("namespace/{name} created"));
    if user.is_old() {
        // It asks for policy/v1beta1, which is served no more since 1.25.
        let error = user.error(&["create", "pdb", "pdb", "--selector=app=x", "--min-available=1"], "");
        assert_eq!(error, "error: no matches for kind \"PodDisruptionBudget\" in version \"policy/v1beta1\"\n");
    } else {
        let pdb = "poddisruptionbudget.policy/pdb created";
        said(&["create", "pdb", "pdb", "--selector=app=x", "--min-available=1"], pdb);
    }
    let class = format!("class-{tag}");
    let expected = format!("priorityclass.scheduling.k8s.io/{class} created");
    said(&["create", "priorityclass", &class, "--value=5", "--description=d"], &expected);
    let role = ["create", "role", "r", "--verb=get,list", "--resource=pods,pods/log", "--resource-name=x"];
    said(&role, "role.rbac.authorization.k8s.io/r created");
    assert_eq!(
        user.jsonpath(&["role", "r"], "{.rules}"),
        r#"[{"apiGroups":[""],"resourceNames":["x"],"resources":["pods","pods/log"],"verbs":["get","list"]}]"#
    );
    let account = format!("--serviceaccount={tag}:default");
    let binding = ["create", "rolebinding", "rb", "--role=r", "--user=u", &account];
    said(&binding, "rolebinding.rbac.authorization.k8s.io/rb created");
    let role = format!("cr-{tag}");
    let expected = format!("clusterrole.rbac.authorization.k8s.io/{role} created");
    said(&["create", "clusterrole", &role, "--verb=get", "--resource=nodes", "--non-resource-url=/x"], &expected);
    let of_role = format!("--clusterrole={role}");
    let expected = format!("clusterrolebinding.rbac.authorization.k8s.io/{role} created");
    said(&["create", "clusterrolebinding", &role, &of_role, "--group=g"], &expected);
    said(&["create", "service", "clusterip", "ip", "--tcp=80:8080"], "service/ip created");
    said(&["create", "service", "clusterip", "headless", "--clusterip=None"], "service/headless created");
    said(&["create", "service", "nodeport", "np", "--tcp=80:8080"], "service/np created");
    assert!(user.jsonpath(&["service", "np"], "{.spec.ports[0].nodePort}").starts_with('3'));
    said(&["create", "service", "loadbalancer", "lb", "--tcp=80"], "service/lb created");
    let external = ["create", "service", "externalname", "en", "--external-name=example.org"];
    said(&external, "service/en created");
    said(&["create", "serviceaccount", "sa"], "serviceaccount/sa created");
    if !user.is_old() {
        let token = user.run(&["create", "token", "sa", "--duration=20m", "--audience=x"]);
        assert_eq!(token.split('.').count(), 3);
        assert_eq!(
            user.error(&["create", "token", "nope"], ""),
            "error: failed to create token: serviceaccounts \"nope\" not found\n"
        );
    }
    // From files.
    let create = ["create", "--save-config", "-f", "-"];
    assert_eq!(user.run_with(&create, &settings("filed", "1")), "configmap/filed created\n");
    assert!(user.run(&["apply", "view-last-applied", "cm", "filed"]).contains("  key: \"1\"\n"));
    let exists =
        "Error from server (AlreadyExists): error when creating \"STDIN\": configmaps \"filed\" already exists\n";
    assert_eq!(user.error(&create, &settings("filed", "1")), exists);
    assert_eq!(user.error(&["create", "--dry-run=server", "-f", "-"], &settings("filed", "1")), exists);
    let dry = user.run_with(&["create", "--dry-run=client", "-f", "-"], &settings("filed", "1"));
    assert_eq!(dry, "configmap/filed created (dry run)\n");
}

#[test]
fn everything_that_create_makes() {
    let cluster = Cluster::start();
    for user in User::all(&cluster) {
        created(&user);
    }
}

fn changed(user: &User<'_>) {
    user.run_with(&["apply", "-f", "-"], &less(&deployment()));
    let said = |arguments: &[&str], expected: &str| user.said(arguments, &format!("deployment.apps/app {expected}"));
    let first =
        |field: &str| user.jsonpath(&["deploy", "app"], &format!("{{.spec.template.spec.containers[0].{field}}}"));
    // set
    said(&["set", "image", "deploy/app", "main=other.example/image:2"], "image updated");
    assert_eq!(first("image"), "other.example/image:2");
    let error = user.error(&["set", "image", "deploy/app", "nope=x"], "");
    assert_eq!(error, "error: unable to find container named \"nope\"\n");
    said(&["set", "env", "deploy/app", "B=2", "A-"], "env updated");
    assert_eq!(user.run(&["set", "env", "deploy/app", "--list"]), "# Deployment app, container main\nB=2\n");
    user.run(&["create", "cm", "vars", "--from-literal=K=v"]);
    said(&["set", "env", "deploy/app", "--from=configmap/vars", "--prefix=P_"], "env updated");
    assert_eq!(first("env[1]"), r#"{"name":"P_K","valueFrom":{"configMapKeyRef":{"key":"K","name":"vars"}}}"#);
    let resources =
        ["set", "resources", "deploy/app", "-c=main", "--limits=cpu=200m,memory=64Mi", "--requests=cpu=100m"];
    said(&resources, "resource requirements updated");
    assert_eq!(first("resources"), r#"{"limits":{"cpu":"200m","memory":"64Mi"},"requests":{"cpu":"100m"}}"#);
    said(&["set", "serviceaccount", "deploy", "app", "builder"], "serviceaccount updated");
    assert_eq!(user.jsonpath(&["deploy", "app"], "{.spec.template.spec.serviceAccountName}"), "builder");
    user.run(&["create", "service", "clusterip", "ip", "--tcp=80"]);
    user.said(&["set", "selector", "service", "ip", "app=app,tier=x"], "service/ip selector updated");
    assert_eq!(user.jsonpath(&["service", "ip"], "{.spec.selector}"), r#"{"app":"app","tier":"x"}"#);

    // label and annotate
    said(&["annotate", "deploy", "app", "x=y"], "annotated");
    let error = user.error(&["annotate", "deploy", "app", "x=z"], "");
    assert!(error.starts_with("error: ") && error.contains("'x' already has a value (y)"), "{error}");
    said(&["annotate", "deploy", "app", "x=z", "--overwrite"], "annotated");
    assert!(user.run(&["annotate", "deploy", "app", "--list"]).lines().any(|l| l == "x=z"));
    said(&["annotate", "deploy", "app", "x-"], "annotated");
    user.run(&["label", "cm", "--all", "l=1"]);
    assert_eq!(user.jsonpath(&["cm", "vars"], "{.metadata.labels.l}"), "1");
    user.said(&["label", "cm", "vars", "l=2", "--overwrite"], "configmap/vars labeled");
    assert_eq!(user.run(&["label", "cm", "vars", "--list"]), "l=2\n");
    user.said(&["label", "cm", "-l", "l=2", "m=3"], "configmap/vars labeled");
    user.run(&["label", "cm", "vars", "l-"]);
    assert_eq!(user.jsonpath(&["cm", "vars"], "{.metadata.labels}"), r#"{"m":"3"}"#);
    let error = user.error(&["label", "cm", "vars", "m=4", "--overwrite", "--resource-version=1"], "");
    assert_eq!(
        error,
        "Error from server (Conflict): Operation cannot be fulfilled on configmaps \"vars\": the object has been modified; \
         please apply your changes to the latest version and try again\n"
    );

    // replace
    let live = user.run(&["get", "deploy", "app", "-o", "yaml"]);
    let replaced = user.run_with(&["replace", "-f", "-"], &live.replace("replicas: 1\n", "replicas: 0\n"));
    assert_eq!(replaced, "deployment.apps/app replaced\n");
    let stale = live.replacen("resourceVersion: \"", "resourceVersion: \"1", 1);
    let error = user.error(&["replace", "-f", "-"], &stale.replace("resourceVersion: \"1", "resourceVersion: \"0"));
    assert!(error.contains("Operation cannot be fulfilled on deployments.apps \"app\": "), "{error}");
    let uid = user.jsonpath(&["deploy", "app"], "{.metadata.uid}");
    let said_both = user.run_with(&["replace", "--force", "--grace-period=0", "-f", "-"], &less(&deployment()));
    assert!(said_both.ends_with("deployment.apps/app replaced\n") && said_both.contains("deleted"), "{said_both}");
    assert_ne!(user.jsonpath(&["deploy", "app"], "{.metadata.uid}"), uid);

    // patch
    if !user.is_old() {
        let scale =
            ["patch", "deploy", "app", "--subresource=scale", "--type=merge", "-p", r#"{"spec":{"replicas":0}}"#];
        user.said(&scale, "scale.autoscaling/app patched");
        let status = r#"{"status":{"conditions":[{"type":"Mine","status":"True"}]},"spec":{"replicas":9}}"#;
        said(&["patch", "deploy", "app", "--subresource=status", "--type=strategic", "-p", status], "patched");
        assert_eq!(user.jsonpath(&["deploy", "app"], "{.spec.replicas}"), "0", "status does not write the spec");
        let table = user.run(&["get", "deploy", "app", "--subresource=scale"]);
        assert!(table.starts_with("NAME   DESIRED   AVAILABLE   AGE\napp    0 "), "{table}");
    }
    let error = user.error(&["patch", "deploy", "app", "-p", r#"{"spec":{"selector":{"matchLabels":{"x":"y"}}}}"#], "");
    assert_eq!(
        error,
        "The Deployment \"app\" is invalid: \n* spec.template.metadata.labels: Invalid value: {\"app\":\"app\"}: \
         `selector` does not match template `labels`\n* spec.selector: Invalid value: \
         {\"matchLabels\":{\"app\":\"app\",\"x\":\"y\"}}: field is immutable\n"
    );
    let test = r#"[{"op":"test","path":"/metadata/name","value":"x"}]"#;
    let error = user.error(&["patch", "deploy", "app", "--type=json", "-p", test], "");
    assert!(error.starts_with("The request is invalid"), "{error}");

    // edit
    let edit = |script: &str| user.edit(script, &["edit", "deploy", "app"]);
    let out = edit("'s/revisionHistoryLimit: 10/revisionHistoryLimit: 3/'");
    assert_eq!(String::from_utf8_lossy(&out.stdout), "deployment.apps/app edited\n");
    assert_eq!(user.jsonpath(&["deploy", "app"], "{.spec.revisionHistoryLimit}"), "3");
    let out = edit("s/a/a/");
    assert!(String::from_utf8_lossy(&out.stderr).contains("Edit cancelled, no changes made.\n"), "{out:?}");
    // A wrong edit is shown again with the reason; the same file twice ends it.
    let out = edit("'s/revisionHistoryLimit: 3/revisionHistoryLimit: -1/'");
    let error = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(!out.status.success() && error.contains("error: deployments.apps \"app\" is invalid\n"), "{error}");
    let kept = error.lines().find_map(|l| l.strip_prefix("A copy of your changes has been stored to \"")).unwrap();
    let kept = PathBuf::from(kept.trim_end_matches('"'));
    let copy = std::fs::read_to_string(&kept).unwrap();
    std::fs::remove_file(&kept).unwrap();
    let why = "spec.revisionHistoryLimit: Invalid value: -1: must be greater than or equal to 0";
    assert!(copy.lines().any(|l| l.starts_with('#') && l.contains(why)), "{copy}");
    assert_eq!(user.jsonpath(&["deploy", "app"], "{.spec.revisionHistoryLimit}"), "3");
    user.run(&["delete", "deploy", "app", "--wait=false"]);
}

#[test]
fn objects_are_changed_by_every_command() {
    let cluster = Cluster::start();
    busybox::import(&cluster);
    for user in User::all(&cluster) {
        changed(&user);
    }
}
