//! Single operations of the version 2 document: parameters, bodies and answers of each action.

use serde_json::{Map, Value, json};

use super::definitions::meta;

pub(super) const JSON: &str = "application/json";
const YAML: &str = "application/yaml";
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
const PATCHES: [&str; 4] = [
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
];

/// A query parameter: name, type, description.
type Query = (&'static str, &'static str, &'static str);

const ALLOW_BOOKMARKS: Query =
    ("allowWatchBookmarks", "boolean", "Asks for events of type BOOKMARK in a watch; ignored elsewhere.");
const CONTINUE: Query = ("continue", "string", "The token of the previous answer, to go on with its list.");
const FIELD_SELECTOR: Query = ("fieldSelector", "string", "Restricts the list to objects with these fields.");
const LABEL_SELECTOR: Query = ("labelSelector", "string", "Restricts the list to objects with these labels.");
const LIMIT: Query = ("limit", "integer", "Most objects one answer may have; more come with the continue token.");
const RESOURCE_VERSION: Query =
    ("resourceVersion", "string", "The version the answer is to reflect, as resourceVersionMatch says.");
const RESOURCE_VERSION_MATCH: Query =
    ("resourceVersionMatch", "string", "How resourceVersion applies to a list: Exact or NotOlderThan.");
const SEND_INITIAL_EVENTS: Query =
    ("sendInitialEvents", "boolean", "Begins a watch with the present objects and a bookmark after them.");
const TIMEOUT: Query = ("timeoutSeconds", "integer", "Ends the call after this many seconds, whatever happens.");
const WATCH: Query = ("watch", "boolean", "Streams changes instead of answering with a list.");
const PRETTY: Query = ("pretty", "string", "Indents the answer when it is 'true'.");
const DRY_RUN: Query = ("dryRun", "string", "Goes through all stages without keeping the change when it is 'All'.");
const FIELD_MANAGER: Query =
    ("fieldManager", "string", "Name of who makes the change, up to 128 characters; required for apply.");
const FIELD_VALIDATION: Query = (
    "fieldValidation",
    "string",
    "What becomes of unknown and duplicate fields: Ignore, Warn or Strict. The default is Warn.",
);
const FORCE: Query = ("force", "boolean", "Takes fields over from other managers; for apply only.");
const GRACE_PERIOD: Query = (
    "gracePeriodSeconds",
    "integer",
    "Seconds until the object goes; 0 is at once, absent is the default of its type.",
);
const IGNORE_READ_ERRORS: Query = (
    "ignoreStoreReadErrorWithClusterBreakingPotential",
    "boolean",
    "Deletes an object that cannot be read, whatever depends on it.",
);
const ORPHAN_DEPENDENTS: Query =
    ("orphanDependents", "boolean", "Deprecated: use propagationPolicy. Whether dependents stay.");
const PROPAGATION_POLICY: Query =
    ("propagationPolicy", "string", "What becomes of dependents: Orphan, Background or Foreground.");

const LIST: [Query; 11] = [
    ALLOW_BOOKMARKS,
    CONTINUE,
    FIELD_SELECTOR,
    LABEL_SELECTOR,
    LIMIT,
    PRETTY,
    RESOURCE_VERSION,
    RESOURCE_VERSION_MATCH,
    SEND_INITIAL_EVENTS,
    TIMEOUT,
    WATCH,
];

const DELETE_COLLECTION: [Query; 14] = [
    CONTINUE,
    DRY_RUN,
    FIELD_SELECTOR,
    GRACE_PERIOD,
    IGNORE_READ_ERRORS,
    LABEL_SELECTOR,
    LIMIT,
    ORPHAN_DEPENDENTS,
    PRETTY,
    PROPAGATION_POLICY,
    RESOURCE_VERSION,
    RESOURCE_VERSION_MATCH,
    SEND_INITIAL_EVENTS,
    TIMEOUT,
];

/// What an operation does; upstream's `x-kubernetes-action`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Get,
    List,
    WatchList,
    Watch,
    Post,
    Put,
    Patch,
    Delete,
    DeleteCollection,
    Connect,
    /// The log of a container: a get that answers with text.
    Log,
}

impl Action {
    pub(super) fn name(self) -> &'static str {
        match self {
            Action::Get | Action::Log => "get",
            Action::List => "list",
            Action::WatchList => "watchlist",
            Action::Watch => "watch",
            Action::Post => "post",
            Action::Put => "put",
            Action::Patch => "patch",
            Action::Delete => "delete",
            Action::DeleteCollection => "deletecollection",
            Action::Connect => "connect",
        }
    }

    /// Verb the operation id begins with.
    fn id_verb(self) -> &'static str {
        match self {
            Action::Get | Action::Log => "read",
            Action::List => "list",
            Action::WatchList | Action::Watch => "watch",
            Action::Post => "create",
            Action::Put => "replace",
            Action::Patch => "patch",
            Action::Delete | Action::DeleteCollection => "delete",
            Action::Connect => "connect",
        }
    }

    fn query(self) -> &'static [Query] {
        match self {
            Action::Get => &[PRETTY],
            Action::List | Action::WatchList | Action::Watch => &LIST,
            Action::Post | Action::Put => &[DRY_RUN, FIELD_MANAGER, FIELD_VALIDATION, PRETTY],
            Action::Patch => &[DRY_RUN, FIELD_MANAGER, FIELD_VALIDATION, FORCE, PRETTY],
            Action::Delete => {
                &[DRY_RUN, GRACE_PERIOD, IGNORE_READ_ERRORS, ORPHAN_DEPENDENTS, PRETTY, PROPAGATION_POLICY]
            }
            Action::DeleteCollection => &DELETE_COLLECTION,
            Action::Connect | Action::Log => &[],
        }
    }

    fn codes(self) -> &'static [&'static str] {
        match self {
            Action::Post => &["200", "201", "202"],
            Action::Put | Action::Patch => &["200", "201"],
            Action::Delete => &["200", "202"],
            _ => &["200"],
        }
    }
}

/// Everything that goes into one operation.
pub(super) struct Operation<'a> {
    pub(super) action: Action,
    /// `AppsV1`
    pub(super) prefix: &'a str,
    /// What follows the prefix in the operation id: `NamespacedDeploymentScale`.
    pub(super) subject: &'a str,
    /// Group, version and kind the operation is about.
    pub(super) gvk: (&'a str, &'a str, &'a str),
    /// Definition of the object taken.
    pub(super) body: Option<&'a str>,
    /// Definition of the object given; text when there is none.
    pub(super) answer: Option<&'a str>,
    /// `apps_v1`
    pub(super) tag: &'a str,
    /// Whether it is of a custom resource: those have no protobuf and nothing to merge strategically by.
    pub(super) custom: bool,
    /// Query parameters of a connection or log.
    pub(super) extra: &'a [Query],
    pub(super) description: &'a str,
}

impl Operation<'_> {
    pub(super) fn to_value(&self) -> Value {
        let mut parameters = Vec::new();
        if let Some(body) = self.body {
            let required = !matches!(self.action, Action::Delete | Action::DeleteCollection);
            let mut parameter = json!({"name": "body", "in": "body", "schema": reference(body)});
            if required {
                parameter["required"] = true.into();
            }
            parameters.push(parameter);
        }
        for (name, kind, description) in self.action.query().iter().chain(self.extra) {
            let parameter =
                json!({"name": name, "in": "query", "type": kind, "uniqueItems": true, "description": description});
            parameters.push(parameter);
        }
        let mut responses = Map::new();
        for code in self.action.codes() {
            let description = match *code {
                "201" => "Created",
                "202" => "Accepted",
                _ => "OK",
            };
            let schema = self.answer.map_or_else(|| json!({"type": "string"}), reference);
            responses.insert((*code).to_owned(), json!({"description": description, "schema": schema}));
        }
        responses.insert("401".to_owned(), json!({"description": "Unauthorized"}));
        let consumes: Vec<&str> = match self.action {
            Action::Patch if self.custom => PATCHES.into_iter().filter(|p| !p.contains("strategic")).collect(),
            Action::Patch => PATCHES.to_vec(),
            _ => vec!["*/*"],
        };
        let produces: Vec<&str> = match self.action {
            _ if self.custom => vec![JSON, YAML],
            Action::Connect => vec!["*/*"],
            Action::Log => vec!["text/plain", JSON, YAML, PROTOBUF],
            Action::List | Action::Watch | Action::WatchList => vec![
                JSON,
                "application/json;stream=watch",
                PROTOBUF,
                "application/vnd.kubernetes.protobuf;stream=watch",
                YAML,
            ],
            _ => vec![JSON, YAML, PROTOBUF],
        };
        let (group, version, kind) = self.gvk;
        let mut operation = json!({
            "operationId": self.id(),
            "description": self.description,
            "tags": [self.tag],
            "schemes": ["https"],
            "consumes": consumes,
            "produces": produces,
            "responses": responses,
            "x-kubernetes-action": self.action.name(),
            "x-kubernetes-group-version-kind": {"group": group, "version": version, "kind": kind},
        });
        if !parameters.is_empty() {
            operation["parameters"] = parameters.into();
        }
        operation
    }

    fn id(&self) -> String {
        let collection = if self.action == Action::DeleteCollection { "Collection" } else { "" };
        format!("{}{}{collection}{}", self.action.id_verb(), self.prefix, self.subject)
    }
}

/// An operation that is not about a kind: discovery and the like.
pub(super) fn plain(id: &str, tag: &str, description: &str, answer: &str) -> Value {
    json!({
        "operationId": id,
        "description": description,
        "tags": [tag],
        "schemes": ["https"],
        "consumes": [JSON, YAML, PROTOBUF],
        "produces": [JSON, YAML, PROTOBUF],
        "responses": {
            "200": {"description": "OK", "schema": reference(answer)},
            "401": {"description": "Unauthorized"},
        },
    })
}

fn reference(name: &str) -> Value {
    json!({"$ref": format!("#/definitions/{name}")})
}

/// A parameter in the path.
pub(super) fn path_parameter(name: &str, description: &str) -> Value {
    json!({"name": name, "in": "path", "type": "string", "required": true, "uniqueItems": true, "description": description})
}

/// Definition of the body of a deletion.
pub(super) fn delete_options() -> String {
    meta("DeleteOptions")
}

/// Query parameters of a connection or a log.
pub(super) fn connect_query(subresource: &str) -> &'static [Query] {
    const COMMAND: Query =
        ("command", "string", "The command and its arguments, one parameter each; no shell is involved.");
    const CONTAINER: Query = ("container", "string", "The container; needed when there is more than one.");
    const STDIN: Query = ("stdin", "boolean", "Connects the standard input.");
    const STDOUT: Query = ("stdout", "boolean", "Connects the standard output.");
    const STDERR: Query = ("stderr", "boolean", "Connects the standard error.");
    const TTY: Query = ("tty", "boolean", "Gives the process a terminal.");
    match subresource {
        "exec" => &[COMMAND, CONTAINER, STDERR, STDIN, STDOUT, TTY],
        "attach" => &[CONTAINER, STDERR, STDIN, STDOUT, TTY],
        "portforward" => &[("ports", "integer", "The ports to forward.")],
        "proxy" => &[("path", "string", "The part of the URL to use for the request.")],
        "log" => &[
            CONTAINER,
            ("follow", "boolean", "Goes on with what is written from now on."),
            (
                "insecureSkipTLSVerifyBackend",
                "boolean",
                "Does not verify the certificate of the node the log comes from.",
            ),
            ("limitBytes", "integer", "Most bytes to send."),
            PRETTY,
            ("previous", "boolean", "The log of the container's previous run."),
            ("sinceSeconds", "integer", "Only what is not older than this many seconds."),
            ("stream", "string", "Which stream: All, Stdout or Stderr."),
            ("tailLines", "integer", "Only this many lines from the end."),
            ("timestamps", "boolean", "Begins each line with its time."),
        ],
        _ => &[],
    }
}
