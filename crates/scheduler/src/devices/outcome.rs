//! What is written to a claim: the devices found, with their configuration, and the nodes they can be used on.

use super::allocate::Solved;
use gantry_api::k8s_openapi::api::core::v1::{NodeSelector, NodeSelectorRequirement, NodeSelectorTerm};
use gantry_api::k8s_openapi::api::resource::v1::{
    AllocationResult, DeviceAllocationConfiguration, DeviceAllocationResult, DeviceRequestAllocationResult,
    ResourceClaim,
};
use gantry_api::meta::object::Meta;
use std::collections::BTreeSet;

fn some<T: Clone>(list: &[T]) -> Option<Vec<T>> {
    (!list.is_empty()).then(|| list.to_vec())
}

/// The allocation of a claim.
pub(super) fn result(
    claim: &ResourceClaim,
    solved: &Solved<'_>,
    node: &str,
    share: &dyn Fn() -> String,
) -> Result<AllocationResult, String> {
    let results = solved.devices.iter().map(|(device, want, taken)| DeviceRequestAllocationResult {
        request: want.full_name(),
        driver: device.id.driver.to_string(),
        pool: device.id.pool.to_string(),
        device: device.id.device.to_string(),
        admin_access: want.admin.then_some(true),
        tolerations: some(want.tolerations),
        share_id: taken.map(|_| share()),
        consumed_capacity: taken
            .filter(|amounts| !amounts.is_empty())
            .map(|amounts| amounts.iter().map(|(name, amount)| (name.clone(), amount.to_quantity())).collect()),
        binding_conditions: device.device().binding_conditions.clone(),
        binding_failure_conditions: device.device().binding_failure_conditions.clone(),
        skip_node_operations: None,
    });
    Ok(AllocationResult {
        allocation_timestamp: None,
        devices: Some(DeviceAllocationResult {
            results: Some(results.collect()),
            config: Some(configuration(claim, solved)).filter(|c| !c.is_empty()),
        }),
        node_selector: node_selector(solved, node)
            .map_err(|why| format!("create NodeSelector for claim {}: {why}", claim.metadata.name()))?,
    })
}

/// That of the classes, once for each, then that of the claim, as far as it is for what was chosen.
fn configuration(claim: &ResourceClaim, solved: &Solved<'_>) -> Vec<DeviceAllocationConfiguration> {
    let mut out: Vec<DeviceAllocationConfiguration> = Vec::new();
    let mut seen: Vec<(&str, usize, usize)> = Vec::new();
    for want in &solved.met {
        let Some(class) = want.class.as_deref() else { continue };
        let name = want.full_name();
        if let Some((_, from, to)) = seen.iter().find(|(known, ..)| *known == class.metadata.name()) {
            out[*from..*to].iter_mut().for_each(|c| c.requests.get_or_insert_default().push(name.clone()));
            continue;
        }
        let from = out.len();
        let configs = class.spec.as_ref().and_then(|s| s.config.as_ref());
        out.extend(configs.into_iter().flatten().map(|c| DeviceAllocationConfiguration {
            source: "FromClass".to_owned(),
            requests: Some(vec![name.clone()]),
            opaque: c.opaque.clone(),
        }));
        seen.push((class.metadata.name(), from, out.len()));
    }
    let names: Vec<BTreeSet<String>> = solved
        .met
        .iter()
        .map(|want| {
            let (request, _) = want.names();
            BTreeSet::from([request.to_owned(), want.full_name()])
        })
        .collect();
    let about = |requests: &[String], names: &BTreeSet<String>| requests.iter().any(|r| names.contains(r));
    let configs = claim.spec.as_ref().and_then(|s| s.devices.as_ref()).and_then(|d| d.config.as_ref());
    for config in configs.into_iter().flatten() {
        let requests = config.requests.as_deref().unwrap_or_default();
        if requests.is_empty() || names.iter().any(|n| about(requests, n)) {
            out.push(DeviceAllocationConfiguration {
                source: "FromClaim".to_owned(),
                requests: config.requests.clone(),
                opaque: config.opaque.clone(),
            });
        }
    }
    // What is for all requests names none.
    for config in &mut out {
        if config.requests.as_ref().is_none_or(|r| r.is_empty() || names.iter().all(|n| about(r, n))) {
            config.requests = None;
        }
    }
    out
}

fn is_same(a: &NodeSelectorRequirement, b: &NodeSelectorRequirement) -> bool {
    let values = |r: &NodeSelectorRequirement| -> BTreeSet<String> { r.values.iter().flatten().cloned().collect() };
    a.key == b.key && a.operator == b.operator && values(a) == values(b)
}

fn merge(from: Option<&Vec<NodeSelectorRequirement>>, to: &mut Option<Vec<NodeSelectorRequirement>>) {
    for requirement in from.into_iter().flatten() {
        let known = to.get_or_insert_default();
        if !known.iter().any(|k| is_same(k, requirement)) {
            known.push(requirement.clone());
        }
    }
}

/// The nodes on which all of the devices can be used; `None` for all nodes.
fn node_selector(solved: &Solved<'_>, node: &str) -> Result<Option<NodeSelector>, String> {
    let mut term = NodeSelectorTerm::default();
    for (device, ..) in &solved.devices {
        let (spec, device) = (&device.slice().spec, device.device());
        let (name, selector) = if spec.per_device_node_selection == Some(true) {
            (&device.node_name, &device.node_selector)
        } else {
            (&spec.node_name, &spec.node_selector)
        };
        if name.is_some() || device.binds_to_node == Some(true) {
            let only = NodeSelectorRequirement {
                key: "metadata.name".to_owned(),
                operator: "In".to_owned(),
                values: Some(vec![node.to_owned()]),
            };
            let term = NodeSelectorTerm { match_expressions: None, match_fields: Some(vec![only]) };
            return Ok(Some(NodeSelector { node_selector_terms: vec![term] }));
        }
        match selector.as_ref().map(|s| s.node_selector_terms.as_slice()) {
            None | Some([]) => {}
            Some([one]) => {
                merge(one.match_fields.as_ref(), &mut term.match_fields);
                merge(one.match_expressions.as_ref(), &mut term.match_expressions);
            }
            Some(many) => return Err(format!("unsupported ResourceSlice.NodeSelector with {} terms", many.len())),
        }
    }
    let restricted = term.match_fields.is_some() || term.match_expressions.is_some();
    Ok(restricted.then(|| NodeSelector { node_selector_terms: vec![term] }))
}
