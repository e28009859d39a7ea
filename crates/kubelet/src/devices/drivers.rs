//! The drivers of dynamic resource allocation that have registered, and whether they can be reached. Slices of a
//! driver that cannot for a while are removed, so that nobody is scheduled to devices nobody prepares.

use super::api::{Claims, PrepareResponse, UnprepareResponse};
use super::health::{self, Health};
use gantry_client::{Api, Client, DeleteParams, ListParams};
use gantry_grpc::{Channel, Message, Status, Target};
use gantry_reconcile::backoff::Backoff;
use k8s_openapi::api::resource::v1::ResourceSlice;
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::AbortHandle;

/// How long a driver may take for a call.
const CALL: Duration = Duration::from_secs(45);
/// How long a driver may be away before its slices are removed; long enough to replace its pod.
const WIPE_AFTER: Duration = Duration::from_secs(30);
/// Waits between attempts to reach a driver.
const REACH: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(120));
/// Waits between attempts to remove slices.
const WIPE_RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));

/// The services a driver may offer, by the name it announces, most recent first; and how they are called.
const SERVICES: [(&str, &str); 2] = [
    ("v1.DRAPlugin", "k8s.io.kubelet.pkg.apis.dra.v1.DRAPlugin"),
    ("v1beta1.DRAPlugin", "k8s.io.kubelet.pkg.apis.dra.v1beta1.DRAPlugin"),
];

/// One plugin of a driver.
pub(crate) struct Driver {
    endpoint: PathBuf,
    channel: Channel,
    service: &'static str,
    connected: AtomicBool,
    /// Follow the connection and the health of its devices.
    followers: Mutex<Vec<AbortHandle>>,
}

impl Drop for Driver {
    fn drop(&mut self) {
        for follower in self.followers.lock().drain(..) {
            follower.abort();
        }
    }
}

impl Driver {
    async fn call<R: Message + Default>(&self, method: &str, claims: &Claims) -> Result<R, Status> {
        self.channel.unary(&format!("/{}/{method}", self.service), claims, CALL).await
    }

    /// Has devices made ready.
    pub(crate) async fn prepare(&self, claims: &Claims) -> Result<PrepareResponse, Status> {
        self.call("NodePrepareResources", claims).await
    }

    /// Gives devices back.
    pub(crate) async fn unprepare(&self, claims: &Claims) -> Result<UnprepareResponse, Status> {
        self.call("NodeUnprepareResources", claims).await
    }
}

/// What the kubelet and the plugin both speak.
fn choose(versions: &[String]) -> Result<&'static str, String> {
    if versions.is_empty() {
        return Err("empty list of supported gRPC services (aka supported versions)".into());
    }
    let found = SERVICES.iter().find(|(announced, _)| versions.iter().any(|v| v == announced));
    found.map(|(_, service)| *service).ok_or_else(|| {
        let quoted = |names: &mut dyn Iterator<Item = &str>| {
            let all: Vec<String> = names.map(|n| format!("{n:?}")).collect();
            format!("[{}]", all.join(" "))
        };
        format!(
            "none of services supported by the plugin ({}) are supported by the kubelet ({})",
            quoted(&mut versions.iter().map(String::as_str)),
            quoted(&mut SERVICES.iter().map(|(announced, _)| *announced))
        )
    })
}

/// Whether a plugin can be a driver.
///
/// # Errors
/// What the plugin is told.
pub(crate) fn validate(name: &str, endpoint: &Path, versions: &[String]) -> Result<&'static str, String> {
    choose(versions).map_err(|why| {
        format!("invalid supported gRPC versions of DRA driver plugin {name} at endpoint {}: {why}", endpoint.display())
    })
}

#[derive(Default)]
struct State {
    /// By the driver's name, in the order in which they came.
    plugins: BTreeMap<String, Vec<Arc<Driver>>>,
    wipes: HashMap<String, AbortHandle>,
}

/// The drivers of this node.
pub(crate) struct Drivers {
    client: Client,
    node: String,
    state: Mutex<State>,
    /// Told when a driver has come.
    arrived: watch::Sender<()>,
    /// How their devices are.
    pub health: Health,
}

impl Drivers {
    pub(crate) fn new(client: Client, node: &str) -> Arc<Self> {
        let (state, arrived) = (Mutex::default(), watch::Sender::new(()));
        Arc::new(Self { client, node: node.to_owned(), state, arrived, health: Health::default() })
    }

    /// Tells when drivers come.
    pub(crate) fn arrivals(&self) -> watch::Receiver<()> {
        self.arrived.subscribe()
    }

    /// The plugin to ask for a driver: the one that came last of those that are connected, or of all.
    ///
    /// # Errors
    /// That there is none.
    pub(crate) fn get(&self, name: &str) -> Result<Arc<Driver>, String> {
        if name.is_empty() {
            return Err("DRA driver name is empty".into());
        }
        let state = self.state.lock();
        let plugins = state.plugins.get(name).map_or(&[][..], Vec::as_slice);
        let connected = plugins.iter().rev().find(|p| p.connected.load(Ordering::Acquire));
        let found = connected.or(plugins.last()).cloned();
        found.ok_or_else(|| format!("DRA driver {name} is not registered"))
    }

    /// Takes a plugin in.
    ///
    /// # Errors
    /// What the plugin is told.
    pub(crate) fn add(self: &Arc<Self>, name: &str, endpoint: &Path, versions: &[String]) -> Result<(), String> {
        let service = validate(name, endpoint, versions)?;
        let driver = Arc::new(Driver {
            endpoint: endpoint.to_owned(),
            channel: Channel::new(Target::Unix(endpoint.to_owned())),
            service,
            connected: AtomicBool::new(false),
            followers: Mutex::default(),
        });
        let mut state = self.state.lock();
        let plugins = state.plugins.entry(name.to_owned()).or_default();
        // One plugin cannot take over the endpoint of another.
        if plugins.iter().any(|p| p.endpoint == endpoint) {
            return Err(format!("endpoint {} already registered for DRA driver plugin {name}", endpoint.display()));
        }
        plugins.push(driver.clone());
        drop(state);
        let follower = tokio::spawn(follow(Arc::downgrade(self), Arc::downgrade(&driver), name.to_owned()));
        driver.followers.lock().push(follower.abort_handle());
        if let Some(service) = health::service(versions) {
            // With a connection of its own: it does not keep the driver, which ends it.
            let (drivers, name) = (self.clone(), name.to_owned());
            let channel = Channel::new(Target::Unix(endpoint.to_owned()));
            let told = tokio::spawn(async move { drivers.health.follow(&name, service, &channel).await });
            driver.followers.lock().push(told.abort_handle());
        }
        self.look(name);
        self.arrived.send_replace(());
        tracing::info!(driver = name, endpoint = %endpoint.display(), service, "a DRA driver has registered");
        Ok(())
    }

    /// Lets a plugin go.
    pub(crate) fn remove(self: &Arc<Self>, name: &str, endpoint: &Path) {
        let mut state = self.state.lock();
        if let Some(plugins) = state.plugins.get_mut(name) {
            plugins.retain(|p| p.endpoint != endpoint);
            if plugins.is_empty() {
                state.plugins.remove(name);
            }
        }
        drop(state);
        tracing::info!(driver = name, endpoint = %endpoint.display(), "a DRA driver has gone");
        self.look(name);
    }

    /// Plans to remove the slices of a driver that cannot be reached, or no longer does.
    fn look(self: &Arc<Self>, name: &str) {
        let mut state = self.state.lock();
        let reachable =
            state.plugins.get(name).is_some_and(|all| all.iter().any(|p| p.connected.load(Ordering::Acquire)));
        if reachable {
            if let Some(wipe) = state.wipes.remove(name) {
                wipe.abort();
            }
            return;
        }
        if state.wipes.contains_key(name) {
            return;
        }
        let (drivers, driver) = (self.clone(), name.to_owned());
        let wipe = tokio::spawn(async move {
            tokio::time::sleep(WIPE_AFTER).await;
            tracing::info!(driver, "a DRA driver has not come back: its ResourceSlices are removed");
            drivers.wipe(Some(&driver)).await;
            drivers.state.lock().wipes.remove(&driver);
        });
        state.wipes.insert(name.to_owned(), wipe.abort_handle());
    }

    /// Removes the slices of this node, of one driver or all. Tries until it is done.
    pub(crate) async fn wipe(&self, driver: Option<&str>) {
        let mut selector = format!("spec.nodeName={}", self.node);
        if let Some(driver) = driver {
            selector += &format!(",spec.driver={driver}");
        }
        let select = ListParams { field_selector: Some(selector), ..ListParams::default() };
        let mut retry = Backoff::new(WIPE_RETRY.0, WIPE_RETRY.1);
        loop {
            let api = Api::<ResourceSlice>::all(self.client.clone());
            match api.delete_collection(&DeleteParams::default(), &select).await {
                Ok(()) => return,
                Err(error) if error.is("NotFound") => return,
                Err(error) => tracing::warn!(%error, "cannot remove ResourceSlices"),
            }
            tokio::time::sleep(retry.next_delay()).await;
        }
    }

    /// Stops what goes on by itself.
    pub(crate) fn stop(&self) {
        let mut state = self.state.lock();
        for (_, wipe) in state.wipes.drain() {
            wipe.abort();
        }
        state.plugins.clear();
    }
}

/// Keeps note of whether a plugin can be reached.
async fn follow(drivers: std::sync::Weak<Drivers>, driver: std::sync::Weak<Driver>, name: String) {
    let mut retry = Backoff::new(REACH.0, REACH.1);
    loop {
        let connection = {
            let Some(driver) = driver.upgrade() else { return };
            driver.channel.connect().await
        };
        let tell = |connected: bool| {
            let (Some(drivers), Some(driver)) = (drivers.upgrade(), driver.upgrade()) else { return false };
            driver.connected.store(connected, Ordering::Release);
            drivers.look(&name);
            true
        };
        match connection {
            Ok(lost) => {
                retry.reset();
                if !tell(true) {
                    return;
                }
                lost.cancelled().await;
                if !tell(false) {
                    return;
                }
            }
            Err(error) => {
                tracing::debug!(driver = name, %error, "a DRA driver cannot be reached");
                tokio::time::sleep(retry.next_delay()).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_service_that_both_know_is_chosen() {
        let with = |versions: &[&str]| {
            let versions: Vec<String> = versions.iter().map(|v| (*v).to_owned()).collect();
            validate("d.example.com", Path::new("/d.sock"), &versions)
        };
        assert_eq!(with(&["v1beta1.DRAPlugin", "v1.DRAPlugin"]), Ok(SERVICES[0].1));
        assert_eq!(with(&["x", "v1beta1.DRAPlugin"]), Ok(SERVICES[1].1));
        let head = "invalid supported gRPC versions of DRA driver plugin d.example.com at endpoint /d.sock: ";
        assert_eq!(with(&[]), Err(format!("{head}empty list of supported gRPC services (aka supported versions)")));
        assert_eq!(
            with(&["1.0.0"]),
            Err(format!(
                "{head}none of services supported by the plugin ([\"1.0.0\"]) are supported by the kubelet \
                 ([\"v1.DRAPlugin\" \"v1beta1.DRAPlugin\"])"
            ))
        );
    }
}
