//! Lifecycle hooks: `postStart` and `preStop`.

use crate::probe::http::{Target, get};
use crate::probe::port;
use gantry_container::runtime::Runtime;
use k8s_openapi::api::core::v1::{Container, LifecycleHandler};
use std::net::IpAddr;
use std::time::Duration;

/// Longest an HTTP hook may take where nothing else limits it.
const HTTP_TIMEOUT: Duration = Duration::from_secs(60);

/// What the TLS client says of an answer that is none of TLS.
const NOT_TLS: &str = "received corrupt message of type InvalidContentType";

/// Runs a hook to its end. The error is the sentence for the event.
pub(crate) async fn run(
    hook: &LifecycleHandler,
    container: &Container,
    id: &str,
    address: Option<IpAddr>,
    runtime: &dyn Runtime,
) -> Result<(), String> {
    if let Some(exec) = &hook.exec {
        let command = exec.command.clone().unwrap_or_default();
        let shown = format!("[{}]", command.join(" "));
        return match runtime.exec_sync(id, command, None).await {
            Ok(out) if out.exit_code == 0 => Ok(()),
            Ok(out) => {
                let mut text = String::from_utf8_lossy(&out.stdout).into_owned();
                text.push_str(&String::from_utf8_lossy(&out.stderr));
                let code = out.exit_code;
                Err(format!(
                    "Exec lifecycle hook ({shown}) for Container {:?} failed - error: command exited with {code}: , message: {text:?}",
                    container.name
                ))
            }
            Err(error) => {
                Err(format!("Exec lifecycle hook ({shown}) for Container {:?} failed - error: {error}", container.name))
            }
        };
    }
    if let Some(action) = &hook.http_get {
        let address = address.ok_or("failed to find networking container: pod has no IP")?.to_string();
        // An absent port is the scheme's own.
        let number = match &action.port {
            k8s_openapi::apimachinery::pkg::util::intstr::IntOrString::Int(0) => 80,
            other => port(other, container)?,
        };
        let mut target = Target::new(action, &address, number);
        let named = |target: &Target, name: &str| target.headers.iter().any(|(n, _)| n.eq_ignore_ascii_case(name));
        if !named(&target, "user-agent") {
            target.headers.push(("User-Agent".into(), "kube-lifecycle/1.37".into()));
        }
        let mut result = get(&target, HTTP_TIMEOUT).await;
        if target.https && result.as_ref().is_err_and(|e| e.contains(NOT_TLS)) {
            // As upstream: a server that does not speak TLS is asked without, but gets no credentials.
            target.https = false;
            target.headers.retain(|(name, _)| !name.eq_ignore_ascii_case("authorization"));
            result = get(&target, HTTP_TIMEOUT).await;
        }
        // Any answer will do: the hook is to be called, what comes of it is not looked at.
        return result.map(drop).map_err(|error| {
            format!("HTTP lifecycle hook ({}) for Container {:?} failed - error: {error}", target.path, container.name)
        });
    }
    if let Some(sleep) = &hook.sleep {
        tokio::time::sleep(Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or(0))).await;
        return Ok(());
    }
    Err(format!("invalid handler: {:?}", container.name))
}
