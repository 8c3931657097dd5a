//! `archipelago-ganeti`: its function depends on the name by which it is called.

#![forbid(unsafe_code)]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use archipelago_api::client::Client;
use archipelago_api::layout::ROOT_VARIABLE;
use archipelago_ganeti::SystemClock;
use archipelago_ganeti::actions::{self, Node};
use archipelago_ganeti::call::{Action, Call};
use archipelago_ganeti::installation::{
    self, Finding, LOG_DIRECTORY, PROVIDER_DIRECTORY, Places, Report,
};
use archipelago_ganeti::settings::Settings;
use archipelago_ganeti::wrapper::{WRAPPER_NAME, become_qemu};
use archipelago_protocol::{Error, ErrorCode, last_words};
use clap::{Args, Parser, Subcommand};

/// Installs, removes and checks the external storage provider for Ganeti on this host. `archipelago ganeti` becomes this program.
#[derive(Debug, Parser)]
#[command(name = "archipelago-ganeti", version)]
struct Options {
    /// Directory that holds everything of the node, also $ARCHIPELAGO_ROOT
    #[arg(long, global = true, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Print JSON objects
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Tool,
}

#[derive(Debug, Subcommand)]
enum Tool {
    /// Put provider and wrapper where Ganeti looks; may be repeated: updates what differs, and keeps settings that are not given
    Install {
        #[command(flatten)]
        places: PlaceOptions,
        /// QEMU binary that the wrapper executes
        #[arg(long, value_name = "FILE")]
        qemu: Option<PathBuf>,
        /// Ganeti's state directory
        #[arg(long, value_name = "DIR")]
        ganeti_state: Option<PathBuf>,
    },
    /// Take away what was installed, and only that
    Uninstall {
        /// The provider's directory
        #[arg(long, value_name = "DIR", default_value = PROVIDER_DIRECTORY)]
        dir: PathBuf,
    },
    /// Check what is installed, and what it needs
    Check {
        #[command(flatten)]
        places: PlaceOptions,
    },
}

#[derive(Debug, Args)]
struct PlaceOptions {
    /// The provider's directory
    #[arg(long, value_name = "DIR", default_value = PROVIDER_DIRECTORY)]
    dir: PathBuf,
    /// The directory of Ganeti's logs of providers
    #[arg(long, value_name = "DIR", default_value = LOG_DIRECTORY)]
    log_dir: PathBuf,
}

fn main() -> ExitCode {
    let called = PathBuf::from(std::env::args_os().next().unwrap_or_default());
    let name = called.file_name().and_then(|name| name.to_str());
    match name {
        Some(WRAPPER_NAME) => wrapper(&called),
        name => match name.and_then(Action::named) {
            Some(action) => script(action, &called),
            None => tool(&Options::parse()),
        },
    }
}

/// The wrapper, called as `called`.
fn wrapper(called: &Path) -> ExitCode {
    let arguments = std::env::args_os().skip(1).collect();
    let error = match settings_beside(called) {
        Ok(settings) => become_qemu(arguments, &settings),
        Err(error) => error,
    };
    fail(WRAPPER_NAME, &error);
    ExitCode::FAILURE
}

/// A command of a user.
fn tool(options: &Options) -> ExitCode {
    match command(options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            fail("ganeti", &error);
            if options.json {
                // If the output is closed, the exit code still reports the failure.
                let _written = print(&format!("{}\n", last_words::encode(&error)));
            }
            ExitCode::from(error.code.exit_code())
        }
    }
}

/// Runs the command; returns whether every check succeeded.
fn command(options: &Options) -> Result<bool, Error> {
    let absolute = |path: &Path| {
        std::path::absolute(path).map_err(|error| {
            Error::new(ErrorCode::Invalid, format!("`{}`: {error}", path.display()))
        })
    };
    let places = |places: &PlaceOptions| {
        Ok(Places {
            provider: absolute(&places.dir)?,
            logs: absolute(&places.log_dir)?,
        })
    };
    let report = match &options.command {
        Tool::Install {
            places: options_of_places,
            qemu,
            ganeti_state,
        } => {
            let path = |path: &Option<PathBuf>| path.as_deref().map(absolute).transpose();
            let variable = || std::env::var_os(ROOT_VARIABLE).map(PathBuf::from);
            let settings = Settings {
                root: path(&options.root.clone().or_else(variable))?,
                qemu: path(qemu)?,
                ganeti_state: path(ganeti_state)?,
                made: Vec::new(),
            };
            let program = std::env::current_exe().map_err(|error| {
                Error::new(ErrorCode::Io, format!("this program's own path: {error}"))
            })?;
            let report = installation::install(&places(options_of_places)?, &program, settings)?;
            if !options.json {
                print(&next_steps(&report))?;
            }
            report
        }
        Tool::Uninstall { dir } => {
            let wrapper = installation::uninstall(&absolute(dir)?)?;
            match (options.json, wrapper) {
                (true, _) => print("{}\n")?,
                (false, Some(wrapper)) => print(&without_wrapper(&wrapper))?,
                (false, None) => {}
            }
            return Ok(true);
        }
        Tool::Check { places: at } => installation::check(&places(at)?)?,
    };
    match options.json {
        true => print(&format!("{}\n", serde_json::json!(report)))?,
        false => print(&findings(&report))?,
    }
    // An installation is done even if the node is not started yet.
    Ok(matches!(options.command, Tool::Install { .. }) || report.is_good())
}

fn findings(report: &Report) -> String {
    let line = |finding: &Finding| match &finding.problem {
        None => format!("ok: {}\n", finding.what),
        Some(problem) if finding.hint.is_empty() => {
            format!("problem: {}: {problem}\n", finding.what)
        }
        Some(problem) => format!(
            "problem: {}: {problem}\n  hint: {}\n",
            finding.what, finding.hint
        ),
    };
    report.findings.iter().map(line).collect()
}

/// The commands that configure the cluster, once, on its master.
fn next_steps(report: &Report) -> String {
    format!(
        "installed in {}\n\
         next, on the master, once every node of the group has it:\n  \
         gnt-cluster modify --enabled-disk-templates=ext,OTHERS --ipolicy-disk-templates=ext,OTHERS\n\
         and for disks over vhost-user (access=userspace):\n  \
         gnt-cluster modify -H kvm:kvm_path={}\n",
        report.directory.display(),
        report.wrapper.display()
    )
}

/// The commands that make the cluster stop using `wrapper`, which was removed.
fn without_wrapper(wrapper: &Path) -> String {
    format!(
        "no instance starts whose kvm_path is {}; on the master, unless done before:\n  \
         gnt-cluster modify -H kvm:kvm_path=/usr/bin/kvm\n",
        wrapper.display()
    )
}

/// A script of the provider, called as `called`. Ganeti distinguishes success and failure only.
fn script(action: Action, called: &Path) -> ExitCode {
    let subject = match std::env::var("VOL_NAME") {
        Ok(volume) => format!("{} of volume `{volume}`", action.name()),
        Err(_unset) => action.name().to_owned(),
    };
    let done = Call::parse(action, std::env::vars_os()).and_then(|call| {
        let settings = settings_beside(called)?;
        let client = Client::new(settings.layout()?);
        let answer = actions::run(&call, &Node::new(&client, &SystemClock, &settings))?;
        answer.map_or(Ok(()), |answer| print(&answer.to_string()))
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            fail(&subject, &error);
            ExitCode::FAILURE
        }
    }
}

/// The settings beside the link by which this program was called; without them, those from the environment.
fn settings_beside(called: &Path) -> Result<Settings, Error> {
    let directory = called
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    let settings = directory.map(Settings::read).transpose()?;
    let settings = settings.flatten();
    Ok(settings.unwrap_or_else(Settings::from_environment))
}

fn print(text: &str) -> Result<(), Error> {
    let mut stdout = std::io::stdout().lock();
    let printed = stdout.write_all(text.as_bytes());
    printed
        .and_then(|()| stdout.flush())
        .map_err(|error| Error::new(ErrorCode::Io, format!("standard output: {error}")))
}

/// Prints what failed, why, and the next step: Ganeti shows the end of the text.
fn fail(subject: &str, error: &Error) {
    let mut text = format!("archipelago: {subject}: {}\n", error.message);
    if !error.hint.is_empty() {
        text.push_str(&format!("hint: {}\n", error.hint));
    }
    // If the output is closed, the exit code still reports the failure.
    let _written = std::io::stderr().write_all(text.as_bytes());
}
