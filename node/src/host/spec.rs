//! The OCI runtime specification of one container (P).
//!
//! Input: what the replica declares, what its image declares, what the node prepared (network namespace, files, mounts).
//! Output: the spec that runc gets. A declared command replaces ENTRYPOINT and CMD of the image together; declared
//! variables go over the image's, one by one. Limits: the cgroup caps at `desired` and protects `min`.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

use berth_api::container::{CpuRange, MemoryRange};
use berth_api::units::Cpu;
use oci_spec::OciSpecError;
use oci_spec::runtime::{
    Capability, LinuxBuilder, LinuxCapabilities, LinuxCapabilitiesBuilder, LinuxCpu, LinuxCpuBuilder,
    LinuxDeviceCgroupBuilder, LinuxMemory, LinuxMemoryBuilder, LinuxNamespace, LinuxNamespaceBuilder,
    LinuxNamespaceType, LinuxPidsBuilder, LinuxResources, LinuxResourcesBuilder, Mount, MountBuilder,
    PosixRlimitBuilder, PosixRlimitType, Process, ProcessBuilder, RootBuilder, Spec, SpecBuilder, User,
    UserBuilder,
};

use super::image::{ImageConfig, ImageUser};
use super::seccomp::{self, Machine};

/// Processes and threads of one replica, unless told otherwise.
pub const PIDS_MAX: u32 = 4096;
/// Open files of one process; never more than the node itself may give.
pub const NOFILE_MAX: u64 = 1 << 20;
/// Replicas are killed before the daemons of the machine when the whole machine is out of memory.
const OOM_SCORE_ADJ: i32 = 200;
/// Period of the CPU limit, microseconds: the kernel's default.
const CPU_PERIOD_MICROS: u64 = 100_000;
/// The kernel takes no smaller quota.
const CPU_QUOTA_MICROS_MIN: u64 = 1000;
const CPU_SHARES_PER_VCPU: u64 = 1024;
const CPU_SHARES: std::ops::RangeInclusive<u64> = 2..=262_144;
/// `MAX_ARG_STRLEN`, 32 pages, less the NUL at the end.
const TEXT_LEN_MAX: usize = (32 << 12) - 1;
/// A quarter of the usual stack of 8 MiB, less 128 KiB for what the kernel itself puts there.
const TEXTS_LEN_MAX: usize = (2 << 20) - (128 << 10);
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The usual set of container engines less `NET_RAW`, no forged packets on the machine's network, and less `MKNOD`: devices come from
/// the runtime alone.
const CAPABILITIES: [Capability; 12] = [
    Capability::AuditWrite,
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::NetBindService,
    Capability::Setfcap,
    Capability::Setgid,
    Capability::Setpcap,
    Capability::Setuid,
    Capability::SysChroot,
];

/// Hidden: they tell of the whole machine or let change it.
const MASKED_PATHS: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];
const READONLY_PATHS: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// Whether a container may write to a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    ReadWrite,
    ReadOnly,
}

/// A directory or file of the machine that a container sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BindMount {
    pub source: PathBuf,
    pub destination: PathBuf,
    pub access: Access,
}

/// Everything a spec is made of.
#[derive(Debug, Clone)]
pub struct SpecInput {
    /// Replaces the image's ENTRYPOINT and CMD.
    pub command: Option<Vec<String>>,
    pub env: BTreeMap<String, String>,
    pub image: ImageConfig,
    pub user: ImageUser,
    pub hostname: String,
    /// For example `/run/netns/replica`.
    pub network_namespace: PathBuf,
    /// Below the mount point of the cgroup hierarchies, for example `/berth/m1/replica`.
    pub cgroup_path: String,
    pub cpu: CpuRange,
    pub memory: MemoryRange,
    pub pids_max: u32,
    /// The node's own hard limit of open files.
    pub nofile_max: u64,
    /// Files that become `/etc/resolv.conf`, `/etc/hosts` and `/etc/hostname`.
    pub resolv_conf: PathBuf,
    pub hosts: PathBuf,
    pub hostname_file: PathBuf,
    /// Volumes, the ephemeral file system, shared directories; mounted in this order.
    pub mounts: Vec<BindMount>,
}

/// What a spec cannot be made of.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    #[error("neither the container nor its image names a command")]
    NoCommand,
    #[error("{name:?} is no name of an environment variable")]
    VariableName { name: String },
    #[error("the value of {name} holds a NUL")]
    VariableValue { name: String },
    #[error("an argument of the command holds a NUL")]
    Argument,
    #[error("{what} has {len_bytes} bytes, the kernel takes {TEXT_LEN_MAX}")]
    Long { what: String, len_bytes: usize },
    #[error(
        "command and variables, the image's own too, have {len_bytes} bytes together, the kernel takes {TEXTS_LEN_MAX}"
    )]
    LongTogether { len_bytes: usize },
    #[error("the working directory {path:?} of the image is no place of its own files")]
    WorkingDirectory { path: String },
    #[error("{what} {path:?} is not absolute, or has . or .. in it")]
    Path { what: &'static str, path: PathBuf },
    #[error("{0} is zero")]
    Zero(&'static str),
    #[error("the specification cannot be built: {0}")]
    Build(String),
}

impl From<OciSpecError> for SpecError {
    fn from(error: OciSpecError) -> Self {
        Self::Build(error.to_string())
    }
}

/// The spec of one container.
///
/// # Errors
/// When there is no command, or a path, variable or limit is malformed.
pub fn oci_spec(input: &SpecInput) -> Result<Spec, SpecError> {
    let linux = LinuxBuilder::default()
        .namespaces(namespaces(&input.network_namespace)?)
        .cgroups_path(absolute("cgroup path", Path::new(&input.cgroup_path))?)
        .resources(resources(input.cpu, input.memory, input.pids_max)?)
        .masked_paths(owned(&MASKED_PATHS))
        .readonly_paths(owned(&READONLY_PATHS))
        .seccomp(seccomp::profile(Machine::native()))
        .sysctl(sysctls())
        .rootfs_propagation("private")
        .build()?;
    let spec = SpecBuilder::default()
        .version("1.0.2")
        .root(RootBuilder::default().path("rootfs").readonly(false).build()?)
        .hostname(input.hostname.clone())
        .process(process(input)?)
        .mounts(mounts(input)?)
        .linux(linux)
        .build()?;
    Ok(spec)
}

/// The limits alone, for [`super::containerd::Runtime::update`].
///
/// # Errors
/// When a limit is zero.
pub fn resources(cpu: CpuRange, memory: MemoryRange, pids_max: u32) -> Result<LinuxResources, SpecError> {
    if pids_max == 0 {
        return Err(SpecError::Zero("the limit of processes"));
    }
    // The runtime adds the harmless devices (null, zero, full, random, urandom, tty) to this.
    let no_devices = LinuxDeviceCgroupBuilder::default()
        .allow(false)
        .access("rwm")
        .build()?;
    Ok(LinuxResourcesBuilder::default()
        .devices(vec![no_devices])
        .cpu(cpu_limits(cpu)?)
        .memory(memory_limits(memory)?)
        .pids(LinuxPidsBuilder::default().limit(i64::from(pids_max)).build()?)
        .build()?)
}

fn cpu_limits(cpu: CpuRange) -> Result<LinuxCpu, SpecError> {
    if cpu.desired == Cpu::ZERO {
        return Err(SpecError::Zero("the CPU limit"));
    }
    let scaled = |cpu: Cpu, scale: u64| u128::from(cpu.micros()) * u128::from(scale) / 1_000_000;
    let quota = i64::try_from(scaled(cpu.desired, CPU_PERIOD_MICROS).max(CPU_QUOTA_MICROS_MIN.into()));
    let shares = u64::try_from(scaled(cpu.min, CPU_SHARES_PER_VCPU)).unwrap_or(u64::MAX);
    Ok(LinuxCpuBuilder::default()
        .period(CPU_PERIOD_MICROS)
        .quota(quota.unwrap_or(i64::MAX))
        .shares(shares.clamp(*CPU_SHARES.start(), *CPU_SHARES.end()))
        .build()?)
}

fn memory_limits(memory: MemoryRange) -> Result<LinuxMemory, SpecError> {
    let limit = i64::try_from(memory.desired.get()).unwrap_or(i64::MAX);
    if limit == 0 {
        return Err(SpecError::Zero("the memory limit"));
    }
    let reservation = i64::try_from(memory.min.get()).unwrap_or(i64::MAX).min(limit);
    // Memory and swap together may be no more than memory alone: no swap.
    let limits = LinuxMemoryBuilder::default().limit(limit).swap(limit);
    let limits = if reservation > 0 {
        limits.reservation(reservation)
    } else {
        limits
    };
    Ok(limits.build()?)
}

fn process(input: &SpecInput) -> Result<Process, SpecError> {
    let nofile = input.nofile_max.min(NOFILE_MAX);
    let nofile = PosixRlimitBuilder::default()
        .typ(PosixRlimitType::RlimitNofile)
        .soft(nofile.min(65_536))
        .hard(nofile)
        .build()?;
    let (arguments, environment) = (arguments(input)?, environment(input)?);
    check_lengths(&arguments, &environment)?;
    Ok(ProcessBuilder::default()
        .terminal(false)
        .user(user(&input.user)?)
        .args(arguments)
        .env(environment)
        .cwd(working_directory(&input.image.working_dir)?)
        .capabilities(capabilities()?)
        .rlimits(vec![nofile])
        .no_new_privileges(true)
        .oom_score_adj(OOM_SCORE_ADJ)
        .build()?)
}

/// Absolute and without dots. Below `/proc` lie ways out of the container while it starts (CVE-2024-21626).
fn working_directory(declared: &str) -> Result<PathBuf, SpecError> {
    use std::path::Component;
    let mut path = PathBuf::from("/");
    for part in Path::new(declared).components() {
        match part {
            Component::Normal(name) => path.push(name),
            Component::ParentDir => {
                path.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    if declared.contains('\0') || path.starts_with("/proc") {
        return Err(SpecError::WorkingDirectory {
            path: declared.to_owned(),
        });
    }
    Ok(path)
}

/// What execve would refuse with no word on which of them it was.
fn check_lengths(arguments: &[String], environment: &[String]) -> Result<(), SpecError> {
    let name = |line: &String| {
        let name = line.split_once('=').map_or("", |(name, _)| name);
        let name: String = name.chars().take(64).collect();
        format!("the variable {name}")
    };
    let arguments = arguments
        .iter()
        .map(|text| (text.len(), "an argument of the command".to_owned()));
    let variables = environment.iter().map(|line| (line.len(), name(line)));
    let mut together = 0;
    for (len_bytes, what) in arguments.chain(variables) {
        if len_bytes > TEXT_LEN_MAX {
            return Err(SpecError::Long { what, len_bytes });
        }
        // With its NUL, and a pointer to it.
        together += len_bytes + 1 + size_of::<usize>();
    }
    if together > TEXTS_LEN_MAX {
        return Err(SpecError::LongTogether { len_bytes: together });
    }
    Ok(())
}

fn user(user: &ImageUser) -> Result<User, SpecError> {
    Ok(UserBuilder::default()
        .uid(user.uid)
        .gid(user.gid)
        .additional_gids(user.additional_gids.clone())
        .build()?)
}

fn arguments(input: &SpecInput) -> Result<Vec<String>, SpecError> {
    let arguments = match &input.command {
        Some(command) if !command.is_empty() => command.clone(),
        _ => [input.image.entrypoint.as_slice(), input.image.cmd.as_slice()].concat(),
    };
    if arguments.first().is_none_or(String::is_empty) {
        return Err(SpecError::NoCommand);
    }
    if arguments.iter().any(|argument| argument.contains('\0')) {
        return Err(SpecError::Argument);
    }
    Ok(arguments)
}

/// The image's variables in its order, those declared over them, and what every program expects to find.
fn environment(input: &SpecInput) -> Result<Vec<String>, SpecError> {
    let mut variables: Vec<String> = Vec::new();
    let mut set = |name: &str, line: String| {
        let is_same = |other: &String| other.split_once('=').is_some_and(|(other, _)| other == name);
        match variables.iter_mut().find(|other| is_same(other)) {
            Some(place) => *place = line,
            None => variables.push(line),
        }
    };
    set("PATH", DEFAULT_PATH.to_owned());
    set("HOSTNAME", format!("HOSTNAME={}", input.hostname));
    let home = input.user.home.as_deref().filter(|home| !home.is_empty());
    let default_home = if input.user.uid == 0 { "/root" } else { "/" };
    set("HOME", format!("HOME={}", home.unwrap_or(default_home)));
    for line in &input.image.env {
        // What an image declares without a value is nothing that could be set.
        if let Some((name, _)) = line.split_once('=') {
            if line.contains('\0') {
                return Err(SpecError::VariableValue {
                    name: name.replace('\0', ""),
                });
            }
            set(name, line.clone());
        }
    }
    for (name, value) in &input.env {
        if name.is_empty() || name.contains(['=', '\0']) {
            return Err(SpecError::VariableName { name: name.clone() });
        }
        if value.contains('\0') {
            return Err(SpecError::VariableValue { name: name.clone() });
        }
        set(name, format!("{name}={value}"));
    }
    Ok(variables)
}

/// No ambient and no inheritable ones: a program that is not root gets none.
fn capabilities() -> Result<LinuxCapabilities, SpecError> {
    let set: HashSet<Capability> = CAPABILITIES.into_iter().collect();
    Ok(LinuxCapabilitiesBuilder::default()
        .bounding(set.clone())
        .effective(set.clone())
        .permitted(set)
        .inheritable(HashSet::new())
        .ambient(HashSet::new())
        .build()?)
}

fn namespaces(network: &Path) -> Result<Vec<LinuxNamespace>, SpecError> {
    let mut namespaces = Vec::new();
    for typ in [
        LinuxNamespaceType::Pid,
        LinuxNamespaceType::Ipc,
        LinuxNamespaceType::Uts,
        LinuxNamespaceType::Mount,
        LinuxNamespaceType::Cgroup,
    ] {
        namespaces.push(LinuxNamespaceBuilder::default().typ(typ).build()?);
    }
    let network = LinuxNamespaceBuilder::default()
        .typ(LinuxNamespaceType::Network)
        .path(absolute("network namespace", network)?)
        .build()?;
    namespaces.push(network);
    Ok(namespaces)
}

/// A program that is not root may listen on port 80 and may ping without raw sockets.
fn sysctls() -> HashMap<String, String> {
    HashMap::from([
        ("net.ipv4.ip_unprivileged_port_start".into(), "0".into()),
        ("net.ipv4.ping_group_range".into(), "0 2147483647".into()),
    ])
}

fn mounts(input: &SpecInput) -> Result<Vec<Mount>, SpecError> {
    let mut mounts = Vec::new();
    for (destination, typ, options) in SYSTEM_MOUNTS {
        let mount = MountBuilder::default()
            .destination(*destination)
            .typ(*typ)
            .source(*typ)
            .options(owned(options))
            .build()?;
        mounts.push(mount);
    }
    for (source, destination) in [
        (&input.resolv_conf, "/etc/resolv.conf"),
        (&input.hosts, "/etc/hosts"),
        (&input.hostname_file, "/etc/hostname"),
    ] {
        mounts.push(bind(source, Path::new(destination), Access::ReadOnly)?);
    }
    for mount in &input.mounts {
        mounts.push(bind(&mount.source, &mount.destination, mount.access)?);
    }
    Ok(mounts)
}

/// Destination, type (also the source) and options.
const SYSTEM_MOUNTS: &[(&str, &str, &[&str])] = &[
    ("/proc", "proc", &["nosuid", "noexec", "nodev"]),
    (
        "/dev",
        "tmpfs",
        &["nosuid", "strictatime", "mode=755", "size=65536k"],
    ),
    (
        "/dev/pts",
        "devpts",
        &[
            "nosuid",
            "noexec",
            "newinstance",
            "ptmxmode=0666",
            "mode=0620",
            "gid=5",
        ],
    ),
    (
        "/dev/shm",
        "tmpfs",
        &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"],
    ),
    ("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
    ("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
    (
        "/sys/fs/cgroup",
        "cgroup",
        &["nosuid", "noexec", "nodev", "relatime", "ro"],
    ),
];

fn bind(source: &Path, destination: &Path, access: Access) -> Result<Mount, SpecError> {
    let access = match access {
        Access::ReadWrite => "rw",
        Access::ReadOnly => "ro",
    };
    Ok(MountBuilder::default()
        .destination(absolute("mount path", destination)?)
        .typ("bind")
        .source(absolute("mount source", source)?)
        .options(owned(&["rbind", "rprivate", "nosuid", "nodev", access]))
        .build()?)
}

fn absolute(what: &'static str, path: &Path) -> Result<PathBuf, SpecError> {
    use std::path::Component;
    let clean = path
        .components()
        .all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    if path.is_absolute() && clean {
        return Ok(path.to_owned());
    }
    Err(SpecError::Path {
        what,
        path: path.to_owned(),
    })
}

fn owned(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_api::units::Bytes;
    use serde_json::{Value, json};

    fn input() -> SpecInput {
        SpecInput {
            command: None,
            env: BTreeMap::new(),
            image: ImageConfig {
                entrypoint: vec!["/entry".into()],
                cmd: vec!["serve".into()],
                env: vec!["PATH=/bin".into(), "A=image".into(), "bare".into()],
                ..ImageConfig::default()
            },
            user: ImageUser::default(),
            hostname: "reader-0".into(),
            network_namespace: "/run/netns/r".into(),
            cgroup_path: "/berth/m1/r".into(),
            cpu: CpuRange {
                min: Cpu::parse("0.5").unwrap(),
                desired: Cpu::parse("1.5").unwrap(),
            },
            memory: MemoryRange {
                min: Bytes::mib(64),
                desired: Bytes::mib(128),
            },
            pids_max: PIDS_MAX,
            nofile_max: 4096,
            resolv_conf: "/run/r/resolv.conf".into(),
            hosts: "/run/r/hosts".into(),
            hostname_file: "/run/r/hostname".into(),
            mounts: vec![],
        }
    }

    fn rendered(input: &SpecInput) -> Value {
        serde_json::to_value(oci_spec(input).unwrap()).unwrap()
    }

    #[test]
    fn a_command_replaces_entrypoint_and_cmd() {
        assert_eq!(rendered(&input())["process"]["args"], json!(["/entry", "serve"]));
        let mut with_command = input();
        with_command.command = Some(vec!["/bin/other".into()]);
        assert_eq!(rendered(&with_command)["process"]["args"], json!(["/bin/other"]));
        let mut without = input();
        without.image = ImageConfig::default();
        assert_eq!(oci_spec(&without), Err(SpecError::NoCommand));
    }

    #[test]
    fn declared_variables_go_over_those_of_the_image() {
        let mut input = input();
        input.env = BTreeMap::from([("A".into(), "mine".into()), ("B".into(), "x=y".into())]);
        input.user.home = Some("/home/app".into());
        assert_eq!(
            rendered(&input)["process"]["env"],
            json!([
                "PATH=/bin",
                "HOSTNAME=reader-0",
                "HOME=/home/app",
                "A=mine",
                "B=x=y"
            ])
        );
    }

    #[test]
    fn limits_cap_at_desired_and_protect_min() {
        let resources = &rendered(&input())["linux"]["resources"];
        assert_eq!(
            resources["cpu"],
            json!({"shares": 512, "quota": 150_000, "period": 100_000})
        );
        let (limit, low) = (128 << 20, 64 << 20);
        assert_eq!(
            resources["memory"],
            json!({"limit": limit, "swap": limit, "reservation": low})
        );
        assert_eq!(resources["pids"], json!({"limit": 4096}));
        assert_eq!(resources["devices"], json!([{"allow": false, "access": "rwm"}]));
    }

    #[test]
    fn tiny_and_huge_shares_of_cpu_stay_in_the_kernels_bounds() {
        let range = |min: &str, desired: &str| CpuRange {
            min: Cpu::parse(min).unwrap(),
            desired: Cpu::parse(desired).unwrap(),
        };
        let limits = cpu_limits(range("0.000001", "0.000001")).unwrap();
        assert_eq!((limits.shares(), limits.quota()), (Some(2), Some(1000)));
        let limits = cpu_limits(range("1000", "1000")).unwrap();
        assert_eq!(
            (limits.shares(), limits.quota()),
            (Some(262_144), Some(100_000_000))
        );
        assert_eq!(cpu_limits(range("0", "0")), Err(SpecError::Zero("the CPU limit")));
    }

    #[test]
    fn nothing_of_the_host_is_shared() {
        let spec = rendered(&input());
        assert_eq!(
            spec["linux"]["namespaces"],
            json!([{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "cgroup"},
                   {"type": "network", "path": "/run/netns/r"}])
        );
        assert_eq!(spec["process"]["noNewPrivileges"], json!(true));
        let capabilities = spec["process"]["capabilities"]["bounding"].as_array().unwrap();
        assert_eq!(capabilities.len(), 12);
        assert!(!capabilities.contains(&json!("CAP_MKNOD")));
        assert!(!capabilities.contains(&json!("CAP_NET_RAW")));
        assert!(capabilities.contains(&json!("CAP_NET_BIND_SERVICE")));
        assert_eq!(spec["process"]["capabilities"]["ambient"], json!([]));
        assert!(
            spec["linux"]["maskedPaths"]
                .as_array()
                .unwrap()
                .contains(&json!("/proc/kcore"))
        );
        assert!(spec["linux"]["seccomp"].is_object());
    }

    #[test]
    fn mounts_keep_their_order_and_refuse_crooked_paths() {
        let mut input = input();
        let mount = |destination: &str, access| BindMount {
            source: "/var/lib/berth/v".into(),
            destination: destination.into(),
            access,
        };
        input.mounts = vec![
            mount("/data", Access::ReadWrite),
            mount("/models", Access::ReadOnly),
        ];
        let spec = rendered(&input);
        let mounts = spec["mounts"].as_array().unwrap();
        let last: Vec<&Value> = mounts.iter().rev().take(2).rev().collect();
        assert_eq!(last[0]["destination"], "/data");
        assert!(last[0]["options"].as_array().unwrap().contains(&json!("rw")));
        assert!(last[1]["options"].as_array().unwrap().contains(&json!("ro")));
        for crooked in ["data", "/data/../etc"] {
            input.mounts = vec![mount(crooked, Access::ReadWrite)];
            assert!(
                matches!(oci_spec(&input), Err(SpecError::Path { .. })),
                "{crooked}"
            );
        }
    }

    #[test]
    fn refuses_variables_that_cannot_be_set() {
        for (name, value) in [("", "x"), ("A=B", "x"), ("A", "x\0y")] {
            let mut input = input();
            input.env = BTreeMap::from([(name.into(), value.into())]);
            assert!(oci_spec(&input).is_err(), "{name:?}={value:?}");
        }
        let mut input = input();
        input.image.env = vec!["A=x\0y".into()];
        assert!(matches!(oci_spec(&input), Err(SpecError::VariableValue { name }) if name == "A"));
    }

    #[test]
    fn refuses_what_the_kernel_would_not_take() {
        let with = |change: &dyn Fn(&mut SpecInput)| {
            let mut input = input();
            change(&mut input);
            oci_spec(&input).map(|_| ()).map_err(|error| error.to_string())
        };
        let value = |len: usize| "x".repeat(len);
        assert_eq!(
            with(&|input| drop(input.env.insert("A".into(), value(TEXT_LEN_MAX - 2)))),
            Ok(())
        );
        let error = with(&|input| drop(input.env.insert("A".into(), value(TEXT_LEN_MAX - 1)))).unwrap_err();
        assert!(error.contains("the variable A has 131072 bytes"), "{error}");
        let error = with(&|input| input.command = Some(vec!["/a".into(), value(1 << 20)])).unwrap_err();
        assert!(
            error.contains("an argument of the command has 1048576 bytes"),
            "{error}"
        );
        let error = with(&|input| {
            input.env = (0..100)
                .map(|number| (format!("A{number}"), value(20_000)))
                .collect();
        });
        assert!(error.unwrap_err().contains("together"));
        let many = with(&|input| input.command = Some(vec!["/a".into(); 200_000]));
        assert!(many.unwrap_err().contains("together"), "many short ones");
    }

    #[test]
    fn the_working_directory_is_one_of_the_image() {
        for (declared, path) in [("", "/"), ("app", "/app"), ("/a/../../b/./c", "/b/c")] {
            assert_eq!(working_directory(declared), Ok(path.into()));
        }
        for declared in ["/proc/self/fd/8", "a/../../proc/self/cwd", "/a\0b"] {
            assert!(working_directory(declared).is_err(), "{declared:?}");
        }
    }
}
