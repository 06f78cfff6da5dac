//! The issuer's servers, and which of them a call goes to.
//!
//! They share their tokens. As long as nothing of a request was sent, nothing was used, so a call
//! whose connection fails goes to the next server at once. After that it stays: a refresh token that
//! two servers receive looks stolen.

use std::{io, net::IpAddr, sync::Arc, time::Duration};

use http::HeaderValue;
use parking_lot::Mutex;
use rustls::{ClientConfig, pki_types::ServerName};
use url::{Position, Url};

use super::{
    Error,
    connect::{self, Tls, Transport},
    describe,
};
use crate::{
    base::{blocking, host},
    net::{
        dial,
        outbound_proxy::{AbsoluteForm, OutboundProxy},
        reload, socket, tls,
    },
    token::token_response::{Failure, FailureClass, RawResponse},
};

/// The limit for name resolution, TCP and TLS together. A shorter `token.timeout` replaces it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// After this time without a connection, the next server is tried beside the ones before it.
const ATTEMPT_DELAY: Duration = Duration::from_millis(500);
/// After so many failed calls in a row at one server, the next call begins with the one after it. A
/// single failure is repeated at the same server, which knows best what became of the request.
const MAX_FAILURES: u32 = 2;

/// The servers of one issuer, at least one.
#[derive(Debug)]
pub(in crate::token) struct Servers {
    servers: Vec<Server>,
    /// For those with `https`.
    tls: Option<Arc<reload::Reloadable<Arc<ClientConfig>>>>,
    proxy: Option<Arc<OutboundProxy>>,
    connect_timeout: Duration,
    first: Mutex<First>,
}

/// One of the servers.
#[derive(Debug)]
pub(super) struct Server {
    index: usize,
    origin: String,
    host: String,
    port: u16,
    /// The value of `Host`.
    pub(super) authority: HeaderValue,
    /// The name for SNI and for the verification of the certificate; `None` without TLS.
    server_name: Option<ServerName<'static>>,
    /// How requests are sent, if an HTTP proxy forwards them one by one.
    pub(super) absolute_form: Option<AbsoluteForm>,
}

/// The server that the next call begins with: the one that the last call reached, unless it failed
/// repeatedly.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct First {
    index: usize,
    /// Failed calls in a row there.
    failures: u32,
}

impl Servers {
    /// Connects to nothing yet. `timeout` is `token.timeout`.
    pub(in crate::token) fn new(
        origins: &[Url],
        tls: &tls::Config,
        proxy: Option<&Arc<OutboundProxy>>,
        timeout: Duration,
    ) -> Result<Arc<Self>, Error> {
        let servers = origins.iter().enumerate();
        let servers = servers.map(|(index, origin)| Server::new(index, origin, tls, proxy));
        let servers = servers.collect::<Result<Vec<_>, _>>()?;
        let has_tls = servers.iter().any(|server| server.server_name.is_some());
        let tls = has_tls.then(|| reloadable(tls)).transpose()?;
        Ok(Arc::new(Self {
            servers,
            tls: tls.map(Arc::new),
            proxy: proxy.cloned(),
            connect_timeout: CONNECT_TIMEOUT.min(timeout),
            first: Mutex::default(),
        }))
    }

    /// What reloads the TLS settings when their files change; `None` without TLS.
    pub(in crate::token) fn reloadable(&self) -> Option<Arc<dyn reload::Reload>> {
        let tls = self.tls.as_ref()?;
        Some(Arc::clone(tls) as Arc<dyn reload::Reload>)
    }

    /// Reads the files of `tls` again. If they are unusable, the settings stay as they were.
    pub(in crate::token) async fn reload(&self) {
        if let Some(reloadable) = self.reloadable() {
            // Errors are reported by the reloader.
            let _ = blocking::run(move || reloadable.reload()).await;
        }
    }

    /// Connects to the server that the last call reached, or else to the next one that can be
    /// connected to.
    pub(super) async fn connect(&self) -> Result<(&Server, Transport), Failure> {
        let connect = async |server| match self.connect_to(server).await {
            Ok(transport) => Ok((server, transport)),
            Err(error) => Err((server, error)),
        };
        dial::first_success(self.in_order(), ATTEMPT_DELAY, connect)
            .await
            .map_err(|errors| self.unreachable(&errors))
    }

    async fn connect_to(&self, server: &Server) -> io::Result<Transport> {
        let tls = self.tls.as_ref().zip(server.server_name.as_ref());
        let tls = tls.map(|(tls, server_name)| Tls {
            config: Arc::clone(&tls.load()),
            server_name: server_name.clone(),
        });
        let limit = self.connect_timeout;
        let tcp = async {
            let Some(proxy) = &self.proxy else {
                return socket::connect(&server.host, server.port, limit).await;
            };
            let forwards_requests = server.absolute_form.is_some();
            let reached = proxy
                .reach(forwards_requests, &server.host, server.port, limit)
                .await;
            reached.map_err(io::Error::other)
        };
        connect::connect(tcp, tls, limit).await
    }

    /// The response, unless the outbound proxy has made it without forwarding the request.
    pub(super) fn forwarded(
        &self,
        server: &Server,
        response: RawResponse,
    ) -> Result<RawResponse, Failure> {
        let form = server.absolute_form.as_ref();
        match form.and_then(|form| form.refusal(response.status, &response.headers)) {
            Some(error) => Err(self.unreachable(&[(server, io::Error::other(error))])),
            None => Ok(response),
        }
    }

    fn in_order(&self) -> impl Iterator<Item = &Server> {
        let (before, from) = self.servers.split_at(self.first.lock().index);
        from.iter().chain(before)
    }

    /// Notes how a call has ended that reached `server`. Its failure names the server.
    pub(super) fn ended<T>(
        &self,
        server: &Server,
        result: Result<T, Failure>,
    ) -> Result<T, Failure> {
        let class = result.as_ref().err().map(|failure| failure.class);
        let is_moved = {
            let mut first = self.first.lock();
            let before = first.index;
            *first = first.after(server.index, class, self.servers.len());
            class.is_none() && server.index != before
        };
        if is_moved {
            tracing::info!(
                server = server.origin,
                "the issuer is called at this server now"
            );
        }
        result.map_err(|failure| match self.servers.len() {
            1 => failure,
            _ => Failure {
                detail: format!("{} ({})", failure.detail, server.origin),
                ..failure
            },
        })
    }

    /// Nothing was sent, so nothing was used.
    fn unreachable(&self, errors: &[(&Server, io::Error)]) -> Failure {
        let causes = errors.iter().map(|(server, error)| {
            let cause = if error.kind() == io::ErrorKind::TimedOut && error.raw_os_error().is_none()
            {
                let limit = self.connect_timeout;
                format!("no connection within {limit:?} (check token.issuer and the network)")
            } else {
                describe(error)
            };
            match self.servers.len() {
                1 => cause,
                _ => format!("{}: {cause}", server.origin),
            }
        });
        let causes = causes.collect::<Vec<_>>().join("; ");
        Failure::new(
            FailureClass::Unreachable,
            format!("the issuer cannot be reached: {causes}"),
        )
    }
}

impl Server {
    fn new(
        index: usize,
        origin: &Url,
        tls: &tls::Config,
        proxy: Option<&Arc<OutboundProxy>>,
    ) -> Result<Self, Error> {
        let host = host::without_brackets(origin.host_str().unwrap_or_default()).to_owned();
        let is_https = origin.scheme() == "https";
        let server_name = is_https.then(|| server_name(tls, &host)).transpose()?;
        // A URL consists of visible ASCII.
        let authority = HeaderValue::from_str(&origin[Position::BeforeHost..Position::AfterPort])
            .unwrap_or_else(|_| HeaderValue::from_static(""));
        Ok(Self {
            index,
            origin: origin.origin().ascii_serialization(),
            host,
            port: origin.port_or_known_default().unwrap_or_default(),
            absolute_form: proxy
                .and_then(|proxy| AbsoluteForm::new(proxy, origin.scheme(), authority.as_bytes())),
            authority,
            server_name,
        })
    }
}

impl First {
    /// After a call that reached the server at `index`, and failed with `class` or succeeded.
    fn after(self, index: usize, class: Option<FailureClass>, servers: usize) -> Self {
        let has_failed = match class {
            // A decision about the credential is a sign of life.
            None
            | Some(
                FailureClass::RefreshTokenRefused
                | FailureClass::ClientRefused
                | FailureClass::Throttled(_),
            ) => false,
            Some(
                FailureClass::Garbled
                | FailureClass::Ambiguous
                | FailureClass::Unreachable
                | FailureClass::Failing,
            ) => true,
        };
        let before = if index == self.index {
            self.failures
        } else {
            0
        };
        match before + 1 {
            _ if !has_failed => Self { index, failures: 0 },
            failures if failures < MAX_FAILURES => Self { index, failures },
            _ => Self {
                index: (index + 1) % servers,
                failures: 0,
            },
        }
    }
}

fn server_name(config: &tls::Config, host: &str) -> Result<ServerName<'static>, Error> {
    let Some(name) = config.server_name.as_deref() else {
        return ServerName::try_from(host.to_owned()).map_err(|_| Error::Host(host.to_owned()));
    };
    match ServerName::try_from(name.to_owned()) {
        Ok(ServerName::IpAddress(address)) => Err(Error::ServerName(IpAddr::from(address))),
        Ok(name) => Ok(name),
        Err(_) => Err(Error::NotAName),
    }
}

fn reloadable(config: &tls::Config) -> Result<reload::Reloadable<Arc<ClientConfig>>, Error> {
    let files: Vec<_> = config.files().collect();
    let certificate = config.client_cert_file.clone();
    let config = config.clone();
    let build = move || tls::client_config(&config, &[b"http/1.1"]).map(Arc::new);
    reload::Reloadable::new("issuer:client".to_owned(), files, certificate, move || {
        build().map_err(Error::from)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_begins_where_the_last_one_went_unless_that_fails_repeatedly() {
        use FailureClass::{
            Ambiguous, ClientRefused, Failing, Garbled, RefreshTokenRefused, Throttled, Unreachable,
        };
        let throttled = Throttled(Duration::from_secs(1));
        for (calls, expected) in [
            // Where a call went, how it failed, and where the next one begins.
            (&[(0, None), (1, None), (1, Some(Ambiguous))][..], 1),
            (&[(0, Some(Ambiguous))], 0),
            (&[(0, Some(Ambiguous)), (0, Some(Ambiguous))], 1),
            (&[(0, Some(Failing)), (0, None), (0, Some(Failing))], 0),
            (
                &[
                    (0, Some(Failing)),
                    (1, Some(Garbled)),
                    (1, Some(Unreachable)),
                ],
                2,
            ),
            (&[(2, Some(Failing)), (2, Some(Failing))], 0),
            (
                &[(0, Some(Failing)), (0, Some(throttled)), (0, Some(Failing))],
                0,
            ),
            (&[(1, Some(ClientRefused)), (1, Some(ClientRefused))], 1),
            (
                &[
                    (1, Some(RefreshTokenRefused)),
                    (1, Some(RefreshTokenRefused)),
                ],
                1,
            ),
        ] {
            let mut first = First::default();
            for (index, class) in calls {
                first = first.after(*index, *class, 3);
            }
            assert_eq!(first.index, expected, "{calls:?}");
        }
    }

    #[test]
    fn a_single_server_stays_the_first() {
        let mut first = First::default();
        for _ in 0..10 {
            first = first.after(0, Some(FailureClass::Failing), 1);
            assert_eq!(first.index, 0);
        }
    }
}
