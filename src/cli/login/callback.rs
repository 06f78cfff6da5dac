//! The listener at the redirect URI. Requests are untrusted until `data` proves that they belong to
//! this login.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use http::{HeaderValue, Method, Response, StatusCode, header, request::Parts};
use http_body_util::Full;
use tokio::{net::TcpListener, sync::mpsc, task::JoinSet};
use url::{Host, Url};

use crate::{
    base::{host, secret::Secret},
    cli::output::print_error,
    net::{
        http_server::{self, HttpResponse},
        socket::Listener,
    },
    proxy::{
        GuardConfig,
        policy::guard::{Exposure, Guard, KnownHost},
    },
};

/// The maximum length of a code, in bytes.
pub(super) const CODE_LIMIT: usize = 4096;
/// Browsers open a few connections in advance.
const MAX_CONNECTIONS: usize = 32;

/// A listener that waits for one code.
pub(super) struct Callback {
    codes: mpsc::Receiver<Result<Secret, String>>,
    servers: JoinSet<()>,
}

/// Whether this is an http URL on this machine's loopback.
pub(super) fn can_listen_at(redirect_uri: &str) -> bool {
    Url::parse(redirect_uri).is_ok_and(|uri| uri.scheme() == "http" && addresses(&uri).is_some())
}

impl Callback {
    /// Listens at the redirect URI for a callback with this `data`.
    ///
    /// # Errors
    /// When the address is in use or not a loopback one: the message for the user.
    pub(super) async fn listen(redirect_uri: &str, data: String) -> Result<Self, String> {
        let uri =
            Url::parse(redirect_uri).map_err(|error| format!("token.redirect_uri: {error}"))?;
        let addresses =
            addresses(&uri).ok_or("token.redirect_uri is not an address of this machine")?;
        let mut listeners = Vec::new();
        let mut last_error = None;
        for address in addresses {
            match TcpListener::bind(address).await {
                Ok(listener) => listeners.push(listener),
                // `localhost` has two addresses, and a machine may lack one of them. But no other
                // process may receive the callback on it.
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                    return Err(cannot_listen(address, &error));
                }
                Err(error) => last_error = Some(cannot_listen(address, &error)),
            }
        }
        if let Some(last_error) = last_error.filter(|_| listeners.is_empty()) {
            return Err(last_error);
        }
        let (sender, codes) = mpsc::channel(1);
        let guard = Guard::new(GuardConfig::default(), Exposure::Loopback);
        let handler = Arc::new(Handler {
            guard,
            path: uri.path().to_owned(),
            data,
            sender,
        });
        let mut servers = JoinSet::new();
        for listener in listeners {
            servers.spawn(serve(Listener::Tcp(listener), Arc::clone(&handler)));
        }
        Ok(Self { codes, servers })
    }

    /// Waits for the code.
    ///
    /// # Errors
    /// The cloud's error instead of a code, or why there will be no code: the message for the user.
    pub(super) async fn code(&mut self) -> Result<Secret, String> {
        self.codes
            .recv()
            .await
            .unwrap_or_else(|| Err("the listener has ended".to_owned()))
    }

    /// Ends the servers. The browser's last page is sent first.
    pub(super) async fn finish(mut self) {
        self.codes.close();
        while self.servers.join_next().await.is_some() {}
    }
}

fn cannot_listen(address: SocketAddr, error: &io::Error) -> String {
    let why = match error.kind() {
        io::ErrorKind::AddrInUse => "another program listens there already".to_owned(),
        io::ErrorKind::PermissionDenied => {
            "permission denied (ports below 1024 need a privilege)".to_owned()
        }
        _ => error.to_string(),
    };
    format!("cannot listen on {address} for the redirect: {why}; or use --code")
}

/// The addresses to listen on for this URI; `None` if they are not all loopback ones.
fn addresses(uri: &Url) -> Option<Vec<SocketAddr>> {
    let ips: Vec<IpAddr> = match uri.host()? {
        Host::Ipv4(ip) => vec![ip.into()],
        Host::Ipv6(ip) => vec![ip.to_canonical()],
        Host::Domain("localhost") => vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
        Host::Domain(_) => return None,
    };
    let port = uri.port_or_known_default()?;
    ips.iter()
        .all(|ip| host::is_loopback(*ip))
        .then(|| ips.into_iter().map(|ip| (ip, port).into()).collect())
}

/// Serves until the receiver of the code is closed.
async fn serve(listener: Listener, handler: Arc<Handler>) {
    let sender = handler.sender.clone();
    let respond = move |request: &Parts| handler.respond(request);
    http_server::serve(
        listener,
        MAX_CONNECTIONS,
        |_| Some(()),
        respond,
        sender.closed(),
    )
    .await;
}

/// Responds to requests.
struct Handler {
    guard: Guard,
    path: String,
    data: String,
    sender: mpsc::Sender<Result<Secret, String>>,
}

impl Handler {
    fn respond(&self, request: &Parts) -> HttpResponse {
        if self
            .guard
            .check_host(request, &KnownHost::default())
            .is_err()
        {
            return page(
                StatusCode::MISDIRECTED_REQUEST,
                "This host is not served here.",
            );
        }
        if request.uri.path() != self.path {
            return page(StatusCode::NOT_FOUND, "Not found.");
        }
        if request.method != Method::GET {
            return page(
                StatusCode::METHOD_NOT_ALLOWED,
                "Method not allowed: use GET.",
            );
        }
        let query = request.uri.query().unwrap_or_default();
        match parse(query, |data| is_equal(data, &self.data)) {
            Ok(code) => {
                // Fails if the page is loaded again: the first code counts.
                let _ = self.sender.try_send(Ok(code));
                page(
                    StatusCode::OK,
                    "The cloud has agreed. See the result where the login was started; this page \
                     can be closed.",
                )
            }
            Err(CallbackError::Denied(words)) => {
                let _ = self
                    .sender
                    .try_send(Err(format!("the cloud refused the login: {words}")));
                page(
                    StatusCode::OK,
                    "The cloud refused the login. See the reason where the login was started.",
                )
            }
            Err(CallbackError::WrongState) => {
                print_error(format_args!(
                    "rejected a callback that does not belong to this login (its `data` differs); \
                     still waiting"
                ));
                page(
                    StatusCode::BAD_REQUEST,
                    "This callback does not belong to the current login.",
                )
            }
            Err(CallbackError::NoCode) => {
                page(StatusCode::BAD_REQUEST, "This callback has no code.")
            }
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum CallbackError {
    /// `data` is not that of this login: a forged or an old callback.
    WrongState,
    /// The cloud's `error` (RFC 6749 §4.1.2.1), for the user.
    Denied(String),
    NoCode,
}

/// Parses a callback's query and returns its code. `is_ours` decides by `data`, which is empty if
/// there is none, or more than one.
pub(super) fn parse(
    query: &str,
    is_ours: impl FnOnce(&str) -> bool,
) -> Result<Secret, CallbackError> {
    let only = |name: &str| {
        let mut values =
            url::form_urlencoded::parse(query.as_bytes()).filter(|(key, _)| key == name);
        values
            .next()
            .filter(|_| values.next().is_none())
            .map(|(_, value)| value.into_owned())
    };
    if !is_ours(&only("data").unwrap_or_default()) {
        return Err(CallbackError::WrongState);
    }
    if let Some(error) = only("error") {
        let description =
            only("error_description").map(|words| format!(" ({})", printable(&words)));
        return Err(CallbackError::Denied(
            printable(&error) + &description.unwrap_or_default(),
        ));
    }
    let code = only("code").filter(|code| !code.is_empty() && code.len() <= CODE_LIMIT);
    code.map(Secret::new).ok_or(CallbackError::NoCode)
}

/// In constant time.
fn is_equal(one: &str, other: &str) -> bool {
    aws_lc_rs::constant_time::verify_slices_are_equal(one.as_bytes(), other.as_bytes()).is_ok()
}

fn printable(words: &str) -> String {
    words
        .chars()
        .filter(|c| !c.is_control())
        .take(200)
        .collect()
}

/// A page with a fixed text: nothing from the request is repeated.
fn page(status: StatusCode, words: &'static str) -> HttpResponse {
    let html = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>bearer-proxy \
         login</title><p>{words}</p></html>\n"
    );
    let mut response = Response::new(Full::new(html.into()));
    *response.status_mut() = status;
    for (name, value) in [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CACHE_CONTROL, "no-store"),
        // The URL of this page contains the code.
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CONTENT_SECURITY_POLICY, "default-src 'none'"),
    ] {
        response
            .headers_mut()
            .insert(name, HeaderValue::from_static(value));
    }
    response
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn code(query: &str) -> Result<String, CallbackError> {
        parse(query, |data| is_equal(data, "d4ta")).map(|code| code.expose().to_owned())
    }

    #[test]
    fn callbacks_are_believed_by_their_data() {
        assert_eq!(code("code=a%2Bb&data=d4ta").as_deref(), Ok("a+b"));
        for query in [
            "",
            "code=a",
            "code=a&data=",
            "code=a&data=d4t",
            "code=a&data=d4ta2",
            "code=a&data=d4ta&data=d4ta",
            "error=x",
        ] {
            assert_eq!(code(query), Err(CallbackError::WrongState), "{query}");
        }
        let endless = format!("data=d4ta&code={}", "x".repeat(CODE_LIMIT + 1));
        for query in [
            "data=d4ta",
            "data=d4ta&code=",
            "data=d4ta&code=a&code=b",
            &endless,
        ] {
            assert_eq!(code(query), Err(CallbackError::NoCode), "{query}");
        }
        assert_eq!(
            code("data=d4ta&error=access_denied&error_description=the%0Auser+said+no&code=a"),
            Err(CallbackError::Denied(
                "access_denied (theuser said no)".to_owned()
            ))
        );
    }

    #[test]
    fn only_http_addresses_of_this_machine_are_listened_at() {
        for uri in [
            "http://127.0.0.1:8765/callback",
            "http://localhost/",
            "http://[::1]:1/x?y=z",
            "http://[::ffff:127.0.0.1]:8765/",
            "http://127.1.2.3:9/",
        ] {
            assert!(can_listen_at(uri), "{uri}");
        }
        for uri in [
            "https://127.0.0.1:8765/callback",
            "http://app.example.com/",
            "http://localhost.example.com/",
            "http://0.0.0.0:1/",
            "http://10.0.0.1:1/",
            "app:/callback",
        ] {
            assert!(!can_listen_at(uri), "{uri}");
        }
    }

    proptest! {
        #[test]
        fn no_query_makes_it_panic_or_gets_past_the_data(query in "\\PC{0,60}") {
            prop_assert_eq!(code(&query), Err(CallbackError::WrongState));
        }
    }
}
