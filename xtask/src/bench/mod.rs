//! `cargo xtask bench`: measures real processes in a network namespace of its own and shows the results beside their budgets.
//! It never fails for being slow; it fails where something could not be measured.
//!
//! How each figure is taken is described in `docs/benchmarks.md`.

mod apply;
mod bind_latency;
mod binding;
mod budgets;
mod build;
mod cache;
mod cell;
mod cell_memory;
mod creates;
mod deciding;
mod first_pod;
mod gantry;
mod gets;
mod hostile;
mod idle;
mod keep_alive;
mod list;
mod list_memory;
mod load;
mod machine;
mod namespace;
mod pending;
mod pod_start;
mod pods;
mod process;
mod report;
mod resources;
mod sched;
mod shim;
mod size;
mod startup;
mod statistics;
mod watch;
mod watchers;
mod workload;
mod writes;

use anyhow::{Context, Result, bail};
use futures::future::BoxFuture;
use serde_json::Value;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Options of `cargo xtask bench`.
#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// Run only these measures
    #[arg(long, value_name = "NAME", num_args = 1.., value_parser = names())]
    only: Vec<String>,
    /// Shorter runs and fewer repetitions; leaves out what takes minutes
    #[arg(long)]
    quick: bool,
    /// Where to write the results
    #[arg(long, value_name = "FILE", default_value = "target/bench.json")]
    json: PathBuf,
    /// Measure this binary instead of building one. The clients are then as optimized as this program is; results say how
    #[arg(long, value_name = "PATH", overrides_with = "binary")]
    binary: Option<PathBuf>,
    /// Directory for data directories; on the disk whose speed counts, not in memory
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    directory: PathBuf,
    /// Nodes of `cell`, which has ten pods for each
    #[arg(long, value_name = "N", default_value_t = 50_000)]
    nodes: u64,
    /// Load comes over HTTP/2 from the client library that Gantry itself uses, not over HTTP/1.1 from a cheaper client
    #[arg(long)]
    http2: bool,
    /// Set where this process runs inside the namespace already
    #[arg(long, hide = true)]
    inside: bool,
}

/// What every measure gets.
pub struct Bench {
    /// The binary under test.
    pub binary: PathBuf,
    /// Where data directories are made.
    pub directory: PathBuf,
    /// Shorter runs, fewer repetitions.
    pub quick: bool,
    /// Nodes of the cell.
    pub nodes: u64,
    /// Load comes from the client library.
    pub http2: bool,
}

impl Bench {
    /// `full`, or `quick` where `--quick` was given.
    pub fn scaled<T>(&self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }

    /// Waits until the server has packed what rests and has given back what it does not need.
    pub async fn rest(&self) {
        tokio::time::sleep(Duration::from_secs(self.scaled(60, 40))).await;
    }
}

/// One figure.
pub struct Measurement {
    /// Which budget it is compared with.
    pub id: &'static str,
    /// The figure, in the budget's unit.
    pub value: f64,
    /// What else was seen: single runs, distributions, sizes. An object.
    pub detail: Value,
}

type Run = for<'a> fn(&'a Bench) -> BoxFuture<'a, Result<Vec<Measurement>>>;

/// A named part of the benchmark; may give several figures.
struct Measure {
    name: &'static str,
    /// Too long for `--quick`.
    long: bool,
    run: Run,
}

const fn measure(name: &'static str, run: Run) -> Measure {
    Measure { name, long: false, run }
}

/// Every measure, in the order they run: cheap ones first.
const ALL: &[Measure] = &[
    measure("size", |b| Box::pin(size::run(b))),
    measure("startup", |b| Box::pin(startup::run(b))),
    measure("first-pod", |b| Box::pin(first_pod::run(b))),
    measure("idle", |b| Box::pin(idle::run(b))),
    measure("pod-start", |b| Box::pin(pod_start::run(b))),
    measure("shim", |b| Box::pin(shim::run(b))),
    measure("creates", |b| Box::pin(creates::run(b))),
    measure("pods", |b| Box::pin(pods::run(b))),
    measure("writes", |b| Box::pin(writes::run(b))),
    measure("apply", |b| Box::pin(apply::run(b))),
    measure("gets", |b| Box::pin(gets::run(b))),
    measure("cache", |b| Box::pin(cache::run(b))),
    measure("list", |b| Box::pin(list::run(b))),
    measure("watch", |b| Box::pin(watch::run(b))),
    measure("watchers", |b| Box::pin(watchers::run(b))),
    measure("resources", |b| Box::pin(resources::run(b))),
    measure("hostile", |b| Box::pin(hostile::run(b))),
    measure("binding", |b| Box::pin(binding::run(b))),
    measure("deciding", |b| Box::pin(deciding::run(b))),
    measure("sched-constrained", |b| Box::pin(sched::constrained(b))),
    measure("sched-anti-affine", |b| Box::pin(sched::anti_affine(b))),
    measure("sched-preempting", |b| Box::pin(sched::preempting(b))),
    measure("bind-latency", |b| Box::pin(bind_latency::run(b))),
    measure("pending", |b| Box::pin(pending::run(b))),
    Measure { name: "cell", long: true, run: |b| Box::pin(cell::run(b)) },
    Measure { name: "cell-memory", long: true, run: |b| Box::pin(cell_memory::run(b)) },
    Measure { name: "list-memory", long: true, run: |b| Box::pin(list_memory::run(b)) },
];

fn names() -> clap::builder::PossibleValuesParser {
    ALL.iter().map(|m| m.name).collect::<Vec<_>>().into()
}

/// Runs what the options say.
///
/// # Errors
/// Where the binary cannot be built, the namespace cannot be made, or a measure could not be taken.
pub fn main(options: &Options) -> Result<ExitCode> {
    if !nix::unistd::geteuid().is_root() {
        bail!("the benchmark makes network namespaces, mounts and cgroups; run as root");
    }
    if options.inside {
        let binary = options.binary.clone().context("--inside needs --binary")?;
        let bench = Bench {
            binary,
            directory: options.directory.clone(),
            quick: options.quick,
            nodes: options.nodes,
            http2: options.http2,
        };
        raise_file_limit();
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("no runtime")?;
        return runtime.block_on(async {
            tokio::select! {
                outcome = run(options, &bench) => outcome,
                _ = tokio::signal::ctrl_c() => bail!("interrupted"),
            }
        });
    }
    let programs = match &options.binary {
        Some(path) => build::Programs {
            gantry: std::fs::canonicalize(path).with_context(|| format!("no binary {}", path.display()))?,
            xtask: std::env::current_exe().context("cannot find this program")?,
        },
        None => build::release()?,
    };
    namespace::run_inside(&programs)
}

async fn run(options: &Options, bench: &Bench) -> Result<ExitCode> {
    let mut report = report::Report::new(machine::facts(&bench.binary, bench.quick));
    for measure in ALL {
        let wanted = options.only.iter().any(|n| n == measure.name);
        if !(wanted || options.only.is_empty() && !(bench.quick && measure.long)) {
            continue;
        }
        eprintln!("measuring {} …", measure.name);
        report.add(measure.name, (measure.run)(bench).await);
        // After each, so that a run that is interrupted leaves what it found.
        report.write(&options.json)?;
    }
    report.print();
    println!("written to {}", options.json.display());
    Ok(if report.complete() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A thousand watchers and a server with as many need more descriptors than the usual 1024. Children inherit it.
fn raise_file_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        eprintln!("cannot raise the limit of open files to {hard}: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn measures_have_distinct_names() {
        let names: BTreeSet<_> = ALL.iter().map(|m| m.name).collect();
        assert_eq!(names.len(), ALL.len());
    }
}
