//! The files of the simulated cloud: one flat folder, in memory or on disk; and the tickets for
//! uploads and downloads.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    ops::Range,
    path::{Path, PathBuf},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use parking_lot::Mutex;
use tokio::io::{AsyncSeekExt as _, AsyncWriteExt as _};

use super::{body::ResponseBody, tokens::random_token};
use crate::base::clock::Moment;

/// How long a URL on the document host is valid.
const TICKET_LIFETIME: Duration = Duration::from_secs(60 * 60);

/// A file name that cannot leave the folder, name a device, or hide.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Name(String);

impl Name {
    /// # Errors
    /// `InvalidInput` unless the name is a plain one on every platform.
    pub(super) fn new(name: &str) -> io::Result<Self> {
        let stem = name
            .split('.')
            .next()
            .unwrap_or_default()
            .trim_end()
            .to_ascii_uppercase();
        let numbered = |stem: &str| {
            let mut rest = stem.chars().skip(3);
            (stem.starts_with("COM") || stem.starts_with("LPT"))
                && rest.next().is_some()
                && rest.next().is_none()
        };
        let device = matches!(stem.as_str(), "CON" | "PRN" | "AUX" | "NUL") || numbered(&stem);
        let plain = !name.is_empty()
            && name.len() <= 200
            && !name.starts_with('.')
            && !name.ends_with(['.', ' '])
            && !name.contains(|c: char| c.is_control() || r#"/\:*?"<>|"#.contains(c));
        if plain && !device {
            Ok(Self(name.to_owned()))
        } else {
            Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the cloud does not accept this file name",
            ))
        }
    }

    /// The name that a file id encodes.
    ///
    /// # Errors
    /// `NotFound` if it is not an id of this cloud.
    pub(super) fn from_id(id: &str) -> io::Result<Self> {
        let name = URL_SAFE_NO_PAD
            .decode(id)
            .ok()
            .and_then(|name| String::from_utf8(name).ok());
        name.and_then(|name| Self::new(&name).ok())
            .ok_or_else(not_found)
    }

    pub(super) fn id(&self) -> String {
        URL_SAFE_NO_PAD.encode(&self.0)
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

/// The files and the tickets.
pub(super) struct Files {
    store: Store,
    uploads: Mutex<HashMap<String, Upload>>,
    downloads: Mutex<HashMap<String, (Name, Moment)>>,
}

enum Store {
    Memory {
        files: Mutex<BTreeMap<Name, Bytes>>,
        limit: usize,
    },
    Folder(PathBuf),
}

struct Upload {
    token: String,
    name: Name,
    expires: Moment,
}

/// A file that is ready to be read.
pub(super) enum Content {
    Memory(Bytes),
    File(tokio::fs::File, u64),
}

impl Files {
    /// Files in memory, up to `limit` bytes together, or in a folder, which is created if it is
    /// missing.
    pub(super) fn new(folder: Option<PathBuf>, limit: usize) -> io::Result<Self> {
        let store = match folder {
            None => Store::Memory {
                files: Mutex::default(),
                limit,
            },
            Some(folder) => {
                std::fs::create_dir_all(&folder)?;
                Store::Folder(folder)
            }
        };
        Ok(Self {
            store,
            uploads: Mutex::default(),
            downloads: Mutex::default(),
        })
    }

    /// Every file with its size, by name.
    pub(super) async fn list(&self) -> io::Result<Vec<(Name, u64)>> {
        let folder = match &self.store {
            Store::Memory { files, .. } => {
                return Ok(files
                    .lock()
                    .iter()
                    .map(|(name, bytes)| (name.clone(), bytes.len() as u64))
                    .collect());
            }
            Store::Folder(folder) => folder,
        };
        let mut files = Vec::new();
        let mut entries = tokio::fs::read_dir(folder).await?;
        while let Some(entry) = entries.next_entry().await? {
            let Some(name) = entry
                .file_name()
                .to_str()
                .and_then(|name| Name::new(name).ok())
            else {
                continue;
            };
            match entry.metadata().await {
                Ok(metadata) if metadata.is_file() => files.push((name, metadata.len())),
                _ => {}
            }
        }
        files.sort();
        Ok(files)
    }

    /// The size of a file.
    pub(super) async fn size(&self, name: &Name) -> io::Result<u64> {
        match &self.store {
            Store::Memory { files, .. } => files
                .lock()
                .get(name)
                .map(|bytes| bytes.len() as u64)
                .ok_or_else(not_found),
            Store::Folder(folder) => size_on_disk(&folder.join(name.as_str())).await,
        }
    }

    /// Opens a file.
    pub(super) async fn open(&self, name: &Name) -> io::Result<Content> {
        match &self.store {
            Store::Memory { files, .. } => files
                .lock()
                .get(name)
                .cloned()
                .map(Content::Memory)
                .ok_or_else(not_found),
            Store::Folder(folder) => {
                let path = folder.join(name.as_str());
                size_on_disk(&path).await?;
                let file = tokio::fs::File::open(path).await?;
                let size = file.metadata().await?.len();
                Ok(Content::File(file, size))
            }
        }
    }

    /// Deletes a file.
    pub(super) async fn delete(&self, name: &Name) -> io::Result<()> {
        match &self.store {
            Store::Memory { files, .. } => {
                files.lock().remove(name).map(drop).ok_or_else(not_found)
            }
            Store::Folder(folder) => {
                let path = folder.join(name.as_str());
                size_on_disk(&path).await?;
                tokio::fs::remove_file(path).await
            }
        }
    }

    /// Stores a body as a file, in place of any older one of that name. A body that ends in an
    /// error leaves no file.
    pub(super) async fn write(&self, name: Name, body: Incoming) -> io::Result<u64> {
        match &self.store {
            Store::Memory { files, limit } => {
                let bytes = collect(body, *limit).await?;
                let mut files = files.lock();
                let others: usize = files
                    .iter()
                    .filter(|(other, _)| **other != name)
                    .map(|(_, bytes)| bytes.len())
                    .sum();
                if others + bytes.len() > *limit {
                    return Err(io::ErrorKind::FileTooLarge.into());
                }
                let size = bytes.len() as u64;
                files.insert(name, bytes);
                Ok(size)
            }
            Store::Folder(folder) => write_to_disk(folder, &name, body).await,
        }
    }

    /// Announces an upload. Returns the ticket for its URL, and its upload token.
    pub(super) fn announce_upload(&self, name: Name, now: Moment) -> io::Result<(String, String)> {
        let (ticket, token) = (random_token()?, random_token()?);
        let mut uploads = self.uploads.lock();
        uploads.retain(|_, upload| now < upload.expires);
        uploads.insert(
            ticket.clone(),
            Upload {
                token: token.clone(),
                name,
                expires: now + TICKET_LIFETIME,
            },
        );
        Ok((ticket, token))
    }

    /// Takes an announced upload; a ticket is good for one.
    pub(super) fn take_upload(&self, ticket: &str, token: &str, now: Moment) -> Option<Name> {
        let mut uploads = self.uploads.lock();
        uploads
            .get(ticket)
            .filter(|upload| upload.token == token && now < upload.expires)?;
        uploads.remove(ticket).map(|upload| upload.name)
    }

    /// A ticket with which a file can be downloaded for an hour.
    pub(super) fn announce_download(&self, name: Name, now: Moment) -> io::Result<String> {
        let ticket = random_token()?;
        let mut downloads = self.downloads.lock();
        downloads.retain(|_, (_, expires)| now < *expires);
        downloads.insert(ticket.clone(), (name, now + TICKET_LIFETIME));
        Ok(ticket)
    }

    /// The file that a ticket is for.
    pub(super) fn download(&self, ticket: &str, now: Moment) -> Option<Name> {
        self.downloads
            .lock()
            .get(ticket)
            .filter(|(_, expires)| now < *expires)
            .map(|(name, _)| name.clone())
    }
}

impl Content {
    pub(super) fn size(&self) -> u64 {
        match self {
            Self::Memory(bytes) => bytes.len() as u64,
            Self::File(_, size) => *size,
        }
    }

    /// This part of the file, which must lie within it.
    pub(super) async fn part(self, range: Range<u64>) -> io::Result<ResponseBody> {
        match self {
            Self::Memory(bytes) => Ok(ResponseBody::Whole(
                bytes.slice(range.start as usize..range.end as usize),
            )),
            Self::File(mut file, _) => {
                file.seek(io::SeekFrom::Start(range.start)).await?;
                Ok(ResponseBody::File(file, range.end - range.start))
            }
        }
    }
}

fn not_found() -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, "no such file")
}

/// Links and folders are not files of the cloud: they could lead out of the folder.
async fn size_on_disk(path: &Path) -> io::Result<u64> {
    let metadata = tokio::fs::symlink_metadata(path)
        .await
        .map_err(|_| not_found())?;
    if metadata.is_file() {
        Ok(metadata.len())
    } else {
        Err(not_found())
    }
}

async fn collect(mut body: Incoming, limit: usize) -> io::Result<Bytes> {
    let mut bytes = BytesMut::new();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.map_err(io::Error::other)?.into_data() {
            if bytes.len() + data.len() > limit {
                return Err(io::ErrorKind::FileTooLarge.into());
            }
            bytes.extend_from_slice(&data);
        }
    }
    Ok(bytes.freeze())
}

/// A file that is removed unless it has been renamed; its name is hidden, so that it is neither
/// listed nor opened.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        // After a rename there is nothing left to remove.
        let _ = std::fs::remove_file(&self.0);
    }
}

async fn write_to_disk(folder: &Path, name: &Name, mut body: Incoming) -> io::Result<u64> {
    let temporary = Temporary(folder.join(format!(".upload-{}", random_token()?)));
    let mut file = tokio::fs::File::create_new(&temporary.0).await?;
    let mut size = 0;
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.map_err(io::Error::other)?.into_data() {
            file.write_all(&data).await?;
            size += data.len() as u64;
        }
    }
    file.flush().await?;
    drop(file);
    tokio::fs::rename(&temporary.0, folder.join(name.as_str())).await?;
    Ok(size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_names_are_refused() {
        for name in [
            "",
            ".",
            "..",
            "../x",
            "a/b",
            r"a\b",
            "/etc/passwd",
            "C:x",
            "x\0",
            "x\n",
            ".hidden",
            "dot.",
            "CON",
            "nul.txt",
            "com1",
            "aux .c",
            "a?",
            &"x".repeat(201),
        ] {
            assert!(Name::new(name).is_err(), "{name:?}");
            assert!(
                Name::from_id(&URL_SAFE_NO_PAD.encode(name)).is_err(),
                "{name:?} as id"
            );
        }
        for id in ["../../etc/passwd", "%", "ü", "_w"] {
            assert!(Name::from_id(id).is_err(), "{id:?}");
        }
    }

    #[test]
    fn ordinary_names_survive_as_ids() {
        for name in [
            "a.txt",
            "Übersicht 2024 + 50 %.xlsx",
            "conference.pdf",
            "comma",
            "x..y",
        ] {
            assert_eq!(
                Name::from_id(&Name::new(name).unwrap().id())
                    .unwrap()
                    .as_str(),
                name
            );
        }
    }

    #[test]
    fn tickets_live_an_hour() {
        let files = Files::new(None, 0).unwrap();
        let name = Name::new("a").unwrap();
        let at = |seconds| Moment::since_boot(Duration::from_secs(seconds));
        let (upload, token) = files.announce_upload(name.clone(), at(0)).unwrap();
        let download = files.announce_download(name.clone(), at(0)).unwrap();
        assert_eq!(files.download(&download, at(3599)), Some(name.clone()));
        assert_eq!(files.download(&download, at(3600)), None);
        assert_eq!(files.take_upload(&upload, &token, at(3600)), None);
        assert_eq!(files.take_upload(&upload, &token, at(3599)), Some(name));
    }
}
