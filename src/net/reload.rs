//! What is made of files and follows them: TLS settings, the keys of clients, the token of the admin endpoint.

mod reloader;

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use arc_swap::ArcSwap;
use aws_lc_rs::digest;

pub use self::reloader::{Certificates, Keeper};
use super::tls::{Error, Validity, read};

/// What was made of a few files, and is made again when they have changed. What cannot be used is not taken over: a pair
/// of certificate and key is written one after the other.
pub struct Current<T> {
    name: String,
    files: Vec<PathBuf>,
    certificate: Option<PathBuf>,
    make: Box<dyn Fn() -> Result<T, String> + Send + Sync>,
    made: ArcSwap<Made<T>>,
}

struct Made<T> {
    value: Arc<T>,
    validity: Option<Validity>,
    digest: digest::Digest,
}

/// Something that follows files, whatever is made of them.
pub trait Held: Send + Sync + fmt::Debug {
    /// What it is for: `listener:ADDRESS`, `upstream:NAME:client`, `issuer:client`, `clients` or `admin`.
    fn name(&self) -> &str;

    /// What it is made of.
    fn files(&self) -> &[PathBuf];

    /// The file of the certificate that we show, if there is one.
    fn certificate(&self) -> Option<&Path>;

    /// How long the certificate in use is good. `None`: there is none, or it cannot be read.
    fn validity(&self) -> Option<Validity>;

    /// Reads the files; true if they have changed and what they hold is in use from now on. Blocks.
    ///
    /// # Errors
    /// When they cannot be used, which leaves everything as it was.
    fn reload(&self) -> Result<bool, String>;
}

impl<T> Current<T> {
    /// Makes it for the first time. `certificate` is the one among the files that we show.
    ///
    /// # Errors
    /// When a file cannot be read or used.
    pub fn new<E: fmt::Display + From<Error>>(
        name: String,
        files: impl IntoIterator<Item = PathBuf>,
        certificate: Option<PathBuf>,
        make: impl Fn() -> Result<T, E> + Send + Sync + 'static,
    ) -> Result<Self, E> {
        let files: Vec<_> = files.into_iter().collect();
        let digest = digest(&files)?;
        let value = Arc::new(make()?);
        let made = Made {
            value,
            validity: validity(certificate.as_deref()),
            digest,
        };
        let make = Box::new(move || make().map_err(|error| error.to_string()));
        Ok(Self {
            name,
            files,
            certificate,
            make,
            made: ArcSwap::from_pointee(made),
        })
    }

    /// The newest that could be used.
    pub fn load(&self) -> Arc<T> {
        Arc::clone(&self.made.load().value)
    }

    /// Whether this is the newest. Cheaper than to take it.
    pub fn is_newest(&self, value: &Arc<T>) -> bool {
        Arc::ptr_eq(&self.made.load().value, value)
    }
}

impl<T: Send + Sync> Held for Current<T> {
    fn name(&self) -> &str {
        &self.name
    }

    fn files(&self) -> &[PathBuf] {
        &self.files
    }

    fn certificate(&self) -> Option<&Path> {
        self.certificate.as_deref()
    }

    fn validity(&self) -> Option<Validity> {
        self.made.load().validity
    }

    fn reload(&self) -> Result<bool, String> {
        // Taken before the files are used: should they change in between, the next look finds another one.
        let digest = digest(&self.files).map_err(|error| error.to_string())?;
        if digest.as_ref() == self.made.load().digest.as_ref() {
            return Ok(false);
        }
        let value = Arc::new((self.make)()?);
        self.made.store(Arc::new(Made {
            value,
            validity: validity(self.certificate.as_deref()),
            digest,
        }));
        Ok(true)
    }
}

impl<T> fmt::Debug for Current<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Current")
            .field("name", &self.name)
            .field("files", &self.files)
            .finish_non_exhaustive()
    }
}

fn validity(certificate: Option<&Path>) -> Option<Validity> {
    certificate.and_then(|certificate| Validity::of_file(certificate).ok().flatten())
}

/// Of the files' contents, so that one that was merely touched ends no session.
fn digest(files: &[PathBuf]) -> Result<digest::Digest, Error> {
    let mut context = digest::Context::new(&digest::SHA256);
    for file in files {
        let text = read(file)?;
        context.update(&text.len().to_be_bytes());
        context.update(&text);
    }
    Ok(context.finish())
}
