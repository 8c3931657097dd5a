//! Whether one node has had a pool without a break. A node may keep files that are valid only as long as nobody else has had the pool: they
//! are removed before it is opened after a break.
//!
//! The note `owner` is beside these files. It has a line for each record that is known to be this node's: `had`, the last one that it
//! owned, and `takes`, one that it is about to make.
//!
//! Invariants
//! - The files stay only if the present record is in the note: the one that was owned, released since or not, or the one that was about to
//!   be made. So a process may die between any two steps, and an unknown record counts as a break.
//! - A record is renamed and never copied, so its file keeps its time of birth, if the file system records that: a directory that was
//!   restored from a copy is another pool.

use std::fmt::Write;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use super::name::Name;
use crate::layout::Layout;

/// A record in the note.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Noted {
    name: Name,
    /// Birth of its file, in nanoseconds since 1970. 0: unknown.
    born: u128,
}

/// The content of the note.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Note {
    had: Option<Noted>,
    takes: Option<Noted>,
}

impl Note {
    fn parse(text: &str) -> Note {
        let mut note = Note::default();
        for line in text.lines() {
            let mut words = line.split(' ');
            let mut word = || words.next().unwrap_or_default();
            let (which, name, born) = (word(), Name::parse(word()), word().parse());
            let (Some(name), Ok(born)) = (name, born) else {
                continue;
            };
            match which {
                "had" => note.had = Some(Noted { name, born }),
                "takes" => note.takes = Some(Noted { name, born }),
                _ => {}
            }
        }
        note
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for (which, noted) in [("had", self.had), ("takes", self.takes)] {
            if let Some(Noted { name, born }) = noted {
                // Writing to a string does not fail.
                let _written = writeln!(text, "{which} {name} {born}");
            }
        }
        text
    }

    /// Whether `found` is the record of the node with this note.
    fn is_of(&self, found: Noted) -> bool {
        let released = self.had.map(|had| Noted {
            name: had.name.released(),
            ..had
        });
        [self.had, released, self.takes].contains(&Some(found))
    }
}

/// The time of birth of the record called `name`.
fn born(layout: &Layout, name: Name) -> io::Result<u128> {
    let made = fs::metadata(layout.owner(name))?.created();
    let since = made
        .ok()
        .and_then(|made| made.duration_since(UNIX_EPOCH).ok());
    Ok(since.map_or(0, |since| since.as_nanos()))
}

/// The files of a node that are valid during its tenure.
#[derive(Debug)]
pub(crate) struct Tenure<'a> {
    /// `None`: the node keeps none.
    directory: Option<&'a Path>,
}

impl<'a> Tenure<'a> {
    /// The tenure of the node whose files are in `directory`. A directory that does not exist has none.
    pub(crate) fn new(directory: Option<&'a Path>) -> Tenure<'a> {
        let directory = directory.filter(|directory| directory.exists());
        Tenure { directory }
    }

    fn note(&self) -> Option<PathBuf> {
        Some(self.directory?.join("owner"))
    }

    /// Prepares the rename of the record `found` to `next`: removes the files if `found` is not this node's.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if the record has another name by now; otherwise the error of the file system, and files may be left.
    pub(crate) fn go_on(&self, layout: &Layout, found: Name, next: Name) -> io::Result<()> {
        let Some(path) = self.note() else {
            return Ok(());
        };
        let born = born(layout, found)?;
        let found = Noted { name: found, born };
        let is_ours = Note::parse(&fs::read_to_string(&path).unwrap_or_default()).is_of(found);
        if !is_ours {
            self.end(layout)?;
        }
        self.write(Note {
            had: is_ours.then_some(found),
            takes: Some(Noted { name: next, born }),
        });
        Ok(())
    }

    /// Notes that the record is called `name` now, and is this node's.
    pub(crate) fn had(&self, layout: &Layout, name: Name) {
        if let (Some(_), Ok(born)) = (self.directory, born(layout, name)) {
            let had = Some(Noted { name, born });
            self.write(Note { had, takes: None });
        }
    }

    /// Removes the files: others may have had the pool.
    ///
    /// # Errors
    /// The error of the file system.
    pub(crate) fn end(&self, layout: &Layout) -> io::Result<()> {
        let (Some(directory), Some(note)) = (self.directory, self.note()) else {
            return Ok(());
        };
        // The note first: without it, no later start trusts the other files.
        match fs::remove_file(note) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let mut count = 0;
        for entry in fs::read_dir(directory)? {
            match fs::remove_file(entry?.path()) {
                // Its process has ended meanwhile.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                removed => {
                    removed?;
                    count += 1;
                }
            }
        }
        if count > 0 {
            tracing::warn!(
                "pool `{}`: others have had it since this node did: {count} files of {} are not right any more",
                layout.directory().display(),
                directory.display()
            );
        }
        Ok(())
    }

    /// Writes the note. If that fails, an older note stays, or none: the next check finds a break.
    fn write(&self, note: Note) {
        let Some(path) = self.note() else {
            return;
        };
        let fresh = path.with_extension("new");
        let written = fs::write(&fresh, note.text()).and_then(|()| fs::rename(&fresh, &path));
        if let Err(error) = written {
            tracing::warn!("{}: {error}", path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::name::Place;
    use super::*;

    const PLACE: Place = Place {
        machine: 1,
        boot: 2,
        device: 3,
        namespace: 4,
        process: 5,
    };

    #[test]
    fn a_note_knows_the_records_of_its_node_and_no_others() {
        let noted = |name| Noted { name, born: 9 };
        let first = Name::FIRST.succeeded_by(PLACE).unwrap();
        let second = first.succeeded_by(PLACE).unwrap();
        let note = Note {
            had: Some(noted(first)),
            takes: Some(noted(second)),
        };
        assert_eq!(Note::parse(&note.text()), note);
        assert_eq!(Note::parse("had x 9\ntakes\n\nnothing"), Note::default());
        let other = Place {
            process: 6,
            ..PLACE
        };
        for (what, name, is_ours) in [
            ("the last one", first, true),
            ("the last one, released", first.released(), true),
            ("the one that was being made", second, true),
            (
                "one that others made and released",
                second.released(),
                false,
            ),
            ("another's", first.succeeded_by(other).unwrap(), false),
            ("an earlier one", Name::FIRST, false),
        ] {
            assert_eq!(note.is_of(noted(name)), is_ours, "{what}");
            assert!(!note.is_of(Noted { name, born: 8 }), "{what}, of a copy");
            assert!(!Note::default().is_of(noted(name)), "{what}");
        }
    }
}
