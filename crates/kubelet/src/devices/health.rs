//! How devices are, as drivers with the service `DRAResourceHealth` tell (KEP-4680). It is shown in the status of pods.

use gantry_grpc::{Channel, Streaming};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// The services that tell it, by the name a plugin announces.
const SERVICES: [&str; 2] = ["v1.DRAResourceHealth", "v1alpha1.DRAResourceHealth"];
/// How long what was told of a device is believed where the driver says nothing else.
const BELIEVED: Duration = Duration::from_secs(30);
/// Wait before a driver that ended its stream is asked again.
const AGAIN: Duration = Duration::from_secs(5);

#[derive(Clone, PartialEq, prost::Message)]
struct Identifier {
    #[prost(string, tag = "1")]
    pool: String,
    #[prost(string, tag = "2")]
    device: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct DeviceHealth {
    #[prost(message, optional, tag = "1")]
    device: Option<Identifier>,
    /// 0: unknown, 1: healthy, 2: unhealthy.
    #[prost(int32, tag = "2")]
    health: i32,
    /// Seconds.
    #[prost(int64, tag = "4")]
    believed: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Told {
    #[prost(message, repeated, tag = "1")]
    devices: Vec<DeviceHealth>,
}

struct Known {
    health: i32,
    at: Instant,
    believed: Duration,
}

/// What is known of all devices.
pub(crate) struct Health {
    /// By driver, pool and name.
    known: Mutex<HashMap<(String, String, String), Known>>,
    changed: watch::Sender<()>,
}

impl Default for Health {
    fn default() -> Self {
        Self { known: Mutex::default(), changed: watch::Sender::new(()) }
    }
}

/// Name of the service a plugin tells health with, of those it announces.
pub(crate) fn service(announced: &[String]) -> Option<&'static str> {
    SERVICES.into_iter().find(|s| announced.iter().any(|a| a == s))
}

impl Health {
    /// Tells when something has changed.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// `Healthy`, `Unhealthy` or `Unknown`.
    pub(crate) fn of(&self, driver: &str, pool: &str, device: &str) -> &'static str {
        let known = self.known.lock();
        match known.get(&(driver.to_owned(), pool.to_owned(), device.to_owned())) {
            Some(k) if k.at.elapsed() <= k.believed && k.health == 1 => "Healthy",
            Some(k) if k.at.elapsed() <= k.believed && k.health == 2 => "Unhealthy",
            _ => "Unknown",
        }
    }

    fn take(&self, driver: &str, told: Told) {
        let mut different = false;
        let mut known = self.known.lock();
        for device in told.devices {
            let id = device.device.unwrap_or_default();
            let believed = u64::try_from(device.believed).ok().filter(|s| *s > 0).map_or(BELIEVED, Duration::from_secs);
            let new = Known { health: device.health, at: Instant::now(), believed };
            let old = known.insert((driver.to_owned(), id.pool, id.device), new);
            different |= old.is_none_or(|o| o.health != device.health || o.at.elapsed() > o.believed);
        }
        drop(known);
        if different {
            self.changed.send_replace(());
        }
    }

    fn forget(&self, driver: &str) {
        self.known.lock().retain(|(d, _, _), _| d != driver);
        self.changed.send_replace(());
    }

    /// Follows what a driver tells, for as long as it is polled.
    pub(crate) async fn follow(&self, driver: &str, service: &str, channel: &Channel) {
        let method = format!("/{service}/NodeWatchResources");
        loop {
            match channel.stream::<_, Told>(&method, &super::api::Empty {}).await {
                Ok(stream) => {
                    self.read(driver, stream).await;
                    self.forget(driver);
                }
                Err(error) => tracing::debug!(driver, %error, "a DRA driver does not tell how its devices are"),
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    async fn read(&self, driver: &str, mut stream: Streaming<Told>) {
        loop {
            match stream.message().await {
                Ok(Some(told)) => self.take(driver, told),
                Ok(None) => return,
                Err(error) => {
                    tracing::info!(driver, %error, "a DRA driver no longer tells how its devices are");
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_was_told_is_believed_for_a_while() {
        let health = Health::default();
        let mut changes = health.changes();
        let told = |state: i32, believed: i64| {
            let device = Some(Identifier { pool: "p".into(), device: "d".into() });
            Told { devices: vec![DeviceHealth { device, health: state, believed }] }
        };
        assert_eq!(health.of("x", "p", "d"), "Unknown");
        health.take("x", told(1, 0));
        assert!(changes.has_changed().unwrap());
        changes.mark_unchanged();
        assert_eq!((health.of("x", "p", "d"), health.of("y", "p", "d")), ("Healthy", "Unknown"));
        health.take("x", told(1, 0));
        assert!(!changes.has_changed().unwrap());
        tokio::time::advance(Duration::from_secs(31)).await;
        assert_eq!(health.of("x", "p", "d"), "Unknown");
        health.take("x", told(2, 3600));
        tokio::time::advance(Duration::from_secs(31)).await;
        assert_eq!(health.of("x", "p", "d"), "Unhealthy");
        health.forget("x");
        assert_eq!(health.of("x", "p", "d"), "Unknown");
        let announced = ["v1.DRAPlugin".to_owned(), "v1alpha1.DRAResourceHealth".to_owned()];
        assert_eq!((service(&announced), service(&announced[..1])), (Some(SERVICES[1]), None));
    }
}
