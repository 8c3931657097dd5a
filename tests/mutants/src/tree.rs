//! A copy of the sources, in which one mutant at a time stands.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::anchor::Place;
use crate::list::Mutant;

/// The copy. Files keep their times as long as they do not change, so that little is built again.
#[derive(Debug)]
pub struct Tree {
    source: PathBuf,
    copy: PathBuf,
}

impl Tree {
    /// Brings the copy at `copy` in line with the sources at `source`: what Git knows, and what is new. Nothing else stays:
    /// a file that has moved would be there twice.
    ///
    /// # Errors
    /// Git, or a file.
    pub fn bring(source: &Path, copy: &Path) -> Result<Tree> {
        let listed = Command::new("git")
            .current_dir(source)
            .args([
                "ls-files",
                "-z",
                "--cached",
                "--others",
                "--exclude-standard",
            ])
            .output()?;
        ensure!(listed.status.success(), "git ls-files failed");
        let tree = Tree {
            source: source.to_owned(),
            copy: copy.to_owned(),
        };
        let mut kept = BTreeSet::new();
        for name in String::from_utf8(listed.stdout)?.split_terminator('\0') {
            if source.join(name).is_file() {
                tree.restore(name).with_context(|| name.to_owned())?;
                kept.insert(copy.join(name));
            }
        }
        remove_others(copy, &kept)?;
        Ok(tree)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.copy
    }

    fn restore(&self, name: &str) -> Result<()> {
        let from = self.source.join(name);
        self.put(name, &fs::read(&from)?)?;
        // Tests run scripts.
        let mode = fs::metadata(&from)?.permissions();
        Ok(fs::set_permissions(self.copy.join(name), mode)?)
    }

    fn put(&self, name: &str, content: &[u8]) -> Result<()> {
        let to = self.copy.join(name);
        if fs::read(&to).is_ok_and(|found| found == content) {
            return Ok(());
        }
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent)?;
        }
        Ok(fs::write(to, content)?)
    }

    /// Calls `work` while `mutant` stands in the copy.
    ///
    /// # Errors
    /// The mutant is stale; or `work`'s.
    pub fn with<T>(&self, mutant: &Mutant, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let mut changed = Vec::new();
        let placed = mutant.edit.iter().try_for_each(|edit| {
            let place = Place::find(&self.copy, edit)?;
            let name = place.path.to_str().context("a name in UTF-8")?;
            self.put(name, place.with(&edit.new).as_bytes())?;
            changed.push(name.to_owned());
            Ok(())
        });
        let result = placed.and_then(|()| work());
        for name in changed {
            self.restore(&name)?;
        }
        result
    }
}

/// Removes the files below `folder` that are not among those `kept`.
fn remove_others(folder: &Path, kept: &BTreeSet<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            remove_others(&path, kept)?;
        } else if !kept.contains(&path) {
            fs::remove_file(&path).with_context(|| path.display().to_string())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_can_be_run_in_the_copy() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let (source, copy) = (dir.path().join("source"), dir.path().join("copy"));
        let made = Command::new("git")
            .arg("init")
            .arg("-q")
            .arg(&source)
            .status();
        assert!(made.unwrap().success());
        fs::write(source.join("run.sh"), "#!/bin/sh").unwrap();
        let mode = fs::Permissions::from_mode(0o755);
        fs::set_permissions(source.join("run.sh"), mode).unwrap();
        Tree::bring(&source, &copy).unwrap();
        assert_eq!(
            fs::metadata(copy.join("run.sh"))
                .unwrap()
                .permissions()
                .mode()
                & 0o777,
            0o755
        );
    }

    #[test]
    fn what_has_moved_in_the_sources_moves_in_the_copy() {
        let dir = tempfile::tempdir().unwrap();
        let (source, copy) = (dir.path().join("source"), dir.path().join("copy"));
        fs::create_dir_all(source.join("oracle")).unwrap();
        let made = Command::new("git")
            .arg("init")
            .arg("-q")
            .arg(&source)
            .status();
        assert!(made.unwrap().success());
        fs::write(source.join("oracle.rs"), "fn a() {}").unwrap();
        Tree::bring(&source, &copy).unwrap();
        assert!(copy.join("oracle.rs").exists());
        fs::rename(source.join("oracle.rs"), source.join("oracle/mod.rs")).unwrap();
        Tree::bring(&source, &copy).unwrap();
        assert!(!copy.join("oracle.rs").exists() && copy.join("oracle/mod.rs").exists());
    }
}
