//! What clients may ask of this process, and change of it, at `/debug`.

use crate::sampling;
use clap::{ArgMatches, Command};
use futures::FutureExt;
use futures::future::BoxFuture;
use gantry_server::debug::{Process, Sampled};
use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::time::Duration;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::reload::Handle;

/// Replaces the filter of the log.
type Replace = Box<dyn Fn(EnvFilter) -> Result<(), String> + Send + Sync>;

/// How the filter is replaced, and the one the process was started with.
static LOG: OnceLock<(Replace, String)> = OnceLock::new();

/// What the process was told, by flag.
static FLAGS: OnceLock<BTreeMap<String, String>> = OnceLock::new();

/// Keeps what the command line says, given or by default. Only the first call counts.
pub fn keep_flags(command: &Command, matches: &ArgMatches) {
    let (own, of_own) = matches.subcommand().map_or((None, None), |(name, m)| (command.find_subcommand(name), Some(m)));
    let levels = [(Some(command), Some(matches)), (own, of_own)];
    let mut flags = BTreeMap::new();
    for (command, matches) in levels {
        let (Some(command), Some(matches)) = (command, matches) else { continue };
        for argument in command.get_arguments() {
            let (Some(flag), Ok(values)) = (argument.get_long(), matches.try_get_raw(argument.get_id().as_str()))
            else {
                continue;
            };
            let values: Vec<String> = values.into_iter().flatten().map(|v| v.to_string_lossy().into_owned()).collect();
            flags.insert(flag.to_owned(), values.join(","));
        }
    }
    FLAGS.get_or_init(|| flags);
}

/// What the process was told, by flag.
#[must_use]
pub fn flags() -> BTreeMap<String, String> {
    FLAGS.get().cloned().unwrap_or_default()
}

/// Keeps what is needed to change how much is logged; `given` is what the command line said. Only the first call counts.
pub fn keep<S: 'static>(handle: Handle<EnvFilter, S>, given: &str) {
    let replace: Replace = Box::new(move |filter| handle.reload(filter).map_err(|e| e.to_string()));
    LOG.get_or_init(|| (replace, given.to_owned()));
}

/// What is logged at a verbosity of klog's; None for what the process was started with.
const fn filter(verbosity: i32) -> Option<&'static str> {
    match verbosity {
        ..=0 => None,
        1..=3 => Some("info"),
        4..=5 => Some("debug"),
        6.. => Some("trace"),
    }
}

/// This process.
#[derive(Clone, Copy, Debug)]
pub struct ThisProcess;

impl Process for ThisProcess {
    fn sample(&self, wanted: Duration) -> BoxFuture<'static, Result<Sampled, String>> {
        sampling::sample(wanted).boxed()
    }

    fn set_verbosity(&self, verbosity: i32) -> Result<(), String> {
        let Some((replace, given)) = LOG.get() else { return Err("nothing is logged".to_owned()) };
        let filter = EnvFilter::try_new(filter(verbosity).unwrap_or(given)).map_err(|e| e.to_string())?;
        replace(filter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verbosity_is_klogs() {
        assert_eq!([0, 2, 4, 10].map(filter), [None, Some("info"), Some("debug"), Some("trace")]);
        assert_eq!(filter(-1), None);
    }
}
