//! The message for a failed command, and its exit code for scripts.

use serde_json::json;
use tonic::Status;
use tonic_types::StatusExt;

/// The command worked, but the answer is negative: a refusal or a finding.
const FAILED: u8 = 1;
/// The command line is wrong; clap uses the same code.
const USAGE: u8 = 2;
/// No server answers.
const UNREACHABLE: u8 = 3;

/// No server answers at an address.
#[derive(Debug, thiserror::Error)]
#[error("no server answers at {server}")]
pub(super) struct Unreachable {
    pub(super) server: String,
    #[source]
    pub(super) source: anyhow::Error,
}

/// A command line that clap accepts but that has no valid meaning.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

/// Prints the failure and a hint to standard error, and returns the exit code.
#[must_use]
pub fn report(error: &anyhow::Error, json: bool) -> u8 {
    let (code, message, hint) = if let Some(status) = error.downcast_ref::<Status>() {
        if json {
            eprintln!("{}", status_json(status));
            return FAILED;
        }
        // The input concerned, if the command gave it.
        let context = Some(error.to_string()).filter(|text| *text != status.to_string());
        let about = context.map(|text| format!("{text}: ")).unwrap_or_default();
        (FAILED, format!("{about}{}", describe(status)), hint(status))
    } else if let Some(unreachable) = error.downcast_ref::<Unreachable>() {
        let hint = "start one with `visage serve`, or name another with --server or VISAGE_SERVER";
        (UNREACHABLE, format!("{unreachable} ({})", chain(&unreachable.source)), Some(hint))
    } else if let Some(usage) = error.downcast_ref::<Usage>() {
        (USAGE, usage.to_string(), Some("see --help"))
    } else {
        (FAILED, chain(error), None)
    };
    if json {
        eprintln!("{}", json!({ "error": { "message": message, "hint": hint } }));
    } else {
        eprintln!("error: {message}");
        hint.iter().for_each(|hint| eprintln!("  {hint}"));
    }
    code
}

/// Formats a failed item of a stream in one line.
pub(super) fn one_line(status: &crate::proto::rpc::Status) -> String {
    format!("{}: {}", reason_of(status), status.message)
}

/// Returns the machine-readable reason of a stream's failed item, or its code if it has none.
#[must_use]
pub fn reason_of(status: &crate::proto::rpc::Status) -> String {
    let reason = status.details.iter().find_map(|any| {
        let info = any.type_url.ends_with("google.rpc.ErrorInfo");
        info.then(|| prost::Message::decode(any.value.as_slice()).ok())
            .flatten()
            .map(|info: crate::proto::rpc::ErrorInfo| info.reason)
    });
    reason.unwrap_or_else(|| format!("{:?}", tonic::Code::from(status.code)))
}

/// Returns true if this side timed out: the transport reports that as cancelled.
fn timed_out(status: &Status) -> bool {
    status.code() == tonic::Code::Cancelled && status.message() == "Timeout expired"
}

/// Formats code, reason and message without repetition.
fn describe(status: &Status) -> String {
    if timed_out(status) {
        return "DEADLINE_EXCEEDED: no answer within --timeout".to_owned();
    }
    let (code, reason) = (code_name(status), reason(status));
    if reason.is_empty() || reason == code {
        format!("{code}: {}", status.message())
    } else {
        format!("{code} {reason}: {}", status.message())
    }
}

/// Formats an error with its causes, except those that its message already contains.
fn chain(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.ends_with(&cause) {
            text.push_str(&format!(": {cause}"));
        }
    }
    text
}

fn reason(status: &Status) -> String {
    status.get_details_error_info().map(|info| info.reason).unwrap_or_default()
}

/// Formats a code as in the gRPC documentation: `NOT_FOUND`.
fn code_name(status: &Status) -> String {
    let camel = format!("{:?}", status.code());
    let mut name = String::new();
    for (i, c) in camel.char_indices() {
        if i > 0 && c.is_uppercase() {
            name.push('_');
        }
        name.push(c.to_ascii_uppercase());
    }
    name
}

fn hint(status: &Status) -> Option<&'static str> {
    if timed_out(status) {
        return Some("a longer --timeout gives it more time");
    }
    Some(match reason(status).as_str() {
        "MODEL_NOT_FOUND" => "`visage models list` shows the models",
        "MODEL_VERSION_NOT_FOUND" | "MODEL_ALIAS_NOT_FOUND" => "`visage models versions MODEL` shows the versions",
        "COLLECTION_NOT_FOUND" => {
            "`visage collections list` shows the collections; `visage collections create` creates one"
        }
        "FACE_NOT_FOUND" => "`visage faces list --collection NAME` shows the faces",
        "TRAINING_RUN_NOT_FOUND" | "OPERATION_NOT_FOUND" => "`visage runs list` shows the runs",
        "PATH_OUTSIDE_ROOTS" => "allow the folder where the server starts: `visage serve --training-root FOLDER`",
        "OVERLOADED" => "the server is busy: try again in a moment",
        "DEADLINE_EXCEEDED" | "DEADLINE_UNMEETABLE" => "a longer --timeout gives it more time",
        "MESSAGE_TOO_LARGE" => "a smaller file, or a larger server.max_message_bytes at the server",
        _ => return None,
    })
}

fn status_json(status: &Status) -> serde_json::Value {
    let info = status.get_details_error_info();
    json!({ "error": {
        "code": code_name(status),
        "message": status.message(),
        "reason": info.as_ref().map(|i| &i.reason),
        "metadata": info.as_ref().map(|i| &i.metadata),
    }})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_is_distinguished_from_a_cancellation() {
        let expired = Status::cancelled("Timeout expired");
        assert!(describe(&expired).starts_with("DEADLINE_EXCEEDED") && hint(&expired).is_some());
        assert!(describe(&Status::cancelled("stopped")).starts_with("CANCELLED"));
    }

    #[test]
    fn codes_are_spelled_as_in_the_papers() {
        assert_eq!(code_name(&Status::not_found("")), "NOT_FOUND");
        assert_eq!(code_name(&Status::ok("")), "OK");
        assert_eq!(code_name(&Status::resource_exhausted("")), "RESOURCE_EXHAUSTED");
    }
}
