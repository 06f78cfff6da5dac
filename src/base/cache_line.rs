//! Values that do not share a cache line with others.

use std::ops::Deref;

/// A value on a cache line of its own: a write to it does not slow down the readers of its
/// neighbours. Two lines of 64 bytes, as processors fetch them in pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct CacheLine<T>(T);

impl<T> CacheLine<T> {
    /// Puts the value on its own cache line.
    pub const fn new(value: T) -> Self {
        Self(value)
    }
}

impl<T> Deref for CacheLine<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_on_different_lines() {
        let values = [CacheLine::new(1_u8), CacheLine::new(2)];
        let distance = (&raw const *values[1]).addr() - (&raw const *values[0]).addr();
        assert_eq!((distance, *values[0], *values[1]), (128, 1, 2));
    }
}
