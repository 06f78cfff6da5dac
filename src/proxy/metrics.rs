//! What one worker counts. Readers add the workers up.

use std::sync::Arc;

use http::StatusCode;

use crate::{
    base::counter::{Counter, Histogram},
    proxy::{
        Config, error,
        message::{observed::Observed, urls::Treatment},
        route,
    },
    upstream,
};

/// The numbers of one worker.
#[derive(Debug)]
pub struct Metrics {
    /// One for each route; the one that takes what no other does comes first.
    routes: Vec<Answers>,
    /// One for each client.
    clients: Vec<Answers>,
    /// From a request's head to the end of its answer.
    pub duration: Histogram,
    /// Requests whose answer is not complete yet.
    pub in_flight: Counter,
    /// Bytes read from clients.
    pub received_bytes: Counter,
    /// Bytes written to clients.
    pub sent_bytes: Counter,
    /// Streams that were refused since their connection had too many.
    pub streams_refused: Counter,
    /// Client connections.
    pub connections_open: Counter,
    /// Upgraded connections.
    pub tunnels_open: Counter,
    /// Client connections that were turned away, by [`CONNECTION_REJECTIONS`].
    pub connections_rejected: [Counter; CONNECTION_REJECTIONS.len()],
    late: [Counter; CLIENT_TIMEOUTS.len()],
    rejected: [Counter; error::LABELS.len()],
    /// JSON answers whose addresses were brought home.
    pub rewritten: Counter,
    /// JSON answers that could not be observed_rate into, since they are compressed.
    pub coded: Counter,
    retries: [[Counter; RETRY_OUTCOMES.len()]; RETRY_REASONS.len()],
    /// What JSON answers tell that the configuration does not handle.
    pub seen: Observed,
    /// One for each origin that an upstream names as an endpoint, in the order of the configuration.
    pub endpoints: Vec<Endpoint>,
}

/// Answers on one route, or to one client.
#[derive(Debug)]
struct Answers {
    label: String,
    by_status: Vec<Counter>,
}

/// The numbers of one endpoint.
#[derive(Debug)]
pub struct Endpoint {
    /// Where it is: `scheme://host[:port]`.
    pub origin: String,
    /// Its connections.
    pub connections: Arc<upstream::Counters>,
    errors: [Counter; UPSTREAM_ERRORS.len()],
}

/// Values of the label `reason` of `connections_rejected_total`.
pub const CONNECTION_REJECTIONS: [&str; 6] = [
    "max_connections",
    "accept_failed",
    "bytes_before_upgrade",
    "tls_handshake",
    "max_connections_per_address",
    "http2_flood",
];

/// Why a client's connection was turned away.
#[derive(Debug, Clone, Copy)]
pub(crate) enum ConnectionRejection {
    Full = 0,
    AcceptFailed = 1,
    BytesBeforeUpgrade = 2,
    Handshake = 3,
    FullForAddress = 4,
    Flood = 5,
}

impl ConnectionRejection {
    pub(crate) fn label(self) -> &'static str {
        CONNECTION_REJECTIONS[self as usize]
    }

    /// What the log says.
    pub(crate) fn words(self) -> &'static str {
        match self {
            Self::Full => "a connection is turned away: there are too many (proxy.max_connections)",
            Self::FullForAddress => {
                "a connection is turned away: there are too many of its address (proxy.max_connections_per_address)"
            }
            Self::AcceptFailed => "cannot accept connections; trying again in a moment",
            Self::BytesBeforeUpgrade => {
                "a connection is closed: its client went on before the upgrade was agreed on"
            }
            Self::Handshake => "a client and this listener did not agree on TLS",
            Self::Flood => {
                "a connection is closed: a flood of HTTP/2 frames (proxy.max_control_frames) or resets (proxy.max_resets)"
            }
        }
    }
}

/// Values of the label `limit` of `clients_late_total`: keys of `[proxy]`.
const CLIENT_TIMEOUTS: [&str; 6] = [
    "first_byte_timeout",
    "head_timeout",
    "body_idle_timeout",
    "min_body_rate",
    "idle_timeout",
    "tunnel_idle_timeout",
];

/// What a client was late with when its connection was closed, or its stream reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ClientTimeout {
    FirstByte = 0,
    Head = 1,
    /// Of its own, or of ours that it did not take.
    Body = 2,
    Trickle = 3,
    Idle = 4,
    Tunnel = 5,
}

/// Values of the label `error` of `upstream_errors_total`.
pub const UPSTREAM_ERRORS: [&str; 9] = [
    "connect_timeout",
    "resolve",
    "connect_refused",
    "tls",
    "connections_full",
    "response_timeout",
    "broken_off",
    "invalid_answer",
    "truncated",
];

/// Values of the label `reason` of `retries_total`.
pub const RETRY_REASONS: [&str; 2] = ["unauthorized", "connection_lost"];

/// Values of the label `outcome` of `retries_total`.
pub const RETRY_OUTCOMES: [&str; 6] = [
    "accepted",
    "rejected",
    "failed",
    "no_newer_token",
    "cooldown",
    "body_not_kept",
];

/// Why a request was, or should have been, sent again.
#[derive(Debug, Clone, Copy)]
pub(crate) enum RetryReason {
    Unauthorized = 0,
    ConnectionLost = 1,
}

/// What came of it.
#[derive(Debug, Clone, Copy)]
pub(crate) enum RetryOutcome {
    Accepted = 0,
    Rejected = 1,
    Failed = 2,
    NoNewerToken = 3,
    Cooldown = 4,
    BodyNotKept = 5,
}

impl Metrics {
    pub(crate) fn new(origins: &[String], config: &Config) -> Self {
        let labels =
            std::iter::once("default".to_owned()).chain(config.routes.iter().map(route::label));
        Self {
            routes: labels.map(Answers::new).collect(),
            clients: config
                .clients
                .iter()
                .map(|client| Answers::new(client.name.clone()))
                .collect(),
            duration: Histogram::default(),
            in_flight: Counter::default(),
            received_bytes: Counter::default(),
            sent_bytes: Counter::default(),
            streams_refused: Counter::default(),
            connections_open: Counter::default(),
            tunnels_open: Counter::default(),
            connections_rejected: Default::default(),
            late: Default::default(),
            rejected: Default::default(),
            rewritten: Counter::default(),
            coded: Counter::default(),
            retries: Default::default(),
            seen: Observed::default(),
            endpoints: origins.iter().cloned().map(Endpoint::new).collect(),
        }
    }

    /// Counts an answer, by the positions of its route and of whose it is.
    pub(crate) fn answered(&self, route: usize, client: Option<usize>, status: StatusCode) {
        let client = client.and_then(|client| self.clients.get(client));
        for answers in self.routes.get(route).into_iter().chain(client) {
            if let Some(counter) = answers.by_status.get(usize::from(status.as_u16()) - 100) {
                counter.add(1);
            }
        }
    }

    pub(crate) fn refused(&self, error: &error::Error) {
        self.rejected[error.index()].add(1);
    }

    pub(crate) fn late(&self, lateness: ClientTimeout) {
        self.late[lateness as usize].add(1);
    }

    pub(crate) fn retried(&self, reason: RetryReason, outcome: RetryOutcome) {
        self.retries[reason as usize][outcome as usize].add(1);
    }

    /// The numbers of the endpoint at this origin.
    pub fn endpoint(&self, origin: &str) -> Option<&Endpoint> {
        self.endpoints
            .iter()
            .find(|endpoint| endpoint.origin == origin)
    }

    pub(crate) fn treated(&self, treatment: Treatment) {
        match treatment {
            Treatment::Untouched => {}
            Treatment::Encoded => self.coded.add(1),
            Treatment::Rewritten => self.rewritten.add(1),
        }
    }

    /// Counts a failure of the endpoint at this origin.
    pub(crate) fn upstream_failed(&self, origin: &str, label: &str) {
        let label = UPSTREAM_ERRORS.iter().position(|known| *known == label);
        if let (Some(endpoint), Some(label)) = (self.endpoint(origin), label) {
            endpoint.errors[label].add(1);
        }
    }

    /// Answers by route and status code; only the codes that occurred.
    pub fn by_route(&self) -> impl Iterator<Item = (&str, usize, u64)> + '_ {
        self.routes.iter().flat_map(Answers::by_status)
    }

    /// Answers by client and status code; only the codes that occurred.
    pub fn by_client(&self) -> impl Iterator<Item = (&str, usize, u64)> + '_ {
        self.clients.iter().flat_map(Answers::by_status)
    }

    /// Answers of our own, by reason.
    pub fn rejected(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        error::LABELS
            .into_iter()
            .zip(self.rejected.iter().map(Counter::value))
    }

    /// Connections and streams that ended because their client was late, by the key whose limit had passed.
    pub fn client_timeouts(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        CLIENT_TIMEOUTS
            .into_iter()
            .zip(self.late.iter().map(Counter::value))
    }

    /// Requests sent again, by reason and outcome.
    pub fn retries(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> + '_ {
        RETRY_REASONS
            .into_iter()
            .zip(&self.retries)
            .flat_map(|(reason, counters)| {
                RETRY_OUTCOMES
                    .into_iter()
                    .zip(counters)
                    .map(move |(outcome, counter)| (reason, outcome, counter.value()))
            })
    }
}

impl Answers {
    fn new(label: String) -> Self {
        Self {
            label,
            by_status: (100..1000).map(|_| Counter::default()).collect(),
        }
    }

    fn by_status(&self) -> impl Iterator<Item = (&str, usize, u64)> + '_ {
        let counted = self.by_status.iter().zip(100..);
        let counted = counted.map(|(counter, code)| (self.label.as_str(), code, counter.value()));
        counted.filter(|(_, _, n)| *n > 0)
    }
}

impl Endpoint {
    fn new(origin: String) -> Self {
        Self {
            origin,
            connections: Arc::default(),
            errors: Default::default(),
        }
    }

    /// Failures, by kind.
    pub fn errors(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        UPSTREAM_ERRORS
            .into_iter()
            .zip(self.errors.iter().map(Counter::value))
    }
}
