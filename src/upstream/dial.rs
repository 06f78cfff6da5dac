//! A connection to the first address that accepts one.
//!
//! Nothing of a request is sent before its connection is made, so any number of addresses can be
//! tried: the next one at once after a failure, and beside the first one when that takes long
//! (RFC 8305). A dial whose request has found another connection goes on: its outcome says whether
//! the address is reachable, and its connection goes to the pool.

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use hyper::body::Body;
use tokio::{
    sync::oneshot::{self, error::RecvError},
    time::Instant,
};

use super::{
    Upstream,
    addresses::AddressId,
    choice::{Place, Visited},
    connect::Error,
    pool::Lease,
    versions,
};
use crate::net::dial::attempt_delay;

/// How a connection is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dial {
    /// HTTP/1.1, for an upgrade.
    pub is_upgrade: bool,
    /// A connection that no other request has opened.
    pub is_alone: bool,
    /// The address of a connection that was lost: open ones may be as dead.
    pub lost: Option<AddressId>,
}

impl<B: Body + Unpin + 'static> Upstream<B>
where
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    /// A new connection to the chosen address, or to the first other one that accepts one. Requests
    /// that dial at the same time share an HTTP/2 connection. Addresses that failed are added to
    /// `visited`.
    ///
    /// # Errors
    /// That of the last address.
    pub async fn dial(
        &self,
        place: Place<B>,
        dial: Dial,
        visited: &mut Visited,
        affinity: Option<u64>,
    ) -> Result<Lease<B>, Error> {
        let limit = self.shared.config.connect_timeout;
        let deadline = Instant::now() + limit;
        let delay = attempt_delay(limit, self.count());
        let mut tried = visited.clone();
        tried.add(place.address());
        let mut dials = FuturesUnordered::new();
        dials.push(place.dial(dial, deadline));
        // A client's own address may take its time.
        let mut has_more = affinity.is_none();
        loop {
            let mut error = None;
            tokio::select! {
                biased;
                dialled = dials.next() => match dialled {
                    Some((_, Ok(Ok(lease)))) => return Ok(lease),
                    // The limit is common to all addresses.
                    Some((_, Ok(Err(error @ Error::NoSocket { .. })))) => return Err(error),
                    Some((address, Ok(Err(failed)))) => {
                        visited.add(address);
                        error = Some(failed);
                    }
                    // The runtime ends.
                    Some((_, Err(_))) | None => {}
                },
                () = tokio::time::sleep(delay), if has_more => {}
            }
            let next = if Instant::now() < deadline {
                let other = self.other_place(&tried, affinity);
                other.or_else(|| self.last_resort(&tried))
            } else {
                None
            };
            has_more = next.is_some() && affinity.is_none();
            match (next, error) {
                (Some(next), _) => {
                    tried.add(next.address());
                    dials.push(next.dial(dial, deadline));
                }
                (None, Some(error)) if dials.is_empty() => return Err(error),
                (None, _) if dials.is_empty() => {
                    return Err(Error::Timeout {
                        endpoint: self.shared.config.endpoints[0].origin.clone(),
                        limit,
                    });
                }
                (None, _) => {}
            }
        }
    }
}

impl<B: Body + Unpin + 'static> Place<B>
where
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    /// Connects in a task, which goes on when what is returned is dropped.
    fn dial(
        self,
        dial: Dial,
        deadline: Instant,
    ) -> impl Future<Output = (AddressId, Result<Result<Lease<B>, Error>, RecvError>)> {
        let (sender, dialled) = oneshot::channel();
        let address = self.address();
        tokio::task::spawn_local(async move {
            let Self { pool, in_flight } = self;
            let versions = versions(dial.is_upgrade);
            let dialled = if dial.is_alone {
                let dialled = pool.dial_alone(versions, deadline).await;
                dialled.map(|connection| (connection, false))
            } else {
                let skips_open = dial.lost == Some(address);
                pool.dial(versions, skips_open, deadline).await
            };
            let result = match dialled {
                Ok((connection, is_reused)) => {
                    pool.handle.connected();
                    Ok(Lease::new(connection, pool, in_flight, is_reused))
                }
                Err(error) => {
                    pool.handle.counters.failures[error.failure()].add(1);
                    if error.is_of_address() {
                        pool.handle.connect_failed();
                    }
                    Err(error)
                }
            };
            // The request has another connection, or its client has left.
            if let Err(Ok(unused)) = sender.send(result) {
                unused.release();
            }
        });
        async move { (address, dialled.await) }
    }
}
