//! Measurements of configuration files that are read again when they change, under upstream's names.

use gantry_api::clock::Clock;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use sha2::{Digest, Sha256};
use std::fmt::Write;
use std::sync::atomic::AtomicU64;

/// What a file configures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// `AuthenticationConfiguration`.
    Authentication,
    /// `AuthorizationConfiguration`.
    Authorization,
    /// `EncryptionConfiguration`.
    Encryption,
}

impl Subject {
    const ALL: [Subject; 3] = [Subject::Authentication, Subject::Authorization, Subject::Encryption];

    const fn name(self) -> &'static str {
        match self {
            Subject::Authentication => "authentication",
            Subject::Authorization => "authorization",
            Subject::Encryption => "encryption",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    apiserver_id_hash: &'static str,
    status: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Applied {
    apiserver_id_hash: &'static str,
    hash: String,
}

#[derive(Clone, Default)]
struct Series {
    total: Family<Outcome, Counter>,
    last: Family<Outcome, Gauge<f64, AtomicU64>>,
    applied: Family<Applied, Gauge>,
}

/// The measurements of all configuration files. Cheap to clone.
#[derive(Clone, Default)]
pub struct Reloads([Series; 3]);

impl Reloads {
    /// Has them exported.
    pub fn register(&self, registry: &mut Registry) {
        for (subject, series) in Subject::ALL.into_iter().zip(&self.0) {
            let subject = subject.name();
            let name = |name: &str| format!("apiserver_{subject}_config_controller_{name}");
            let help = |what: &str, of: &str| format!("{what} of {subject} configuration {of}");
            let total = help("Total number of automatic reloads", "split by status and apiserver identity");
            registry.register(name("automatic_reloads"), total, series.total.clone());
            let last = help("Timestamp of the last automatic reload", "split by status and apiserver identity");
            registry.register(name("automatic_reload_last_timestamp_seconds"), last, series.last.clone());
            let what = "Information about the last applied";
            let applied = help(what, "with hash as label, split by apiserver identity");
            registry.register(name("last_config_info"), applied, series.applied.clone());
        }
    }

    /// A configuration was taken over at the server's start.
    pub fn begun(&self, subject: Subject, text: &[u8]) {
        let mut hash = "sha256:".to_owned();
        for byte in Sha256::digest(text) {
            write!(hash, "{byte:02x}").expect("a String takes any text");
        }
        let applied = &self.0[subject as usize].applied;
        applied.clear();
        applied.get_or_create(&Applied { apiserver_id_hash: "", hash }).set(1);
    }

    /// A changed file was taken over, or was not.
    pub fn reloaded(&self, subject: Subject, text: &[u8], taken: bool, clock: &Clock) {
        let series = &self.0[subject as usize];
        let outcome = Outcome { apiserver_id_hash: "", status: if taken { "success" } else { "failure" } };
        series.total.get_or_create(&outcome).inc();
        series.last.get_or_create(&outcome).set(clock.now().as_duration().as_secs_f64());
        if taken {
            self.begun(subject, text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::encoding::text::encode;

    #[test]
    fn the_last_configuration_is_told() {
        let reloads = Reloads::default();
        let mut registry = Registry::default();
        reloads.register(&mut registry);
        let clock = Clock::starting_at("2026-01-01T00:00:00Z".parse().unwrap());
        reloads.begun(Subject::Encryption, b"a");
        reloads.reloaded(Subject::Encryption, b"b", false, &clock);
        reloads.reloaded(Subject::Encryption, b"c", true, &clock);
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        let name = "apiserver_encryption_config_controller_";
        let has = |line: &str| text.lines().any(|l| l.starts_with(&format!("{name}{line}")));
        assert!(has("automatic_reloads_total{apiserver_id_hash=\"\",status=\"failure\"} 1"), "{text}");
        assert!(has("automatic_reloads_total{apiserver_id_hash=\"\",status=\"success\"} 1"), "{text}");
        assert!(has("automatic_reload_last_timestamp_seconds{apiserver_id_hash=\"\",status=\"success\"} 17672"));
        let shown: Vec<&str> = text.lines().filter(|l| l.contains("last_config_info{")).collect();
        let hash = "2e7d2c03a9507ae265ecf5b5356885a53393a2029d241394997265a1a25aefc6";
        assert_eq!(shown, [format!("{name}last_config_info{{apiserver_id_hash=\"\",hash=\"sha256:{hash}\"}} 1")]);
    }
}
