//! Writes the seeds of all targets below a folder, a file each, named by its content: `cargo run -p
//! archipelago-fuzz-tests -- tests/fuzz/corpus`.

use std::path::PathBuf;

use archipelago_fuzz_tests::{TARGETS, seeds};

fn main() -> std::io::Result<()> {
    let corpus = std::env::args_os().nth(1).map(PathBuf::from);
    let corpus = corpus.ok_or_else(|| std::io::Error::other("the folder of corpora is missing"))?;
    for target in TARGETS {
        let folder = corpus.join(target.name);
        std::fs::create_dir_all(&folder)?;
        for seed in seeds::of(target.name) {
            let name = blake3::hash(&seed).to_hex();
            std::fs::write(folder.join(&name[..16]), seed)?;
        }
    }
    Ok(())
}
