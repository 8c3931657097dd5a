//! Whether a pool was one node's without a break. A node may keep files that are right only as long as nobody else had the pool: they go
//! before it is opened after somebody had.
//!
//! The note `owner` stands among these files. It has a line for each record that is known to be this node's: `had`, the last one that it
//! owned, and `takes`, one that it is about to make.
//!
//! Invariants
//! - The files stay only if the record that is found is one of the note: the one that was owned, released since or not, or the very one that
//!   was about to be made. So a process may die between any two steps, and what is not known counts as a break.
//! - A record is renamed and never copied, so it has the time of birth that it had, where the file system tells that: a directory that was
//!   restored from a copy is another pool.

use std::fmt::Write;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use super::name::Name;
use crate::layout::Layout;

/// A record, as the note has it.
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
                // A string takes all.
                let _written = writeln!(text, "{which} {name} {born}");
            }
        }
        text
    }

    /// Whether `found` is the record of the node that has noted this.
    fn is_of(&self, found: Noted) -> bool {
        let released = self.had.map(|had| Noted {
            name: had.name.released(),
            ..had
        });
        [self.had, released, self.takes].contains(&Some(found))
    }
}

/// When the record called `name` was made.
fn born(layout: &Layout, name: Name) -> io::Result<u128> {
    let made = fs::metadata(layout.owner(name))?.created();
    let since = made
        .ok()
        .and_then(|made| made.duration_since(UNIX_EPOCH).ok());
    Ok(since.map_or(0, |since| since.as_nanos()))
}

/// The files of a node that last as long as its tenure.
#[derive(Debug)]
pub(crate) struct Tenure<'a> {
    /// `None`: it keeps none.
    directory: Option<&'a Path>,
}

impl<'a> Tenure<'a> {
    /// That of the node whose files are in `directory`. A directory that is not there has none.
    pub(crate) fn new(directory: Option<&'a Path>) -> Tenure<'a> {
        let directory = directory.filter(|directory| directory.exists());
        Tenure { directory }
    }

    fn note(&self) -> Option<PathBuf> {
        Some(self.directory?.join("owner"))
    }

    /// The record `found` is about to be called `next`: removes the files if `found` is not this node's.
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

    /// The record is called `name` now, and this node's.
    pub(crate) fn had(&self, layout: &Layout, name: Name) {
        if let (Some(_), Ok(born)) = (self.directory, born(layout, name)) {
            let had = Some(Noted { name, born });
            self.write(Note { had, takes: None });
        }
    }

    /// Others may have had the pool: removes the files.
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

    /// A note that cannot be written is one of an earlier record, or none: the next look finds a break.
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
