//! DefaultStorageClass and DefaultIngressClass: a claim or an Ingress that names no class gets the cluster's default one.

use super::{Attributes, MutatingPlugin, Operation};
use crate::cluster::Cluster;
use async_trait::async_trait;
use gantry_api::ObjectMeta;
use gantry_api::k8s_openapi::api::core::v1::PersistentVolumeClaim;
use gantry_api::k8s_openapi::api::networking::v1::{Ingress, IngressClass};
use gantry_api::k8s_openapi::api::storage::v1::StorageClass;
use gantry_api::meta::object::Meta;
use gantry_api::meta::status::ApiError;

/// Annotations of a default StorageClass, the newer first.
const DEFAULT_STORAGE: [&str; 2] =
    ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];
const DEFAULT_INGRESS: &str = "ingressclass.kubernetes.io/is-default-class";
/// Older forms of naming a class.
const STORAGE_ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";
const INGRESS_ANNOTATION: &str = "kubernetes.io/ingress.class";

fn is_marked(meta: &ObjectMeta, annotations: &[&str]) -> bool {
    annotations.iter().any(|a| meta.annotation(a) == Some("true"))
}

pub(super) struct DefaultStorageClass;

#[async_trait]
impl MutatingPlugin for DefaultStorageClass {
    fn name(&self) -> &'static str {
        "DefaultStorageClass"
    }

    async fn admit(&self, a: &mut Attributes<'_>, cluster: &Cluster) -> Result<(), ApiError> {
        if a.operation != Operation::Create || !a.is("", "persistentvolumeclaims", "") {
            return Ok(());
        }
        let Some(claim) = a.object_as_mut::<PersistentVolumeClaim>() else { return Ok(()) };
        let named = claim.spec.as_ref().is_some_and(|s| s.storage_class_name.is_some());
        if named || claim.metadata.annotation(STORAGE_ANNOTATION).is_some() {
            return Ok(());
        }
        let mut classes = cluster.list::<StorageClass>("").await?;
        classes.retain(|c| is_marked(&c.metadata, &DEFAULT_STORAGE));
        // Of several the newest, and of equally old ones the first by name.
        classes.sort_by(|x, y| {
            let age = |c: &StorageClass| c.metadata.creation_timestamp.as_ref().map(|t| t.0);
            age(y).cmp(&age(x)).then_with(|| x.metadata.name().cmp(y.metadata.name()))
        });
        if let Some(class) = classes.first() {
            claim.spec.get_or_insert_default().storage_class_name = Some(class.metadata.name().to_owned());
        }
        Ok(())
    }
}

pub(super) struct DefaultIngressClass;

#[async_trait]
impl MutatingPlugin for DefaultIngressClass {
    fn name(&self) -> &'static str {
        "DefaultIngressClass"
    }

    async fn admit(&self, a: &mut Attributes<'_>, cluster: &Cluster) -> Result<(), ApiError> {
        if a.operation != Operation::Create || !a.is("networking.k8s.io", "ingresses", "") {
            return Ok(());
        }
        let Some(ingress) = a.object_as_mut::<Ingress>() else { return Ok(()) };
        let named = ingress.spec.as_ref().is_some_and(|s| s.ingress_class_name.is_some());
        if named || ingress.metadata.annotation(INGRESS_ANNOTATION).is_some() {
            return Ok(());
        }
        let mut classes = cluster.list::<IngressClass>("").await?;
        classes.retain(|c| is_marked(&c.metadata, &[DEFAULT_INGRESS]));
        // The newest, as with storage classes.
        classes.sort_by(|x, y| {
            let age = |c: &IngressClass| c.metadata.creation_timestamp.as_ref().map(|t| t.0);
            age(y).cmp(&age(x)).then_with(|| x.metadata.name().cmp(y.metadata.name()))
        });
        if let Some(class) = classes.first() {
            ingress.spec.get_or_insert_default().ingress_class_name = Some(class.metadata.name().to_owned());
        }
        Ok(())
    }
}
