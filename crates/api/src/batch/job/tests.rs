use super::*;

const CX: Context<'static> = Context { now: Timestamp::UNIX_EPOCH, username: "u" };

fn job(spec: &Value) -> Job {
    let mut full =
        json!({"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}});
    for (k, v) in spec.as_object().unwrap() {
        full[k] = v.clone();
    }
    let mut j =
        <Job as Kind>::from_value(json!({"metadata": {"name": "pi", "namespace": "n", "uid": "u1"}, "spec": full}))
            .unwrap();
    j.set_defaults();
    j.prepare_for_create(&CX);
    j
}

fn texts(e: &ErrorList) -> Vec<String> {
    e.0.iter().map(ToString::to_string).collect()
}

#[test]
fn defaults_and_labels_are_upstreams() {
    let j = job(&json!({}));
    let spec = j.spec.clone().unwrap();
    assert_eq!((spec.completions, spec.parallelism, spec.backoff_limit), (Some(1), Some(1), Some(6)));
    assert_eq!(
        json!([spec.completion_mode, spec.suspend, spec.pod_replacement_policy, spec.manual_selector]),
        json!(["NonIndexed", false, "TerminatingOrFailed", false])
    );
    assert_eq!(
        json!(spec.template.metadata),
        json!({"labels": {CONTROLLER_UID: "u1", JOB_NAME: "pi", "controller-uid": "u1", "job-name": "pi"}})
    );
    assert_eq!(json!(spec.selector), json!({"matchLabels": {CONTROLLER_UID: "u1"}}));
    assert_eq!(j.metadata.labels, spec.template.metadata.unwrap().labels);
    assert!(j.validate().is_empty(), "{:?}", j.validate());
    let queue = job(&json!({"parallelism": 3}));
    assert_eq!(queue.spec.unwrap().completions, None);
    let indexed = job(&json!({"completionMode": "Indexed", "completions": 2, "backoffLimitPerIndex": 1}));
    assert_eq!(indexed.spec.unwrap().backoff_limit, Some(i32::MAX));
    let strict =
        job(&json!({"podFailurePolicy": {"rules": [{"action": "Ignore", "onPodConditions": [{"type": "X"}]}]}}));
    let strict = strict.spec.unwrap();
    assert_eq!(strict.pod_replacement_policy.as_deref(), Some("Failed"));
    assert_eq!(json!(strict.pod_failure_policy)["rules"][0]["onPodConditions"][0]["status"], "True");
}

#[test]
fn faults_have_upstreams_words() {
    let template =
        |policy: &str| json!({"spec": {"restartPolicy": policy, "containers": [{"name": "c", "image": "i"}]}});
    let failure = |rule: Value| json!({"podFailurePolicy": {"rules": [rule]}});
    let success =
        |rule: Value| json!({"completionMode": "Indexed", "completions": 3, "successPolicy": {"rules": [rule]}});
    let cases = [
        (json!({"parallelism": -1}), "spec.parallelism: Invalid value: -1: must be greater than or equal to 0"),
        (
            json!({"ttlSecondsAfterFinished": -1}),
            "spec.ttlSecondsAfterFinished: Invalid value: -1: must be greater than or equal to 0",
        ),
        (
            json!({"template": template("Always")}),
            "spec.template.spec.restartPolicy: Required value: valid values: \"OnFailure\", \"Never\"",
        ),
        (
            json!({"completionMode": "x"}),
            "spec.completionMode: Unsupported value: \"x\": supported values: \"NonIndexed\", \"Indexed\"",
        ),
        (
            json!({"completionMode": "Indexed", "parallelism": 1}),
            "spec.completions: Required value: when completion mode is Indexed",
        ),
        (
            json!({"backoffLimitPerIndex": 1}),
            "spec.backoffLimitPerIndex: Invalid value: 1: requires indexed completion mode",
        ),
        (
            json!({"completionMode": "Indexed", "completions": 2, "maxFailedIndexes": 1}),
            "spec.backoffLimitPerIndex: Required value: when maxFailedIndexes is specified",
        ),
        (
            json!({"managedBy": "x"}),
            "spec.managedBy: Invalid value: \"x\": must be a domain-prefixed path (such as \"acme.io/foo\")",
        ),
        (
            json!({"podReplacementPolicy": "x"}),
            "spec.podReplacementPolicy: Unsupported value: \"x\": supported values: \"Failed\", \"TerminatingOrFailed\"",
        ),
        (
            failure(json!({"action": "x", "onExitCodes": {"operator": "In", "values": [1]}})),
            "spec.podFailurePolicy.rules[0].action: Unsupported value: \"x\": supported values: \"Count\", \"FailIndex\", \
             \"FailJob\", \"Ignore\"",
        ),
        (
            failure(json!({"action": "FailIndex", "onExitCodes": {"operator": "In", "values": [1]}})),
            "spec.podFailurePolicy.rules[0].action: Invalid value: \"FailIndex\": requires the backoffLimitPerIndex to be set",
        ),
        (
            failure(json!({"action": "Ignore"})),
            "spec.podFailurePolicy.rules[0]: Invalid value: specifying one of OnExitCodes and OnPodConditions is required",
        ),
        (
            failure(json!({"action": "Ignore", "onExitCodes": {"operator": "In", "values": [0]}})),
            "spec.podFailurePolicy.rules[0].onExitCodes.values[0]: Invalid value: 0: must not be 0 for the In operator",
        ),
        (
            failure(json!({"action": "Ignore", "onExitCodes": {"operator": "NotIn", "values": [2, 1]}})),
            "spec.podFailurePolicy.rules[0].onExitCodes.values: Invalid value: [2,1]: must be ordered",
        ),
        (
            failure(
                json!({"action": "Ignore", "onExitCodes": {"operator": "In", "values": [1], "containerName": "d"}}),
            ),
            "spec.podFailurePolicy.rules[0].onExitCodes.containerName: Invalid value: \"d\": must be one of the container or \
             initContainer names in the pod template",
        ),
        (
            success(json!({})),
            "spec.successPolicy.rules[0]: Required value: at least one of succeededCount or succeededIndexes must be specified",
        ),
        (
            success(json!({"succeededIndexes": "0-5"})),
            "spec.successPolicy.rules[0].succeededIndexes: Invalid value: \"0-5\": error parsing succeededIndexes: too large \
             index: \"5\"",
        ),
        (
            success(json!({"succeededCount": 2, "succeededIndexes": "1"})),
            "spec.successPolicy.rules[0].succeededCount: Invalid value: 2: must be less than or equal to 1 (the number of \
             indexes in the specified succeededIndexes field)",
        ),
    ];
    for (spec, want) in cases {
        assert_eq!(texts(&job(&spec).validate()), [want]);
    }
    let mut long = job(&json!({"completionMode": "Indexed", "completions": 11}));
    long.metadata.name = Some("x".repeat(61));
    let told = texts(&long.validate());
    let last = told.last().unwrap();
    assert!(last.contains("will not able to create pod with invalid DNS label: xxx"), "{last}");
    let mut policy = json!({"successPolicy": {"rules": []}});
    assert!(texts(&job(&policy).validate())[0].ends_with("requires indexed completion mode"));
    policy = json!({"podFailurePolicy": {"rules": []}, "template": template("OnFailure")});
    assert_eq!(
        texts(&job(&policy).validate()),
        [
            "spec.template.spec.restartPolicy: Invalid value: \"OnFailure\": only \"Never\" is supported when podFailurePolicy \
           is specified"
        ]
    );
}

#[test]
fn labels_that_contradict_the_generated_are_refused() {
    let pod = json!({"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]});
    let j = job(&json!({"template": {"metadata": {"labels": {"job-name": "other"}}, "spec": pod}}));
    let told = texts(&j.validate());
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].starts_with("spec.template.metadata.labels[job-name]: Invalid value: {"), "{told:?}");
    assert!(told[0].ends_with(": must be 'pi'"), "{told:?}");
    let picky = job(&json!({"selector": {"matchLabels": {"a": "b"}}}));
    assert_eq!(
        texts(&picky.validate())[0],
        format!(
            "spec.selector: Invalid value: {{\"matchLabels\":{{\"a\":\"b\",\"{CONTROLLER_UID}\":\"u1\"}}}}: `selector` not \
             auto-generated"
        )
    );
    let labels = json!({"metadata": {"labels": {"a": "b"}}, "spec": pod});
    let manual = job(&json!({"manualSelector": true, "selector": {"matchLabels": {"a": "b"}}, "template": labels}));
    assert!(manual.validate().is_empty(), "{:?}", manual.validate());
}

fn changed(old: &Job, change: impl FnOnce(&mut JobSpec)) -> Vec<String> {
    let mut new = old.clone();
    change(new.spec.as_mut().unwrap());
    texts(&new.validate_update(old))
}

#[test]
fn what_may_change_depends_on_whether_pods_run() {
    let none: [&str; 0] = [];
    let running = job(&json!({}));
    assert_eq!(changed(&running, |s| s.parallelism = Some(0)), none);
    assert_eq!(changed(&running, |s| s.suspend = Some(true)), none);
    assert_eq!(
        changed(&running, |s| s.completions = Some(2)),
        ["spec.completions: Invalid value: 2: field is immutable"]
    );
    let told = changed(&running, |s| s.managed_by = Some("a.b/c".into()));
    assert_eq!(told, ["spec.managedBy: Invalid value: \"a.b/c\": field is immutable"]);
    let pick = |s: &mut JobSpec| {
        let pod = s.template.spec.as_mut().unwrap();
        pod.node_selector = Some([("disk".to_owned(), "ssd".to_owned())].into());
        pod.containers[0].resources = serde_json::from_value(json!({"requests": {"cpu": "1"}})).unwrap();
    };
    let told = changed(&running, pick);
    assert!(told.len() == 1 && told[0].starts_with("spec.template: Invalid value: {"), "{told:?}");
    let mut suspended = job(&json!({"suspend": true}));
    assert_eq!(changed(&suspended, pick), none);
    let image = |s: &mut JobSpec| s.template.spec.as_mut().unwrap().containers[0].image = Some("j".into());
    assert_eq!(changed(&suspended, image).len(), 1);
    suspended.status = serde_json::from_value(json!({"startTime": "2026-01-01T00:00:00Z", "active": 1})).unwrap();
    assert_eq!(changed(&suspended, pick).len(), 1, "its pods still run");
    let elastic = job(&json!({"completionMode": "Indexed", "completions": 2, "parallelism": 2}));
    let both = |s: &mut JobSpec| (s.completions, s.parallelism) = (Some(4), Some(4));
    assert_eq!(changed(&elastic, both), none);
    let told = changed(&elastic, |s| s.completions = Some(4));
    assert_eq!(told, ["spec.completions: Invalid value: 4: can only be modified in tandem with spec.parallelism"]);
    let mut new = running.clone();
    new.spec.as_mut().unwrap().parallelism = Some(2);
    new.prepare_for_update(&running, &CX);
    assert_eq!(new.metadata.generation, Some(2));
}

fn with_status(j: &Job, status: Value) -> Job {
    let mut out = j.clone();
    out.status = serde_json::from_value(status).unwrap();
    out
}

#[test]
fn a_status_tells_a_possible_story() {
    let old = job(&json!({}));
    let is = |kinds: &[&str]| -> Value { kinds.iter().map(|k| json!({"type": k, "status": "True"})).collect() };
    let (start, end) = ("2026-01-01T00:00:00Z", "2026-01-01T00:00:09Z");
    let done = with_status(
        &old,
        json!({"startTime": start, "completionTime": end, "succeeded": 1, "conditions": is(&["SuccessCriteriaMet", "Complete"])}),
    );
    assert!(done.validate_status_update(&old).is_empty(), "{:?}", done.validate_status_update(&old));
    let cases = [
        (
            json!({"conditions": is(&["SuccessCriteriaMet", "Complete"]), "startTime": start}),
            "status.completionTime: Required value: completionTime is required for Complete jobs",
        ),
        (
            json!({"completionTime": end}),
            "status.completionTime: Invalid value: \"2026-01-01T00:00:09Z\": cannot set completionTime when there is no \
             Complete=True condition",
        ),
        (
            json!({"conditions": is(&["Failed"]), "startTime": start}),
            "status.conditions: Invalid value: cannot set Failed=True condition without the FailureTarget=true condition",
        ),
        (
            json!({"conditions": is(&["FailureTarget", "Failed"])}),
            "status.startTime: Required value: startTime is required for finished job",
        ),
        (
            json!({"completedIndexes": "0"}),
            "status.completedIndexes: Invalid value: \"0\": cannot set non-empty completedIndexes when non-indexed completion \
             mode",
        ),
        (json!({"ready": 1}), "status.ready: Invalid value: 1: cannot set more ready pods than active"),
        (
            json!({"uncountedTerminatedPods": {"succeeded": ["a"], "failed": ["a"]}}),
            "status.uncountedTerminatedPods.failed[0]: Duplicate value: \"a\"",
        ),
    ];
    for (status, want) in cases {
        assert_eq!(texts(&with_status(&old, status).validate_status_update(&old)), [want]);
    }
    let told = texts(&old.validate_status_update(&done));
    assert_eq!(
        told,
        [
            "status.conditions: Invalid value: cannot disable the terminal Complete=True condition",
            "status.succeeded: Invalid value: 0: cannot decrease the succeeded counter",
            "status.startTime: Invalid value: \"null\": field is immutable for unsuspended job once set",
            "status.conditions: Invalid value: cannot disable the SuccessCriteriaMet=True condition",
        ]
    );
}

#[test]
fn the_start_time_changes_only_when_a_job_resumes() {
    let at = |start: &str, suspended: &str| {
        let condition = json!({"type": "Suspended", "status": suspended});
        with_status(&job(&json!({})), json!({"startTime": start, "conditions": [condition]}))
    };
    let (first, second) = ("2026-01-01T00:00:00Z", "2026-01-01T00:01:00Z");
    let old = at(first, "True");
    assert!(at(second, "False").validate_status_update(&old).is_empty());
    let immutable =
        "status.startTime: Invalid value: \"2026-01-01T00:01:00Z\": field is immutable for unsuspended job once set";
    assert_eq!(texts(&at(second, "True").validate_status_update(&old)), [immutable]);
    assert_eq!(texts(&at(second, "False").validate_status_update(&at(first, "False"))), [immutable]);
    let suspended = with_status(&job(&json!({"suspend": true})), json!({"startTime": first}));
    assert!(with_status(&suspended, json!({})).validate_status_update(&suspended).is_empty());
}

#[test]
fn table_row() {
    let j = with_status(
        &job(&json!({"completions": 3})),
        json!({"succeeded": 2, "startTime": "1970-01-01T00:00:00Z", "completionTime": "1970-01-01T00:01:00Z",
            "conditions": [{"type": "Complete", "status": "True"}]}),
    );
    let cells = j.cells(Timestamp::UNIX_EPOCH);
    assert_eq!(&cells[1..4], &[json!("Complete"), json!("2/3"), json!("60s")]);
    assert_eq!(cells.len(), Job::COLUMNS.len());
    let queue = job(&json!({"parallelism": 3}));
    assert_eq!(queue.cells(Timestamp::UNIX_EPOCH)[2], "0/1 of 3");
}
