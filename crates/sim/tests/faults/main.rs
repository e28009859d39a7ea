//! Many small worlds from many seeds, in each a dozen tenants at once, while the control plane dies between two writes,
//! its caches are behind, its requests fail or are done and not answered, its watches break, and nodes die. Everything
//! comes about as declared all the same, and nothing that may never happen ever does.
//!
//! `GANTRY_SIM_SEEDS=a..b` plays other seeds, `GANTRY_SIM_EVERY=1` has the control plane die at every write instead
//! of at some, `GANTRY_SIM_LOG=path` writes everything that was ever stored, `GANTRY_SIM_TRACE=debug` has components
//! speak.

mod driver;
mod surroundings;
mod tenants;

use driver::Driver;
use gantry_api::entropy::Entropy;
use gantry_sim::check::{
    self, Claims, CountedOnce, OnSchedule, OnePerNode, Ordered, Rollouts, Rule, Tolerated, Weather, Whole,
    WithinBounds, WithinBudget, WithinQuota,
};
use gantry_sim::control_plane::BEGIN;
use gantry_sim::{ControlPlane, Faults, HollowNode, HollowSpec, Pace, Plan};
use k8s_openapi::api::core::v1::Taint;
use k8s_openapi::api::storage::v1::StorageClass;
use serde_json::json;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::Duration;
use surroundings::{KEPT, KEPT_NODE};
use tenants::Tenant;

const PACE: Pace = Pace::millis((100, 1500), (100, 2500), (50, 3000));
/// In real time: a world that takes longer stands still, and its time with it.
const STANDS_STILL: Duration = Duration::from_secs(900);
/// Faults end after this long, and all must be well then.
const FAULTY_FOR: Duration = Duration::from_secs(240);

/// What goes wrong in a world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kindness {
    Calm,
    Stale,
    Lossy,
    Mortal,
    Wild,
}

const KINDS: [Kindness; 5] = [Kindness::Mortal, Kindness::Stale, Kindness::Lossy, Kindness::Wild, Kindness::Calm];

impl Kindness {
    fn weather(self) -> Weather {
        let behind = matches!(self, Kindness::Stale | Kindness::Lossy | Kindness::Wild);
        Weather {
            stale: behind,
            unanswered: behind && self != Kindness::Stale,
            rough: self == Kindness::Wild,
            deaths: self.deaths(),
        }
    }

    fn deaths(self) -> u32 {
        match self {
            Kindness::Mortal => 5,
            Kindness::Wild => 2,
            Kindness::Calm | Kindness::Stale | Kindness::Lossy => 0,
        }
    }

    fn plan(self, seed: u64) -> Plan {
        let dice = Entropy::seeded(seed ^ 0x5eed);
        let after = |n: u32| if n == 0 { 280 } else { 5 };
        let deaths = (0..self.deaths()).map(|n| after(n) + dice.below(250)).collect();
        let faults = match self {
            Kindness::Calm | Kindness::Mortal => Faults::default(),
            Kindness::Stale => Faults::stale(FAULTY_FOR),
            Kindness::Lossy | Kindness::Wild => Faults::many(FAULTY_FOR),
        };
        Plan { faults, deaths, ..Plan::calm(seed) }
    }
}

/// Three nodes in two zones; `number` is from 1.
fn node(cluster: &ControlPlane, number: u8) -> HollowNode {
    cluster.node(HollowSpec { pods: 60, ..HollowSpec::numbered(number).in_zone(number % 2) }, PACE)
}

/// The node on which only those run that ask for it.
fn kept_node(cluster: &ControlPlane) -> HollowNode {
    let mut spec = HollowSpec::new(KEPT_NODE, 4);
    spec.labels.insert(KEPT.into(), "true".into());
    spec.taints.push(Taint { key: KEPT.into(), effect: "NoSchedule".into(), ..Taint::default() });
    cluster.node(spec, PACE)
}

/// Nodes fall silent for a while, or fail what they start.
async fn unrest(cluster: Arc<ControlPlane>, mut nodes: Vec<HollowNode>, chance: Entropy) -> Vec<HollowNode> {
    let some = |most: u64| Duration::from_secs(chance.below(most));
    for _ in 0..3 {
        tokio::time::sleep(some(60)).await;
        let which = usize::try_from(chance.below(nodes.len() as u64)).unwrap_or(0);
        if chance.below(3) == 0 {
            nodes[which].set_failing(true);
            tokio::time::sleep(some(30)).await;
            nodes[which].set_failing(false);
        } else {
            nodes.remove(which).die();
            tokio::time::sleep(some(400)).await;
            nodes.insert(which, node(&cluster, u8::try_from(which + 1).unwrap_or(1)));
        }
    }
    nodes
}

/// Tells what components say of themselves, where `GANTRY_SIM_TRACE` names the least important level to be told.
fn trace() {
    if let Some(level) = std::env::var("GANTRY_SIM_TRACE").ok().and_then(|l| l.parse::<tracing::Level>().ok()) {
        // Another test may have begun with it.
        let _ = tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr).try_init();
    }
}

/// Plays one world; what is wrong in it, empty where all is well.
async fn world(plan: Plan, kindness: Kindness, tenants: &[Tenant], played: &AtomicU64) -> Result<u64, String> {
    trace();
    let seed = plan.seed;
    let started = ControlPlane::start_with(plan).await;
    let cluster = Arc::new(started.map_err(|e| format!("the control plane does not start: {e}"))?);
    let nodes: Vec<HollowNode> = (1..=3).map(|n| node(&cluster, n)).collect();
    let kept = kept_node(&cluster);
    let default = json!({"storageclass.kubernetes.io/is-default-class": "true"});
    let class = json!({"metadata": {"name": "local", "annotations": default},
        "provisioner": "gantry.local/local-path", "volumeBindingMode": "WaitForFirstConsumer"});
    let drivers: Vec<(Tenant, Driver)> = tenants
        .iter()
        .enumerate()
        .map(|(n, tenant)| {
            let chance = Entropy::seeded(seed.wrapping_mul(31).wrapping_add(n as u64));
            (*tenant, Driver { cluster: cluster.clone(), namespace: format!("t{n}-{tenant:?}").to_lowercase(), chance })
        })
        .collect();
    if let Some((_, first)) = drivers.first() {
        first.at_large().create::<StorageClass>(class).await;
    }
    let weather = kindness.weather();
    let rough = weather.rough;
    let unrest = async { if rough { unrest(cluster.clone(), nodes, Entropy::seeded(seed ^ 7)).await } else { nodes } };
    let all = futures::future::join_all(drivers.iter().map(|(tenant, driver)| driver.play(*tenant, weather)));
    let (ended, nodes) = futures::future::join(all, unrest).await;
    let mut wrong: Vec<String> = ended.into_iter().filter_map(|e| e.err().map(|e| e.to_string())).collect();
    if wrong.is_empty() {
        // What has come about stays.
        tokio::time::sleep(Duration::from_secs(60)).await;
        for (_, driver) in &drivers {
            wrong.extend(driver.settled().await.err().map(|e| e.to_string()));
        }
    }
    let (changes, lives) = (cluster.log.changes(), cluster.lives());
    cluster.stop();
    drop((nodes, kept));
    if let Ok(path) = std::env::var("GANTRY_SIM_LOG") {
        std::fs::write(format!("{path}.{seed}"), cluster.log.text()).map_err(|e| e.to_string())?;
    }
    let rules: &mut [&mut dyn Rule] = &mut [
        &mut Rollouts::new(weather),
        &mut Ordered::new(weather),
        &mut OnePerNode::new(weather),
        &mut CountedOnce::new(weather),
        &mut OnSchedule::new(weather, BEGIN),
        &mut WithinQuota::new(BEGIN),
        &mut WithinBudget::new(weather),
        &mut WithinBounds::new(weather),
        &mut Tolerated::new(weather),
        &mut Claims::default(),
        &mut Whole::new(weather),
    ];
    wrong.extend(check::walk(&changes, rules));
    wrong.extend(check::history(&changes));
    played.fetch_add(tenants.len() as u64, Ordering::Relaxed);
    if wrong.is_empty() {
        return Ok(changes.last().map_or(0, |c| c.revision));
    }
    let mut text = format!("{} writes, {lives} lives\n", changes.len());
    for line in wrong.iter().take(12) {
        let _ = writeln!(text, "{line}");
    }
    Err(text)
}

struct Job {
    name: String,
    plan: Plan,
    kindness: Kindness,
    tenants: Vec<Tenant>,
}

/// Plays worlds on as many threads as there are processors; panics with what is wrong in them.
fn play(jobs: Vec<Job>) -> Vec<u64> {
    let (names, total) = (jobs.iter().map(|j| j.name.clone()).collect::<Vec<_>>(), jobs.len());
    let jobs =
        Arc::new(parking_lot::Mutex::new(jobs.into_iter().enumerate().collect::<std::collections::VecDeque<_>>()));
    let (tell, told) = mpsc::channel();
    let played = Arc::new(AtomicU64::new(0));
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(total.max(1));
    for _ in 0..threads {
        let (jobs, tell, played) = (jobs.clone(), tell.clone(), played.clone());
        std::thread::spawn(move || {
            loop {
                let next = jobs.lock().pop_front();
                let Some((number, job)) = next else { return };
                let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                    let mut builder = tokio::runtime::Builder::new_current_thread();
                    let runtime = builder.enable_all().start_paused(true).build().expect("a runtime");
                    runtime.block_on(world(job.plan, job.kindness, &job.tenants, &played))
                }));
                let outcome = outcome.unwrap_or_else(|_| Err("it panicked".into()));
                if tell.send((number, outcome)).is_err() {
                    return;
                }
            }
        });
    }
    drop(tell);
    let (mut revisions, mut wrong) = (vec![0; total], Vec::new());
    let mut open: Vec<bool> = vec![true; total];
    for _ in 0..total {
        match told.recv_timeout(STANDS_STILL) {
            Ok((number, outcome)) => {
                open[number] = false;
                match outcome {
                    Ok(revision) => revisions[number] = revision,
                    Err(text) => {
                        // At once: whoever has it stopped knows so much at least.
                        let text = format!("{}: {text}", names[number]);
                        eprintln!("{text}");
                        wrong.push(text);
                    }
                }
            }
            Err(_) => {
                let still: Vec<&String> = names.iter().zip(&open).filter(|(_, o)| **o).map(|(n, _)| n).collect();
                wrong.push(format!("one of these stands still: {:?}", &still[..still.len().min(4)]));
                break;
            }
        }
    }
    assert!(wrong.is_empty(), "in {} of {total} worlds:\n{}", wrong.len(), wrong.join("\n"));
    println!("{} scenarios in {total} worlds", played.load(Ordering::Relaxed));
    revisions
}

fn range(name: &str, usual: Range<u64>) -> Range<u64> {
    let Ok(text) = std::env::var(name) else { return usual };
    let (from, to) = text.split_once("..").unwrap_or_else(|| panic!("{name} is a range, as 0..100"));
    from.parse().expect("a number")..to.parse().expect("a number")
}

#[test]
fn everything_comes_about_and_nothing_forbidden_happens_from_any_seed() {
    // One of each kind, where no others are asked for.
    let jobs = range("GANTRY_SIM_SEEDS", 0..KINDS.len() as u64).map(|seed| {
        let kindness = KINDS[usize::try_from(seed).unwrap_or(0) % KINDS.len()];
        let name = format!("GANTRY_SIM_SEEDS={seed}..{} ({kindness:?})", seed + 1);
        Job { name, plan: kindness.plan(seed), kindness, tenants: tenants::ALL.to_vec() }
    });
    play(jobs.collect());
}

#[test]
fn the_control_plane_may_die_between_any_two_writes() {
    let tenants = [Tenant::Rolling, Tenant::Ordered, Tenant::Counting, Tenant::Budget, Tenant::Replicas];
    let job = |deaths: Vec<u64>, name: String| {
        let plan = Plan { deaths, ..Plan::calm(4711) };
        Job { name, plan, kindness: Kindness::Mortal, tenants: tenants.to_vec() }
    };
    let whole = play(vec![job(Vec::new(), "one life".into())])[0];
    // Every so many writes, and as a rule not those of the server's own start, which are always the same.
    let asked: Option<usize> = std::env::var("GANTRY_SIM_EVERY").ok().map(|s| s.parse().expect("a number"));
    let (first, step) = asked.map_or((280, 25), |step| (1, step.max(1)));
    let jobs = (first..whole).step_by(step).map(|n| job(vec![n], format!("death at write {n}")));
    play(jobs.collect());
}

#[test]
fn one_seed_gives_one_history_whatever_goes_wrong() {
    let log = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let plan = Plan { deaths: vec![310, 20], ..Kindness::Wild.plan(3) };
            let cluster = Arc::new(ControlPlane::start_with(plan).await.expect("it starts"));
            let _nodes: Vec<HollowNode> = (1..=3).map(|n| node(&cluster, n)).collect();
            let tenants = [Tenant::Rolling, Tenant::Counting, Tenant::Replicas, Tenant::Daemon];
            let played = tenants.iter().enumerate().map(|(n, tenant)| {
                let (namespace, chance) = (format!("t{n}"), Entropy::seeded(n as u64));
                let driver = Driver { cluster: cluster.clone(), namespace, chance };
                async move { driver.play(*tenant, Kindness::Wild.weather()).await.expect("it comes about") }
            });
            futures::future::join_all(played).await;
            // Whatever ends with the control plane ends in the same order, too.
            assert_eq!(cluster.lives(), 3, "it did not die");
            cluster.stop();
            cluster.log.text()
        })
    };
    let (one, two) = (log(), log());
    if let Some((n, (a, b))) = one.lines().zip(two.lines()).enumerate().find(|(_, (a, b))| a != b) {
        panic!("two runs from one seed part at line {n}:\n{a}\n{b}");
    }
    assert_eq!(one.len(), two.len());
}

/// Summer time begins in Berlin on 2027-03-28 at 01:00 UTC: at 2 o'clock it is 3.
#[test]
fn cron_jobs_follow_the_clocks_of_their_zone() {
    use k8s_openapi::api::batch::v1::CronJob;
    let begin: gantry_api::k8s_openapi::jiff::Timestamp = "2027-03-27T22:30:00Z".parse().expect("a time");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let cluster = ControlPlane::start_with(Plan { begin, deaths: vec![262, 5, 5], ..Plan::calm(5) }).await.unwrap();
        let cluster = Arc::new(cluster);
        let driver = Driver { cluster: cluster.clone(), namespace: "default".into(), chance: Entropy::seeded(1) };
        let cron = |name: &str, zone: &str, schedule: &str| {
            let pod = json!({"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]});
            let job = json!({"spec": {"suspend": true, "template": {"spec": pod}}});
            json!({"metadata": {"name": name}, "spec": {"schedule": schedule, "timeZone": zone, "jobTemplate": job}})
        };
        let account = "default/default";
        driver.until("there is a namespace", |w| w.get("core/serviceaccounts", account).is_some()).await.unwrap();
        driver.create::<CronJob>(cron("hourly", "Europe/Berlin", "0 * * * *")).await;
        driver.create::<CronJob>(cron("skipped", "Europe/Berlin", "30 2 * * *")).await;
        driver.create::<CronJob>(cron("plain", "Etc/UTC", "0 */2 * * *")).await;
        tokio::time::sleep(Duration::from_secs(6 * 3600)).await;
        let due = |name: &str| {
            cluster.log.look(|w| {
                let jobs = w.all("batch/jobs/default").filter(|(n, _)| n.starts_with(name));
                let at = |j: &serde_json::Value| {
                    let text = &j["metadata"]["annotations"]["batch.kubernetes.io/cronjob-scheduled-timestamp"];
                    text.as_str().unwrap_or_default().to_owned()
                };
                jobs.map(|(_, j)| at(j)).collect::<Vec<_>>()
            })
        };
        let in_berlin = |hours: &[(u32, u32)]| -> Vec<String> {
            hours.iter().map(|(h, zone)| format!("2027-03-28T{h:02}:00:00+0{zone}:00")).collect()
        };
        assert_eq!(due("hourly"), in_berlin(&[(0, 1), (1, 1), (3, 2), (4, 2), (5, 2), (6, 2)]));
        assert!(due("skipped").is_empty(), "half past two there is none that night: {:?}", due("skipped"));
        assert_eq!(due("plain"), ["2027-03-28T00:00:00Z", "2027-03-28T02:00:00Z", "2027-03-28T04:00:00Z"]);
        assert!(cluster.lives() > 1, "the control plane never died");
        cluster.stop();
    });
}

/// What has to give way gives way once, and what comes in its place waits, whenever the control plane dies, and however
/// far caches are behind.
#[test]
fn a_victim_is_replaced_once() {
    use k8s_openapi::api::apps::v1::ReplicaSet;
    use k8s_openapi::api::scheduling::v1::PriorityClass;
    let play = |seed: u64| {
        let dice = Entropy::seeded(seed);
        let deaths = if seed % 3 == 1 { vec![330 + dice.below(60), 5 + dice.below(20)] } else { Vec::new() };
        let faults = if seed % 3 == 2 { Faults::stale(FAULTY_FOR) } else { Faults::default() };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let cluster = ControlPlane::start_with(Plan { deaths, faults, ..Plan::calm(seed) }).await;
            let cluster = Arc::new(cluster.expect("it starts"));
            let small = HollowSpec { cpu: "1".into(), memory: "1Gi".into(), ..HollowSpec::new("small", 1) };
            let pace = Pace::millis((100, 2000), (100, 3000), (0, 3000));
            let _node = cluster.node(small, pace);
            let driver = Driver { cluster: cluster.clone(), namespace: "default".into(), chance: dice };
            let wide = driver.at_large();
            for priority in 1..=4 {
                wide.create::<PriorityClass>(json!({"metadata": {"name": format!("p{priority}")}, "value": priority}))
                    .await;
            }
            let account = "default/default";
            driver.until("there is a namespace", |w| w.get("core/serviceaccounts", account).is_some()).await.unwrap();
            let set = |priority: i64, cpu: &str| {
                let labels = json!({"p": priority.to_string()});
                let container = json!({"name": "c", "image": "i", "resources": {"requests": {"cpu": cpu}}});
                let pod = json!({"priorityClassName": format!("p{priority}"),
                    // Some are gone at once.
                    "terminationGracePeriodSeconds": seed % 2 * 2, "containers": [container]});
                json!({"metadata": {"name": format!("r{priority}")}, "spec": {"replicas": 1,
                    "selector": {"matchLabels": labels},
                    "template": {"metadata": {"labels": labels}, "spec": pod}}})
            };
            let ready = |w: &gantry_sim::World, priority: i64| {
                let mut pods = w.all("core/pods/default").filter(|(n, _)| n.starts_with(&format!("r{priority}-")));
                pods.any(|(_, p)| {
                    let conditions = p["status"]["conditions"].as_array().into_iter().flatten();
                    conditions.into_iter().any(|c| c["type"] == "Ready" && c["status"] == "True")
                })
            };
            for (priority, cpu) in [(1, "200m"), (2, "300m"), (3, "450m")] {
                driver.create::<ReplicaSet>(set(priority, cpu)).await;
            }
            driver.until("the first three run", |w| (1..=3).all(|p| ready(w, p))).await.unwrap();
            driver.create::<ReplicaSet>(set(4, "500m")).await;
            driver.until("the last runs", |w| ready(w, 4) && ready(w, 3)).await.unwrap();
            tokio::time::sleep(Duration::from_secs(120)).await;
            let changes = cluster.log.changes();
            let mut made: BTreeMap<char, std::collections::BTreeSet<String>> = BTreeMap::new();
            for change in changes.iter().filter(|c| c.value.is_some()) {
                if let Some(name) = change.key.strip_prefix("/registry/core/pods/default/r") {
                    made.entry(name.chars().next().unwrap_or('?')).or_default().insert(name.to_owned());
                }
            }
            let counts: Vec<usize> = made.values().map(std::collections::BTreeSet::len).collect();
            assert_eq!(counts, [2, 2, 1, 1], "seed {seed}: pods of each priority that ever were: {made:?}");
            let wrong = check::history(&changes);
            assert!(wrong.is_empty(), "seed {seed}: {wrong:?}");
            cluster.stop();
        });
    };
    range("GANTRY_SIM_SEEDS", 0..6).for_each(play);
}
