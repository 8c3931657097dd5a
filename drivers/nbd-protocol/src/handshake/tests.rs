use proptest::prelude::*;

use super::*;
use crate::wire::OPTION_REPLY_MAGIC;

const OFFER: Offer<'_> = Offer {
    name: "vm1",
    size: 1 << 20,
    read_only: false,
};

/// Feeds `input` as it is asked for.
fn feed(handshake: &mut Handshake, mut input: &[u8]) -> Result<Progress, Broken> {
    let mut progress = Progress::Continues;
    while progress == Progress::Continues {
        let Some((now, rest)) = input.split_at_checked(handshake.wants()) else {
            break;
        };
        if now.is_empty() {
            break;
        }
        progress = handshake.take_with(now, &OFFER)?;
        input = rest;
    }
    Ok(progress)
}

fn option(number: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = b"IHAVEOPT".to_vec();
    bytes.extend(number.to_be_bytes());
    bytes.extend(u32::try_from(data.len()).unwrap().to_be_bytes());
    bytes.extend(data);
    bytes
}

fn info(name: &[u8], wanted: &[u16]) -> Vec<u8> {
    let mut data = u32::try_from(name.len()).unwrap().to_be_bytes().to_vec();
    data.extend(name);
    data.extend(u16::try_from(wanted.len()).unwrap().to_be_bytes());
    wanted
        .iter()
        .for_each(|kind| data.extend(kind.to_be_bytes()));
    data
}

/// A handshake behind the flags of the client, and its next output.
fn begun(flags: u32) -> Handshake {
    let mut handshake = Handshake::new();
    assert_eq!(handshake.output().drain(..).count(), 18);
    feed(&mut handshake, &flags.to_be_bytes()).unwrap();
    handshake
}

/// The replies that are to be sent: option, kind and data.
fn replies(handshake: &mut Handshake) -> Vec<(u32, u32, Vec<u8>)> {
    let output: Vec<u8> = handshake.output().drain(..).collect();
    let mut fields = Fields(&output);
    let mut replies = Vec::new();
    while let Some(magic) = fields.u64() {
        assert_eq!(magic, OPTION_REPLY_MAGIC);
        let (option, kind) = (fields.u32().unwrap(), fields.u32().unwrap());
        let len = fields.u32().unwrap() as usize;
        replies.push((option, kind, fields.bytes(len).unwrap().to_vec()));
    }
    assert!(fields.0.is_empty());
    replies
}

#[test]
fn the_greeting_is_that_of_a_fixed_newstyle_server() {
    let mut handshake = Handshake::new();
    assert_eq!(handshake.output(), b"NBDMAGICIHAVEOPT\0\x03");
    assert_eq!(handshake.wants(), 4);
}

#[test]
fn go_describes_the_export_and_begins_the_transmission() {
    for (name, structured) in [("vm1", true), ("", false)] {
        let mut handshake = begun(3);
        if structured {
            feed(&mut handshake, &option(8, &[])).unwrap();
            assert_eq!(replies(&mut handshake), [(8, 1, vec![])]);
        }
        let go_option = option(7, &info(name.as_bytes(), &[1, 2, 3]));
        let agreed = feed(&mut handshake, &go_option).unwrap();
        let terms = Terms {
            size: 1 << 20,
            read_only: false,
            structured,
            block_status: false,
        };
        assert_eq!(agreed, Progress::Agreed(terms));
        assert_eq!(handshake.wants(), 0, "what follows is the transmission's");
        let sent = replies(&mut handshake);
        let [high, low] = OFFER.flags(structured).to_be_bytes();
        let expected: [(u32, u32, Vec<u8>); 5] = [
            (7, 3, vec![0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, high, low]),
            (7, 3, vec![0, 3, 0, 0, 2, 0, 0, 0, 0x10, 0, 2, 0, 0, 0]),
            (7, 3, b"\0\x01vm1".to_vec()),
            (7, 3, b"\0\x02vm1 of Archipelago, read-write".to_vec()),
            (7, 1, vec![]),
        ];
        assert_eq!(sent, expected);
    }
}

#[test]
fn info_goes_on_and_what_is_unknown_wrong_or_too_long_is_answered() {
    let mut handshake = begun(1);
    let error = |kind: u32| 1 << 31 | kind;
    let long = vec![0; DATA_MAX + 1];
    for (number, data, kinds) in [
        (6, info(b"vm1", &[]), vec![3, 3, 1]),
        (6, info(b"vm2", &[]), vec![error(6)]),
        (7, info(b"vm2", &[]), vec![error(6)]),
        (6, vec![], vec![error(3)]),
        (6, vec![0xff; 16], vec![error(3)]),
        (7, [info(b"vm1", &[1]), vec![0]].concat(), vec![error(3)]),
        (3, vec![], vec![2, 1]),
        (3, vec![0], vec![error(3)]),
        (8, vec![0], vec![error(3)]),
        (5, vec![], vec![error(1)]),
        (11, vec![], vec![error(1)]),
        (u32::MAX, vec![1, 2, 3], vec![error(1)]),
        (6, long.clone(), vec![error(9)]),
        (77, long, vec![error(9)]),
    ] {
        let progress = feed(&mut handshake, &option(number, &data));
        assert_eq!(progress, Ok(Progress::Continues), "{number}");
        let sent: Vec<_> = replies(&mut handshake);
        let expected: Vec<_> = kinds.into_iter().map(|kind| (number, kind)).collect();
        let sent: Vec<_> = sent
            .iter()
            .map(|(option, kind, _)| (*option, *kind))
            .collect();
        assert_eq!(sent, expected);
    }
    let aborted = feed(&mut handshake, &option(2, &[]));
    assert_eq!(aborted, Ok(Progress::Aborted));
    assert_eq!(replies(&mut handshake), [(2, 1, vec![])]);
}

fn queries(name: &[u8], queries: &[&[u8]]) -> Vec<u8> {
    let prefixed = |bytes: &[u8]| {
        let len = u32::try_from(bytes.len()).unwrap();
        [&len.to_be_bytes(), bytes].concat()
    };
    let mut data = prefixed(name);
    data.extend(u32::try_from(queries.len()).unwrap().to_be_bytes());
    queries
        .iter()
        .for_each(|query| data.extend(prefixed(query)));
    data
}

#[test]
fn the_allocation_is_listed_and_selected_with_structured_replies_only() {
    let mut handshake = begun(3);
    let error = |kind: u32| 1 << 31 | kind;
    let kinds = |handshake: &mut Handshake, number: u32, data: &[u8]| {
        feed(handshake, &option(number, data)).unwrap();
        let sent = replies(handshake);
        assert!(sent.iter().all(|(option, ..)| *option == number));
        sent.iter().map(|(_, kind, _)| *kind).collect::<Vec<_>>()
    };
    let exact = queries(b"vm1", &[b"qemu:x", b"base:allocation"]);
    assert_eq!(kinds(&mut handshake, 10, &exact), [error(3)], "too early");
    for (name, asked, expected) in [
        (&b"vm1"[..], &[][..], vec![4, 1]),
        (b"", &[&b"base:"[..]], vec![4, 1]),
        (b"", &[b"base:allocation"], vec![4, 1]),
        (b"", &[b"base:other"], vec![1]),
        (b"vm2", &[], vec![error(6)]),
    ] {
        assert_eq!(kinds(&mut handshake, 9, &queries(name, asked)), expected);
    }
    feed(&mut handshake, &option(8, &[])).unwrap();
    replies(&mut handshake);
    feed(&mut handshake, &option(10, &exact)).unwrap();
    let context = [&[0, 0, 0, 1][..], b"base:allocation"].concat();
    assert_eq!(replies(&mut handshake), [(10, 4, context), (10, 1, vec![])]);
    assert_eq!(handshake.block_status.as_deref(), Some("vm1"));
    for (data, expected) in [
        (queries(b"", &[]), vec![1]),
        (queries(b"", &[b"base:"]), vec![1]),
        (queries(b"vm2", &[]), vec![error(6)]),
        (exact[..exact.len() - 1].to_vec(), vec![error(3)]),
        ([&exact[..], &[0]].concat(), vec![error(3)]),
    ] {
        handshake.block_status = Some("vm1".to_owned());
        assert_eq!(kinds(&mut handshake, 10, &data), expected);
        assert!(
            handshake.block_status.is_none(),
            "a selection replaces the one before"
        );
    }
}

#[test]
fn export_name_answers_without_a_reply_of_its_own() {
    for (flags, zeroes) in [(1, 124), (3, 0)] {
        let mut handshake = begun(flags);
        let agreed = feed(&mut handshake, &option(1, b"vm1")).unwrap();
        assert!(matches!(agreed, Progress::Agreed(_)));
        let mut expected = vec![0, 0, 0, 0, 0, 0x10, 0, 0];
        expected.extend(OFFER.flags(false).to_be_bytes());
        expected.extend(vec![0; zeroes]);
        assert_eq!(*handshake.output(), expected);
    }
    let refused = feed(&mut begun(3), &option(1, b"vm2"));
    assert_eq!(refused, Err(Broken::NoSuchExport));
}

#[test]
fn what_makes_no_sense_or_does_not_end_breaks_the_connection() {
    let mut handshake = Handshake::new();
    assert_eq!(feed(&mut handshake, &[0, 0, 0, 4]), Err(Broken::Flags(4)));
    let mut handshake = begun(3);
    let refused = feed(&mut handshake, &[0; 16]);
    assert_eq!(refused, Err(Broken::Magic(0)));
    let mut endless = option(6, &[])[..12].to_vec();
    endless.extend((SKIP_MAX + 1).to_be_bytes());
    let refused = feed(&mut begun(3), &endless);
    assert_eq!(refused, Err(Broken::TooLong(SKIP_MAX + 1)));
    let mut handshake = begun(3);
    for _ in 0..OPTIONS_MAX {
        feed(&mut handshake, &option(3, &[])).unwrap();
    }
    let refused = feed(&mut handshake, &option(3, &[]));
    assert_eq!(refused, Err(Broken::TooMany));
}

#[test]
fn nothing_is_said_of_exports_before_encryption_where_it_is_required() {
    let error = |kind: u32| 1 << 31 | kind;
    let mut handshake = Handshake::with_tls();
    handshake.output().clear();
    feed(&mut handshake, &3_u32.to_be_bytes()).unwrap();
    for (number, data) in [
        (3, vec![]),
        (6, info(b"vm1", &[])),
        (7, info(b"vm1", &[])),
        (8, vec![]),
        (9, queries(b"", &[])),
        (10, queries(b"", &[b"base:allocation"])),
        (77, vec![]),
    ] {
        let progress = feed(&mut handshake, &option(number, &data));
        assert_eq!(progress, Ok(Progress::Continues), "{number}");
        let sent = replies(&mut handshake);
        assert_eq!((sent[0].1, sent.len()), (error(5), 1), "{number}");
    }
    let refused = feed(&mut handshake, &option(5, &[0]));
    assert_eq!(refused, Ok(Progress::Continues));
    assert_eq!(replies(&mut handshake)[0].1, error(3));
    let begun = feed(&mut handshake, &option(5, &[]));
    assert_eq!(begun, Ok(Progress::StartTls));
    assert_eq!(replies(&mut handshake), [(5, 1, vec![])]);
    handshake.encrypted();
    feed(&mut handshake, &option(5, &[])).unwrap();
    assert_eq!(replies(&mut handshake)[0].1, error(3), "once is enough");
    let go = feed(&mut handshake, &option(7, &info(b"vm1", &[])));
    let Ok(Progress::Agreed(terms)) = go else {
        panic!("{go:?}");
    };
    assert!(
        !terms.structured,
        "what was asked in the clear is forgotten"
    );

    let mut handshake = Handshake::with_tls();
    feed(&mut handshake, &3_u32.to_be_bytes()).unwrap();
    let refused = feed(&mut handshake, &option(1, b"vm1"));
    assert_eq!(refused, Err(Broken::NotEncrypted));
}

#[test]
fn a_server_of_several_exports_is_asked_for_each() {
    let mut handshake = begun(3);
    let names = handshake.take(&option(3, &[])).unwrap();
    assert_eq!((names, handshake.wants()), (Progress::Names, 0));
    handshake.list(Ok(["vm1", "vm2"].into_iter()));
    let sent = replies(&mut handshake);
    let server = |name: &str| [&[0, 0, 0, 3], name.as_bytes()].concat();
    let expected = [(3, 2, server("vm1")), (3, 2, server("vm2")), (3, 1, vec![])];
    assert_eq!(sent, expected);

    handshake.take(&option(8, &[])).unwrap();
    let mut ask = |number: u32, data: &[u8], name: &str, found| {
        let bytes = option(number, data);
        handshake.take(&bytes[..16]).unwrap();
        let asked = handshake.take(&bytes[16..]).unwrap();
        assert_eq!(handshake.name(), name.as_bytes());
        handshake.output().clear();
        let answered = handshake.answer(found);
        (asked, answered, handshake.output().clone())
    };
    let selected = queries(b"vm1", &[b"base:allocation"]);
    let (asked, ..) = ask(10, &selected, "vm1", Ok(&OFFER));
    assert_eq!(asked, Progress::Described);
    let why = Refusal::Policy("somebody else writes it");
    let (asked, answered, sent) = ask(7, &info(b"vm2", &[]), "vm2", Err(why));
    assert_eq!(
        (asked, answered),
        (Progress::Chosen, Ok(Progress::Continues))
    );
    assert!(sent.ends_with(b"somebody else writes it"));
    let other = Offer {
        name: "vm2",
        ..OFFER
    };
    let (_, answered, _) = ask(7, &info(b"vm2", &[]), "vm2", Ok(&other));
    let Ok(Progress::Agreed(terms)) = answered else {
        panic!("{answered:?}");
    };
    assert!(!terms.block_status, "it was selected for another export");
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic_or_keep_more_than_it_may(
        flags in 0..4_u32,
        options in prop::collection::vec((0..12_u32, prop::collection::vec(any::<u8>(), 0..300)), 0..80),
    ) {
        let mut handshake = begun(flags);
        for (number, data) in options {
            if handshake.wants() == 0 || feed(&mut handshake, &option(number, &data)).is_err() {
                break;
            }
            prop_assert!(handshake.output().len() < 64 * 1024);
        }
    }
}
