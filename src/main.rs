//! `bearer-proxy`, the program: see the library for everything it does.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    bearer_proxy::cli::main()
}
