//! The log of calls to the issuer. This test is a separate crate: a subscriber of the whole process
//! receives the events of all threads and libraries.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

#[path = "it/common/mod.rs"]
#[allow(dead_code, reason = "the helpers of all integration tests")]
mod common;

use std::{io, sync::Mutex};

use common::{
    closed_address,
    issuer_client::{GRANT, assert_no_secret, call, config},
    upstream::{Upstream, bytes, ok, response},
};

static LOG: Mutex<Vec<u8>> = Mutex::new(Vec::new());

struct Sink;

impl io::Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        LOG.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn no_secret_is_logged_at_any_level() {
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_ansi(false)
        .with_writer(|| Sink)
        .init();
    for reply in [
        ok(GRANT),
        ok("{}"),
        response("500 Oops", "", ""),
        bytes("garbage").close(),
    ] {
        let issuer = Upstream::always(reply).start().await;
        let _ = call(&config(&issuer.origin())).await;
    }
    let _ = call(&config(&format!("http://{}", closed_address()))).await;
    tracing::trace!("the last event");
    let log = String::from_utf8(LOG.lock().unwrap().clone()).unwrap();
    assert!(
        log.contains("the last event"),
        "events are not captured: {log}"
    );
    assert_no_secret(&log);
}
