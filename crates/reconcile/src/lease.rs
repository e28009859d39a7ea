//! Leader election over a Lease: of several candidates one works, and another takes over when it falls silent.

use gantry_api::clock::Clock;
use gantry_api::entropy::Entropy;
use gantry_client::{Api, Client, Error, PostParams};
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use std::future::Future;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// Which Lease, who asks, and how patient everyone is.
#[derive(Clone, Debug)]
pub struct ElectionConfig {
    /// Namespace of the Lease, usually `kube-system`.
    pub namespace: String,
    /// Name of the Lease.
    pub name: String,
    /// This candidate, unique among all.
    pub identity: String,
    /// How long others wait after the last renewal before they take over.
    pub lease_duration: Duration,
    /// How long the leader tries to renew before it gives up.
    pub renew_deadline: Duration,
    /// Pause between tries.
    pub retry_period: Duration,
}

impl ElectionConfig {
    /// Kubernetes' patience: 15 s, 10 s, 2 s.
    #[must_use]
    pub fn new(namespace: &str, name: &str, identity: &str) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
            identity: identity.into(),
            lease_duration: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry_period: Duration::from_secs(2),
        }
    }
}

/// What another's Lease looked like, and when we first saw it so. Only our own clock is trusted.
struct Observed {
    lease: Lease,
    at: Instant,
}

struct Elector {
    config: ElectionConfig,
    api: Api<Lease>,
    clock: Clock,
    entropy: Entropy,
    observed: Option<Observed>,
}

impl Elector {
    fn spec(&self, acquired: Option<LeaseSpec>, transitions: i32) -> LeaseSpec {
        let now = self.clock.micro_time();
        let acquire_time = acquired.and_then(|a| a.acquire_time).unwrap_or_else(|| now.clone());
        LeaseSpec {
            holder_identity: Some(self.config.identity.clone()),
            lease_duration_seconds: Some(i32::try_from(self.config.lease_duration.as_secs()).unwrap_or(i32::MAX)),
            acquire_time: Some(acquire_time),
            renew_time: Some(now),
            lease_transitions: Some(transitions),
            ..Default::default()
        }
    }

    fn observe(&mut self, lease: Lease) {
        if self.observed.as_ref().is_none_or(|o| o.lease.spec != lease.spec) {
            self.observed = Some(Observed { lease, at: Instant::now() });
        } else if let Some(o) = &mut self.observed {
            o.lease = lease;
        }
    }

    /// Takes or renews the Lease; false where another holds it.
    async fn try_acquire(&mut self) -> Result<bool, Error> {
        let params = PostParams::default();
        let current = match self.api.get_opt(&self.config.name).await? {
            Some(l) => l,
            None => {
                let mut lease = Lease { spec: Some(self.spec(None, 0)), ..Default::default() };
                lease.metadata.name = Some(self.config.name.clone());
                lease.metadata.namespace = Some(self.config.namespace.clone());
                let created = self.api.create(&params, &lease).await?;
                self.observe(created);
                return Ok(true);
            }
        };
        self.observe(current.clone());
        let spec = current.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.clone().unwrap_or_default();
        let ours = holder == self.config.identity;
        if !ours && !holder.is_empty() {
            let seconds = u64::try_from(spec.lease_duration_seconds.unwrap_or(0)).unwrap_or(0);
            let patience = Duration::from_secs(seconds);
            if self.observed.as_ref().is_some_and(|o| o.at.elapsed() < patience) {
                return Ok(false);
            }
        }
        let transitions = spec.lease_transitions.unwrap_or(0) + i32::from(!ours);
        let mut mine = current;
        mine.spec = Some(self.spec(ours.then_some(spec), transitions));
        let updated = self.api.update(&params, &mine).await?;
        self.observe(updated);
        Ok(true)
    }

    async fn pause(&self) {
        // Candidates that started together must not meet forever.
        tokio::time::sleep(self.config.retry_period.mul_f64(1.0 + 0.2 * self.entropy.fraction())).await;
    }

    async fn acquire(&mut self) {
        loop {
            match self.try_acquire().await {
                Ok(true) => return,
                Ok(false) => {}
                Err(e) if e.is("Conflict") || e.is("AlreadyExists") => {}
                Err(e) => warn!(lease = %self.config.name, error = %e, "cannot take the lease"),
            }
            self.pause().await;
        }
    }

    /// Returns when the Lease could not be renewed in time.
    async fn renew(&mut self) {
        let mut last = Instant::now();
        loop {
            tokio::time::sleep(self.config.retry_period).await;
            let left = self.config.renew_deadline.saturating_sub(last.elapsed());
            match tokio::time::timeout(left, self.try_acquire()).await {
                Ok(Ok(true)) => last = Instant::now(),
                Ok(Ok(false)) => return,
                Ok(Err(e)) => {
                    warn!(lease = %self.config.name, error = %e, "cannot renew the lease")
                }
                Err(_) => {}
            }
            if last.elapsed() >= self.config.renew_deadline {
                return;
            }
        }
    }

    async fn give_up(&mut self) {
        let Some(o) = self.observed.take() else {
            return;
        };
        let mut lease = o.lease;
        if let Some(s) = &mut lease.spec
            && s.holder_identity.as_ref() == Some(&self.config.identity)
        {
            s.holder_identity = Some(String::new());
            s.lease_duration_seconds = Some(1);
            s.renew_time = Some(self.clock.micro_time());
            if let Err(e) = self.api.update(&PostParams::default(), &lease).await {
                warn!(lease = %self.config.name, error = %e, "cannot give up the lease; it will run out");
            }
        }
    }
}

/// Waits to become leader, then runs `work` with a token that is cancelled when leadership is lost or `cancel` comes.
/// Returns when `work` has returned; true where it ended because of `cancel` or by itself, false where leadership was lost.
pub async fn lead<F, Fut>(
    client: &Client,
    clock: Clock,
    entropy: Entropy,
    config: ElectionConfig,
    cancel: CancellationToken,
    work: F,
) -> bool
where
    F: FnOnce(CancellationToken) -> Fut,
    Fut: Future<Output = ()>,
{
    let api = Api::namespaced(client.clone(), &config.namespace);
    let mut elector = Elector { config, api, clock, entropy, observed: None };
    tokio::select! {
            biased;
        () = cancel.cancelled() => return true,
        () = elector.acquire() => {}
    }
    info!(lease = %elector.config.name, identity = %elector.config.identity, "became leader");
    let leading = cancel.child_token();
    let mut work = std::pin::pin!(work(leading.clone()));
    let lost = tokio::select! {
            biased;
        () = &mut work => { elector.give_up().await; return true; }
        () = cancel.cancelled() => false,
        () = elector.renew() => true,
    };
    leading.cancel();
    work.await;
    if lost {
        warn!(lease = %elector.config.name, "lost leadership");
    } else {
        elector.give_up().await;
    }
    !lost
}
