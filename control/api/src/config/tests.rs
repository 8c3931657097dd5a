use super::*;
use crate::layout::{Layout, make_directory};

const POOL: &str = "[pool.default]\nkind = \"file\"\ndirectory = \"/p\"\n";

#[test]
fn what_is_left_out_has_a_default() {
    let config = Config::parse(POOL).unwrap();
    assert_eq!(config.placement, Placement::Fused);
    assert_eq!(config.data, DataPath::default());
    assert_eq!(
        config.pools[config.default_pool().unwrap()],
        PoolConfig::File {
            directory: "/p".into(),
            direct: true,
        }
    );
}

#[test]
fn each_bad_key_and_value_is_named_with_its_legal_range() {
    let cases = [
        (
            "placement = \"fast\"",
            "placement = \"fast\" is not legal: \"fused\" or \"split\"",
        ),
        ("placement = 3", "placement = 3 is not legal: a string"),
        (
            "colour = \"red\"",
            "unknown key colour = \"red\"; legal keys: placement, data, endpoint, pool",
        ),
        ("data = 7", "data = 7 is not legal: a table"),
        (
            "[data]\npoll_us = 1001",
            "data.poll_us = 1001 is not legal: a number from 0 to 1000",
        ),
        (
            "[data]\npoll_us = -1",
            "data.poll_us = -1 is not legal: a number from 0 to 1000",
        ),
        (
            "[data]\nsubmission_chunk = 0",
            "data.submission_chunk = 0 is not legal: a number from 1 to 64",
        ),
        (
            "[data]\nchannel_requests = 100",
            "data.channel_requests = 100 is not legal: a power of two from 16 to 4096",
        ),
        (
            "[data]\nthreads = 17",
            "data.threads = 17 is not legal: a number from 1 to 16",
        ),
        (
            "placement = \"split\"\n[data]\nthreads = 2",
            "data.threads = 2 needs placement = \"fused\": in \"split\" each process has one data thread",
        ),
        (
            "[data]\ncpus = [0, 1024]",
            "data.cpus = [0, 1024] is not legal: a list of numbers from 0 to 1023",
        ),
        (
            "[data]\nspeed = 1",
            "unknown key data.speed = 1; legal keys: threads, cpus, poll_us, submission_chunk, channel_requests, channel_memory_mib",
        ),
        (
            "[endpoint]\nuser = \"a\"",
            "endpoint.user = \"a\" needs placement = \"split\": in \"fused\" the endpoint has no process of its own",
        ),
        (
            "placement = \"split\"\n[endpoint]",
            "endpoint.user is missing: the name or number of a user",
        ),
        (
            "placement = \"split\"\n[endpoint]\nuser = 0",
            "endpoint.user = 0 is not legal: a name, or a number from 1 to 4294967294",
        ),
        (
            "placement = \"split\"\n[endpoint]\nuser = 4294967295",
            "endpoint.user = 4294967295 is not legal: a name, or a number from 1 to 4294967294",
        ),
        (
            "placement = \"split\"\n[endpoint]\nuser = 7\ngroup = \"\"",
            "endpoint.group = \"\" is not legal: a name, or a number from 1 to 4294967294",
        ),
        (
            "[pool.\".x\"]\nkind = \"file\"",
            "key `pool..x`: `.x` cannot be a name: it must not start with a dot or a dash",
        ),
        (
            "[pool.other]\nkind = \"tape\"",
            "pool.other.kind = \"tape\" is not legal: \"file\" or \"rados\"",
        ),
        (
            "[pool.other]\nkind = \"file\"",
            "pool.other.directory is missing: an absolute path",
        ),
        (
            "[pool.other]\nkind = \"file\"\ndirectory = \"p\"",
            "pool.other.directory = \"p\" is not legal: an absolute path",
        ),
        (
            "[pool.other]\nkind = \"file\"\ndirectory = \"/q\"\ndirect = \"no\"",
            "pool.other.direct = \"no\" is not legal: true or false",
        ),
        (
            "[pool.other]\nkind = \"file\"\ndirectory = \"/p/q\"",
            "pool.other.directory = \"/p/q\" is not legal: it is inside the directory of pool.default",
        ),
        (
            "[pool.other]\nkind = \"rados\"",
            "pool.other.pool is missing: the name of a RADOS pool",
        ),
        (
            "[pool.other]\nkind = \"rados\"\npool = \"a\"\nkeyring = \"k\"",
            "keyring = \"k\" is not legal: an absolute path",
        ),
        (
            "[pool.other]\nkind = \"rados\"\npool = \"a\"\n[pool.same]\nkind = \"rados\"\npool = \"b\"\ndata_pool = \"a\"",
            "pool.other (rados:a) is not legal: pool.same has the same objects",
        ),
    ];
    for (text, expected) in cases {
        let error = Config::parse(&format!("{text}\n{POOL}")).unwrap_err();
        assert_eq!(error.code, ErrorCode::Invalid, "{text}");
        assert_eq!(error.message, expected, "{text}");
    }
    assert_eq!(
        Config::parse("").unwrap_err().message,
        "section `pool`: 0 pools; legal: 1 to 64"
    );
}

#[test]
fn a_pool_may_be_told_not_to_use_direct_io() {
    for direct in [true, false] {
        let config = Config::parse(&format!("{POOL}direct = {direct}\n")).unwrap();
        let expected = PoolConfig::File {
            directory: "/p".into(),
            direct,
        };
        assert_eq!(config.pools.values().collect::<Vec<_>>(), [&expected]);
    }
}

#[test]
fn the_endpoint_has_a_user_by_name_or_by_number() {
    let parse = |section: &str| {
        let text = format!("placement = \"split\"\n[endpoint]\n{section}\n{POOL}");
        Config::parse(&text).unwrap().endpoint.unwrap()
    };
    let named = parse("user = \"archipelago\"");
    assert_eq!(named.user, Account::Name("archipelago".to_owned()));
    assert_eq!(named.group, None);
    let numbered = parse("user = 64001\ngroup = \"kvm\"");
    assert_eq!(numbered.user, Account::Id(64_001));
    assert_eq!(numbered.group, Some(Account::Name("kvm".to_owned())));
}

#[test]
fn broken_syntax_names_the_line() {
    let error = Config::parse("placement = \"fused\"\n[data\n").unwrap_err();
    assert_eq!(error.code, ErrorCode::Invalid);
    assert!(error.message.starts_with("line 2: "), "{}", error.message);
}

#[test]
fn init_writes_what_parse_accepts_and_never_overwrites() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout::new(Some(dir.path())).unwrap();
    let options = InitOptions {
        pool_dir: None,
        placement: Placement::Split,
    };
    let written = init(&layout, &options, make_directory).unwrap();
    assert_eq!(Config::read(layout.config()).unwrap(), written);
    assert_eq!(written.placement, Placement::Split);
    for directory in [layout.run(), layout.state(), &layout.default_pool()] {
        assert_eq!(
            directory.metadata().unwrap().permissions().mode() & 0o777,
            0o700,
            "{}",
            directory.display()
        );
    }
    let before = std::fs::read(layout.config()).unwrap();
    assert_eq!(
        init(&layout, &InitOptions::default(), make_directory)
            .unwrap_err()
            .code,
        ErrorCode::Exists
    );
    assert_eq!(std::fs::read(layout.config()).unwrap(), before);
}

#[test]
fn a_missing_file_says_how_to_make_one() {
    let error = Config::read(Path::new("/nonexistent/archipelago.toml")).unwrap_err();
    assert_eq!(error.code, ErrorCode::NotFound);
    assert!(error.hint.contains("archipelago init"));
}

#[test]
fn without_a_name_the_only_pool_or_the_one_named_default_is_meant() {
    let parse = |names: &[&str]| {
        let sections = names
            .iter()
            .map(|name| format!("[pool.{name}]\nkind = \"file\"\ndirectory = \"/{name}\"\n"));
        Config::parse(&sections.collect::<String>()).unwrap()
    };
    assert_eq!(parse(&["a"]).default_pool().unwrap().as_str(), "a");
    let both = parse(&["a", "default"]);
    assert_eq!(both.default_pool().unwrap().as_str(), "default");
    let error = parse(&["a", "b"]).default_pool().unwrap_err();
    assert_eq!(error.code, ErrorCode::Invalid);
    assert!(error.message.contains("`a`, `b`"), "{error}");
}
