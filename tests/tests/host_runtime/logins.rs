//! Registries that want to know who asks: passwords over TLS of a private authority, tokens that end during a pull, helpers;
//! and mirrors that fail. Debian's docker-registry does what it can do; what gives tokens stands before it and is ours.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use berth_node::host::image::{Fault, ImageError, Images, ImagesConfig, Login, PulledImage, RegistryConfig};
use berth_tests::oci_layout::{Compression, Entry, Image};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

use super::containerd::Containerd;
use super::registry::{Guard, Proxy, Registry, Wrong, free_address, image, noise, plain, read_head};

const PASSWORD: &str = "right horse";
/// bcrypt of it, as docker-registry reads it.
const HTPASSWD: &str = "robot:$2y$05$abcdefghijklmnopqrstuuB05BVy0V7KomGh8K56xgiHLq3Wkqh46\n";
/// `robot:right horse`.
const BASIC: &str = "Basic cm9ib3Q6cmlnaHQgaG9yc2U=";
const IDENTITY_TOKEN: &str = "identity-token-of-the-cloud";

fn images(containerd: &Containerd, registries: BTreeMap<String, RegistryConfig>) -> Images {
    let config = ImagesConfig {
        registries,
        attempts: 3,
        backoff: Duration::from_millis(20),
        stall_timeout: Duration::from_secs(5),
        ..ImagesConfig::default()
    };
    Images::new(&containerd.runtime(), config).unwrap()
}

async fn pull(images: &Images, reference: &str) -> Result<PulledImage, ImageError> {
    images.ensure(reference, |_| ()).await
}

/// Pushes an image and gives its name without the registry.
fn pushed(containerd: &Containerd, registry: &Registry, seed: u8) -> String {
    push(containerd, registry, seed, &image(seed))
}

fn push(containerd: &Containerd, registry: &Registry, seed: u8, image: &Image) -> String {
    let layout = containerd.directory.path().join(format!("layout{seed}"));
    image.write_layout(&layout, "v1").unwrap();
    let name = format!("team/app{seed}:v1");
    registry.push(&layout, "v1", &name);
    name
}

fn file(directory: &Path, name: &str, text: &str) -> PathBuf {
    let path = directory.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

/// A credential helper that answers so.
fn helper(directory: &Path, name: &str, username: &str, secret: &str) -> Login {
    let script = format!(
        "#!/bin/sh\nread server\necho \"$1 $server\" >> {}\n\
         printf '{{\"ServerURL\":\"%s\",\"Username\":\"{username}\",\"Secret\":\"{secret}\"}}' \"$server\"\n",
        directory.join(format!("{name}.asked")).display()
    );
    let path = file(directory, name, &script);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    Login::Helper(path.display().to_string())
}

/// An authority's certificate, and certificate and key of a server on loopback that it signed.
fn certificates() -> (String, String, String) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params
        .distinguished_name
        .push(DnType::CommonName, "test authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let ca = params.self_signed(&key).unwrap().pem();
    let issuer = Issuer::from_ca_cert_pem(&ca, key).unwrap();
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let certificate = params.signed_by(&key, &issuer).unwrap();
    (ca, certificate.pem(), key.serialize_pem())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_and_a_private_authority_are_used_and_what_is_missing_is_named() {
    let Some(containerd) = Containerd::start() else {
        return;
    };
    let directory = containerd.directory.path();
    let Some(open) = Registry::start(directory) else {
        return;
    };
    let name = pushed(&containerd, &open, 20);
    let (ca, certificate, key) = certificates();
    let guard = Guard {
        htpasswd: file(directory, "htpasswd", HTPASSWD),
        certificate: file(directory, "server.pem", &certificate),
        key: file(directory, "server.key", &key),
    };
    let guarded = Registry::guarded(directory, &guard);
    let host = guarded.address.to_string();
    let reference = format!("{host}/{name}");
    let with = |config: RegistryConfig| images(&containerd, BTreeMap::from([(host.clone(), config)]));

    let error = pull(&with(RegistryConfig::default()), &reference)
        .await
        .unwrap_err();
    assert_eq!(error.fault(), Fault::Infrastructure, "{error}");
    assert!(error.to_string().contains("certificate"), "{error}");

    let ca_file = Some(file(directory, "ca.pem", &ca));
    let trusted = RegistryConfig {
        ca_file,
        ..RegistryConfig::default()
    };
    let error = pull(&with(trusted.clone()), &reference).await.unwrap_err();
    assert!(matches!(error, ImageError::Denied { .. }), "{error}");
    assert!(
        error.to_string().contains(&format!("[registries.\"{host}\"]")),
        "{error}"
    );

    // A wrong password is refused and not shown; mended in place, it is used without a restart.
    let password_file = file(directory, "password", "wrong horse\n");
    let login = RegistryConfig {
        login: Some(Login::Password {
            username: "robot".into(),
            password_file: password_file.clone(),
        }),
        ..trusted.clone()
    };
    let images = with(login);
    let error = pull(&images, &reference).await.unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, ImageError::Denied { .. }), "{text}");
    assert!(text.contains("\"robot\"") && !text.contains("horse"), "{text}");
    std::fs::remove_file(&password_file).unwrap();
    let error = pull(&images, &reference).await.unwrap_err();
    assert!(matches!(error, ImageError::Login { .. }), "{error}");
    assert_eq!(error.fault(), Fault::Infrastructure);
    std::fs::write(&password_file, format!("{PASSWORD}\n")).unwrap();
    pull(&images, &reference).await.unwrap();

    // The same by a helper, for another image: the first one is here and needs no registry.
    let name = pushed(&containerd, &open, 21);
    let helped = RegistryConfig {
        login: Some(helper(directory, "helper", "robot", PASSWORD)),
        ..trusted
    };
    pull(&with(helped), &format!("{host}/{name}")).await.unwrap();
    let asked = std::fs::read_to_string(directory.join("helper.asked")).unwrap();
    assert_eq!(asked.lines().next(), Some(format!("get {host}").as_str()));
}

/// A token server and a gate that asks for its tokens, before a registry; one request for each connection.
struct Gate {
    address: SocketAddr,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Debug, Default)]
struct Seen {
    /// What came with each request for a token: `basic`, `refresh` or `none`.
    logins: Vec<&'static str>,
    /// Requests that each token has let through.
    uses: BTreeMap<String, u32>,
    /// A password came to the registry and not to the token server.
    has_leaked: bool,
}

impl Gate {
    /// Each token is good for so many requests.
    fn start(registry: SocketAddr, uses_max: u32) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let gate = Self {
            address: listener.local_addr().unwrap(),
            seen: Arc::default(),
        };
        let (address, seen) = (gate.address, Arc::clone(&gate.seen));
        // Ends with the test process.
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let seen = Arc::clone(&seen);
                std::thread::spawn(move || serve(client, address, registry, uses_max, &seen));
            }
        });
        gate
    }
}

fn answer(client: &mut TcpStream, head: &str, body: &str) {
    let len = body.len();
    let text = format!("HTTP/1.1 {head}\r\nContent-Length: {len}\r\nConnection: close\r\n\r\n{body}");
    client.write_all(text.as_bytes()).ok();
}

fn serve(mut client: TcpStream, own: SocketAddr, registry: SocketAddr, uses_max: u32, seen: &Mutex<Seen>) {
    let Some(head) = read_head(&mut client) else {
        return;
    };
    let header = |name: &str| {
        let line = head.lines().find(|line| {
            let found = line.split(':').next().unwrap_or_default();
            found.eq_ignore_ascii_case(name)
        });
        line.and_then(|line| line.split_once(": "))
            .map(|(_, value)| value.to_owned())
    };
    let authorization = header("authorization");
    let path = head.split(' ').nth(1).unwrap_or_default();
    let mut seen = seen.lock().unwrap();
    if path.starts_with("/token") {
        let len = header("content-length")
            .and_then(|len| len.parse().ok())
            .unwrap_or(0);
        let mut body = vec![0; len];
        client.read_exact(&mut body).unwrap();
        let body = String::from_utf8(body).unwrap();
        let is_refresh = head.starts_with("POST")
            && body.contains("grant_type=refresh_token")
            && body.contains(&format!("refresh_token={IDENTITY_TOKEN}"));
        let kind = match authorization.as_deref() {
            Some(BASIC) if path.contains("scope=repository%3Ateam") => "basic",
            None if is_refresh && body.contains("scope=repository%3Ateam") => "refresh",
            _ => "none",
        };
        seen.logins.push(kind);
        let token = format!("t{}", seen.logins.len());
        seen.uses.insert(format!("Bearer {token}"), 0);
        let token = format!("{{\"access_token\":\"{token}\",\"expires_in\":300}}");
        return if kind == "none" {
            answer(&mut client, "401 Unauthorized", "")
        } else {
            answer(&mut client, "200 OK\r\nContent-Type: application/json", &token)
        };
    }
    seen.has_leaked |= authorization.as_deref() == Some(BASIC);
    let uses = authorization.and_then(|token| seen.uses.get_mut(&token));
    let Some(uses) = uses.filter(|uses| **uses < uses_max) else {
        let challenge = format!(
            "401 Unauthorized\r\nWWW-Authenticate: Bearer realm=\"http://{own}/token\",service=\"gate\""
        );
        return answer(&mut client, &challenge, "");
    };
    *uses += 1;
    drop(seen);
    let mut upstream = TcpStream::connect(registry).unwrap();
    let request = head.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n");
    upstream.write_all(request.as_bytes()).unwrap();
    std::io::copy(&mut upstream, &mut client).ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn fault_27_token_expired_during_a_pull() {
    let Some(containerd) = Containerd::start() else {
        return;
    };
    let directory = containerd.directory.path();
    let Some(registry) = Registry::start(directory) else {
        return;
    };
    let layers = |seed: u8| Image {
        layers: (0..6)
            .map(|layer| {
                let name = format!("layer{layer}");
                vec![Entry::file(&name, noise(seed + layer, 50_000), 0o644)]
            })
            .collect(),
        cmd: vec!["/layer0".into()],
        compression: Compression::Gzip,
        ..Image::default()
    };
    let identity = helper(directory, "identity", "<token>", IDENTITY_TOKEN);
    let password = Login::Password {
        username: "robot".into(),
        password_file: file(directory, "password", PASSWORD),
    };
    for (seed, login, kind) in [(30, password, "basic"), (40, identity, "refresh")] {
        let name = push(&containerd, &registry, seed, &layers(seed));
        let gate = Gate::start(registry.address, 2);
        let config = RegistryConfig {
            plain_http: true,
            login: Some(login),
            ..RegistryConfig::default()
        };
        let images = images(&containerd, BTreeMap::from([(gate.address.to_string(), config)]));
        pull(&images, &format!("{}/{name}", gate.address)).await.unwrap();
        let seen = gate.seen.lock().unwrap();
        // A manifest, a config and six layers, two for each token.
        assert!(seen.logins.len() >= 4, "{seen:?}");
        assert!(seen.logins.iter().all(|found| *found == kind), "{seen:?}");
        assert!(!seen.has_leaked, "the password goes to the token server alone");
    }

    // Without a login the token server is asked all the same, and its refusal says what to do.
    let gate = Gate::start(registry.address, 2);
    let images = images(&containerd, plain(&[gate.address]));
    let error = pull(&images, &format!("{}/team/app30:v1", gate.address))
        .await
        .unwrap_err();
    assert!(matches!(error, ImageError::Denied { .. }), "{error}");
    assert!(error.to_string().contains("no login is configured"), "{error}");
}

/// A server that gives each request the same answer, and keeps what was asked.
struct Page {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Page {
    fn start(head: &str, body: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let page = Self {
            address: listener.local_addr().unwrap(),
            asked: Arc::default(),
        };
        let (head, body, asked) = (head.to_owned(), body.to_owned(), Arc::clone(&page.asked));
        // Ends with the test process.
        std::thread::spawn(move || {
            for mut client in listener.incoming().map_while(Result::ok) {
                if let Some(request) = read_head(&mut client) {
                    asked.lock().unwrap().push(request);
                    answer(&mut client, &head, &body);
                }
            }
        });
        page
    }
}

/// Pulls from a registry that is there for nothing else, by password and by identity token; both fail.
async fn pull_with_each_login(containerd: &Containerd, registry: SocketAddr) -> Vec<ImageError> {
    let directory = containerd.directory.path();
    let password = Login::Password {
        username: "robot".into(),
        password_file: file(directory, "password", PASSWORD),
    };
    let identity = helper(directory, "identity", "<token>", IDENTITY_TOKEN);
    let mut errors = Vec::new();
    for login in [password, identity] {
        let config = RegistryConfig {
            plain_http: true,
            login: Some(login),
            ..RegistryConfig::default()
        };
        let images = images(containerd, BTreeMap::from([(registry.to_string(), config)]));
        errors.push(
            pull(&images, &format!("{registry}/team/app:v1"))
                .await
                .unwrap_err(),
        );
    }
    errors
}

/// A server that asks for a token of another.
fn asking_for_tokens_of(server: &Page) -> Page {
    let realm = format!("http://{}/token", server.address);
    Page::start(
        &format!("401 Unauthorized\r\nWWW-Authenticate: Bearer realm=\"{realm}\""),
        "",
    )
}

/// The way to a password that CVE-2020-15157 names: a registry that sends us elsewhere, and an elsewhere that asks for a login.
#[tokio::test(flavor = "multi_thread")]
async fn a_login_is_given_to_nobody_that_a_registry_or_a_token_server_sends_us_to() {
    let Some(containerd) = Containerd::start() else {
        return;
    };
    let thief = Page::start("200 OK\r\nContent-Type: application/json", "{\"token\":\"t\"}");
    let was_asked = |page: &Page| !page.asked.lock().unwrap().is_empty();
    let elsewhere = asking_for_tokens_of(&thief);
    let sent = format!(
        "307 Temporary Redirect\r\nLocation: http://{}/blob",
        elsewhere.address
    );
    let registry = Page::start(&sent, "");
    for error in pull_with_each_login(&containerd, registry.address).await {
        assert_eq!(error.fault(), Fault::Infrastructure, "{error}");
    }
    assert!(was_asked(&elsewhere));
    assert!(!was_asked(&thief), "{:?}", thief.asked.lock().unwrap());

    let sent = format!(
        "308 Permanent Redirect\r\nLocation: http://{}/token",
        thief.address
    );
    let moved = Page::start(&sent, "");
    pull_with_each_login(&containerd, asking_for_tokens_of(&moved).address).await;
    assert!(was_asked(&moved));
    assert!(!was_asked(&thief), "{:?}", thief.asked.lock().unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn fault_27_mirrors_that_fail() {
    let Some(containerd) = Containerd::start() else {
        return;
    };
    let directory = containerd.directory.path();
    let Some(mut registry) = Registry::start(directory) else {
        return;
    };
    let proxy = Proxy::start(registry.address);
    let nobody = free_address();
    let with = |mirrors: &[SocketAddr], origin: SocketAddr| {
        let mut registries = plain(&[registry.address, proxy.address, nobody]);
        let mirrors = mirrors.iter().map(ToString::to_string).collect();
        registries.insert(
            origin.to_string(),
            RegistryConfig {
                plain_http: true,
                mirrors,
                ..RegistryConfig::default()
            },
        );
        images(&containerd, registries)
    };
    // Nobody answers, 503, one bit wrong: each for an image of its own, which comes from the registry.
    for (seed, wrong) in [(50, Wrong::Nothing), (51, Wrong::Down), (52, Wrong::Flip(1000))] {
        let name = pushed(&containerd, &registry, seed);
        proxy.does(wrong);
        let images = with(&[nobody, proxy.address], registry.address);
        pull(&images, &format!("{}/{name}", registry.address))
            .await
            .unwrap_or_else(|error| panic!("{seed}: {error}"));
        let asked = proxy.blob_requests.load(std::sync::atomic::Ordering::SeqCst);
        assert!(asked > 0, "{seed}: the mirror is asked");
    }
    // A mirror that gives a page where a manifest should be.
    let page = Page::start("200 OK\r\nContent-Type: text/html", "<html>log in</html>");
    let name = pushed(&containerd, &registry, 54);
    let images = with(&[page.address], registry.address);
    pull(&images, &format!("{}/{name}", registry.address))
        .await
        .unwrap();

    // What the registry does not have either is the user's fault, whatever mirrors say.
    let error = pull(
        &with(&[nobody], registry.address),
        &format!("{}/team/none:v1", registry.address),
    )
    .await
    .unwrap_err();
    assert!(matches!(error, ImageError::Unknown { .. }), "{error}");

    // A mirror serves for a registry that is away: here the other way round, for an origin where nobody listens.
    let name = pushed(&containerd, &registry, 53);
    let away = free_address();
    let images = with(&[registry.address], away);
    pull(&images, &format!("{away}/{name}")).await.unwrap();
    // Also when the mirror is busy at first: it is all there is.
    let name = pushed(&containerd, &registry, 55);
    proxy.does(Wrong::Busy(1));
    let images = with(&[proxy.address], away);
    pull(&images, &format!("{away}/{name}")).await.unwrap();
    registry.child.kill().unwrap();
}
