//! Resource names as people type them: `face` for `models/face`.

/// Expands a model, version or alias: `face`, `face@champion`, `face/2`, or the full name.
pub(super) fn model(name: &str) -> String {
    if name.is_empty() || name.starts_with("models/") {
        return name.to_owned();
    }
    match name.split_once('/') {
        Some((model, number)) if number.bytes().all(|b| b.is_ascii_digit()) => {
            format!("models/{model}/versions/{number}")
        }
        _ => format!("models/{name}"),
    }
}

/// Expands an embedding space: a name as in [`model`], with or without `#layer`.
pub(super) fn space(name: &str) -> String {
    match name.split_once('#') {
        Some((version, layer)) => format!("{}#{layer}", model(version)),
        None => model(name),
    }
}

/// Returns the model of a version's or an alias's full name.
pub(super) fn model_of(version: &str) -> &str {
    version.split_once("/versions/").or_else(|| version.split_once('@')).map_or(version, |(model, _)| model)
}

/// Expands a collection: `policies` or `collections/policies`.
pub(super) fn collection(name: &str) -> String {
    prefixed("collections/", name)
}

/// Expands a face: `policies/f1` or `collections/policies/faces/f1`.
pub(super) fn face(name: &str) -> String {
    match name.split_once('/') {
        Some((collection, id)) if !name.starts_with("collections/") => format!("collections/{collection}/faces/{id}"),
        _ => name.to_owned(),
    }
}

/// Expands a training run: its id, `trainingRuns/ID` or `operations/ID`.
pub(super) fn run(name: &str) -> String {
    prefixed("trainingRuns/", name.strip_prefix("operations/").unwrap_or(name))
}

/// Returns the operation of a training run.
#[must_use]
pub fn operation(run: &str) -> String {
    run.replacen("trainingRuns/", "operations/", 1)
}

fn prefixed(prefix: &str, name: &str) -> String {
    if name.starts_with(prefix) { name.to_owned() } else { format!("{prefix}{name}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_become_full_ones_and_full_ones_stay() {
        assert_eq!(model("face"), "models/face");
        assert_eq!(model("face@champion"), "models/face@champion");
        assert_eq!(model("face/2"), "models/face/versions/2");
        assert_eq!(model("models/face/versions/2"), "models/face/versions/2");
        assert_eq!(model(""), "");
        assert_eq!(space("face/1#embedding16"), "models/face/versions/1#embedding16");
        assert_eq!(model_of("models/face/versions/2"), "models/face");
        assert_eq!(model_of("models/face@champion"), "models/face");
        assert_eq!(face("policies/f1"), "collections/policies/faces/f1");
        assert_eq!(face("collections/policies/faces/f1"), "collections/policies/faces/f1");
        assert_eq!(run("operations/1"), "trainingRuns/1");
        assert_eq!(operation("trainingRuns/1"), "operations/1");
    }
}
