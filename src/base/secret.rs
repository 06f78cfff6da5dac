//! Secrets that never print themselves, and secret files.

use std::{fmt, io, path::PathBuf};

use secrecy::{ExposeSecret, SecretString};

use super::blocking;

/// A configured secret and, if it was read from a file, the path, so that it can be read again
/// after a rotation.
///
/// `Debug` prints no part of it; it does not implement `Serialize`; its memory is wiped on drop.
#[derive(Clone)]
pub struct Secret {
    value: SecretString,
    file: Option<PathBuf>,
}

impl Secret {
    /// A secret given inline: as a configuration value or an environment variable.
    pub fn new(value: impl Into<String>) -> Self {
        Self {
            value: SecretString::from(value.into()),
            file: None,
        }
    }

    /// Reads a secret file: UTF-8; one line end and a byte order mark are removed. Symbolic links
    /// are followed: Kubernetes mounts secrets through them.
    ///
    /// # Errors
    /// When the file cannot be read, is not UTF-8, is empty, or is larger than 64 KiB.
    pub fn from_file(file: PathBuf) -> io::Result<Self> {
        let value = read_secret_file(&file)?;
        Ok(Self {
            value,
            file: Some(file),
        })
    }

    /// [`Secret::from_file`] on a thread for blocking calls.
    ///
    /// # Errors
    /// Like [`Secret::from_file`].
    pub async fn load(file: PathBuf) -> io::Result<Self> {
        blocking::run(|| Self::from_file(file)).await?
    }

    /// Reads the secret again from its file; one given inline is returned as it is.
    ///
    /// # Errors
    /// Like [`Secret::from_file`].
    pub fn read_again(&self) -> io::Result<Self> {
        self.file
            .clone()
            .map_or_else(|| Ok(self.clone()), Self::from_file)
    }

    /// The plain text. Each call is a place where a secret leaves its wrapper.
    pub fn expose(&self) -> &str {
        self.value.expose_secret()
    }

    /// Whether it contains no control characters, line ends included.
    pub fn is_one_line(&self) -> bool {
        !self.expose().contains(char::is_control)
    }

    /// Whether it fits into a header field as one word: visible ASCII characters only.
    pub fn fits_header(&self) -> bool {
        self.expose().bytes().all(|byte| byte.is_ascii_graphic())
    }

    /// The file that it was read from.
    pub fn file(&self) -> Option<&std::path::Path> {
        self.file.as_deref()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

fn read_secret_file(file: &std::path::Path) -> io::Result<SecretString> {
    use std::io::Read as _;

    use zeroize::Zeroize as _;

    const LIMIT: u64 = 64 * 1024;
    let invalid = |reason: &str| io::Error::new(io::ErrorKind::InvalidData, reason.to_owned());
    let mut text = zeroize::Zeroizing::new(String::new());
    let opened = std::fs::File::open(file)?;
    if opened.metadata()?.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    if let Err(error) = opened.take(LIMIT + 1).read_to_string(&mut text) {
        text.zeroize();
        return Err(if error.kind() == io::ErrorKind::InvalidData {
            invalid("it is not UTF-8 text")
        } else {
            error
        });
    }
    if text.len() as u64 > LIMIT {
        return Err(invalid("it is larger than 64 KiB"));
    }
    let value = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let value = value
        .strip_suffix('\n')
        .map_or(value, |value| value.strip_suffix('\r').unwrap_or(value));
    if value.is_empty() {
        return Err(invalid("it is empty"));
    }
    Ok(SecretString::from(value))
}
