//! Takes values out of the raw configuration key by key, and notes what is wrong with them.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    findings::{Finding, Mistakes, Problem, SourcePos, problem},
    keys::{self, Presence},
    raw::{Raw, Value},
    values,
};
use crate::{base::secret::Secret, net::socket::Address};

/// Reads keys and collects findings. After a mistake a reader's method returns a stand-in, so that reading goes on and
/// finds the next one; [`Reader::finish`] then throws the result away.
pub(super) struct Reader {
    raw: Raw,
    mistakes: Vec<Finding>,
    warnings: Vec<Finding>,
}

impl Reader {
    pub(super) fn new(mut raw: Raw) -> Self {
        let mistakes = std::mem::take(&mut raw.mistakes);
        let warnings = std::mem::take(&mut raw.warnings);
        raw.add_defaults();
        Self {
            raw,
            mistakes,
            warnings,
        }
    }

    /// The result and the warnings, unless there was a mistake.
    pub(super) fn finish<T>(mut self, result: Option<T>) -> Result<(T, Vec<Finding>), Mistakes> {
        match result {
            Some(result) if self.mistakes.is_empty() => {
                self.warnings.sort();
                Ok((result, self.warnings))
            }
            Some(_) | None => Err(Mistakes::new(self.mistakes)),
        }
    }

    /// A part of the result, unless there was a mistake in a key of that part.
    pub(super) fn finish_part<T>(self, keys: &str, result: T) -> Result<T, Mistakes> {
        let of_part: Vec<_> = self
            .mistakes
            .into_iter()
            .filter(|mistake| mistake.key.starts_with(keys))
            .collect();
        if of_part.is_empty() {
            Ok(result)
        } else {
            Err(Mistakes::new(of_part))
        }
    }

    pub(super) fn mistake(&mut self, pos: SourcePos, key: &str, problem: Problem) {
        self.mistakes.push(problem.at(pos, key));
    }

    pub(super) fn warning(&mut self, pos: SourcePos, key: &str, problem: Problem) {
        self.warnings.push(problem.at(pos, key));
    }

    /// A mistake that consists in a key's absence. Of a file that could not be read to its end, nothing is known to
    /// be absent.
    pub(super) fn missing(&mut self, pos: SourcePos, key: &str, problem: Problem) {
        if self.raw.complete {
            self.mistake(pos, key, problem);
        }
    }

    /// Whether a key without a default was given.
    pub(super) fn is_given(&self, path: &str) -> bool {
        self.raw.entry(path).is_some()
    }

    /// Whether a secret was given, by its own key or by its twin `…_file`.
    pub(super) fn is_secret_given(&self, path: &str) -> bool {
        self.is_given(path) || keys::twin(path).is_some_and(|twin| self.is_given(&twin))
    }

    /// Whether any key of a section that has no defaults was given.
    pub(super) fn has_keys(&self, section: &str) -> bool {
        keys::keys_in(section).any(|path| self.is_given(&path))
    }

    /// The paths of the named upstreams: `upstreams.NAME`.
    pub(super) fn upstreams(&self) -> Vec<String> {
        self.raw.upstreams()
    }

    /// The paths of the tables of one list: `route[3]`.
    pub(super) fn tables(&self, list: &str) -> Vec<String> {
        self.raw.tables(list)
    }

    /// Whether a section was begun, be it with no key in it.
    pub(super) fn section_exists(&self, section: &str) -> bool {
        self.raw.has_section(section) || self.has_keys(section)
    }

    /// Where an element of a list was given.
    pub(super) fn pos_of_element(&self, path: &str, index: usize) -> SourcePos {
        let element = self.raw.entry(path).and_then(|entry| match &entry.value {
            Value::List(elements) => elements.get(index),
            _ => None,
        });
        element.map_or_else(|| self.pos(path), |element| element.pos.clone())
    }

    /// A key's value as it was given, for what is read and reported elsewhere.
    pub(super) fn raw_value(&self, path: &str) -> Option<&Value> {
        self.raw.entry(path).map(|entry| &entry.value)
    }

    /// Where a key was given, or would be.
    pub(super) fn pos(&self, path: &str) -> SourcePos {
        self.raw
            .entry(path)
            .map_or_else(|| self.raw.pos_for(path), |entry| entry.pos.clone())
    }

    /// Where a secret was given, in words or by file.
    pub(super) fn pos_of_secret(&self, path: &str) -> SourcePos {
        let twin = keys::twin(path).filter(|twin| self.is_given(twin));
        self.pos(twin.as_deref().unwrap_or(path))
    }

    /// Where the first key of a section was given.
    pub(super) fn pos_of_section(&self, section: &str) -> SourcePos {
        let given = keys::keys_in(section).find(|path| self.is_given(path));
        given.map_or_else(|| self.raw.pos_for(section), |path| self.pos(&path))
    }

    /// A key's value, unless it is absent or wrong.
    pub(super) fn read<T>(
        &mut self,
        path: &str,
        parse: impl Fn(&Value) -> Result<T, Problem>,
    ) -> Option<T> {
        let Some(entry) = self.raw.entry(path) else {
            self.report_if_required(path);
            return None;
        };
        let pos = entry.pos.clone();
        let result = if values::is_placeholder(&entry.value) {
            Err(not_filled_in())
        } else {
            parse(&entry.value)
        };
        result
            .map_err(|problem| self.mistake(pos, path, problem))
            .ok()
    }

    /// The elements of a list, each with its place.
    pub(super) fn list<T>(
        &mut self,
        path: &str,
        parse: impl Fn(&Value) -> Result<T, Problem>,
    ) -> Vec<(T, SourcePos)> {
        let Some(entry) = self.raw.entry(path) else {
            self.report_if_required(path);
            return Vec::new();
        };
        let Value::List(elements) = &entry.value else {
            let problem = if values::is_placeholder(&entry.value) {
                not_filled_in()
            } else {
                problem(
                    "is a single value, not a list",
                    "put it in square brackets, as in [ … ]",
                )
            };
            let pos = entry.pos.clone();
            self.mistake(pos, path, problem);
            return Vec::new();
        };
        let mut problems = Vec::new();
        let mut read = Vec::new();
        for element in elements {
            let value = &element.value;
            match if values::is_placeholder(value) {
                Err(not_filled_in())
            } else {
                parse(value)
            } {
                Ok(value) => read.push((value, element.pos.clone())),
                Err(problem) => problems.push(problem.at(element.pos.clone(), path)),
            }
        }
        self.mistakes.extend(problems);
        read
    }

    /// A list that must not be empty.
    pub(super) fn non_empty_list<T>(
        &mut self,
        path: &str,
        parse: impl Fn(&Value) -> Result<T, Problem>,
    ) -> Vec<(T, SourcePos)> {
        if let Some(entry) = self.raw.entry(path)
            && matches!(&entry.value, Value::List(elements) if elements.is_empty())
        {
            let pos = entry.pos.clone();
            let problem = missing_value(path, "is empty")
                .unwrap_or_else(|| problem("is empty", "write at least one"));
            self.mistake(pos, path, problem);
        }
        self.list(path, parse)
    }

    pub(super) fn choice<T: Copy, const N: usize>(
        &mut self,
        path: &str,
        choices: [(&str, T); N],
    ) -> T {
        let stand_in = choices[0].1;
        self.read(path, |value| values::choice(value, &choices))
            .unwrap_or(stand_in)
    }

    pub(super) fn boolean(&mut self, path: &str) -> bool {
        self.read(path, values::boolean).unwrap_or_default()
    }

    pub(super) fn duration(&mut self, path: &str) -> Duration {
        self.read(path, values::duration).unwrap_or_default()
    }

    pub(super) fn positive_duration(&mut self, path: &str) -> Duration {
        self.read(path, values::positive_duration)
            .unwrap_or_default()
    }

    /// A number from one to `most`.
    pub(super) fn count(&mut self, path: &str, most: u32) -> Option<usize> {
        self.read(path, |value| values::integer(value, 1, most))
            .and_then(|count| count.try_into().ok())
    }

    pub(super) fn text(&mut self, path: &str) -> String {
        self.read(path, |value| values::text(value).map(str::to_owned))
            .unwrap_or_default()
    }

    /// A path; relative ones start at the folder of the file that they were given in.
    pub(super) fn path(&mut self, path: &str) -> Option<PathBuf> {
        let file = self.read(path, values::path)?;
        Some(from_folder_of(&self.pos(path), &file))
    }

    /// A local socket's path starts at the folder of the file that it was given in, like any other.
    pub(super) fn resolve_socket_path(&self, address: &mut Address, pos: &SourcePos) {
        if let Address::Unix(path) = address {
            *path = from_folder_of(pos, path);
        }
    }

    /// A secret of one line, given in words or by its twin `…_file`.
    pub(super) fn secret(&mut self, path: &str) -> Option<Secret> {
        self.secret_of(path, values::text, |_| false)
    }

    /// A key, given in words or by its twin `…_file`: a secret that may be a PEM text.
    pub(super) fn key(&mut self, path: &str) -> Option<Secret> {
        self.secret_of(path, values::key_material, values::is_pem)
    }

    fn secret_of(
        &mut self,
        path: &str,
        words: impl Fn(&Value) -> Result<&str, Problem>,
        may_have_lines: impl Fn(&str) -> bool,
    ) -> Option<Secret> {
        let in_words = |r: &mut Self| r.read(path, |value| words(value).map(Secret::new));
        let Some(twin) = keys::twin(path) else {
            return in_words(self);
        };
        match (self.is_given(path), self.is_given(&twin)) {
            (true, true) => {
                let reason = format!(
                    "{} and {} are both set",
                    keys::without_index(path),
                    keys::without_index(&twin)
                );
                self.mistake(
                    self.pos(&twin),
                    &twin,
                    problem(reason, "keep one of the two"),
                );
                None
            }
            (false, true) => self.secret_from_file(&twin, path, may_have_lines),
            (_, false) => in_words(self),
        }
    }

    /// The file's name is not repeated: people put the secret itself there by mistake.
    fn secret_from_file(
        &mut self,
        path: &str,
        twin: &str,
        may_have_lines: impl Fn(&str) -> bool,
    ) -> Option<Secret> {
        let file = self.path(path)?;
        let pos = self.pos(path);
        match Secret::from_file(file) {
            Ok(secret) if !secret.is_one_line() && !may_have_lines(secret.expose()) => {
                let reason = "names a file with more than one line, or with control characters";
                self.mistake(
                    pos,
                    path,
                    problem(reason, "the file must hold the secret and nothing else"),
                );
                None
            }
            Ok(secret) => Some(secret),
            Err(error) => {
                let hint = format!(
                    "check path and permissions; the secret itself would be {}",
                    keys::without_index(twin)
                );
                let problem = problem(format!("names a file that cannot be read: {error}"), hint)
                    .or_variable(format!(
                        "check path and permissions; the secret itself would be {}",
                        keys::variable(twin)
                    ));
                self.mistake(pos, path, problem);
                None
            }
        }
    }

    fn report_if_required(&mut self, path: &str) {
        if let Some(problem) = missing_value(path, "is missing") {
            self.missing(self.pos(path), path, problem);
        }
    }
}

/// What to say of a key that must have a value and has none.
fn missing_value(path: &str, reason: &str) -> Option<Problem> {
    let key = keys::find(path)?;
    let Presence::Required { shown, hint } = key.presence else {
        return None;
    };
    // Named upstreams have the keys of the plain one.
    let (section, _) = path.rsplit_once('.')?;
    let hint = hint.replace(
        &keys::header(key.section()),
        &keys::header(&keys::without_index(section)),
    );
    let file = key
        .twin()
        .map(|twin| format!(", or {} to a file that holds it", twin.variable()))
        .unwrap_or_default();
    let variable = format!(
        "set {}={}{file}",
        keys::variable(path),
        shown.trim_matches(['[', ']', '"'])
    );
    Some(problem(reason, hint).or_variable(variable))
}

fn not_filled_in() -> Problem {
    problem(
        "not filled in yet",
        "replace the placeholder, angle brackets included",
    )
}

fn from_folder_of(pos: &SourcePos, file: &Path) -> PathBuf {
    match pos {
        SourcePos::Position { file: config, .. } => config
            .parent()
            .map_or_else(|| file.to_owned(), |dir| dir.join(file)),
        SourcePos::Nowhere
        | SourcePos::File(_)
        | SourcePos::Environment(_)
        | SourcePos::CommandLine => file.to_owned(),
    }
}
