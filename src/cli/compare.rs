//! `visage compare`: compares the faces of two photos.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;

use super::{
    connection::Remote,
    face_options::FaceChoice,
    names, output, photo,
    similar::evidence,
    wording::{notes, reasons},
};
use crate::proto::v1;

/// Reports how probably two photos show the same person. Nothing is stored.
///
/// The score is the cosine of the faces' embeddings. The probability assumes even odds beforehand that both are the
/// same person.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  visage compare passport.jpg selfie.jpg
  visage compare --faces single --json passport.jpg selfie.jpg | jq .identity")]
pub(super) struct CompareArgs {
    /// A JPEG, PNG or WebP file; - is standard input.
    #[arg(value_name = "PHOTO")]
    first: PathBuf,
    /// The other photo.
    #[arg(value_name = "PHOTO")]
    second: PathBuf,
    /// The embedding space, as in `collections create`; without it, the one paired with the server's default model.
    #[arg(long, default_value = "")]
    space: String,
    /// Which of each photo's faces is compared.
    #[arg(long, value_enum, default_value_t)]
    faces: FaceChoice,
    #[command(flatten)]
    pub(super) remote: Remote,
}

/// Runs the command; returns false when the photos could not be compared.
pub(super) async fn run(args: CompareArgs) -> anyhow::Result<bool> {
    let mut server = args.remote.connect().await?;
    let request = v1::CompareFacesRequest {
        first_image: photo::read(&args.first).await?,
        second_image: photo::read(&args.second).await?,
        embedding_space: names::space(&args.space),
        face_selection: v1::FaceSelection::from(args.faces).into(),
    };
    let both = || format!("{} and {}", args.first.display(), args.second.display());
    let compared = server.faces.compare_faces(args.remote.request(request)).await.with_context(both)?.into_inner();
    output::show(args.remote.json, &compared, text)?;
    Ok(compared.score.is_some())
}

fn text(compared: &v1::CompareFacesResponse) -> String {
    let mut lines = Vec::new();
    for (which, odd) in
        [("first", notes(compared.first_photo_notes())), ("second", notes(compared.second_photo_notes()))]
    {
        lines.extend(odd.map(|odd| format!("the {which} file is odd: {odd}")));
    }
    for (which, face) in [("first", &compared.first_face), ("second", &compared.second_face)] {
        if face.as_ref().is_some_and(|face| face.upside_down) {
            lines.push(format!("the {which} face is upside down, and was read rotated"));
        }
    }
    let Some(score) = compared.score else {
        lines.push(format!("no answer: {}", reasons(compared.abstention_reasons())));
        return lines.join("\n");
    };
    lines.push(format!("score {score:.4} in {}", compared.embedding_space));
    if let Some(identity) = &compared.identity {
        let (same, false_matches) = evidence(identity);
        lines.push(format!("same person: {same}, at even odds beforehand"));
        lines.push(format!("photos of different people score as much: {false_matches}"));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comparison_says_what_its_score_means() {
        let rate = v1::FalseMatchRate { rate: Some(0.0002), lower: 0.0001, upper: 0.0004, supported: true };
        let identity = v1::IdentityEvidence { same_person_probability: 0.97, false_match_rate: Some(rate) };
        let mut compared = v1::CompareFacesResponse {
            score: Some(0.95),
            identity: Some(identity),
            embedding_space: "models/d/versions/1#e".to_owned(),
            ..v1::CompareFacesResponse::default()
        };
        let shown = text(&compared);
        assert!(shown.contains("score 0.9500") && shown.contains("97.0 %") && shown.contains("1 in 5,000"), "{shown}");
        compared.score = None;
        compared.abstention_reasons = vec![v1::AbstentionReason::NoFace.into()];
        assert_eq!(text(&compared), "no answer: no face");
    }
}
