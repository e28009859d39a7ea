//! The `gantry` binary: every role in one file.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let first = arguments.next();
    // Container processes are started by re-executing this binary. These roles must stay single-threaded and small, so they are
    // entered before anything else exists.
    match first.as_deref().and_then(|a| a.to_str()) {
        Some("shim") => gantry_container::shim_main(arguments),
        Some("container-init") => gantry_container::container_init_main(arguments),
        Some("self") => gantry_container::self_main(arguments),
        _ => gantry::cli::main(),
    }
}
