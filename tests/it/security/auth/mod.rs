//! Who may do what: a gateway that asks for tokens, and callers that try more than they may.

mod certificates;
mod keys;
mod quotas;
mod rules;
mod streams;

use std::path::PathBuf;

use msg_common::proto::{Msg, Placement, SendMsgRequest};
use msg_stack::ServiceSpec;
use tempfile::TempDir;
use tonic::Status;

use crate::gateway::calls::Client;
use crate::support::issuer::{AUDIENCE, ISSUER, SigningKey, authorized, jwks};
use crate::support::world::{Gateway, World};

/// The settings of a gateway that asks for tokens, without its keys.
fn asks_for_tokens(spec: ServiceSpec) -> ServiceSpec {
    spec.env("AUTH_MODE", "jwt").env("AUTH_JWT_ISSUER", ISSUER).env("AUTH_JWT_AUDIENCE", AUDIENCE)
}

/// A file with the keys of an issuer.
pub(super) struct KeyFile {
    pub(super) key: SigningKey,
    folder: TempDir,
}

impl KeyFile {
    pub(super) fn new() -> KeyFile {
        let keys = KeyFile { key: SigningKey::new("first"), folder: tempfile::tempdir().unwrap() };
        keys.write(&jwks(&[&keys.key]));
        keys
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("keys.json")
    }

    fn write(&self, content: &str) {
        std::fs::write(self.path(), content).unwrap();
    }

    /// Starts a gateway that reads its keys from the file. `change` adds settings.
    pub(super) async fn gateway(&self, world: &World, change: impl FnOnce(ServiceSpec) -> ServiceSpec) -> Gateway {
        let file = self.path();
        let gateway =
            world.gateway("gateway", |spec| change(asks_for_tokens(spec).env("AUTH_JWKS_FILE", file.display())));
        gateway.service.start().await.unwrap();
        gateway
    }
}

/// Sends with a token.
pub(super) async fn send_as(client: &Client, token: &str, msg: &Msg) -> Result<Placement, Status> {
    let request = SendMsgRequest { msg: Some(msg.clone()), wait_for: 0 };
    let response = client.clone().send_msg(authorized(token, request)).await?;
    Ok(response.into_inner().placement.expect("an OK has a placement"))
}
