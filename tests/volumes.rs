//! Persistent volumes: claims are met by directories of the node and by volumes made by hand, keep their data, and go
//! with it.

mod cluster;

use cluster::pods::{create, event, once, pod, refused, sh, succeeded};
use cluster::{Cluster, busybox};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;

fn claim(name: &str, spec: &Value) -> Value {
    let mut all = json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}});
    for (key, value) in spec.as_object().unwrap() {
        all[key] = value.clone();
    }
    json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": all})
}

fn volume(name: &str, spec: &Value) -> Value {
    let mut all =
        json!({"capacity": {"storage": "2Gi"}, "accessModes": ["ReadWriteOnce"], "storageClassName": "manual"});
    for (key, value) in spec.as_object().unwrap() {
        all[key] = value.clone();
    }
    json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": all})
}

fn mounted(claim: &str) -> (Value, Value) {
    let mount = json!({"volumeMounts": [{"name": "v", "mountPath": "/data"}]});
    (mount, json!({"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": claim}}]}))
}

fn phase(cluster: &Cluster, kind: &str, name: &str) -> String {
    cluster.jsonpath(&[kind, name], "{.status.phase}")
}

fn reaches(cluster: &Cluster, kind: &str, name: &str, wanted: &str) {
    cluster.wait_for(&format!("{kind} {name} is {wanted}"), || (phase(cluster, kind, name) == wanted).then_some(()));
}

fn gone(cluster: &Cluster, kind: &str, name: &str) {
    cluster.wait_for(&format!("{kind} {name} is gone"), || {
        cluster.kubectl(&["get", kind, name, "--ignore-not-found", "-o", "name"]).is_empty().then_some(())
    });
}

#[test]
fn claims() {
    let mut cluster = Cluster::start();
    busybox::import(&cluster);
    provisioned(&mut cluster);
    by_hand(&cluster);
    ephemeral(&cluster);
    devices(&cluster);
    reasons(&cluster);
}

/// A claim of the default class gets a directory when its pod is placed, which outlives the pod but not the claim.
fn provisioned(cluster: &mut Cluster) {
    create(cluster, &[claim("data", &json!({}))]);
    event(cluster, "data", "WaitForFirstConsumer", "waiting for first consumer to be created before binding");
    let (mount, spec) = mounted("data");
    let mut owned = spec.clone();
    owned["securityContext"] = json!({"runAsUser": 1000, "fsGroup": 2000});
    create(cluster, &[pod("writer", &mount, &owned)]);
    cluster.ready("writer");
    sh(cluster, "writer", "echo kept > /data/file");
    assert_eq!(sh(cluster, "writer", "stat -c %g /data/file"), "2000\n");
    assert_eq!(phase(cluster, "pvc", "data"), "Bound");
    assert_eq!(
        cluster.jsonpath(&["pvc", "data"], "{.spec.storageClassName} {.status.capacity.storage}"),
        "local-path 1Gi"
    );
    let name = cluster.jsonpath(&["pvc", "data"], "{.spec.volumeName}");
    let directory = PathBuf::from(cluster.jsonpath(&["pv", &name], "{.spec.local.path}"));
    assert!(directory.starts_with(cluster.data_dir()), "{}", directory.display());
    assert_eq!(std::fs::read_to_string(directory.join("file")).unwrap(), "kept\n");

    // A claim in use stays until its pod is gone.
    cluster.kubectl(&["delete", "pvc", "data", "--wait=false"]);
    assert!(cluster.kubectl(&["get", "pvc", "data"]).contains("Terminating"));
    cluster.kubectl(&["delete", "pod", "writer"]);
    gone(cluster, "pvc", "data");
    gone(cluster, "pv", &name);
    assert!(!directory.exists(), "{} outlived its volume", directory.display());

    // So does the directory of a volume that was deleted before its claim, and waited for that.
    create(cluster, &[claim("early", &json!({})), pod("uses-early", &mounted("early").0, &mounted("early").1)]);
    cluster.ready("uses-early");
    let name = cluster.jsonpath(&["pvc", "early"], "{.spec.volumeName}");
    let directory = PathBuf::from(cluster.jsonpath(&["pv", &name], "{.spec.local.path}"));
    cluster.kubectl(&["delete", "pv", &name, "--wait=false"]);
    assert_eq!(phase(cluster, "pv", &name), "Bound");
    cluster.kubectl(&["delete", "pod/uses-early", "pvc/early"]);
    gone(cluster, "pv", &name);
    cluster.wait_for("the directory is removed", || (!directory.exists()).then_some(()));

    // Another claim's data outlive a pod and a restart.
    create(cluster, &[claim("again", &json!({}))]);
    let (mount, spec) = mounted("again");
    create(cluster, &[once("first", "echo once > /data/file", &mount, &spec)]);
    succeeded(cluster, "first");
    cluster.interrupt();
    cluster.up();
    create(cluster, &[once("second", "cat /data/file", &mount, &spec)]);
    assert_eq!(succeeded(cluster, "second"), "once\n");
}

/// Volumes made by hand: the smallest that suits is bound, read-only is kept, and what is retained stays.
fn by_hand(cluster: &Cluster) {
    let place = tempfile::tempdir().unwrap();
    std::fs::write(place.path().join("file"), "by hand\n").unwrap();
    let source = json!({"hostPath": {"path": place.path()}});
    let mut large = source.clone();
    large["capacity"] = json!({"storage": "9Gi"});
    create(cluster, &[volume("large", &large), volume("small", &source)]);
    reaches(cluster, "pv", "small", "Available");
    reaches(cluster, "pv", "large", "Available");
    create(cluster, &[claim("static", &json!({"storageClassName": "manual"}))]);
    reaches(cluster, "pvc", "static", "Bound");
    assert_eq!(cluster.jsonpath(&["pvc", "static"], "{.spec.volumeName} {.status.capacity.storage}"), "small 2Gi");
    let (mount, mut spec) = mounted("static");
    spec["volumes"][0]["persistentVolumeClaim"]["readOnly"] = json!(true);
    create(cluster, &[once("reader", "cat /data/file; touch /data/x 2>&1 | grep -o Read-only", &mount, &spec)]);
    assert_eq!(succeeded(cluster, "reader"), "by hand\nRead-only\n");
    cluster.kubectl(&["delete", "pod/reader", "pvc/static"]);
    reaches(cluster, "pv", "small", "Released");
    assert!(place.path().join("file").exists());
    cluster.kubectl(&["delete", "pv", "small", "large"]);
    // Nobody can delete what is behind a volume made by hand, and the volume says so.
    let mut deleted = source;
    deleted["persistentVolumeReclaimPolicy"] = json!("Delete");
    deleted["storageClassName"] = json!("deleting");
    create(cluster, &[volume("undeletable", &deleted), claim("brief", &json!({"storageClassName": "deleting"}))]);
    reaches(cluster, "pvc", "brief", "Bound");
    cluster.kubectl(&["delete", "pvc", "brief"]);
    reaches(cluster, "pv", "undeletable", "Failed");
    event(cluster, "undeletable", "VolumeFailedDelete", "no deletable volume plugin matched");
    cluster.kubectl(&["delete", "pv", "undeletable"]);
}

/// The claim of an ephemeral volume comes and goes with its pod.
fn ephemeral(cluster: &Cluster) {
    let mount = json!({"volumeMounts": [{"name": "scratch", "mountPath": "/data"}]});
    let template = json!({"metadata": {"labels": {"kind": "scratch"}}, "spec": claim("x", &json!({}))["spec"]});
    let spec = json!({"volumes": [{"name": "scratch", "ephemeral": {"volumeClaimTemplate": template}}]});
    create(cluster, &[pod("brief", &mount, &spec)]);
    cluster.ready("brief");
    assert_eq!(cluster.jsonpath(&["pvc", "brief-scratch"], "{.metadata.labels.kind} {.status.phase}"), "scratch Bound");
    cluster.kubectl(&["delete", "pod", "brief"]);
    gone(cluster, "pvc", "brief-scratch");
}

/// A local volume that is a block device is a device in the container, and cannot be mounted.
fn devices(cluster: &Cluster) {
    let place = tempfile::tempdir().unwrap();
    let (device, file) = (place.path().join("device"), place.path().join("file"));
    // Nothing needs to be behind the device: that it is one is looked at, and which.
    cluster::run(Command::new("mknod").arg(&device).args(["b", "7", "63"]));
    std::fs::write(&file, "no device").unwrap();
    let terms =
        json!([{"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": ["node-1"]}]}]);
    let local = |name: &str, path: &Path| {
        let more = json!({"volumeMode": "Block", "local": {"path": path}, "storageClassName": name,
            "nodeAffinity": {"required": {"nodeSelectorTerms": terms}}});
        volume(name, &more)
    };
    let wants = |name: &str| claim(name, &json!({"volumeMode": "Block", "storageClassName": name}));
    create(cluster, &[local("raw", &device), local("wrong", &file), wants("raw"), wants("wrong")]);
    reaches(cluster, "pvc", "raw", "Bound");
    reaches(cluster, "pvc", "wrong", "Bound");
    let takes = json!({"volumeDevices": [{"name": "v", "devicePath": "/dev/xvda"}]});
    let script = "test -b /dev/xvda && stat -c %t:%T /dev/xvda";
    create(cluster, &[once("takes", script, &takes, &mounted("raw").1)]);
    assert_eq!(succeeded(cluster, "takes"), "7:3f\n");
    let mut privileged = takes.clone();
    privileged["securityContext"] = json!({"privileged": true});
    create(cluster, &[once("may-all", script, &privileged, &mounted("raw").1)]);
    assert_eq!(succeeded(cluster, "may-all"), "7:3f\n");
    create(cluster, &[pod("mounts", &mounted("raw").0, &mounted("raw").1)]);
    event(cluster, "mounts", "FailedMount", "volume v has volumeMode Block, but is specified in volumeMounts");
    create(cluster, &[pod("takes-file", &takes, &mounted("wrong").1)]);
    let why = format!("MapVolume.MapPodDevice failed for volume \"wrong\" : {} is not a block device", file.display());
    event(cluster, "takes-file", "FailedMapVolume", &why);
    cluster.kubectl(&["delete", "pod/takes", "pod/may-all", "pod/mounts", "pod/takes-file", "pvc/raw", "pvc/wrong"]);
    cluster.kubectl(&["delete", "pv", "raw", "wrong"]);
}

/// What pods and claims that cannot be served are told.
fn reasons(cluster: &Cluster) {
    let (mount, spec) = mounted("missing");
    create(cluster, &[pod("lost", &mount, &spec)]);
    let message = "0/1 nodes are available: persistentvolumeclaim \"missing\" not found. not found";
    event(cluster, "lost", "FailedScheduling", message);
    create(cluster, &[claim("classless", &json!({"storageClassName": ""}))]);
    let message = "no persistent volumes available for this claim and no storage class is set";
    event(cluster, "classless", "FailedBinding", message);
    let (mount, spec) = mounted("classless");
    create(cluster, &[pod("waits", &mount, &spec)]);
    let message = "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims. not found";
    event(cluster, "waits", "FailedScheduling", message);
    create(cluster, &[claim("nowhere", &json!({"storageClassName": "none"}))]);
    event(cluster, "nowhere", "ProvisioningFailed", "storageclass.storage.k8s.io \"none\" not found");
    // The volume comes after all: the pod follows.
    cluster.kubectl(&["delete", "pod", "lost"]);
    create(cluster, &[claim("missing", &json!({})), pod("lost", &mounted("missing").0, &mounted("missing").1)]);
    cluster.ready("lost");
    // A share that cannot be mounted: the words of mount are passed on.
    let share = json!({"volumes": [{"name": "v", "nfs": {"server": "127.0.0.1", "path": "/nothing"}}]});
    create(cluster, &[pod("share", &mounted("x").0, &share)]);
    event(cluster, "share", "FailedMount", "MountVolume.SetUp failed for volume \"v\" : mount failed: exit status 32");
    event(cluster, "share", "FailedMount", "Mounting command: mount\nMounting arguments: -t nfs 127.0.0.1:/nothing ");
    let small = json!({"resources": {"requests": {"storage": "0"}}});
    assert!(refused(cluster, &claim("nothing", &small)).contains("must be greater than zero"));
}
