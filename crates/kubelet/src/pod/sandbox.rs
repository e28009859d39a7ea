//! A pod's sandbox: cgroup, namespaces, network, hosts file.

use super::worker::Worker;
use super::{dns, names, resources};
use gantry_client::Api;
use gantry_container::runtime::{Namespaces, SandboxConfig, SandboxState, SandboxStatus};
use gantry_network::{AttachOptions, HostPort, Protocol};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::node::v1::RuntimeClass;
use std::net::IpAddr;
use std::path::PathBuf;

/// A sandbox that is up.
#[derive(Debug, Clone)]
pub(crate) struct Sandbox {
    pub id: String,
    pub ips: Vec<IpAddr>,
}

pub(crate) fn host_network(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|s| s.host_network) == Some(true)
}

/// The host ports of a pod with a network of its own.
fn host_ports(pod: &Pod) -> Vec<HostPort> {
    let spec = pod.spec.as_ref();
    let containers = spec.into_iter().flat_map(|s| s.containers.iter().chain(s.init_containers.iter().flatten()));
    let ports = containers.flat_map(|c| c.ports.iter().flatten());
    let mapped = ports.filter_map(|p| {
        let host_port = u16::try_from(p.host_port?).ok().filter(|p| *p > 0)?;
        Some(HostPort {
            host_ip: p.host_ip.as_deref().and_then(|ip| ip.parse().ok()).filter(|ip: &IpAddr| !ip.is_unspecified()),
            host_port,
            container_port: u16::try_from(p.container_port).ok()?,
            protocol: match p.protocol.as_deref() {
                Some("UDP") => Protocol::Udp,
                Some("SCTP") => Protocol::Sctp,
                _ => Protocol::Tcp,
            },
        })
    });
    mapped.collect()
}

/// The one runtime of the node, by its own name and by the one that nodes elsewhere have for theirs.
pub(crate) const HANDLERS: [&str; 2] = ["gantry", "runc"];

/// Whether the node has the runtime that a RuntimeClass asks for.
fn has_runtime(handler: &str) -> Result<(), String> {
    if HANDLERS.contains(&handler) {
        return Ok(());
    }
    Err(format!("failed to get sandbox runtime: no runtime for {handler:?} is configured"))
}

impl Worker {
    /// `<uid>_<attempt>`.
    fn next_sandbox_id(&self) -> String {
        let uid = names::uid(&self.pod);
        let last = self.sandboxes.iter().filter_map(|id| id.rsplit_once('_')?.1.parse::<u32>().ok()).max();
        format!("{uid}_{}", last.map_or(0, |n| n + 1))
    }

    /// Makes a sandbox and attaches it to the network.
    pub(crate) async fn create_sandbox(&mut self) -> Result<(), String> {
        let pod = self.pod.clone();
        let spec = pod.spec.as_ref().ok_or("the pod has no spec")?;
        if spec.host_users == Some(false) {
            return Err("can't set `spec.hostUsers: false`, runtime does not support user namespaces".into());
        }
        let agent = self.agent.clone();
        if let Some(name) = spec.runtime_class_name.as_deref().filter(|n| !n.is_empty()) {
            let class = Api::<RuntimeClass>::all(agent.client.clone()).get(name).await;
            has_runtime(&class.map_err(|e| e.to_string())?.handler)?;
        }
        let host = agent.host_resolver().await;
        let resolver = dns::resolver(spec, names::namespace(&pod), &agent.cluster_dns(), &host);
        let log_dir =
            names::log_directory(&agent.cfg.log_dir, names::namespace(&pod), names::name(&pod), names::uid(&pod));
        let id = self.next_sandbox_id();
        let sysctls = spec.security_context.as_ref().and_then(|c| c.sysctls.clone()).unwrap_or_default();
        let config = SandboxConfig {
            id: id.clone(),
            hostname: dns::sandbox_hostname(&pod, &agent.cfg.cluster_domain)?,
            log_dir,
            labels: names::labels(&pod, None),
            annotations: pod.metadata.annotations.clone().unwrap_or_default(),
            resolv_conf: Some(resolver.text()),
            namespaces: Namespaces {
                host_network: host_network(&pod),
                host_pid: spec.host_pid == Some(true),
                host_ipc: spec.host_ipc == Some(true),
                shared_pid: spec.share_process_namespace == Some(true),
            },
            sysctls: sysctls.into_iter().map(|s| (super::sysctl::normalized(&s.name), s.value)).collect(),
            cgroup_parent: resources::cgroup_parent(&agent.cfg.cgroup_root, &pod, names::uid(&pod)),
            resources: resources::of_pod(spec, agent.cfg.pod_pids_limit),
        };
        self.sandboxes.push(id.clone());
        let status = agent.runtime.run_sandbox(config).await.map_err(|e| e.to_string())?;
        match self.attach(&status).await {
            Ok(ips) => {
                self.sandbox = Some(Sandbox { id, ips });
                Ok(())
            }
            Err(error) => {
                if let Err(cleanup) = agent.runtime.remove_sandbox(&id).await {
                    tracing::warn!(sandbox = id, error = %cleanup, "cannot remove a sandbox without a network");
                }
                Err(error)
            }
        }
    }

    /// The pod's addresses; its network is attached where it is not yet.
    pub(crate) async fn attach(&self, status: &SandboxStatus) -> Result<Vec<IpAddr>, String> {
        let Some(netns) = &status.netns_path else { return Ok(self.agent.cfg.node_ips.clone()) };
        let key = names::network_key(&self.pod);
        if let Some(known) = self.agent.network.addresses_of(&key).await
            && self.sandbox.as_ref().is_some_and(|s| s.id == status.id)
        {
            return Ok(known);
        }
        let options = AttachOptions { host_ports: host_ports(&self.pod) };
        let attached = self.agent.network.attach(&key, &self.pod, netns, options).await.map_err(|e| e.to_string())?;
        Ok(attached)
    }

    /// Takes over the sandboxes that an earlier run of the agent made.
    pub(crate) async fn adopt(&mut self, found: Vec<SandboxStatus>) {
        let key = names::network_key(&self.pod);
        self.adopt_allocations();
        for status in found {
            self.sandboxes.push(status.id.clone());
            if status.state != SandboxState::Ready {
                continue;
            }
            let ips = match &status.netns_path {
                None => Some(self.agent.cfg.node_ips.clone()),
                Some(_) => self.agent.network.addresses_of(&key).await,
            };
            // Without an attachment it never got its network: it is replaced.
            if let Some(ips) = ips {
                self.sandbox = Some(Sandbox { id: status.id, ips });
            }
        }
        for c in self.observe().await.alive() {
            // Made but not started before the agent ended: it is made again.
            if c.state == gantry_container::runtime::ContainerState::Created
                && let Err(error) = self.agent.runtime.remove_container(&c.id).await
            {
                tracing::warn!(container = c.id, %error, "cannot remove a container that was never started");
            }
        }
    }

    /// Forgets the sandbox when it is no longer ready.
    pub(crate) async fn check_sandbox(&mut self) {
        let Some(sandbox) = &self.sandbox else { return };
        let ready = match self.agent.runtime.sandbox_status(&sandbox.id).await {
            Ok(status) => status.state == SandboxState::Ready,
            Err(error) if error.is_not_found() => false,
            Err(error) => {
                tracing::warn!(sandbox = sandbox.id, %error, "cannot read the sandbox' status");
                return;
            }
        };
        if !ready {
            let id = sandbox.id.clone();
            self.agent.recorder.normal(
                &*self.pod,
                "SandboxChanged",
                "Pod sandbox changed, it will be killed and re-created.",
            );
            self.sandbox = None;
            if let Err(error) = self.agent.runtime.stop_sandbox(&id).await {
                tracing::warn!(sandbox = id, %error, "cannot stop a sandbox that is not ready");
            }
            if let Err(error) = self.agent.network.detach(&names::network_key(&self.pod)).await {
                tracing::warn!(sandbox = id, %error, "cannot detach a sandbox that is not ready");
            }
        }
    }

    /// Writes the managed `/etc/hosts` and returns where it is.
    pub(crate) async fn write_hosts(&self) -> Result<PathBuf, String> {
        let path = self.agent.pod_directory(names::uid(&self.pod)).join("etc-hosts");
        let host_file = match host_network(&self.pod) {
            true => Some(tokio::fs::read_to_string("/etc/hosts").await.map_err(|e| format!("read /etc/hosts: {e}"))?),
            false => None,
        };
        let ips = self.sandbox.as_ref().map(|s| s.ips.clone()).unwrap_or_default();
        let text = dns::hosts_file(&self.pod, &ips, &self.agent.cfg.cluster_domain, host_file.as_deref());
        // The same text is not written again: containers have the file itself mounted.
        if tokio::fs::read_to_string(&path).await.ok().as_deref() != Some(text.as_str()) {
            tokio::fs::write(&path, text).await.map_err(|e| format!("write {}: {e}", path.display()))?;
        }
        Ok(path)
    }
}
