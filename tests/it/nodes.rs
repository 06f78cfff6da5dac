//! Several upstream nodes of which one or all are bad: which requests fail, where requests go, and
//! how often they are sent.
//!
//! Each load is a fixed number of requests. What is judged are statuses and counters, never times.

mod bad;
mod checks;
mod choice;
mod queue;
mod retries;
mod tokens;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::Full;
use tokio::task::JoinSet;

use crate::common::{
    Client, LIMIT, Proxy, eventually,
    node::{Behaviour, Node},
    proxy,
    upstream::{self, RunningUpstream},
};

/// A proxy in front of nodes, with an issuer of its own.
struct Fleet {
    nodes: Vec<Node>,
    issuer: RunningUpstream,
    proxy: Proxy,
}

impl Fleet {
    /// Nodes that behave like this, and a proxy that is ready.
    async fn start(behaviours: &[Behaviour], more: &[(&str, &str)]) -> Self {
        let mut nodes = Vec::new();
        for behaviour in behaviours {
            nodes.push(Node::start(*behaviour).await);
        }
        Self::of(nodes, more).await
    }

    /// The same with nodes that speak HTTP/2 alone.
    async fn start_http2(behaviours: &[Behaviour], more: &[(&str, &str)]) -> Self {
        let mut nodes = Vec::new();
        for behaviour in behaviours {
            nodes.push(Node::start_http2(*behaviour).await);
        }
        let http2 = [("upstream.http2", "always")];
        Self::of(nodes, &[&http2, more].concat()).await
    }

    async fn of(nodes: Vec<Node>, more: &[(&str, &str)]) -> Self {
        let issuer = upstream::issuer().start().await;
        let origins: Vec<_> = nodes.iter().map(Node::origin).collect();
        let (origins, issuer_origin) = (origins.join(","), issuer.origin());
        let usual = [("token.issuer", issuer_origin.as_str())];
        let proxy = proxy(&origins, &[&usual, more].concat());
        proxy.ready().await;
        Self {
            nodes,
            issuer,
            proxy,
        }
    }

    /// Sends `count` requests from `clients` clients with a connection each, and waits for all.
    async fn load(
        &self,
        clients: usize,
        count: usize,
        request: impl Fn(usize) -> Request<Full<Bytes>> + Clone + Send + 'static,
    ) -> Tally {
        Load::start(self.proxy.address, clients, count, request)
            .finish()
            .await
    }

    /// Sends these GETs, one after the other.
    async fn get_times(&self, count: usize) -> Tally {
        self.load(1, count, |number| marked(&Method::GET, number))
            .await
    }

    /// Requests that all nodes received.
    fn received(&self) -> usize {
        self.nodes.iter().map(Node::count).sum()
    }

    /// Requests that each node received.
    fn counts(&self) -> Vec<usize> {
        self.nodes.iter().map(Node::count).collect()
    }

    /// Whether this node is in, as the metrics say.
    async fn is_in(&self, node: usize) -> bool {
        let origin = self.nodes[node].origin();
        let name = format!("bearer_proxy_endpoint_healthy{{endpoint=\"{origin}\"}}");
        self.proxy.metric(&name).await == 1.0
    }

    async fn until_in(&self, node: usize, is_in: bool) {
        eventually(&format!("node {node} is in: {is_in}"), async || {
            self.is_in(node).await == is_in
        })
        .await;
    }

    /// Sends GETs until this node is out. A failed request counts at the node for a second, so that a
    /// short load may be over before the fifth failure.
    async fn use_until_out(&self, node: usize) {
        eventually(&format!("node {node} is out"), async || {
            self.get_times(3).await.assert_all(200, 3);
            !self.is_in(node).await
        })
        .await;
    }

    /// Calls to the issuer after the first one.
    fn refreshes(&self) -> usize {
        self.issuer.count() - 1
    }
}

/// A request that the nodes can recognise by its target, which is `/` and its number.
fn marked(method: &Method, number: usize) -> Request<Full<Bytes>> {
    let body = match *method {
        Method::GET | Method::HEAD | Method::OPTIONS | Method::DELETE => Bytes::new(),
        _ => Bytes::from(format!("body {number}")),
    };
    Request::builder()
        .method(method)
        .uri(format!("/{number}"))
        .header(http::header::HOST, "localhost")
        .body(Full::new(body))
        .unwrap()
}

/// How often each status was seen; 0 stands for a response that was not complete.
#[derive(Debug, Default, PartialEq, Eq)]
struct Tally(BTreeMap<u16, usize>);

impl Tally {
    fn of(&self, status: u16) -> usize {
        self.0.get(&status).copied().unwrap_or_default()
    }

    fn assert_all(&self, status: u16, count: usize) {
        assert_eq!(self.0, BTreeMap::from([(status, count)]));
    }
}

/// Clients that send requests.
struct Load {
    clients: JoinSet<Tally>,
    tally: Tally,
}

impl Load {
    fn start(
        proxy: SocketAddr,
        clients: usize,
        count: usize,
        request: impl Fn(usize) -> Request<Full<Bytes>> + Clone + Send + 'static,
    ) -> Self {
        let next = Arc::new(AtomicUsize::new(0));
        let clients = (0..clients).map(|_| {
            let (next, request) = (Arc::clone(&next), request.clone());
            async move {
                let (mut tally, mut client) = (Tally::default(), None);
                loop {
                    let number = next.fetch_add(1, Relaxed);
                    if number >= count {
                        return tally;
                    }
                    let status = send(&mut client, proxy, request(number)).await;
                    *tally.0.entry(status).or_default() += 1;
                }
            }
        });
        Self {
            clients: clients.collect(),
            tally: Tally::default(),
        }
    }

    /// Waits until at most this many clients wait for a response, and the others have no request
    /// left to send.
    async fn until_waiting(&mut self, at_most: usize) {
        while self.clients.len() > at_most {
            let done = tokio::time::timeout(LIMIT, self.clients.join_next());
            let Ok(Some(done)) = done.await else {
                panic!("{} clients wait, not {at_most}", self.clients.len());
            };
            for (status, count) in done.unwrap().0 {
                *self.tally.0.entry(status).or_default() += count;
            }
        }
    }

    async fn finish(mut self) -> Tally {
        self.until_waiting(0).await;
        self.tally
    }
}

/// Sends a request over the client's connection, or over a new one. Returns the status.
async fn send(
    client: &mut Option<Client>,
    proxy: SocketAddr,
    request: Request<Full<Bytes>>,
) -> u16 {
    let mut current = match client.take() {
        Some(client) => client,
        None => Client::connect(proxy).await,
    };
    match current.send(request).await {
        Ok(response) => {
            if !response.headers().contains_key(http::header::CONNECTION) {
                *client = Some(current);
            }
            response.status().as_u16()
        }
        Err(_) => 0,
    }
}
