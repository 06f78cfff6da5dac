//! `bearer-proxy`, the program.

fn main() {}
