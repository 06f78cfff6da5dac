//! Connection attempts that overlap, so that a dead address delays the good one behind it by a
//! fraction of a second only: "Happy Eyeballs" (RFC 8305).

use std::{io, net::SocketAddr, time::Duration};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use tokio::time::{sleep, timeout};

/// The Connection Attempt Delay of RFC 8305 §5, and its least value.
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);
const MIN_ATTEMPT_DELAY: Duration = Duration::from_millis(10);

/// The most addresses that are tried: what a resolver returns may be hostile.
const MAX_ADDRESSES: usize = 64;

/// After this time without a connection, the next one of so many addresses is tried beside the ones
/// before it: 250 ms, or less where not all would get their turn within `limit`.
pub fn attempt_delay(limit: Duration, addresses: usize) -> Duration {
    let turn = limit / u32::try_from(addresses).unwrap_or(u32::MAX).max(1);
    turn.clamp(MIN_ATTEMPT_DELAY, ATTEMPT_DELAY)
}

/// Connects to the first of `addresses` that can be reached, within `limit`. They are tried in this
/// order: the next one as soon as an attempt fails, or after
/// [`attempt_delay`]. The first connection
/// that is made is returned, the other attempts are dropped.
///
/// # Errors
/// `TimedOut` without an OS error after `limit`; otherwise the error of the attempt that failed
/// last. `NotFound` without any address.
pub async fn first_connection<C, F>(
    addresses: &[SocketAddr],
    limit: Duration,
    connect: impl FnMut(SocketAddr) -> F,
) -> io::Result<C>
where
    F: Future<Output = io::Result<C>>,
{
    let addresses = &addresses[..addresses.len().min(MAX_ADDRESSES)];
    let delay = attempt_delay(limit, addresses.len());
    let connected = first_success(addresses.iter().copied(), delay, connect);
    match timeout(limit, connected).await {
        Ok(Ok(connection)) => Ok(connection),
        Ok(Err(mut errors)) => Err(errors
            .pop()
            .unwrap_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the name has no address"))),
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// Starts an attempt for each candidate, in this order: the next one as soon as an attempt fails, or
/// after `delay` without an attempt that ends. Returns the first success and drops the other attempts.
///
/// # Errors
/// All errors, in the order in which they occurred.
pub async fn first_success<T, S, E, F>(
    candidates: impl IntoIterator<Item = T>,
    delay: Duration,
    mut attempt: impl FnMut(T) -> F,
) -> Result<S, Vec<E>>
where
    F: Future<Output = Result<S, E>>,
{
    let mut candidates = candidates.into_iter().peekable();
    let mut running = FuturesUnordered::new();
    let mut errors = Vec::new();
    loop {
        running.extend(candidates.next().map(&mut attempt));
        let has_next = candidates.peek().is_some();
        tokio::select! {
            biased;
            ended = running.next() => match ended {
                Some(Ok(success)) => return Ok(success),
                Some(Err(error)) => errors.push(error),
                None => return Err(errors),
            },
            () = sleep(delay), if has_next => {}
        }
    }
}

/// The same addresses with the families alternating, beginning with the first one's (RFC 8305 §4):
/// a family without a route delays the other by one attempt, however many addresses it has.
pub fn interleaved(addresses: impl IntoIterator<Item = SocketAddr>) -> Vec<SocketAddr> {
    let mut addresses = addresses.into_iter().peekable();
    let starts_with_ipv4 = addresses.peek().is_some_and(SocketAddr::is_ipv4);
    let (preferred, other): (Vec<_>, Vec<_>) =
        addresses.partition(|address| address.is_ipv4() == starts_with_ipv4);
    let (mut preferred, mut other) = (preferred.into_iter(), other.into_iter());
    let mut alternating = Vec::with_capacity(preferred.len() + other.len());
    while preferred.len() + other.len() > 0 {
        alternating.extend(preferred.next());
        alternating.extend(other.next());
    }
    alternating
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, future::pending};

    use tokio::time::Instant;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// What a fake address does.
    #[derive(Debug, Clone, Copy)]
    enum Fake {
        Silent,
        Refuses { after_ms: u64 },
        Connects { after_ms: u64 },
    }
    use Fake::{Connects, Refuses, Silent};

    fn address(index: usize) -> SocketAddr {
        let port = u16::try_from(index).expect("few") + 1;
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    /// The index of the address that is connected to, or the error's kind; when that is known; and
    /// when each attempt began: in milliseconds.
    async fn dial(fakes: &[Fake]) -> (Result<usize, io::ErrorKind>, u128, Vec<u128>) {
        let addresses: Vec<_> = (0..fakes.len()).map(address).collect();
        let (began, starts) = (Instant::now(), RefCell::new(Vec::new()));
        let connect = async |address: SocketAddr| {
            starts.borrow_mut().push(began.elapsed().as_millis());
            let index = usize::from(address.port() - 1);
            match fakes[index] {
                Silent => pending().await,
                Refuses { after_ms } => {
                    sleep(Duration::from_millis(after_ms)).await;
                    Err(io::ErrorKind::ConnectionRefused.into())
                }
                Connects { after_ms } => {
                    sleep(Duration::from_millis(after_ms)).await;
                    Ok(index)
                }
            }
        };
        let dialled = first_connection(&addresses, 5 * SECOND, connect).await;
        let took = began.elapsed().as_millis();
        (
            dialled.map_err(|error| error.kind()),
            took,
            starts.into_inner(),
        )
    }

    #[tokio::test(start_paused = true)]
    async fn the_next_address_is_tried_after_a_failure_at_once_or_beside_a_silent_one() {
        let quick = Connects { after_ms: 0 };
        let refused = Refuses { after_ms: 0 };
        for (fakes, expected, took, starts) in [
            (&[quick, quick][..], Ok(0), 0, &[0][..]),
            (&[Connects { after_ms: 200 }, quick], Ok(0), 200, &[0]),
            (&[Silent, quick], Ok(1), 250, &[0, 250]),
            (
                &[Silent, Silent, Silent, quick],
                Ok(3),
                750,
                &[0, 250, 500, 750],
            ),
            (&[refused, quick], Ok(1), 0, &[0, 0]),
            (
                &[refused, refused, Silent, quick],
                Ok(3),
                250,
                &[0, 0, 0, 250],
            ),
            // The slow one is still the first to stand.
            (
                &[Connects { after_ms: 300 }, Connects { after_ms: 100 }],
                Ok(0),
                300,
                &[0, 250],
            ),
            (
                &[Connects { after_ms: 400 }, Connects { after_ms: 100 }],
                Ok(1),
                350,
                &[0, 250],
            ),
            // A failure starts the next attempt, whichever attempt it was.
            (
                &[Silent, Refuses { after_ms: 10 }, quick],
                Ok(2),
                260,
                &[0, 250, 260],
            ),
            (
                &[Refuses { after_ms: 300 }, Silent, quick],
                Ok(2),
                300,
                &[0, 250, 300],
            ),
        ] {
            let expected = (expected, took, starts.to_vec());
            assert_eq!(dial(fakes).await, expected, "{fakes:?}");
        }
    }

    #[test]
    fn every_address_gets_its_turn_within_the_limit() {
        for (limit, addresses, delay) in [
            (10_000, 3, 250),
            (500, 1, 250),
            (500, 2, 250),
            (500, 3, 166),
            (500, 64, 10),
            (0, 3, 10),
            (500, 0, 250),
            (500, usize::MAX, 10),
        ] {
            let found = attempt_delay(Duration::from_millis(limit), addresses);
            assert_eq!(found.as_millis(), delay, "{addresses} within {limit} ms");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_of_many_addresses_is_tried_within_the_limit() {
        let mut fakes = [Silent; 40];
        fakes[39] = Connects { after_ms: 100 };
        let (connected, took, starts) = dial(&fakes).await;
        assert_eq!((connected, took), (Ok(39), 39 * 125 + 100));
        assert_eq!(starts.len(), 40);
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_connection_it_ends_with_the_last_failure_or_at_the_limit() {
        let (error, took, _) = dial(&[Refuses { after_ms: 1 }, Refuses { after_ms: 2 }]).await;
        assert_eq!((error, took), (Err(io::ErrorKind::ConnectionRefused), 3));
        let (error, took, _) = dial(&[Silent, Refuses { after_ms: 0 }]).await;
        assert_eq!((error, took), (Err(io::ErrorKind::TimedOut), 5000));
        let (error, _, _) = dial(&[]).await;
        assert_eq!(error, Err(io::ErrorKind::NotFound));
    }

    #[tokio::test(start_paused = true)]
    async fn a_hostile_number_of_addresses_is_bounded() {
        let (error, _, starts) = dial(&[Refuses { after_ms: 0 }; 1000]).await;
        assert_eq!(error, Err(io::ErrorKind::ConnectionRefused));
        assert_eq!(starts.len(), MAX_ADDRESSES);
    }

    #[tokio::test(start_paused = true)]
    async fn every_error_is_returned() {
        let failed = first_success([3, 1, 2], SECOND, async |seconds: u32| {
            sleep(SECOND / 2 * seconds).await;
            Err::<(), _>(seconds)
        });
        // 1 begins after a second and ends before 3; that starts 2.
        assert_eq!(failed.await, Err(vec![3, 1, 2]));
    }

    #[test]
    fn families_alternate_from_the_first_one() {
        let parse = |text: &str| -> Vec<SocketAddr> {
            let addresses = text.split_whitespace();
            addresses
                .map(|address| address.parse().expect("an address"))
                .collect()
        };
        for (given, expected) in [
            ("", ""),
            ("[::1]:1", "[::1]:1"),
            ("1.1.1.1:1 2.2.2.2:1", "1.1.1.1:1 2.2.2.2:1"),
            (
                "[::3]:1 [::1]:1 [::2]:1 2.2.2.2:1 1.1.1.1:1",
                "[::3]:1 2.2.2.2:1 [::1]:1 1.1.1.1:1 [::2]:1",
            ),
            (
                "1.1.1.1:1 [::1]:1 2.2.2.2:1 3.3.3.3:1",
                "1.1.1.1:1 [::1]:1 2.2.2.2:1 3.3.3.3:1",
            ),
        ] {
            assert_eq!(interleaved(parse(given)), parse(expected), "{given}");
        }
    }
}
