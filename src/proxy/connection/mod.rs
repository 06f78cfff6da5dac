//! The client's connection: its socket, state, deadlines and limits.
//!
//! | File | Contents |
//! |---|---|
//! | `io` | the socket; counts bytes and reports reads and writes to the connection's state |
//! | `state` | the state by role: of a connection, or of what carries one exchange |
//! | `http1_state` | an HTTP/1 connection: phases, deadlines, malformed requests |
//! | `http2_state` | an HTTP/2 connection: open streams, idle deadline, flood counters |
//! | `stream_state` | one stream of an HTTP/2 connection |
//! | `backlog` | what was written and has not reached the socket |
//! | `timers` | what the three have in common: timeouts, deadlines, the minimum rate of a body |
//! | `deadlines` | runs a connection or stream until a deadline expires |
//! | `flood` | HTTP/2 flood protection: counters and read quotas |
//! | `limits` | slots for connections, in total and by client address |
//! | `lingering` | drains request bodies whose response has already been sent |

mod backlog;
pub(crate) mod deadlines;
pub(crate) mod flood;
pub(crate) mod http1_state;
pub(crate) mod http2_state;
pub(crate) mod io;
pub(crate) mod limits;
pub(crate) mod lingering;
pub(crate) mod state;
pub(crate) mod stream_state;
pub(crate) mod timers;
