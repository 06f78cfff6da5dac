//! Several refreshers that share a simulated register, with an issuer that revokes the family of a
//! refresh token that it receives twice.

mod faults;
mod scenarios;
mod world;
