//! The whole control plane from one seed, twice: the same bytes at the same instants. `GANTRY_SEED` chooses the seed.

mod scenario;

use gantry_sim::{ControlPlane, Stuck, check};

/// Prints the seed where the test fails.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("to have this again: GANTRY_SEED={}", self.0);
        }
    }
}

fn seed() -> Seed {
    match std::env::var("GANTRY_SEED") {
        Ok(text) => Seed(text.parse().expect("GANTRY_SEED is a number")),
        Err(_) => Seed(20_270_115),
    }
}

/// What a run leaves behind.
struct Run {
    log: String,
    outcome: String,
}

fn run(seed: u64) -> Run {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let cluster = ControlPlane::start(seed).await.expect("the control plane starts");
        let ended: Result<(), Stuck> = scenario::play(&cluster).await;
        let changes = cluster.log.changes();
        cluster.stop();
        if let Ok(path) = std::env::var("GANTRY_SIM_LOG") {
            std::fs::write(format!("{path}.{seed}"), cluster.log.text()).expect("the log can be written");
        }
        if let Err(stuck) = ended {
            panic!("{stuck}");
        }
        let wrong = check::history(&changes);
        assert!(wrong.is_empty(), "{wrong:#?}");
        let outcome = cluster.log.look(|world| {
            let wrong = [check::orphans(world), check::undeclared(world)].concat();
            assert!(wrong.is_empty(), "{wrong:#?}");
            check::outcome(world)
        });
        Run { log: cluster.log.text(), outcome }
    })
}

#[test]
fn one_seed_gives_one_history_and_every_seed_what_was_declared() {
    let seed = seed();
    let (one, two) = (run(seed.0), run(seed.0));
    if let Some((n, (a, b))) = one.log.lines().zip(two.log.lines()).enumerate().find(|(_, (a, b))| a != b) {
        panic!("two runs from one seed part at line {n}:\n{a}\n{b}");
    }
    assert_eq!(one.log.len(), two.log.len(), "one run is longer");
    let other = Seed(seed.0.wrapping_add(1));
    let three = run(other.0);
    assert!(three.log != one.log, "chance has no effect");
    assert_eq!(three.outcome, one.outcome);
}
