//! The node itself: what the machine has, its Node object, its lease, its CSINode.

pub(crate) mod csi;
pub(crate) mod housekeeping;
pub(crate) mod images;
pub(crate) mod lease;
pub(crate) mod machine;
pub(crate) mod object;
pub(crate) mod qos;
pub(crate) mod routes;
