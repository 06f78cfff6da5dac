//! Enums whose variants are the values of a metric label, and tables with an entry for each.
//!
//! A label is looked up by its variant, never by its text: a value without a row does not compile.

use std::{
    fmt,
    marker::PhantomData,
    ops::{Index, IndexMut},
};

/// A set of label values, implemented by `labels!`.
pub trait Label: Copy + 'static {
    /// An array with one entry for each value.
    type Table<T>: AsRef<[T]> + AsMut<[T]>;

    /// Every value, in the order of declaration.
    const VALUES: &'static [Self];

    /// The value as metrics, logs and `/status` show it.
    fn label(self) -> &'static str;

    /// The position in [`Label::VALUES`].
    fn index(self) -> usize;

    /// Builds a table, one entry after the other.
    fn table<T>(entry: impl FnMut(Self) -> T) -> Self::Table<T>;
}

/// Declares an enum whose variants are the values of a label: `ALL`, `label` and `index` come with
/// it, and [`PerLabel`] counts by it. Two variants with the same label do not compile.
///
/// ```text
/// labels! {
///     /// Values of the label `state`.
///     pub enum State {
///         /// In use.
///         Active => "active",
///         /// Kept for the next request.
///         Idle => "idle",
///     }
/// }
/// ```
macro_rules! labels {
    (
        $(#[$meta:meta])*
        $vis:vis enum $name:ident {
            $( $(#[$variant_meta:meta])* $variant:ident => $label:literal ),+ $(,)?
        }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        $vis enum $name {
            $( $(#[$variant_meta])* $variant, )+
        }

        impl $name {
            /// Every value, in the order of declaration.
            $vis const ALL: [Self; [$($label),+].len()] = [$(Self::$variant),+];

            /// The value as metrics, logs and `/status` show it.
            $vis const fn label(self) -> &'static str {
                match self {
                    $( Self::$variant => $label, )+
                }
            }

            /// The position in `ALL`.
            $vis const fn index(self) -> usize {
                self as usize
            }
        }

        impl $crate::base::labels::Label for $name {
            type Table<T> = [T; Self::ALL.len()];

            const VALUES: &'static [Self] = &Self::ALL;

            fn label(self) -> &'static str {
                self.label()
            }

            fn index(self) -> usize {
                self.index()
            }

            fn table<T>(entry: impl FnMut(Self) -> T) -> Self::Table<T> {
                Self::ALL.map(entry)
            }
        }

        const _: () = assert!(
            $crate::base::labels::are_distinct(&[$($label),+]),
            "two variants have the same label"
        );
    };
}
pub(crate) use labels;

/// Whether no two of the labels are equal; evaluated at compile time.
pub(crate) const fn are_distinct(labels: &[&str]) -> bool {
    let mut at = 0;
    while at < labels.len() {
        let mut other = at + 1;
        while other < labels.len() {
            if are_equal(labels[at].as_bytes(), labels[other].as_bytes()) {
                return false;
            }
            other += 1;
        }
        at += 1;
    }
    true
}

const fn are_equal(one: &[u8], other: &[u8]) -> bool {
    if one.len() != other.len() {
        return false;
    }
    let mut at = 0;
    while at < one.len() {
        if one[at] != other[at] {
            return false;
        }
        at += 1;
    }
    true
}

/// A table with one entry for each value of a label: counters, most often. Indexed by the value.
pub struct PerLabel<L: Label, T> {
    entries: L::Table<T>,
    label: PhantomData<L>,
}

impl<L: Label, T> PerLabel<L, T> {
    /// A table with these entries.
    pub fn from_fn(entry: impl FnMut(L) -> T) -> Self {
        Self {
            entries: L::table(entry),
            label: PhantomData,
        }
    }

    /// The values with their entries, in the order of declaration.
    pub fn iter(&self) -> impl Iterator<Item = (L, &T)> {
        L::VALUES.iter().copied().zip(self.entries.as_ref())
    }
}

impl<L: Label, T: Default> Default for PerLabel<L, T> {
    fn default() -> Self {
        Self::from_fn(|_| T::default())
    }
}

impl<L: Label, T> Index<L> for PerLabel<L, T> {
    type Output = T;

    fn index(&self, value: L) -> &T {
        &self.entries.as_ref()[value.index()]
    }
}

impl<L: Label, T> IndexMut<L> for PerLabel<L, T> {
    fn index_mut(&mut self, value: L) -> &mut T {
        &mut self.entries.as_mut()[value.index()]
    }
}

impl<L: Label, T: fmt::Debug> fmt::Debug for PerLabel<L, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map()
            .entries(self.iter().map(|(value, entry)| (value.label(), entry)))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::counter::Counter;

    labels! {
        /// Sizes.
        enum Size {
            Small => "small",
            Large => "large",
        }
    }

    labels! {
        enum Colour {
            Red => "red",
            Green => "green",
            Blue => "blue",
        }
    }

    #[test]
    fn each_value_has_its_label_its_index_and_its_counter() {
        let counters = PerLabel::<Size, PerLabel<Colour, Counter>>::default();
        for (index, size) in Size::ALL.into_iter().enumerate() {
            assert_eq!(size.index(), index);
            for colour in Colour::ALL {
                counters[size][colour].add(1 + 10 * size.index() as u64 + colour.index() as u64);
            }
        }
        let counted = counters.iter().flat_map(|(size, colours)| {
            colours
                .iter()
                .map(move |(colour, n)| (size.label(), colour.label(), n.value()))
        });
        assert_eq!(
            counted.collect::<Vec<_>>(),
            [
                ("small", "red", 1),
                ("small", "green", 2),
                ("small", "blue", 3),
                ("large", "red", 11),
                ("large", "green", 12),
                ("large", "blue", 13),
            ]
        );
        let sizes = PerLabel::<Size, _>::from_fn(Size::index);
        assert_eq!(format!("{sizes:?}"), r#"{"small": 0, "large": 1}"#);
    }

    #[test]
    fn labels_that_are_not_distinct_are_found() {
        assert!(are_distinct(&["a", "b", "ab"]));
        assert!(!are_distinct(&["a", "b", "a"]));
        assert!(are_distinct(&[]));
    }
}
