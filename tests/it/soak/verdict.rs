//! Whether the result of a request is right, and whether a failure has an explanation.

use std::{collections::BTreeMap, fmt, time::Duration};

use http::StatusCode;

use super::{
    Lane,
    apps::{App, Got, Sent},
    cloud::{Attempt, Outcome},
};

/// After the end of a fault, the proxy has a token again within this time: the longest backoff, and
/// the time for a call.
const RECOVERY: Duration = Duration::from_secs(12);

/// Why a failure is right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Why {
    /// 401 of the path that always refuses.
    AlwaysRefused,
    /// 401: every attempt met the node that refuses every token, and there were several.
    FaultyNode,
    /// 401: that node refused a request like this one under a new token a short time ago.
    Futile,
    /// 401: the token is revoked, and the issuer grants no other one.
    NoNewToken,
    /// 503: there is no valid token, and the issuer grants none.
    NoToken,
    /// 401 or 503: the process was stopped for longer than a request waits for a token.
    Pause,
    /// 502, or the end of the connection: the cloud closed its connection, and the request cannot
    /// be sent again, or was sent again and met the same.
    CutByCloud,
    /// 502: a POST met the end of an idle connection, and did not arrive.
    IdleClose,
    /// The cloud closed its connection within a response, and the app notices it.
    CutInBody,
    /// The connection to the proxy ended, or none could be opened, while it was restarted.
    Restart,
    /// The same while it was killed.
    Kill,
}

impl Why {
    pub const ALL: [Self; 11] = [
        Self::AlwaysRefused,
        Self::FaultyNode,
        Self::Futile,
        Self::NoNewToken,
        Self::NoToken,
        Self::Pause,
        Self::CutByCloud,
        Self::IdleClose,
        Self::CutInBody,
        Self::Restart,
        Self::Kill,
    ];
}

/// Results that take longer are logged.
const SLOW: Duration = Duration::from_secs(12);

/// The results of a lane.
#[derive(Debug, Default)]
pub struct Tally {
    pub ok: u64,
    pub explained: BTreeMap<Why, u64>,
    /// Unexplained results by their kind.
    pub unexplained: BTreeMap<String, u64>,
}

/// Classifies a result, counts it, and logs it if it has no explanation.
pub fn judge(lane: &Lane, sent: &Sent, got: &Got) {
    let attempts = lane.cloud.take_attempts(sent.id);
    let class = class(lane, sent, got, &attempts);
    let duration = sent.at.elapsed();
    if duration > SLOW {
        lane.note(&format!(
            "slow: {sent:?} -> {got} after {duration:.1?}: {attempts:?}"
        ));
    }
    let mut tally = lane.tally.lock().unwrap();
    match class {
        Ok(None) => tally.ok += 1,
        Ok(Some(why)) => *tally.explained.entry(why).or_default() += 1,
        Err(problem) => {
            drop(tally);
            lane.note(&format!("{sent:?} -> {got} after {duration:.1?}"));
            lane.note(&format!("its attempts: {attempts:?}"));
            lane.unexplained(&problem);
        }
    }
}

fn class(lane: &Lane, sent: &Sent, got: &Got, attempts: &[Attempt]) -> Result<Option<Why>, String> {
    let applied = attempts.iter().filter(|attempt| attempt.is_applied());
    if !sent.is_idempotent() && applied.count() > 1 {
        return Err("a POST was applied twice".to_owned());
    }
    let explained = match got {
        Got::Response(StatusCode::OK, body) => {
            return if sent.app == App::Forbidden {
                Err("a 200 for a refused request".to_owned())
            } else if *body == sent.expected() {
                Ok(None)
            } else {
                Err("the content differs".to_owned())
            };
        }
        Got::Response(StatusCode::UNAUTHORIZED, _) => explain_401(lane, sent, attempts),
        Got::Response(StatusCode::SERVICE_UNAVAILABLE, _) => explain_503(lane),
        Got::Response(StatusCode::BAD_GATEWAY, _) | Got::Broken(_) | Got::Truncated => {
            explain_cut(lane, sent, got, attempts)
        }
        Got::Response(status, _) => Err(status.to_string()),
        Got::NoConnection(error) => Err(format!("no connection: {error}")),
        Got::TimedOut => Err("no response".to_owned()),
    };
    let is_connection = matches!(
        got,
        Got::Broken(_) | Got::Truncated | Got::NoConnection(_) | Got::TimedOut
    );
    match explained {
        Ok(why) => Ok(Some(why)),
        Err(problem) if is_connection => {
            let interruption = lane.outages.lock().unwrap().interruption(sent.at);
            interruption.map(Some).ok_or(problem)
        }
        Err(problem) => Err(problem),
    }
}

fn explain_401(lane: &Lane, sent: &Sent, attempts: &[Attempt]) -> Result<Why, String> {
    // A request may be sent again after its refusal, if it may be applied twice; if that attempt
    // breaks, the refusal is what is known.
    let is_repeatable = |attempt: &&Attempt| attempt.is_refused() || !sent.is_idempotent();
    let Some(last) = attempts.iter().rev().find(is_repeatable) else {
        return Err("401: not of the cloud".to_owned());
    };
    let is_applied = |attempt: &Attempt| {
        attempt.outcome == Outcome::Applied || !sent.is_idempotent() && attempt.is_applied()
    };
    if attempts.iter().any(is_applied) || !last.is_refused() {
        return Err("401: an attempt may have been applied".to_owned());
    }
    // Other refusals of that path are relayed as well.
    if sent.app == App::Forbidden {
        return Ok(Why::AlwaysRefused);
    }
    let issuer = lane.issuer.lock().unwrap();
    let had_fault = issuer.fault_free() < RECOVERY;
    if last.outcome == Outcome::RefusedByFaultyNode {
        // A body over the limit is not kept, so it cannot be sent again.
        return if attempts.len() > 1 || sent.size > BODY_LIMIT {
            Ok(Why::FaultyNode)
        } else if lane.cloud.refused_replay(lane) {
            Ok(Why::Futile)
        } else if lane.process.was_stopped(lane) {
            Ok(Why::Pause)
        } else if issuer.is_client_refused || !last.was_accepted && had_fault {
            Ok(Why::NoNewToken)
        } else {
            Err("401: refused by the faulty node, and not sent again".to_owned())
        };
    }
    match issuer.settled_token() {
        Some(newest) if newest != last.token && lane.process.was_stopped(lane) => Ok(Why::Pause),
        Some(newest) if newest != last.token => Err("401: a newer token is valid".to_owned()),
        Some(_) => Err("401: the token is valid".to_owned()),
        None if had_fault => Ok(Why::NoNewToken),
        None => Err("401: no new token although the issuer grants".to_owned()),
    }
}

fn explain_503(lane: &Lane) -> Result<Why, String> {
    let issuer = lane.issuer.lock().unwrap();
    if issuer.settled_token().is_some() && lane.process.was_stopped(lane) {
        Ok(Why::Pause)
    } else if issuer.settled_token().is_some() {
        Err("503: a token is valid".to_owned())
    } else if issuer.fault_free() < RECOVERY {
        Ok(Why::NoToken)
    } else {
        Err("503: no token although the issuer grants".to_owned())
    }
}

fn explain_cut(lane: &Lane, sent: &Sent, got: &Got, attempts: &[Attempt]) -> Result<Why, String> {
    let is_truncated = matches!(got, Got::Truncated);
    let Some(last) = attempts.last() else {
        let raced = !sent.is_idempotent() && lane.cloud.closed_idle_connection(lane);
        return if raced && !is_truncated {
            Ok(Why::IdleClose)
        } else {
            Err(format!("{}: no attempt arrived", kind(got)))
        };
    };
    match last.outcome {
        Outcome::CutInBody => Ok(Why::CutInBody),
        Outcome::Cut | Outcome::AppliedThenCut if is_truncated => {
            Err("truncated without a response of the cloud".to_owned())
        }
        Outcome::Cut | Outcome::AppliedThenCut
            if sent.is_idempotent() && !last.is_first && sent.size <= BODY_LIMIT =>
        {
            Err(format!("{}: not sent again on a new connection", kind(got)))
        }
        Outcome::Cut | Outcome::AppliedThenCut => Ok(Why::CutByCloud),
        // The replay met the end of an idle connection.
        Outcome::Refused | Outcome::RefusedByFaultyNode
            if !sent.is_idempotent() && lane.cloud.closed_idle_connection(lane) =>
        {
            Ok(Why::IdleClose)
        }
        outcome => Err(format!("{}: after {outcome:?}", kind(got))),
    }
}

/// `retry.body_limit`.
pub const BODY_LIMIT: usize = 256 * 1024;

/// The result, with the beginning of its body.
impl fmt::Display for Got {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Response(status, body) => {
                let begin = String::from_utf8_lossy(&body[..body.len().min(100)]);
                write!(f, "{status}, {} bytes: {begin}", body.len())
            }
            Self::Broken(error) => write!(f, "no response: {error}"),
            Self::NoConnection(error) => write!(f, "no connection: {error}"),
            Self::Truncated | Self::TimedOut => write!(f, "{self:?}"),
        }
    }
}

fn kind(got: &Got) -> &'static str {
    match got {
        Got::Response(..) => "502",
        Got::Truncated => "truncated",
        Got::Broken(_) => "broken",
        Got::NoConnection(_) => "no connection",
        Got::TimedOut => "no response",
    }
}
