//! Which scheduler, token and cluster a command means: flags, then the environment, then the context file that `berth dev` writes.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::args::Target;
use crate::client::Client;
use crate::exit::{Code, Failure};

/// The context file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Context {
    /// Address of the scheduler's REST API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) server: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) token: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) cluster: Option<String>,
    /// On platform `local`: the directory for volumes of stacks that name none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) volumes: Option<PathBuf>,
    /// The development instance that wrote the file and will remove it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) dev_instance: Option<String>,
}

/// Where the context file lies; none without a home directory.
pub(crate) fn path() -> Option<PathBuf> {
    let variable = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    variable("XDG_CONFIG_HOME")
        .or_else(|| Some(variable("HOME")?.join(".config")))
        .map(|config| config.join("berth/context.toml"))
}

/// Reads a context file; an absent one is empty.
pub(crate) fn load(path: &Path) -> Result<Context, Failure> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Context::default()),
        Err(error) => {
            return Err(Failure::input(format!("cannot read {}: {error}", path.display())));
        }
    };
    toml::from_str(&text)
        .map_err(|error| Failure::input(format!("{} is no context file: {error}", path.display())))
}

/// Writes a context file that only its owner may read.
pub(crate) fn save(path: &Path, context: &Context) -> std::io::Result<()> {
    let text = toml::to_string(context).map_err(std::io::Error::other)?;
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    crate::dev::write_private(path, text.as_bytes())
}

/// Removes a context file that this development instance wrote; one that was written since stays.
pub(crate) fn remove_if_of(path: &Path, instance: &str) {
    if load(path).is_ok_and(|context| context.dev_instance.as_deref() == Some(instance)) {
        drop(std::fs::remove_file(path));
        if let Some(directory) = path.parent() {
            // Ours alone, and gone only when empty.
            drop(std::fs::remove_dir(directory));
        }
    }
}

/// A client and the cluster it is about.
#[derive(Debug, Clone)]
pub(crate) struct Session {
    pub(crate) client: Client,
    pub(crate) token: String,
    cluster: Option<String>,
    pub(crate) volumes: Option<PathBuf>,
}

impl Session {
    /// Puts flags, environment and context file together.
    pub(crate) fn open(target: &Target) -> Result<Self, Failure> {
        let context = path().map_or_else(|| Ok(Context::default()), |path| load(&path))?;
        Self::from_parts(target, context)
    }

    fn from_parts(target: &Target, context: Context) -> Result<Self, Failure> {
        let server = target.server.clone().or(context.server).ok_or_else(|| {
            Failure::input(
                "no scheduler is named: give --server, set BERTH_SERVER, or start one here with: berth dev --machines 3",
            )
        })?;
        let token = match (&target.token, &target.token_file) {
            (_, Some(path)) => std::fs::read_to_string(path)
                .map_err(|error| Failure::input(format!("cannot read {}: {error}", path.display())))?
                .trim()
                .to_owned(),
            (Some(token), None) => token.clone(),
            (None, None) => context
                .token
                .ok_or_else(|| Failure::input("no token is given: use --token-file, or set BERTH_TOKEN"))?,
        };
        Ok(Self {
            client: Client::new(&server, &token)?,
            token,
            cluster: target.cluster.clone().or(context.cluster),
            volumes: context.volumes,
        })
    }

    /// The cluster's id.
    pub(crate) fn cluster(&self) -> Result<&str, Failure> {
        self.cluster.as_deref().ok_or_else(|| {
            Failure::new(
                Code::Input,
                "no cluster is named: give --cluster, or set BERTH_CLUSTER",
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_win_over_the_file() {
        let target = Target {
            cluster: Some("flag".into()),
            ..Target::default()
        };
        let context = Context {
            server: Some("http://127.0.0.1:1".into()),
            token: Some("t".into()),
            cluster: Some("file".into()),
            ..Context::default()
        };
        let session = Session::from_parts(&target, context).unwrap();
        assert_eq!(session.cluster().unwrap(), "flag");
    }

    #[test]
    fn what_is_missing_is_said_with_how_to_give_it() {
        let error = Session::from_parts(&Target::default(), Context::default()).unwrap_err();
        assert!(error.message.contains("BERTH_SERVER"), "{error}");
        assert_eq!(error.code, Code::Input);
    }

    #[test]
    fn only_the_instance_that_wrote_a_file_removes_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("berth/context.toml");
        let context = Context {
            dev_instance: Some("aaaa".into()),
            ..Context::default()
        };
        save(&path, &context).unwrap();
        remove_if_of(&path, "bbbb");
        assert_eq!(load(&path).unwrap(), context);
        remove_if_of(&path, "aaaa");
        assert!(!path.exists());
    }
}
