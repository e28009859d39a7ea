//! NodeResourcesFit.

use super::{Reasons, Rejection};
use crate::pod::Amounts;
use crate::profile::Profile;
use std::borrow::Cow;
use std::collections::BTreeSet;

/// Whether what a pod requests is free. What is `backed` by devices is for DynamicResources to say where the node has none
/// itself.
///
/// # Errors
/// Every resource there is too little of; unresolvable where even the empty node has too little.
pub fn fits(
    allocatable: &Amounts,
    requested: &Amounts,
    pod: &Amounts,
    backed: &BTreeSet<String>,
    profile: &Profile,
) -> Result<(), Rejection> {
    let mut reasons: Vec<Cow<'static, str>> = Vec::new();
    let mut unresolvable = false;
    shortages(allocatable, requested, pod, backed, profile, |resource, even_empty| {
        reasons.push(resource.map_or("Too many pods".into(), |name| format!("Insufficient {name}").into()));
        unresolvable |= even_empty;
    });
    if reasons.is_empty() {
        return Ok(());
    }
    Err(Rejection { plugin: "NodeResourcesFit", reasons: Reasons::Several(reasons), unresolvable })
}

/// The same where nobody asks why.
#[must_use]
pub fn has_room(
    allocatable: &Amounts,
    requested: &Amounts,
    pod: &Amounts,
    backed: &BTreeSet<String>,
    profile: &Profile,
) -> bool {
    let mut short = false;
    shortages(allocatable, requested, pod, backed, profile, |_, _| short = true);
    !short
}

/// Tells of every resource there is too little of (None: of pods), and whether even the empty node has too little.
fn shortages(
    allocatable: &Amounts,
    requested: &Amounts,
    pod: &Amounts,
    backed: &BTreeSet<String>,
    profile: &Profile,
    mut short: impl FnMut(Option<&str>, bool),
) {
    if requested.pods + 1 > allocatable.pods {
        short(None, allocatable.pods < 1);
    }
    let mut check = |name: &str, want: i64, have: i64, taken: i64| {
        if want > 0 && want > have - taken {
            short(Some(name), want > have);
        }
    };
    check("cpu", pod.cpu_milli, allocatable.cpu_milli, requested.cpu_milli);
    check("memory", pod.memory, allocatable.memory, requested.memory);
    check("ephemeral-storage", pod.ephemeral, allocatable.ephemeral, requested.ephemeral);
    for (name, want) in &pod.scalars {
        let of = |amounts: &Amounts| amounts.scalars.get(name).copied().unwrap_or(0);
        if !profile.ignores(name) && (of(allocatable) > 0 || !backed.contains(name)) {
            check(name, *want, of(allocatable), of(requested));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_name_every_resource() {
        let node = Amounts { cpu_milli: 1000, memory: 100, pods: 1, ..Default::default() };
        let used = Amounts { cpu_milli: 600, memory: 90, pods: 1, ..Default::default() };
        let pod = Amounts { cpu_milli: 500, memory: 20, ephemeral: 0, pods: 1, ..Default::default() };
        let none = BTreeSet::new();
        let mut profile = Profile::new("p");
        let e = fits(&node, &used, &pod, &none, &profile).unwrap_err();
        assert_eq!(*e.reasons, ["Too many pods", "Insufficient cpu", "Insufficient memory"]);
        assert!(!e.unresolvable);
        let gpu = Amounts { scalars: [("example.com/gpu".into(), 1)].into(), ..Default::default() };
        let e = fits(&node, &Amounts::default(), &gpu, &none, &profile).unwrap_err();
        assert_eq!(*e.reasons, ["Insufficient example.com/gpu"]);
        assert!(e.unresolvable);
        assert!(fits(&node, &Amounts::default(), &pod, &none, &profile).is_ok());
        let backed = BTreeSet::from(["example.com/gpu".to_owned()]);
        let free = Amounts { pods: 1, ..Default::default() };
        assert!(fits(&free, &Amounts::default(), &gpu, &backed, &profile).is_ok());
        assert!(fits(&free, &Amounts::default(), &gpu, &none, &profile).is_err());
        profile.ignored_groups.insert("example.com".into());
        assert!(fits(&free, &Amounts::default(), &gpu, &none, &profile).is_ok());
    }
}
