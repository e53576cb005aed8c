//! A revoked token ends what was enrolled with it: live sessions, new ones, and the renewal of certificates.

use super::*;
use crate::entry::Removal;

const NEXT_TOKEN: &str = "hj_abcdefghijklmnopqrstuvwxyz0123456789ABCDEFG";

/// How a session ends.
async fn end_of(node: &mut Node) -> tonic::Status {
    loop {
        if let Err(status) = node.hear().await {
            return status;
        }
    }
}

async fn refusal(world: &World, identity: &Identity, machine: &str) -> tonic::Status {
    let linked = world
        .link(identity.clone(), machine, "boot-1", Position::default())
        .await;
    linked.err().expect("the session is refused")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revocation_ends_sessions_and_refuses_certificates_until_the_machine_enrols_anew() {
    let world = world().await;
    let identity = world.enrol("m-1", "boot-1").await;
    let mut node = world
        .link(identity.clone(), "m-1", "boot-1", Position::default())
        .await
        .unwrap();
    // Management tokens are others.
    world.cluster.revoke_tokens(TokenKind::Management).await.unwrap();
    node.ready().await;
    world.cluster.revoke_tokens(TokenKind::Machine).await.unwrap();
    let ended = end_of(&mut node).await;
    assert_eq!(ended.code(), Code::Unauthenticated, "{ended}");
    assert!(ended.message().contains("certificate_revoked"), "{ended}");
    assert_eq!(
        refusal(&world, &identity, "m-1").await.code(),
        Code::Unauthenticated
    );
    let renew = || async {
        let (request, _) = World::enrolment("m-1", "", "boot-1");
        world.client(Some(identity.clone())).await.enrol(request).await
    };
    assert_eq!(renew().await.unwrap_err().code(), Code::Unauthenticated);
    // A new token makes nothing good of what was enrolled with the old one.
    world
        .cluster
        .rotate_token(TokenKind::Machine, TokenDigest::of(NEXT_TOKEN))
        .await
        .unwrap();
    assert_eq!(renew().await.unwrap_err().code(), Code::Unauthenticated);
    assert_eq!(
        refusal(&world, &identity, "m-1").await.code(),
        Code::Unauthenticated
    );
    let (request, key) = World::enrolment("m-1", NEXT_TOKEN, "boot-1");
    let reply = world
        .client(None)
        .await
        .enrol(request)
        .await
        .unwrap()
        .into_inner();
    let renewed = Identity::from_pem(reply.certificate_pem, key.serialize_pem());
    let mut node = world
        .link(renewed, "m-1", "boot-1", Position::default())
        .await
        .unwrap();
    node.ready().await;
    world.running.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_alone_leaves_sessions_and_certificates_be() {
    let world = world().await;
    let identity = world.enrol("m-1", "boot-1").await;
    let mut node = world
        .link(identity.clone(), "m-1", "boot-1", Position::default())
        .await
        .unwrap();
    world
        .cluster
        .rotate_token(TokenKind::Machine, TokenDigest::of(NEXT_TOKEN))
        .await
        .unwrap();
    node.ready().await;
    let (request, _) = World::enrolment("m-1", "", "boot-1");
    world
        .client(Some(identity.clone()))
        .await
        .enrol(request)
        .await
        .expect("its certificate renews itself");
    let (request, _) = World::enrolment("m-2", MACHINE_TOKEN, "boot-1");
    let refused = world.client(None).await.enrol(request).await.unwrap_err();
    assert_eq!(
        refused.code(),
        Code::Unauthenticated,
        "the old token enrols nobody"
    );
    world.running.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_machine_is_cut_off_and_its_certificate_refused() {
    let world = world().await;
    let identity = world.enrol("m-1", "boot-1").await;
    let mut node = world
        .link(identity.clone(), "m-1", "boot-1", Position::default())
        .await
        .unwrap();
    let machine = MachineId::new("m-1").unwrap();
    world
        .cluster
        .remove_machine(machine, Removal::PoweredOff)
        .await
        .unwrap();
    let ended = end_of(&mut node).await;
    assert!(
        [Code::NotFound, Code::AlreadyExists].contains(&ended.code()) && !ended.message().is_empty(),
        "{ended}"
    );
    assert_eq!(refusal(&world, &identity, "m-1").await.code(), Code::NotFound);
    let (request, _) = World::enrolment("m-1", "", "boot-1");
    let refused = world
        .client(Some(identity))
        .await
        .enrol(request)
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    world.running.shutdown().await;
}
