//! A webhook of the test's own: HTTPS at 127.0.0.1 inside the cluster's network namespace, answered by a function.

use super::{Cluster, api, enter};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// Answers a request by its path and body.
pub type Answer = dyn Fn(&str, &Value) -> Value + Send + Sync;

/// A webhook that is there until the test ends.
pub struct Webhook {
    port: u16,
    /// The authority of its certificate, PEM in base64.
    pub ca: String,
    seen: Arc<Mutex<Vec<(String, Value)>>>,
}

impl Webhook {
    /// Starts one whose certificate is for 127.0.0.1 and these names.
    pub fn start(cluster: &Cluster, names: &[&str], answer: Arc<Answer>) -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut all: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
        all.push("127.0.0.1".into());
        let certificate = rcgen::CertificateParams::new(all).unwrap().self_signed(&key).unwrap().pem();
        let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
        let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap();
        let tls = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        let tls = Arc::new(tls);
        let network = cluster.network();
        let listener = std::thread::spawn(move || {
            enter(&network);
            TcpListener::bind("0.0.0.0:0").unwrap()
        });
        let listener = listener.join().unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen: Arc<Mutex<Vec<(String, Value)>>> = Arc::default();
        let kept = seen.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (tls, answer, kept) = (tls.clone(), answer.clone(), kept.clone());
                std::thread::spawn(move || {
                    // A client that goes away in the middle is its own affair.
                    stream.and_then(|stream| serve(stream, tls, answer.as_ref(), &kept)).ok();
                });
            }
        });
        Self { port, ca: api::base64(certificate.as_bytes()), seen }
    }

    /// The `clientConfig` of a path.
    pub fn at(&self, path: &str) -> Value {
        json!({"url": format!("https://127.0.0.1:{}{path}", self.port), "caBundle": self.ca})
    }

    /// The port it listens at, on every address.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The bodies that came to a path.
    pub fn seen(&self, path: &str) -> Vec<Value> {
        self.seen.lock().unwrap().iter().filter(|(p, _)| p == path).map(|(_, b)| b.clone()).collect()
    }
}

fn serve(
    stream: TcpStream,
    tls: Arc<ServerConfig>,
    answer: &Answer,
    seen: &Mutex<Vec<(String, Value)>>,
) -> std::io::Result<()> {
    let connection = ServerConnection::new(tls).map_err(std::io::Error::other)?;
    let mut stream = BufReader::new(StreamOwned::new(connection, stream));
    let mut first = String::new();
    stream.read_line(&mut first)?;
    let target = first.split(' ').nth(1).unwrap_or_default();
    let path = target.split('?').next().unwrap_or_default().to_owned();
    let mut length = 0;
    loop {
        let mut line = String::new();
        stream.read_line(&mut line)?;
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().map_err(std::io::Error::other)?;
        }
        if line.trim().is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    let body: Value = serde_json::from_slice(&body)?;
    seen.lock().unwrap().push((path.clone(), body.clone()));
    let text = answer(&path, &body).to_string();
    let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n";
    let out = stream.get_mut();
    out.write_all(format!("{head}Content-Length: {}\r\n\r\n{text}", text.len()).as_bytes())?;
    out.flush()
}
