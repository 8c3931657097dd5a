//! A pool on RADOS, as it is written in the configuration.

use std::path::PathBuf;

use archipelago_protocol::{Error, ErrorCode};
use serde::{Deserialize, Serialize};

use super::section::Section;

/// The client of the cluster if none is named.
pub const DEFAULT_CLIENT: &str = "admin";
/// The keys of its section.
const KEYS: [&str; 8] = [
    "kind",
    "pool",
    "data_pool",
    "namespace",
    "ceph_conf",
    "client",
    "keyring",
    "fsid",
];

/// A namespace of a RADOS pool, and how it is reached.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RadosPool {
    /// The RADOS pool of metadata: a replicated one.
    pub pool: String,
    /// That of what volumes hold; null: the same.
    #[serde(default)]
    pub data_pool: Option<String>,
    /// The namespace in both; empty: the default one.
    #[serde(default)]
    pub namespace: String,
    /// Ceph's configuration file; null: where Ceph looks for one.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub ceph_conf: Option<PathBuf>,
    /// The client, without `client.`.
    #[serde(default = "default_client")]
    pub client: String,
    /// The file with the client's key; null: the file that Ceph's configuration names.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub keyring: Option<PathBuf>,
    /// The id that the cluster must have; empty: any.
    #[serde(default)]
    pub fsid: String,
}

fn default_client() -> String {
    DEFAULT_CLIENT.to_owned()
}

impl RadosPool {
    /// Its location for people: `rados:POOL/NAMESPACE`.
    #[must_use]
    pub fn place(&self) -> String {
        match self.namespace.as_str() {
            "" => format!("rados:{}", self.pool),
            namespace => format!("rados:{}/{namespace}", self.pool),
        }
    }

    /// Whether both consist of the same objects of one cluster, as far as can be determined.
    pub(super) fn overlaps(&self, other: &RadosPool) -> bool {
        let alike = |one: &str, other: &str| one.is_empty() || other.is_empty() || one == other;
        let data = |it: &RadosPool| it.data_pool.clone().unwrap_or_else(|| it.pool.clone());
        self.namespace == other.namespace
            && alike(&self.fsid, &other.fsid)
            && (self.pool == other.pool || data(self) == data(other))
    }

    /// Checks the section's keys.
    pub(super) fn parse(mut section: Section) -> Result<RadosPool, Error> {
        let Some(pool) = section.string("pool")? else {
            return Err(section.missing("pool", "the name of a RADOS pool"));
        };
        let rados = RadosPool {
            pool,
            data_pool: section.string("data_pool")?,
            namespace: section.string("namespace")?.unwrap_or_default(),
            ceph_conf: section.string("ceph_conf")?.map(PathBuf::from),
            client: section.string("client")?.unwrap_or_else(default_client),
            keyring: section.string("keyring")?.map(PathBuf::from),
            fsid: section.string("fsid")?.unwrap_or_default(),
        };
        section.finish(&KEYS)?;
        rados.check()?;
        Ok(rados)
    }

    /// Refuses values that cannot be a pool.
    ///
    /// # Errors
    /// [`ErrorCode::Invalid`] with key and value.
    pub fn check(&self) -> Result<(), Error> {
        let invalid = |key: &str, value: &str, expected: &str| {
            let message = format!(
                "{key} = \"{}\" is not legal: {expected}",
                value.escape_debug()
            );
            Error::new(ErrorCode::Invalid, message)
        };
        let is_name = |text: &str| !text.is_empty() && !text.contains(char::is_control);
        for (key, name) in [
            ("pool", Some(&self.pool)),
            ("data_pool", self.data_pool.as_ref()),
            ("client", Some(&self.client)),
        ] {
            if let Some(name) = name.filter(|name| !is_name(name)) {
                return Err(invalid(key, name, "a name"));
            }
        }
        if self.namespace.contains(char::is_control) || self.namespace.contains('/') {
            return Err(invalid("namespace", &self.namespace, "a name without `/`"));
        }
        for (key, path) in [("ceph_conf", &self.ceph_conf), ("keyring", &self.keyring)] {
            if let Some(path) = path.as_ref().filter(|path| !path.is_absolute()) {
                let value = path.display().to_string();
                return Err(invalid(key, &value, "an absolute path"));
            }
        }
        Ok(())
    }

    /// The lines of the section, without the header.
    ///
    /// # Errors
    /// [`ErrorCode::Invalid`] if a path is not UTF-8.
    pub(super) fn render(&self) -> Result<String, Error> {
        let path = |path: &Option<PathBuf>| match path {
            None => Ok(None),
            Some(path) => path
                .to_str()
                .map(|path| Some(path.to_owned()))
                .ok_or_else(|| {
                    let message = format!("`{}` is not UTF-8", path.display());
                    Error::new(ErrorCode::Invalid, message)
                }),
        };
        let unless = |value: &str, default: &str| (value != default).then(|| value.to_owned());
        let values = [
            ("pool", Some(self.pool.clone())),
            ("data_pool", self.data_pool.clone()),
            ("namespace", unless(&self.namespace, "")),
            ("ceph_conf", path(&self.ceph_conf)?),
            ("client", unless(&self.client, DEFAULT_CLIENT)),
            ("keyring", path(&self.keyring)?),
            ("fsid", unless(&self.fsid, "")),
        ];
        let lines = values
            .into_iter()
            .filter_map(|(key, value)| Some(format!("{key} = {}\n", toml::Value::String(value?))));
        Ok(format!("kind = \"rados\"\n{}", lines.collect::<String>()))
    }
}
