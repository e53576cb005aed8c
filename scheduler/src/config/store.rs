//! Which store the scheduler keeps its clusters in: the keys `store` and `etcd.*` of the configuration.

use std::path::PathBuf;

use berth_api::validate::Fault;
use serde::Deserialize;

use crate::store::{EtcdOptions, EtcdTls, EtcdUser};

/// Members of one etcd cluster; etcd itself advises against more than seven.
const ENDPOINTS_MAX: usize = 16;
/// What keys begin with when the address names nothing.
const DEFAULT_PREFIX: &str = "/berth";

/// Where clusters are kept.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum StoreChoice {
    /// The file `store.db` of the data directory.
    #[default]
    Sqlite,
    Etcd(EtcdChoice),
}

/// An etcd cluster, and the files with what it takes to be let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdChoice {
    /// `host:port` of each member.
    pub endpoints: Vec<String>,
    /// What all keys begin with.
    pub prefix: String,
    pub access: EtcdAccess,
}

/// The table `etcd` of the file.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EtcdAccess {
    /// PEM of the authority that signed the members' certificates; TLS is spoken when it is given.
    pub ca_file: Option<PathBuf>,
    /// PEM of the certificate and key with which this scheduler shows itself.
    pub cert_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
    /// Name of the etcd user; its password stands alone in `password_file`.
    pub user: Option<String>,
    pub password_file: Option<PathBuf>,
}

pub(super) const ETCD_KEYS: [&str; 5] = ["ca_file", "cert_file", "key_file", "user", "password_file"];

impl StoreChoice {
    /// Reads `sqlite` or `etcd://host:port,host:port/prefix`.
    ///
    /// # Errors
    /// With what is wrong with the text.
    pub fn parse(text: &str, access: EtcdAccess) -> Result<Self, String> {
        if text == "sqlite" {
            return Ok(Self::Sqlite);
        }
        let Some(rest) = text.strip_prefix("etcd://") else {
            return Err(format!(
                "{text:?} is neither \"sqlite\" nor \"etcd://host:port,host:port/prefix\""
            ));
        };
        let (hosts, path) = rest.split_once('/').unwrap_or((rest, ""));
        let endpoints: Vec<String> = hosts.split(',').map(str::to_owned).collect();
        if endpoints.len() > ENDPOINTS_MAX {
            return Err(format!("names more than {ENDPOINTS_MAX} members"));
        }
        for endpoint in &endpoints {
            let port = endpoint
                .rsplit_once(':')
                .map(|(host, port)| (host, port.parse::<u16>()));
            if !matches!(port, Some((host, Ok(1..))) if !host.is_empty() && !host.contains(['/', '@'])) {
                return Err(format!("{endpoint:?} is not host:port"));
            }
        }
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'/');
        let path = path.trim_end_matches('/');
        if !path.bytes().all(is_name) {
            return Err(format!(
                "the prefix {path:?} has other characters than A-Z a-z 0-9 - _ . /"
            ));
        }
        let prefix = if path.is_empty() {
            DEFAULT_PREFIX.to_owned()
        } else {
            format!("/{path}")
        };
        Ok(Self::Etcd(EtcdChoice {
            endpoints,
            prefix,
            access,
        }))
    }
}

/// The store of a file; what is wrong with it is added to the faults.
pub(super) fn read(file: &super::File, faults: &mut Vec<Fault>) -> StoreChoice {
    let mut fault = |path: &str, problem: String| {
        faults.push(Fault {
            path: path.into(),
            problem,
        });
    };
    let store = StoreChoice::parse(&file.store, file.etcd.clone()).unwrap_or_else(|problem| {
        fault("store", problem);
        StoreChoice::default()
    });
    if file.store == "sqlite" && file.etcd != EtcdAccess::default() {
        fault("etcd", "is given, and store is not etcd://...".into());
    }
    store
}

/// What several schedulers of one store tell each other.
pub(super) fn check_sharing(file: &super::File, require: &mut impl FnMut(bool, &str, String)) {
    let urls = [
        ("advertise", &file.advertise, "http"),
        ("link_advertise", &file.link_advertise, "https"),
    ];
    for (path, url, scheme) in urls {
        if let Some(url) = url {
            let read = url.parse::<axum::http::Uri>().ok();
            let is_base = read.is_some_and(|read| {
                read.scheme_str() == Some(scheme) && read.port_u16().is_some() && read.path() == "/"
            });
            let is_base = is_base && !url.ends_with('/');
            require(is_base, path, format!("{url:?} is not {scheme}://host:port"));
        }
    }
    require(
        file.store == "sqlite" || file.advertise.is_some() || !file.listen.ip().is_unspecified(),
        "advertise",
        format!(
            "is needed: other schedulers cannot reach this one at {}",
            file.listen
        ),
    );
    require(
        (2..=60).contains(&file.lease_seconds),
        "lease_seconds",
        format!("{} is not from 2 to 60", file.lease_seconds),
    );
}

impl EtcdAccess {
    /// What contradicts itself, by key.
    pub(super) fn faults(&self) -> Vec<(&'static str, &'static str)> {
        let mut faults = Vec::new();
        if self.cert_file.is_some() != self.key_file.is_some() {
            faults.push(("etcd.cert_file", "and etcd.key_file are given together"));
        }
        if self.cert_file.is_some() && self.ca_file.is_none() {
            faults.push(("etcd.ca_file", "is missing; without it TLS is not spoken"));
        }
        if self.user.is_some() != self.password_file.is_some() {
            faults.push(("etcd.user", "and etcd.password_file are given together"));
        }
        faults
    }
}

impl EtcdChoice {
    /// Reads the files.
    ///
    /// # Errors
    /// With the first file that cannot be read.
    pub fn options(&self) -> Result<EtcdOptions, (PathBuf, std::io::Error)> {
        let read = |path: &PathBuf| std::fs::read_to_string(path).map_err(|error| (path.clone(), error));
        let access = &self.access;
        let client = match (&access.cert_file, &access.key_file) {
            (Some(certificate), Some(key)) => Some((read(certificate)?, read(key)?)),
            _ => None,
        };
        let tls = match &access.ca_file {
            Some(path) => Some(EtcdTls {
                ca_pem: read(path)?,
                client,
            }),
            None => None,
        };
        let user = match (&access.user, &access.password_file) {
            (Some(name), Some(path)) => Some(EtcdUser {
                name: name.clone(),
                password: read(path)?.trim_end_matches(['\r', '\n']).to_owned(),
            }),
            _ => None,
        };
        Ok(EtcdOptions {
            endpoints: self.endpoints.clone(),
            prefix: self.prefix.clone(),
            user,
            tls,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn etcd(text: &str) -> (Vec<String>, String) {
        match StoreChoice::parse(text, EtcdAccess::default()) {
            Ok(StoreChoice::Etcd(choice)) => (choice.endpoints, choice.prefix),
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn addresses_are_read() {
        assert_eq!(
            StoreChoice::parse("sqlite", EtcdAccess::default()),
            Ok(StoreChoice::Sqlite)
        );
        assert_eq!(
            etcd("etcd://a:2379,[::1]:2380/prod/berth/"),
            (vec!["a:2379".into(), "[::1]:2380".into()], "/prod/berth".into())
        );
        assert_eq!(etcd("etcd://a:1").1, "/berth");
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in [
            "",
            "etcd://",
            "etcd://a",
            "etcd://a:0",
            "etcd://a:1,",
            "etcd://u@a:1",
            "etcd://a:1/b?c",
            "http://a:1",
        ] {
            StoreChoice::parse(text, EtcdAccess::default()).expect_err(text);
        }
    }

    #[test]
    fn options_are_read_from_files_and_shown_without_secrets() {
        let dir = tempfile::tempdir().unwrap();
        let password = dir.path().join("password");
        std::fs::write(&password, "secret\n").unwrap();
        let mut access = EtcdAccess {
            user: Some("berth".into()),
            ..EtcdAccess::default()
        };
        assert_eq!(access.faults().len(), 1);
        access.password_file = Some(password.clone());
        assert!(access.faults().is_empty());
        let Ok(StoreChoice::Etcd(choice)) = StoreChoice::parse("etcd://a:1", access) else {
            panic!("it is an address");
        };
        let options = choice.options().unwrap();
        assert_eq!(options.user.as_ref().unwrap().password, "secret");
        assert!(!format!("{options:?} {:?}", options.user).contains("secret"));
        std::fs::remove_file(&password).unwrap();
        assert_eq!(choice.options().unwrap_err().0, password);
    }
}
