//! The user's words: what the file, the environment and the command line say, each value with its place. Knows which
//! keys exist, not what their values mean.

use std::{collections::BTreeMap, ffi::OsString, ops::Range, path::Path, sync::Arc};

use toml::de::{DeTable, DeValue};
use zeroize::Zeroizing;

use super::{
    findings::{Fault, Finding, Place, fault},
    keys::{self, Key, Kind, Presence},
};

/// Every value given, the one of the highest precedence where there are several.
pub(super) struct Raw {
    entries: BTreeMap<&'static str, Entry>,
    sections: BTreeMap<String, Place>,
    /// Where something that is missing would go: the end of the file.
    end: Option<Place>,
    /// Whether the file could be read to its end, so that what is not there is really missing.
    pub(super) complete: bool,
    pub(super) mistakes: Vec<Finding>,
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
        Self { entries: BTreeMap::new(), sections: BTreeMap::new(), end: None, complete: true, mistakes: Vec::new() }
    }

    /// What a key was given, if anything.
    pub(super) fn entry(&self, path: &str) -> Option<&Entry> {
        self.entries.get(path)
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
        self.end.clone().unwrap_or_else(|| Place::Environment(keys::variable(path)))
    }

    /// Gives every key that is still without a value its default.
    pub(super) fn add_defaults(&mut self) {
        for key in keys::keys() {
            if let Presence::Default(text) = key.presence
                && !self.entries.contains_key(key.path)
                && let Some(value) = Value::from_table_text(text)
            {
                self.entries.insert(key.path, Entry { value, place: self.place_for(key.path) });
            }
        }
    }

    /// Reads the text of a file.
    pub(super) fn add_file(&mut self, file: &Path, text: &str) {
        // Some editors on Windows begin a file with a byte order mark; columns count without it.
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let positions = Positions { file: Arc::from(file), text };
        let (table, errors) = DeTable::parse_recoverable(text);
        self.complete = errors.is_empty();
        self.end = Some(positions.at(text.len()));
        self.add_table("", table.get_ref(), &positions);

        // One line, one mistake. The parser reports the shape of a line before what is in it.
        let mut broken_lines: BTreeMap<usize, (usize, &str)> = BTreeMap::new();
        for error in &errors {
            let start = error.span().map_or(0, |span| span.start);
            broken_lines.entry(positions.line(start)).or_insert((start, error.message()));
        }
        // What the parser makes of the rest of a broken line would only confuse.
        let broken = |place: &Place| matches!(place, Place::Position { line, .. } if broken_lines.contains_key(line));
        self.mistakes.retain(|mistake| !broken(&mistake.place));
        self.entries.retain(|_, entry| !entry.places().any(broken));

        // A list without an end turns every line below it into the same error.
        let mut last = "";
        for (start, message) in broken_lines.into_values() {
            if message != last || !message.starts_with("missing comma") {
                self.mistakes.push(syntax_fault(message, text, start).at(positions.at(start), ""));
            }
            last = message;
        }
    }

    fn add_table(&mut self, prefix: &str, table: &DeTable<'_>, positions: &Positions<'_>) {
        for (name, value) in table {
            let path =
                if prefix.is_empty() { name.get_ref().to_string() } else { format!("{prefix}.{}", name.get_ref()) };
            let place = positions.at(name.span().start);
            // `"proxy.listen" = …` is one odd name, not a key in a section.
            let known = if name.get_ref().contains('.') { None } else { keys::find(&path) };
            match (known, value.get_ref()) {
                (Some(key), given) => {
                    let place = positions.at(value.span().start);
                    self.set(key, Entry { value: Value::from_toml(given, positions), place });
                }
                (None, DeValue::Table(inner)) if keys::is_section(&path) => {
                    self.sections.insert(path.clone(), place);
                    self.add_table(&path, inner, positions);
                }
                (None, _) if keys::is_section(&path) => {
                    let instead = format!("write the line [{path}] once, and its keys below");
                    self.mistakes.push(fault("is a section, not a value", instead).at(place, &path));
                }
                (None, _) => self.mistakes.push(unknown_key(prefix, name.get_ref()).at(place, &path)),
            }
        }
    }

    /// Reads the variables that begin with `BEARER_PROXY__`; says whether there was any.
    pub(super) fn add_environment(&mut self, variables: impl Iterator<Item = (OsString, OsString)>) -> bool {
        let mut any = false;
        for (name, value) in variables {
            let Some(name) = name.to_str() else { continue };
            // Windows keeps the case in which a variable was first set and ignores it afterwards.
            let name = if cfg!(windows) { name.to_ascii_uppercase() } else { name.to_owned() };
            if !name.starts_with(keys::PREFIX) {
                continue;
            }
            any = true;
            let place = Place::Environment(name.clone());
            match (keys::keys().iter().find(|key| key.variable() == name), value.into_string()) {
                (None, _) => self.mistakes.push(unknown_variable(&name).at(place, "")),
                (Some(key), Err(_)) => {
                    self.mistakes.push(fault("is not UTF-8 text", "set it to text").at(place, key.path));
                }
                (Some(key), Ok(text)) => self.set_words(key, text, place),
            }
        }
        any
    }

    /// Reads what the command line says of a key.
    pub(super) fn add_override(&mut self, path: &str, text: String) {
        match keys::find(path) {
            Some(key) => self.set_words(key, text, Place::CommandLine),
            None => self.mistakes.push(fault("unknown key", "see --help").at(Place::CommandLine, path)),
        }
    }

    fn set_words(&mut self, key: &'static Key, text: String, place: Place) {
        let value = Value::from_words(key.kind, text, &place);
        self.set(key, Entry { value, place });
    }

    /// Later sources win, also over the other name of the same secret.
    fn set(&mut self, key: &'static Key, entry: Entry) {
        if let Some(twin) = key.twin()
            && self.entries.get(twin.path).is_some_and(|other| !other.place.same_source(&entry.place))
        {
            self.entries.remove(twin.path);
        }
        self.entries.insert(key.path, entry);
    }
}

impl Entry {
    fn from_toml(value: &DeValue<'_>, span: Range<usize>, positions: &Positions<'_>) -> Self {
        Self { value: Value::from_toml(value, positions), place: positions.at(span.start) }
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
            let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
            Value::List(parts.map(|part| Entry { value: element(part), place: place.clone() }).collect())
        };
        match kind {
            Kind::Texts => list(&|part| Value::Text(part.to_owned().into())),
            Kind::Integers => list(&|part| number(part).unwrap_or_else(|| Value::Text(part.to_owned().into()))),
            Kind::Bool if text.trim() == "true" => Self::Bool(true),
            Kind::Bool if text.trim() == "false" => Self::Bool(false),
            Kind::Integer => number(&text).unwrap_or_else(|| Self::Text(text.into())),
            Kind::Table => Self::from_table_text(&text).unwrap_or_else(|| Self::Text(text.into())),
            Kind::Bool | Kind::Text | Kind::File | Kind::Secret => Self::Text(text.into()),
        }
    }

    /// The value that a text of the table of keys stands for.
    pub(super) fn from_table_text(text: &str) -> Option<Self> {
        let positions = Positions { file: Arc::from(Path::new("")), text };
        DeValue::parse(text).ok().map(|value| Self::from_toml(value.get_ref(), &positions))
    }

    fn from_toml(value: &DeValue<'_>, positions: &Positions<'_>) -> Self {
        match value {
            DeValue::String(text) => Self::Text(text.to_string().into()),
            DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
                .map_or(Self::Other("a number beyond all bounds"), Self::Integer),
            DeValue::Boolean(value) => Self::Bool(*value),
            DeValue::Array(elements) => Self::List(
                elements.iter().map(|element| Entry::from_toml(element.get_ref(), element.span(), positions)).collect(),
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

/// Turns the parser's byte offsets into lines and columns.
struct Positions<'a> {
    file: Arc<Path>,
    text: &'a str,
}

impl Positions<'_> {
    fn at(&self, offset: usize) -> Place {
        let before = self.text.get(..offset).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |index| index + 1);
        let column = before[line_start..].chars().count() + 1;
        Place::Position { file: Arc::clone(&self.file), line: self.line(offset), column }
    }

    fn line(&self, offset: usize) -> usize {
        self.text.get(..offset).unwrap_or(self.text).matches('\n').count() + 1
    }
}

/// The parser's messages name what it expected and never quote the text, which may be a secret.
fn syntax_fault(message: &str, text: &str, offset: usize) -> Fault {
    let line_start = text.get(..offset).and_then(|before| before.rfind('\n')).map_or(0, |index| index + 1);
    let near = text.get(line_start..offset).unwrap_or_default();
    let instead = if near.ends_with('\\') || text.get(offset..).is_some_and(|rest| rest.starts_with('\\')) {
        BACKSLASH
    } else if message.contains("expected `\"`") || message.contains("expected `'`") {
        "end a text with the quote that it begins with, on the same line"
    } else if message.contains("array") {
        "put commas between the elements of a list, and ] at its end"
    } else if message.contains("unicode value digits") {
        BACKSLASH
    } else if message.contains("must be quoted") {
        "put the value in quotes"
    } else if message.starts_with("duplicate key") {
        "keep one of the two"
    } else {
        r#"a line is key = "text", key = number, key = ["text", "text"], [section], or # a comment"#
    };
    fault(format!("this is not TOML: {message}"), instead)
}

/// What to say when a Windows path stands in double quotes.
pub(super) const BACKSLASH: &str = "a backslash in double quotes begins an escape: write the path in single quotes, \
     as in 'C:\\proxy\\token.json', or with forward slashes";

fn unknown_key(section: &str, name: &str) -> Fault {
    let instead = if section.is_empty() && !keys::keys().iter().any(|key| key.name() == name) {
        let sections: Vec<&str> = keys::keys().iter().filter_map(|key| key.path.split('.').next()).collect();
        nearest(name, sections.iter().copied()).map_or_else(
            || "the sections are [proxy], [upstream], [token], [retry], [admin] and [log]".to_owned(),
            |section| format!("did you mean [{section}]?"),
        )
    } else {
        nearest_key(section, name)
    };
    fault("unknown key", instead)
}

fn nearest_key(section: &str, name: &str) -> String {
    let mut homes: Vec<&str> = keys::keys().iter().filter(|key| key.name() == name).map(Key::section).collect();
    if homes.iter().any(|home| is_within(home, section)) {
        homes.retain(|home| is_within(home, section));
    }
    if !homes.is_empty() {
        return format!("belongs in [{}]", homes.join("] or ["));
    }
    let own = names_in(section);
    if let Some(name) = nearest(name, own.iter().copied()) {
        return format!("did you mean {name}?");
    }
    let elsewhere = nearest(name, keys::keys().iter().map(Key::name));
    match elsewhere.and_then(|name| keys::keys().iter().find(|key| key.name() == name)) {
        Some(key) => format!("did you mean {} in [{}]?", key.name(), key.section()),
        None => format!("[{section}] has {}", own.join(", ")),
    }
}

/// The keys of a section, and the sections in it.
fn names_in(section: &str) -> Vec<&'static str> {
    let mut names: Vec<&str> = keys::keys()
        .iter()
        .filter(|key| is_within(key.path, section))
        .filter_map(|key| key.path.get(section.len() + 1..)?.split('.').next())
        .collect();
    names.dedup();
    names
}

fn is_within(path: &str, section: &str) -> bool {
    path.strip_prefix(section).is_some_and(|rest| rest.starts_with('.'))
}

fn unknown_variable(name: &str) -> Fault {
    let variables: Vec<String> = keys::keys().iter().map(Key::variable).collect();
    let last_word = name.rsplit("__").next().unwrap_or(name);
    let same_name = keys::keys().iter().filter(|key| key.name().eq_ignore_ascii_case(last_word));
    let homes: Vec<String> = same_name.map(Key::variable).collect();
    // Compared without the common beginning, which would make everything look alike.
    let rest = |name: &str| name.strip_prefix(keys::PREFIX).unwrap_or_default().to_owned();
    let rests: Vec<String> = variables.iter().map(|variable| rest(variable)).collect();
    let instead = if !homes.is_empty() {
        format!("did you mean {}?", homes.join(" or "))
    } else if let Some(nearest) = nearest(&rest(name), rests.iter().map(String::as_str)) {
        format!("did you mean {}{nearest}?", keys::PREFIX)
    } else {
        format!("a variable is {0}SECTION__KEY, as in {0}PROXY__LISTEN", keys::PREFIX)
    };
    fault("no key has this name", instead)
}

fn nearest<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    const ALIKE: f64 = 0.6;
    // A name of a thousand characters is no slip of the pen, and comparing is quadratic.
    let name = if name.len() > 100 { return None } else { name.to_ascii_lowercase() };
    candidates
        .map(|candidate| (strsim::normalized_damerau_levenshtein(&name, &candidate.to_ascii_lowercase()), candidate))
        .filter(|(likeness, _)| *likeness >= ALIKE)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, candidate)| candidate)
}
