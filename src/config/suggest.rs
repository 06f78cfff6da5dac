//! Suggestions for unknown keys and variables.

use super::{
    findings::{Problem, problem},
    keys::{self, Key, is_within},
};

pub(super) fn unknown_key(section: &str, name: &str) -> Problem {
    let hint = if section.is_empty() && !keys::keys().iter().any(|key| key.name() == name) {
        let mut sections: Vec<&str> = keys::keys()
            .iter()
            .filter_map(|key| key.path.split('.').next())
            .collect();
        sections.dedup();
        nearest(name, sections.iter().copied().chain([keys::UPSTREAMS])).map_or_else(
            || {
                let headers: Vec<String> = sections.iter().map(|section| header(section)).collect();
                format!("the sections are {}", headers.join(", "))
            },
            |section| format!("did you mean {}?", header(section)),
        )
    } else {
        nearest_key(section, name)
    };
    problem("unknown key", hint)
}

fn header(section: &str) -> String {
    match section {
        keys::UPSTREAM => "[upstream] or [upstreams.NAME]".to_owned(),
        keys::UPSTREAMS => "[upstreams.NAME]".to_owned(),
        section => keys::header(section),
    }
}

fn nearest_key(section: &str, name: &str) -> String {
    // `[upstreams.docs]` has the keys of `[upstream]`.
    let own_section = keys::table_path(section);
    let header_of = |other: &str| match other.strip_prefix(&*own_section) {
        Some(rest) if other == own_section || is_within(other, &own_section) => {
            keys::header(&format!("{}{rest}", keys::without_index(section)))
        }
        _ => keys::header(other),
    };
    let mut sections: Vec<&str> = keys::keys()
        .iter()
        .filter(|key| key.name() == name)
        .map(Key::section)
        .collect();
    let is_subsection = |other: &&str| is_within(other, &own_section);
    if sections.iter().any(is_subsection) {
        sections.retain(is_subsection);
    }
    let own = names_in(&own_section);
    let longer: Vec<&str> = own
        .iter()
        .copied()
        .filter(|own| own.ends_with(&format!("_{name}")))
        .collect();
    if !longer.is_empty() {
        return format!("did you mean {}?", longer.join(" or "));
    }
    if !sections.is_empty() {
        let headers: Vec<_> = sections.into_iter().map(header_of).collect();
        return format!("belongs in {}", headers.join(" or "));
    }
    if let Some(name) = nearest(name, own.iter().copied()) {
        return format!("did you mean {name}?");
    }
    let elsewhere = nearest(name, keys::keys().iter().map(Key::name));
    match elsewhere.and_then(|name| keys::keys().iter().find(|key| key.name() == name)) {
        Some(key) => format!(
            "did you mean {} in {}?",
            key.name(),
            header_of(key.section())
        ),
        None => format!("{} has {}", header_of(&own_section), own.join(", ")),
    }
}

/// The names of a section's keys and subsections.
fn names_in(section: &str) -> Vec<&'static str> {
    let mut names: Vec<&str> = keys::keys()
        .iter()
        .filter(|key| is_within(key.path, section))
        .filter_map(|key| key.path.get(section.len() + 1..)?.split('.').next())
        .collect();
    names.dedup();
    names
}

pub(super) fn unknown_variable(name: &str) -> Problem {
    let array = name
        .strip_prefix(keys::PREFIX)
        .and_then(|rest| rest.split("__").next());
    if let Some(array) = keys::ARRAYS
        .into_iter()
        .find(|own| array.is_some_and(|array| array.eq_ignore_ascii_case(own)))
    {
        let hint = format!("write {} in the configuration file", keys::header(array));
        return problem(
            "belongs to an array of tables, whose keys variables cannot set",
            hint,
        );
    }
    let settable = || keys::keys().iter().filter(|key| !key.is_in_array());
    let last_word = name.rsplit("__").next().unwrap_or(name);
    let same_name: Vec<String> = settable()
        .filter(|key| key.name().eq_ignore_ascii_case(last_word))
        .map(Key::variable)
        .collect();
    // Compared without the common prefix, which would make all names similar.
    let without_prefix = |name: &str| {
        name.strip_prefix(keys::PREFIX)
            .unwrap_or_default()
            .to_owned()
    };
    let candidates: Vec<String> = settable()
        .map(|key| without_prefix(&key.variable()))
        .collect();
    let hint = if !same_name.is_empty() {
        format!("did you mean {}?", same_name.join(" or "))
    } else if let Some(nearest) =
        nearest(&without_prefix(name), candidates.iter().map(String::as_str))
    {
        format!("did you mean {}{nearest}?", keys::PREFIX)
    } else {
        format!(
            "a variable is {0}SECTION__KEY, as in {0}PROXY__LISTEN",
            keys::PREFIX
        )
    };
    problem("no key has this name", hint)
}

/// A variable that is not read and was probably meant to set a key.
pub(super) enum Guess {
    /// A key's variable, apart from underscores and case.
    Certain(Problem),
    /// A key's name without its section. It may be another program's variable.
    Likely(Problem),
}

/// Checks a variable without the prefix of those that set keys.
pub(super) fn misspelled_variable(name: &str) -> Option<Guess> {
    const REASON: &str =
        "is not read: a variable that sets a key has two underscores between its parts";
    let words = |name: &str| {
        let words: Vec<_> = name
            .split('_')
            .filter(|word| !word.is_empty())
            .map(str::to_ascii_uppercase)
            .collect();
        words.join("_")
    };
    let given = words(name);
    let name = given.strip_prefix("BEARER_PROXY_")?;
    let settable = || keys::keys().iter().filter(|key| !key.is_in_array());
    if let Some(key) = settable().find(|key| words(&key.variable()) == given) {
        return Some(Guess::Certain(problem(
            REASON,
            format!("did you mean {}?", key.variable()),
        )));
    }
    let same_name: Vec<String> = settable()
        .filter(|key| key.name().eq_ignore_ascii_case(name))
        .map(Key::variable)
        .collect();
    let hint = format!("did you mean {}?", same_name.join(" or "));
    if same_name.is_empty() {
        None
    } else {
        Some(Guess::Likely(problem(REASON, hint)))
    }
}

pub(super) fn nearest<'a>(
    name: &str,
    candidates: impl Iterator<Item = &'a str>,
) -> Option<&'a str> {
    const MIN_SIMILARITY: f64 = 0.6;
    // The comparison takes quadratic time, and such a long name is no typing error.
    let name = if name.len() > 100 {
        return None;
    } else {
        name.to_ascii_lowercase()
    };
    candidates
        .map(|candidate| {
            (
                strsim::normalized_damerau_levenshtein(&name, &candidate.to_ascii_lowercase()),
                candidate,
            )
        })
        .filter(|(similarity, _)| *similarity >= MIN_SIMILARITY)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, candidate)| candidate)
}
