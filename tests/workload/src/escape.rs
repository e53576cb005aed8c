//! Tries what no container may do, and says what it could.
//!
//! Every attempt is harmless where it succeeds: what it asks for is invalid beyond the permission, or changes nothing. So an answer
//! other than a refusal counts as "could".

#![expect(
    unsafe_code,
    reason = "system calls by number: the libraries have no name for most of these"
)]

use std::ffi::CString;
use std::fs::OpenOptions;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;

use crate::work::say;

/// Refusals: not permitted, not allowed, not there, no such call, read-only. Anything else has passed the permission.
const REFUSALS: [Errno; 8] = [
    Errno::EPERM,
    Errno::EACCES,
    Errno::ENOENT,
    Errno::ENOSYS,
    Errno::EROFS,
    Errno::ENXIO,
    Errno::EAFNOSUPPORT,
    Errno::ENODEV,
];

const METADATA: [&str; 3] = ["169.254.169.254:80", "168.63.129.16:80", "169.254.170.2:80"];
const METADATA_PATIENCE: Duration = Duration::from_secs(2);

type Attempt = (&'static str, fn() -> Result<(), Errno>);

/// A system call by its number. The pointers among the arguments are valid for the call or null.
fn call(number: libc::c_long, arguments: [usize; 5]) -> Result<i64, Errno> {
    let [a, b, c, d, e] = arguments;
    // SAFETY: the callers below pass null, numbers, or pointers to values that outlive the call and are as long as it expects.
    let result = unsafe { libc::syscall(number, a, b, c, d, e) };
    Errno::result(result)
}

fn done(number: libc::c_long, arguments: [usize; 5]) -> Result<(), Errno> {
    call(number, arguments).map(|_| ())
}

fn text(text: &str) -> CString {
    CString::new(text).unwrap_or_default()
}

fn mount(source: &str, target: &str, kind: &str, flags: libc::c_ulong) -> Result<(), Errno> {
    let (source, target, kind) = (text(source), text(target), text(kind));
    let flags = usize::try_from(flags).unwrap_or(0);
    done(
        libc::SYS_mount,
        [
            source.as_ptr() as usize,
            target.as_ptr() as usize,
            kind.as_ptr() as usize,
            flags,
            0,
        ],
    )
}

fn socket(family: i32, kind: i32, protocol: i32) -> Result<(), Errno> {
    let number = |number: i32| usize::try_from(number).unwrap_or(0);
    done(
        libc::SYS_socket,
        [number(family), number(kind), number(protocol), 0, 0],
    )
}

fn unshare(flag: i32) -> Result<(), Errno> {
    done(
        libc::SYS_unshare,
        [usize::try_from(flag).unwrap_or(0), 0, 0, 0, 0],
    )
}

/// Opens a file and closes it again; nothing is written.
fn open(path: &str, write: bool) -> Result<(), Errno> {
    let opened = OpenOptions::new().read(!write).write(write).open(path);
    opened.map(|_| ()).map_err(of_io)
}

/// Reads a byte: a masked file opens and is empty.
fn read(path: &str) -> Result<(), Errno> {
    use std::io::Read as _;
    let mut byte = [0];
    let mut file = OpenOptions::new().read(true).open(path).map_err(of_io)?;
    match file.read(&mut byte).map_err(of_io)? {
        0 => Err(Errno::EACCES),
        _ => Ok(()),
    }
}

fn of_io(error: std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(libc::EPERM))
}

/// Makes a device node and opens it.
fn device(name: &str, kind: libc::mode_t, major: u32, minor: u32) -> Result<(), Errno> {
    let path = format!("/tmp/{name}");
    let name = text(&path);
    let at = usize::try_from(libc::AT_FDCWD).unwrap_or(usize::MAX - 99);
    let mode = usize::try_from(kind | 0o600).unwrap_or(0);
    let number = usize::try_from(libc::makedev(major, minor)).unwrap_or(0);
    done(libc::SYS_mknodat, [at, name.as_ptr() as usize, mode, number, 0])?;
    let opened = open(&path, false);
    std::fs::remove_file(&path).ok();
    opened
}

fn connect(address: &str) -> Result<(), Errno> {
    let address: SocketAddr = address.parse().map_err(|_| Errno::EINVAL)?;
    let tried = TcpStream::connect_timeout(&address, METADATA_PATIENCE);
    // Refused by the firewall, silent or without a route: nobody there answers either way.
    tried.map(|_| ()).map_err(|_| Errno::EACCES)
}

/// A line of `/proc/self/status` that must hold a value; any other is a gap.
fn status_is(name: &str, wanted: &str) -> Result<(), Errno> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    match line {
        Some(value) if value.trim() == wanted => Err(Errno::EPERM),
        _ => Ok(()),
    }
}

/// `capset(2)` with every capability there is.
fn all_capabilities() -> Result<(), Errno> {
    const VERSION_3: u32 = 0x2008_0522;
    let header: [u32; 2] = [VERSION_3, 0];
    let data = [u32::MAX; 6];
    done(
        libc::SYS_capset,
        [header.as_ptr() as usize, data.as_ptr() as usize, 0, 0, 0],
    )
}

/// Sets the loopback interface to the flags that it has.
fn interface() -> Result<(), Errno> {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").map_err(of_io)?;
    let mut request = [0_u8; 40];
    request[..2].copy_from_slice(b"lo");
    request[16..18].copy_from_slice(&0x49_u16.to_ne_bytes());
    let fd = usize::try_from(std::os::fd::AsRawFd::as_raw_fd(&socket)).unwrap_or(0);
    let set_flags = usize::try_from(libc::SIOCSIFFLAGS).unwrap_or(0);
    done(libc::SYS_ioctl, [fd, set_flags, request.as_ptr() as usize, 0, 0])
}

fn more_files() -> Result<(), Errno> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard + 1, hard + 1)
}

fn real_time() -> Result<(), Errno> {
    let priority: libc::c_int = 50;
    let fifo = usize::try_from(libc::SCHED_FIFO).unwrap_or(1);
    done(
        libc::SYS_sched_setscheduler,
        [0, fifo, std::ptr::from_ref(&priority) as usize, 0, 0],
    )
}

fn key() -> Result<(), Errno> {
    let (kind, name, value) = (text("user"), text("berth"), text("x"));
    const PROCESS_KEYRING: usize = usize::MAX - 1;
    done(
        libc::SYS_add_key,
        [
            kind.as_ptr() as usize,
            name.as_ptr() as usize,
            value.as_ptr() as usize,
            1,
            PROCESS_KEYRING,
        ],
    )
}

fn clock() -> Result<(), Errno> {
    // ADJ_OFFSET_SINGLESHOT of nothing.
    let mut times = [0_u8; 256];
    times[..4].copy_from_slice(&0x8001_u32.to_ne_bytes());
    done(libc::SYS_adjtimex, [times.as_mut_ptr() as usize, 0, 0, 0, 0])
}

/// A handle of inode 2: the root of whatever lies under the container.
fn handle() -> Result<(), Errno> {
    let handle: [u32; 4] = [8, 1, 2, 0];
    let at = usize::try_from(libc::AT_FDCWD).unwrap_or(usize::MAX - 99);
    done(
        libc::SYS_open_by_handle_at,
        [at, handle.as_ptr() as usize, 0, 0, 0],
    )
}

const ATTEMPTS: &[Attempt] = &[
    ("mount a file system", || mount("none", "/tmp", "tmpfs", 0)),
    ("mount proc anew", || mount("proc", "/tmp", "proc", 0)),
    ("mount the host's cgroups", || {
        mount("cgroup", "/tmp", "cgroup", 0)
    }),
    ("bind a directory elsewhere", || {
        mount("/", "/tmp", "", libc::MS_BIND)
    }),
    ("make /proc/sys writable", || {
        mount("", "/proc/sys", "", libc::MS_REMOUNT | libc::MS_BIND)
    }),
    ("unmount what masks /proc", || {
        let path = text("/proc/kcore");
        done(libc::SYS_umount2, [path.as_ptr() as usize, 2, 0, 0, 0])
    }),
    ("change the root", || {
        let path = text("/");
        done(
            libc::SYS_pivot_root,
            [path.as_ptr() as usize, path.as_ptr() as usize, 0, 0, 0],
        )
    }),
    ("make a user namespace", || unshare(libc::CLONE_NEWUSER)),
    ("make a mount namespace", || unshare(libc::CLONE_NEWNS)),
    ("make a network namespace", || unshare(libc::CLONE_NEWNET)),
    ("enter a namespace", || {
        let file = OpenOptions::new()
            .read(true)
            .open("/proc/self/ns/net")
            .map_err(of_io)?;
        let fd = usize::try_from(std::os::fd::AsRawFd::as_raw_fd(&file)).unwrap_or(0);
        done(libc::SYS_setns, [fd, 0, 0, 0, 0])
    }),
    ("open a file by its handle", handle),
    ("be traced", || done(libc::SYS_ptrace, [0; 5])),
    ("read another process's memory", || {
        done(libc::SYS_process_vm_readv, [1, 0, 0, 0, 0])
    }),
    ("take another process's file", || {
        done(libc::SYS_pidfd_getfd, [usize::MAX, 0, 0, 0, 0])
    }),
    ("compare processes of the kernel", || {
        done(libc::SYS_kcmp, [1, 1, 0, 0, 0])
    }),
    ("keep a key in the kernel", key),
    ("join a session of keys", || {
        done(libc::SYS_keyctl, [1, 0, 0, 0, 0])
    }),
    ("load a program into the kernel", || {
        done(libc::SYS_bpf, [0, 0, 0, 0, 0])
    }),
    ("count events of the processor", || {
        done(libc::SYS_perf_event_open, [0, 0, 0, 0, 0])
    }),
    ("handle page faults itself", || {
        done(libc::SYS_userfaultfd, [0; 5])
    }),
    ("queue calls past the filter", || {
        let parameters = [0_u8; 120];
        done(
            libc::SYS_io_uring_setup,
            [1, parameters.as_ptr() as usize, 0, 0, 0],
        )
    }),
    ("watch a file system", || done(libc::SYS_fanotify_init, [0; 5])),
    ("load a module", || done(libc::SYS_init_module, [0; 5])),
    ("load a module from a file", || {
        done(libc::SYS_finit_module, [0; 5])
    }),
    ("remove a module", || done(libc::SYS_delete_module, [0; 5])),
    ("load another kernel", || {
        done(libc::SYS_kexec_load, [0, 17, 0, 0, 0])
    }),
    ("restart the machine", || done(libc::SYS_reboot, [0; 5])),
    ("use a file as swap", || {
        let path = text("/nowhere");
        done(libc::SYS_swapon, [path.as_ptr() as usize, 0, 0, 0, 0])
    }),
    ("account for processes", || done(libc::SYS_acct, [0; 5])),
    ("rename the machine", || {
        let name = text("escaped");
        done(libc::SYS_sethostname, [name.as_ptr() as usize, 7, 0, 0, 0])
    }),
    ("set the clock", clock),
    ("read the kernel's log", || {
        let buffer = [0_u8; 16];
        done(libc::SYS_syslog, [3, buffer.as_ptr() as usize, 16, 0, 0])
    }),
    ("speak to input and output ports", || {
        done(libc::SYS_ioperm, [0, 1, 1, 0, 0])
    }),
    ("sniff on the network", || {
        socket(libc::AF_PACKET, libc::SOCK_RAW, 0)
    }),
    ("forge packets", || {
        socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP)
    }),
    ("forge packets of IPv6", || {
        socket(libc::AF_INET6, libc::SOCK_RAW, 58)
    }),
    ("use the kernel's ciphers", || {
        socket(libc::AF_ALG, libc::SOCK_SEQPACKET, 0)
    }),
    ("speak to the hypervisor", || {
        socket(libc::AF_VSOCK, libc::SOCK_STREAM, 0)
    }),
    ("change an interface", interface),
    ("read a disk", || device("disk", libc::S_IFBLK, 8, 0)),
    ("read another disk", || device("vdisk", libc::S_IFBLK, 254, 0)),
    ("read memory", || device("mem", libc::S_IFCHR, 1, 1)),
    ("read the log device", || device("kmsg", libc::S_IFCHR, 1, 11)),
    ("make a tunnel", || device("tun", libc::S_IFCHR, 10, 200)),
    ("make a file system of its own", || {
        device("fuse", libc::S_IFCHR, 10, 229)
    }),
    ("set the core pattern", || {
        open("/proc/sys/kernel/core_pattern", true)
    }),
    ("drop caches", || open("/proc/sys/vm/drop_caches", true)),
    ("forward packets", || open("/proc/sys/net/ipv4/ip_forward", true)),
    ("press system keys", || open("/proc/sysrq-trigger", true)),
    ("move interrupts", || open("/proc/irq/0/smp_affinity", true)),
    ("read the kernel's memory", || read("/proc/kcore")),
    ("read keys", || read("/proc/keys")),
    ("read timers", || read("/proc/timer_list")),
    ("name a helper of the kernel", || {
        open("/sys/kernel/uevent_helper", true)
    }),
    ("read firmware", || {
        let mut entries = std::fs::read_dir("/sys/firmware").map_err(of_io)?;
        entries.next().map(|_| ()).ok_or(Errno::EACCES)
    }),
    ("raise its own memory limit", || {
        open("/sys/fs/cgroup/memory/memory.limit_in_bytes", true)
            .or_else(|_| open("/sys/fs/cgroup/memory.max", true))
    }),
    ("leave its cgroup", || {
        open("/sys/fs/cgroup/memory/cgroup.procs", true)
            .or_else(|_| open("/sys/fs/cgroup/cgroup.procs", true))
    }),
    ("name a release agent", || {
        open("/sys/fs/cgroup/memory/release_agent", true)
    }),
    ("find the runtime's socket", || {
        ["/run/containerd/containerd.sock", "/var/run/docker.sock"]
            .iter()
            .find(|path| std::path::Path::new(path).exists())
            .map(|_| ())
            .ok_or(Errno::ENOENT)
    }),
    ("take all capabilities", all_capabilities),
    ("gain privileges by a program", || status_is("NoNewPrivs:", "1")),
    ("call the kernel unfiltered", || status_is("Seccomp:", "2")),
    ("run before all others", || {
        // Of a process: its own.
        let lowest = usize::MAX - 19;
        done(libc::SYS_setpriority, [0, 0, lowest, 0, 0])
    }),
    ("run in real time", real_time),
    ("open more files than it may", more_files),
    ("change its personality", || {
        done(libc::SYS_personality, [0x040_0000, 0, 0, 0, 0])
    }),
    ("reach AWS's and Google's metadata", || connect(METADATA[0])),
    ("reach Azure's platform address", || connect(METADATA[1])),
    ("reach the container credentials address", || connect(METADATA[2])),
];

/// Tries all, and says what it could, in a line at the end that a test can wait for.
pub(crate) fn try_all() {
    let mut could = 0;
    for (name, attempt) in ATTEMPTS {
        match attempt() {
            Err(error) if REFUSALS.contains(&error) => {}
            Err(error) => {
                could += 1;
                say(&format!("could {name}: {error} is no refusal"));
            }
            Ok(()) => {
                could += 1;
                say(&format!("could {name}"));
            }
        }
    }
    say(&format!("tried {}, could {could}", ATTEMPTS.len()));
}
