//! Tunnels over the link: opened by the machine that was asked, once, and by no other; they end with the session.

use berth_api::link::{
    ExecTarget, TunnelDown, TunnelEnd, TunnelOpen, TunnelRequest, TunnelUp, tunnel_down,
    tunnel_request::Target, tunnel_up,
};

use tokio::task::JoinSet;

use super::*;
use crate::link::Tunnel;
use crate::refusal::Refused;

fn up(kind: tunnel_up::Kind) -> TunnelUp {
    TunnelUp { kind: Some(kind) }
}

fn target() -> Target {
    Target::Exec(ExecTarget {
        command: vec!["ls".into()],
        ..ExecTarget::default()
    })
}

/// Asks for a tunnel to a replica of the machine.
fn asked(world: &World, machine: &str) -> JoinSet<Result<Tunnel, Refused>> {
    let (sessions, machine) = (world.cluster.sessions().clone(), MachineId::new(machine).unwrap());
    let mut asked = JoinSet::new();
    asked.spawn(async move {
        let replica = ReplicaId::new("web-1").unwrap();
        sessions.tunnel(&machine, &replica, target()).await
    });
    asked
}

async fn answer(mut asked: JoinSet<Result<Tunnel, Refused>>) -> Result<Tunnel, Refused> {
    soon("an answer", asked.join_next()).await.unwrap().unwrap()
}

async fn request(node: &mut Node) -> TunnelRequest {
    let is_it = |_: &Node, kind: &Kind| matches!(kind, Kind::TunnelRequest(_));
    match node.until("the request", is_it).await {
        Kind::TunnelRequest(request) => request,
        other => unreachable!("just matched: {other:?}"),
    }
}

/// Calls Tunnel as a machine.
async fn call(
    world: &World,
    identity: Identity,
    tunnel_id: &str,
) -> Result<(mpsc::Sender<TunnelUp>, Streaming<TunnelDown>), tonic::Status> {
    call_by(&mut world.client(Some(identity)).await, tunnel_id).await
}

/// The same over a connection that is there.
async fn call_by(
    client: &mut LinkClient<Channel>,
    tunnel_id: &str,
) -> Result<(mpsc::Sender<TunnelUp>, Streaming<TunnelDown>), tonic::Status> {
    let (sender, messages) = mpsc::channel(8);
    let open = TunnelOpen {
        tunnel_id: tunnel_id.into(),
    };
    sender.send(up(tunnel_up::Kind::Open(open))).await.unwrap();
    let down = soon("the tunnel", client.tunnel(ReceiverStream::new(messages))).await?;
    Ok((sender, down.into_inner()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_is_opened_once_by_the_machine_that_was_asked() {
    let world = world().await;
    let (identity, other) = (
        world.enrol("m-1", "boot-1").await,
        world.enrol("m-2", "boot-1").await,
    );
    let mut node = world
        .link(identity.clone(), "m-1", "boot-1", Position::default())
        .await
        .unwrap();
    let _neighbour = world
        .link(other.clone(), "m-2", "boot-1", Position::default())
        .await
        .unwrap();
    let asked = asked(&world, "m-1");
    let request = request(&mut node).await;
    assert_eq!(
        (request.replica_id.as_str(), request.target),
        ("web-1", Some(target()))
    );

    for (who, id) in [(&other, request.tunnel_id.as_str()), (&identity, "0123")] {
        let refused = call(&world, who.clone(), id).await.unwrap_err();
        assert_eq!(refused.code(), Code::NotFound, "{refused}");
    }
    let (said, mut heard) = call(&world, identity.clone(), &request.tunnel_id).await.unwrap();
    let again = call(&world, identity, &request.tunnel_id).await.unwrap_err();
    assert_eq!(again.code(), Code::NotFound, "{again}");

    let mut tunnel = answer(asked).await.unwrap();
    let input = tunnel_down::Kind::Input("ls\n".into());
    let message = TunnelDown {
        kind: Some(input.clone()),
    };
    tunnel.down.send(message).await.unwrap();
    let received = soon("the input", heard.message()).await.unwrap().unwrap();
    assert_eq!(received.kind, Some(input));
    let end = TunnelEnd {
        exit_code: 3,
        error: String::new(),
    };
    for kind in [
        tunnel_up::Kind::Output("a b".into()),
        tunnel_up::Kind::End(end.clone()),
    ] {
        said.send(up(kind.clone())).await.unwrap();
        let received = soon("the output", tunnel.up.message()).await.unwrap().unwrap();
        assert_eq!(received.kind, Some(kind));
    }
    drop(tunnel);
    assert!(soon("the end", heard.message()).await.unwrap().is_none());
    world.running.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_needs_a_certificate_that_counts_and_ends_with_the_session() {
    let world = world().await;
    let identity = world.enrol("m-1", "boot-1").await;
    let mut node = world
        .link(identity.clone(), "m-1", "boot-1", Position::default())
        .await
        .unwrap();
    let mut nobody = world.client(None).await;
    let (_sender, messages) = mpsc::channel(1);
    let refused = soon("an answer", nobody.tunnel(ReceiverStream::new(messages)))
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);

    let first = asked(&world, "m-1");
    let opened = request(&mut node).await;
    let (_said, _heard) = call(&world, identity, &opened.tunnel_id).await.unwrap();
    let tunnel = answer(first).await.unwrap();
    let waiting = asked(&world, "m-1");
    request(&mut node).await;
    drop(node);
    soon("the end of the session", tunnel.session_ended.cancelled()).await;
    let lost = answer(waiting).await.unwrap_err();
    assert_eq!(lost.code, "machine_not_linked");
    let unlinked = answer(asked(&world, "m-9")).await.unwrap_err();
    assert_eq!(unlinked.code, "machine_not_linked");
    world.running.shutdown().await;
}

/// What is sent into one tunnel that nobody reads: more than a connection takes unread unless it is told to.
const UNREAD: usize = 8 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_stops_holds_up_its_own_tunnel_only() {
    let world = world().await;
    let identity = world.enrol("m-1", "boot-1").await;
    // One connection for all, as a node has it.
    let mut client = world.client(Some(identity)).await;
    let linked = World::link_by(&mut client, "m-1", "boot-1", Position::default());
    let mut node = linked.await.unwrap();

    let mut tunnels = Vec::new();
    for _ in 0..4 {
        let asked = asked(&world, "m-1");
        let request = request(&mut node).await;
        let (said, heard) = call_by(&mut client, &request.tunnel_id).await.unwrap();
        tunnels.push((said, heard, answer(asked).await.unwrap()));
    }
    let mut stuck = JoinSet::new();
    for (sender, _, _) in &tunnels {
        let sender = sender.clone();
        stuck.spawn(async move {
            for _ in 0..UNREAD / (16 << 10) {
                let output = tunnel_up::Kind::Output(vec![0; 16 << 10].into());
                if sender.send(up(output)).await.is_err() {
                    return;
                }
            }
        });
    }
    // Nothing moves any more in the tunnels once no message is taken for a while; the session is asked again and again meanwhile.
    for _ in 0..20 {
        let need = NeedFull {
            mesh: false,
            directory: true,
        };
        node.say(node_message::Kind::NeedFull(need)).await;
        node.until("the names, whole", |_, kind| matches!(kind, Kind::Directory(_)))
            .await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(
        stuck.try_join_next().is_none(),
        "a tunnel that nobody reads takes no 8 MiB"
    );
    // One that is read goes on, whatever the others do.
    let (_sender, _down, mut read) = tunnels.remove(0);
    let mut total = 0;
    while total < UNREAD {
        match soon("more", read.up.message()).await.unwrap().unwrap().kind {
            Some(tunnel_up::Kind::Output(bytes)) => total += bytes.len(),
            other => panic!("{other:?}"),
        }
    }
    world.running.shutdown().await;
}
