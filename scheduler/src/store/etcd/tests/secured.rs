//! An etcd with TLS in both directions and with users: who has certificate, name and password is served, and every other is told
//! what is wrong.

use std::path::Path;

use etcd_client::{Client, ConnectOptions, Permission};
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};

use super::*;

/// An authority, and what it signs.
struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, "etcd authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let pem = params.self_signed(&key).unwrap().pem();
        let issuer = Issuer::from_ca_cert_pem(&pem, key).unwrap();
        Self { pem, issuer }
    }

    /// Certificate and key, for either side.
    fn sign(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }
}

fn file(dir: &Path, name: &str, text: &str) -> String {
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

struct Secured {
    servers: EtcdCluster,
    authority: Authority,
    _dir: tempfile::TempDir,
}

impl Secured {
    async fn start() -> Self {
        drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::new();
        let (certificate, key) = authority.sign("member");
        let files = [
            file(dir.path(), "ca.pem", &authority.pem),
            file(dir.path(), "server.pem", &certificate),
            file(dir.path(), "server.key", &key),
        ];
        let flags = [
            "--trusted-ca-file",
            &files[0],
            "--cert-file",
            &files[1],
            "--key-file",
            &files[2],
            "--client-cert-auth",
        ];
        let secured = Self {
            servers: EtcdCluster::start(dir.path(), 1, &flags),
            authority,
            _dir: dir,
        };
        secured.make_users().await;
        secured
    }

    fn tls(&self) -> EtcdTls {
        EtcdTls {
            ca_pem: self.authority.pem.clone(),
            client: Some(self.authority.sign("scheduler")),
        }
    }

    fn options(&self, name: &str, password: &str) -> EtcdOptions {
        EtcdOptions {
            user: Some(EtcdUser {
                name: name.into(),
                password: password.into(),
            }),
            tls: Some(self.tls()),
            ..options(&self.servers)
        }
    }

    /// What an operator does once: `berth` may use the keys below the prefix, `other` nothing of them.
    async fn make_users(&self) {
        let tls = self.tls();
        let (certificate, key) = tls.client.unwrap();
        let to_etcd = etcd_client::TlsOptions::new()
            .ca_certificate(etcd_client::Certificate::from_pem(&tls.ca_pem))
            .identity(etcd_client::Identity::from_pem(certificate, key));
        let url = format!("https://{}", self.servers.endpoints()[0]);
        let options = ConnectOptions::new().with_tls(to_etcd);
        let client = Client::connect([url], Some(options)).await.unwrap();
        let mut auth = client.auth_client();
        for (user, prefix) in [
            ("root", None),
            ("berth", Some("/berth")),
            ("other", Some("/other")),
        ] {
            auth.user_add(user, format!("{user}-secret"), None).await.unwrap();
            auth.role_add(user).await.unwrap();
            if let Some(prefix) = prefix {
                let permission = Permission::read_write(format!("{prefix}/")).with_prefix();
                auth.role_grant_permission(user, permission).await.unwrap();
            }
            auth.user_grant_role(user, user).await.unwrap();
        }
        auth.auth_enable().await.unwrap();
    }
}

#[tokio::test]
async fn a_secured_etcd_serves_who_shows_certificate_and_password() {
    if skip_without_etcd("a_secured_etcd_serves_who_shows_certificate_and_password") {
        return;
    }
    let secured = Secured::start().await;
    let store = Etcd::open(&secured.options("berth", "berth-secret"))
        .await
        .unwrap();
    let id = cluster("acme/prod");
    // All that a scheduler does: own, write, read, give up former values, leave.
    let me = Member {
        nonce: "n".into(),
        rest_url: "http://127.0.0.1:1".into(),
        link_url: "https://127.0.0.1:2".into(),
    };
    let lease = store.join(&me, Duration::from_secs(60)).await.unwrap();
    assert_eq!(
        store.claim(&id, Claim::New, &me, lease).await.unwrap(),
        Claimed::Won
    );
    store.append(&id, 1, vec![b"a".to_vec()]).await.unwrap();
    assert!(store.keep(lease, Duration::from_secs(60)).await.unwrap());
    assert_eq!(store.load(&id).await.unwrap().records.len(), 1);
    store.survey().await.unwrap();
    let seen = store.compact((0, 0)).await.unwrap();
    store.compact(seen).await.unwrap();
    store.check_keys("marks").await.unwrap();
    store.leave(lease).await.unwrap();

    refuses_others(&secured).await;
    // What was written stands.
    let again = Etcd::open(&secured.options("berth", "berth-secret"))
        .await
        .unwrap();
    assert_eq!(again.load(&id).await.unwrap().records.len(), 1);
}

async fn refuses_others(secured: &Secured) {
    for (what, options, word) in [
        (
            "a wrong password",
            secured.options("berth", "wrong"),
            "authentication failed",
        ),
        (
            "an unknown user",
            secured.options("nobody", "berth-secret"),
            "authentication failed",
        ),
        (
            "a user without rights",
            secured.options("other", "other-secret"),
            "permission denied",
        ),
        (
            "no user",
            EtcdOptions {
                user: None,
                ..secured.options("berth", "")
            },
            "permission denied",
        ),
    ] {
        let error = Etcd::open(&options).await.expect_err(what);
        let text = format!("{:#}", anyhow::Error::from(error));
        assert!(text.contains(word), "{what}: {text}");
        assert!(!text.contains("secret"), "no password in a message: {text}");
    }
    // Another authority's certificate, and none: the handshake fails, and the message names the store.
    let strange = EtcdTls {
        client: Some(Authority::new().sign("stranger")),
        ..secured.tls()
    };
    let bare = EtcdTls {
        client: None,
        ..secured.tls()
    };
    for tls in [strange, bare] {
        let options = EtcdOptions {
            tls: Some(tls),
            ..secured.options("berth", "berth-secret")
        };
        let error = Etcd::open(&options).await.unwrap_err();
        assert!(matches!(error, StoreError::Unreachable { .. }), "{error:?}");
    }
}
