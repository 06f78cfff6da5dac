//! Panics are counted, and logged with their location. The panic message is not logged: it could
//! contain a secret.

use std::{
    panic,
    sync::{
        Once,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
};

static COUNT: AtomicU64 = AtomicU64::new(0);

/// Replaces the panic hook: panics are counted and logged instead of printed. A second call has no
/// effect.
pub fn install_hook() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        panic::set_hook(Box::new(|info| {
            COUNT.fetch_add(1, Relaxed);
            let location = info.location().map(tracing::field::display);
            let thread = thread::current();
            tracing::error!(
                location,
                thread = thread.name(),
                "panic, a bug in this program: please report it"
            );
        }));
    });
}

/// The number of panics since [`install_hook`].
pub fn count() -> u64 {
    COUNT.load(Relaxed)
}
