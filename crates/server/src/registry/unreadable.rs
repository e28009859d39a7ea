//! Stored objects that cannot be read, because no key opens them or because they are damaged: what errors say of them, and how
//! they are deleted all the same (KEP-3926).

use super::{Registry, key_of, store_error};
use crate::audit;
use crate::authn::UserInfo;
use crate::authz::{Attributes, Authorizer, Decision};
use bytes::Bytes;
use gantry_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::{StatusCause, StatusDetails};
use gantry_api::kind::Resource;
use gantry_api::meta::status::ApiError;
use gantry_store::{Compare, Txn, TxnOutcome, Write};
use std::fmt::Display;

/// Most objects that one error names.
pub(super) const NAMED_MAX: usize = 100;
/// Races a deletion may lose before the client is told.
const RACES_MAX: usize = 64;
/// What one has to be allowed to do with a resource to delete objects of it that cannot be read.
const VERB: &str = "unsafe-delete-ignore-read-errors";

/// A stored object that cannot be read.
pub(super) struct Unreadable {
    /// The revision of its last write.
    pub(super) revision: u64,
    /// Why, as [`untransformable`] or [`undecodable`] say it.
    pub(super) why: String,
}

/// Of what cannot be decrypted.
pub(crate) fn untransformable(why: impl Display) -> String {
    format!("data from the storage is not transformable revision=0: {why}")
}

/// Of what is no object of its kind.
pub(crate) fn undecodable(revision: u64, why: impl Display) -> String {
    format!("object not decodable revision={revision}: {why}")
}

fn storage_error(sort: &str, code: u8, key: &str, why: &str) -> String {
    format!("StorageError: {sort}, Code: {code}, Key: {key}, ResourceVersion: 0, AdditionalErrorMsg: {why}")
}

fn corrupt(key: &str, why: &str) -> String {
    storage_error("corrupt object", 7, key, why)
}

/// Answers a read of one object.
pub(super) fn of_object(key: &str, why: &str) -> ApiError {
    ApiError::internal(corrupt(key, why))
}

/// Answers a read of a collection in which these objects (key, why) cannot be read.
pub(super) fn of_collection(resource: &dyn Resource, unreadable: &[(String, String)]) -> ApiError {
    let info = resource.info();
    let told = |(key, why): &(String, String)| corrupt(key, why);
    let mut causes: Vec<StatusCause> = unreadable
        .iter()
        .map(|one| StatusCause {
            reason: Some("UnexpectedServerResponse".into()),
            message: Some(told(one)),
            field: Some(one.0.clone()),
        })
        .collect();
    if unreadable.len() >= NAMED_MAX {
        causes.push(StatusCause {
            reason: Some("FieldValueTooMany".into()),
            message: Some("too many errors, the list is truncated".into()),
            ..StatusCause::default()
        });
    }
    let first = unreadable.first().map(told).unwrap_or_default();
    let more = match unreadable.len() {
        0 | 1 => String::new(),
        several => format!(" (and {} more)", several - 1),
    };
    let message = format!("failed to read one or more {} from the storage: {first}{more}", info.qualified());
    let mut error = ApiError::new(500, "StorageReadError", message);
    error.details = Some(Box::new(StatusDetails {
        group: (!info.group.is_empty()).then(|| info.group.to_owned()),
        kind: Some(info.plural.to_owned()),
        name: Some("list".to_owned()),
        causes: Some(causes),
        ..StatusDetails::default()
    }));
    error
}

impl Registry {
    /// Deletes what is stored under a name and cannot be read, whatever depends on it: without admission, preconditions and
    /// finalizers, which are part of what cannot be read.
    ///
    /// # Errors
    /// 403 where the user may not do that, 404 where nothing is stored, 409 where it can be read.
    pub async fn delete_unreadable(
        &self,
        resource: &'static dyn Resource,
        namespace: &str,
        name: &str,
        dry_run: bool,
        (user, authorizer): (&UserInfo, &dyn Authorizer),
    ) -> Result<(), ApiError> {
        audit::annotate("apiserver.k8s.io/unsafe-delete-ignore-read-error", "");
        let info = resource.info();
        let asked = Attributes {
            user: user.clone(),
            verb: VERB.to_owned(),
            namespace: namespace.to_owned(),
            group: info.group.to_owned(),
            version: info.version.to_owned(),
            resource: info.plural.to_owned(),
            name: name.to_owned(),
            is_resource: true,
            ..Attributes::default()
        };
        let refused = match authorizer.authorize(&asked).await {
            Decision::Allow(_) => None,
            Decision::Deny(reason) | Decision::NoOpinion(reason) => {
                Some(format!("not permitted to do {VERB:?}, reason: {reason}"))
            }
            Decision::Failed { why, .. } => Some(format!("error while checking permission for {VERB:?}, {why}")),
        };
        if let Some(why) = refused {
            return Err(ApiError::forbidden(info.group, info.plural, name, &why));
        }
        let key = key_of(resource, namespace, name);
        for _ in 0..RACES_MAX {
            let found = self.look_up(resource, &key).await?;
            let Some(found) = found else { return Err(ApiError::not_found(info.group, info.plural, name)) };
            let Err(Unreadable { revision, why }) = found else {
                let why = "unsafe deletion is not allowed because the object is decodable from storage";
                let why = storage_error("invalid object", 4, &key, why);
                return Err(ApiError::conflict(info.group, info.plural, name, &why));
            };
            if dry_run {
                return Ok(());
            }
            let bytes = Bytes::from(key.clone());
            let compares = vec![Compare::ModRevision(bytes.clone(), revision)];
            let outcome = self.store.txn(Txn { compares, writes: vec![Write::Delete(bytes)] }).await;
            if let TxnOutcome::Applied(_) = outcome.map_err(|e| store_error(&key, &e))? {
                tracing::warn!(key, why, user = user.username, "deleted an object that could not be read");
                return Ok(());
            }
        }
        Err(ApiError::modified(info.group, info.plural, name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gantry_api::kinds;

    #[test]
    fn errors_of_collections() {
        let secrets = kinds::find("", "v1", "secrets").unwrap();
        let one = ("/registry/secrets/a/s".to_owned(), untransformable("no key"));
        let error = of_collection(secrets, std::slice::from_ref(&one));
        let told = "StorageError: corrupt object, Code: 7, Key: /registry/secrets/a/s, ResourceVersion: 0, \
                    AdditionalErrorMsg: data from the storage is not transformable revision=0: no key";
        assert_eq!((error.code, error.reason), (500, "StorageReadError"));
        assert_eq!(error.message, format!("failed to read one or more secrets from the storage: {told}"));
        let details = error.details.unwrap();
        assert_eq!((details.kind.as_deref(), details.name.as_deref()), (Some("secrets"), Some("list")));
        let causes = details.causes.unwrap();
        assert_eq!(causes.len(), 1);
        assert_eq!((causes[0].message.as_deref(), causes[0].field.as_deref()), (Some(told), Some(one.0.as_str())));

        let deployments = kinds::find("apps", "v1", "deployments").unwrap();
        let error = of_collection(deployments, &vec![one; NAMED_MAX]);
        assert_eq!(
            error.message,
            format!("failed to read one or more deployments.apps from the storage: {told} (and 99 more)")
        );
        let causes = error.details.unwrap().causes.unwrap();
        assert_eq!(causes.len(), NAMED_MAX + 1);
        assert_eq!(causes[NAMED_MAX].reason.as_deref(), Some("FieldValueTooMany"));
        assert_eq!(undecodable(7, "no JSON"), "object not decodable revision=7: no JSON");
    }
}
