//! The user's words: what the file, the environment and the command line say, each value with its place. Knows which
//! keys exist, not what their values mean.

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
    findings::{Finding, Place, fault},
    keys::{self, Kind, Presence},
    suggest::{self, Meant},
    syntax::{Broken, Positions},
};

/// Every value given, the one of the highest precedence where there are several.
pub(super) struct Raw {
    entries: BTreeMap<String, Entry>,
    sections: BTreeMap<String, Place>,
    /// The paths of named upstreams: `upstreams.NAME`.
    upstreams: BTreeSet<String>,
    /// The paths of tables of which there may be several: `route[3]`.
    tables: BTreeMap<(&'static str, usize), String>,
    /// Where something that is missing would go: the end of the file.
    end: Option<Place>,
    /// Whether the file could be read to its end, so that what is not there is really missing.
    pub(super) complete: bool,
    pub(super) mistakes: Vec<Finding>,
    pub(super) warnings: Vec<Finding>,
}

pub(super) struct Entry {
    pub(super) value: Value,
    pub(super) place: Place,
}

/// A value as it was given. It does not print itself, and its text is wiped on drop: any of them may be a secret.
pub(super) enum Value {
    Text(Zeroizing<String>),
    Integer(i64),
    Bool(bool),
    List(Vec<Entry>),
    Table(Vec<(String, Entry)>),
    /// What no key takes; the text says what it is.
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

    /// What a key was given, if anything.
    pub(super) fn entry(&self, path: &str) -> Option<&Entry> {
        self.entries.get(path)
    }

    /// The paths of the named upstreams.
    pub(super) fn upstreams(&self) -> Vec<String> {
        self.upstreams.iter().cloned().collect()
    }

    /// The paths of the tables of one list, in the order of the file.
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

    /// Where a key that was not given belongs.
    pub(super) fn place_for(&self, path: &str) -> Place {
        let mut section = path;
        while let Some((outer, _)) = section.rsplit_once('.') {
            if let Some(place) = self.sections.get(outer) {
                return place.clone();
            }
            section = outer;
        }
        self.end
            .clone()
            .unwrap_or_else(|| Place::Environment(keys::variable(path)))
    }

    /// Gives every key that is still without a value its default.
    pub(super) fn add_defaults(&mut self) {
        let plain = keys::keys()
            .iter()
            .filter(|key| !key.is_listed())
            .map(|key| (key.path.to_owned(), key));
        let sections = self.upstreams.iter().chain(self.tables.values());
        let all: Vec<_> = plain
            .chain(sections.flat_map(|section| keys::below(section)))
            .collect();
        for (path, key) in all {
            if let Presence::Default(text) = key.presence
                && !self.entries.contains_key(&path)
                && let Some(value) = Value::from_table_text(text)
            {
                let place = self.place_for(&path);
                self.entries.insert(path, Entry { value, place });
            }
        }
    }

    /// Reads the text of a file.
    pub(super) fn add_file(&mut self, file: &Path, text: &str) {
        // Some editors on Windows begin a file with a byte order mark; columns count without it.
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let positions = Positions {
            file: Arc::from(file),
            text,
        };
        let (table, errors) = DeTable::parse_recoverable(text);
        self.complete = errors.is_empty();
        self.end = Some(positions.at(text.len()));
        self.add_table("", table.get_ref(), &positions);

        // What the parser makes of the rest of a broken line would only confuse.
        let broken = Broken::new(&errors, &positions);
        self.mistakes
            .retain(|mistake| !broken.covers(&mistake.place));
        self.entries
            .retain(|_, entry| !entry.places().any(|place| broken.covers(place)));
        self.mistakes.extend(broken.mistakes(&positions));
    }

    fn add_table(&mut self, prefix: &str, table: &DeTable<'_>, positions: &Positions<'_>) {
        for (name, value) in table {
            let path = if prefix.is_empty() {
                name.get_ref().to_string()
            } else {
                format!("{prefix}.{}", name.get_ref())
            };
            let place = positions.at(name.span().start);
            // `"proxy.listen" = …` is one odd name, not a key in a section.
            let is_odd = name.get_ref().contains(['.', '[']);
            let list = keys::LISTS.into_iter().find(|list| *list == path);
            if let Some(list) = list {
                self.add_list(list, value.get_ref(), place, positions);
                continue;
            }
            match value.get_ref() {
                given if !is_odd && keys::find(&path).is_some() => {
                    let place = positions.at(value.span().start);
                    self.set(
                        &path,
                        Entry {
                            value: Value::from_toml(given, positions),
                            place,
                        },
                    );
                }
                DeValue::Table(inner) if path == keys::UPSTREAMS => {
                    self.add_upstreams(inner, positions)
                }
                DeValue::Table(inner) if !is_odd && keys::is_section(&path) => {
                    self.sections.insert(path.clone(), place);
                    self.add_table(&path, inner, positions);
                }
                _ if !is_odd && (keys::is_section(&path) || path == keys::UPSTREAMS) => {
                    let header = if path == keys::UPSTREAMS {
                        "[upstreams.NAME]".to_owned()
                    } else {
                        keys::header(&path)
                    };
                    let instead = format!("write the line {header} once, and its keys below");
                    self.mistakes
                        .push(fault("is a section, not a value", instead).at(place, &path));
                }
                _ => self
                    .mistakes
                    .push(suggest::unknown_key(prefix, name.get_ref()).at(place, &path)),
            }
        }
    }

    /// Reads `[[route]]` and its like.
    fn add_list(
        &mut self,
        list: &'static str,
        given: &DeValue<'_>,
        place: Place,
        positions: &Positions<'_>,
    ) {
        let header = keys::header(list);
        let DeValue::Array(elements) = given else {
            let instead = format!("write {header}, with double brackets, and its keys below");
            self.mistakes
                .push(fault("may stand several times", instead).at(place, list));
            return;
        };
        for (index, element) in elements.iter().enumerate() {
            let place = positions.at(element.span().start);
            let DeValue::Table(inner) = element.get_ref() else {
                let instead = format!("write {header}, and its keys below");
                self.mistakes
                    .push(fault("is no table", instead).at(place, list));
                continue;
            };
            let path = format!("{list}[{index}]");
            self.sections.insert(path.clone(), place);
            self.tables.insert((list, index), path.clone());
            self.add_table(&path, inner, positions);
        }
    }

    /// Reads `[upstreams.NAME]`.
    fn add_upstreams(&mut self, named: &DeTable<'_>, positions: &Positions<'_>) {
        for (name, value) in named {
            let path = format!("{}.{}", keys::UPSTREAMS, name.get_ref());
            let place = positions.at(name.span().start);
            let fault = match value.get_ref() {
                DeValue::Table(_) if name.get_ref() == keys::DEFAULT => fault(
                    "is the name of the plain [upstream]",
                    "write [upstream], or choose another name",
                ),
                DeValue::Table(_) if !is_name(name.get_ref()) => fault(
                    "is not a name for an upstream",
                    "use letters, digits, - and _, as in [upstreams.documents]",
                ),
                DeValue::Table(inner) => {
                    self.sections.insert(path.clone(), place);
                    self.upstreams.insert(path.clone());
                    self.add_table(&path, inner, positions);
                    continue;
                }
                _ => fault(
                    "is no section",
                    "write [upstreams.NAME], with a name of your choice, and the keys below",
                ),
            };
            self.mistakes.push(fault.at(place, &path));
        }
    }

    /// Reads the variables that begin with `BEARER_PROXY__`; says whether there was any.
    pub(super) fn add_environment(
        &mut self,
        variables: impl Iterator<Item = (OsString, OsString)>,
    ) -> bool {
        let mut any = false;
        for (name, value) in variables {
            let Some(name) = name.to_str() else { continue };
            // Windows keeps the case in which a variable was first set and ignores it afterwards.
            let name = if cfg!(windows) {
                name.to_ascii_uppercase()
            } else {
                name.to_owned()
            };
            let place = Place::Environment(name.clone());
            if !name.starts_with(keys::PREFIX) {
                match suggest::meant_variable(&name) {
                    Some(Meant::Certainly(fault)) => self.mistakes.push(fault.at(place, "")),
                    Some(Meant::Perhaps(fault)) => self.warnings.push(fault.at(place, "")),
                    None => {}
                }
                continue;
            }
            any = true;
            match (self.path_of_variable(&name), value.into_string()) {
                (None, _) => self
                    .mistakes
                    .push(suggest::unknown_variable(&name).at(place, "")),
                (Some(path), Err(_)) => {
                    self.mistakes
                        .push(fault("is not UTF-8 text", "set it to text").at(place, &path));
                }
                (Some(path), Ok(text)) => self.set_words(&path, text, place),
            }
        }
        any
    }

    /// The key that a variable sets. Variables have no small letters and no hyphens: where an upstream's name has some, the
    /// file's spelling counts.
    fn path_of_variable(&self, name: &str) -> Option<String> {
        let mut settable = keys::keys().iter().filter(|key| !key.is_listed());
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
            let is_good = is_name(&upstream) && upstream != keys::DEFAULT;
            let section =
                in_file.or_else(|| is_good.then(|| format!("{}.{upstream}", keys::UPSTREAMS)))?;
            Some(format!("{section}{}", path.strip_prefix(keys::UPSTREAM)?))
        })
    }

    /// Reads what the command line says of a key. Keys of lists are written with a number: `route[0].prefix`.
    pub(super) fn add_override(&mut self, path: &str, text: String) {
        let is_known =
            keys::find(path).is_some_and(|key| key.is_listed() == keys::listed(path).is_some());
        if is_known {
            self.set_words(path, text, Place::CommandLine);
        } else {
            self.mistakes
                .push(fault("unknown key", "see --help").at(Place::CommandLine, path));
        }
    }

    fn set_words(&mut self, path: &str, text: String, place: Place) {
        let Some(key) = keys::find(path) else { return };
        if let Some((list, index, rest)) = keys::listed(path) {
            self.tables
                .insert((list, index), path[..path.len() - rest.len()].to_owned());
        } else if let Some((name, _)) = path
            .strip_prefix("upstreams.")
            .and_then(|rest| rest.split_once('.'))
        {
            self.upstreams.insert(format!("{}.{name}", keys::UPSTREAMS));
        }
        let value = Value::from_words(key.kind, text, &place);
        self.set(path, Entry { value, place });
    }

    /// Later sources win, also over the other name of the same secret.
    fn set(&mut self, path: &str, entry: Entry) {
        if let Some(twin) = keys::twin(path)
            && self
                .entries
                .get(&twin)
                .is_some_and(|other| !other.place.same_source(&entry.place))
        {
            self.entries.remove(&twin);
        }
        self.entries.insert(path.to_owned(), entry);
    }
}

/// What an upstream may be called.
fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
}

impl Entry {
    fn from_toml(value: &DeValue<'_>, span: Range<usize>, positions: &Positions<'_>) -> Self {
        Self {
            value: Value::from_toml(value, positions),
            place: positions.at(span.start),
        }
    }

    /// Where the value stands, and its elements if it has some.
    fn places(&self) -> impl Iterator<Item = &Place> {
        let (list, table) = match &self.value {
            Value::List(elements) => (elements.as_slice(), &[][..]),
            Value::Table(elements) => (&[][..], elements.as_slice()),
            _ => (&[][..], &[][..]),
        };
        let elements = list.iter().chain(table.iter().map(|(_, element)| element));
        std::iter::once(&self.place).chain(elements.map(|element| &element.place))
    }
}

impl Value {
    /// What a text is that stands for a value of this kind; where it is no such value, it stays text, and whoever
    /// reads the key complains.
    fn from_words(kind: Kind, text: String, place: &Place) -> Self {
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
                        place: place.clone(),
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
            Kind::Table => Self::from_table_text(&text).unwrap_or_else(|| Self::Text(text.into())),
            Kind::Bool | Kind::Text | Kind::File | Kind::Secret => Self::Text(text.into()),
        }
    }

    /// The value that a text of the table of keys stands for.
    pub(super) fn from_table_text(text: &str) -> Option<Self> {
        let positions = Positions {
            file: Arc::from(Path::new("")),
            text,
        };
        DeValue::parse(text)
            .ok()
            .map(|value| Self::from_toml(value.get_ref(), &positions))
    }

    fn from_toml(value: &DeValue<'_>, positions: &Positions<'_>) -> Self {
        match value {
            DeValue::String(text) => Self::Text(text.to_string().into()),
            DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
                .map_or(Self::Other("a number beyond all bounds"), Self::Integer),
            DeValue::Boolean(value) => Self::Bool(*value),
            DeValue::Array(elements) => Self::List(
                elements
                    .iter()
                    .map(|element| Entry::from_toml(element.get_ref(), element.span(), positions))
                    .collect(),
            ),
            DeValue::Table(table) => Self::Table(
                table
                    .iter()
                    .map(|(name, element)| {
                        let entry = Entry::from_toml(element.get_ref(), element.span(), positions);
                        (name.get_ref().to_string(), entry)
                    })
                    .collect(),
            ),
            DeValue::Float(_) => Self::Other("a decimal number"),
            DeValue::Datetime(_) => Self::Other("a date"),
        }
    }
}
