//! Starting one container: image, environment, mounts, the runtime, `postStart`.

use super::env::{Environment, Sources, expand, service_variables};
use super::images::{self, Failure, Wanted};
use super::plan::{Class, Start};
use super::status::Waiting;
use super::worker::Worker;
use super::{hooks, names, resources, security};
use crate::devices::inject;
use gantry_container::image_service::Image;
use gantry_container::runtime::{ContainerConfig, ContainerState, Mount};
use gantry_reconcile::EventType;
use k8s_openapi::api::core::v1::{Container, Pod};
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use tokio::time::Instant;

/// What came of trying to start a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    /// It was made: look again at once.
    Made,
    /// It waits for something that will wake the worker.
    Waits,
}

impl Worker {
    pub(crate) fn container_event(&self, container: &str, kind: EventType, reason: &str, message: &str) {
        self.agent.recorder.record(&names::container_reference(&self.pod, container), kind, reason, message);
    }

    fn wait_with(&mut self, container: &str, reason: &str, message: &str) {
        let waiting = Waiting { reason: reason.into(), message: Some(message.to_owned()) };
        self.waiting.insert(container.to_owned(), waiting);
    }

    fn image_failed(&mut self, container: &Container, failure: &Failure, due: Instant) {
        self.wait_with(&container.name, failure.reason, &failure.message);
        self.container_event(&container.name, EventType::Warning, "Failed", &format!("Error: {}", failure.reason));
        self.not_before.insert(container.name.clone(), due);
    }

    /// The container's image once all images it needs are here; `None` where one is being pulled or cannot be had now.
    async fn images(&mut self, container: &Container) -> Option<Image> {
        let mut missing = false;
        for one in images::needed(&self.pod.clone(), container) {
            let wanted = (one.name.clone(), one.image.clone().unwrap_or_default());
            if !self.images_ready.contains_key(&wanted) {
                match self.image(&one, &wanted).await {
                    Some(image) => drop(self.images_ready.insert(wanted, image)),
                    None => missing = true,
                }
            }
        }
        if missing {
            return None;
        }
        let own = (container.name.clone(), container.image.clone().unwrap_or_default());
        let image = self.images_ready.remove(&own);
        // The next start asks anew, as the pull policy may demand.
        self.images_ready.retain(|(name, _), _| *name != container.name);
        image
    }

    /// One image, or `None` where it is being pulled or cannot be had now.
    async fn image(&mut self, container: &Container, wanted: &Wanted) -> Option<Image> {
        let (name, reference) = wanted;
        if let Some(task) = self.pulling.get_mut(wanted) {
            if !task.is_finished() {
                return None;
            }
            let task = self.pulling.remove(wanted)?;
            return match task.await {
                Ok(Ok(image)) => {
                    self.image_backoffs.reset(reference);
                    self.failed_pulls.remove(wanted);
                    Some(image)
                }
                Ok(Err(failure)) => {
                    let now = Instant::now();
                    self.image_backoffs.advance(reference, now, now);
                    let due = self.image_backoffs.until(reference, now, now).unwrap_or(now + images::RETRY);
                    self.wait_with(name, failure.reason, &failure.message);
                    let error = format!("Error: {}", failure.reason);
                    self.container_event(name, EventType::Warning, "Failed", &error);
                    self.failed_pulls.insert(wanted.clone(), (now, failure));
                    // The next look shows the back-off, as upstream's next sync does.
                    self.not_before.insert(name.clone(), (now + std::time::Duration::from_secs(1)).min(due));
                    None
                }
                Err(error) => {
                    tracing::error!(container = name, %error, "an image pull ended abnormally");
                    None
                }
            };
        }
        let backed_off =
            self.agent.pull_back_off(&self.pod, container, &self.image_backoffs, self.failed_pulls.get(wanted));
        if let Some((failure, due)) = backed_off {
            self.image_failed(container, &failure, due);
            return None;
        }
        match self.agent.local_image(&self.pod, container).await {
            Ok(Some(image)) => Some(image),
            Err(failure) => {
                self.image_failed(container, &failure, Instant::now() + images::RETRY);
                None
            }
            Ok(None) => {
                let (agent, pod, container, wake) =
                    (self.agent.clone(), self.pod.clone(), container.clone(), self.wake.clone());
                self.waiting.remove(name);
                let task = tokio::spawn(async move {
                    let result = agent.pull(&pod, &container).await;
                    wake.notify_one();
                    result
                });
                self.pulling.insert(wanted.clone(), task);
                None
            }
        }
    }

    /// The whole configuration, or why it cannot be made.
    async fn configure(
        &mut self,
        container: &Container,
        start: &Start,
        image: &Image,
    ) -> Result<ContainerConfig, String> {
        let pod = self.pod.clone();
        let agent = self.agent.clone();
        security::verify_non_root(&pod, container, &image.user)?;
        let ips = self.sandbox.as_ref().map(|s| s.ips.clone()).unwrap_or_default();
        let fields = agent.field_context(&ips);
        let links = pod.spec.as_ref().and_then(|s| s.enable_service_links).unwrap_or(true);
        let services = service_variables(&agent.services.list(), names::namespace(&pod), links);
        let sources = Sources {
            config_maps: &agent.config_maps,
            secrets: &agent.secrets,
            fields: &fields,
            volumes: &self.volumes,
        };
        let mut env: Environment = sources.environment(&pod, container, &services).await?;
        let lookup = |n: &str| env.get(n).map(str::to_owned);
        let expanded =
            |list: &Option<Vec<String>>| list.iter().flatten().map(|a| expand(a, lookup)).collect::<Vec<_>>();
        let (command, args) = (expanded(&container.command), expanded(&container.args));
        let mut mounts = self.volumes.mounts(container, &env)?;
        let hosts_wanted = !mounts.iter().any(|m| m.destination == Path::new("/etc/hosts"));
        if hosts_wanted {
            mounts.push(Mount::bind(self.write_hosts().await?, "/etc/hosts"));
        }
        let mut annotations = std::collections::BTreeMap::from([(names::HASH.to_owned(), names::hash(container))]);
        let policy = container.termination_message_policy.clone().unwrap_or_else(|| "File".into());
        annotations.insert(names::TERMINATION_POLICY.into(), policy);
        let message_path = container.termination_message_path.as_deref().unwrap_or("/dev/termination-log");
        if !message_path.is_empty() {
            let file = self.termination_file(&container.name, start.attempt).await?;
            annotations.insert(names::TERMINATION_FILE.into(), file.display().to_string());
            mounts.push(Mount::bind(file, message_path));
        }
        if env.get("HOSTNAME").is_none() {
            let hostname = super::dns::sandbox_hostname(&pod, &agent.cfg.cluster_domain)?;
            if !super::sandbox::host_network(&pod) {
                env.set("HOSTNAME", hostname);
            }
        }
        Ok(ContainerConfig {
            name: container.name.clone(),
            attempt: start.attempt,
            image: image.id.clone(),
            command,
            args,
            env: env.into_pairs(),
            working_dir: container.working_dir.as_deref().filter(|w| !w.is_empty()).map(PathBuf::from),
            mounts,
            devices: self.volumes.devices(container)?,
            security: security::of(&pod, container, &agent.cfg.seccomp_dir),
            stdin: container.stdin == Some(true),
            stdin_once: container.stdin_once == Some(true),
            tty: container.tty == Some(true),
            resources: resources::of_container(container),
            oom_score_adj: resources::oom_score_adj(&pod, container, agent.machine.memory),
            log_path: Some(names::log_path(&agent.cfg.log_dir, &pod, &container.name, start.attempt)),
            stop_signal: container.lifecycle.as_ref().and_then(|l| l.stop_signal.clone()),
            labels: names::labels(&pod, Some(&container.name)),
            annotations,
            joins: self.joined(&container.name).await?,
        })
    }

    /// The configuration with what plugins of devices give, and the CDI ids of the devices.
    async fn with_devices(
        &self,
        pod: &Pod,
        container: &Container,
        mut config: ContainerConfig,
    ) -> Result<(ContainerConfig, Vec<String>), String> {
        let devices = &self.agent.devices;
        let mut ids = devices.of_container(pod, container)?;
        ids.extend(devices.classic.give(pod, container, &mut config).await?);
        Ok((config, ids))
    }

    /// Runtime id of the container whose processes an ephemeral container is to see.
    async fn joined(&self, name: &str) -> Result<Option<String>, String> {
        let own = self.pod.spec.iter().flat_map(|s| s.ephemeral_containers.iter().flatten()).find(|e| e.name == name);
        let Some(target) = own.and_then(|e| e.target_container_name.as_deref()).filter(|t| !t.is_empty()) else {
            return Ok(None);
        };
        let observed = self.observe().await;
        let found = observed.latest(target).ok_or_else(|| format!("unable to find target container {target}"))?;
        Ok(Some(found.id.clone()))
    }

    async fn termination_file(&self, container: &str, attempt: u32) -> Result<PathBuf, String> {
        use std::os::unix::fs::PermissionsExt;
        let directory = self.agent.pod_directory(names::uid(&self.pod)).join("containers").join(container);
        let path = directory.join(attempt.to_string());
        let made = async {
            tokio::fs::create_dir_all(&directory).await?;
            tokio::fs::write(&path, b"").await?;
            // Any user of the container may write it.
            tokio::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).await
        };
        made.await.map_err(|e: std::io::Error| format!("create {}: {e}", path.display()))?;
        Ok(path)
    }

    /// Removes attempts before the last one that ended, with their logs.
    async fn prune(&self, name: &str, attempt: u32) {
        let observed = self.observe().await;
        let old = observed.0.get(name).into_iter().flatten().filter(|c| c.attempt + 1 < attempt);
        for c in old.filter(|c| c.state == ContainerState::Exited) {
            if let Err(error) = self.agent.runtime.remove_container(&c.id).await {
                tracing::warn!(container = c.id, %error, "cannot remove an old container");
                continue;
            }
            if let Some(path) = &c.log_path {
                crate::logs::remove(path).await;
            }
        }
    }

    /// Takes one step towards a running container.
    pub(crate) async fn start(&mut self, start: &Start) -> Progress {
        let pod = self.pod.clone();
        let Some(mut container) = pod.spec.as_ref().and_then(|s| names::container(s, &start.name)) else {
            return Progress::Waits;
        };
        let Some(sandbox) = self.sandbox.clone() else { return Progress::Waits };
        let Some(image) = self.images(&container).await else { return Progress::Waits };
        if start.class != Class::Ephemeral {
            self.allocate(&mut container);
        }
        let retry_at = Instant::now() + images::RETRY;
        let configured = self.configure(&container, start, &image).await;
        let configured = match configured {
            Ok(config) => self.with_devices(&pod, &container, config).await,
            Err(message) => Err(message),
        };
        let (mut config, devices) = match configured {
            Ok(configured) => configured,
            Err(message) => {
                self.wait_with(&container.name, "CreateContainerConfigError", &message);
                self.container_event(&container.name, EventType::Warning, "Failed", &format!("Error: {message}"));
                self.not_before.insert(container.name.clone(), retry_at);
                return Progress::Waits;
            }
        };
        config.image = container.image.clone().filter(|i| !i.is_empty()).unwrap_or(config.image);
        self.prune(&container.name, start.attempt).await;
        if let Some(failed) = start.after_failure {
            self.backoffs.advance(&container.name, failed, Instant::now());
        }
        let created = match inject(&mut config, &devices, self.agent.devices.cdi_directories()) {
            Ok(()) => self.agent.runtime.create_container(&sandbox.id, config).await.map_err(|e| e.to_string()),
            Err(error) => Err(error),
        };
        let id = match created {
            Ok(id) => id,
            Err(message) => {
                self.wait_with(&container.name, "CreateContainerError", &message);
                self.container_event(&container.name, EventType::Warning, "Failed", &format!("Error: {message}"));
                self.not_before.insert(container.name.clone(), retry_at);
                return Progress::Waits;
            }
        };
        let about = &container.name;
        self.container_event(about, EventType::Normal, "Created", &format!("Created container: {about}"));
        if let Err(error) = self.agent.runtime.start_container(&id).await {
            let message = error.to_string();
            self.wait_with(about, "RunContainerError", &message);
            self.container_event(about, EventType::Warning, "Failed", &format!("Error: {message}"));
            return Progress::Made;
        }
        self.container_event(about, EventType::Normal, "Started", &format!("Started container {about}"));
        self.waiting.remove(about);
        self.not_before.remove(about);
        let hook = container
            .lifecycle
            .as_ref()
            .and_then(|l| l.post_start.as_ref())
            .filter(|_| start.class != Class::Ephemeral);
        if let Some(hook) = hook {
            let address = sandbox.ips.first().copied();
            let runtime = self.agent.runtime.clone();
            let running = hooks::run(hook, &container, &id, address, runtime.as_ref());
            // A pod that is to go does not wait for its hook.
            let result = tokio::select! {
                result = running => result,
                () = self.to_terminate() => Ok(()),
            };
            if let Err(message) = result {
                self.container_event(about, EventType::Warning, "FailedPostStartHook", "PostStartHook failed");
                tracing::info!(pod = %names::pod_description(&pod), container = about, message, "postStart hook failed");
                self.hook_failed.insert(id.clone(), message);
            }
        }
        self.look_after(&container, &id, SystemTime::now(), None);
        Progress::Made
    }
}
