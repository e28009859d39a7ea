//! Which requests a webhook or policy looks at: rules, namespace and object selectors
//! (`k8s.io/apiserver/pkg/admission/plugin/webhook/predicates`).

use super::{Attributes, Operation};
use crate::cluster::Cluster;
use gantry_api::k8s_openapi::api::admissionregistration::v1::{
    MatchResources, NamedRuleWithOperations, RuleWithOperations,
};
use gantry_api::k8s_openapi::api::core::v1::Namespace;
use gantry_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use gantry_api::kind::Resource;
use gantry_api::meta::labels::{Labels, Selector};
use gantry_api::meta::status::ApiError;

/// A rule of a webhook or policy.
#[derive(Clone, Debug)]
struct Rule {
    operations: Vec<String>,
    groups: Vec<String>,
    versions: Vec<String>,
    resources: Vec<String>,
    scope: String,
    /// Empty for all.
    names: Vec<String>,
}

/// A rule of a webhook is one of a policy without names.
fn unnamed(r: &RuleWithOperations) -> NamedRuleWithOperations {
    let RuleWithOperations { api_groups, api_versions, operations, resources, scope } = r.clone();
    NamedRuleWithOperations { api_groups, api_versions, operations, resources, scope, resource_names: None }
}

impl From<NamedRuleWithOperations> for Rule {
    fn from(r: NamedRuleWithOperations) -> Self {
        Self {
            operations: r.operations.unwrap_or_default(),
            groups: r.api_groups.unwrap_or_default(),
            versions: r.api_versions.unwrap_or_default(),
            resources: r.resources.unwrap_or_default(),
            scope: r.scope.unwrap_or_else(|| "*".into()),
            names: r.resource_names.unwrap_or_default(),
        }
    }
}

fn has(items: &[String], wanted: &str) -> bool {
    items.iter().any(|i| i == "*" || i == wanted)
}

impl Rule {
    /// Whether the rule holds for the request, were it addressed to `resource`.
    fn holds(&self, attributes: &Attributes<'_>, resource: &dyn Resource) -> bool {
        let info = resource.info();
        let is_namespace = info.group.is_empty() && info.plural == "namespaces";
        let cluster_scoped = is_namespace || attributes.namespace.is_empty();
        let in_scope = match self.scope.as_str() {
            "Namespaced" => !cluster_scoped,
            "Cluster" => cluster_scoped,
            _ => true,
        };
        let resource = |pattern: &String| {
            let (r, s) = pattern.split_once('/').unwrap_or((pattern, ""));
            (r == "*" || r == info.plural) && (s == "*" || s == attributes.subresource)
        };
        in_scope
            && has(&self.operations, attributes.operation.as_str())
            && has(&self.groups, info.group)
            && has(&self.versions, info.version)
            && self.resources.iter().any(resource)
            && (self.names.is_empty() || self.names.iter().any(|n| n == attributes.name))
    }
}

/// What a webhook, policy or binding looks at.
#[derive(Clone, Debug)]
pub struct Criteria {
    /// None for everything.
    rules: Option<Vec<Rule>>,
    excluded: Vec<Rule>,
    namespaces: Result<Selector, String>,
    objects: Result<Selector, String>,
    equivalent: bool,
}

/// A request that is looked at.
#[derive(Clone, Copy)]
pub struct Matched {
    /// The resource of the rule that holds, where it is another view of the one addressed.
    pub equivalent: Option<&'static dyn Resource>,
}

fn selector(selector: Option<&LabelSelector>) -> Result<Selector, String> {
    Selector::from_label_selector(Some(selector.unwrap_or(&LabelSelector::default())))
}

impl Criteria {
    /// Of a webhook.
    #[must_use]
    pub fn of_webhook(
        rules: Option<&Vec<RuleWithOperations>>,
        match_policy: Option<&str>,
        namespaces: Option<&LabelSelector>,
        objects: Option<&LabelSelector>,
    ) -> Self {
        Self {
            rules: Some(rules.into_iter().flatten().map(|r| unnamed(r).into()).collect()),
            excluded: Vec::new(),
            namespaces: selector(namespaces),
            objects: selector(objects),
            equivalent: match_policy == Some("Equivalent"),
        }
    }

    /// Of a policy or binding; without resource rules it looks at everything.
    #[must_use]
    pub fn of_policy(m: &MatchResources) -> Self {
        let rules = |r: Option<&Vec<NamedRuleWithOperations>>| -> Vec<Rule> {
            r.into_iter().flatten().cloned().map(Rule::from).collect()
        };
        let included = rules(m.resource_rules.as_ref());
        Self {
            rules: (!included.is_empty()).then_some(included),
            excluded: rules(m.exclude_resource_rules.as_ref()),
            namespaces: selector(m.namespace_selector.as_ref()),
            objects: selector(m.object_selector.as_ref()),
            equivalent: m.match_policy.as_deref() == Some("Equivalent"),
        }
    }

    /// Whether the request is looked at, and as what.
    ///
    /// # Errors
    /// Where the namespace cannot be read or a selector makes no sense.
    pub async fn matches(&self, a: &Attributes<'_>, cluster: &Cluster) -> Result<Option<Matched>, ApiError> {
        // The rules are the cheapest to look at; upstream's order shows only in which errors win, and those of
        // selectors are answered only where the rules hold.
        let Some(matched) = self.matched_by_rules(a, cluster) else { return Ok(None) };
        let objects = self.objects.as_ref().map_err(ApiError::internal)?;
        if !objects.is_empty() && !selects_object(objects, a) {
            return Ok(None);
        }
        let namespaces = self.namespaces.as_ref().map_err(ApiError::internal)?;
        Ok(selects_namespace(namespaces, a, cluster).await?.then_some(matched))
    }

    fn matched_by_rules(&self, a: &Attributes<'_>, cluster: &Cluster) -> Option<Matched> {
        if self.rule_of(&self.excluded, a, cluster).is_some() {
            return None;
        }
        match &self.rules {
            None => Some(Matched { equivalent: None }),
            Some(rules) => self.rule_of(rules, a, cluster),
        }
    }

    fn rule_of(&self, rules: &[Rule], a: &Attributes<'_>, cluster: &Cluster) -> Option<Matched> {
        if rules.iter().any(|r| r.holds(a, a.resource)) {
            return Some(Matched { equivalent: None });
        }
        if !self.equivalent || rules.is_empty() {
            return None;
        }
        let others = cluster.objects.views_of(a.resource);
        rules.iter().find_map(|rule| {
            let found = others.iter().copied().find(|other| rule.holds(a, *other))?;
            Some(Matched { equivalent: Some(found) })
        })
    }
}

fn selects_object(selector: &Selector, a: &Attributes<'_>) -> bool {
    // A Scale carries no labels.
    let none = Labels::new();
    let holds = |labels: Option<&Labels>| {
        let labels = if a.subresource == "scale" { None } else { labels };
        selector.matches(labels.unwrap_or(&none))
    };
    let new = a.object.as_deref().is_some_and(|o| holds(o.meta().labels.as_ref()));
    new || a.old_object.is_some_and(|o| holds(o.meta().labels.as_ref()))
}

async fn selects_namespace(selector: &Selector, a: &Attributes<'_>, cluster: &Cluster) -> Result<bool, ApiError> {
    let info = a.resource.info();
    let is_namespace = info.group.is_empty() && info.plural == "namespaces";
    if selector.is_empty() || (a.namespace.is_empty() && !is_namespace) {
        return Ok(true);
    }
    if is_namespace && a.subresource.is_empty() && matches!(a.operation, Operation::Create | Operation::Update) {
        let labels = a.object.as_deref().and_then(|o| o.meta().labels.clone());
        return Ok(selector.matches(&labels.unwrap_or_default()));
    }
    let name = if is_namespace { a.name } else { a.namespace };
    let namespace = namespace(cluster, name).await?;
    Ok(selector.matches(&namespace.metadata.labels.unwrap_or_default()))
}

/// A namespace, however new.
///
/// # Errors
/// 404 where there is none.
pub async fn namespace(cluster: &Cluster, name: &str) -> Result<Namespace, ApiError> {
    let mut found = cluster.get::<Namespace>("", name).await?;
    if found.is_none() {
        found = cluster.get_latest::<Namespace>("", name).await?;
    }
    found.ok_or_else(|| ApiError::not_found("", "namespaces", name))
}
