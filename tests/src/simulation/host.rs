//! The model of a machine below its daemon: containers, processes, namespaces, images. It does what a step says, in the
//! order in which the runtime was asked for each container, and never looks at what the daemon believes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use berth_api::assignment::Assignment;
use berth_api::id::ReplicaId;
use berth_api::machine::GpuDevice;
use berth_api::time::Timestamp;
use berth_node::host::{Exit, HostError, ImagePresence, Observed, ObservedContainer, ObservedTask, Signal};
use berth_node::replica::{Failure, Outcome, Part, Step};

use super::checkers::{Process, held_by};
use super::{Event, Fails, Mutation, Rule, Simulation};

/// One container of the runtime.
#[derive(Debug, Clone)]
pub(super) struct ModelContainer {
    pub(super) assignment: Assignment,
    pub(super) revision: String,
    pub(super) run: u32,
    pub(super) task: ObservedTask,
    pub(super) created_at: Timestamp,
}

/// Everything of a machine that outlives its daemon.
#[derive(Debug, Default)]
pub(super) struct Host {
    pub(super) containers: BTreeMap<ReplicaId, ModelContainer>,
    /// Namespaces, mounts and logs, by replica, with the address.
    pub(super) prepared: BTreeMap<ReplicaId, IpAddr>,
    images: BTreeSet<String>,
    pub(super) is_runtime_down: bool,
}

impl Host {
    pub(super) fn observe(&self) -> Option<Observed> {
        if self.is_runtime_down {
            return None;
        }
        let observed = |(id, container): (&ReplicaId, &ModelContainer)| ObservedContainer {
            replica_id: id.clone(),
            revision: container.revision.clone(),
            run: container.run,
            task: container.task.clone(),
            created_at: Some(container.created_at),
        };
        Some(Observed {
            containers: self.containers.iter().map(observed).collect(),
        })
    }

    /// No process, no namespace; containers and images are still on disk.
    pub(super) fn power_off(&mut self) {
        for container in self.containers.values_mut() {
            container.task = ObservedTask::None;
        }
        self.prepared.clear();
        self.is_runtime_down = false;
    }

    pub(super) fn running_pid(&self, id: &ReplicaId) -> Option<u32> {
        match self.containers.get(id)?.task {
            ObservedTask::Running { pid } => Some(pid),
            ObservedTask::None
            | ObservedTask::Created
            | ObservedTask::Exited(_)
            | ObservedTask::Unknown { .. } => None,
        }
    }

    /// Namespaces of replicas that nobody knows: leftovers of a lost database.
    pub(super) fn sweep(&mut self, keep: &BTreeSet<ReplicaId>) {
        self.prepared.retain(|id, _| keep.contains(id));
    }
}

fn failure(part: Part, message: &str) -> Failure {
    Failure {
        part,
        error: HostError::infrastructure(message),
    }
}

fn part_of(step: &Step) -> Part {
    match step {
        Step::Prepare { .. } => Part::Network,
        Step::Pull { .. } => Part::Image,
        Step::Create { .. }
        | Step::Start { .. }
        | Step::Signal { .. }
        | Step::Resize { .. }
        | Step::Delete => Part::Runtime,
        Step::Release => Part::Volume,
    }
}

impl Simulation {
    /// The effect of a step on the machine.
    pub(super) fn effect(&mut self, machine: usize, boot: u64, flight: u64) {
        if !self.machines[machine].is_powered || self.machines[machine].boot != boot {
            self.flights.remove(&flight);
            return;
        }
        let Some(id) = self.flights.get(&flight).map(|flight| flight.id.clone()) else {
            return;
        };
        // The runtime takes calls on one container in order: what an earlier daemon asked for is done first.
        let earlier: Vec<u64> = self
            .flights
            .iter()
            .filter(|(number, other)| {
                **number < flight && other.id == id && other.result.is_none() && other.machine == machine
            })
            .map(|(number, _)| *number)
            .collect();
        for number in earlier.into_iter().chain([flight]) {
            self.effect_now(machine, number);
        }
    }

    fn effect_now(&mut self, machine: usize, number: u64) {
        let Some(flight) = self.flights.get(&number) else {
            return;
        };
        if flight.result.is_some() {
            return;
        }
        let (id, step, fails) = (flight.id.clone(), flight.step.clone(), flight.fails);
        let part = part_of(&step);
        let result = match fails {
            Some(Fails::Before) => Err(failure(part, "injected before")),
            Some(Fails::After) => self
                .do_step(machine, &id, &step)
                .and_then(|_| Err(failure(part, "injected after"))),
            None => self.do_step(machine, &id, &step),
        };
        let is_ok = result.is_ok();
        self.note(|| {
            format!(
                "m{machine} {id} {} {}",
                step.name(),
                if is_ok { "done" } else { "failed" }
            )
        });
        if let Some(flight) = self.flights.get_mut(&number) {
            flight.result = Some(result);
        }
    }

    fn do_step(&mut self, machine: usize, id: &ReplicaId, step: &Step) -> Result<Outcome, Failure> {
        let runtime = matches!(
            step,
            Step::Create { .. }
                | Step::Start { .. }
                | Step::Signal { .. }
                | Step::Resize { .. }
                | Step::Delete
        );
        if runtime && self.machines[machine].host.is_runtime_down {
            return Err(failure(Part::Runtime, "the runtime does not answer"));
        }
        match step {
            Step::Prepare { assignment, .. } => {
                let outcome = self.pull(machine, &assignment.image)?;
                let prepared = &mut self.machines[machine].host.prepared;
                let other = prepared
                    .iter()
                    .find(|(other, ip)| *other != id && **ip == assignment.ip);
                if let Some((other, ip)) = other {
                    let text = format!("{ip} of {id} is still {other}'s on m{machine}");
                    self.checkers.broke(Rule::Uniqueness, text);
                    return Ok(outcome);
                }
                prepared.insert(id.clone(), assignment.ip);
                Ok(outcome)
            }
            Step::Pull { assignment } => self.pull(machine, &assignment.image),
            Step::Create { assignment, run } => self.create(machine, assignment, *run),
            Step::Start { run } => self.start(machine, id, *run),
            Step::Signal { signal, .. } => {
                self.signal(machine, id, *signal);
                Ok(Outcome::Done)
            }
            Step::Resize { assignment } => {
                if let Some(pid) = self.machines[machine].host.running_pid(id) {
                    self.checkers.resized(pid, held_by(assignment));
                }
                Ok(Outcome::Done)
            }
            Step::Delete => {
                if let Some(pid) = self.machines[machine].host.running_pid(id) {
                    self.checkers.ended_by_daemon(pid, "deleted");
                    self.checkers.end(pid);
                }
                self.machines[machine].host.containers.remove(id);
                Ok(Outcome::Done)
            }
            Step::Release => {
                if self.machines[machine].host.running_pid(id).is_some() {
                    let text = format!("the namespace of {id} goes from under its process");
                    self.checkers.broke(Rule::Silence, text);
                }
                self.machines[machine].host.prepared.remove(id);
                Ok(Outcome::Done)
            }
        }
    }

    fn pull(&mut self, machine: usize, image: &str) -> Result<Outcome, Failure> {
        let images = &mut self.machines[machine].host.images;
        if !images.contains(image) && self.weather.is_missing(image) {
            let error = HostError::user(format!("no image {image}"));
            return Err(Failure {
                part: Part::Image,
                error,
            });
        }
        let presence = if images.insert(image.to_owned()) {
            ImagePresence::Pulled
        } else {
            ImagePresence::Present
        };
        Ok(Outcome::Image {
            presence,
            elapsed_ms: 1,
        })
    }

    fn create(&mut self, machine: usize, assignment: &Assignment, run: u32) -> Result<Outcome, Failure> {
        let created_at = self.machine_wall(machine);
        let host = &mut self.machines[machine].host;
        let id = &assignment.replica_id;
        if host.containers.contains_key(id) {
            return Err(failure(Part::Runtime, "the container exists"));
        }
        if host.prepared.get(id) != Some(&assignment.ip) {
            let text = format!("{id} is made without its namespace on m{machine}");
            self.checkers.broke(Rule::Uniqueness, text);
        }
        host.containers.insert(
            id.clone(),
            ModelContainer {
                assignment: assignment.clone(),
                revision: assignment.digest().to_string(),
                run,
                task: ObservedTask::Created,
                created_at,
            },
        );
        Ok(Outcome::Done)
    }

    fn start(&mut self, machine: usize, id: &ReplicaId, run: u32) -> Result<Outcome, Failure> {
        let stubborn_percent = self.weather.stubborn_percent();
        let starting = &mut self.machines[machine];
        let container = starting.host.containers.get_mut(id);
        let Some(container) = container.filter(|c| c.run == run && c.task == ObservedTask::Created) else {
            return Err(failure(Part::Runtime, "no such task to start"));
        };
        let assignment = &container.assignment;
        let process = Process {
            machine,
            replica_id: id.clone(),
            container: assignment.container.clone(),
            ordinal: assignment.ordinal,
            image: assignment.image.clone(),
            volume: assignment
                .volume
                .as_ref()
                .map(|mount| mount.volume.identity().to_owned()),
            held: held_by(assignment),
            devices: match self.options.mutation {
                Some(Mutation::FirstDevice) => first_device(assignment),
                _ => assignment.gpu_devices.clone(),
            },
            revision: container.revision.clone(),
            is_known: false,
            is_termed: false,
            is_sick: false,
            was_sick: false,
            is_stubborn: starting.chance.percent(stubborn_percent),
        };
        let pid = self.checkers.start(process);
        container.task = ObservedTask::Running { pid };
        if self.machines[machine]
            .chance
            .percent(self.weather.crash_percent())
        {
            let delay = self.machines[machine].chance.range(1..=300);
            self.after(
                delay,
                Event::Exit {
                    machine,
                    pid,
                    status: 1,
                    out_of_memory: false,
                },
            );
        }
        Ok(Outcome::Started { pid })
    }

    /// Signals a process, if there is one.
    pub(super) fn signal(&mut self, machine: usize, id: &ReplicaId, signal: Signal) {
        let Some(pid) = self.machines[machine].host.running_pid(id) else {
            return;
        };
        self.checkers.ended_by_daemon(pid, "signalled");
        let (delay, status) = match signal {
            Signal::Kill => (self.machines[machine].chance.range(1..=100), 137),
            Signal::Term if self.checkers.is_stubborn(pid) => return,
            Signal::Term => (self.machines[machine].chance.range(1..=3000), 143),
        };
        self.after(
            delay,
            Event::Exit {
                machine,
                pid,
                status,
                out_of_memory: false,
            },
        );
    }

    /// A process ends; its daemon, if there is one, hears of it soon, or only when it looks.
    pub(super) fn exit(&mut self, machine: usize, pid: u32, status: u32, out_of_memory: bool) {
        let Some(process) = self.checkers.end(pid) else {
            return;
        };
        assert_eq!(process.machine, machine, "a process stays on its machine");
        let id = process.replica_id;
        let at = self.machine_wall(machine);
        let exit = Exit {
            status,
            out_of_memory,
            at,
        };
        let container = self.machines[machine].host.containers.get_mut(&id);
        container.expect("a process has its container").task = ObservedTask::Exited(exit);
        self.note(|| format!("m{machine} {id} pid {pid} ended with {status}"));
        let lost_percent = self.weather.lost_percent();
        let exiting = &mut self.machines[machine];
        if exiting.host.is_runtime_down || exiting.chance.percent(lost_percent) {
            return;
        }
        let life = self.machines[machine].life;
        let delay = self.machines[machine].chance.range(0..=50);
        self.after(
            delay,
            Event::ExitSeen {
                machine,
                life,
                id,
                pid,
                exit,
            },
        );
    }
}

/// The mutation: what is held of any GPU is held of the first.
fn first_device(assignment: &Assignment) -> Vec<GpuDevice> {
    let devices = assignment.gpu_devices.iter();
    devices.map(|device| GpuDevice { index: 0, ..*device }).collect()
}
