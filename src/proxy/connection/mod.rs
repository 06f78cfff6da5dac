//! One client connection's state, deadlines and limits.

pub(crate) mod deadlines;
pub(crate) mod flood;
pub(crate) mod io;
pub(crate) mod limits;
pub(crate) mod lingering;
pub(crate) mod state;
