//! Pages against damage.

use archipelago_protocol::Lineage;
use proptest::prelude::*;

use super::super::*;
use super::{OWN, Stored, layer};

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn a_flipped_bit_or_a_cut_of_a_page_is_noticed(bit in any::<prop::sample::Index>(), cut in any::<prop::sample::Index>()) {
        let mut stored = Stored::new();
        stored.set(3, 90, Some(layer(2)));
        stored.set(10, 20, None);
        stored.store();
        let root = stored.tree.stored_root().unwrap();
        let page = root.page.unwrap();
        let stored_page = stored.pack[..page.len as usize].to_vec();
        prop_assert!(decode(&page, root.level, ObjectSize::MIN, &stored_page).is_ok());
        let mut flipped = stored_page.clone();
        let bit = bit.index(flipped.len() * 8);
        flipped[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(decode(&page, root.level, ObjectSize::MIN, &flipped).is_err());
        prop_assert!(decode(&page, root.level, ObjectSize::MIN, &stored_page[..cut.index(stored_page.len())]).is_err());
        prop_assert!(decode(&page, root.level + 1, ObjectSize::MIN, &stored_page).is_err());
        prop_assert!(decode(&page, root.level, ObjectSize::MAX, &stored_page).is_err());
    }

    #[test]
    fn a_sealed_page_of_random_fields_never_panics(fields in prop::collection::vec(any::<u8>(), 0..300), level in 0u8..3) {
        let mut writer = crate::format::Writer::sealed(*b"ARCHPAGE", OWN);
        writer.bytes(&[level, 16, 0, 0]);
        writer.bytes(&fields);
        let bytes = writer.seal();
        let len = u32::try_from(bytes.len()).unwrap();
        let page = PageRef { lineage: OWN, pack: 1, offset: 0, len, crc: crate::format::sealed_crc(&bytes) };
        let _decoded = decode(&page, level, ObjectSize::MIN, &bytes);
    }
}

/// Whether a page with these fields behind its envelope is taken for one of `level`.
fn checked(level: u8, fields: impl FnOnce(&mut crate::format::Writer)) -> Result<(), String> {
    let mut writer = crate::format::Writer::sealed(*b"ARCHPAGE", OWN);
    writer.bytes(&[level, 16, 0, 0]);
    fields(&mut writer);
    let bytes = writer.seal();
    let page = PageRef {
        lineage: OWN,
        pack: 1,
        offset: 0,
        len: u32::try_from(bytes.len()).unwrap(),
        crc: crate::format::sealed_crc(&bytes),
    };
    match decode(&page, level, ObjectSize::MIN, &bytes) {
        Ok(_node) => Ok(()),
        Err(problem) => Err(problem.to_string()),
    }
}

#[test]
fn runs_that_no_leaf_has_are_damage() {
    type Object<'a> = (u16, &'a [(u16, u16, u32)]);
    let leaf = |objects: &[Object<'_>]| {
        checked(0, |page| {
            // Two layers: epochs 0 and 1.
            [u32::try_from(objects.len()).unwrap(), 2, 0]
                .into_iter()
                .for_each(|word| page.u32(word));
            for epoch in 0..2 {
                page.lineage(OWN);
                [epoch, 0, 1].into_iter().for_each(|word| page.u64(word));
            }
            for (index, runs) in objects {
                page.u16(*index);
                page.u16(u16::try_from(runs.len()).unwrap());
                for (start, blocks, layer) in *runs {
                    page.u16(*start);
                    page.u16(*blocks);
                    page.u32(*layer);
                }
            }
        })
    };
    let one: &[_] = &[(0, 1, 0)];
    for good in [
        [(0, one), (1, one)],
        [(510, one), (511, one)],
        [(0, &[(0, 16, 1)]), (7, &[(15, 1, 0)])],
        [(0, &[(0, 3, 0), (3, 4, 1)]), (1, &[(0, 3, 0), (4, 4, 0)])],
    ] {
        assert_eq!(leaf(&good), Ok(()), "{good:?}");
    }
    for (field, bad) in [
        ("object index", [(1, one), (1, one)]),
        ("object index", [(2, one), (1, one)]),
        ("object index", [(0, one), (512, one)]),
        ("run", [(0, one), (1, &[(0, 0, 0)])]),
        ("run", [(0, one), (1, &[(15, 2, 0)])]),
        ("run", [(0, one), (1, &[(16, 1, 0)])]),
        ("run", [(0, one), (1, &[(0, 3, 0), (2, 3, 1)])]),
        ("run", [(0, one), (1, &[(3, 3, 0), (0, 3, 1)])]),
        ("run", [(0, one), (1, &[(0, 3, 0), (3, 3, 0)])]),
        ("run's layer", [(0, one), (1, &[(0, 3, 2)])]),
    ] {
        let why = leaf(&bad).unwrap_err();
        assert!(why.contains(&format!("`{field}`")), "{bad:?}: {why}");
    }
}

#[test]
fn children_that_no_inner_node_has_are_damage() {
    let inner = |children: &[u16]| {
        checked(1, |page| {
            [u32::try_from(children.len()).unwrap(), 0, 0]
                .into_iter()
                .for_each(|word| page.u32(word));
            for index in children {
                page.u16(*index);
                page.u16(0);
                page.bytes(&[0; 44]);
            }
        })
    };
    for good in [[0, 1], [254, 255]] {
        assert_eq!(inner(&good), Ok(()), "{good:?}");
    }
    for bad in [[1, 1], [2, 1], [0, 256]] {
        let why = inner(&bad).unwrap_err();
        assert!(why.contains("`child index`"), "{bad:?}: {why}");
    }
}

#[test]
fn what_a_page_must_be_is_told_apart() {
    let layer = |displacement: u64, kind: u64| {
        checked(0, |page| {
            [0, 1, 0].into_iter().for_each(|word| page.u32(word));
            page.lineage(OWN);
            [1, displacement, kind]
                .into_iter()
                .for_each(|word| page.u64(word));
        })
    };
    assert_eq!(layer(0, 1), Ok(()));
    assert!(layer(1, 1).unwrap_err().contains("displacement"));
    assert!(layer(0, 2).unwrap_err().contains("layer kind"));
    let longer = checked(0, |page| {
        [0, 0, 0].into_iter().for_each(|word| page.u32(word));
        page.u8(0);
    });
    assert!(longer.unwrap_err().contains("page end"));
}

#[test]
fn a_page_is_the_one_that_its_reference_means() {
    let mut stored = Stored::new();
    stored.set(3, 90, Some(layer(2)));
    stored.store();
    let root = stored.tree.stored_root().unwrap();
    let page = root.page.unwrap();
    let bytes = &stored.pack[..page.len as usize];
    let is_accepted =
        |page: PageRef, bytes: &[u8]| decode(&page, 0, ObjectSize::MIN, bytes).is_ok();
    assert!(is_accepted(page, bytes));
    let crc = page.crc ^ 1;
    assert!(
        !is_accepted(PageRef { crc, ..page }, bytes),
        "whole, but another one"
    );
    let lineage = Lineage(6);
    assert!(!is_accepted(PageRef { lineage, ..page }, bytes));
    assert!(
        !is_accepted(page, &[bytes, &[0; 8]].concat()),
        "and more behind it"
    );
}
