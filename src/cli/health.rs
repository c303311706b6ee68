//! `visage health`: checks whether a server is ready, for people and for container health checks.

use anyhow::Context;
use clap::Args;
use serde_json::json;
use tonic::{Code, transport::Endpoint};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use super::{connection::Remote, failure::Unreachable, output::print_line};

/// Checks whether a server is ready; exits with 0 if it is.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  visage health && visage predict --model face portrait.jpg")]
pub(super) struct HealthArgs {
    /// A service, such as visage.v1.VisageService; without it, the whole server.
    #[arg(default_value = "")]
    service: String,
    #[command(flatten)]
    pub(super) remote: Remote,
}

/// Runs the command; returns false when the server is not ready.
pub(super) async fn run(args: HealthArgs) -> anyhow::Result<bool> {
    let server = args.remote.server.clone();
    let channel = Endpoint::from_shared(server.clone())?
        .connect()
        .await
        .map_err(|source| Unreachable { server, source: source.into() })?;
    let request = args.remote.request(HealthCheckRequest { service: args.service.clone() });
    let status = match HealthClient::new(channel).check(request).await {
        Ok(answer) => answer.into_inner().status(),
        Err(status) if status.code() == Code::NotFound => {
            return Err(status).with_context(|| format!("the server has no service {:?}", args.service));
        }
        Err(status) => return Err(status.into()),
    };
    let is_ready = status == ServingStatus::Serving;
    if args.remote.json {
        print_line!("{}", json!({ "ready": is_ready }))?;
    } else {
        print_line!("{}", if is_ready { "ready" } else { "not ready" })?;
    }
    Ok(is_ready)
}
