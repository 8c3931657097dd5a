//! Programs of the host in a guest: a second archive behind its first file system, which the kernel unpacks over it.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use archipelago_bench::program::output;

/// An archive begins at a multiple of this.
const ALIGNMENT: usize = 512;

/// Writes `initrd` with `programs` and the libraries that they need into `dir`: the path.
pub(crate) fn add(programs: &[PathBuf], initrd: &Path, dir: &Path) -> Result<PathBuf> {
    let tree = dir.join("programs");
    for program in programs {
        let name = program.file_name().context("a program has a name")?;
        strip(program, &tree.join("tools").join(name))?;
        for library in libraries(program)? {
            let inside = library.strip_prefix("/").unwrap_or(&library);
            copy(&library, &tree.join(inside))?;
        }
    }
    let mut all = fs::read(initrd).with_context(|| initrd.display().to_string())?;
    all.resize(all.len().next_multiple_of(ALIGNMENT), 0);
    all.extend(pack(&tree)?);
    let path = dir.join("initrd.cpio");
    File::create(&path)?.write_all(&all)?;
    Ok(path)
}

/// Copies a program without what only a debugger needs, which is most of it: a guest's memory holds it.
fn strip(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to.parent().context("a file is in a directory")?)?;
    let output = output(Command::new("strip").arg("-o").arg(to).arg(from)).context("strip")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "strip: {}: {said}", output.status);
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to.parent().context("a file is in a directory")?)?;
    fs::copy(from, to).with_context(|| from.display().to_string())?;
    Ok(())
}

/// Paths of the shared libraries of a program; a static one has none.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let output = output(Command::new("ldd").arg(program)).context("ldd")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let words = text.split_whitespace().filter(|word| word.starts_with('/'));
    Ok(words.map(PathBuf::from).collect())
}

fn pack(tree: &Path) -> Result<Vec<u8>> {
    let mut command = Command::new("sh");
    command
        .args(["-c", "find . | cpio --quiet --create --format newc"])
        .current_dir(tree);
    let output = output(&mut command)?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "cpio: {}: {said}", output.status);
    Ok(output.stdout)
}
