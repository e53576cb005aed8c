//! What the command line says; `benches/run.sh` writes it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Context as _;

/// What the command line says.
#[derive(Debug)]
pub(crate) struct Arguments {
    pub(crate) berth: PathBuf,
    pub(crate) state_dir: PathBuf,
    pub(crate) image: String,
    pub(crate) output: PathBuf,
    pub(crate) runs: usize,
    /// What is measured: `start` or `node`.
    pub(crate) suite: String,
    /// `host:port` of a registry that is written to freely; none where none is installed.
    pub(crate) registry: Option<String>,
}

impl Arguments {
    pub(crate) fn read() -> anyhow::Result<Self> {
        let mut named = BTreeMap::new();
        let mut words = std::env::args().skip(1);
        while let Some(name) = words.next() {
            let value = words.next().with_context(|| format!("{name} needs a value"))?;
            named.insert(name, value);
        }
        let registry = named.remove("--registry").filter(|address| !address.is_empty());
        let mut take = |name: &str| {
            named
                .remove(name)
                .with_context(|| format!("{name} is missing; run benches/run.sh"))
        };
        Ok(Self {
            berth: take("--berth")?.into(),
            state_dir: take("--state-dir")?.into(),
            image: take("--image")?,
            output: take("--output")?.into(),
            runs: take("--runs")?.parse().context("--runs")?,
            suite: take("--suite")?,
            registry,
        })
    }

    /// An unoptimised build lies below `debug`.
    pub(crate) fn programs(&self) -> &'static str {
        if self.berth.components().any(|part| part.as_os_str() == "debug") {
            "debug"
        } else {
            "release"
        }
    }
}
