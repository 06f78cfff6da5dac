//! Which file imports which: a reader of Rust that knows `use`, `mod` and paths, and resolves re-exports.
//!
//! It reads what is compiled into the program: modules and items under `#[cfg(test)]` and `#[cfg(fuzzing)]` are left out.
//! Calls of methods are not seen, since they name no path.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

/// For each file the files that it imports, with the line of one such import.
pub(crate) type Graph = BTreeMap<String, BTreeMap<String, usize>>;

/// The imports of the crate whose sources are in `src`, a folder under `root`.
pub(crate) fn graph(root: &Path) -> Graph {
    let mut files = Files::default();
    files.read(root, "src/lib.rs", Vec::new());
    files.graph()
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    /// An identifier, a keyword or a number.
    Word(String),
    /// `::`
    Sep,
    Mark(char),
}

/// The tokens of a file and their lines, without comments, literals and lifetimes.
fn tokens(text: &str) -> Vec<(Token, usize)> {
    let chars: Vec<char> = text.chars().collect();
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let (mut found, mut at, mut line) = (Vec::new(), 0, 1);
    let find = |from: usize, end: &str| {
        let end: Vec<char> = end.chars().collect();
        (from..chars.len())
            .find(|at| chars[*at..].starts_with(&end))
            .map_or(chars.len(), |at| at + end.len())
    };
    while at < chars.len() {
        let begin = at;
        let rest = &chars[at..];
        let raw = usize::from(matches!(rest, ['b' | 'c', 'r', ..]));
        match rest {
            ['/', '/', ..] => at = find(at, "\n"),
            ['/', '*', ..] => at = find(at, "*/"),
            ['b' | 'c', '"', ..] | ['"', ..] => {
                at += usize::from(rest[0] != '"') + 1;
                while at < chars.len() && chars[at] != '"' {
                    at += 1 + usize::from(chars[at] == '\\');
                }
                at += 1;
            }
            ['b' | 'c', 'r', '"' | '#', ..] | ['r', '"', ..] | ['r', '#', '"' | '#', ..] => {
                let hashes = rest[raw + 1..].iter().take_while(|c| **c == '#').count();
                let end = format!("\"{}", "#".repeat(hashes));
                at = find(at + raw + hashes + 2, &end);
            }
            ['\'', '\\', _, ..] => at = find(at + 3, "'"),
            ['\'', _, '\'', ..] => at += 3,
            ['\'', ..] => at += 1 + rest[1..].iter().take_while(|c| is_word(**c)).count(),
            [':', ':', ..] => {
                found.push((Token::Sep, line));
                at += 2;
            }
            [c, ..] if is_word(*c) => {
                let word: String = rest.iter().take_while(|c| is_word(**c)).collect();
                at += word.chars().count();
                found.push((Token::Word(word), line));
            }
            [c, ..] => {
                if !c.is_whitespace() {
                    found.push((Token::Mark(*c), line));
                }
                at += 1;
            }
            [] => {}
        }
        at = at.min(chars.len());
        line += chars[begin..at].iter().filter(|c| **c == '\n').count();
    }
    found
}

#[derive(Debug, Default)]
struct Module {
    file: String,
    children: BTreeSet<String>,
    /// Items that stand here.
    items: BTreeSet<String>,
    /// What `use` binds: name to path.
    bound: BTreeMap<String, Vec<String>>,
    globs: Vec<Vec<String>>,
    /// Every path that is named here, with its line.
    paths: Vec<(Vec<String>, usize)>,
}

/// Modules by their path from the crate's root.
#[derive(Debug, Default)]
struct Files(BTreeMap<Vec<String>, Module>);

/// What a path leads to.
enum Target {
    Module(Vec<String>),
    /// An item in the file of this module.
    Item(Vec<String>),
}

impl Files {
    fn read(&mut self, root: &Path, file: &str, path: Vec<String>) {
        let text = fs::read_to_string(root.join(file)).unwrap_or_else(|e| panic!("{file}: {e}"));
        for child in self.parse(file, &path, &tokens(&text)) {
            let folder = match file.strip_suffix("/mod.rs") {
                Some(folder) => folder.to_owned(),
                None if path.is_empty() => "src".to_owned(),
                None => file.trim_end_matches(".rs").to_owned(),
            };
            let name = child.last().unwrap();
            let flat = format!("{folder}/{name}.rs");
            let nested = format!("{folder}/{name}/mod.rs");
            let file = if root.join(&flat).exists() {
                flat
            } else {
                nested
            };
            self.read(root, &file, child);
        }
    }

    /// Takes in the modules of one file; the modules that have files of their own.
    fn parse(&mut self, file: &str, path: &[String], all: &[(Token, usize)]) -> Vec<Vec<String>> {
        let token = |at: usize| all.get(at).map(|(token, _)| token);
        let word = |at: usize| match token(at) {
            Some(Token::Word(word)) => Some(word.as_str()),
            _ => None,
        };
        let is = |at: usize, mark: char| token(at) == Some(&Token::Mark(mark));
        let new = || Module {
            file: file.to_owned(),
            ..Module::default()
        };
        let mut here = path.to_vec();
        self.0.insert(here.clone(), new());
        // For each open brace, whether it is that of a module.
        let (mut braces, mut own_files, mut at) = (Vec::new(), Vec::new(), 0);
        while at < all.len() {
            let in_items = braces.iter().all(|is_module| *is_module);
            let module = self.0.get_mut(&here).unwrap();
            if is(at, '#') {
                let open = at + 1 + usize::from(is(at + 1, '!'));
                let end = closing(all, open);
                let is_inner = open > at + 1;
                at = if !is_inner && is_for_tests(&all[open..end]) {
                    item_end(all, end)
                } else {
                    end
                };
                continue;
            }
            match (word(at), word(at + 1)) {
                (Some("use"), _) => {
                    let end = (at..all.len()).find(|at| is(*at, ';')).unwrap();
                    let line = all[at].1;
                    let mut tree = Tree {
                        tokens: &all[at + 1..end],
                        found: Vec::new(),
                    };
                    tree.read(&[]);
                    // What is exported again is imported by those who use it, not by this file.
                    let is_export = at > 0 && (word(at - 1) == Some("pub") || is(at - 1, ')'));
                    for (path, name) in tree.found {
                        if !is_export {
                            module.paths.push((path.clone(), line));
                        }
                        match name {
                            Some(name) => drop(module.bound.insert(name, path)),
                            None => module.globs.push(path),
                        }
                    }
                    at = end;
                }
                (Some("mod"), Some(name)) if in_items => {
                    module.children.insert(name.to_owned());
                    let mut child = here.clone();
                    child.push(name.to_owned());
                    if is(at + 2, '{') {
                        self.0.insert(child.clone(), new());
                        here = child;
                        braces.push(true);
                        at += 3;
                        continue;
                    }
                    own_files.push(child);
                    at += 2;
                }
                (
                    Some(
                        "fn" | "struct" | "enum" | "trait" | "type" | "const" | "static" | "union",
                    ),
                    Some(name),
                ) if in_items => {
                    module.items.insert(name.to_owned());
                    at += 1;
                }
                (Some(_), _) if token(at + 1) == Some(&Token::Sep) => {
                    let (mut named, line) = (Vec::new(), all[at].1);
                    while let Some(segment) = word(at) {
                        named.push(segment.to_owned());
                        if token(at + 1) != Some(&Token::Sep) {
                            break;
                        }
                        at += 2;
                    }
                    module.paths.push((named, line));
                    // A list of types may follow the last `::`; it is read by itself.
                    at = at.saturating_sub(usize::from(word(at).is_none()));
                }
                (Some(name), _) if !(at > 0 && is(at - 1, '.')) => {
                    module.paths.push((vec![name.to_owned()], all[at].1));
                }
                _ if is(at, '{') => braces.push(false),
                _ if is(at, '}') => {
                    let ends_module = braces.pop() == Some(true);
                    here.truncate(here.len() - usize::from(ends_module));
                }
                _ => {}
            }
            at += 1;
        }
        own_files
    }

    fn graph(&self) -> Graph {
        let mut graph = Graph::new();
        for (path, module) in &self.0 {
            let targets = graph.entry(module.file.clone()).or_default();
            for (named, line) in &module.paths {
                if let Some(Target::Item(target)) = self.resolve(path, named, 0) {
                    let file = &self.0[&target].file;
                    if *file != module.file {
                        targets.entry(file.clone()).or_insert(*line);
                    }
                }
            }
        }
        graph
    }

    /// Where this path leads when it is named in the module `from`; `None` if out of this crate.
    fn resolve(&self, from: &[String], named: &[String], depth: usize) -> Option<Target> {
        assert!(depth < 32, "{named:?} in {from:?} leads nowhere");
        let (first, mut rest) = named.split_first()?;
        let mut here = match first.as_str() {
            "crate" => Vec::new(),
            "self" => from.to_vec(),
            "super" => from[..from.len().checked_sub(1)?].to_vec(),
            name => match self.member(from, name, rest.is_empty(), depth)? {
                Target::Module(module) => module,
                item => return Some(item),
            },
        };
        while let Some((segment, behind)) = rest.split_first() {
            rest = behind;
            if segment == "super" {
                here.pop();
                continue;
            }
            here = match self.member(&here, segment, rest.is_empty(), depth) {
                Some(Target::Module(module)) => module,
                Some(item) => return Some(item),
                // Another crate's item that is exported again.
                None if self.0[&here].bound.contains_key(segment) => return None,
                // An item that a macro defines.
                None => return Some(Target::Item(here)),
            };
        }
        Some(Target::Module(here))
    }

    /// What this name means in a module.
    fn member(&self, module: &[String], name: &str, is_last: bool, depth: usize) -> Option<Target> {
        let here = &self.0[module];
        let bound = || {
            let path = here.bound.get(name)?;
            // `use memchr::memchr` begins with another crate, not with what it binds.
            (path[0] != name).then(|| self.resolve(module, path, depth + 1))?
        };
        if here.items.contains(name) {
            return Some(Target::Item(module.to_vec()));
        }
        // A module and an item of one name: the end of a path is the item.
        if is_last && let Some(target) = bound() {
            return Some(target);
        }
        if here.children.contains(name) {
            let child = [module, &[name.to_owned()]].concat();
            // Not there if it is declared for tests alone.
            return self.0.contains_key(&child).then_some(Target::Module(child));
        }
        bound().or_else(|| {
            here.globs
                .iter()
                .find_map(|path| match self.resolve(module, path, depth + 1)? {
                    Target::Module(target) => self.member(&target, name, is_last, depth + 1),
                    Target::Item(_) => None,
                })
        })
    }
}

/// The tree behind `use`.
struct Tree<'a> {
    tokens: &'a [(Token, usize)],
    /// Paths and the names that they are bound to; no name for `*`.
    found: Vec<(Vec<String>, Option<String>)>,
}

impl Tree<'_> {
    fn next(&mut self) -> Option<&Token> {
        let ((token, _), rest) = self.tokens.split_first()?;
        self.tokens = rest;
        Some(token)
    }

    /// One branch, up to a comma or the end of its group.
    fn read(&mut self, prefix: &[String]) {
        let mut path = prefix.to_vec();
        let mut name = None;
        loop {
            match self.next() {
                Some(Token::Word(word)) if word == "as" => {
                    if let Some(Token::Word(word)) = self.next() {
                        name = Some(word.clone());
                    }
                }
                Some(Token::Word(word)) => path.push(word.clone()),
                Some(Token::Sep) => {}
                Some(Token::Mark('*')) => {
                    self.found.push((path, None));
                    return;
                }
                Some(Token::Mark('{')) => {
                    while !matches!(self.tokens.first(), None | Some((Token::Mark('}'), _))) {
                        self.read(&path);
                        if let Some((Token::Mark(','), _)) = self.tokens.first() {
                            self.next();
                        }
                    }
                    self.next();
                    return;
                }
                _ => return,
            }
            if matches!(
                self.tokens.first(),
                None | Some((Token::Mark(',' | '}'), _))
            ) {
                break;
            }
        }
        if path.len() > 1 && path.last().is_some_and(|last| last == "self") {
            path.pop();
        }
        if let Some(last) = path.last().cloned() {
            self.found.push((path, Some(name.unwrap_or(last))));
        }
    }
}

/// Behind the bracket that closes the one at `open`.
fn closing(all: &[(Token, usize)], open: usize) -> usize {
    let mut depth = 0;
    for (at, (token, _)) in all.iter().enumerate().skip(open) {
        match token {
            Token::Mark('(' | '[' | '{') => depth += 1,
            Token::Mark(')' | ']' | '}') => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at + 1;
        }
    }
    all.len()
}

/// Whether `[cfg(…)]` asks for tests or fuzzing.
fn is_for_tests(attribute: &[(Token, usize)]) -> bool {
    let words: Vec<_> = attribute
        .iter()
        .filter_map(|(token, _)| match token {
            Token::Word(word) => Some(word.as_str()),
            _ => None,
        })
        .collect();
    words.first() == Some(&"cfg")
        && words.iter().any(|word| ["test", "fuzzing"].contains(word))
        && !words.contains(&"not")
}

/// Behind the item, field or statement at `at`.
fn item_end(all: &[(Token, usize)], mut at: usize) -> usize {
    let is = |at: usize, mark: char| all.get(at).is_some_and(|it| it.0 == Token::Mark(mark));
    let mut ends_at_comma = true;
    let mut ends_at_brace = true;
    while at < all.len() {
        match &all[at].0 {
            Token::Mark('#') => at = closing(all, at + 1),
            Token::Word(word) => {
                ends_at_comma &=
                    !["fn", "impl", "struct", "enum", "trait", "mod"].contains(&word.as_str());
                ends_at_brace &= word != "use";
                at += 1;
            }
            Token::Mark('(' | '[') => at = closing(all, at),
            Token::Mark('{') => {
                at = closing(all, at);
                if ends_at_brace {
                    return at + usize::from(is(at, ','));
                }
            }
            Token::Mark(';') => return at + 1,
            Token::Mark(',') if ends_at_comma => return at + 1,
            Token::Mark(')' | ']' | '}') => return at,
            _ => at += 1,
        }
    }
    at
}

/// One circle in the graph, if there is any; imports between a module and its own children are no circle of their own.
pub(crate) fn circle(graph: &Graph) -> Option<Vec<String>> {
    circles(graph).into_iter().min_by_key(Vec::len)
}

/// For each import that is part of a circle, the shortest one; each circle once.
pub(crate) fn circles(graph: &Graph) -> Vec<Vec<String>> {
    let mut found = BTreeSet::new();
    for (from, targets) in graph {
        for to in targets.keys() {
            let Some(mut circle) = shortest(graph, to, from) else {
                continue;
            };
            let first = (0..circle.len()).min_by_key(|at| &circle[*at]).unwrap();
            circle.rotate_left(first);
            found.insert(circle);
        }
    }
    found.into_iter().collect()
}

/// The shortest way from one file to another, not directly if they are parent and child.
fn shortest(graph: &Graph, from: &str, to: &str) -> Option<Vec<String>> {
    let mut ways = vec![vec![from.to_owned()]];
    let mut seen = BTreeSet::from([from.to_owned()]);
    while !ways.is_empty() {
        let mut longer = Vec::new();
        for way in ways {
            let last = way.last().unwrap();
            for next in graph[last].keys() {
                if next == to && !(way.len() == 1 && are_related(from, to)) {
                    return Some([way, vec![to.to_owned()]].concat());
                }
                if next != to && seen.insert(next.clone()) {
                    longer.push([way.clone(), vec![next.clone()]].concat());
                }
            }
        }
        ways = longer;
    }
    None
}

/// Whether one file's module is the other's parent.
fn are_related(one: &str, other: &str) -> bool {
    let module = |file: &str| {
        let name = file.trim_end_matches(".rs");
        name.strip_suffix("/mod").unwrap_or(name).to_owned()
    };
    let parent = |file: &str| module(file).rsplit_once('/').map(|(at, _)| at.to_owned());
    parent(one).as_deref() == Some(&module(other)) || parent(other).as_deref() == Some(&module(one))
}
