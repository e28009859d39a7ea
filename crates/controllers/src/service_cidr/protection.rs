//! ServiceCIDRs: tells that they are ready, and lets them go when no Service's address would be left without a range.

use crate::config::Setup;
use crate::rules::{EVENTS, Rule};
use async_trait::async_trait;
use gantry_api::Time;
use gantry_api::meta::names::parse_ip;
use gantry_api::meta::object::Meta;
use gantry_api::networking::{ip_address, service_cidr};
use gantry_client::{Api, PostParams};
use gantry_reconcile::store::key_of;
use gantry_reconcile::{Controller, Error, EventRecorder, Informer, Outcome, Queue, runner, wait_synced};
use ipnet::IpNet;
use k8s_openapi::api::networking::v1::{IPAddress, ServiceCIDR};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::SignedDuration;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

const WORKERS: usize = 5;
/// Addresses may be given out of a range for this long after its deletion, by who has not heard of it.
const GRACE: Duration = Duration::from_secs(10);
const READY: &str = "Kubernetes Service CIDR is ready";
const IN_USE: &str =
    "There are still IPAddresses referencing the ServiceCIDR, please remove them or create a new ServiceCIDR";

/// What the controller may do.
pub const RULES: &[Rule] = &[
    Rule::new(&["networking.k8s.io"], &["servicecidrs"], &["get", "list", "patch", "update", "watch"]),
    Rule::new(&["networking.k8s.io"], &["servicecidrs/finalizers", "servicecidrs/status"], &["patch", "update"]),
    Rule::new(&["networking.k8s.io"], &["ipaddresses"], &["get", "list", "watch"]),
    EVENTS,
];

struct Ranges {
    ranges: Informer<ServiceCIDR>,
    addresses: Informer<IPAddress>,
    recorder: EventRecorder,
    setup: Setup,
}

/// Runs the controller.
pub async fn run(setup: Setup) {
    let ranges = setup.informers.get::<ServiceCIDR>();
    let addresses = setup.informers.get::<IPAddress>();
    let queue = Queue::new(setup.name);
    let (keys, all) = (queue.clone(), ranges.clone());
    ranges.on_change(move |change| {
        keys.add(key_of(change.object().as_ref()));
        // A range that comes may be what another one's deletion waits for.
        let overlaps = |other: &ServiceCIDR| {
            service_cidr::ranges(other)
                .any(|a| service_cidr::ranges(change.object()).any(|b| a.contains(&b) || b.contains(&a)))
        };
        all.list().iter().filter(|c| overlaps(c)).for_each(|c| keys.add(key_of(c.as_ref())));
    });
    let (keys, all) = (queue.clone(), ranges.clone());
    addresses.on_change(move |change| {
        let address = change.object();
        let ip = parse_ip(address.metadata.name()).filter(|_| ip_address::is_managed(address));
        let Some(ip) = ip else { return };
        all.list().iter().filter(|c| gives(c, ip)).for_each(|c| keys.add(key_of(c.as_ref())));
    });
    if !wait_synced(&[&ranges, &addresses], &setup.cancel).await {
        return;
    }
    let (recorder, cancel) = (setup.recorder(setup.name), setup.cancel.clone());
    runner::run(Arc::new(Ranges { ranges, addresses, recorder, setup }), queue, WORKERS, cancel).await;
}

fn gives(c: &ServiceCIDR, ip: IpAddr) -> bool {
    service_cidr::ranges(c).any(|r| service_cidr::gives(&r, ip))
}

/// Whether every Service's address has a range without this one.
fn can_go(going: &ServiceCIDR, all: &[Arc<ServiceCIDR>], addresses: &[Arc<IPAddress>]) -> bool {
    let others = || all.iter().filter(|c| c.metadata.name != going.metadata.name);
    let is_inside = |range: &IpNet| others().any(|c| service_cidr::ranges(c).any(|o| o.contains(range)));
    if service_cidr::ranges(going).all(|r| is_inside(&r)) {
        return true;
    }
    let orphaned = |a: &Arc<IPAddress>| {
        parse_ip(a.metadata.name()).is_some_and(|ip| gives(going, ip) && !others().any(|c| gives(c, ip)))
    };
    !addresses.iter().any(|a| ip_address::is_managed(a) && orphaned(a))
}

/// The object with this condition; None where it has it already.
fn with_ready(of: &ServiceCIDR, now: &Time, told: (&str, &str, &str)) -> Option<ServiceCIDR> {
    let (status, reason, message) = told;
    let mut of = of.clone();
    let conditions = of.status.get_or_insert_default().conditions.get_or_insert_default();
    let old = conditions.iter().find(|c| c.type_ == service_cidr::READY);
    // Of the range that the server makes it says itself that it is ready.
    if old.is_some_and(|c| c.status == status && (status == "True" || c.message == message)) {
        return None;
    }
    conditions.retain(|c| c.type_ != service_cidr::READY);
    conditions.push(Condition {
        type_: service_cidr::READY.into(),
        status: status.into(),
        reason: reason.into(),
        message: message.into(),
        last_transition_time: now.clone(),
        observed_generation: None,
    });
    Some(of)
}

impl Ranges {
    fn api(&self) -> Api<ServiceCIDR> {
        Api::all(self.setup.client.clone())
    }

    async fn tell(&self, of: &ServiceCIDR, told: (&str, &str, &str)) -> Result<(), Error> {
        let Some(changed) = with_ready(of, &self.setup.config.clock.time(), told) else { return Ok(()) };
        let key = key_of(of);
        match self.api().update_status(&PostParams::default(), &changed).await {
            Ok(_) => Ok(()),
            Err(e) if e.is("NotFound") => Ok(()),
            Err(e) => {
                if told.0 == "True" && !e.is("Conflict") {
                    let message = "The ServiceCIDR Status can not be set to Ready=True";
                    self.recorder.warning(of, "KubernetesServiceCIDRError", message);
                }
                Err(Error::api(format!("update status of service CIDR {key}"), e))
            }
        }
    }

    async fn hold(&self, of: &ServiceCIDR, wanted: bool) -> Result<ServiceCIDR, Error> {
        let mut of = of.clone();
        let list = of.metadata.finalizers.get_or_insert_default();
        list.retain(|f| f != service_cidr::FINALIZER);
        if wanted {
            list.push(service_cidr::FINALIZER.to_owned());
        }
        match self.api().update(&PostParams::default(), &of).await {
            Ok(written) => Ok(written),
            Err(e) if e.is("NotFound") => Ok(of),
            Err(e) => Err(Error::api(format!("update finalizers of service CIDR {}", key_of(&of)), e)),
        }
    }
}

#[async_trait]
impl Controller for Ranges {
    fn name(&self) -> &'static str {
        self.setup.name
    }

    async fn reconcile(&self, key: &str) -> Result<Outcome, Error> {
        let Some(range) = self.ranges.store().by_key(key) else { return Ok(Outcome::done()) };
        let held = range.metadata.finalizers_or_empty().iter().any(|f| f == service_cidr::FINALIZER);
        let Some(deleted) = &range.metadata.deletion_timestamp else {
            let range = if held { range.as_ref().clone() } else { self.hold(&range, true).await? };
            self.tell(&range, ("True", "", READY)).await?;
            return Ok(Outcome::done());
        };
        if !held {
            return Ok(Outcome::done());
        }
        if !can_go(&range, &self.ranges.list(), &self.addresses.list()) {
            self.tell(&range, ("False", "Terminating", IN_USE)).await?;
            return Ok(Outcome::done());
        }
        let since = self.setup.config.clock.now().duration_since(deleted.0);
        let left = SignedDuration::try_from(GRACE).unwrap_or_default() - since;
        if left.is_positive() {
            return Ok(Outcome::after(left.unsigned_abs()));
        }
        self.hold(&range, false).await?;
        Ok(Outcome::done())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gantry_api::kind::Kind;
    use serde_json::json;

    fn range(name: &str, cidrs: &[&str]) -> Arc<ServiceCIDR> {
        let value = json!({"metadata": {"name": name}, "spec": {"cidrs": cidrs}});
        Arc::new(<ServiceCIDR as Kind>::from_value(value).unwrap())
    }

    fn held(ip: &str) -> Arc<IPAddress> {
        Arc::new(ip_address::of_service(ip.parse().unwrap(), "default", "web"))
    }

    #[test]
    fn a_range_goes_when_no_address_needs_it() {
        let small = range("small", &["10.0.0.0/24"]);
        type Case<'a> = (&'a [Arc<ServiceCIDR>], &'a [Arc<IPAddress>], bool);
        let cases: [Case<'_>; 6] = [
            (&[], &[], true),
            (&[], &[held("10.0.0.5")], false),
            (&[], &[held("10.0.1.5")], true),
            (&[range("big", &["10.0.0.0/8"])], &[held("10.0.0.5")], true),
            (&[range("half", &["10.0.0.0/25"])], &[held("10.0.0.5")], true),
            (&[range("half", &["10.0.0.0/25"])], &[held("10.0.0.200")], false),
        ];
        for (i, (others, addresses, want)) in cases.into_iter().enumerate() {
            let all: Vec<_> = others.iter().cloned().chain([small.clone()]).collect();
            assert_eq!(can_go(&small, &all, addresses), want, "case {i}");
        }
    }

    #[test]
    fn a_condition_is_written_once() {
        let now = Time(k8s_openapi::jiff::Timestamp::UNIX_EPOCH);
        let ready = with_ready(&range("r", &["10.0.0.0/24"]), &now, ("True", "", READY)).unwrap();
        assert!(with_ready(&ready, &now, ("True", "", READY)).is_none());
        let going = with_ready(&ready, &now, ("False", "Terminating", IN_USE)).unwrap();
        let conditions = going.status.clone().unwrap().conditions.unwrap();
        assert_eq!((conditions.len(), conditions[0].reason.as_str()), (1, "Terminating"));
        assert!(with_ready(&going, &now, ("False", "Terminating", IN_USE)).is_none());
    }
}
