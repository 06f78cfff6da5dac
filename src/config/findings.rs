//! Mistakes and warnings of a configuration: one line each, with its position.

use std::{fmt, path::Path, sync::Arc};

use super::keys;

/// A mistake or a warning.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// Where the value was given.
    pub pos: SourcePos,
    /// The key, `section.name`; empty for the file as a whole.
    pub key: String,
    /// What is wrong.
    pub reason: String,
    /// What to write instead, or what to do.
    pub hint: String,
}

/// Where a value was given, in ascending order of precedence. Findings are printed in this order.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum SourcePos {
    /// There is neither a file nor a variable.
    Nowhere,
    /// The file as a whole.
    File(Arc<Path>),
    /// In the file. Lines and columns count from 1, columns in characters.
    Position {
        /// The file.
        file: Arc<Path>,
        /// The line.
        line: usize,
        /// The column.
        column: usize,
    },
    /// An environment variable.
    Environment(String),
    /// The command line.
    CommandLine,
}

impl SourcePos {
    /// Whether both are in the file, in the environment, or on the command line.
    pub(super) fn same_source(&self, other: &Self) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other)
    }
}

/// Why a value cannot be used: a [`Finding`] without its position.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Problem {
    pub(super) reason: String,
    /// In the syntax of the file.
    pub(super) hint: String,
    /// For a value in an environment variable, if removing the quotes from `hint` is not enough.
    pub(super) for_variable: Option<String>,
}

/// Makes a [`Problem`].
pub(super) fn problem(reason: impl Into<String>, hint: impl Into<String>) -> Problem {
    Problem {
        reason: reason.into(),
        hint: hint.into(),
        for_variable: None,
    }
}

impl Problem {
    /// The same, with another hint for a value in an environment variable.
    pub(super) fn or_variable(self, hint: impl Into<String>) -> Self {
        Self {
            for_variable: Some(hint.into()),
            ..self
        }
    }

    pub(super) fn at(self, pos: SourcePos, key: &str) -> Finding {
        let hint = match pos {
            // Quotes are syntax of the file; in a variable they would be part of the value.
            SourcePos::Environment(_) => self
                .for_variable
                .unwrap_or_else(|| self.hint.replace('"', "")),
            SourcePos::Nowhere
            | SourcePos::File(_)
            | SourcePos::Position { .. }
            | SourcePos::CommandLine => self.hint,
        };
        Finding {
            pos,
            key: keys::without_index(key).into_owned(),
            reason: self.reason,
            hint,
        }
    }
}

/// The mistakes of a configuration, sorted by position; at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistakes(Vec<Finding>);

impl Mistakes {
    pub(super) fn new(mut findings: Vec<Finding>) -> Self {
        findings.sort();
        findings.dedup();
        Self(findings)
    }

    /// The mistakes.
    pub fn iter(&self) -> impl Iterator<Item = &Finding> {
        self.0.iter()
    }
}

impl std::error::Error for Mistakes {}

impl fmt::Display for Mistakes {
    /// One line each; the last one has no line end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, finding) in self.0.iter().enumerate() {
            let line_end = if index == 0 { "" } else { "\n" };
            write!(f, "{line_end}{finding}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Finding {
    /// `file:line:column: key: reason (what to write instead)`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.pos.fmt(f)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", printable(&self.key))?;
        }
        write!(f, "{} ({})", printable(&self.reason), printable(&self.hint))
    }
}

impl fmt::Display for SourcePos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nowhere => Ok(()),
            Self::File(file) => write!(f, "{}: ", printable(&file.to_string_lossy())),
            Self::Position { file, line, column } => {
                write!(
                    f,
                    "{}:{line}:{column}: ",
                    printable(&file.to_string_lossy())
                )
            }
            Self::Environment(variable) => write!(f, "environment: {}: ", printable(variable)),
            Self::CommandLine => f.write_str("command line: "),
        }
    }
}

/// Escapes control characters: keys, paths and variable names may hold some, and a finding is one
/// line.
fn printable(text: &str) -> String {
    text.chars()
        .map(|c| {
            if c.is_control() {
                c.escape_default().to_string()
            } else {
                c.to_string()
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_each_and_sorted_by_position() {
        let position = |line, column| SourcePos::Position {
            file: Arc::from(Path::new("a\nb.toml")),
            line,
            column,
        };
        let mistakes = Mistakes::new(vec![
            problem("is odd", "do this").at(SourcePos::Environment("X".to_owned()), "k"),
            problem("is odd", "do this").at(position(10, 2), "k"),
            problem("is odd", "do this").at(position(9, 30), "a\u{1b}[31m"),
            problem("is odd", "do this").at(position(10, 2), "k"),
        ]);
        assert_eq!(
            mistakes.to_string(),
            "a\\nb.toml:9:30: a\\u{1b}[31m: is odd (do this)\n\
             a\\nb.toml:10:2: k: is odd (do this)\n\
             environment: X: k: is odd (do this)"
        );
    }
}
