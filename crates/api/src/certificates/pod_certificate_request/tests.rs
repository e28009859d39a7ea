use super::*;
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use time::{Duration, OffsetDateTime};

const NOW: i64 = 1_800_000_000;

fn key() -> KeyPair {
    KeyPair::generate().unwrap()
}

fn request(key: &KeyPair) -> PodCertificateRequest {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let csr = params.serialize_request(key).unwrap();
    let spec = json!({"signerName": "example.com/signer", "podName": "p", "podUID": "1", "serviceAccountName": "default",
        "serviceAccountUID": "2", "nodeName": "n", "nodeUID": "3"});
    let mut request = PodCertificateRequest::from_value(json!({"metadata": {"name": "r"}, "spec": spec})).unwrap();
    request.spec.stub_pkc_s10_request.0 = csr.der().to_vec();
    request.set_defaults();
    request
}

fn certificate(key: &KeyPair, seconds: i64) -> String {
    let mut params = CertificateParams::new(vec!["a.example.com".to_owned()]).unwrap();
    params.not_before = OffsetDateTime::from_unix_timestamp(NOW).unwrap();
    params.not_after = params.not_before + Duration::seconds(seconds);
    params.self_signed(key).unwrap().pem()
}

fn at(seconds: i64) -> Value {
    json!(Time(Timestamp::from_second(NOW + seconds).unwrap()))
}

fn with_status(request: &PodCertificateRequest, status: Value) -> PodCertificateRequest {
    let mut out = request.clone();
    out.status = Some(serde_json::from_value(status).unwrap());
    out
}

fn condition(r#type: &str) -> Value {
    json!({"type": r#type, "status": "True", "reason": "Because", "message": "", "lastTransitionTime": at(0)})
}

fn issued(request: &PodCertificateRequest, chain: &str, seconds: i64, refresh: i64) -> PodCertificateRequest {
    let status = json!({"conditions": [condition("Issued")], "certificateChain": chain, "notBefore": at(0),
        "notAfter": at(seconds), "beginRefreshAt": at(refresh)});
    with_status(request, status)
}

fn texts(errors: &ErrorList) -> Vec<String> {
    errors.0.iter().map(ToString::to_string).collect()
}

#[test]
fn what_is_asked_for() {
    let good = request(&key());
    assert_eq!(good.spec.max_expiration_seconds, Some(86400));
    assert_eq!(texts(&good.validate()), Vec::<String>::new());
    let told = |change: fn(&mut PodCertificateRequest)| {
        let mut r = good.clone();
        change(&mut r);
        texts(&r.validate()).join("; ")
    };
    assert_eq!(
        told(|r| r.spec.max_expiration_seconds = Some(60)),
        "spec.maxExpirationSeconds: Invalid value: 60: must be in the range [3600, 7862400]"
    );
    assert_eq!(
        told(|r| {
            r.spec.signer_name = "kubernetes.io/x".into();
            r.spec.max_expiration_seconds = Some(90_000);
        }),
        "spec.maxExpirationSeconds: Invalid value: 90000: must be in the range [3600, 86400]"
    );
    assert_eq!(told(|r| r.spec.pod_uid = String::new()), "spec.podUID: Invalid value: \"\": must not be empty");
    assert_eq!(told(|r| r.spec.node_uid = "x".repeat(129)), "spec.nodeUID: Too long: may not be more than 128 bytes");
    assert_eq!(
        told(|r| r.spec.stub_pkc_s10_request.0 = vec![1]),
        "spec.stubPKCS10Request: Invalid value: \"AQ==\": must be a valid PKCS#10 CSR"
    );
    assert_eq!(
        told(|r| r.spec.unverified_user_annotations = Some([("Plain".to_owned(), "v".to_owned())].into())),
        "spec.unverifiedUserAnnotations: Invalid value: \"plain\": must be a domain-prefixed key (such as \"acme.io/foo\")"
    );
    let mut changed = good.clone();
    changed.spec.pod_name = "q".into();
    assert!(texts(&changed.validate_update(&good))[0].ends_with("field is immutable"));
}

#[test]
fn a_certificate_is_for_the_key_and_the_time_asked_for() {
    let key = key();
    let asked = request(&key);
    let told = |r: &PodCertificateRequest| texts(&r.validate_status_update(&asked)).join("; ");
    let good = certificate(&key, 7200);
    assert_eq!(told(&issued(&asked, &good, 7200, 3600)), "");
    assert_eq!(told(&issued(&asked, &format!("{good}between{good}"), 7200, 600)), "");
    let foreign = certificate(&KeyPair::generate().unwrap(), 7200);
    let wrong: &[(&str, i64, i64, &str)] = &[
        (foreign.as_str(), 7200, 3600, "leaf certificate was not issued to the requested public key"),
        ("", 7200, 3600, "issued certificate chain must contain at least one certificate"),
        (&pem::encode("KEY", b"x"), 7200, 3600, "must consist entirely of CERTIFICATE PEM blocks"),
        (&pem::encode("CERTIFICATE", b"x"), 7200, 3600, "leaf certificate does not parse as valid X.509"),
        (&good, 7201, 3600, "must be set to the NotAfter time encoded in the leaf certificate"),
        (&good, 7200, 599, "must be at least 10 minutes after status.notBefore"),
        (&good, 7200, 6601, "must be at least 10 minutes before status.notAfter"),
        (&certificate(&key, 3599), 3599, 1800, "leaf certificate lifetime must be >= 1 hour"),
        (
            &certificate(&key, 86401),
            86401,
            1800,
            "Invalid value: 86401000000000: leaf certificate lifetime must be <= spec.maxExpirationSeconds (86400)",
        ),
        (&format!("{good}{}", pem::encode("KEY", b"x")), 7200, 3600, "entirely of CERTFICATE PEM blocks"),
        (
            &format!("{good}{}", pem::encode("CERTIFICATE", b"x")),
            7200,
            3600,
            "intermediate certificate does not parse as valid X.509",
        ),
    ];
    for (chain, seconds, refresh, want) in wrong {
        assert!(told(&issued(&asked, chain, *seconds, *refresh)).ends_with(want), "{want}");
    }
    let bare = with_status(&asked, json!({"conditions": [condition("Issued")], "certificateChain": good}));
    let told = texts(&bare.validate_status_update(&asked));
    assert_eq!(told.len(), 3);
    assert_eq!(
        told[2],
        "status.beginRefreshAt: Required value: must be present and in the range [notbefore+10min, notafter-10min]"
    );
}

#[test]
fn a_request_ends_once() {
    let key = key();
    let asked = request(&key);
    let told =
        |new: &PodCertificateRequest, old: &PodCertificateRequest| texts(&new.validate_status_update(old)).join("; ");
    let denied = with_status(&asked, json!({"conditions": [condition("Denied")]}));
    assert_eq!(told(&denied, &asked), "");
    assert_eq!(told(&denied, &denied), "");
    let failed = with_status(&asked, json!({"conditions": [condition("Failed")]}));
    assert_eq!(
        told(&failed, &denied),
        "status: Invalid value: immutable after PodCertificateRequest is issued, denied, or failed"
    );
    let both = with_status(&asked, json!({"conditions": [condition("Denied"), condition("Failed")]}));
    assert_eq!(
        told(&both, &asked),
        "status.conditions.[1].type: Invalid value: \"Failed\": There may be at most one condition with type \"Issued\", \
         \"Denied\", or \"Failed\""
    );
    let other = with_status(&asked, json!({"conditions": [condition("Ready")]}));
    assert_eq!(
        told(&other, &asked),
        "status.conditions.[0].type: Unsupported value: \"Ready\": supported values: \"Issued\", \"Denied\", \"Failed\""
    );
    let with_chain = with_status(&asked, json!({"conditions": [condition("Denied")], "certificateChain": "x"}));
    assert_eq!(
        told(&with_chain, &asked),
        "status: Invalid value: non-condition status fields must be empty when denying or failing the \
         PodCertificateRequest"
    );
    let undecided = with_status(&asked, json!({"certificateChain": "x"}));
    assert_eq!(
        told(&undecided, &asked),
        "status: Invalid value: status is immutable unless transitioning to \"Issued\", \"Denied\", or \"Failed\""
    );
    let cells = |r: &PodCertificateRequest| r.cells(Timestamp::UNIX_EPOCH).pop().unwrap();
    assert_eq!((cells(&asked), cells(&denied)), (json!("Pending"), json!("Denied")));
}

#[test]
fn certificates_begin_now() {
    let key = key();
    let asked = request(&key);
    let new = issued(&asked, &certificate(&key, 7200), 7200, 3600);
    let now = |seconds| Timestamp::from_second(NOW + seconds).unwrap();
    assert!(begins_elsewhere(&new, &asked, now(299)).is_none());
    assert!(begins_elsewhere(&new, &new, now(3000)).is_none(), "it began when it was issued");
    let wrong = begins_elsewhere(&new, &asked, now(301)).unwrap();
    assert!(texts(&wrong)[0].ends_with("must be set to within 5 minutes of kube-apiserver's current time"));
}
