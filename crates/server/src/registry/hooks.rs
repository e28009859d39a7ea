//! Steps of a write that need the state of other objects: allocation of Service addresses and node ports and the like.
//!
//! A hook runs after `prepare_for_*` and before validation, inside the same conflict-retry loop as the rest of the write.
//! What it allocates it must be able to give back: [`Hook::abandoned`] is called when the write did not happen.

use crate::cluster::Cluster;
use async_trait::async_trait;
use gantry_api::kind::Object;
use gantry_api::meta::status::ApiError;

/// A step of every write of one resource.
#[async_trait]
pub trait Hook: Send + Sync {
    /// Group and plural resource the hook is for.
    fn resource(&self) -> (&'static str, &'static str);

    /// Completes `object` (on create `old` is None). Not called for subresource writes. With `dry_run` nothing may be kept.
    ///
    /// # Errors
    /// A refusal, answered to the client as it is.
    async fn before_validate(
        &self,
        object: &mut dyn Object,
        old: Option<&dyn Object>,
        dry_run: bool,
        cluster: &Cluster,
    ) -> Result<(), ApiError>;

    /// The write that `before_validate` prepared was stored; `old` is what it replaced.
    async fn stored(&self, _object: &dyn Object, _old: Option<&dyn Object>, _cluster: &Cluster) {}

    /// The write that `before_validate` prepared was refused or lost a race: give back what was allocated for it.
    async fn abandoned(&self, _object: &dyn Object, _old: Option<&dyn Object>, _cluster: &Cluster) {}

    /// The object was removed from the store.
    async fn deleted(&self, _object: &dyn Object, _cluster: &Cluster) {}
}
