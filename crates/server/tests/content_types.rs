//! How a client may ask: protobuf both ways, YAML, shapes, what is refused, and compression.

mod harness;

use bytes::Bytes;
use gantry_schema::protobuf;
use harness::Harness;
use http_body_util::BodyExt;
use serde_json::{Value, json};

const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn config_map(name: &str, data: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name }, "data": { "x": data } })
}

/// The answer's code, media type and body.
async fn ask(h: &Harness, method: &str, uri: &str, headers: &[(&str, &str)], body: Vec<u8>) -> (u16, String, Bytes) {
    let response = h.raw(method, uri, headers, body).await;
    let (code, media) = (response.status().as_u16(), response.headers()["content-type"].to_str().unwrap().to_owned());
    (code, media, response.into_body().collect().await.unwrap().to_bytes())
}

/// The same, where the answer must be in protobuf.
async fn ask_protobuf(h: &Harness, method: &str, uri: &str, body: Option<Value>) -> (u16, Value) {
    let body = body.map(|b| protobuf::encode(b.to_string().as_bytes()).unwrap()).unwrap_or_default();
    let (code, media, bytes) = ask(h, method, uri, &[("accept", PROTOBUF), ("content-type", PROTOBUF)], body).await;
    assert_eq!(media, PROTOBUF, "{code} {}", String::from_utf8_lossy(&bytes));
    let json = protobuf::decode(&bytes).unwrap_or_else(|e| panic!("{e}: {bytes:?}"));
    (code, serde_json::from_slice(&json).unwrap())
}

#[tokio::test]
async fn objects_go_there_and_back_in_protobuf() {
    let h = Harness::start().await;
    let (code, made) = ask_protobuf(&h, "POST", CONFIG_MAPS, Some(config_map("a", "y"))).await;
    assert_eq!((code, &made["data"]["x"], &made["kind"]), (201, &json!("y"), &json!("ConfigMap")));
    let path = format!("{CONFIG_MAPS}/a");
    let (_, as_json) = h.call("GET", &path, None).await;
    assert_eq!(ask_protobuf(&h, "GET", &path, None).await, (200, as_json.clone()), "both encodings say the same");
    let mut changed = as_json;
    changed["data"]["x"] = "z".into();
    let (code, made) = ask_protobuf(&h, "PUT", &path, Some(changed)).await;
    assert_eq!((code, &made["data"]["x"]), (200, &json!("z")));
    let options = json!({ "apiVersion": "v1", "kind": "DeleteOptions", "preconditions": { "uid": "other" } });
    let (code, status) = ask_protobuf(&h, "DELETE", &path, Some(options)).await;
    assert_eq!((code, &status["kind"], &status["reason"]), (409, &json!("Status"), &json!("Conflict")));
    let (code, status) = ask_protobuf(&h, "GET", &format!("{CONFIG_MAPS}/none"), None).await;
    assert_eq!((code, &status["reason"], &status["details"]["name"]), (404, &json!("NotFound"), &json!("none")));
}

#[tokio::test]
async fn lists_of_any_length_are_the_same_in_both_encodings() {
    let h = Harness::start().await;
    // More than is kept of a list while it is counted.
    let filler = "0123456789abcdef".repeat(32 * 1024);
    for i in 0..12 {
        let (code, _) = h.call("POST", CONFIG_MAPS, Some(config_map(&format!("m{i}"), &filler))).await;
        assert_eq!(code, 201);
        if i % 4 != 0 {
            continue;
        }
        let (_, mut as_json) = h.call("GET", CONFIG_MAPS, None).await;
        // The wire says the kind once, for the list.
        for item in as_json["items"].as_array_mut().unwrap().iter_mut().filter_map(Value::as_object_mut) {
            item.remove("kind");
            item.remove("apiVersion");
        }
        let (code, list) = ask_protobuf(&h, "GET", CONFIG_MAPS, None).await;
        assert!(code == 200 && list == as_json, "{i}");
    }
    let (_, page) = ask_protobuf(&h, "GET", &format!("{CONFIG_MAPS}?limit=2"), None).await;
    let items = page["items"].as_array().unwrap().len();
    let left = h.call("GET", CONFIG_MAPS, None).await.1["items"].as_array().unwrap().len() - 2;
    assert_eq!((items, &page["metadata"]["remainingItemCount"]), (2, &json!(left)));
    assert!(page["metadata"]["continue"].is_string());
    let (_, _, empty) = ask(&h, "GET", "/api/v1/namespaces/none/pods", &[("accept", PROTOBUF)], vec![]).await;
    assert!(empty.starts_with(b"k8s\0") && empty.ends_with(protobuf::ENVELOPE_END));
}

#[tokio::test]
async fn metadata_alone_comes_in_protobuf_and_tables_do_not() {
    let h = Harness::start().await;
    h.call("POST", CONFIG_MAPS, Some(config_map("a", "y"))).await;
    let accept = format!("{PROTOBUF};as=PartialObjectMetadataList;g=meta.k8s.io;v=v1");
    let (code, _, bytes) = ask(&h, "GET", CONFIG_MAPS, &[("accept", &accept)], vec![]).await;
    let list: Value = serde_json::from_slice(&protobuf::decode(&bytes).unwrap()).unwrap();
    assert_eq!((code, &list["kind"]), (200, &json!("PartialObjectMetadataList")));
    let items = list["items"].as_array().unwrap();
    assert!(items.iter().any(|i| i["metadata"]["name"] == "a" && i.get("data").is_none()), "{list}");
    let table = format!("{PROTOBUF};as=Table;g=meta.k8s.io;v=v1");
    let (code, status) = h.call_with("GET", CONFIG_MAPS, &[("accept", &table)], "").await;
    assert_eq!((code, &status["reason"]), (406, &json!("NotAcceptable")));
    let either = format!("{table},application/json;as=Table;g=meta.k8s.io;v=v1");
    let (code, list) = h.call_with("GET", CONFIG_MAPS, &[("accept", &either)], "").await;
    assert_eq!((code, &list["kind"]), (200, &json!("Table")));
}

#[tokio::test]
async fn watches_send_frames() {
    let h = Harness::start().await;
    h.call("POST", CONFIG_MAPS, Some(config_map("a", "y"))).await;
    let accept = format!("{PROTOBUF};stream=watch");
    let uri = format!("{CONFIG_MAPS}?watch=true&resourceVersion=0&fieldSelector=metadata.name%3Da");
    let response = h.raw("GET", &uri, &[("accept", &accept)], "").await;
    assert_eq!(response.headers()["content-type"], accept.as_str());
    let mut body = response.into_body();
    for (kind, data) in [("ADDED", "y"), ("MODIFIED", "z")] {
        let frame = body.frame().await.unwrap().unwrap().into_data().unwrap();
        let (length, event) = frame.split_at(4);
        assert_eq!(u32::from_be_bytes(length.try_into().unwrap()) as usize, event.len());
        let at = event.windows(4).position(|w| w == b"k8s\0").unwrap();
        assert!(event[..at].windows(kind.len()).any(|w| w == kind.as_bytes()), "{event:?}");
        let object: Value = serde_json::from_slice(&protobuf::decode(&event[at..]).unwrap()).unwrap();
        assert_eq!(object["data"]["x"], data);
        h.call("PUT", &format!("{CONFIG_MAPS}/a"), Some(config_map("a", "z"))).await;
    }
    // No watch is told in YAML, but the refusal is.
    let (code, _, said) = ask(&h, "GET", &uri, &[("accept", "application/yaml")], vec![]).await;
    let types = "application/json;stream=watch, application/vnd.kubernetes.protobuf;stream=watch";
    let said = String::from_utf8_lossy(&said);
    assert!(code == 406 && said.contains(&format!("only the following media types are accepted: {types}")), "{said}");
}

#[tokio::test]
async fn discovery_is_there_in_protobuf() {
    let h = Harness::start().await;
    let (_, groups) = ask_protobuf(&h, "GET", "/apis", None).await;
    assert_eq!(groups["kind"], "APIGroupList");
    let (_, list) = ask_protobuf(&h, "GET", "/apis/apps/v1", None).await;
    assert!(list["resources"].as_array().unwrap().iter().any(|r| r["name"] == "deployments/scale"), "{list}");
    let shape = ";g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    let accept = format!("{PROTOBUF}{shape}");
    let (code, media, bytes) = ask(&h, "GET", "/apis", &[("accept", &accept)], vec![]).await;
    assert_eq!((code, media), (200, accept));
    let list: Value = serde_json::from_slice(&protobuf::decode(&bytes).unwrap()).unwrap();
    assert!(list["items"].as_array().unwrap().iter().any(|i| i["metadata"]["name"] == "apps"), "{list}");
    // The version is no API object.
    assert_eq!(ask(&h, "GET", "/version", &[("accept", PROTOBUF)], vec![]).await.1, "application/json");
}

#[tokio::test]
async fn what_is_not_served_is_refused_by_name() {
    let h = Harness::start().await;
    let served = "application/json, application/yaml, application/vnd.kubernetes.protobuf";
    // The gate of CBOR is off by default.
    for media in ["application/cbor", "application/xml"] {
        let (code, status) = h.call_with("GET", CONFIG_MAPS, &[("accept", media)], "").await;
        let want = format!("only the following media types are accepted: {served}");
        assert_eq!((code, status["message"].as_str().unwrap()), (406, want.as_str()));
        let (code, status) = h.call_with("POST", CONFIG_MAPS, &[("content-type", media)], "x").await;
        let want = format!("the body of the request was in an unknown format - accepted media types include: {served}");
        assert_eq!((code, status["message"].as_str().unwrap()), (415, want.as_str()));
    }
    let (code, status) = h.call_with("POST", CONFIG_MAPS, &[("content-type", PROTOBUF)], "{}").await;
    let message = status["message"].as_str().unwrap();
    assert_eq!(code, 400);
    assert!(
        message.starts_with("the object provided is unrecognized (must be of type ConfigMap): provided data"),
        "{message}"
    );
    let unknown = protobuf::envelope("v1", "Nothing", 0);
    let (_, status) = h.call_with("POST", CONFIG_MAPS, &[("content-type", PROTOBUF)], unknown).await;
    let message = status["message"].as_str().unwrap();
    assert!(message.starts_with("Nothing in version \"v1\" cannot be handled as a ConfigMap: no kind"), "{message}");
}

#[tokio::test]
async fn yaml_is_read_and_written_and_large_answers_are_compressed() {
    let h = Harness::start().await;
    let yaml = [("accept", "application/yaml"), ("content-type", "application/yaml")];
    let body = b"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata: {x: 'yes'}\n".to_vec();
    let (code, media, text) = ask(&h, "POST", CONFIG_MAPS, &yaml, body).await;
    assert_eq!((code, media.as_str()), (201, "application/yaml"));
    assert!(String::from_utf8_lossy(&text).contains("kind: ConfigMap\n"));
    let (_, media, text) = ask(&h, "GET", &format!("{CONFIG_MAPS}/none"), &yaml, vec![]).await;
    assert_eq!(media, "application/yaml");
    assert!(String::from_utf8_lossy(&text).contains("reason: NotFound\n"));
    h.call("POST", CONFIG_MAPS, Some(config_map("b", &"z".repeat(200 * 1024)))).await;
    for (name, media, compressed) in [("b", PROTOBUF, true), ("b", "application/json", true), ("a", PROTOBUF, false)] {
        let headers = [("accept", media), ("accept-encoding", "gzip")];
        let response = h.raw("GET", &format!("{CONFIG_MAPS}/{name}"), &headers, "").await;
        assert_eq!(response.headers().contains_key("content-encoding"), compressed, "{name} {media}");
        assert_eq!(response.headers()["content-type"], media);
    }
}
