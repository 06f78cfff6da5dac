//! What a fuzzer may find out about what clients and upstreams send.

use std::rc::Rc;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, Uri, header, request, uri::Scheme};

use crate::{
    proxy::{
        ForwardedHeaders, GuardConfig, Rewrite,
        framing::{Fault, Framing, HeadLimits},
        message::{
            headers::{self, Client},
            urls::{Stream, UrlMap},
        },
        policy::{
            guard::{Exposure, Guard, KnownHost},
            rules::{Rules, issuer_segment},
        },
    },
    upstream::{Endpoint, Host},
};

const LIMITS: HeadLimits = HeadLimits {
    target: 1000,
    head: 4000,
    fields: 50,
};

/// What a client sends on a connection: the first byte says where it is cut.
pub fn framing(data: &[u8]) {
    let Some((&cut, bytes)) = data.split_first() else {
        return;
    };
    let (whole, whole_heads, fault) = handed_on(bytes, bytes.len());
    let (pieces, heads, fault_in_pieces) = handed_on(bytes, usize::from(cut));
    assert_eq!(
        fault.is_some(),
        fault_in_pieces.is_some(),
        "cuts do not matter"
    );
    assert!(
        bytes.starts_with(&whole) && bytes.starts_with(&pieces),
        "what is good is not changed"
    );
    if fault.is_none() {
        assert_eq!((whole, whole_heads), (pieces, heads));
    }
}

/// What is handed on of these bytes when so many come at a time.
fn handed_on(bytes: &[u8], at_a_time: usize) -> (Vec<u8>, u32, Option<Fault>) {
    let (mut framing, mut good, mut heads, mut held) =
        (Framing::new(LIMITS), Vec::new(), 0, Vec::new());
    for piece in bytes.chunks(at_a_time.max(1)) {
        held.extend_from_slice(piece);
        let seen = framing.read(&held);
        good.extend(held.drain(..seen.good));
        heads += seen.heads;
        if let Some((_, fault)) = seen.fault {
            return (good, heads, Some(fault));
        }
    }
    (good, heads, None)
}

/// A request's head: what passes the guard and the rules goes on as one request of ours, to our upstream.
pub fn request(data: &[u8]) {
    if handed_on(data, data.len()).1 == 0 {
        return;
    }
    let Some(mut head) = parsed(data) else { return };
    let own = HeaderName::from_static("x-app");
    let guard = GuardConfig {
        required_header: Some(own.clone()),
        ..GuardConfig::default()
    };
    let gate = Guard::new(guard, Exposure::Loopback, Scheme::HTTP);
    headers::encode_target(&mut head);
    let issuer: Vec<_> = issuer_segment("/api/token.do").into_iter().collect();
    let path = head.uri.path();
    let is_allowed = gate.check(&head, &KnownHost::default()).is_ok()
        && gate.check_required(&head.headers).is_ok()
        && Rules::default().judge(&head.method, path, &issuer).is_ok();
    if !is_allowed {
        return;
    }
    let decoded = percent_encoding::percent_decode_str(path)
        .decode_utf8_lossy()
        .to_ascii_lowercase();
    assert!(
        !decoded.split('/').any(|segment| segment == "token.do"),
        "the issuer is out of reach"
    );
    let endpoint = Endpoint {
        scheme: Scheme::HTTPS,
        host: "cloud.example.com".into(),
        port: 443,
        authority: HeaderValue::from_static("cloud.example.com"),
        origin: "https://cloud.example.com".into(),
    };
    let token = HeaderValue::from_static("Bearer the-token");
    let rewrite = headers::Rewrite {
        endpoint: &endpoint,
        host: &Host::Endpoint,
        forwarded: ForwardedHeaders::XForwarded,
        client: &Client::new(Some(([127, 0, 0, 1], 5000).into()), Scheme::HTTP),
        mark: &HeaderValue::from_static("the-mark"),
        stripped: std::slice::from_ref(&own),
        authorization: Some(&token),
    };
    let out = headers::outbound(&head, &rewrite);
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
        Some(rewrite.mark)
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

/// The head as hyper would have it, more or less.
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

/// JSON on its way to a client: the first byte says where it is cut.
pub fn json(data: &[u8]) {
    let Some((&cut, body)) = data.split_first() else {
        return;
    };
    let rewrites = Rc::new(UrlMap::new(&[
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
        let mut stream = Stream::new(Rc::clone(&rewrites), b"http://localhost:8080".to_vec());
        let mut out: Vec<u8> = pieces
            .flat_map(|piece| stream.feed(&Bytes::copy_from_slice(piece)))
            .collect();
        out.extend(stream.finish());
        out
    };
    let whole = rewritten(&mut std::iter::once(body));
    assert_eq!(
        rewritten(&mut body.chunks(usize::from(cut).max(1))),
        whole,
        "cuts do not matter"
    );
    let is_json = |text: &[u8]| serde_json::from_slice::<serde_json::Value>(text).is_ok();
    assert_eq!(
        is_json(body),
        is_json(&whole),
        "JSON stays JSON, and nothing becomes it"
    );
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_corpora() {
        crate::base::corpus::each("framing", super::framing);
        crate::base::corpus::each("request", super::request);
        crate::base::corpus::each("json", super::json);
    }
}
