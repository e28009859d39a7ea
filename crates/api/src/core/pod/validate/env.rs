//! Environment variables and the fields of the pod they may show.

use crate::core::pod::validate::volume::validate_descending_path;
use crate::meta::field::{ErrorList, Path};
use crate::meta::{names, text};
use k8s_openapi::api::core::v1::{EnvFromSource, EnvVar, ObjectFieldSelector, PodSpec, ResourceFieldSelector};

const ENV_FIELDS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
const RESOURCE_FIELDS: &[&str] = &[
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];
/// Every field label the downward API knows, for volumes or for the environment.
const LABELS: &[&str] = &[
    "metadata.annotations",
    "metadata.labels",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.restartPolicy",
    "spec.serviceAccountName",
    "spec.schedulerName",
    "status.phase",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
    "spec.host",
];

/// Adds the errors of environment variables.
pub(super) fn validate_env(vars: &[EnvVar], path: &Path, errors: &mut ErrorList) {
    for (i, var) in vars.iter().enumerate() {
        let path = path.index(i);
        if var.name.is_empty() {
            errors.required(&path.child("name"), "");
        } else {
            names::push_invalid(errors, &path.child("name"), &var.name, &names::env_var_name(&var.name));
        }
        validate_value_from(var, &path.child("valueFrom"), errors);
    }
}

fn validate_value_from(var: &EnvVar, path: &Path, errors: &mut ErrorList) {
    let Some(from) = &var.value_from else { return };
    let mut sources = 0;
    if let Some(r) = &from.field_ref {
        sources += 1;
        validate_field_ref(r, ENV_FIELDS, &path.child("fieldRef"), errors);
    }
    if let Some(r) = &from.resource_field_ref {
        sources += 1;
        validate_resource_field_ref(r, false, &path.child("resourceFieldRef"), errors);
    }
    if let Some(r) = &from.config_map_key_ref {
        sources += 1;
        validate_key_ref(&r.name, &r.key, &path.child("configMapKeyRef"), errors);
    }
    if let Some(r) = &from.secret_key_ref {
        sources += 1;
        validate_key_ref(&r.name, &r.key, &path.child("secretKeyRef"), errors);
    }
    if let Some(r) = &from.file_key_ref {
        sources += 1;
        let path = path.child("fileKeyRef");
        if r.volume_name.is_empty() {
            errors.required(&path.child("volumeName"), "");
        } else {
            names::push_invalid(
                errors,
                &path.child("volumeName"),
                &r.volume_name,
                &names::dns1123_label(&r.volume_name, false),
            );
        }
        if r.key.is_empty() {
            errors.required(&path.child("key"), "");
        } else {
            names::push_invalid(errors, &path.child("key"), &r.key, &names::env_var_name(&r.key));
        }
        if r.path.is_empty() {
            errors.required(&path.child("path"), "");
        } else {
            validate_descending_path(&r.path, &path.child("path"), errors);
        }
    }
    if sources == 0 {
        errors.invalid(
            path,
            "",
            "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`",
        );
    } else if !text(&var.value).is_empty() {
        errors.invalid(path, "", "may not be specified when `value` is not empty");
    } else if sources > 1 {
        errors.invalid(path, "", "may not have more than one field specified at a time");
    }
}

fn validate_key_ref(name: &str, key: &str, path: &Path, errors: &mut ErrorList) {
    names::push_invalid(errors, &path.child("name"), name, &names::dns1123_subdomain(name, false));
    if key.is_empty() {
        errors.required(&path.child("key"), "");
    } else {
        names::push_invalid(errors, &path.child("key"), key, &names::config_map_key(key));
    }
}

/// `metadata.labels['key']` as path and key.
fn split_subscript(field: &str) -> Option<(&str, &str)> {
    let (path, rest) = field.strip_suffix("']")?.split_once("['")?;
    (!path.is_empty()).then_some((path, rest))
}

/// Adds the errors of file references that name no volume, or one that no init container can have written to.
pub(super) fn validate_file_volumes(spec: &PodSpec, path: &Path, errors: &mut ErrorList) {
    let mut check = |vars: Option<&Vec<EnvVar>>, path: &Path| {
        for (i, var) in vars.into_iter().flatten().enumerate() {
            let Some(file) = var.value_from.as_ref().and_then(|f| f.file_key_ref.as_ref()) else { continue };
            let name = file.volume_name.as_str();
            let path = path.child("env").index(i).child("valueFrom").child("fileKeyRef").child("volumeName");
            match spec.volumes.iter().flatten().find(|v| v.name == name) {
                _ if name.is_empty() => {}
                None => errors.not_found(&path, name),
                Some(v) if v.empty_dir.is_none() => {
                    errors.invalid(&path, name, "referenced volume must be of type emptyDir");
                }
                Some(_) => {}
            }
        }
    };
    for (i, c) in spec.init_containers.iter().flatten().enumerate() {
        check(c.env.as_ref(), &path.child("initContainers").index(i));
    }
    for (i, c) in spec.containers.iter().enumerate() {
        check(c.env.as_ref(), &path.child("containers").index(i));
    }
    for (i, c) in spec.ephemeral_containers.iter().flatten().enumerate() {
        check(c.env.as_ref(), &path.child("ephemeralContainers").index(i));
    }
}

/// Adds the errors of a reference to one of the pod's fields.
pub(super) fn validate_field_ref(r: &ObjectFieldSelector, allowed: &[&str], path: &Path, errors: &mut ErrorList) {
    let version = text(&r.api_version);
    if version.is_empty() {
        errors.required(&path.child("apiVersion"), "");
        return;
    }
    if r.field_path.is_empty() {
        errors.required(&path.child("fieldPath"), "");
        return;
    }
    let field = r.field_path.as_str();
    let subscript = split_subscript(field);
    let unconvertible = if version != "v1" {
        Some(format!("unsupported pod version: {version}"))
    } else {
        match subscript {
            Some(("metadata.annotations" | "metadata.labels", _)) => None,
            Some((of, _)) => Some(format!("field label does not support subscript: {of}")),
            None if LABELS.contains(&field) => None,
            None => Some(format!("field label not supported: {field}")),
        }
    };
    if let Some(why) = unconvertible {
        errors.invalid(&path.child("fieldPath"), field, &format!("error converting fieldPath: {why}"));
        return;
    }
    match subscript {
        Some(("metadata.annotations", key)) => {
            let key = key.to_lowercase();
            names::push_invalid(errors, path, &key, &names::qualified_name(&key));
        }
        Some((_, key)) => names::push_invalid(errors, path, key, &names::qualified_name(key)),
        None if !allowed.contains(&field) => errors.not_supported(&path.child("fieldPath"), field, allowed),
        None => {}
    }
}

/// Adds the errors of a reference to a container's requests or limits.
pub(super) fn validate_resource_field_ref(
    r: &ResourceFieldSelector,
    volume: bool,
    path: &Path,
    errors: &mut ErrorList,
) {
    let name = r.resource.as_str();
    let huge = name.starts_with("requests.hugepages-") || name.starts_with("limits.hugepages-");
    if volume && text(&r.container_name).is_empty() {
        errors.required(&path.child("containerName"), "");
    } else if name.is_empty() {
        errors.required(&path.child("resource"), "");
    } else if !RESOURCE_FIELDS.contains(&name) && !huge {
        errors.not_supported(&path.child("resource"), name, RESOURCE_FIELDS);
    }
    let divisor = r.divisor.as_ref().map_or("0", |q| q.0.as_str());
    if divisor == "0" {
        return;
    }
    const SIZES: &[&str] = &["1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"];
    let of = match name {
        "limits.cpu" | "requests.cpu" => {
            if !matches!(divisor, "1m" | "1") {
                let detail = "only divisor's values 1m and 1 are supported with the cpu resource";
                errors.invalid(&path.child("divisor"), name, detail);
            }
            return;
        }
        "limits.memory" | "requests.memory" => "memory",
        "limits.ephemeral-storage" | "requests.ephemeral-storage" => "local ephemeral storage",
        _ if huge => "hugepages",
        _ => return,
    };
    if !SIZES.contains(&divisor) {
        let detail = format!("only divisor's values {} are supported with the {of} resource", SIZES.join(", "));
        errors.invalid(&path.child("divisor"), name, &detail);
    }
}

/// Adds the errors of whole ConfigMaps and Secrets as environment.
pub(super) fn validate_env_from(sources: &[EnvFromSource], path: &Path, errors: &mut ErrorList) {
    for (i, source) in sources.iter().enumerate() {
        let index_path = path.index(i);
        let prefix = text(&source.prefix);
        if !prefix.is_empty() {
            names::push_invalid(errors, &index_path.child("prefix"), prefix, &names::env_var_name(prefix));
        }
        let references = [
            ("configMapRef", source.config_map_ref.as_ref().map(|r| r.name.as_str())),
            ("secretRef", source.secret_ref.as_ref().map(|r| r.name.as_str())),
        ];
        for (field, name) in references {
            let name_path = index_path.child(field).child("name");
            match name {
                Some("") => errors.required(&name_path, ""),
                Some(name) => names::push_invalid(errors, &name_path, name, &names::dns1123_subdomain(name, true)),
                None => {}
            }
        }
        match references.iter().filter(|(_, name)| name.is_some()).count() {
            0 => errors.invalid(path, "", "must specify one of: `configMapRef` or `secretRef`"),
            1 => {}
            _ => errors.invalid(path, "", "may not have more than one field specified at a time"),
        }
    }
}
