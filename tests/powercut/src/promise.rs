//! Whether a mounted tree is what was promised: all steps up to one, and of the next one what a file system may have done.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use crate::plan::{Action, DIRECTORIES, Files, Name, Step};

const SECTOR: usize = 512;

/// What is promised: the files `before`, and perhaps a step that was under way and ends with `after`.
#[derive(Debug)]
pub struct Promise {
    /// The files after the last step that was reported.
    pub before: Files,
    /// The step that may have begun.
    pub step: Step,
    /// The files after it.
    pub after: Files,
}

/// Validators the tree at `root`.
///
/// # Errors
/// What is not as promised, and what is there that nobody made.
pub fn validate(root: &Path, promise: &Promise) -> Result<()> {
    nothing_foreign(root, &promise.step)?;
    let mut there = BTreeSet::new();
    for name in Name::all() {
        let path = root.join(name.path());
        let found = match fs::read(&path) {
            Ok(bytes) => Some(bytes),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(error).with_context(|| name.path()),
        };
        if found.is_some() {
            there.insert(name);
        }
        let (old, new) = (promise.before.get(&name), promise.after.get(&name));
        validate_file(found.as_deref(), old, new, &promise.step.action)
            .with_context(|| format!("{} during {:?}", name.path(), promise.step))?;
    }
    if let Action::Rename { from, to } = promise.step.action {
        // It happened, or it did not: never both, never neither.
        let moved = fs::read(root.join(to.path())).ok().as_ref() == promise.after.get(&to);
        let same = promise.before.get(&to) == promise.after.get(&to);
        ensure!(
            same || moved != there.contains(&from),
            "half a rename: {:?}",
            promise.step
        );
    }
    Ok(())
}

fn nothing_foreign(root: &Path, step: &Step) -> Result<()> {
    let mut known: BTreeSet<String> = Name::all().map(Name::path).collect();
    if let Action::Replace { name, .. } = step.action {
        known.insert(name.temporary());
    }
    for entry in fs::read_dir(root)? {
        let directory = entry?.file_name().to_string_lossy().into_owned();
        if directory == "lost+found" {
            let mut inside = fs::read_dir(root.join(directory))?;
            ensure!(inside.next().is_none(), "something in lost+found");
            continue;
        }
        let ours = (0..DIRECTORIES).any(|number| directory == format!("d{number}"));
        ensure!(ours, "foreign: {directory}");
        for entry in fs::read_dir(root.join(&directory))? {
            let path = format!("{directory}/{}", entry?.file_name().to_string_lossy());
            ensure!(known.contains(&path), "foreign: {path} during {step:?}");
        }
    }
    Ok(())
}

fn validate_file(
    found: Option<&[u8]>,
    old: Option<&Vec<u8>>,
    new: Option<&Vec<u8>>,
    action: &Action,
) -> Result<()> {
    match (found, old, new) {
        (None, Some(_), Some(_)) => bail!("is gone"),
        (None, _, _) => Ok(()),
        (Some(_), None, None) => bail!("is there, and should not be"),
        // Untouched, or removed.
        (Some(found), Some(old), None) => between(found, old, old),
        (Some(found), Some(old), Some(new)) if old == new => between(found, old, new),
        (Some(found), Some(old), Some(new)) => match action {
            Action::Write { .. } | Action::Truncate { .. } => between(found, old, new),
            // In one go.
            _ => between(found, old, old).or_else(|_other| between(found, new, new)),
        },
        (Some(found), None, Some(new)) => match action {
            Action::Create { .. } => between(found, &[], new),
            _ => between(found, new, new),
        },
    }
}

/// Each sector is one of `old` or of `new`, where what is behind an end counts as zeros; so is the length, which a write
/// may have brought part of the way.
fn between(found: &[u8], old: &[u8], new: &[u8]) -> Result<()> {
    let lengths = old.len().min(new.len())..=old.len().max(new.len());
    ensure!(
        lengths.contains(&found.len()),
        "has {} bytes, not {lengths:?}",
        found.len()
    );
    for (index, sector) in found.chunks(SECTOR).enumerate() {
        let at = index * SECTOR;
        if !holds(sector, old, at) && !holds(sector, new, at) {
            let word = sector.first_chunk::<8>().copied().map(u64::from_le_bytes);
            bail!(
                "byte {at}: sector begins with {word:x?}, promised {:x?} or {:x?}",
                old.get(at..at + 8),
                new.get(at..at + 8)
            );
        }
    }
    Ok(())
}

fn holds(sector: &[u8], file: &[u8], at: usize) -> bool {
    let known = file.get(at..).unwrap_or(&[]);
    let known = &known[..known.len().min(sector.len())];
    let (front, rest) = sector.split_at(known.len());
    front == known && rest.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Plan, content};

    #[test]
    fn sectors_are_old_or_new_and_nothing_else() {
        let old = content(1, 0, 2000);
        let mut new = old.clone();
        new.resize(3000, 0);
        new[600..3000].copy_from_slice(&content(2, 600, 2400));
        assert!(between(&old, &old, &new).is_ok());
        assert!(between(&new, &old, &new).is_ok());
        let mut mixed = old.clone();
        mixed[1024..1536].copy_from_slice(&new[1024..1536]);
        assert!(between(&mixed, &old, &new).is_ok());
        mixed[700] ^= 1;
        assert!(between(&mixed, &old, &new).is_err());
        assert!(between(&old[..1999], &old, &new).is_err());
        assert!(between(&content(3, 0, 2000), &old, &new).is_err());
    }

    #[test]
    fn a_tree_is_validated_with_what_is_missing_and_what_is_foreign() {
        let root = tempfile::tempdir().unwrap();
        let mut plan = Plan::new(1);
        for _ in 0..50 {
            plan.advance();
        }
        let before = plan.files().clone();
        for (name, bytes) in &before {
            fs::create_dir_all(root.path().join(name.directory())).unwrap();
            fs::write(root.path().join(name.path()), bytes).unwrap();
        }
        let step = plan.advance();
        let after = plan.files().clone();
        let promise = Promise {
            before,
            step,
            after,
        };
        validate(root.path(), &promise).unwrap();
        let untouched = promise
            .before
            .iter()
            .find(|(name, bytes)| promise.after.get(name) == Some(bytes));
        let (name, bytes) = untouched.unwrap();
        let path = root.path().join(name.path());
        fs::write(&path, &bytes[1..]).unwrap();
        validate(root.path(), &promise).unwrap_err();
        fs::remove_file(&path).unwrap();
        validate(root.path(), &promise).unwrap_err();
        fs::write(&path, bytes).unwrap();
        fs::write(root.path().join("d0/other"), b"").unwrap();
        validate(root.path(), &promise).unwrap_err();
    }
}
