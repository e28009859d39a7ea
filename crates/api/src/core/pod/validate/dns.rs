//! Name resolution and names of the pod itself.

use crate::meta::field::{ErrorList, Path};
use crate::meta::{names, text};
use k8s_openapi::api::core::v1::{HostAlias, PodSpec};
use serde_json::json;

const MAX_NAMESERVERS: usize = 3;
const MAX_SEARCHES: usize = 32;
const MAX_SEARCH_CHARACTERS: usize = 2048;

/// Adds the errors of `dnsConfig`.
pub(super) fn validate_dns_config(spec: &PodSpec, path: &Path, errors: &mut ErrorList) {
    let config = spec.dns_config.as_ref();
    if text(&spec.dns_policy) == "None" {
        match config {
            None => return errors.required(path, "must provide `dnsConfig` when `dnsPolicy` is None"),
            Some(c) if c.nameservers.as_ref().is_none_or(Vec::is_empty) => {
                let detail = "must provide at least one DNS nameserver when `dnsPolicy` is None";
                return errors.required(&path.child("nameservers"), detail);
            }
            Some(_) => {}
        }
    }
    let Some(config) = config else { return };
    let nameservers = config.nameservers.as_deref().unwrap_or_default();
    if nameservers.len() > MAX_NAMESERVERS {
        let detail = format!("must not have more than {MAX_NAMESERVERS} nameservers");
        errors.invalid(&path.child("nameservers"), json!(nameservers), &detail);
    }
    for (i, ns) in nameservers.iter().enumerate() {
        names::push_invalid(errors, &path.child("nameservers").index(i), ns, &names::ip_address(ns));
    }
    let searches = config.searches.as_deref().unwrap_or_default();
    let searches_path = path.child("searches");
    if searches.len() > MAX_SEARCHES {
        errors.invalid(
            &searches_path,
            json!(searches),
            &format!("must not have more than {MAX_SEARCHES} search paths"),
        );
    }
    if searches.join(" ").len() > MAX_SEARCH_CHARACTERS {
        let detail =
            format!("must not have more than {MAX_SEARCH_CHARACTERS} characters (including spaces) in the search list");
        errors.invalid(&searches_path, json!(searches), &detail);
    }
    for (i, search) in searches.iter().enumerate().filter(|(_, s)| *s != ".") {
        let search = search.strip_suffix('.').unwrap_or(search);
        names::push_invalid(errors, &searches_path.index(i), search, &names::dns1123_subdomain_with_underscore(search));
    }
    for (i, option) in config.options.iter().flatten().enumerate() {
        if text(&option.name).is_empty() {
            errors.required(&path.child("options").index(i), "must not be empty");
        }
    }
}

/// Adds the errors of `hostAliases`.
pub(super) fn validate_host_aliases(aliases: &[HostAlias], path: &Path, errors: &mut ErrorList) {
    for (i, alias) in aliases.iter().enumerate() {
        let path = path.index(i);
        names::push_invalid(errors, &path.child("ip"), &alias.ip, &names::ip_address(&alias.ip));
        for (j, name) in alias.hostnames.iter().flatten().enumerate() {
            names::push_invalid(
                errors,
                &path.child("hostnames").index(j),
                name,
                &names::dns1123_subdomain(name, false),
            );
        }
    }
}

/// Adds the errors of `hostname`, `subdomain` and `hostnameOverride`.
pub(super) fn validate_hostname(spec: &PodSpec, path: &Path, errors: &mut ErrorList) {
    for (field, value) in [("hostname", text(&spec.hostname)), ("subdomain", text(&spec.subdomain))] {
        if !value.is_empty() {
            names::push_invalid(errors, &path.child(field), value, &names::dns1123_label(value, false));
        }
    }
    let Some(name) = &spec.hostname_override else { return };
    let path = path.child("hostnameOverride");
    names::push_invalid(errors, &path, name, &names::dns1123_subdomain(name, false));
    if name.len() > 64 {
        errors.too_long(&path, 64);
    }
    if spec.set_hostname_as_fqdn == Some(true) {
        errors.forbidden(&path, "may not be specified when setHostnameAsFQDN is true");
    }
    if spec.host_network == Some(true) {
        errors.forbidden(&path, "may not be specified when hostNetwork is true");
    }
}
