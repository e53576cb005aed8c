//! The core on a fake machine: scenarios of the fault list, and random histories with independent checkers.
//!
//! What they prove: no two processes of one replica (the fake machine panics on it), no stop without a reason that the
//! test can name by itself, run numbers that only rise, and convergence once the faults end. How: [`Node`] plays the
//! shell, commits writes to a map that stands for the ledger, and can be killed between any two steps.

use std::collections::VecDeque;
use std::time::Duration;

use berth_api::assignment::Assignment;
use berth_api::container::{CpuRange, Granted, HealthCheck, MemoryRange, ProbeKind, ProbeMethod};
use berth_api::event::EventDetails;
use berth_api::id::ContainerName;
use berth_api::replica::{Cause, Phase};

use super::*;
use crate::health::{ProbePhase, ProbeRole};
use crate::host::fake::{FakeHost, Verb, When};
use crate::host::{Change, HostError, Signal};
use crate::replica::{GOOD_RUN, Happening};

mod absurd;
mod disk;
mod draining;
mod histories;
mod preflight;
mod probing;
mod resize;

fn id(n: usize) -> ReplicaId {
    ReplicaId::new(format!("r-{n}")).unwrap()
}

fn identity() -> Identity {
    Identity {
        cluster_id: ClusterId::new("c").unwrap(),
        machine_id: MachineId::new("m").unwrap(),
    }
}

fn assignment(n: usize, version: u32) -> Assignment {
    Assignment {
        replica_id: id(n),
        container: ContainerName::new("r").unwrap(),
        ordinal: u32::try_from(n).ok(),
        image: format!("image:{version}"),
        command: None,
        env: BTreeMap::new(),
        cpu: CpuRange {
            min: Cpu::from_micros(1),
            desired: Cpu::from_micros(1),
        },
        memory: MemoryRange {
            min: Bytes::mib(1),
            desired: Bytes::mib(1),
        },
        granted: None,
        ephemeral_storage: Some(Bytes::mib(1)),
        gpu: None,
        gpu_devices: vec![],
        ip: format!("10.0.0.{}", n + 2).parse().unwrap(),
        ports: vec![80],
        host_port: Some(8001),
        volume: None,
        shared_mounts: vec![],
        health_check: None,
        probes: None,
        load_balancer_target: None,
        service_account: None,
        stop_grace_ms: 10_000,
        drain_ms: None,
    }
}

/// Half of the memory that an [`assignment`] desires.
fn half() -> Granted {
    Granted {
        cpu: Cpu::from_micros(1),
        memory: Bytes::new(1 << 19),
    }
}

fn stop(n: usize) -> Stop {
    Stop {
        replica_id: id(n),
        reason: StopReason::ScaledDown,
        since: Timestamp::default(),
    }
}

/// The shell: one node, its ledger and its machine.
struct Node {
    host: FakeHost,
    core: NodeCore,
    rows: BTreeMap<ReplicaId, Memory>,
    set: Option<(AssignmentSet, Position)>,
    generation: u64,
    now: Now,
    queue: VecDeque<(ReplicaId, Step)>,
    news: Vec<Happening>,
    confirmed: BTreeSet<ReplicaId>,
    cancelled: BTreeSet<ReplicaId>,
    last_run: BTreeMap<ReplicaId, u32>,
    /// Replicas whose last start seemed to fail: what it left is removed.
    failed_starts: BTreeSet<ReplicaId>,
    /// Running replicas whose shim does not answer.
    muted: BTreeSet<ReplicaId>,
}

impl Node {
    fn new() -> Self {
        let now = Now {
            boot: BootTime(1_000_000),
            wall: Timestamp::from_millis(1_700_000_000_000),
        };
        let mut node = Self {
            host: FakeHost::new(),
            core: NodeCore::new(identity(), Restored::default(), now),
            rows: BTreeMap::new(),
            set: None,
            generation: 0,
            now,
            queue: VecDeque::new(),
            news: vec![],
            confirmed: BTreeSet::new(),
            cancelled: BTreeSet::new(),
            last_run: BTreeMap::new(),
            failed_starts: BTreeSet::new(),
            muted: BTreeSet::new(),
        };
        node.observe();
        node
    }

    fn observe(&mut self) {
        let token = self.core.begin_observation();
        match self.host.observe_now() {
            Ok(observed) => self.core.observed(token, observed, self.now),
            Err(error) => self.core.observation_failed(error.to_string(), self.now),
        }
        self.turn();
    }

    fn offer(&mut self, replicas: Vec<Assignment>, stops: Vec<Stop>) {
        self.generation += 1;
        let Identity {
            cluster_id,
            machine_id,
        } = identity();
        let set = AssignmentSet {
            cluster_id,
            machine_id,
            epoch: 1,
            generation: self.generation,
            replicas,
            stops,
        };
        let (bytes, position) = set.seal();
        let read = self.core.check(&bytes, &position, &Position::default()).unwrap();
        self.set = Some((set, position));
        self.core.accept(read, position, self.now);
        self.turn();
    }

    fn turn(&mut self) {
        let draining = self.core.draining(self.now);
        let counts = self.host.connections_now(&draining);
        self.core.connected(&counts, self.now);
        let output = self.core.advance(self.now);
        for write in output.writes {
            match write {
                Write::Put(id, memory) => self.rows.insert(id, memory),
                // With its row a replica's history ends.
                Write::Remove(id) => {
                    self.last_run.remove(&id);
                    self.rows.remove(&id)
                }
            };
        }
        self.cancelled.extend(output.cancels);
        self.news.extend(output.news);
        for (id, step) in &output.steps {
            self.check_step(id, step);
        }
        self.queue.extend(output.steps);
    }

    /// An independent word on whether the step may be done.
    fn check_step(&mut self, id: &ReplicaId, step: &Step) {
        assert!(
            self.queue.iter().all(|(other, _)| other != id),
            "{id}: two steps at once"
        );
        if let Step::Create { run, .. } = step {
            self.muted.remove(id);
            let last = self.last_run.insert(id.clone(), *run);
            assert!(
                last.is_none_or(|last| last < *run),
                "{id}: run {run} after {last:?}"
            );
        }
        let running = self.host.processes().contains_key(id);
        if running && matches!(step, Step::Signal { .. } | Step::Delete) {
            let set = self.set.as_ref().map(|(set, _)| set);
            let assigned = set.and_then(|set| {
                set.replicas
                    .iter()
                    .find(|assignment| assignment.replica_id == *id)
            });
            let listed_stop = set.is_some_and(|set| set.stops.iter().any(|stop| stop.replica_id == *id));
            let changed = assigned
                .is_some_and(|assigned| self.host.revision(id) != Some(assigned.digest().to_string()));
            let begun = self.rows.get(id).is_some_and(|memory| memory.stopping.is_some());
            let unhealthy = assigned.is_some_and(|assigned| assigned.health_check.is_some());
            assert!(
                listed_stop
                    || changed
                    || begun
                    || unhealthy
                    || self.confirmed.contains(id)
                    || self.failed_starts.contains(id)
                    || self.muted.contains(id),
                "{id}: {step:?} without a reason"
            );
        }
    }

    /// Does the oldest step that was asked for.
    fn step(&mut self) -> bool {
        let Some((id, step)) = self.queue.pop_front() else {
            return false;
        };
        let cancelled =
            self.cancelled.remove(&id) && matches!(step, Step::Prepare { .. } | Step::Pull { .. });
        let result = if cancelled {
            Ok(Outcome::Cancelled)
        } else {
            self.host.perform_now(&id, &step)
        };
        if matches!(step, Step::Start { .. }) {
            match &result {
                Ok(_) => self.failed_starts.remove(&id),
                Err(_) => self.failed_starts.insert(id.clone()),
            };
        }
        let mut news = vec![];
        self.core.step_ended(&id, result, self.now, &mut news);
        self.news.extend(news);
        self.deliver();
        true
    }

    fn deliver(&mut self) {
        for change in self.host.take_changes() {
            match change {
                Change::Exited {
                    replica_id,
                    pid,
                    exit,
                } => self.core.exited(&replica_id, pid, exit),
                Change::Resync => {}
            }
        }
        self.turn();
    }

    fn mute(&mut self, n: usize) {
        if self.pid(n).is_some() {
            self.host.mute(&id(n));
            self.muted.insert(id(n));
        }
    }

    fn exit(&mut self, n: usize, status: u32) {
        self.host.exit(&id(n), status, false);
        self.deliver();
    }

    fn pass(&mut self, time: Duration) {
        self.now = Now {
            boot: self.now.boot.plus(time),
            wall: self.now.wall.plus(time),
        };
        self.host.set_now(self.now.wall);
        self.turn();
    }

    /// kill -9 and start again: what was under way is lost, before or after it took effect.
    fn restart(&mut self, effect: bool) {
        for (id, step) in std::mem::take(&mut self.queue) {
            if effect {
                drop(self.host.perform_now(&id, &step));
            }
        }
        self.cancelled.clear();
        self.host.take_changes();
        self.boot_core(false);
    }

    fn boot_core(&mut self, rebooted: bool) {
        let restored = Restored {
            set: self.set.clone(),
            replicas: self.rows.clone(),
            rebooted,
        };
        self.core = NodeCore::new(identity(), restored, self.now);
        self.turn();
        self.observe();
    }

    /// Everything that is due is done; no time passes.
    fn settle(&mut self) {
        let mut steps = 0;
        while self.step() {
            steps += 1;
            assert!(steps < 10_000, "does not settle: {:?}", self.queue);
        }
    }

    fn status(&self, n: usize) -> ReplicaStatus {
        self.core
            .status()
            .iter()
            .find(|status| status.replica_id == id(n))
            .cloned()
            .unwrap()
    }

    fn pid(&self, n: usize) -> Option<u32> {
        self.host.processes().get(&id(n)).copied()
    }
}

#[test]
fn a_replica_comes_up_and_goes_down_without_leftovers() {
    let mut node = Node::new();
    node.offer(vec![assignment(0, 1)], vec![]);
    node.settle();
    assert_eq!(node.status(0).phase, Phase::Healthy);
    assert!(node.status(0).ready);
    assert_eq!(node.core.host_ports().len(), 1);
    node.offer(vec![], vec![stop(0)]);
    assert!(!node.status(0).ready, "not ready before SIGTERM");
    assert!(node.core.host_ports().is_empty());
    node.settle();
    assert!(node.pid(0).is_some(), "drained first");
    node.pass(Duration::from_secs(1));
    node.settle();
    assert_eq!(node.status(0).phase, Phase::Gone);
    assert!(node.host.leftovers().is_empty());
    assert!(node.rows.is_empty(), "the row goes last");
    node.offer(vec![], vec![]);
    assert!(node.core.status().is_empty());
    let stopped = node
        .news
        .iter()
        .any(|news| matches!(news.details, EventDetails::ReplicaStopped { .. }));
    assert!(stopped);
}

#[test]
fn an_empty_set_stops_nothing_until_the_stop_is_confirmed() {
    let mut node = Node::new();
    node.offer(vec![assignment(0, 1), assignment(1, 1)], vec![]);
    node.settle();
    node.offer(vec![], vec![]);
    node.pass(Duration::from_secs(3600));
    node.settle();
    assert_eq!(node.host.processes().len(), 2);
    assert_eq!(node.core.unlisted(), vec![id(0), id(1)]);
    node.confirmed.insert(id(1));
    node.core.confirm_stops(&[id(1)]);
    node.pass(Duration::from_secs(1));
    node.pass(Duration::from_secs(1));
    node.settle();
    assert_eq!(node.host.processes().keys().collect::<Vec<_>>(), [&id(0)]);
    assert_eq!(node.host.leftovers(), BTreeSet::from([id(0)]));
}

#[test]
fn sets_of_another_machine_and_older_sets_are_refused() {
    let mut node = Node::new();
    node.offer(vec![], vec![]);
    node.offer(vec![], vec![]);
    let Identity { cluster_id, .. } = identity();
    let other = MachineId::new("other").unwrap();
    let mut set = AssignmentSet {
        cluster_id,
        machine_id: other,
        epoch: 2,
        generation: 1,
        replicas: vec![],
        stops: vec![],
    };
    let (bytes, position) = set.seal();
    let none = Position::default();
    assert!(matches!(
        node.core.check(&bytes, &position, &none),
        Err(Refusal::Misdirected(_))
    ));
    set.machine_id = identity().machine_id;
    let newer = set.seal();
    assert!(node.core.check(&newer.0, &newer.1, &none).is_ok());
    set.epoch = 1;
    let (bytes, position) = set.seal();
    assert!(matches!(
        node.core.check(&bytes, &position, &none),
        Err(Refusal::Older { .. })
    ));
    // A set that is being stored counts already.
    set.epoch = 3;
    let latest = set.seal().1;
    assert!(matches!(
        node.core.check(&newer.0, &newer.1, &latest),
        Err(Refusal::Older { .. })
    ));
}

#[test]
fn crashes_back_off_and_five_good_minutes_forgive_them() {
    let mut node = Node::new();
    node.offer(vec![assignment(0, 1)], vec![]);
    node.settle();
    node.exit(0, 1);
    node.settle();
    assert!(node.pid(0).is_some(), "the first restart is immediate");
    node.exit(0, 1);
    node.settle();
    assert_eq!(node.status(0).phase, Phase::Backoff);
    node.pass(Duration::from_secs(2));
    node.settle();
    node.exit(0, 137);
    node.settle();
    let status = node.status(0);
    assert_eq!(
        (status.recent_crashes, status.cause),
        (3, Some(Cause::Signal { signal: 9 }))
    );
    assert!(status.wait.unwrap().next_attempt.is_some());
    let loops = |node: &Node| {
        node.news
            .iter()
            .filter(|news| matches!(news.details, EventDetails::ContainerCrashLoop { .. }))
            .count()
    };
    assert_eq!(loops(&node), 1);
    node.pass(Duration::from_secs(3));
    node.settle();
    assert_eq!(node.status(0).run, 4);
    node.pass(GOOD_RUN);
    assert_eq!(node.status(0).recent_crashes, 0);
    let recovered = |news: &Happening| {
        matches!(
            news.details,
            EventDetails::CrashLoopRecovered { previous_crashes: 3 }
        )
    };
    assert!(node.news.iter().any(recovered));
}

#[test]
fn the_cause_of_an_out_of_memory_kill_is_told() {
    let mut node = Node::new();
    node.offer(vec![assignment(0, 1)], vec![]);
    node.settle();
    node.host.exit(&id(0), 137, true);
    node.deliver();
    assert_eq!(node.status(0).cause, Some(Cause::OutOfMemory));
}

#[test]
fn after_kill_9_every_process_is_adopted_with_its_pid() {
    let mut node = Node::new();
    node.offer((0..5).map(|n| assignment(n, 1)).collect(), vec![]);
    node.settle();
    let before = node.host.processes();
    for _ in 0..20 {
        node.restart(true);
        node.settle();
    }
    assert_eq!(node.host.processes(), before);
    assert!(node.status(0).ready);
    assert_eq!(node.status(0).pid, before.get(&id(0)).copied());
}

#[test]
fn a_lost_ledger_stops_nothing_and_the_set_is_taken_up_again() {
    let mut node = Node::new();
    node.offer(vec![assignment(0, 1), assignment(1, 1)], vec![]);
    node.settle();
    let before = node.host.processes();
    let set = node.set.take().unwrap();
    node.rows.clear();
    node.boot_core(false);
    node.settle();
    assert_eq!(node.host.processes(), before);
    assert!(!node.core.has_set());
    node.offer(set.0.replicas, vec![]);
    node.settle();
    assert_eq!(node.host.processes(), before);
    assert_eq!(node.status(0).run, 1, "the run number comes from the label");
}

#[test]
fn a_reboot_starts_everything_again_from_the_stored_set() {
    let mut node = Node::new();
    node.offer(vec![assignment(0, 1)], vec![]);
    node.settle();
    node.queue.clear();
    node.host.reboot();
    node.now.boot = BootTime(5);
    node.boot_core(true);
    node.settle();
    assert!(node.pid(0).is_some());
    let status = node.status(0);
    assert_eq!(
        (status.run, status.recent_crashes),
        (2, 0),
        "a reboot is no crash"
    );
}

#[test]
fn an_update_pulls_first_then_stops_then_starts() {
    let mut node = Node::new();
    node.offer(vec![assignment(0, 1)], vec![]);
    node.settle();
    node.host
        .fail_next(Verb::EnsureImage, When::Before, HostError::user("no such image"));
    node.offer(vec![assignment(0, 2)], vec![]);
    node.settle();
    assert_eq!(
        node.host.revision(&id(0)),
        Some(assignment(0, 1).digest().to_string())
    );
    let status = node.status(0);
    assert!(
        status.ready,
        "the old process serves while the new image cannot be had"
    );
    assert!(matches!(status.cause, Some(Cause::Image { .. })));
    node.pass(Duration::from_secs(2));
    node.settle();
    node.pass(Duration::from_secs(1));
    node.settle();
    assert_eq!(
        node.host.revision(&id(0)),
        Some(assignment(0, 2).digest().to_string())
    );
    let status = node.status(0);
    assert_eq!((status.run, status.recent_crashes, status.cause), (2, 0, None));
}

#[test]
fn a_stop_goes_on_after_kill_9_with_its_recorded_deadline() {
    let mut node = Node::new();
    node.offer(vec![assignment(0, 1)], vec![]);
    node.settle();
    node.host.ignore_term(&id(0));
    node.offer(vec![], vec![stop(0)]);
    node.pass(Duration::from_millis(300));
    node.settle();
    assert_eq!(node.status(0).phase, Phase::Stopping);
    node.pass(Duration::from_secs(9));
    node.restart(true);
    node.settle();
    assert!(node.pid(0).is_some(), "the grace is not over");
    let terms = |node: &Node| {
        node.host
            .calls()
            .iter()
            .filter(|(verb, _)| *verb == Verb::Signal)
            .count()
    };
    assert_eq!(terms(&node), 1, "SIGTERM is not sent again");
    node.pass(Duration::from_millis(1100));
    node.settle();
    assert_eq!(node.status(0).phase, Phase::Gone);
}

#[test]
fn nothing_is_begun_while_the_runtime_does_not_answer() {
    let mut node = Node::new();
    node.offer(vec![assignment(0, 1)], vec![]);
    node.settle();
    let calls = node.host.calls().len();
    node.host.set_unreachable(true);
    node.observe();
    node.offer(vec![assignment(0, 1), assignment(1, 1)], vec![stop(2)]);
    node.pass(Duration::from_secs(600));
    node.settle();
    assert_eq!(node.host.calls().len(), calls);
    assert!(node.status(0).ready, "what runs is not failed");
    assert!(matches!(node.core.runtime(), Runtime::Impaired { .. }));
    node.host.set_unreachable(false);
    node.observe();
    node.settle();
    assert!(node.pid(1).is_some());
}

#[test]
fn an_exit_while_the_daemon_was_down_is_counted_once() {
    let mut node = Node::new();
    node.offer(vec![assignment(0, 1)], vec![]);
    node.settle();
    node.host.exit(&id(0), 3, false);
    node.restart(false);
    assert_eq!(node.status(0).recent_crashes, 1);
    node.restart(false);
    node.restart(false);
    assert_eq!(node.status(0).recent_crashes, 1);
    assert_eq!(node.status(0).cause, Some(Cause::Exit { code: 3 }));
    node.settle();
    assert!(node.pid(0).is_some());
}

#[test]
fn a_process_that_ends_before_its_start_is_reported_is_counted() {
    let mut node = Node::new();
    node.offer(vec![assignment(0, 1)], vec![]);
    while !matches!(node.queue.front(), Some((_, Step::Start { .. }))) {
        assert!(node.step());
    }
    let (_, step) = node.queue.pop_front().unwrap();
    let result = node.host.perform_now(&id(0), &step);
    node.exit(0, 7);
    let mut news = vec![];
    node.core.step_ended(&id(0), result, node.now, &mut news);
    node.turn();
    assert_eq!(node.status(0).recent_crashes, 1);
    node.settle();
    assert!(node.pid(0).is_some());
}

#[test]
fn a_mute_shim_costs_its_own_replica_after_a_minute() {
    let mut node = Node::new();
    node.offer(vec![assignment(0, 1), assignment(1, 1)], vec![]);
    node.settle();
    let other = node.pid(1);
    node.mute(0);
    node.observe();
    node.pass(Duration::from_secs(59));
    node.settle();
    assert_eq!(node.status(0).run, 1);
    assert!(node.status(0).wait.unwrap().reason.contains("mute"));
    node.pass(Duration::from_secs(1));
    node.settle();
    assert_eq!((node.status(0).run, node.status(0).recent_crashes), (2, 1));
    assert!(matches!(node.status(0).cause, Some(Cause::Infrastructure { .. })));
    assert_eq!(node.pid(1), other);
}

#[test]
fn a_check_that_fails_for_long_restarts_the_replica() {
    let check = HealthCheck {
        kind: ProbeKind::Http,
        command: vec![],
        path: "/".into(),
        port: 80,
        method: ProbeMethod::Get,
        timeout_seconds: 1,
        failure_threshold: 3,
    };
    let mut node = Node::new();
    node.offer(
        vec![Assignment {
            health_check: Some(check),
            ..assignment(0, 1)
        }],
        vec![],
    );
    node.settle();
    assert_eq!(node.status(0).phase, Phase::Started);
    let report = |node: &mut Node, phase, consecutive_failures| {
        let last_error = (consecutive_failures > 0).then(|| "status 500".to_owned());
        let run = node.status(0).run;
        node.core.probed(ProbeReport {
            replica_id: id(0),
            run,
            role: ProbeRole::Check,
            phase,
            consecutive_failures,
            last_error,
        });
        node.turn();
        node.settle();
    };
    report(&mut node, ProbePhase::Starting, 50);
    assert_eq!(node.status(0).run, 1, "it may take long to come up");
    report(&mut node, ProbePhase::Passing, 0);
    assert!(node.status(0).ready);
    node.restart(false);
    assert!(node.status(0).ready, "a restarted daemon keeps it ready");
    report(&mut node, ProbePhase::Failing, 3);
    assert_eq!(
        (node.status(0).phase, node.status(0).ready),
        (Phase::Unhealthy, false)
    );
    report(&mut node, ProbePhase::Failing, 11);
    assert_eq!(node.status(0).run, 1);
    report(&mut node, ProbePhase::Failing, 12);
    node.pass(Duration::from_secs(1));
    node.settle();
    let status = node.status(0);
    assert_eq!(status.run, 2);
    assert_eq!(
        status.cause,
        Some(Cause::Health {
            error: "status 500".into()
        })
    );
}

/// Kills the daemon after every single step of a whole life, in both ways, and looks that nothing is left half-done.
#[test]
fn a_crash_between_any_two_steps_is_resumed() {
    for effect in [false, true] {
        for crash_at in 0..14 {
            let mut node = Node::new();
            node.offer(vec![assignment(0, 1)], vec![]);
            let mut steps = 0;
            let mut run = |node: &mut Node| {
                for _ in 0..40 {
                    if steps == crash_at {
                        node.restart(effect);
                    }
                    steps += 1;
                    if !node.step() {
                        node.pass(Duration::from_secs(2));
                    }
                }
            };
            run(&mut node);
            assert!(node.pid(0).is_some(), "crash at {crash_at}, effect {effect}");
            node.offer(vec![assignment(0, 2)], vec![]);
            run(&mut node);
            assert_eq!(
                node.host.revision(&id(0)),
                Some(assignment(0, 2).digest().to_string())
            );
            node.offer(vec![], vec![stop(0)]);
            run(&mut node);
            assert!(
                node.host.leftovers().is_empty(),
                "crash at {crash_at}, effect {effect}"
            );
        }
    }
}

#[test]
fn a_sigterm_that_failed_is_sent_again_within_the_grace() {
    let mut node = Node::new();
    node.offer(vec![assignment(0, 1)], vec![]);
    node.settle();
    let error = HostError::infrastructure("no answer");
    node.host.fail_next(Verb::Signal, When::Before, error);
    node.offer(vec![], vec![stop(0)]);
    node.pass(Duration::from_millis(300));
    node.settle();
    assert!(node.pid(0).is_some(), "the signal did not go out");
    node.pass(Duration::from_secs(2));
    node.settle();
    assert_eq!(node.status(0).phase, Phase::Gone);
}

#[test]
fn a_sigterm_lost_in_a_kill_9_is_sent_by_the_next_daemon() {
    let mut node = Node::new();
    node.offer(vec![assignment(0, 1)], vec![]);
    node.settle();
    node.offer(vec![], vec![stop(0)]);
    node.pass(Duration::from_millis(300));
    assert!(matches!(node.queue.front(), Some((_, Step::Signal { .. }))));
    node.restart(false);
    node.settle();
    assert_eq!(node.status(0).phase, Phase::Gone, "without waiting for SIGKILL");
}

#[test]
fn signals_are_in_order() {
    let mut node = Node::new();
    node.offer(vec![assignment(0, 1)], vec![]);
    node.settle();
    node.offer(vec![], vec![stop(0)]);
    node.pass(Duration::from_secs(1));
    assert!(matches!(
        node.queue.front(),
        Some((
            _,
            Step::Signal {
                signal: Signal::Term,
                ..
            }
        ))
    ));
}
