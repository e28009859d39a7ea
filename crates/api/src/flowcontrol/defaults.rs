//! The objects every cluster has: mandatory ones, whose spec is fixed, and suggested ones, which are kept as they are
//! here
//! for as long as their annotation says so.
//!
//! Source: `k8s.io/apiserver/pkg/apis/flowcontrol/bootstrap`.

use k8s_openapi::api::flowcontrol::v1::{
    ExemptPriorityLevelConfiguration, FlowDistinguisherMethod, FlowSchema, FlowSchemaSpec, GroupSubject, LimitResponse,
    LimitedPriorityLevelConfiguration, NonResourcePolicyRule, PolicyRulesWithSubjects, PriorityLevelConfiguration,
    PriorityLevelConfigurationReference, PriorityLevelConfigurationSpec, QueuingConfiguration, ResourcePolicyRule,
    ServiceAccountSubject, Subject, UserSubject,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// `true` lets the server keep the object as it is here, `false` leaves it to its owner.
pub const AUTO_UPDATE: &str = "apf.kubernetes.io/autoupdate-spec";
/// The level of requests that never wait.
pub const EXEMPT: &str = "exempt";
/// The level and schema of what nothing else matches.
pub const CATCH_ALL: &str = "catch-all";

const EVERYBODY: &[&str] = &["system:unauthenticated", "system:authenticated"];
const ALL: &[&str] = &["*"];

fn meta(name: &str) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.to_owned()),
        annotations: Some([(AUTO_UPDATE.to_owned(), "true".to_owned())].into()),
        ..ObjectMeta::default()
    }
}

/// A level that waits in queues, or refuses where `queues` is None: (number of queues, hand size).
fn limited(name: &str, shares: i32, lendable: i32, queues: Option<(i32, i32)>) -> PriorityLevelConfiguration {
    let queuing = queues.map(|(queues, hand)| QueuingConfiguration {
        queues: Some(queues),
        hand_size: Some(hand),
        queue_length_limit: Some(50),
    });
    PriorityLevelConfiguration {
        metadata: meta(name),
        spec: PriorityLevelConfigurationSpec {
            type_: "Limited".to_owned(),
            limited: Some(LimitedPriorityLevelConfiguration {
                nominal_concurrency_shares: Some(shares),
                lendable_percent: Some(lendable),
                borrowing_limit_percent: None,
                limit_response: LimitResponse {
                    type_: if queuing.is_some() { "Queue" } else { "Reject" }.to_owned(),
                    queuing,
                },
            }),
            exempt: None,
        },
        status: None,
    }
}

/// Levels that cannot be changed or done without.
#[must_use]
pub fn mandatory_priority_levels() -> Vec<PriorityLevelConfiguration> {
    let exempt = PriorityLevelConfiguration {
        metadata: meta(EXEMPT),
        spec: PriorityLevelConfigurationSpec {
            type_: "Exempt".to_owned(),
            exempt: Some(ExemptPriorityLevelConfiguration {
                nominal_concurrency_shares: Some(0),
                lendable_percent: Some(0),
            }),
            limited: None,
        },
        status: None,
    };
    vec![limited(CATCH_ALL, 5, 0, None), exempt]
}

/// Levels a cluster starts with.
#[must_use]
pub fn suggested_priority_levels() -> Vec<PriorityLevelConfiguration> {
    vec![
        limited("system", 30, 33, Some((64, 6))),
        limited("node-high", 40, 25, Some((64, 6))),
        limited("leader-election", 10, 0, Some((16, 4))),
        limited("workload-high", 40, 50, Some((128, 6))),
        limited("workload-low", 100, 90, Some((128, 6))),
        limited("global-default", 20, 50, Some((128, 6))),
    ]
}

fn groups(names: &[&str]) -> Vec<Subject> {
    let of = |n: &&str| Subject {
        kind: "Group".to_owned(),
        group: Some(GroupSubject { name: (*n).to_owned() }),
        ..Subject::default()
    };
    names.iter().map(of).collect()
}

fn users(names: &[&str]) -> Vec<Subject> {
    let of = |n: &&str| Subject {
        kind: "User".to_owned(),
        user: Some(UserSubject { name: (*n).to_owned() }),
        ..Subject::default()
    };
    names.iter().map(of).collect()
}

fn kube_system_accounts() -> Vec<Subject> {
    vec![Subject {
        kind: "ServiceAccount".to_owned(),
        service_account: Some(ServiceAccountSubject { name: "*".to_owned(), namespace: "kube-system".to_owned() }),
        ..Subject::default()
    }]
}

fn list(values: &[&str]) -> Vec<String> {
    values.iter().map(|v| (*v).to_owned()).collect()
}

fn resources(verbs: &[&str], group: &str, names: &[&str], cluster: bool) -> ResourcePolicyRule {
    ResourcePolicyRule {
        verbs: list(verbs),
        api_groups: list(&[group]),
        resources: list(names),
        namespaces: Some(list(ALL)),
        cluster_scope: cluster.then_some(true),
    }
}

fn paths(verbs: &[&str], urls: &[&str]) -> NonResourcePolicyRule {
    NonResourcePolicyRule { verbs: list(verbs), non_resource_urls: list(urls) }
}

/// A rule for every request of these subjects.
fn everything(subjects: Vec<Subject>) -> PolicyRulesWithSubjects {
    PolicyRulesWithSubjects {
        subjects,
        resource_rules: Some(vec![resources(ALL, "*", ALL, true)]),
        non_resource_rules: Some(vec![paths(ALL, ALL)]),
    }
}

fn some_resources(subjects: Vec<Subject>, rules: Vec<ResourcePolicyRule>) -> PolicyRulesWithSubjects {
    PolicyRulesWithSubjects { subjects, resource_rules: Some(rules), non_resource_rules: None }
}

fn schema(name: &str, level: &str, precedence: i32, by: &str, rules: PolicyRulesWithSubjects) -> FlowSchema {
    FlowSchema {
        metadata: meta(name),
        spec: FlowSchemaSpec {
            priority_level_configuration: PriorityLevelConfigurationReference { name: level.to_owned() },
            matching_precedence: Some(precedence),
            distinguisher_method: (!by.is_empty()).then(|| FlowDistinguisherMethod { type_: by.to_owned() }),
            rules: Some(vec![rules]),
        },
        status: None,
    }
}

/// Schemas that cannot be changed or done without.
#[must_use]
pub fn mandatory_flow_schemas() -> Vec<FlowSchema> {
    vec![
        schema(EXEMPT, EXEMPT, 1, "", everything(groups(&["system:masters"]))),
        schema(CATCH_ALL, CATCH_ALL, 10_000, "ByUser", everything(groups(EVERYBODY))),
    ]
}

/// Schemas a cluster starts with.
#[must_use]
pub fn suggested_flow_schemas() -> Vec<FlowSchema> {
    let leases = |verbs: &[&str]| resources(verbs, "coordination.k8s.io", &["leases"], false);
    let nodes = groups(&["system:nodes"]);
    let mut electors = users(&["system:kube-controller-manager", "system:kube-scheduler"]);
    electors.extend(kube_system_accounts());
    let probes = PolicyRulesWithSubjects {
        subjects: groups(EVERYBODY),
        resource_rules: None,
        non_resource_rules: Some(vec![paths(&["get"], &["/healthz", "/readyz", "/livez"])]),
    };
    let node_health = vec![resources(ALL, "", &["nodes", "nodes/status"], true), leases(ALL)];
    let elections = some_resources(electors, vec![leases(&["get", "create", "update"])]);
    vec![
        schema("system-nodes", "system", 500, "ByUser", everything(nodes.clone())),
        schema("system-node-high", "node-high", 400, "ByUser", some_resources(nodes, node_health)),
        schema("probes", EXEMPT, 2, "", probes),
        schema("system-leader-election", "leader-election", 100, "ByUser", elections),
        schema(
            "kube-controller-manager",
            "workload-high",
            800,
            "ByNamespace",
            everything(users(&["system:kube-controller-manager"])),
        ),
        schema("kube-scheduler", "workload-high", 800, "ByNamespace", everything(users(&["system:kube-scheduler"]))),
        schema("kube-system-service-accounts", "workload-high", 900, "ByNamespace", everything(kube_system_accounts())),
        schema("service-accounts", "workload-low", 9000, "ByUser", everything(groups(&["system:serviceaccounts"]))),
        schema("global-default", "global-default", 9900, "ByUser", everything(groups(EVERYBODY))),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::Kind;

    #[test]
    fn they_obey_the_rules_and_need_no_defaults() {
        let levels: Vec<_> = mandatory_priority_levels().into_iter().chain(suggested_priority_levels()).collect();
        for level in &levels {
            let mut defaulted = level.clone();
            defaulted.set_defaults();
            assert_eq!(defaulted, *level);
            assert!(level.validate().is_empty(), "{:?}", level.validate());
        }
        for schema in mandatory_flow_schemas().into_iter().chain(suggested_flow_schemas()) {
            let mut defaulted = schema.clone();
            defaulted.set_defaults();
            assert_eq!(defaulted, schema);
            assert!(schema.validate().is_empty(), "{:?}", schema.validate());
            let level = &schema.spec.priority_level_configuration.name;
            assert!(levels.iter().any(|l| l.metadata.name.as_ref() == Some(level)), "{level}");
        }
    }
}
