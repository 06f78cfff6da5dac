//! The syntax of `Forwarded`, RFC 7239 §4.

use std::{borrow::Cow, net::IpAddr};

use http::{HeaderMap, header};

use super::Node;

/// An element, which one proxy has added.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Element<'a> {
    pub(super) node: Node,
    pub(super) host: Option<Cow<'a, [u8]>>,
    pub(super) proto: Option<Cow<'a, [u8]>>,
}

/// The elements of all lines. In place of a line that is malformed, and of all before it, there is
/// one element with an unknown node.
pub(super) fn elements(headers: &HeaderMap) -> Vec<Element<'_>> {
    let mut elements = Vec::new();
    for line in headers.get_all(header::FORWARDED) {
        if Line(line.as_bytes()).read(&mut elements).is_none() {
            elements.clear();
            elements.push(Element {
                node: Node::Unknown,
                host: None,
                proto: None,
            });
        }
    }
    elements
}

/// An element that states this address.
pub(super) fn node(address: Option<IpAddr>) -> String {
    match address {
        Some(IpAddr::V4(ip)) => format!("for={ip}"),
        Some(IpAddr::V6(ip)) => format!("for=\"[{ip}]\""),
        None => "for=unknown".to_owned(),
    }
}

/// The rest of a line.
struct Line<'a>(&'a [u8]);

impl<'a> Line<'a> {
    /// Adds the elements of the line; `None` if it is malformed.
    fn read(&mut self, elements: &mut Vec<Element<'a>>) -> Option<()> {
        loop {
            let mut element = Element {
                node: Node::Absent,
                host: None,
                proto: None,
            };
            let mut is_empty = true;
            let is_last = loop {
                self.skip_blanks();
                match self.0.first() {
                    None => break true,
                    Some(b',') => break false,
                    Some(b';') => {}
                    Some(_) => {
                        self.pair(&mut element)?;
                        is_empty = false;
                        self.skip_blanks();
                    }
                }
                match self.0.first() {
                    Some(b';') => self.0 = &self.0[1..],
                    Some(b',') => break false,
                    Some(_) => return None,
                    None => break true,
                }
            };
            if !is_empty {
                elements.push(element);
            }
            if is_last {
                return Some(());
            }
            self.0 = &self.0[1..];
        }
    }

    fn pair(&mut self, element: &mut Element<'a>) -> Option<()> {
        let length = self.0.iter().position(|byte| *byte == b'=')?;
        let (name, value) = self.0.split_at(length);
        if name.is_empty() || name.iter().any(|byte| b" \t\",;".contains(byte)) {
            return None;
        }
        self.0 = &value[1..];
        let value = self.value()?;
        let is = |other: &str| name.eq_ignore_ascii_case(other.as_bytes());
        // §4: each parameter at most once.
        if is("for") {
            let before = std::mem::replace(&mut element.node, super::node(&value));
            (before == Node::Absent).then_some(())
        } else if is("host") {
            element.host.replace(value).is_none().then_some(())
        } else if is("proto") {
            element.proto.replace(value).is_none().then_some(())
        } else {
            Some(())
        }
    }

    fn value(&mut self) -> Option<Cow<'a, [u8]>> {
        if let Some(quoted) = self.0.strip_prefix(b"\"") {
            self.0 = quoted;
            return self.quoted();
        }
        // More than tokens: many omit the quotes around a port or an IPv6 address.
        let is_end = |byte: &u8| b" \t\",;".contains(byte);
        let length = self.0.iter().position(is_end).unwrap_or(self.0.len());
        let (value, rest) = self.0.split_at(length);
        self.0 = rest;
        (!value.is_empty()).then_some(Cow::Borrowed(value))
    }

    /// A string without a comma: a quote that the client has left open must not hide the element
    /// that a proxy has appended behind it.
    fn quoted(&mut self) -> Option<Cow<'a, [u8]>> {
        let mut value = Vec::new();
        let mut bytes = self.0.iter().enumerate();
        while let Some((at, byte)) = bytes.next() {
            match byte {
                b'"' => {
                    let written = &self.0[..at];
                    self.0 = &self.0[at + 1..];
                    let is_plain = written.len() == value.len();
                    return Some(if is_plain {
                        Cow::Borrowed(written)
                    } else {
                        Cow::Owned(value)
                    });
                }
                b',' => return None,
                b'\\' => match bytes.next()?.1 {
                    b',' => return None,
                    escaped => value.push(*escaped),
                },
                byte => value.push(*byte),
            }
        }
        None
    }

    fn skip_blanks(&mut self) {
        self.0 = self.0.trim_ascii_start();
    }
}
