//! The system calls a container may make (P). Plain containerd applies no filter, so Berth renders its own.
//!
//! An allow list in the manner of the usual container engines: what programs need, less what reaches the kernel as a whole (modules,
//! mounts, namespaces, clocks, keys) and what looks into other processes (tracing them, reading their memory, taking their files).
//! What is not listed answers EPERM, so a program can go on; `clone3` answers ENOSYS, so that the C library falls back to `clone`,
//! whose flags a filter can read.

use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder, LinuxSeccompBuilder,
    LinuxSeccompOperator, LinuxSyscall, LinuxSyscallBuilder,
};

/// The processor whose system calls are filtered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Machine {
    X86_64,
    Aarch64,
}

impl Machine {
    /// The one this program was built for.
    #[must_use]
    pub const fn native() -> Self {
        if cfg!(target_arch = "aarch64") {
            Self::Aarch64
        } else {
            Self::X86_64
        }
    }

    /// Its system call tables: the native one alone. runc compiles the filter at each start, about 6 ms of processor
    /// time a table; calls through x32 or a 32-bit table end the process (docs/decisions/0007).
    fn architectures(self) -> Vec<Arch> {
        match self {
            Self::X86_64 => vec![Arch::ScmpArchX86_64],
            Self::Aarch64 => vec![Arch::ScmpArchAarch64],
        }
    }
}

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;
const AF_ALG: u64 = 38;
const AF_VSOCK: u64 = 40;
/// `CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET}`: a container makes no namespaces.
const CLONE_NEW_ANY: u64 = 0x7e02_0000;
/// Linux, 32-bit Linux, the same with UNAME26, and the question what it is.
const PERSONALITIES: [u64; 5] = [0x0, 0x0008, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// Allowed with any argument. Names that a processor does not have are skipped by the runtime.
#[rustfmt::skip]
const ALLOWED: &[&str] = &[
    // Files and directories.
    "access", "chdir", "chmod", "chown", "chown32", "close", "close_range", "copy_file_range", "creat", "dup", "dup2",
    "dup3", "faccessat", "faccessat2", "fadvise64", "fadvise64_64", "fallocate", "fchdir", "fchmod", "fchmodat",
    "fchmodat2", "fchown", "fchown32", "fchownat", "fcntl", "fcntl64", "fdatasync", "fgetxattr", "flistxattr", "flock",
    "fremovexattr", "fsetxattr", "fstat", "fstat64", "fstatat64", "fstatfs", "fstatfs64", "fsync", "ftruncate",
    "ftruncate64", "futimesat", "getcwd", "getdents", "getdents64", "getxattr", "getxattrat", "inotify_add_watch",
    "inotify_init", "inotify_init1", "inotify_rm_watch", "ioctl", "lchown", "lchown32", "lgetxattr", "link", "linkat",
    "listxattr", "listxattrat", "llistxattr", "_llseek", "lremovexattr", "lseek", "lsetxattr", "lstat", "lstat64",
    "mkdir", "mkdirat", "mknod", "mknodat", "name_to_handle_at", "newfstatat", "open", "openat", "openat2", "pread64",
    "preadv", "preadv2", "pwrite64", "pwritev", "pwritev2", "read", "readahead", "readlink", "readlinkat", "readv",
    "removexattr", "removexattrat", "rename", "renameat", "renameat2", "rmdir", "sendfile", "sendfile64", "setxattr",
    "setxattrat", "stat", "stat64", "statfs", "statfs64", "statx", "symlink", "symlinkat", "sync", "sync_file_range",
    "syncfs", "truncate", "truncate64", "umask", "unlink", "unlinkat", "utime", "utimensat", "utimensat_time64",
    "utimes", "write", "writev", "chroot", "cachestat", "statmount", "listmount",
    // Pipes, polling, events, asynchronous input and output (io_uring stays out: it bypasses this filter).
    "epoll_create", "epoll_create1", "epoll_ctl", "epoll_ctl_old", "epoll_pwait", "epoll_pwait2", "epoll_wait",
    "epoll_wait_old", "eventfd", "eventfd2", "io_cancel", "io_destroy", "io_getevents", "io_pgetevents",
    "io_pgetevents_time64", "io_setup", "io_submit", "pipe", "pipe2", "poll", "ppoll", "ppoll_time64", "pselect6",
    "pselect6_time64", "select", "_newselect", "signalfd", "signalfd4", "splice", "tee", "vmsplice",
    "timerfd_create", "timerfd_gettime", "timerfd_gettime64", "timerfd_settime", "timerfd_settime64",
    // Memory.
    "brk", "madvise", "map_shadow_stack", "membarrier", "memfd_create", "memfd_secret", "mincore", "mlock", "mlock2",
    "mlockall", "mmap", "mmap2", "mprotect", "mremap", "mseal", "msync", "munlock", "munlockall", "munmap",
    "pkey_alloc", "pkey_free", "pkey_mprotect", "process_madvise", "process_mrelease", "remap_file_pages",
    // Processes, threads, scheduling, signals.
    "alarm", "capget", "capset", "execve", "execveat", "exit", "exit_group", "fork", "futex", "futex_requeue",
    "futex_time64", "futex_wait", "futex_waitv", "futex_wake", "get_robust_list", "get_thread_area", "getcpu",
    "getegid", "getegid32", "geteuid", "geteuid32", "getgid", "getgid32", "getgroups", "getgroups32", "getitimer",
    "getpgid", "getpgrp", "getpid", "getppid", "getpriority", "getresgid", "getresgid32", "getresuid", "getresuid32",
    "getrlimit", "getrusage", "getsid", "gettid", "getuid", "getuid32", "ioprio_get", "ioprio_set", "kill",
    "landlock_add_rule", "landlock_create_ruleset", "landlock_restrict_self", "nanosleep", "pause", "pidfd_open",
    "pidfd_send_signal", "prctl", "prlimit64", "restart_syscall", "rseq", "rt_sigaction", "rt_sigpending", "rt_sigprocmask", "rt_sigqueueinfo", "rt_sigreturn",
    "rt_sigsuspend", "rt_sigtimedwait", "rt_sigtimedwait_time64", "rt_tgsigqueueinfo", "sched_get_priority_max",
    "sched_get_priority_min", "sched_getaffinity", "sched_getattr", "sched_getparam", "sched_getscheduler",
    "sched_rr_get_interval", "sched_rr_get_interval_time64", "sched_setaffinity", "sched_setattr", "sched_setparam",
    "sched_setscheduler", "sched_yield", "seccomp", "set_robust_list", "set_thread_area", "set_tid_address",
    "setfsgid", "setfsgid32", "setfsuid", "setfsuid32", "setgid", "setgid32", "setgroups", "setgroups32", "setitimer",
    "setpgid", "setpriority", "setregid", "setregid32", "setresgid", "setresgid32", "setresuid", "setresuid32",
    "setreuid", "setreuid32", "setrlimit", "setsid", "setuid", "setuid32", "sigaltstack", "sigprocmask", "sigreturn",
    "tgkill", "time", "timer_create", "timer_delete", "timer_getoverrun", "timer_gettime", "timer_gettime64",
    "timer_settime", "timer_settime64", "times", "tkill", "ugetrlimit", "vfork", "wait4", "waitid", "waitpid",
    // Clocks: reading and sleeping; setting one is not allowed, adjusting answers to the missing capability.
    "adjtimex", "clock_adjtime", "clock_adjtime64", "clock_getres", "clock_getres_time64", "clock_gettime",
    "clock_gettime64", "clock_nanosleep", "clock_nanosleep_time64", "gettimeofday",
    // Sockets; `socket` itself has conditions below.
    "accept", "accept4", "bind", "connect", "getpeername", "getsockname", "getsockopt", "listen", "recv", "recvfrom",
    "recvmmsg", "recvmmsg_time64", "recvmsg", "send", "sendmmsg", "sendmsg", "sendto", "setsockopt", "shutdown",
    "socketpair",
    // System V and POSIX inter-process communication, in the container's own namespace.
    "ipc", "mq_getsetattr", "mq_notify", "mq_open", "mq_timedreceive", "mq_timedreceive_time64", "mq_timedsend",
    "mq_timedsend_time64", "mq_unlink", "msgctl", "msgget", "msgrcv", "msgsnd", "semctl", "semget", "semop",
    "semtimedop", "semtimedop_time64", "shmat", "shmctl", "shmdt", "shmget",
    // What the system says of itself.
    "getrandom", "sysinfo", "uname",
];

/// Allowed on one processor only.
const ALLOWED_X86_64: &[&str] = &["arch_prctl", "modify_ldt", "uretprobe", "uprobe"];
const ALLOWED_AARCH64: &[&str] = &[
    "arm_fadvise64_64",
    "arm_sync_file_range",
    "breakpoint",
    "cacheflush",
    "set_tls",
    "sync_file_range2",
];

/// The profile of every container on `machine`.
///
/// # Panics
/// Never: the tables are complete.
#[must_use]
pub fn profile(machine: Machine) -> LinuxSeccomp {
    let own = match machine {
        Machine::X86_64 => ALLOWED_X86_64,
        Machine::Aarch64 => ALLOWED_AARCH64,
    };
    let mut rules = vec![allow(ALLOWED, None), allow(own, None)];
    rules.extend(PERSONALITIES.map(|value| {
        allow(
            &["personality"],
            Some(condition(LinuxSeccompOperator::ScmpCmpEq, value, None)),
        )
    }));
    // Rules of one call are alternatives. Kernel crypto sockets and those to the hypervisor stay out.
    rules.push(allow(
        &["socket"],
        Some(condition(LinuxSeccompOperator::ScmpCmpLt, AF_ALG, None)),
    ));
    rules.push(allow(
        &["socket"],
        Some(condition(LinuxSeccompOperator::ScmpCmpGt, AF_VSOCK, None)),
    ));
    // For a masked comparison the first value is the mask, the second what must remain.
    rules.push(allow(
        &["clone"],
        Some(condition(
            LinuxSeccompOperator::ScmpCmpMaskedEq,
            CLONE_NEW_ANY,
            Some(0),
        )),
    ));
    rules.push(refuse(&["clone3"], ENOSYS));
    LinuxSeccompBuilder::default()
        .default_action(LinuxSeccompAction::ScmpActErrno)
        .default_errno_ret(EPERM)
        .architectures(machine.architectures())
        .syscalls(rules)
        .build()
        .expect("every member of a profile is set above")
}

fn allow(names: &[&str], condition: Option<LinuxSeccompArg>) -> LinuxSyscall {
    let rule = LinuxSyscallBuilder::default()
        .names(owned(names))
        .action(LinuxSeccompAction::ScmpActAllow);
    let rule = match condition {
        Some(condition) => rule.args(vec![condition]),
        None => rule,
    };
    rule.build().expect("names and action of a rule are set")
}

fn refuse(names: &[&str], errno: u32) -> LinuxSyscall {
    LinuxSyscallBuilder::default()
        .names(owned(names))
        .action(LinuxSeccompAction::ScmpActErrno)
        .errno_ret(errno)
        .build()
        .expect("names and action of a rule are set")
}

/// A condition on the first argument of a call.
fn condition(operator: LinuxSeccompOperator, value: u64, value_two: Option<u64>) -> LinuxSeccompArg {
    let argument = LinuxSeccompArgBuilder::default()
        .index(0usize)
        .value(value)
        .op(operator);
    let argument = match value_two {
        Some(value_two) => argument.value_two(value_two),
        None => argument,
    };
    argument.build().expect("index, value and operator are set")
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn no_call_is_listed_twice() {
        for own in [ALLOWED_X86_64, ALLOWED_AARCH64] {
            let all: Vec<&str> = ALLOWED.iter().chain(own).copied().collect();
            let set: BTreeSet<&str> = all.iter().copied().collect();
            assert_eq!(set.len(), all.len());
        }
    }

    #[test]
    fn what_reaches_the_whole_kernel_is_not_allowed() {
        let refused = [
            "mount",
            "umount2",
            "unshare",
            "setns",
            "init_module",
            "finit_module",
            "delete_module",
            "kexec_load",
            "bpf",
            "perf_event_open",
            "keyctl",
            "add_key",
            "request_key",
            "clock_settime",
            "settimeofday",
            "reboot",
            "swapon",
            "io_uring_setup",
            "open_by_handle_at",
            "userfaultfd",
            "quotactl",
            "pivot_root",
            "iopl",
            "ioperm",
            "sethostname",
            "acct",
            "syslog",
            "clone3",
            "socket",
            "clone",
            "personality",
            "move_mount",
            "fsopen",
        ];
        for name in refused {
            assert!(!ALLOWED.contains(&name), "{name}");
        }
    }

    #[test]
    fn the_profile_is_read_back_as_the_runtime_reads_it() {
        let json = serde_json::to_value(profile(Machine::X86_64)).unwrap();
        assert_eq!(json["defaultAction"], "SCMP_ACT_ERRNO");
        assert_eq!(json["defaultErrnoRet"], 1);
        assert_eq!(json["architectures"][0], "SCMP_ARCH_X86_64");
        let rules = json["syscalls"].as_array().unwrap();
        let clone = rules.iter().find(|rule| rule["names"][0] == "clone").unwrap();
        assert_eq!(
            clone["args"][0],
            serde_json::json!({"index": 0, "value": 0x7e02_0000_u64, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"})
        );
        let clone3 = rules.iter().find(|rule| rule["names"][0] == "clone3").unwrap();
        assert_eq!(
            (&clone3["action"], &clone3["errnoRet"]),
            (&"SCMP_ACT_ERRNO".into(), &38.into())
        );
        assert_eq!(
            serde_json::to_value(profile(Machine::Aarch64)).unwrap()["architectures"][0],
            "SCMP_ARCH_AARCH64"
        );
    }
}
