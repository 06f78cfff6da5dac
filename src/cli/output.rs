//! Output for people.

use std::{
    fmt,
    io::{self, Write as _},
};

/// Prints a line on standard output. Errors are ignored: the command also works without a reader.
pub(super) fn print_line(line: fmt::Arguments<'_>) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// Prints a line on standard error.
pub(super) fn print_error(line: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}
