//! DefaultTolerationSeconds: a pod stays on a node that is not ready or not reachable for five minutes.

use super::{Attributes, MutatingPlugin, Operation};
use crate::cluster::Cluster;
use async_trait::async_trait;
use gantry_api::k8s_openapi::api::core::v1::{Pod, Toleration};
use gantry_api::meta::status::ApiError;

const SECONDS: i64 = 300;
const KEYS: [&str; 2] = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];

pub(super) struct DefaultTolerationSeconds;

fn tolerates(t: &Toleration, key: &str) -> bool {
    let is = |field: &Option<String>, value: &str| {
        let have = field.as_deref().unwrap_or_default();
        have.is_empty() || have == value
    };
    is(&t.key, key) && is(&t.effect, "NoExecute")
}

fn add_defaults(tolerations: &mut Vec<Toleration>) {
    for key in KEYS {
        if !tolerations.iter().any(|t| tolerates(t, key)) {
            tolerations.push(Toleration {
                key: Some(key.into()),
                operator: Some("Exists".into()),
                effect: Some("NoExecute".into()),
                toleration_seconds: Some(SECONDS),
                ..Default::default()
            });
        }
    }
}

#[async_trait]
impl MutatingPlugin for DefaultTolerationSeconds {
    fn name(&self) -> &'static str {
        "DefaultTolerationSeconds"
    }

    async fn admit(&self, a: &mut Attributes<'_>, _cluster: &Cluster) -> Result<(), ApiError> {
        if !matches!(a.operation, Operation::Create | Operation::Update) || !a.is("", "pods", "") {
            return Ok(());
        }
        if let Some(spec) = a.object_as_mut::<Pod>().and_then(|p| p.spec.as_mut()) {
            add_defaults(spec.tolerations.get_or_insert_default());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_tolerations_are_respected() {
        let t = |key: &str, effect: &str| Toleration {
            key: Some(key.into()),
            effect: Some(effect.into()),
            ..Default::default()
        };
        let cases = [
            (vec![], 2),
            (vec![t(KEYS[0], "NoExecute")], 1),
            (vec![t(KEYS[0], "NoSchedule")], 2),
            (vec![t("", "")], 0),
            (vec![t(KEYS[1], "")], 1),
        ];
        for (mut have, added) in cases {
            let before = have.len();
            add_defaults(&mut have);
            assert_eq!(have.len() - before, added, "{have:?}");
        }
    }
}
