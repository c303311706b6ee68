//! `visage similar`: faces of a collection that are like a photo, a face or a vector.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;

use super::{connection::Remote, names, output, photo};
use crate::proto::v1::{self, find_similar_request::Query};

/// Finds the faces of a collection that are most alike.
///
/// A score is the cosine of two embeddings: 1 for the same photo. It is not the probability that two photos show one
/// person.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  visage similar --collection policies portrait.jpg
  visage similar --collection policies --face policy-4711 -k 5 --min-score 0.8 --exact")]
pub(super) struct SimilarArgs {
    /// A photo of the face to look for; - is standard input.
    #[arg(value_name = "PHOTO", required_unless_present_any = ["face", "vector"], conflicts_with_all = ["face", "vector"])]
    photo: Option<PathBuf>,
    /// Where to look.
    #[arg(long, short)]
    collection: String,
    /// A face of the collection to look for; it is not among its own matches.
    #[arg(long, value_name = "ID", conflicts_with = "vector")]
    face: Option<String>,
    /// A file with the embedding to look for, a JSON array of numbers.
    #[arg(long, value_name = "FILE")]
    vector: Option<PathBuf>,
    /// The most matches.
    #[arg(short, default_value_t = 10)]
    k: i32,
    /// Leaves out what scores less, -1 to 1.
    #[arg(long, allow_negative_numbers = true)]
    min_score: Option<f32>,
    /// Compares with every face, however long that takes.
    #[arg(long)]
    exact: bool,
    #[command(flatten)]
    pub(super) remote: Remote,
}

/// Runs the command.
pub(super) async fn run(args: SimilarArgs) -> anyhow::Result<bool> {
    let collection = names::collection(&args.collection);
    let query = match (&args.photo, &args.face, &args.vector) {
        (Some(photo), ..) => Query::Image(photo::read(photo).await?),
        (_, Some(face), _) if face.contains('/') => Query::Face(names::face(face)),
        (_, Some(face), _) => Query::Face(format!("{collection}/faces/{face}")),
        (.., Some(file)) => {
            let text = tokio::fs::read_to_string(file).await.with_context(|| file.display().to_string())?;
            let values = serde_json::from_str(&text)
                .with_context(|| format!("{}: not a JSON array of numbers", file.display()))?;
            Query::Embedding(v1::Embedding { values, space: String::new() })
        }
        (None, None, None) => Query::Face(String::new()),
    };
    let request = v1::FindSimilarRequest {
        collection,
        query: Some(query),
        k: args.k,
        min_score: args.min_score,
        exact: args.exact,
        ..v1::FindSimilarRequest::default()
    };
    let mut server = args.remote.connect().await?;
    let found = server.visage.find_similar(args.remote.request(request)).await?.into_inner();
    output::show(args.remote.json, &found, |found| {
        if found.matches.is_empty() {
            return match args.min_score {
                Some(score) => format!("no face scores {score} or more"),
                None => "there is no face to compare with".to_owned(),
            };
        }
        let rows = found.matches.iter().map(|m| {
            let face = m.face.clone().unwrap_or_default();
            [format!("{:.4}", m.score), face.name, face.subject, labels(&face.labels)]
        });
        output::table(["score", "face", "subject", "labels"], rows).to_string()
    })?;
    Ok(true)
}

/// Labels in one cell: `a=1 b=2`.
pub(super) fn labels(labels: &std::collections::BTreeMap<String, String>) -> String {
    labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(" ")
}
