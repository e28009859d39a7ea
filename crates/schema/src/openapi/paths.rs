//! The paths that follow from the resources served.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::definitions::{meta, name_of};
use super::operation::{self, Action, Operation};
use super::{ServedResource, ServedSubresource};

/// `RbacAuthorizationV1` for `rbac.authorization.k8s.io/v1`, `CoreV1` for the core group.
fn prefix(group: &str, version: &str) -> String {
    format!("{}{}", group_name(group), capitalized(version))
}

fn group_name(group: &str) -> String {
    match group {
        "" => "Core".to_owned(),
        group => group.strip_suffix(".k8s.io").unwrap_or(group).split('.').map(capitalized).collect(),
    }
}

fn tag(group: &str, version: &str) -> String {
    let name = group_name(group);
    let mut letters = name.chars();
    let lowered: String = letters.next().into_iter().flat_map(char::to_lowercase).chain(letters).collect();
    format!("{lowered}_{version}")
}

fn capitalized(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().into_iter().flat_map(char::to_uppercase).chain(letters).collect()
}

/// Subresources that hand a connection on instead of taking and giving objects.
fn connects(name: &str) -> bool {
    matches!(name, "exec" | "attach" | "portforward" | "proxy")
}

/// Whether a deletion answers with the object and not with a status.
fn deletion_answers_with_object(group: &str, plural: &str) -> bool {
    match group {
        "" => matches!(
            plural,
            "persistentvolumeclaims"
                | "pods"
                | "podtemplates"
                | "resourcequotas"
                | "serviceaccounts"
                | "services"
                | "persistentvolumes"
        ),
        "resource.k8s.io" => true,
        "storage.k8s.io" => plural != "csistoragecapacities",
        _ => false,
    }
}

/// All paths of these resources and of discovery, in the version 2 form.
pub(super) fn of_resources(resources: &[&ServedResource]) -> Map<String, Value> {
    let mut paths = Map::new();
    let group_versions: BTreeSet<(&str, &str)> =
        resources.iter().map(|resource| (resource.group.as_str(), resource.version.as_str())).collect();
    for (group, version) in group_versions {
        let path = if group.is_empty() { format!("/api/{version}/") } else { format!("/apis/{group}/{version}/") };
        let id = format!("get{}APIResources", prefix(group, version));
        let answer = meta("APIResourceList");
        paths.insert(
            path,
            json!({"get": operation::plain(&id, &tag(group, version), "get available resources", &answer)}),
        );
    }
    for resource in resources {
        Writer::new(resource, &mut paths).write();
    }
    paths
}

/// The discovery path of a whole document, by its name in the version 3 index.
pub(super) fn discovery(path: &str) -> Map<String, Value> {
    let (id, tag, description, answer) = match path {
        "api" => {
            ("getCoreAPIVersions".to_owned(), "core".to_owned(), "get available API versions", meta("APIVersions"))
        }
        "apis" => ("getAPIVersions".to_owned(), "apis".to_owned(), "get available API versions", meta("APIGroupList")),
        "version" => (
            "getCodeVersion".to_owned(),
            "version".to_owned(),
            "get the version information for this server",
            "io.k8s.apimachinery.pkg.version.Info".to_owned(),
        ),
        other => match other.strip_prefix("apis/") {
            Some(group) if !group.contains('/') => {
                let name = group_name(group);
                (format!("get{name}APIGroup"), name, "get information of a group", meta("APIGroup"))
            }
            _ => return Map::new(),
        },
    };
    let operation = operation::plain(&id, &tag, description, &answer);
    Map::from_iter([(format!("/{path}/"), json!({"get": operation}))])
}

struct Writer<'a> {
    resource: &'a ServedResource,
    paths: &'a mut Map<String, Value>,
    prefix: String,
    tag: String,
    definition: String,
    list_definition: String,
    /// `Namespaced` or nothing.
    scope: &'static str,
    /// `/apis/apps/v1`
    root: String,
    /// `/namespaces/{namespace}/deployments`, below the root
    collection: String,
}

impl<'a> Writer<'a> {
    fn new(resource: &'a ServedResource, paths: &'a mut Map<String, Value>) -> Writer<'a> {
        let (group, version) = (resource.group.as_str(), resource.version.as_str());
        let collection = match resource.namespaced {
            true => format!("/namespaces/{{namespace}}/{}", resource.plural),
            false => format!("/{}", resource.plural),
        };
        Writer {
            resource,
            paths,
            prefix: prefix(group, version),
            tag: tag(group, version),
            definition: name_of(group, version, &resource.kind),
            list_definition: name_of(group, version, &resource.list_kind),
            scope: if resource.namespaced { "Namespaced" } else { "" },
            root: format!("/{}", resource.group_version_path()),
            collection,
        }
    }

    fn has(&self, verb: &str) -> bool {
        self.resource.verbs.iter().any(|own| own == verb)
    }

    fn operation(&self, action: Action, subject: &str, body: Option<&str>, answer: Option<&str>) -> Value {
        let kind = self.resource.kind.as_str();
        let description = match action {
            Action::Get => format!("read the specified {kind}"),
            Action::List => format!("list or watch objects of kind {kind}"),
            Action::WatchList => {
                format!(
                    "watch individual changes to a list of {kind}. deprecated: use the 'watch' parameter with a list operation instead."
                )
            }
            Action::Watch => format!(
                "watch changes to an object of kind {kind}. deprecated: use the 'watch' parameter with a list operation instead, filtered to a single item with the 'fieldSelector' parameter."
            ),
            Action::Post => format!("create a {kind}"),
            Action::Put => format!("replace the specified {kind}"),
            Action::Patch => format!("partially update the specified {kind}"),
            Action::Delete => format!("delete a {kind}"),
            Action::DeleteCollection => format!("delete collection of {kind}"),
            Action::Connect | Action::Log => format!("connect to {kind}"),
        };
        Operation {
            action,
            prefix: &self.prefix,
            subject,
            gvk: (&self.resource.group, &self.resource.version, kind),
            body,
            answer,
            tag: &self.tag,
            custom: self.resource.schema.is_some(),
            extra: &[],
            description: &description,
        }
        .to_value()
    }

    /// Adds a path unless it has no operation.
    fn add(&mut self, path: &str, operations: Vec<(&str, Value)>, named: bool) {
        if operations.is_empty() {
            return;
        }
        let mut item: Map<String, Value> =
            operations.into_iter().map(|(method, value)| (method.to_owned(), value)).collect();
        let mut parameters = Vec::new();
        if named {
            parameters.push(operation::path_parameter("name", &format!("name of the {}", self.resource.kind)));
        }
        if path.contains("{namespace}") {
            parameters.push(operation::path_parameter(
                "namespace",
                "object name and auth scope, such as for teams and projects",
            ));
        }
        if path.ends_with("/{path}") {
            parameters.push(operation::path_parameter("path", "path to the resource"));
        }
        if !parameters.is_empty() {
            item.insert("parameters".to_owned(), parameters.into());
        }
        self.paths.insert(format!("{}{path}", self.root), Value::Object(item));
    }

    fn write(&mut self) {
        let kind = self.resource.kind.clone();
        let subject = format!("{}{kind}", self.scope);
        let (definition, list_definition) = (self.definition.clone(), self.list_definition.clone());
        let (status, patch, delete_options) = (meta("Status"), meta("Patch"), operation::delete_options());
        let collection = self.collection.clone();
        let item = format!("{collection}/{{name}}");

        let mut operations = Vec::new();
        if self.has("list") {
            operations.push(("get", self.operation(Action::List, &subject, None, Some(&list_definition))));
        }
        if self.has("create") {
            operations.push(("post", self.operation(Action::Post, &subject, Some(&definition), Some(&definition))));
        }
        if self.has("deletecollection") {
            let body = Some(delete_options.as_str());
            operations.push(("delete", self.operation(Action::DeleteCollection, &subject, body, Some(&status))));
        }
        self.add(&collection, operations, false);
        if self.resource.namespaced && self.has("list") {
            let subject = format!("{kind}ForAllNamespaces");
            let list = self.operation(Action::List, &subject, None, Some(&list_definition));
            self.add(&format!("/{}", self.resource.plural), vec![("get", list)], false);
        }

        let mut operations = Vec::new();
        if self.has("get") {
            operations.push(("get", self.operation(Action::Get, &subject, None, Some(&definition))));
        }
        if self.has("update") {
            operations.push(("put", self.operation(Action::Put, &subject, Some(&definition), Some(&definition))));
        }
        if self.has("patch") {
            operations.push(("patch", self.operation(Action::Patch, &subject, Some(&patch), Some(&definition))));
        }
        if self.has("delete") {
            let object = deletion_answers_with_object(&self.resource.group, &self.resource.plural);
            let answer = if object { definition.as_str() } else { status.as_str() };
            let body = Some(delete_options.as_str());
            operations.push(("delete", self.operation(Action::Delete, &subject, body, Some(answer))));
        }
        self.add(&item, operations, true);

        if self.has("watch") {
            self.watches(&subject, &collection, &item);
        }
        let resource = self.resource;
        for subresource in &resource.subresources {
            self.subresource(subresource, &subject, &item);
        }
    }

    /// The old watch paths.
    fn watches(&mut self, subject: &str, collection: &str, item: &str) {
        let event = meta("WatchEvent");
        let list = self.operation(Action::WatchList, &format!("{subject}List"), None, Some(&event));
        self.add(&format!("/watch{collection}"), vec![("get", list)], false);
        if self.has("get") {
            let one = self.operation(Action::Watch, subject, None, Some(&event));
            self.add(&format!("/watch{item}"), vec![("get", one)], true);
        }
        if self.resource.namespaced {
            let subject = format!("{}ListForAllNamespaces", self.resource.kind);
            let all = self.operation(Action::WatchList, &subject, None, Some(&event));
            self.add(&format!("/watch/{}", self.resource.plural), vec![("get", all)], false);
        }
    }

    fn subresource(&mut self, subresource: &ServedSubresource, subject: &str, item: &str) {
        let path = format!("{item}/{}", subresource.name);
        let subject = format!("{subject}{}", capitalized(&subresource.name));
        if connects(&subresource.name) {
            return self.connections(subresource, &subject, &path);
        }
        let definition = name_of(&subresource.group, &subresource.version, &subresource.kind);
        let has = |verb: &str| subresource.verbs.iter().any(|own| own == verb);
        let log = subresource.name == "log";
        let patch = meta("Patch");
        let operation = |action: Action, body: Option<&str>, answer: Option<&str>, verb: &str| {
            Operation {
                action,
                prefix: &self.prefix,
                subject: &subject,
                gvk: (&subresource.group, &subresource.version, &subresource.kind),
                body,
                answer,
                tag: &self.tag,
                custom: self.resource.schema.is_some(),
                extra: if log { operation::connect_query("log") } else { &[] },
                description: &format!("{verb} {} of the specified {}", subresource.name, self.resource.kind),
            }
            .to_value()
        };
        let own = Some(definition.as_str());
        let mut operations = Vec::new();
        if log {
            operations.push(("get", operation(Action::Log, None, None, "read")));
        } else {
            if has("get") {
                operations.push(("get", operation(Action::Get, None, own, "read")));
            }
            if has("create") {
                operations.push(("post", operation(Action::Post, own, own, "create")));
            }
            if has("update") {
                operations.push(("put", operation(Action::Put, own, own, "replace")));
            }
            if has("patch") {
                operations.push(("patch", operation(Action::Patch, Some(&patch), own, "partially update")));
            }
        }
        self.add(&path, operations, true);
    }

    fn connections(&mut self, subresource: &ServedSubresource, subject: &str, path: &str) {
        let proxy = subresource.name == "proxy";
        let methods: &[&str] =
            if proxy { &["delete", "get", "head", "options", "patch", "post", "put"] } else { &["get", "post"] };
        let suffixes: &[(&str, &str)] = if proxy { &[("", ""), ("/{path}", "WithPath")] } else { &[("", "")] };
        for (suffix, id_suffix) in suffixes {
            let mut operations = Vec::new();
            for method in methods {
                let subject = format!("{}{subject}{id_suffix}", capitalized(method));
                let operation = Operation {
                    action: Action::Connect,
                    prefix: &self.prefix,
                    subject: &subject,
                    // Not the resource's: a client that looks for what a PATCH of the kind may be told would find this.
                    gvk: (&subresource.group, &subresource.version, &subresource.kind),
                    body: None,
                    answer: None,
                    tag: &self.tag,
                    custom: false,
                    extra: operation::connect_query(&subresource.name),
                    description: &format!(
                        "connect {} requests to {} of {}",
                        method.to_uppercase(),
                        subresource.name,
                        self.resource.kind
                    ),
                };
                operations.push((*method, operation.to_value()));
            }
            self.add(&format!("{path}{suffix}"), operations, true);
        }
    }
}

/// Names of the query parameters of an operation and of its path.
#[cfg(test)]
pub(super) fn query_of(item: &Value, method: &str) -> BTreeSet<String> {
    let lists = [&item["parameters"], &item[method]["parameters"]];
    lists
        .iter()
        .flat_map(|list| list.as_array().into_iter().flatten())
        .filter(|parameter| parameter["in"] == "query")
        .filter_map(|parameter| parameter["name"].as_str().map(str::to_owned))
        .collect()
}
