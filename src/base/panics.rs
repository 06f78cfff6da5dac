//! Panics: faults of ours. Each is counted, and the log tells where it was; what it said could hold a secret, and is not
//! repeated.

use std::{
    panic,
    sync::{
        Once,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
};

static COUNT: AtomicU64 = AtomicU64::new(0);

/// From now on, panics are counted and logged instead of being printed. A second call changes nothing.
pub fn install_hook() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        panic::set_hook(Box::new(|info| {
            COUNT.fetch_add(1, Relaxed);
            let place = info.location().map(tracing::field::display);
            let thread = thread::current();
            tracing::error!(
                place,
                thread = thread.name(),
                "a mistake in this program (a panic): please report it"
            );
        }));
    });
}

/// How many there were since [`install_hook`].
pub fn count() -> u64 {
    COUNT.load(Relaxed)
}
