//! Query parameters of reads and writes, checked as upstream checks its option types.

use gantry_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::DeleteOptions;
use gantry_api::kind::ResourceInfo;
use gantry_api::meta::field::{ErrorList, Path};
use gantry_api::meta::fields::{FieldSelector, Term};
use gantry_api::meta::labels::Selector;
use gantry_api::meta::status::ApiError;

fn invalid(kind: &str, errors: &ErrorList) -> Result<(), ApiError> {
    if errors.is_empty() { Ok(()) } else { Err(ApiError::invalid("meta.k8s.io", kind, "", errors)) }
}

fn boolean(value: &str) -> bool {
    !matches!(value, "" | "0" | "false" | "False" | "FALSE" | "f" | "F")
}

fn integer(value: &str) -> Result<i64, ApiError> {
    value.parse().map_err(|_| ApiError::bad_request(format!("strconv.ParseInt: parsing {value:?}: invalid syntax")))
}

/// A resource version as Go reads it, with its words for what is none.
pub(super) fn version(text: &str) -> Result<u64, String> {
    let is_number = text.bytes().all(|b| b.is_ascii_digit()) && !text.is_empty();
    let parsed = if is_number { text.parse().map_err(|_| "value out of range") } else { Err("invalid syntax") };
    parsed.map_err(|why| format!("strconv.ParseUint: parsing {text:?}: {why}"))
}

/// The version that a GET asks for at least.
///
/// # Errors
/// 500 for what is no version: upstream's storage says so, and nobody there makes more of it.
pub fn version_of_get(query: &[(String, String)]) -> Result<Option<u64>, ApiError> {
    let Some((_, text)) = query.iter().find(|(k, v)| k == "resourceVersion" && !v.is_empty()) else { return Ok(None) };
    let told = |why| ApiError::new(500, "", format!("resourceVersion: Invalid value: {text:?}: {why}"));
    version(text).map(Some).map_err(told)
}

/// Sees that the version a watch begins after is one.
///
/// # Errors
/// 422 for what is none; upstream names the resource where it names the kind elsewhere.
pub fn check_version_of_watch(query: &[(String, String)], resource: &ResourceInfo) -> Result<(), ApiError> {
    let Some((_, text)) = query.iter().find(|(k, v)| k == "resourceVersion" && !v.is_empty()) else { return Ok(()) };
    let Err(why) = version(text) else { return Ok(()) };
    let mut errors = ErrorList::default();
    errors.invalid(&Path::new("resourceVersion"), text.as_str(), &why);
    Err(ApiError::invalid(resource.group, resource.plural, "", &errors))
}

/// How a list's resourceVersion is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VersionMatch {
    /// Exactly this version.
    Exact,
    /// This version or a later one.
    NotOlderThan,
}

/// Parameters of list, watch and deletecollection.
#[derive(Clone, Debug, Default)]
pub struct ListOptions {
    /// Labels selected.
    pub labels: Selector,
    /// Fields selected.
    pub fields: FieldSelector,
    /// Whether to watch.
    pub watch: bool,
    /// Whether bookmarks may be sent.
    pub bookmarks: bool,
    /// `None` is unset; `Some(0)` any version.
    pub resource_version: Option<u64>,
    /// How the version is meant.
    pub version_match: Option<VersionMatch>,
    /// Seconds after which a watch ends.
    pub timeout_seconds: Option<u64>,
    /// Page size, 0 for all.
    pub limit: usize,
    /// Token of the previous page, may be empty.
    pub continue_token: String,
    /// Whether a watch begins with the present objects, ended by a bookmark.
    pub send_initial_events: Option<bool>,
}

impl ListOptions {
    /// Parses and checks the parameters.
    ///
    /// # Errors
    /// 400 for what cannot be parsed, 422 for what may not be combined.
    pub fn parse(query: &[(String, String)]) -> Result<Self, ApiError> {
        let mut o = Self::default();
        let mut match_text = "";
        for (k, v) in query {
            match k.as_str() {
                "labelSelector" => {
                    o.labels = Selector::parse(v).map_err(ApiError::bad_request)?;
                }
                "fieldSelector" => o.fields = FieldSelector::parse(v).map_err(ApiError::bad_request)?,
                "watch" => o.watch = boolean(v),
                "allowWatchBookmarks" => o.bookmarks = boolean(v),
                "resourceVersion" if !v.is_empty() => match version(v) {
                    Ok(version) => o.resource_version = Some(version),
                    Err(why) => {
                        let why = format!("resourceVersion: Invalid value: {v:?}: {why}");
                        return Err(ApiError::bad_request(format!("invalid resource version: {why}")));
                    }
                },
                "resourceVersionMatch" => match_text = v,
                "timeoutSeconds" if !v.is_empty() => o.timeout_seconds = u64::try_from(integer(v)?).ok(),
                "limit" if !v.is_empty() => o.limit = usize::try_from(integer(v)?).unwrap_or(0),
                "continue" => o.continue_token = v.clone(),
                "sendInitialEvents" if !v.is_empty() => o.send_initial_events = Some(boolean(v)),
                _ => {}
            }
        }
        o.check(match_text)?;
        Ok(o)
    }

    /// Selects the one object of this name, which a selector beside it (on the deprecated `/watch/…/name` path) must
    /// name as well. None where the name is empty.
    ///
    /// # Errors
    /// 400 for a selector that does not name it.
    pub fn select_name(&mut self, name: &str) -> Result<(), ApiError> {
        const NAME: &str = "metadata.name";
        if name.is_empty() || self.fields.requires_exact_match(NAME) == Some(name) {
            return Ok(());
        }
        if !self.fields.is_empty() {
            return Err(ApiError::bad_request("fieldSelector metadata.name doesn't match requested name"));
        }
        self.fields = FieldSelector(vec![Term { field: NAME.to_owned(), value: name.to_owned(), equal: true }]);
        Ok(())
    }

    fn check(&mut self, match_text: &str) -> Result<(), ApiError> {
        let mut errors = ErrorList::default();
        let path = Path::new("resourceVersionMatch");
        match match_text {
            "" => {}
            "Exact" => self.version_match = Some(VersionMatch::Exact),
            "NotOlderThan" => self.version_match = Some(VersionMatch::NotOlderThan),
            _ => {}
        }
        if self.watch {
            // A watch that begins with the present objects says so, also for clients older than the option.
            let begins_with_all = self.resource_version.unwrap_or(0) == 0;
            if self.send_initial_events.is_none() && match_text.is_empty() && begins_with_all {
                self.send_initial_events = Some(true);
                self.version_match = Some(VersionMatch::NotOlderThan);
            }
            if self.send_initial_events.is_some() && self.version_match != Some(VersionMatch::NotOlderThan) {
                errors.forbidden(&path, "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan");
            }
            if !match_text.is_empty() && self.send_initial_events.is_none() {
                errors.forbidden(
                    &path,
                    "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
                );
            }
            if !matches!(match_text, "" | "NotOlderThan") {
                errors.not_supported(&path, match_text, &["NotOlderThan"]);
            }
            if !match_text.is_empty() && !self.continue_token.is_empty() {
                errors.forbidden(&path, "resourceVersionMatch is forbidden when continue is provided");
            }
            return invalid("ListOptions", &errors);
        }
        if !match_text.is_empty() {
            if self.resource_version.is_none() {
                errors.forbidden(&path, "resourceVersionMatch is forbidden unless resourceVersion is provided");
            }
            if !self.continue_token.is_empty() {
                errors.forbidden(&path, "resourceVersionMatch is forbidden when continue is provided");
            }
            if self.version_match.is_none() {
                errors.not_supported(&path, match_text, &["Exact", "NotOlderThan", ""]);
            }
            if self.version_match == Some(VersionMatch::Exact) && self.resource_version == Some(0) {
                errors.forbidden(&path, "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"");
            }
        }
        if self.send_initial_events.is_some() {
            errors.forbidden(&Path::new("sendInitialEvents"), "sendInitialEvents is forbidden for list");
        }
        invalid("ListOptions", &errors)
    }
}

/// What to do with unknown and duplicate fields.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FieldValidation {
    /// Drop them silently.
    Ignore,
    /// Drop them with a `Warning` header each.
    #[default]
    Warn,
    /// Refuse the request.
    Strict,
}

/// Parameters of create, update and patch.
#[derive(Clone, Debug, Default)]
pub struct WriteOptions {
    /// Nothing is persisted.
    pub dry_run: bool,
    /// Who owns the fields written; resolved from the user agent where not given.
    pub field_manager: String,
    /// Unknown fields.
    pub validation: FieldValidation,
    /// Apply takes over conflicting fields.
    pub force: bool,
}

impl WriteOptions {
    /// Parses and checks the parameters; `apply` is whether the request is a server-side apply.
    ///
    /// # Errors
    /// 422 as upstream's validation of `CreateOptions`, `UpdateOptions` and `PatchOptions` (`kind`).
    pub fn parse(query: &[(String, String)], user_agent: &str, kind: &str, apply: bool) -> Result<Self, ApiError> {
        let mut o = Self::default();
        let mut errors = ErrorList::default();
        let mut force = None;
        for (k, v) in query {
            match k.as_str() {
                "dryRun" if v == "All" => o.dry_run = true,
                "dryRun" if !v.is_empty() => errors.not_supported(&Path::new("dryRun"), v, &["All"]),
                "fieldManager" => o.field_manager = v.clone(),
                "force" => force = Some(boolean(v)),
                "fieldValidation" => {
                    o.validation = match v.as_str() {
                        "Ignore" => FieldValidation::Ignore,
                        "Strict" => FieldValidation::Strict,
                        "Warn" | "" => FieldValidation::Warn,
                        other => {
                            errors.not_supported(
                                &Path::new("fieldValidation"),
                                other,
                                &["", "Ignore", "Strict", "Warn"],
                            );
                            FieldValidation::Warn
                        }
                    };
                }
                _ => {}
            }
        }
        let manager = Path::new("fieldManager");
        if apply && o.field_manager.is_empty() {
            errors.required(&manager, "is required for apply patch");
        }
        if !apply && force.is_some() {
            errors.forbidden(&Path::new("force"), "may not be specified for non-apply patch");
        }
        errors.extend(gantry_api::meta::object::validate_field_manager(&o.field_manager, &manager));
        invalid(kind, &errors)?;
        o.force = force == Some(true);
        if o.field_manager.is_empty() {
            let agent = user_agent.split('/').next().unwrap_or_default();
            o.field_manager = agent.chars().filter(|c| !c.is_control()).take(128).collect();
            if o.field_manager.is_empty() {
                "unknown".clone_into(&mut o.field_manager);
            }
        }
        Ok(o)
    }
}

/// The option of a deletion that is done though what is stored cannot be read.
const IGNORE_READ_ERRORS: &str = "ignoreStoreReadErrorWithClusterBreakingPotential";

/// DeleteOptions from the body, or from the query where there is no body.
///
/// # Errors
/// 400 where the body is no DeleteOptions, 422 for values that may not be given.
pub fn delete_options(query: &[(String, String)], body: Option<DeleteOptions>) -> Result<DeleteOptions, ApiError> {
    let mut o = match body {
        Some(body) => body,
        None => {
            let mut o = DeleteOptions::default();
            for (k, v) in query.iter().filter(|(_, v)| !v.is_empty()) {
                match k.as_str() {
                    "gracePeriodSeconds" => o.grace_period_seconds = Some(integer(v)?),
                    "orphanDependents" => o.orphan_dependents = Some(boolean(v)),
                    "propagationPolicy" => o.propagation_policy = Some(v.clone()),
                    IGNORE_READ_ERRORS => {
                        o.ignore_store_read_error_with_cluster_breaking_potential = Some(boolean(v));
                    }
                    _ => {}
                }
            }
            o
        }
    };
    if o.dry_run.is_none() {
        let values: Vec<String> =
            query.iter().filter(|(k, v)| k == "dryRun" && !v.is_empty()).map(|(_, v)| v.clone()).collect();
        o.dry_run = (!values.is_empty()).then_some(values);
    }
    let mut errors = ErrorList::default();
    if o.orphan_dependents.is_some() && o.propagation_policy.is_some() {
        errors.invalid(
            &Path::new("propagationPolicy"),
            o.propagation_policy.clone().unwrap_or_default(),
            "orphanDependents and deletionPropagation cannot be both set",
        );
    }
    if let Some(policy) =
        o.propagation_policy.as_deref().filter(|p| !matches!(*p, "Foreground" | "Background" | "Orphan" | ""))
    {
        errors.not_supported(&Path::new("propagationPolicy"), policy, &["Foreground", "Background", "Orphan", "nil"]);
    }
    for v in o.dry_run.iter().flatten().filter(|v| *v != "All") {
        errors.not_supported(&Path::new("dryRun"), v, &["All"]);
    }
    if ignores_read_errors(&o) {
        let others = [
            (o.propagation_policy.is_some(), "propagationPolicy"),
            (o.orphan_dependents.is_some(), "orphanDependents"),
            (o.grace_period_seconds.is_some(), "gracePeriodSeconds"),
            (o.preconditions.is_some(), "preconditions"),
        ];
        for (_, other) in others.iter().filter(|(given, _)| *given) {
            let why = format!("cannot be set together with .{other}");
            errors.invalid(&Path::new(IGNORE_READ_ERRORS), true, &why);
        }
    }
    invalid("DeleteOptions", &errors)?;
    Ok(o)
}

/// Whether the options ask for an object that cannot be read to be deleted all the same.
#[must_use]
pub fn ignores_read_errors(options: &DeleteOptions) -> bool {
    options.ignore_store_read_error_with_cluster_breaking_potential == Some(true)
}

/// Sees that the options may be given for a collection.
///
/// # Errors
/// 422 where they ask for objects that cannot be read.
pub fn check_for_collection(options: &DeleteOptions) -> Result<(), ApiError> {
    let mut errors = ErrorList::default();
    if ignores_read_errors(options) {
        let why = "is not allowed with DELETECOLLECTION, try again after removing the option";
        errors.invalid(&Path::new(IGNORE_READ_ERRORS), true, why);
    }
    invalid("DeleteOptions", &errors)
}

/// Whether the options ask for a dry run.
#[must_use]
pub fn is_dry_run(options: &DeleteOptions) -> bool {
    options.dry_run.iter().flatten().any(|v| v == "All")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_go_reads_them() {
        assert_eq!(version("18446744073709551615"), Ok(u64::MAX));
        for (text, why) in [
            ("+5", "invalid syntax"),
            ("-1", "invalid syntax"),
            ("5_0", "invalid syntax"),
            ("", "invalid syntax"),
            ("18446744073709551616", "value out of range"),
        ] {
            assert_eq!(version(text), Err(format!("strconv.ParseUint: parsing {text:?}: {why}")));
        }
    }

    #[test]
    fn a_selector_beside_a_name_names_it() {
        let named = |selector: &str| {
            let mut options = ListOptions::parse(&[("fieldSelector".to_owned(), selector.to_owned())]).unwrap();
            options.select_name("a").map(|()| options.fields.requires_exact_match("metadata.name").map(str::to_owned))
        };
        assert_eq!(named("").unwrap().as_deref(), Some("a"));
        assert_eq!(named("metadata.name=a,x=y").unwrap().as_deref(), Some("a"));
        for other in ["metadata.name=b", "metadata.name!=b", "x=y"] {
            let refused = named(other).unwrap_err();
            assert_eq!(
                (refused.code, refused.message.as_str()),
                (400, "fieldSelector metadata.name doesn't match requested name")
            );
        }
    }

    #[test]
    fn deletion_in_spite_of_read_errors_goes_with_nothing_else() {
        let option = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let unreadable = option(IGNORE_READ_ERRORS, "true");
        let options = delete_options(std::slice::from_ref(&unreadable), None).unwrap();
        assert!(ignores_read_errors(&options));
        assert_eq!(check_for_collection(&options).unwrap_err().code, 422);
        let off = delete_options(&[option(IGNORE_READ_ERRORS, "false")], None).unwrap();
        assert!(!ignores_read_errors(&off) && check_for_collection(&off).is_ok());
        for (name, value) in
            [("gracePeriodSeconds", "0"), ("orphanDependents", "true"), ("propagationPolicy", "Foreground")]
        {
            let refused = delete_options(&[unreadable.clone(), option(name, value)], None).unwrap_err();
            let wanted = format!("{IGNORE_READ_ERRORS}: Invalid value: true: cannot be set together with .{name}");
            assert!(refused.message.ends_with(&wanted), "{}", refused.message);
            assert!(delete_options(&[option(IGNORE_READ_ERRORS, "false"), option(name, value)], None).is_ok());
        }
    }
}
