//! The values as given in the file, the environment and the command line, each with its position.
//! This stage knows which keys exist, and not what their values mean.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    ops::Range,
    path::Path,
    sync::Arc,
};

use toml::de::{DeTable, DeValue};
use zeroize::Zeroizing;

use super::{
    findings::{Finding, SourcePos, problem},
    keys::{self, Kind, Presence},
    suggest::{self, Guess},
    syntax::{SourceText, SyntaxErrors},
};

/// All given values; of several for one key, the one with the highest precedence.
pub(super) struct Raw {
    entries: BTreeMap<String, Entry>,
    sections: BTreeMap<String, SourcePos>,
    /// The paths of named upstreams: `upstreams.NAME`.
    upstreams: BTreeSet<String>,
    /// The paths of the tables in arrays: `route[3]`.
    tables: BTreeMap<(&'static str, usize), String>,
    /// The position of a missing key without a section: the end of the file.
    end: Option<SourcePos>,
    /// Whether the whole file was parsed. Otherwise an absent key is not known to be missing.
    pub(super) complete: bool,
    pub(super) mistakes: Vec<Finding>,
    pub(super) warnings: Vec<Finding>,
}

pub(super) struct Entry {
    pub(super) value: Value,
    pub(super) pos: SourcePos,
}

/// A value as given. It may be a secret: it has no `Debug`, and its text is wiped on drop.
pub(super) enum Value {
    Text(Zeroizing<String>),
    Integer(i64),
    Bool(bool),
    List(Vec<Entry>),
    Table(Vec<(String, Entry)>),
    /// A type that no key accepts; the text names it.
    Other(&'static str),
}

impl Raw {
    pub(super) fn new() -> Self {
        Self {
            entries: BTreeMap::new(),
            sections: BTreeMap::new(),
            upstreams: BTreeSet::new(),
            tables: BTreeMap::new(),
            end: None,
            complete: true,
            mistakes: Vec::new(),
            warnings: Vec::new(),
        }
    }

    /// A key's value, if one was given.
    pub(super) fn entry(&self, path: &str) -> Option<&Entry> {
        self.entries.get(path)
    }

    /// The paths of the named upstreams.
    pub(super) fn upstreams(&self) -> Vec<String> {
        self.upstreams.iter().cloned().collect()
    }

    /// The paths of the tables of an array, in the order of the file.
    pub(super) fn tables(&self, list: &str) -> Vec<String> {
        self.tables
            .iter()
            .filter(|((name, _), _)| *name == list)
            .map(|(_, path)| path.clone())
            .collect()
    }

    /// Whether the file has this section.
    pub(super) fn has_section(&self, section: &str) -> bool {
        self.sections.contains_key(section)
    }

    /// The position where a missing key belongs: that of its section.
    pub(super) fn pos_for(&self, path: &str) -> SourcePos {
        let mut section = path;
        while let Some((outer, _)) = section.rsplit_once('.') {
            if let Some(pos) = self.sections.get(outer) {
                return pos.clone();
            }
            section = outer;
        }
        self.end
            .clone()
            .unwrap_or_else(|| SourcePos::Environment(keys::variable(path)))
    }

    /// Sets the default of every key that was not given.
    pub(super) fn add_defaults(&mut self) {
        let plain = keys::keys()
            .iter()
            .filter(|key| !key.is_in_array())
            .map(|key| (key.path.to_owned(), key));
        let sections = self.upstreams.iter().chain(self.tables.values());
        let all: Vec<_> = plain
            .chain(sections.flat_map(|section| keys::below(section)))
            .collect();
        for (path, key) in all {
            if let Presence::Default(text) = key.presence
                && !self.entries.contains_key(&path)
                && let Some(value) = Value::from_toml_text(text)
            {
                let pos = self.pos_for(&path);
                self.entries.insert(path, Entry { value, pos });
            }
        }
    }

    /// The secrets that were given in the file itself: position and key.
    pub(super) fn inline_secrets(&self) -> Vec<(SourcePos, String)> {
        let secrets = self.entries.iter().filter(|(path, entry)| {
            keys::find(path).is_some_and(|key| key.kind == Kind::Secret)
                && matches!(entry.pos, SourcePos::Position { .. })
        });
        secrets
            .map(|(path, entry)| (entry.pos.clone(), path.clone()))
            .collect()
    }

    /// The paths of the keys that name files with private keys of TLS.
    pub(super) fn private_keys(&self) -> Vec<String> {
        let names = ["tls.key_file", "tls.client_key_file"];
        let is_private = |path: &&String| names.iter().any(|name| path.ends_with(name));
        self.entries.keys().filter(is_private).cloned().collect()
    }

    /// Reads the text of a file.
    pub(super) fn add_file(&mut self, file: &Path, text: &str) {
        // Some Windows editors write a byte order mark. Columns do not count it.
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let source = SourceText {
            file: Arc::from(file),
            text,
        };
        let (table, errors) = DeTable::parse_recoverable(text);
        self.complete = errors.is_empty();
        self.end = Some(source.at(text.len()));
        self.add_table("", table.get_ref(), &source);

        // Findings for the remains of a malformed line would mislead.
        let errors_found = SyntaxErrors::new(&errors, &source);
        self.mistakes
            .retain(|mistake| !errors_found.covers(&mistake.pos));
        self.entries
            .retain(|_, entry| !entry.positions().any(|pos| errors_found.covers(pos)));
        self.mistakes.extend(errors_found.mistakes(&source));
    }

    fn add_table(&mut self, prefix: &str, table: &DeTable<'_>, source: &SourceText<'_>) {
        for (name, value) in table {
            let path = if prefix.is_empty() {
                name.get_ref().to_string()
            } else {
                format!("{prefix}.{}", name.get_ref())
            };
            let pos = source.at(name.span().start);
            // `"proxy.listen" = …` is a single name with a dot, not a key in a section.
            let is_odd = name.get_ref().contains(['.', '[']);
            let list = keys::ARRAYS.into_iter().find(|list| *list == path);
            if let Some(list) = list {
                self.add_list(list, value.get_ref(), pos, source);
                continue;
            }
            match value.get_ref() {
                given if !is_odd && keys::find(&path).is_some() => {
                    let pos = source.at(value.span().start);
                    self.set(
                        &path,
                        Entry {
                            value: Value::from_toml(given, source),
                            pos,
                        },
                    );
                }
                DeValue::Table(inner) if path == keys::UPSTREAMS => {
                    self.add_upstreams(inner, source);
                }
                DeValue::Table(inner) if !is_odd && keys::is_section(&path) => {
                    self.sections.insert(path.clone(), pos);
                    self.add_table(&path, inner, source);
                }
                _ if !is_odd && (keys::is_section(&path) || path == keys::UPSTREAMS) => {
                    let header = if path == keys::UPSTREAMS {
                        "[upstreams.NAME]".to_owned()
                    } else {
                        keys::header(&path)
                    };
                    let hint = format!("write the line {header} once, and its keys below");
                    self.mistakes
                        .push(problem("is a section, not a value", hint).at(pos, &path));
                }
                _ => self
                    .mistakes
                    .push(suggest::unknown_key(prefix, name.get_ref()).at(pos, &path)),
            }
        }
    }

    /// Reads an array of tables, as `[[route]]`.
    fn add_list(
        &mut self,
        list: &'static str,
        given: &DeValue<'_>,
        pos: SourcePos,
        source: &SourceText<'_>,
    ) {
        let header = keys::header(list);
        let DeValue::Array(elements) = given else {
            let hint = format!("write {header}, with double brackets, and its keys below");
            self.mistakes
                .push(problem("is an array of tables", hint).at(pos, list));
            return;
        };
        for (index, element) in elements.iter().enumerate() {
            let pos = source.at(element.span().start);
            let DeValue::Table(inner) = element.get_ref() else {
                let hint = format!("write {header}, and its keys below");
                self.mistakes
                    .push(problem("is not a table", hint).at(pos, list));
                continue;
            };
            let path = format!("{list}[{index}]");
            self.sections.insert(path.clone(), pos);
            self.tables.insert((list, index), path.clone());
            self.add_table(&path, inner, source);
        }
    }

    /// Reads `[upstreams.NAME]`.
    fn add_upstreams(&mut self, named: &DeTable<'_>, source: &SourceText<'_>) {
        for (name, value) in named {
            let path = format!("{}.{}", keys::UPSTREAMS, name.get_ref());
            let pos = source.at(name.span().start);
            let problem = match value.get_ref() {
                DeValue::Table(_) if name.get_ref() == keys::DEFAULT => problem(
                    "is reserved for [upstream]",
                    "write [upstream], or choose another name",
                ),
                DeValue::Table(_) if !is_upstream_name(name.get_ref()) => problem(
                    "is not a valid name for an upstream",
                    "use letters, digits, - and _, as in [upstreams.documents]",
                ),
                DeValue::Table(inner) => {
                    self.sections.insert(path.clone(), pos);
                    self.upstreams.insert(path.clone());
                    self.add_table(&path, inner, source);
                    continue;
                }
                _ => problem(
                    "is not a section",
                    "write [upstreams.NAME], with a name of your choice, and the keys below",
                ),
            };
            self.mistakes.push(problem.at(pos, &path));
        }
    }

    /// Reads the variables that begin with `BEARER_PROXY__`. Returns whether there was any.
    pub(super) fn add_environment(
        &mut self,
        variables: impl Iterator<Item = (OsString, OsString)>,
    ) -> bool {
        let mut any = false;
        for (name, value) in variables {
            let Some(name) = name.to_str() else { continue };
            // On Windows, names of variables keep their case but are compared without it.
            let name = if cfg!(windows) {
                name.to_ascii_uppercase()
            } else {
                name.to_owned()
            };
            let pos = SourcePos::Environment(name.clone());
            if !name.starts_with(keys::PREFIX) {
                match suggest::misspelled_variable(&name) {
                    Some(Guess::Certain(problem)) => self.mistakes.push(problem.at(pos, "")),
                    Some(Guess::Likely(problem)) => self.warnings.push(problem.at(pos, "")),
                    None => {}
                }
                continue;
            }
            any = true;
            match (self.path_of_variable(&name), value.into_string()) {
                (None, _) => self
                    .mistakes
                    .push(suggest::unknown_variable(&name).at(pos, "")),
                (Some(path), Err(_)) => {
                    self.mistakes
                        .push(problem("is not UTF-8 text", "set it to text").at(pos, &path));
                }
                (Some(path), Ok(text)) => self.set_text(&path, text, pos),
            }
        }
        any
    }

    /// The key that a variable sets. Variable names have no lower case and no hyphens: an
    /// upstream's name is spelled as in the file.
    fn path_of_variable(&self, name: &str) -> Option<String> {
        let mut settable = keys::keys().iter().filter(|key| !key.is_in_array());
        if let Some(key) = settable.find(|key| key.variable() == name) {
            return Some(key.path.to_owned());
        }
        let named = name
            .strip_prefix(&keys::variable(keys::UPSTREAMS))?
            .strip_prefix("__")?;
        let own = keys::variable(keys::UPSTREAM);
        keys::below(keys::UPSTREAM).find_map(|(path, key)| {
            let upstream = named.strip_suffix(key.variable().strip_prefix(&own)?)?;
            let variable = keys::variable(&format!("{}.{upstream}", keys::UPSTREAMS));
            let in_file = self
                .upstreams
                .iter()
                .find(|path| keys::variable(path) == variable)
                .cloned();
            let upstream = upstream.to_ascii_lowercase();
            let is_good = is_upstream_name(&upstream) && upstream != keys::DEFAULT;
            let section =
                in_file.or_else(|| is_good.then(|| format!("{}.{upstream}", keys::UPSTREAMS)))?;
            Some(format!("{section}{}", path.strip_prefix(keys::UPSTREAM)?))
        })
    }

    /// Sets a key from the command line. Keys in arrays are written with an index:
    /// `route[0].prefix`.
    pub(super) fn add_override(&mut self, path: &str, text: String) {
        let is_known = keys::find(path)
            .is_some_and(|key| key.is_in_array() == keys::split_index(path).is_some());
        if is_known {
            self.set_text(path, text, SourcePos::CommandLine);
        } else {
            self.mistakes
                .push(problem("unknown key", "see --help").at(SourcePos::CommandLine, path));
        }
    }

    fn set_text(&mut self, path: &str, text: String, pos: SourcePos) {
        let Some(key) = keys::find(path) else { return };
        if let Some((list, index, rest)) = keys::split_index(path) {
            self.tables
                .insert((list, index), path[..path.len() - rest.len()].to_owned());
        } else if let Some((name, _)) = path
            .strip_prefix("upstreams.")
            .and_then(|rest| rest.split_once('.'))
        {
            self.upstreams.insert(format!("{}.{name}", keys::UPSTREAMS));
        }
        let value = Value::from_text(key.kind, text, &pos);
        self.set(path, Entry { value, pos });
    }

    /// Sets a key. A later source wins, also over the twin of the key in an earlier source.
    fn set(&mut self, path: &str, entry: Entry) {
        if let Some(twin) = keys::twin(path)
            && self
                .entries
                .get(&twin)
                .is_some_and(|other| !other.pos.same_source(&entry.pos))
        {
            self.entries.remove(&twin);
        }
        self.entries.insert(path.to_owned(), entry);
    }
}

/// Whether an upstream may have this name.
fn is_upstream_name(name: &str) -> bool {
    !name.is_empty()
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
}

impl Entry {
    fn from_toml(value: &DeValue<'_>, span: Range<usize>, source: &SourceText<'_>) -> Self {
        Self {
            value: Value::from_toml(value, source),
            pos: source.at(span.start),
        }
    }

    /// The positions of the value and of its elements.
    fn positions(&self) -> impl Iterator<Item = &SourcePos> {
        let (list, table) = match &self.value {
            Value::List(elements) => (elements.as_slice(), &[][..]),
            Value::Table(elements) => (&[][..], elements.as_slice()),
            _ => (&[][..], &[][..]),
        };
        let elements = list.iter().chain(table.iter().map(|(_, element)| element));
        std::iter::once(&self.pos).chain(elements.map(|element| &element.pos))
    }
}

impl Value {
    /// Parses the text of a variable. Text of another type stays text, which the reader of the key
    /// rejects.
    fn from_text(kind: Kind, text: String, pos: &SourcePos) -> Self {
        let number = |text: &str| text.trim().parse().ok().map(Value::Integer);
        let list = |element: &dyn Fn(&str) -> Value| {
            let parts = text
                .split(',')
                .map(str::trim)
                .filter(|part| !part.is_empty());
            Value::List(
                parts
                    .map(|part| Entry {
                        value: element(part),
                        pos: pos.clone(),
                    })
                    .collect(),
            )
        };
        match kind {
            Kind::Texts => list(&|part| Value::Text(part.to_owned().into())),
            Kind::Integers | Kind::Words => {
                list(&|part| number(part).unwrap_or_else(|| Value::Text(part.to_owned().into())))
            }
            Kind::Bool if text.trim() == "true" => Self::Bool(true),
            Kind::Bool if text.trim() == "false" => Self::Bool(false),
            Kind::Integer => number(&text).unwrap_or_else(|| Self::Text(text.into())),
            Kind::Table => Self::from_toml_text(&text).unwrap_or_else(|| Self::Text(text.into())),
            Kind::Bool | Kind::Text | Kind::File | Kind::Secret => Self::Text(text.into()),
        }
    }

    /// Parses a TOML value.
    pub(super) fn from_toml_text(text: &str) -> Option<Self> {
        let source = SourceText {
            file: Arc::from(Path::new("")),
            text,
        };
        DeValue::parse(text)
            .ok()
            .map(|value| Self::from_toml(value.get_ref(), &source))
    }

    fn from_toml(value: &DeValue<'_>, source: &SourceText<'_>) -> Self {
        match value {
            DeValue::String(text) => Self::Text(text.to_string().into()),
            DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
                .map_or(Self::Other("a number of more than 64 bits"), Self::Integer),
            DeValue::Boolean(value) => Self::Bool(*value),
            DeValue::Array(elements) => Self::List(
                elements
                    .iter()
                    .map(|element| Entry::from_toml(element.get_ref(), element.span(), source))
                    .collect(),
            ),
            DeValue::Table(table) => Self::Table(
                table
                    .iter()
                    .map(|(name, element)| {
                        let entry = Entry::from_toml(element.get_ref(), element.span(), source);
                        (name.get_ref().to_string(), entry)
                    })
                    .collect(),
            ),
            DeValue::Float(_) => Self::Other("a decimal number"),
            DeValue::Datetime(_) => Self::Other("a date"),
        }
    }
}
