//! Image references: `[registry[:port]/]repository[:tag][@digest]`, with the defaults every tool shares.

use crate::error::{Error, Result};

/// A complete reference.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reference {
    /// Host and port.
    pub registry: String,
    /// Path within the registry.
    pub repository: String,
    /// Tag; `latest` when the text had neither tag nor digest.
    pub tag: Option<String>,
    /// `sha256:…`.
    pub digest: Option<String>,
}

impl Reference {
    /// Parses and completes (`busybox` is `docker.io/library/busybox:latest`).
    pub fn parse(text: &str) -> Result<Reference> {
        let invalid = |reason: String| Error::InvalidReference { reference: text.to_string(), reason };
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => {
                check_digest(digest).map_err(invalid)?;
                (rest, Some(digest.to_string()))
            }
            None => (text, None),
        };
        // A colon after the last slash starts a tag; before it, a port.
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => {
                let good = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
                if tag.is_empty() || tag.len() > 128 || !tag.chars().all(good) || tag.starts_with(['.', '-']) {
                    return Err(invalid(format!("invalid tag {tag:?}")));
                }
                (name, Some(tag.to_string()))
            }
            _ => (rest, None),
        };
        let (registry, repository) = match name.split_once('/') {
            Some((first, path)) if first.contains(['.', ':']) || first == "localhost" || has_upper(first) => {
                (first.to_string(), path.to_string())
            }
            Some(_) => ("docker.io".to_string(), name.to_string()),
            None => ("docker.io".to_string(), format!("library/{name}")),
        };
        let registry = if registry == "index.docker.io" { "docker.io".to_string() } else { registry };
        if has_upper(&repository) {
            return Err(invalid(format!("repository name ({repository}) must be lowercase")));
        }
        let host_ok = |h: &str| !h.is_empty() && h.chars().all(|c| c.is_ascii_alphanumeric() || ".-:[]".contains(c));
        if !host_ok(&registry) {
            return Err(invalid(format!("invalid registry {registry:?}")));
        }
        if repository.len() > 255 || !repository.split('/').all(component_ok) {
            return Err(invalid(format!("invalid repository {repository:?}")));
        }
        let tag = if tag.is_none() && digest.is_none() { Some("latest".to_string()) } else { tag };
        Ok(Reference { registry, repository, tag, digest })
    }

    /// `registry/repository`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// `registry/repository:tag`.
    pub fn tagged(&self) -> Option<String> {
        self.tag.as_ref().map(|tag| format!("{}:{tag}", self.name()))
    }

    /// The name an image is stored under: by digest when there is one, else by tag.
    pub fn canonical(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => format!("{}@{digest}", self.name()),
            (None, Some(tag)) => format!("{}:{tag}", self.name()),
            (None, None) => self.name(),
        }
    }
}

fn has_upper(text: &str) -> bool {
    text.chars().any(|c| c.is_ascii_uppercase())
}

fn component_ok(part: &str) -> bool {
    let bytes = part.as_bytes();
    let plain = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    !bytes.is_empty()
        && bytes.first().is_some_and(plain)
        && bytes.last().is_some_and(plain)
        && bytes.iter().all(|b| plain(b) || b"._-".contains(b))
        && !part.contains("..")
}

/// Checks `sha256:` and 64 hex digits.
pub(crate) fn check_digest(digest: &str) -> std::result::Result<(), String> {
    match digest.strip_prefix("sha256:") {
        Some(hex) if hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) => Ok(()),
        _ => Err(format!("invalid digest {digest:?}: only sha256 with 64 lower-case hex digits is supported")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn completes_names() {
        let hex = "0".repeat(64);
        let cases = [
            ("busybox", "docker.io/library/busybox:latest".to_string()),
            ("busybox:1.36", "docker.io/library/busybox:1.36".to_string()),
            ("me/app", "docker.io/me/app:latest".to_string()),
            ("localhost/app:1", "localhost/app:1".to_string()),
            ("localhost:5000/a/b", "localhost:5000/a/b:latest".to_string()),
            ("127.0.0.1:5000/a:b", "127.0.0.1:5000/a:b".to_string()),
            ("gantry.local/self:latest", "gantry.local/self:latest".to_string()),
            ("index.docker.io/library/x", "docker.io/library/x:latest".to_string()),
            (&format!("k8s.io/p:1@sha256:{hex}"), format!("k8s.io/p@sha256:{hex}")),
            (&format!("p@sha256:{hex}"), format!("docker.io/library/p@sha256:{hex}")),
        ];
        for (text, want) in cases {
            assert_eq!(Reference::parse(text).unwrap().canonical(), want, "{text}");
        }
    }

    #[test]
    fn refuses_what_is_no_reference() {
        for bad in [
            "",
            "UPPER",
            "a/B",
            "a b",
            "a:",
            "a:.x",
            "a//b",
            "/a",
            "a/",
            "-a",
            "a@sha256:12",
            "a@md5:00",
            "a..b",
            "http://x/y",
            "a:b:c",
        ] {
            let result = Reference::parse(bad);
            assert!(matches!(result, Err(Error::InvalidReference { .. })), "{bad:?}: {result:?}");
        }
    }
}
