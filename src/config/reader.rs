//! Takes values out of the raw configuration key by key, and notes what is wrong with them.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    findings::{Fault, Finding, Mistakes, Place, fault},
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

    pub(super) fn mistake(&mut self, place: Place, key: &str, fault: Fault) {
        self.mistakes.push(fault.at(place, key));
    }

    pub(super) fn warning(&mut self, place: Place, key: &str, fault: Fault) {
        self.warnings.push(fault.at(place, key));
    }

    /// A mistake that consists in a key's absence. Of a file that could not be read to its end, nothing is known to
    /// be absent.
    pub(super) fn missing(&mut self, place: Place, key: &str, fault: Fault) {
        if self.raw.complete {
            self.mistake(place, key, fault);
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
    pub(super) fn has_section(&self, section: &str) -> bool {
        keys::of_section(section).any(|path| self.is_given(&path))
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
    pub(super) fn stands(&self, section: &str) -> bool {
        self.raw.has_section(section) || self.has_section(section)
    }

    /// Where an element of a list was given.
    pub(super) fn place_of_element(&self, path: &str, index: usize) -> Place {
        let element = self.raw.entry(path).and_then(|entry| match &entry.value {
            Value::List(elements) => elements.get(index),
            _ => None,
        });
        element.map_or_else(|| self.place(path), |element| element.place.clone())
    }

    /// A key's value as it was given, for what is read and reported elsewhere.
    pub(super) fn value_of(&self, path: &str) -> Option<&Value> {
        self.raw.entry(path).map(|entry| &entry.value)
    }

    /// Where a key was given, or would be.
    pub(super) fn place(&self, path: &str) -> Place {
        self.raw
            .entry(path)
            .map_or_else(|| self.raw.place_for(path), |entry| entry.place.clone())
    }

    /// Where a secret was given, in words or by file.
    pub(super) fn place_of_secret(&self, path: &str) -> Place {
        let twin = keys::twin(path).filter(|twin| self.is_given(twin));
        self.place(twin.as_deref().unwrap_or(path))
    }

    /// Where the first key of a section was given.
    pub(super) fn place_of_section(&self, section: &str) -> Place {
        let given = keys::of_section(section).find(|path| self.is_given(path));
        given.map_or_else(|| self.raw.place_for(section), |path| self.place(&path))
    }

    /// A key's value, unless it is absent or wrong.
    pub(super) fn read<T>(
        &mut self,
        path: &str,
        parse: impl Fn(&Value) -> Result<T, Fault>,
    ) -> Option<T> {
        let Some(entry) = self.raw.entry(path) else {
            self.note_if_required(path);
            return None;
        };
        let place = entry.place.clone();
        let result = if values::is_placeholder(&entry.value) {
            Err(not_filled_in())
        } else {
            parse(&entry.value)
        };
        result
            .map_err(|fault| self.mistake(place, path, fault))
            .ok()
    }

    /// The elements of a list, each with its place.
    pub(super) fn list<T>(
        &mut self,
        path: &str,
        parse: impl Fn(&Value) -> Result<T, Fault>,
    ) -> Vec<(T, Place)> {
        let Some(entry) = self.raw.entry(path) else {
            self.note_if_required(path);
            return Vec::new();
        };
        let Value::List(elements) = &entry.value else {
            let fault = if values::is_placeholder(&entry.value) {
                not_filled_in()
            } else {
                fault(
                    "is a single value, not a list",
                    "put it in square brackets, as in [ … ]",
                )
            };
            let place = entry.place.clone();
            self.mistake(place, path, fault);
            return Vec::new();
        };
        let mut faults = Vec::new();
        let mut read = Vec::new();
        for element in elements {
            let value = &element.value;
            match if values::is_placeholder(value) {
                Err(not_filled_in())
            } else {
                parse(value)
            } {
                Ok(value) => read.push((value, element.place.clone())),
                Err(fault) => faults.push(fault.at(element.place.clone(), path)),
            }
        }
        self.mistakes.extend(faults);
        read
    }

    /// A list that must not be empty.
    pub(super) fn some_of<T>(
        &mut self,
        path: &str,
        parse: impl Fn(&Value) -> Result<T, Fault>,
    ) -> Vec<(T, Place)> {
        if let Some(entry) = self.raw.entry(path)
            && matches!(&entry.value, Value::List(elements) if elements.is_empty())
        {
            let place = entry.place.clone();
            let fault =
                hint(path, "is empty").unwrap_or_else(|| fault("is empty", "write at least one"));
            self.mistake(place, path, fault);
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
        Some(from_folder_of(&self.place(path), &file))
    }

    /// A local socket's path starts at the folder of the file that it was given in, like any other.
    pub(super) fn anchor_socket(&self, address: &mut Address, place: &Place) {
        if let Address::Unix(path) = address {
            *path = from_folder_of(place, path);
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
        words: impl Fn(&Value) -> Result<&str, Fault>,
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
                    keys::shown(path),
                    keys::shown(&twin)
                );
                self.mistake(
                    self.place(&twin),
                    &twin,
                    fault(reason, "keep one of the two"),
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
        let place = self.place(path);
        match Secret::from_file(file) {
            Ok(secret) if !secret.is_one_line() && !may_have_lines(secret.expose()) => {
                let reason = "names a file with more than one line, or with control characters";
                self.mistake(
                    place,
                    path,
                    fault(reason, "the file must hold the secret and nothing else"),
                );
                None
            }
            Ok(secret) => Some(secret),
            Err(error) => {
                let instead = format!(
                    "check path and permissions; the secret itself would be {}",
                    keys::shown(twin)
                );
                let fault = fault(
                    format!("names a file that cannot be read: {error}"),
                    instead,
                )
                .or_variable(format!(
                    "check path and permissions; the secret itself would be {}",
                    keys::variable(twin)
                ));
                self.mistake(place, path, fault);
                None
            }
        }
    }

    fn note_if_required(&mut self, path: &str) {
        if let Some(fault) = hint(path, "is missing") {
            self.missing(self.place(path), path, fault);
        }
    }
}

/// What to say of a key that must have a value and has none.
fn hint(path: &str, reason: &str) -> Option<Fault> {
    let key = keys::find(path)?;
    let Presence::Required { shown, hint } = key.presence else {
        return None;
    };
    // Named upstreams have the keys of the plain one.
    let (section, _) = path.rsplit_once('.')?;
    let hint = hint.replace(
        &keys::header(key.section()),
        &keys::header(&keys::shown(section)),
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
    Some(fault(reason, hint).or_variable(variable))
}

fn not_filled_in() -> Fault {
    fault(
        "not filled in yet",
        "replace the placeholder, angle brackets included",
    )
}

fn from_folder_of(place: &Place, file: &Path) -> PathBuf {
    match place {
        Place::Position { file: config, .. } => config
            .parent()
            .map_or_else(|| file.to_owned(), |dir| dir.join(file)),
        Place::Nowhere | Place::File(_) | Place::Environment(_) | Place::CommandLine => {
            file.to_owned()
        }
    }
}
