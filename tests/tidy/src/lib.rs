//! The shape of the product's sources, as far as a program can check it.
//!
//! | module | subject |
//! |---|---|
//! | [`source`] | the crates and their files, parsed |
//! | [`fields`] | how many fields a struct has |
//! | [`circles`] | which files of a crate import each other in a circle |
//! | [`members`] | which crates need librados, and that a build without names leaves out these and no others |
//!
//! What the rules do not fit is listed with a reason in `exceptions.toml`; an exception that is not needed any more is a
//! finding, too. The rest of the house's rules: `tests/tidy.sh`.

#![forbid(unsafe_code)]

pub mod circles;
pub mod fields;
pub mod members;
pub mod source;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use serde::Deserialize;

    use super::{circles, fields, members, source};

    /// What the rules do not fit, and why.
    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Exceptions {
        /// By `crate: Struct`.
        fields: BTreeMap<String, String>,
        /// By `crate: file file ...`.
        circles: BTreeMap<String, String>,
    }

    /// All that `found` has and `allowed` has not, and the other way round.
    fn differences(found: &[String], allowed: &BTreeMap<String, String>) -> Vec<String> {
        let new = found.iter().filter(|one| !allowed.contains_key(*one));
        let gone = allowed.keys().filter(|one| !found.contains(one));
        let gone = gone.map(|one| format!("an exception that nothing needs: {one}"));
        new.cloned().chain(gone).collect()
    }

    #[test]
    fn a_build_without_names_leaves_out_what_needs_librados_and_nothing_else() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let members = members::members(&root).unwrap();
        assert!(members.need_librados.len() > 1, "{members:?}");
        let others = members.all.difference(&members.need_librados).cloned();
        assert_eq!(members.default, others.collect());
    }

    #[test]
    fn structs_have_few_fields_and_files_form_no_circles() {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(here.join("exceptions.toml")).unwrap();
        let exceptions: Exceptions = toml::from_str(&text).unwrap();
        let crates = source::product(&here.join("../..")).unwrap();
        assert!(crates.len() >= 10, "the product's crates were not found");
        let (mut large, mut circular) = (Vec::new(), Vec::new());
        for one in &crates {
            large.extend(fields::large(one));
            circular.extend(circles::of(one));
        }
        let findings = [
            differences(&large, &exceptions.fields),
            differences(&circular, &exceptions.circles),
        ]
        .concat();
        assert!(findings.is_empty(), "\n{}", findings.join("\n"));
    }
}
