//! The project's own commands: `cargo xtask up | test | bench | replay`. `cargo test -p xtask` checks that the tree is
//! tidy.

mod bench;
#[cfg(test)]
mod conformance;
mod placing;
mod replay;
mod repository;
#[cfg(test)]
mod tidy;

use anyhow::Result;
use clap::Parser;
use std::ffi::OsString;
use std::process::ExitCode;

/// Commands for working on Gantry
#[derive(Parser)]
#[command(name = "cargo xtask", disable_help_subcommand = true)]
enum Command {
    /// Build gantry and run a cluster on this machine (./up)
    Up {
        /// Options of `gantry up`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Install what the tests need and run all of them (./check)
    Test {
        /// Arguments of `cargo test`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Measure a release build and show the figures beside their budgets
    Bench(bench::Options),
    /// Play a day of a large cell in virtual time, and find the smallest cell for the same work
    Replay(replay::Options),
}

fn main() -> ExitCode {
    let outcome = match Command::parse() {
        Command::Up { arguments } => script("up", &arguments),
        Command::Test { arguments } => script("check", &arguments),
        Command::Bench(options) => bench::main(&options),
        Command::Replay(options) => replay::main(&options),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Becomes a script of the repository's root.
fn script(name: &str, arguments: &[OsString]) -> Result<ExitCode> {
    use std::os::unix::process::CommandExt;
    let path = repository::root().join(name);
    // `exec` only returns where it fails.
    let error = std::process::Command::new(&path).args(arguments).exec();
    Err(anyhow::Error::new(error).context(format!("cannot run {}", path.display())))
}
