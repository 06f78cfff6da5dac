//! Values built from files and rebuilt when the files change: TLS settings, client keys, the admin
//! token.

mod reloader;

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use arc_swap::ArcSwap;
use aws_lc_rs::digest;

pub use self::reloader::{ReloadHandle, Reloader};
use super::tls::{Error, Validity, read};

/// A value built from a few files, replaced atomically when they have changed. Unusable contents
/// replace nothing: a certificate and its key are written one after the other, so that a reload may
/// see a pair that does not match.
pub struct Reloadable<T> {
    name: String,
    files: Vec<PathBuf>,
    certificate: Option<PathBuf>,
    build: Box<dyn Fn() -> Result<T, String> + Send + Sync>,
    current: ArcSwap<Built<T>>,
}

struct Built<T> {
    value: Arc<T>,
    validity: Option<Validity>,
    digest: digest::Digest,
}

/// A [`Reloadable`] of any type.
pub trait Reload: Send + Sync + fmt::Debug {
    /// The use of the value: `listener:ADDRESS`, `upstream:NAME:client`, `issuer:client`,
    /// `store:client`, `clients` or `admin`. Appears in logs and, for certificates, as the metric
    /// label `use`.
    fn name(&self) -> &str;

    /// The files that the value is built from.
    fn files(&self) -> &[PathBuf];

    /// The file of the certificate that the proxy presents, if there is one.
    fn certificate(&self) -> Option<&Path>;

    /// The validity of the certificate in use; `None` without a certificate, or if it cannot be
    /// parsed.
    fn validity(&self) -> Option<Validity>;

    /// Reads the files; true if they have changed and the new value is in use. Blocks.
    ///
    /// # Errors
    /// When the files cannot be used; the former value stays in use.
    fn reload(&self) -> Result<bool, String>;
}

impl<T> Reloadable<T> {
    /// Builds the first value. `certificate` is the one among the files that the proxy presents.
    ///
    /// # Errors
    /// When a file cannot be read or used.
    pub fn new<E: fmt::Display + From<Error>>(
        name: String,
        files: impl IntoIterator<Item = PathBuf>,
        certificate: Option<PathBuf>,
        build: impl Fn() -> Result<T, E> + Send + Sync + 'static,
    ) -> Result<Self, E> {
        let files: Vec<_> = files.into_iter().collect();
        let digest = digest(&files)?;
        let value = Arc::new(build()?);
        let built = Built {
            value,
            validity: validity(certificate.as_deref()),
            digest,
        };
        let build = Box::new(move || build().map_err(|error| error.to_string()));
        Ok(Self {
            name,
            files,
            certificate,
            build,
            current: ArcSwap::from_pointee(built),
        })
    }

    /// The value in use.
    pub fn load(&self) -> Arc<T> {
        Arc::clone(&self.current.load().value)
    }

    /// Whether `value` is the one in use. Cheaper than [`Reloadable::load`].
    pub fn is_current(&self, value: &Arc<T>) -> bool {
        Arc::ptr_eq(&self.current.load().value, value)
    }
}

impl<T: Send + Sync> Reload for Reloadable<T> {
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
        self.current.load().validity
    }

    fn reload(&self) -> Result<bool, String> {
        // Race: the files may change between the digest and the build. The digest comes first, so
        // that the next reload finds another one and builds again.
        let digest = digest(&self.files).map_err(|error| error.to_string())?;
        if digest.as_ref() == self.current.load().digest.as_ref() {
            return Ok(false);
        }
        let value = Arc::new((self.build)()?);
        self.current.store(Arc::new(Built {
            value,
            validity: validity(self.certificate.as_deref()),
            digest,
        }));
        Ok(true)
    }
}

impl<T> fmt::Debug for Reloadable<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reloadable")
            .field("name", &self.name)
            .field("files", &self.files)
            .finish_non_exhaustive()
    }
}

fn validity(certificate: Option<&Path>) -> Option<Validity> {
    certificate.and_then(|certificate| Validity::of_file(certificate).ok().flatten())
}

/// Hashes the contents, so that a new modification time alone causes no rebuild: one would end the
/// TLS sessions that can be resumed.
fn digest(files: &[PathBuf]) -> Result<digest::Digest, Error> {
    let mut context = digest::Context::new(&digest::SHA256);
    for file in files {
        let contents = read(file)?;
        context.update(&contents.len().to_be_bytes());
        context.update(&contents);
    }
    Ok(context.finish())
}
