//! Adds and removes pools in the text of a configuration while the node runs, and keeps comments and formatting.
//!
//! Invariant: except for the one pool, the changed text has the same meaning as before. If this cannot be checked for a text, it is not
//! changed.

use archipelago_protocol::{Error, ErrorCode, Name};

use super::{Config, PoolConfig};

/// The text of a configuration with another pool at its end.
///
/// # Errors
/// [`ErrorCode::Exists`] if a pool has this name; [`ErrorCode::Invalid`] if the configuration with the pool is not valid.
pub fn with_pool(text: &str, name: &Name, pool: &PoolConfig) -> Result<String, Error> {
    let mut expected = Config::parse(text)?;
    if expected.pools.contains_key(name) {
        return Err(Error::new(
            ErrorCode::Exists,
            format!("there is a pool `{name}` already"),
        ));
    }
    let mut changed = text.trim_end().to_owned();
    changed.push_str(&format!("\n\n[pool.{}]\n{}", key(name), render(pool)?));
    expected.pools.insert(name.clone(), pool.clone());
    checked(changed, &expected)
}

/// The lines of a pool's section, without the header.
fn render(pool: &PoolConfig) -> Result<String, Error> {
    let (directory, direct) = match pool {
        PoolConfig::File { directory, direct } => (directory, direct),
        PoolConfig::Rados(rados) => return rados.render(),
    };
    let Some(path) = directory.to_str() else {
        return Err(Error::new(
            ErrorCode::Invalid,
            format!("pool directory `{}` is not UTF-8", directory.display()),
        ));
    };
    let path = toml::Value::String(path.to_owned());
    let direct = if *direct { "" } else { "direct = false\n" };
    Ok(format!("kind = \"file\"\ndirectory = {path}\n{direct}"))
}

/// The text of a configuration without the section of a pool. Comments after its last key stay.
///
/// # Errors
/// [`ErrorCode::NotFound`] if the pool does not exist; [`ErrorCode::Invalid`] if it is the only one, or not written as a section.
pub fn without_pool(text: &str, name: &Name) -> Result<String, Error> {
    let mut expected = Config::parse(text)?;
    if expected.pools.remove(name).is_none() {
        return Err(Error::new(
            ErrorCode::NotFound,
            format!("there is no pool `{name}`"),
        ));
    }
    let header = |line: &str| {
        let line = line.trim();
        line == format!("[pool.{name}]") || line == format!("[pool.\"{name}\"]")
    };
    let lines: Vec<&str> = text.lines().collect();
    let start = lines.iter().position(|line| header(line));
    let Some(start) = start else {
        return Err(by_hand());
    };
    let has_content = |line: &&str| !line.trim().is_empty() && !line.trim().starts_with('#');
    let end = lines[start + 1..]
        .iter()
        .take_while(|line| !line.trim_start().starts_with('['))
        .enumerate()
        .filter(|(_, line)| has_content(line))
        .map(|(index, _)| start + 1 + index + 1)
        .last()
        .unwrap_or(start + 1);
    let mut kept = lines[..start].join("\n").trim_end().to_owned();
    kept.push('\n');
    for line in &lines[end..] {
        kept.push_str(line);
        kept.push('\n');
    }
    checked(kept, &expected)
}

/// The name of a pool as a key of the file.
fn key(name: &Name) -> String {
    let bare = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
    if name.as_str().bytes().all(bare) {
        name.to_string()
    } else {
        format!("\"{name}\"")
    }
}

fn checked(text: String, expected: &Config) -> Result<String, Error> {
    match Config::parse(&text) {
        Ok(config) if config == *expected => Ok(text),
        Ok(_other) => Err(by_hand()),
        Err(error) => Err(error),
    }
}

fn by_hand() -> Error {
    Error::new(
        ErrorCode::Invalid,
        "the pools of the configuration are not written as sections of their own",
    )
    .with_hint("stop the node and change the file by hand")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RadosPool;

    const TEXT: &str = "# Ours.\nplacement = \"split\"\n\n[pool.default]\nkind = \"file\"\ndirectory = \"/p\"\n#direct = true\n\n# Knobs.\n[data]\npoll_us = 7 # less\n";

    fn pool(directory: &str, direct: bool) -> PoolConfig {
        PoolConfig::File {
            directory: directory.into(),
            direct,
        }
    }

    #[test]
    fn a_pool_is_added_and_taken_out_and_the_rest_stays_as_it_was_written() {
        let rados = RadosPool {
            pool: "volumes".to_owned(),
            data_pool: Some("data".to_owned()),
            namespace: "vms".to_owned(),
            ceph_conf: Some("/etc/ceph/other.conf".into()),
            client: "archipelago".to_owned(),
            keyring: Some("/etc/ceph/key".into()),
            fsid: "an-id".to_owned(),
        };
        let least = RadosPool {
            data_pool: None,
            namespace: String::new(),
            ceph_conf: None,
            client: "admin".to_owned(),
            keyring: None,
            fsid: String::new(),
            ..rados.clone()
        };
        for (name, pool) in [
            ("fast", pool("/fast", true)),
            ("a.b@c", pool("/with \"quotes\"", false)),
            ("far", PoolConfig::Rados(rados)),
            ("farther", PoolConfig::Rados(least)),
        ] {
            let name: Name = name.parse().unwrap();
            let added = with_pool(TEXT, &name, &pool).unwrap();
            assert!(added.starts_with(TEXT), "{added}");
            assert_eq!(Config::parse(&added).unwrap().pools[&name], pool);
            assert_eq!(without_pool(&added, &name).unwrap(), TEXT);
            let first = without_pool(&added, &"default".parse().unwrap()).unwrap();
            assert!(first.contains("# Knobs.\n[data]\npoll_us = 7 # less\n"));
            assert_eq!(Config::parse(&first).unwrap().pools.len(), 1);
        }
    }

    #[test]
    fn what_is_not_legal_is_refused() {
        let default: Name = "default".parse().unwrap();
        let fast: Name = "fast".parse().unwrap();
        let code = |result: Result<String, Error>| result.unwrap_err().code;
        assert_eq!(
            code(with_pool(TEXT, &default, &pool("/q", true))),
            ErrorCode::Exists
        );
        for directory in ["/p", "/p/below", "/"] {
            assert_eq!(
                code(with_pool(TEXT, &fast, &pool(directory, true))),
                ErrorCode::Invalid
            );
        }
        assert_eq!(code(without_pool(TEXT, &fast)), ErrorCode::NotFound);
        assert_eq!(code(without_pool(TEXT, &default)), ErrorCode::Invalid);
        let inline = "pool = { a = { kind = \"file\", directory = \"/a\" }, b = { kind = \"file\", directory = \"/b\" } }\n";
        assert_eq!(
            code(without_pool(inline, &"a".parse().unwrap())),
            ErrorCode::Invalid
        );
    }
}
