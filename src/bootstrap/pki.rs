//! The cluster's keys and certificates, made once under `pki/` and reused; leaf certificates are renewed when they
//! near their end or their names change.

use super::data_dir::write_private;
use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use sha2::{Digest, Sha256};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use time::{Duration, OffsetDateTime};

/// The authority outlives any machine it is likely to serve.
const CA_VALIDITY: Duration = Duration::days(3650);
/// Upstream's lifetime for component certificates.
const LEAF_VALIDITY: Duration = Duration::days(365);
/// A leaf with less than this left is made anew at start.
const RENEW_BEFORE: Duration = Duration::days(60);
/// Clocks of joined machines may lag.
const BACKDATE: Duration = Duration::minutes(5);

/// A certificate chain and its key, PEM.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Certificate chain, PEM.
    pub cert_pem: String,
    /// Private key, PKCS#8 PEM.
    pub key_pem: String,
}

/// The cluster's authority and what it signs.
pub struct Pki {
    dir: PathBuf,
    ca: Identity,
}

impl Pki {
    /// Opens `DIR/pki`, making the authority where there is none.
    ///
    /// # Errors
    /// Names the file that cannot be read, parsed or written.
    pub fn open(data_dir: &Path) -> Result<Self> {
        let dir = data_dir.join("pki");
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let ca = authority(&dir, "ca", "kubernetes")?;
        Ok(Self { dir, ca })
    }

    /// Authority of the certificates with which this server speaks for users to aggregated API servers, and such a
    /// certificate. Nothing else is signed by it: whoever has one is believed about everybody.
    ///
    /// # Errors
    /// Names the file that cannot be read, parsed or written.
    pub fn front_proxy(&self) -> Result<(Identity, Identity)> {
        let ca = authority(&self.dir, "front-proxy-ca", "front-proxy-ca")?;
        let pki = Self { dir: self.dir.clone(), ca: ca.clone() };
        let client = pki.client("front-proxy-client", "front-proxy-client", None)?;
        Ok((ca, client))
    }

    /// The authority.
    #[must_use]
    pub fn ca(&self) -> &Identity {
        &self.ca
    }

    /// What the authority's key is known by; see [`spki_hash`].
    ///
    /// # Errors
    /// Names the file where it holds no certificate.
    pub fn ca_hash(&self) -> Result<String> {
        let named = || format!("{} is not a certificate", self.dir.join("ca.crt").display());
        let (_, pem) = x509_parser::pem::parse_x509_pem(self.ca.cert_pem.as_bytes()).with_context(named)?;
        Ok(spki_hash(&pem.parse_x509().with_context(named)?))
    }

    /// Path of a file under `pki/`.
    #[must_use]
    pub fn path(&self, file: &str) -> PathBuf {
        self.dir.join(file)
    }

    /// A client certificate for `user` in `group`, kept as `file`.
    ///
    /// # Errors
    /// Names the file that cannot be read, parsed or written.
    pub fn client(&self, file: &str, user: &str, group: Option<&str>) -> Result<Identity> {
        if let Some(found) = read(&self.dir, file)?
            && is_fresh(&found.cert_pem, &[])
        {
            return Ok(found);
        }
        let mut params = CertificateParams::default();
        params.distinguished_name = name(user, group);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(file, params)
    }

    /// A serving certificate for DNS `names` and `addresses`, kept as `file`; made anew where one is missing in it.
    ///
    /// # Errors
    /// Names the file that cannot be read, parsed or written.
    pub fn serving(
        &self,
        file: &str,
        user: &str,
        group: Option<&str>,
        names: &[String],
        addresses: &[IpAddr],
    ) -> Result<Identity> {
        let wanted: Vec<String> = names.iter().cloned().chain(addresses.iter().map(ToString::to_string)).collect();
        if let Some(found) = read(&self.dir, file)?
            && is_fresh(&found.cert_pem, &wanted)
        {
            return Ok(found);
        }
        let mut params =
            CertificateParams::new(names.to_vec()).context("a name of the serving certificate is not a DNS name")?;
        params.subject_alt_names.extend(addresses.iter().map(|a| SanType::IpAddress(*a)));
        params.distinguished_name = name(user, group);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.issue(file, params)
    }

    fn issue(&self, file: &str, mut params: CertificateParams) -> Result<Identity> {
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        validity(&mut params, LEAF_VALIDITY);
        let ca_key = KeyPair::from_pem(&self.ca.key_pem)
            .with_context(|| format!("{} is not a private key", self.dir.join("ca.key").display()))?;
        let issuer = Issuer::from_ca_cert_pem(&self.ca.cert_pem, &ca_key)
            .with_context(|| format!("{} is not a certificate", self.dir.join("ca.crt").display()))?;
        let key = KeyPair::generate().with_context(|| format!("cannot generate the key of {file}"))?;
        let cert = params.signed_by(&key, &issuer).with_context(|| format!("cannot sign {file}"))?;
        let made = Identity { cert_pem: cert.pem(), key_pem: key.serialize_pem() };
        write(&self.dir, file, &made)?;
        Ok(made)
    }

    /// A private key without a certificate (ECDSA P-256, PKCS#8 PEM), for signing ServiceAccount tokens.
    ///
    /// # Errors
    /// Names the file that cannot be read or written.
    pub fn signing_key(&self, file: &str) -> Result<String> {
        let path = self.dir.join(format!("{file}.key"));
        if path.exists() {
            return std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()));
        }
        let key = KeyPair::generate().with_context(|| format!("cannot generate {file}"))?.serialize_pem();
        write_private(&path, key.as_bytes())?;
        Ok(key)
    }

    /// A random secret kept as `file`, for joining nodes.
    ///
    /// # Errors
    /// Names the file that cannot be read or written.
    pub fn token(&self, file: &str) -> Result<String> {
        let path = self.dir.join(file);
        if path.exists() {
            let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            return Ok(text.trim().to_owned());
        }
        let bytes = super::data_dir::seed()?;
        let token: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        write_private(&path, token.as_bytes())?;
        Ok(token)
    }
}

/// The authority kept as `file`, made where there is none.
fn authority(dir: &Path, file: &str, common_name: &str) -> Result<Identity> {
    if let Some(found) = read(dir, file)? {
        return Ok(found);
    }
    let key = KeyPair::generate().with_context(|| format!("cannot generate the key of {file}"))?;
    let mut params = CertificateParams::default();
    params.distinguished_name = name(common_name, None);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    validity(&mut params, CA_VALIDITY);
    let cert = params.self_signed(&key).with_context(|| format!("cannot sign {file}"))?;
    let made = Identity { cert_pem: cert.pem(), key_pem: key.serialize_pem() };
    write(dir, file, &made)?;
    Ok(made)
}

/// What a CA's key is known by: `sha256:` and the hexadecimal digest of its `SubjectPublicKeyInfo` (kubeadm's spelling).
#[must_use]
pub fn spki_hash(certificate: &x509_parser::certificate::X509Certificate<'_>) -> String {
    let digest = Sha256::digest(certificate.public_key().raw);
    digest.iter().fold("sha256:".to_owned(), |text, b| text + &format!("{b:02x}"))
}

fn name(user: &str, group: Option<&str>) -> DistinguishedName {
    let mut dn = DistinguishedName::new();
    if let Some(group) = group {
        dn.push(DnType::OrganizationName, group);
    }
    dn.push(DnType::CommonName, user);
    dn
}

fn validity(params: &mut CertificateParams, length: Duration) {
    let now = OffsetDateTime::now_utc();
    params.not_before = now - BACKDATE;
    params.not_after = now + length;
}

fn read(dir: &Path, file: &str) -> Result<Option<Identity>> {
    let (cert, key) = (dir.join(format!("{file}.crt")), dir.join(format!("{file}.key")));
    let text = |p: &Path| match std::fs::read_to_string(p) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).with_context(|| format!("cannot read {}", p.display())),
    };
    Ok(match (text(&cert)?, text(&key)?) {
        (Some(cert_pem), Some(key_pem)) => Some(Identity { cert_pem, key_pem }),
        _ => None,
    })
}

fn write(dir: &Path, file: &str, identity: &Identity) -> Result<()> {
    // The key first: a certificate without its key would be taken for a whole pair after a crash.
    write_private(&dir.join(format!("{file}.key")), identity.key_pem.as_bytes())?;
    write_private(&dir.join(format!("{file}.crt")), identity.cert_pem.as_bytes())
}

/// Whether a certificate is far from its end and names all of `wanted`.
fn is_fresh(cert_pem: &str, wanted: &[String]) -> bool {
    let Ok((_, pem)) = x509_parser::pem::parse_x509_pem(cert_pem.as_bytes()) else { return false };
    let Ok(cert) = pem.parse_x509() else { return false };
    let left = cert.validity().not_after.timestamp() - OffsetDateTime::now_utc().unix_timestamp();
    if left < RENEW_BEFORE.whole_seconds() {
        return false;
    }
    let mut held = Vec::new();
    if let Ok(Some(san)) = cert.subject_alternative_name() {
        for general in &san.value.general_names {
            match general {
                x509_parser::extensions::GeneralName::DNSName(n) => held.push((*n).to_owned()),
                x509_parser::extensions::GeneralName::IPAddress(b) => held.extend(match b.len() {
                    4 => <[u8; 4]>::try_from(*b).ok().map(|b| IpAddr::from(b).to_string()),
                    16 => <[u8; 16]>::try_from(*b).ok().map(|b| IpAddr::from(b).to_string()),
                    _ => None,
                }),
                _ => {}
            }
        }
    }
    wanted.iter().all(|w| held.contains(w))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_are_kept_and_renewed_when_names_change() {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::open(dir.path()).unwrap();
        let names = vec!["kubernetes.default.svc".to_owned()];
        let first = pki.serving("server", "kube-apiserver", None, &names, &["10.96.0.1".parse().unwrap()]).unwrap();
        let pki = Pki::open(dir.path()).unwrap();
        let again = pki.serving("server", "kube-apiserver", None, &names, &["10.96.0.1".parse().unwrap()]).unwrap();
        assert_eq!(first.cert_pem, again.cert_pem);
        let more = pki.serving("server", "kube-apiserver", None, &names, &["10.9.9.9".parse().unwrap()]).unwrap();
        assert_ne!(first.cert_pem, more.cert_pem);
        let admin = pki.client("admin", "kubernetes-admin", Some("system:masters")).unwrap();
        let (_, pem) = x509_parser::pem::parse_x509_pem(admin.cert_pem.as_bytes()).unwrap();
        assert_eq!(pem.parse_x509().unwrap().subject().to_string(), "O=system:masters, CN=kubernetes-admin");
        assert_eq!(pki.token("join").unwrap(), pki.token("join").unwrap());
    }
}
