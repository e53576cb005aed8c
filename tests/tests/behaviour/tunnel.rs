//! `berth exec` and `berth port-forward`: through scheduler and node link into a replica, without a port on the machine.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::{Child, ChildStdin, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::process::Signal;

use super::dev::{Dev, Program, container, signal, text, until};

const WORKLOAD: &str = "/bin/berth-test-workload";
/// Of one read or write; a crowded machine takes its time.
const SOCKET_DEADLINE: Duration = Duration::from_secs(120);

/// A `berth` that is spoken with; killed when dropped.
struct Talk {
    child: Child,
    stdin: Option<ChildStdin>,
    heard: Arc<Mutex<String>>,
}

impl Talk {
    fn start(dev: &Dev, program: &str, arguments: &[&str]) -> Self {
        let mut child = dev
            .command_of(program, arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let heard = Arc::new(Mutex::new(String::new()));
        let (mut stdout, sink) = (child.stdout.take().unwrap(), Arc::clone(&heard));
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = stdout.read(&mut buffer) {
                sink.lock().unwrap().push_str(&text(&buffer[..length]));
            }
        });
        Self {
            stdin: child.stdin.take(),
            child,
            heard,
        }
    }

    fn say(&mut self, words: &str) {
        let stdin = self.stdin.as_mut().unwrap();
        stdin.write_all(words.as_bytes()).unwrap();
        stdin.flush().unwrap();
    }

    fn until(&self, part: &str) {
        let mut last = String::new();
        until(&format!("it says {part:?}"), || {
            let heard = self.heard.lock().unwrap().clone();
            if heard != last {
                eprintln!("heard so far: {heard:?}");
            }
            let is_said = heard.contains(part);
            last = heard;
            is_said.then_some(())
        });
    }

    fn code(&mut self) -> Option<i32> {
        until("it ends", || self.child.try_wait().unwrap()).code()
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn exec(dev: &Dev, arguments: &[&str], input: &[u8]) -> Output {
    let all: Vec<&str> = ["exec"].iter().chain(arguments).copied().collect();
    let mut child = dev
        .command_of("berth", &all)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut stdin, input) = (child.stdin.take().unwrap(), input.to_vec());
    // A program that does not read its input closes it.
    let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    output
}

fn ended(output: &Output) -> (Option<i32>, String, String) {
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn a_program_runs_in_a_replica_with_its_input_output_and_exit_code() {
    let Some(dev) = Dev::up(1) else { return };
    dev.apply(&[container(&dev, "web", 2)]);
    let web = dev.until_ready("web", 2).remove(0);
    let id = web.replica_id.as_str();

    let (code, out, err) = ended(&exec(&dev, &[id, "--", WORKLOAD, "exit", "7"], b""));
    assert_eq!((code, out.as_str(), err.as_str()), (Some(7), "", ""));

    // More than every buffer on the way holds, and no text.
    let bytes: Vec<u8> = (0..3_000_000_u32)
        .map(|number| u8::try_from(number * 7 / 3 % 256).unwrap())
        .collect();
    let output = exec(&dev, &["-i", id, "--", WORKLOAD, "cat"], &bytes);
    assert_eq!(text(&output.stderr), "3000000 bytes\n");
    assert!(
        output.status.success() && output.stdout == bytes,
        "{}",
        output.stdout.len()
    );
    // Without -i there is an end at once.
    let (code, out, err) = ended(&exec(&dev, &[id, "--", WORKLOAD, "cat"], b"unread"));
    assert_eq!((code, out.as_str(), err.as_str()), (Some(0), "", "0 bytes\n"));

    // A container is one of its replicas, and the environment is the replica's own.
    let (code, out, _) = ended(&exec(&dev, &["-i", "web", "--", WORKLOAD, "terminal"], b"x\n"));
    assert!(
        code == Some(0) && out.starts_with("terminal=false size=0x0") && out.contains("<x>"),
        "{out}"
    );

    for (arguments, part) in [
        (vec![id, "--", "/bin/nothing"], "/bin/nothing"),
        (vec!["nobody", "--", WORKLOAD], "\"nobody\" is placed"),
        (vec!["-t", id, "--", WORKLOAD], "no terminal"),
        (vec![id, "--", ""], "command"),
    ] {
        let (code, _, err) = ended(&exec(&dev, &arguments, b""));
        assert!(
            code == Some(125) && err.contains(part),
            "{arguments:?}: {code:?} {err}"
        );
    }
    let (status, answer) = dev.rest("GET", &format!("/exec/{id}?command=ls&terminal=2&rows=0"), None);
    let faults = answer["faults"].as_array().unwrap();
    assert!(status == 400 && faults.len() == 2, "{answer}");
    let (status, answer) = dev.rest("GET", &format!("/exec/{id}?command=ls"), None);
    assert_eq!(
        (status, answer["error"]["code"].as_str()),
        (426, Some("upgrade_required"))
    );
    // One process each: nothing that was run is left.
    until("the programs are gone", || {
        dev.processes().values().all(|pids| pids.len() == 1).then_some(())
    });
}

#[test]
fn a_terminal_has_the_callers_size_and_takes_its_keys() {
    let Some(dev) = Dev::up(1) else { return };
    dev.apply(&[container(&dev, "web", 1)]);
    dev.until_ready("web", 1);
    // `script` is the terminal here; what is typed goes through it.
    let berth = dev.program("berth").display().to_string();
    let line = format!("stty cols 101 rows 33; exec {berth} exec -it web -- {WORKLOAD} terminal");
    let mut talk = Talk::start(&dev, "script", &["-qec", &line, "/dev/null"]);
    talk.until("terminal=true size=101x33 TERM=");
    talk.say("hello\r");
    talk.until("<hello>");
    // The keys are the program's: this ends it, not the command line.
    talk.say("\x03");
    assert_eq!(talk.code(), Some(130));
}

#[test]
fn a_program_outlives_containerd_and_ends_with_its_caller_or_the_daemon() {
    let Some(dev) = Dev::up(1) else { return };
    dev.apply(&[container(&dev, "web", 1)]);
    let web = dev.until_ready("web", 1).remove(0);
    let id = web.replica_id.as_str();
    let count = |wanted: usize| {
        until(&format!("{wanted} processes run"), || {
            (dev.processes().get(id).map_or(0, |pids| pids.len()) == wanted).then_some(())
        });
    };
    let start = || {
        let mut talk = Talk::start(&dev, "berth", &["exec", "-i", "web", "--", WORKLOAD, "cat"]);
        talk.say("one\n");
        talk.until("one");
        count(2);
        talk
    };

    let mut talk = start();
    let containerd = dev.another(Program::Containerd, None);
    signal(containerd, Signal::KILL);
    dev.another(Program::Containerd, Some(containerd));
    talk.say("two\n");
    talk.until("two");
    talk.stdin.take();
    assert_eq!(talk.code(), Some(0));
    count(1);

    // Whoever runs it is killed: nobody is left to tell it to end.
    drop(start());
    count(1);

    let mut talk = start();
    let daemon = dev.daemon("m1");
    signal(daemon, Signal::KILL);
    assert_eq!(talk.code(), Some(125));
    dev.another(Program::Daemon, Some(daemon));
    count(1);
    assert_eq!(dev.replica(id).run, 1);
    until("the machine is linked again", || {
        let output = exec(&dev, &["web", "--", WORKLOAD, "exit", "3"], b"");
        (output.status.code() == Some(3)).then_some(())
    });
}

fn connect(to: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(to).unwrap();
    stream.set_read_timeout(Some(SOCKET_DEADLINE)).unwrap();
    stream.set_write_timeout(Some(SOCKET_DEADLINE)).unwrap();
    stream
}

fn get(to: SocketAddr, path: &str) -> String {
    let mut stream = connect(to);
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    )
    .unwrap();
    // A client that says no more still hears the answer.
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn a_local_port_leads_to_a_port_of_a_replica() {
    let Some(dev) = Dev::up(1) else { return };
    dev.apply(&[container(&dev, "web", 1)]);
    let web = dev.until_ready("web", 1).remove(0);
    let mut child = dev
        .command_of("berth", &["port-forward", "web", ":8080", ":9"])
        .stdout(Stdio::piped())
        .stderr(std::fs::File::create(dev.path("notes")).unwrap())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut address = || -> SocketAddr {
        let line = lines.next().unwrap().unwrap();
        line.split_once(" -> web:").unwrap().0.parse().unwrap()
    };
    let (http, closed) = (address(), address());

    let answer = get(http, "/");
    assert!(answer.contains(web.replica_id.as_str()), "{answer}");
    let many: Vec<_> = (0..60)
        .map(|_| std::thread::spawn(move || get(http, "/health")))
        .collect();
    for one in many {
        let notes = || std::fs::read_to_string(dev.path("notes")).unwrap();
        let answer = one.join().unwrap_or_else(|_| panic!("{}", notes()));
        assert!(answer.starts_with("HTTP/1.1 200"));
    }
    // The replica that is connected to may be another process by now.
    dev.crash(&web);
    dev.until_replica(web.replica_id.as_str(), "runs again", |replica| {
        replica.ready && replica.run == 2
    });
    assert!(get(http, "/health").starts_with("HTTP/1.1 200"));

    // Nobody listens there: the connection breaks, and the command says why and goes on.
    let mut stream = connect(closed);
    let broken = stream.read(&mut [0]);
    assert!(broken.is_err(), "{broken:?}");
    assert!(get(http, "/health").starts_with("HTTP/1.1 200"));
    signal(child.id(), Signal::INT);
    assert!(child.wait().unwrap().success());
    let said = std::fs::read_to_string(dev.path("notes")).unwrap();
    assert!(said.contains("port 9") && said.contains("refused"), "{said}");

    let refused = dev.berth(&["port-forward", "nobody", "80"]);
    assert!(refused.status.code() == Some(3) && text(&refused.stderr).contains("berth get replicas"));
    let wrong = dev.berth(&["port-forward", "web", "0", "80:"]);
    assert!(wrong.status.code() == Some(2) && text(&wrong.stderr).contains("names no ports"));
}
