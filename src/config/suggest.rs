//! What somebody may have meant who wrote a name that is not there.

use super::{
    findings::{Fault, fault},
    keys::{self, Key, is_within},
};

pub(super) fn unknown_key(section: &str, name: &str) -> Fault {
    let instead = if section.is_empty() && !keys::keys().iter().any(|key| key.name() == name) {
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
    fault("unknown key", instead)
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
    let own_section = keys::in_table(section);
    let home = |home: &str| match home.strip_prefix(&*own_section) {
        Some(rest) if home == own_section || is_within(home, &own_section) => {
            keys::header(&format!("{}{rest}", keys::shown(section)))
        }
        _ => keys::header(home),
    };
    let mut homes: Vec<&str> = keys::keys()
        .iter()
        .filter(|key| key.name() == name)
        .map(Key::section)
        .collect();
    if homes.iter().any(|home| is_within(home, &own_section)) {
        homes.retain(|home| is_within(home, &own_section));
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
    if !homes.is_empty() {
        return format!(
            "belongs in {}",
            homes.into_iter().map(home).collect::<Vec<_>>().join(" or ")
        );
    }
    if let Some(name) = nearest(name, own.iter().copied()) {
        return format!("did you mean {name}?");
    }
    let elsewhere = nearest(name, keys::keys().iter().map(Key::name));
    match elsewhere.and_then(|name| keys::keys().iter().find(|key| key.name() == name)) {
        Some(key) => format!("did you mean {} in {}?", key.name(), home(key.section())),
        None => format!("{} has {}", home(&own_section), own.join(", ")),
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

pub(super) fn unknown_variable(name: &str) -> Fault {
    let list = name
        .strip_prefix(keys::PREFIX)
        .and_then(|rest| rest.split("__").next());
    if let Some(list) = keys::LISTS
        .into_iter()
        .find(|own| list.is_some_and(|list| list.eq_ignore_ascii_case(own)))
    {
        let instead = format!("write {} in the configuration file", keys::header(list));
        return fault(
            "belongs to one of several tables, which variables cannot tell apart",
            instead,
        );
    }
    let settable = || keys::keys().iter().filter(|key| !key.is_listed());
    let last_word = name.rsplit("__").next().unwrap_or(name);
    let homes: Vec<String> = settable()
        .filter(|key| key.name().eq_ignore_ascii_case(last_word))
        .map(Key::variable)
        .collect();
    // Compared without the common beginning, which would make everything look alike.
    let rest = |name: &str| {
        name.strip_prefix(keys::PREFIX)
            .unwrap_or_default()
            .to_owned()
    };
    let rests: Vec<String> = settable().map(|key| rest(&key.variable())).collect();
    let instead = if !homes.is_empty() {
        format!("did you mean {}?", homes.join(" or "))
    } else if let Some(nearest) = nearest(&rest(name), rests.iter().map(String::as_str)) {
        format!("did you mean {}{nearest}?", keys::PREFIX)
    } else {
        format!(
            "a variable is {0}SECTION__KEY, as in {0}PROXY__LISTEN",
            keys::PREFIX
        )
    };
    fault("no key has this name", instead)
}

/// What to say of a variable that is not one of ours and was probably meant to be.
pub(super) enum Meant {
    /// A key's variable but for underscores and case.
    Certainly(Fault),
    /// A key's name without its section. Other programs may have such variables.
    Perhaps(Fault),
}

/// Looks at a variable that does not begin as ours do.
pub(super) fn meant_variable(name: &str) -> Option<Meant> {
    const REASON: &str = "is not read: a variable of ours has two underscores between its parts";
    let words = |name: &str| {
        let words: Vec<_> = name
            .split('_')
            .filter(|word| !word.is_empty())
            .map(str::to_ascii_uppercase)
            .collect();
        words.join("_")
    };
    let given = words(name);
    let rest = given.strip_prefix("BEARER_PROXY_")?;
    let settable = || keys::keys().iter().filter(|key| !key.is_listed());
    if let Some(key) = settable().find(|key| words(&key.variable()) == given) {
        return Some(Meant::Certainly(fault(
            REASON,
            format!("did you mean {}?", key.variable()),
        )));
    }
    let homes: Vec<String> = settable()
        .filter(|key| key.name().eq_ignore_ascii_case(rest))
        .map(Key::variable)
        .collect();
    let instead = format!("did you mean {}?", homes.join(" or "));
    if homes.is_empty() {
        None
    } else {
        Some(Meant::Perhaps(fault(REASON, instead)))
    }
}

pub(super) fn nearest<'a>(
    name: &str,
    candidates: impl Iterator<Item = &'a str>,
) -> Option<&'a str> {
    const ALIKE: f64 = 0.6;
    // A name of a thousand characters is no slip of the pen, and comparing is quadratic.
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
        .filter(|(likeness, _)| *likeness >= ALIKE)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, candidate)| candidate)
}
