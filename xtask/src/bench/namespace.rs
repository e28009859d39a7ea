//! The network namespace that everything runs in: servers, nodes, pods and the clients that measure them.

use super::build::Programs;
use anyhow::{Context, Result, ensure};
use std::process::{Command, ExitCode};

/// A namespace that is deleted when dropped.
struct Namespace(String);

impl Namespace {
    /// A namespace with loopback and, as every machine has, an uplink with a default route. It leads nowhere: both ends of
    /// the pair stay inside.
    fn make() -> Result<Self> {
        let name = format!("gantry-bench-{}", std::process::id());
        ip(&["netns", "add", &name])?;
        let namespace = Self(name);
        for command in [
            "link set lo up",
            "link add uplink0 type veth peer name uplink1",
            "link set uplink1 up",
            "link set uplink0 up",
            // Addresses reserved for documentation (RFC 5737).
            "addr add 192.0.2.2/24 dev uplink0",
            "route add default via 192.0.2.1",
        ] {
            let mut arguments = vec!["-n", &namespace.0];
            arguments.extend(command.split(' '));
            ip(&arguments)?;
        }
        Ok(namespace)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(error) = ip(&["netns", "del", &self.0]) {
            eprintln!("{error:#}");
        }
    }
}

fn ip(arguments: &[&str]) -> Result<()> {
    let output = Command::new("ip").args(arguments).output().context("cannot run ip (package iproute2)")?;
    let message = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip {} failed: {}", arguments.join(" "), message.trim());
    Ok(())
}

/// Runs this program again, with the same options, inside a new namespace.
///
/// # Errors
/// Where the namespace cannot be made or entered.
pub fn run_inside(programs: &Programs) -> Result<ExitCode> {
    let namespace = Namespace::make()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let status = runtime.block_on(async {
        // Not `ip netns exec`: it mounts a fresh /sys, which hides the cgroups.
        let mut child = tokio::process::Command::new("nsenter")
            .arg(format!("--net=/run/netns/{}", namespace.0))
            .arg(&programs.xtask)
            .args(std::env::args_os().skip(1))
            .arg("--inside")
            // Where it was given already, the last one counts.
            .args(["--binary".as_ref(), programs.gantry.as_os_str()])
            .spawn()
            .context("cannot run nsenter (package util-linux)")?;
        loop {
            tokio::select! {
                status = child.wait() => return anyhow::Ok(status?),
                // The terminal tells the child as well, and it cleans up; the namespace has to outlive it.
                signal = tokio::signal::ctrl_c() => signal?,
            }
        }
    })?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
