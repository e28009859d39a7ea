//! Node ports: which are taken, and which a Service gets.
//!
//! Source: `pkg/registry/core/service/storage/alloc.go`.

use crate::cluster::Cluster;
use gantry_api::core::service::{needs_health_check_port, needs_node_port};
use gantry_api::entropy::Entropy;
use gantry_api::k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use gantry_api::k8s_openapi::jiff::{SignedDuration, Timestamp};
use gantry_api::meta::field::{ErrorList, Path};
use gantry_api::meta::object::Meta;
use gantry_api::meta::status::ApiError;
use std::collections::{BTreeSet, HashMap};

/// A write that took a port this long ago has ended, and the cache has its outcome.
const SETTLED: SignedDuration = SignedDuration::from_secs(120);

/// Ports of one range, and when they were taken.
pub(super) struct PortPool {
    range: (u16, u16),
    taken: HashMap<i32, Timestamp>,
}

/// Whether the type may have node ports. On others they are only text: an ExternalName Service can name any.
fn may_have(spec: &ServiceSpec) -> bool {
    matches!(spec.type_.as_deref(), Some("NodePort" | "LoadBalancer"))
}

/// The ports of the range that a Service has.
pub(super) fn ports_of(service: &Service) -> BTreeSet<i32> {
    service.spec.as_ref().map(|spec| taken_ports(spec, None)).unwrap_or_default()
}

/// The node ports of each of its ports.
fn named_ports(spec: &ServiceSpec) -> BTreeSet<i32> {
    spec.ports.iter().flatten().filter(|_| may_have(spec)).map(node_port).filter(|port| *port != 0).collect()
}

/// Whether it gets a health check port by this write: later it never gets another.
fn gets_health_check_port(spec: &ServiceSpec, old: Option<&ServiceSpec>) -> bool {
    needs_health_check_port(spec) && !old.is_some_and(needs_health_check_port)
}

/// The ports that a write which makes `spec` of `old` takes for itself.
pub(super) fn taken_ports(spec: &ServiceSpec, old: Option<&ServiceSpec>) -> BTreeSet<i32> {
    let mut taken = named_ports(spec);
    for own in old.map(named_ports).unwrap_or_default() {
        taken.remove(&own);
    }
    let check = spec.health_check_node_port.filter(|port| *port != 0 && gets_health_check_port(spec, old));
    taken.extend(check);
    taken
}

/// The port's node port; 0 for none.
fn node_port(port: &ServicePort) -> i32 {
    port.node_port.unwrap_or(0)
}

/// What is being taken for one write.
struct Operation<'a> {
    pool: &'a mut PortPool,
    entropy: &'a Entropy,
    now: Timestamp,
    taken: Vec<i32>,
}

impl Operation<'_> {
    fn allocate(&mut self, port: i32) -> Result<(), String> {
        if self.pool.taken.contains_key(&port) {
            return Err("provided port is already allocated".into());
        }
        let (low, high) = self.pool.range;
        if !(i32::from(low)..=i32::from(high)).contains(&port) {
            return Err(format!("provided port is not in the valid range. The range of valid ports is {low}-{high}"));
        }
        self.take(port);
        Ok(())
    }

    fn take(&mut self, port: i32) {
        self.pool.taken.insert(port, self.now);
        self.taken.push(port);
    }

    /// Takes any free port but these.
    fn allocate_next(&mut self, except: &BTreeSet<i32>) -> Result<i32, String> {
        let (low, high) = (i32::from(self.pool.range.0), i32::from(self.pool.range.1));
        let length = high - low + 1;
        let start = i32::try_from(self.entropy.below(u64::try_from(length).unwrap_or(1))).unwrap_or(0);
        let mut all = (0..length).map(|i| low + (start + i) % length);
        let free = all.find(|p| !self.pool.taken.contains_key(p) && !except.contains(p));
        let port = free.ok_or("range is full")?;
        self.take(port);
        Ok(port)
    }

    fn next_node_port(&mut self, except: &BTreeSet<i32>) -> Result<i32, ApiError> {
        self.allocate_next(except).map_err(|e| ApiError::internal(format!("failed to allocate a nodePort: {e}")))
    }

    fn named(&mut self, name: &str, index: usize, port: i32) -> Result<(), ApiError> {
        self.allocate(port).map_err(|why| {
            let mut e = ErrorList::default();
            e.invalid(&Path::new("spec").child("ports").index(index).child("nodePort"), port, &why);
            ApiError::invalid("", "Service", name, &e)
        })
    }

    /// Node ports of a new Service. One port over two protocols has one node port.
    fn create(&mut self, name: &str, spec: &mut ServiceSpec) -> Result<(), ApiError> {
        let wants_all = needs_node_port(spec);
        let ports = spec.ports.as_deref_mut().unwrap_or_default();
        let mut found: HashMap<i32, i32> = HashMap::new();
        for i in 0..ports.len() {
            let (number, wanted) = (ports[i].port, node_port(&ports[i]));
            if wanted == 0 && !wants_all {
                continue;
            }
            let given = match found.get(&number) {
                Some(shared) if wanted == 0 || wanted == *shared => *shared,
                Some(_) => {
                    self.named(name, i, wanted)?;
                    wanted
                }
                None => {
                    let named = ports.iter().find(|p| p.port == number && node_port(p) != 0).map(node_port);
                    let given = match named {
                        Some(port) => self.named(name, i, port).map(|()| port)?,
                        None => self.next_node_port(&BTreeSet::new())?,
                    };
                    found.insert(number, given);
                    given
                }
            };
            ports[i].node_port = Some(given);
        }
        Ok(())
    }

    /// Node ports of a changed Service, which keeps those it has.
    fn update(&mut self, name: &str, spec: &mut ServiceSpec, old: &ServiceSpec) -> Result<(), ApiError> {
        let wants_all = needs_node_port(spec);
        // One of these may be free: where another write changed the Service meanwhile. Then this one is tried again, and
        // what it has beyond the old Service has to be what it took.
        let own = named_ports(old);
        let mut seen = BTreeSet::new();
        for (i, port) in spec.ports.iter_mut().flatten().enumerate() {
            let given = match node_port(port) {
                0 if !wants_all => continue,
                0 => self.next_node_port(&own)?,
                wanted => {
                    if !own.contains(&wanted) && !self.taken.contains(&wanted) {
                        self.named(name, i, wanted)?;
                    }
                    wanted
                }
            };
            port.node_port = Some(given);
            let protocol = port.protocol.clone().unwrap_or_default();
            if !seen.insert((protocol.clone(), given)) {
                return Err(ApiError::internal(format!("duplicate nodePort: {{{protocol} {given}}}")));
            }
        }
        Ok(())
    }

    fn health_check(&mut self, spec: &mut ServiceSpec) -> Result<(), ApiError> {
        let wanted = spec.health_check_node_port.unwrap_or(0);
        let got = if wanted == 0 {
            let found = self.allocate_next(&BTreeSet::new());
            found.map_err(|e| ApiError::internal(format!("failed to allocate a HealthCheck NodePort 0: {e}")))?
        } else {
            self.allocate(wanted).map_err(|why| {
                ApiError::internal(format!("failed to allocate requested HealthCheck NodePort {wanted}: {why}"))
            })?;
            wanted
        };
        spec.health_check_node_port = Some(got);
        Ok(())
    }

    fn run(&mut self, name: &str, spec: &mut ServiceSpec, old: Option<&ServiceSpec>) -> Result<(), ApiError> {
        if may_have(spec) {
            match old {
                None => self.create(name, spec)?,
                Some(old) => self.update(name, spec, old)?,
            }
        }
        if gets_health_check_port(spec, old) {
            self.health_check(spec)?;
        }
        Ok(())
    }
}

impl PortPool {
    pub(super) fn new(range: (u16, u16)) -> Self {
        Self { range, taken: HashMap::new() }
    }

    /// Counts in a port of a stored Service.
    pub(super) fn mark(&mut self, port: i32, now: Timestamp) {
        self.taken.insert(port, now);
    }

    /// Gives a port back.
    pub(super) fn release(&mut self, port: i32) {
        self.taken.remove(&port);
    }

    /// Gives the Service its node ports and its health check node port; all or, where it fails or with `dry_run`, none.
    ///
    /// # Errors
    /// What cannot be had, as upstream says it.
    pub(super) fn assign(
        &mut self,
        service: &mut Service,
        old: Option<&Service>,
        dry_run: bool,
        cluster: &Cluster,
    ) -> Result<(), ApiError> {
        let name = service.metadata.name().to_owned();
        let mut operation =
            Operation { pool: self, entropy: &cluster.entropy, now: cluster.clock.now(), taken: Vec::new() };
        let old = old.and_then(|old| old.spec.as_ref());
        let result = operation.run(&name, service.spec.get_or_insert_default(), old);
        let taken = operation.taken;
        if result.is_err() || dry_run {
            taken.into_iter().for_each(|port| self.release(port));
        }
        result
    }

    /// Whether any port was taken so long ago that a stored Service must have it.
    pub(super) fn has_old(&self, now: Timestamp) -> bool {
        self.taken.values().any(|at| now.duration_since(*at) > SETTLED)
    }

    /// Frees ports that were taken long ago and that no Service has; whether there were any. `used` are those of the
    /// stored Services.
    pub(super) fn reclaim(&mut self, used: &BTreeSet<i32>, now: Timestamp) -> bool {
        let before = self.taken.len();
        self.taken.retain(|port, at| used.contains(port) || now.duration_since(*at) <= SETTLED);
        self.taken.len() < before
    }
}
