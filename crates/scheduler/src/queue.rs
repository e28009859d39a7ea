//! Pods that wait: ready ones by priority, others for a back-off to pass or for something to change that may help.

use crate::pod::PodInfo;
use crate::profile::Profile;
use crate::promises::Promises;
use crate::room::{self, Want, Wants};
use crate::snapshot::Snapshot;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// A pod nothing helped is tried again after this long all the same, in case a change was missed.
const UNSCHEDULABLE_MAX: Duration = Duration::from_secs(300);

/// Something that happened and may let a pod be placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ClusterChange {
    /// A node came.
    NodeAdded,
    /// A node's allocatable, labels, taints or schedulability changed.
    NodeUpdated,
    /// A placed pod came or changed its labels.
    PodPlaced,
    /// A placed pod went, or shrank.
    PodGone,
    /// A placed pod is being deleted.
    PodTerminating,
    /// A namespace's labels changed.
    NamespaceUpdated,
    /// A claim, a volume, a class or what a node's drivers can do changed.
    Storage,
    /// Devices came, are free again, or lost a taint.
    Devices,
    /// A class of devices came or changed.
    DeviceClass,
}

impl ClusterChange {
    /// The event, as upstream calls it; of those that are one here the most frequent.
    #[must_use]
    pub const fn event(self) -> &'static str {
        match self {
            ClusterChange::NodeAdded => "NodeAdd",
            ClusterChange::NodeUpdated => "NodeUpdate",
            ClusterChange::PodPlaced => "AssignedPodAdd",
            ClusterChange::PodGone => "AssignedPodDelete",
            ClusterChange::PodTerminating => "AssignedPodUpdate",
            ClusterChange::NamespaceUpdated => "NamespaceUpdate",
            ClusterChange::Storage => "PersistentVolumeClaimUpdate",
            ClusterChange::Devices => "ResourceClaimUpdate",
            ClusterChange::DeviceClass => "DeviceClassAdd",
        }
    }

    /// Whether it may undo a rejection by `plugin` (the default queueing hints).
    #[must_use]
    pub fn may_help(self, plugin: &str) -> bool {
        use ClusterChange::{
            DeviceClass, Devices, NamespaceUpdated, NodeAdded, NodeUpdated, PodGone, PodPlaced, PodTerminating, Storage,
        };
        match plugin {
            "NodeResourcesFit" => matches!(self, NodeAdded | NodeUpdated | PodGone | DeviceClass),
            "NodePorts" => matches!(self, NodeAdded | NodeUpdated | PodGone),
            "DynamicResources" => matches!(self, NodeAdded | NodeUpdated | Devices | DeviceClass),
            "NodeAffinity" | "TaintToleration" | "NodeUnschedulable" | "NodeName" => {
                matches!(self, NodeAdded | NodeUpdated)
            }
            "VolumeBinding" | "VolumeZone" => matches!(self, NodeAdded | NodeUpdated | Storage),
            "VolumeRestrictions" | "NodeVolumeLimits" => matches!(self, NodeAdded | PodGone | Storage),
            "InterPodAffinity" => {
                matches!(self, NodeAdded | NodeUpdated | PodPlaced | PodGone | NamespaceUpdated)
            }
            // Topology spread, which does not count those that are being deleted, and extenders.
            _ => matches!(self, NodeAdded | NodeUpdated | PodPlaced | PodGone | PodTerminating),
        }
    }
}

/// What waits: a pod, or the pods of a group that are placed together.
#[derive(Clone, Debug)]
pub struct Waiting {
    /// What the queue knows it by: a pod's UID, or what names the group.
    pub id: Arc<str>,
    /// The pod, or those of the group; of what was popped.
    pub pods: Vec<Arc<PodInfo>>,
    /// The key of a pod that waits for long: it is looked up again when its turn comes.
    parked: Option<Box<str>>,
    /// Whether the pods are of a group that is placed together.
    pub together: bool,
    priority: i32,
    /// Failed attempts so far.
    pub attempts: u32,
    /// When it was first taken to be placed.
    pub tried: Option<Instant>,
    /// Order of arrival, for pods of equal priority.
    pub sequence: u64,
    rejected_by: Box<[&'static str]>,
    /// What it asks for, while it waits for nothing but room.
    want: Option<Arc<Want>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Active,
    /// Rejected, and something changed since that may help.
    Backoff(Instant),
    /// Its binding failed, or deciding did.
    Failed(Instant),
    Unschedulable(Instant),
    Gated,
    InFlight,
}

/// Where a pod stands in the queue.
#[derive(Clone, Debug)]
pub struct Standing {
    /// `Active`, `Backoff`, `Unschedulable`, `Gated` or `Deciding`.
    pub place: &'static str,
    /// Active pods that come before it.
    pub ahead: usize,
    /// Pods in the queue, in whatever place.
    pub waiting: usize,
    /// Failed attempts so far.
    pub attempts: u32,
    /// When it is tried again though nothing changes.
    pub retry_after: Option<Duration>,
    /// The plugins that rejected it last.
    pub rejected_by: Vec<&'static str>,
}

impl Place {
    /// The part of the queue, as upstream calls it; None where it is in none.
    const fn queue(self) -> Option<&'static str> {
        match self {
            Place::Active => Some("active"),
            Place::Backoff(_) | Place::Failed(_) => Some("backoff"),
            Place::Unschedulable(_) | Place::Gated => Some("unschedulable"),
            Place::InFlight => None,
        }
    }
}

/// Why a pod came to where it is in the queue, besides changes of the cluster; as upstream calls it.
mod event {
    pub const ADDED: &str = "UnschedulablePodAdd";
    pub const UPDATED: &str = "UnschedulablePodUpdate";
    pub const FAILED: &str = "ScheduleAttemptFailure";
    pub const BACKED_OFF: &str = "BackoffComplete";
    pub const IDLE: &str = "PopFromBackoffQ";
    pub const TIMED_OUT: &str = "UnschedulableTimeout";
}

type Rank = (std::cmp::Reverse<i32>, u64);

/// Finds a pod by its key.
type Find = Box<dyn Fn(&str) -> Option<Arc<PodInfo>> + Send + Sync>;

/// The queue. Keyed by what entries are known by, see [`Waiting`].
pub struct Queue {
    /// Where pods that wait for long are found again.
    find: Option<Find>,
    /// First back-off after a failed attempt; doubles with each.
    backoff_initial: Duration,
    /// Longest back-off.
    backoff_max: Duration,
    /// Boxed, for a table has room for half as many again.
    pods: HashMap<Arc<str>, Box<(Waiting, Place)>>,
    active: BTreeMap<Rank, Arc<str>>,
    timers: BTreeSet<(Instant, Arc<str>)>,
    /// Those in back-off that are tried before it ends where nothing else is to be tried (KEP-5142): by the second in which
    /// it ends, and within each by rank.
    early: BTreeMap<(u64, Rank), Arc<str>>,
    /// What seconds are counted from.
    epoch: Option<Instant>,
    next_sequence: u64,
    /// Waiting pods that were promised a node; almost always empty.
    promises: Promises,
    /// Unschedulable pods by the plugins that rejected them; by none where any change may help.
    rejected: BTreeMap<&'static str, BTreeSet<Arc<str>>>,
    /// Single pods among them that wait for nothing but room.
    wants: Wants,
    /// Others that room may help, wherever it is: groups.
    gathered: BTreeSet<Arc<str>>,
    /// Those for which others are being evicted: whether something happened meanwhile for which they are to be tried.
    evicting: HashMap<Arc<str>, bool>,
    /// UIDs of pods that are not tried while their claims of devices are not all there.
    held: BTreeSet<String>,
    /// What happened since the pod in flight was taken, or since all that was known was looked at for it.
    since_pop: BTreeSet<ClusterChange>,
    /// How many pods came to which part of it, and why.
    incoming: BTreeMap<(&'static str, &'static str), u64>,
}

fn rank(waiting: &Waiting) -> Rank {
    (std::cmp::Reverse(waiting.priority), waiting.sequence)
}

/// Stands for every plugin, where none was named.
const ANY: &str = "";

fn reasons<'a>(rejected_by: &'a [&'static str]) -> impl Iterator<Item = &'static str> + 'a {
    let any = rejected_by.is_empty().then_some(ANY);
    any.into_iter().chain(rejected_by.iter().copied())
}

fn is_gated(pod: &PodInfo) -> bool {
    pod.spec().scheduling_gates.as_ref().is_some_and(|g| !g.is_empty())
}

impl Queue {
    /// An empty queue with these back-offs: the first, and the longest.
    #[must_use]
    pub fn new(backoff_initial: Duration, backoff_max: Duration) -> Self {
        Self {
            find: None,
            backoff_initial,
            backoff_max,
            pods: HashMap::new(),
            active: BTreeMap::new(),
            timers: BTreeSet::new(),
            early: BTreeMap::new(),
            epoch: None,
            next_sequence: 0,
            promises: Promises::new(),
            rejected: BTreeMap::new(),
            wants: Wants::default(),
            gathered: BTreeSet::new(),
            evicting: HashMap::new(),
            held: BTreeSet::new(),
            since_pop: BTreeSet::new(),
            incoming: BTreeMap::new(),
        }
    }

    /// Lets go of pods that nothing helps, of which there may be many, and finds them by key when their turn comes.
    #[must_use]
    pub fn finding(mut self, find: impl Fn(&str) -> Option<Arc<PodInfo>> + Send + Sync + 'static) -> Self {
        self.find = Some(Box::new(find));
        self
    }

    fn backoff(&self, attempts: u32) -> Duration {
        self.backoff_initial.saturating_mul(1 << attempts.saturating_sub(1).min(20)).min(self.backoff_max)
    }

    /// Adds or replaces a pod that has no node yet. A changed pod is tried at once, unless it is in flight.
    pub fn put(&mut self, pod: Arc<PodInfo>, spec_changed: bool) {
        let (uid, priority, held) = (pod.uid.clone(), pod.priority, is_gated(&pod) || self.held.contains(&*pod.uid));
        let entry = self.entry(uid);
        let waiting = Waiting { pods: vec![pod], parked: None, together: false, priority, ..entry };
        self.enter(waiting, held, spec_changed);
    }

    /// Adds or replaces the waiting pods of a group. While it is `held` it is not tried; it is tried at once where pods
    /// came to it or `changed` says so. Its place is by `priority`, or by the lowest of its pods.
    pub fn put_group(&mut self, id: &str, pods: Vec<Arc<PodInfo>>, priority: Option<i32>, held: bool, changed: bool) {
        let entry = self.entry(id.into());
        let is_new = |p: &Arc<PodInfo>| !entry.pods.iter().any(|known| known.uid == p.uid);
        let changed = changed || pods.iter().any(is_new);
        for gone in entry.pods.iter().filter(|known| !pods.iter().any(|p| p.uid == known.uid)) {
            self.promises.remove(&gone.uid);
        }
        let priority = priority.or_else(|| pods.iter().map(|p| p.priority).min()).unwrap_or(0);
        self.enter(Waiting { pods, together: true, priority, ..entry }, held, changed);
    }

    /// The entry as it is, or a new one with no pods.
    fn entry(&mut self, id: Arc<str>) -> Waiting {
        if let Some(entry) = self.pods.get(&id) {
            return entry.0.clone();
        }
        self.next_sequence += 1;
        Waiting {
            id,
            pods: Vec::new(),
            parked: None,
            together: false,
            priority: 0,
            attempts: 0,
            tried: None,
            sequence: self.next_sequence,
            rejected_by: Box::default(),
            want: None,
        }
    }

    fn enter(&mut self, waiting: Waiting, held: bool, changed: bool) {
        let next = match self.pods.get(&waiting.id).map(|entry| entry.1) {
            Some(Place::InFlight) => Place::InFlight,
            _ if held => Place::Gated,
            Some(p @ Place::Unschedulable(_)) if self.evicting.contains_key(&waiting.id) => {
                self.postpone(&waiting.id, changed);
                p
            }
            Some(p @ (Place::Backoff(_) | Place::Failed(_) | Place::Unschedulable(_))) if !changed => p,
            _ => Place::Active,
        };
        let is_new = !self.pods.contains_key(&waiting.id);
        self.set(waiting, next, if is_new { event::ADDED } else { event::UPDATED });
    }

    /// Lets go of the pod where it can be found again and nobody asks for it meanwhile: as one that was promised a node, or
    /// that waits for devices.
    fn park(&self, waiting: &mut Waiting) {
        if let [pod] = waiting.pods.as_slice()
            && self.find.is_some()
            && !waiting.together
            && pod.nominated_node().is_none()
            && !waiting.rejected_by.contains(&crate::devices::PLUGIN)
        {
            waiting.parked = Some(pod.key.clone());
            waiting.pods = Vec::new();
        }
    }

    fn set(&mut self, mut waiting: Waiting, place: Place, event: &'static str) {
        let uid = waiting.id.clone();
        let before = self.take(&uid).and_then(|(_, place)| place.queue());
        if let Some(queue) = place.queue().filter(|queue| before != Some(queue)) {
            // Of one that was let go only the key is left.
            *self.incoming.entry((queue, event)).or_default() += waiting.pods.len().max(1) as u64;
        }
        match place {
            Place::Active => {
                self.active.insert(rank(&waiting), uid.clone());
            }
            Place::Backoff(at) => {
                let second = self.second(at);
                self.early.insert((second, rank(&waiting)), uid.clone());
                self.timers.insert((at, uid.clone()));
            }
            Place::Failed(at) => {
                self.timers.insert((at, uid.clone()));
            }
            Place::Unschedulable(at) => {
                self.timers.insert((at, uid.clone()));
                for plugin in reasons(&waiting.rejected_by) {
                    self.rejected.entry(plugin).or_default().insert(uid.clone());
                }
                if room::lacks_only_room(&waiting.rejected_by) {
                    match waiting.pods.as_slice() {
                        [pod] if !waiting.together => waiting.want = Some(self.wants.insert(pod)),
                        _ => drop(self.gathered.insert(uid.clone())),
                    }
                }
            }
            Place::Gated | Place::InFlight => {}
        }
        for pod in &waiting.pods {
            self.promises.put(pod);
        }
        if matches!(place, Place::Unschedulable(_)) {
            self.park(&mut waiting);
        }
        self.pods.insert(uid, Box::new((waiting, place)));
    }

    /// The second of `at`, since some time before.
    fn second(&mut self, at: Instant) -> u64 {
        at.saturating_duration_since(*self.epoch.get_or_insert(at)).as_secs()
    }

    /// Forgets a pod that was bound or deleted, or a group of which none waits any more.
    pub fn remove(&mut self, id: &str) {
        self.promises.remove(id);
        self.evicting.remove(id);
        self.held.remove(id);
        if let Some((waiting, _)) = self.take(id) {
            waiting.pods.iter().for_each(|p| self.promises.remove(&p.uid));
        }
    }

    /// Forgets a pod that was bound to a node. Returns the other node that it had been promised, which has room for others
    /// again.
    pub fn bound(&mut self, uid: &str, node: &str) -> Option<String> {
        let released = self.promises.of(uid).filter(|promised| *promised != node).map(str::to_owned);
        self.remove(uid);
        released
    }

    /// Takes a pod out of everything but the promises.
    fn take(&mut self, uid: &str) -> Option<(Waiting, Place)> {
        let (mut waiting, place) = *self.pods.remove(uid)?;
        match place {
            Place::Active => {
                self.active.remove(&rank(&waiting));
            }
            Place::Backoff(at) => {
                let second = self.second(at);
                self.early.remove(&(second, rank(&waiting)));
                self.timers.remove(&(at, waiting.id.clone()));
            }
            Place::Failed(at) => {
                self.timers.remove(&(at, waiting.id.clone()));
            }
            Place::Unschedulable(at) => {
                self.timers.remove(&(at, waiting.id.clone()));
                for plugin in reasons(&waiting.rejected_by) {
                    if let Some(uids) = self.rejected.get_mut(plugin) {
                        uids.remove(uid);
                        if uids.is_empty() {
                            self.rejected.remove(plugin);
                        }
                    }
                }
                match waiting.want.take() {
                    Some(want) => self.wants.remove(&want, uid),
                    None => drop(self.gathered.remove(uid)),
                }
            }
            Place::Gated | Place::InFlight => {}
        }
        Some((waiting, place))
    }

    /// Takes what is to be placed next: where nothing else waits to be tried, what something may have helped, without
    /// letting its back-off end.
    pub fn pop(&mut self, now: Instant) -> Option<Waiting> {
        self.expire(now);
        loop {
            if self.active.is_empty()
                && let Some(uid) = self.early.first_key_value().map(|(_, uid)| uid.clone())
                && let Some((waiting, _)) = self.take(&uid)
            {
                self.set(waiting, Place::Active, event::IDLE);
            }
            let (_, uid) = self.active.pop_first()?;
            self.since_pop.clear();
            let (waiting, place) = self.pods.get_mut(&uid)?.as_mut();
            *place = Place::InFlight;
            waiting.tried.get_or_insert(now);
            let Some(key) = waiting.parked.take() else { return Some(waiting.clone()) };
            let found = self.find.as_ref().and_then(|find| find(&key)).filter(|pod| pod.uid == uid);
            if let Some(pod) = found {
                waiting.pods = vec![pod];
                return Some(waiting.clone());
            }
            // It is gone, and whoever tells so is on the way.
            self.pods.remove(&uid);
        }
    }

    /// When the next timer fires.
    #[must_use]
    pub fn next_timer(&self) -> Option<Instant> {
        self.timers.first().map(|(at, _)| *at)
    }

    fn expire(&mut self, now: Instant) {
        while let Some((at, uid)) = self.timers.first().cloned() {
            if at > now {
                break;
            }
            if let Some((waiting, place)) = self.take(&uid) {
                let timed_out = matches!(place, Place::Unschedulable(_));
                let event = if timed_out { event::TIMED_OUT } else { event::BACKED_OFF };
                self.set(waiting, Place::Active, event);
            }
        }
    }

    /// Says that all that is known is looked at now for what was taken: what happened before is no reason to try it again.
    pub(crate) fn deciding(&mut self) {
        self.since_pop.clear();
    }

    /// Puts back a pod no node took. Waits for a change that may help, or for the back-off where one came meanwhile.
    pub fn unschedulable(&mut self, uid: &str, rejected_by: BTreeSet<&'static str>, now: Instant) {
        let Some((mut waiting, _)) = self.take(uid) else {
            return;
        };
        waiting.attempts += 1;
        let helped = self.since_pop.iter().any(|c| rejected_by.is_empty() || rejected_by.iter().any(|p| c.may_help(p)));
        waiting.rejected_by = rejected_by.into_iter().collect();
        let place = if helped {
            Place::Backoff(now + self.backoff(waiting.attempts))
        } else {
            Place::Unschedulable(now + UNSCHEDULABLE_MAX)
        };
        self.set(waiting, place, event::FAILED);
    }

    /// Puts back a pod whose binding failed.
    pub fn failed(&mut self, uid: &str, now: Instant) {
        self.evicting.remove(uid);
        let Some((mut waiting, _)) = self.take(uid) else {
            return;
        };
        waiting.attempts += 1;
        let at = now + self.backoff(waiting.attempts);
        self.set(waiting, Place::Failed(at), event::FAILED);
    }

    /// From when a pod is put next it is not tried, until the opposite is said and it is put again.
    pub fn hold(&mut self, uid: &str, held: bool) {
        if held {
            self.held.insert(uid.to_owned());
        } else {
            self.held.remove(uid);
        }
    }

    /// The pods that are held.
    #[must_use]
    pub fn held(&self) -> Vec<Arc<PodInfo>> {
        let entries = self.held.iter().filter_map(|uid| self.pods.get(uid.as_str()));
        entries.flat_map(|entry| entry.0.pods.iter().cloned()).collect()
    }

    /// Moves pods that `change` may help from unschedulable to back-off (or at once, where that has passed).
    pub fn changed(&mut self, change: ClusterChange, now: Instant) {
        self.since_pop.insert(change);
        let helps = |plugin: &str| plugin == ANY || change.may_help(plugin);
        let helped: BTreeSet<Arc<str>> =
            self.rejected.iter().filter(|(p, _)| helps(p)).flat_map(|(_, uids)| uids).cloned().collect();
        self.retry(helped, change.event(), now);
    }

    /// The same for pods that `plugin` rejected and that are concerned.
    pub fn wake(&mut self, plugin: &str, concerned: impl Fn(&PodInfo) -> bool, now: Instant) {
        self.since_pop.insert(ClusterChange::Devices);
        let is_concerned =
            |uid: &Arc<str>| self.pods.get(uid).is_some_and(|entry| entry.0.pods.iter().any(|p| concerned(p)));
        let rejected = self.rejected.get(plugin).into_iter().flatten();
        let helped = rejected.filter(|uid| is_concerned(uid)).cloned().collect();
        self.retry(helped, ClusterChange::Devices.event(), now);
    }

    /// The same for room that came to be on a node, which is on it in the snapshot already: of those that lack nothing but
    /// room it moves whom it suffices, and who was promised the node. `profile` knows profiles by their names.
    pub(crate) fn freed<'p>(
        &mut self,
        node: &str,
        snapshot: &Snapshot,
        profile: &dyn Fn(&str) -> Option<&'p Profile>,
        now: Instant,
    ) {
        let change = ClusterChange::PodGone;
        self.since_pop.insert(change);
        let helps = |plugin: &str| plugin == ANY || (change.may_help(plugin) && !room::is_of_one_node(plugin));
        let mut helped = self.wants.helped(node, snapshot, &self.promises, profile);
        helped.extend(self.rejected.iter().filter(|(p, _)| helps(p)).flat_map(|(_, uids)| uids).cloned());
        helped.extend(self.gathered.iter().cloned());
        helped.extend(self.promises.on(node).map(|pod| pod.uid.clone()));
        self.retry(helped, change.event(), now);
    }

    /// Moves a pod that nothing helped, because something of its own changed.
    pub(crate) fn again(&mut self, uid: &str, now: Instant) {
        self.retry([uid.into()].into(), event::UPDATED, now);
    }

    /// From now on others are being evicted for a pod that is unschedulable, or for a group. It is not tried before that
    /// is done: it would evict more.
    pub(crate) fn evicting(&mut self, id: &str) {
        match self.pods.get(id).map(|entry| entry.1) {
            Some(Place::Unschedulable(_)) => drop(self.evicting.insert(id.into(), false)),
            // Something happened while it was decided on.
            Some(Place::Backoff(_)) => {
                if let Some((waiting, Place::Backoff(at))) = self.take(id) {
                    let failed_at = at.checked_sub(self.backoff(waiting.attempts)).unwrap_or(at);
                    self.set(waiting, Place::Unschedulable(failed_at + UNSCHEDULABLE_MAX), event::FAILED);
                    self.evicting.insert(id.into(), true);
                }
            }
            _ => {}
        }
    }

    /// The evictions were sent.
    pub(crate) fn evicted(&mut self, id: &str, now: Instant) {
        if self.evicting.remove(id) == Some(true) {
            self.retry([id.into()].into(), ClusterChange::PodGone.event(), now);
        }
    }

    /// What would be tried now is tried after the evictions.
    fn postpone(&mut self, id: &str, changed: bool) {
        if let Some(later) = self.evicting.get_mut(id) {
            *later |= changed;
        }
    }

    fn retry(&mut self, uids: BTreeSet<Arc<str>>, event: &'static str, now: Instant) {
        for uid in uids {
            let Some(Place::Unschedulable(expires)) = self.pods.get(&uid).map(|entry| entry.1) else { continue };
            if self.evicting.contains_key(&uid) {
                self.postpone(&uid, true);
                continue;
            }
            let Some((waiting, _)) = self.take(&uid) else { continue };
            let failed_at = expires.checked_sub(UNSCHEDULABLE_MAX).unwrap_or(now);
            let ready = failed_at + self.backoff(waiting.attempts);
            let next = if ready <= now { Place::Active } else { Place::Backoff(ready) };
            self.set(waiting, next, event);
        }
    }

    /// Whether a pod waits, or is being decided on.
    pub(crate) fn holds(&self, uid: &str) -> bool {
        self.pods.contains_key(uid)
    }

    /// Where a pod stands; `None` where it does not wait.
    #[must_use]
    pub fn standing(&self, uid: &str, now: Instant) -> Option<Standing> {
        let (waiting, place) = self.pods.get(uid)?.as_ref();
        let (place, until) = match place {
            Place::Active => ("Active", None),
            Place::Backoff(at) | Place::Failed(at) => ("Backoff", Some(*at)),
            Place::Unschedulable(at) => ("Unschedulable", Some(*at)),
            Place::Gated => ("Gated", None),
            Place::InFlight => ("Deciding", None),
        };
        Some(Standing {
            place,
            ahead: self.active.range(..rank(waiting)).count(),
            waiting: self.pods.len(),
            attempts: waiting.attempts,
            retry_after: until.map(|at| at.saturating_duration_since(now)),
            rejected_by: waiting.rejected_by.to_vec(),
        })
    }

    /// Number of pods waiting: active, backing off, unschedulable, gated.
    #[must_use]
    pub fn depths(&self) -> (usize, usize, usize, usize) {
        let mut depths = (0, 0, 0, 0);
        for entry in self.pods.values() {
            match entry.1 {
                Place::Active | Place::InFlight => depths.0 += 1,
                Place::Backoff(_) | Place::Failed(_) => depths.1 += 1,
                Place::Unschedulable(_) => depths.2 += 1,
                Place::Gated => depths.3 += 1,
            }
        }
        depths
    }

    /// How many pods came to which part of the queue so far, and why.
    #[must_use]
    pub fn incoming(&self) -> BTreeMap<(&'static str, &'static str), u64> {
        self.incoming.clone()
    }

    /// Unschedulable pods by the plugins that rejected them.
    #[must_use]
    pub fn rejected_by_plugin(&self) -> BTreeMap<&'static str, usize> {
        self.rejected.iter().filter(|(plugin, _)| **plugin != ANY).map(|(plugin, uids)| (*plugin, uids.len())).collect()
    }

    /// Promises a node to a waiting pod, before its status says so; None where what that says holds again. Returns the node
    /// that it had been promised and is not any more, which has room for others again.
    #[must_use]
    pub(crate) fn promise(&mut self, pod: &Arc<PodInfo>, node: Option<&str>) -> Option<String> {
        let entry = self.pods.get(&pod.uid)?;
        // The latest that is known of it, where it was not let go.
        let pod = &entry.0.pods.first().unwrap_or(pod).clone();
        let before = self.promises.of(&pod.uid).map(str::to_owned);
        self.promises.decided(pod, node);
        before.filter(|before| self.promises.of(&pod.uid) != Some(before))
    }

    /// Waiting pods that were promised a node.
    #[must_use]
    pub fn promises(&self) -> &Promises {
        &self.promises
    }
}

#[cfg(test)]
mod tests;
