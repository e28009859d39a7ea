//! What this node cannot do for a pod it says in the kubelet's words, instead of running the pod without it.

mod cluster;

use cluster::Cluster;

#[test]
fn confinement_that_is_not_there_is_refused() {
    let cluster = Cluster::start();
    cluster.apply(
        "
{apiVersion: v1, kind: Pod, metadata: {name: profiled}, spec: {
  securityContext: {appArmorProfile: {type: RuntimeDefault}},
  containers: [{name: c, image: gantry.local/self, args: [sleep, inf]}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: unconfined}, spec: {terminationGracePeriodSeconds: 0, containers: [
  {name: c, image: gantry.local/self, args: [sleep, inf], securityContext: {appArmorProfile: {type: Unconfined}}}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: mapped}, spec: {terminationGracePeriodSeconds: 0, hostUsers: false,
  containers: [{name: c, image: gantry.local/self, args: [sleep, inf]}]}}",
    );
    let status = cluster.wait_for("refused", || {
        let status = cluster.get(&["pod", "profiled"])["status"].clone();
        (status["phase"] == "Failed").then_some(status)
    });
    assert_eq!(status["reason"], "AppArmor");
    let message = "Cannot enforce AppArmor: AppArmor is not enabled on the host";
    assert_eq!(status["message"], format!("Pod was rejected: {message}"));
    let event = |pod: &str, reason: &str, message: &str| {
        cluster.wait_for(&format!("{reason} of {pod}"), || {
            let selector = format!("involvedObject.name={pod},reason={reason}");
            let told = cluster.jsonpath(&["events", "--field-selector", &selector], "{.items[*].message}");
            told.contains(message).then_some(())
        });
    };
    event("profiled", "AppArmor", message);
    cluster.kubectl(&["wait", "--for=condition=Ready", "--timeout=90s", "pod/unconfined"]);
    event(
        "mapped",
        "FailedCreatePodSandBox",
        "Failed to create pod sandbox: can't set `spec.hostUsers: false`, runtime does not support user namespaces",
    );
    assert_eq!(cluster.jsonpath(&["pod", "mapped"], "{.status.phase}"), "Pending");
    cluster.kubectl(&["delete", "pod", "mapped", "--timeout=60s"]);
}
