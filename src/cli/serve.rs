//! `visage serve`: the server itself.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
};

use anyhow::Context;
use clap::Args;
use tokio::net::TcpListener;

use super::{output::print_line, signals::Signals};
use crate::{
    config::{Config, Flags},
    grpc, telemetry,
};

/// Starts a server on a data folder and serves until SIGTERM or Ctrl-C.
///
/// An empty folder is initialised. Settings come from the file of --config, the environment and the options here, each
/// overriding the ones before; `visage config` shows them all.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  visage serve --data-dir /srv/visage --training-root /srv/photos")]
pub(super) struct ServeArgs {
    /// IP address and port, such as 0.0.0.0:50051; port 0 takes a free one [default: 127.0.0.1:50051].
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// The folder of all data [default: visage-data].
    #[arg(long, value_name = "FOLDER")]
    data_dir: Option<PathBuf>,
    /// auto, cpu or cuda:N [default: auto].
    #[arg(long)]
    device: Option<String>,
    /// A folder that training data and weights may be in; may be given more than once.
    #[arg(long, value_name = "FOLDER")]
    training_root: Vec<PathBuf>,
}

impl ServeArgs {
    /// Returns the options as settings.
    pub(super) fn flags(&self) -> Flags {
        Flags::default()
            .with("server.listen", self.listen.map(|address| address.to_string()))
            .with_path("data_dir", self.data_dir.as_deref())
            .with("serving.device", self.device.clone())
            .with_paths("training.roots", &self.training_root)
    }
}

/// Serves until a signal stops it.
pub(super) async fn run(args: ServeArgs, config_file: Option<&Path>) -> anyhow::Result<bool> {
    // Listen first: a server that has hardly begun must also stop in order.
    let signals = Signals::listen()?;
    let config = Config::load(config_file, args.flags())?.config;
    telemetry::init(&config.log)?;
    let listener = TcpListener::bind(config.server.listen)
        .await
        .with_context(|| format!("cannot listen on {} (server.listen, --listen)", config.server.listen))?;
    let address = listener.local_addr()?;
    print_line!("listening on http://{address}")?;
    if !address.ip().is_loopback() {
        tracing::warn!(
            %address,
            "anyone who can reach this address can use the server: it checks no credentials and does not encrypt"
        );
    }
    tracing::info!(data_dir = %config.data_dir.display(), "starting");
    let has_published = !config.models.published_dir.as_os_str().is_empty();
    let roots = config.training.roots.clone();
    let welcome = move || {
        let program = std::env::args().next().unwrap_or_else(|| "visage".to_owned());
        // The server also runs without a reader of its output.
        let _ = print_line!("{}", first_commands(&program, address, &roots, has_published));
    };
    grpc::run(config, listener, signals.stop_requested(), welcome).await?;
    Ok(true)
}

/// Returns where a client on this machine reaches a server that listens on `address`.
fn reachable(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(v4) if v4.ip().is_unspecified() => (Ipv4Addr::LOCALHOST, v4.port()).into(),
        SocketAddr::V6(v6) if v6.ip().is_unspecified() => (Ipv6Addr::LOCALHOST, v6.port()).into(),
        other => other,
    }
}

/// Formats the first commands to try. They use `program`, this program's name as it was called, so that they can be
/// pasted.
fn first_commands(program: &str, address: SocketAddr, roots: &[PathBuf], has_published: bool) -> String {
    let server = match reachable(address) {
        usual if usual == SocketAddr::from(([127, 0, 0, 1], 50_051)) => String::new(),
        other => format!(" --server {other}"),
    };
    if has_published {
        return format!(
            "ready. In another terminal:\n  \
             {program} predict PHOTO{server}\n  \
             {program} collections create people{server}\n  \
             {program} enroll --collection people PHOTO{server}\n  \
             {program} similar --collection people PHOTO{server}"
        );
    }
    // The other terminal may be in another folder.
    let shown = |root: &PathBuf| root.canonicalize().unwrap_or_else(|_| root.clone()).display().to_string();
    let folder = roots.first().map_or_else(|| "FOLDER".to_owned(), shown);
    let mut text = format!(
        "ready. In another terminal:\n  \
         {program} train --model face --utkface {folder}{server}\n  \
         {program} predict --model face PHOTO{server}\n  \
         {program} collections create policies --space face@champion{server}"
    );
    if roots.is_empty() {
        text.push_str("\n(training reads only below folders given at the start: --training-root FOLDER)");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_commands_name_a_server_at_another_address() {
        let usual =
            first_commands("visage", SocketAddr::from(([127, 0, 0, 1], 50_051)), &[PathBuf::from("photos")], false);
        assert!(usual.contains("--utkface photos\n") && !usual.contains("--server"), "{usual}");
        let other = first_commands("target/release/visage", SocketAddr::from(([127, 0, 0, 1], 7)), &[], false);
        assert_eq!(other.matches("--server 127.0.0.1:7").count(), 3, "{other}");
        assert_eq!(other.matches("  target/release/visage ").count(), 3, "{other}");
        assert!(other.contains("--training-root"), "{other}");
        for (listens, named) in [
            ("[::1]:50051", " --server [::1]:50051"),
            ("[::]:7", " --server [::1]:7"),
            ("0.0.0.0:7", " --server 127.0.0.1:7"),
            ("10.1.2.3:7", " --server 10.1.2.3:7"),
            ("0.0.0.0:50051", ""),
        ] {
            let text = first_commands("visage", listens.parse().unwrap(), &[], true);
            assert!(text.contains(&format!("visage predict PHOTO{named}\n")), "{listens}: {text}");
        }
        let published = first_commands("visage", SocketAddr::from(([127, 0, 0, 1], 50_051)), &[], true);
        assert!(published.contains("visage predict PHOTO") && !published.contains("train"), "{published}");
    }
}
