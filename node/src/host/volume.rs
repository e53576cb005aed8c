//! Volumes of platform `local`: directories on storage that every machine can reach.
//!
//! A path is walked from the configured root one name at a time, never over a symbolic link, so that nothing a replica
//! or a stack writes can lead outside. A claim file in the directory says whose it is: (cluster, container, ordinal).
//! The same owner may come from another machine, because the scheduler moves a stateful replica only after the old
//! machine is gone; another owner is refused, because two would write over each other.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use berth_api::id::{ClusterId, ContainerName, MachineId};
use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

/// Name of the claim in the volume's directory.
pub const CLAIM_FILE: &str = ".berth-volume";
const CLAIM_FILE_NEW: &str = ".berth-volume.new";
/// A claim has a few hundred bytes.
const CLAIM_LEN_MAX: u64 = 16 * 1024;

/// Whose volume a directory is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VolumeOwner {
    pub cluster_id: ClusterId,
    pub container: ContainerName,
    pub ordinal: u32,
}

/// A directory that is ready to be mounted into a replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostpathVolume {
    /// No part of it is a symbolic link.
    pub path: PathBuf,
    pub created: Created,
    /// The machine whose claim of the same owner was taken over, when it was another one.
    pub taken_over_from: Option<MachineId>,
}

/// Whether a directory was there before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Created {
    Now,
    Before,
}

/// What is wrong with a hostpath.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    #[error("hostpath {path:?} is not absolute, or has '.' or '..' in it; write the real path")]
    NotNormal { path: String },
    #[error("hostpath {path:?} is not below {root}, the hostpath_root of this machine")]
    Outside { path: String, root: PathBuf },
    #[error("{path} is a symbolic link or no directory; write the real path")]
    NotADirectory { path: PathBuf },
    #[error(
        "{path} is the volume of {}-{} of cluster {}, claimed by machine {machine_id}; \
         if that replica is gone for good, delete {path}/{CLAIM_FILE}",
        owner.container, owner.ordinal, owner.cluster_id
    )]
    Claimed {
        path: PathBuf,
        owner: Box<VolumeOwner>,
        machine_id: MachineId,
    },
    #[error("the claim {path} cannot be read; if you know whose volume it is, delete the file")]
    UnreadableClaim { path: PathBuf },
    #[error("{doing} {path}")]
    File {
        doing: &'static str,
        path: PathBuf,
        source: io::Error,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Claim {
    owner: VolumeOwner,
    machine_id: MachineId,
}

/// The hostpath volumes of this machine. All calls block and may hang with the storage: give them a thread and a
/// deadline.
#[derive(Debug, Clone)]
pub struct HostpathVolumes {
    machine_id: MachineId,
    root: Option<PathBuf>,
}

/// An open directory and whether it was made now.
struct Directory {
    fd: OwnedFd,
    path: PathBuf,
    created: Created,
}

impl HostpathVolumes {
    /// `root`: the only directory under which volumes and shared mounts may lie.
    #[must_use]
    pub fn new(machine_id: MachineId, root: Option<PathBuf>) -> Self {
        Self { machine_id, root }
    }

    /// Makes the directory if it is missing and claims it for `owner`. Idempotent.
    ///
    /// # Errors
    /// When the path is not allowed, or another owner holds it; the error says how to mend.
    pub fn claim(&self, path: &str, owner: &VolumeOwner) -> Result<HostpathVolume, VolumeError> {
        let directory = self.walk(path)?;
        let wanted = Claim {
            owner: owner.clone(),
            machine_id: self.machine_id.clone(),
        };
        let mut taken_over_from = None;
        match directory.claim()? {
            Some(present) if present == wanted => {}
            Some(present) if present.owner == wanted.owner => {
                directory.write_claim(&wanted)?;
                taken_over_from = Some(present.machine_id);
            }
            Some(present) => {
                return Err(VolumeError::Claimed {
                    path: directory.path,
                    owner: Box::new(present.owner),
                    machine_id: present.machine_id,
                });
            }
            None => directory.write_claim(&wanted)?,
        }
        Ok(HostpathVolume {
            path: directory.path,
            created: directory.created,
            taken_over_from,
        })
    }

    /// Gives the claim up, if it is `owner`'s on this machine. Idempotent. The data stay.
    ///
    /// # Errors
    /// When the claim cannot be read or removed.
    pub fn release(&self, path: &str, owner: &VolumeOwner) -> Result<(), VolumeError> {
        let (base, names) = self.split(path)?;
        if !base.join(names).exists() {
            return Ok(());
        }
        let directory = self.walk(path)?;
        let is_ours = directory
            .claim()?
            .is_some_and(|claim| claim.owner == *owner && claim.machine_id == self.machine_id);
        if !is_ours {
            return Ok(());
        }
        match rustix::fs::unlinkat(&directory.fd, CLAIM_FILE, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(directory.failed("removing the claim in")(errno)),
        }
    }

    /// A directory that several replicas share (a linked storage resource): made if missing, never claimed.
    ///
    /// # Errors
    /// When the path is not allowed.
    pub fn shared(&self, path: &str) -> Result<PathBuf, VolumeError> {
        self.walk(path).map(|directory| directory.path)
    }

    /// Where the walk begins and the names it goes through.
    fn split<'a>(&self, path: &'a str) -> Result<(PathBuf, &'a Path), VolumeError> {
        let not_normal = || VolumeError::NotNormal { path: path.into() };
        let given = Path::new(path);
        // Compared with the text because `components` drops '.' and doubled slashes without a word.
        let normal: PathBuf = given.components().collect();
        let is_plain = given
            .components()
            .all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
        if !given.is_absolute() || !is_plain || normal.as_os_str() != given.as_os_str() {
            return Err(not_normal());
        }
        let Some(root) = &self.root else {
            let names = given.strip_prefix("/").map_err(|_| not_normal())?;
            return if names.as_os_str().is_empty() {
                Err(not_normal())
            } else {
                Ok(("/".into(), names))
            };
        };
        let real_root = std::fs::canonicalize(root).map_err(|source| VolumeError::File {
            doing: "resolving the hostpath_root",
            path: root.clone(),
            source,
        })?;
        let names = given
            .strip_prefix(root)
            .or_else(|_| given.strip_prefix(&real_root))
            .ok()
            .filter(|names| !names.as_os_str().is_empty())
            .ok_or_else(|| VolumeError::Outside {
                path: path.into(),
                root: root.clone(),
            })?;
        Ok((real_root, names))
    }

    /// Opens the directory, making what is missing with mode 0755.
    fn walk(&self, path: &str) -> Result<Directory, VolumeError> {
        let (base, names) = self.split(path)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(&base, flags, Mode::empty()).map_err(|errno| VolumeError::File {
            doing: "opening",
            path: base.clone(),
            source: errno.into(),
        })?;
        let mut directory = Directory {
            fd,
            path: base,
            created: Created::Before,
        };
        for name in names.components() {
            directory = directory.descend(Path::new(name.as_os_str()))?;
        }
        Ok(directory)
    }
}

impl Directory {
    fn descend(self, name: &Path) -> Result<Self, VolumeError> {
        let path = self.path.join(name);
        let created = match rustix::fs::mkdirat(&self.fd, name, Mode::from_raw_mode(0o755)) {
            Ok(()) => Created::Now,
            Err(Errno::EXIST) => Created::Before,
            Err(errno) => {
                return Err(VolumeError::File {
                    doing: "making",
                    path,
                    source: errno.into(),
                });
            }
        };
        let opened = rustix::fs::openat2(
            &self.fd,
            name,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS,
        );
        match opened {
            Ok(fd) => Ok(Self { fd, path, created }),
            Err(Errno::LOOP | Errno::NOTDIR) => Err(VolumeError::NotADirectory { path }),
            Err(errno) => Err(VolumeError::File {
                doing: "opening",
                path,
                source: errno.into(),
            }),
        }
    }

    fn claim(&self) -> Result<Option<Claim>, VolumeError> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = match rustix::fs::openat(&self.fd, CLAIM_FILE, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(self.failed("reading the claim in")(errno)),
        };
        let mut text = Vec::new();
        File::from(fd)
            .take(CLAIM_LEN_MAX)
            .read_to_end(&mut text)
            .map_err(|source| VolumeError::File {
                doing: "reading the claim in",
                path: self.path.clone(),
                source,
            })?;
        serde_json::from_slice(&text)
            .map(Some)
            .map_err(|_| VolumeError::UnreadableClaim {
                path: self.path.join(CLAIM_FILE),
            })
    }

    /// By a rename, so that no reader ever sees half a claim.
    fn write_claim(&self, claim: &Claim) -> Result<(), VolumeError> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(0o600);
        let fd = rustix::fs::openat(&self.fd, CLAIM_FILE_NEW, flags, mode)
            .map_err(self.failed("writing the claim in"))?;
        let text = serde_json::to_vec_pretty(claim).expect("a claim has text keys");
        let mut file = File::from(fd);
        file.write_all(&text)
            .and_then(|()| file.sync_all())
            .map_err(|source| VolumeError::File {
                doing: "writing the claim in",
                path: self.path.clone(),
                source,
            })?;
        rustix::fs::renameat(&self.fd, CLAIM_FILE_NEW, &self.fd, CLAIM_FILE)
            .map_err(self.failed("writing the claim in"))
    }

    fn failed(&self, doing: &'static str) -> impl FnOnce(Errno) -> VolumeError {
        let path = self.path.clone();
        move |errno| VolumeError::File {
            doing,
            path,
            source: errno.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(ordinal: u32) -> VolumeOwner {
        VolumeOwner {
            cluster_id: ClusterId::new("c").unwrap(),
            container: ContainerName::new("writer").unwrap(),
            ordinal,
        }
    }

    fn volumes(machine: &str, root: &Path) -> HostpathVolumes {
        HostpathVolumes::new(MachineId::new(machine).unwrap(), Some(root.into()))
    }

    fn text(path: &Path) -> String {
        path.to_str().unwrap().into()
    }

    #[test]
    fn makes_claims_and_releases() {
        let root = tempfile::tempdir().unwrap();
        let path = text(&root.path().join("a/b"));
        let here = volumes("m1", root.path());
        let first = here.claim(&path, &owner(0)).unwrap();
        assert_eq!((first.created, first.taken_over_from), (Created::Now, None));
        let again = here.claim(&path, &owner(0)).unwrap();
        assert_eq!((again.created, again.taken_over_from), (Created::Before, None));

        let refused = here.claim(&path, &owner(1)).unwrap_err();
        assert!(refused.to_string().contains("writer-0 of cluster c"), "{refused}");
        assert!(refused.to_string().contains(CLAIM_FILE), "{refused}");

        let moved = volumes("m2", root.path()).claim(&path, &owner(0)).unwrap();
        assert_eq!(moved.taken_over_from.unwrap().as_str(), "m1");
        // The old machine comes back late: the claim is not its own any more.
        here.release(&path, &owner(0)).unwrap();
        assert!(here.claim(&path, &owner(1)).is_err());
        volumes("m2", root.path()).release(&path, &owner(0)).unwrap();
        here.claim(&path, &owner(1)).unwrap();
    }

    #[test]
    fn refuses_paths_that_leave_the_root() {
        let root = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        let here = volumes("m1", root.path());
        std::os::unix::fs::symlink(outside.path(), root.path().join("link")).unwrap();
        std::fs::write(root.path().join("file"), "").unwrap();
        for (path, is_expected) in [
            (
                text(&root.path().join("../x")),
                (|e| matches!(e, VolumeError::NotNormal { .. })) as fn(&_) -> _,
            ),
            (text(&root.path().join("./x")), |e| {
                matches!(e, VolumeError::NotNormal { .. })
            }),
            ("relative".into(), |e| matches!(e, VolumeError::NotNormal { .. })),
            (text(outside.path()), |e| matches!(e, VolumeError::Outside { .. })),
            (text(root.path()), |e| matches!(e, VolumeError::Outside { .. })),
            (text(&root.path().join("link/x")), |e| {
                matches!(e, VolumeError::NotADirectory { .. })
            }),
            (text(&root.path().join("link")), |e| {
                matches!(e, VolumeError::NotADirectory { .. })
            }),
            (text(&root.path().join("file")), |e| {
                matches!(e, VolumeError::NotADirectory { .. })
            }),
        ] {
            let error = here.shared(&path).unwrap_err();
            assert!(is_expected(&error), "{path}: {error}");
        }
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
    }

    #[test]
    fn an_unreadable_claim_is_not_written_over() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("v")).unwrap();
        std::fs::write(root.path().join("v").join(CLAIM_FILE), "{").unwrap();
        let error = volumes("m1", root.path())
            .claim(&text(&root.path().join("v")), &owner(0))
            .unwrap_err();
        assert!(matches!(error, VolumeError::UnreadableClaim { .. }));
    }
}
