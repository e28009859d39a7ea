//! PodNodeSelector: pods go to the nodes that their namespace's annotation or the configuration file selects.

use super::{Attributes, MutatingPlugin, Operation, ValidatingPlugin};
use crate::cluster::Cluster;
use async_trait::async_trait;
use gantry_api::k8s_openapi::api::core::v1::{Namespace, Pod};
use gantry_api::meta::labels::Labels;
use gantry_api::meta::names;
use gantry_api::meta::object::Meta;
use gantry_api::meta::status::ApiError;
use std::collections::BTreeMap;

const ANNOTATION: &str = "scheduler.alpha.kubernetes.io/node-selector";
/// For namespaces without the annotation, in the configuration file.
const DEFAULT: &str = "clusterDefaultNodeSelector";

/// With selectors by namespace, of which a pod's own may be no more than a part.
pub(super) struct PodNodeSelector(pub(super) BTreeMap<String, String>);

fn is_concerned(a: &Attributes<'_>) -> bool {
    a.operation == Operation::Create && a.is("", "pods", "")
}

/// `key=value,key=value` as labels.
fn parse(text: &str) -> Result<Labels, String> {
    let mut labels = Labels::new();
    for pair in text.split(',').filter(|_| !text.is_empty()) {
        let parts: Vec<&str> = pair.split('=').collect();
        let [key, value] = parts[..] else { return Err(format!("invalid selector: [{}]", parts.join(" "))) };
        let (key, value) = (key.trim(), value.trim());
        if let Some(why) = names::qualified_name(key).first() {
            return Err(format!("invalid label key {key:?}: {why}"));
        }
        if let Some(why) = names::label_value(value).first() {
            return Err(format!("invalid label value {value:?}: {why}"));
        }
        labels.insert(key.to_owned(), value.to_owned());
    }
    Ok(labels)
}

/// An answer that is the server's fault, as upstream's is where a selector cannot be read.
fn unreadable(why: String) -> ApiError {
    ApiError::new(500, "", why)
}

fn conflict(a: &Labels, b: &Labels) -> bool {
    a.iter().any(|(key, value)| b.get(key).is_some_and(|other| other != value))
}

impl PodNodeSelector {
    fn configured(&self, name: &str) -> Result<Labels, ApiError> {
        parse(self.0.get(name).map_or("", String::as_str)).map_err(unreadable)
    }

    async fn of_namespace(&self, a: &Attributes<'_>, cluster: &Cluster) -> Result<Labels, ApiError> {
        let Some(namespace) = cluster.shared::<Namespace>("", a.namespace).await? else {
            return Err(ApiError::internal(format!("namespace {} does not exist", a.namespace)));
        };
        match namespace.metadata.annotation(ANNOTATION) {
            Some(text) => parse(text).map_err(unreadable),
            None => self.configured(DEFAULT),
        }
    }

    async fn check(&self, a: &Attributes<'_>, cluster: &Cluster) -> Result<Labels, ApiError> {
        let wanted = self.of_namespace(a, cluster).await?;
        let spec = a.object_as::<Pod>().and_then(|p| p.spec.as_ref());
        let own = spec.and_then(|s| s.node_selector.as_ref());
        if own.is_some_and(|own| conflict(&wanted, own)) {
            return Err(a.forbidden("pod node label selector conflicts with its namespace node label selector"));
        }
        Ok(wanted)
    }
}

#[async_trait]
impl MutatingPlugin for PodNodeSelector {
    fn name(&self) -> &'static str {
        "PodNodeSelector"
    }

    async fn admit(&self, a: &mut Attributes<'_>, cluster: &Cluster) -> Result<(), ApiError> {
        if !is_concerned(a) {
            return Ok(());
        }
        let wanted = self.check(a, cluster).await?;
        if let Some(spec) = a.object_as_mut::<Pod>().and_then(|p| p.spec.as_mut())
            && !wanted.is_empty()
        {
            spec.node_selector.get_or_insert_default().extend(wanted);
        }
        Ok(())
    }
}

#[async_trait]
impl ValidatingPlugin for PodNodeSelector {
    fn name(&self) -> &'static str {
        "PodNodeSelector"
    }

    async fn validate(&self, a: &mut Attributes<'_>, cluster: &Cluster) -> Result<(), ApiError> {
        if !is_concerned(a) {
            return Ok(());
        }
        self.check(a, cluster).await?;
        let allowed = self.configured(a.namespace)?;
        let spec = a.object_as::<Pod>().and_then(|p| p.spec.as_ref());
        let mut own = spec.iter().flat_map(|s| s.node_selector.iter().flatten());
        if allowed.is_empty() || own.all(|(key, value)| allowed.get(key) == Some(value)) {
            return Ok(());
        }
        Err(a.forbidden("pod node label selector labels conflict with its namespace whitelist"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_are_read() {
        assert_eq!(parse(""), Ok(Labels::new()));
        assert_eq!(parse("a=b, c=").map(|l| l.len()), Ok(2));
        assert_eq!(parse("a").unwrap_err(), "invalid selector: [a]");
        assert!(parse("a b=c").unwrap_err().starts_with("invalid label key \"a b\""));
        let labels = |text: &str| parse(text).unwrap();
        assert!(conflict(&labels("a=1,b=2"), &labels("b=3")) && !conflict(&labels("a=1"), &labels("b=3,a=1")));
    }
}
