//! A scheduler that stops says so to every node, and ends.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_are_told_that_the_scheduler_stops() {
    let world = world().await;
    let mut nodes = vec![world.node("m-1").await, world.node("m-2").await];
    for node in &mut nodes {
        node.ready().await;
    }
    let World { running, dir, .. } = world;
    let stopping = async { soon("the end of the scheduler", running.shutdown()).await };
    let heard = async {
        for node in &mut nodes {
            let last = loop {
                if let Err(status) = node.hear().await {
                    break status;
                }
            };
            assert_eq!(last.code(), Code::Unavailable, "{last}");
            assert!(last.message().contains("the scheduler stops"), "{last}");
        }
    };
    tokio::join!(stopping, heard);
    assert!(dir.path().exists());
}
