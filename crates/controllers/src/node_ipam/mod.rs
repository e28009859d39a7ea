//! Gives each node that has none its share of the cluster's pod addresses, where the controllers are asked to
//! (`--allocate-node-cidrs`): `spec.podCIDRs`, one of each of the cluster's ranges.
//!
//! What nodes brought along or were given before is theirs. A share is free again once its node is deleted. Where nobody
//! knows whether a node was given its share, because there was no answer, the share stays the node's and is tried again.

mod set;

pub use set::Shares;

use crate::config::Setup;
use crate::rules::{EVENTS, Rule};
use async_trait::async_trait;
use gantry_api::meta::object::Meta;
use gantry_client::{Api, Patch, PatchParams};
use gantry_reconcile::{Change, Controller, Error, EventRecorder, Informer, Outcome, Queue, runner, wait_synced};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use parking_lot::Mutex;
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;

const WORKERS: usize = 4;

/// What the controller may do.
pub const RULES: &[Rule] = &[Rule::new(&[""], &["nodes"], &["get", "list", "patch", "watch"]), EVENTS];

/// What shares are cut out of.
#[derive(Clone, Debug, Default)]
pub struct Ranges {
    /// The cluster's ranges of pod addresses, each with the length of a node's share of it.
    pub pods: Vec<(IpNet, u8)>,
    /// Ranges of Services, of which no node may have a part.
    pub services: Vec<IpNet>,
}

impl Ranges {
    /// All shares, those of Services taken.
    ///
    /// # Errors
    /// Where a range cannot be cut.
    pub fn shares(&self) -> Result<Vec<Shares>, String> {
        let mut all = Vec::new();
        for (range, length) in &self.pods {
            let mut shares = Shares::new(*range, *length)?;
            for services in &self.services {
                // Mostly they are elsewhere, and that is well.
                let _ = shares.occupy(services);
            }
            all.push(shares);
        }
        Ok(all)
    }
}

/// Shares, and who has which or may have.
struct State {
    shares: Vec<Shares>,
    held: BTreeMap<String, Vec<IpNet>>,
}

struct Ipam {
    nodes: Informer<Node>,
    state: Arc<Mutex<State>>,
    setup: Setup,
    recorder: EventRecorder,
}

fn ranges_of(node: &Node) -> Vec<&str> {
    node.spec.iter().flat_map(|s| s.pod_cidrs.iter().flatten()).map(String::as_str).collect()
}

impl State {
    /// Notes what a node has.
    fn occupy(&mut self, node: &Node) -> Result<(), String> {
        let name = node.metadata.name();
        // Somebody else than us may have given it others than it was to have.
        self.let_go(name);
        let mut held = Vec::new();
        for (i, text) in ranges_of(node).into_iter().enumerate() {
            let range: IpNet = text.parse().map_err(|_| format!("failed to parse node {name}, CIDR {text}"))?;
            let Some(shares) = self.shares.get_mut(i) else {
                return Err(format!(
                    "node:{name} has an allocated cidr: {text} at index:{i} that does not exist in cluster cidrs configuration"
                ));
            };
            shares
                .occupy(&range)
                .map_err(|e| format!("failed to mark cidr[{range}] at idx [{i}] as occupied for node: {name}: {e}"))?;
            held.push(range);
        }
        self.held.insert(name.to_owned(), held);
        Ok(())
    }

    /// What a node is to have: what it may have been given already, or else one share of each range; none of any where one
    /// has none left, and which that is.
    fn hold(&mut self, node: &str) -> Result<Vec<IpNet>, usize> {
        if let Some(held) = self.held.get(node).filter(|held| !held.is_empty()) {
            return Ok(held.clone());
        }
        let taken = self.take()?;
        self.held.insert(node.to_owned(), taken.clone());
        Ok(taken)
    }

    /// The node is gone, or surely has not been given what is held for it.
    fn let_go(&mut self, node: &str) {
        if let Some(held) = self.held.remove(node) {
            self.give_back(&held);
        }
    }

    /// One share of each range; none of any where one has none left, and which that is.
    fn take(&mut self) -> Result<Vec<IpNet>, usize> {
        let mut taken = Vec::new();
        for i in 0..self.shares.len() {
            if let Some(share) = self.shares[i].take() {
                taken.push(share);
            } else {
                self.give_back(&taken);
                return Err(i);
            }
        }
        Ok(taken)
    }

    fn give_back(&mut self, shares: &[IpNet]) {
        self.shares.iter_mut().zip(shares).for_each(|(all, share)| all.release(share));
    }
}

/// Runs the controller; where shares are not to be given out there is nothing to do.
pub async fn run(setup: Setup) {
    let Some(ranges) = setup.config.node_ranges.clone() else {
        setup.cancel.cancelled().await;
        return;
    };
    let shares = match ranges.shares() {
        Ok(shares) => shares,
        Err(error) => {
            tracing::error!(error, "nodes get no ranges of pod addresses");
            setup.cancel.cancelled().await;
            return;
        }
    };
    let nodes = setup.informers.get::<Node>();
    let state = Arc::new(Mutex::new(State { shares, held: BTreeMap::new() }));
    let queue = Queue::new(setup.name);
    let (q, known) = (queue.clone(), state.clone());
    nodes.on_change(move |change| {
        let node = change.object();
        let name = node.metadata.name();
        if matches!(change, Change::Deleted(_)) {
            known.lock().let_go(name);
        } else if change.old().is_none_or(|old| ranges_of(old) != ranges_of(node)) {
            if ranges_of(node).is_empty() {
                q.add(name.to_owned());
            } else if let Err(error) = known.lock().occupy(node) {
                // It would not go better a second time.
                tracing::warn!(error, "a node has pod addresses that are not the cluster's");
            }
        }
    });
    // Before anything is given out, it is known what is not to be: the handler has been told of every node by then.
    if !wait_synced(&[&nodes], &setup.cancel).await {
        return;
    }
    let (recorder, cancel) = (setup.recorder("cidrAllocator"), setup.cancel.clone());
    runner::run(Arc::new(Ipam { nodes, state, setup, recorder }), queue, WORKERS, cancel).await;
}

/// Whether a write that failed in this way may have been done nevertheless.
fn may_be_done(error: &gantry_client::Error) -> bool {
    !matches!(error, gantry_client::Error::Api(answer) if answer.code < 500)
}

#[async_trait]
impl Controller for Ipam {
    fn name(&self) -> &'static str {
        self.setup.name
    }

    async fn reconcile(&self, key: &str) -> Result<Outcome, Error> {
        let Some(node) = self.nodes.get("", key).filter(|n| !n.metadata.is_deleting()) else {
            return Ok(Outcome::done());
        };
        if !ranges_of(&node).is_empty() {
            return Ok(Outcome::done());
        }
        let tell = |status: &str| {
            self.recorder.warning(&*node, status, &format!("Node {key} status is now: {status}"));
        };
        let held = self.state.lock().hold(key);
        let taken = held.map_err(|i| {
            tell("CIDRNotAvailable");
            let why = "CIDR allocation failed; there are no remaining CIDRs left to allocate in the accepted range";
            Error::Other(format!("failed to allocate cidr from cluster cidr at idx:{i}: {why}"))
        })?;
        let all: Vec<String> = taken.iter().map(ToString::to_string).collect();
        let patch = json!({
            "metadata": {"uid": node.metadata.uid()},
            "spec": {"podCIDR": all.first(), "podCIDRs": all},
        });
        let api = Api::<Node>::all(self.setup.client.clone());
        match api.patch(key, &PatchParams::default(), &Patch::Strategic(patch)).await {
            Ok(_) => Ok(Outcome::done()),
            Err(e) => {
                let mut state = self.state.lock();
                if !may_be_done(&e) && state.held.get(key) == Some(&taken) {
                    state.let_go(key);
                }
                drop(state);
                if e.is("NotFound") || e.is("Conflict") {
                    return Ok(Outcome::done());
                }
                // Somebody else may have given it one: what the server has is what counts.
                if !e.is("Invalid") {
                    tell("CIDRAssignmentFailed");
                }
                Err(Error::api(format!("set the pod ranges of node {key}"), e))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn node(name: &str, ranges: &[&str]) -> Node {
        serde_json::from_value(json!({"metadata": {"name": name}, "spec": {"podCIDRs": ranges}})).unwrap()
    }

    #[test]
    fn a_node_gets_one_of_each_or_none() {
        let pods = vec![(net("10.244.0.0/22"), 24), (net("fd00::/63"), 64)];
        let ranges = Ranges { pods, services: vec![net("10.244.1.0/24"), net("fd01::/112")] };
        let mut state = State { shares: ranges.shares().unwrap(), held: BTreeMap::new() };
        assert_eq!(state.take(), Ok(vec![net("10.244.0.0/24"), net("fd00::/64")]));
        assert_eq!(state.take(), Ok(vec![net("10.244.2.0/24"), net("fd00:0:0:1::/64")]));
        assert_eq!(state.take(), Err(1));
        state.give_back(&[net("10.244.0.0/24"), net("fd00::/64")]);
        assert_eq!(state.take(), Ok(vec![net("10.244.0.0/24"), net("fd00::/64")]), "what was taken in vain came back");
    }

    #[test]
    fn what_nodes_have_is_theirs() {
        let ranges = Ranges { pods: vec![(net("10.244.0.0/23"), 24)], services: Vec::new() };
        let mut state = State { shares: ranges.shares().unwrap(), held: BTreeMap::new() };
        state.occupy(&node("a", &["10.244.0.0/24"])).unwrap();
        assert_eq!(state.take(), Ok(vec![net("10.244.1.0/24")]));
        let told = state.occupy(&node("b", &["10.9.0.0/24"])).unwrap_err();
        assert!(told.starts_with("failed to mark cidr[10.9.0.0/24] at idx [0] as occupied for node: b: "), "{told}");
        let told = state.occupy(&node("c", &["10.244.0.0/24", "fd00::/64"])).unwrap_err();
        assert!(told.ends_with("at index:1 that does not exist in cluster cidrs configuration"), "{told}");
    }

    #[test]
    fn what_a_node_may_have_been_given_stays_its_own() {
        let ranges = Ranges { pods: vec![(net("10.244.0.0/23"), 24)], services: Vec::new() };
        let mut state = State { shares: ranges.shares().unwrap(), held: BTreeMap::new() };
        let (first, second) = (vec![net("10.244.0.0/24")], vec![net("10.244.1.0/24")]);
        assert_eq!(state.hold("a"), Ok(first.clone()));
        assert_eq!(state.hold("a"), Ok(first.clone()), "tried again, the same");
        assert_eq!(state.hold("b"), Ok(second.clone()));
        assert_eq!(state.hold("c"), Err(0));
        // It turns out to have been given another one, which a later node's now cannot be.
        state.let_go("b");
        state.occupy(&node("a", &["10.244.1.0/24"])).unwrap();
        assert_eq!(state.hold("c"), Ok(first));
        state.let_go("a");
        assert_eq!(state.hold("d"), Ok(second));
    }

    #[test]
    fn an_answer_that_refuses_is_certain_and_no_other() {
        let api = |code, reason| gantry_client::Error::Api(gantry_client::ApiError::new(code, reason, ""));
        for (code, reason) in [(404, "NotFound"), (409, "Conflict"), (422, "Invalid"), (429, "TooManyRequests")] {
            assert!(!may_be_done(&api(code, reason)), "{reason}");
        }
        for (code, reason) in [(500, "InternalError"), (500, "ServerTimeout"), (504, "Timeout")] {
            assert!(may_be_done(&api(code, reason)), "{reason}");
        }
        let broken = gantry_client::TransportError { context: String::new(), message: String::new() };
        assert!(may_be_done(&gantry_client::Error::Transport(broken)));
    }
}
