//! A small HTTPS server of the test's own, inside a cluster's network namespace: answers by method and path.

use super::{Cluster, enter};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;

/// Answers a request by its path, with the query, and JSON body (null where there is none).
pub type Answer = dyn Fn(&str, &Value) -> Value + Send + Sync;

/// A server that is there until the test ends.
pub struct Https {
    port: u16,
    /// The authority of its certificate, PEM.
    pub ca_pem: String,
}

impl Https {
    /// Starts one whose certificate is for 127.0.0.1.
    pub fn start(cluster: &Cluster, answer: impl FnOnce(u16) -> Arc<Answer>) -> Self {
        Self::listen(cluster, "127.0.0.1:0", &[], answer)
    }

    /// Starts one at this address whose certificate is for 127.0.0.1 and these names.
    pub fn listen(
        cluster: &Cluster,
        address: &'static str,
        names: &[&str],
        answer: impl FnOnce(u16) -> Arc<Answer>,
    ) -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().chain(&["127.0.0.1"]).map(|n| (*n).to_owned()).collect();
        let params = rcgen::CertificateParams::new(names).unwrap();
        let ca_pem = params.self_signed(&key).unwrap().pem();
        let chain = vec![CertificateDer::from_pem_slice(ca_pem.as_bytes()).unwrap()];
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
            TcpListener::bind(address).unwrap()
        });
        let listener = listener.join().unwrap();
        let port = listener.local_addr().unwrap().port();
        let answer = answer(port);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (tls, answer) = (tls.clone(), answer.clone());
                std::thread::spawn(move || {
                    // A client that goes away in the middle is its own affair.
                    stream.and_then(|stream| serve(stream, tls, answer.as_ref())).ok();
                });
            }
        });
        Self { port, ca_pem }
    }

    /// The port it listens at.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The URL of a path.
    pub fn url(&self, path: &str) -> String {
        format!("https://127.0.0.1:{}{path}", self.port)
    }

    /// A kubeconfig that leads to a path, as a file in the cluster's data directory.
    pub fn kubeconfig(&self, cluster: &Cluster, name: &str, path: &str) -> String {
        let ca = super::api::base64(self.ca_pem.as_bytes());
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters:\n- name: c\n  cluster: {{server: '{}', \
             certificate-authority-data: {ca}}}\nusers:\n- name: u\n  user: {{}}\ncontexts:\n- name: c\n  context: \
             {{cluster: c, user: u}}\n",
            self.url(path)
        );
        let file = cluster.data_dir().join(name);
        std::fs::write(&file, text).unwrap();
        file.display().to_string()
    }
}

fn serve(stream: TcpStream, tls: Arc<ServerConfig>, answer: &Answer) -> std::io::Result<()> {
    let connection = ServerConnection::new(tls).map_err(std::io::Error::other)?;
    let mut stream = BufReader::new(StreamOwned::new(connection, stream));
    loop {
        let mut first = String::new();
        if stream.read_line(&mut first)? == 0 {
            return Ok(());
        }
        let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
        let mut length = 0;
        loop {
            let mut line = String::new();
            stream.read_line(&mut line)?;
            let Some((name, value)) = line.trim().split_once(':') else { break };
            if name.eq_ignore_ascii_case("content-length") {
                length = value.trim().parse().map_err(std::io::Error::other)?;
            }
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body)?;
        let text = answer(&path, &serde_json::from_slice(&body).unwrap_or_default()).to_string();
        let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n";
        let out = stream.get_mut();
        out.write_all(format!("{head}Content-Length: {}\r\n\r\n{text}", text.len()).as_bytes())?;
        out.flush()?;
    }
}
