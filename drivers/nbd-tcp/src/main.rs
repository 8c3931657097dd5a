//! `archipelago-nbd-tcp`: serves volumes as NBD exports on TCP. `archipelago nbd serve` becomes this program.

#![forbid(unsafe_code)]

use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use archipelago_api::client::Client;
use archipelago_api::layout::{Layout, ROOT_VARIABLE};
use archipelago_nbd_tcp::{Place, ServeOptions, TlsFiles, serve};
use archipelago_protocol::{Error, Name, last_words};
use clap::Parser;

/// The port of NBD at IANA.
const PORT: u16 = 10809;
/// How long requests wait for the node, as for a mount: longer than its stop (60 s), an update of its programs and its start take.
const WAIT_MAX_SECONDS: u64 = 300;

/// Serves volumes, snapshots and images of a node as NBD exports, on TCP or at a UNIX socket, until SIGTERM or SIGINT.
#[derive(Debug, Parser)]
#[command(name = "archipelago-nbd-tcp", version)]
struct Options {
    /// Directory that holds everything of the node, also $ARCHIPELAGO_ROOT
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Print JSON objects
    #[arg(long)]
    json: bool,
    /// Where to listen
    #[arg(long, value_name = "ADDR[:PORT]", value_parser = address, required_unless_present = "socket")]
    listen: Option<SocketAddr>,
    /// A UNIX socket to listen at, in place of an address
    #[arg(long, value_name = "PATH", conflicts_with_all = ["listen", "tls_certificate", "insecure"])]
    socket: Option<PathBuf>,
    /// Refuse writes
    #[arg(long)]
    read_only: bool,
    /// Encrypt: the certificate chain, PEM
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_certificate: Option<PathBuf>,
    /// The certificate's key, PEM
    #[arg(long, value_name = "FILE", requires = "tls_certificate")]
    tls_key: Option<PathBuf>,
    /// Require client certificates signed by one of these certificate authorities, PEM
    #[arg(long, value_name = "FILE", requires = "tls_certificate")]
    tls_client_ca: Option<PathBuf>,
    /// Serve other hosts without encryption
    #[arg(long, conflicts_with = "tls_certificate")]
    insecure: bool,
    /// How long requests wait for a node that is away, before they fail
    #[arg(long, value_name = "SECONDS", default_value_t = WAIT_MAX_SECONDS, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    wait_max: u64,
    /// Names to serve; without names: every volume, snapshot and image of the node
    #[arg(value_name = "NAME")]
    names: Vec<Name>,
}

fn address(text: &str) -> Result<SocketAddr, String> {
    let with_port = text.parse::<SocketAddr>();
    let alone = || text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, PORT));
    with_port.or_else(|_| alone()).map_err(|_neither| {
        "it takes an IP address and a port, such as 127.0.0.1:10809 or [::1]:10809".to_owned()
    })
}

fn main() -> ExitCode {
    let options = Options::parse();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_target(false)
        .init();
    let json = options.json;
    match run(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            fail(&error, json);
            ExitCode::from(error.code.exit_code())
        }
    }
}

fn run(options: Options) -> Result<(), Error> {
    let root = options
        .root
        .or_else(|| std::env::var_os(ROOT_VARIABLE).map(PathBuf::from));
    let client = Client::new(Layout::new(root.as_deref())?);
    let files = options.tls_certificate.zip(options.tls_key);
    let tls = files.map(|(certificate, key)| TlsFiles {
        certificate,
        key,
        client_authorities: options.tls_client_ca,
    });
    let address = options.listen.map(Place::Address);
    let listen = address.or(options.socket.map(Place::Socket));
    let serve_options = ServeOptions {
        listen: listen.expect("one of the two, which is checked above"),
        names: options.names,
        read_only: options.read_only,
        tls,
        insecure: options.insecure,
        wait_max: Duration::from_secs(options.wait_max),
    };
    serve(client, serve_options, |place| {
        let line = match options.json {
            true => match &place {
                Place::Address(address) => serde_json::json!({ "address": address }).to_string(),
                Place::Socket(path) => serde_json::json!({ "socket": path }).to_string(),
            },
            false => format!("listening on {place}"),
        };
        // The output may be closed: the line is not needed then.
        let mut stdout = std::io::stdout().lock();
        let _written = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
    })
}

/// Prints a failure as the command does: for people the error and its hint, for scripts an object.
fn fail(error: &Error, json: bool) {
    let mut text = format!("archipelago: {}\n", error.message);
    if !error.hint.is_empty() {
        text.push_str(&format!("hint: {}\n", error.hint));
    }
    // If the output is closed, the exit code still reports the failure.
    let _written = std::io::stderr().write_all(text.as_bytes());
    if json {
        let line = format!("{}\n", last_words::encode(error));
        let _written = std::io::stdout().write_all(line.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_port_or_the_one_of_nbd() {
        for (text, expected) in [
            ("127.0.0.1:0", "127.0.0.1:0"),
            ("127.0.0.1", "127.0.0.1:10809"),
            ("::1", "[::1]:10809"),
            ("[::]:7", "[::]:7"),
        ] {
            assert_eq!(address(text).unwrap().to_string(), expected);
        }
        for bad in ["", "localhost", "10809", ":10809", "127.0.0.1:x"] {
            assert!(address(bad).is_err(), "{bad}");
        }
    }
}
