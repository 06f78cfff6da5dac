//! The tables of HPACK, RFC 7541 §2.3.

use std::collections::VecDeque;

/// The largest size of the dynamic table. Peers may use it all, as this is the default that no
/// `SETTINGS_HEADER_TABLE_SIZE` of this proxy changes.
pub(super) const MAX_SIZE: usize = 4096;

/// What an entry costs beside its bytes, RFC 7541 §4.1.
pub(in crate::net::http2) const ENTRY_OVERHEAD: usize = 32;

/// RFC 7541 Appendix A.
#[rustfmt::skip]
const STATIC: [(&str, &str); 61] = [
    (":authority", ""),
    (":method", "GET"),
    (":method", "POST"),
    (":path", "/"),
    (":path", "/index.html"),
    (":scheme", "http"),
    (":scheme", "https"),
    (":status", "200"),
    (":status", "204"),
    (":status", "206"),
    (":status", "304"),
    (":status", "400"),
    (":status", "404"),
    (":status", "500"),
    ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"),
    ("accept-language", ""),
    ("accept-ranges", ""),
    ("accept", ""),
    ("access-control-allow-origin", ""),
    ("age", ""),
    ("allow", ""),
    ("authorization", ""),
    ("cache-control", ""),
    ("content-disposition", ""),
    ("content-encoding", ""),
    ("content-language", ""),
    ("content-length", ""),
    ("content-location", ""),
    ("content-range", ""),
    ("content-type", ""),
    ("cookie", ""),
    ("date", ""),
    ("etag", ""),
    ("expect", ""),
    ("expires", ""),
    ("from", ""),
    ("host", ""),
    ("if-match", ""),
    ("if-modified-since", ""),
    ("if-none-match", ""),
    ("if-range", ""),
    ("if-unmodified-since", ""),
    ("last-modified", ""),
    ("link", ""),
    ("location", ""),
    ("max-forwards", ""),
    ("proxy-authenticate", ""),
    ("proxy-authorization", ""),
    ("range", ""),
    ("referer", ""),
    ("refresh", ""),
    ("retry-after", ""),
    ("server", ""),
    ("set-cookie", ""),
    ("strict-transport-security", ""),
    ("transfer-encoding", ""),
    ("user-agent", ""),
    ("vary", ""),
    ("via", ""),
    ("www-authenticate", ""),
];

/// Whether an index is behind the static table.
pub(super) fn is_dynamic(index: usize) -> bool {
    index > STATIC.len()
}

/// The static table and, behind it, the dynamic one of one direction of a connection.
#[derive(Debug)]
pub(super) struct Table {
    /// The bytes of the dynamic entries, in the order in which they were inserted.
    bytes: Vec<u8>,
    /// The newest one first.
    entries: VecDeque<Entry>,
    size: usize,
    max_size: usize,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    /// Its position in `bytes`.
    begin: usize,
    name: usize,
    value: usize,
}

impl Entry {
    fn length(self) -> usize {
        self.name + self.value
    }
}

impl Table {
    pub(super) fn new() -> Self {
        Self {
            bytes: Vec::new(),
            entries: VecDeque::new(),
            size: 0,
            max_size: MAX_SIZE,
        }
    }

    /// Name and value of an entry; `None` if there is none.
    pub(super) fn get(&self, index: usize) -> Option<(&[u8], &[u8])> {
        let index = index.checked_sub(1)?;
        if let Some((name, value)) = STATIC.get(index) {
            return Some((name.as_bytes(), value.as_bytes()));
        }
        let entry = self.entries.get(index - STATIC.len())?;
        Some(self.bytes[entry.begin..][..entry.length()].split_at(entry.name))
    }

    /// Inserts an entry. One that is larger than the table empties it, RFC 7541 §4.4.
    pub(super) fn insert(&mut self, name: &[u8], value: &[u8]) {
        let size = name.len() + value.len() + ENTRY_OVERHEAD;
        self.evict(self.max_size.saturating_sub(size));
        if size > self.max_size {
            return;
        }
        if self.bytes.len() + size > 2 * MAX_SIZE {
            self.compact();
        }
        let begin = self.bytes.len();
        self.bytes.extend_from_slice(name);
        self.bytes.extend_from_slice(value);
        self.entries.push_front(Entry {
            begin,
            name: name.len(),
            value: value.len(),
        });
        self.size += size;
    }

    /// Sets the size that the peer uses, at most [`MAX_SIZE`].
    pub(super) fn resize(&mut self, size: usize) {
        self.max_size = size;
        self.evict(size);
    }

    /// Removes the oldest entries until no more than `size` is left.
    fn evict(&mut self, size: usize) {
        while self.size > size
            && let Some(oldest) = self.entries.pop_back()
        {
            self.size -= oldest.length() + ENTRY_OVERHEAD;
        }
    }

    /// Removes the bytes of entries that no longer exist.
    fn compact(&mut self) {
        let begin = self
            .entries
            .back()
            .map_or(self.bytes.len(), |entry| entry.begin);
        self.bytes.drain(..begin);
        for entry in &mut self.entries {
            entry.begin -= begin;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_evicted_by_size_and_the_memory_is_bounded() {
        let mut table = Table::new();
        for number in 0..10_000 {
            let value = format!("{number:0>60}");
            table.insert(b"a-name", value.as_bytes());
            assert_eq!(table.get(62).unwrap(), (&b"a-name"[..], value.as_bytes()));
            assert!(table.size <= MAX_SIZE && table.bytes.len() <= 2 * MAX_SIZE);
        }
        // 98 bytes each.
        assert!(table.get(62 + 40).is_some() && table.get(62 + 41).is_none());
        table.resize(100);
        assert!(table.get(62).is_some() && table.get(63).is_none());
        table.insert(b"too-large", &[b'x'; 100]);
        assert!(table.get(62).is_none());
        assert_eq!(table.get(0), None);
        assert_eq!(table.get(61).unwrap().0, b"www-authenticate");
        assert_eq!(table.get(usize::MAX), None);
    }
}
