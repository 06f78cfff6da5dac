//! Active health checks of upstreams (`upstream.health`).

use std::sync::{
    Arc,
    atomic::{AtomicU16, AtomicUsize, Ordering::SeqCst},
};

use crate::common::{
    Proxy, eventually, issuer, proxy,
    upstream::{Reply, Request, RunningUpstream, Upstream, ok, response},
};

/// A node whose `/health` has the status that it is given; it serves everything else.
struct Node {
    upstream: RunningUpstream,
    status: Arc<AtomicU16>,
}

impl Node {
    async fn start(status: u16) -> Self {
        let status = Arc::new(AtomicU16::new(status));
        let current = Arc::clone(&status);
        let health = move |_: &Request| -> Reply {
            response(&format!("{} X", current.load(SeqCst)), "", "")
        };
        let upstream = Upstream::new().on("/health", health).on("*", ok("ok"));
        Self {
            upstream: upstream.start().await,
            status,
        }
    }

    fn responds(&self, status: u16) {
        self.status.store(status, SeqCst);
    }

    fn requests(&self, path: &str) -> Vec<Request> {
        let all = self.upstream.requests();
        all.into_iter().filter(|one| one.path() == path).collect()
    }

    /// How many of ten requests to the proxy reach the node. All are served.
    async fn share(&self, proxy: &Proxy) -> usize {
        let before = self.requests("/x").len();
        for _ in 0..10 {
            assert_eq!(proxy.get("/x").await.status(), 200);
        }
        self.requests("/x").len() - before
    }

    /// Waits until the node gets no request. Workers learn of it one after the other.
    async fn is_out(&self, proxy: &Proxy) {
        eventually("the node is out", async || self.share(proxy).await == 0).await;
    }

    /// Waits until this many more checks have ended.
    async fn is_checked(&self, count: usize) {
        let before = self.requests("/health").len();
        eventually("checks are sent", async || {
            self.requests("/health").len() > before + count
        })
        .await;
    }
}

async fn in_front_of(nodes: &[&Node], more: &[(&str, &str)]) -> Proxy {
    let origins: Vec<_> = nodes.iter().map(|node| node.upstream.origin()).collect();
    let (origins, issuer) = (origins.join(","), issuer().await);
    let usual = [
        ("token.issuer", issuer.as_str()),
        ("upstream.slow_start", "0s"),
        ("upstream.health.path", "/health"),
        ("upstream.health.interval", "20ms"),
    ];
    let proxy = proxy(&origins, &[&usual, more].concat());
    proxy.ready().await;
    proxy
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_checks_fail_gets_no_request_until_they_succeed() {
    let (good, bad) = (Node::start(401).await, Node::start(200).await);
    let proxy = in_front_of(&[&good, &bad], &[]).await;
    // A 401 is a sign of life.
    good.is_checked(5).await;
    bad.is_checked(5).await;
    assert!(bad.share(&proxy).await > 0);

    bad.responds(500);
    bad.is_out(&proxy).await;
    // It is checked all the same.
    bad.is_checked(5).await;
    assert_eq!(bad.share(&proxy).await, 0);

    bad.responds(200);
    eventually("the node is in", async || bad.share(&proxy).await > 0).await;

    for check in bad.requests("/health") {
        assert_eq!(check.method(), "GET");
        assert_eq!(check.fields("authorization"), [""; 0], "{}", check.head);
        let agent = check.fields("user-agent").concat();
        assert!(agent.starts_with("bearer-proxy/"), "{agent}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_serve_although_all_checks_fail() {
    let (one, other) = (Node::start(500).await, Node::start(500).await);
    for nodes in [&[&one, &other][..], &[&one]] {
        let proxy = in_front_of(nodes, &[]).await;
        for node in nodes {
            node.is_checked(5).await;
        }
        one.share(&proxy).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_expected_statuses_are_healthy() {
    let (good, bad) = (Node::start(204).await, Node::start(401).await);
    let expect = [("upstream.health.expect", "2xx")];
    let proxy = in_front_of(&[&good, &bad], &expect).await;
    bad.is_out(&proxy).await;
    assert_eq!(good.share(&proxy).await, 10);
}

/// Failures count in a row.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_single_failed_check_takes_no_node_out() {
    let good = Node::start(200).await;
    let checks = AtomicUsize::new(0);
    let every_third_fails = move |_: &Request| match checks.fetch_add(1, SeqCst) % 3 {
        0 => response("500 X", "", ""),
        _ => ok(""),
    };
    let upstream = Upstream::new().on("/health", every_third_fails);
    let flapping = Node {
        upstream: upstream.start().await,
        status: Arc::default(),
    };
    let fall = [("upstream.health.fall", "2")];
    let proxy = in_front_of(&[&good, &flapping], &fall).await;
    while flapping.requests("/health").len() < 9 {
        assert!(flapping.share(&proxy).await > 0);
    }
}
