//! The JavaScript client against a cluster: the scenarios of `tests/clients/scenarios.mjs`.

mod cluster;

use cluster::{Cluster, clients};

#[test]
fn javascript() {
    clients::javascript(&Cluster::start(), "scenarios.mjs");
}
