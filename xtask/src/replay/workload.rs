//! A cell and a day of work with the published statistics of Google's cluster traces. See `docs/simulation.md` for
//! which figure comes from where.

use gantry_api::entropy::Entropy;

/// Kinds of machines of the 2011 trace: how many of 12,583, and CPU and memory as shares of the largest.
const MACHINES_2011: [(u32, f64, f64); 10] = [
    (6732, 0.50, 0.50),
    (3863, 0.50, 0.25),
    (1001, 0.50, 0.75),
    (795, 1.00, 1.00),
    (126, 0.25, 0.25),
    (52, 0.50, 0.12),
    (5, 0.50, 0.03),
    (5, 0.50, 0.97),
    (3, 1.00, 0.50),
    (1, 0.50, 0.06),
];
/// What the largest machine is taken to be.
const LARGEST_CPU_MILLI: f64 = 64_000.0;
const LARGEST_MEMORY_MIB: f64 = 262_144.0;

/// Share of the allocated CPU and memory that is production's.
const PRODUCTION_CPU: f64 = 0.70;
const PRODUCTION_MEMORY: f64 = 0.55;
/// Tail of the CPU hours of a job in 2019: a Pareto distribution with this exponent.
const TAIL: f64 = 0.69;
/// The least and the most CPU hours of a batch job: below, a job is gone before it matters; above, it would be all of
/// the cell.
const JOB_CPU_HOURS: (f64, f64) = (0.002, 400.0);
/// Tasks of a job: of how many in a hundred jobs there are no more than so many. Batch of 2019, and production of 2019.
const TASKS_BATCH: &[(f64, f64)] = &[(0.50, 1.0), (0.80, 25.0), (0.95, 498.0), (1.0, 2000.0)];
const TASKS_PRODUCTION: &[(f64, f64)] = &[(0.75, 1.0), (0.95, 3.0), (1.0, 120.0)];

/// How important work is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tier {
    /// Gives way to production.
    Batch,
    /// Serves people.
    Production,
}

impl Tier {
    /// Both.
    pub const ALL: [Self; 2] = [Tier::Production, Tier::Batch];

    /// `spec.priority` of its pods: the traces' lowest priorities of either kind.
    pub fn priority(self) -> i32 {
        match self {
            Tier::Batch => 0,
            Tier::Production => 9,
        }
    }

    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Tier::Batch => "batch",
            Tier::Production => "production",
        }
    }
}

/// A machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Thousandths of a core.
    pub cpu_milli: u64,
    /// MiB.
    pub memory_mib: u64,
}

/// One task, which becomes a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Task {
    /// When it is submitted, milliseconds from the beginning.
    pub at: u64,
    /// How long it runs once placed, milliseconds.
    pub runs: u64,
    /// What it requests, thousandths of a core.
    pub cpu_milli: u64,
    /// What it requests, MiB.
    pub memory_mib: u64,
    /// How important it is.
    pub tier: Tier,
    /// Which job it is of.
    pub job: usize,
}

/// A cell of so many machines, of the kinds there were in 2011.
pub fn cell(machines: usize, entropy: &Entropy) -> Vec<Machine> {
    let whole: u32 = MACHINES_2011.iter().map(|(n, _, _)| n).sum();
    let draw = |_| {
        let mut at = u32::try_from(entropy.below(u64::from(whole))).unwrap_or(0);
        let kind = MACHINES_2011.iter().find(|(n, _, _)| {
            let here = at < *n;
            at = at.saturating_sub(*n);
            here
        });
        let (_, cpu, memory) = kind.copied().unwrap_or(MACHINES_2011[0]);
        Machine {
            cpu_milli: whole_number(cpu * LARGEST_CPU_MILLI),
            memory_mib: whole_number(memory * LARGEST_MEMORY_MIB),
        }
    };
    (0..machines).map(draw).collect()
}

/// What is drawn is far below where a float is no whole number any more.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
pub(super) fn whole_number(of: f64) -> u64 {
    of.max(0.0).round() as u64
}

/// The number of machines, tasks or milliseconds as a float; all are far below 2^52.
#[allow(clippy::cast_precision_loss)]
pub(super) fn float(of: u64) -> f64 {
    of as f64
}

/// From a table of quantiles, straight on a logarithmic scale between them.
fn quantile(table: &[(f64, f64)], share: f64) -> f64 {
    let mut before = (0.0, 1.0);
    for (upto, value) in table {
        if share <= *upto {
            let part = (share - before.0) / (upto - before.0);
            return before.1 * (value / before.1).powf(part);
        }
        before = (*upto, *value);
    }
    before.1
}

/// A Pareto distribution between two bounds.
fn pareto(share: f64, (least, most): (f64, f64), tail: f64) -> f64 {
    let cut = 1.0 - (least / most).powf(tail);
    least / (1.0 - share * cut).powf(1.0 / tail)
}

/// A log-normal draw (Box and Muller).
fn log_normal(entropy: &Entropy, median: f64, sigma: f64) -> f64 {
    let (a, b) = (1.0 - entropy.fraction(), entropy.fraction());
    let normal = (-2.0 * a.ln()).sqrt() * (std::f64::consts::TAU * b).cos();
    median * (sigma * normal).exp()
}

/// The work of so many hours in a cell: what is requested on average is `load` of what the cell has, in CPU.
pub fn generate(cell: &[Machine], hours: f64, load: f64, entropy: &Entropy) -> Vec<Task> {
    let horizon = whole_number(hours * 3_600_000.0);
    let cpu: u64 = cell.iter().map(|m| m.cpu_milli).sum();
    let memory: u64 = cell.iter().map(|m| m.memory_mib).sum();
    let asked = load * float(cpu);
    let per_cpu = |share_memory: f64, share_cpu: f64| float(memory) * share_memory / (float(cpu) * share_cpu);
    let mut tasks = Vec::new();
    let mut job = 0;
    // Production runs all the time. Its jobs come within the first hundredth, as a cell is filled.
    let mib_per_milli = per_cpu(PRODUCTION_MEMORY, PRODUCTION_CPU);
    let mut left = asked * PRODUCTION_CPU;
    while left > 0.0 {
        let count = whole_number(quantile(TASKS_PRODUCTION, entropy.fraction()));
        let cpu_milli = whole_number(log_normal(entropy, 1200.0, 0.9).clamp(50.0, 30_000.0));
        let memory_mib =
            whole_number(float(cpu_milli) * mib_per_milli * load * log_normal(entropy, 0.8, 0.6)).clamp(16, 120_000);
        let at = entropy.below(horizon / 100 + 1);
        for _ in 0..count {
            tasks.push(Task { at, runs: horizon, cpu_milli, memory_mib, tier: Tier::Production, job });
            left -= float(cpu_milli);
        }
        job += 1;
    }
    // Batch comes and goes; its jobs are mice and a few elephants.
    let mib_per_milli = per_cpu(1.0 - PRODUCTION_MEMORY, 1.0 - PRODUCTION_CPU);
    let mut left = asked * (1.0 - PRODUCTION_CPU) * float(horizon);
    while left > 0.0 {
        let at = entropy.below(horizon.max(1));
        let cpu_hours = pareto(entropy.fraction(), JOB_CPU_HOURS, TAIL);
        let cpu_milli = whole_number(log_normal(entropy, 500.0, 0.8).clamp(10.0, 16_000.0));
        let memory_mib =
            whole_number(float(cpu_milli) * mib_per_milli * load * log_normal(entropy, 0.8, 0.6)).clamp(8, 60_000);
        let work = cpu_hours * 1000.0 * 3_600_000.0;
        // A task takes ten seconds at least, so a small job is of few tasks.
        let most = (work / (float(cpu_milli) * 10_000.0)).max(1.0);
        let count = whole_number(quantile(TASKS_BATCH, entropy.fraction()).min(most)).max(1);
        let runs = whole_number(work / float(count * cpu_milli)).clamp(1000, horizon);
        for _ in 0..count {
            tasks.push(Task { at, runs, cpu_milli, memory_mib, tier: Tier::Batch, job });
            left -= float(cpu_milli * runs.min(horizon - at));
        }
        job += 1;
    }
    tasks.sort_by_key(|t| (t.at, t.job));
    tasks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_work_is_what_was_asked_for_and_its_tail_is_heavy() {
        let entropy = Entropy::seeded(1);
        let cell = cell(200, &entropy);
        let cpu: u64 = cell.iter().map(|m| m.cpu_milli).sum();
        let tasks = generate(&cell, 6.0, 0.8, &entropy);
        let horizon = 6 * 3_600_000;
        let used: u64 = tasks.iter().map(|t| t.cpu_milli * t.runs.min(horizon - t.at)).sum();
        let share = float(used) / float(cpu * horizon);
        assert!((0.75..0.95).contains(&share), "{share}");
        let mut jobs = std::collections::BTreeMap::<usize, u64>::new();
        for t in tasks.iter().filter(|t| t.tier == Tier::Batch) {
            *jobs.entry(t.job).or_default() += t.cpu_milli * t.runs;
        }
        let mut sizes: Vec<u64> = jobs.into_values().collect();
        sizes.sort_unstable();
        let top: u64 = sizes.iter().rev().take(sizes.len() / 20).sum();
        assert!(top * 2 > sizes.iter().sum(), "a twentieth of the jobs is more than half of the work");
        assert!(tasks.is_sorted_by_key(|t| t.at));
    }

    #[test]
    fn distributions_meet_their_published_points() {
        assert!(
            (quantile(TASKS_BATCH, 0.80) - 25.0).abs() < 1e-9 && (quantile(TASKS_BATCH, 0.95) - 498.0).abs() < 1e-6
        );
        assert!(
            (pareto(0.0, (2.0, 50.0), TAIL) - 2.0).abs() < 1e-9 && (pareto(1.0, (2.0, 50.0), TAIL) - 50.0).abs() < 1e-6
        );
    }
}
