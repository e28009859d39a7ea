use super::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

type Answer = fn(&str, &Value) -> (u16, Value);

/// A server that answers each request by its path and body, over HTTP/1.1.
async fn serve(answer: Answer) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/scheduler", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut data = Vec::new();
                let mut buffer = [0; 4096];
                loop {
                    let head = data.windows(4).position(|w| w == b"\r\n\r\n");
                    let length = head.map(|at| {
                        let head = String::from_utf8_lossy(&data[..at]).to_ascii_lowercase();
                        let line = head.lines().find_map(|l| l.strip_prefix("content-length: ").map(str::to_owned));
                        at + 4 + line.and_then(|l| l.parse::<usize>().ok()).unwrap_or(0)
                    });
                    if let (Some(at), Some(end)) = (head, length)
                        && data.len() >= end
                    {
                        let path = String::from_utf8_lossy(&data).split(' ').nth(1).unwrap_or_default().to_owned();
                        let (code, body) = answer(&path, &serde_json::from_slice(&data[at + 4..end]).unwrap());
                        let body = body.to_string();
                        let head = format!("HTTP/1.1 {code} X\r\ncontent-length: {}\r\n\r\n", body.len());
                        stream.write_all((head + &body).as_bytes()).await.unwrap();
                        data.drain(..end);
                        continue;
                    }
                    match stream.read(&mut buffer).await {
                        Ok(n) if n > 0 => data.extend_from_slice(&buffer[..n]),
                        _ => return,
                    }
                }
            });
        }
    });
    url
}

fn config(url: &str) -> ExtenderConfig {
    ExtenderConfig {
        url_prefix: url.to_owned(),
        filter_verb: "filter".into(),
        preempt_verb: "preempt".into(),
        prioritize_verb: "prioritize".into(),
        weight: 2,
        bind_verb: "bind".into(),
        tls: Tls::default(),
        timeout: Duration::from_secs(60),
        node_cache_capable: true,
        managed_resources: BTreeSet::new(),
        ignorable: false,
    }
}

fn pod(resource: &str) -> Arc<PodInfo> {
    let pod = serde_json::from_value(json!({
        "metadata": {"name": "p", "namespace": "n", "uid": "u"},
        "spec": {"containers": [{"name": "c", "resources": {"limits": {resource: "1"}}}]},
    }));
    Arc::new(PodInfo::new(Arc::new(pod.unwrap())))
}

fn nodes(names: &[&str]) -> Vec<Arc<Node>> {
    let node = |name: &&str| {
        let mut node = Node::default();
        node.metadata.name = Some((*name).to_owned());
        Arc::new(node)
    };
    names.iter().map(node).collect()
}

#[tokio::test]
async fn nodes_are_filtered_and_scored() {
    let url = serve(|path, body| match path {
        "/scheduler/filter" => {
            assert_eq!((&body["NodeNames"], &body["Nodes"]), (&json!(["a", "b", "c", "d"]), &Value::Null));
            assert_eq!(body["Pod"]["metadata"]["name"], "p");
            let failed = json!({"c": "too warm"});
            (200, json!({"nodenames": ["a", "b"], "failedNodes": failed, "FailedAndUnresolvableNodes": {"d": "gone"}}))
        }
        "/scheduler/prioritize" => (200, json!([{"Host": "a", "Score": 1}, {"host": "b", "score": 10}])),
        other => panic!("{other}"),
    })
    .await;
    let extenders = [Extender::new(config(&url)).unwrap()];
    let asked = ask(&extenders, &pod("cpu").pod, nodes(&["a", "b", "c", "d"])).await.unwrap();
    assert_eq!(asked.kept, HashMap::from([("a".to_owned(), 20), ("b".to_owned(), 200)]));
    let (warm, gone) = (asked.check("c").unwrap_err(), asked.check("d").unwrap_err());
    assert_eq!((warm.reasons[0].as_ref(), warm.unresolvable), ("too warm", false));
    assert_eq!((gone.reasons[0].as_ref(), gone.unresolvable), ("gone", true));
    assert!(asked.check("a").is_ok() && asked.check("e").is_err());
}

#[tokio::test]
async fn whole_nodes_are_sent_to_those_without_a_cache() {
    let url = serve(|path, body| {
        if path == "/scheduler/prioritize" {
            return (500, json!(null));
        }
        let items = body["Nodes"]["items"].as_array().unwrap();
        (200, json!({"Nodes": {"items": items[1..]}, "FailedNodes": {"a": "no"}}))
    })
    .await;
    let extenders = [Extender::new(ExtenderConfig { node_cache_capable: false, ..config(&url) }).unwrap()];
    // Scores that do not come are none.
    let asked = ask(&extenders, &pod("cpu").pod, nodes(&["a", "b", "c"])).await.unwrap();
    assert_eq!(asked.kept, HashMap::from([("b".to_owned(), 0), ("c".to_owned(), 0)]));
}

#[tokio::test]
async fn failures_count_unless_they_may_be_passed_over() {
    let url = serve(|_, _| (503, json!({}))).await;
    let extenders = [Extender::new(config(&url)).unwrap()];
    let error = ask(&extenders, &pod("cpu").pod, nodes(&["a"])).await.unwrap_err();
    assert_eq!(error, format!("failed filter with extender at URL {url}/filter, code 503"));
    let extenders = [Extender::new(ExtenderConfig { ignorable: true, ..config(&url) }).unwrap()];
    assert_eq!(ask(&extenders, &pod("cpu").pod, nodes(&["a"])).await.unwrap().kept.len(), 1);
    let lies = serve(|_, _| (200, json!({"NodeNames": ["z"]}))).await;
    let extenders = [Extender::new(config(&lies)).unwrap()];
    let error = ask(&extenders, &pod("cpu").pod, nodes(&["a"])).await.unwrap_err();
    assert!(error.ends_with("claims a filtered node \"z\" which is not found in the input node list"), "{error}");
    let says = serve(|_, _| (200, json!({"Error": "out of order"}))).await;
    let extenders = [Extender::new(config(&says)).unwrap()];
    assert_eq!(ask(&extenders, &pod("cpu").pod, nodes(&["a"])).await.unwrap_err(), "out of order");
    assert_eq!(extenders[0].bind(&pod("cpu"), "a").await.unwrap_err(), "out of order");
}

#[tokio::test]
async fn evictions_and_bindings() {
    let url = serve(|path, body| {
        if path == "/scheduler/bind" {
            assert_eq!(*body, json!({"PodName": "p", "PodNamespace": "n", "PodUID": "u", "Node": "a"}));
            return (200, json!({}));
        }
        let both = json!({"Pods": [{"UID": "u"}], "NumPDBViolations": 1});
        assert_eq!(body["NodeNameToMetaVictims"], json!({"a": both, "b": both}));
        (200, json!({"NodeNameToMetaVictims": {"b": {"Pods": [{"UID": "u"}]}}}))
    })
    .await;
    let extenders = [Extender::new(config(&url)).unwrap()];
    let offer = |node: &str| Offer { node: node.into(), victims: vec![pod("cpu").pod.clone()], budget_violations: 1 };
    let left = look_through(&extenders, &pod("cpu").pod, vec![offer("a"), offer("b")]).await.unwrap();
    assert_eq!(left.iter().map(|o| o.node.as_str()).collect::<Vec<_>>(), ["b"]);
    extenders[0].bind(&pod("cpu"), "a").await.unwrap();
}

#[test]
fn only_pods_with_managed_resources_are_of_interest() {
    let managed_resources = BTreeSet::from(["example.com/gpu".to_owned()]);
    let extender = Extender::new(ExtenderConfig { managed_resources, ..config("http://localhost") }).unwrap();
    assert!(extender.is_interested(&pod("example.com/gpu").pod));
    assert!(!extender.is_interested(&pod("cpu").pod));
}
