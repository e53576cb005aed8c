//! The configuration file of `berth-scheduler`: TOML, unknown keys refused, every fault listed at once.
//!
//! | key | meaning | default | bounds |
//! | --- | --- | --- | --- |
//! | `data_dir` | directory of keys and store; made when it is not there | none, required | absolute |
//! | `listen` | address of the REST API, plain HTTP | `127.0.0.1:7600` | |
//! | `link_listen` | address of the node link, TLS | `0.0.0.0:7601` | |
//! | `link_names` | DNS names and IP addresses under which nodes reach the link | `["localhost", "127.0.0.1"]` | 1 to 32 |
//! | `heartbeat_ms` | nodes report at least this often, milliseconds | 2000 | 100 to 60000 |
//! | `log_format` | `text` or `json` | `text` | |
//! | `limits.unhealthy_after_seconds` | silence after which a machine is unhealthy | 15 | 1 to 86400, at least 3 heartbeats |
//! | `limits.replace_after_seconds` | silence after which its stateless replicas are replaced | 30 | at least the one above |
//! | `limits.freeze_percent` | nothing moves while more machines are unhealthy | 50 | 1 to 100 |
//! | `limits.freeze_min_machines` | fewer unhealthy machines than this are never a freeze | 1 | 1 to 100000 |
//! | `limits.freeze_max_seconds` | a machine silent for longer holds up nothing | 900 | at least `replace_after_seconds` |
//! | `limits.guard_percent` | healthy replicas that may stop within 10 min though no write asked for it | 10 | 0 to 100; 100 holds nothing |
//! | `limits.guard_min_replicas` | so many of them at least | 2 | up to 100000 |
//! | `limits.failed_starts_max` | failed starts after which a rollout is rolled back; 0 is never | 8 | up to 1000 |
//! | `limits.min_ready_seconds` | a replica of a rollout has come up when it was ready for so long | 10 | up to 3600 |
//! | `store` | where clusters are kept: `sqlite`, or `etcd://host:port,host:port/prefix` for high availability | `sqlite` | 1 to 16 members |
//! | `advertise` | URL under which other schedulers of the etcd store reach this one's REST API | `listen`, where it names an address | `http://host:port` |
//! | `link_advertise` | URL under which nodes that were sent here reach the link | `https://`, the first of `link_names`, the port of `link_listen` | `https://host:port` |
//! | `lease_seconds` | how long etcd keeps what this process owns after it was last heard; a failover takes about that long | 5 | 2 to 60 |
//! | `etcd.ca_file` | PEM of the authority of etcd's certificates; TLS is spoken when it is given | none | |
//! | `etcd.cert_file`, `etcd.key_file` | PEM of the certificate and key with which the scheduler shows itself to etcd | none | together |
//! | `etcd.user`, `etcd.password_file` | the etcd user, and the file with its password alone | none | together |
//! | `capacity.high_percent` | above this utilisation a capacity group wants more machines; 100 is never | 90 | 2 to 100 |
//! | `capacity.low_percent` | a group shrinks to machines that would be used up to this | 70 | 1 to below `high_percent` |
//! | `capacity.low_for_seconds` | for how long so little must have been used | 600 | up to 604800 |
//! | `capacity.pause_seconds` | from a change of a wish to the next one downwards | 600 | up to 604800 |
//! | `autoscale.tolerance_percent` | deviation from a target that changes no count | 10 | 1 to 50 |
//! | `autoscale.warm_up_seconds` | processor and memory of a replica count once it was ready for so long | 20 | up to 3600 |
//! | `autoscale.lead_seconds` | how far ahead a rise is foretold; 0 is never | 45 | up to 600 |
//! | `autoscale.up_seconds` | more replicas only after the load has stayed for so long | 10 | up to 3600 |
//! | `autoscale.down_seconds` | fewer only after so long | 180 | 10 to 3600 |
//! | `capacity.boot_max_seconds` | a machine registered for longer and never heard is not waited for | 900 | 1 to 86400 |
//!
//! How often the API may be called, and its audit log; a caller may save up two seconds' worth:
//!
//! | key | meaning | default | bounds |
//! | --- | --- | --- | --- |
//! | `rest.platform_per_second` | requests of one subject of platform tokens | 2000 | 1 to 1000000 |
//! | `rest.management_per_second` | requests under one cluster's management token | 1000 | 1 to 1000000 |
//! | `rest.machine_per_second` | requests under one cluster's machine token | 5000 | 1 to 1000000 |
//! | `rest.failures_per_second` | requests of one address without a valid token | 50 | 1 to 1000000 |
//! | `rest.audit_file` | where the audit log goes, a line of JSON each | none: the log, target `berth::audit` | absolute |
//!
//! Traces of the scheduler itself:
//!
//! | key | meaning | default | bounds |
//! | --- | --- | --- | --- |
//! | `traces.endpoint` | collector that takes OTLP over gRPC | none: no traces | `http://host:port` |
//! | `traces.sample_percent` | of the requests whose caller has not decided it by `traceparent` | 100 | 1 to 100 |
//!
//! `[[platform_issuers]]`, any number of them, are keys of others whose platform tokens are accepted beside our own:
//!
//! | key | meaning | default | bounds |
//! | --- | --- | --- | --- |
//! | `issuer` | what `iss` must be | none, required | not `berth-scheduler`, 1 to 512 bytes |
//! | `audience` | what `aud` must be or hold | `berth-platform` | 1 to 512 bytes |
//! | `algorithm` | `EdDSA` or `HS256` | none, required | |
//! | `key_file` | Ed25519 public key in PEM, or the secret of HS256 | none, required | absolute; a secret has at least 32 bytes |
//! | `key_id` | `kid` of the tokens that the key verifies | none: any | 1 to 128 bytes |

mod rest;
mod store;
mod traces;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use berth_api::container::FAILED_STARTS_MAX;
use berth_api::validate::{Fault, Faults};
use serde::Deserialize;

use crate::autoscale::Tunables;
use crate::capacity::Thresholds;
use crate::guard;
use crate::liveness::Limits;
use crate::platform::{PLATFORM_AUDIENCE, PLATFORM_ISSUER, SigningAlgorithm, TrustedIssuer};
use crate::rollout::Rules;

pub use rest::RestLimits;
pub use store::{EtcdAccess, EtcdChoice, StoreChoice};
pub use traces::TracesConfig;

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

/// A validated configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    pub data_dir: PathBuf,
    pub listen: SocketAddr,
    pub link_listen: SocketAddr,
    pub link_names: Vec<String>,
    pub heartbeat: Duration,
    pub log_format: LogFormat,
    pub limits: Limits,
    pub platform_issuers: Vec<TrustedIssuer>,
    pub store: StoreChoice,
    pub advertise: Option<String>,
    pub link_advertise: Option<String>,
    pub lease: Duration,
    pub rest: RestLimits,
    pub traces: TracesConfig,
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("read {path}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path} is not valid:\n{faults}")]
    Invalid { path: PathBuf, faults: Faults },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    data_dir: PathBuf,
    #[serde(default = "default_listen")]
    listen: SocketAddr,
    #[serde(default = "default_link_listen")]
    link_listen: SocketAddr,
    #[serde(default = "default_link_names")]
    link_names: Vec<String>,
    #[serde(default = "default_heartbeat_ms")]
    heartbeat_ms: u64,
    #[serde(default)]
    log_format: LogFormat,
    #[serde(default)]
    limits: FileLimits,
    #[serde(default)]
    capacity: FileCapacity,
    #[serde(default)]
    autoscale: FileAutoscale,
    #[serde(default = "default_store")]
    store: String,
    #[serde(default)]
    etcd: EtcdAccess,
    #[serde(default)]
    advertise: Option<String>,
    #[serde(default)]
    link_advertise: Option<String>,
    #[serde(default = "default_lease_seconds")]
    lease_seconds: u64,
    #[serde(default)]
    rest: RestLimits,
    #[serde(default)]
    traces: TracesConfig,
    #[serde(default)]
    platform_issuers: Vec<FileIssuer>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileIssuer {
    issuer: String,
    #[serde(default = "default_audience")]
    audience: String,
    algorithm: SigningAlgorithm,
    key_file: PathBuf,
    #[serde(default)]
    key_id: Option<String>,
}

fn default_audience() -> String {
    PLATFORM_AUDIENCE.to_owned()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct FileAutoscale {
    tolerance_percent: u64,
    warm_up_seconds: u64,
    lead_seconds: u64,
    up_seconds: u64,
    down_seconds: u64,
}

impl Default for FileAutoscale {
    fn default() -> Self {
        let defaults = Tunables::default();
        Self {
            tolerance_percent: defaults.tolerance_permille / 10,
            warm_up_seconds: defaults.warm_up_ms / 1000,
            lead_seconds: defaults.lead_ms / 1000,
            up_seconds: defaults.up_window_ms / 1000,
            down_seconds: defaults.down_window_ms / 1000,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct FileCapacity {
    high_percent: u32,
    low_percent: u32,
    low_for_seconds: u64,
    pause_seconds: u64,
    boot_max_seconds: u64,
}

impl Default for FileCapacity {
    fn default() -> Self {
        let thresholds = Thresholds::default();
        Self {
            high_percent: thresholds.high_percent,
            low_percent: thresholds.low_percent,
            low_for_seconds: thresholds.low_for_ms / 1000,
            pause_seconds: thresholds.pause_ms / 1000,
            boot_max_seconds: thresholds.boot_max_ms / 1000,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct FileLimits {
    unhealthy_after_seconds: u64,
    replace_after_seconds: u64,
    freeze_percent: u32,
    freeze_max_seconds: u64,
    freeze_min_machines: u32,
    guard_percent: u32,
    guard_min_replicas: u32,
    failed_starts_max: u32,
    min_ready_seconds: u64,
}

impl Default for FileLimits {
    fn default() -> Self {
        let limits = Limits::default();
        Self {
            unhealthy_after_seconds: limits.unhealthy_after_ms / 1000,
            replace_after_seconds: limits.replace_after_ms / 1000,
            freeze_percent: limits.freeze_percent,
            freeze_max_seconds: limits.freeze_max_ms / 1000,
            freeze_min_machines: limits.freeze_min_machines,
            guard_percent: limits.guard.percent,
            guard_min_replicas: limits.guard.min_replicas,
            failed_starts_max: limits.rollout.failed_starts_max,
            min_ready_seconds: limits.rollout.min_ready_ms / 1000,
        }
    }
}

fn default_listen() -> SocketAddr {
    SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 7600)
}

fn default_link_listen() -> SocketAddr {
    SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 7601)
}

fn default_link_names() -> Vec<String> {
    vec!["localhost".into(), "127.0.0.1".into()]
}

fn default_lease_seconds() -> u64 {
    5
}

fn default_store() -> String {
    "sqlite".into()
}

fn default_heartbeat_ms() -> u64 {
    2000
}

/// Keys of the file, for the list of unknown ones.
const KEYS: &[&str] = &[
    "data_dir",
    "listen",
    "link_listen",
    "link_names",
    "heartbeat_ms",
    "log_format",
    "limits",
    "capacity",
    "autoscale",
    "platform_issuers",
    "store",
    "etcd",
    "advertise",
    "link_advertise",
    "lease_seconds",
    "rest",
    "traces",
];
const LIMIT_KEYS: [&str; 9] = [
    "unhealthy_after_seconds",
    "replace_after_seconds",
    "freeze_percent",
    "freeze_max_seconds",
    "freeze_min_machines",
    "guard_percent",
    "guard_min_replicas",
    "failed_starts_max",
    "min_ready_seconds",
];
const CAPACITY_KEYS: [&str; 5] = [
    "high_percent",
    "low_percent",
    "low_for_seconds",
    "pause_seconds",
    "boot_max_seconds",
];
const AUTOSCALE_KEYS: [&str; 5] = [
    "tolerance_percent",
    "warm_up_seconds",
    "lead_seconds",
    "up_seconds",
    "down_seconds",
];
/// Tables of the file and their keys.
const TABLES: &[(&str, &[&str])] = &[
    ("limits", &LIMIT_KEYS),
    ("capacity", &CAPACITY_KEYS),
    ("autoscale", &AUTOSCALE_KEYS),
    ("etcd", &store::ETCD_KEYS),
    ("rest", &rest::REST_KEYS),
    ("traces", &traces::TRACES_KEYS),
];

impl Config {
    /// The defaults, with everything kept under `data_dir`.
    #[must_use]
    pub fn new(data_dir: PathBuf) -> Self {
        Self {
            data_dir,
            listen: default_listen(),
            link_listen: default_link_listen(),
            link_names: default_link_names(),
            heartbeat: Duration::from_millis(default_heartbeat_ms()),
            log_format: LogFormat::default(),
            limits: Limits::default(),
            platform_issuers: Vec::new(),
            store: StoreChoice::default(),
            advertise: None,
            link_advertise: None,
            lease: Duration::from_secs(default_lease_seconds()),
            rest: RestLimits::default(),
            traces: TracesConfig::default(),
        }
    }

    /// Reads a configuration file.
    ///
    /// # Errors
    /// With every fault of the file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.into(),
            source,
        })?;
        Self::parse(&text).map_err(|faults| ConfigError::Invalid {
            path: path.into(),
            faults,
        })
    }

    /// Reads a configuration.
    ///
    /// # Errors
    /// With every fault of the text.
    pub fn parse(text: &str) -> Result<Self, Faults> {
        let table: toml::Table = toml::from_str(text).map_err(|error| Faults::one("", error.to_string()))?;
        let mut faults = unknown_keys(&table);
        let known: toml::Table = table
            .into_iter()
            .filter(|(key, _)| KEYS.contains(&key.as_str()))
            .map(|(key, value)| {
                let keys = TABLES.iter().find(|(table, _)| *table == key);
                match (value, keys) {
                    (toml::Value::Table(table), Some((_, keys))) => {
                        let known = table.into_iter().filter(|(key, _)| keys.contains(&key.as_str()));
                        (key, toml::Value::Table(known.collect()))
                    }
                    (value, _) => (key, value),
                }
            })
            .collect();
        let file: File = match known.try_into() {
            Ok(file) => file,
            Err(error) => {
                faults.push(Fault {
                    path: String::new(),
                    problem: error.to_string().trim_end().to_owned(),
                });
                return Err(Faults::check(faults).expect_err("one was just pushed"));
            }
        };
        check(&file, &mut faults);
        let store = store::read(&file, &mut faults);
        Faults::check(faults)?;
        Ok(Self {
            data_dir: file.data_dir,
            listen: file.listen,
            link_listen: file.link_listen,
            link_names: file.link_names,
            heartbeat: Duration::from_millis(file.heartbeat_ms),
            log_format: file.log_format,
            store,
            advertise: file.advertise,
            link_advertise: file.link_advertise,
            lease: Duration::from_secs(file.lease_seconds),
            rest: file.rest,
            traces: file.traces,
            limits: limits(&file.limits, &file.capacity, &file.autoscale),
            platform_issuers: file.platform_issuers.into_iter().map(trusted).collect(),
        })
    }
}

fn limits(limits: &FileLimits, capacity: &FileCapacity, autoscale: &FileAutoscale) -> Limits {
    let milliseconds = |seconds: u64| seconds.saturating_mul(1000);
    Limits {
        unhealthy_after_ms: milliseconds(limits.unhealthy_after_seconds),
        replace_after_ms: milliseconds(limits.replace_after_seconds),
        freeze_percent: limits.freeze_percent,
        freeze_max_ms: milliseconds(limits.freeze_max_seconds),
        freeze_min_machines: limits.freeze_min_machines,
        guard: guard::Rules {
            percent: limits.guard_percent,
            min_replicas: limits.guard_min_replicas,
        },
        rollout: Rules {
            failed_starts_max: limits.failed_starts_max,
            min_ready_ms: milliseconds(limits.min_ready_seconds),
        },
        capacity: Thresholds {
            high_percent: capacity.high_percent,
            low_percent: capacity.low_percent,
            low_for_ms: milliseconds(capacity.low_for_seconds),
            pause_ms: milliseconds(capacity.pause_seconds),
            boot_max_ms: milliseconds(capacity.boot_max_seconds),
        },
        autoscale: Tunables {
            tolerance_permille: autoscale.tolerance_percent * 10,
            warm_up_ms: milliseconds(autoscale.warm_up_seconds),
            lead_ms: milliseconds(autoscale.lead_seconds),
            up_window_ms: milliseconds(autoscale.up_seconds),
            down_window_ms: milliseconds(autoscale.down_seconds),
            ..Tunables::default()
        },
    }
}

fn trusted(issuer: FileIssuer) -> TrustedIssuer {
    TrustedIssuer {
        issuer: issuer.issuer,
        audience: issuer.audience,
        algorithm: issuer.algorithm,
        key_file: issuer.key_file,
        key_id: issuer.key_id,
    }
}

fn check_changes(limits: &FileLimits, require: &mut impl FnMut(bool, &str, String)) {
    require(
        limits.failed_starts_max <= FAILED_STARTS_MAX,
        "limits.failed_starts_max",
        format!("{} is above {FAILED_STARTS_MAX}", limits.failed_starts_max),
    );
    require(
        (1..=100_000).contains(&limits.freeze_min_machines),
        "limits.freeze_min_machines",
        format!("{} is not from 1 to 100000", limits.freeze_min_machines),
    );
    require(
        limits.guard_percent <= 100,
        "limits.guard_percent",
        format!("{} is above 100", limits.guard_percent),
    );
    require(
        limits.guard_min_replicas <= 100_000,
        "limits.guard_min_replicas",
        format!("{} is above 100000", limits.guard_min_replicas),
    );
    require(
        limits.min_ready_seconds <= 3600,
        "limits.min_ready_seconds",
        format!("{} is above 3600", limits.min_ready_seconds),
    );
}

fn check_issuers(issuers: &[FileIssuer], require: &mut impl FnMut(bool, &str, String)) {
    for (index, issuer) in issuers.iter().enumerate() {
        let path = |name: &str| format!("platform_issuers[{index}].{name}");
        require(
            (1..=512).contains(&issuer.issuer.len()) && issuer.issuer != PLATFORM_ISSUER,
            &path("issuer"),
            format!("must have 1 to 512 bytes and not be {PLATFORM_ISSUER}, whose keys lie in data_dir"),
        );
        require(
            (1..=512).contains(&issuer.audience.len()),
            &path("audience"),
            "must have 1 to 512 bytes".into(),
        );
        require(
            issuer.key_file.is_absolute(),
            &path("key_file"),
            format!("{:?} is not an absolute path", issuer.key_file),
        );
        require(
            issuer
                .key_id
                .as_ref()
                .is_none_or(|id| (1..=128).contains(&id.len())),
            &path("key_id"),
            "must have 1 to 128 bytes".into(),
        );
    }
}

fn unknown_keys(table: &toml::Table) -> Vec<Fault> {
    let unknown = |path: String, known: &[&str]| Fault {
        path,
        problem: format!("is unknown; known are {}", known.join(", ")),
    };
    let top = table
        .keys()
        .filter(|key| !KEYS.contains(&key.as_str()))
        .map(|key| unknown(key.clone(), KEYS));
    let inner = TABLES.iter().flat_map(|(name, known)| {
        let keys = table
            .get(*name)
            .and_then(toml::Value::as_table)
            .into_iter()
            .flat_map(toml::Table::keys);
        keys.filter(|key| !known.contains(&key.as_str()))
            .map(|key| (format!("{name}.{key}"), *known))
            .collect::<Vec<_>>()
    });
    top.chain(inner.map(|(path, known)| unknown(path, known)))
        .collect()
}

fn check(file: &File, faults: &mut Vec<Fault>) {
    let mut require = |holds: bool, path: &str, problem: String| {
        if !holds {
            faults.push(Fault {
                path: path.into(),
                problem,
            });
        }
    };
    require(
        file.data_dir.is_absolute(),
        "data_dir",
        format!("{:?} is not an absolute path", file.data_dir),
    );
    require(
        (1..=32).contains(&file.link_names.len()),
        "link_names",
        "must hold 1 to 32 names or addresses under which nodes reach the link".into(),
    );
    for (index, name) in file.link_names.iter().enumerate() {
        require(
            is_host(name),
            &format!("link_names[{index}]"),
            format!("{name:?} is neither an IP address nor a DNS name"),
        );
    }
    require(
        (100..=60_000).contains(&file.heartbeat_ms),
        "heartbeat_ms",
        format!("{} is not from 100 to 60000", file.heartbeat_ms),
    );
    let limits = &file.limits;
    require(
        (1..=86_400).contains(&limits.unhealthy_after_seconds)
            && limits.unhealthy_after_seconds.saturating_mul(1000) >= file.heartbeat_ms.saturating_mul(3),
        "limits.unhealthy_after_seconds",
        format!(
            "{} is not from 1 to 86400, or is less than three heartbeats of {} ms",
            limits.unhealthy_after_seconds, file.heartbeat_ms
        ),
    );
    require(
        limits.replace_after_seconds >= limits.unhealthy_after_seconds,
        "limits.replace_after_seconds",
        "must be at least unhealthy_after_seconds".into(),
    );
    require(
        (1..=100).contains(&limits.freeze_percent),
        "limits.freeze_percent",
        format!("{} is not from 1 to 100", limits.freeze_percent),
    );
    require(
        limits.freeze_max_seconds >= limits.replace_after_seconds,
        "limits.freeze_max_seconds",
        "must be at least replace_after_seconds".into(),
    );
    check_changes(limits, &mut require);
    check_capacity(&file.capacity, &mut require);
    check_autoscale(&file.autoscale, &mut require);
    check_issuers(&file.platform_issuers, &mut require);
    for (path, problem) in file.rest.faults().into_iter().chain(file.traces.faults()) {
        require(false, path, problem);
    }
    for (path, problem) in file.etcd.faults() {
        require(false, path, problem.into());
    }
    store::check_sharing(file, &mut require);
}

/// A week: whoever wants a group never to shrink raises its minimum.
const PAUSE_MAX_SECONDS: u64 = 604_800;

fn check_autoscale(autoscale: &FileAutoscale, require: &mut impl FnMut(bool, &str, String)) {
    let bounds = [
        ("tolerance_percent", autoscale.tolerance_percent, 1..=50),
        ("warm_up_seconds", autoscale.warm_up_seconds, 0..=3600),
        ("lead_seconds", autoscale.lead_seconds, 0..=600),
        ("up_seconds", autoscale.up_seconds, 0..=3600),
        ("down_seconds", autoscale.down_seconds, 10..=3600),
    ];
    for (key, value, allowed) in bounds {
        require(
            allowed.contains(&value),
            &format!("autoscale.{key}"),
            format!("{value} is not from {} to {}", allowed.start(), allowed.end()),
        );
    }
}

fn check_capacity(capacity: &FileCapacity, require: &mut impl FnMut(bool, &str, String)) {
    require(
        (2..=100).contains(&capacity.high_percent),
        "capacity.high_percent",
        format!("{} is not from 2 to 100", capacity.high_percent),
    );
    require(
        (1..capacity.high_percent.max(2)).contains(&capacity.low_percent),
        "capacity.low_percent",
        format!(
            "{} is not from 1 to below high_percent, so the group would grow and shrink in turn",
            capacity.low_percent
        ),
    );
    for (path, seconds) in [
        ("capacity.low_for_seconds", capacity.low_for_seconds),
        ("capacity.pause_seconds", capacity.pause_seconds),
    ] {
        require(
            seconds <= PAUSE_MAX_SECONDS,
            path,
            format!("{seconds} is above {PAUSE_MAX_SECONDS}"),
        );
    }
    require(
        (1..=86_400).contains(&capacity.boot_max_seconds),
        "capacity.boot_max_seconds",
        format!("{} is not from 1 to 86400", capacity.boot_max_seconds),
    );
}

fn is_host(name: &str) -> bool {
    let is_label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    name.parse::<IpAddr>().is_ok() || (name.len() <= 253 && name.split('.').all(is_label))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_file_gives_the_defaults() {
        let config = Config::parse("data_dir = \"/var/lib/berth\"").unwrap();
        assert_eq!(config, Config::new("/var/lib/berth".into()));
    }

    #[test]
    fn all_faults_are_listed_at_once() {
        let text = "data_dir = \"here\"\nport = 1\nlink_names = [\"a b\"]\nheartbeat_ms = 1\n\
                    [limits]\nfreeze_percent = 0\nunknown = 2\n";
        let faults = Config::parse(text).unwrap_err();
        let paths: Vec<&str> = faults.list().iter().map(|fault| fault.path.as_str()).collect();
        assert_eq!(
            paths,
            [
                "port",
                "limits.unknown",
                "data_dir",
                "link_names[0]",
                "heartbeat_ms",
                "limits.freeze_percent"
            ]
        );
    }

    #[test]
    fn the_store_is_read_with_its_faults() {
        let text = "data_dir = \"/d\"\nstore = \"etcd://a:1,b:2/x\"\n[etcd]\nca_file = \"/ca\"\n";
        let StoreChoice::Etcd(choice) = Config::parse(text).unwrap().store else {
            panic!("it is etcd");
        };
        assert_eq!((choice.endpoints.len(), choice.prefix.as_str()), (2, "/x"));
        let text = "data_dir = \"/d\"\nstore = \"sqlite\"\n[etcd]\ncert_file = \"/c\"\nport = 1\n";
        let faults = Config::parse(text).unwrap_err();
        let paths: Vec<&str> = faults.list().iter().map(|fault| fault.path.as_str()).collect();
        assert_eq!(paths, ["etcd.port", "etcd.cert_file", "etcd.ca_file", "etcd"]);
        let faults = Config::parse("data_dir = \"/d\"\nstore = \"mysql\"\n").unwrap_err();
        assert_eq!(faults.list()[0].path, "store");
    }

    #[test]
    fn limits_that_contradict_each_other_are_refused() {
        let text = "data_dir = \"/d\"\nheartbeat_ms = 2000\n[limits]\nunhealthy_after_seconds = 5\n\
                    replace_after_seconds = 4\nfreeze_max_seconds = 3\n";
        assert_eq!(Config::parse(text).unwrap_err().list().len(), 3);
    }

    #[test]
    fn thresholds_that_would_swing_are_refused() {
        let text = "data_dir = \"/d\"\n[capacity]\nhigh_percent = 60\nlow_percent = 60\nwarm = 1\n";
        let faults = Config::parse(text).unwrap_err();
        let paths: Vec<&str> = faults.list().iter().map(|fault| fault.path.as_str()).collect();
        assert_eq!(paths, ["capacity.warm", "capacity.low_percent"]);
        let text =
            "data_dir = \"/d\"\n[autoscale]\ndown_seconds = 5\ntolerance_percent = 51\nlead_seconds = 601\n";
        let faults = Config::parse(text).unwrap_err();
        let paths: Vec<&str> = faults.list().iter().map(|fault| fault.path.as_str()).collect();
        let expected = [
            "autoscale.tolerance_percent",
            "autoscale.lead_seconds",
            "autoscale.down_seconds",
        ];
        assert_eq!(paths, expected);
        let text = "data_dir = \"/d\"\n[autoscale]\ndown_seconds = 300\n";
        let autoscale = Config::parse(text).unwrap().limits.autoscale;
        assert_eq!((autoscale.down_window_ms, autoscale.lead_ms), (300_000, 45_000));
        let text = "data_dir = \"/d\"\n[capacity]\nhigh_percent = 100\nlow_for_seconds = 30\n";
        let capacity = Config::parse(text).unwrap().limits.capacity;
        assert_eq!(
            (capacity.high_percent, capacity.low_percent, capacity.low_for_ms),
            (100, 70, 30_000)
        );
    }

    #[test]
    fn keys_of_other_issuers_are_read_and_their_faults_listed() {
        let text = "data_dir = \"/d\"\n[[platform_issuers]]\nissuer = \"https://id.example\"\n\
                    algorithm = \"EdDSA\"\nkey_file = \"/etc/berth/id.pem\"\n";
        let config = Config::parse(text).unwrap();
        assert_eq!(config.platform_issuers[0].audience, PLATFORM_AUDIENCE);
        let text = "data_dir = \"/d\"\n[[platform_issuers]]\nissuer = \"berth-scheduler\"\nkey_id = \"\"\n\
                    algorithm = \"HS256\"\nkey_file = \"secret\"\n";
        assert_eq!(Config::parse(text).unwrap_err().list().len(), 3);
        assert!(Config::parse(&text.replace("HS256", "none")).is_err());
    }

    #[test]
    fn a_wrong_type_is_refused_beside_unknown_keys() {
        let faults = Config::parse("data_dir = 5\nextra = 1").unwrap_err();
        assert_eq!(faults.list().len(), 2, "{faults}");
    }
}
