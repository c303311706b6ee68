//! `visage export` and `visage import`: a whole data folder as one file.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, BufWriter, Read, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use clap::Args;
use serde_json::json;

use super::{
    data_folder::{Folder, StoreFolder},
    output::{self, print_line},
};
use crate::store::{self, ENCRYPTED_MAGIC, Erased, SledStore};

/// Writes everything in a data folder into one file with a checksum.
///
/// Whoever has the file can read the faces in it, unless it is encrypted.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  visage export --data-dir /srv/visage backup.visage
  visage export --recipient age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p backup.visage.age")]
pub(super) struct ExportArgs {
    /// The file; an existing file is not overwritten.
    file: PathBuf,
    /// Encrypts the file with age for this recipient (age1…, from `age-keygen`); may be given more than once.
    #[arg(long, value_name = "RECIPIENT")]
    recipient: Vec<age::x25519::Recipient>,
    #[command(flatten)]
    pub(super) folder: Folder,
}

/// Fills an empty data folder from an export. The whole file is verified before anything is written.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  visage import --data-dir /srv/restored backup.visage")]
pub(super) struct ImportArgs {
    /// A file from `visage export`.
    file: PathBuf,
    /// The file of the age identity that opens an encrypted export.
    #[arg(long, value_name = "FILE")]
    identity: Option<PathBuf>,
    /// An erasure journal: a copy of the file `store/erasures` of the data folder that was exported. What was erased after
    /// the export is then left out.
    #[arg(long, value_name = "FILE")]
    erasures: Option<PathBuf>,
    #[command(flatten)]
    pub(super) folder: Folder,
}

/// Exports into a file that gets its name only when complete.
pub(super) fn export(args: &ExportArgs, config: Option<&Path>) -> anyhow::Result<bool> {
    let store_folder = args.folder.store_folder(config)?;
    let named = || args.file.display().to_string();
    if args.file.exists() {
        bail!("{} already exists; choose another name", named());
    }
    let store = store_folder.existing()?;
    let folder = args.file.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
    let mut partial = tempfile::NamedTempFile::new_in(folder).with_context(|| folder.display().to_string())?;
    let progress = output::counter("records exported");
    let to = BufWriter::new(partial.as_file_mut());
    let n_records = if args.recipient.is_empty() {
        store::export(&*store, to, |n| progress.set_position(n))?
    } else {
        let recipients = args.recipient.iter().map(|recipient| recipient as &dyn age::Recipient);
        let mut to = age::Encryptor::with_recipients(recipients)?.wrap_output(to).with_context(named)?;
        let n_records = store::export(&*store, &mut to, |n| progress.set_position(n))?;
        to.finish().and_then(|mut to| to.flush()).with_context(named)?;
        n_records
    };
    progress.finish_and_clear();
    partial.as_file().sync_all().with_context(named)?;
    partial.persist_noclobber(&args.file).with_context(named)?;
    let n_bytes = fs::metadata(&args.file).with_context(named)?.len();
    transferred(&store_folder, n_records, n_bytes, "exported to", &args.file)?;
    let damage = store.state().borrow().damage.to_vec();
    for (table, what) in &damage {
        eprintln!("warning: {table:?}: {what}");
    }
    if !damage.is_empty() {
        eprintln!("warning: the export lacks what is lost: keep the earlier ones");
    }
    Ok(damage.is_empty())
}

/// Imports into an empty data folder.
pub(super) fn import(args: &ImportArgs, config: Option<&Path>) -> anyhow::Result<bool> {
    let store_folder = args.folder.store_folder(config)?;
    let named = || args.file.display().to_string();
    let open = || opened(args).with_context(named);
    let erased = args.erasures.as_deref().map(Erased::read).transpose()?.unwrap_or_default();
    let progress = output::counter("records verified");
    store::verify_export(open()?, |n| progress.set_position(n)).with_context(named)?;
    progress.set_message("records imported");
    let imported = {
        let store = SledStore::open(&store_folder.dir, &store_folder.settings)?;
        let imported = store::import(&store, open()?, &erased, |n| progress.set_position(n));
        imported.with_context(|| store_folder.dir.display().to_string())?
    };
    store::migrate(&store_folder.dir, &store_folder.settings, false, |_, _| {})?;
    progress.finish_and_clear();
    let n_bytes = fs::metadata(&args.file).with_context(named)?.len();
    let (n_records, n_left_out) = (imported.n_entries, imported.n_left_out);
    if store_folder.json {
        let report = json!({ "records": n_records, "bytes": n_bytes, "file": args.file, "left_out": n_left_out });
        print_line!("{report}")?;
        return Ok(true);
    }
    transferred(&store_folder, n_records, n_bytes, "imported from", &args.file)?;
    if args.erasures.is_some() {
        print_line!("{n_left_out} faces were left out, because they were erased after the export")?;
    } else {
        print_line!(
            "Faces that were deleted after the export, if any, are in the store again; to leave them out, import with --erasures"
        )?;
    }
    Ok(true)
}

/// Opens an export, and decrypts it if necessary.
fn opened(args: &ImportArgs) -> anyhow::Result<Box<dyn Read>> {
    let mut file = BufReader::new(File::open(&args.file)?);
    if !file.fill_buf()?.starts_with(ENCRYPTED_MAGIC) {
        return Ok(Box::new(file));
    }
    let Some(identity) = &args.identity else {
        bail!("the file is encrypted: --identity names the file of the age identity that opens it");
    };
    let named = || identity.display().to_string();
    let identities =
        age::IdentityFile::from_file(named()).with_context(named)?.into_identities().with_context(named)?;
    let decryptor = age::Decryptor::new_buffered(file)?;
    let opened = decryptor.decrypt(identities.iter().map(|identity| &**identity as &dyn age::Identity));
    Ok(Box::new(BufReader::new(opened.with_context(named)?)))
}

fn transferred(store_folder: &StoreFolder, n_records: u64, n_bytes: u64, how: &str, file: &Path) -> anyhow::Result<()> {
    if store_folder.json {
        print_line!("{}", json!({ "records": n_records, "bytes": n_bytes, "file": file }))?;
    } else {
        let mebibytes = n_bytes as f64 / f64::from(1 << 20);
        print_line!("{n_records} records ({mebibytes:.1} MiB) {how} {}", file.display())?;
    }
    Ok(())
}
