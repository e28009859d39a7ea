//! `/pods` and `/logs/`: what the agent works on, and the host's log files.

use super::{Body, Failure, Server, answer};
use gantry_api::kind::Kind;
use http::{Response, StatusCode};
use serde_json::json;
use std::path::PathBuf;

const HOST_LOGS: &str = "/var/log";
/// Largest file sent.
const MAX_FILE: u64 = 64 << 20;

/// All pods of this node.
pub(crate) fn pods(server: &Server) -> Result<Response<Body>, Failure> {
    let items: Vec<_> = server.manager.list().iter().map(|p| p.to_value()).collect();
    let list = json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items});
    Ok(answer(StatusCode::OK, "application/json", list.to_string()))
}

/// A file below `/var/log`, or the list of a directory there.
pub(crate) async fn host_logs(parts: &[&str]) -> Result<Response<Body>, Failure> {
    let missing = || Failure::new(StatusCode::NOT_FOUND, "404 page not found");
    let root = PathBuf::from(HOST_LOGS);
    let path = parts.iter().fold(root.clone(), |p, part| p.join(part));
    // Resolved first, so that neither `..` nor a link leads out.
    let path = tokio::fs::canonicalize(&path).await.map_err(|_| missing())?;
    if !path.starts_with(&root) {
        return Err(missing());
    }
    let meta = tokio::fs::metadata(&path).await.map_err(|_| missing())?;
    let failed =
        |e: std::io::Error| Failure::new(StatusCode::INTERNAL_SERVER_ERROR, format!("{}: {e}", path.display()));
    if meta.is_dir() {
        let mut entries = tokio::fs::read_dir(&path).await.map_err(failed)?;
        let mut names = Vec::new();
        while let Some(entry) = entries.next_entry().await.map_err(failed)? {
            let slash = if entry.file_type().await.map_err(failed)?.is_dir() { "/" } else { "" };
            names.push(format!("{}{slash}", entry.file_name().to_string_lossy()));
        }
        names.sort();
        let escape = |s: &str| s.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&#34;");
        let rows: String = names.iter().map(|n| format!("<a href=\"{0}\">{0}</a>\n", escape(n))).collect();
        return Ok(answer(StatusCode::OK, "text/html; charset=utf-8", format!("<pre>\n{rows}</pre>\n")));
    }
    if meta.len() > MAX_FILE {
        return Err(Failure::new(StatusCode::PAYLOAD_TOO_LARGE, format!("{} is too large", path.display())));
    }
    let content = tokio::fs::read(&path).await.map_err(failed)?;
    Ok(answer(StatusCode::OK, "text/plain; charset=utf-8", content))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn host_logs_stay_below_their_directory() {
        for bad in [&["..", "..", "etc", "passwd"][..], &["none-such"]] {
            assert_eq!(host_logs(bad).await.unwrap_err().status, StatusCode::NOT_FOUND);
        }
        assert_eq!(host_logs(&[]).await.unwrap().status(), StatusCode::OK);
    }
}
