//! `berthd bundle`: one archive with what somebody needs who was not there, and no secret in it.
//!
//! Input: the configuration, the status socket, the kernel's own files, programs that only read. Output: a gzip-compressed tar,
//! readable by root alone. Each part is collected by itself within a deadline: what hangs or is missing is noted in the manifest and
//! holds up nothing else. Assignments (their variables may be secrets), logs of replicas, keys and tokens are not collected, and
//! what a secret of this machine occurs in all the same is left out.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use berth_api::time::Timestamp;
use flate2::Compression;
use flate2::write::GzEncoder;

use crate::config::Config;
use crate::credentials::Store;
use crate::host::child;
use crate::host::image::Login;
use crate::inspect;

const PROGRAM_DEADLINE: Duration = Duration::from_secs(15);
/// Of each part, the last so many bytes: the newest lines of a log are at its end.
const PART_BYTES_MAX: usize = 8 << 20;
/// A shorter text is in anything by chance.
const SECRET_BYTES_MIN: usize = 8;

/// What is asked of programs: name of the part, program, arguments.
const PROGRAMS: [(&str, &str, &[&str]); 16] = [
    ("versions/containerd.txt", "containerd", &["--version"]),
    ("versions/runc.txt", "runc", &["--version"]),
    ("versions/nft.txt", "nft", &["--version"]),
    ("network/rules.txt", "nft", &["list", "ruleset"]),
    ("network/addresses.txt", "ip", &["-d", "-s", "address"]),
    ("network/routes.txt", "ip", &["route", "show", "table", "all"]),
    ("network/neighbours.txt", "ip", &["neighbour"]),
    ("network/sockets.txt", "ss", &["-tuanp"]),
    ("disks/free.txt", "df", &["-k"]),
    ("disks/inodes.txt", "df", &["-i"]),
    ("disks/devices.txt", "lsblk", &["-f"]),
    (
        "processes.txt",
        "ps",
        &["-eo", "pid,ppid,stat,rss,etimes,wchan:24,comm"],
    ),
    ("logs/kernel.txt", "dmesg", &[]),
    (
        "logs/berthd.txt",
        "journalctl",
        &["--no-pager", "-n", "20000", "-u", "berthd"],
    ),
    (
        "logs/keeper.txt",
        "journalctl",
        &["--no-pager", "-n", "5000", "-u", "berth-logkeeper"],
    ),
    (
        "logs/containerd.txt",
        "journalctl",
        &["--no-pager", "-n", "5000", "-u", "containerd"],
    ),
];

/// What the kernel says by itself.
const FILES: [&str; 9] = [
    "/proc/version",
    "/proc/uptime",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/self/mountinfo",
    "/proc/cgroups",
    "/proc/pressure/cpu",
    "/proc/pressure/memory",
    "/proc/pressure/io",
];

/// What became of a bundle.
#[derive(Debug)]
pub struct Bundle {
    pub path: PathBuf,
    /// Parts that are in it.
    pub parts: usize,
    /// Part and reason of each that is not.
    pub missing: Vec<(String, String)>,
}

#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    #[error("cannot write {path}")]
    Write { path: String, source: io::Error },
    #[error("the secret {path} cannot be read, so that nothing can be kept free of it; run this as root")]
    Secret { path: String, source: io::Error },
}

/// Collects and writes a bundle. A file that is there already is not overwritten.
///
/// # Errors
/// When the archive cannot be written, or a secret of this machine cannot be read and so not be looked for.
pub async fn write(config: &Config, config_file: &Path, path: PathBuf) -> Result<Bundle, BundleError> {
    let secrets = secrets(config)?;
    let failed = |source| BundleError::Write {
        path: path.display().to_string(),
        source,
    };
    let file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)
        .map_err(failed)?;
    let collected = collect(config, config_file).await;
    let mut missing = Vec::new();
    let mut parts = Vec::new();
    for (name, content) in collected {
        match content {
            Ok(content) if holds_any(&content, &secrets) => {
                missing.push((name, "left out: a secret of this machine occurs in it".to_owned()));
            }
            Ok(content) => parts.push((name, content)),
            // A program that failed is quoted.
            Err(reason) if holds_any(reason.as_bytes(), &secrets) => {
                missing.push((name, "a secret of this machine occurs in why".to_owned()));
            }
            Err(reason) => missing.push((name, reason)),
        }
    }
    let manifest = manifest(config, &parts, &missing);
    parts.insert(0, ("MANIFEST.txt".to_owned(), manifest.into_bytes()));
    archive(file, &parts).map_err(failed)?;
    Ok(Bundle {
        path,
        parts: parts.len(),
        missing,
    })
}

/// What must not leave the machine: each text, as it stands in its file.
fn secrets(config: &Config) -> Result<Vec<Vec<u8>>, BundleError> {
    let store = Store::new(&config.state_dir);
    let mut files = vec![config.token_file.clone(), store.key_file()];
    files.extend(
        config
            .registries
            .values()
            .filter_map(|registry| match &registry.login {
                Some(Login::Password { password_file, .. }) => Some(password_file.clone()),
                Some(Login::Helper(_)) | None => None,
            }),
    );
    let mut secrets = Vec::new();
    for path in files {
        match fs::read(&path) {
            Ok(content) => {
                let lines = content.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
                secrets.extend(
                    lines
                        .filter(|line| line.len() >= SECRET_BYTES_MIN)
                        .map(<[u8]>::to_vec),
                );
            }
            // The token goes once it was used; there is no key before the first enrolment.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => {
                return Err(BundleError::Secret {
                    path: path.display().to_string(),
                    source,
                });
            }
        }
    }
    // The armour of a key is in every key and every certificate.
    secrets.retain(|line| !line.starts_with(b"-----"));
    Ok(secrets)
}

fn holds_any(content: &[u8], secrets: &[Vec<u8>]) -> bool {
    let text = String::from_utf8_lossy(content);
    secrets
        .iter()
        .any(|secret| text.contains(&*String::from_utf8_lossy(secret)))
}

type Part = (String, Result<Vec<u8>, String>);

async fn collect(config: &Config, config_file: &Path) -> Vec<Part> {
    let mut parts: Vec<Part> = Vec::new();
    let socket = config.status_socket();
    let asked = tokio::task::spawn_blocking(move || inspect::ask(&socket));
    let status = match asked.await {
        Ok(Ok((document, status))) => {
            parts.push(("status.txt".into(), Ok(inspect::page(&status).into_bytes())));
            Ok(document.into_bytes())
        }
        Ok(Err(error)) => Err(crate::link::words(&error)),
        Err(error) => Err(error.to_string()),
    };
    parts.push(("status.json".into(), status));
    parts.push(("berthd.toml".into(), read(config_file)));
    for path in FILES {
        parts.push((format!("kernel{path}"), read(Path::new(path))));
    }
    for (name, dir) in [("state.txt", &config.state_dir), ("run.txt", &config.run_dir)] {
        parts.push((name.into(), list(dir).map(String::into_bytes)));
    }
    for (name, program, arguments) in PROGRAMS {
        let said = child::run(program, arguments, None, PROGRAM_DEADLINE).await;
        parts.push((
            name.into(),
            said.map(tail).map_err(|error| crate::link::words(&error)),
        ));
    }
    let socket = config.containerd_socket.display().to_string();
    for (name, what) in [
        ("containers", "containers"),
        ("tasks", "tasks"),
        ("images", "images"),
    ] {
        let arguments = [
            "--address",
            &socket,
            "--namespace",
            &config.containerd_namespace,
            what,
            "ls",
        ];
        let said = child::run("ctr", &arguments, None, PROGRAM_DEADLINE).await;
        let said = said.map(tail).map_err(|error| crate::link::words(&error));
        parts.push((format!("containerd/{name}.txt"), said));
    }
    parts
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    fs::read(path).map(tail).map_err(|error| error.to_string())
}

fn tail(mut content: Vec<u8>) -> Vec<u8> {
    let excess = content.len().saturating_sub(PART_BYTES_MAX);
    content.drain(..excess);
    content
}

/// Names, sizes and times, not contents.
fn list(dir: &Path) -> Result<String, String> {
    let mut lines = Vec::new();
    let mut dirs = vec![dir.to_path_buf()];
    while let Some(next) = dirs.pop() {
        for entry in fs::read_dir(&next).map_err(|error| format!("{}: {error}", next.display()))? {
            let Ok(entry) = entry else { continue };
            let Ok(metadata) = entry.metadata() else { continue };
            let changed = metadata
                .modified()
                .ok()
                .and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok())
                .map(|since| Timestamp::from_millis(0).plus(since).to_string())
                .unwrap_or_default();
            lines.push(format!("{} {} {changed}", entry.path().display(), metadata.len()));
            // Mounted disks of replicas are theirs.
            let is_shallow = next == dir;
            if metadata.is_dir() && is_shallow {
                dirs.push(entry.path());
            }
        }
    }
    lines.sort();
    Ok(lines.join("\n"))
}

fn manifest(config: &Config, parts: &[(String, Vec<u8>)], missing: &[(String, String)]) -> String {
    let mut text = format!(
        "berthd {} on machine {} of cluster {}, collected at {}\n\n\
         Not in here: assignments and their variables, logs of replicas, keys, tokens, passwords.\n\n",
        env!("CARGO_PKG_VERSION"),
        config.machine_id,
        config.cluster_id,
        Timestamp::now(),
    );
    for (name, content) in parts {
        text.push_str(&format!("{name}  {} bytes\n", content.len()));
    }
    for (name, reason) in missing {
        text.push_str(&format!("{name}  missing: {reason}\n"));
    }
    text
}

fn archive(file: fs::File, parts: &[(String, Vec<u8>)]) -> io::Result<()> {
    let mut archive = tar::Builder::new(GzEncoder::new(file, Compression::default()));
    for (name, content) in parts {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(Timestamp::now().millis() / 1000);
        archive.append_data(
            &mut header,
            Path::new("berth-bundle").join(name),
            content.as_slice(),
        )?;
    }
    let mut file = archive.into_inner()?.finish()?;
    file.flush()?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_found_wherever_it_stands_and_armour_is_none() {
        let secrets = vec![b"hj_0123456789".to_vec()];
        assert!(holds_any(b"token=hj_0123456789;", &secrets));
        assert!(!holds_any(b"token=hj_012345", &secrets));
        assert!(!holds_any(b"", &secrets));
    }

    #[test]
    fn of_a_long_part_the_end_is_kept() {
        let long = [vec![b'a'; PART_BYTES_MAX], b"end".to_vec()].concat();
        let kept = tail(long);
        assert_eq!(kept.len(), PART_BYTES_MAX);
        assert!(kept.ends_with(b"end"));
    }
}
