//! The directory of programs: a link for each, its versions by digest, and the journal of what is under way.
//!
//! Everything is written beside, flushed and renamed, so that whatever is there is whole.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use sha2::{Digest as _, Sha256};

use super::{Journal, UpgradeError};

const JOURNAL: &str = "upgrade.json";
const LOCK: &str = "upgrade.lock";
/// Of a digest in a file's name: enough to tell versions apart.
const DIGEST_SHOWN: usize = 16;

#[derive(Debug)]
pub(super) struct Programs {
    dir: PathBuf,
    #[expect(dead_code, reason = "held: the lock lasts as long as the file is open")]
    lock: File,
}

fn at<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> UpgradeError + 'a {
    move |source| UpgradeError::File {
        what,
        path: path.to_owned(),
        source,
    }
}

impl Programs {
    /// Takes the directory for this caller alone.
    pub(super) fn open(dir: &Path) -> Result<Self, UpgradeError> {
        let path = dir.join(LOCK);
        let mut options = File::options();
        let lock = options.write(true).create(true).truncate(false).mode(0o600);
        let lock = lock.open(&path).map_err(at("opening", &path))?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(UpgradeError::Busy(path)),
            Err(error) => return Err(at("locking", &path)(error.into())),
        }
        Ok(Self {
            dir: dir.to_owned(),
            lock,
        })
    }

    /// Where a program's link leads: as it is written.
    pub(super) fn target(&self, name: &str) -> Result<PathBuf, UpgradeError> {
        let path = self.dir.join(name);
        std::fs::read_link(&path).map_err(|error| match error.kind() {
            io::ErrorKind::InvalidInput => UpgradeError::NoLink(path),
            _ => at("reading the link", &path)(error),
        })
    }

    /// The file that a link's target means.
    pub(super) fn resolve(&self, target: &Path) -> PathBuf {
        self.dir.join(target)
    }

    /// Copies a version into the directory, once its digest is the one that was asked for. What its link would lead to.
    pub(super) fn stage(&self, name: &str, file: &Path, sha256: &str) -> Result<PathBuf, UpgradeError> {
        let expected = sha256.to_ascii_lowercase();
        let shown = expected.get(..DIGEST_SHOWN).unwrap_or(&expected);
        let is_digest = expected.len() == 64 && expected.bytes().all(|byte| byte.is_ascii_hexdigit());
        let part = self.dir.join(format!("{name}.part"));
        let found = copy(file, &part).map_err(at("staging", file))?;
        if found != expected || !is_digest {
            drop(std::fs::remove_file(&part));
            return Err(UpgradeError::Digest {
                path: file.to_owned(),
                found,
                expected,
            });
        }
        let staged = PathBuf::from(format!("{name}-{shown}"));
        let path = self.dir.join(&staged);
        // A program that runs is not overwritten: it is this one.
        if path.exists() && self.target(name)? == staged {
            drop(std::fs::remove_file(&part));
        } else {
            std::fs::rename(&part, &path).map_err(at("staging", &path))?;
            self.flush()?;
        }
        Ok(staged)
    }

    /// Lets a link lead elsewhere, in one step.
    pub(super) fn point(&self, name: &str, target: &Path) -> Result<(), UpgradeError> {
        let (link, next) = (self.dir.join(name), self.dir.join(format!("{name}.next")));
        let replace = || {
            match std::fs::remove_file(&next) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            }
            std::os::unix::fs::symlink(target, &next)?;
            std::fs::rename(&next, &link)
        };
        replace().map_err(at("switching", &link))?;
        self.flush()
    }

    pub(super) fn journal(&self) -> Result<Option<Journal>, UpgradeError> {
        let path = self.dir.join(JOURNAL);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(at("reading", &path)(error)),
        };
        let journal = serde_json::from_slice(&bytes).map_err(io::Error::from);
        journal.map(Some).map_err(at("reading", &path))
    }

    pub(super) fn begin(&self, journal: &Journal) -> Result<(), UpgradeError> {
        let (path, part) = (self.dir.join(JOURNAL), self.dir.join("upgrade.json.part"));
        let write = || {
            let mut file = File::create(&part)?;
            serde_json::to_writer_pretty(&mut file, journal).map_err(io::Error::from)?;
            file.sync_all()?;
            std::fs::rename(&part, &path)
        };
        write().map_err(at("writing", &path))?;
        self.flush()
    }

    /// The new version stays. Of the others the former is kept: the next upgrade may lead back to it.
    pub(super) fn end(&self, journal: &Journal) -> Result<(), UpgradeError> {
        let name = journal.program.name();
        let kept = [&journal.from, &journal.to];
        let versions = std::fs::read_dir(&self.dir).map_err(at("listing", &self.dir))?;
        for entry in versions.flatten() {
            let file = PathBuf::from(entry.file_name());
            let of_program = file
                .to_str()
                .and_then(|file| file.strip_prefix(name)?.strip_prefix('-'));
            let is_version = of_program.is_some_and(|rest| rest.len() == DIGEST_SHOWN);
            if is_version && !kept.contains(&&file) {
                // It only takes room.
                drop(std::fs::remove_file(entry.path()));
            }
        }
        self.forget()
    }

    /// The former stays; the new version goes.
    pub(super) fn give_up(&self, journal: &Journal) -> Result<(), UpgradeError> {
        drop(std::fs::remove_file(self.dir.join(&journal.to)));
        self.forget()
    }

    fn forget(&self) -> Result<(), UpgradeError> {
        let path = self.dir.join(JOURNAL);
        std::fs::remove_file(&path).map_err(at("removing", &path))?;
        self.flush()
    }

    fn flush(&self) -> Result<(), UpgradeError> {
        let dir = File::open(&self.dir).and_then(|dir| dir.sync_all());
        dir.map_err(at("flushing", &self.dir))
    }
}

/// Copies a file, executable for its owner alone to write; the SHA-256 of what was written.
fn copy(from: &Path, to: &Path) -> io::Result<String> {
    let mut from = File::open(from)?;
    match std::fs::remove_file(to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut to = File::options()
        .write(true)
        .create_new(true)
        .mode(0o755)
        .open(to)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 256 << 10];
    loop {
        let read = from.read(&mut buffer)?;
        let Some(bytes) = buffer.get(..read).filter(|bytes| !bytes.is_empty()) else {
            break;
        };
        hash.update(bytes);
        to.write_all(bytes)?;
    }
    to.sync_all()?;
    let digest: [u8; 32] = hash.finalize().into();
    Ok(berth_api::assignment::Digest(digest).to_string())
}

#[cfg(test)]
mod tests {
    use berth_api::time::Timestamp;

    use super::super::Program;
    use super::*;

    fn digest_of(bytes: &[u8]) -> String {
        berth_api::assignment::Digest::of(bytes).to_string()
    }

    #[test]
    fn a_version_is_staged_by_its_digest_and_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("new");
        std::fs::write(&file, b"two").unwrap();
        let programs = Programs::open(dir.path()).unwrap();
        programs.point("berthd", Path::new("/usr/bin/berthd")).unwrap();
        for wrong in [digest_of(b"one"), "abc".into(), String::new()] {
            let refused = programs.stage("berthd", &file, &wrong).unwrap_err();
            assert!(matches!(refused, UpgradeError::Digest { .. }), "{refused}");
        }
        let staged = programs
            .stage("berthd", &file, &digest_of(b"two").to_uppercase())
            .unwrap();
        assert_eq!(std::fs::read(programs.resolve(&staged)).unwrap(), b"two");
        assert_eq!(
            programs.target("berthd").unwrap(),
            Path::new("/usr/bin/berthd"),
            "not switched"
        );
        assert!(!dir.path().join("berthd.part").exists());
        let second = Programs::open(dir.path()).unwrap_err();
        assert!(matches!(second, UpgradeError::Busy(_)), "{second}");
    }

    #[test]
    fn a_link_is_switched_and_the_former_version_kept_and_others_not() {
        let dir = tempfile::tempdir().unwrap();
        let programs = Programs::open(dir.path()).unwrap();
        let file = dir.path().join("new");
        let mut versions = Vec::new();
        for text in [b"one", b"two", b"six"] {
            std::fs::write(&file, text).unwrap();
            programs.point("berthd", Path::new("elsewhere")).unwrap();
            versions.push(programs.stage("berthd", &file, &digest_of(text)).unwrap());
        }
        let journal = Journal {
            program: Program::Berthd,
            from: versions[1].clone(),
            to: versions[2].clone(),
            began_at: Timestamp::from_millis(1),
            ready_within_seconds: 90,
        };
        programs.begin(&journal).unwrap();
        assert_eq!(programs.journal().unwrap(), Some(journal.clone()));
        programs.point("berthd", &journal.to).unwrap();
        assert_eq!(std::fs::read(dir.path().join("berthd")).unwrap(), b"six");
        programs.end(&journal).unwrap();
        assert_eq!(programs.journal().unwrap(), None);
        let left: Vec<bool> = versions
            .iter()
            .map(|version| programs.resolve(version).exists())
            .collect();
        assert_eq!(left, [false, true, true]);
        std::fs::remove_file(dir.path().join("berthd")).unwrap();
        std::fs::write(dir.path().join("berthd"), b"a file").unwrap();
        let refused = programs.target("berthd").unwrap_err();
        assert!(matches!(refused, UpgradeError::NoLink(_)), "{refused}");
    }
}
