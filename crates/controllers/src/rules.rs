//! What a controller may do, in RBAC's terms.

use k8s_openapi::api::rbac::v1::PolicyRule;

/// One rule of a controller's role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// API groups; the empty string is core.
    pub groups: &'static [&'static str],
    /// Resources and subresources (`pods`, `pods/status`).
    pub resources: &'static [&'static str],
    /// Verbs.
    pub verbs: &'static [&'static str],
    /// Only objects with these names; all where empty.
    pub names: &'static [&'static str],
}

impl Rule {
    /// A rule for all names.
    #[must_use]
    pub const fn new(
        groups: &'static [&'static str],
        resources: &'static [&'static str],
        verbs: &'static [&'static str],
    ) -> Self {
        Self { groups, resources, verbs, names: &[] }
    }
}

impl From<&Rule> for PolicyRule {
    fn from(rule: &Rule) -> Self {
        let own = |texts: &[&str]| texts.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>();
        Self {
            api_groups: Some(own(rule.groups)),
            resources: Some(own(rule.resources)),
            verbs: own(rule.verbs),
            resource_names: (!rule.names.is_empty()).then(|| own(rule.names)),
            non_resource_urls: None,
        }
    }
}

/// Every controller records events, in both API groups that have them.
pub const EVENTS: Rule = Rule::new(&["", "events.k8s.io"], &["events"], &["create", "patch", "update"]);
