//! Errors of the TOML parser, one a line and with a hint.

use std::{collections::BTreeMap, ops::Range, path::Path, sync::Arc};

use toml::de::Error;

use super::findings::{Finding, Problem, SourcePos, problem};

/// The lines that are not TOML, and the lines that are meaningless because of them.
pub(super) struct SyntaxErrors<'a> {
    /// The offset and the message of each line's first error: the parser reports a line's form
    /// before its content.
    lines: BTreeMap<usize, (usize, &'a str)>,
    /// Lines below a malformed section header. The parser assigns their keys to the section above.
    dropped: Vec<Range<usize>>,
}

impl<'a> SyntaxErrors<'a> {
    pub(super) fn new(errors: &'a [Error], source: &SourceText<'_>) -> Self {
        let mut lines = BTreeMap::new();
        for error in errors {
            let start = error.span().map_or(0, |span| span.start);
            lines
                .entry(source.line(start))
                .or_insert((start, error.message()));
        }
        let text: Vec<&str> = source.text.lines().map(str::trim).collect();
        let line = |number: usize| text.get(number - 1).copied().unwrap_or_default();
        let is_section =
            |number: &usize| line(*number).starts_with('[') && !lines.contains_key(number);
        // The parser understands text behind a valid header, and a second section of the same name.
        let is_dropped = |number: &usize, message: &str| {
            looks_like_section(line(*number))
                && !message.starts_with("unexpected key")
                && !message.starts_with("duplicate key")
        };
        let malformed = lines
            .iter()
            .filter(|(number, (_, message))| is_dropped(number, message));
        // The header of the next section may have been parsed as a part of the malformed one.
        let dropped: Vec<_> = malformed
            .map(|(number, _)| {
                number + 1
                    ..(number + 1..=text.len())
                        .find(is_section)
                        .unwrap_or(text.len())
                        + 1
            })
            .collect();
        let is_dropped = |number: &usize| dropped.iter().any(|range| range.contains(number));
        lines.retain(|number, (_, message)| {
            !(message.starts_with("duplicate key") && is_dropped(number))
        });
        Self { lines, dropped }
    }

    /// Whether a value at this position is an artefact of a syntax error.
    pub(super) fn covers(&self, pos: &SourcePos) -> bool {
        let SourcePos::Position { line, .. } = pos else {
            return false;
        };
        self.lines.contains_key(line) || self.dropped.iter().any(|range| range.contains(line))
    }

    pub(super) fn mistakes(&self, source: &SourceText<'_>) -> Vec<Finding> {
        // An unclosed list causes the same error in every line below it.
        let mut last = "";
        let mut mistakes = Vec::new();
        for &(start, message) in self.lines.values() {
            if message != last || !message.starts_with("missing comma") {
                mistakes.push(syntax_problem(message, source.text, start).at(source.at(start), ""));
            }
            last = message;
        }
        mistakes
    }
}

/// Whether the line was meant as a section header: `[upstream`, `upstream]`, `{upstream}`,
/// `upstream:`.
fn looks_like_section(line: &str) -> bool {
    let is_named = line.contains(|c: char| c.is_ascii_alphabetic());
    is_named && (line.starts_with(['[', '{']) || !line.contains('=') && line.ends_with([']', ':']))
}

/// Converts the parser's byte offsets into lines and columns.
pub(super) struct SourceText<'a> {
    pub(super) file: Arc<Path>,
    pub(super) text: &'a str,
}

impl SourceText<'_> {
    pub(super) fn at(&self, offset: usize) -> SourcePos {
        let before = self.text.get(..offset).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |index| index + 1);
        let column = before[line_start..].chars().count() + 1;
        SourcePos::Position {
            file: Arc::clone(&self.file),
            line: self.line(offset),
            column,
        }
    }

    fn line(&self, offset: usize) -> usize {
        self.text
            .get(..offset)
            .unwrap_or(self.text)
            .matches('\n')
            .count()
            + 1
    }
}

/// The parser's messages name what it expected and do not quote the text, which may be a secret.
fn syntax_problem(message: &str, text: &str, offset: usize) -> Problem {
    let line_start = text
        .get(..offset)
        .and_then(|before| before.rfind('\n'))
        .map_or(0, |index| index + 1);
    let near = text.get(line_start..offset).unwrap_or_default();
    let line = text
        .get(line_start..)
        .and_then(|rest| rest.lines().next())
        .unwrap_or_default();
    let hint = if near.ends_with('\\')
        || text
            .get(offset..)
            .is_some_and(|rest| rest.starts_with('\\'))
    {
        BACKSLASH_HINT
    } else if message.contains("expected `\"`") || message.contains("expected `'`") {
        "end the text with the quote that it begins with, on the same line"
    } else if looks_like_section(line.trim()) && !message.starts_with("duplicate key") {
        "a section begins with a line like [upstream]"
    } else if message.contains("array") {
        "put commas between the elements of a list, and ] at its end"
    } else if message.contains("unicode value digits") {
        BACKSLASH_HINT
    } else if message.contains("must be quoted") {
        "put the value in quotes"
    } else if message.starts_with("duplicate key") {
        "keep one of the two"
    } else {
        r#"a line is key = "text", key = number, key = ["text", "text"], [section], or # a comment"#
    };
    problem(format!("this is not TOML: {message}"), hint)
}

/// The hint for a Windows path in double quotes.
pub(super) const BACKSLASH_HINT: &str = "a backslash in double quotes begins an escape: write \
     the path in single quotes, as in 'C:\\proxy\\token.json', or with forward slashes";
