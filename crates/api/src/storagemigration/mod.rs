//! storagemigration.k8s.io: objects that are written anew as they are stored now.

pub mod storage_version_migration;
