//! Probes, lifecycle hooks and what they do.

use crate::meta::field::{ErrorList, Path};
use crate::meta::{names, text};
use k8s_openapi::api::core::v1::{
    ExecAction, GRPCAction, HTTPGetAction, Lifecycle, LifecycleHandler, Probe, SleepAction, TCPSocketAction,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// The two things a handler's rules depend on.
#[derive(Clone, Copy)]
pub(super) struct PodContext<'a> {
    pub(super) grace_period: Option<i64>,
    pub(super) os: Option<&'a str>,
}

/// Adds `must be greater than or equal to 0`.
pub(super) fn non_negative(value: Option<i64>, path: &Path, errors: &mut ErrorList) {
    if let Some(v) = value.filter(|v| *v < 0) {
        errors.invalid(path, v, "must be greater than or equal to 0");
    }
}

/// Adds the errors of a port given by number or name.
pub fn validate_port(port: &IntOrString, path: &Path, errors: &mut ErrorList) {
    match port {
        IntOrString::Int(n) => {
            for message in names::port_number(*n) {
                errors.invalid(path, *n, &message);
            }
        }
        IntOrString::String(s) => names::push_invalid(errors, path, s, &names::port_name(s)),
    }
}

#[derive(Default)]
struct Handler<'a> {
    exec: Option<&'a ExecAction>,
    http_get: Option<&'a HTTPGetAction>,
    tcp_socket: Option<&'a TCPSocketAction>,
    grpc: Option<&'a GRPCAction>,
    sleep: Option<&'a SleepAction>,
}

fn validate_handler(h: &Handler<'_>, cx: PodContext<'_>, path: &Path, errors: &mut ErrorList) {
    let mut found = false;
    let mut first = |name: &str, errors: &mut ErrorList| {
        if found {
            errors.forbidden(&path.child(name), "may not specify more than 1 handler type");
        }
        !std::mem::replace(&mut found, true)
    };
    if let Some(exec) = h.exec
        && first("exec", errors)
        && exec.command.as_ref().is_none_or(Vec::is_empty)
    {
        errors.required(&path.child("exec").child("command"), "");
    }
    if let Some(http) = h.http_get
        && first("httpGet", errors)
    {
        validate_http_get(http, &path.child("httpGet"), errors);
    }
    if let Some(tcp) = h.tcp_socket
        && first("tcpSocket", errors)
    {
        validate_port(&tcp.port, &path.child("tcpSocket").child("port"), errors);
    }
    if let Some(grpc) = h.grpc
        && first("grpc", errors)
    {
        validate_port(&IntOrString::Int(grpc.port), &path.child("grpc").child("port"), errors);
    }
    if let Some(sleep) = h.sleep
        && first("sleep", errors)
        && let Some(grace) = cx.grace_period
        && !(0..=grace).contains(&sleep.seconds)
    {
        let detail = format!("must be non-negative and less than terminationGracePeriodSeconds ({grace})");
        errors.invalid(&path.child("sleep"), sleep.seconds, &detail);
    }
    if !found {
        errors.required(path, "must specify a handler type");
    }
}

fn validate_http_get(http: &HTTPGetAction, path: &Path, errors: &mut ErrorList) {
    if text(&http.path).is_empty() {
        errors.required(&path.child("path"), "");
    }
    validate_port(&http.port, &path.child("port"), errors);
    if !matches!(text(&http.scheme), "HTTP" | "HTTPS") {
        errors.not_supported(&path.child("scheme"), text(&http.scheme), &["HTTP", "HTTPS"]);
    }
    for header in http.http_headers.iter().flatten() {
        names::push_invalid(errors, &path.child("httpHeaders"), &header.name, &names::http_header_name(&header.name));
    }
}

/// Which of the three probes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Liveness,
    Readiness,
    Startup,
}

/// Adds the errors of a probe.
pub(super) fn validate_probe(p: &Probe, role: Role, cx: PodContext<'_>, path: &Path, errors: &mut ErrorList) {
    let handler = Handler {
        exec: p.exec.as_ref(),
        http_get: p.http_get.as_ref(),
        tcp_socket: p.tcp_socket.as_ref(),
        grpc: p.grpc.as_ref(),
        sleep: None,
    };
    validate_handler(&handler, cx, path, errors);
    let numbers = [
        ("initialDelaySeconds", p.initial_delay_seconds),
        ("timeoutSeconds", p.timeout_seconds),
        ("periodSeconds", p.period_seconds),
        ("successThreshold", p.success_threshold),
        ("failureThreshold", p.failure_threshold),
    ];
    for (name, value) in numbers {
        non_negative(value.map(i64::from), &path.child(name), errors);
    }
    let grace_path = path.child("terminationGracePeriodSeconds");
    if let Some(grace) = p.termination_grace_period_seconds.filter(|g| *g <= 0) {
        errors.invalid(&grace_path, grace, "must be greater than 0");
    }
    match (role, p.termination_grace_period_seconds) {
        (Role::Readiness, Some(grace)) => errors.invalid(&grace_path, grace, "must not be set for readinessProbes"),
        (Role::Readiness, None) => {}
        _ if p.success_threshold != Some(1) => {
            errors.invalid(&path.child("successThreshold"), p.success_threshold.unwrap_or(0), "must be 1");
        }
        _ => {}
    }
}

const LINUX_SIGNALS: &[&str] = &[
    "SIGABRT",
    "SIGALRM",
    "SIGBUS",
    "SIGCHLD",
    "SIGCLD",
    "SIGCONT",
    "SIGFPE",
    "SIGHUP",
    "SIGILL",
    "SIGINT",
    "SIGIO",
    "SIGIOT",
    "SIGKILL",
    "SIGPIPE",
    "SIGPOLL",
    "SIGPROF",
    "SIGPWR",
    "SIGQUIT",
    "SIGSEGV",
    "SIGSTKFLT",
    "SIGSTOP",
    "SIGSYS",
    "SIGTERM",
    "SIGTRAP",
    "SIGTSTP",
    "SIGTTIN",
    "SIGTTOU",
    "SIGURG",
    "SIGUSR1",
    "SIGUSR2",
    "SIGVTALRM",
    "SIGWINCH",
    "SIGXCPU",
    "SIGXFSZ",
];

fn is_linux_signal(name: &str) -> bool {
    let offset = |prefix: &str, most: u32| {
        name.strip_prefix(prefix).and_then(|n| n.parse::<u32>().ok()).is_some_and(|n| (1..=most).contains(&n))
    };
    LINUX_SIGNALS.contains(&name)
        || matches!(name, "SIGRTMIN" | "SIGRTMAX")
        || offset("SIGRTMIN+", 15)
        || offset("SIGRTMAX-", 14)
}

/// Adds the errors of lifecycle hooks and the stop signal.
pub(super) fn validate_lifecycle(l: &Lifecycle, cx: PodContext<'_>, path: &Path, errors: &mut ErrorList) {
    let hooks: [(&str, Option<&LifecycleHandler>); 2] =
        [("postStart", l.post_start.as_ref()), ("preStop", l.pre_stop.as_ref())];
    for (name, hook) in hooks {
        let Some(h) = hook else { continue };
        let handler = Handler {
            exec: h.exec.as_ref(),
            http_get: h.http_get.as_ref(),
            tcp_socket: h.tcp_socket.as_ref(),
            grpc: None,
            sleep: h.sleep.as_ref(),
        };
        validate_handler(&handler, cx, &path.child(name), errors);
    }
    if let Some(signal) = &l.stop_signal {
        let path = path.child("stopSignal");
        match cx.os.unwrap_or_default() {
            "" => errors.forbidden(&path, "may not be set for containers with empty `spec.os.name`"),
            "windows" if !matches!(signal.as_str(), "SIGKILL" | "SIGTERM") => {
                errors.not_supported(&path, signal, &["SIGKILL", "SIGTERM"]);
            }
            "linux" if !is_linux_signal(signal) => errors.not_supported(&path, signal, LINUX_SIGNALS),
            _ => {}
        }
    }
}
