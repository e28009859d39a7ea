//! The runtime's conformance suite, against the real thing: needs root and busybox-static.

#[path = "../../../tests/cluster/guest.rs"]
mod guest;
mod support;

use std::fs;
use std::time::{Duration, Instant};

use gantry_container::Error;
use gantry_container::image_service::ImageService;
use gantry_container::images::{ImageStore, ImageStoreConfig};
use gantry_container::runtime::*;
use support::{Cell, IMAGE, log_text, wait_log};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containers_run_log_and_end() {
    let cell = Cell::new().await;
    let sandbox = cell.sandbox("s1").await;
    assert_eq!(sandbox.state, SandboxState::Ready);
    assert!(sandbox.netns_path.as_ref().unwrap().exists());
    assert!(sandbox.shim_pid > 0);

    let (exit, log) =
        cell.run("s1", cell.shell("ok", "echo out; echo err >&2; hostname; cat /etc/resolv.conf; echo $$")).await;
    assert_eq!((exit.code, exit.reason.as_str(), exit.oom_killed), (0, "Completed", false));
    for line in ["out\n", "err\n", "host-s1\n", "nameserver 192.0.2.1\n"] {
        assert!(log.contains(line), "{log}");
    }
    assert!(log.contains("\n1\n"), "process 1 of its own namespace: {log}");
    let raw = fs::read_to_string(cell.dir.path().join("logs/ok.log")).unwrap();
    assert!(
        raw.lines().any(|l| l.contains(" stderr F err")) && raw.lines().any(|l| l.contains(" stdout F out")),
        "{raw}"
    );

    let (exit, _) = cell.run("s1", cell.shell("fails", "exit 3")).await;
    assert_eq!((exit.code, exit.signal, exit.reason.as_str()), (3, 0, "Error"));
    let (exit, _) = cell.run("s1", cell.shell("dies", "sh -c 'kill -9 $PPID' & wait; exit 4")).await;
    assert_eq!(exit.code, 4, "a namespace's process 1 is safe from its own children");

    let status = cell
        .runtime
        .list_containers(ContainerFilter { state: Some(ContainerState::Exited), ..Default::default() })
        .await
        .unwrap();
    assert_eq!(status.len(), 3);
    assert!(
        status.iter().all(|c| c.started_at.is_some() && c.exit.as_ref().unwrap().finished_at >= c.started_at.unwrap())
    );
    cell.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_cannot_be_started_says_why() {
    let cell = Cell::new().await;
    cell.sandbox("s1").await;
    let cases = [
        (vec!["no-such-program"], "executable file not found in $PATH"),
        (vec!["/no/such"], "no such file or directory"),
        (vec!["/etc/passwd"], "permission denied"),
    ];
    for (i, (command, want)) in cases.into_iter().enumerate() {
        let mut config = cell.shell(&format!("c{i}"), "");
        config.command = command.into_iter().map(String::from).collect();
        let id = cell.runtime.create_container("s1", config).await.unwrap();
        match cell.runtime.start_container(&id).await {
            Err(Error::Start { message }) => assert!(message.contains(want), "{message}"),
            other => panic!("{other:?}"),
        }
        let status = cell.runtime.container_status(&id).await.unwrap();
        let exit = status.exit.unwrap();
        assert_eq!((status.state, exit.code, exit.reason.as_str()), (ContainerState::Exited, 128, "StartError"));
        assert!(exit.message.contains(want));
    }
    let mut config = cell.shell("none", "");
    config.image = "test.local/none".into();
    assert!(matches!(cell.runtime.create_container("s1", config).await, Err(Error::ImageNotFound { .. })));
    let mut config = cell.shell("mount", "");
    config.mounts = vec![Mount::bind("/no/such/source", "/x")];
    let error = cell.runtime.create_container("s1", config).await.unwrap_err();
    assert!(error.to_string().contains("/no/such/source"), "{error}");
    let mut config = cell.shell("caps", "");
    config.security.capabilities_add = vec!["NO_SUCH".into()];
    assert!(matches!(cell.runtime.create_container("s1", config).await, Err(Error::InvalidConfig { .. })));
    let mut config = cell.shell("user", "");
    config.security.user_name = Some("nobody-here".into());
    assert!(matches!(cell.runtime.create_container("s1", config).await, Err(Error::UnknownUser { .. })));
    cell.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exec_gives_output_codes_and_limits() {
    let cell = Cell::new().await;
    cell.sandbox("s1").await;
    let mut config = cell.shell("c", "sleep 1000");
    config.env = vec![("GREETING".into(), "hello".into())];
    let id = cell.start("s1", config).await;
    let sh = |script: &str| vec!["sh".to_string(), "-c".into(), script.into()];
    let out = cell.runtime.exec_sync(&id, sh("echo $GREETING; echo bad >&2; exit 7"), None).await.unwrap();
    assert_eq!((out.stdout.as_slice(), out.stderr.as_slice(), out.exit_code), (&b"hello\n"[..], &b"bad\n"[..], 7));
    let big = cell.runtime.exec_sync(&id, sh("head -c 3000000 /dev/zero"), None).await.unwrap();
    assert_eq!(big.stdout.len(), 3_000_000);

    let start = Instant::now();
    let error = cell.runtime.exec_sync(&id, sh("sleep 77"), Some(Duration::from_millis(300))).await.unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }) && start.elapsed() < Duration::from_secs(5), "{error}");
    for _ in 0..100 {
        let ps = cell.runtime.exec_sync(&id, vec!["ps".into()], None).await.unwrap();
        if !String::from_utf8_lossy(&ps.stdout).contains("sleep 77") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let ps = cell.runtime.exec_sync(&id, vec!["ps".into()], None).await.unwrap();
    assert!(!String::from_utf8_lossy(&ps.stdout).contains("sleep 77"), "the command outlived its time");

    let error = cell.runtime.exec_sync(&id, vec!["no-such".into()], None).await.unwrap_err();
    assert!(matches!(&error, Error::Start { message } if message.contains("not found in $PATH")), "{error}");
    // A child that keeps the pipe open does not keep the caller waiting.
    let start = Instant::now();
    let out = cell.runtime.exec_sync(&id, sh("sleep 30 & echo done"), None).await.unwrap();
    assert!(out.stdout == b"done\n" && start.elapsed() < Duration::from_secs(5));
    assert!(matches!(cell.runtime.exec_sync("none", sh("true"), None).await, Err(Error::NotFound { .. })));
    cell.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exec_streams_and_terminals() {
    let cell = Cell::new().await;
    cell.sandbox("s1").await;
    let id = cell.start("s1", cell.shell("c", "sleep 1000")).await;
    let config = ExecConfig { command: vec!["cat".into()], stdin: true, stdout: true, ..Default::default() };
    let mut session = cell.runtime.exec(&id, config).await.unwrap();
    let mut stdin = session.stdin.take().unwrap();
    stdin.write_all(b"through and back").await.unwrap();
    stdin.shutdown().await.unwrap();
    drop(stdin);
    let mut text = String::new();
    session.stdout.take().unwrap().read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "through and back");
    assert_eq!(session.control.wait().await.unwrap(), 0);

    let config = ExecConfig { command: vec!["sh".into()], tty: true, stdin: true, stdout: true, ..Default::default() };
    let mut session = cell.runtime.exec(&id, config).await.unwrap();
    session.control.resize(101, 37).await.unwrap();
    let mut stdin = session.stdin.take().unwrap();
    stdin.write_all(b"stty size; tty; exit 5\n").await.unwrap();
    let mut text = Vec::new();
    session.stdout.take().unwrap().read_to_end(&mut text).await.unwrap();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(text.contains("37 101"), "{text}");
    assert_eq!(session.control.wait().await.unwrap(), 5);
    cell.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attach_reaches_the_first_process() {
    let cell = Cell::new().await;
    cell.sandbox("s1").await;
    let mut config = cell.shell("c", "cat; echo end of input");
    (config.stdin, config.stdin_once) = (true, true);
    let id = cell.start("s1", config).await;
    let mut session = cell.runtime.attach(&id, true, true, true).await.unwrap();
    let mut stdin = session.stdin.take().unwrap();
    stdin.write_all(b"typed\n").await.unwrap();
    stdin.shutdown().await.unwrap();
    drop(stdin);
    let mut text = String::new();
    session.stdout.take().unwrap().read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "typed\nend of input\n");
    assert_eq!(session.control.wait().await.unwrap(), 0);
    assert_eq!(log_text(&cell.dir.path().join("logs/c.log")), text, "the log has it too");

    let mut config = cell.shell("t", "stty size; read line; echo got $line; stty size; exit 9");
    (config.stdin, config.tty) = (true, true);
    let id = cell.start("s1", config).await;
    let mut session = cell.runtime.attach(&id, true, true, true).await.unwrap();
    assert!(session.stderr.is_none());
    session.control.resize(80, 24).await.unwrap();
    session.stdin.as_mut().unwrap().write_all(b"a line\n").await.unwrap();
    let mut text = Vec::new();
    session.stdout.take().unwrap().read_to_end(&mut text).await.unwrap();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(text.contains("got a line") && text.contains("24 80"), "{text}");
    assert_eq!(session.control.wait().await.unwrap(), 9);
    cell.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopping_is_graceful_and_then_not() {
    let cell = Cell::new().await;
    cell.sandbox("s1").await;
    let polite = cell.shell("polite", "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.1; done");
    let id = cell.start("s1", polite).await;
    wait_log(&cell.dir.path().join("logs/polite.log"), |t| t.contains("up")).await;
    cell.runtime.stop_container(&id, Duration::from_secs(10)).await.unwrap();
    assert_eq!(cell.runtime.container_status(&id).await.unwrap().exit.unwrap().code, 0);
    assert!(log_text(&cell.dir.path().join("logs/polite.log")).contains("bye"));

    let mut other = cell.shell("other", "trap 'exit 12' USR1; echo up; while :; do sleep 0.1; done");
    other.stop_signal = Some("SIGUSR1".into());
    let id = cell.start("s1", other).await;
    wait_log(&cell.dir.path().join("logs/other.log"), |t| t.contains("up")).await;
    cell.runtime.stop_container(&id, Duration::from_secs(10)).await.unwrap();
    assert_eq!(cell.runtime.container_status(&id).await.unwrap().exit.unwrap().code, 12);

    let id = cell.start("s1", cell.shell("deaf", "trap '' TERM; sleep 1000")).await;
    let start = Instant::now();
    cell.runtime.stop_container(&id, Duration::from_millis(400)).await.unwrap();
    assert!(start.elapsed() >= Duration::from_millis(400) && start.elapsed() < Duration::from_secs(5));
    let exit = cell.runtime.container_status(&id).await.unwrap().exit.unwrap();
    assert_eq!((exit.code, exit.signal, exit.reason.as_str(), exit.oom_killed), (137, 9, "Error", false));
    // Again, and after removal, is no error.
    cell.runtime.stop_container(&id, Duration::ZERO).await.unwrap();
    cell.runtime.remove_container(&id).await.unwrap();
    cell.runtime.remove_container(&id).await.unwrap();
    cell.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_limits_kill_and_are_told() {
    let cell = Cell::new().await;
    cell.sandbox("s1").await;
    let mut events = cell.runtime.events();
    let mut config = cell.shell(
        "c",
        "x=$(head -c 100000000 /dev/zero | tail -c 100000000 | wc -c); dd if=/dev/zero of=/dev/null bs=200M count=1",
    );
    config.resources.memory_limit = Some(20 << 20);
    config.command =
        vec!["dd".into(), "if=/dev/zero".into(), "of=/dev/null".into(), "bs=200M".into(), "count=1".into()];
    let (exit, _) = cell.run("s1", config).await;
    assert_eq!((exit.code, exit.reason.as_str(), exit.oom_killed), (137, "OOMKilled", true));
    let mut told = false;
    while let Ok(event) = events.try_recv() {
        told |= matches!(event, RuntimeEvent::ContainerExited { exit, .. } if exit.oom_killed);
    }
    assert!(told);

    // A child dies, the container lives: only an event.
    let mut config = cell.shell("parent", "dd if=/dev/zero of=/dev/null bs=200M count=1; echo child $?; sleep 1000");
    config.resources.memory_limit = Some(20 << 20);
    let mut events = cell.runtime.events();
    let id = cell.start("s1", config).await;
    wait_log(&cell.dir.path().join("logs/parent.log"), |t| t.contains("child 137")).await;
    let wait = async {
        loop {
            if let RuntimeEvent::ContainerOom { container_id, .. } = events.recv().await.unwrap() {
                return container_id;
            }
        }
    };
    assert_eq!(tokio::time::timeout(Duration::from_secs(5), wait).await.expect("no OOM event"), id);
    assert_eq!(cell.runtime.container_status(&id).await.unwrap().state, ContainerState::Running);
    cell.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rights_are_as_asked() {
    let cell = Cell::new().await;
    cell.sandbox("s1").await;
    let probe = "id; grep -E '^(Cap(Eff|Bnd)|NoNewPrivs|Seccomp):' /proc/self/status; touch /x && echo wrote; mount -t tmpfs t /tmp 2>&1; cat /proc/timer_list 2>/dev/null | wc -c; echo 1 > /proc/sys/kernel/domainname";
    let (_, log) = cell.run("s1", cell.shell("default", probe)).await;
    assert!(log.contains("uid=0(root) gid=0(root)"), "{log}");
    assert!(log.contains("CapBnd:\t00000000a80425fb"), "{log}");
    assert!(log.contains("Seccomp:\t0") && log.contains("NoNewPrivs:\t0") && log.contains("wrote"), "{log}");
    assert!(log.contains("mount:") && log.contains("\n0\n") && log.contains("Read-only file system"), "{log}");

    let mut config = cell.shell("tight", probe);
    config.security = Security {
        uid: Some(33),
        gid: Some(7),
        supplementary_groups: vec![99],
        capabilities_add: vec!["NET_BIND_SERVICE".into()],
        capabilities_drop: vec!["ALL".into()],
        read_only_root: true,
        no_new_privileges: true,
        seccomp: Seccomp::RuntimeDefault,
        ..Security::default()
    };
    let (_, log) = cell.run("s1", config).await;
    assert!(
        log.contains("uid=33(web) gid=7 groups=7,50(staff),99")
            || log.contains("uid=33(web) gid=7 groups=7,50(staff),99\n"),
        "{log}"
    );
    assert!(log.contains("CapBnd:\t0000000000000400") && log.contains("CapEff:\t0000000000000000"), "{log}");
    assert!(log.contains("Seccomp:\t2") && log.contains("NoNewPrivs:\t1") && !log.contains("wrote"), "{log}");

    // A filter without no_new_privs, for an ordinary user: the harder way to install it.
    let mut config = cell.shell("filtered", "grep -E '^(CapEff|Seccomp):' /proc/self/status; unshare -U true; echo $?");
    config.security.user_name = Some("web".into());
    config.security.seccomp = Seccomp::RuntimeDefault;
    let id = cell.start("s1", config).await;
    cell.exit(&id).await;
    let log = log_text(&cell.dir.path().join("logs/filtered.log"));
    assert!(log.contains("Seccomp:\t2") && log.contains("CapEff:\t0000000000000000"), "{log}");
    assert!(log.contains("Operation not permitted"), "{log}");

    let mut config = cell.shell("exec", "sleep 1000");
    config.security.seccomp = Seccomp::RuntimeDefault;
    config.security.uid = Some(33);
    let id = cell.start("s1", config).await;
    let out = cell.runtime.exec_sync(&id, vec!["cat".into(), "/proc/self/status".into()], None).await.unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(text.contains("Seccomp:\t2") && text.contains("Uid:\t33"), "exec keeps the filter and the user: {text}");

    let profile = cell.dir.path().join("profile.json");
    fs::write(&profile, r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":38}]}"#).unwrap();
    let mut config = cell.shell("profile", "mkdir /d; echo code $?");
    config.security.seccomp = Seccomp::Localhost(profile);
    let (_, log) = cell.run("s1", config).await;
    assert!(log.contains("not implemented") && log.contains("code 1"), "{log}");

    let mut config = cell.shell("privileged", "mount -t tmpfs t /tmp && echo mounted; ls /dev | wc -l");
    config.security.privileged = true;
    let (_, log) = cell.run("s1", config).await;
    assert!(log.contains("mounted"), "{log}");
    cell.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mounts_stay_inside_and_read_only() {
    let cell = Cell::new().await;
    cell.sandbox("s1").await;
    let host = cell.dir.path().join("host");
    fs::create_dir_all(host.join("sub")).unwrap();
    fs::write(host.join("file"), "from the host\n").unwrap();
    let mut config = cell.shell(
        "c",
        "cat /rw/file; echo in > /rw/new; echo x > /ro/new; cat /one/file; touch /evil/inside/t; ls /evil/inside; touch /mem/x && stat -f -c %T /mem; cat /dev/termination-log; touch /dev/shm/y && echo shm; pwd; ls /dev",
    );
    config.working_dir = Some("/made/on/the/way".into());
    config.mounts = vec![
        Mount::bind(&host, "/rw"),
        Mount { recursive_read_only: true, ..Mount::bind(&host, "/ro").read_only() },
        Mount::bind(host.join("file"), "/one/file").read_only(),
        Mount::bind(host.join("file"), "/dev/termination-log"),
        // The image has /evil -> /../../../not/there: resolved inside the image, never on the host.
        Mount::bind(host.join("sub"), "/evil/inside"),
        Mount { source: MountSource::Tmpfs { size: Some(1 << 20) }, ..Mount::bind("", "/mem") },
    ];
    let (exit, log) = cell.run("s1", config).await;
    assert_eq!(exit.code, 0, "{log}");
    assert_eq!(fs::read_to_string(host.join("new")).unwrap(), "in\n", "{log}");
    assert_eq!(log.matches("from the host").count(), 3, "{log}");
    for want in ["Read-only file system", "tmpfs", "shm\n", "/made/on/the/way\n", "null\n", "ptmx\n"] {
        assert!(log.contains(want), "{want}: {log}");
    }
    assert!(host.join("sub/t").exists());
    assert!(!std::path::Path::new("/not/there").exists());
    cell.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mounts_propagate_as_asked() {
    let cell = Cell::new().await;
    cell.sandbox("s1").await;
    let host = cell.dir.path().join("shared");
    for name in ["from-host", "from-container"] {
        fs::create_dir_all(host.join(name)).unwrap();
    }
    let with = |name: &str, script: &str, propagation| {
        let mut config = cell.shell(name, script);
        config.security.privileged = true;
        config.mounts = vec![Mount { propagation, ..Mount::bind(&host, "/m") }];
        config
    };
    let both = cell
        .start(
            "s1",
            with(
                "both",
                "mount -t tmpfs t /m/from-container && touch /m/from-container/here; sleep 1000",
                Propagation::Bidirectional,
            ),
        )
        .await;
    let down = cell.start("s1", with("down", "sleep 1000", Propagation::HostToContainer)).await;
    let none = cell.start("s1", with("none", "sleep 1000", Propagation::Private)).await;
    for _ in 0..200 {
        if host.join("from-container/here").exists() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(host.join("from-container/here").exists(), "a container's mount reaches the host");
    nix::mount::mount(Some("t"), &host.join("from-host"), Some("tmpfs"), nix::mount::MsFlags::empty(), None::<&str>)
        .unwrap();
    fs::write(host.join("from-host/here"), "").unwrap();
    let sees = async |id: &str| {
        let command = vec!["ls".to_string(), "/m/from-host/here".into()];
        cell.runtime.exec_sync(id, command, None).await.unwrap().exit_code == 0
    };
    assert!(sees(&both).await && sees(&down).await && !sees(&none).await);
    nix::mount::umount2(&host.join("from-host"), nix::mount::MntFlags::MNT_DETACH).unwrap();
    nix::mount::umount2(&host.join("from-container"), nix::mount::MntFlags::MNT_DETACH).unwrap();
    cell.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn namespaces_are_shared_as_asked() {
    let cell = Cell::new().await;
    let mut config = cell.sandbox_config("shared");
    config.namespaces.shared_pid = true;
    config.sysctls = [("net.ipv4.ip_local_port_range".to_string(), "20000 20100".to_string())].into();
    cell.runtime.run_sandbox(config).await.unwrap();
    let first = cell.start("shared", cell.shell("first", "sleep 4242")).await;
    let (_, log) = cell
        .run("shared", cell.shell("second", "ps; cat /proc/sys/net/ipv4/ip_local_port_range; ls /sys/class/net"))
        .await;
    assert!(log.contains("sleep 4242") && log.contains("20000\t20100"), "{log}");
    assert!(log.ends_with("lo\n"), "{log}");
    // What a container leaves behind in a shared namespace dies with it.
    let (_, _) = cell.run("shared", cell.shell("leaves", "sleep 5151 & sleep 0.1")).await;
    let mut ps = String::new();
    for _ in 0..100 {
        let out = cell.runtime.exec_sync(&first, vec!["ps".into()], None).await.unwrap();
        ps = String::from_utf8_lossy(&out.stdout).into_owned();
        if !ps.contains("5151") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(!ps.contains("sleep 5151"), "{ps}");

    let mut config = cell.sandbox_config("host");
    config.namespaces.host_network = true;
    config.namespaces.host_pid = true;
    config.namespaces.host_ipc = true;
    let status = cell.runtime.run_sandbox(config).await.unwrap();
    assert_eq!(status.netns_path, None);
    let (_, log) = cell
        .run(
            "host",
            cell.shell(
                "see",
                "readlink /proc/self/ns/net; readlink /proc/self/ns/ipc; readlink /proc/self/ns/pid; hostname",
            ),
        )
        .await;
    for name in ["net", "ipc", "pid"] {
        let own = fs::read_link(format!("/proc/self/ns/{name}")).unwrap();
        assert!(log.contains(own.to_str().unwrap()), "{name}: {log}");
    }
    cell.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containers_outlive_the_main_process() {
    let cell = Cell::new().await;
    cell.sandbox("s1").await;
    let lives = cell.start("s1", cell.shell("lives", "while :; do echo tick; sleep 0.05; done")).await;
    let ends = cell.start("s1", cell.shell("ends", "sleep 0.5; exit 6")).await;
    let created = cell.runtime.create_container("s1", cell.shell("created", "echo later")).await.unwrap();
    let before = cell.runtime.container_status(&lives).await.unwrap();
    let cell = cell.reopen_after(Duration::ZERO).await;
    assert_eq!(cell.runtime.sandbox_status("s1").await.unwrap().state, SandboxState::Ready);
    let after = cell.runtime.container_status(&lives).await.unwrap();
    assert_eq!((after.state, after.pid, after.started_at), (ContainerState::Running, before.pid, before.started_at));
    assert_eq!(cell.exit(&ends).await.code, 6);
    cell.runtime.start_container(&created).await.unwrap();
    assert_eq!(cell.exit(&created).await.code, 0);
    let out = cell.runtime.exec_sync(&lives, vec!["echo".into(), "hi".into()], None).await.unwrap();
    assert_eq!(out.stdout, b"hi\n");
    // Ended while nobody looked.
    let late = cell.start("s1", cell.shell("late", "sleep 0.2; exit 8")).await;
    let cell = cell.reopen_after(Duration::from_millis(600)).await;
    assert_eq!(cell.runtime.container_status(&late).await.unwrap().exit.unwrap().code, 8);
    // A stop that was noted and not carried out: the next process finishes it.
    let file = cell.config.state_dir.join("sandboxes/s1/sandbox.json");
    let text = fs::read_to_string(&file).unwrap().replace("\"stopped\":false", "\"stopped\":true");
    fs::write(&file, text).unwrap();
    let cell = cell.reopen_after(Duration::ZERO).await;
    assert_eq!(cell.runtime.sandbox_status("s1").await.unwrap().state, SandboxState::NotReady);
    cell.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_shim_takes_its_containers_along() {
    let cell = Cell::new().await;
    let sandbox = cell.sandbox("s1").await;
    let id = cell.start("s1", cell.shell("c", "sleep 1000")).await;
    let pid = cell.runtime.container_status(&id).await.unwrap().pid;
    let mut events = cell.runtime.events();
    // SAFETY: the shim of this test's own sandbox.
    unsafe { libc::kill(sandbox.shim_pid, libc::SIGKILL) };
    let exit = cell.exit(&id).await;
    assert_eq!((exit.code, exit.reason.as_str()), (137, "ContainerStatusUnknown"));
    // A zombie nobody has reaped yet does not run.
    let state = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    assert!(state.is_empty() || state.contains(") Z "), "the container's process lives on: {state}");
    let mut sandbox_told = false;
    while let Ok(Ok(event)) = tokio::time::timeout(Duration::from_secs(2), events.recv()).await {
        if matches!(&event, RuntimeEvent::SandboxExited { sandbox_id } if sandbox_id == "s1") {
            sandbox_told = true;
            break;
        }
    }
    assert!(sandbox_told);
    assert_eq!(cell.runtime.sandbox_status("s1").await.unwrap().state, SandboxState::NotReady);
    assert!(cell.runtime.create_container("s1", cell.shell("d", "true")).await.is_err());
    cell.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_rotate_and_usage_is_counted() {
    let cell = Cell::new().await;
    cell.sandbox("s1").await;
    let mut config = cell.shell("c", "head -c 2000000 /dev/zero > /big; while :; do echo line; sleep 0.02; done");
    config.resources =
        Resources { memory_limit: Some(64 << 20), cpu_shares: Some(512), pids_limit: Some(50), ..Default::default() };
    let id = cell.start("s1", config).await;
    let log = cell.dir.path().join("logs/c.log");
    wait_log(&log, |t| t.contains("line")).await;
    let old = cell.dir.path().join("logs/c.log.1");
    fs::rename(&log, &old).unwrap();
    cell.runtime.reopen_log(&id).await.unwrap();
    wait_log(&log, |t| t.contains("line")).await;

    let stats = cell.runtime.container_stats(&id).await.unwrap();
    assert!(stats.cpu_ns > 0 && stats.memory_usage > 0 && stats.pids >= 1, "{stats:?}");
    assert_eq!(stats.memory_limit, Some(64 << 20));
    assert!(stats.writable_layer_bytes >= 2_000_000 && stats.writable_layer_inodes >= 2, "{stats:?}");
    let whole = cell.runtime.sandbox_stats("s1").await.unwrap();
    assert!(whole.memory_usage >= stats.memory_rss && whole.cpu_ns >= stats.cpu_ns);

    let change = Resources {
        memory_limit: Some(128 << 20),
        cpu_quota: Some(50_000),
        cpu_period: Some(100_000),
        ..Default::default()
    };
    cell.runtime.update_resources(&id, change).await.unwrap();
    let status = cell.runtime.container_status(&id).await.unwrap();
    assert_eq!(
        (status.resources.memory_limit, status.resources.cpu_quota, status.resources.cpu_shares),
        (Some(128 << 20), Some(50_000), Some(512))
    );
    assert_eq!(cell.runtime.container_stats(&id).await.unwrap().memory_limit, Some(128 << 20));
    cell.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shim_is_small_and_a_start_is_quick() {
    let cell = Cell::new().await;
    let start = Instant::now();
    let sandbox = cell.sandbox("s1").await;
    let id = cell.start("s1", cell.shell("c", "sleep 1000")).await;
    let took = start.elapsed();
    // Pages of the program's file are shared with all who run it, the main process first of all, so only what is a shim's
    // own is judged.
    let text = fs::read_to_string(format!("/proc/{}/smaps_rollup", sandbox.shim_pid)).unwrap();
    let private: u64 = text
        .lines()
        .filter(|l| l.starts_with("Anonymous:"))
        .filter_map(|l| l.split_whitespace().nth(1)?.parse::<u64>().ok())
        .sum();
    println!("start {took:?}; shim's own memory {private} KiB");
    assert!(private < 1024, "{text}");
    assert!(fs::read_dir(format!("/proc/{}/task", sandbox.shim_pid)).unwrap().count() == 1, "the shim has threads");
    cell.runtime.remove_container(&id).await.unwrap();
    cell.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_at_once() {
    let cell = Cell::new().await;
    let mut tasks = Vec::new();
    for i in 0..8 {
        let runtime = cell.runtime.clone();
        let (sandbox, config) =
            (cell.sandbox_config(&format!("s{i}")), cell.shell(&format!("c{i}"), &format!("echo {i}; exit {i}")));
        tasks.push(tokio::spawn(async move {
            runtime.run_sandbox(sandbox).await.unwrap();
            let id = runtime.create_container(&format!("s{i}"), config).await.unwrap();
            runtime.start_container(&id).await.unwrap();
            id
        }));
    }
    for (i, task) in tasks.into_iter().enumerate() {
        let id = task.await.unwrap();
        assert_eq!(cell.exit(&id).await.code, i as i32);
        assert_eq!(log_text(&cell.dir.path().join(format!("logs/c{i}.log"))), format!("{i}\n"));
    }
    assert!(matches!(cell.runtime.run_sandbox(cell.sandbox_config("s0")).await, Err(Error::AlreadyExists { .. })));
    let mut same = cell.shell("c0", "true");
    same.image = IMAGE.into();
    assert!(matches!(cell.runtime.create_container("s0", same).await, Err(Error::AlreadyExists { .. })));
    cell.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_execs_and_short_lives() {
    let cell = Cell::new().await;
    cell.sandbox("s1").await;
    let id = cell.start("s1", cell.shell("c", "sleep 1000")).await;
    let mut tasks = Vec::new();
    for i in 0..40 {
        let (runtime, id) = (cell.runtime.clone(), id.clone());
        tasks.push(tokio::spawn(async move {
            let command = vec!["sh".into(), "-c".into(), format!("echo {i}; exit {i}")];
            (i, runtime.exec_sync(&id, command, None).await.unwrap())
        }));
    }
    for task in tasks {
        let (i, out) = task.await.unwrap();
        assert_eq!((out.stdout, out.exit_code), (format!("{i}\n").into_bytes(), i));
    }
    for i in 0..15 {
        let (exit, log) = cell.run("s1", cell.shell(&format!("short{i}"), "echo x")).await;
        assert_eq!((exit.code, log.as_str()), (0, "x\n"));
    }
    // Each attempt to run something in an ended container is told so.
    cell.runtime.kill_container(&id, libc::SIGKILL).await.unwrap();
    cell.exit(&id).await;
    assert!(matches!(cell.runtime.exec_sync(&id, vec!["true".into()], None).await, Err(Error::State { .. })));
    assert!(matches!(cell.runtime.attach(&id, true, true, true).await, Err(Error::State { .. })));
    assert!(matches!(cell.runtime.start_container(&id).await, Err(Error::State { .. })));
    let left = fs::read_dir(cell.config.state_dir.join("containers").join(&id)).unwrap().flatten();
    let names: Vec<String> = left.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    assert!(names.iter().all(|n| !n.starts_with("exec-")), "{names:?}");
    cell.close().await;
}

/// A process beside the runtime, as `gantry image rm` is, sees what containers use at whatever moment it comes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_is_not_removed_under_a_container() {
    let cell = Cell::new().await;
    cell.sandbox("s1").await;
    let beside = ImageStoreConfig {
        dir: cell.dir.path().join("images"),
        users: Some(cell.config.state_dir.clone()),
        ..Default::default()
    };
    let beside = ImageStore::open(beside).unwrap();
    for i in 0..12 {
        let config = cell.shell(&format!("c{i}"), "echo whole");
        let log = config.log_path.clone().unwrap();
        let (made, removed) = tokio::join!(cell.runtime.create_container("s1", config), async {
            tokio::time::sleep(Duration::from_millis(i)).await;
            beside.remove(IMAGE).await
        });
        match (made, removed) {
            (Ok(id), Err(Error::State { .. })) => {
                cell.runtime.start_container(&id).await.unwrap();
                assert_eq!((cell.exit(&id).await.code, log_text(&log).as_str()), (0, "whole\n"));
                cell.runtime.remove_container(&id).await.unwrap();
            }
            (Err(Error::ImageNotFound { .. }), Ok(())) => {
                cell.images.import(&cell.dir.path().join("busybox.tar"), None).await.unwrap();
            }
            other => panic!("{other:?}"),
        }
    }
    beside.remove(IMAGE).await.unwrap();
    cell.close().await;
}

/// This very suite in a guest where cgroup version 2 is all there is.
#[test]
fn the_suite_on_cgroup_version_2() {
    let scratch = tempfile::tempdir().unwrap();
    let machine = guest::Guest::new().program("/suite", std::env::current_exe().unwrap(), scratch.path()).program(
        support::shim().to_str().unwrap(),
        support::shim(),
        scratch.path(),
    );
    let said = machine.run(
        "/suite --test-threads=2 --skip the_suite_on_cgroup_version_2 2>&1",
        scratch.path(),
        Duration::from_secs(900),
    );
    assert!(said.contains("test result: ok."), "{said}");
}
