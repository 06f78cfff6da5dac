//! Reading the token allocates nothing. A binary of its own, since it counts every allocation.

#[path = "it/common/credential.rs"]
mod credential;

use std::hint::black_box;

use bearer_proxy::{base::clock, token::Refresher};

#[test]
fn reading_the_token_allocates_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let (_refresher, credential) =
        Refresher::new(credential::config(folder.path()), None, clock::system()).expect("built");
    let mut reads = 0_u32;
    let mut read = || {
        let token = credential.token();
        let token = token.as_ref().expect("a token");
        assert!(token.is_usable(credential.clock().now()));
        black_box(token.header());
        black_box(token.needs_proof());
        black_box(credential.rejected(token.version()));
        reads += 1;
    };
    // A thread's first read registers it with the cell, once.
    read();
    let allocations = allocation_counter::measure(|| (0..1000).for_each(|_| read()));
    assert_eq!(allocations.count_total, 0);
    assert_eq!(reads, 1001);
    // The counter counts.
    assert!(allocation_counter::measure(|| drop(black_box(Box::new(1)))).count_total > 0);
}
