//! The node daemon of Berth.
//!
//! ```text
//! link ──Input──▶ reconcile (owns plan::NodeCore, the only one that decides)
//!                   │  writes ledger, then
//!                   ├──▶ execute ──▶ host::Host (containerd, image, net, volume, log keeper)
//!                   └──▶ status (watch) ──▶ link, status socket, dns, health
//! ```
//!
//! | task | owner | input | output |
//! | --- | --- | --- | --- |
//! | reconcile | `main` | `Input` (bounded queue), finished steps, runtime changes, its wake-up | steps, snapshot |
//! | a step | reconcile's join set | one step of one replica | its result |
//! | ledger thread | `ledger::Ledger` | writes (bounded queue) | committed sequence |
//! | link | `main` | snapshot, acks, events, log chunks | `Input` |
//! | a tunnel | the link's session | a program's output, a port; what the scheduler sends | messages to the scheduler |
//! | dns | `main` | directory | answers |
//! | health | `main` | probes wanted | `Input` |
//! | status socket | `main` | snapshot | JSON |
//! | watchdog thread | nobody | pulses of the loops | systemd's watchdog, a verdict |
//!
//! Start is recovery and kill -9 is a supported way to stop: containers outlive the daemon and are adopted from the
//! runtime's own labels.

pub mod bundle;
pub mod clock;
pub mod config;
pub mod credentials;
pub mod daemon;
pub mod dns;
pub mod events;
pub mod execute;
pub mod health;
pub mod host;
pub mod inspect;
pub mod ledger;
pub mod link;
pub mod listeners;
pub mod logs;
pub mod mesh;
pub mod plan;
pub mod preflight;
pub mod reconcile;
pub mod replica;
pub mod status;
pub mod tunnel;
pub mod upgrade;
pub mod watchdog;
