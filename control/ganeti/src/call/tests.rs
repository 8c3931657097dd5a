//! Environments as Ganeti sets them, and broken ones.

use std::os::unix::ffi::OsStringExt;

use super::*;

const NAME: &str = "8ac6d6ff-3b4c-4c5e-9d6b-6a2a0f7d5d11.ext.disk2";

fn parse(action: Action, pairs: &[(&str, &str)]) -> Result<Call, Error> {
    let pairs = pairs
        .iter()
        .map(|(name, value)| (name.into(), value.into()));
    Call::parse(action, pairs)
}

fn refused(action: Action, pairs: &[(&str, &str)], words: &str) {
    let error = parse(action, pairs).unwrap_err();
    assert_eq!(error.code, ErrorCode::Invalid);
    assert!(
        error.message.contains(words),
        "{pairs:?}: {}",
        error.message
    );
}

#[test]
fn each_script_is_found_by_its_name() {
    for action in Action::ALL {
        assert_eq!(Action::named(action.name()), Some(action));
    }
    for other in ["", "Create", "archipelago-ganeti", "create.sh"] {
        assert_eq!(Action::named(other), None);
    }
}

#[test]
fn each_call_is_read_from_its_variables() {
    let volume: Name = NAME.parse().unwrap();
    let name = ("VOL_NAME", NAME);
    let check = |action, pairs: &[(&str, &str)], expected: Call| {
        let mut all = vec![
            name,
            ("VOL_UUID", "u"),
            ("PATH", "/bin"),
            ("EXTP_PROVIDER", "archipelago"),
        ];
        all.extend(pairs);
        assert_eq!(parse(action, &all), Ok(expected), "{action:?}");
    };
    let disk = NewDisk {
        origin: Some("i".parse().unwrap()),
        pool: None,
        object_size: None,
        on_full: None,
        access: Access::BlockDevice,
    };
    check(
        Action::Create,
        &[("VOL_SIZE", "2048"), ("EXTP_ORIGIN", "i")],
        Call::Create {
            volume: volume.clone(),
            size: 2 << 30,
            disk,
        },
    );
    check(
        Action::Attach,
        &[("EXTP_ACCESS", "userspace"), ("EXTP_ORIGIN", "no longer/")],
        Call::Attach {
            volume: volume.clone(),
            access: Access::VhostUser,
        },
    );
    check(
        Action::Grow,
        &[("VOL_SIZE", "1"), ("VOL_NEW_SIZE", "3")],
        Call::Grow {
            volume: volume.clone(),
            size: 3 << 20,
        },
    );
    check(
        Action::SetInfo,
        &[("VOL_METADATA", "originstname+n1.example")],
        Call::SetInfo {
            volume: volume.clone(),
            owner: Owner {
                instance: "n1.example".to_owned(),
                disk: Some(2),
            },
        },
    );
    check(
        Action::Snapshot,
        &[("VOL_SNAPSHOT_NAME", "s"), ("VOL_SNAPSHOT_SIZE", "1")],
        Call::Snapshot {
            volume: volume.clone(),
            snapshot: "s".parse().unwrap(),
        },
    );
    for (text, sharing) in [("True", Sharing::Exclusive), ("False", Sharing::Shared)] {
        check(
            Action::Open,
            &[("VOL_OPEN_EXCLUSIVE", text)],
            Call::Open {
                volume: volume.clone(),
                sharing,
            },
        );
    }
    check(Action::Close, &[], Call::Close { volume });
}

#[test]
fn a_variable_that_is_missing_or_wrong_is_named() {
    let name = ("VOL_NAME", NAME);
    for action in Action::ALL {
        if action != Action::Verify {
            refused(action, &[], "VOL_NAME is not set");
            refused(action, &[("VOL_NAME", "../x")], "VOL_NAME: ");
        }
    }
    refused(Action::Create, &[name], "VOL_SIZE is not set");
    refused(Action::Grow, &[name], "VOL_NEW_SIZE is not set");
    for size in ["0", "-1", "+1", "1.5", "1G", "18446744073709551615", "x"] {
        refused(Action::Create, &[name, ("VOL_SIZE", size)], "VOL_SIZE: ");
        refused(
            Action::Grow,
            &[name, ("VOL_NEW_SIZE", size)],
            "VOL_NEW_SIZE: ",
        );
    }
    refused(
        Action::Create,
        &[name, ("VOL_SIZE", "1"), ("EXTP_BOGUS", "1")],
        "`bogus`",
    );
    let long = format!("originstname+{}", "a".repeat(116));
    for metadata in [
        "n1",
        "originstname+",
        "originstname+a b",
        "Originstname+a",
        &long,
    ] {
        let pairs = [name, ("VOL_METADATA", metadata)];
        refused(Action::SetInfo, &pairs, "VOL_METADATA: ");
    }
    for text in ["true", "1", "yes"] {
        let pairs = [name, ("VOL_OPEN_EXCLUSIVE", text)];
        refused(Action::Open, &pairs, "VOL_OPEN_EXCLUSIVE: ");
    }
    refused(
        Action::Snapshot,
        &[name, ("VOL_SNAPSHOT_NAME", "a/b")],
        "VOL_SNAPSHOT_NAME: ",
    );
    let binary = [("VOL_NAME".into(), OsString::from_vec(vec![0xff]))];
    let error = Call::parse(Action::Close, binary).unwrap_err();
    assert!(error.message.contains("VOL_NAME"), "{}", error.message);
}

#[test]
fn only_the_end_of_a_name_is_the_number_of_a_disk() {
    for (name, expected) in [
        (NAME, Some(2)),
        ("a.ext.disk10", Some(10)),
        ("a.disk0.disk1", Some(1)),
        ("a.disk0.snap", None),
        ("a.disk", None),
        ("a.disk+1", None),
        ("disk1", None),
        ("a.disk99999999999", None),
    ] {
        assert_eq!(disk_number(&name.parse().unwrap()), expected, "{name}");
    }
}
