//! HTTP/1 with a client.

pub(crate) mod strict_reader;
