//! The output of commands: tables and lines for people, the JSON form of the proto messages for machines.

use std::{sync::OnceLock, time::Duration};

use anyhow::Context;
use comfy_table::{ContentArrangement, Table, presets};
use indicatif::{HumanCount, ProgressBar, ProgressStyle};
use prost::{Message, Name};
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, SerializeOptions};

use crate::proto;

/// Prints a line; returns an error if the reader has gone, where `println!` would panic.
macro_rules! print_line {
    ($($text:tt)*) => {
        std::io::Write::write_fmt(&mut std::io::stdout(), format_args!("{}\n", format_args!($($text)*)))
    };
}
pub(super) use print_line;

/// Returns the contract's messages and those that errors carry.
fn descriptors() -> anyhow::Result<&'static DescriptorPool> {
    static POOL: OnceLock<DescriptorPool> = OnceLock::new();
    if let Some(pool) = POOL.get() {
        return Ok(pool);
    }
    let mut pool = DescriptorPool::decode(proto::FILE_DESCRIPTOR_SET)?;
    let details = prost_types::FileDescriptorSet::decode(tonic_types::pb::FILE_DESCRIPTOR_SET)?;
    // The same messages occur there under other file names.
    let is_known = |f: &prost_types::FileDescriptorProto| {
        let mut names = f.message_type.iter().map(|message| format!("{}.{}", f.package(), message.name()));
        pool.get_file_by_name(f.name()).is_some() || names.any(|name| pool.get_message_by_name(&name).is_some())
    };
    let missing: Vec<_> = details.file.into_iter().filter(|f| !is_known(f)).collect();
    pool.add_file_descriptor_protos(missing)?;
    Ok(POOL.get_or_init(|| pool))
}

fn descriptor<M: Name>() -> anyhow::Result<MessageDescriptor> {
    let name = M::full_name();
    descriptors()?.get_message_by_name(&name).with_context(|| format!("{name} is not in the contract"))
}

/// Formats a message in protobuf's JSON form, on one line. Fields without a value are left out, except single numbers
/// and booleans, as in `grpcurl`.
pub(super) fn to_json<M: Message + Name>(message: &M) -> anyhow::Result<String> {
    let dynamic = DynamicMessage::decode(descriptor::<M>()?, message.encode_to_vec().as_slice())?;
    let mut line = serde_json::Serializer::new(Vec::new());
    dynamic.serialize_with_options(&mut line, &SerializeOptions::new())?;
    Ok(String::from_utf8(line.into_inner())?)
}

/// Parses a message from its JSON form; an unknown field is an error.
pub(super) fn from_json<M: Message + Name + Default>(text: &str) -> anyhow::Result<M> {
    let mut reader = serde_json::Deserializer::from_str(text);
    let dynamic = DynamicMessage::deserialize(descriptor::<M>()?, &mut reader)?;
    reader.end()?;
    Ok(M::decode(dynamic.encode_to_vec().as_slice())?)
}

/// Prints a message as JSON, or as `text` formats it.
pub(super) fn show<M: Message + Name>(json: bool, message: &M, text: impl FnOnce(&M) -> String) -> anyhow::Result<()> {
    print_line!("{}", if json { to_json(message)? } else { text(message) })?;
    Ok(())
}

/// Prints a list as JSON lines or as a table; prints `nothing` when it is empty.
pub(super) fn show_all<M: Message + Name, const N: usize>(
    json: bool,
    messages: &[M],
    headers: [&str; N],
    row: impl Fn(&M) -> [String; N],
    nothing: &str,
) -> anyhow::Result<()> {
    if json {
        for message in messages {
            print_line!("{}", to_json(message)?)?;
        }
    } else if messages.is_empty() {
        print_line!("{nothing}")?;
    } else {
        print_line!("{}", table(headers, messages.iter().map(row)))?;
    }
    Ok(())
}

/// Lays out rows under headers, without lines.
pub(super) fn table<const N: usize>(headers: [&str; N], rows: impl Iterator<Item = [String; N]>) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic).set_header(headers);
    table.add_rows(rows);
    table
}

/// Lays out the names and values of one thing, one per line.
pub(super) fn facts(rows: impl Iterator<Item = [String; 2]>) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).add_rows(rows);
    table.to_string()
}

/// Formats a probability; never rounds to 0 or 100.
pub(super) fn percent(probability: f64) -> String {
    match probability {
        p if p > 0.999 => "> 99.9 %".to_owned(),
        p if p < 0.001 => "< 0.1 %".to_owned(),
        p => format!("{:.1} %", 100.0 * p),
    }
}

/// Formats a rate: `12 %`, or `1 in 5,000` when rare.
pub(super) fn rate(rate: f64) -> String {
    if rate >= 0.01 || rate <= 0.0 {
        return format!("{:.0} %", 100.0 * rate);
    }
    // Two digits are as precise as the figure.
    let one_in = 1.0 / rate;
    let unit = 10f64.powf(one_in.log10().floor() - 1.0);
    format!("1 in {}", HumanCount(((one_in / unit).round() * unit) as u64))
}

/// Formats a count: `1 face`, `2 faces`.
pub(super) fn counted(n: usize, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

/// Reports a deletion.
pub(super) fn deleted(json: bool, name: &str) -> anyhow::Result<()> {
    if json {
        print_line!("{}", serde_json::json!({ "deleted": name }))?;
    } else {
        print_line!("{name} is deleted")?;
    }
    Ok(())
}

/// Formats a time: `2026-03-01 12:00:00`, in UTC.
pub(super) fn time(time: Option<&prost_types::Timestamp>) -> String {
    let Some(time) = time else { return String::new() };
    let since = Duration::new(time.seconds.unsigned_abs(), 0);
    humantime::format_rfc3339_seconds(std::time::UNIX_EPOCH + since).to_string().replace('T', " ").replace('Z', "")
}

/// Removes the enum's prefix from a value's name: `SUCCEEDED`.
pub(super) fn enum_name<'a>(full: &'a str, prefix: &str) -> &'a str {
    full.strip_prefix(prefix).unwrap_or(full)
}

/// Shows a bar with the remaining time on standard error, if that is a terminal.
pub fn bar(length: u64, what: impl Into<String>) -> ProgressBar {
    let bar = ProgressBar::new(length).with_message(what.into());
    // The template is constant; if it were invalid, a plain bar would be shown.
    let style = ProgressStyle::with_template("{msg} {wide_bar} {human_pos}/{human_len}  {eta} left");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.enable_steady_tick(Duration::from_millis(500));
    bar
}

/// Shows a count whose end is unknown.
pub fn counter(what: impl Into<String>) -> ProgressBar {
    let bar = ProgressBar::new_spinner().with_message(what.into());
    let style = ProgressStyle::with_template("{spinner} {msg} {human_pos}  {elapsed}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::v1;

    #[test]
    fn a_message_comes_back_from_its_json() {
        let recipe = v1::Recipe {
            architecture: v1::Architecture::Resnet34.into(),
            stages: vec![v1::Stage { epochs: 2, image_size_px: 64, max_learning_rate: 0.002, freeze_body: true }],
            dropout: Some(0.0),
            seed: u64::MAX,
            ..v1::Recipe::default()
        };
        let json = to_json(&recipe).unwrap();
        assert!(json.contains(r#""architecture":"ARCHITECTURE_RESNET34""#), "{json}");
        assert_eq!(from_json::<v1::Recipe>(&json).unwrap(), recipe);
        let unknown = from_json::<v1::Recipe>(r#"{"epochs": 3}"#).unwrap_err().to_string();
        assert!(unknown.contains("epochs"), "{unknown}");
    }

    #[test]
    fn an_error_with_its_details_has_a_json_form() {
        use tonic_types::{ErrorDetails, StatusExt};
        let details = ErrorDetails::with_error_info("FACE_NOT_FOUND", "visage", []);
        let status = tonic::Status::with_error_details(tonic::Code::NotFound, "no face", details);
        let inner = proto::rpc::Status::decode(status.details()).unwrap();
        let answer = v1::StreamPredictResponse {
            correlation_id: "1".to_owned(),
            result: Some(v1::stream_predict_response::Result::Error(inner)),
        };
        assert!(to_json(&answer).unwrap().contains("FACE_NOT_FOUND"));
    }

    #[test]
    fn what_is_nearly_certain_is_not_called_certain() {
        let shown = [0.9999958, 0.9988, 0.328, 0.0002].map(percent);
        assert_eq!(shown, ["> 99.9 %", "99.9 %", "32.8 %", "< 0.1 %"]);
        let rates = [0.2, 0.013, 0.000_197, 0.000_02, 0.0].map(rate);
        assert_eq!(rates, ["20 %", "1 %", "1 in 5,100", "1 in 50,000", "0 %"]);
    }

    #[test]
    fn times_are_utc() {
        let at = prost_types::Timestamp { seconds: 0, nanos: 5 };
        assert_eq!(time(Some(&at)), "1970-01-01 00:00:00");
    }
}
