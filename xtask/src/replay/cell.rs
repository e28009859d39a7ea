//! A cell in virtual time: the product's own scheduler, on its own snapshot, places what arrives, evicts what has to
//! give way, and places that again. Nothing but the scheduler is real, and nothing waits: a day takes seconds.

use super::workload::{Machine, Task, Tier, float};
use crate::placing::{Found, Placing};
use gantry_api::k8s_openapi::api::core::v1::{Node, Pod};
use gantry_scheduler::pod::{Occupant, PodInfo};
use gantry_scheduler::profile::{Profile, Strategy};
use gantry_scheduler::snapshot::Snapshot;
use serde_json::json;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What becomes known while time does not move further than this is decided on together, milliseconds.
const ROUND: u64 = 1000;

/// What a replay showed.
#[derive(Clone, Debug, Default)]
pub struct Replayed {
    /// Requested shares of the cell's CPU and memory, over time.
    pub cpu: f64,
    /// See `cpu`.
    pub memory: f64,
    /// Waits from submission (or eviction) to placement in milliseconds, by tier, in order.
    pub waits: BTreeMap<&'static str, Vec<u64>>,
    /// Tasks that were never placed, by tier.
    pub never: BTreeMap<&'static str, usize>,
    /// Tasks that were evicted for others.
    pub preempted: usize,
    /// Decisions, and the time they took.
    pub decisions: u64,
    /// See `decisions`.
    pub took: Duration,
}

/// A cell with what runs in it.
pub struct Cell {
    placing: Placing,
    decisions: u64,
    took: Duration,
}

fn pod(number: usize, task: &Task) -> Arc<PodInfo> {
    let requests = json!({"cpu": format!("{}m", task.cpu_milli), "memory": format!("{}Mi", task.memory_mib)});
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {
            "name": format!("t{number}"), "namespace": "n", "uid": number.to_string(),
            "creationTimestamp": "2027-01-15T08:00:00Z",
        },
        "spec": {"priority": task.tier.priority(), "containers": [{"name": "c", "resources": {"requests": requests}}]},
    }))
    .expect("a pod");
    Arc::new(PodInfo::new(Arc::new(pod)))
}

fn number(pod: &Occupant) -> usize {
    pod.uid.parse().unwrap_or(0)
}

impl Cell {
    /// Of these machines, scheduled by the default profile with this strategy.
    pub fn new(machines: &[Machine], strategy: Strategy, seed: u64) -> Self {
        let mut snapshot = Snapshot::default();
        for (n, machine) in machines.iter().enumerate() {
            let has = json!({
                "cpu": format!("{}m", machine.cpu_milli), "memory": format!("{}Mi", machine.memory_mib), "pods": "1000",
            });
            let node: Node = serde_json::from_value(json!({
                "metadata": {"name": format!("m{n}"), "labels": {"kubernetes.io/hostname": format!("m{n}")}},
                "status": {"allocatable": has},
            }))
            .expect("a node");
            snapshot.set_node(&node);
        }
        let mut profile = Profile::new("default-scheduler");
        profile.strategy = strategy;
        Self { placing: Placing::new(snapshot, profile, seed), decisions: 0, took: Duration::ZERO }
    }

    /// Finds a task its place, and says who had to go for it; None where there is none.
    fn place(&mut self, pod: &Arc<PodInfo>, preempts: bool) -> Option<Vec<Arc<Occupant>>> {
        let begin = Instant::now();
        let (node, victims) = match self.placing.find(pod, preempts) {
            Found::Free(node) => (Some(node), Vec::new()),
            Found::Instead(node, victims) => (Some(node), victims),
            Found::Nothing => (None, Vec::new()),
        };
        if let Some(node) = &node {
            self.placing.snapshot.place(pod.occupant.clone(), node);
        }
        self.decisions += 1;
        self.took += begin.elapsed();
        node.map(|_| victims)
    }

    /// How many of the tasks find no place when all are packed from scratch, the most important first.
    pub fn pack(&mut self, tasks: &[Task]) -> usize {
        let mut order: Vec<(usize, &Task)> = tasks.iter().enumerate().collect();
        order.sort_by_key(|(_, t)| (Reverse(t.tier), t.at, t.job));
        let mut hopeless = Hopeless::default();
        let mut left = 0;
        for (n, task) in order {
            if hopeless.is(task) {
                left += 1;
            } else if self.place(&pod(n, task), false).is_none() {
                hopeless.note(task);
                left += 1;
            }
        }
        left
    }

    /// Plays the tasks for so many milliseconds.
    pub fn replay(&mut self, tasks: &[Task], horizon: u64) -> Replayed {
        let has = |of: fn(&Cell, usize) -> i64| self.placing.snapshot.node_rows().map(|row| of(self, row)).sum::<i64>();
        let cpu = has(|c, row| c.placing.snapshot.allocatable[row].cpu_milli);
        let memory = has(|c, row| c.placing.snapshot.allocatable[row].memory);
        let mut out = Replayed::default();
        let mut ends: BinaryHeap<Reverse<(u64, usize, u32)>> = BinaryHeap::new();
        // By importance, then by the time since which they wait.
        let mut waiting: BTreeSet<(Reverse<Tier>, u64, usize)> = BTreeSet::new();
        let mut starts = vec![0u32; tasks.len()];
        // Of those that wait or run: a day has millions of tasks, of which few are there at one time.
        let mut pods: HashMap<usize, Arc<PodInfo>> = HashMap::new();
        let (mut next, mut now) = (0, 0);
        let (mut used, mut cpu_time, mut memory_time) = ((0i128, 0i128), 0i128, 0i128);
        while now < horizon {
            let arrives = tasks.get(next).map(|t| t.at);
            let ended = ends.peek().map(|Reverse((at, _, _))| *at);
            let Some(event) = arrives.into_iter().chain(ended).min() else { break };
            let then = (event / ROUND * ROUND + ROUND).min(horizon);
            cpu_time += used.0 * i128::from(then - now);
            memory_time += used.1 * i128::from(then - now);
            now = then;
            while tasks.get(next).is_some_and(|t| t.at < now) {
                waiting.insert((Reverse(tasks[next].tier), tasks[next].at, next));
                next += 1;
            }
            let step = |sign: i128, task: &Task, used: &mut (i128, i128)| {
                used.0 += sign * i128::from(task.cpu_milli);
                used.1 += sign * i128::from(task.memory_mib) * 1_048_576;
            };
            while let Some(Reverse((at, n, start))) = ends.peek().copied()
                && at < now
            {
                ends.pop();
                // Who was evicted meanwhile did not end.
                if starts[n] == start
                    && pods.remove(&n).is_some_and(|p| self.placing.snapshot.displace(&p.uid).is_some())
                {
                    step(-1, &tasks[n], &mut used);
                }
            }
            let mut hopeless = Hopeless::default();
            for key in waiting.clone() {
                let (_, since, n) = key;
                let task = &tasks[n];
                if hopeless.is(task) {
                    continue;
                }
                let pod = pods.entry(n).or_insert_with(|| pod(n, task)).clone();
                let Some(victims) = self.place(&pod, task.tier == Tier::Production) else {
                    hopeless.note(task);
                    continue;
                };
                for victim in victims {
                    let v = number(&victim);
                    step(-1, &tasks[v], &mut used);
                    starts[v] += 1;
                    out.preempted += 1;
                    waiting.insert((Reverse(tasks[v].tier), now, v));
                }
                waiting.remove(&key);
                step(1, task, &mut used);
                ends.push(Reverse((now + task.runs, n, starts[n])));
                out.waits.entry(task.tier.name()).or_default().push(now.saturating_sub(since));
            }
        }
        for (Reverse(tier), _, _) in &waiting {
            *out.never.entry(tier.name()).or_default() += 1;
        }
        out.waits.values_mut().for_each(|w| w.sort_unstable());
        let share = |time: i128, of: i64| {
            let whole = u64::try_from(i128::from(of) * i128::from(horizon) / 1_000_000).unwrap_or(u64::MAX).max(1);
            float(u64::try_from(time / 1_000_000).unwrap_or(0)) / float(whole)
        };
        (out.cpu, out.memory) = (share(cpu_time, cpu), share(memory_time, memory));
        (out.decisions, out.took) = (self.decisions, self.took);
        assert!(self.placing.snapshot.overcommitted().is_none(), "a machine holds more than it has");
        out
    }
}

/// Sizes that found no place in this round: who asks for as much and is no more important finds none either.
#[derive(Default)]
struct Hopeless(Vec<(Tier, u64, u64)>);

impl Hopeless {
    fn is(&self, task: &Task) -> bool {
        self.0
            .iter()
            .any(|(tier, cpu, memory)| task.tier <= *tier && task.cpu_milli >= *cpu && task.memory_mib >= *memory)
    }

    fn note(&mut self, task: &Task) {
        let (cpu, memory) = (task.cpu_milli, task.memory_mib);
        self.0.retain(|(tier, c, m)| !(*tier <= task.tier && *c >= cpu && *m >= memory));
        self.0.push((task.tier, cpu, memory));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(at: u64, runs: u64, cpu_milli: u64, tier: Tier) -> Task {
        Task { at, runs, cpu_milli, memory_mib: 1, tier, job: 0 }
    }

    #[test]
    fn production_takes_batch_s_place_and_batch_comes_back() {
        let machine = Machine { cpu_milli: 1000, memory_mib: 1000 };
        let mut cell = Cell::new(&[machine], Strategy::LeastAllocated, 1);
        let tasks = [
            task(0, 600_000, 900, Tier::Batch),
            task(60_000, 60_000, 500, Tier::Production),
            task(61_000, 1000, 5000, Tier::Production),
        ];
        let seen = cell.replay(&tasks, 1_000_000);
        assert_eq!(seen.preempted, 1);
        assert_eq!(seen.never.get("production"), Some(&1), "what no machine can hold waits for ever");
        let batch = &seen.waits["batch"];
        assert_eq!((batch.len(), batch[0]), (2, 1000));
        assert!((60_000..64_000).contains(&batch[1]), "{batch:?}");
        assert!((0.6..0.7).contains(&seen.cpu), "{}", seen.cpu);
    }

    #[test]
    fn packing_counts_who_finds_no_place() {
        let machine = Machine { cpu_milli: 1000, memory_mib: 1000 };
        let tasks: Vec<Task> = (0..5).map(|_| task(0, 1, 400, Tier::Batch)).collect();
        assert_eq!(Cell::new(&[machine; 2], Strategy::MostAllocated, 1).pack(&tasks), 1);
        assert_eq!(Cell::new(&[machine; 3], Strategy::MostAllocated, 1).pack(&tasks), 0);
    }
}
