//! The command line of `berth dev`.

use std::path::PathBuf;

use berth_api::cluster::MachineProfile;
use clap::{Args, Subcommand};

use super::network::MACHINES_MAX;
use super::profile::{DEFAULT_PROFILE, parse_profile};
use crate::args::Output;

/// Arguments of `berth dev`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct DevArgs {
    #[command(subcommand)]
    pub(crate) command: Option<DevCommand>,
    #[command(flatten)]
    pub(crate) up: UpArgs,
}

/// Arguments of a start.
#[derive(Debug, Clone, Args)]
pub(crate) struct UpArgs {
    /// How many machines
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(MACHINES_MAX)))]
    pub(crate) machines: u32,
    /// What each machine claims to have; more than the host has is allowed
    #[arg(long, default_value = DEFAULT_PROFILE, value_name = "PROFILE", value_parser = parse_profile,
          long_help = "What each machine claims to have, for example cpu=8,memory=16Gi,ephemeral=1Ti,gpu=nvidia-t4:2; \
                       more than the host has is allowed, since nothing reserves it")]
    pub(crate) machine_profile: MachineProfile,
    /// Zones, given to the machines in turn
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "local-a,local-b,local-c",
        value_name = "ZONES"
    )]
    pub(crate) zones: Vec<String>,
    /// Directory for everything the instance writes; removed at the end [default: /var/lib/berth-dev]
    #[arg(long, value_name = "DIR", value_parser = absolute)]
    pub(crate) state_dir: Option<PathBuf>,
    /// Return when all machines run; end it with `berth dev down`
    #[arg(long)]
    pub(crate) keep: bool,
    /// A registry to be spoken to over http; a registry on this host is reached at the gateway's address
    #[arg(long, value_name = "HOST:PORT", value_parser = registry)]
    pub(crate) insecure_registry: Vec<String>,
    /// Call a silent machine unhealthy after 3 seconds and replace its replicas after 5, instead of 15 and 30
    #[arg(long)]
    pub(crate) fast_failover: bool,
    /// Id of the cluster that is made
    #[arg(long, default_value = "dev", value_name = "ID")]
    pub(crate) cluster_id: String,
}

/// Which instance is meant.
#[derive(Debug, Clone, Args)]
pub(crate) struct InstanceArgs {
    /// State directory of the instance; not needed when only one is on this host
    #[arg(long, global = true, value_name = "DIR", value_parser = absolute)]
    pub(crate) state_dir: Option<PathBuf>,
}

/// What can be done with an instance.
#[derive(Debug, Subcommand)]
pub(crate) enum DevCommand {
    /// End an instance and take away all it made, also after a crash
    Down {
        #[command(flatten)]
        instance: InstanceArgs,
    },
    /// Show the instance: addresses, files, machines
    List {
        #[command(flatten)]
        instance: InstanceArgs,
        #[command(flatten)]
        output: Output,
    },
    /// Switch machines off and on
    Machine {
        #[command(subcommand)]
        command: MachineCommand,
        #[command(flatten)]
        instance: InstanceArgs,
    },
    /// Disturb a machine's daemon
    Daemon {
        #[command(subcommand)]
        command: DaemonCommand,
        #[command(flatten)]
        instance: InstanceArgs,
    },
}

/// What can be done with a machine.
#[derive(Debug, Subcommand)]
pub(crate) enum MachineCommand {
    /// Cut the power: cable out, daemons and containers killed, nothing restarted
    Kill {
        name: String,
        /// Let the scheduler find out by itself; stateful replicas then stay with the silent machine
        #[arg(long)]
        silent: bool,
    },
    /// Switch a killed machine on again
    Start { name: String },
    /// Show addresses and process ids
    List {
        #[command(flatten)]
        output: Output,
    },
}

/// What can be done with a daemon.
#[derive(Debug, Subcommand)]
pub(crate) enum DaemonCommand {
    /// kill -9 of the machine's berthd; it is restarted, its containers run on
    Kill { name: String },
}

/// Relative paths are taken from the working directory: the instance outlives it.
fn absolute(text: &str) -> Result<PathBuf, String> {
    std::path::absolute(text).map_err(|error| error.to_string())
}

fn registry(text: &str) -> Result<String, String> {
    let (host, port) = text
        .rsplit_once(':')
        .ok_or("write host:port, for example registry.example.org:5000")?;
    if host.is_empty() || port.parse::<u16>().is_err() || host.contains('/') {
        return Err("write host:port, for example registry.example.org:5000".into());
    }
    if host == "localhost" || host.starts_with("127.") {
        return Err(format!(
            "{host} is each machine's own loopback; let the registry listen on all addresses and name it by the \
             instance's gateway (`berth dev list`), for example 100.80.0.1:{port}"
        ));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_on_the_loopback_is_refused_with_what_to_do() {
        assert!(registry("127.0.0.1:5000").unwrap_err().contains("gateway"));
        assert!(registry("registry.example.org").is_err());
        assert_eq!(registry("100.80.0.1:5000").unwrap(), "100.80.0.1:5000");
    }
}
