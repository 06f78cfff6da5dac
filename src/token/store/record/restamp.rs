//! A record in the time of another clock: replicas share a record in the time of their store.
//!
//! Ages are carried over, not dates. They are never estimated too low, so no lifetime grows, and a
//! refresh token is never taken for one that was sent more recently than it was.

use std::time::{Duration, SystemTime};

use super::{AccessToken, Intent, Record, from_millis, millis, to_millis};
use crate::base::clock::Clock;

impl Record {
    /// The record in the store's time. `store_now` must not be later than the store's true time.
    pub(in crate::token) fn in_store_time(&self, clock: &dyn Clock, store_now: SystemTime) -> Self {
        let now = clock.now();
        let before = |age: Duration| before(store_now, age);
        let access = self.access.as_ref().map(|access| AccessToken {
            requested_at: before(access.age(clock)),
            boot: None,
            ..access.clone()
        });
        let intents = self.intents.iter().map(|intent| Intent {
            // Of unknown age: very old.
            at_ms: intent.age(clock).map_or(0, |age| to_millis(before(age))),
            boot_id: None,
            at_boot_ms: millis(now.elapsed_since_boot()),
            ..intent.clone()
        });
        Self {
            access,
            intents: intents.collect(),
            ..self.shifted(clock.wall(), store_now)
        }
    }

    /// The record in this machine's time. `store_now` must not be earlier than the store's true time.
    pub(in crate::token) fn in_local_time(&self, clock: &dyn Clock, store_now: SystemTime) -> Self {
        let (now, wall) = (clock.now(), clock.wall());
        let boot_id = clock.boot_id();
        let access = self.access.as_ref().map(|access| {
            let age = age(store_now, access.requested_at);
            let expires_at = now + access.lifetime.saturating_sub(age);
            AccessToken {
                requested_at: before(wall, age),
                boot: boot_id.map(|id| (id.to_owned(), expires_at)),
                ..access.clone()
            }
        });
        let intents = self.intents.iter().map(|intent| {
            let sent = from_millis(intent.at_ms).unwrap_or(SystemTime::UNIX_EPOCH);
            let age = age(store_now, sent);
            let at_boot = now.elapsed_since_boot().checked_sub(age);
            Intent {
                at_ms: to_millis(before(wall, age)),
                // Sent before this boot, so only the wall clock can tell its age.
                boot_id: at_boot.and(boot_id.map(str::to_owned)),
                at_boot_ms: at_boot.map_or(0, millis),
                ..intent.clone()
            }
        });
        Self {
            access,
            intents: intents.collect(),
            ..self.shifted(store_now, wall)
        }
    }

    fn shifted(&self, from: SystemTime, to: SystemTime) -> Self {
        let shift = |time: SystemTime| match time.duration_since(from) {
            Ok(ahead) => to.checked_add(ahead).unwrap_or(time),
            Err(behind) => before(to, behind.duration()),
        };
        Self {
            refresh_token_expires_at: self.refresh_token_expires_at.map(shift),
            refresh_token_since: self.refresh_token_since.map(shift),
            ..self.clone()
        }
    }
}

impl AccessToken {
    /// The time since it was requested.
    fn age(&self, clock: &dyn Clock) -> Duration {
        let left = self.expiry(clock).at.saturating_since(clock.now());
        self.lifetime.saturating_sub(left)
    }
}

/// Zero if `time` is later.
fn age(now: SystemTime, time: SystemTime) -> Duration {
    now.duration_since(time).unwrap_or_default()
}

fn before(time: SystemTime, age: Duration) -> SystemTime {
    time.checked_sub(age).unwrap_or(SystemTime::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        base::{clock::Simulated, secret::Secret},
        token::{refresh_token::RefreshToken, store::RequestTime},
    };

    const HOUR: Duration = Duration::from_secs(3600);

    fn record(clock: &dyn Clock) -> Record {
        let requested_at = RequestTime::now(clock);
        let mut record = Record {
            access: Some(AccessToken::new(
                Secret::new("access"),
                HOUR,
                requested_at,
                clock,
            )),
            refresh_token_since: Some(requested_at.wall),
            ..Record::default()
        };
        record.open_intent(&RefreshToken::new(Secret::new("refresh")), clock);
        record
    }

    #[tokio::test(start_paused = true)]
    async fn ages_survive_the_way_to_the_store_and_to_a_machine_with_other_clocks() {
        let ours = Simulated::new();
        ours.sleep_until(ours.now() + Duration::from_secs(50)).await;
        let record = record(&ours);
        ours.sleep_until(ours.now() + Duration::from_secs(100))
            .await;
        let store_now = SystemTime::UNIX_EPOCH + Duration::from_secs(5_000_000);
        let stored = record.in_store_time(&ours, store_now);
        // A machine that has just started, whose wall clock is wrong.
        let theirs = Simulated::new();
        let later = store_now + Duration::from_secs(7);
        let read = stored.in_local_time(&theirs, later);
        let access = read.access.as_ref().expect("an access token");
        let left = access.expiry(&theirs).at.saturating_since(theirs.now());
        assert_eq!(left, HOUR - Duration::from_secs(107));
        let intent = &read.intents[0];
        let age = intent.age(&theirs).expect("known");
        assert_eq!(age, Duration::from_secs(107));
        let since = read.refresh_token_since.expect("known");
        assert_eq!(
            theirs.wall().duration_since(since).ok(),
            Some(Duration::from_secs(107))
        );
    }

    #[tokio::test(start_paused = true)]
    async fn no_lifetime_grows_when_the_store_goes_back() {
        let clock = Simulated::new();
        let record = record(&clock);
        let store_now = SystemTime::UNIX_EPOCH + Duration::from_secs(5_000_000);
        let stored = record.in_store_time(&clock, store_now);
        let read = stored.in_local_time(&clock, store_now - Duration::from_secs(1000));
        let expiry = read.access.as_ref().expect("one").expiry(&clock);
        assert!(expiry.at <= clock.now() + HOUR);
        assert_eq!(read.intents[0].age(&clock), Some(Duration::ZERO));
    }
}
