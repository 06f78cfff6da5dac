//! Rate and concurrency limits of clients, in all workers together.

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

/// A rate limit: a burst of `requests`, which refills within `per`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// The size of a burst.
    pub requests: NonZeroU32,
    /// The time in which that many requests are allowed on average.
    pub per: Duration,
}

/// The limits of one client, and how much of them is used.
#[derive(Debug)]
pub(super) struct ClientLimits {
    rate: Option<RateLimiter>,
    concurrency: Option<usize>,
    in_flight: AtomicUsize,
}

/// The generic cell rate algorithm (ITU-T I.371), which needs a single number as state.
#[derive(Debug)]
struct RateLimiter {
    clock: SharedClock,
    /// Nanoseconds in which one request refills.
    interval: u64,
    /// Nanoseconds in which a whole burst but one request refills.
    burst: u64,
    /// When the burst is full again, in nanoseconds of the boot clock.
    full_at: AtomicU64,
}

impl RateLimiter {
    fn new(Rate { requests, per }: Rate, clock: &SharedClock) -> Self {
        let interval = nanoseconds(per) / u64::from(requests.get());
        let burst = interval * u64::from(requests.get() - 1);
        Self {
            clock: SharedClock::clone(clock),
            interval,
            burst,
            full_at: AtomicU64::new(0),
        }
    }

    /// Admits one request, or returns the time until one is admitted.
    fn take(&self) -> Result<(), Duration> {
        let now = nanoseconds(self.clock.now().elapsed_since_boot());
        let taken = self.full_at.fetch_update(Relaxed, Relaxed, |full_at| {
            let full_at = full_at.max(now);
            (full_at - now <= self.burst).then(|| full_at.saturating_add(self.interval))
        });
        taken.map(drop).map_err(|full_at| {
            Duration::from_nanos(full_at.saturating_sub(now).saturating_sub(self.burst))
        })
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl ClientLimits {
    pub(super) fn new(rate: Option<Rate>, concurrency: Option<usize>, clock: &SharedClock) -> Self {
        let rate = rate.map(|rate| RateLimiter::new(rate, clock));
        Self {
            rate,
            concurrency,
            in_flight: AtomicUsize::new(0),
        }
    }

    pub(super) fn admit(clients: &Arc<Clients>, client: usize) -> Result<Option<Permit>, Error> {
        let limits = &clients.clients[client].limits;
        let permit = match limits.concurrency {
            None => None,
            Some(limit) => {
                let permit = Permit {
                    clients: Arc::clone(clients),
                    client,
                };
                if limits.in_flight.fetch_add(1, Relaxed) >= limit {
                    return Err(Error::ConcurrencyLimited);
                }
                Some(permit)
            }
        };
        match limits.rate.as_ref().map_or(Ok(()), RateLimiter::take) {
            Ok(()) => Ok(permit),
            Err(retry_after) => Err(Error::RateLimited { retry_after }),
        }
    }
}

/// Counts a request as in flight until it is dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    clients: Arc<Clients>,
    client: usize,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.clients.clients[self.client]
            .limits
            .in_flight
            .fetch_sub(1, Relaxed);
    }
}
