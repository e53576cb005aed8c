//! kill -9 of every program, at bad moments, and damaged files: containers run on and are managed again.

use std::time::Duration;

use berth_api::time::Timestamp;
use rustix::process::Signal;
use serde_json::json;

use super::dev::{Dev, Program, container, is_alive, names_in, pid_of, signal, stateful, text, until};

/// Moments that no test would choose; the seed is printed.
struct Chance(u64);

impl Chance {
    fn new() -> Self {
        let seed = std::env::var("BERTH_SEED")
            .ok()
            .and_then(|seed| seed.parse().ok())
            .unwrap_or_else(|| Timestamp::now().millis());
        eprintln!("BERTH_SEED={seed}");
        Self(seed)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// How often something is killed: in `make test`, or as many times as whoever soaks asks for.
fn rounds() -> u32 {
    let asked = std::env::var("BERTH_FAULT_ROUNDS").ok();
    asked.and_then(|rounds| rounds.parse().ok()).unwrap_or(5)
}

/// One in so many kills, from the sixth on, is containerd's.
const CONTAINERD_ONE_IN: u32 = 10;

/// The daemon dies again and again while replicas start and stop, and in a long run containerd as well. At the end of each round
/// every replica has exactly one process, and there is nothing beside.
#[test]
fn fault_01_daemon_killed_between_any_two_steps() {
    let Some(dev) = Dev::up(1) else { return };
    let mut chance = Chance::new();
    let rounds = rounds();
    for round in 1..=rounds {
        // The last count is what is looked at below.
        let replicas = if round == rounds {
            5
        } else {
            u32::try_from(chance.below(9)).unwrap() + 1
        };
        let program = if round % CONTAINERD_ONE_IN == CONTAINERD_ONE_IN - 4 {
            Program::Containerd
        } else {
            Program::Daemon
        };
        let victim = dev.another(program, None);
        let mut web = container(&dev, "web", replicas);
        web["resources"]["ephemeralStorage"] = json!("16Mi");
        // Every other round replaces all replicas as well.
        web["env"] = json!({"ROUND": (round / 2).to_string()});
        dev.apply_at_once(&[web]);
        // Not a wait: the moment of the fault.
        let moment = chance.below(700);
        std::thread::sleep(Duration::from_millis(moment));
        signal(victim, Signal::KILL);
        eprintln!("round {round}: {replicas} replicas, {program:?} killed after {moment} ms");
        dev.another(program, Some(victim));
        dev.until_ready("web", replicas as usize);
        dev.until_tidy();
    }
    // One more while nothing happens: nothing may change.
    let (pids, daemon) = (dev.pids(), dev.daemon("m1"));
    signal(daemon, Signal::KILL);
    until("another daemon", || {
        pid_of(&dev.machine("m1")["daemonPid"]).filter(|pid| *pid != daemon)
    });
    until("the machine is managed", || is_linked(&dev, "m1").then_some(()));
    dev.until_ready("web", 5);
    assert_eq!(dev.pids(), pids);
    for replica in dev.of("web") {
        assert_eq!(replica.pid, pids.get(replica.replica_id.as_str()).copied());
    }
}

fn is_linked(dev: &Dev, machine: &str) -> bool {
    let machines = dev.json(&["get", "machines", "-o", "json"]);
    let machines = machines.as_array().unwrap();
    machines
        .iter()
        .any(|found| found["machineId"] == machine && found["status"] == "running")
}

/// containerd dies: processes run on with their process ids, an end that nobody saw is found, and all is managed again.
#[test]
fn fault_14_containerd_killed_under_load() {
    let Some(dev) = Dev::up(2) else { return };
    dev.apply(&[container(&dev, "web", 3)]);
    let before = dev.pids();
    let victim = dev.until_ready("web", 3).remove(0);
    let id = victim.replica_id.as_str();

    let containerd = pid_of(&dev.list()["containerdPid"]).unwrap();
    signal(containerd, Signal::KILL);
    // Nobody can be told of this end.
    signal(victim.pid.unwrap(), Signal::KILL);
    until("another containerd", || {
        pid_of(&dev.list()["containerdPid"]).filter(|pid| *pid != containerd)
    });
    let again = dev.until_replica(id, "runs again", |replica| replica.ready && replica.run == 2);
    assert_ne!(again.pid, victim.pid);
    let after = dev.pids();
    for (replica, pid) in before.iter().filter(|(replica, _)| *replica != id) {
        assert_eq!(after.get(replica), Some(pid), "{replica} runs on");
    }

    // Managed again: starts, stops, ends are seen.
    dev.apply(&[container(&dev, "web", 5)]);
    dev.crash(&again);
    dev.until_replica(id, "runs once more", |replica| replica.ready && replica.run == 3);
    dev.until_tidy();
    dev.delete("web");
    dev.until_tidy();
}

/// The scheduler dies or hangs: nothing stops, names are answered, and the restarted one knows what the old one knew.
#[test]
fn fault_30_scheduler_gone() {
    let Some(dev) = Dev::up(2) else { return };
    dev.apply(&[container(&dev, "web", 3), stateful(&dev, "writer", 1)]);
    let pids = dev.pids();
    let writer = dev.until_ready("writer", 1).remove(0);
    let told = |dev: &Dev| {
        let mut replies: Vec<_> = ["web", "writer"]
            .map(|name| dev.rest("GET", &format!("/containers/{name}"), None).1)
            .to_vec();
        for reply in &mut replies {
            // What is measured differs between two questions.
            for replica in reply["replicasInfo"].as_array_mut().unwrap() {
                replica.as_object_mut().unwrap().remove("metrics");
            }
        }
        replies
    };
    dev.until_rolled_out(&["web", "writer"]);
    let before = told(&dev);
    let names = |what: &str| {
        until(&format!("{what}: all are named and answer"), || {
            let answer = dev
                .try_ask(&writer, "/fetch?url=http://web.svc:8080/health")
                .ok()?;
            let is_answered = (answer.status, answer.body.as_str()) == (200, "ok\n");
            (is_answered && dev.resolve(&writer, "web.svc").len() == 3).then_some(())
        });
    };
    names("before");

    let scheduler = pid_of(&dev.list()["schedulerPid"]).unwrap();
    signal(scheduler, Signal::STOP);
    names("while it hangs");
    assert_eq!(dev.processes().len(), 4);
    signal(scheduler, Signal::KILL);
    names("while it is dead");
    assert_eq!(dev.pids(), pids);
    until("another scheduler", || {
        pid_of(&dev.list()["schedulerPid"]).filter(|pid| *pid != scheduler)
    });
    until("it answers, and knows all as before", || {
        let is_up = dev.berth(&["get", "replicas"]).status.success();
        (is_up && told(&dev) == before).then_some(())
    });
    names("after");
    assert_eq!(dev.pids(), pids);
    dev.apply(&[container(&dev, "web", 4)]);
    dev.until_tidy();
    for (replica, pid) in &pids {
        assert_eq!(dev.pids().get(replica), Some(pid), "{replica} runs on");
    }
}

/// A damaged ledger is moved aside and made anew; replicas keep their processes.
#[test]
fn fault_05_state_database_damaged() {
    let Some(dev) = Dev::up(1) else { return };
    dev.apply(&[container(&dev, "web", 2), stateful(&dev, "writer", 1)]);
    let pids = dev.pids();
    let daemon = dev.daemon("m1");
    let state = dev.state().join("machines/m1/state");
    signal(daemon, Signal::STOP);
    signal(daemon, Signal::KILL);
    until("the daemon is dead", || (!is_alive(daemon)).then_some(()));
    for file in ["ledger.sqlite", "ledger.sqlite-wal"] {
        if state.join(file).exists() {
            std::fs::write(state.join(file), b"this was a ledger").unwrap();
        }
    }
    until("the damaged one lies aside", || {
        names_in(&state)
            .iter()
            .any(|name| name.contains(".corrupt-"))
            .then_some(())
    });
    until("another daemon", || {
        pid_of(&dev.machine("m1")["daemonPid"]).filter(|pid| *pid != daemon)
    });
    until("the same processes are managed again", || {
        let managed = dev
            .replicas()
            .iter()
            .all(|replica| replica.ready && replica.pid == pids.get(replica.replica_id.as_str()).copied());
        managed.then_some(())
    });
    assert_eq!(dev.pids(), pids);
    dev.apply(&[container(&dev, "web", 1)]);
    dev.until_tidy();
    let explanation = dev.explain("machine/m1").to_string();
    eprintln!("{explanation}");
}

/// A damaged log stops the scheduler's start: the record is named and the file is not touched.
#[test]
fn a_damaged_log_stops_the_start_and_is_left_as_it_is() {
    let Some(dev) = Dev::up(1) else { return };
    dev.apply(&[container(&dev, "landmark", 1)]);
    let scheduler = pid_of(&dev.list()["schedulerPid"]).unwrap();
    // A copy as a power cut would leave it, of a scheduler that is held.
    let copy = dev.path("copy");
    signal(scheduler, Signal::STOP);
    let from = dev.state().join("scheduler");
    std::fs::create_dir(&copy).unwrap();
    for name in names_in(&from).iter().filter(|name| !name.ends_with("-shm")) {
        std::fs::copy(from.join(name), copy.join(name)).unwrap();
    }
    signal(scheduler, Signal::CONT);
    let config = dev.path("copy.toml");
    // Free now; the test would fail, not pass, were it taken meanwhile.
    let listen = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let text_of_config = format!(
        "data_dir = {copy:?}\nlisten = \"{listen}\"\nlink_listen = \"127.0.0.1:0\"\nlink_names = [\"127.0.0.1\"]\n"
    );
    std::fs::write(&config, text_of_config).unwrap();
    let log = dev.path("copy.log");
    let start = || {
        std::process::Command::new(dev.program("berth-scheduler"))
            .arg("--config")
            .arg(&config)
            .stderr(std::fs::File::create(&log).unwrap())
            .spawn()
            .unwrap()
    };
    // Its orderly end puts everything into the one file.
    let mut whole = start();
    until("the copy's scheduler runs", || {
        // Else it would be waited for in vain.
        assert!(
            whole.try_wait().unwrap().is_none(),
            "{}",
            std::fs::read_to_string(&log).unwrap()
        );
        std::net::TcpStream::connect(listen).ok()
    });
    signal(whole.id(), Signal::TERM);
    assert!(
        whole.wait().unwrap().success(),
        "{}",
        std::fs::read_to_string(&log).unwrap()
    );

    let store = copy.join("store.db");
    let mut bytes = std::fs::read(&store).unwrap();
    let places: Vec<usize> = bytes
        .windows(8)
        .enumerate()
        .filter_map(|(at, window)| (window == b"landmark").then_some(at))
        .collect();
    assert!(!places.is_empty(), "the declaration is in the log");
    for at in places {
        bytes[at] = b'L';
    }
    std::fs::write(&store, &bytes).unwrap();
    let status = start().wait().unwrap();
    let told = text(&std::fs::read(&log).unwrap());
    assert!(!status.success(), "{told}");
    assert!(told.contains("cluster dev, record "), "{told}");
    assert_eq!(std::fs::read(&store).unwrap(), bytes, "nothing is overwritten");
    dev.until_ready("landmark", 1);
}
