//! kube-rs against a cluster: the scenarios of `tests/clients/kube`.

mod cluster;

use cluster::{Cluster, clients};

#[test]
fn kube() {
    clients::kube(&Cluster::start());
}
