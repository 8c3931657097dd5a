//! What guests are made of: built once by `guest/build.sh`, kept in `.cache/guest` or `$ARCHIPELAGO_GUEST_DIR`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, ensure};

/// The files that guests are made of.
#[derive(Debug, Clone)]
pub struct Parts {
    /// The kernel, unpacked.
    pub kernel: PathBuf,
    /// Its first file system.
    pub initrd: PathBuf,
    /// A disk that boots by itself, raw.
    pub boot_image: PathBuf,
}

impl Parts {
    /// Builds what is missing.
    ///
    /// # Errors
    /// If the build fails: it says on standard error why.
    pub fn get() -> Result<&'static Parts> {
        static BUILT: OnceLock<Result<Parts, String>> = OnceLock::new();
        BUILT
            .get_or_init(|| build().map_err(|error| format!("{error:#}")))
            .as_ref()
            .map_err(|text| anyhow::anyhow!("{text}"))
    }
}

fn build() -> Result<Parts> {
    let home = Path::new(env!("CARGO_MANIFEST_DIR"));
    let script = home.join("guest/build.sh");
    let status = Command::new(&script)
        .status()
        .with_context(|| format!("running {}", script.display()))?;
    ensure!(status.success(), "{}: {status}", script.display());
    let cache = match std::env::var_os("ARCHIPELAGO_GUEST_DIR") {
        Some(dir) => PathBuf::from(dir),
        None => home.join("../../.cache/guest"),
    };
    let cache = cache.canonicalize()?;
    Ok(Parts {
        kernel: cache.join("vmlinux"),
        initrd: cache.join("initrd.cpio"),
        boot_image: cache.join("boot.img"),
    })
}
