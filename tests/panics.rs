//! A panic fails one request, and is counted and logged; a panic in a task that must not end ends
//! the process. These tests are a separate crate: the panic hook and the count of panics belong to
//! the process.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

#[path = "it/common/mod.rs"]
#[allow(dead_code, reason = "the helpers of all integration tests")]
mod common;

use std::{
    panic,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    thread,
    time::{Duration, SystemTime},
};

use bearer_proxy::base::{
    clock::{self, Clock, Moment, SharedClock},
    panics,
};
use common::{
    Client, LIMIT, eventually, get, issuer, post, proxy_on, send,
    upstream::{Upstream, response},
    web::{self, Identity, Speech},
};
use http_body_util::BodyExt as _;

/// A faulty machine clock: it panics at one of the next reads by a thread with this name.
#[derive(Debug)]
struct Broken {
    works: SharedClock,
    thread: &'static str,
    looks: AtomicUsize,
}

impl Broken {
    fn new(thread: &'static str) -> Arc<Self> {
        Arc::new(Self {
            works: clock::system(),
            thread,
            looks: AtomicUsize::new(0),
        })
    }

    fn look(&self) {
        let is_meant = thread::current()
            .name()
            .is_some_and(|name| name.starts_with(self.thread));
        let left = is_meant.then(|| {
            self.looks
                .fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1))
        });
        assert_ne!(left, Some(Ok(1)), "a secret-like word");
    }
}

impl Clock for Broken {
    fn now(&self) -> Moment {
        self.look();
        self.works.now()
    }

    fn wall(&self) -> SystemTime {
        self.works.wall()
    }

    fn sleep_until(&self, deadline: Moment) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        self.works.sleep_until(deadline)
    }

    fn boot_id(&self) -> Option<&str> {
        self.works.boot_id()
    }
}

/// The count belongs to the process: one test runs at a time.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// Counts panics, and still prints those of failed tests.
fn watch() {
    let usual = panic::take_hook();
    panics::install_hook();
    let counting = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        counting(info);
        usual(info);
    }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_31_a_panic_costs_one_request_and_the_worker_lives() {
    let _alone = ALONE.lock().await;
    watch();
    let before = panics::count() as f64;
    // A body that may be JSON would be examined, at another read of the clock.
    let data = response("200 OK", "Content-Type: application/octet-stream\r\n", "");
    let upstream = Upstream::always(data).start().await;
    let clock = Broken::new("worker-");
    let issuer = issuer().await;
    let more = [("token.issuer", issuer.as_str()), ("proxy.workers", "1")];
    let proxy = proxy_on(Arc::<Broken>::clone(&clock), &upstream.origin(), &more);
    proxy.ready().await;

    let mut beside = Client::connect(proxy.address).await;
    assert_eq!(beside.send(get("/")).await.unwrap().status(), 200);

    // A panic before the response.
    clock.looks.store(1, SeqCst);
    let answer = proxy.send(post("/", "x".repeat(100_000))).await;
    assert_eq!(answer.status(), 500);
    assert_eq!(
        answer.headers()["proxy-status"],
        "bearer-proxy; error=proxy_internal_error"
    );
    assert_eq!(answer.headers()["connection"], "close");
    let words = String::from_utf8_lossy(answer.body());
    assert!(
        !words.contains("secret-like") && words.contains("its log"),
        "{words}"
    );
    assert_eq!(
        proxy.metric("bearer_proxy_panics_total").await,
        before + 1.0
    );
    assert_eq!(
        proxy
            .metric(r#"bearer_proxy_requests_rejected_total{reason="internal"}"#)
            .await,
        1.0
    );

    // A panic after the end of the response: the connection is lost.
    let mut lost = Client::connect(proxy.address).await;
    clock.looks.store(2, SeqCst);
    drop(lost.send(get("/")).await);
    eventually("the second panic", async || {
        proxy.metric("bearer_proxy_panics_total").await == before + 2.0
    })
    .await;
    assert!(lost.send(get("/")).await.is_err());

    // An HTTP/2 connection stays open.
    let mut shared = web::Client::connect(Speech::Http2, proxy.address, &Identity::new()).await;
    for (looks, expected) in [(0, 200), (1, 500), (2, 200), (0, 200)] {
        let panics = proxy.metric("bearer_proxy_panics_total").await;
        clock.looks.store(looks, SeqCst);
        let request = http::Request::get("/")
            .header("host", "localhost")
            .body(web::whole(""))
            .unwrap();
        let answer = tokio::time::timeout(LIMIT, shared.send(request))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(answer.status(), expected, "{looks}");
        drop(answer.into_body().collect().await);
        let new = f64::from(u8::from(looks > 0));
        eventually("the panic is counted", async || {
            proxy.metric("bearer_proxy_panics_total").await == panics + new
        })
        .await;
    }
    drop(shared);

    assert_eq!(
        beside.send(get("/")).await.unwrap().status(),
        200,
        "the other connection stays open"
    );
    assert_eq!(
        send(proxy.address, get("/")).await.status(),
        200,
        "the worker continues"
    );
    eventually("nothing is left of them", async || {
        proxy.metric("bearer_proxy_requests_in_flight").await == 0.0
            && proxy.metric("bearer_proxy_connections_open").await == 1.0
    })
    .await;
}

#[test]
fn a_panic_in_what_keeps_the_token_ends_the_app() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .thread_name("control")
        .enable_all()
        .build()
        .unwrap();
    let clock = Broken::new("control");
    let part = runtime.block_on(async {
        let _alone = ALONE.lock().await;
        let mut proxy = proxy_on(Arc::<Broken>::clone(&clock), &issuer().await, &[]);
        proxy.ready().await;
        clock.looks.store(1, SeqCst);
        let _ = proxy.app.credential().refresh_now();
        tokio::time::timeout(LIMIT, proxy.app.failed())
            .await
            .expect("the panic is reported")
    });
    assert_eq!(part, "the token refresher");
    runtime.shutdown_timeout(Duration::from_secs(1));
}
