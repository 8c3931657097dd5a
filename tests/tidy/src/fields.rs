//! How many fields a struct has: one of thirty is a room with curtains.

use syn::visit::{self, Visit};

use crate::source::{Crate, is_for_tests};

/// Most fields of a struct.
pub const FIELDS_MAX: usize = 14;

/// The structs of `of` that have more than [`FIELDS_MAX`] fields and are not plain data, as `crate: Struct`. Plain data has
/// public fields only, and no methods that change them could keep an invariant.
#[must_use]
pub fn large(of: &Crate) -> Vec<String> {
    let mut search = Search { found: Vec::new() };
    for file in &of.files {
        search.visit_file(&file.syntax);
    }
    let name = |one: String| format!("{}: {one}", of.name);
    search.found.into_iter().map(name).collect()
}

struct Search {
    found: Vec<String>,
}

impl<'ast> Visit<'ast> for Search {
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if !is_for_tests(&item.attrs) {
            visit::visit_item_mod(self, item);
        }
    }

    fn visit_item_struct(&mut self, item: &'ast syn::ItemStruct) {
        let is_public = |field: &syn::Field| matches!(field.vis, syn::Visibility::Public(_));
        let is_plain = item.fields.iter().all(is_public);
        if item.fields.len() > FIELDS_MAX && !is_plain && !is_for_tests(&item.attrs) {
            self.found.push(item.ident.to_string());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::File;

    #[test]
    fn many_private_fields_are_found_and_plain_data_is_not() {
        let fields = |before: &str| -> String {
            (0..15)
                .map(|number| format!("{before} f{number}: u8,"))
                .collect()
        };
        let source = format!(
            "struct Large {{ {} }} pub struct Plain {{ {} }} struct Small {{ a: u8 }}\n#[cfg(test)] mod tests {{ struct Double {{ {} }} }}",
            fields(""),
            fields("pub"),
            fields("")
        );
        let of = Crate {
            name: "peers/some".to_owned(),
            files: vec![File {
                path: "lib.rs".to_owned(),
                module: Vec::new(),
                syntax: syn::parse_file(&source).unwrap(),
            }],
        };
        assert_eq!(large(&of), ["peers/some: Large"]);
    }
}
