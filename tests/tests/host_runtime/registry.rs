//! Images from a registry: Debian's docker-registry behind a proxy that can do wrong.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use berth_api::time::monotonic;
use berth_node::host::image::{Fault, ImageError, Images, ImagesConfig, RegistryConfig};
use berth_tests::oci_layout::{Compression, Entry, Image};

use super::containerd::Containerd;

/// A real registry.
pub(crate) struct Registry {
    pub(crate) child: Child,
    pub(crate) address: SocketAddr,
    storage: PathBuf,
}

/// Who may read from a registry, and how it is spoken to.
pub(crate) struct Guard {
    pub(crate) htpasswd: PathBuf,
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

impl Registry {
    pub(crate) fn start(directory: &Path) -> Option<Self> {
        for program in ["docker-registry", "skopeo"] {
            if Command::new(program)
                .arg("--version")
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()
                .is_err()
            {
                writeln!(std::io::stderr(), "SKIPPED: {program} is not installed").unwrap();
                return None;
            }
        }
        Some(Self::serve(directory, None))
    }

    /// Serves the same images under a name and a password, over TLS.
    pub(crate) fn guarded(directory: &Path, guard: &Guard) -> Self {
        Self::serve(directory, Some(guard))
    }

    fn serve(directory: &Path, guard: Option<&Guard>) -> Self {
        let address = free_address();
        let storage = directory.join("registry");
        let config = directory.join(format!("registry-{}.yml", address.port()));
        let (tls, auth) = guard.map_or_else(Default::default, |guard| {
            (
                format!(
                    ", tls: {{certificate: {}, key: {}}}",
                    guard.certificate.display(),
                    guard.key.display()
                ),
                format!(
                    "auth: {{htpasswd: {{realm: test, path: {}}}}}\n",
                    guard.htpasswd.display()
                ),
            )
        });
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n\
             http: {{addr: {address}{tls}}}\n{auth}",
            storage.display()
        );
        std::fs::write(&config, text).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let end = monotonic() + Duration::from_secs(20);
        while TcpStream::connect(address).is_err() {
            assert!(monotonic() < end, "the registry does not start");
            std::thread::sleep(Duration::from_millis(20));
        }
        Self {
            child,
            address,
            storage,
        }
    }

    pub(crate) fn push(&self, layout: &Path, tag: &str, name: &str) {
        let status = Command::new("skopeo")
            .args(["copy", "--quiet", "--insecure-policy", "--dest-tls-verify=false"])
            .arg(format!("oci:{}:{tag}", layout.display()))
            .arg(format!("docker://{}/{name}", self.address))
            .status()
            .unwrap();
        assert!(status.success());
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

pub(crate) fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// What the proxy does to a connection that asks for a blob.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Wrong {
    Nothing,
    /// 429 with Retry-After: 1, so many times.
    Busy(u32),
    /// 503, always.
    Down,
    /// Cuts after so many bytes, once.
    Cut(usize),
    /// Falls silent after so many bytes, once.
    Silence(usize),
    /// Turns one bit, always.
    Flip(usize),
}

/// Longer answers carry a layer.
const LAYER_LEN_MIN: usize = 1 << 20;

/// A proxy in front of the registry; one request per connection.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    wrong: Arc<Mutex<Wrong>>,
    pub(crate) blob_requests: Arc<AtomicU32>,
    ranges: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    pub(crate) fn start(registry: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy = Self {
            address: listener.local_addr().unwrap(),
            wrong: Arc::new(Mutex::new(Wrong::Nothing)),
            blob_requests: Arc::default(),
            ranges: Arc::default(),
        };
        let (wrong, requests, ranges) = (
            Arc::clone(&proxy.wrong),
            Arc::clone(&proxy.blob_requests),
            Arc::clone(&proxy.ranges),
        );
        // Ends with the test process.
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let (wrong, requests, ranges) =
                    (Arc::clone(&wrong), Arc::clone(&requests), Arc::clone(&ranges));
                std::thread::spawn(move || serve(client, registry, &wrong, &requests, &ranges));
            }
        });
        proxy
    }

    pub(crate) fn does(&self, wrong: Wrong) {
        *self.wrong.lock().unwrap() = wrong;
        self.blob_requests.store(0, Ordering::SeqCst);
        self.ranges.lock().unwrap().clear();
    }
}

/// The head of a request, its empty line included; none when the client goes away before.
pub(crate) fn read_head(client: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        client.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    Some(String::from_utf8(head).unwrap())
}

fn serve(
    mut client: TcpStream,
    registry: SocketAddr,
    wrong: &Mutex<Wrong>,
    requests: &AtomicU32,
    ranges: &Mutex<Vec<String>>,
) {
    let Some(text) = read_head(&mut client) else {
        return;
    };
    let is_blob = text.contains("/blobs/");
    let mut fault = Wrong::Nothing;
    if is_blob {
        requests.fetch_add(1, Ordering::SeqCst);
        let range = text
            .lines()
            .find(|line| line.to_ascii_lowercase().starts_with("range:"));
        ranges.lock().unwrap().push(range.unwrap_or("none").to_owned());
    }
    let mut upstream = TcpStream::connect(registry).unwrap();
    let request = text.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n");
    upstream.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    upstream.read_to_end(&mut answer).ok();
    let body = answer
        .windows(4)
        .position(|part| part == b"\r\n\r\n")
        .unwrap_or(0)
        + 4;
    // Faults strike layers; configs are shorter than the places of the faults.
    if is_blob && answer.len() > LAYER_LEN_MIN {
        let mut wrong = wrong.lock().unwrap();
        fault = *wrong;
        *wrong = match fault {
            Wrong::Busy(0..=1) | Wrong::Cut(_) | Wrong::Silence(_) => Wrong::Nothing,
            Wrong::Busy(times) => Wrong::Busy(times - 1),
            Wrong::Nothing | Wrong::Down | Wrong::Flip(_) => fault,
        };
    }
    let refusal = match fault {
        Wrong::Busy(_) => Some("429 Too Many Requests\r\nRetry-After: 1"),
        Wrong::Down => Some("503 Service Unavailable"),
        Wrong::Nothing | Wrong::Cut(_) | Wrong::Silence(_) | Wrong::Flip(_) => None,
    };
    if let Some(refusal) = refusal {
        let answer = format!("HTTP/1.1 {refusal}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        client.write_all(answer.as_bytes()).ok();
        return;
    }
    match fault {
        Wrong::Cut(after) => {
            client.write_all(&answer[..(body + after).min(answer.len())]).ok();
        }
        Wrong::Silence(after) => {
            client.write_all(&answer[..(body + after).min(answer.len())]).ok();
            client.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
            client.read_exact(&mut [0]).ok();
        }
        Wrong::Flip(at) => {
            if let Some(place) = answer.get_mut(body + at) {
                *place ^= 1;
            }
            client.write_all(&answer).ok();
        }
        Wrong::Nothing | Wrong::Busy(_) | Wrong::Down => {
            client.write_all(&answer).ok();
        }
    }
}

/// An image whose layer does not compress: several requests' worth of bytes.
pub(crate) fn image(seed: u8) -> Image {
    Image {
        layers: vec![vec![Entry::file("noise", noise(seed, 3 << 20), 0o644)]],
        cmd: vec!["/noise".into()],
        compression: Compression::Gzip,
        ..Image::default()
    }
}

/// Bytes that do not compress.
pub(crate) fn noise(seed: u8, len: usize) -> Vec<u8> {
    let mut noise = vec![0u8; len];
    let mut state = u32::from(seed) + 1;
    for byte in &mut noise {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        *byte = state.to_be_bytes()[0];
    }
    noise
}

/// Registries that are spoken to over plain HTTP.
pub(crate) fn plain(hosts: &[SocketAddr]) -> BTreeMap<String, RegistryConfig> {
    let config = RegistryConfig {
        plain_http: true,
        ..RegistryConfig::default()
    };
    hosts
        .iter()
        .map(|host| (host.to_string(), config.clone()))
        .collect()
}

struct Setup {
    containerd: Containerd,
    registry: Registry,
    proxy: Proxy,
    images: Images,
}

impl Setup {
    fn start() -> Option<Self> {
        let containerd = Containerd::start()?;
        let registry = Registry::start(containerd.directory.path())?;
        let proxy = Proxy::start(registry.address);
        let config = ImagesConfig {
            registries: plain(&[registry.address, proxy.address]),
            stall_timeout: Duration::from_secs(1),
            attempts: 4,
            backoff: Duration::from_millis(50),
            ..ImagesConfig::default()
        };
        let images = Images::new(&containerd.runtime(), config).unwrap();
        Some(Self {
            containerd,
            registry,
            proxy,
            images,
        })
    }

    /// Pushes a new image; its reference goes through the proxy.
    fn pushed(&self, seed: u8) -> String {
        let layout = self.containerd.directory.path().join(format!("layout{seed}"));
        image(seed).write_layout(&layout, "v1").unwrap();
        self.registry.push(&layout, "v1", &format!("team/app{seed}:v1"));
        format!("{}/team/app{seed}:v1", self.proxy.address)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fault_26_27_broken_downloads_and_busy_registries() {
    let Some(setup) = Setup::start() else { return };
    let ensure = async |reference: &str| setup.images.ensure(reference, |_| ()).await;
    let layer_len = 3 << 20;

    let plain = setup.pushed(0);
    let pulled = ensure(&plain).await.unwrap();
    let by_digest = format!("{}@{}", plain.strip_suffix(":v1").unwrap(), pulled.digest);
    assert_eq!(ensure(&by_digest).await.unwrap().chain_id, pulled.chain_id);

    let busy = setup.pushed(1);
    setup.proxy.does(Wrong::Busy(2));
    let start = monotonic();
    ensure(&busy).await.unwrap();
    assert!(
        start.elapsed() >= Duration::from_secs(2),
        "Retry-After is honoured"
    );

    for (seed, wrong) in [(2, Wrong::Cut(layer_len / 2)), (3, Wrong::Silence(layer_len / 2))] {
        let broken = setup.pushed(seed);
        // Strikes the layer: the config is shorter than what is struck.
        setup.proxy.does(wrong);
        ensure(&broken)
            .await
            .unwrap_or_else(|error| panic!("{seed}: {error}"));
        let ranges = setup.proxy.ranges.lock().unwrap().clone();
        let resumed = ranges
            .iter()
            .any(|range| range.to_ascii_lowercase().starts_with("range: bytes="));
        assert!(resumed, "goes on where it broke: {ranges:?}");
    }

    let down = setup.pushed(4);
    setup.proxy.does(Wrong::Down);
    let error = ensure(&down).await.unwrap_err();
    assert_eq!(error.fault(), Fault::Infrastructure);
    assert!(error.to_string().contains("503"), "{error}");
    setup.proxy.does(Wrong::Nothing);
    ensure(&down).await.unwrap();

    let flipped = setup.pushed(5);
    setup.proxy.does(Wrong::Flip(1000));
    let error = ensure(&flipped).await.unwrap_err();
    assert!(matches!(error, ImageError::Unusable { .. }), "{error}");
    setup.proxy.does(Wrong::Nothing);
    ensure(&flipped).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn fault_26_a_failed_pull_goes_on() {
    let Some(setup) = Setup::start() else { return };
    let small = |seed: u8| vec![Entry::file(&format!("small{seed}"), noise(seed, 100_000), 0o644)];
    let many = Image {
        layers: vec![
            small(60),
            small(61),
            small(62),
            vec![Entry::file("large", noise(63, 3 << 20), 0o644)],
        ],
        cmd: vec!["/large".into()],
        compression: Compression::Gzip,
        ..Image::default()
    };
    let layout = setup.containerd.directory.path().join("many");
    many.write_layout(&layout, "v1").unwrap();
    setup.registry.push(&layout, "v1", "team/many:v1");
    let reference = format!("{}/team/many:v1", setup.proxy.address);
    setup.proxy.does(Wrong::Down);
    setup.images.ensure(&reference, |_| ()).await.unwrap_err();
    // Whatever nothing keeps goes now.
    let other = setup.pushed(64);
    setup.proxy.does(Wrong::Nothing);
    setup.images.ensure(&other, |_| ()).await.unwrap();
    setup.containerd.collect_garbage(&other);
    setup.proxy.does(Wrong::Nothing);
    setup.images.ensure(&reference, |_| ()).await.unwrap();
    let requests = setup.proxy.blob_requests.load(Ordering::SeqCst);
    assert_eq!(requests, 2, "the config and the large layer");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_is_the_users_fault_and_what_is_out_of_reach_is_not() {
    let Some(setup) = Setup::start() else { return };
    let ensure = async |reference: String| setup.images.ensure(&reference, |_| ()).await.unwrap_err();
    let error = ensure(format!("{}/team/none:v1", setup.registry.address)).await;
    assert!(matches!(error, ImageError::Unknown { .. }), "{error}");
    let error = ensure("No Such Thing".into()).await;
    assert!(matches!(error, ImageError::Reference(_)), "{error}");

    // Nobody listens. Not on the list of insecure ones either, so it is https.
    let error = ensure(format!("{}/team/app:v1", free_address())).await;
    assert_eq!(error.fault(), Fault::Infrastructure);
    assert!(error.to_string().to_lowercase().contains("connect"), "{error}");

    // The registry's own disk lies.
    let reference = setup.pushed(7);
    let blobs = setup.registry.storage.join("docker/registry/v2/blobs");
    let largest = walk(&blobs)
        .into_iter()
        .max_by_key(|path| path.metadata().map_or(0, |m| m.len()))
        .unwrap();
    let mut bytes = std::fs::read(&largest).unwrap();
    bytes[5000] ^= 1;
    std::fs::write(&largest, bytes).unwrap();
    let error = ensure(reference).await;
    assert!(matches!(error, ImageError::Unusable { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_is_there_needs_no_registry() {
    let Some(mut setup) = Setup::start() else { return };
    let reference = setup.pushed(9);
    let pulled = setup.images.ensure(&reference, |_| ()).await.unwrap();
    setup.registry.child.kill().unwrap();
    // Another life of the daemon: nothing in memory.
    let runtime = setup.containerd.runtime();
    let again = Images::new(&runtime, ImagesConfig::default()).unwrap();
    assert_eq!(again.ensure(&reference, |_| ()).await.unwrap(), pulled);
}

fn walk(directory: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(directory)
        .unwrap()
        .flat_map(|entry| {
            let path = entry.unwrap().path();
            if path.is_dir() { walk(&path) } else { vec![path] }
        })
        .collect()
}
