//! The table `traces` of the configuration; [`super`] documents its keys.

use serde::Deserialize;

pub(super) const TRACES_KEYS: [&str; 2] = ["endpoint", "sample_percent"];

/// Where traces of the scheduler itself go.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TracesConfig {
    /// `http://host:port` of a collector that takes OTLP over gRPC; none: no traces.
    pub endpoint: Option<String>,
    /// Of the requests whose caller has not decided it.
    pub sample_percent: u32,
}

impl Default for TracesConfig {
    fn default() -> Self {
        Self {
            endpoint: None,
            sample_percent: 100,
        }
    }
}

impl TracesConfig {
    pub(super) fn faults(&self) -> Vec<(&'static str, String)> {
        let is_good = |url: &str| {
            let authority = url
                .strip_prefix("http://")
                .unwrap_or_default()
                .trim_end_matches('/');
            let port = authority
                .rsplit_once(':')
                .map(|(host, port)| (host, port.parse::<u16>()));
            matches!(port, Some((host, Ok(1..))) if !host.is_empty() && !host.contains(['/', '@']))
        };
        let endpoint = self.endpoint.iter().filter(|url| !is_good(url));
        let endpoint = endpoint.map(|url| {
            let problem = format!("{url:?} is not http://host:port; put a collector beside the scheduler that speaks TLS further");
            ("traces.endpoint", problem)
        });
        let percent = self.sample_percent;
        let percent = (!(1..=100).contains(&percent))
            .then(|| ("traces.sample_percent", format!("{percent} is not from 1 to 100")));
        endpoint.chain(percent).collect()
    }
}
