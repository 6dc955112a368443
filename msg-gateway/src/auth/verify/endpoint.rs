//! The URL of an issuer's key set, and the TLS settings that it is fetched with.

use bytes::Bytes;
use futures_util::future::BoxFuture;
use msg_common::http_client::{HttpError, HttpUrl};
use msg_common::reload::Reloaded;
use msg_common::tls::ClientConfig;

use crate::auth::verify::refresh::Fetch;

/// The flag of the file with the CAs of the URL.
pub(crate) const CA_FILE: &str = "--auth-jwks-ca-file";

/// A URL with a key set.
pub(crate) struct Endpoint {
    url: HttpUrl,
    tls: Option<Reloaded<ClientConfig>>,
}

impl Endpoint {
    /// Makes an endpoint of a URL. `tls` is needed if the URL is HTTPS.
    pub(crate) fn new(url: HttpUrl, tls: Option<Reloaded<ClientConfig>>) -> Self {
        Endpoint { url, tls }
    }
}

impl Fetch for Endpoint {
    fn fetch(&self) -> BoxFuture<'_, Result<Bytes, HttpError>> {
        let tls = self.tls.as_ref().map(Reloaded::current);
        Box::pin(self.url.get(tls, "application/jwk-set+json, application/json"))
    }
}
