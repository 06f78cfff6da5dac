//! Connections to the issuer and to the token store: name resolution, TCP and TLS, within a limit of
//! their own. Nothing of a request is sent before it stands, so a failure here never uses a refresh
//! token.

use std::{io, sync::Arc, time::Duration};

use rustls::{ClientConfig, pki_types::ServerName};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::either::Either;

use crate::{net::socket::Stream, token::deadline::data_first};

/// Probes of an idle connection begin after this time, and follow one another after it.
const PROBE_INTERVAL: Duration = Duration::from_secs(5);

/// TCP, or TLS over it.
pub(in crate::token) type Transport = Either<Stream, Box<TlsStream<Stream>>>;

/// TLS for one connection.
pub(in crate::token) struct Tls {
    pub(in crate::token) config: Arc<ClientConfig>,
    /// The name for SNI and for the verification of the certificate.
    pub(in crate::token) server_name: ServerName<'static>,
}

/// Adds TLS to the connection that `tcp` opens, all within `limit`.
///
/// # Errors
/// `TimedOut` after `limit`; otherwise the error of `tcp` or of TLS.
pub(in crate::token) async fn connect(
    tcp: impl Future<Output = io::Result<Stream>>,
    tls: Option<Tls>,
    limit: Duration,
) -> io::Result<Transport> {
    let connecting = async {
        let stream = tcp.await?;
        // A response is awaited for long: the loss of the other side must end that.
        stream.probe_when_idle(PROBE_INTERVAL);
        match tls {
            None => Ok(Either::Left(stream)),
            Some(tls) => TlsConnector::from(tls.config)
                .connect(tls.server_name, stream)
                .await
                .map(|stream| Either::Right(Box::new(stream))),
        }
    };
    data_first(connecting, tokio::time::sleep(limit))
        .await
        .unwrap_or_else(|| Err(io::ErrorKind::TimedOut.into()))
}
