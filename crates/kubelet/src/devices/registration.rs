//! Plugins make themselves known by a socket in the directory of plugins: they are asked who they are and told what
//! came of it. A plugin whose socket is gone is gone itself.

use super::api::{Empty, PluginInfo, RegistrationStatus};
use super::classic::{self, Classic};
use super::drivers::{self, Drivers};
use crate::logs::{Subscription, subscribe};
use gantry_grpc::{Channel, Target};
use gantry_reconcile::backoff::Backoff;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How long a plugin may take to say who it is, and to take note of what came of it.
const INFO: Duration = Duration::from_secs(1);
const NOTIFY: Duration = Duration::from_secs(5);
/// Waits between attempts to register a plugin.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(122));

/// A socket file; one that is made anew under the same name is another.
type Identity = (u64, u64, i64, i64);

/// What a plugin is.
enum Plugin {
    /// A driver of dynamic resource allocation, by name and endpoint.
    Driver(String, PathBuf),
    /// A plugin of the older sort, by its resource.
    Counted(String),
}

/// Those who take plugins in.
#[derive(Clone)]
struct Takers {
    drivers: Arc<Drivers>,
    classic: Arc<Classic>,
}

/// A socket of the directory.
struct Known {
    identity: Identity,
    /// Once it is registered.
    registered: Option<Plugin>,
    retry: Backoff,
    /// When it is asked again.
    due: Option<Instant>,
}

/// Sockets and directories below `directory`; what begins with a dot is passed over.
fn scan(directory: &Path, sockets: &mut BTreeMap<PathBuf, Identity>, directories: &mut BTreeSet<PathBuf>) {
    directories.insert(directory.to_owned());
    // What vanishes while it is looked at is looked at again.
    let Ok(entries) = std::fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        let Ok(meta) = entry.metadata() else { continue };
        if entry.file_name().to_string_lossy().starts_with('.') {
            continue;
        }
        if meta.is_dir() {
            scan(&path, sockets, directories);
        } else if meta.file_type().is_socket() {
            sockets.insert(path, (meta.dev(), meta.ino(), meta.ctime(), meta.ctime_nsec()));
        }
    }
}

/// The directory of plugins.
pub(crate) struct Registration {
    directory: PathBuf,
    takers: Takers,
    watched: BTreeMap<PathBuf, Subscription>,
    known: BTreeMap<PathBuf, Known>,
}

impl Registration {
    /// Makes the directory.
    ///
    /// # Errors
    /// Where that fails.
    pub(crate) fn begin(directory: PathBuf, drivers: Arc<Drivers>, classic: Arc<Classic>) -> io::Result<Self> {
        std::fs::create_dir_all(&directory)?;
        let takers = Takers { drivers, classic };
        Ok(Self { directory, takers, watched: BTreeMap::new(), known: BTreeMap::new() })
    }

    /// Follows the directory for as long as it is polled.
    pub(crate) async fn run(mut self) {
        loop {
            // Before it is looked at: nothing that comes later is missed.
            self.subscribe();
            self.look().await;
            let due = self.known.values().filter_map(|k| k.due).min();
            let timer = async {
                match due {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let changes: Vec<_> = self.watched.values().map(|s| Box::pin(s.changed())).collect();
            let changed = async {
                match changes.is_empty() {
                    true => std::future::pending().await,
                    false => drop(futures::future::select_all(changes).await),
                }
            };
            tokio::select! {
                () = changed => {}
                () = timer => {}
            }
        }
    }

    /// Has the kernel tell of changes of the directory and those in it.
    fn subscribe(&mut self) {
        let mut directories = BTreeSet::new();
        scan(&self.directory, &mut BTreeMap::new(), &mut directories);
        self.watched.retain(|d, _| directories.contains(d));
        for directory in directories {
            if self.watched.contains_key(&directory) {
                continue;
            }
            match subscribe(&directory) {
                Ok(subscription) => drop(self.watched.insert(directory, subscription)),
                Err(error) => {
                    tracing::warn!(path = %directory.display(), %error, "cannot watch a directory of plugins")
                }
            }
        }
    }

    /// Takes in what has come, and lets go of what has gone.
    pub(super) async fn look(&mut self) {
        let mut sockets = BTreeMap::new();
        scan(&self.directory, &mut sockets, &mut BTreeSet::new());
        let gone: Vec<PathBuf> =
            self.known.iter().filter(|(p, k)| sockets.get(*p) != Some(&k.identity)).map(|(p, _)| p.clone()).collect();
        for path in gone {
            match self.known.remove(&path).and_then(|k| k.registered) {
                Some(Plugin::Driver(name, endpoint)) => self.takers.drivers.remove(&name, &endpoint),
                Some(Plugin::Counted(resource)) => self.takers.classic.disconnect(&resource),
                None => {}
            }
        }
        for (path, identity) in sockets {
            let now = Instant::now();
            let known = self.known.entry(path.clone()).or_insert_with(|| Known {
                identity,
                registered: None,
                retry: Backoff::new(RETRY.0, RETRY.1),
                due: Some(now),
            });
            if known.due.is_none_or(|due| due > now) {
                continue;
            }
            match self.takers.register(&path).await {
                Ok(registered) => {
                    known.registered = Some(registered);
                    known.due = None;
                }
                Err(error) => {
                    tracing::warn!(socket = %path.display(), error, "a plugin cannot be registered");
                    known.due = Some(Instant::now() + known.retry.next_delay());
                }
            }
        }
    }
}

async fn notify(channel: &Channel, error: &str) -> Result<(), String> {
    let status = RegistrationStatus { plugin_registered: error.is_empty(), error: error.to_owned() };
    let told =
        channel.unary::<_, Empty>("/pluginregistration.Registration/NotifyRegistrationStatus", &status, NOTIFY).await;
    told.map(drop).map_err(|e| format!("{error}: {e}"))
}

impl Takers {
    /// Asks a plugin who it is, takes it in, and tells it so.
    async fn register(&self, socket: &Path) -> Result<Plugin, String> {
        let shown = socket.display();
        let channel = Channel::new(Target::Unix(socket.to_owned()));
        let info: PluginInfo =
            channel.unary("/pluginregistration.Registration/GetInfo", &Empty {}, INFO).await.map_err(|e| {
                format!(
                    "RegisterPlugin error -- failed to get plugin info using RPC GetInfo at socket {shown}, err: {e}"
                )
            })?;
        let endpoint = if info.endpoint.is_empty() { socket.to_owned() } else { PathBuf::from(&info.endpoint) };
        let taken = match info.kind.as_str() {
            "DRAPlugin" => drivers::validate(&info.name, &endpoint, &info.supported_versions).map(drop),
            "DevicePlugin" => classic::validate(&info.name, &info.supported_versions),
            kind => {
                let why =
                    format!("RegisterPlugin error -- no handler registered for plugin type: {kind} at socket {shown}");
                return Err(refuse(&channel, why, socket).await);
            }
        };
        if let Err(why) = taken {
            let why = format!("RegisterPlugin error -- plugin validation failed with err: {why}");
            return Err(refuse(&channel, why, socket).await);
        }
        let (plugin, taken) = match info.kind.as_str() {
            "DRAPlugin" => {
                let taken = self.drivers.add(&info.name, &endpoint, &info.supported_versions);
                (Plugin::Driver(info.name, endpoint), taken)
            }
            _ => {
                let taken = self.classic.connect(&info.name, &endpoint).await;
                (Plugin::Counted(info.name), taken)
            }
        };
        if let Err(why) = taken {
            let why = format!("RegisterPlugin error -- plugin registration failed with err: {why}");
            return Err(refuse(&channel, why, socket).await);
        }
        if let Err(e) = notify(&channel, "").await {
            match plugin {
                Plugin::Driver(name, endpoint) => self.drivers.remove(&name, &endpoint),
                Plugin::Counted(resource) => self.classic.disconnect(&resource),
            }
            return Err(format!(
                "RegisterPlugin error -- failed to send registration status at socket {shown}, err: {e}"
            ));
        }
        Ok(plugin)
    }
}

/// Tells a plugin why it is not taken in; what is to be said about it.
async fn refuse(channel: &Channel, error: String, socket: &Path) -> String {
    match notify(channel, &error).await {
        Ok(()) => error,
        Err(e) => {
            let shown = socket.display();
            format!("RegisterPlugin error -- failed to send error at socket {shown}, err: {e}")
        }
    }
}
