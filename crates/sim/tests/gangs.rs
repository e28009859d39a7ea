//! Gangs on a small cluster, from several seeds: each is placed as a whole, none waits while it holds a part of what it
//! needs, and what does not fit as a whole evicts nobody.

use gantry_sim::check::{self, Whole};
use gantry_sim::hollow::ENDS_AFTER;
use gantry_sim::{ControlPlane, HollowNode, HollowSpec, Pace, Stuck, World};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::scheduling::v1::PriorityClass;
use serde_json::{Value, json};
use std::rc::Rc;
use std::time::Duration;

const SPACE: &str = "lab";
const LIMIT: Duration = Duration::from_secs(1800);

/// Runs `play` on three nodes of four cores, under each seed; afterwards everything must hold that always holds.
fn simulate<F>(seeds: std::ops::Range<u64>, play: impl Fn(Rc<ControlPlane>, u64) -> F)
where
    F: Future<Output = Result<(), Stuck>>,
{
    for seed in seeds {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let cluster = Rc::new(ControlPlane::start(seed).await.expect("the control plane starts"));
            let nodes: Vec<HollowNode> = (1..=3).map(|n| cluster.node(HollowSpec::numbered(n), Pace::BRISK)).collect();
            cluster.furnish(SPACE, nodes.len()).await.expect("it starts");
            for (name, value) in [("low", 1), ("high", 1000)] {
                cluster.create::<PriorityClass>("", json!({"metadata": {"name": name}, "value": value})).await;
            }
            let played = play(cluster.clone(), seed).await;
            let changes = cluster.log.changes();
            cluster.stop();
            drop(nodes);
            if let Err(stuck) = played {
                panic!("seed {seed}: {stuck}");
            }
            let wrong = [check::history(&changes), check::walk(&changes, &mut [&mut Whole::default()])].concat();
            assert!(wrong.is_empty(), "seed {seed}: {wrong:#?}");
        });
    }
}

/// A pod of one core; of a gang where one is named, with its minimum.
fn pod(name: &str, gang: Option<(&str, usize)>, priority: &str, ends_after: Option<u64>) -> Value {
    let mut annotations = serde_json::Map::new();
    if let Some((gang, min)) = gang {
        annotations.insert("gantry.io/pod-group".into(), gang.into());
        annotations.insert("gantry.io/pod-group-min-count".into(), min.to_string().into());
    }
    if let Some(milliseconds) = ends_after {
        annotations.insert(ENDS_AFTER.into(), milliseconds.to_string().into());
    }
    json!({
        "metadata": {"name": name, "annotations": annotations},
        "spec": {
            "restartPolicy": "Never", "priorityClassName": priority, "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": "1", "memory": "64Mi"}}}],
        },
    })
}

fn phase(pod: &Value) -> &str {
    pod["status"]["phase"].as_str().unwrap_or_default()
}

/// What the condition of a waiting pod says.
fn complaint(world: &World, name: &str) -> String {
    let pod = world.get("core/pods", &format!("{SPACE}/{name}"));
    let conditions = pod.and_then(|p| p["status"]["conditions"].as_array());
    let scheduled = conditions.into_iter().flatten().find(|c| c["type"] == "PodScheduled");
    scheduled.and_then(|c| c["message"].as_str()).unwrap_or_default().to_owned()
}

/// Sizes of the gangs of one run; together far more than the cluster holds, so that they come in each other's way.
const SIZES: [usize; 9] = [7, 5, 9, 2, 12, 6, 6, 3, 8];

async fn compete(c: Rc<ControlPlane>, seed: u64) -> Result<(), Stuck> {
    // The pods of all gangs come mixed, in an order that the seed decides.
    let mut coming: Vec<(usize, usize)> =
        SIZES.iter().enumerate().flat_map(|(gang, size)| (0..*size).map(move |n| (gang, n))).collect();
    for i in (1..coming.len()).rev() {
        let j = usize::try_from(c.entropy.below(i as u64 + 1)).expect("small");
        coming.swap(i, j);
    }
    for (gang, n) in coming {
        let name = format!("gang-{gang}");
        let object = pod(&format!("{name}-{n}"), Some((&name, SIZES[gang])), "low", Some(5_000 + 500 * seed));
        c.create::<Pod>(SPACE, object).await;
    }
    let total: usize = SIZES.iter().sum();
    let done = move |w: &World| w.all("core/pods").filter(|(_, p)| phase(p) == "Succeeded").count() == total;
    c.log.until("all gangs have run", LIMIT, done).await
}

#[test]
fn gangs_that_compete_never_hold_a_part_and_all_get_their_turn() {
    simulate(1..4, compete);
}

#[test]
fn a_gang_that_is_too_large_waits_and_says_how_much_of_it_fits() {
    simulate(10..12, |c, _| async move {
        for n in 0..20 {
            c.create::<Pod>(SPACE, pod(&format!("big-{n}"), Some(("big", 20)), "high", None)).await;
        }
        let want = "minCount (20) cannot be satisfied: 12 of 20 pods of the group fit: 0/3 nodes are available: \
                    3 Insufficient cpu.";
        let told = |w: &World| (0..20).all(|n| complaint(w, &format!("big-{n}")).starts_with(want));
        c.log.until("all pods of the gang say why they wait", LIMIT, told).await?;
        // It holds nothing: others pass.
        for n in 0..12 {
            c.create::<Pod>(SPACE, pod(&format!("small-{n}"), None, "low", None)).await;
        }
        let placed = |w: &World| w.all("core/pods").filter(|(_, p)| p["spec"]["nodeName"].is_string()).count();
        c.log.until("the others run", LIMIT, move |w| placed(w) == 12).await?;
        // It would evict them all in vain, so it evicts none.
        tokio::time::sleep(Duration::from_secs(400)).await;
        c.log.look(|w| assert_eq!((w.all("core/pods").count(), placed(w)), (32, 12)));
        Ok(())
    });
}

#[test]
fn a_gang_evicts_for_all_of_its_pods_and_completes_itself_after_a_loss() {
    simulate(20..22, |c, _| async move {
        for n in 0..12 {
            c.create::<Pod>(SPACE, pod(&format!("filler-{n}"), None, "low", None)).await;
        }
        let running = |w: &World, what: &str| {
            w.all("core/pods").filter(|(name, p)| name.starts_with(what) && phase(p) == "Running").count()
        };
        c.log.until("the cluster is full", LIMIT, move |w| running(w, "lab/filler") == 12).await?;
        for n in 0..10 {
            c.create::<Pod>(SPACE, pod(&format!("gang-{n}"), Some(("gang", 10)), "high", None)).await;
        }
        c.log.until("the gang has its room", LIMIT, move |w| running(w, "lab/gang") == 10).await?;
        c.log.look(|w| assert_eq!(running(w, "lab/filler"), 2, "more were evicted than had to be"));
        // One is lost: what replaces it is placed, since with the others it is the minimum.
        c.api::<Pod>(SPACE).delete("gang-3", &Default::default()).await.expect("it is deleted");
        c.log.until("it is gone", LIMIT, |w| w.get("core/pods", "lab/gang-3").is_none()).await?;
        c.create::<Pod>(SPACE, pod("gang-10", Some(("gang", 10)), "high", None)).await;
        c.log.until("the gang is whole again", LIMIT, move |w| running(w, "lab/gang") == 10).await
    });
}
