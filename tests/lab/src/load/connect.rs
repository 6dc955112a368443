//! Owns the connections to the gateways: their settings, and the TLS and the token of a load that runs with them.

use std::fs;
use std::path::Path;
use std::time::Duration;

use msg_common::proto::msg_gateway_client::MsgGatewayClient;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use crate::error::LabError;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const KEEPALIVE: Duration = Duration::from_secs(2);

/// A client of one gateway.
pub type Client = MsgGatewayClient<InterceptedService<Channel, Token>>;

/// The token that a client adds to each call, if it has one.
#[derive(Clone, Debug)]
pub struct Token(Option<MetadataValue<Ascii>>);

impl Interceptor for Token {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert("authorization", token.clone());
        }
        Ok(request)
    }
}

/// How clients connect to the gateways.
#[derive(Clone, Debug)]
pub(crate) enum Access {
    Plain,
    /// Over TLS, and with a token in each call.
    Secure {
        /// The CA of the gateways, in PEM.
        ca: String,
        token: MetadataValue<Ascii>,
    },
}

impl Access {
    /// Reads the files with the CA and the token.
    pub(crate) fn read(ca: &Path, token: &Path) -> Result<Access, LabError> {
        let text = |path: &Path| fs::read_to_string(path).map_err(LabError::io("read", path));
        let bearer = format!("Bearer {}", text(token)?.trim());
        let token = bearer.parse().map_err(|_| LabError::Setting(format!("{} holds no token", token.display())))?;
        Ok(Access::Secure { ca: text(ca)?, token })
    }
}

/// Opens a connection to each gateway for each of `count` groups of senders and readers. A connection reconnects by
/// itself, and closes itself when the gateway does not respond.
pub(crate) fn links(gateways: &[String], count: usize, access: &Access) -> Result<Vec<Vec<Client>>, LabError> {
    let token = match access {
        Access::Plain => Token(None),
        Access::Secure { token, .. } => Token(Some(token.clone())),
    };
    let connector = connector(access)?;
    let connect = |gateway: &String| {
        let cannot = |error| LabError::Setting(format!("cannot connect to {gateway}: {error}"));
        let endpoint = Endpoint::from_shared(format!("http://{gateway}"))
            .map_err(cannot)?
            .tcp_nodelay(true)
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE)
            .keep_alive_while_idle(true);
        let client = MsgGatewayClient::with_interceptor(connector(&endpoint), token.clone());
        Ok(client.max_decoding_message_size(8 << 20))
    };
    (0..count).map(|_| gateways.iter().map(connect).collect()).collect()
}

/// Opens connections to endpoints.
type Connect = Box<dyn Fn(&Endpoint) -> Channel>;

/// Returns what opens a connection to an endpoint.
fn connector(access: &Access) -> Result<Connect, LabError> {
    match access {
        Access::Plain => Ok(Box::new(Endpoint::connect_lazy)),
        Access::Secure { ca, .. } => encrypted(ca),
    }
}

#[cfg(feature = "secure")]
fn encrypted(ca: &str) -> Result<Connect, LabError> {
    use msg_identities::certificates::{caller, channel_to};
    let caller = caller(ca, None);
    Ok(Box::new(move |endpoint| channel_to(endpoint, &caller)))
}

#[cfg(not(feature = "secure"))]
fn encrypted(_: &str) -> Result<Connect, LabError> {
    Err(LabError::not_built())
}
