//! The requests of claims, whichever way they are written.

use super::allocate::{Failure, Place, shown};
use super::capacity::{Amounts, requested};
use gantry_api::k8s_openapi::api::resource::v1::{
    DeviceClass, DeviceRequest, DeviceSelector, DeviceToleration, ResourceClaim,
};
use std::sync::Arc;

/// How many devices are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// A number of them.
    ExactCount,
    /// All there are, and at least one.
    All,
}

/// A request, or one of the alternatives of a request.
#[derive(Clone, Debug)]
pub struct Want<'c> {
    /// Its name.
    pub name: &'c str,
    /// The request it is an alternative of.
    pub parent: Option<&'c str>,
    /// The class that is asked for.
    pub class_name: &'c str,
    /// The class, once it was looked up.
    pub class: Option<Arc<DeviceClass>>,
    /// How many devices.
    pub mode: Mode,
    /// The number; for all of them, once they were found.
    pub count: usize,
    /// Whether the devices may be others' at the same time.
    pub admin: bool,
    /// Selectors besides those of the class.
    pub selectors: &'c [DeviceSelector],
    /// Taints that do not matter.
    pub tolerations: &'c [DeviceToleration],
    /// Amounts of capacity.
    pub capacity: Amounts,
    /// All the devices that are wanted, where it is all.
    pub all: Vec<Place>,
}

fn or_empty<T>(list: Option<&Vec<T>>) -> &[T] {
    list.map(Vec::as_slice).unwrap_or_default()
}

impl<'c> Want<'c> {
    /// Of a request: itself, or its alternatives.
    ///
    /// # Errors
    /// Where something is asked for that is not known.
    pub fn of(claim: &ResourceClaim, request: &'c DeviceRequest) -> Result<Vec<Self>, Failure> {
        let mut out = Vec::new();
        if let Some(r) = &request.exactly {
            out.push(Self {
                name: &request.name,
                parent: None,
                class_name: &r.device_class_name,
                class: None,
                mode: mode(claim, &request.name, r.allocation_mode.as_deref())?,
                count: count(r.count),
                admin: r.admin_access == Some(true),
                selectors: or_empty(r.selectors.as_ref()),
                tolerations: or_empty(r.tolerations.as_ref()),
                capacity: requested(r.capacity.as_ref()),
                all: Vec::new(),
            });
        }
        for r in request.first_available.iter().flatten().filter(|_| request.exactly.is_none()) {
            out.push(Self {
                name: &r.name,
                parent: Some(&request.name),
                class_name: &r.device_class_name,
                class: None,
                mode: mode(claim, &r.name, r.allocation_mode.as_deref())?,
                count: count(r.count),
                admin: false,
                selectors: or_empty(r.selectors.as_ref()),
                tolerations: or_empty(r.tolerations.as_ref()),
                capacity: requested(r.capacity.as_ref()),
                all: Vec::new(),
            });
        }
        if out.is_empty() {
            let (claim, name) = (shown(claim), &request.name);
            return Err(Failure::Claim(format!("resource claim {claim}, request {name}: unknown request type")));
        }
        for want in &out {
            if let Some(i) = want.selectors.iter().position(|s| s.cel.is_none()) {
                let (claim, name) = (shown(claim), want.name);
                let why = "CEL expression empty (unsupported selector type?)";
                return Err(Failure::Claim(format!("claim {claim}, request {name}, selector #{i}: {why}")));
            }
        }
        Ok(out)
    }

    /// The request's name, and that of the alternative.
    #[must_use]
    pub fn names(&self) -> (&'c str, Option<&'c str>) {
        match self.parent {
            Some(parent) => (parent, Some(self.name)),
            None => (self.name, None),
        }
    }

    /// As results name it.
    #[must_use]
    pub fn full_name(&self) -> String {
        match self.parent {
            Some(parent) => format!("{parent}/{}", self.name),
            None => self.name.to_owned(),
        }
    }
}

/// Left out means one.
fn count(count: Option<i64>) -> usize {
    usize::try_from(count.unwrap_or(1)).unwrap_or(0)
}

fn mode(claim: &ResourceClaim, request: &str, mode: Option<&str>) -> Result<Mode, Failure> {
    match mode {
        None | Some("ExactCount") => Ok(Mode::ExactCount),
        Some("All") => Ok(Mode::All),
        Some(other) => {
            let claim = shown(claim);
            Err(Failure::Claim(format!("claim {claim}, request {request}: unsupported count mode {other}")))
        }
    }
}
