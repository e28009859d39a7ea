//! Objects with the fields that the examples of Kubernetes' concept and task pages use, written anew: `tests/documentation`,
//! each under the page it belongs to. All are made by kubectl with strict validation, and nothing of them may be lost.

mod cluster;

use cluster::Cluster;
use cluster::api::Api;
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn files() -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/documentation");
    let mut all: Vec<PathBuf> = std::fs::read_dir(directory).unwrap().map(|f| f.unwrap().path()).collect();
    all.sort();
    all
}

/// The documents of a file, each with its page.
fn documents(text: &str) -> Vec<(String, Value)> {
    let found = text.split("\n---\n").map(|document| {
        let page = document.lines().next().and_then(|l| l.strip_prefix("# page: "));
        let page = page.unwrap_or_else(|| panic!("no page: {document}")).to_owned();
        let value = serde_saphyr::from_str(document).unwrap_or_else(|e| panic!("{page}: {e}\n{document}"));
        (page, value)
    });
    found.collect()
}

/// What of `wanted` is not in `found`; lists have to be the same length.
fn lost(at: &str, wanted: &Value, found: &Value) -> Vec<String> {
    match (wanted, found) {
        (Value::Object(wanted), Value::Object(_)) => {
            wanted.iter().flat_map(|(key, value)| lost(&format!("{at}.{key}"), value, &found[key])).collect()
        }
        (Value::Array(wanted), Value::Array(list)) if wanted.len() <= list.len() => {
            let pairs = wanted.iter().zip(list).enumerate();
            pairs.flat_map(|(i, (value, found))| lost(&format!("{at}[{i}]"), value, found)).collect()
        }
        _ if wanted == found => Vec::new(),
        _ => vec![format!("{at}: {wanted} became {found}")],
    }
}

/// Plural and scope by version and kind, of all that is served.
fn resources(api: &Api<'_>) -> Vec<(String, String, String, bool)> {
    let mut found = Vec::new();
    let mut note = |base: &str, version: &str| {
        for resource in api.get(base)["resources"].as_array().unwrap() {
            let text = |field: &str| resource[field].as_str().unwrap().to_owned();
            if !text("name").contains('/') {
                found.push((
                    version.to_owned(),
                    text("kind"),
                    format!("{base}|{}", text("name")),
                    resource["namespaced"] == true,
                ));
            }
        }
    };
    note("/api/v1", "v1");
    for group in api.get("/apis")["groups"].as_array().unwrap() {
        for version in group["versions"].as_array().unwrap() {
            let version = version["groupVersion"].as_str().unwrap();
            note(&format!("/apis/{version}"), version);
        }
    }
    found
}

#[test]
fn nothing_of_the_examples_is_lost() {
    let mut cluster = Cluster::prepare_role("server", &[]);
    cluster.up();
    let api = Api::new(&cluster);
    let (mut pages, mut wrong, mut count) = (BTreeSet::new(), Vec::new(), 0);
    for file in files() {
        let text = std::fs::read_to_string(&file).unwrap();
        let stem = file.file_stem().unwrap().to_string_lossy().replace('_', "-");
        let namespace = api.namespace(&format!("docs-{stem}"));
        // Pods of accounts that are not there are refused; the account is what the pods' file does not describe.
        if stem == "pods" {
            cluster.kubectl(&["create", "serviceaccount", "build-robot", "-n", &namespace]);
        }
        let documents = documents(&text);
        if stem == "definitions-objects" {
            cluster.kubectl(&[
                "wait",
                "--for=condition=Established",
                "crd",
                "crontabs.stable.example.com",
                "--timeout=60s",
            ]);
        }
        let output = cluster.try_kubectl_with(&["create", "--validate=strict", "-n", &namespace, "-f", "-"], &text);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        if !output.status.success() {
            wrong.push(format!("{}: {told}", file.display()));
        }
        let served = resources(&api);
        for (page, wanted) in documents {
            count += 1;
            let (version, kind) = (wanted["apiVersion"].as_str().unwrap(), wanted["kind"].as_str().unwrap());
            let name = wanted["metadata"]["name"].as_str().unwrap();
            let Some((_, _, path, namespaced)) =
                served.iter().find(|r| (r.0.as_str(), r.1.as_str()) == (version, kind))
            else {
                wrong.push(format!("{page}: {version} {kind} is not served"));
                continue;
            };
            let scope = if *namespaced { format!("/namespaces/{namespace}/") } else { "/".to_owned() };
            let answer = api.try_get(&format!("{}/{name}", path.replace('|', &scope)));
            if answer.code == 200 {
                wrong
                    .extend(lost("", &wanted, &answer.json()).into_iter().map(|l| format!("{page}: {kind} {name}{l}")));
            } else {
                wrong.push(format!("{page}: {kind} {name} is not there"));
            }
            pages.insert(page);
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
    assert!(count >= 100 && pages.len() >= 90, "{count} objects of {} pages", pages.len());
}
