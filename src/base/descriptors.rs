//! Who may hold how many of the process's file descriptors. What keeps the process alive has its own, whatever the load.

/// Kept back for the refresher, the admin endpoint, the state file, the resolver; of a low limit, a quarter.
const KEPT_BACK: usize = 128;
/// Connections to the admin endpoint at a time: scrapers and people, not load.
const ADMIN: usize = 64;
/// What is open whatever the load: the standard streams, watched files, and the control runtime's own.
const BASE: usize = 24;
/// The same of one worker's runtime.
const WORKER: usize = 4;

/// A number of connections for each user of descriptors. Together they fit into the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DescriptorBudget {
    /// Connections of apps.
    pub clients: usize,
    /// Connections to all upstreams together, idle ones included.
    pub upstream: usize,
    /// Connections to the admin endpoint.
    pub admin: usize,
}

impl DescriptorBudget {
    /// Divides `limit`: each of up to `clients` connections may need one to the upstream.
    pub fn new(limit: u64, workers: usize, listeners: usize, clients: usize) -> Self {
        // More are never open at once, and counters stay within their bounds.
        let limit = limit.min(u64::from(u32::MAX)) as usize;
        let kept_back = KEPT_BACK.min(limit / 4);
        let free = limit.saturating_sub(kept_back + BASE + workers * (WORKER + listeners));
        let clients = clients.min(free / 2).max(1);
        Self {
            clients,
            upstream: free.saturating_sub(clients).max(1),
            admin: (kept_back / 2).clamp(1, ADMIN),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smaller_of_limit_and_configuration_wins() {
        assert_eq!(DescriptorBudget::new(1 << 20, 2, 1, 10_000).clients, 10_000);
        assert_eq!(
            DescriptorBudget::new(u64::MAX, 2, 1, 10_000_000).clients,
            10_000_000
        );
        assert_eq!(
            DescriptorBudget::new(1024, 2, 1, 10_000),
            DescriptorBudget {
                clients: 431,
                upstream: 431,
                admin: 64
            }
        );
        assert_eq!(
            DescriptorBudget::new(1024, 2, 1, 100),
            DescriptorBudget {
                clients: 100,
                upstream: 762,
                admin: 64
            }
        );
        assert_eq!(
            DescriptorBudget::new(256, 2, 1, 10_000),
            DescriptorBudget {
                clients: 79,
                upstream: 79,
                admin: 32
            }
        );
    }

    #[test]
    fn all_shares_fit_into_the_limit_and_nobody_gets_nothing() {
        for limit in (0..3000).chain([u64::MAX]) {
            for (workers, listeners, configured) in [(1, 1, 1), (2, 3, 500), (64, 2, 10_000)] {
                let shares = DescriptorBudget::new(limit, workers, listeners, configured);
                assert!(
                    shares.clients >= 1 && shares.upstream >= 1 && shares.admin >= 1,
                    "{limit}: {shares:?}"
                );
                let own = BASE + workers * (WORKER + listeners);
                let all = shares.clients + shares.upstream + shares.admin + own;
                assert!(
                    all as u64 <= limit || limit < own as u64 * 2,
                    "{limit}, {workers} workers: {shares:?}"
                );
            }
        }
    }
}
