//! Runs fuzz targets on their stored corpus, as part of the tests.

use std::{fs, path::Path};

/// Runs a fuzz target on each file of its corpus, on prefixes of each, and on copies with one byte
/// changed.
pub(crate) fn each(target: &str, run: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(target);
    // Used by tests alone: a missing corpus fails the test.
    let files = fs::read_dir(&folder)
        .expect("a corpus")
        .map(|entry| entry.expect("an entry").path());
    let mut seen = 0;
    for file in files {
        let data = fs::read(file).expect("a file");
        seen += 1;
        run(&data);
        for at in (0..data.len()).step_by(data.len() / 100 + 1) {
            run(&data[..at]);
            for byte in [0, b'\n', b'"', b'%', 0x80, data[at] ^ 0x20] {
                let mut changed = data.clone();
                changed[at] = byte;
                run(&changed);
            }
        }
    }
    assert!(seen >= 10, "{target} has {seen} files");
}
