//! `visage health`: checks whether a server is ready, for people and for container health checks.

use anyhow::Context;
use clap::Args;
use serde_json::json;
use tonic::{Code, transport::Endpoint};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use super::{connection::Remote, failure::Unreachable, output::print_line};
use crate::grpc::health_names;

/// Checks whether a server is ready; exits with 0 if it is.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  visage health && visage predict --model face portrait.jpg")]
pub(super) struct HealthArgs {
    /// A service, such as visage.v1.VisageService or visage.store; without it, the whole server, and what in it is not
    /// serving.
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
    let mut client = HealthClient::new(channel);
    let mut is_serving = async |service: &str| {
        let request = args.remote.request(HealthCheckRequest { service: service.to_owned() });
        let answer = client.check(request).await?;
        Ok::<_, tonic::Status>(answer.into_inner().status() == ServingStatus::Serving)
    };
    let is_ready = match is_serving(&args.service).await {
        Err(status) if status.code() == Code::NotFound => {
            let known = health_names().collect::<Vec<_>>().join(", ");
            return Err(status).with_context(|| format!("{:?} is none of the services {known}", args.service));
        }
        answer => answer?,
    };
    let mut failing = Vec::new();
    if args.service.is_empty() {
        for name in health_names() {
            // An older server does not know every name.
            if matches!(is_serving(name).await, Ok(false)) {
                failing.push(name);
            }
        }
    }
    if args.remote.json {
        print_line!("{}", json!({ "ready": is_ready, "not_serving": failing }))?;
    } else {
        let state = if is_ready { "ready" } else { "not ready" };
        let because = if failing.is_empty() { "" } else { "; not serving: " };
        print_line!("{state}{because}{}", failing.join(", "))?;
    }
    Ok(is_ready)
}
