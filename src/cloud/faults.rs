//! What can go wrong at a cloud, on demand.

use std::{collections::VecDeque, time::Duration};

use crate::base::clock::Moment;

/// What the cloud does wrong from now on. The default is nothing.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    /// How the next calls of the token interfaces are answered, one entry a call; when empty, properly.
    pub issuer_script: VecDeque<IssuerAnswer>,
    /// Time that each call of a token interface takes, before anything is granted.
    pub issuer_latency: Duration,
    /// Time that each call of a file interface takes.
    pub files_latency: Duration,
    /// Until this moment, every bearer token is refused.
    pub reject_until: Option<Moment>,
    /// So many calls of file interfaces are refused, whatever their bearer token.
    pub reject_next: u32,
    /// Calls whose path begins with one of these are refused, whatever their bearer token.
    pub reject_paths: Vec<String>,
    /// A refusal is an HTTP 200 with `{"success":false,"code":401}` in the body.
    pub in_body_failures: bool,
    /// A `POST` with a bad bearer token is answered as soon as its head is there; its body is left unread and the
    /// connection closed. Otherwise the body is read first.
    pub early_401: bool,
}

/// A scripted answer of a token interface. Nothing is granted or spent by such a call.
#[derive(Debug, Clone)]
pub enum IssuerAnswer {
    /// This status with a short JSON body and, if given, a `Retry-After` of so many seconds.
    Status(u16, Option<u64>),
    /// Silence until the caller gives up.
    Hang,
    /// Exactly this. What cannot be a status, a header name or a value is left out.
    Raw {
        /// The status.
        status: u16,
        /// Names and values.
        headers: Vec<(String, String)>,
        /// The body.
        body: Vec<u8>,
    },
    /// A 200 whose JSON never ends.
    Endless,
}

impl Faults {
    /// The next `calls` of a token interface are answered like this.
    pub fn script(&mut self, answer: &IssuerAnswer, calls: usize) {
        self.issuer_script
            .extend(std::iter::repeat_n(answer.clone(), calls));
    }

    /// Nothing goes wrong any more.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Whether this call is to be refused, whatever its token; counts it.
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
