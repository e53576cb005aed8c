//! The picture of a cluster: each machine a box with bars of what its replicas take, then what has no place.

use std::collections::BTreeMap;

use berth_api::machine::MachineStatus;
use berth_api::rest::cluster::GetClusterReply;
use berth_api::rest::container::ContainerSummary;
use berth_api::rest::node::MachineSummary;
use berth_api::rest::operator::ReplicaView;
use berth_api::time::Timestamp;
use berth_api::units::{Bytes, Cpu};

use super::text::{cut, duration, gpus_held, machine_paint, replica_word, rollout_word, trouble};
use crate::output::{Paint, Screen};

/// What is shown.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Picture<'a> {
    pub(crate) cluster: &'a GetClusterReply,
    pub(crate) machines: &'a [MachineSummary],
    pub(crate) containers: &'a [ContainerSummary],
    pub(crate) replicas: &'a [ReplicaView],
}

/// A wider picture is harder to read, not easier.
const WIDTH_MAX: usize = 110;
/// Fills that tell neighbours in a bar apart where there is no colour.
const FILLS: [&str; 3] = ["█", "▓", "▒"];
const LETTERS: &[u8] = b"abcdefghijklmnopqrstuvwxyz";

/// Draws the picture.
pub(crate) fn picture(screen: &Screen, now: Timestamp, it: &Picture<'_>) -> String {
    let drawing = Drawing {
        screen,
        now,
        width: screen.width.min(WIDTH_MAX),
        series: series(it),
    };
    let mut parts = vec![drawing.head(it)];
    parts.extend(it.machines.iter().map(|machine| {
        let own: Vec<&ReplicaView> = it
            .replicas
            .iter()
            .filter(|replica| replica.machine_id.as_ref() == Some(&machine.machine_id))
            .collect();
        drawing.machine(machine, &own)
    }));
    parts.push(drawing.containers(it));
    parts.push(drawing.unplaced(it));
    parts.retain(|part| !part.is_empty());
    parts.join("\n\n")
}

/// Each container's number, the same in every box.
fn series(it: &Picture<'_>) -> BTreeMap<String, usize> {
    let mut names: Vec<&str> = it
        .replicas
        .iter()
        .map(|replica| replica.container.as_str())
        .collect();
    names.extend(it.containers.iter().map(|container| container.name.as_str()));
    names.sort_unstable();
    names.dedup();
    names
        .into_iter()
        .enumerate()
        .map(|(number, name)| (name.to_owned(), number))
        .collect()
}

struct Drawing<'a> {
    screen: &'a Screen,
    now: Timestamp,
    width: usize,
    series: BTreeMap<String, usize>,
}

/// One stretch of a bar: how much, and whose; none is the system's reserve.
struct Stretch {
    amount: u64,
    series: Option<usize>,
}

impl Drawing<'_> {
    fn paint(&self, paint: Paint, text: &str) -> String {
        self.screen.paint(paint, text)
    }

    fn number(&self, container: &str) -> usize {
        self.series.get(container).copied().unwrap_or_default()
    }

    fn head(&self, it: &Picture<'_>) -> String {
        let cluster = it.cluster;
        let dot = self.screen.symbol(" · ", ", ");
        let mut lines = vec![format!(
            "{}  {}",
            self.paint(Paint::Bold, &format!("cluster {}", cluster.cluster_id)),
            self.paint(
                Paint::Dim,
                &[
                    cluster.platform.to_string(),
                    format!("replicas in {}", cluster.container_cidr),
                    counted(it.machines.len(), "machine"),
                    counted(it.containers.len(), "container"),
                    counted(it.replicas.len(), "replica"),
                ]
                .join(dot)
            )
        )];
        if let Some(freeze) = &cluster.freeze {
            let text = format!(
                "frozen for {}: {} of {} machines are unhealthy, so nothing moves",
                duration(self.now.since(freeze.since)),
                freeze.unhealthy_machines,
                freeze.total_machines
            );
            lines.push(self.paint(Paint::Bad, &text));
        }
        if let Some(held) = &cluster.held_stops {
            let text = format!(
                "{} stops are held for {}: nobody has asked for them; to let them happen: berth release",
                held.count,
                duration(self.now.since(held.since))
            );
            lines.push(self.paint(Paint::Bad, &text));
        }
        for group in &cluster.capacity_groups {
            let count = it
                .machines
                .iter()
                .filter(|machine| machine.capacity_group == group.group_id)
                .count();
            let profile = &group.profile;
            let gpu = profile
                .gpu
                .as_ref()
                .map(|gpu| format!("{dot}{} x {}", gpu.count, gpu.kind))
                .unwrap_or_default();
            lines.push(format!(
                "group {}: {} of {} to {}{dot}each {} vCPU{dot}{}{dot}{} ephemeral{gpu}",
                group.group_id,
                counted(count, "machine"),
                group.min_size,
                group.max_size,
                profile.cpu,
                profile.memory_bytes.rounded(),
                profile.ephemeral_storage_bytes.rounded(),
            ));
        }
        lines.join("\n")
    }

    fn machine(&self, machine: &MachineSummary, replicas: &[&ReplicaView]) -> String {
        let mut rows = vec![
            self.cpu_row(machine, replicas),
            self.memory_row(machine, replicas),
        ];
        rows.extend(self.ephemeral_row(machine));
        rows.extend(machine.gpu.as_ref().map(|gpu| {
            let held = gpus_held(machine).map_or_else(String::new, |held| format!("{held} of "));
            let text = format!("gpu     {held}{} x {}", gpu.total, gpu.kind);
            let width = text.chars().count();
            (text, width)
        }));
        rows.extend(replicas.iter().flat_map(|replica| self.replica_rows(replica)));
        for subsystem in machine.health.subsystems.iter().filter(|subsystem| !subsystem.ok) {
            let text = cut(
                &format!("! {}: {}", subsystem.name, subsystem.reason),
                self.width - 4,
            );
            rows.push((self.paint(Paint::Bad, &text), text.chars().count()));
        }
        let mut title = vec![machine.machine_id.to_string(), machine.zone.to_string()];
        title.extend(machine.vpc_ip.map(|ip| ip.to_string()));
        title.extend(machine.container_cidr.map(|cidr| cidr.to_string()));
        let mut state = machine.status.to_string();
        if machine.status == MachineStatus::Unhealthy {
            state.push_str(&format!(
                ", last heard {} ago",
                duration(self.now.since(machine.last_heartbeat))
            ));
        }
        self.boxed(&title, &state, machine_paint(machine.status), &rows)
    }

    /// A box around rows that know their own width, which colour codes do not count in.
    fn boxed(&self, title: &[String], state: &str, paint: Paint, rows: &[(String, usize)]) -> String {
        let line = self.screen.symbol("─", "-");
        let side = self.paint(Paint::Dim, self.screen.symbol("│", "|"));
        let corner = |unicode, ascii| self.screen.symbol(unicode, ascii);
        let (first, rest) = title
            .split_first()
            .map_or(("", &[][..]), |(first, rest)| (first.as_str(), rest));
        let first = cut(first, self.width / 2);
        let facts = if rest.is_empty() {
            String::new()
        } else {
            format!(" {}", rest.join("  "))
        };
        let dot = self.screen.symbol("●", "*");
        let used = first.chars().count() + facts.chars().count() + state.chars().count() + 10;
        let fill = line.repeat(self.width.saturating_sub(used).max(1));
        let mut text = format!(
            "{}{} {}{} {} {}{}",
            self.paint(Paint::Dim, corner("╭", "+")),
            self.paint(Paint::Dim, line),
            self.paint(Paint::Bold, &first),
            self.paint(Paint::Dim, &facts),
            self.paint(Paint::Dim, &fill),
            self.paint(paint, &format!("{dot} {state}")),
            self.paint(Paint::Dim, &format!(" {line}{}", corner("╮", "+"))),
        );
        for (row, width) in rows {
            let pad = " ".repeat((self.width - 4).saturating_sub(*width));
            text.push_str(&format!("\n{side} {row}{pad} {side}"));
        }
        let foot = format!(
            "\n{}{}{}",
            corner("╰", "+"),
            line.repeat(self.width - 2),
            corner("╯", "+")
        );
        text.push_str(&self.paint(Paint::Dim, &foot));
        text
    }

    fn cpu_row(&self, machine: &MachineSummary, replicas: &[&ReplicaView]) -> (String, usize) {
        let cpu = &machine.cpu;
        let stretches = self.stretches(cpu.system_reserve.micros(), replicas, |replica| {
            replica.cpu.micros()
        });
        let used: Vec<u64> = replicas
            .iter()
            .filter_map(|replica| Some(replica.usage?.cpu.micros()))
            .collect();
        let used = (!used.is_empty()).then(|| format!("{:.2}", Cpu::from_micros(used.iter().sum()).as_f64()));
        let text = format!("{} of {}", cpu.allocated, cpu.total);
        self.bar_row("cpu", &stretches, cpu.total.micros(), &text, used.as_deref())
    }

    fn memory_row(&self, machine: &MachineSummary, replicas: &[&ReplicaView]) -> (String, usize) {
        let memory = &machine.memory;
        let stretches = self.stretches(memory.system_reserve.get(), replicas, |replica| {
            replica.memory.get()
        });
        let used: Vec<u64> = replicas
            .iter()
            .filter_map(|replica| Some(replica.usage?.memory.get()))
            .collect();
        let used = (!used.is_empty()).then(|| Bytes::new(used.iter().sum()).rounded());
        let text = format!("{} of {}", memory.allocated.rounded(), memory.total.rounded());
        self.bar_row("memory", &stretches, memory.total.get(), &text, used.as_deref())
    }

    /// Shown only where something is taken: which replica took it is not said by the API.
    fn ephemeral_row(&self, machine: &MachineSummary) -> Option<(String, usize)> {
        let storage = machine.ephemeral_storage?;
        if storage.allocated == Bytes::ZERO {
            return None;
        }
        let stretches = [Stretch {
            amount: storage.allocated.get(),
            series: None,
        }];
        let text = format!("{} of {}", storage.allocated.rounded(), storage.total.rounded());
        Some(self.bar_row("disk", &stretches, storage.total.get(), &text, None))
    }

    fn stretches(
        &self,
        reserve: u64,
        replicas: &[&ReplicaView],
        amount: impl Fn(&ReplicaView) -> u64,
    ) -> Vec<Stretch> {
        let mut stretches = vec![Stretch {
            amount: reserve,
            series: None,
        }];
        stretches.extend(replicas.iter().map(|replica| Stretch {
            amount: amount(replica),
            series: Some(self.number(replica.container.as_str())),
        }));
        stretches
    }

    fn bar_row(
        &self,
        label: &str,
        stretches: &[Stretch],
        total: u64,
        text: &str,
        used: Option<&str>,
    ) -> (String, usize) {
        let used = used.map(|used| format!("  {used} used")).unwrap_or_default();
        let length = (self.width - 4).saturating_sub(8 + 2 + 40).max(10);
        let bar = self.bar(stretches, total, length);
        let width = 8 + length + 2 + text.chars().count() + used.chars().count();
        (
            format!("{label:<8}{bar}  {text}{}", self.paint(Paint::Dim, &used)),
            width,
        )
    }

    /// Ends of stretches are rounded, not their lengths, so that the whole bar is as long as it should be.
    fn bar(&self, stretches: &[Stretch], total: u64, length: usize) -> String {
        let (mut sum, mut drawn) = (0u128, 0usize);
        let mut text = String::new();
        for stretch in stretches {
            sum += u128::from(stretch.amount);
            let end = (sum * (length as u128) + u128::from(total) / 2) / u128::from(total.max(1));
            let end = usize::try_from(end).unwrap_or(length).min(length);
            let cells = end.saturating_sub(drawn);
            drawn = drawn.max(end);
            text.push_str(&self.cells(stretch.series, cells));
        }
        let free = self.screen.symbol("░", ".").repeat(length - drawn);
        text.push_str(&self.paint(Paint::Dim, &free));
        text
    }

    fn cells(&self, series: Option<usize>, count: usize) -> String {
        match series {
            None => self.paint(Paint::Dim, &self.screen.symbol("▚", "#").repeat(count)),
            Some(number) if self.screen.colour && self.screen.unicode => {
                // A gap of a thinner block between neighbours of one colour.
                let cells = if count > 1 {
                    format!("{}▊", "█".repeat(count - 1))
                } else {
                    "▊".repeat(count)
                };
                self.paint(Paint::Series(number), &cells)
            }
            Some(number) if self.screen.unicode => FILLS[number % FILLS.len()].repeat(count),
            Some(number) => self.paint(Paint::Series(number), &letter(number).repeat(count)),
        }
    }

    /// What stands for a container in bars and lists.
    fn mark(&self, container: &str) -> String {
        let number = self.number(container);
        if self.screen.unicode {
            let fill = if self.screen.colour {
                "■"
            } else {
                FILLS[number % FILLS.len()]
            };
            self.paint(Paint::Series(number), fill)
        } else {
            self.paint(Paint::Series(number), &letter(number))
        }
    }

    fn replica_rows(&self, replica: &ReplicaView) -> Vec<(String, usize)> {
        let (word, paint) = replica_word(replica);
        let id = cut(replica.replica_id.as_str(), 34);
        let ip = replica.ip.map_or_else(|| "-".into(), |ip| ip.to_string());
        let size = format!("{} vCPU  {}", replica.cpu, replica.memory.rounded());
        let host = replica
            .host_port
            .map(|port| format!("  host port {port}"))
            .unwrap_or_default();
        let row = format!(
            "{} {id:<34}  {}  {ip:<15}  {size}{host}",
            self.mark(replica.container.as_str()),
            self.paint(paint, &format!("{word:<9}")),
        );
        let width =
            2 + 34 + 2 + word.chars().count().max(9) + 2 + 15.max(ip.len()) + 2 + size.len() + host.len();
        let mut rows = vec![(row, width)];
        if let Some(trouble) = trouble(replica, self.now) {
            let text = cut(
                &format!("  {} {trouble}", self.screen.symbol("└", "\\")),
                self.width - 4,
            );
            rows.push((self.paint(Paint::Warn, &text), text.chars().count()));
        }
        rows
    }

    fn containers(&self, it: &Picture<'_>) -> String {
        let width = it
            .containers
            .iter()
            .map(|container| container.name.as_str().len())
            .max()
            .unwrap_or(0);
        it.containers
            .iter()
            .map(|container| {
                let state = match (container.status, container.status_reason) {
                    (status, Some(reason)) => format!("{status} ({reason:?})"),
                    (status, None) => status.to_string(),
                };
                use berth_api::rest::container::ContainerStatus;
                let paint = match container.status {
                    ContainerStatus::Running => Paint::Good,
                    ContainerStatus::Pending => Paint::Warn,
                    ContainerStatus::Stopped => Paint::Dim,
                    ContainerStatus::Failing => Paint::Bad,
                };
                let message = container
                    .status_message
                    .as_deref()
                    .map(|message| format!("  {message}"))
                    .unwrap_or_default();
                let rollout = container.rollout.as_ref().and_then(rollout_word);
                let rollout = rollout.map(|word| format!("  {word}")).unwrap_or_default();
                format!(
                    "{} {:<width$}  {} of {} ready  {}{rollout}{}",
                    self.mark(container.name.as_str()),
                    container.name,
                    container.ready_replicas,
                    container.desired_replicas,
                    self.paint(paint, &state),
                    cut(&message, self.width),
                )
            })
            .collect::<Vec<_>>()
            .join("\n")
    }

    fn unplaced(&self, it: &Picture<'_>) -> String {
        let without: Vec<&ReplicaView> = it
            .replicas
            .iter()
            .filter(|replica| replica.machine_id.is_none())
            .collect();
        if without.is_empty() {
            return String::new();
        }
        let mut lines = vec![self.paint(
            Paint::Bad,
            &format!(
                "{} no place",
                if without.len() == 1 {
                    "1 replica has".to_owned()
                } else {
                    format!("{} replicas have", without.len())
                }
            ),
        )];
        for replica in without {
            let reason = trouble(replica, self.now).unwrap_or_else(|| "not yet tried".into());
            lines.push(format!(
                "{} {}  {} vCPU  {}  {reason}",
                self.mark(replica.container.as_str()),
                replica.replica_id,
                replica.cpu,
                replica.memory.rounded()
            ));
        }
        lines.push(self.paint(Paint::Dim, "see why: berth explain REPLICA"));
        lines.join("\n")
    }
}

fn letter(number: usize) -> String {
    char::from(LETTERS[number % LETTERS.len()]).to_string()
}

fn counted(count: usize, noun: &str) -> String {
    if count == 1 {
        format!("1 {noun}")
    } else {
        format!("{count} {noun}s")
    }
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
