//! API priority and fairness (KEP-1040): every request belongs to a flow schema and through it to a priority level; levels
//! have seats of their own, lend what they do not use, queue what finds no seat, and refuse what finds no queue.
//!
//! Differences from upstream's that no client sees: seats move between levels when a request arrives or ends and the last
//! move was ten seconds ago, not on a timer; and a write takes no seats after its end for the watches it wakes, because
//! here that is putting a pointer into their queues.
//!
//! In-process components do not come here: they bound themselves, and refusing them would stall the cluster's repair.

mod demand;
pub mod keeper;
mod matching;
mod metrics;
mod queue_set;
mod report;
mod shares;
pub mod turns;

use crate::authn::UserInfo;
use crate::debug;
use crate::request::RequestInfo;
use demand::PERIOD;
use gantry_api::clock::Clock;
use gantry_api::flowcontrol::defaults;
use gantry_api::k8s_openapi::api::flowcontrol::v1::{FlowSchema, FlowSchemaSpec, PriorityLevelConfiguration};
use gantry_api::meta::object::Meta;
use http::{HeaderMap, HeaderName, HeaderValue};
use metrics::FlowMetrics;
use parking_lot::Mutex;
use queue_set::{Left, QueueSet, Queuing, Request, Start};
use sha2::{Digest, Sha256};
use shares::Claim;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use turns::{LevelId, Turns};

/// How long a request may wait for its turn: a quarter of the time a request may take, as upstream.
const QUEUE_WAIT: Duration = Duration::from_secs(15);
/// Objects of a list that take one seat, and seats that one request takes at most.
const OBJECTS_PER_SEAT: usize = 100;
const WIDTH_MAX: u32 = 10;
/// The part of a level's seats that one request may take.
const WIDTH_PART: f64 = 0.15;
/// Seconds that a client is told to wait at most.
const RETRY_AFTER_MAX: i64 = 32;

const SCHEMA_UID: HeaderName = HeaderName::from_static("x-kubernetes-pf-flowschema-uid");
const LEVEL_UID: HeaderName = HeaderName::from_static("x-kubernetes-pf-prioritylevel-uid");

/// Whether a request may last as long as its client likes.
#[must_use]
pub fn is_long_running(info: &RequestInfo) -> bool {
    const LONG: &[&str] = &["attach", "exec", "proxy", "log", "portforward"];
    let long = info.verb == "watch" || info.verb == "proxy";
    long || if info.is_resource { LONG.contains(&info.subresource.as_str()) } else { debug::is_profile(&info.path) }
}

/// Whether a request only reads.
#[must_use]
pub fn is_read_only(info: &RequestInfo) -> bool {
    matches!(info.verb.as_str(), "get" | "list" | "watch" | "head" | "options")
}

/// Where a request belongs, as its answer says it. UIDs, because names would tell clients how they are valued.
#[derive(Clone, Debug)]
pub struct Class {
    schema: HeaderValue,
    level: HeaderValue,
}

impl Class {
    /// Sets the headers of the answer.
    pub fn mark(&self, headers: &mut HeaderMap) {
        headers.insert(SCHEMA_UID, self.schema.clone());
        headers.insert(LEVEL_UID, self.level.clone());
    }
}

/// A request that found no place.
#[derive(Clone, Debug)]
pub struct Refused {
    /// Where it belongs.
    pub class: Class,
    /// Seconds after which to try again.
    pub retry_after: i64,
}

/// The seats of a request; dropping it gives them back.
pub struct Seats {
    flow: Arc<Flow>,
    id: u64,
    level: String,
    schema: Arc<str>,
    /// Where the request belongs.
    pub class: Class,
}

impl Drop for Seats {
    fn drop(&mut self) {
        if self.flow.leave(&self.level, self.id) == Left::Waiting {
            if let Some(level) = self.flow.state.lock().levels.get_mut(&self.level) {
                level.set.totals.cancelled += 1;
            }
            self.flow.metrics.refused(&self.level, &self.schema, "cancelled");
        }
    }
}

/// Refusals of late, from which follows what clients are told to wait: it doubles while they keep coming, and falls by a
/// second at a time.
struct Refusals {
    seconds: VecDeque<(i64, i64)>,
    retry_after: i64,
    raised: i64,
}

impl Refusals {
    fn note(&mut self, now: i64) {
        if let Some((second, count)) = self.seconds.back_mut().filter(|(second, _)| *second == now) {
            debug_assert_eq!(*second, now);
            *count += 1;
            return;
        }
        let of_late = self.seconds.iter().filter(|(second, _)| now - second <= self.retry_after);
        let refused: i64 = of_late.map(|(_, count)| count).sum();
        if now - self.raised >= self.retry_after && refused >= 3 * self.retry_after {
            self.retry_after = (2 * self.retry_after).min(RETRY_AFTER_MAX);
            self.raised = now;
        } else if refused < self.retry_after && self.retry_after > 1 {
            self.retry_after -= 1;
        }
        self.seconds.push_back((now, 1));
        self.seconds.retain(|(second, _)| now - second <= RETRY_AFTER_MAX);
    }
}

struct Schema {
    name: Arc<str>,
    spec: FlowSchemaSpec,
    class: Class,
}

struct Level {
    config: PriorityLevelConfiguration,
    set: QueueSet,
    /// It is to go as soon as it is idle.
    quiescing: bool,
    /// Seats by shares; what is kept of them; what there may be; what there is now.
    nominal: u32,
    least: u32,
    most: u32,
    current: u32,
    refusals: Refusals,
    /// What it is called where its users take turns.
    turns: LevelId,
}

impl Level {
    fn new(config: PriorityLevelConfiguration, now: Instant) -> Self {
        let refusals = Refusals { seconds: VecDeque::new(), retry_after: 1, raised: 0 };
        let set = QueueSet::new(Some(0), Queuing::default(), now);
        let turns = LevelId::UNKNOWN;
        Self { config, set, quiescing: false, nominal: 0, least: 0, most: 0, current: 0, refusals, turns }
    }

    fn is_exempt(&self) -> bool {
        self.config.spec.type_ == "Exempt"
    }

    fn shares(&self) -> i32 {
        let spec = &self.config.spec;
        let limited = spec.limited.as_ref().and_then(|l| l.nominal_concurrency_shares);
        limited.or(spec.exempt.as_ref().and_then(|x| x.nominal_concurrency_shares)).unwrap_or(0)
    }

    fn queuing(&self) -> Queuing {
        let queuing = self.config.spec.limited.as_ref().and_then(|l| l.limit_response.queuing.as_ref());
        let number = |n: Option<i32>| usize::try_from(n.unwrap_or(0)).unwrap_or(0);
        queuing.map_or_else(Queuing::default, |q| Queuing {
            queues: number(q.queues),
            hand: number(q.hand_size).max(1),
            length: number(q.queue_length_limit),
        })
    }

    fn configure(&mut self, seats: u32, all_shares: i64) {
        let spec = &self.config.spec;
        let limited = spec.limited.as_ref();
        let lendable = limited.and_then(|l| l.lendable_percent);
        let lendable = lendable.or(spec.exempt.as_ref().and_then(|x| x.lendable_percent)).unwrap_or(0);
        self.nominal = shares::nominal(seats, self.shares(), all_shares);
        self.least = self.nominal.saturating_sub(shares::part(self.nominal, lendable));
        let borrow = limited.and_then(|l| l.borrowing_limit_percent);
        self.most = borrow.map_or(seats.max(self.nominal), |b| self.nominal + shares::part(self.nominal, b));
    }

    /// Sets the seats there are now.
    fn allot(&mut self, seats: u32, now: Instant) {
        self.current = seats;
        let limit = (!self.is_exempt()).then_some(seats);
        self.set.configure(limit, self.queuing(), now);
    }

    fn width(&self, objects: usize) -> u32 {
        let most = ((f64::from(self.nominal) * WIDTH_PART).ceil() as u32).clamp(1, WIDTH_MAX);
        u32::try_from(objects.div_ceil(OBJECTS_PER_SEAT)).unwrap_or(u32::MAX).clamp(1, most)
    }
}

struct State {
    schemas: Vec<Schema>,
    levels: BTreeMap<String, Level>,
    /// When seats were last moved between levels.
    moved: Instant,
    next_id: u64,
}

/// Flow control.
pub struct Flow {
    seats: u32,
    wait: Duration,
    clock: Clock,
    metrics: FlowMetrics,
    turns: Arc<Turns>,
    state: Mutex<State>,
}

fn header(uid: Option<&String>) -> HeaderValue {
    HeaderValue::from_str(uid.map_or("", |uid| uid.as_str())).unwrap_or(HeaderValue::from_static(""))
}

/// A hash of the flow, which deals its hand.
fn flow_hash(schema: &str, distinguisher: &str) -> u64 {
    let sum = Sha256::new().chain_update(schema).chain_update([0]).chain_update(distinguisher).finalize();
    sum.iter().take(8).rev().fold(0, |hash, byte| hash << 8 | u64::from(*byte))
}

impl Flow {
    /// Flow control of this many seats as it is without any object: only what is mandatory.
    #[must_use]
    pub fn new(seats: u32, clock: Clock) -> Arc<Self> {
        Self::with(seats, QUEUE_WAIT, clock)
    }

    fn with(seats: u32, wait: Duration, clock: Clock) -> Arc<Self> {
        let state = State { schemas: Vec::new(), levels: BTreeMap::new(), moved: Instant::now(), next_id: 0 };
        let (metrics, turns) = (FlowMetrics::default(), Turns::new());
        let flow = Self { seats, wait, clock, metrics, turns, state: Mutex::new(state) };
        flow.digest(Vec::new(), Vec::new());
        Arc::new(flow)
    }

    /// Where users take turns, in the same levels.
    #[must_use]
    pub fn turns(&self) -> &Arc<Turns> {
        &self.turns
    }

    /// Takes over the objects there are. What is mandatory and missing is imagined; schemas without their level are left
    /// out; levels that are no more stay until they are idle.
    pub fn digest(&self, mut schemas: Vec<FlowSchema>, mut levels: Vec<PriorityLevelConfiguration>) {
        let now = Instant::now();
        for level in defaults::mandatory_priority_levels() {
            if !levels.iter().any(|l| l.metadata.name == level.metadata.name) {
                levels.push(level);
            }
        }
        schemas.retain(|s| levels.iter().any(|l| l.metadata.name() == s.spec.priority_level_configuration.name));
        for schema in defaults::mandatory_flow_schemas() {
            if !schemas.iter().any(|s| s.metadata.name == schema.metadata.name) {
                schemas.push(schema);
            }
        }
        schemas.sort_by(|a, b| {
            let key = |s: &FlowSchema| (s.spec.matching_precedence, s.metadata.name.clone());
            key(a).cmp(&key(b))
        });

        let mut state = self.state.lock();
        let state = &mut *state;
        state.schemas = schemas
            .into_iter()
            .map(|schema| {
                let wanted = &schema.spec.priority_level_configuration.name;
                let level = levels.iter().find(|l| l.metadata.name() == wanted);
                let class = Class {
                    schema: header(schema.metadata.uid.as_ref()),
                    level: header(level.and_then(|l| l.metadata.uid.as_ref())),
                };
                Schema { name: schema.metadata.name().into(), class, spec: schema.spec }
            })
            .collect();
        for level in state.levels.values_mut() {
            level.quiescing = true;
        }
        for config in levels {
            let name = config.metadata.name().to_owned();
            let level = state.levels.entry(name).or_insert_with(|| Level::new(config.clone(), now));
            (level.config, level.quiescing) = (config, false);
        }
        state.levels.retain(|_, l| !(l.quiescing && l.set.is_idle()));
        self.share_out(state, now);
    }

    /// Gives every level its share anew; demand moves seats again from there.
    fn share_out(&self, state: &mut State, now: Instant) {
        let all: i64 = state.levels.values().map(|l| i64::from(l.shares())).sum();
        for level in state.levels.values_mut() {
            level.configure(self.seats, all);
            let nominal = level.nominal;
            level.allot(nominal, now);
        }
        // What never waits for a seat has no shares of its own. Turns have to be shared, and it has as many of them as who has
        // most of the others: nodes must not wait for an administrator without measure.
        let shares = |level: &Level| u32::try_from(level.shares()).unwrap_or(0);
        let most = state.levels.values().filter(|level| !level.is_exempt()).map(shares).max().unwrap_or(0);
        let least = |level: &Level| if level.is_exempt() { most } else { 0 };
        let parts: Vec<_> = state.levels.iter().map(|(name, l)| (name.as_str(), shares(l).max(least(l)))).collect();
        let ids = self.turns.divide(&parts);
        for (level, id) in state.levels.values_mut().zip(ids) {
            level.turns = id;
        }
    }

    /// Moves seats to where they are wanted, where the last move was long enough ago.
    fn borrow(state: &mut State, now: Instant) {
        let since = now.saturating_duration_since(state.moved);
        if since < PERIOD {
            return;
        }
        state.moved = now;
        let periods = (since.as_secs_f64() / PERIOD.as_secs_f64()).floor();
        let all: u32 = state.levels.values().map(|l| l.nominal).sum();
        let (mut left, mut least_sum, mut wanted_sum) = (f64::from(all), 0.0, 0.0);
        let mut claims = Vec::new();
        for level in state.levels.values_mut() {
            level.set.demand.end_period(periods, now);
            let (least, peak) = (f64::from(level.least), level.set.demand.peak);
            if level.is_exempt() {
                // What never waits is taken first, whatever the shares say.
                left -= least.max(peak);
                level.current = least.max(peak) as u32;
                continue;
            }
            let keep = least.max(peak.min(f64::from(level.nominal)));
            least_sum += least;
            wanted_sum += keep;
            let wanted = keep.max(level.set.demand.smoothed);
            claims.push(Claim { least: keep, wanted, most: f64::from(level.most).max(keep) });
        }
        let limited = state.levels.values_mut().filter(|l| !l.is_exempt());
        if left <= wanted_sum {
            // Not even what was used can be kept: everybody gives up the same part of what it may lend.
            let part =
                if wanted_sum > least_sum { ((left - least_sum) / (wanted_sum - least_sum)).max(0.0) } else { 0.0 };
            for (level, claim) in limited.zip(&claims) {
                let least = f64::from(level.least);
                level.allot((least + part * (claim.least - least)).round() as u32, now);
            }
            return;
        }
        for (level, seats) in limited.zip(shares::divide(left, &claims)) {
            level.allot(seats.round() as u32, now);
        }
    }

    /// Waits for the request's turn. `objects` is how many objects it may read; `belongs_to` is told the level, where it is a
    /// request for a resource: of others, even those of nobody may be exempt, for their path. None where requests of this sort
    /// take no seat: those that last as long as their client likes, except for the beginning of watches.
    ///
    /// # Errors
    /// Where it must come back later.
    pub async fn admit(
        self: &Arc<Self>,
        info: &RequestInfo,
        user: &UserInfo,
        objects: impl FnOnce() -> usize,
        belongs_to: impl FnOnce(LevelId),
    ) -> Result<Option<Seats>, Refused> {
        let objects = if matches!(info.verb.as_str(), "list" | "watch") { objects() } else { 0 };
        let arrived = Instant::now();
        let (started, seats) = {
            let mut state = self.state.lock();
            let state = &mut *state;
            Self::borrow(state, arrived);
            let found = state.schemas.iter().find(|s| matching::matches(&s.spec, info, user));
            // Whoever is in none of the groups everybody is in still belongs to the last schema.
            let schema = found.or(state.schemas.iter().rfind(|s| &*s.name == defaults::CATCH_ALL));
            let Some(schema) = schema else { return Ok(None) };
            let name = &schema.spec.priority_level_configuration.name;
            let Some(level) = state.levels.get_mut(name) else { return Ok(None) };
            if info.is_resource {
                belongs_to(level.turns);
            }
            if is_long_running(info) && info.verb != "watch" {
                return Ok(None);
            }
            state.next_id += 1;
            let distinguisher = matching::distinguisher(&schema.spec, info, user);
            let hash = flow_hash(&schema.name, &distinguisher);
            let request = Request {
                schema: schema.name.clone(),
                distinguisher,
                width: level.width(objects),
                arrived: self.clock.now(),
                started: None,
                user: user.username.clone(),
                info: info.clone(),
            };
            let started = level.set.start(state.next_id, hash, request, arrived);
            if let Start::Refused(reason) = started {
                level.refusals.note(self.clock.now().as_second());
                self.metrics.refused(name, &schema.name, reason);
                return Err(Refused { class: schema.class.clone(), retry_after: level.refusals.retry_after });
            }
            let (id, level, class) = (state.next_id, name.clone(), schema.class.clone());
            (started, Seats { flow: self.clone(), id, level, schema: schema.name.clone(), class })
        };
        if let Start::Waiting(turn) = started
            && tokio::time::timeout(self.wait, turn).await.is_err()
            && let Some(retry_after) = self.give_up(&seats)
        {
            self.metrics.waited(&seats.level, &seats.schema, false, arrived.elapsed());
            return Err(Refused { class: seats.class.clone(), retry_after });
        }
        self.metrics.waited(&seats.level, &seats.schema, true, arrived.elapsed());
        self.metrics.dispatched(&seats.level, &seats.schema);
        Ok(Some(seats))
    }

    /// Takes a request that waited too long out of its queue. Returns what its client is told to wait; None where its turn
    /// came in the last moment.
    fn give_up(&self, seats: &Seats) -> Option<i64> {
        let mut state = self.state.lock();
        let level = state.levels.get_mut(&seats.level)?;
        if level.set.is_running(seats.id) {
            return None;
        }
        level.set.leave(seats.id, Instant::now());
        level.set.totals.timed_out += 1;
        level.refusals.note(self.clock.now().as_second());
        self.metrics.refused(&seats.level, &seats.schema, "time-out");
        Some(level.refusals.retry_after)
    }

    fn leave(&self, level: &str, id: u64) -> Left {
        let now = Instant::now();
        let mut state = self.state.lock();
        let state = &mut *state;
        let Some(found) = state.levels.get_mut(level) else { return Left::Nothing };
        let left = found.set.leave(id, now);
        if found.quiescing && found.set.is_idle() {
            state.levels.remove(level);
            self.share_out(state, now);
        } else {
            Self::borrow(state, now);
        }
        left
    }
}

#[cfg(test)]
mod tests;
