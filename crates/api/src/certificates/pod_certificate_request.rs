//! PodCertificateRequest: a kubelet asks a signer for a certificate for one of its pods (KEP-4317).

use crate::apps::workload;
use crate::certificates::certificate_signing_request::validate_signer_name;
use crate::certificates::pem::{self, CERTIFICATE};
use crate::certificates::stub_request::{self, Fault};
use crate::kind::{Column, Context, Kind, ResourceInfo, STATUS};
use crate::meta::conditions::validate_conditions;
use crate::meta::field::{ErrorList, Path};
use crate::meta::object::{ANNOTATIONS_MAX_BYTES, IMMUTABLE, Meta, reset_for_status, semantically_equal};
use crate::meta::{names, table};
use k8s_openapi::api::certificates::v1::{
    PodCertificateRequest, PodCertificateRequestSpec, PodCertificateRequestStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// The conditions that end a request.
const ENDS: [&str; 3] = ["Issued", "Denied", "Failed"];
/// Seconds a certificate may last where the request does not say.
const DEFAULT_EXPIRATION: i32 = 24 * 3600;
const MIN_EXPIRATION: i32 = 3600;
/// Seconds a certificate of one of Kubernetes' own signers may last.
const MAX_EXPIRATION_OWN: i32 = 24 * 3600;
const MAX_EXPIRATION: i32 = 91 * 24 * 3600;
const MAX_REQUEST: usize = 10 * 1024;
const MAX_CHAIN: usize = 100 * 1024;
const MAX_UID: usize = 128;
/// Time between either end of a certificate's life and its renewal.
const MARGIN: SignedDuration = SignedDuration::from_mins(10);

/// Whether the name is one of Kubernetes' own signers.
fn is_kubernetes_signer(signer: &str) -> bool {
    let host = signer.split('/').next().unwrap_or_default();
    host == "kubernetes.io" || host.ends_with(".kubernetes.io")
}

/// The seconds that certificates of this signer may be asked for.
pub(crate) fn expirations(signer: &str) -> RangeInclusive<i32> {
    MIN_EXPIRATION..=if is_kubernetes_signer(signer) { MAX_EXPIRATION_OWN } else { MAX_EXPIRATION }
}

/// Field errors of what a pod's author passes on to the signer.
pub(crate) fn validate_user_annotations(annotations: &BTreeMap<String, String>, at: &Path, e: &mut ErrorList) {
    let mut total = 0;
    for (key, value) in annotations {
        total += key.len() + value.len();
        let key = key.to_lowercase();
        if key.is_empty() {
            e.required(at, "");
            continue;
        }
        let wrong = names::qualified_name(&key);
        names::push_invalid(e, at, &key, &wrong);
        if wrong.is_empty() && !key.contains('/') {
            e.invalid(at, key, "must be a domain-prefixed key (such as \"acme.io/foo\")");
        }
    }
    if total > ANNOTATIONS_MAX_BYTES {
        e.too_long(at, ANNOTATIONS_MAX_BYTES);
    }
}

fn conditions(request: &PodCertificateRequest) -> &[Condition] {
    request.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default()
}

/// The condition that ended the request.
#[must_use]
pub fn end(request: &PodCertificateRequest) -> Option<&Condition> {
    conditions(request).iter().find(|c| ENDS.contains(&c.type_.as_str()) && c.status == "True")
}

/// Field errors of a certificate that a signer issues.
fn validate_issued(request: &PodCertificateRequest, status: &PodCertificateRequestStatus, e: &mut ErrorList) {
    let at = |field: &str| Path::new("status").child(field);
    let chain = status.certificate_chain.as_deref().unwrap_or_default();
    let of_chain = at("certificateChain");
    if chain.len() > MAX_CHAIN {
        return e.too_long(&of_chain, MAX_CHAIN);
    }
    let blocks = pem::blocks(chain);
    let Some((leaf, others)) = blocks.split_first() else {
        return e.invalid(&of_chain, chain, "issued certificate chain must contain at least one certificate");
    };
    if leaf.label != CERTIFICATE {
        let told = "issued certificate chain must consist entirely of CERTIFICATE PEM blocks";
        return e.invalid(&of_chain, chain, told);
    }
    let Ok(([], leaf)) = X509Certificate::from_der(&leaf.der) else {
        return e.invalid(&of_chain, chain, "leaf certificate does not parse as valid X.509");
    };
    validate_names(&leaf, &of_chain, e);
    if stub_request::is_for(&request.spec.stub_pkc_s10_request.0, leaf.public_key()) != Some(true) {
        return e.invalid(&of_chain, chain, "leaf certificate was not issued to the requested public key");
    }
    let (Some(from), Some(to), Some(refresh)) = (&status.not_before, &status.not_after, &status.begin_refresh_at)
    else {
        let told = "must be present and consistent with the issued certificate";
        if status.not_before.is_none() {
            e.required(&at("notBefore"), told);
        }
        if status.not_after.is_none() {
            e.required(&at("notAfter"), told);
        }
        if status.begin_refresh_at.is_none() {
            e.required(&at("beginRefreshAt"), "must be present and in the range [notbefore+10min, notafter-10min]");
        }
        return;
    };
    if !e.is_empty() {
        return;
    }
    let (begins, ends) = (leaf.validity().not_before.timestamp(), leaf.validity().not_after.timestamp());
    if from.0.as_second() != begins {
        let told = "must be set to the NotBefore time encoded in the leaf certificate";
        return e.invalid(&at("notBefore"), json!(from), told);
    }
    if to.0.as_second() != ends {
        let told = "must be set to the NotAfter time encoded in the leaf certificate";
        return e.invalid(&at("notAfter"), json!(to), told);
    }
    let lifetime = ends.saturating_sub(begins);
    let nanoseconds = lifetime.saturating_mul(1_000_000_000);
    if lifetime < i64::from(MIN_EXPIRATION) {
        return e.invalid(&of_chain, nanoseconds, "leaf certificate lifetime must be >= 1 hour");
    }
    let most = request.spec.max_expiration_seconds.unwrap_or(DEFAULT_EXPIRATION);
    if lifetime > i64::from(most) {
        let told = format!("leaf certificate lifetime must be <= spec.maxExpirationSeconds ({most})");
        return e.invalid(&of_chain, nanoseconds, &told);
    }
    if refresh.0.duration_since(from.0) < MARGIN {
        let told = "must be at least 10 minutes after status.notBefore";
        return e.invalid(&at("beginRefreshAt"), json!(refresh), told);
    }
    if to.0.duration_since(refresh.0) < MARGIN {
        let told = "must be at least 10 minutes before status.notAfter";
        return e.invalid(&at("beginRefreshAt"), json!(refresh), told);
    }
    for block in others {
        if block.label != CERTIFICATE {
            // So upstream writes it here.
            let told = "issued certificate chain must consist entirely of CERTFICATE PEM blocks";
            return e.invalid(&of_chain, chain, told);
        }
        if !matches!(X509Certificate::from_der(&block.der), Ok(([], _))) {
            return e.invalid(&of_chain, chain, "intermediate certificate does not parse as valid X.509");
        }
    }
}

/// Field errors of the names a certificate carries.
fn validate_names(leaf: &X509Certificate<'_>, at: &Path, e: &mut ErrorList) {
    let Ok(Some(names)) = leaf.subject_alternative_name() else { return };
    let (mut dns, mut mail) = (Vec::new(), Vec::new());
    for name in &names.value.general_names {
        match name {
            GeneralName::DNSName(name) => dns.push(*name),
            GeneralName::RFC822Name(address) => mail.push(*address),
            _ => {}
        }
    }
    for name in dns {
        if name.is_empty() {
            e.invalid(at, name, "leaf certificate should not contain empty DNSName");
        }
        if name.contains("..") {
            e.invalid(at, name, "leaf certificate's DNSName should not contain '..'");
        }
        if name.starts_with('.') || name.ends_with('.') {
            e.invalid(at, name, "leaf certificate's DNSName should not start or end with '.'");
        }
    }
    // RFC 5322's addresses have one part before the at sign and one behind it.
    let well_formed = |address: &&str| {
        address.rsplit_once('@').is_some_and(|(local, domain)| {
            let quoted = local.len() > 1 && local.starts_with('"') && local.ends_with('"');
            let plain =
                |part: &str| part.split('.').all(|p| !p.is_empty() && !p.contains([' ', '@', '<', '>', ',', '"']));
            (quoted || plain(local)) && plain(domain)
        })
    };
    for address in mail.into_iter().filter(|a| !well_formed(a)) {
        e.invalid(at, address, "leaf certificate should not contain invalid EmailAddress");
    }
}

/// The spec as field errors show it: upstream's own type, with what older versions asked for in its place.
fn shown(spec: &PodCertificateRequestSpec) -> String {
    workload::shown_as(&[
        ("SignerName", json!(spec.signer_name)),
        ("PodName", json!(spec.pod_name)),
        ("PodUID", json!(spec.pod_uid)),
        ("ServiceAccountName", json!(spec.service_account_name)),
        ("ServiceAccountUID", json!(spec.service_account_uid)),
        ("NodeName", json!(spec.node_name)),
        ("NodeUID", json!(spec.node_uid)),
        ("MaxExpirationSeconds", json!(spec.max_expiration_seconds)),
        ("PKIXPublicKey", Value::Null),
        ("ProofOfPossession", Value::Null),
        ("StubPKCS10Request", json!(spec.stub_pkc_s10_request)),
        ("UnverifiedUserAnnotations", json!(spec.unverified_user_annotations)),
    ])
}

impl Kind for PodCertificateRequest {
    const INFO: ResourceInfo = ResourceInfo {
        subresources: &[STATUS],
        unconditional_update: false,
        ..ResourceInfo::new(
            "certificates.k8s.io",
            "v1",
            "PodCertificateRequest",
            "podcertificaterequests",
            "podcertificaterequest",
            true,
        )
    };
    const COLUMNS: &'static [Column] = &[
        table::NAME,
        table::text_column("PodName", "The pod that gets the certificate.", 0),
        table::text_column("ServiceAccountName", "The account that the pod runs as.", 0),
        table::text_column("NodeName", "The node that asks.", 0),
        table::text_column("SignerName", "The signer asked.", 0),
        table::text_column("State", "What became of it.", 0),
    ];
    crate::kind_codec!();

    fn set_defaults(&mut self) {
        self.spec.max_expiration_seconds.get_or_insert(DEFAULT_EXPIRATION);
    }

    fn prepare_for_create(&mut self, _cx: &Context<'_>) {
        self.status = Some(PodCertificateRequestStatus::default());
    }

    fn validate(&self) -> ErrorList {
        let mut e = ErrorList::default();
        let at = |field: &str| Path::new("spec").child(field);
        let spec = &self.spec;
        validate_signer_name(&spec.signer_name, &at("signerName"), &mut e);
        if let Some(annotations) = &spec.unverified_user_annotations {
            validate_user_annotations(annotations, &at("unverifiedUserAnnotations"), &mut e);
        }
        for (name, of_name, uid, of_uid) in [
            (&spec.pod_name, "podName", &spec.pod_uid, "podUID"),
            (&spec.service_account_name, "serviceAccountName", &spec.service_account_uid, "serviceAccountUID"),
            (&spec.node_name, "nodeName", &spec.node_uid, "nodeUID"),
        ] {
            names::push_invalid(&mut e, &at(of_name), name, &names::dns1123_subdomain(name, false));
            if uid.is_empty() {
                e.invalid(&at(of_uid), "", "must not be empty");
            }
            if uid.len() > MAX_UID {
                e.too_long(&at(of_uid), MAX_UID);
            }
        }
        let Some(seconds) = spec.max_expiration_seconds else {
            e.required(&at("maxExpirationSeconds"), "must be set");
            return e;
        };
        let range = expirations(&spec.signer_name);
        if !range.contains(&seconds) {
            let told = format!("must be in the range [{}, {}]", range.start(), range.end());
            e.invalid(&at("maxExpirationSeconds"), seconds, &told);
        }
        let (request, at) = (&spec.stub_pkc_s10_request, at("stubPKCS10Request"));
        if request.0.len() > MAX_REQUEST {
            e.too_long(&at, MAX_REQUEST);
            return e;
        }
        match stub_request::check(&request.0) {
            Ok(()) => {}
            Err(Fault::Request(told)) => e.invalid(&at, json!(request), told),
            Err(Fault::Key(key, told)) => e.invalid(&at, key, told),
            Err(Fault::Proof(told)) => e.invalid_unshown(&at, told),
        }
        e
    }

    fn prepare_for_update(&mut self, old: &Self, _cx: &Context<'_>) {
        self.status.clone_from(&old.status);
    }

    fn validate_update(&self, old: &Self) -> ErrorList {
        let mut e = ErrorList::default();
        if !semantically_equal(&self.spec, &old.spec) {
            workload::invalid_shown(&mut e, &Path::new("spec"), &shown(&self.spec), IMMUTABLE);
        }
        e
    }

    fn prepare_for_status_update(&mut self, old: &Self, _cx: &Context<'_>) {
        self.spec.clone_from(&old.spec);
        reset_for_status(&mut self.metadata, &old.metadata);
    }

    fn validate_status_update(&self, old: &Self) -> ErrorList {
        let mut e = ErrorList::default();
        let at = Path::new("status");
        // Of paths like these upstream puts a dot before the index.
        let of = |i: usize, field: &str| at.child("conditions").child(&format!("[{i}]")).child(field);
        for (i, c) in conditions(self).iter().enumerate() {
            if !ENDS.contains(&c.type_.as_str()) {
                e.not_supported(&of(i, "type"), &c.type_, &ENDS);
                continue;
            }
            if conditions(self)[..i].iter().any(|o| ENDS.contains(&o.type_.as_str())) {
                let told = r#"There may be at most one condition with type "Issued", "Denied", or "Failed""#;
                e.invalid(&of(i, "type"), c.type_.as_str(), told);
            }
            if c.status != "True" {
                e.not_supported(&of(i, "status"), &c.status, &["True"]);
            }
        }
        e.extend(validate_conditions(conditions(self), &at.child("conditions")));
        if !e.is_empty() {
            return e;
        }
        let empty = PodCertificateRequestStatus::default();
        let (new, before) = (self.status.as_ref().unwrap_or(&empty), old.status.as_ref().unwrap_or(&empty));
        if end(old).is_some() {
            if !semantically_equal(new, before) {
                let told = "immutable after PodCertificateRequest is issued, denied, or failed";
                e.invalid_unshown(&at, told);
            }
            return e;
        }
        match end(self).map(|c| c.type_.as_str()) {
            Some("Issued") => validate_issued(self, new, &mut e),
            Some(_) => {
                let only = PodCertificateRequestStatus { conditions: new.conditions.clone(), ..empty.clone() };
                if !semantically_equal(new, &only) {
                    let told = "non-condition status fields must be empty when denying or failing the \
                                PodCertificateRequest";
                    e.invalid_unshown(&at, told);
                }
            }
            None if semantically_equal(new, before) => {}
            None => {
                let told = r#"status is immutable unless transitioning to "Issued", "Denied", or "Failed""#;
                e.invalid_unshown(&at, told);
            }
        }
        e
    }

    fn selectable_fields(&self) -> Vec<(&'static str, String)> {
        vec![
            ("spec.signerName", self.spec.signer_name.clone()),
            ("spec.podName", self.spec.pod_name.clone()),
            ("spec.nodeName", self.spec.node_name.clone()),
        ]
    }

    fn cells(&self, _now: Timestamp) -> Vec<Value> {
        let state = end(self).map_or("Pending", |c| c.type_.as_str());
        let spec = &self.spec;
        vec![
            self.metadata.name().into(),
            spec.pod_name.clone().into(),
            spec.service_account_name.clone().into(),
            spec.node_name.clone().into(),
            spec.signer_name.clone().into(),
            state.into(),
        ]
    }

    fn reset_fields() -> (&'static [&'static [&'static str]], &'static [&'static [&'static str]]) {
        (&[], &[&["spec"]])
    }
}

/// What is wrong with a certificate that is issued now, so far as the time of day tells: it must begin within five minutes.
#[must_use]
pub fn begins_elsewhere(new: &PodCertificateRequest, old: &PodCertificateRequest, now: Timestamp) -> Option<ErrorList> {
    let issued = end(old).is_none() && end(new).is_some_and(|c| c.type_ == "Issued");
    let from: &Time = new.status.as_ref()?.not_before.as_ref().filter(|_| issued)?;
    if from.0.duration_since(now).abs() < SignedDuration::from_mins(5) {
        return None;
    }
    let mut e = ErrorList::default();
    let told = "must be set to within 5 minutes of kube-apiserver's current time";
    e.invalid(&Path::new("status").child("notBefore"), json!(from), told);
    Some(e)
}

#[cfg(test)]
mod tests;
