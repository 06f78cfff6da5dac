//! How often a client may ask, and how much at the same time: in all workers together.

use std::{
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use super::Clients;
use crate::{base::clock::SharedClock, proxy::error::Error};

/// So many requests in so much time, at once or spread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Requests.
    pub requests: NonZeroU32,
    /// The time after which all of them are possible again.
    pub per: Duration,
}

/// One client's limits.
#[derive(Debug)]
pub(super) struct ClientLimits {
    rate: Option<Bucket>,
    concurrency: Option<usize>,
    under_way: AtomicUsize,
}

/// The generic cell rate algorithm (ITU-T I.371): one number says how much of the rate is used up.
#[derive(Debug)]
struct Bucket {
    clock: SharedClock,
    /// Nanoseconds that one request uses up.
    each: u64,
    /// How far requests may be ahead of their time.
    ahead: u64,
    /// When all that was used up is there again, on the boot clock.
    full: AtomicU64,
}

impl Bucket {
    fn new(Rate { requests, per }: Rate, clock: &SharedClock) -> Self {
        let each = nanoseconds(per) / u64::from(requests.get());
        let ahead = each * u64::from(requests.get() - 1);
        Self {
            clock: SharedClock::clone(clock),
            each,
            ahead,
            full: AtomicU64::new(0),
        }
    }

    /// Takes one request out; when there is none, the time until there is.
    fn take(&self) -> Result<(), Duration> {
        let now = nanoseconds(self.clock.now().elapsed_since_boot());
        let taken = self.full.fetch_update(Relaxed, Relaxed, |full| {
            let full = full.max(now);
            (full - now <= self.ahead).then(|| full.saturating_add(self.each))
        });
        taken.map(drop).map_err(|full| {
            Duration::from_nanos(full.saturating_sub(now).saturating_sub(self.ahead))
        })
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl ClientLimits {
    pub(super) fn new(rate: Option<Rate>, concurrency: Option<usize>, clock: &SharedClock) -> Self {
        let rate = rate.map(|rate| Bucket::new(rate, clock));
        Self {
            rate,
            concurrency,
            under_way: AtomicUsize::new(0),
        }
    }

    pub(super) fn admit(clients: &Arc<Clients>, client: usize) -> Result<Option<Permit>, Error> {
        let limits = &clients.clients[client].limits;
        let permit = match limits.concurrency {
            None => None,
            Some(most) => {
                let permit = Permit {
                    clients: Arc::clone(clients),
                    client,
                };
                if limits.under_way.fetch_add(1, Relaxed) >= most {
                    return Err(Error::TooManyAtOnce);
                }
                Some(permit)
            }
        };
        match limits.rate.as_ref().map_or(Ok(()), Bucket::take) {
            Ok(()) => Ok(permit),
            Err(retry_after) => Err(Error::TooOften { retry_after }),
        }
    }
}

/// A request's place among those of its client that are under way, given back when dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    clients: Arc<Clients>,
    client: usize,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.clients.clients[self.client]
            .limits
            .under_way
            .fetch_sub(1, Relaxed);
    }
}
