//! `visage collections`: collections of faces.

use clap::{Args, Subcommand};

use super::{connection::Remote, names, output, pages};
use crate::proto::v1;

/// Creates, shows and deletes collections of faces.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  visage collections create policies
  visage collections create policies-16 --space face/1#embedding16
  visage collections list")]
pub(super) struct CollectionsArgs {
    #[command(subcommand)]
    command: CollectionsCommand,
    #[command(flatten)]
    pub(super) remote: Remote,
}

#[derive(Subcommand, Debug)]
enum CollectionsCommand {
    /// Creates a collection. It belongs to one version's embedding space for good: faces of two spaces cannot be
    /// compared.
    Create {
        /// Its id.
        id: String,
        /// A version as face@champion or face/3, with #LAYER for a layer other than the default; without it, the
        /// embedding space paired with the server's default model.
        #[arg(long, default_value = "")]
        space: String,
        /// A name for people.
        #[arg(long, default_value = "")]
        display_name: String,
    },
    /// Lists the collections.
    List,
    /// Shows a collection.
    Show {
        /// Its id.
        id: String,
    },
    /// Deletes a collection and every face in it, for good.
    Delete {
        /// Its id.
        id: String,
    },
}

/// Runs the command.
pub(super) async fn run(args: CollectionsArgs) -> anyhow::Result<bool> {
    let remote = &args.remote;
    let mut server = remote.connect().await?;
    match args.command {
        CollectionsCommand::Create { id, space, display_name } => {
            let request = v1::CreateCollectionRequest {
                collection_id: id.trim_start_matches("collections/").to_owned(),
                embedding_space: names::space(&space),
                display_name,
                request_id: String::new(),
            };
            let made = server.faces.create_collection(remote.request(request)).await?.into_inner();
            output::show(remote.json, &made, |c| format!("{} created, in {}", c.name, c.embedding_space))?;
        }
        CollectionsCommand::List => {
            let all = pages::all(|page_token| {
                let request = v1::ListCollectionsRequest { page_token, ..v1::ListCollectionsRequest::default() };
                let (mut faces, request) = (server.faces.clone(), remote.request(request));
                async move {
                    let page = faces.list_collections(request).await?.into_inner();
                    Ok((page.collections, page.next_page_token))
                }
            })
            .await?;
            let row = |c: &v1::Collection| {
                [c.name.clone(), c.n_faces.to_string(), c.embedding_space.clone(), output::time(c.create_time.as_ref())]
            };
            let nothing = "no collection yet; `visage collections create` creates one";
            output::show_all(remote.json, &all, ["collection", "faces", "embedding space", "created"], row, nothing)?;
        }
        CollectionsCommand::Show { id } => {
            let request = v1::GetCollectionRequest { name: names::collection(&id) };
            let collection = server.faces.get_collection(remote.request(request)).await?.into_inner();
            output::show(remote.json, &collection, |c| {
                let rows = [
                    ("collection", c.name.clone()),
                    ("name", c.display_name.clone()),
                    ("faces", c.n_faces.to_string()),
                    ("embedding space", format!("{} ({})", c.embedding_space, c.dimensions)),
                    ("created", output::time(c.create_time.as_ref())),
                ];
                output::facts(rows.into_iter().map(|(name, value)| [name.to_owned(), value]))
            })?;
        }
        CollectionsCommand::Delete { id } => {
            let name = names::collection(&id);
            let request = v1::DeleteCollectionRequest { name: name.clone() };
            server.faces.delete_collection(remote.request(request)).await?;
            output::deleted(remote.json, &name)?;
        }
    }
    Ok(true)
}
