//! Fuzz target: reading a configuration file.

use std::path::Path;

use super::{Raw, Reader, resolve};

/// Reads `data` as a configuration file: no panic, one line for each mistake, no secret in the
/// output.
pub fn file(data: &[u8]) {
    const SECRET: &str = "never-printed-8c1f";
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let mut raw = Raw::new();
    raw.add_file(Path::new("proxy.toml"), text);
    if !text.contains("client_secret") {
        raw.add_override("token.client_secret", SECRET.to_owned());
    }
    let mut reader = Reader::new(raw);
    let config = resolve::config(&mut reader);
    let said = match reader.finish(config) {
        Ok((config, warnings)) => format!("{config:?} {warnings:?}"),
        Err(mistakes) => {
            assert!(
                mistakes
                    .iter()
                    .all(|mistake| !mistake.to_string().contains('\n')),
                "a mistake is one line"
            );
            mistakes.to_string()
        }
    };
    assert!(text.contains(SECRET) || !said.contains(SECRET));
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_corpus() {
        crate::base::corpus::each("configuration", super::file);
    }
}
