//! Which device of a node was refused, and why: for explanations.

use super::allocate::{Failure, consumption, counters_left, taint_against};
use super::attempt::PodDevices;
use super::capacity;
use super::pool::{NodeFacts, PoolState};
use super::want::{Mode, Want};
use gantry_api::meta::object::Meta;

/// Devices named for each request; there may be hundreds.
const SHOWN: usize = 8;

impl PodDevices {
    /// Why devices of the node do not meet the claims, a sentence for each request that has too few.
    pub(crate) fn refusals(&self, node: NodeFacts<'_>) -> Vec<String> {
        let allocator = self.allocator();
        let pools = allocator.inventory.pools(node);
        let mut out = Vec::new();
        for pool in &pools {
            match &pool.state {
                PoolState::Ready => {}
                PoolState::Incomplete => out.push(format!("pool {pool}: its driver has not published all of it")),
                PoolState::Invalid(why) => out.push(format!("pool {pool} is invalid: {why}")),
            }
        }
        for claimed in self.claims.iter().filter(|c| c.allocation().is_none()) {
            let claim = &claimed.claim;
            let devices = claim.spec.as_ref().and_then(|s| s.devices.as_ref());
            for request in devices.into_iter().flat_map(|d| d.requests.iter().flatten()) {
                let wants = match Want::of(claim, request) {
                    Ok(wants) => wants,
                    Err(failure) => {
                        out.push(text(failure));
                        continue;
                    }
                };
                for mut want in wants {
                    want.class = allocator.classes.get(want.class_name).cloned();
                    let (mut free, mut refused) = (0, Vec::new());
                    for pool in pools.iter().filter(|p| p.state == PoolState::Ready) {
                        let left = counters_left(pool, allocator.taken);
                        for device in &pool.devices {
                            let amounts = allocator.taken.amounts(&device.id);
                            let short = |key: &(&str, &str), wanted| left.get(key).is_some_and(|have| *have < wanted);
                            let why = if !device.is_on(node) {
                                "is for other nodes".to_owned()
                            } else if let Some(why) =
                                allocator.selected(claim, &want, device).unwrap_or_else(|f| Some(text(f)))
                            {
                                format!("is not selected by {why}")
                            } else if !want.admin && allocator.taken.is_taken(&device.id) {
                                "is allocated".to_owned()
                            } else if let Some(taint) = taint_against(device, &want) {
                                format!("has the taint {taint}")
                            } else if capacity::take(&device.capacity, &want.capacity, &[amounts]).is_none() {
                                "has too little capacity left".to_owned()
                            } else if let Some(((set, counter), _)) =
                                consumption(device).find(|(key, wanted)| short(key, *wanted))
                            {
                                format!("needs more of counter {set}/{counter} than is left")
                            } else {
                                free += 1;
                                continue;
                            };
                            refused.push(format!("{} {why}", device.id));
                        }
                    }
                    let enough = free >= want.count.max(1) && (want.mode == Mode::ExactCount || refused.is_empty());
                    out.push(summary(claim.metadata.name(), &want, free, enough, &refused));
                }
            }
        }
        out
    }
}

fn text(failure: Failure) -> String {
    match failure {
        Failure::Timeout => "timed out".to_owned(),
        Failure::Node(why) | Failure::Claim(why) => why,
    }
}

fn summary(claim: &str, want: &Want<'_>, free: usize, enough: bool, refused: &[String]) -> String {
    let wanted = match want.mode {
        Mode::ExactCount => want.count.to_string(),
        Mode::All => "all".to_owned(),
    };
    let (name, class) = (want.full_name(), want.class_name);
    let mut out = format!("{claim}, request {name}: wants {wanted} of class {class}, {free} free");
    if enough {
        out.push_str("; enough for itself, but not besides the others or under the constraints");
        return out;
    }
    for one in refused.iter().take(SHOWN) {
        out.push_str("; ");
        out.push_str(one);
    }
    if refused.len() > SHOWN {
        out.push_str(&format!("; and {} more", refused.len() - SHOWN));
    }
    out
}
