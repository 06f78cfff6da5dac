//! Blocking calls, file I/O above all, off the runtime's threads.

use std::io;

/// Runs `work` on a thread for blocking calls.
///
/// # Errors
/// When `work` panics, or the runtime shuts down before it starts.
pub async fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(io::Error::other)
}
