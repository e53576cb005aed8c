//! Enrolment: the machine token, or the certificate that is about to run out, for a certificate of this machine.

use std::time::Duration;

use berth_api::link::{EnrolReply, EnrolRequest};
use berth_api::machine::{AssignedNetwork, MachineSpec};
use berth_api::rest::node::RegisterRequest;
use berth_api::time::Timestamp;
use serde::Deserialize;
use tokio_util::sync::CancellationToken;
use tonic::Code;

use super::proto::link_client::LinkClient;
use super::{CALL_TIMEOUT, LinkError, REDIAL_FIRST, REDIAL_MAX, Route, channel, jittered, words};
use crate::config::Config;
use crate::credentials::{Credentials, Enrolment, Store};
use crate::status::{Part, Verdicts};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Registered {
    assigned_network: AssignedNetwork,
}

/// Enrols with the token, for as long as it takes. None when cancelled.
pub async fn enrol_until_done(
    config: &Config,
    store: &Store,
    boot_id: &str,
    verdicts: &Verdicts,
    cancel: &CancellationToken,
) -> Option<Credentials> {
    let mut pause: Duration = REDIAL_FIRST;
    loop {
        match cancel.run_until_cancelled(enrol(config, store, boot_id)).await? {
            Ok(credentials) => return Some(credentials),
            Err(error) => {
                let reason = format!("cannot enrol: {}", words(&error));
                tracing::warn!(reason, "enrolment failed");
                verdicts.set(Part::Link, Err(reason));
            }
        }
        cancel
            .run_until_cancelled(tokio::time::sleep(jittered(pause)))
            .await?;
        pause = (pause * 2).min(REDIAL_MAX);
    }
}

/// Enrols with the machine token.
pub(super) async fn enrol(config: &Config, store: &Store, boot_id: &str) -> Result<Credentials, LinkError> {
    let path = &config.token_file;
    let token = std::fs::read_to_string(path).map_err(|source| LinkError::File {
        path: path.display().to_string(),
        source,
    })?;
    ask(config, store, boot_id, token.trim(), None).await
}

/// Enrols with the present certificate.
pub(super) async fn renew(
    config: &Config,
    store: &Store,
    boot_id: &str,
    present: &Credentials,
) -> Result<Credentials, LinkError> {
    ask(
        config,
        store,
        boot_id,
        "",
        Some((&present.certificate_pem, &present.key_pem)),
    )
    .await
}

async fn ask(
    config: &Config,
    store: &Store,
    boot_id: &str,
    token: &str,
    identity: Option<(&str, &str)>,
) -> Result<Credentials, LinkError> {
    let (csr_pem, key_pem) = store.request(config.machine_id.as_str())?;
    let register = RegisterRequest {
        cluster_id: config.cluster_id.clone(),
        machine: machine(config, boot_id),
    };
    let request = EnrolRequest {
        cluster_id: config.cluster_id.to_string(),
        token: token.to_owned(),
        csr_pem,
        register: serde_json::to_vec(&register)
            .expect("a registration has text keys")
            .into(),
        proof: bytes::Bytes::new(),
        boot_id: boot_id.to_owned(),
    };
    let reply = ask_around(config, request, identity).await?;
    let registered: Registered = serde_json::from_slice(&reply.registered)
        .map_err(|error| LinkError::Unreadable(error.to_string()))?;
    let credentials = Credentials {
        key_pem,
        certificate_pem: reply.certificate_pem,
        enrolment: Enrolment {
            assigned_network: registered.assigned_network,
            renew_at: Timestamp::from_millis(reply.renew_at_ms),
            enrolled_at: Timestamp::now(),
        },
    };
    if let Err(error) = store.save(&credentials) {
        if identity.is_some() {
            // The present certificate serves on, and this is tried again until the disk takes one.
            return Err(error.into());
        }
        // It serves as long as this daemon runs; the next one uses the token again.
        tracing::error!(error = words(&error), "cannot keep the certificate");
    }
    tracing::info!(cidr = %credentials.enrolment.assigned_network.cidr, "enrolled");
    Ok(credentials)
}

/// Asks the configured schedulers one after the other until one can be reached, and whom that one names.
async fn ask_around(
    config: &Config,
    request: EnrolRequest,
    identity: Option<(&str, &str)>,
) -> Result<EnrolReply, LinkError> {
    let mut route = Route::default();
    let mut silent = 0;
    loop {
        let url = route.url(&config.scheduler).to_owned();
        match ask_one(config, &url, request.clone(), identity).await {
            Ok(reply) if reply.redirect_url.is_empty() => return Ok(reply),
            Ok(reply) => {
                if !route.redirected(reply.redirect_url.clone()) {
                    return Err(LinkError::Redirected {
                        url: reply.redirect_url,
                    });
                }
            }
            Err(error) => {
                silent += 1;
                let is_there =
                    matches!(&error, LinkError::Refused { code, .. } if *code != Code::Unavailable);
                if is_there || silent >= config.scheduler.split(',').count() {
                    return Err(error);
                }
                route.failed();
            }
        }
    }
}

async fn ask_one(
    config: &Config,
    url: &str,
    request: EnrolRequest,
    identity: Option<(&str, &str)>,
) -> Result<EnrolReply, LinkError> {
    let mut client = LinkClient::new(channel(config, url, identity)?);
    match tokio::time::timeout(CALL_TIMEOUT, client.enrol(request)).await {
        Ok(Ok(reply)) => Ok(reply.into_inner()),
        Ok(Err(status)) => Err(LinkError::of_status(&status, url)),
        Err(_) => Err(LinkError::Silent(CALL_TIMEOUT)),
    }
}

fn machine(config: &Config, boot_id: &str) -> MachineSpec {
    MachineSpec {
        machine_id: config.machine_id.clone(),
        capacity_group: config.capacity_group.clone(),
        zone: config.zone.clone(),
        vpc_ip: config.underlay_ip,
        wireguard_public_key: config.wireguard_public_key.clone(),
        wireguard_endpoint: config.wireguard_endpoint.clone(),
        capacity: config.capacity.clone(),
        boot_id: Some(boot_id.to_owned()),
        labels: config.labels.clone(),
    }
}
