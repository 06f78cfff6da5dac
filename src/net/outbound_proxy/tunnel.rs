//! Tunnels through a proxy. Responses are read without a byte behind them: those belong to the
//! destination, which may speak first (HTTP/2 without TLS).

use std::io;

use http::StatusCode;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_socks::{Error as SocksError, tcp::Socks5Stream};
use zeroize::Zeroizing;

use super::{Credentials, Refusal, authority};
use crate::net::socket::Stream;

/// The largest head of a response to CONNECT, in bytes.
const LARGEST_HEAD: usize = 16 * 1024;

/// The most fields of a response to CONNECT.
const MOST_FIELDS: usize = 100;

/// Opens a tunnel by CONNECT (RFC 9110 §9.3.6).
pub(super) async fn http(
    mut stream: Stream,
    host: &str,
    port: u16,
    credentials: Option<&Credentials>,
) -> Result<Stream, Refusal> {
    let target = authority(host, port);
    let mut request = Zeroizing::new(Vec::new());
    let agent = env!("CARGO_PKG_VERSION");
    let head = format!(
        "CONNECT {target} HTTP/1.1\r\nHost: {target}\r\nUser-Agent: bearer-proxy/{agent}\r\n"
    );
    let authorization = credentials.map_or(&[][..], |credentials| credentials.basic.as_bytes());
    // In one allocation: a vector that grows would leave unwiped copies behind.
    request.reserve_exact(head.len() + authorization.len() + 64);
    request.extend_from_slice(head.as_bytes());
    if credentials.is_some() {
        for part in [&b"Proxy-Authorization: "[..], authorization, b"\r\n"] {
            request.extend_from_slice(part);
        }
    }
    request.extend_from_slice(b"\r\n");
    stream.write_all(&request).await.map_err(broken)?;
    let status = read_status(&mut stream).await?;
    if status.is_success() {
        return Ok(stream);
    }
    Err(refusal(status, target, credentials.is_some()))
}

/// What a status other than 2xx means.
pub(super) fn refusal(status: StatusCode, target: String, has_credentials: bool) -> Refusal {
    let response = status.as_u16().to_string();
    match status {
        StatusCode::PROXY_AUTHENTICATION_REQUIRED if has_credentials => Refusal::Credentials,
        StatusCode::PROXY_AUTHENTICATION_REQUIRED => Refusal::NoCredentials,
        StatusCode::FORBIDDEN => Refusal::Denied { target, response },
        _ => Refusal::Failed { target, response },
    }
}

/// Reads a head byte by byte and returns its status.
async fn read_status(stream: &mut Stream) -> Result<StatusCode, Refusal> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") && !head.ends_with(b"\n\n") {
        if head.len() == LARGEST_HEAD {
            let what = format!("the head of its response is larger than {LARGEST_HEAD} bytes");
            return Err(Refusal::Malformed(what));
        }
        head.push(stream.read_u8().await.map_err(broken)?);
    }
    let mut fields = [httparse::EMPTY_HEADER; MOST_FIELDS];
    let mut response = httparse::Response::new(&mut fields);
    let parsed = response.parse(&head);
    let status = response
        .code
        .and_then(|code| StatusCode::from_u16(code).ok());
    match (parsed, status) {
        (Ok(_), Some(status)) => Ok(status),
        (Err(error), _) => Err(Refusal::Malformed(error.to_string())),
        (Ok(_), None) => Err(Refusal::Malformed("no status".to_owned())),
    }
}

/// Opens a tunnel by SOCKS5.
pub(super) async fn socks5(
    stream: Stream,
    host: &str,
    port: u16,
    credentials: Option<&Credentials>,
) -> Result<Stream, Refusal> {
    let target = (host, port);
    let opened = match credentials {
        Some(Credentials { user, password, .. }) => {
            let password = password.expose();
            Socks5Stream::connect_with_password_and_socket(stream, target, user, password).await
        }
        None => Socks5Stream::connect_with_socket(stream, target).await,
    };
    opened.map(Socks5Stream::into_inner).map_err(|error| {
        let target = authority(host, port);
        let response = error.to_string();
        match error {
            SocksError::Io(error) => broken(error),
            SocksError::NoAcceptableAuthMethods | SocksError::AuthorizationRequired
                if credentials.is_none() =>
            {
                Refusal::NoCredentials
            }
            SocksError::NoAcceptableAuthMethods | SocksError::PasswordAuthFailure(_) => {
                Refusal::Credentials
            }
            SocksError::ConnectionNotAllowedByRuleset => Refusal::Denied { target, response },
            SocksError::GeneralSocksServerFailure
            | SocksError::NetworkUnreachable
            | SocksError::HostUnreachable
            | SocksError::ConnectionRefused
            | SocksError::TtlExpired
            | SocksError::CommandNotSupported
            | SocksError::AddressTypeNotSupported
            | SocksError::InvalidTargetAddress(_) => Refusal::Failed { target, response },
            _ => Refusal::Malformed(response),
        }
    })
}

/// The connection to the proxy ended before its response.
fn broken(error: io::Error) -> Refusal {
    if error.kind() == io::ErrorKind::UnexpectedEof {
        return Refusal::Malformed("it closed the connection".to_owned());
    }
    Refusal::Malformed(error.to_string())
}
