//! The user of an image as numbers: names are looked up in the image's own passwd and group.
//!
//! Nothing is mounted: the files are read from the directories of the layers, topmost first, each opened so that no link
//! leads out of its directory.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};

use super::ImageUser;

/// Larger ones are cut off: a passwd of a mebibyte is nobody's.
const FILE_SIZE_MAX: u64 = 1 << 20;
/// `NGROUPS_MAX`.
const GROUPS_MAX: usize = 65_536;

/// The text of a file as the container would see it; empty when there is none.
pub(super) fn read_in_layers(layers: &[PathBuf], path: &str) -> String {
    for layer in layers {
        match look(layer, path) {
            Look::Found(text) => return text,
            Look::Hidden => return String::new(),
            Look::Below => {}
        }
    }
    String::new()
}

enum Look {
    Found(String),
    /// This layer deletes it, or hides all below it.
    Hidden,
    Below,
}

fn look(layer: &Path, path: &str) -> Look {
    // A whiteout is a character device 0:0 in the place of what is deleted, for the file or for a directory above it.
    let mut place = PathBuf::new();
    for part in Path::new(path) {
        place.push(part);
        let is_whiteout = std::fs::symlink_metadata(layer.join(&place))
            .is_ok_and(|metadata| metadata.file_type().is_char_device());
        if is_whiteout {
            return Look::Hidden;
        }
    }
    let Ok(directory) = File::open(layer) else {
        return Look::Below;
    };
    let opened = openat2(
        &directory,
        path,
        OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    );
    if let Ok(file) = opened {
        let file = File::from(file);
        let mut bytes = Vec::new();
        let is_file = file.metadata().is_ok_and(|metadata| metadata.is_file());
        if is_file && file.take(FILE_SIZE_MAX).read_to_end(&mut bytes).is_ok() {
            return Look::Found(String::from_utf8_lossy(&bytes).into_owned());
        }
    }
    let parent = Path::new(path).parent().unwrap_or_else(|| Path::new(""));
    if is_opaque(&layer.join(parent)) {
        Look::Hidden
    } else {
        Look::Below
    }
}

/// Whether a directory hides the same one of the layers below.
fn is_opaque(directory: &Path) -> bool {
    let mut value = [0u8; 1];
    rustix::fs::lgetxattr(directory, "trusted.overlay.opaque", &mut value[..]).is_ok_and(|len| len == 1)
        && value[0] == b'y'
}

/// Resolves an image's `USER`: `name`, `uid`, either with `:group` or `:gid`; empty is root. The error is for the user.
pub(super) fn resolve(user: &str, passwd: &str, group: &str) -> Result<ImageUser, String> {
    let (name, group_name) = match user.split_once(':') {
        Some((name, group)) => (name, Some(group)),
        None => (user, None),
    };
    let name = if name.is_empty() { "0" } else { name };
    let account = passwd
        .lines()
        .filter_map(Account::parse)
        .find(|account| account.name == name || name.parse() == Ok(account.uid));
    let (uid, own_gid) = match (&account, name.parse::<u32>()) {
        (Some(account), _) => (account.uid, account.gid),
        (None, Ok(uid)) => (uid, 0),
        (None, Err(_)) => return Err(format!("its user {name:?} is not in its /etc/passwd")),
    };
    let groups: Vec<(&str, u32, &str)> = group.lines().filter_map(group_line).collect();
    let gid = match group_name {
        None | Some("") => own_gid,
        Some(text) => match (groups.iter().find(|(name, ..)| *name == text), text.parse()) {
            (Some((_, gid, _)), _) => *gid,
            (None, Ok(gid)) => gid,
            (None, Err(_)) => return Err(format!("its group {text:?} is not in its /etc/group")),
        },
    };
    let member = account.as_ref().map(|account| account.name);
    let mut additional_gids: Vec<u32> = groups
        .iter()
        // A declared group is meant to be the only one, as with the usual engines.
        .filter(|_| group_name.is_none())
        .filter(|(_, _, members)| member.is_some_and(|name| members.split(',').any(|other| other == name)))
        .map(|(_, gid, _)| *gid)
        .filter(|other| *other != gid)
        .collect();
    additional_gids.sort_unstable();
    additional_gids.dedup();
    if additional_gids.len() > GROUPS_MAX {
        return Err(format!(
            "its user {name:?} is in {} groups, the kernel takes {GROUPS_MAX}",
            additional_gids.len()
        ));
    }
    // To the kernel that number means: leave it as it is.
    if uid == u32::MAX || gid == u32::MAX {
        return Err(format!(
            "its user {name:?} has the number {}, which is nobody's",
            u32::MAX
        ));
    }
    Ok(ImageUser {
        uid,
        gid,
        additional_gids,
        home: account
            .map(|account| account.home.to_owned())
            .filter(|home| home.starts_with('/')),
    })
}

struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

impl<'a> Account<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut parts = line.split(':');
        let name = parts.next()?;
        let _password = parts.next()?;
        let uid = parts.next()?.parse().ok()?;
        let gid = parts.next()?.parse().ok()?;
        let _comment = parts.next();
        Some(Self {
            name,
            uid,
            gid,
            home: parts.next().unwrap_or_default(),
        })
    }
}

fn group_line(line: &str) -> Option<(&str, u32, &str)> {
    let mut parts = line.split(':');
    let name = parts.next()?;
    let _password = parts.next()?;
    let gid = parts.next()?.parse().ok()?;
    Some((name, gid, parts.next().unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\n# note\nbroken\napp:x:1000:1001::/home/app:/bin/sh\n";
    const GROUP: &str = "root:x:0:\nwheel:x:10:root,app\nextra:x:2000:app\nown:x:1001:app\n";

    fn ids(user: &str) -> (u32, u32, Vec<u32>) {
        let user = resolve(user, PASSWD, GROUP).unwrap();
        (user.uid, user.gid, user.additional_gids)
    }

    #[test]
    fn resolves_names_numbers_and_groups() {
        assert_eq!(ids(""), (0, 0, vec![10]));
        assert_eq!(ids("app"), (1000, 1001, vec![10, 2000]));
        assert_eq!(ids("1000"), (1000, 1001, vec![10, 2000]));
        assert_eq!(ids("app:extra"), (1000, 2000, vec![]));
        assert_eq!(ids("999"), (999, 0, vec![]));
        assert_eq!(ids("999:998"), (999, 998, vec![]));
        assert!(resolve("nobody", PASSWD, GROUP).is_err());
        assert!(resolve("app:none", PASSWD, GROUP).is_err());
        assert!(resolve("4294967295", PASSWD, GROUP).is_err());
        assert!(resolve("0:4294967295", PASSWD, GROUP).is_err());
        assert!(resolve("4294967296", PASSWD, GROUP).is_err());
        assert!(resolve("-1", PASSWD, GROUP).is_err());
        assert!(resolve("app\0", PASSWD, GROUP).is_err());
        let crowd: String = (1..=70_000).map(|gid| format!("g:x:{gid}:app\n")).collect();
        assert!(resolve("app", PASSWD, &crowd).unwrap_err().contains("groups"));
        assert_eq!(resolve("", "", ""), Ok(ImageUser::default()));
        assert_eq!(
            resolve("app", PASSWD, GROUP).unwrap().home.as_deref(),
            Some("/home/app")
        );
    }

    #[test]
    fn reads_the_topmost_file_and_follows_no_link_out() {
        let root = tempfile::tempdir().unwrap();
        let layer = |name: &str| {
            let layer = root.path().join(name);
            std::fs::create_dir_all(layer.join("etc")).unwrap();
            layer
        };
        let (top, bottom) = (layer("top"), layer("bottom"));
        std::fs::write(bottom.join("etc/passwd"), "bottom").unwrap();
        let layers = [top.clone(), bottom];
        assert_eq!(read_in_layers(&layers, "etc/passwd"), "bottom");
        std::os::unix::fs::symlink("/../../../../../../etc/hostname", top.join("etc/passwd")).unwrap();
        assert_eq!(
            read_in_layers(&layers[..1], "etc/passwd"),
            "",
            "the machine's own file is out of reach"
        );
        std::fs::remove_file(top.join("etc/passwd")).unwrap();
        std::fs::write(top.join("etc/passwd"), "top").unwrap();
        assert_eq!(read_in_layers(&layers, "etc/passwd"), "top");
    }
}
