//! Tells nodes by an annotation for how many seconds they may keep Secrets and ConfigMaps without asking again: the longer, the
//! more nodes there are. Agents of ours watch what they need and do not read it; others do.

use crate::config::Setup;
use crate::rules::{EVENTS, Rule};
use async_trait::async_trait;
use gantry_api::meta::object::Meta;
use gantry_client::{Api, Patch, PatchParams};
use gantry_reconcile::{Change, Controller, Error, Informer, Outcome, Queue, runner, wait_synced};
use k8s_openapi::api::core::v1::Node;
use parking_lot::Mutex;
use serde_json::json;
use std::sync::Arc;

/// The annotation.
const TTL: &str = "node.alpha.kubernetes.io/ttl";
const WORKERS: usize = 5;

/// What the controller may do.
pub const RULES: &[Rule] = &[Rule::new(&[""], &["nodes"], &["get", "list", "patch", "update", "watch"]), EVENTS];

/// From how many nodes, up to how many, how many seconds. The steps overlap so that a cluster at a border does not rewrite
/// all of its nodes again and again.
const STEPS: [(usize, usize, u32); 5] =
    [(0, 100, 0), (90, 500, 15), (450, 1000, 30), (900, 2000, 60), (1800, usize::MAX, 300)];

/// The number of nodes and the step it is in.
#[derive(Debug, Default)]
struct Size {
    nodes: usize,
    step: usize,
}

impl Size {
    fn grew(&mut self) {
        self.nodes += 1;
        if self.nodes > STEPS[self.step].1 {
            self.step += 1;
        }
    }

    fn shrank(&mut self) {
        self.nodes = self.nodes.saturating_sub(1);
        if self.nodes < STEPS[self.step].0 {
            self.step -= 1;
        }
    }

    fn seconds(&self) -> u32 {
        STEPS[self.step].2
    }
}

struct Ttl {
    nodes: Informer<Node>,
    size: Arc<Mutex<Size>>,
    setup: Setup,
}

/// Runs the controller.
pub async fn run(setup: Setup) {
    let nodes = setup.informers.get::<Node>();
    let queue = Queue::new(setup.name);
    let size = Arc::new(Mutex::new(Size::default()));
    let (q, counted) = (queue.clone(), size.clone());
    nodes.on_change(move |change| {
        match change {
            Change::Added(_) => counted.lock().grew(),
            Change::Deleted(_) => counted.lock().shrank(),
            Change::Modified { .. } => {}
        }
        // A node whose size class changed is written with its next change: each reports its status often enough.
        let node = change.object();
        if !matches!(change, Change::Deleted(_)) && told(node) != Some(counted.lock().seconds()) {
            q.add(node.metadata.name().to_owned());
        }
    });
    if !wait_synced(&[&nodes], &setup.cancel).await {
        return;
    }
    let cancel = setup.cancel.clone();
    runner::run(Arc::new(Ttl { nodes, size, setup }), queue, WORKERS, cancel).await;
}

fn told(node: &Node) -> Option<u32> {
    node.metadata.annotation(TTL)?.parse().ok()
}

#[async_trait]
impl Controller for Ttl {
    fn name(&self) -> &'static str {
        self.setup.name
    }

    async fn reconcile(&self, key: &str) -> Result<Outcome, Error> {
        let Some(node) = self.nodes.get("", key) else { return Ok(Outcome::done()) };
        let seconds = self.size.lock().seconds();
        if told(&node) == Some(seconds) {
            return Ok(Outcome::done());
        }
        let patch = Patch::Strategic(json!({"metadata": {"annotations": {TTL: seconds.to_string()}}}));
        let api = Api::<Node>::all(self.setup.client.clone());
        match api.patch(key, &PatchParams::default(), &patch).await {
            Ok(_) => Ok(Outcome::done()),
            Err(e) if e.is("NotFound") => Ok(Outcome::done()),
            Err(e) => Err(Error::api(format!("annotate node {key}"), e)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_grows_with_the_cluster_and_does_not_flap_at_a_border() {
        let mut size = Size::default();
        let mut told = vec![size.seconds()];
        let mut note = |size: &Size| {
            if *told.last().unwrap() != size.seconds() {
                told.push(size.seconds());
            }
        };
        for n in 1..=2001 {
            size.grew();
            note(&size);
            assert_eq!(size.seconds() == 0, n <= 100, "{n}");
        }
        for n in (0..2001).rev() {
            size.shrank();
            note(&size);
            assert_eq!(size.seconds() == 0, n < 90, "{n}");
        }
        assert_eq!(told, [0, 15, 30, 60, 300, 60, 30, 15, 0]);
    }
}
