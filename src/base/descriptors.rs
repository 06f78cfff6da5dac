//! Divides the limit of open files between the users of file descriptors. The control runtime keeps
//! a reserve that no load can take.

/// Reserved for the refresher, the admin endpoint, the state file and the resolver; at most a
/// quarter of the limit.
const RESERVE: usize = 128;
/// Connections to the admin endpoint: scrapers and people, not load.
const ADMIN: usize = 64;
/// Always open: the standard streams, watched files, and the control runtime.
const BASE: usize = 24;
/// Always open in each worker's runtime.
const WORKER: usize = 4;

/// The largest number of connections of each kind. Together they fit into the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DescriptorBudget {
    /// Connections from clients.
    pub clients: usize,
    /// Connections to all upstreams together, including idle ones.
    pub upstream: usize,
    /// Connections to the admin endpoint.
    pub admin: usize,
}

impl DescriptorBudget {
    /// Divides `limit`. Each of up to `clients` connections may need one to the upstream.
    pub fn new(limit: u64, workers: usize, listeners: usize, clients: usize) -> Self {
        // No system opens more at once, and the arithmetic stays within its bounds.
        let limit = limit.min(u64::from(u32::MAX)) as usize;
        let reserve = RESERVE.min(limit / 4);
        let free = limit.saturating_sub(reserve + BASE + workers * (WORKER + listeners));
        let clients = clients.min(free / 2).max(1);
        Self {
            clients,
            upstream: free.saturating_sub(clients).max(1),
            admin: (reserve / 2).clamp(1, ADMIN),
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
    fn the_budget_fits_into_the_limit_and_no_part_is_zero() {
        for limit in (0..3000).chain([u64::MAX]) {
            for (workers, listeners, configured) in [(1, 1, 1), (2, 3, 500), (64, 2, 10_000)] {
                let budget = DescriptorBudget::new(limit, workers, listeners, configured);
                assert!(
                    budget.clients >= 1 && budget.upstream >= 1 && budget.admin >= 1,
                    "{limit}: {budget:?}"
                );
                let own = BASE + workers * (WORKER + listeners);
                let all = budget.clients + budget.upstream + budget.admin + own;
                assert!(
                    all as u64 <= limit || limit < own as u64 * 2,
                    "{limit}, {workers} workers: {budget:?}"
                );
            }
        }
    }
}
