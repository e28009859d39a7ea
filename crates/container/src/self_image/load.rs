//! `burn`: using CPU and memory.

use std::time::Instant;

use super::{Outcome, default_sigterm, duration, print};

pub(super) fn burn(what: &str, amount: &str) -> Outcome {
    default_sigterm();
    match what {
        "cpu" => {
            let limit = if amount == "inf" { None } else { Some(duration(amount)?) };
            let start = Instant::now();
            let mut number = 0u64;
            while limit.is_none_or(|l| start.elapsed() < l) {
                for i in 0..1_000_000u64 {
                    number = std::hint::black_box(number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(i));
                }
            }
            print(&format!("burnt {:.1} s\n", start.elapsed().as_secs_f64()))
        }
        "memory" => {
            let mebibytes: usize = amount.parse().map_err(|_| format!("{amount:?} is not a number of MiB"))?;
            let mut blocks: Vec<Vec<u8>> = Vec::with_capacity(mebibytes);
            for _ in 0..mebibytes {
                // Not zero, so that every page is really there.
                blocks.push(std::hint::black_box(vec![1u8; 1 << 20]));
            }
            print(&format!("holding {} MiB\n", blocks.len()))?;
            loop {
                std::thread::sleep(std::time::Duration::from_secs(3600));
            }
        }
        other => Err(format!("burn {other:?}: cpu or memory")),
    }
}
