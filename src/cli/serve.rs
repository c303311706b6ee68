//! `visage serve`: the server itself.

use std::{net::SocketAddr, path::PathBuf};

use anyhow::Context;
use clap::Args;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};
use tonic::transport::Endpoint;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use super::output::say;
use crate::{
    config::{Config, Flags},
    grpc, telemetry,
};

/// Starts a server on a data folder and serves until SIGTERM or Ctrl-C.
///
/// An empty folder is made into one. Settings come from the file of --config, the environment and the options here,
/// later ones winning; `visage config` shows them all.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  visage serve --data-dir /srv/visage --training-root /srv/photos")]
pub(super) struct ServeArgs {
    /// Address and port; port 0 takes a free one [default: 127.0.0.1:50051].
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// Where everything is kept [default: visage-data].
    #[arg(long, value_name = "FOLDER")]
    data_dir: Option<PathBuf>,
    /// auto, cpu or cuda:N [default: auto].
    #[arg(long)]
    device: Option<String>,
    /// A folder below which training data and weights may lie; may be given more than once.
    #[arg(long, value_name = "FOLDER")]
    training_root: Vec<PathBuf>,
}

impl ServeArgs {
    /// The options as settings.
    pub(super) fn flags(&self) -> Flags {
        let text = |path: &PathBuf| path.to_string_lossy().into_owned();
        let roots: Vec<String> = self.training_root.iter().map(text).collect();
        Flags::default()
            .with("server.listen", self.listen.map(|address| address.to_string()))
            .with("data_dir", self.data_dir.as_ref().map(text))
            .with("serving.device", self.device.clone())
            .with("training.roots", (!roots.is_empty()).then_some(roots))
    }
}

/// Serves until it is told to stop.
pub(super) async fn run(config: Config) -> anyhow::Result<bool> {
    telemetry::init(&config.log)?;
    let listener = TcpListener::bind(config.server.listen)
        .await
        .with_context(|| format!("cannot listen on {} (server.listen, --listen)", config.server.listen))?;
    let address = listener.local_addr()?;
    say!("listening on http://{address}")?;
    if !address.ip().is_loopback() {
        tracing::warn!(
            %address,
            "whoever reaches this address can use the server: it checks no credentials and does not encrypt"
        );
    }
    tracing::info!(data_dir = %config.data_dir.display(), "starting");
    let mut terminate = signal(SignalKind::terminate())?;
    let shutdown = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            // Without a handler for Ctrl-C there is still SIGTERM.
            Ok(()) = tokio::signal::ctrl_c() => {}
        }
    };
    let has_published = !config.models.published_dir.as_os_str().is_empty();
    let welcome = tokio::spawn(welcome(address, config.training.roots.clone(), has_published));
    let served = grpc::run(config, listener, shutdown).await;
    welcome.abort();
    served?;
    Ok(true)
}

/// Says what to try, once the server is ready.
async fn welcome(address: SocketAddr, roots: Vec<PathBuf>, has_published: bool) -> anyhow::Result<()> {
    // A server on every address is reached by its own.
    let host = if address.ip().is_unspecified() { "127.0.0.1".to_owned() } else { address.ip().to_string() };
    let url = format!("http://{host}:{}", address.port());
    let mut health = HealthClient::new(Endpoint::from_shared(url)?.connect().await?);
    let mut states = health.watch(HealthCheckRequest { service: String::new() }).await?.into_inner();
    while let Some(state) = states.message().await? {
        if state.status() == ServingStatus::Serving {
            let program = std::env::args().next().unwrap_or_else(|| "visage".to_owned());
            say!("{}", invitation(&program, address, &roots, has_published))?;
            break;
        }
    }
    Ok(())
}

/// `program` is what this one was called by, so that the lines can be pasted as they are.
fn invitation(program: &str, address: SocketAddr, roots: &[PathBuf], has_published: bool) -> String {
    let server = if address == SocketAddr::from(([127, 0, 0, 1], 50_051)) {
        String::new()
    } else {
        format!(" --server 127.0.0.1:{}", address.port())
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
    // As the other terminal may stand in another folder.
    let shown = |root: &PathBuf| root.canonicalize().unwrap_or_else(|_| root.clone()).display().to_string();
    let folder = roots.first().map_or_else(|| "FOLDER".to_owned(), shown);
    let mut text = format!(
        "ready. In another terminal:\n  \
         {program} train --model face --utkface {folder}{server}\n  \
         {program} predict --model face PHOTO{server}\n  \
         {program} collections create policies --space face@champion{server}"
    );
    if roots.is_empty() {
        text.push_str("\n(training reads only below a folder that is named at the start: --training-root FOLDER)");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_invitation_names_the_server_where_it_is_not_the_usual_one() {
        let usual = invitation("visage", SocketAddr::from(([127, 0, 0, 1], 50_051)), &[PathBuf::from("photos")], false);
        assert!(usual.contains("--utkface photos\n") && !usual.contains("--server"), "{usual}");
        let other = invitation("target/release/visage", SocketAddr::from(([127, 0, 0, 1], 7)), &[], false);
        assert_eq!(other.matches("--server 127.0.0.1:7").count(), 3, "{other}");
        assert_eq!(other.matches("  target/release/visage ").count(), 3, "{other}");
        assert!(other.contains("--training-root"), "{other}");
        let published = invitation("visage", SocketAddr::from(([127, 0, 0, 1], 50_051)), &[], true);
        assert!(published.contains("visage predict PHOTO") && !published.contains("train"), "{published}");
    }
}
