//! Writes the seeds of all targets below a folder, a file each, named by its content: where `tests/fuzz/fuzz.sh` begins.

use std::path::PathBuf;

use archipelago_fuzz_tests::TARGETS;

fn main() -> std::io::Result<()> {
    let seeds = std::env::args_os().nth(1).map(PathBuf::from);
    let seeds = seeds.ok_or_else(|| std::io::Error::other("the folder of seeds is missing"))?;
    for target in TARGETS {
        let folder = seeds.join(target.name);
        std::fs::create_dir_all(&folder)?;
        for seed in archipelago_fuzz_tests::seeds::of(target.name) {
            let name = blake3::hash(&seed).to_hex();
            std::fs::write(folder.join(&name[..16]), seed)?;
        }
    }
    Ok(())
}
