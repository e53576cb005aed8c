//! The configuration of `berthd`: TOML, unknown keys refused, every fault of a file listed at once.
//!
//! ```toml
//! cluster_id = "acme/prod"                  # the cluster this machine belongs to
//! machine_id = "i-0123"                     # the cloud's instance id; unique in the cluster
//! capacity_group = "general"                # set at boot, never changes
//! zone = "eu-central-1a"                    # default "local"
//! labels = ["disk=ssd"]                    # what containers may require, prefer or forbid; default none
//! scheduler = "https://10.0.0.2:7601"       # the node link of the scheduler; of several, with commas between
//! ca_file = "/etc/berth/ca.pem"             # issuer of the scheduler's certificate
//! token_file = "/etc/berth/machine-token"   # `hj_...`; read only to enrol
//! state_dir = "/var/lib/berth/state"        # ledger, key, certificate, ephemeral storage; survives a reboot
//! program_dir = "/var/lib/berth/programs"   # the default; berthd and berth-logkeeper as the supervisor starts them, see `berthd upgrade`
//! run_dir = "/run/berth"                    # status socket, namespaces; may be lost at a reboot
//! containerd_socket = "/run/containerd/containerd.sock"   # the default
//! containerd_namespace = "berth"            # the default
//! cgroup_parent = "/berth"                  # the default; one cgroup per replica is made below it
//! underlay_ip = "10.0.1.7"                  # this machine's address that its peers can reach
//! wireguard_public_key = "AAAA..."          # base64; default 32 zero bytes: no mesh encryption
//! wireguard_endpoint = "10.0.1.7:51820"     # default: underlay_ip and port 51820
//! keeper_socket = "/run/berth/keeper.sock"  # default: keeper.sock in run_dir
//! log_store = "/var/lib/berth/logs"         # the keeper's --store; default: logs beside state_dir
//! dns_upstream = ["10.0.0.2:53"]            # servers for names outside the cluster; default none
//! ephemeral_overcommit = false              # promise more ephemeral bytes than the disk has; default false
//! hostpath_root = "/srv/berth"              # hostpath volumes and shared mounts must lie below; default: refused
//! image_budget = "40Gi"                     # images that nothing needs go while all take more; default: no budget
//! image_keep_days = 7                       # images that nothing needs go this long after their last use; the default
//!
//! [registries."registry.example.com:5000"]  # what is special about a registry; default: https, no login
//! mirrors = ["10.0.0.2:5000"]               # asked before it, in this order, for the same repositories
//! ca_file = "/etc/berth/registry-ca.pem"    # trusted for it beside the system's certificates
//! username = "robot"                        # with password_file
//! password_file = "/etc/berth/registry-password"
//! credential_helper = "ecr-login"           # instead: docker-credential-ecr-login, or an absolute path
//! plain_http = false                        # spoken to over http
//!
//! [capacity]                                # what the machine has in total
//! cpu = "8"                                 # vCPU
//! memory = "16Gi"
//! ephemeral = "100Gi"                       # default 0
//! gpu_type = "nvidia-t4"                    # with gpu_count; default none
//! gpu_count = 2                             # 1 to 8
//! reserve_cpu = "0.5"                       # kept from replicas; default 0
//! reserve_memory = "512Mi"                  # default 0
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use berth_api::id::{ClusterId, GroupId, Label, MachineId, Zone};
use berth_api::machine::{CpuCapacity, GpuCapacity, MachineCapacity, MemoryCapacity, StorageCapacity};
use berth_api::units::{Bytes, Cpu};
use toml::{Table, Value};

use crate::host::image::{Login, RegistryConfig};

/// A valid configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    pub cluster_id: ClusterId,
    pub machine_id: MachineId,
    pub capacity_group: GroupId,
    pub zone: Zone,
    /// What containers may ask for of this machine.
    pub labels: BTreeSet<Label>,
    /// URL of the scheduler's node link; of several with commas between, one after the other is dialled.
    pub scheduler: String,
    pub ca_file: PathBuf,
    pub token_file: PathBuf,
    pub state_dir: PathBuf,
    pub run_dir: PathBuf,
    /// Where the supervisor starts the programs from, and upgrades replace them.
    pub program_dir: PathBuf,
    pub containerd_socket: PathBuf,
    pub containerd_namespace: String,
    pub cgroup_parent: String,
    pub underlay_ip: IpAddr,
    pub wireguard_public_key: String,
    pub wireguard_endpoint: String,
    pub keeper_socket: PathBuf,
    pub log_store: PathBuf,
    pub dns_upstream: Vec<SocketAddr>,
    /// What is special about single registries, by `host[:port]`.
    pub registries: BTreeMap<String, RegistryConfig>,
    /// Bytes that all images together may take before those that nothing needs go.
    pub image_budget: Option<Bytes>,
    /// How long an image that nothing needs is kept.
    pub image_keep: Duration,
    pub ephemeral_overcommit: bool,
    pub hostpath_root: Option<PathBuf>,
    pub capacity: MachineCapacity,
}

/// Why a configuration is refused: everything that is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("{path}: {error}")]
    Read { path: String, error: String },
    #[error("{path}: {error}")]
    Syntax { path: String, error: String },
    #[error("{path} has {} fault(s):\n  {}", .faults.len(), .faults.join("\n  "))]
    Faults { path: String, faults: Vec<String> },
}

/// 32 zero bytes in base64: no curve point that anybody has the key of.
const NO_KEY: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
/// The longest path of a unix socket, its end mark included (`sun_path` of unix(7)).
const SOCKET_PATH_MAX: usize = 108;

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// With every fault of the file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|error| ConfigError::Read {
            path: name.clone(),
            error: error.to_string(),
        })?;
        Self::parse(&text, &name)
    }

    /// Reads and checks a text; `name` is shown in errors.
    ///
    /// # Errors
    /// With every fault of the text.
    pub fn parse(text: &str, name: &str) -> Result<Self, ConfigError> {
        let table: Table = text
            .parse()
            .map_err(|error: toml::de::Error| ConfigError::Syntax {
                path: name.to_owned(),
                error: error.to_string(),
            })?;
        let mut faults = Vec::new();
        let config = read(table, &mut faults);
        match config {
            Some(config) if faults.is_empty() => Ok(config),
            _ => Err(ConfigError::Faults {
                path: name.to_owned(),
                faults,
            }),
        }
    }

    #[must_use]
    pub fn status_socket(&self) -> PathBuf {
        self.run_dir.join("status.sock")
    }

    #[must_use]
    pub fn ledger_file(&self) -> PathBuf {
        self.state_dir.join("ledger.sqlite")
    }
}

#[expect(clippy::too_many_lines, reason = "two lines for each key")]
fn read(table: Table, faults: &mut Vec<String>) -> Option<Config> {
    let mut keys = Keys {
        prefix: "",
        table,
        faults,
    };
    let cluster_id = keys.parsed("cluster_id", ClusterId::new);
    let machine_id = keys.parsed("machine_id", MachineId::new);
    let capacity_group = keys.parsed("capacity_group", GroupId::new);
    let zone = keys.parsed_or("zone", "local", Zone::new);
    let labels = keys.list("labels", Label::new);
    let scheduler = keys.parsed("scheduler", https_urls);
    let ca_file = keys.parsed("ca_file", absolute);
    let token_file = keys.parsed("token_file", absolute);
    let state_dir = keys.parsed("state_dir", absolute);
    let run_dir = keys.parsed("run_dir", absolute);
    let program_dir = keys.parsed_or("program_dir", "/var/lib/berth/programs", absolute);
    let containerd_socket = keys.parsed_or("containerd_socket", "/run/containerd/containerd.sock", absolute);
    let containerd_namespace = keys.parsed_or("containerd_namespace", "berth", namespace);
    let cgroup_parent = keys.parsed_or("cgroup_parent", "/berth", cgroup);
    let underlay_ip = keys.parsed("underlay_ip", |text| {
        text.parse::<IpAddr>().map_err(|_| "is no IP address")
    });
    let wireguard_public_key = keys.parsed_or("wireguard_public_key", NO_KEY, Ok::<_, String>);
    let default_endpoint = underlay_ip
        .map(|ip| SocketAddr::new(ip, 51820).to_string())
        .unwrap_or_default();
    let wireguard_endpoint = keys.parsed_or("wireguard_endpoint", &default_endpoint, Ok::<_, String>);
    let default_keeper = run_dir
        .as_ref()
        .map(|dir| dir.join("keeper.sock").display().to_string());
    let keeper_socket = keys.parsed_or(
        "keeper_socket",
        default_keeper.as_deref().unwrap_or("/"),
        absolute,
    );
    let default_store = state_dir
        .as_ref()
        .and_then(|dir| dir.parent())
        .map(|dir| dir.join("logs").display().to_string());
    let log_store = keys.parsed_or("log_store", default_store.as_deref().unwrap_or("/"), absolute);
    let dns_upstream = keys.list("dns_upstream", name_server);
    let image_budget = keys.optional("image_budget", |text| Bytes::parse(&text));
    let image_keep = keys.parsed_or("image_keep_days", "7", days);
    let ephemeral_overcommit = keys.flag("ephemeral_overcommit");
    let hostpath_root = keys.optional("hostpath_root", absolute);
    let capacity = match keys.table.remove("capacity") {
        Some(Value::Table(table)) => read_capacity(table, keys.faults),
        Some(_) => keys.fault("capacity", "is no table"),
        None => keys.fault("capacity", "is missing: a table with cpu and memory"),
    };
    let registries = match keys.table.remove("registries") {
        Some(Value::Table(table)) => read_registries(table, keys.faults),
        Some(_) => keys
            .fault("registries", "is no table of registries")
            .unwrap_or_default(),
        None => BTreeMap::new(),
    };
    if let Some(dir) = &run_dir
        && dir.join("status.sock").as_os_str().len() >= SOCKET_PATH_MAX
    {
        keys.fault::<()>(
            "run_dir",
            "is too long: a unix socket below it must fit into 107 bytes",
        );
    }
    keys.finish();
    Some(Config {
        cluster_id: cluster_id?,
        machine_id: machine_id?,
        capacity_group: capacity_group?,
        zone: zone?,
        labels: labels.into_iter().collect(),
        scheduler: scheduler?,
        ca_file: ca_file?,
        token_file: token_file?,
        state_dir: state_dir?,
        run_dir: run_dir?,
        program_dir: program_dir?,
        containerd_socket: containerd_socket?,
        containerd_namespace: containerd_namespace?,
        cgroup_parent: cgroup_parent?,
        underlay_ip: underlay_ip?,
        wireguard_public_key: wireguard_public_key?,
        wireguard_endpoint: wireguard_endpoint?,
        keeper_socket: keeper_socket?,
        log_store: log_store?,
        dns_upstream,
        registries,
        image_budget,
        image_keep: image_keep?,
        ephemeral_overcommit,
        hostpath_root,
        capacity: capacity?,
    })
}

fn read_capacity(table: Table, faults: &mut Vec<String>) -> Option<MachineCapacity> {
    let mut keys = Keys {
        prefix: "capacity.",
        table,
        faults,
    };
    let cpu = keys.parsed("cpu", |text| Cpu::parse(&text));
    let reserve_cpu = keys.parsed_or("reserve_cpu", "0", |text| Cpu::parse(&text));
    let memory = keys.parsed("memory", |text| Bytes::parse(&text));
    let reserve_memory = keys.parsed_or("reserve_memory", "0Mi", |text| Bytes::parse(&text));
    let ephemeral = keys.parsed_or("ephemeral", "0Mi", |text| Bytes::parse(&text));
    let gpu_type = keys.optional("gpu_type", Ok::<_, String>);
    let gpu_count = keys.table.remove("gpu_count");
    let gpu = match (gpu_type, gpu_count) {
        (None, None) => None,
        (Some(kind), Some(Value::Integer(count @ 1..=8))) => Some(GpuCapacity {
            total: u32::try_from(count).ok()?,
            kind,
        }),
        (Some(_), None) => keys.fault("gpu_count", "is missing; write how many, 1 to 8"),
        (None, Some(_)) => keys.fault("gpu_type", "is missing; gpu_count needs it"),
        (Some(_), Some(_)) => keys.fault("gpu_count", "is no number from 1 to 8"),
    };
    if let (Some(cpu), Some(reserve)) = (cpu, reserve_cpu)
        && reserve > cpu
    {
        keys.fault::<()>("reserve_cpu", "is above capacity.cpu");
    }
    if let (Some(memory), Some(reserve)) = (memory, reserve_memory)
        && reserve > memory
    {
        keys.fault::<()>("reserve_memory", "is above capacity.memory");
    }
    keys.finish();
    Some(MachineCapacity {
        cpu: CpuCapacity {
            total: cpu?,
            system_reserve: reserve_cpu?,
        },
        memory: MemoryCapacity {
            total: memory?,
            system_reserve: reserve_memory?,
        },
        ephemeral_storage: StorageCapacity { total: ephemeral? },
        gpu,
    })
}

fn read_registries(table: Table, faults: &mut Vec<String>) -> BTreeMap<String, RegistryConfig> {
    let mut registries = BTreeMap::new();
    for (host, value) in table {
        let prefix = format!("registries.{host:?}");
        let Value::Table(table) = value else {
            faults.push(format!("{prefix} is no table"));
            continue;
        };
        if let Err(error) = registry(host.clone()) {
            faults.push(format!("{prefix} {error}"));
        }
        let mut keys = Keys {
            prefix: &format!("{prefix}."),
            table,
            faults,
        };
        let plain_http = keys.flag("plain_http");
        let mirrors = keys.list("mirrors", registry);
        let ca_file = keys.optional("ca_file", absolute);
        let login = read_login(&mut keys);
        if plain_http && ca_file.is_some() {
            keys.fault::<()>("ca_file", "is of no use with plain_http");
        }
        if mirrors.contains(&host) {
            keys.fault::<()>("mirrors", "names the registry itself");
        }
        keys.finish();
        let config = RegistryConfig {
            plain_http,
            mirrors,
            ca_file,
            login,
        };
        registries.insert(host, config);
    }
    registries
}

fn read_login(keys: &mut Keys<'_>) -> Option<Login> {
    let username = keys.optional("username", |text| {
        // The two are parted by a colon (RFC 7617).
        if text.is_empty() || text.contains(':') {
            Err("is empty or has a colon")
        } else {
            Ok(text)
        }
    });
    let password_file = keys.optional("password_file", absolute);
    let helper = keys.optional("credential_helper", |text| {
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if text.starts_with('/') || (!text.is_empty() && text.bytes().all(is_name)) {
            Ok(text)
        } else {
            Err("is neither a name such as \"ecr-login\" nor an absolute path")
        }
    });
    match (username, password_file, helper) {
        (None, None, None) => None,
        (Some(username), Some(password_file), None) => Some(Login::Password {
            username,
            password_file,
        }),
        (None, None, Some(helper)) => Some(Login::Helper(helper)),
        (_, _, Some(_)) => keys.fault(
            "credential_helper",
            "stands beside username or password_file: one login is enough",
        ),
        (Some(_), None, None) => keys.fault("password_file", "is missing; username needs it"),
        (None, Some(_), None) => keys.fault("username", "is missing; password_file needs it"),
    }
}

/// The keys of one table that have not been read yet, and the faults found so far.
struct Keys<'a> {
    prefix: &'a str,
    table: Table,
    faults: &'a mut Vec<String>,
}

impl Keys<'_> {
    fn fault<T>(&mut self, key: &str, what: impl std::fmt::Display) -> Option<T> {
        self.faults.push(format!("{}{key} {what}", self.prefix));
        None
    }

    fn text(&mut self, key: &str, value: Value) -> Option<String> {
        match value {
            Value::String(text) => Some(text),
            // `cpu = 8` is what people write.
            Value::Integer(number) => Some(number.to_string()),
            Value::Float(number) => Some(number.to_string()),
            Value::Boolean(_) | Value::Datetime(_) | Value::Array(_) | Value::Table(_) => {
                self.fault(key, "is no text")
            }
        }
    }

    fn read<T, E: std::fmt::Display>(
        &mut self,
        key: &str,
        text: String,
        parse: impl FnOnce(String) -> Result<T, E>,
    ) -> Option<T> {
        match parse(text) {
            Ok(value) => Some(value),
            Err(error) => self.fault(key, error),
        }
    }

    fn optional<T, E: std::fmt::Display>(
        &mut self,
        key: &str,
        parse: impl FnOnce(String) -> Result<T, E>,
    ) -> Option<T> {
        let value = self.table.remove(key)?;
        let text = self.text(key, value)?;
        self.read(key, text, parse)
    }

    fn parsed<T, E: std::fmt::Display>(
        &mut self,
        key: &str,
        parse: impl FnOnce(String) -> Result<T, E>,
    ) -> Option<T> {
        if self.table.contains_key(key) {
            self.optional(key, parse)
        } else {
            self.fault(key, "is missing")
        }
    }

    fn parsed_or<T, E: std::fmt::Display>(
        &mut self,
        key: &str,
        default: &str,
        parse: impl FnOnce(String) -> Result<T, E>,
    ) -> Option<T> {
        if self.table.contains_key(key) {
            self.optional(key, parse)
        } else {
            self.read(key, default.to_owned(), parse)
        }
    }

    fn list<T, E: std::fmt::Display>(&mut self, key: &str, parse: impl Fn(String) -> Result<T, E>) -> Vec<T> {
        match self.table.remove(key) {
            None => Vec::new(),
            Some(Value::Array(values)) => values
                .into_iter()
                .filter_map(|value| {
                    let text = self.text(key, value)?;
                    self.read(key, text, &parse)
                })
                .collect(),
            Some(_) => self.fault(key, "is no list").unwrap_or_default(),
        }
    }

    fn flag(&mut self, key: &str) -> bool {
        match self.table.remove(key) {
            None => false,
            Some(Value::Boolean(flag)) => flag,
            Some(_) => self.fault(key, "is neither true nor false").unwrap_or_default(),
        }
    }

    fn finish(self) {
        for key in self.table.keys() {
            self.faults.push(format!("{}{key} is no known key", self.prefix));
        }
    }
}

fn https_urls(text: String) -> Result<String, String> {
    for url in text.split(',').map(str::trim) {
        let read: tonic::transport::Uri = url.parse().map_err(|error| format!("is no URL: {error}"))?;
        if read.scheme_str() != Some("https") || read.port_u16().is_none() {
            return Err(format!("{url:?} is no URL such as https://10.0.0.2:7601"));
        }
    }
    Ok(text)
}

fn absolute(text: String) -> Result<PathBuf, String> {
    let path = PathBuf::from(&text);
    if path.is_absolute() {
        Ok(path)
    } else {
        Err(format!("{text:?} is no absolute path"))
    }
}

fn namespace(text: String) -> Result<String, &'static str> {
    let ok = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if !text.is_empty() && text.len() <= 76 && text.bytes().all(ok) {
        Ok(text)
    } else {
        Err("is no containerd namespace: 1 to 76 of letters, digits, '.', '_' and '-'")
    }
}

/// `host[:port]` as references name it.
fn registry(text: String) -> Result<String, String> {
    let (host, port) = text.rsplit_once(':').unwrap_or((&text, "443"));
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b".-".contains(&byte);
    if host.is_empty() || !host.bytes().all(is_name) || port.parse::<u16>().is_err() {
        return Err(format!(
            "{text:?} is no registry such as \"registry.example.com:5000\""
        ));
    }
    Ok(text)
}

fn days(text: String) -> Result<Duration, String> {
    match text.parse::<u64>() {
        Ok(days @ 0..=3650) => Ok(Duration::from_secs(days * 24 * 3600)),
        Ok(_) | Err(_) => Err(format!("{text:?} is no number of days from 0 to 3650")),
    }
}

fn cgroup(text: String) -> Result<String, &'static str> {
    if text.starts_with('/') && text.len() > 1 && !text.split('/').any(|part| part == "..") {
        Ok(text.trim_end_matches('/').to_owned())
    } else {
        Err("is no path of a cgroup, such as \"/berth\"")
    }
}

fn name_server(text: String) -> Result<SocketAddr, String> {
    text.parse::<SocketAddr>()
        .or_else(|_| text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 53)))
        .map_err(|_| format!("{text:?} is no address such as 10.0.0.2 or 10.0.0.2:53"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
cluster_id = "acme/prod"
machine_id = "m1"
capacity_group = "general"
scheduler = "https://10.0.0.2:7601"
ca_file = "/ca.pem"
token_file = "/token"
state_dir = "/s"
run_dir = "/r"
underlay_ip = "10.0.1.7"
dns_upstream = ["10.0.0.2", "10.0.0.3:5353"]
[capacity]
cpu = 8
memory = "16Gi"
"#;

    #[test]
    fn reads_a_file_and_fills_defaults() {
        let config = Config::parse(GOOD, "t").unwrap();
        assert_eq!(config.zone.as_str(), "local");
        assert_eq!(config.wireguard_endpoint, "10.0.1.7:51820");
        assert_eq!(config.keeper_socket, PathBuf::from("/r/keeper.sock"));
        assert_eq!(config.dns_upstream[0], "10.0.0.2:53".parse().unwrap());
        assert_eq!(config.capacity.cpu.total, Cpu::parse("8").unwrap());
        assert_eq!(config.image_keep, Duration::from_secs(7 * 24 * 3600));
        assert!(config.registries.is_empty() && config.image_budget.is_none());
    }

    #[test]
    fn reads_what_is_special_about_registries() {
        let text = GOOD.replace(
            "[capacity]",
            r#"
image_budget = "40Gi"
image_keep_days = 1
[registries."r.io"]
mirrors = ["10.0.0.2:5000"]
ca_file = "/ca.pem"
username = "robot"
password_file = "/password"
[registries."10.0.0.2:5000"]
plain_http = true
[registries."1.dkr.ecr.eu-central-1.amazonaws.com"]
credential_helper = "ecr-login"
[capacity]"#,
        );
        let config = Config::parse(&text, "t").unwrap();
        assert_eq!(config.image_budget, Some(Bytes::parse("40Gi").unwrap()));
        assert_eq!(config.image_keep, Duration::from_secs(24 * 3600));
        let of = |host: &str| config.registries[host].clone();
        assert_eq!(of("r.io").mirrors, ["10.0.0.2:5000"]);
        assert_eq!(of("r.io").ca_file, Some("/ca.pem".into()));
        let login = Login::Password {
            username: "robot".into(),
            password_file: "/password".into(),
        };
        assert_eq!(of("r.io").login, Some(login));
        assert!(of("10.0.0.2:5000").plain_http);
        let helper = Login::Helper("ecr-login".into());
        assert_eq!(of("1.dkr.ecr.eu-central-1.amazonaws.com").login, Some(helper));
    }

    #[test]
    fn lists_every_fault_of_registries() {
        let text = GOOD.replace(
            "[capacity]",
            r#"
image_budget = "lots"
image_keep_days = -1
[registries]
"not a host" = {}
flat = 1
[registries."a.io"]
username = "ro:bot"
ca_file = "ca.pem"
colour = "red"
mirrors = ["b io", "a.io"]
[registries."b.io"]
username = "robot"
[registries."c.io"]
password_file = "/password"
plain_http = true
ca_file = "/ca.pem"
[registries."d.io"]
credential_helper = "../evil helper"
[registries."e.io"]
credential_helper = "x"
username = "robot"
password_file = "/password"
[capacity]"#,
        );
        let Err(ConfigError::Faults { faults, .. }) = Config::parse(&text, "t") else {
            panic!("accepted");
        };
        for fault in [
            "image_budget ",
            "image_keep_days ",
            r#"registries."not a host" "#,
            r#"registries."flat" is no table"#,
            r#"registries."a.io".username "#,
            r#"registries."a.io".ca_file "#,
            r#"registries."a.io".colour "#,
            r#"registries."a.io".mirrors "b io""#,
            r#"registries."a.io".mirrors names the registry itself"#,
            r#"registries."b.io".password_file is missing"#,
            r#"registries."c.io".username is missing"#,
            r#"registries."c.io".ca_file is of no use"#,
            r#"registries."d.io".credential_helper "#,
            r#"registries."e.io".credential_helper stands beside"#,
        ] {
            assert!(
                faults.iter().any(|found| found.starts_with(fault)),
                "{fault}: {faults:#?}"
            );
        }
    }

    #[test]
    fn lists_every_fault_at_once() {
        let text = r#"
cluster_id = ""
machine_id = "m1"
capacity_group = "General"
scheduler = "http://10.0.0.2"
ca_file = "ca.pem"
state_dir = "/s"
run_dir = "/r"
underlay_ip = "here"
colour = "red"
[capacity]
cpu = "500m"
memory = "16"
gpu_count = 2
reserve_memory = "1Gi"
shape = 1
"#;
        let Err(ConfigError::Faults { faults, .. }) = Config::parse(text, "t") else {
            panic!("accepted");
        };
        for key in [
            "cluster_id",
            "capacity_group",
            "scheduler",
            "ca_file",
            "token_file",
            "underlay_ip",
            "colour",
            "capacity.cpu",
            "capacity.memory",
            "capacity.gpu_type",
            "capacity.shape",
        ] {
            assert!(
                faults.iter().any(|fault| fault.starts_with(&format!("{key} "))),
                "{key}: {faults:?}"
            );
        }
    }

    #[test]
    fn says_where_the_syntax_is_wrong() {
        assert!(matches!(
            Config::parse("a = ", "t"),
            Err(ConfigError::Syntax { .. })
        ));
    }
}
