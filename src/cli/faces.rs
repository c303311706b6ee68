//! `visage faces`: the faces of a collection.

use anyhow::Context;
use clap::{Args, Subcommand};

use super::{
    connection::Remote,
    names,
    output::{self, print_line},
    pages, similar,
};
use crate::proto::v1;

/// Lists, shows and deletes faces.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  visage faces list --collection policies --json | jq -r .name
  visage faces delete policies/policy-4711
  visage faces delete --subject customer-17             # in every collection")]
pub(super) struct FacesArgs {
    #[command(subcommand)]
    command: FacesCommand,
    #[command(flatten)]
    pub(super) remote: Remote,
}

#[derive(Subcommand, Debug)]
enum FacesCommand {
    /// Lists a collection's faces by id.
    List {
        /// The collection.
        #[arg(long, short)]
        collection: String,
    },
    /// Shows a face.
    Show {
        /// COLLECTION/ID.
        face: String,
    },
    /// Deletes a face, or all faces of a subject, for good: no search finds them again.
    Delete {
        /// COLLECTION/ID.
        #[arg(required_unless_present = "subject", conflicts_with = "subject")]
        face: Option<String>,
        /// Deletes all faces that were enrolled with this subject.
        #[arg(long)]
        subject: Option<String>,
        /// Only the subject's faces in this collection [default: every collection].
        #[arg(long, short, requires = "subject")]
        collection: Option<String>,
    },
}

/// Runs the command.
pub(super) async fn run(args: FacesArgs) -> anyhow::Result<bool> {
    let remote = &args.remote;
    let mut server = remote.connect().await?;
    match args.command {
        FacesCommand::List { collection } => {
            let parent = names::collection(&collection);
            let all = pages::all(|page_token| {
                let request = v1::ListFacesRequest { parent: parent.clone(), page_token, page_size: 0 };
                let (mut faces, request) = (server.faces.clone(), remote.request(request));
                async move {
                    let page = faces.list_faces(request).await?.into_inner();
                    Ok((page.faces, page.next_page_token))
                }
            })
            .await?;
            let row = |f: &v1::Face| {
                [f.name.clone(), f.subject.clone(), similar::labels(&f.labels), output::time(f.create_time.as_ref())]
            };
            let nothing = "no face yet; `visage enroll` adds some";
            output::show_all(remote.json, &all, ["face", "subject", "labels", "enrolled"], row, nothing)?;
        }
        FacesCommand::Show { face } => {
            let request = v1::GetFaceRequest { name: names::face(&face) };
            let face = server.faces.get_face(remote.request(request)).await?.into_inner();
            output::show(remote.json, &face, |f| {
                let rows = [
                    ("face", f.name.clone()),
                    ("subject", f.subject.clone()),
                    ("labels", similar::labels(&f.labels)),
                    ("embedding space", f.embedding_space.clone()),
                    ("enrolled", output::time(f.create_time.as_ref())),
                ];
                output::facts(rows.into_iter().map(|(name, value)| [name.to_owned(), value]))
            })?;
        }
        FacesCommand::Delete { subject: Some(subject), collection, .. } => {
            let parent = collection.map_or_else(|| "collections/-".to_owned(), |name| names::collection(&name));
            let request = v1::DeleteFacesRequest { parent: parent.clone(), subject: subject.clone() };
            let n_deleted = server.faces.delete_faces(remote.request(request)).await?.into_inner().n_deleted;
            match n_deleted {
                _ if remote.json => print_line!("{}", serde_json::json!({ "n_deleted": n_deleted }))?,
                0 => print_line!("no face in {parent} has the subject {subject:?}")?,
                1 => print_line!("1 face of {subject:?} is deleted")?,
                n => print_line!("{n} faces of {subject:?} are deleted")?,
            }
        }
        FacesCommand::Delete { face, .. } => {
            let name = names::face(&face.context("COLLECTION/ID is missing")?);
            server.faces.delete_face(remote.request(v1::DeleteFaceRequest { name: name.clone() })).await?;
            output::deleted(remote.json, &name)?;
        }
    }
    Ok(true)
}
