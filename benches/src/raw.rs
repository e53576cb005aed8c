//! The baseline: the same image started on the same containerd, and nothing else.
//!
//! The four calls that any client of containerd makes (prepare snapshot and create container, create task, start task),
//! through the node's own client, so that both sides pay the same for gRPC. The spec is the one of the OCI crate: its
//! own namespaces, no network set up, no seccomp filter, no limits, output discarded.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Context as _;
use berth_node::host::containerd::{ContainerPlan, Runtime, RuntimeConfig};
use berth_node::host::image::{Images, ImagesConfig, PulledImage};
use oci_spec::runtime::{LinuxBuilder, LinuxNamespaceBuilder, LinuxNamespaceType, ProcessBuilder, Spec};

use crate::instance::Instance;

/// containerd's namespace of the baseline: nothing of it is seen by a node.
const NAMESPACE: &str = "berth-bench-raw";

#[derive(Debug)]
pub(crate) struct Raw {
    runtime: Runtime,
    image: PulledImage,
    /// Below the instance's own, so that it goes with the instance.
    cgroup: String,
}

impl Raw {
    pub(crate) async fn connect(instance: &Instance, image: &str) -> anyhow::Result<Self> {
        let runtime = Runtime::connect(RuntimeConfig::new(&instance.containerd_socket, NAMESPACE))?;
        let images = Images::new(&runtime, ImagesConfig::default())?;
        let image = images.ensure(image, |_| ()).await.context("load the image")?;
        images.shutdown().await;
        let cgroup = format!("{}/raw", instance.machine()?.cgroup);
        Ok(Self {
            runtime,
            image,
            cgroup,
        })
    }

    /// Creates and starts a container.
    pub(crate) async fn start(&self, id: &str) -> anyhow::Result<()> {
        let cgroup_path = format!("{}/{id}", self.cgroup);
        let plan = ContainerPlan {
            id: id.to_owned(),
            labels: BTreeMap::new(),
            image: self.image.clone(),
            spec: self.spec(&cgroup_path)?,
            stdout: PathBuf::new(),
            stderr: PathBuf::new(),
            cgroup_path,
        };
        self.runtime.create(&plan).await?;
        self.runtime.start(id).await?;
        Ok(())
    }

    pub(crate) async fn delete(&self, id: &str) -> anyhow::Result<()> {
        self.runtime.delete(id).await?;
        Ok(())
    }

    fn spec(&self, cgroup_path: &str) -> anyhow::Result<Spec> {
        let config = &self.image.config;
        let arguments: Vec<String> = config.entrypoint.iter().chain(&config.cmd).cloned().collect();
        let process = ProcessBuilder::default()
            .args(arguments)
            .env(config.env.clone())
            .cwd("/")
            .build()?;
        let namespaces = [
            LinuxNamespaceType::Pid,
            LinuxNamespaceType::Ipc,
            LinuxNamespaceType::Uts,
            LinuxNamespaceType::Mount,
            LinuxNamespaceType::Network,
        ];
        let namespaces = namespaces
            .into_iter()
            .map(|kind| LinuxNamespaceBuilder::default().typ(kind).build())
            .collect::<Result<Vec<_>, _>>()?;
        let linux = LinuxBuilder::default()
            .namespaces(namespaces)
            .cgroups_path(cgroup_path)
            .build()?;
        let mut spec = Spec::default();
        spec.set_process(Some(process)).set_linux(Some(linux));
        Ok(spec)
    }
}
