//! Ephemeral storage: a file system of its own with a hard size for each replica, gone with the replica.
//!
//! Back end: ext4 without a journal in a sparse file over a loop device. It needs nothing of the host's file system, and
//! a trial proves it before the first use: a small one is made, written beyond its size, and must refuse. Deleted
//! bytes go back to the host (`discard`). A replica that fills its own gets ENOSPC and hurts nobody.
//!
//! The files are sparse, so they could together promise more than the host has, and a full host would fail them all.
//! [`Admission::Reserved`] refuses that: free bytes of the host, less what is promised and not yet written, must hold
//! the new size. Other writers on the same host file system are not seen in advance: give the store one of its own.
//!
//! ```text
//! dir/<hash of the replica id>/record.json   written first, removed last
//!                              image         formatted when it has this name
//!                              fs/           the mount, private
//! ```
//!
//! Removal ends only when no loop device holds the image any more: that is the proof that the file system is gone from
//! every mount namespace. mkfs, mount and umount run in children with deadlines.

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use berth_api::id::ReplicaId;
use berth_api::time::monotonic;
use berth_api::units::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::sync::OnceCell;

use crate::host::child::{self, ChildError};

/// mkfs takes 13 ms, mount and umount 40 ms each; a busy disk is given time, a hung one is not waited for.
const DEADLINE: Duration = Duration::from_secs(30);
/// How long a loop device may take to let go of its file after umount.
const RELEASE: Duration = Duration::from_secs(3);
const RELEASE_POLL: Duration = Duration::from_millis(20);
/// ext4 cannot be made sensibly below this; smaller wishes are rounded up.
const SIZE_MIN: Bytes = Bytes::mib(8);
/// Directories of the kernel's loop devices.
const BLOCK_DEVICES: &str = "/sys/block";

/// What the store is opened with.
#[derive(Debug, Clone)]
pub struct EphemeralConfig {
    /// Everything of the store lies under it; one directory per machine.
    pub dir: PathBuf,
    pub admission: Admission,
}

/// Whether file systems may promise together more bytes than the host has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Refuse a file system whose size, with all promised before, exceeds the free bytes. For real machines.
    Reserved,
    /// Accept. For `berth dev`, whose machines declare disks that the host does not have.
    Overcommitted,
}

/// One replica's file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EphemeralVolume {
    pub replica_id: ReplicaId,
    pub size: Bytes,
    /// Where it is mounted on the machine.
    pub path: PathBuf,
}

/// What went wrong with ephemeral storage.
#[derive(Debug, thiserror::Error)]
pub enum EphemeralError {
    #[error("no room for {} of ephemeral storage: {} are free and not promised", wanted.rounded(), free.rounded())]
    NoRoom { wanted: Bytes, free: Bytes },
    #[error("{doing} {path}")]
    File {
        doing: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("{doing} the file system of {replica_id}")]
    Child {
        doing: &'static str,
        replica_id: ReplicaId,
        source: ChildError,
    },
    #[error(
        "the file system of {replica_id} is unmounted but {device} still holds it: a process has it open"
    )]
    Held { replica_id: ReplicaId, device: String },
    #[error("this host cannot limit the size of a file system: {0} bytes went into one of 8 MiB")]
    Unlimited(u64),
    #[error("a blocking task stopped early")]
    Stopped,
}

/// What is kept beside an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Volume {
    replica_id: ReplicaId,
    size_bytes: u64,
}

/// The ephemeral file systems of this machine. One call per replica at a time; different replicas may overlap.
#[derive(Debug)]
pub struct Ephemeral {
    config: EphemeralConfig,
    /// Set when the trial has passed.
    trial: OnceCell<()>,
}

/// The files of one replica.
#[derive(Debug, Clone)]
struct Place(PathBuf);

impl Place {
    fn record(&self) -> PathBuf {
        self.0.join("record.json")
    }

    fn image(&self) -> PathBuf {
        self.0.join("image")
    }

    fn mount(&self) -> PathBuf {
        self.0.join("fs")
    }
}

impl Ephemeral {
    /// Opens the store. What is mounted stays mounted.
    ///
    /// # Errors
    /// When the directory cannot be made.
    pub async fn open(config: EphemeralConfig) -> Result<Self, EphemeralError> {
        fs::create_dir_all(&config.dir).map_err(failed("making", &config.dir))?;
        let dir = fs::canonicalize(&config.dir).map_err(failed("resolving", &config.dir))?;
        Ok(Self {
            config: EphemeralConfig { dir, ..config },
            trial: OnceCell::new(),
        })
    }

    /// Makes or finishes the file system of one replica and returns where it is mounted. Idempotent; one of another
    /// size is made anew, empty.
    ///
    /// # Errors
    /// When there is no room, the host cannot limit sizes, or refuses a step.
    pub async fn create(&self, replica_id: &ReplicaId, size: Bytes) -> Result<PathBuf, EphemeralError> {
        self.trial.get_or_try_init(|| self.try_limit()).await?;
        self.make(replica_id, size.max(SIZE_MIN)).await
    }

    /// Removes it and its bytes. Idempotent.
    ///
    /// # Errors
    /// When it cannot be unmounted, or is held; it stays listed and the next call goes on.
    pub async fn remove(&self, replica_id: &ReplicaId) -> Result<(), EphemeralError> {
        let place = self.place(replica_id);
        if !place.0.exists() {
            return Ok(());
        }
        self.unmount(replica_id, &place).await?;
        self.wait_released(replica_id, &place.image()).await?;
        // The record goes last: what is left names its replica until nothing is left.
        for path in [place.image(), place.image().with_extension("new")] {
            remove_file(&path)?;
        }
        match fs::remove_dir(place.mount()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("removing", &place.mount())(error));
            }
            Ok(()) | Err(_) => {}
        }
        remove_file(&place.record().with_extension("new"))?;
        remove_file(&place.record())?;
        fs::remove_dir(&place.0).map_err(failed("removing", &place.0))
    }

    /// Every file system here, half-made ones too.
    ///
    /// # Errors
    /// When the records cannot be read.
    pub async fn list(&self) -> Result<Vec<EphemeralVolume>, EphemeralError> {
        Ok(self
            .volumes()?
            .into_iter()
            .map(|(replica_id, (volume, place))| EphemeralVolume {
                replica_id,
                size: Bytes::new(volume.size_bytes),
                path: place.mount(),
            })
            .collect())
    }

    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.config.dir
    }

    /// Where a replica's file system is mounted, whether it exists or not.
    #[must_use]
    pub fn mount_path(&self, replica_id: &ReplicaId) -> PathBuf {
        self.place(replica_id).mount()
    }

    fn place(&self, replica_id: &ReplicaId) -> Place {
        let hash = Sha256::digest(replica_id.as_str());
        let name: String = hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        Place(self.config.dir.join(name))
    }

    fn volumes(&self) -> Result<BTreeMap<ReplicaId, (Volume, Place)>, EphemeralError> {
        let mut volumes = BTreeMap::new();
        for entry in fs::read_dir(&self.config.dir).map_err(failed("listing", &self.config.dir))? {
            let place = Place(entry.map_err(failed("listing", &self.config.dir))?.path());
            if let Some(volume) = read_record(&place)? {
                volumes.insert(volume.replica_id.clone(), (volume, place));
            }
        }
        Ok(volumes)
    }

    async fn make(&self, replica_id: &ReplicaId, size: Bytes) -> Result<PathBuf, EphemeralError> {
        let place = self.place(replica_id);
        let wanted = Volume {
            replica_id: replica_id.clone(),
            size_bytes: size.get(),
        };
        match read_record(&place)? {
            Some(present) if present == wanted => {}
            Some(_) => {
                self.remove(replica_id).await?;
                self.admit(size)?;
            }
            None => self.admit(size)?,
        }
        write_record(&place, &wanted)?;
        fs::create_dir_all(place.mount()).map_err(failed("making", &place.mount()))?;
        if !place.image().exists() {
            self.format(replica_id, &place, size).await?;
        }
        if !is_mounted(&place.mount())? {
            self.mount(replica_id, &place).await?;
        }
        let mount = place.mount();
        blocking(move || {
            // Any user of the image may write, as in /tmp; and some programs want an empty directory.
            fs::set_permissions(&mount, Permissions::from_mode(0o1777))
                .map_err(failed("opening to all", &mount))?;
            fs::remove_dir(mount.join("lost+found")).ok();
            Ok(mount)
        })
        .await
    }

    /// Free bytes of the host that nobody was promised must hold `size`.
    fn admit(&self, size: Bytes) -> Result<(), EphemeralError> {
        if self.config.admission == Admission::Overcommitted {
            return Ok(());
        }
        let host = rustix::fs::statvfs(&self.config.dir)
            .map_err(|errno| failed("measuring", &self.config.dir)(errno.into()))?;
        let mut free = host.f_bavail.saturating_mul(host.f_frsize);
        for (volume, place) in self.volumes()?.into_values() {
            let written = fs::metadata(place.image()).map_or(0, |image| image.blocks().saturating_mul(512));
            free = free.saturating_sub(volume.size_bytes.saturating_sub(written));
        }
        if size.get() <= free {
            return Ok(());
        }
        Err(EphemeralError::NoRoom {
            wanted: size,
            free: Bytes::new(free),
        })
    }

    /// The image has its name only when it is formatted, so a crash in between formats again. Invariant 7 (never format
    /// what may hold data) holds: the file is one that was made here, empty, a moment ago.
    async fn format(&self, replica_id: &ReplicaId, place: &Place, size: Bytes) -> Result<(), EphemeralError> {
        let new = place.image().with_extension("new");
        let file = File::create(&new).map_err(failed("making", &new))?;
        file.set_len(size.get()).map_err(failed("sizing", &new))?;
        drop(file);
        let path = new.to_string_lossy();
        let options = "lazy_itable_init=1,nodiscard,root_owner=0:0";
        let arguments = [
            "-q",
            "-F",
            "-m",
            "0",
            "-O",
            "^has_journal",
            "-E",
            options,
            path.as_ref(),
        ];
        child::run("mkfs.ext4", &arguments, None, DEADLINE)
            .await
            .map_err(|source| EphemeralError::Child {
                doing: "formatting",
                replica_id: replica_id.clone(),
                source,
            })?;
        fs::rename(&new, place.image()).map_err(failed("naming", &new))
    }

    async fn mount(&self, replica_id: &ReplicaId, place: &Place) -> Result<(), EphemeralError> {
        let (image, mount) = (place.image(), place.mount());
        let (image, mount) = (image.to_string_lossy(), mount.to_string_lossy());
        let arguments = [
            "--make-private",
            "-t",
            "ext4",
            "-o",
            "loop,discard,nosuid,nodev,noatime",
            &image,
            &mount,
        ];
        child::run("mount", &arguments, None, DEADLINE)
            .await
            .map(drop)
            .map_err(|source| EphemeralError::Child {
                doing: "mounting",
                replica_id: replica_id.clone(),
                source,
            })
    }

    /// Lazy only when the plain way fails: the name is then free, and whether the file system is gone is seen by its
    /// loop device.
    async fn unmount(&self, replica_id: &ReplicaId, place: &Place) -> Result<(), EphemeralError> {
        let mount = place.mount();
        let path = mount.to_string_lossy();
        while is_mounted(&mount)? {
            if child::run("umount", &[&path], None, DEADLINE).await.is_ok() {
                continue;
            }
            child::run("umount", &["--lazy", &path], None, DEADLINE)
                .await
                .map_err(|source| EphemeralError::Child {
                    doing: "unmounting",
                    replica_id: replica_id.clone(),
                    source,
                })?;
        }
        Ok(())
    }

    async fn wait_released(&self, replica_id: &ReplicaId, image: &Path) -> Result<(), EphemeralError> {
        let deadline = monotonic() + RELEASE;
        while let Some(device) = holder(image)? {
            if monotonic() >= deadline {
                return Err(EphemeralError::Held {
                    replica_id: replica_id.clone(),
                    device,
                });
            }
            tokio::time::sleep(RELEASE_POLL).await;
        }
        Ok(())
    }

    /// Makes the smallest file system, writes twice its size into it and expects to be stopped.
    async fn try_limit(&self) -> Result<(), EphemeralError> {
        let replica_id = ReplicaId::new("trial of the size limit").expect("a constant that is an id");
        self.remove(&replica_id).await?;
        let mount = self.make(&replica_id, SIZE_MIN).await?;
        let written = blocking(move || {
            let path = mount.join("overrun");
            let mut file = File::create(&path).map_err(failed("making", &path))?;
            let block = vec![0xBE; 256 * 1024];
            let mut written = 0_u64;
            while written < 2 * SIZE_MIN.get() {
                match file.write(&block) {
                    Ok(count) => written += u64::try_from(count).unwrap_or(u64::MAX),
                    Err(error) if error.kind() == io::ErrorKind::StorageFull => return Ok(None),
                    Err(error) => return Err(failed("overrunning", &path)(error)),
                }
            }
            Ok(Some(written))
        })
        .await;
        self.remove(&replica_id).await?;
        written?.map_or(Ok(()), |written| Err(EphemeralError::Unlimited(written)))
    }
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> EphemeralError {
    let path = path.to_owned();
    move |source| EphemeralError::File { doing, path, source }
}

/// Runs what may wait for the disk off the async threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, EphemeralError> + Send + 'static,
) -> Result<T, EphemeralError> {
    match tokio::time::timeout(DEADLINE, tokio::task::spawn_blocking(work)).await {
        Ok(Ok(result)) => result,
        Ok(Err(_)) | Err(_) => Err(EphemeralError::Stopped),
    }
}

fn remove_file(path: &Path) -> Result<(), EphemeralError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("removing", path)(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// `None` when there is none. One that cannot be read is none too: it was never finished, so nothing came after it.
fn read_record(place: &Place) -> Result<Option<Volume>, EphemeralError> {
    match fs::read(place.record()) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            Ok(None)
        }
        Err(error) => Err(failed("reading", &place.record())(error)),
    }
}

fn write_record(place: &Place, volume: &Volume) -> Result<(), EphemeralError> {
    fs::create_dir_all(&place.0).map_err(failed("making", &place.0))?;
    let bytes = serde_json::to_vec(volume).expect("a record has text keys");
    let new = place.record().with_extension("new");
    fs::write(&new, bytes).map_err(failed("writing", &new))?;
    fs::rename(&new, place.record()).map_err(failed("naming", &new))
}

/// Read from the kernel's list: asking the path itself could hang.
fn is_mounted(path: &Path) -> Result<bool, EphemeralError> {
    let list = Path::new("/proc/self/mountinfo");
    let mounts = fs::read_to_string(list).map_err(failed("reading", list))?;
    let path = path.to_string_lossy();
    // The fifth word is the mount point (proc_pid_mountinfo(5)); the store's names need no escapes, its directory's
    // blanks do.
    let escaped = path.replace('\\', "\\134").replace(' ', "\\040");
    Ok(mounts
        .lines()
        .any(|line| line.split(' ').nth(4) == Some(escaped.as_str())))
}

/// The loop device that has `image` open.
fn holder(image: &Path) -> Result<Option<String>, EphemeralError> {
    let devices = Path::new(BLOCK_DEVICES);
    for entry in fs::read_dir(devices).map_err(failed("listing", devices))? {
        let entry = entry.map_err(failed("listing", devices))?;
        // Missing when the device has no file.
        let Ok(file) = fs::read_to_string(entry.path().join("loop/backing_file")) else {
            continue;
        };
        let file = file.trim_end().trim_end_matches(" (deleted)");
        if Path::new(file) == image {
            return Ok(Some(entry.file_name().to_string_lossy().into_owned()));
        }
    }
    Ok(None)
}
