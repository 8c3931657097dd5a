//! Where in the sources an edit stands: by the item that holds its text, so that moving an item keeps the edit.
//!
//! An item is called by its name, a method by its type's name, too: `commit`, `Volume::commit`, `LEN_MAX`. Its file may be any
//! below the edit's folder.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use syn::spanned::Spanned;
use syn::visit::{self, Visit};

use crate::list::Edit;

/// A piece of a file that an edit may replace text in.
#[derive(Debug)]
struct Part {
    path: PathBuf,
    source: String,
    range: Range<usize>,
}

/// Where the text of an edit stands.
#[derive(Debug)]
pub struct Place {
    /// From the root of the sources.
    pub path: PathBuf,
    source: String,
    range: Range<usize>,
}

impl Place {
    /// Finds the one place of `edit` in the sources at `root`.
    ///
    /// # Errors
    /// The old text does not stand there exactly once: the mutant is stale.
    pub fn find(root: &Path, edit: &Edit) -> Result<Place> {
        let place = root.join(&edit.file);
        let parts = match (&edit.item, place.is_dir()) {
            (None, false) => vec![whole(&place)?],
            (None, true) => bail!("{}: a folder, and no item", edit.file),
            (Some(item), _) => items(&place, item)?,
        };
        let named = edit.item.as_deref().unwrap_or("the file");
        ensure!(!parts.is_empty(), "{}: there is no {named}", edit.file);
        let found = |part: &Part| {
            let text = &part.source[part.range.clone()];
            let at = |(at, _)| part.range.start + at;
            text.match_indices(&edit.old).map(at).collect::<Vec<_>>()
        };
        let mut places: Vec<(usize, Part)> = Vec::new();
        let mut count = 0;
        for part in parts {
            let at = found(&part);
            count += at.len();
            if let Some(first) = at.first() {
                places.push((*first, part));
            }
        }
        ensure!(
            count == 1,
            "{}: the text to be replaced stands in {named} {count} times:\n{}",
            edit.file,
            edit.old
        );
        let (start, part) = places.pop().context("one place")?;
        Ok(Place {
            path: part.path.strip_prefix(root)?.to_owned(),
            source: part.source,
            range: start..start + edit.old.len(),
        })
    }

    /// The whole file with `new` in the place of the old text.
    #[must_use]
    pub fn with(&self, new: &str) -> String {
        let (before, after) = (
            &self.source[..self.range.start],
            &self.source[self.range.end..],
        );
        [before, new, after].concat()
    }
}

fn whole(path: &Path) -> Result<Part> {
    let source = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let range = 0..source.len();
    Ok(Part {
        path: path.to_owned(),
        source,
        range,
    })
}

/// All items called `name` in the Rust sources at `place`, a file or a folder.
fn items(place: &Path, name: &str) -> Result<Vec<Part>> {
    let mut found = Vec::new();
    for path in sources(place)? {
        let part = whole(&path)?;
        // Most files do not have it: parsing them all would take seconds.
        let last = name.rsplit("::").next().unwrap_or(name);
        if !part.source.contains(last) {
            continue;
        }
        let file = syn::parse_file(&part.source).with_context(|| path.display().to_string())?;
        let mut search = Search::of(name);
        search.visit_file(&file);
        found.extend(search.found.into_iter().map(|range| Part {
            path: path.clone(),
            source: part.source.clone(),
            range,
        }));
    }
    Ok(found)
}

fn sources(place: &Path) -> Result<Vec<PathBuf>> {
    if place.is_file() {
        return Ok(vec![place.to_owned()]);
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(place).with_context(|| place.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(sources(&path)?);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Looks for the items of one name.
struct Search<'a> {
    name: &'a str,
    /// The type of the `impl` or trait around.
    around: Option<String>,
    found: Vec<Range<usize>>,
}

impl<'a> Search<'a> {
    fn of(name: &'a str) -> Search<'a> {
        Search {
            name,
            around: None,
            found: Vec::new(),
        }
    }

    fn item(&mut self, ident: &syn::Ident, span: proc_macro2::Span) {
        let called = match &self.around {
            Some(around) => self.name == format!("{around}::{ident}"),
            None => ident == self.name,
        };
        if called {
            self.found.push(span.byte_range());
        }
    }

    fn within(&mut self, around: Option<String>, look: impl FnOnce(&mut Self)) {
        let outer = std::mem::replace(&mut self.around, around);
        look(self);
        self.around = outer;
    }
}

fn type_name(kind: &syn::Type) -> Option<String> {
    match kind {
        syn::Type::Path(path) => path.path.segments.last().map(|last| last.ident.to_string()),
        syn::Type::Reference(reference) => type_name(&reference.elem),
        _ => None,
    }
}

impl<'ast> Visit<'ast> for Search<'_> {
    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        self.within(type_name(&item.self_ty), |search| {
            visit::visit_item_impl(search, item);
        });
    }

    fn visit_item_trait(&mut self, item: &'ast syn::ItemTrait) {
        self.within(Some(item.ident.to_string()), |search| {
            visit::visit_item_trait(search, item);
        });
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.item(&item.sig.ident, item.span());
    }

    fn visit_trait_item_fn(&mut self, item: &'ast syn::TraitItemFn) {
        self.item(&item.sig.ident, item.span());
    }

    fn visit_impl_item_const(&mut self, item: &'ast syn::ImplItemConst) {
        self.item(&item.ident, item.span());
    }

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.item(&item.sig.ident, item.span());
    }

    fn visit_item_const(&mut self, item: &'ast syn::ItemConst) {
        self.item(&item.ident, item.span());
    }

    fn visit_item_static(&mut self, item: &'ast syn::ItemStatic) {
        self.item(&item.ident, item.span());
    }

    fn visit_item_enum(&mut self, item: &'ast syn::ItemEnum) {
        self.item(&item.ident, item.span());
    }

    fn visit_item_struct(&mut self, item: &'ast syn::ItemStruct) {
        self.item(&item.ident, item.span());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str =
        "impl Log { fn put(&self) { a(); } }\nfn put() { a(); }\nconst LEN: u8 = 1;\n";
    const TWO: &str = "struct Queue; impl<T> Put for Queue { fn put(&self) { a(); b(); } }\n";

    fn edit(item: Option<&str>, old: &str) -> Edit {
        Edit {
            file: "src".to_owned(),
            item: item.map(str::to_owned),
            old: old.to_owned(),
            new: "x".to_owned(),
        }
    }

    fn find(item: Option<&str>, old: &str) -> Result<String> {
        let dir = tempfile::tempdir()?;
        fs::create_dir_all(dir.path().join("src/deeper"))?;
        fs::write(dir.path().join("src/one.rs"), ONE)?;
        fs::write(dir.path().join("src/deeper/two.rs"), TWO)?;
        let place = Place::find(dir.path(), &edit(item, old))?;
        assert!(dir.path().join(&place.path).is_file());
        Ok(place.with("x"))
    }

    #[test]
    fn text_is_replaced_in_the_item_that_is_named_wherever_its_file_is() {
        let changed = |from: &str, to: &str, of: &str| of.replacen(from, to, 1);
        let within = find(Some("Queue::put"), "a();").unwrap();
        assert_eq!(within, changed("a();", "x", TWO));
        let free = find(Some("put"), "a();").unwrap();
        assert_eq!(free, changed("fn put() { a(); }", "fn put() { x }", ONE));
        let method = find(Some("Log::put"), "a();").unwrap();
        assert_eq!(method, changed("a();", "x", ONE));
        assert_eq!(find(Some("LEN"), "1").unwrap(), changed("= 1", "= x", ONE));
    }

    #[test]
    fn text_that_stands_there_twice_or_not_at_all_is_stale() {
        for (item, old) in [
            (Some("Queue::put"), "c();"),
            (Some("Queue::put"), "();"),
            (Some("Queue::get"), "a();"),
            (None, "a();"),
        ] {
            assert!(find(item, old).is_err(), "{item:?} {old}");
        }
    }
}
