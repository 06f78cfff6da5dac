//! The usual spelling of field names, for HTTP/1 messages that did not come over HTTP/1: the proxy's
//! own, and those of HTTP/2, where names have no capital letters.

use bytes::Bytes;
use http::{Extensions, HeaderMap, Request};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// Names that are not spelled like `Content-Type`, as hyper spells all others.
const NAMES: &[&str] = &[
    "CDN-Loop",
    "CF-RAY",
    "Content-MD5",
    "DAV",
    "DASL",
    "DNT",
    "ETag",
    "Expect-CT",
    "MS-Author-Via",
    "NEL",
    "OC-ETag",
    "OC-FileId",
    "P3P",
    "SOAPAction",
    "SourceMap",
    "TE",
    "WWW-Authenticate",
    "X-DNS-Prefetch-Control",
    "X-OC-MTime",
    "X-UA-Compatible",
    "X-WebKit-CSP",
    "X-XSS-Protection",
];

/// Those of them that a message may have several times, and how often at most: hyper takes one
/// recorded spelling for each field, and writes the rest like `Content-Type`. Clients that compare
/// names letter by letter would then see two fields.
const REPEATED: &[&str] = &[
    "CDN-Loop",
    "DAV",
    "DASL",
    "NEL",
    "P3P",
    "TE",
    "WWW-Authenticate",
];
const REPETITIONS: usize = 8;

/// Whether a message has one of these names. Otherwise it needs no extensions, which cost an
/// allocation for each name.
pub(crate) fn is_needed(headers: &HeaderMap) -> bool {
    headers.keys().any(|name| is_listed(name.as_str()))
}

/// Whether [`NAMES`] has a name, in lower case: the compiler switches on the length, which is
/// cheaper than to search the list.
fn is_listed(name: &str) -> bool {
    matches!(
        name,
        "cdn-loop"
            | "cf-ray"
            | "content-md5"
            | "dav"
            | "dasl"
            | "dnt"
            | "etag"
            | "expect-ct"
            | "ms-author-via"
            | "nel"
            | "oc-etag"
            | "oc-fileid"
            | "p3p"
            | "soapaction"
            | "sourcemap"
            | "te"
            | "www-authenticate"
            | "x-dns-prefetch-control"
            | "x-oc-mtime"
            | "x-ua-compatible"
            | "x-webkit-csp"
            | "x-xss-protection"
    )
}

/// The extensions of a message that make hyper write these names as they are spelled here. What
/// hyper reads there has no constructor, so that a connection in memory carries a head with them.
pub(crate) async fn usual() -> Extensions {
    let (client, mut server) = tokio::io::duplex(2048);
    let respond = async {
        // The whole request is written at once.
        let _ = server.read(&mut [0; 1024]).await;
        let again = REPEATED.repeat(REPETITIONS - 1);
        let names = NAMES.iter().chain(&again);
        let fields: String = names.map(|name| format!("{name}:\r\n")).collect();
        let head = format!("HTTP/1.1 204 No Content\r\n{fields}\r\n");
        let _ = server.write_all(head.as_bytes()).await;
        std::future::pending::<()>().await;
    };
    let exchange = async {
        let handshake = http1::Builder::new()
            .preserve_header_case(true)
            .handshake(TokioIo::new(client));
        let (mut sender, connection) = handshake.await.ok()?;
        tokio::select! {
            response = sender.send_request(Request::new(Empty::<Bytes>::new())) => response.ok(),
            _ = connection => None,
        }
    };
    let response = tokio::select! {
        response = exchange => response,
        () = respond => None,
    };
    response.map_or_else(Extensions::new, |response| {
        response.into_parts().0.extensions
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_names_are_recorded() {
        assert!(!usual().await.is_empty());
        for name in NAMES {
            assert!(name.len() < 64 && name.is_ascii());
            assert!(is_listed(&name.to_ascii_lowercase()), "{name}");
        }
        assert!(!is_listed("content-type"));
    }
}
