//! Enrolment: a machine token, or the certificate that is about to run out, for a certificate of one machine.

use std::sync::Arc;

use berth_api::id::ClusterId;
use berth_api::link::{EnrolReply, EnrolRequest};
use berth_api::machine::MachineSpec;
use berth_api::rest::node::{RegisterReply, RegisterRequest};
use berth_api::time::Timestamp;
use berth_api::validate::Faults;

use super::{LinkConfig, Peer, check_identity};
use crate::Scheduler;
use crate::cluster::ClusterHandle;
use crate::entry::{TokenDigest, TokenKind};
use crate::identity::{MachineIdentity, SigningError, SigningRequest};
use crate::refusal::{Class, Refused};

pub(super) async fn enrol(
    scheduler: &Arc<Scheduler>,
    config: LinkConfig,
    peer: Option<Peer>,
    request: EnrolRequest,
) -> Result<EnrolReply, Refused> {
    let cluster_id = ClusterId::new(request.cluster_id.as_str()).map_err(|error| {
        Refused::invalid("invalid_enrolment", Faults::one("clusterId", error.to_string()))
    })?;
    if let Some(member) = scheduler.elsewhere(&cluster_id) {
        return Ok(EnrolReply {
            redirect_url: member.link_url,
            ..EnrolReply::default()
        });
    }
    let spec = read_register(&cluster_id, &request)?;
    let (handle, token_era) = authorise(scheduler, &cluster_id, peer.as_ref(), &spec, &request.token)?;
    let linked = handle
        .sessions()
        .live_boot_id(&spec.machine_id, config.silence_max());
    if linked.is_some_and(|boot_id| boot_id != request.boot_id) {
        return Err(Refused::new(
            Class::Conflict,
            "machine_linked_elsewhere",
            format!(
                "machine {:?} is linked with another boot id; is its disk cloned?",
                spec.machine_id.as_str()
            ),
        ));
    }
    let invalid_csr = |error: SigningError| Refused::new(Class::Invalid, "invalid_csr", error.to_string());
    let machine_id = spec.machine_id.clone();
    // Read before it is registered: a request that cannot be signed leaves nothing behind.
    let csr = SigningRequest::read(&request.csr_pem, &machine_id).map_err(invalid_csr)?;
    let proof = peer
        .filter(|_| request.token.is_empty())
        .map(|peer| peer.identity);
    let (assigned_network, registered_at) = handle.enrol_machine(spec, csr.key(), proof).await?;
    let identity = MachineIdentity {
        cluster_id,
        registered_at: Some(registered_at),
        machine_id,
        token_era,
    };
    let certificate = scheduler
        .identity()
        .sign(csr, &identity, Timestamp::now())
        .map_err(invalid_csr)?;
    tracing::info!(cluster_id = %identity.cluster_id, machine_id = %identity.machine_id, "a machine is enrolled");
    let registered = serde_json::to_vec(&RegisterReply { assigned_network })
        .expect("a network has text keys and no failing serialiser");
    Ok(EnrolReply {
        certificate_pem: certificate.pem,
        ca_pem: scheduler.identity().ca_pem().to_owned(),
        registered: registered.into(),
        renew_at_ms: certificate.renew_at.millis(),
        redirect_url: String::new(),
    })
}

fn read_register(cluster_id: &ClusterId, request: &EnrolRequest) -> Result<MachineSpec, Refused> {
    let invalid = |faults| Refused::invalid("invalid_register", faults);
    let value: serde_json::Value = serde_json::from_slice(&request.register).map_err(|error| {
        invalid(Faults::one(
            "",
            format!("the register request is no JSON: {error}"),
        ))
    })?;
    let register = RegisterRequest::read(&value).map_err(invalid)?;
    if register.cluster_id != *cluster_id {
        return Err(invalid(Faults::one(
            "clusterId",
            "differs from the cluster of the enrolment",
        )));
    }
    if request.boot_id.is_empty() {
        return Err(invalid(Faults::one("bootId", "is missing")));
    }
    Ok(MachineSpec {
        boot_id: Some(request.boot_id.clone()),
        ..register.machine
    })
}

/// Accepts the cluster's machine token, or a certificate of this very machine while it is registered; with the era of machine
/// tokens in which it did.
fn authorise(
    scheduler: &Arc<Scheduler>,
    cluster_id: &ClusterId,
    peer: Option<&Peer>,
    spec: &MachineSpec,
    token: &str,
) -> Result<(ClusterHandle, u64), Refused> {
    if token.is_empty() {
        let peer = peer.ok_or_else(unknown_token)?;
        peer.time_left()?;
        let peer = &peer.identity;
        if peer.cluster_id != *cluster_id || peer.machine_id != spec.machine_id {
            return Err(Refused::new(
                Class::Forbidden,
                "other_machine",
                format!(
                    "the certificate of machine {:?} cannot renew another's",
                    peer.machine_id.as_str()
                ),
            ));
        }
        let handle = scheduler
            .find(cluster_id)
            .ok_or_else(|| scheduler.not_here(cluster_id))?;
        let world = handle.world();
        check_identity(&world, peer)?;
        return match world.machine(&peer.machine_id) {
            Some(_) => Ok((handle, peer.token_era)),
            None => Err(Refused::machine_not_found(peer.machine_id.as_str())),
        };
    }
    // Which clusters exist is nobody's business without a token.
    let handle = scheduler
        .cluster(cluster_id)
        .map_err(|refused| match refused.class {
            Class::Unavailable => refused,
            _ => unknown_token(),
        })?;
    let world = handle.world();
    if is_token(world.token(TokenKind::Machine), token) {
        return Ok((handle, world.machine_token_era()));
    }
    if is_token(world.token(TokenKind::Management), token) {
        return Err(Refused::new(
            Class::Forbidden,
            "wrong_token_kind",
            "this is the management token (hm_); a machine enrols with the machine token (hj_)",
        ));
    }
    Err(unknown_token())
}

fn is_token(known: Option<&TokenDigest>, offered: &str) -> bool {
    known.is_some_and(|known| known.matches(offered))
}

fn unknown_token() -> Refused {
    Refused::new(
        Class::Unauthenticated,
        "unknown_token",
        "no machine token of this cluster, or it was revoked; give the machine the token of the last rotation",
    )
}
