//! Programs beside the first process of a container.

use std::time::Duration;

use berth_node::host::containerd::Beside;

use super::containerd::Containerd;

const LONG: Duration = Duration::from_secs(60);

fn shell(script: &str) -> Vec<String> {
    ["/bin/sh", "-c", script].map(str::to_owned).to_vec()
}

/// Ends with 0 when no other program runs beside the first process.
const ALONE: &str = "test $(ps | grep -c '[s]leep 1001') = 0";

#[tokio::test(flavor = "multi_thread")]
async fn a_program_has_the_rights_of_its_container_and_its_end_is_told() {
    let Some(containerd) = Containerd::start() else {
        return;
    };
    let runtime = containerd.runtime();
    let image = containerd.busybox(&runtime).await;
    let plan = containerd.plan("a", &image, "sleep 1000");
    runtime.create(&plan).await.unwrap();
    runtime.start("a").await.unwrap();
    let run = async |script: &str, deadline| runtime.exec("a", Beside::Probe, shell(script), deadline).await;
    assert_eq!(run("exit 0", LONG).await.unwrap(), Some(0));
    assert_eq!(run("exit 3", LONG).await.unwrap(), Some(3));
    let rights = "mount -t tmpfs t /tmp && exit 1; grep -q 'NoNewPrivs:.1' /proc/self/status && \
                  grep -q 'CapBnd:.00000000a00405fb' /proc/self/status && grep -q 'Seccomp:.2' /proc/self/status && \
                  test $GREETING = hello";
    assert_eq!(run(rights, LONG).await.unwrap(), Some(0));
    let missing = runtime.exec("a", Beside::Probe, vec!["/nope".into()], LONG).await;
    assert!(
        missing.as_ref().is_err_and(|error| error.is_bad_program()),
        "{missing:?}"
    );
    // What takes too long is gone when that is told.
    assert_eq!(
        run("exec sleep 1001", Duration::from_millis(200)).await.unwrap(),
        None
    );
    assert_eq!(run(ALONE, LONG).await.unwrap(), Some(0));
    // A caller that goes away ends nothing: its program ends by its deadline, and the next one waits for that.
    let left = run("exec sleep 1001", Duration::from_secs(5));
    assert!(
        tokio::time::timeout(Duration::from_millis(300), left)
            .await
            .is_err()
    );
    assert_eq!(run(ALONE, LONG).await.unwrap(), Some(0));
    // None of that was the end of the container.
    let task = runtime.task("a").await.unwrap().unwrap();
    assert!(
        matches!(task.status, berth_node::host::containerd::TaskStatus::Running),
        "{task:?}"
    );
    runtime.delete("a").await.unwrap();
    assert!(run("exit 0", LONG).await.is_err(), "it is gone");
    assert_eq!(containerd.shims(), Vec::<i32>::new());
    runtime.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_a_dead_daemon_left_is_ended_by_the_next_one() {
    let Some(containerd) = Containerd::start() else {
        return;
    };
    let first = containerd.runtime();
    let image = containerd.busybox(&first).await;
    let plan = containerd.plan("a", &image, "sleep 1000");
    first.create(&plan).await.unwrap();
    first.start("a").await.unwrap();
    // A daemon that ends waits for no program; the next one knows nothing of it.
    let left = first.exec("a", Beside::Probe, shell("sleep 1001; true"), LONG);
    let ended = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        tokio::time::timeout(LONG / 2, first.shutdown())
            .await
            .expect("it does not wait");
    };
    let (left, ()) = tokio::join!(left, ended);
    assert!(left.is_err(), "{left:?}");
    let second = containerd.runtime();
    second.list().await.unwrap();
    let alone = second.exec("a", Beside::Probe, shell(ALONE), LONG).await;
    assert_eq!(alone.unwrap(), Some(0));
    second.delete("a").await.unwrap();
    assert_eq!(containerd.shims(), Vec::<i32>::new());
}
