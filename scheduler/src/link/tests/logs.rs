//! Logs over the link: to a reader that is slow, that goes away, that asks for a machine which is not there.

use super::*;

fn lines(numbers: std::ops::Range<u64>) -> Vec<LogLine> {
    numbers
        .map(|number| LogLine {
            // Several lines share a millisecond.
            time_ms: 1000 + number / 3,
            stream: 0,
            line: format!("line {number}").into_bytes().into(),
            partial: false,
            run: 1,
        })
        .collect()
}

async fn read_all(mut stream: LogStream) -> (Vec<String>, String) {
    let mut read = Vec::new();
    while let Some(chunk) = soon("a chunk", stream.next()).await {
        read.extend(
            chunk
                .lines
                .iter()
                .map(|line| String::from_utf8(line.line.to_vec()).unwrap()),
        );
        if chunk.end {
            return (read, chunk.error);
        }
    }
    (read, "no end".into())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_reach_a_slow_reader_whole_without_holding_up_the_session() {
    let world = world().await;
    let mut node = world.node("m-1").await;
    node.ready().await;
    let sessions = world.cluster.sessions().clone();
    let replica = ReplicaId::new("reader-m-1-1").unwrap();
    let query = LogQuery {
        follow: true,
        ..LogQuery::default()
    };
    let stream = sessions.logs(&node.machine, &replica, query).unwrap();
    // The node answers each request from where it asks, one line a chunk: more than the reader's queue holds.
    let total = 300;
    let mut requests = 0;
    let mut reader = None;
    let mut stream = Some(stream);
    let mut cancelled = false;
    loop {
        let kind = node.hear().await.unwrap();
        match kind {
            Kind::LogRequest(request) => {
                requests += 1;
                let from = if request.since_ms == 0 {
                    0
                } else {
                    (request.since_ms - 1000) * 3
                };
                for number in from..total {
                    let chunk = LogChunk {
                        request_id: request.request_id,
                        lines: lines(number..number + 1),
                        end: number + 1 == total,
                        error: String::new(),
                    };
                    node.say(node_message::Kind::LogChunk(chunk)).await;
                }
                node.status(Phase::Healthy, &[]).await;
            }
            Kind::LogCancel(_) => cancelled = true,
            _ => {}
        }
        // The reader begins late: its queue has long been full.
        if cancelled && reader.is_none() {
            let stream = stream.take().unwrap();
            let mut tasks = tokio::task::JoinSet::new();
            tasks.spawn(read_all(stream));
            reader = Some(tasks);
        }
        if let Some(tasks) = &mut reader
            && let Some(read) = tasks.try_join_next()
        {
            let (read, error) = read.unwrap();
            assert_eq!(error, "");
            let expected: Vec<String> = (0..total).map(|number| format!("line {number}")).collect();
            assert_eq!(read, expected);
            break;
        }
    }
    assert!(requests > 1, "the reader was slow enough to be cut");
    world.running.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_log_is_cancelled_on_the_machine_and_an_unlinked_one_says_so() {
    let world = world().await;
    let mut node = world.node("m-1").await;
    let replica = ReplicaId::new("r").unwrap();
    let sessions = world.cluster.sessions();
    let stream = sessions
        .logs(&node.machine, &replica, LogQuery::default())
        .unwrap();
    let asked = node
        .until("the request", |_, kind| matches!(kind, Kind::LogRequest(_)))
        .await;
    drop(stream);
    let cancelled = node
        .until("the cancel", |_, kind| matches!(kind, Kind::LogCancel(_)))
        .await;
    match (asked, cancelled) {
        (Kind::LogRequest(asked), Kind::LogCancel(cancelled)) => {
            assert_eq!(asked.request_id, cancelled.request_id);
        }
        other => panic!("{other:?}"),
    }
    let refused = sessions
        .logs(&MachineId::new("m-9").unwrap(), &replica, LogQuery::default())
        .unwrap_err();
    assert_eq!(refused.code, "machine_not_linked");
    world.running.shutdown().await;
}
