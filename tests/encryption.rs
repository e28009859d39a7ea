//! Encryption at rest: what the store's files hold of Secrets, with the key that is made by itself and with those of a
//! configuration or of a key management service; keys that change, and keys that are lost.

mod cluster;

use cluster::Cluster;
use cluster::api::{Api, name};
use cluster::socket::Socket;
use gantry_grpc::{Answer, Code, Message, Status};
use serde_json::json;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

const SECRETS: &str = "/api/v1/namespaces/default/secrets";
const KEY_1: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";
const KEY_2: &str = "ZmVkY2JhOTg3NjU0MzIxMGZlZGNiYTk4NzY1NDMyMTA=";

/// Whether a file under the directory holds this.
fn holds(directory: &Path, wanted: &[u8]) -> bool {
    std::fs::read_dir(directory).unwrap().any(|entry| {
        let path = entry.unwrap().path();
        if path.is_dir() {
            return holds(&path, wanted);
        }
        let bytes = std::fs::read(&path).unwrap();
        bytes.windows(wanted.len()).any(|w| w == wanted)
    })
}

fn create(api: &Api<'_>, name: &str, value: &str) {
    api.create(SECRETS, &json!({"metadata": {"name": name}, "stringData": {"value": value}}));
}

fn value(api: &Api<'_>, name: &str) -> String {
    let encoded = api.get(&format!("{SECRETS}/{name}"))["data"]["value"].as_str().unwrap().to_owned();
    let decoded = std::process::Command::new("sh").arg("-c").arg(format!("echo {encoded} | base64 -d")).output();
    String::from_utf8(decoded.unwrap().stdout).unwrap()
}

/// What is stored carries the base64 of what was sent.
fn stored_form(value: &str) -> Vec<u8> {
    cluster::api::base64(value.as_bytes()).into_bytes()
}

/// An EncryptionConfiguration of Secrets with these providers.
fn configuration(file: &Path, providers: &str) {
    let text = format!(
        "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n- resources: [secrets]\n  \
         providers: {providers}\n"
    );
    std::fs::write(file, text).unwrap();
}

fn keys(provider: &str, keys: &[(&str, &str)]) -> String {
    let keys: Vec<_> = keys.iter().map(|(name, key)| format!("{{name: {name}, secret: {key}}}")).collect();
    format!("{{{provider}: {{keys: [{}]}}}}", keys.join(", "))
}

/// What is said of a Secret in the default namespace that cannot be decrypted.
fn corrupt(name: &str, why: &str) -> String {
    format!(
        "StorageError: corrupt object, Code: 7, Key: /registry/core/secrets/default/{name}, ResourceVersion: 0, \
         AdditionalErrorMsg: data from the storage is not transformable revision=0: {why}"
    )
}

fn restart(cluster: &mut Cluster) {
    cluster.interrupt();
    cluster.up();
}

#[test]
fn secrets_are_encrypted_by_default() {
    let mut cluster = Cluster::prepare_role("server", &[]);
    let configuration = cluster.data_dir().join("encryption.yaml");
    let store = cluster.data_dir().join("store");
    cluster.up();
    let api = Api::new(&cluster);
    let plain = "open-to-everybody-who-reads-the-disk";
    create(&api, "s", plain);
    api.create(
        "/api/v1/namespaces/default/configmaps",
        &json!({"metadata": {"name": "m"}, "data": {"value": "nothing-to-hide-in-here"}}),
    );
    let wanted = stored_form(plain);
    assert!(!holds(&store, &wanted) && !holds(&store, plain.as_bytes()));
    assert!(holds(&store, b"k8s:enc:secretbox:v1:key-"));
    assert!(holds(&store, b"nothing-to-hide-in-here"), "what is not encrypted can be found like this");
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&configuration).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    // Watches and lists show what was meant.
    assert_eq!(value(&api, "s"), plain);
    let watch = api.watch(SECRETS);
    assert_eq!(watch.expect("ADDED", "s")["data"]["value"], String::from_utf8(wanted).unwrap());
    api.edit(&format!("{SECRETS}/s"), |s| s["metadata"]["labels"] = json!({"a": "b"}));
    assert_eq!(watch.expect("MODIFIED", "s")["metadata"]["labels"]["a"], "b");
    drop(watch);
    create(&api, "to-be-given-up", "as-good-as-lost");
    let before = std::fs::read(&configuration).unwrap();
    restart(&mut cluster);
    let api = Api::new(&cluster);
    assert_eq!(value(&api, "s"), plain);
    assert_eq!(std::fs::read(&configuration).unwrap(), before, "the key is kept");

    // The key is lost: nothing else is, and it all comes back with the key.
    cluster.interrupt();
    let aside = cluster.data_dir().join("aside.yaml");
    std::fs::rename(&configuration, &aside).unwrap();
    cluster.up();
    let api = Api::new(&cluster);
    let corrupt = corrupt("s", "no matching key was found for the provided Secretbox transformer");
    let told = |method: &str, path: &str| {
        let status = api.request(method, path, None).expect(500);
        (status["reason"].as_str().unwrap().to_owned(), status["message"].as_str().unwrap().to_owned())
    };
    let of_one = ("InternalError".to_owned(), format!("Internal error occurred: {corrupt}"));
    assert_eq!(told("GET", &format!("{SECRETS}/s")), of_one);
    assert_eq!(told("DELETE", &format!("{SECRETS}/s")), of_one);
    let of_all = format!("failed to read one or more secrets from the storage: {corrupt} (and 1 more)");
    for method in ["GET", "DELETE"] {
        assert_eq!(told(method, SECRETS), ("StorageReadError".to_owned(), of_all.clone()));
    }
    let causes = api.request("GET", SECRETS, None).expect(500)["details"]["causes"].clone();
    assert_eq!(causes[0]["reason"], "UnexpectedServerResponse");
    assert_eq!(causes[0]["field"], "/registry/core/secrets/default/s");
    assert_eq!(api.try_get("/api/v1/namespaces/default/configmaps/m").code, 200);
    create(&api, "new", "written-meanwhile-with-another-key");
    assert_eq!(value(&api, "new"), "written-meanwhile-with-another-key");
    what_cannot_be_read_is_given_up(&cluster, &api);
    cluster.interrupt();
    std::fs::rename(&aside, &configuration).unwrap();
    cluster.up();
    let api = Api::new(&cluster);
    assert_eq!(value(&api, "s"), plain);
    api.gone(&format!("{SECRETS}/to-be-given-up"));
}

/// Objects that cannot be read are deleted when that is asked for in so many words, by those who may.
fn what_cannot_be_read_is_given_up(cluster: &Cluster, api: &Api<'_>) {
    let option = "ignoreStoreReadErrorWithClusterBreakingPotential";
    let given_up = format!("{SECRETS}/to-be-given-up?{option}=true");
    let rule = |verb| json!({"apiGroups": [""], "resources": ["secrets"], "verbs": [verb]});
    let roles = "/apis/rbac.authorization.k8s.io/v1/namespaces/default";
    api.create(&format!("{roles}/roles"), &json!({"metadata": {"name": "deleter"}, "rules": [rule("delete")]}));
    api.create(
        &format!("{roles}/rolebindings"),
        &json!({
            "metadata": {"name": "deleter"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "deleter"},
            "subjects": [{"kind": "User", "name": "jane"}],
        }),
    );
    let jane = api.impersonate("jane", &[]);
    let verb = "unsafe-delete-ignore-read-errors";
    let forbidden = format!("secrets \"to-be-given-up\" is forbidden: not permitted to do \"{verb}\", reason: ");
    assert_eq!(jane.request("DELETE", &given_up, None).expect(403)["message"], forbidden);

    let told = |path: &str, code: u16| {
        api.request("DELETE", path, None).expect(code)["message"].as_str().unwrap_or_default().to_owned()
    };
    let invalid = format!("DeleteOptions.meta.k8s.io \"\" is invalid: {option}: Invalid value: true:");
    assert_eq!(
        told(&format!("{SECRETS}?{option}=true"), 422),
        format!("{invalid} is not allowed with DELETECOLLECTION, try again after removing the option")
    );
    assert_eq!(
        told(&format!("{given_up}&gracePeriodSeconds=0"), 422),
        format!("{invalid} cannot be set together with .gracePeriodSeconds")
    );
    assert_eq!(
        told(&format!("{SECRETS}/new?{option}=true"), 409),
        "Operation cannot be fulfilled on secrets \"new\": StorageError: invalid object, Code: 4, Key: \
         /registry/core/secrets/default/new, ResourceVersion: 0, AdditionalErrorMsg: unsafe deletion is not allowed \
         because the object is decodable from storage"
    );
    assert_eq!(told(&format!("{SECRETS}/absent?{option}=true"), 404), "secrets \"absent\" not found");
    told(&format!("{given_up}&dryRun=All"), 200);
    assert_eq!(api.try_get(&format!("{SECRETS}/to-be-given-up")).code, 500, "it is still there");

    api.edit(&format!("{roles}/roles/deleter"), |role| role["rules"] = json!([rule("delete"), rule(verb)]));
    let answer = cluster.wait_for("the role to count", || {
        Some(jane.request("DELETE", &given_up, None)).filter(|answer| answer.code != 403)
    });
    assert_eq!(
        answer.expect(200),
        json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
            "details": {"name": "to-be-given-up", "kind": "Secret"}, "code": 200,
        })
    );
    told(&given_up, 404);
    let left = api.request("GET", SECRETS, None).expect(500);
    assert_eq!(left["details"]["causes"].as_array().unwrap().len(), 1, "{left}");
}

#[test]
fn keys_are_rotated() {
    let mut cluster = Cluster::prepare_role("server", &[]);
    let file = cluster.data_dir().join("configuration.yaml");
    let store = cluster.data_dir().join("store");
    configuration(&file, "[{identity: {}}]");
    cluster.add_options(&["--encryption-provider-config", file.to_str().unwrap()]);
    cluster.up();
    let plain = "readable-as-long-as-nothing-is-encrypted";
    create(&Api::new(&cluster), "s", plain);
    assert!(holds(&store, &stored_form(plain)));
    assert!(!cluster.data_dir().join("encryption.yaml").exists(), "no key is made where one is given");

    // From none to a key, to another, to another cipher: what was written before stays readable, and is written anew with
    // the first key when it is written.
    let rotations = [
        (format!("[{}, {{identity: {{}}}}]", keys("aescbc", &[("one", KEY_1)])), "k8s:enc:aescbc:v1:one:"),
        (format!("[{}]", keys("aescbc", &[("two", KEY_2), ("one", KEY_1)])), "k8s:enc:aescbc:v1:two:"),
        (
            format!("[{}, {}]", keys("aesgcm", &[("three", KEY_1)]), keys("aescbc", &[("two", KEY_2)])),
            "k8s:enc:aesgcm:v1:three:",
        ),
        (
            format!("[{}, {}]", keys("secretbox", &[("four", KEY_2)]), keys("aesgcm", &[("three", KEY_1)])),
            "k8s:enc:secretbox:v1:four:",
        ),
        (format!("[{{identity: {{}}}}, {}]", keys("secretbox", &[("four", KEY_2)])), ""),
    ];
    for (providers, prefix) in rotations {
        cluster.interrupt();
        configuration(&file, &providers);
        cluster.up();
        let api = Api::new(&cluster);
        assert_eq!(value(&api, "s"), plain, "before it is written anew with {providers}");
        let path = format!("{SECRETS}/s");
        let present = api.get(&path);
        let written = api.update(&path, &present);
        assert_ne!(
            written["metadata"]["resourceVersion"], present["metadata"]["resourceVersion"],
            "a write that changes nothing writes anew what is stored with another key"
        );
        let again = api.update(&path, &written);
        assert_eq!(again["metadata"]["resourceVersion"], written["metadata"]["resourceVersion"]);
        assert_eq!((value(&api, "s").as_str(), name(&again)), (plain, "s"));
        assert!(prefix.is_empty() || holds(&store, prefix.as_bytes()), "{prefix}");
    }

    // A wrong key under the right name.
    cluster.interrupt();
    configuration(&file, &format!("[{}, {{identity: {{}}}}]", keys("aesgcm", &[("five", KEY_1)])));
    cluster.up();
    create(&Api::new(&cluster), "t", "of-the-fifth-key");
    cluster.interrupt();
    configuration(&file, &format!("[{}, {{identity: {{}}}}]", keys("aesgcm", &[("five", KEY_2)])));
    cluster.up();
    let api = Api::new(&cluster);
    let told = api.try_get(&format!("{SECRETS}/t")).expect(500);
    let why = corrupt("t", "cipher: message authentication failed");
    assert_eq!(told["message"], format!("Internal error occurred: {why}"));
    assert_eq!(value(&api, "s"), plain, "others are read");

    // What cannot be understood is not started with.
    cluster.interrupt();
    configuration(&file, "[{kms: {name: k, apiVersion: v2, endpoint: 'http://x'}}]");
    cluster.spawn();
    let wanted = "resources[0].providers[0].kms.endpoint: Invalid value: \"http://x\": unsupported scheme \"http\"";
    cluster.wait_for("the field that is refused", || cluster.log().contains(wanted).then_some(()));
    cluster.forget_child();
}

/// With `--encryption-provider-config-automatic-reload` a changed file is taken over while the server runs.
#[test]
fn keys_are_rotated_without_a_restart() {
    let mut cluster = Cluster::prepare_role("server", &[]);
    // The flag means nothing without a file.
    cluster.add_options(&["--encryption-provider-config-automatic-reload"]);
    cluster.spawn();
    let wanted = "--encryption-provider-config-automatic-reload must be set with --encryption-provider-config";
    cluster.wait_for("the flag that is refused", || cluster.log().contains(wanted).then_some(()));
    cluster.forget_child();

    let directory = cluster.data_dir().join("encryption");
    std::fs::create_dir(&directory).unwrap();
    let (file, store) = (directory.join("configuration.yaml"), cluster.data_dir().join("store"));
    let replace = |providers: &str| {
        let new = directory.join("new.yaml");
        configuration(&new, providers);
        std::fs::rename(new, &file).unwrap();
    };
    let one = keys("aescbc", &[("one", KEY_1)]);
    replace(&format!("[{one}, {{identity: {{}}}}]"));
    cluster.add_options(&["--encryption-provider-config", file.to_str().unwrap()]);
    cluster.up();
    let api = Api::new(&cluster);
    let plain = "written-with-the-first-key";
    create(&api, "s", plain);
    assert!(holds(&store, b"k8s:enc:aescbc:v1:one:"));
    let count = |status: &str| {
        let line = format!(
            "apiserver_encryption_config_controller_automatic_reloads_total{{apiserver_id_hash=\"\",status=\"{status}\"}} "
        );
        let text = api.try_get("/metrics").text;
        text.lines().find_map(|l| l.strip_prefix(&line)).map_or(0, |n| n.trim().parse::<u32>().unwrap())
    };

    let two = keys("secretbox", &[("two", KEY_2)]);
    replace(&format!("[{two}, {one}]"));
    cluster.wait_for("the second key", || (count("success") == 1).then_some(()));
    assert_eq!(value(&api, "s"), plain);
    let path = format!("{SECRETS}/s");
    let present = api.get(&path);
    assert_ne!(api.update(&path, &present)["metadata"]["resourceVersion"], present["metadata"]["resourceVersion"]);
    assert!(holds(&store, b"k8s:enc:secretbox:v1:two:"));

    // What cannot be used changes nothing.
    replace("[]");
    cluster.wait_for("the file that is refused", || (count("failure") > 0).then_some(()));
    cluster.wait_for("why", || cluster.log().contains("resources[0].providers: Required value").then_some(()));
    create(&api, "t", "written-with-the-second-key");

    // The first key is not needed any more.
    replace(&format!("[{two}]"));
    cluster.wait_for("the first key to go", || (count("success") == 2).then_some(()));
    api.edit(&path, |s| s["metadata"]["labels"] = json!({"a": "b"}));
    assert_eq!((value(&api, "s").as_str(), value(&api, "t").as_str()), (plain, "written-with-the-second-key"));
}

#[derive(Clone, PartialEq, prost::Message)]
struct ServiceStatus {
    #[prost(string, tag = "1")]
    version: String,
    #[prost(string, tag = "2")]
    healthz: String,
    #[prost(string, tag = "3")]
    key_id: String,
}

/// The request and the answer of Encrypt and Decrypt alike, as far as this service looks at them.
#[derive(Clone, PartialEq, prost::Message)]
struct Data {
    #[prost(bytes = "vec", tag = "1")]
    bytes: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Encrypted {
    #[prost(bytes = "vec", tag = "1")]
    ciphertext: Vec<u8>,
    #[prost(string, tag = "2")]
    key_id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ToDecrypt {
    #[prost(bytes = "vec", tag = "1")]
    ciphertext: Vec<u8>,
    #[prost(string, tag = "3")]
    key_id: String,
}

/// A key management service whose keys are numbers that bytes are mixed with; the newest encrypts.
struct KeyService {
    keys: Mutex<Vec<u8>>,
    decryptions: AtomicUsize,
}

#[async_trait::async_trait]
impl gantry_grpc::Service for KeyService {
    async fn call(&self, method: &str, request: bytes::Bytes) -> Result<Answer, Status> {
        let keys = self.keys.lock().unwrap().clone();
        let key_id = format!("key-{}", keys[0]);
        let mixed = |bytes: Vec<u8>, key: u8| bytes.into_iter().map(|b| b ^ key).collect::<Vec<u8>>();
        match method {
            "/v2.KeyManagementService/Status" => {
                Ok(Answer::of(&ServiceStatus { version: "v2".into(), healthz: "ok".into(), key_id }))
            }
            "/v2.KeyManagementService/Encrypt" => {
                let seed = Data::decode(request).unwrap().bytes;
                Ok(Answer::of(&Encrypted { ciphertext: mixed(seed, keys[0]), key_id }))
            }
            "/v2.KeyManagementService/Decrypt" => {
                self.decryptions.fetch_add(1, Ordering::Relaxed);
                let wanted = ToDecrypt::decode(request).unwrap();
                let key = keys.iter().find(|k| format!("key-{k}") == wanted.key_id);
                let key = key.ok_or_else(|| Status::new(Code::UNKNOWN, format!("{} is not kept", wanted.key_id)))?;
                Ok(Answer::of(&Data { bytes: mixed(wanted.ciphertext, *key) }))
            }
            _ => Err(Status::new(Code::UNIMPLEMENTED, method)),
        }
    }
}

#[test]
fn a_key_management_service_keeps_the_keys() {
    let mut cluster = Cluster::prepare_role("server", &[]);
    let file = cluster.data_dir().join("configuration.yaml");
    let store = cluster.data_dir().join("store");
    let socket = cluster.data_dir().join("plugin/kms.sock");
    configuration(
        &file,
        &format!(
            "[{{kms: {{apiVersion: v2, name: vault, endpoint: 'unix://{}', timeout: 1s}}}}, {{identity: {{}}}}]",
            socket.display()
        ),
    );
    cluster.add_options(&["--encryption-provider-config", file.to_str().unwrap()]);
    let service = Arc::new(KeyService { keys: Mutex::new(vec![1]), decryptions: AtomicUsize::new(0) });
    let asked = || service.decryptions.load(Ordering::Relaxed);
    let up = || Socket::listen(&socket, service.clone());
    let mut plugin = Some(up());
    cluster.up();
    let api = Api::new(&cluster);
    let plain = "kept-by-somebody-else-than-the-server";
    create(&api, "s", plain);
    create(&api, "t", "another");
    assert!(!holds(&store, &stored_form(plain)) && holds(&store, b"k8s:enc:kms:v2:vault:"));
    assert_eq!((value(&api, "s").as_str(), asked()), (plain, 0), "what it has made itself it knows");
    for path in ["/healthz/kms-provider-0", "/livez/kms-provider-0", "/readyz/kms-provider-0"] {
        assert_eq!(api.try_get(path).text, "ok");
    }
    assert!(api.try_get("/readyz?verbose").text.contains("[+]kms-provider-0 ok"));
    assert_eq!(api.try_get("/healthz/kms-providers").code, 404, "that is of configurations which are read again");
    let metrics = api.try_get("/metrics").text;
    for wanted in [
        "apiserver_envelope_encryption_key_id_hash_total{transformation_type=\"to_storage\",provider_name=\"vault\"",
        "apiserver_envelope_encryption_kms_operations_latency_seconds_count{provider_name=\"vault\",method_name=\
         \"/v2.KeyManagementService/Encrypt\",grpc_status_code=\"OK\"} 1",
        "apiserver_envelope_encryption_dek_source_cache_size{provider_name=\"vault\"} 1",
    ] {
        assert!(metrics.contains(wanted), "{wanted}\n{metrics}");
    }

    // The next run has the one seed decrypted once. The service has a new key, with which the next write is.
    *service.keys.lock().unwrap() = vec![2, 1];
    restart(&mut cluster);
    let api = Api::new(&cluster);
    assert_eq!((value(&api, "s").as_str(), asked()), (plain, 1));
    let path = format!("{SECRETS}/s");
    let present = api.get(&path);
    let written = api.update(&path, &present);
    assert_ne!(
        written["metadata"]["resourceVersion"], present["metadata"]["resourceVersion"],
        "written with the new key"
    );
    let again = api.update(&path, &written);
    assert_eq!(again["metadata"]["resourceVersion"], written["metadata"]["resourceVersion"]);

    // Without the service the server starts, tells that it is away, and has all back with it.
    plugin.take();
    restart(&mut cluster);
    let api = Api::new(&cluster);
    let not_yet = "got unexpected nil transformer";
    let told = api.try_get(&path).expect(500);
    assert_eq!(told["message"], format!("Internal error occurred: {}", corrupt("s", not_yet)));
    assert!(api.try_get(SECRETS).expect(500)["message"].as_str().unwrap().contains(not_yet));
    let new = json!({"metadata": {"name": "new"}, "stringData": {"value": "v"}});
    let told = api.send("POST", SECRETS, &new).expect(500);
    assert_eq!(told["message"], format!("Internal error occurred: {not_yet}"));
    let settings = "/api/v1/namespaces/default/configmaps";
    api.create(settings, &json!({"metadata": {"name": "m"}}));
    let ill = api.try_get("/healthz/kms-provider-0");
    assert_eq!(ill.code, 500);
    assert!(ill.text.starts_with("internal server error: "), "{}", ill.text);
    assert!(ill.text.contains("rpc error: code = DeadlineExceeded desc = "), "{}", ill.text);
    assert!(api.try_get("/readyz?verbose").text.contains("[-]kms-provider-0 failed: reason withheld"));
    plugin = Some(up());
    cluster.wait_for("what is encrypted to be shown again", || {
        // Whoever asks for the server's health has it ask the service.
        api.try_get("/healthz/kms-provider-0");
        (api.try_get(&path).code == 200).then_some(())
    });
    assert_eq!(value(&api, "s"), plain);
    assert_eq!(api.list(SECRETS).len(), 2);
    assert_eq!(value(&api, "t"), "another");
    create(&api, "new", "v");

    // A key the service does not have is told, and nothing else is lost.
    *service.keys.lock().unwrap() = vec![2];
    restart(&mut cluster);
    let api = Api::new(&cluster);
    let lost = corrupt("t", "failed to decrypt DEK, error: rpc error: code = Unknown desc = key-1 is not kept");
    let told = api.try_get(&format!("{SECRETS}/t")).expect(500);
    assert_eq!(told["message"], format!("Internal error occurred: {lost}"));
    assert_eq!((value(&api, "s").as_str(), value(&api, "new").as_str()), (plain, "v"));
    *service.keys.lock().unwrap() = vec![2, 1];
    restart(&mut cluster);
    assert_eq!(value(&Api::new(&cluster), "t"), "another");
    drop(plugin);
}
