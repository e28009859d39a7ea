//! The command line.

use crate::config::{AgentOptions, ClusterOptions, DataDirOption, ServerOptions};
use crate::ranges::Ranges;
use crate::roles;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use std::io::IsTerminal;
use std::path::PathBuf;
use std::pin::Pin;
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

/// Kubernetes in one binary
#[derive(Parser, Debug)]
#[command(name = "gantry", version, about, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Log level or filter, e.g. info, debug, gantry_kubelet=debug
    #[arg(long, global = true, value_name = "FILTER", default_value = "warn", env = "GANTRY_LOG")]
    log: String,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Run a whole cluster on this machine: server and agent in one process
    Up(Box<UpOptions>),
    /// Stop the cluster of a data directory: its pods, interfaces, rules, mounts and cgroups
    Down(DownOptions),
    /// Run the server role: API server, store, controllers, scheduler
    Server(Box<ServerCommand>),
    /// Run the agent role: join this machine to a server as a node
    Agent(Box<AgentCommand>),
    /// Images on this node
    #[command(subcommand)]
    Image(ImageCommand),
    /// Say why something is as it is
    #[command(subcommand)]
    Explain(ExplainCommand),
}

/// `gantry up`
#[derive(clap::Args, Clone, Debug)]
pub struct UpOptions {
    /// Where everything is kept
    #[command(flatten)]
    pub data: DataDirOption,
    /// The server
    #[command(flatten)]
    pub server: ServerOptions,
    /// The cluster's ranges
    #[command(flatten)]
    pub cluster: ClusterOptions,
    /// The node
    #[command(flatten)]
    pub agent: AgentOptions,
    /// Deploy a demonstration: three replicas of a small web server behind a Service
    #[arg(long)]
    pub demo: bool,
}

/// `gantry down`
#[derive(clap::Args, Clone, Debug)]
pub struct DownOptions {
    /// Where everything is kept
    #[command(flatten)]
    pub data: DataDirOption,
    /// Delete the data directory too: every object and image of the cluster
    #[arg(long)]
    pub purge: bool,
}

/// `gantry server`
#[derive(clap::Args, Clone, Debug)]
pub struct ServerCommand {
    /// Where everything is kept
    #[command(flatten)]
    pub data: DataDirOption,
    /// The server
    #[command(flatten)]
    pub server: ServerOptions,
    /// The cluster's ranges
    #[command(flatten)]
    pub cluster: ClusterOptions,
}

/// `gantry agent`
#[derive(clap::Args, Clone, Debug)]
pub struct AgentCommand {
    /// Where everything is kept
    #[command(flatten)]
    pub data: DataDirOption,
    /// Address of the server, https://HOST:PORT
    #[arg(long = "server", value_name = "URL")]
    pub server_url: String,
    /// File with the server's CA certificate (pki/ca.crt of its data directory); needed the first time only
    #[arg(long, value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
    /// Instead of the file: hash of the CA's public key, sha256:HEX, to know the right CA by when the server tells its own;
    /// needed the first time only; may be repeated
    #[arg(long, value_name = "HASH")]
    pub discovery_token_ca_cert_hash: Vec<String>,
    /// File with the token for joining (pki/join-token of the server's data directory); needed the first time only
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// This node's share of the pod addresses, of each family that the cluster has (CIDR or CIDR,CIDR); the one that the
    /// server gives it (--allocate-node-cidrs) unless given
    #[arg(long, value_name = "CIDR")]
    pub node_cidr: Option<Ranges>,
    /// The cluster's ranges
    #[command(flatten)]
    pub cluster: ClusterOptions,
    /// The node
    #[command(flatten)]
    pub agent: AgentOptions,
}

/// `gantry image …`
#[derive(Subcommand, Debug)]
pub enum ImageCommand {
    /// Import images from a tar archive: OCI layout or docker save, plain, gzip or zstd
    Import {
        /// Where everything is kept
        #[command(flatten)]
        data: DataDirOption,
        /// The archive
        file: PathBuf,
        /// Name for the image, where the archive names none
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
    },
    /// List images
    Ls {
        /// Where everything is kept
        #[command(flatten)]
        data: DataDirOption,
    },
    /// Remove an image
    Rm {
        /// Where everything is kept
        #[command(flatten)]
        data: DataDirOption,
        /// Names or ids
        #[arg(required = true)]
        images: Vec<String>,
    },
    /// Show an image's configuration as JSON
    Inspect {
        /// Where everything is kept
        #[command(flatten)]
        data: DataDirOption,
        /// Name or id
        image: String,
    },
    /// Pull an image from its registry
    Pull {
        /// Where everything is kept
        #[command(flatten)]
        data: DataDirOption,
        /// Name
        image: String,
        /// Registry host (and port) to be spoken to in plain HTTP; may be repeated
        #[arg(long, value_name = "HOST")]
        insecure_registry: Vec<String>,
        /// USER:PASSWORD for the registry
        #[arg(long, value_name = "USER:PASSWORD", env = "GANTRY_REGISTRY_CREDENTIALS")]
        credentials: Option<String>,
    },
}

/// `gantry explain …`
#[derive(Subcommand, Debug)]
pub enum ExplainCommand {
    /// Why a pod is on its node, or on none, and what would change that
    Pod {
        /// Name of the pod
        name: String,
        /// Its namespace
        #[arg(long, short, value_name = "NAMESPACE", default_value = "default")]
        namespace: String,
        /// How to reach the server; ~/.kube/config unless given
        #[arg(long, value_name = "FILE", env = "KUBECONFIG")]
        kubeconfig: Option<PathBuf>,
        /// Words for people, or everything as JSON
        #[arg(long, short, value_name = "FORMAT", value_enum, default_value_t = ExplainFormat::Text)]
        output: ExplainFormat,
    },
}

/// How explanations are printed.
#[derive(clap::ValueEnum, Clone, Copy, Debug)]
pub enum ExplainFormat {
    /// Words
    Text,
    /// The server's answer
    Json,
}

/// Parses the command line and runs what it says. Failures are printed as one line with their causes.
#[must_use]
pub fn main() -> ExitCode {
    let command = Cli::command();
    let matches = command.clone().get_matches();
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|e| e.format(&mut command.clone()).exit());
    crate::debugging::keep_flags(&command, &matches);
    let filter = match EnvFilter::try_new(&cli.log) {
        Ok(filter) => filter,
        Err(error) => {
            eprintln!("gantry: --log: {error}");
            return ExitCode::from(2);
        }
    };
    let colours = std::io::stderr().is_terminal();
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(std::io::stderr);
    let log = log.with_filter_reloading();
    crate::debugging::keep(log.reload_handle(), &cli.log);
    log.init();
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        tracing::debug!("a TLS provider was installed already");
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("gantry: cannot start the runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    runtime.spawn(crate::memory::give_back());
    // Boxed: the runtime has several ways to drive what it is given, and each would hold a copy of all there is to do.
    let work: Pin<Box<dyn Future<Output = anyhow::Result<()>>>> = match cli.command {
        Command::Up(options) => Box::pin(roles::up::run(*options)),
        Command::Down(options) => Box::pin(roles::down::run(options)),
        Command::Server(command) => Box::pin(roles::server::run(*command)),
        Command::Agent(command) => Box::pin(roles::agent::run(*command)),
        Command::Image(command) => Box::pin(roles::image::run(command)),
        Command::Explain(command) => Box::pin(roles::explain::run(command)),
    };
    match runtime.block_on(work) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("gantry: {}", in_one_line(&error));
            ExitCode::FAILURE
        }
    }
}

/// An error with its causes; a cause that the text before it ends with, because its own author had put it there, is not
/// told twice.
fn in_one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if line.is_empty() {
            line = cause;
        } else if !line.ends_with(&cause) {
            line.push_str(": ");
            line.push_str(&cause);
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::in_one_line;
    use anyhow::Context;
    use std::fmt;
    use std::io::Error;

    /// Tells its cause in its own text, too.
    #[derive(Debug)]
    struct Telling(Error);

    impl fmt::Display for Telling {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "write state: {}", self.0)
        }
    }

    impl std::error::Error for Telling {
        fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
            Some(&self.0)
        }
    }

    #[test]
    fn an_error_tells_each_of_its_causes_once() {
        let full = || Error::other("no space");
        let told = Err::<(), _>(Telling(full())).context("cannot set up the network").unwrap_err();
        assert_eq!(in_one_line(&told), "cannot set up the network: write state: no space");
        let plain = Err::<(), _>(full()).context("cannot write x").unwrap_err();
        assert_eq!(in_one_line(&plain), "cannot write x: no space");
    }
}
