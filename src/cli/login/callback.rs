//! The place on this machine to which the cloud sends the browser back. What comes in is hostile until `data` proves it.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use http::{HeaderValue, Method, Response, StatusCode, header, request::Parts, uri::Scheme};
use http_body_util::Full;
use tokio::{net::TcpListener, sync::mpsc, task::JoinSet};
use url::{Host, Url};

use crate::{
    base::{host, secret::Secret},
    cli::complain,
    net::{
        http_server::{self, HttpResponse},
        socket::Listener,
    },
    proxy::{
        GuardConfig,
        policy::guard::{Exposure, Guard, KnownHost},
    },
};

/// The longest code that is accepted, in bytes.
const CODE_LIMIT: usize = 4096;
/// Browsers open a few connections ahead of need.
const CONNECTIONS: usize = 32;

/// A listener that waits for one code.
pub(super) struct Callback {
    codes: mpsc::Receiver<Result<Secret, String>>,
    listening: JoinSet<()>,
}

/// Whether this is an http address of this machine.
pub(super) fn can_listen_at(redirect_uri: &str) -> bool {
    Url::parse(redirect_uri).is_ok_and(|uri| uri.scheme() == "http" && addresses(&uri).is_some())
}

impl Callback {
    /// Listens at the redirect URI for a callback that carries this `data`.
    ///
    /// # Errors
    /// When the address is taken or not this machine's, in words for people.
    pub(super) async fn listen(redirect_uri: &str, data: String) -> Result<Self, String> {
        let uri =
            Url::parse(redirect_uri).map_err(|error| format!("token.redirect_uri: {error}"))?;
        let addresses =
            addresses(&uri).ok_or("token.redirect_uri is not an address of this machine")?;
        let mut listeners = Vec::new();
        let mut failure = None;
        for address in addresses {
            match TcpListener::bind(address).await {
                Ok(listener) => listeners.push(listener),
                // `localhost` is two addresses, and a machine may lack one of them; but a stranger must not have it.
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                    return Err(cannot_listen(address, &error));
                }
                Err(error) => failure = Some(cannot_listen(address, &error)),
            }
        }
        if let Some(failure) = failure.filter(|_| listeners.is_empty()) {
            return Err(failure);
        }
        let (sender, codes) = mpsc::channel(1);
        let gate = Guard::new(GuardConfig::default(), Exposure::Loopback, Scheme::HTTP);
        let desk = Arc::new(Desk {
            gate,
            path: uri.path().to_owned(),
            data,
            sender,
        });
        let mut listening = JoinSet::new();
        for listener in listeners {
            listening.spawn(serve(Listener::Tcp(listener), Arc::clone(&desk)));
        }
        Ok(Self { codes, listening })
    }

    /// Waits for the code.
    ///
    /// # Errors
    /// What the cloud says instead of a code, or why none will come.
    pub(super) async fn code(&mut self) -> Result<Secret, String> {
        self.codes
            .recv()
            .await
            .unwrap_or_else(|| Err("the listener has ended".to_owned()))
    }

    /// Lets the browser have its page, then ends.
    pub(super) async fn finish(mut self) {
        // The listeners see that nobody wants a code any more.
        self.codes.close();
        while self.listening.join_next().await.is_some() {}
    }
}

fn cannot_listen(address: SocketAddr, error: &io::Error) -> String {
    let why = match error.kind() {
        io::ErrorKind::AddrInUse => "another program listens there already".to_owned(),
        io::ErrorKind::PermissionDenied => {
            "the system does not allow it (ports below 1024 need a privilege)".to_owned()
        }
        _ => error.to_string(),
    };
    format!("cannot listen on {address} for the browser to come back: {why}; or use --code")
}

/// Where to listen for this URI; `None` if that is not on this machine alone.
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
async fn serve(listener: Listener, desk: Arc<Desk>) {
    let sender = desk.sender.clone();
    let respond = move |request: &Parts| desk.answer(request);
    http_server::serve(
        listener,
        CONNECTIONS,
        |_| Some(()),
        respond,
        sender.closed(),
    )
    .await;
}

/// Answers requests.
struct Desk {
    gate: Guard,
    path: String,
    data: String,
    sender: mpsc::Sender<Result<Secret, String>>,
}

impl Desk {
    fn answer(&self, request: &Parts) -> HttpResponse {
        if self
            .gate
            .check_host(request, &KnownHost::default())
            .is_err()
        {
            return page(
                StatusCode::MISDIRECTED_REQUEST,
                "This name is not served here.",
            );
        }
        if request.uri.path() != self.path {
            return page(StatusCode::NOT_FOUND, "There is nothing here.");
        }
        if request.method != Method::GET {
            return page(
                StatusCode::METHOD_NOT_ALLOWED,
                "This address takes nothing but GET.",
            );
        }
        match read(request.uri.query().unwrap_or_default(), &self.data) {
            Ok(code) => {
                // Fails for a page that is loaded again: the first code counts.
                let _ = self.sender.try_send(Ok(code));
                page(
                    StatusCode::OK,
                    "The cloud has agreed. How it went on is told where the login was started; this page can be closed.",
                )
            }
            Err(Refusal::ByTheCloud(words)) => {
                let _ = self
                    .sender
                    .try_send(Err(format!("the cloud refused the login: {words}")));
                page(
                    StatusCode::OK,
                    "The cloud refused the login. Why is told where the login was started.",
                )
            }
            Err(Refusal::Foreign) => {
                complain(format_args!(
                    "an answer that does not belong to this login was refused (its `data` is not ours); still waiting"
                ));
                page(
                    StatusCode::BAD_REQUEST,
                    "This answer does not belong to the login that is waiting here.",
                )
            }
            Err(Refusal::NoCode) => page(StatusCode::BAD_REQUEST, "This answer carries no code."),
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Refusal {
    /// Whoever sent the browser here does not know our `data`.
    Foreign,
    /// `error`, RFC 6749 §4.1.2.1.
    ByTheCloud(String),
    NoCode,
}

/// The code in a callback's query.
fn read(query: &str, data: &str) -> Result<Secret, Refusal> {
    let only = |name: &str| {
        let mut values =
            url::form_urlencoded::parse(query.as_bytes()).filter(|(key, _)| key == name);
        values
            .next()
            .filter(|_| values.next().is_none())
            .map(|(_, value)| value.into_owned())
    };
    let shown = only("data").unwrap_or_default();
    if aws_lc_rs::constant_time::verify_slices_are_equal(shown.as_bytes(), data.as_bytes()).is_err()
    {
        return Err(Refusal::Foreign);
    }
    if let Some(error) = only("error") {
        let description =
            only("error_description").map(|words| format!(" ({})", printable(&words)));
        return Err(Refusal::ByTheCloud(
            printable(&error) + &description.unwrap_or_default(),
        ));
    }
    let code = only("code").filter(|code| !code.is_empty() && code.len() <= CODE_LIMIT);
    code.map(Secret::new).ok_or(Refusal::NoCode)
}

fn printable(words: &str) -> String {
    words
        .chars()
        .filter(|c| !c.is_control())
        .take(200)
        .collect()
}

/// Says nothing that came from outside.
fn page(status: StatusCode, words: &'static str) -> HttpResponse {
    let html = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>bearer-proxy login</title><p>{words}</p></html>\n"
    );
    let mut response = Response::new(Full::new(html.into()));
    *response.status_mut() = status;
    for (name, value) in [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CACHE_CONTROL, "no-store"),
        // The address of this page carries the code.
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

    fn code(query: &str) -> Result<String, Refusal> {
        read(query, "d4ta").map(|code| code.expose().to_owned())
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
            assert_eq!(code(query), Err(Refusal::Foreign), "{query}");
        }
        let endless = format!("data=d4ta&code={}", "x".repeat(CODE_LIMIT + 1));
        for query in [
            "data=d4ta",
            "data=d4ta&code=",
            "data=d4ta&code=a&code=b",
            &endless,
        ] {
            assert_eq!(code(query), Err(Refusal::NoCode), "{query}");
        }
        assert_eq!(
            code("data=d4ta&error=access_denied&error_description=the%0Auser+said+no&code=a"),
            Err(Refusal::ByTheCloud(
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
            prop_assert_eq!(code(&query), Err(Refusal::Foreign));
        }
    }
}
