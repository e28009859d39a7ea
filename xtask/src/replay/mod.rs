//! `cargo xtask replay`: a day of a cell with the published statistics of Google's cluster traces in a few seconds, and
//! the smallest cell that still holds the same work.
//!
//! The scheduler is the product's own; everything else is made up. `docs/simulation.md` describes what is replayed and
//! how the figures are to be read.

mod cell;
mod workload;

use anyhow::{Context, Result, ensure};
use cell::{Cell, Replayed};
use gantry_api::entropy::Entropy;
use gantry_scheduler::profile::Strategy;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::ExitCode;
use workload::{Machine, Task, Tier, float};

/// A cell counts as big enough where no more than this share of the tasks finds no place, as in the Borg paper.
const MAY_WAIT: f64 = 0.002;

/// Options of `cargo xtask replay`.
#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// Machines of the cell
    #[arg(long, default_value_t = 300)]
    machines: usize,
    /// Hours to play
    #[arg(long, default_value_t = 24.0)]
    hours: f64,
    /// What is requested on average, as a share of the cell's CPU
    #[arg(long, default_value_t = 0.85)]
    load: f64,
    /// Decides everything that chance decides
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Whether nodes are filled evenly or one after the other
    #[arg(long, value_enum, default_value_t = Filling::Least)]
    strategy: Filling,
    /// Cells tried for the smallest that holds the work; 0 to leave that out
    #[arg(long, default_value_t = 11)]
    trials: u64,
    /// Also write the results here
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What the scheduler favours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Filling {
    /// LeastAllocated, Kubernetes' default
    Least,
    /// MostAllocated
    Most,
}

impl From<Filling> for Strategy {
    fn from(filling: Filling) -> Self {
        match filling {
            Filling::Least => Strategy::LeastAllocated,
            Filling::Most => Strategy::MostAllocated,
        }
    }
}

/// Plays what the options say and prints what it showed.
///
/// # Errors
/// Where an option makes no sense or the results cannot be written.
pub fn main(options: &Options) -> Result<ExitCode> {
    ensure!(options.machines > 0, "a cell has machines");
    ensure!(options.hours > 0.0 && options.hours <= 24.0 * 31.0, "--hours is from 0 to a month");
    ensure!(options.load > 0.0 && options.load < 2.0, "--load is a share of the cell, as 0.85");
    let entropy = Entropy::seeded(options.seed);
    let machines = workload::cell(options.machines, &entropy);
    let tasks = workload::generate(&machines, options.hours, options.load, &entropy);
    let horizon = workload::whole_number(options.hours * 3_600_000.0);
    let strategy = Strategy::from(options.strategy);
    let seen = Cell::new(&machines, strategy.clone(), options.seed).replay(&tasks, horizon);
    let mut report = describe(&machines, &tasks, &seen);
    if options.trials > 0 {
        // The work of the last hour, when services have long been there: what runs at its beginning, all at once.
        let moment = horizon - horizon / 24;
        let alive: Vec<Task> = tasks.iter().filter(|t| t.at <= moment && moment < t.at + t.runs).copied().collect();
        let mut sizes: Vec<usize> = (0..options.trials)
            .map(|trial| smallest(&machines, &alive, &strategy, options.seed.wrapping_add(trial)))
            .collect();
        sizes.sort_unstable();
        let at = |percent: usize| sizes[(sizes.len() - 1) * percent / 100];
        report["compacted"] = json!({
            "tasks": alive.len(), "trials": sizes.len(), "least": at(0), "median": at(50), "90th": at(90),
            "most": at(100),
            "share_of_cell": float(at(90) as u64) / float(machines.len() as u64),
        });
    }
    println!("{report:#}");
    if let Some(path) = &options.json {
        std::fs::write(path, format!("{report:#}\n")).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn describe(machines: &[Machine], tasks: &[Task], seen: &Replayed) -> Value {
    let mut tiers = serde_json::Map::new();
    for tier in Tier::ALL {
        let of = tasks.iter().filter(|t| t.tier == tier);
        let waits = seen.waits.get(tier.name()).map(Vec::as_slice).unwrap_or_default();
        let at =
            |percent: usize| waits.get(waits.len().saturating_sub(1) * percent / 100).map(|ms| float(*ms) / 1000.0);
        tiers.insert(
            tier.name().to_owned(),
            json!({
                "tasks": of.count(), "placements": waits.len(),
                "pending_seconds": {"50": at(50), "90": at(90), "99": at(99), "100": at(100)},
                "never_placed": seen.never.get(tier.name()).copied().unwrap_or(0),
            }),
        );
    }
    let each = seen.took.as_secs_f64() * 1e6 / float(seen.decisions.max(1));
    json!({
        "machines": machines.len(),
        "requested": {"cpu": seen.cpu, "memory": seen.memory},
        "tiers": tiers, "preempted": seen.preempted,
        "decisions": seen.decisions, "microseconds_per_decision": each,
    })
}

/// The machines in an order drawn from the seed: a smaller cell is the beginning of it.
fn shuffled(machines: &[Machine], entropy: &Entropy) -> Vec<Machine> {
    let mut order = machines.to_vec();
    for n in (1..order.len()).rev() {
        let other = usize::try_from(entropy.below(n as u64 + 1)).unwrap_or(0);
        order.swap(n, other);
    }
    order
}

/// The fewest machines on which all but a few of the tasks find a place; where the whole cell does not do, as many more
/// of the same kinds as it takes.
fn smallest(machines: &[Machine], tasks: &[Task], strategy: &Strategy, seed: u64) -> usize {
    let order = shuffled(machines, &Entropy::seeded(seed));
    let may_wait = workload::whole_number(float(tasks.len() as u64) * MAY_WAIT);
    let fits = |count: usize| {
        let some: Vec<Machine> = order.iter().cycle().take(count).copied().collect();
        Cell::new(&some, strategy.clone(), seed).pack(tasks) as u64 <= may_wait
    };
    let (mut too_few, mut enough) = (0, machines.len());
    // Work that no machine can hold fits no cell; what was replayed came from tasks that may be so, hence the end.
    while !fits(enough) && enough < machines.len() * 8 {
        (too_few, enough) = (enough, enough * 2);
    }
    while enough - too_few > 1 {
        let middle = too_few.midpoint(enough);
        if fits(middle) { enough = middle } else { too_few = middle }
    }
    enough
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_cell_holds_the_work_and_one_machine_less_does_not() {
        let machine = Machine { cpu_milli: 1000, memory_mib: 1000 };
        let task = Task { at: 0, runs: 1, cpu_milli: 500, memory_mib: 1, tier: Tier::Batch, job: 0 };
        assert_eq!(smallest(&[machine; 20], &[task; 21], &Strategy::LeastAllocated, 3), 11);
        assert_eq!(
            smallest(&[machine; 2], &[task; 7], &Strategy::LeastAllocated, 3),
            4,
            "more machines than there are"
        );
    }

    #[test]
    fn a_small_cell_s_day_shows_what_a_cell_s_day_shows() {
        let entropy = Entropy::seeded(7);
        let machines = workload::cell(30, &entropy);
        let tasks = workload::generate(&machines, 2.0, 0.9, &entropy);
        let play = || Cell::new(&machines, Strategy::LeastAllocated, 7).replay(&tasks, 7_200_000);
        let (one, two) = (play(), play());
        assert_eq!((one.cpu.to_bits(), &one.waits, one.preempted), (two.cpu.to_bits(), &two.waits, two.preempted));
        assert!(one.cpu > 0.3 && one.cpu <= 1.0, "{}", one.cpu);
        let report = describe(&machines, &tasks, &one);
        assert!(report["tiers"]["production"]["placements"].as_u64() > Some(0), "{report}");
    }
}
