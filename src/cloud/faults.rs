//! Faults that a simulated cloud shows on demand.

use std::{collections::VecDeque, time::Duration};

use crate::base::clock::Moment;

/// The faults from now on; by default none.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    /// The responses to the next calls of the token interfaces, one entry a call. When empty, they
    /// work.
    pub issuer_script: VecDeque<IssuerResponse>,
    /// Delay of each call of a token interface, before tokens are granted.
    pub issuer_latency: Duration,
    /// Delay of each call of a file interface.
    pub files_latency: Duration,
    /// Until this moment, every bearer token is rejected.
    pub reject_until: Option<Moment>,
    /// The number of calls of file interfaces to reject, whatever their bearer token.
    pub reject_next: u32,
    /// Calls whose path begins with one of these are rejected, whatever their bearer token.
    pub reject_paths: Vec<String>,
    /// A rejection is an HTTP 200 with `{"success":false,"code":401}` in the body.
    pub in_body_failures: bool,
    /// The response to a `POST` with a bad bearer token is sent right after the request's head; the
    /// body is not read, and the connection closes. Otherwise the body is read first.
    pub early_401: bool,
}

/// A scripted response of a token interface. Such a call neither grants nor spends anything.
#[derive(Debug, Clone)]
pub enum IssuerResponse {
    /// This status with a short JSON body and, if given, a `Retry-After` of this many seconds.
    Status(u16, Option<u64>),
    /// No response, until the client closes the connection.
    Hang,
    /// Exactly this. An illegal status becomes 500; illegal header names and values are left out.
    Raw {
        /// The status.
        status: u16,
        /// Names and values.
        headers: Vec<(String, String)>,
        /// The body.
        body: Vec<u8>,
    },
    /// A 200 whose JSON does not end.
    Endless,
}

impl Faults {
    /// The next `calls` of a token interface get this response.
    pub fn script(&mut self, answer: &IssuerResponse, calls: usize) {
        self.issuer_script
            .extend(std::iter::repeat_n(answer.clone(), calls));
    }

    /// Removes all faults.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Whether to reject this call whatever its token. Counts down `reject_next`.
    pub(super) fn rejects(&mut self, path: &str, now: Moment) -> bool {
        if self.reject_next > 0 {
            self.reject_next -= 1;
            return true;
        }
        self.reject_until.is_some_and(|until| now < until)
            || self
                .reject_paths
                .iter()
                .any(|prefix| path.starts_with(prefix.as_str()))
    }
}
