//! Fuzz targets: input from clients and upstreams.

use std::{io, rc::Rc};

use bytes::Bytes;
use futures_util::FutureExt as _;
use http::{HeaderName, HeaderValue, Request, Uri, header, request, uri::Scheme};
use tokio::io::AsyncReadExt as _;

use crate::{
    net::proxy_protocol::{self, Origin},
    proxy::{
        ForwardedHeaders, GuardConfig, Rewrite, TrustedNetworks, TrustedPeer,
        framing::{Fault, Framing, HeadLimits},
        message::{
            forwarded::{self, ClientConnection},
            headers,
            urls::{JsonRewriter, OwnUrls, UrlMap},
        },
        policy::{
            guard::{self, Exposure, Guard, KnownHost},
            issuer_path::IssuerPath,
            rules::Rules,
        },
    },
    upstream::{Endpoint, Host},
};

const LIMITS: HeadLimits = HeadLimits {
    target: 1000,
    head: 4000,
    fields: 50,
};

/// The HTTP/1 framing. The first byte of `data` is the size of the reads.
pub fn framing(data: &[u8]) {
    let Some((&cut, bytes)) = data.split_first() else {
        return;
    };
    let (whole, whole_heads, fault) = handed_on(bytes, bytes.len());
    let (pieces, heads, fault_in_pieces) = handed_on(bytes, usize::from(cut));
    assert_eq!(
        fault.is_some(),
        fault_in_pieces.is_some(),
        "the result does not depend on the read boundaries"
    );
    if fault.is_none() {
        assert_eq!((&whole, whole_heads), (&pieces, heads));
    }
    let mut limits = LIMITS;
    limits.target *= 3;
    limits.head *= 3;
    let scan = Framing::new(limits).read(&whole);
    assert!(
        scan.repaired.is_none() && scan.heads == whole_heads,
        "what is handed on needs no repair"
    );
}

/// The bytes that are handed on when they arrive in reads of this size, the number of heads, and
/// the fault.
fn handed_on(bytes: &[u8], read_size: usize) -> (Vec<u8>, u32, Option<Fault>) {
    let (mut framing, mut good, mut heads, mut held) =
        (Framing::new(LIMITS), Vec::new(), 0, Vec::new());
    for piece in bytes.chunks(read_size.max(1)) {
        held.extend_from_slice(piece);
        let scan = framing.read(&held);
        let bytes: Vec<u8> = held.drain(..scan.good).collect();
        good.extend(scan.repaired.unwrap_or(bytes));
        heads += scan.heads;
        if let Some((_, fault)) = scan.fault {
            return (good, heads, Some(fault));
        }
    }
    (good, heads, None)
}

/// A request's head: one that the guard and the rules accept is forwarded with the token, to the
/// upstream, and without hop-by-hop fields.
pub fn request(data: &[u8]) {
    if handed_on(data, data.len()).1 == 0 {
        return;
    }
    let Some(mut head) = parsed(data) else { return };
    let required_header = HeaderName::from_static("x-app");
    let config = GuardConfig {
        required_header: Some(required_header.clone()),
        ..GuardConfig::default()
    };
    let guard = Guard::new(config, Exposure::Loopback);
    if headers::encode_target(&mut head).is_err() {
        return;
    }
    let issuer: Vec<_> = IssuerPath::new("/api/token.do").into_iter().collect();
    let path = head.uri.path();
    let is_allowed = guard
        .check(&head, &KnownHost::default(), &Scheme::HTTP)
        .is_ok()
        && guard.check_required(&head.headers).is_ok()
        && Rules::default().judge(&head.method, path, &issuer).is_ok();
    if !is_allowed {
        return;
    }
    let decoded = percent_encoding::percent_decode_str(path)
        .decode_utf8_lossy()
        .to_ascii_lowercase();
    assert!(
        !decoded.split('/').any(|segment| segment == "token.do"),
        "the issuer's paths are denied"
    );
    let endpoint = Endpoint {
        scheme: Scheme::HTTPS,
        host: "cloud.example.com".into(),
        port: 443,
        authority: HeaderValue::from_static("cloud.example.com"),
        origin: "https://cloud.example.com".into(),
    };
    let token = HeaderValue::from_static("Bearer the-token");
    let outbound = headers::Outbound {
        endpoint: &endpoint,
        host: &Host::Endpoint,
        forwarded: ForwardedHeaders::XForwarded,
        own_urls: OwnUrls {
            host: head.headers.get(header::HOST),
            names: guard.names(),
            prefix: "",
            origins: &UrlMap::default(),
        },
        client: &ClientConnection::new(Some(([127, 0, 0, 1], 5000).into()), Scheme::HTTP),
        loop_id: &HeaderValue::from_static("the-loop-id"),
        stripped: std::slice::from_ref(&required_header),
        authorization: Some(&token),
    };
    let out = headers::outbound(&head, &outbound);
    assert_eq!(
        out.get_all(header::AUTHORIZATION)
            .iter()
            .collect::<Vec<_>>(),
        [&token]
    );
    assert_eq!(
        out.get_all(header::HOST).iter().collect::<Vec<_>>(),
        [&endpoint.authority]
    );
    assert_eq!(
        out.get_all("cdn-loop").iter().next_back(),
        Some(outbound.loop_id)
    );
    let hop_by_hop = [
        "connection",
        "te",
        "transfer-encoding",
        "upgrade",
        "keep-alive",
        "proxy-authorization",
        "expect",
    ];
    for name in hop_by_hop.into_iter().chain([
        "http2-settings",
        "x-original-url",
        "x-http-method-override",
        "x-app",
    ]) {
        assert!(!out.contains_key(name), "{name}");
    }
}

/// A PROXY header: it is read to its end and no further, whatever the size of the reads. The first
/// byte of `data` is where it is cut in two.
pub fn proxy_header(data: &[u8]) {
    let Some((&cut, bytes)) = data.split_first() else {
        return;
    };
    let read = |cut: usize| {
        let (first, second) = bytes.split_at(cut.min(bytes.len()));
        let mut stream = first.chain(second);
        // Reading from memory never waits.
        let read = proxy_protocol::read(&mut stream).now_or_never()?;
        let (first, second) = stream.into_inner();
        let length = bytes.len() - first.len() - second.len();
        Some((read.map_err(|error| error.kind()), length))
    };
    let whole = read(0);
    let pieces = read(usize::from(cut));
    let origin = |read: &Option<(Result<Origin, io::ErrorKind>, usize)>| {
        read.as_ref().map(|(origin, _)| *origin)
    };
    assert_eq!(origin(&whole), origin(&pieces), "cut at {cut}");
    let (origin, length) = whole.unwrap_or((Err(io::ErrorKind::WouldBlock), usize::MAX));
    assert!(length <= 4096, "{length} bytes were read");
    match origin {
        Ok(origin) => {
            assert_eq!(pieces, Some((Ok(origin), length)), "cut at {cut}");
            if let Origin::Client(client) = origin {
                assert_eq!(client.ip(), client.ip().to_canonical());
            }
        }
        Err(kind) => assert!(
            matches!(
                kind,
                io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof
            ),
            "{kind}"
        ),
    }
}

/// The forwarding fields of a trusted peer, one a line: `F` and the value of `Forwarded`, or the
/// first letter of `For`, `Host` and `Proto` in lower case. What is sent on is read as the same.
pub fn forwarded(data: &[u8]) {
    let names = [
        (b'F', "forwarded"),
        (b'f', "x-forwarded-for"),
        (b'h', "x-forwarded-host"),
        (b'p', "x-forwarded-proto"),
    ];
    let mut request = Request::get("/").header(header::HOST, "backend");
    for line in data.split(|byte| *byte == b'\n') {
        let Some((letter, value)) = line.split_first() else {
            continue;
        };
        let mut names = names.iter();
        if let Some((_, name)) = names.find(|(known, _)| known == letter)
            && let Ok(value) = HeaderValue::from_bytes(value)
        {
            request = request.header(*name, value);
        }
    }
    let Ok(request) = request.body(()) else {
        return;
    };
    let (head, ()) = request.into_parts();
    let trusted = ["10.0.0.0/8", "2001:db8::/32"].map(str::parse);
    let trusted = trusted.into_iter().flatten().map(TrustedPeer::Network);
    let trusted: TrustedNetworks = trusted.collect();
    let peer = ClientConnection::new(Some(([10, 0, 0, 1], 5000).into()), Scheme::HTTP);
    for fields in [
        ForwardedHeaders::XForwarded,
        ForwardedHeaders::Forwarded,
        ForwardedHeaders::Off,
    ] {
        let mut head = head.clone();
        let client = forwarded::read(&mut head, &peer, fields, &trusted);
        let hosts: Vec<_> = head.headers.get_all(header::HOST).iter().collect();
        assert!(
            hosts.len() == 1 && guard::host_name(hosts[0].as_bytes()).is_some(),
            "{hosts:?}"
        );
        let sent = forwarded::sent(&client, Some(hosts[0]), fields);
        let (mut again, ()) = Request::new(()).into_parts();
        again.headers = sent;
        again.headers.insert(header::HOST, hosts[0].clone());
        // The peer of the next proxy is this one, which appended its own peer.
        let next = ClientConnection::new(Some(([10, 0, 0, 9], 5000).into()), Scheme::HTTP);
        let understood = forwarded::read(&mut again, &next, fields, &trusted);
        if fields != ForwardedHeaders::Off {
            assert_eq!(understood.address().ip, client.address().ip, "{fields:?}");
            assert_eq!(understood.scheme(), client.scheme(), "{fields:?}");
            assert_eq!(again.headers.get(header::HOST), Some(hosts[0]));
        }
    }
}

/// The head, parsed similarly to hyper.
fn parsed(data: &[u8]) -> Option<request::Parts> {
    let text = data.strip_prefix(b"\r\n").unwrap_or(data);
    let mut lines = text
        .split(|byte| *byte == b'\n')
        .map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let mut words = lines.next()?.split(|byte| *byte == b' ');
    let (method, target) = (words.next()?, words.next()?);
    let mut request = Request::builder()
        .method(method)
        .uri(Uri::try_from(target).ok()?);
    for line in lines.take_while(|line| !line.is_empty()) {
        let colon = line.iter().position(|byte| *byte == b':')?;
        request = request.header(&line[..colon], line[colon + 1..].trim_ascii());
    }
    request.body(()).ok().map(|request| request.into_parts().0)
}

/// The JSON rewriter. The first byte of `data` is the size of the pieces.
pub fn json(data: &[u8]) {
    let Some((&cut, body)) = data.split_first() else {
        return;
    };
    let urls = Rc::new(UrlMap::new(&[
        Rewrite {
            from: "http://document.example.com".into(),
            to: "/_document".into(),
        },
        Rewrite {
            from: "https://cloud.example.com".into(),
            to: String::new(),
        },
    ]));
    let rewritten = |pieces: &mut dyn Iterator<Item = &[u8]>| {
        let mut rewriter = JsonRewriter::new(Rc::clone(&urls), b"http://localhost:8080".to_vec());
        let mut out: Vec<u8> = pieces
            .flat_map(|piece| rewriter.feed(&Bytes::copy_from_slice(piece)))
            .collect();
        out.extend(rewriter.finish());
        out
    };
    let whole = rewritten(&mut std::iter::once(body));
    assert_eq!(
        rewritten(&mut body.chunks(usize::from(cut).max(1))),
        whole,
        "the result does not depend on the size of the pieces"
    );
    let is_json = |text: &[u8]| serde_json::from_slice::<serde_json::Value>(text).is_ok();
    assert_eq!(
        is_json(body),
        is_json(&whole),
        "valid JSON stays valid, invalid JSON stays invalid"
    );
}

#[cfg(test)]
mod tests {
    #[test]
    fn corpora() {
        crate::base::corpus::each("framing", super::framing);
        crate::base::corpus::each("request", super::request);
        crate::base::corpus::each("json", super::json);
        crate::base::corpus::each("proxy_header", super::proxy_header);
        crate::base::corpus::each("forwarded", super::forwarded);
    }
}
