//! The image store against real archives, a small registry on loopback, and the built-in image in a container.

mod support;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use gantry_container::Error;
use gantry_container::image_service::{ImageService, RegistryAuth};
use gantry_container::images::{ImageStore, ImageStoreConfig, SELF_IMAGE};
use gantry_container::runtime::*;
use support::{Cell, Layer, digest, docker_archive, image_config, log_text, oci_blobs, wait_log};

fn store(dir: &std::path::Path, insecure: &[String]) -> ImageStore {
    let insecure_registries = insecure.to_vec();
    ImageStore::open(ImageStoreConfig { dir: dir.join("images"), insecure_registries, users: None }).unwrap()
}

fn small_layer(text: &str) -> Vec<u8> {
    Layer::new().file("file", text.as_bytes(), 0o644).file("etc/passwd", b"app:x:7:8::/home/app:\n", 0o644).done()
}

fn oci_archive(layer: &[u8], name: &str) -> Vec<u8> {
    let (blobs, manifest) = oci_blobs(layer, r#"{"User":"app","Cmd":["/run"],"WorkingDir":"/w"}"#);
    // The manifest hides behind an index with other platforms first.
    let arch = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let list = format!(
        r#"{{"schemaVersion":2,"manifests":[{{"digest":"sha256:{}","size":1,"platform":{{"architecture":"s390x","os":"linux"}}}},{{"digest":"sha256:{manifest}","size":1,"platform":{{"architecture":"{arch}","os":"linux"}}}}]}}"#,
        "0".repeat(64)
    );
    let index = format!(
        r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"application/vnd.oci.image.index.v1+json","digest":"sha256:{}","size":{},"annotations":{{"io.containerd.image.name":"{name}"}}}}]}}"#,
        digest(list.as_bytes()),
        list.len()
    );
    let mut tar = Layer::new()
        .file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#, 0o644)
        .file("index.json", index.as_bytes(), 0o644)
        .file(&format!("blobs/sha256/{}", digest(list.as_bytes())), list.as_bytes(), 0o644);
    for (hex, data) in &blobs {
        tar = tar.file(&format!("blobs/sha256/{hex}"), data, 0o644);
    }
    tar.done()
}

/// Everything below the store but its index, to see that nothing is left.
fn content(dir: &std::path::Path) -> Vec<String> {
    let mut all = Vec::new();
    for sub in ["layers", "blobs/sha256", "tmp"] {
        let entries = std::fs::read_dir(dir.join("images").join(sub)).unwrap().flatten();
        all.extend(entries.map(|e| format!("{sub}/{}", e.file_name().to_string_lossy())));
    }
    all
}

#[tokio::test]
async fn two_processes_share_a_store() {
    // Two stores of one directory, as the agent and `gantry image` have.
    let dir = tempfile::tempdir().unwrap();
    let (agent, command) = (store(dir.path(), &[]), store(dir.path(), &[]));
    let import = |name: &'static str| {
        let file = dir.path().join(format!("{}.tar", name.replace(['/', ':'], "-")));
        std::fs::write(&file, docker_archive(&small_layer(name), name, "{}")).unwrap();
        file
    };
    command.import(&import("shared.test/a:1"), None).await.unwrap();
    assert!(agent.status("shared.test/a:1").await.unwrap().is_some(), "imports are seen");
    agent.import(&import("shared.test/b:1"), None).await.unwrap();
    let tags = |list: Vec<gantry_container::image_service::Image>| {
        let mut tags: Vec<String> = list.into_iter().flat_map(|i| i.tags).collect();
        tags.sort();
        tags
    };
    for store in [&agent, &command] {
        assert_eq!(tags(store.list().await.unwrap()), ["shared.test/a:1", "shared.test/b:1"], "nothing is overwritten");
    }
    command.remove("shared.test/a:1").await.unwrap();
    assert!(agent.status("shared.test/a:1").await.unwrap().is_none(), "removals are seen");
    assert_eq!(content(dir.path()).iter().filter(|p| p.starts_with("layers/")).count(), 1);

    // Work in progress of one is not swept away by another that opens the store.
    let lock = std::fs::File::open(dir.path().join("images/growth.lock")).unwrap();
    lock.lock_shared().unwrap();
    std::fs::create_dir(dir.path().join("images/tmp/layer-x")).unwrap();
    std::fs::create_dir(dir.path().join("images/layers/unnamed")).unwrap();
    drop(store(dir.path(), &[]));
    assert!(dir.path().join("images/tmp/layer-x").exists() && dir.path().join("images/layers/unnamed").exists());
    drop(lock);
    drop(store(dir.path(), &[]));
    assert!(!dir.path().join("images/tmp/layer-x").exists() && !dir.path().join("images/layers/unnamed").exists());
}

#[tokio::test]
async fn archives_of_all_kinds() {
    let dir = tempfile::tempdir().unwrap();
    let images = store(dir.path(), &[]);
    let plain = docker_archive(&small_layer("docker"), "docker.test/a:1", "{}");
    let oci = oci_archive(&small_layer("oci"), "docker.test/b:2");
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&docker_archive(&small_layer("gzip"), "docker.test/c:3", "{}")).unwrap();
    let gzip = gzip.finish().unwrap();
    let zstd = zstd::encode_all(&oci_archive(&small_layer("zstd"), "docker.test/d:4")[..], 1).unwrap();
    for (i, data) in [plain, oci, gzip, zstd].into_iter().enumerate() {
        let file = dir.path().join(format!("{i}.tar"));
        std::fs::write(&file, data).unwrap();
        let made = images.import(&file, None).await.unwrap();
        assert_eq!(made.len(), 1);
    }
    let mut tags: Vec<String> = images.list().await.unwrap().into_iter().flat_map(|i| i.tags).collect();
    tags.sort();
    assert_eq!(tags, ["docker.test/a:1", "docker.test/b:2", "docker.test/c:3", "docker.test/d:4"]);
    let b = images.status("docker.test/b:2").await.unwrap().unwrap();
    assert_eq!(b.user, "app");
    let config = images.config(&b.id).await.unwrap();
    assert_eq!((config.cmd, config.working_dir.as_str()), (vec!["/run".to_string()], "/w"));
    let user = images.resolve_user("docker.test/b:2", "").await.unwrap();
    assert_eq!((user.uid, user.gid, user.home.to_str().unwrap()), (7, 8, "/home/app"));
    assert!(matches!(images.resolve_user("docker.test/b:2", "nobody").await, Err(Error::UnknownUser { .. })));
    // By digest, by id, by the start of the id.
    for name in [b.digests[0].as_str(), &b.id, &b.id[7..20]] {
        assert_eq!(images.status(name).await.unwrap().unwrap().id, b.id, "{name}");
    }
    // The same survives a restart, and removal takes all of it away.
    drop(images);
    let images = store(dir.path(), &[]);
    assert_eq!(images.list().await.unwrap().len(), 4);
    assert!(images.fs_usage().await.unwrap().used_inodes >= 12);
    for image in images.garbage_candidates().await.unwrap() {
        images.remove(&image.id).await.unwrap();
    }
    assert_eq!(content(dir.path()), Vec::<String>::new());
    assert!(matches!(images.remove("docker.test/a:1").await, Err(Error::ImageNotFound { .. })));
}

#[tokio::test]
async fn damaged_archives_name_the_part_and_leave_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let images = store(dir.path(), &[]);
    let good = oci_archive(&small_layer("x"), "a.test/a:1");
    let (blobs, _) = oci_blobs(&small_layer("x"), r#"{"User":"app","Cmd":["/run"],"WorkingDir":"/w"}"#);
    let layer = small_layer("x");
    let blob = blobs.values().find(|b| b.starts_with(&[0x1f, 0x8b])).unwrap();
    let flip = |mut data: Vec<u8>, part: &[u8], at: usize| {
        let start = data.windows(part.len()).position(|w| w == part).unwrap();
        data[start + at] ^= 0x20;
        data
    };
    let manifest = br#"[{"Config":"c.json","RepoTags":["a:1"],"Layers":["layer.tar"]}]"#;
    let config = image_config(&small_layer("other"), "{}");
    let mismatch = Layer::new()
        .file("manifest.json", manifest, 0o644)
        .file("c.json", &config, 0o644)
        .file("layer.tar", &layer, 0o644)
        .done();
    let missing = Layer::new().file("manifest.json", manifest, 0o644).file("c.json", &config, 0o644).done();
    let evil = Layer::new().file("fine", b"", 0o644);
    let evil = {
        let mut header = tar::Header::new_gnu();
        header.as_mut_bytes()[..13].copy_from_slice(b"../../escaped");
        header.set_size(0);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_cksum();
        let mut evil = evil;
        evil.0.append(&header, &b""[..]).unwrap();
        evil.done()
    };
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("layer blob", flip(good.clone(), blob, blob.len() / 2), "sha256:"),
        ("index", flip(good.clone(), b"schemaVersion", 0), "index.json"),
        ("cut off", good[..good.len() / 2].to_vec(), ""),
        ("empty", Vec::new(), "empty.tar"),
        ("no archive", b"something else entirely".repeat(100), "no archive.tar"),
        ("diff id", mismatch, "layer.tar"),
        ("missing layer", missing, "layer.tar"),
        ("escape", docker_archive(&evil, "a.test/e:1", "{}"), "../../escaped"),
        (
            "cut gzip",
            {
                let mut g = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                g.write_all(&good).unwrap();
                let g = g.finish().unwrap();
                g[..g.len() / 2].to_vec()
            },
            "cut gzip.tar",
        ),
    ];
    for (what, data, part) in cases {
        let file = dir.path().join(format!("{what}.tar"));
        std::fs::write(&file, data).unwrap();
        match images.import(&file, None).await {
            Err(Error::InvalidImage { entry, reason }) => assert!(entry.contains(part), "{what}: {entry}: {reason}"),
            other => panic!("{what}: {other:?}"),
        }
        assert_eq!(content(dir.path()), Vec::<String>::new(), "{what}");
        assert!(images.list().await.unwrap().is_empty(), "{what}");
    }
}

#[tokio::test]
async fn a_full_disk_is_told_and_cleaned_up() {
    let dir = tempfile::tempdir().unwrap();
    let small = dir.path().join("small");
    std::fs::create_dir(&small).unwrap();
    nix::mount::mount(Some("t"), &small, Some("tmpfs"), nix::mount::MsFlags::empty(), Some("size=1m")).unwrap();
    let images = store(&small, &[]);
    let layer = Layer::new().file("big", &vec![7; 3 << 20], 0o644).done();
    let file = dir.path().join("big.tar");
    std::fs::write(&file, docker_archive(&layer, "a.test/big:1", "{}")).unwrap();
    let result = images.import(&file, None).await;
    assert!(matches!(result, Err(Error::NoSpace { .. })), "{result:?}");
    assert_eq!(content(&small), Vec::<String>::new());
    drop(images);
    nix::mount::umount2(&small, nix::mount::MntFlags::MNT_DETACH).unwrap();
}

/// A registry that serves blobs, wants a password, and counts what it is asked for.
struct Registry {
    address: String,
    blob_requests: Arc<AtomicUsize>,
}

fn registry(blobs: BTreeMap<String, Vec<u8>>, manifest: String, password: Option<&'static str>) -> Registry {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let blob_requests = Arc::new(AtomicUsize::new(0));
    let count = blob_requests.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (blobs, manifest, count) = (blobs.clone(), manifest.clone(), count.clone());
            std::thread::spawn(move || serve(stream, &blobs, &manifest, password, &count));
        }
    });
    Registry { address, blob_requests }
}

fn serve(
    stream: TcpStream,
    blobs: &BTreeMap<String, Vec<u8>>,
    manifest: &str,
    password: Option<&str>,
    count: &AtomicUsize,
) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    loop {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            if line.trim().is_empty() {
                break;
            }
            lines.push(line.trim().to_string());
        }
        let path = lines[0].split(' ').nth(1).unwrap().to_string();
        let allowed = password.is_none_or(|p| {
            lines.iter().any(|l| l.to_lowercase().starts_with("authorization: basic") && l.ends_with(p))
        });
        let (status, kind, body): (&str, &str, &[u8]) = if !allowed {
            (
                "401 Unauthorized",
                "application/json\r\nWWW-Authenticate: Basic realm=\"r\"",
                br#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#,
            )
        } else if path == "/v2/" {
            ("200 OK", "application/json", b"{}")
        } else if path.contains("/manifests/") && path.starts_with("/v2/lib/app/") {
            ("200 OK", "application/vnd.oci.image.manifest.v1+json", &blobs[manifest])
        } else if let Some(blob) = path.rsplit_once("sha256:").and_then(|(_, hex)| blobs.get(hex)) {
            count.fetch_add(1, Ordering::SeqCst);
            ("200 OK", "application/octet-stream", blob)
        } else {
            (
                "404 Not Found",
                "application/json",
                br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#,
            )
        };
        let mut out =
            format!("HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n", body.len()).into_bytes();
        if !lines[0].starts_with("HEAD") {
            out.extend_from_slice(body);
        }
        if (&stream).write_all(&out).is_err() {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pulling_from_a_registry() {
    let dir = tempfile::tempdir().unwrap();
    let (blobs, manifest) = oci_blobs(&small_layer("pulled"), r#"{"User":"7"}"#);
    let open = registry(blobs.clone(), manifest.clone(), None);
    let images = store(dir.path(), std::slice::from_ref(&open.address));
    let name = format!("{}/lib/app:1", open.address);
    let (progress, seen) = tokio::sync::watch::channel(Default::default());
    // Two at once share the work.
    let (a, b) = tokio::join!(
        images.pull(&name, &RegistryAuth::Anonymous, Some(progress)),
        images.pull(&name, &RegistryAuth::Anonymous, None)
    );
    let (a, b) = (a.unwrap(), b.unwrap());
    assert_eq!((&a.id, a.tags.as_slice()), (&b.id, &[name.clone()][..]));
    assert_eq!(open.blob_requests.load(Ordering::SeqCst), 2, "configuration and layer, once each");
    let last: gantry_container::image_service::PullProgress = *seen.borrow();
    assert!(last.total_bytes > 0 && last.fetched_bytes == last.total_bytes && last.unpacked_layers == 1, "{last:?}");
    assert_eq!(a.digests, [format!("{}/lib/app@sha256:{manifest}", open.address)]);
    // By digest too; the layer is there already.
    images.pull(&a.digests[0], &RegistryAuth::Anonymous, None).await.unwrap();
    let none = images.pull(&format!("{}/lib/none:1", open.address), &RegistryAuth::Anonymous, None).await;
    assert!(matches!(none, Err(Error::ImageNotFound { .. })), "{none:?}");

    // Basic dXNlcjpzZWNyZXQ= is user:secret.
    let closed = registry(blobs.clone(), manifest.clone(), Some("dXNlcjpzZWNyZXQ="));
    let images = store(&dir.path().join("2"), std::slice::from_ref(&closed.address));
    let name = format!("{}/lib/app:1", closed.address);
    for auth in [RegistryAuth::Anonymous, RegistryAuth::Basic { username: "user".into(), password: "wrong".into() }] {
        match images.pull(&name, &auth, None).await {
            Err(Error::Registry { unauthorized: true, .. }) => {}
            other => panic!("{other:?}"),
        }
    }
    let auth = RegistryAuth::Basic { username: "user".into(), password: "secret".into() };
    images.pull(&name, &auth, None).await.unwrap();

    // A registry that sends other bytes than it promised.
    let mut lying = blobs.clone();
    for data in lying.values_mut().filter(|d| d.starts_with(&[0x1f, 0x8b])) {
        let middle = data.len() / 2;
        data[middle] ^= 1;
    }
    let liar = registry(lying, manifest, None);
    let images = store(&dir.path().join("3"), std::slice::from_ref(&liar.address));
    let result = images.pull(&format!("{}/lib/app:1", liar.address), &RegistryAuth::Anonymous, None).await;
    assert!(matches!(result, Err(Error::InvalidImage { .. } | Error::Registry { .. })), "{result:?}");
    assert!(content(&dir.path().join("3")).iter().all(|p| !p.starts_with("layers") && !p.starts_with("tmp")));
    // Nobody listens.
    let images = store(&dir.path().join("4"), &["127.0.0.1:1".to_string()]);
    let result = images.pull("127.0.0.1:1/lib/app:1", &RegistryAuth::Anonymous, None).await;
    assert!(
        matches!(&result, Err(Error::Registry { registry, unauthorized: false, .. }) if registry == "127.0.0.1:1"),
        "{result:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_built_in_image_serves() {
    let cell = Cell::new().await;
    let first = cell.images.self_image(&support::shim()).await.unwrap();
    assert_eq!(cell.images.self_image(&support::shim()).await.unwrap().id, first.id, "made once");
    assert!(first.pinned && first.tags == [SELF_IMAGE]);
    let pulled = cell.images.pull(SELF_IMAGE, &RegistryAuth::Anonymous, None).await.unwrap();
    assert_eq!(pulled.id, first.id, "no registry is asked for it");
    assert!(cell.images.garbage_candidates().await.unwrap().iter().all(|i| i.id != first.id));
    cell.sandbox("s1").await;
    let with = |name: &str, args: &[&str]| ContainerConfig {
        name: name.into(),
        image: SELF_IMAGE.into(),
        args: args.iter().map(|a| a.to_string()).collect(),
        log_path: Some(cell.dir.path().join(format!("logs/{name}.log"))),
        ..ContainerConfig::default()
    };
    let (exit, log) = cell.run("s1", with("echo", &["echo", "hello", "there"])).await;
    assert_eq!((exit.code, log.as_str()), (0, "hello there\n"));
    let (exit, _) = cell.run("s1", with("exit", &["exit", "42"])).await;
    assert_eq!(exit.code, 42);
    let mut config = with("id", &["id"]);
    config.security = Security {
        uid: Some(65534),
        no_new_privileges: true,
        capabilities_drop: vec!["ALL".into()],
        ..Security::default()
    };
    let (_, log) = cell.run("s1", config).await;
    assert!(log.contains("uid=65534\n") && log.contains("capabilities=\n") && log.contains("no_new_privs=1"), "{log}");

    let mut config = with("serve", &[]);
    config.env = vec![("MESSAGE".into(), "a message".into())];
    config.security.seccomp = Seccomp::RuntimeDefault;
    config.security.read_only_root = true;
    let id = cell.start("s1", config).await;
    wait_log(&cell.dir.path().join("logs/serve.log"), |t| t.contains("serving on port 8080")).await;
    let get = |path: &str| {
        let url = format!("http://127.0.0.1:8080{path}");
        cell.runtime.exec_sync(&id, vec!["/gantry".into(), "self".into(), "get".into(), url], None)
    };
    let out = get("/").await.unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(text.starts_with("host-s1 127.0.0.1\na message\n"), "{text} {}", String::from_utf8_lossy(&out.stderr));
    assert_eq!(get("/readyz").await.unwrap().stdout, b"ok\n");
    assert_eq!(get("/none").await.unwrap().exit_code, 22);
    let start = std::time::Instant::now();
    cell.runtime.stop_container(&id, Duration::from_secs(20)).await.unwrap();
    assert!(start.elapsed() < Duration::from_secs(5));
    assert_eq!(cell.runtime.container_status(&id).await.unwrap().exit.unwrap().code, 0, "ends gracefully");
    assert!(log_text(&cell.dir.path().join("logs/serve.log")).contains("ending"));

    let mut config = with("memory", &["burn", "memory", "300"]);
    config.resources.memory_limit = Some(50 << 20);
    let (exit, _) = cell.run("s1", config).await;
    assert_eq!(exit.reason, "OOMKilled");
    // In use, it cannot be removed.
    let holding = cell.start("s1", with("holds", &["sleep"])).await;
    assert!(matches!(cell.images.remove(&first.id).await, Err(Error::State { .. })));
    cell.runtime.stop_container(&holding, Duration::from_secs(10)).await.unwrap();
    cell.close().await;
}
