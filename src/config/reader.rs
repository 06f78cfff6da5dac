//! Reads values from the raw configuration by key, and collects mistakes and warnings.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    findings::{Finding, Mistakes, Problem, SourcePos, problem},
    keys::{self, Presence},
    raw::{Entry, Raw, Value},
    values,
};
use crate::{
    base::{process, secret::Secret},
    net::socket::Address,
};

/// Reads keys and collects findings. After a mistake its methods return a stand-in, so that reading
/// continues and finds the other mistakes; [`Reader::finish`] then drops the result.
pub(super) struct Reader {
    raw: Raw,
    mistakes: Vec<Finding>,
    warnings: Vec<Finding>,
    exposed_files: Vec<Finding>,
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
            exposed_files: Vec::new(),
        }
    }

    /// Warnings of files with secrets that every user can read or write: the configuration file, if
    /// it contains some, and secret files.
    pub(super) fn exposed_files(&mut self) -> Vec<Finding> {
        let inline = self.raw.inline_secrets().into_iter().min();
        if let Some((SourcePos::Position { file, .. }, _)) = &inline
            && let Some(mode) = process::mode_open_to_all(file)
            && let Some((pos, path)) = inline
        {
            let reason = format!(
                "is a secret in a file of mode {mode:03o}, which every user of this machine can {}",
                access_verb(mode)
            );
            let twin = keys::twin(&path).map(|twin| keys::without_index(&twin).into_owned());
            let hint = format!(
                "chmod 600 the file, or move the secret to a file of its own with {}",
                twin.unwrap_or_default()
            );
            self.exposed_files
                .push(problem(reason, hint).at(pos, &path));
        }
        for key in self.raw.private_keys() {
            let file = self.raw.entry(&key).map(|entry| values::path(&entry.value));
            if let Some(Ok(file)) = file {
                self.check_exposure(&key, &from_folder_of(&self.pos(&key), &file));
            }
        }
        let mut found = std::mem::take(&mut self.exposed_files);
        found.sort();
        found
    }

    /// Returns the result and the warnings, or the mistakes if there are any.
    pub(super) fn finish<T>(mut self, result: Option<T>) -> Result<(T, Vec<Finding>), Mistakes> {
        match result {
            Some(result) if self.mistakes.is_empty() => {
                self.warnings.sort();
                Ok((result, self.warnings))
            }
            Some(_) | None => Err(Mistakes::new(self.mistakes)),
        }
    }

    /// Returns a part of the result, or the mistakes in the keys of that part.
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

    /// Reports that a key is missing, unless the file has syntax errors: then no key is known to be
    /// absent.
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

    /// Whether any key of a section without defaults was given.
    pub(super) fn has_keys(&self, section: &str) -> bool {
        keys::keys_in(section).any(|path| self.is_given(&path))
    }

    /// The paths of the named upstreams: `upstreams.NAME`.
    pub(super) fn upstreams(&self) -> Vec<String> {
        self.raw.upstreams()
    }

    /// The paths of the tables of an array: `route[3]`.
    pub(super) fn tables(&self, list: &str) -> Vec<String> {
        self.raw.tables(list)
    }

    /// Whether a section exists, be it without a key.
    pub(super) fn section_exists(&self, section: &str) -> bool {
        self.raw.has_section(section) || self.has_keys(section)
    }

    /// The position of an element of a list.
    pub(super) fn pos_of_element(&self, path: &str, index: usize) -> SourcePos {
        let element = self.raw.entry(path).and_then(|entry| match &entry.value {
            Value::List(elements) => elements.get(index),
            _ => None,
        });
        element.map_or_else(|| self.pos(path), |element| element.pos.clone())
    }

    /// A key's value as given. The caller does not report mistakes in it.
    pub(super) fn raw_value(&self, path: &str) -> Option<&Value> {
        self.raw.entry(path).map(|entry| &entry.value)
    }

    /// The elements of a list as given, or the single value, with their positions. The caller does
    /// not report mistakes in them.
    pub(super) fn elements(&self, path: &str) -> Vec<(&Value, &SourcePos)> {
        let entries = match self.raw.entry(path) {
            Some(Entry {
                value: Value::List(elements),
                ..
            }) => elements.as_slice(),
            Some(entry) => std::slice::from_ref(entry),
            None => &[],
        };
        let entries = entries.iter();
        entries.map(|entry| (&entry.value, &entry.pos)).collect()
    }

    /// The position of a key, or where it belongs.
    pub(super) fn pos(&self, path: &str) -> SourcePos {
        self.raw
            .entry(path)
            .map_or_else(|| self.raw.pos_for(path), |entry| entry.pos.clone())
    }

    /// The position of a secret, or of its twin if that was given.
    pub(super) fn pos_of_secret(&self, path: &str) -> SourcePos {
        let twin = keys::twin(path).filter(|twin| self.is_given(twin));
        self.pos(twin.as_deref().unwrap_or(path))
    }

    /// The position of the first given key of a section.
    pub(super) fn pos_of_section(&self, section: &str) -> SourcePos {
        let given = keys::keys_in(section).find(|path| self.is_given(path));
        given.map_or_else(|| self.raw.pos_for(section), |path| self.pos(&path))
    }

    /// A key's value, unless it is absent or invalid.
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

    /// The elements of a list with their positions.
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

    /// A list with at least one element.
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

    /// A value, or a list with at least one.
    pub(super) fn one_or_more<T>(
        &mut self,
        path: &str,
        parse: impl Fn(&Value) -> Result<T, Problem>,
    ) -> Vec<(T, SourcePos)> {
        match self.raw_value(path) {
            None | Some(Value::List(_)) => self.non_empty_list(path, parse),
            Some(_) => {
                let pos = self.pos(path);
                let value = self.read(path, parse);
                value.map(|value| (value, pos)).into_iter().collect()
            }
        }
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

    /// A number from 1 to `most`.
    pub(super) fn count(&mut self, path: &str, most: u32) -> Option<usize> {
        self.read(path, |value| values::integer(value, 1, most))
            .and_then(|count| count.try_into().ok())
    }

    pub(super) fn text(&mut self, path: &str) -> String {
        self.read(path, |value| values::text(value).map(str::to_owned))
            .unwrap_or_default()
    }

    /// A path, relative to the folder of the configuration file if it was given there.
    pub(super) fn path(&mut self, path: &str) -> Option<PathBuf> {
        let file = self.read(path, values::path)?;
        Some(from_folder_of(&self.pos(path), &file))
    }

    /// Resolves a Unix socket's path, which is relative to the configuration file as well.
    pub(super) fn resolve_socket_path(&self, address: &mut Address, pos: &SourcePos) {
        if let Address::Unix(path) = address {
            *path = from_folder_of(pos, path);
        }
    }

    /// A secret of one line, given by its key or by its twin `…_file`.
    pub(super) fn secret(&mut self, path: &str) -> Option<Secret> {
        self.secret_of(path, values::text, |_| false)
    }

    /// A cryptographic key, given by its key or by its twin `…_file`: it may be PEM, which has
    /// several lines.
    pub(super) fn key(&mut self, path: &str) -> Option<Secret> {
        self.secret_of(path, values::key_material, values::is_pem)
    }

    /// Secrets on one line each, given by a key or by its twin `…_file`.
    pub(super) fn key_lines(&mut self, path: &str) -> Option<Secret> {
        self.secret_of(path, values::keys_in_lines, values::is_in_lines)
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

    /// Messages do not quote the file's name: it may be the secret itself, given by mistake.
    fn secret_from_file(
        &mut self,
        path: &str,
        twin: &str,
        may_have_lines: impl Fn(&str) -> bool,
    ) -> Option<Secret> {
        let file = self.path(path)?;
        let pos = self.pos(path);
        self.check_exposure(path, &file);
        match Secret::from_file(file) {
            Ok(secret) if !secret.is_one_line() && !may_have_lines(secret.expose()) => {
                let reason = "names a file with more than one line, or with control characters";
                self.mistake(
                    pos,
                    path,
                    problem(reason, "the file must contain only the secret"),
                );
                None
            }
            Ok(secret) => Some(secret),
            Err(error) => {
                let hint = unreadable_hint(error.kind(), process::user_id());
                let secret_itself =
                    |key: &str| format!("{hint}; the secret itself belongs in {key}");
                let problem = problem(
                    format!("names a file that cannot be read: {error}"),
                    secret_itself(&keys::without_index(twin)),
                )
                .or_variable(secret_itself(&keys::variable(twin)));
                self.mistake(pos, path, problem);
                None
            }
        }
    }

    fn check_exposure(&mut self, key: &str, file: &Path) {
        let Some(mode) = process::mode_open_to_all(file) else {
            return;
        };
        let reason = format!(
            "names a file of mode {mode:03o}, which every user of this machine can {}",
            access_verb(mode)
        );
        let hint = "chmod 600 the file, or 640 with a group of the proxy's user; in Kubernetes, \
            set defaultMode of the volume";
        self.exposed_files
            .push(problem(reason, hint).at(self.pos(key), key));
    }

    fn report_if_required(&mut self, path: &str) {
        if let Some(problem) = missing_value(path, "is missing") {
            self.missing(self.pos(path), path, problem);
        }
    }
}

fn access_verb(mode: u32) -> &'static str {
    if mode & 0o002 == 0 { "read" } else { "change" }
}

/// The hint for a secret file that cannot be read. In a container, the process usually has another
/// user than the owner of the file.
fn unreadable_hint(kind: io::ErrorKind, user: Option<u32>) -> String {
    match (kind, user) {
        (io::ErrorKind::PermissionDenied, Some(user)) => {
            format!("the process runs as user {user}, which must be able to read it")
        }
        _ => "check the path and the permissions".to_owned(),
    }
}

/// The problem of a required key without a value.
fn missing_value(path: &str, reason: &str) -> Option<Problem> {
    let key = keys::find(path)?;
    let Presence::Required { shown, hint } = key.presence else {
        return None;
    };
    // Named upstreams have the same keys, in another section.
    let (section, _) = path.rsplit_once('.')?;
    let hint = hint.replace(
        &keys::header(key.section()),
        &keys::header(&keys::without_index(section)),
    );
    let file = key
        .twin()
        .map(|twin| format!(", or {} to a file with the value", twin.variable()))
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
        "replace the placeholder and its angle brackets",
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

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use super::unreadable_hint;

    #[test]
    fn the_hint_on_a_secret_file_without_permission_names_the_user() {
        let hint = unreadable_hint(ErrorKind::PermissionDenied, Some(65532));
        assert!(hint.contains("user 65532"), "{hint}");
        let hint = unreadable_hint(ErrorKind::NotFound, Some(65532));
        assert!(!hint.contains("65532"), "{hint}");
    }
}
