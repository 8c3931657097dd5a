//! The product's crates and their files, parsed. Tests among the sources are left out.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Folders of the product, each with crates in it or one itself.
const PRODUCT: [&str; 4] = ["xseg", "peers", "drivers", "control"];

/// A crate of the product.
#[derive(Debug)]
pub struct Crate {
    /// Its folder, from the root of the sources.
    pub name: String,
    /// In the order of their paths.
    pub files: Vec<File>,
}

/// A file of a crate, which is a module.
#[derive(Debug)]
pub struct File {
    /// From the crate's `src`.
    pub path: String,
    /// Names of the modules from the crate's root to this one: none for the root itself.
    pub module: Vec<String>,
    /// What stands in it.
    pub syntax: syn::File,
}

/// All crates of the product at `root`.
///
/// # Errors
/// A file or folder cannot be read or parsed.
pub fn product(root: &Path) -> Result<Vec<Crate>> {
    let mut crates = Vec::new();
    for folder in PRODUCT {
        let mut places = vec![folder.to_owned()];
        for entry in fs::read_dir(root.join(folder))? {
            let name = entry?.file_name();
            places.push(format!("{folder}/{}", name.to_string_lossy()));
        }
        places.sort();
        for name in places {
            let sources = root.join(&name).join("src");
            if root.join(&name).join("Cargo.toml").is_file() {
                let files = files(&sources)?;
                crates.push(Crate { name, files });
            }
        }
    }
    Ok(crates)
}

fn files(sources: &Path) -> Result<Vec<File>> {
    let mut paths = Vec::new();
    collect(sources, &mut paths)?;
    paths.sort();
    let file = |path: PathBuf| {
        let text = fs::read_to_string(&path)?;
        let syntax = syn::parse_file(&text).with_context(|| path.display().to_string())?;
        let path = path.strip_prefix(sources)?.to_string_lossy().into_owned();
        let module = module_of(&path);
        Ok(File {
            path,
            module,
            syntax,
        })
    };
    paths.into_iter().map(file).collect()
}

fn collect(folder: &Path, paths: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        let stem = path.file_stem().unwrap_or_default();
        if stem == "tests" || stem == "fuzzing" {
            continue;
        }
        if path.is_dir() {
            collect(&path, paths)?;
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            paths.push(path);
        }
    }
    Ok(())
}

fn module_of(path: &str) -> Vec<String> {
    let path = path.trim_end_matches(".rs");
    let mut module: Vec<String> = path.split('/').map(str::to_owned).collect();
    if module.last().is_some_and(|last| last == "mod") || matches!(path, "lib" | "main") {
        module.pop();
    }
    module
}

/// Whether something is compiled for tests only, by its attributes.
#[must_use]
pub fn is_for_tests(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let test = attribute.path().is_ident("cfg")
            && attribute
                .meta
                .require_list()
                .is_ok_and(|list| has_word(&list.tokens, &["test", "loom", "fuzzing"]));
        test || attribute.path().is_ident("test")
    })
}

fn has_word(tokens: &proc_macro2::TokenStream, words: &[&str]) -> bool {
    tokens.clone().into_iter().any(|token| match token {
        proc_macro2::TokenTree::Ident(ident) => words.iter().any(|word| ident == word),
        proc_macro2::TokenTree::Group(group) => has_word(&group.stream(), words),
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_says_which_module_a_file_is() {
        for (path, module) in [
            ("lib.rs", ""),
            ("a.rs", "a"),
            ("a/mod.rs", "a"),
            ("a/b.rs", "a b"),
        ] {
            let expected: Vec<&str> = module.split_whitespace().collect();
            assert_eq!(module_of(path), expected, "{path}");
        }
    }
}
