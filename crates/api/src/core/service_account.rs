//! ServiceAccount: an identity for processes in pods.

use crate::kind::{Column, Context, Kind, ResourceInfo, Subresource, Verb};
use crate::meta::object::Meta;
use crate::meta::table;
use k8s_openapi::api::core::v1::{ObjectReference, ServiceAccount};
use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

const ENFORCE_MOUNTABLE: &str = "kubernetes.io/enforce-mountable-secrets";

/// Of a secret reference only the name means anything.
fn keep_names(account: &mut ServiceAccount) {
    for s in account.secrets.iter_mut().flatten() {
        *s = ObjectReference { name: s.name.take(), ..Default::default() };
    }
}

impl Kind for ServiceAccount {
    const INFO: ResourceInfo = ResourceInfo {
        short_names: &["sa"],
        subresources: &[Subresource {
            name: "token",
            gvk: Some(("authentication.k8s.io", "v1", "TokenRequest")),
            verbs: &[Verb::Create],
        }],
        ..ResourceInfo::new("", "v1", "ServiceAccount", "serviceaccounts", "serviceaccount", true)
    };
    const COLUMNS: &'static [Column] =
        &[table::NAME, table::text_column("Secrets", "How many secrets pods of the account may use.", 0), table::AGE];
    crate::kind_codec!();

    fn prepare_for_create(&mut self, _cx: &Context<'_>) {
        keep_names(self);
    }
    fn prepare_for_update(&mut self, _old: &Self, _cx: &Context<'_>) {
        keep_names(self);
    }
    fn warnings(&self, old: Option<&Self>) -> Vec<String> {
        let had = old.is_some_and(|o| o.metadata.annotation(ENFORCE_MOUNTABLE).is_some());
        if self.metadata.annotation(ENFORCE_MOUNTABLE).is_none() || had {
            return Vec::new();
        }
        vec![format!(
            "metadata.annotations[{ENFORCE_MOUNTABLE}]: deprecated in v1.32+; prefer separate namespaces to isolate access to \
             mounted secrets"
        )]
    }
    fn cells(&self, now: Timestamp) -> Vec<Value> {
        let secrets = self.secrets.as_ref().map_or(0, Vec::len);
        vec![self.metadata.name().into(), secrets.into(), table::age(&self.metadata, now).into()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn secret_references_keep_only_names() {
        let mut a =
            <ServiceAccount as Kind>::from_value(json!({"secrets": [{"name": "s", "namespace": "x"}]})).unwrap();
        a.prepare_for_create(&Context { now: Timestamp::UNIX_EPOCH, username: "" });
        assert_eq!(Kind::to_value(&a)["secrets"], json!([{"name": "s"}]));
        assert_eq!(a.cells(Timestamp::UNIX_EPOCH)[1], 1);
        a.metadata.annotations = Some([(ENFORCE_MOUNTABLE.to_owned(), "true".to_owned())].into());
        assert_eq!(a.warnings(None).len(), 1);
        assert_eq!(a.warnings(Some(&a)).len(), 0);
    }
}
