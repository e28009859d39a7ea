//! The Python client against a cluster: the scenarios of `tests/clients/scenarios.py`.

mod cluster;

use cluster::{Cluster, clients};

#[test]
fn python() {
    clients::python(&Cluster::start(), "scenarios.py");
}
