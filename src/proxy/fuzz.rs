//! What a fuzzer may find out about what clients and upstreams send.

use std::rc::Rc;

use bytes::Bytes;

use super::{
    Rewrite,
    rewrite::{Rewrites, Stream},
};

/// JSON on its way to a client: the first byte says where it is cut.
pub fn json(data: &[u8]) {
    let Some((&cut, body)) = data.split_first() else { return };
    let rewrites = Rc::new(Rewrites::new(&[
        Rewrite { from: "http://document.example.com".into(), to: "/_document".into() },
        Rewrite { from: "https://cloud.example.com".into(), to: String::new() },
    ]));
    let rewritten = |pieces: &mut dyn Iterator<Item = &[u8]>| {
        let mut stream = Stream::new(Rc::clone(&rewrites), b"http://localhost:8080".to_vec());
        let mut out: Vec<u8> = pieces.flat_map(|piece| stream.feed(&Bytes::copy_from_slice(piece))).collect();
        out.extend(stream.finish());
        out
    };
    let whole = rewritten(&mut std::iter::once(body));
    assert_eq!(rewritten(&mut body.chunks(usize::from(cut).max(1))), whole, "cuts do not matter");
    let is_json = |text: &[u8]| serde_json::from_slice::<serde_json::Value>(text).is_ok();
    assert_eq!(is_json(body), is_json(&whole), "JSON stays JSON, and nothing becomes it");
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_corpus() {
        crate::base::corpus::each("json", super::json);
    }
}
