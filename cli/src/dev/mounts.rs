//! Mounts and loop devices below a directory: found in the kernel's own lists, taken away in killable children.

use std::path::{Path, PathBuf};

use super::layout::is_below;
use super::tool;

/// Mount points below `directory`, the latest first, so that each can go before what it lies on.
fn parse_mountinfo(text: &str, directory: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = text
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|field| PathBuf::from(unescape(field)))
        .filter(|path| is_below(path, directory))
        .collect();
    found.reverse();
    found
}

/// Undoes the octal escapes of mountinfo: space, tab, newline and backslash.
fn unescape(field: &str) -> String {
    field
        .replace("\\040", " ")
        .replace("\\011", "\t")
        .replace("\\012", "\n")
        .replace("\\134", "\\")
}

/// What is mounted below `directory` now.
pub(crate) fn below(directory: &Path) -> Vec<PathBuf> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    parse_mountinfo(&text, directory)
}

/// Unmounts everything below `directory`. Gives what is still mounted.
pub(crate) async fn unmount_all(directory: &Path) -> Vec<PathBuf> {
    // Two rounds at most do it: a mount may uncover another of the same path.
    for _ in 0..3 {
        let mounts = below(directory);
        if mounts.is_empty() {
            break;
        }
        for mount in mounts {
            let path = mount.display().to_string();
            if tool::run("umount", &[&path]).await.is_err() {
                // Busy: detached, it goes with its last user.
                drop(tool::run("umount", &["-l", &path]).await);
            }
        }
    }
    below(directory)
}

/// Loop devices whose file lies below `directory`: (device, file).
pub(crate) fn loops(directory: &Path) -> Vec<(String, PathBuf)> {
    let Ok(entries) = std::fs::read_dir("/sys/block") else {
        return Vec::new();
    };
    entries
        .filter_map(Result::ok)
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let file = std::fs::read_to_string(entry.path().join("loop/backing_file")).ok()?;
            let file = PathBuf::from(file.trim().trim_end_matches(" (deleted)"));
            is_below(&file, directory).then(|| (format!("/dev/{name}"), file))
        })
        .collect()
}

/// Detaches every loop device of `directory`. Gives those that are still attached.
pub(crate) async fn detach_loops(directory: &Path) -> Vec<String> {
    for (device, _) in loops(directory) {
        drop(tool::run("losetup", &["-d", &device]).await);
    }
    loops(directory).into_iter().map(|(device, _)| device).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_the_latest_mount_first_and_reads_escapes() {
        let text = "27 1 254:0 / / rw - ext4 /dev/vda rw\n\
                    40 27 0:40 / /s/a rw - tmpfs none rw\n\
                    41 40 0:41 / /s/a/b\\040c rw - tmpfs none rw\n\
                    42 27 0:42 / /sx rw - tmpfs none rw\n";
        assert_eq!(
            parse_mountinfo(text, Path::new("/s")),
            [PathBuf::from("/s/a/b c"), PathBuf::from("/s/a")]
        );
    }
}
