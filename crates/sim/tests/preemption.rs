//! Pods that need the room of others, from several seeds: as many are evicted as are in the way, also where caches are
//! behind, and whoever evicted them gets the room.

use gantry_sim::{ControlPlane, Faults, HollowNode, HollowSpec, Pace, Plan, Stuck, World, check};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::scheduling::v1::PriorityClass;
use serde_json::{Value, json};
use std::time::Duration;

const SPACE: &str = "lab";
const LIMIT: Duration = Duration::from_secs(1800);
const NODES: u8 = 6;
const URGENT: usize = 4;

fn pod(name: &str, priority: &str, cpu: &str) -> Value {
    json!({
        "metadata": {"name": name},
        "spec": {
            "priorityClassName": priority, "terminationGracePeriodSeconds": 2,
            "containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": cpu}}}],
        },
    })
}

fn count(world: &World, prefix: &str, holds: impl Fn(&Value) -> bool) -> usize {
    let named = |pod: &Value| pod["metadata"]["name"].as_str().is_some_and(|name| name.starts_with(prefix));
    world.all("core/pods").filter(|(_, pod)| named(pod) && holds(pod)).count()
}

fn is_running(pod: &Value) -> bool {
    pod["status"]["phase"] == "Running"
}

/// Nodes of four cores, each with two pods of two cores; then pods of three cores, each of which needs the room of two.
async fn play(c: &ControlPlane) -> Result<(), Stuck> {
    for (name, value) in [("low", 1), ("high", 1000)] {
        c.create::<PriorityClass>("", json!({"metadata": {"name": name}, "value": value})).await;
    }
    let low = 2 * usize::from(NODES);
    for n in 0..low {
        c.create::<Pod>(SPACE, pod(&format!("low-{n}"), "low", "2")).await;
    }
    c.log.until("the nodes are full", LIMIT, move |w| count(w, "low", is_running) == low).await?;
    for n in 0..URGENT {
        c.create::<Pod>(SPACE, pod(&format!("urgent-{n}"), "high", "3")).await;
    }
    c.log.until("the urgent pods run", LIMIT, |w| count(w, "urgent", is_running) == URGENT).await?;
    // Whoever is still to be evicted is so by then.
    tokio::time::sleep(Duration::from_secs(400)).await;
    c.log.look(|w| {
        assert_eq!(count(w, "low", is_running), low - 2 * URGENT, "none was evicted in vain");
        assert_eq!(count(w, "", |_| true), low - URGENT);
    });
    Ok(())
}

#[test]
fn nobody_is_evicted_twice_for_the_same_room() {
    for seed in 1..5 {
        let faults = if seed % 2 == 0 { Faults::stale(LIMIT) } else { Faults::default() };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let c = ControlPlane::start_with(Plan { faults, ..Plan::calm(seed) }).await.expect("it starts");
            let nodes: Vec<HollowNode> = (1..=NODES).map(|n| c.node(HollowSpec::numbered(n), Pace::BRISK)).collect();
            c.furnish(SPACE, nodes.len()).await.expect("it starts");
            let played = play(&c).await;
            let changes = c.log.changes();
            c.stop();
            drop(nodes);
            if let Err(stuck) = played {
                panic!("seed {seed}: {stuck}");
            }
            let wrong = check::history(&changes);
            assert!(wrong.is_empty(), "seed {seed}: {wrong:#?}");
        });
    }
}
