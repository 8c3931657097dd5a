//! The other side: RBD images, with fio as the client, which has librbd in its process.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use archipelago_bench::compare::{Case, Ground, Sample};
use archipelago_bench::fio;
use archipelago_bench::program::stdout_of;
use archipelago_bench::server::{Server, Usage, usage_of};
use archipelago_bench::waiting::{now, pause, wait_until};
use archipelago_ceph::CephCluster;

use crate::contest::{Contestant, FIRST, OBJECT_LEN, without_cpu};

/// The RADOS pool.
pub(crate) const POOL: &str = "rbd";
/// The image that is measured, written once in full.
const OWNED: &str = "owned";
/// The snapshot of another one, of which clones are made.
const BASE: &str = "filled@base";
/// fio connects and opens the image within this time after its start. Its CPU is measured from then on.
const START: Duration = Duration::from_millis(800);
/// How long fio does what is not measured yet; not on a fresh clone, which would not be fresh any more.
const WARM_UP: Duration = Duration::from_millis(400);
/// fio ends within this time.
const END_TIMEOUT: Duration = Duration::from_secs(60);

/// The images, and how a client reaches them.
#[derive(Debug, Clone)]
pub(crate) struct Images {
    conf: PathBuf,
    size: u64,
}

impl Images {
    /// Makes two images of `size` bytes, filled, and a protected snapshot of one of them.
    ///
    /// # Errors
    /// If `rbd` or fio refuses.
    pub(crate) fn make(ceph: &CephCluster, size: u64) -> Result<Images> {
        let images = Images {
            conf: ceph.conf(),
            size,
        };
        for name in ["filled", OWNED] {
            images.rbd(&["create", "--size", &format!("{size}B"), name])?;
            let mut fill = Command::new("fio");
            fill.args(["--name=fill", "--thread", "--rw=write", "--bs=1M"]);
            fill.args(["--iodepth=8", "--eta=never"]);
            stdout_of(images.engine(&mut fill, &images.conf, name))?;
        }
        images.rbd(&["snap", "create", BASE])?;
        images.rbd(&["snap", "protect", BASE])?;
        Ok(images)
    }

    /// The configuration of clients.
    pub(crate) fn conf(&self) -> &Path {
        &self.conf
    }

    fn rbd(&self, arguments: &[&str]) -> Result<()> {
        let mut rbd = Command::new("rbd");
        rbd.arg("-c").arg(&self.conf).args(["-p", POOL]);
        stdout_of(rbd.args(arguments)).map(drop)
    }

    fn engine<'a>(&self, fio: &'a mut Command, conf: &Path, image: &str) -> &'a mut Command {
        fio.args(["--ioengine=rbd", "--clientname=admin"]);
        fio.arg(format!("--pool={POOL}"));
        fio.arg(format!("--rbdname={image}"));
        fio.arg(format!("--size={}", self.size));
        fio.env("CEPH_CONF", conf)
    }
}

/// Images, reached with or without librbd's cache.
#[derive(Debug)]
pub(crate) struct Rbd {
    name: &'static str,
    images: Images,
    conf: PathBuf,
    clones: u32,
    clone: Option<String>,
}

impl Rbd {
    /// A client that is called `name`.
    ///
    /// # Errors
    /// If its configuration cannot be written.
    pub(crate) fn new(images: &Images, name: &'static str, cache: bool) -> Result<Rbd> {
        let conf = images.conf.with_extension(name);
        let text = fs::read_to_string(&images.conf)?;
        // The last section is the clients'.
        fs::write(&conf, format!("{text}rbd cache = {cache}\n"))?;
        Ok(Rbd {
            name,
            images: images.clone(),
            conf,
            clones: 0,
            clone: None,
        })
    }

    /// Runs fio until it ends: its report, and how much of a core it used from [`START`] on for `window`.
    fn run(&self, fio: &mut Command, image: &str, window: Duration) -> Result<(String, f64)> {
        let mut report = tempfile::NamedTempFile::new()?;
        let fio = self.images.engine(fio, &self.conf, image);
        let fio = fio.stdin(Stdio::null()).stdout(report.reopen()?);
        let mut child = Running(fio.spawn().context("run fio")?);
        let pids = [child.0.id()];
        pause(START);
        let (began, before) = (now(), usage_of(&pids)?);
        pause(window);
        let (took, after) = (began.elapsed(), usage_of(&pids)?);
        let unfinished = || "fio has not ended".to_owned();
        let status = wait_until(END_TIMEOUT, unfinished, || Ok(child.0.try_wait()?))?;
        ensure!(status.success(), "fio: {status}");
        let mut text = String::new();
        std::io::Read::read_to_string(&mut report, &mut text)?;
        let used = after.cpu.saturating_sub(before.cpu);
        Ok((text, used.as_secs_f64() / took.as_secs_f64()))
    }

    fn measure_first_writes(&mut self) -> Result<Sample> {
        let image = self.fresh_clone()?;
        let mut first = Command::new("fio");
        first.args(["--name=first", "--thread", "--iodepth=1"]);
        first.args(["--output-format=json", "--eta=never"]);
        first.arg(format!("--bs={}", FIRST.len));
        // From the end of a write to the beginning of the next one.
        first.arg(format!("--rw=write:{}", OBJECT_LEN - FIRST.len as u64));
        first.arg(format!("--number_ios={}", self.images.size / OBJECT_LEN));
        let image = image.to_str().context("a name")?;
        let report = stdout_of(self.images.engine(&mut first, &self.conf, image))?;
        self.release()?;
        Ok(without_cpu(fio::figures(&report)?))
    }
}

/// A process that is killed and reaped when it is dropped.
#[derive(Debug)]
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to kill.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

impl Server for Rbd {
    fn name(&self) -> &'static str {
        self.name
    }

    fn filled(&mut self) -> Result<PathBuf> {
        Ok(OWNED.into())
    }

    fn fresh_clone(&mut self) -> Result<PathBuf> {
        self.clones += 1;
        let name = format!("{}-clone-{}", self.name, self.clones);
        self.images.rbd(&["clone", BASE, &name])?;
        self.clone = Some(name.clone());
        Ok(name.into())
    }

    /// None: fio is both client and server.
    fn pids(&self) -> Result<Vec<u32>> {
        Ok(Vec::new())
    }

    fn release(&mut self) -> Result<()> {
        let Some(clone) = self.clone.take() else {
            return Ok(());
        };
        self.images.rbd(&["rm", &clone])
    }
}

impl Contestant for Rbd {
    #[expect(clippy::cast_precision_loss, reason = "figures for people")]
    fn measure(&mut self, case: Case, time: Duration, seed: u64) -> Result<Sample> {
        if case.workload == FIRST {
            return self.measure_first_writes();
        }
        let mut fio = fio::command(case.workload, time, seed);
        let image = match case.ground {
            Ground::Filled => {
                fio.arg(format!("--ramp_time={}ms", WARM_UP.as_millis()));
                self.filled()?
            }
            Ground::FreshClone => self.fresh_clone()?,
        };
        // Until fio ends at the earliest.
        let window = (time + WARM_UP).saturating_sub(START);
        let image = image.to_str().context("a name")?;
        let (report, cores) = self.run(&mut fio, image, window)?;
        self.release()?;
        let figures = fio::figures(&report)?;
        let seconds = figures.requests as f64 / figures.iops.max(1e-9);
        let used = Usage {
            cpu: Duration::from_secs_f64(cores * seconds),
            rss_kib: 0,
        };
        Ok(Sample::new(figures, &Usage::default(), &used))
    }
}
