//! The counters of one worker. Readers add the workers up.
//!
//! Each is found by what it counts: by a label's value, by the name of a route or a client, by the
//! origin of an endpoint; never by a position in the configuration, which another one would shift.

use std::sync::Arc;

use http::StatusCode;
use parking_lot::Mutex;

use crate::{
    base::{
        counter::{Counter, Histogram},
        labels::{PerLabel, labels},
    },
    proxy::{
        error::RejectionReason,
        message::{observed::Observed, urls::BodyRewrite},
    },
    upstream,
};

/// The counters of one worker.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Responses, by route.
    pub routes: Named<StatusCounters>,
    /// Responses, by client.
    pub clients: Named<StatusCounters>,
    /// From a request's head to the end of its response.
    pub duration: Histogram,
    /// Requests whose response is not complete yet.
    pub in_flight: Counter,
    /// Bytes read from clients.
    pub received_bytes: Counter,
    /// Bytes written to clients.
    pub sent_bytes: Counter,
    /// HTTP/2 streams that were refused because their connection had too many.
    pub streams_refused: Counter,
    /// Client connections.
    pub connections_open: Counter,
    /// Upgraded connections.
    pub tunnels_open: Counter,
    /// Client connections that were closed or not accepted.
    pub connections_rejected: PerLabel<ConnectionRejection, Counter>,
    /// Connections and streams that ended because a limit for their client had passed.
    pub client_timeouts: PerLabel<ClientTimeout, Counter>,
    /// Error responses of this proxy's own.
    pub rejected: PerLabel<RejectionReason, Counter>,
    /// JSON responses whose addresses were mapped.
    pub rewritten: Counter,
    /// JSON responses that could not be read because they are compressed.
    pub encoded: Counter,
    /// Requests sent again, or that should have been.
    pub retries: PerLabel<RetryReason, PerLabel<RetryOutcome, Counter>>,
    /// What JSON responses contain that the configuration does not handle.
    pub observed: Observed,
    /// Endpoints, by origin (`scheme://host[:port]`).
    pub endpoints: Named<upstream::Counters>,
}

/// Counters by name, created when a name is first asked for. Not for the request path: what that
/// counts with is looked up once and kept.
#[derive(Debug)]
pub struct Named<T>(Mutex<Vec<(String, Arc<T>)>>);

/// Responses by status code.
#[derive(Debug)]
pub struct StatusCounters([Counter; STATUS_CODES]);

const FIRST_STATUS_CODE: usize = 100;
const STATUS_CODES: usize = 1000 - FIRST_STATUS_CODE;

labels! {
    /// Values of the label `reason` of `connections_rejected_total`.
    pub enum ConnectionRejection {
        /// `proxy.max_connections` are open.
        Full => "max_connections",
        /// The system refused to accept.
        AcceptFailed => "accept_failed",
        /// The client sent more before the upgrade was agreed on.
        BytesBeforeUpgrade => "bytes_before_upgrade",
        /// The TLS handshake failed.
        Handshake => "tls_handshake",
        /// `proxy.max_connections_per_address` are open.
        FullForAddress => "max_connections_per_address",
        /// Too many control frames or resets.
        Flood => "http2_flood",
        /// A PROXY header is missing, malformed, too large or too late.
        ProxyHeader => "proxy_header",
        /// A listener with the PROXY protocol serves `proxy.trusted_networks` alone.
        UntrustedPeer => "untrusted_peer",
    }
}

impl ConnectionRejection {
    /// The log message.
    pub(crate) fn message(self) -> &'static str {
        match self {
            Self::Full => "a connection is rejected: too many are open (proxy.max_connections)",
            Self::FullForAddress => {
                "a connection is rejected: too many are open from its address (proxy.max_connections_per_address)"
            }
            Self::AcceptFailed => "cannot accept connections; trying again in a moment",
            Self::BytesBeforeUpgrade => {
                "a connection is closed: its client sent more before the upgrade was agreed on"
            }
            Self::Handshake => "the TLS handshake with a client failed",
            Self::ProxyHeader => {
                "a connection of a load balancer is closed: proxy_protocol requires a PROXY header (as with send-proxy-v2 in HAProxy)"
            }
            Self::UntrustedPeer => {
                "a connection is closed: where proxy_protocol is set, only proxy.trusted_networks may connect"
            }
            Self::Flood => {
                "a connection is closed: a flood of HTTP/2 frames (proxy.max_control_frames) or resets (proxy.max_resets)"
            }
        }
    }
}

labels! {
    /// Values of the label `limit` of `clients_late_total`: the keys of `[proxy]` whose limit passed
    /// when a connection was closed, or a stream reset.
    pub enum ClientTimeout {
        /// No byte of a request came.
        FirstByte => "first_byte_timeout",
        /// A request's head did not end.
        Head => "head_timeout",
        /// The client stopped sending its request's body, or reading its response.
        Body => "body_idle_timeout",
        /// The client sent its request's body too slowly.
        BodyRate => "min_body_rate",
        /// No next request came.
        Idle => "idle_timeout",
        /// A client that had closed its side took nothing of its response.
        HalfClosed => "half_closed_timeout",
        /// Nothing moved through an upgraded connection.
        Tunnel => "tunnel_idle_timeout",
    }
}

labels! {
    /// Values of the label `reason` of `retries_total`.
    pub enum RetryReason {
        /// The upstream rejected the token.
        Unauthorized => "unauthorized",
        /// The upstream rejected a token that it accepted before: it is asked once more, over
        /// another connection.
        OtherConnection => "other_connection",
        /// The connection closed before its response began, or the upstream states that it did not
        /// process the request.
        ConnectionLost => "connection_lost",
        /// The address that was chosen did not accept a connection: another one was dialled.
        Unreachable => "unreachable",
        /// The response has one of `upstream.retry_statuses`.
        Status => "status",
    }
}

labels! {
    /// Values of the label `outcome` of `retries_total`.
    pub enum RetryOutcome {
        /// The second attempt was not rejected.
        Accepted => "accepted",
        /// The second attempt was rejected as well.
        Rejected => "rejected",
        /// The second attempt failed.
        Failed => "failed",
        /// No newer token came in time.
        NoNewerToken => "no_newer_token",
        /// A fresh token did not help the same request a short time ago.
        Cooldown => "cooldown",
        /// The request's body could not be sent again.
        BodyNotKept => "body_not_kept",
        /// Too many requests were sent again in the last seconds.
        BudgetExhausted => "budget_exhausted",
    }
}

impl Metrics {
    pub(crate) fn retried(&self, reason: RetryReason, outcome: RetryOutcome) {
        self.retries[reason][outcome].add(1);
    }

    /// Links of other sites that were not followed.
    pub fn rejected_links(&self) -> u64 {
        self.rejected[RejectionReason::ForeignNavigation].value()
    }

    pub(crate) fn body_rewritten(&self, body_rewrite: BodyRewrite) {
        match body_rewrite {
            BodyRewrite::None => {}
            BodyRewrite::Encoded => self.encoded.add(1),
            BodyRewrite::Rewritten => self.rewritten.add(1),
        }
    }
}

impl<T> Default for Named<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T: Default> Named<T> {
    /// The counters of this name.
    pub fn get(&self, name: &str) -> Arc<T> {
        let mut all = self.0.lock();
        if let Some((_, counters)) = all.iter().find(|(known, _)| known == name) {
            return Arc::clone(counters);
        }
        let counters = Arc::<T>::default();
        all.push((name.to_owned(), Arc::clone(&counters)));
        counters
    }

    /// All names and their counters, in the order in which they were first asked for.
    pub fn all(&self) -> Vec<(String, Arc<T>)> {
        self.0.lock().clone()
    }
}

impl Default for StatusCounters {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Counter::default()))
    }
}

impl StatusCounters {
    /// Counts one response.
    pub(crate) fn count(&self, status: StatusCode) {
        // A status code has three digits.
        if let Some(counter) = self.0.get(usize::from(status.as_u16()) - FIRST_STATUS_CODE) {
            counter.add(1);
        }
    }

    /// The status codes that occurred, and how often.
    pub fn by_code(&self) -> impl Iterator<Item = (usize, u64)> + '_ {
        let counted = (FIRST_STATUS_CODE..).zip(self.0.iter().map(Counter::value));
        counted.filter(|(_, n)| *n > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_found_by_name_and_made_once() {
        let named = Named::<StatusCounters>::default();
        named.get("/b").count(StatusCode::OK);
        named.get("/a").count(StatusCode::NOT_FOUND);
        named.get("/b").count(StatusCode::OK);
        let counted: Vec<_> = named
            .all()
            .iter()
            .map(|(name, counters)| (name.clone(), counters.by_code().collect::<Vec<_>>()))
            .collect();
        assert_eq!(
            counted,
            [
                ("/b".to_owned(), vec![(200, 2)]),
                ("/a".to_owned(), vec![(404, 1)])
            ]
        );
    }

    #[test]
    fn every_status_code_has_a_counter() {
        let counters = StatusCounters::default();
        for code in [100, 999] {
            counters.count(StatusCode::from_u16(code).unwrap());
        }
        assert_eq!(counters.by_code().collect::<Vec<_>>(), [(100, 1), (999, 1)]);
    }
}
