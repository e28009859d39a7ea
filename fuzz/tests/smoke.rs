//! Every target takes a fixed number of seeded mutations of its seeds. `GANTRY_SEED` chooses others, `GANTRY_FUZZ_RUNS` more.

use gantry_api::entropy::Entropy;
use gantry_fuzz::{TARGETS, mutated, run};
use std::path::Path;

const RUNS: u64 = 2_000;

fn number(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).map_or(otherwise, |text| text.parse().unwrap_or_else(|_| panic!("{variable} is a number")))
}

/// Tells what made the target panic.
struct Input<'a> {
    target: &'a str,
    data: &'a [u8],
}

impl Drop for Input<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let file = std::env::temp_dir().join(format!("gantry-fuzz-{}-{}", self.target, std::process::id()));
            let kept = std::fs::write(&file, self.data).map_or_else(|e| e.to_string(), |()| file.display().to_string());
            eprintln!("{} does not take this ({kept}): {}", self.target, self.data.escape_ascii());
        }
    }
}

fn smoke(name: &str) {
    let target = TARGETS.iter().find(|t| t.name == name).expect("the target exists");
    let seeds = (target.seeds)();
    for data in &seeds {
        let _input = Input { target: name, data };
        run(name, data);
    }
    let entropy = Entropy::seeded(number("GANTRY_SEED", 1));
    for _ in 0..number("GANTRY_FUZZ_RUNS", RUNS) {
        let data = mutated(&seeds, target.dictionary, &entropy);
        let _input = Input { target: name, data: &data };
        run(name, &data);
    }
}

macro_rules! smoke {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            smoke(stringify!($name));
        })*

        #[test]
        fn every_target_is_smoked_and_is_a_target_of_libfuzzer() {
            let names: Vec<&str> = TARGETS.iter().map(|t| t.name).collect();
            assert_eq!(names, [$(stringify!($name)),*]);
            let root = Path::new(env!("CARGO_MANIFEST_DIR"));
            let manifest = std::fs::read_to_string(root.join("Cargo.toml")).expect("the manifest can be read");
            for name in names {
                let text = std::fs::read_to_string(root.join("fuzz_targets").join(format!("{name}.rs"))).expect(name);
                assert!(text.contains(&format!("run(\"{name}\", data)")), "{text}");
                assert!(manifest.contains(&format!("path = \"fuzz_targets/{name}.rs\"")), "{name} is no binary");
            }
        }
    };
}

smoke! {
    json yaml json_patch merge_patch strategic_merge_patch managed_fields protobuf label_selector field_selector quantity
    expression objects patches requests continue_token image_archive image_layer
}
