//! Fuzz targets: input from clients and upstreams.

use std::rc::Rc;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, Uri, header, request, uri::Scheme};

use crate::{
    proxy::{
        ForwardedHeaders, GuardConfig, Rewrite,
        framing::{Fault, Framing, HeadLimits},
        message::{
            headers::{self, ClientConnection},
            urls::{JsonRewriter, OwnUrls, UrlMap},
        },
        policy::{
            guard::{Exposure, Guard, KnownHost},
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
    let guard = Guard::new(config, Exposure::Loopback, Scheme::HTTP);
    if headers::encode_target(&mut head).is_err() {
        return;
    }
    let issuer: Vec<_> = IssuerPath::new("/api/token.do").into_iter().collect();
    let path = head.uri.path();
    let is_allowed = guard.check(&head, &KnownHost::default()).is_ok()
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
    }
}
