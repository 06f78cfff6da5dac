//! The runtime of a command.

use std::{io, process::ExitCode};

use super::{exit_code::FAILED, output::print_error};

/// The control runtime, on this thread: it runs everything except the data path.
pub(super) fn control_runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
}

/// Runs a future on the control runtime. An error is printed as one line, and the exit code is 1.
pub(super) fn block_on(work: impl Future<Output = Result<(), String>>) -> ExitCode {
    block_on_reporting(work, |error| print_error(format_args!("{error}")))
}

/// The same, with an error passed to `report`.
pub(super) fn block_on_reporting(
    work: impl Future<Output = Result<(), String>>,
    report: impl FnOnce(&str),
) -> ExitCode {
    let result = control_runtime()
        .map_err(|error| format!("cannot start: {error}"))
        .and_then(|runtime| {
            let result = runtime.block_on(work);
            // Not a plain drop, which waits for blocking tasks: a DNS look-up may take minutes.
            runtime.shutdown_background();
            result
        });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&error);
            ExitCode::from(FAILED)
        }
    }
}
