//! Content negotiation: what form of answer a client accepts, and how its body is written.

use crate::registry::draft::Encoding;
use gantry_api::meta::status::ApiError;
use http::HeaderMap;
use http::header::{ACCEPT, CONTENT_TYPE};

/// Media types served, as error messages list them.
const SERVED: &str = "application/json, application/yaml";

/// How much of the object a table row carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IncludeObject {
    /// Only cells.
    None,
    /// Metadata.
    #[default]
    Metadata,
    /// The whole object.
    Object,
}

/// What shape an answer has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// The object or list itself.
    Object,
    /// `Table` of this version (`v1` or `v1beta1`).
    Table(&'static str, IncludeObject),
    /// `PartialObjectMetadata` or its list, of this version.
    Metadata(&'static str),
}

/// What the client accepts, decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// JSON or YAML.
    pub encoding: Encoding,
    /// Shape.
    pub form: Form,
    /// Whether JSON is indented for people.
    pub pretty: bool,
}

impl Accepted {
    /// Plain JSON.
    pub const JSON: Self = Self { encoding: Encoding::Json, form: Form::Object, pretty: false };

    /// The value of `Content-Type`.
    #[must_use]
    pub const fn content_type(&self) -> &'static str {
        match self.encoding {
            Encoding::Json => "application/json",
            Encoding::Yaml => "application/yaml",
        }
    }
}

/// 406 as upstream words it.
#[must_use]
pub fn not_acceptable() -> ApiError {
    ApiError::new(406, "NotAcceptable", format!("only the following media types are accepted: {SERVED}"))
}

/// One clause of an Accept header.
#[derive(Clone, Debug)]
pub struct Clause {
    /// `type/subtype`, lower case.
    pub media: String,
    /// Parameters without `q`.
    pub params: Vec<(String, String)>,
    quality: f32,
}

impl Clause {
    /// The value of a parameter.
    #[must_use]
    pub fn param(&self, name: &str) -> Option<&str> {
        self.params.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_str())
    }
}

/// The clauses of the request's Accept headers, best first.
#[must_use]
pub fn clauses(headers: &HeaderMap) -> Vec<Clause> {
    let mut out = Vec::new();
    for value in headers.get_all(ACCEPT).iter().filter_map(|v| v.to_str().ok()) {
        for clause in value.split(',') {
            let mut parts = clause.split(';').map(str::trim);
            let media = parts.next().unwrap_or_default().to_ascii_lowercase();
            if media.is_empty() {
                continue;
            }
            let mut quality = 1.0;
            let mut params = Vec::new();
            for (k, v) in parts.filter_map(|p| p.split_once('=')) {
                if k == "q" {
                    quality = v.parse().unwrap_or(0.0);
                } else {
                    params.push((k.to_owned(), v.to_owned()));
                }
            }
            out.push(Clause { media, params, quality });
        }
    }
    out.retain(|c| c.quality > 0.0);
    out.sort_by(|a, b| b.quality.total_cmp(&a.quality));
    out
}

/// Chooses the answer's form. `shapes` says whether Table and PartialObjectMetadata can be had.
///
/// # Errors
/// 406 where nothing the client accepts is served.
pub fn accept(headers: &HeaderMap, query: &[(String, String)], shapes: bool) -> Result<Accepted, ApiError> {
    let param = |name: &str| query.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_str());
    let pretty = match param("pretty") {
        Some(v) => matches!(v, "1" | "true"),
        // Browsers and curl are people.
        None => headers.get(http::header::USER_AGENT).and_then(|v| v.to_str().ok()).is_some_and(|agent| {
            agent.starts_with("curl") || agent.starts_with("Wget") || agent.starts_with("Mozilla/5.0")
        }),
    };
    let include = match param("includeObject") {
        Some("None") => IncludeObject::None,
        Some("Object") => IncludeObject::Object,
        _ => IncludeObject::Metadata,
    };
    let plain = Accepted { encoding: Encoding::Json, form: Form::Object, pretty };
    let clauses = clauses(headers);
    if clauses.is_empty() {
        return Ok(plain);
    }
    for clause in &clauses {
        let encoding = match clause.media.as_str() {
            "application/json" | "*/*" | "application/*" => Encoding::Json,
            "application/yaml" => Encoding::Yaml,
            _ => continue,
        };
        let form = match clause.param("as") {
            None => Form::Object,
            Some(_) if !shapes || clause.param("g") != Some("meta.k8s.io") => continue,
            Some(kind) => {
                let version = match clause.param("v") {
                    Some("v1") => "v1",
                    Some("v1beta1") => "v1beta1",
                    _ => continue,
                };
                match kind {
                    "Table" => Form::Table(version, include),
                    "PartialObjectMetadata" | "PartialObjectMetadataList" => Form::Metadata(version),
                    _ => continue,
                }
            }
        };
        return Ok(Accepted { encoding, form, pretty });
    }
    Err(not_acceptable())
}

/// How a request body is written.
///
/// # Errors
/// 415 for what cannot be read.
pub fn body_encoding(headers: &HeaderMap) -> Result<Encoding, ApiError> {
    match media_type(headers).as_str() {
        "" | "application/json" | "*/*" => Ok(Encoding::Json),
        "application/yaml" => Ok(Encoding::Yaml),
        _ => Err(unsupported_media_type(SERVED)),
    }
}

/// 415 as upstream words it.
#[must_use]
pub fn unsupported_media_type(accepted: &str) -> ApiError {
    let message =
        format!("the body of the request was in an unknown format - accepted media types include: {accepted}");
    ApiError::new(415, "UnsupportedMediaType", message)
}

/// The content type without parameters, lower case; empty where there is none.
#[must_use]
pub fn media_type(headers: &HeaderMap) -> String {
    let value = headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(accept: &str) -> HeaderMap {
        let mut h = HeaderMap::new();
        h.insert(ACCEPT, accept.parse().unwrap());
        h
    }

    #[test]
    fn chooses_the_best_form_served() {
        let kubectl = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        let cases = [
            (kubectl, true, Some((Encoding::Json, Form::Table("v1", IncludeObject::Metadata)))),
            (kubectl, false, Some((Encoding::Json, Form::Object))),
            ("application/vnd.kubernetes.protobuf,application/json", true, Some((Encoding::Json, Form::Object))),
            ("application/json;q=0.5, application/yaml", true, Some((Encoding::Yaml, Form::Object))),
            (
                "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1",
                true,
                Some((Encoding::Json, Form::Metadata("v1"))),
            ),
            ("application/vnd.kubernetes.protobuf", true, None),
            ("text/html,*/*;q=0.8", true, Some((Encoding::Json, Form::Object))),
            ("application/json;as=Table;g=other;v=v1", true, None),
        ];
        for (text, shapes, want) in cases {
            let got = accept(&headers(text), &[], shapes).ok().map(|a| (a.encoding, a.form));
            assert_eq!(got, want, "{text}");
        }
    }
}
