//! Which files of a crate import each other in a circle: none of those can be understood, tested or moved alone.
//!
//! An import is any path to a module of the crate, in a `use` or elsewhere, to the file that defines what is named: what a module
//! only passes on (`pub use`) is looked up where it comes from. Passing on is not importing, and neither is `mod`.

use std::collections::{BTreeMap, BTreeSet};

use syn::visit::{self, Visit};

use crate::source::{Crate, File, is_for_tests};

type Module = Vec<String>;

/// The circles of `of`, as `crate: file file ...`, each with all of its files.
#[must_use]
pub fn of(of: &Crate) -> Vec<String> {
    let graph = Graph::of(of);
    let circle = |files: Vec<usize>| {
        let names: Vec<&str> = files
            .iter()
            .map(|file| of.files[*file].path.as_str())
            .collect();
        format!("{}: {}", of.name, names.join(" "))
    };
    graph.circles().into_iter().map(circle).collect()
}

/// Who imports whom, by their places in the crate's list of files.
struct Graph {
    imports: Vec<BTreeSet<usize>>,
}

impl Graph {
    fn of(of: &Crate) -> Graph {
        let files = Files::of(of);
        let imports = of.files.iter().enumerate().map(|(at, file)| {
            let mut search = Search {
                module: &file.module,
                paths: BTreeSet::new(),
            };
            search.visit_file(&file.syntax);
            let found = search
                .paths
                .iter()
                .filter_map(|path| files.resolve(path, 0));
            found.filter(|other| *other != at).collect()
        });
        Graph {
            imports: imports.collect(),
        }
    }

    fn reachable(&self, from: usize) -> BTreeSet<usize> {
        let mut seen = BTreeSet::new();
        let mut left: Vec<usize> = self.imports[from].iter().copied().collect();
        while let Some(next) = left.pop() {
            if seen.insert(next) {
                left.extend(&self.imports[next]);
            }
        }
        seen
    }

    /// Sets of files that all reach each other.
    fn circles(&self) -> Vec<Vec<usize>> {
        let reach: Vec<BTreeSet<usize>> = (0..self.imports.len())
            .map(|file| self.reachable(file))
            .collect();
        let mut circles: BTreeSet<Vec<usize>> = BTreeSet::new();
        for (file, others) in reach.iter().enumerate() {
            if others.contains(&file) {
                let both = |other: &usize| others.contains(other) && reach[*other].contains(&file);
                circles.insert((0..reach.len()).filter(both).collect());
            }
        }
        circles.into_iter().collect()
    }
}

/// The modules of a crate, and what they pass on.
struct Files {
    by_module: BTreeMap<Module, usize>,
    /// Module and name, and the path that stands behind it.
    passed_on: BTreeMap<(Module, String), Module>,
}

impl Files {
    fn of(of: &Crate) -> Files {
        let mut files = Files {
            by_module: BTreeMap::new(),
            passed_on: BTreeMap::new(),
        };
        for (at, file) in of.files.iter().enumerate() {
            files.by_module.insert(file.module.clone(), at);
            files.pass_on(file);
        }
        files
    }

    fn pass_on(&mut self, file: &File) {
        for item in &file.syntax.items {
            let syn::Item::Use(item) = item else { continue };
            if matches!(item.vis, syn::Visibility::Inherited) {
                continue;
            }
            let mut leaves = Vec::new();
            leaves_of(&item.tree, &mut Vec::new(), &mut leaves);
            for (path, name) in leaves {
                if let Some(path) = absolute(&file.module, &path) {
                    self.passed_on.insert((file.module.clone(), name), path);
                }
            }
        }
    }

    /// The file that defines what `path` names.
    fn resolve(&self, path: &Module, depth: usize) -> Option<usize> {
        if depth > 8 {
            return None;
        }
        let known = (0..=path.len())
            .rev()
            .find(|len| self.by_module.contains_key(&path[..*len]))?;
        if let Some(name) = path.get(known)
            && let Some(behind) = self.passed_on.get(&(path[..known].to_vec(), name.clone()))
        {
            let rest = &path[known + 1..];
            return self.resolve(&[behind, rest].concat(), depth + 1);
        }
        // Of a crate's root all that is named without a module is passed on, or defined there.
        self.by_module.get(&path[..known]).copied()
    }
}

/// All paths of a `use`, each with the name that it gets.
fn leaves_of(tree: &syn::UseTree, before: &mut Module, leaves: &mut Vec<(Module, String)>) {
    match tree {
        syn::UseTree::Path(path) => {
            before.push(path.ident.to_string());
            leaves_of(&path.tree, before, leaves);
            before.pop();
        }
        syn::UseTree::Name(name) => {
            let name = name.ident.to_string();
            if name == "self" {
                leaves.push((before.clone(), before.last().cloned().unwrap_or_default()));
            } else {
                leaves.push(([before.clone(), vec![name.clone()]].concat(), name));
            }
        }
        syn::UseTree::Rename(rename) => {
            let path = [before.clone(), vec![rename.ident.to_string()]].concat();
            leaves.push((path, rename.rename.to_string()));
        }
        syn::UseTree::Glob(_) => leaves.push((before.clone(), "*".to_owned())),
        syn::UseTree::Group(group) => {
            for tree in &group.items {
                leaves_of(tree, before, leaves);
            }
        }
    }
}

/// `path`, as it stands in `module`, from the crate's root; `None`: of another crate. Children are named without a prefix only
/// where they are passed on.
fn absolute(module: &Module, path: &[String]) -> Option<Module> {
    let mut from = module.clone();
    let mut rest = path;
    match rest.first().map(String::as_str) {
        Some("crate") => {
            from.clear();
            rest = &rest[1..];
        }
        Some("self") => rest = &rest[1..],
        Some("super") => {
            while rest.first().is_some_and(|word| word == "super") {
                from.pop();
                rest = &rest[1..];
            }
        }
        _ => {}
    }
    from.extend(rest.iter().cloned());
    Some(from)
}

/// Collects the paths that a file names, from the crate's root.
struct Search<'a> {
    module: &'a Module,
    paths: BTreeSet<Module>,
}

impl Search<'_> {
    fn path(&mut self, words: &[String]) {
        let is_own = words
            .first()
            .is_some_and(|first| matches!(first.as_str(), "crate" | "super" | "self"));
        // A child's name without a prefix: another crate's or a local name resolves to this very file, which is no import.
        // Statements for tests stand in functions of the product.
        let of_tests = words.iter().any(|word| word == "tests");
        if let Some(path) = absolute(self.module, words)
            && (is_own || words.len() > 1)
            && !of_tests
        {
            self.paths.insert(path);
        }
    }
}

impl<'ast> Visit<'ast> for Search<'_> {
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        // A module within a file would resolve `super` to another file: there is none but for tests.
        if !is_for_tests(&item.attrs) {
            visit::visit_item_mod(self, item);
        }
    }

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        if !is_for_tests(&item.attrs) {
            visit::visit_item_fn(self, item);
        }
    }

    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        if !is_for_tests(&item.attrs) {
            visit::visit_item_impl(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        if is_for_tests(&item.attrs) || !matches!(item.vis, syn::Visibility::Inherited) {
            return;
        }
        let mut leaves = Vec::new();
        leaves_of(&item.tree, &mut Vec::new(), &mut leaves);
        for (path, _) in leaves {
            self.path(&path);
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let words: Vec<String> = path
            .segments
            .iter()
            .map(|segment| segment.ident.to_string())
            .collect();
        if words.len() > 1 {
            self.path(&words);
        }
        visit::visit_path(self, path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(files: &[(&str, &[&str], &str)]) -> Vec<String> {
        let files = files.iter().map(|(path, module, source)| File {
            path: (*path).to_owned(),
            module: module.iter().map(|name| (*name).to_owned()).collect(),
            syntax: syn::parse_file(source).unwrap(),
        });
        of(&Crate {
            name: "x".to_owned(),
            files: files.collect(),
        })
    }

    #[test]
    fn a_circle_is_found_through_what_is_passed_on() {
        let root = ("lib.rs", &[][..], "mod a; mod b; pub use a::A;");
        let a = ("a.rs", &["a"][..], "use crate::b::B; pub struct A(B);");
        let b = ("b.rs", &["b"][..], "use crate::A; pub struct B(A);");
        assert_eq!(found(&[root, a, b]), ["x: a.rs b.rs"]);
        let apart = ("b.rs", &["b"][..], "pub struct B(std::sync::Arc<u8>);");
        assert_eq!(found(&[root, a, apart]), Vec::<String>::new());
        let tests = "pub struct B; #[cfg(test)] mod tests { use super::super::A; }";
        let apart = ("b.rs", &["b"][..], tests);
        assert_eq!(found(&[root, a, apart]), Vec::<String>::new());
    }

    #[test]
    fn a_child_that_takes_its_parent_s_types_is_a_circle_when_the_parent_uses_it() {
        let root = ("lib.rs", &[][..], "mod a;");
        let parent = |source| ("a/mod.rs", &["a"][..], source);
        let child = ("a/b.rs", &["a", "b"][..], "use super::A; pub fn b(_: A) {}");
        let uses = parent("mod b; pub struct A; fn a() { b::b(A); }");
        assert_eq!(found(&[root, child, uses]), ["x: a/b.rs a/mod.rs"]);
        let passes_on = parent("mod b; pub use b::b; pub struct A;");
        assert_eq!(found(&[root, child, passes_on]), Vec::<String>::new());
    }
}
