//! One writer of the nftables table for many steps: what they want is put into one wish, and whoever comes first writes
//! it for all who wait.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ipnet::Ipv4Net;
use tokio::sync::Mutex as AsyncMutex;

use super::{HostError, infrastructure};
use crate::host::firewall::{Checked, Firewall, FirewallState, Standing};

#[derive(Debug)]
pub(super) struct FirewallDriver {
    wish: Mutex<(u64, FirewallState)>,
    writer: AsyncMutex<(u64, Firewall)>,
}

impl FirewallDriver {
    /// Begins with what an earlier daemon of this machine let through: until it is said anew that stays.
    pub(super) async fn open(cidr: Ipv4Net, gateway: Ipv4Addr) -> Self {
        let standing = Firewall::standing().await.unwrap_or_else(|error| {
            let reason = infrastructure(&error);
            tracing::warn!(error = %reason, "cannot read the firewall table that is there");
            Standing::default()
        });
        let state = FirewallState {
            cidr,
            gateway,
            mesh: std::iter::once(cidr).chain(standing.mesh).collect(),
            replicas: BTreeMap::new(),
            host_ports: standing.host_ports,
        };
        Self {
            wish: Mutex::new((1, state)),
            writer: AsyncMutex::new((0, Firewall::new())),
        }
    }

    fn wish(&self) -> MutexGuard<'_, (u64, FirewallState)> {
        self.wish.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut FirewallState)) {
        let mut wish = self.wish();
        let before = wish.1.clone();
        change(&mut wish.1);
        if wish.1 != before {
            wish.0 += 1;
        }
    }

    pub(super) fn put_replica(&self, interface: String, ip: Ipv4Addr) {
        self.change(|state| {
            state.replicas.insert(interface, ip);
        });
    }

    pub(super) fn remove_replica(&self, interface: &str) {
        self.change(|state| {
            state.replicas.remove(interface);
        });
    }

    /// Without host ports those that there are stay.
    pub(super) fn put_machine(&self, mesh: Vec<Ipv4Net>, host_ports: Option<BTreeMap<u16, SocketAddrV4>>) {
        self.change(|state| {
            state.mesh = std::iter::once(state.cidr).chain(mesh).collect();
            if let Some(host_ports) = host_ports {
                state.host_ports = host_ports;
            }
        });
    }

    /// Returns when everything put before the call is in the kernel.
    pub(super) async fn sync(&self) -> Result<(), HostError> {
        let wanted = self.wish().0;
        let mut writer = self.writer.lock().await;
        if writer.0 >= wanted {
            return Ok(());
        }
        let (version, state) = self.wish().clone();
        writer
            .1
            .apply(&state)
            .await
            .map_err(|error| infrastructure(&error))?;
        writer.0 = version;
        Ok(())
    }

    /// Full compare with the kernel.
    pub(super) async fn check(&self) -> Result<(), HostError> {
        let mut writer = self.writer.lock().await;
        if writer.1.check().await.map_err(|error| infrastructure(&error))? == Checked::Repaired {
            tracing::warn!("the firewall table had been changed by somebody else and was written again");
        }
        Ok(())
    }
}
