//! Static pods: manifests in a directory of the node, run by the node itself and shown in the API by mirror pods.

mod cluster;

use cluster::Cluster;
use std::path::PathBuf;

struct Manifests {
    cluster: Cluster,
    directory: PathBuf,
}

fn start() -> Manifests {
    let mut cluster = Cluster::prepare(&[]);
    let directory = cluster.data_dir().join("manifests");
    cluster.add_options(&["--pod-manifest-path", &directory.display().to_string()]);
    cluster.up();
    Manifests { cluster, directory }
}

fn pod(message: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\n  labels: {{app: web}}\nspec:\n  terminationGracePeriodSeconds: 1\n  \
         containers:\n  - name: web\n    image: gantry.local/self\n    imagePullPolicy: IfNotPresent\n    \
         args: [serve, --port, \"8080\"]\n    env: [{{name: MESSAGE, value: {message}}}]\n"
    )
}

impl Manifests {
    fn write(&self, name: &str, content: &str) {
        std::fs::write(self.directory.join(name), content).unwrap();
    }

    fn container(&self) -> String {
        self.cluster
            .jsonpath(&["pod", "web-node-1", "--ignore-not-found"], "{.status.containerStatuses[0].containerID}")
    }

    fn message(&self) -> Option<String> {
        let output = self.cluster.try_kubectl(&["exec", "web-node-1", "--", "/gantry", "self", "env"]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.lines().find_map(|l| l.strip_prefix("MESSAGE=").map(str::to_owned))
    }

    fn uid(&self) -> String {
        self.cluster.jsonpath(&["pod", "web-node-1", "--ignore-not-found"], "{.metadata.uid}")
    }
}

#[test]
fn a_manifest_is_run_changed_and_removed() {
    let mut m = start();
    m.write("web.yaml", &pod("one"));
    m.cluster.wait_for("the static pod", || (m.message().as_deref() == Some("one")).then_some(()));
    m.cluster.ready("web-node-1");
    let mirror = m.cluster.get(&["pod", "web-node-1"]);
    let annotations = &mirror["metadata"]["annotations"];
    assert_eq!(annotations["kubernetes.io/config.source"], "file");
    assert_eq!(annotations["kubernetes.io/config.mirror"], annotations["kubernetes.io/config.hash"]);
    assert_eq!(mirror["metadata"]["ownerReferences"][0]["kind"], "Node");
    assert_eq!(mirror["spec"]["nodeName"], "node-1");
    assert!(!mirror["status"]["podIP"].as_str().unwrap().is_empty());
    assert!(m.cluster.kubectl(&["logs", "web-node-1"]).contains("serving on port 8080"));

    // The mirror is an image: without it the pod goes on, and it comes back.
    let (container, uid) = (m.container(), m.uid());
    m.cluster.kubectl(&["delete", "pod", "web-node-1", "--wait=false"]);
    m.cluster.wait_for("a new mirror of the same pod", || {
        (!m.uid().is_empty() && m.uid() != uid && m.container() == container).then_some(())
    });
    m.cluster.ready("web-node-1");

    // The agent is killed and comes back: still the same container.
    m.cluster.kill();
    m.cluster.up();
    m.cluster.ready("web-node-1");
    assert_eq!(m.container(), container);

    // A changed manifest is another pod under the same name.
    m.write("web.yaml", &pod("two"));
    m.cluster.wait_for("the changed pod", || (m.message().as_deref() == Some("two")).then_some(()));
    assert_ne!(m.container(), container);

    // A manifest that is none is named in the log, and harms nobody else.
    m.write("broken.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: broken}\nspec: {containers: []}\n");
    m.cluster.wait_for_log("Could not process manifest file");
    let log = m.cluster.log();
    assert!(log.contains("broken.yaml") && log.contains("spec.containers: Required value"), "{log}");
    m.write("secretive.yaml", &format!("{}  serviceAccountName: default\n", pod("x").replace("web", "secretive")));
    m.cluster.wait_for_log("static pods may not reference serviceaccounts");
    assert_eq!(m.message().as_deref(), Some("two"));
    assert!(!m.cluster.kubectl(&["get", "pods", "-o", "name"]).contains("broken"));

    // Moved away, it ends, and so does its mirror.
    std::fs::rename(m.directory.join("web.yaml"), m.cluster.data_dir().join("web.yaml")).unwrap();
    m.cluster
        .wait_for("the end of the pod", || m.cluster.kubectl(&["get", "pods", "-o", "name"]).is_empty().then_some(()));
}
