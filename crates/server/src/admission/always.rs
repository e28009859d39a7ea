//! AlwaysAdmit and AlwaysDeny, which need no reason.

use super::{Attributes, MutatingPlugin, ValidatingPlugin};
use crate::cluster::Cluster;
use async_trait::async_trait;
use gantry_api::meta::status::ApiError;

pub(super) struct AlwaysAdmit;

#[async_trait]
impl ValidatingPlugin for AlwaysAdmit {
    fn name(&self) -> &'static str {
        "AlwaysAdmit"
    }

    async fn validate(&self, _: &mut Attributes<'_>, _: &Cluster) -> Result<(), ApiError> {
        Ok(())
    }
}

pub(super) struct AlwaysDeny;

// Before anything is charged for the write.
#[async_trait]
impl MutatingPlugin for AlwaysDeny {
    fn name(&self) -> &'static str {
        "AlwaysDeny"
    }

    async fn admit(&self, a: &mut Attributes<'_>, _: &Cluster) -> Result<(), ApiError> {
        Err(a.forbidden("admission control is denying all modifications"))
    }
}
