//! The table `rest` of the configuration; [`super`] documents its keys.

use std::path::PathBuf;

use serde::Deserialize;

pub(super) const REST_KEYS: [&str; 5] = [
    "platform_per_second",
    "management_per_second",
    "machine_per_second",
    "failures_per_second",
    "audit_file",
];

const PER_SECOND_MAX: u32 = 1_000_000;

/// How often the API may be called, and where its audit log goes.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RestLimits {
    pub platform_per_second: u32,
    pub management_per_second: u32,
    pub machine_per_second: u32,
    /// Of one address without a valid token.
    pub failures_per_second: u32,
    pub audit_file: Option<PathBuf>,
}

impl Default for RestLimits {
    fn default() -> Self {
        Self {
            platform_per_second: 2000,
            management_per_second: 1000,
            machine_per_second: 5000,
            failures_per_second: 50,
            audit_file: None,
        }
    }
}

impl RestLimits {
    pub(super) fn faults(&self) -> Vec<(&'static str, String)> {
        let rates = [
            ("rest.platform_per_second", self.platform_per_second),
            ("rest.management_per_second", self.management_per_second),
            ("rest.machine_per_second", self.machine_per_second),
            ("rest.failures_per_second", self.failures_per_second),
        ];
        let wrong = rates
            .into_iter()
            .filter(|(_, rate)| !(1..=PER_SECOND_MAX).contains(rate))
            .map(|(path, rate)| (path, format!("{rate} is not from 1 to {PER_SECOND_MAX}")));
        let audit = self.audit_file.iter().filter(|path| !path.is_absolute());
        let audit = audit.map(|path| ("rest.audit_file", format!("{path:?} is not an absolute path")));
        wrong.chain(audit).collect()
    }
}
