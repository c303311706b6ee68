//! The commands that open a data folder themselves, without a server: doctor, migrate, export, import.

use std::{
    fs::{self, File},
    io::{BufReader, BufWriter},
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, bail};
use clap::Args;
use serde_json::json;

use super::output::{self, print_line};
use crate::{
    app::store_settings,
    config::{Config, Flags},
    store::{self, Erased, Finding, SledSettings, SledStore, Store, StoreError},
};

/// The data folder, and the output format.
#[derive(Args, Clone, Debug)]
pub(super) struct Folder {
    /// The data folder [default: that of the configuration].
    #[arg(long, value_name = "FOLDER")]
    data_dir: Option<PathBuf>,
    /// Prints JSON.
    #[arg(long)]
    pub(super) json: bool,
}

/// Verifies every record, blob and reference of a data folder, and reports damage and its effects.
///
/// No server may run on the folder. Nothing is repaired. Exits with 1 when something is damaged.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  visage doctor --data-dir /srv/visage")]
pub(super) struct DoctorArgs {
    #[command(flatten)]
    pub(super) folder: Folder,
}

/// Migrates a data folder to the format of this version of visage; `visage serve` does the same when it starts.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  visage export before.visage && visage migrate")]
pub(super) struct MigrateArgs {
    /// Leaves out records that are damaged; without this, a damaged store is not migrated.
    #[arg(long)]
    leave_out_damage: bool,
    #[command(flatten)]
    pub(super) folder: Folder,
}

/// Writes a data folder's records into new files, without the space that is no longer used, and overwrites the old files.
///
/// No server may run on the folder, and the disk must have room for both. An interrupted compaction changes nothing.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  visage compact --data-dir /srv/visage")]
pub(super) struct CompactArgs {
    #[command(flatten)]
    pub(super) folder: Folder,
}

/// Puts the keys of all faces under a new store key, and overwrites those under the old one.
///
/// No server may run on the folder. Afterwards, set store.key_file to the new file and destroy the old one: copies of the
/// folder that were made before can be read only with the old key.
#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  visage rekey /run/secrets/new.key && export VISAGE_STORE__KEY_FILE=/run/secrets/new.key"
)]
pub(super) struct RekeyArgs {
    /// The file of the new store key, made if it is missing: 32 random bytes in base64.
    new_key_file: PathBuf,
    #[command(flatten)]
    pub(super) folder: Folder,
}

/// Writes everything in a data folder into one file with a checksum.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  visage export --data-dir /srv/visage backup.visage")]
pub(super) struct ExportArgs {
    /// The file; an existing file is not overwritten.
    file: PathBuf,
    #[command(flatten)]
    pub(super) folder: Folder,
}

/// Fills an empty data folder from an export. The whole file is verified before anything is written.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  visage import --data-dir /srv/restored backup.visage")]
pub(super) struct ImportArgs {
    /// A file from `visage export`.
    file: PathBuf,
    /// An erasure journal: a copy of the file `store/erasures` of the data folder that was exported. What was erased after
    /// the export is then left out.
    #[arg(long, value_name = "FILE")]
    erasures: Option<PathBuf>,
    #[command(flatten)]
    pub(super) folder: Folder,
}

/// The store of a data folder, and the size of its cache.
struct StoreFolder {
    dir: PathBuf,
    settings: SledSettings,
    json: bool,
}

impl Folder {
    fn store_folder(&self, config: Option<&Path>) -> anyhow::Result<StoreFolder> {
        let config = Config::load(config, Flags::default().with_path("data_dir", self.data_dir.as_deref()))?.config;
        let settings = store_settings(&config);
        Ok(StoreFolder { dir: config.data_dir.join("store"), settings, json: self.json })
    }
}

impl StoreFolder {
    /// Opens an existing store. A folder without a store is an error, because its name is probably wrong.
    fn existing(&self) -> anyhow::Result<Arc<dyn Store>> {
        Ok(Arc::new(SledStore::open(self.existing_dir()?, &self.settings)?))
    }

    fn existing_dir(&self) -> anyhow::Result<&Path> {
        if !self.dir.is_dir() {
            bail!("there is no store in {}; --data-dir names the data folder", self.dir.display());
        }
        Ok(&self.dir)
    }
}

/// Verifies; returns false when something is damaged.
pub(super) fn doctor(args: &DoctorArgs, config: Option<&Path>) -> anyhow::Result<bool> {
    let store_folder = args.folder.store_folder(config)?;
    let store: Arc<dyn Store> =
        Arc::new(SledStore::open_to_examine(store_folder.existing_dir()?, &store_folder.settings)?);
    let format = match store::format(&*store) {
        Ok(format) => Ok(format),
        Err(StoreError::Corrupt { what, affects }) => Err(Finding { what, affects }),
        Err(error) => return Err(error.into()),
    };
    let progress = output::bar(0, "examining");
    let mut report = store::examine(&store, |done, total| {
        progress.set_length(total);
        progress.set_position(done);
    });
    let format = match format {
        Ok(format) => Some(format),
        Err(finding) => {
            if !report.findings.contains(&finding) {
                report.findings.insert(0, finding);
            }
            None
        }
    };
    progress.finish_and_clear();
    let n_entries: u64 = report.entries.values().sum();
    if store_folder.json {
        let findings: Vec<_> =
            report.findings.iter().map(|f| json!({ "what": f.what, "affects": f.affects })).collect();
        print_line!(
            "{}",
            json!({
                "format": format,
                "entries": report.entries,
                "blobs": report.n_blobs,
                "unfinished_blobs": report.n_unfinished_blobs,
                "leftover_rows": report.n_leftover_rows,
                "findings": findings,
            })
        )?;
    } else {
        for finding in &report.findings {
            print_line!("damaged: {}\n  affects: {}", finding.what, finding.affects)?;
        }
        let n = report.findings.len();
        print_line!(
            "{n_entries} records and {} blobs of format {} examined: {}",
            report.n_blobs,
            format.map_or_else(|| "unknown".to_owned(), |format| format.to_string()),
            if n == 0 { "no damage".to_owned() } else { format!("{n} findings") }
        )?;
        if report.n_unfinished_blobs > 0 {
            print_line!("{} unfinished blobs: the next start deletes them", report.n_unfinished_blobs)?;
        }
        if report.n_leftover_rows > 0 {
            print_line!("{} rows of deleted collections: a server removes them", report.n_leftover_rows)?;
        }
        if n > 0 {
            print_line!("To restore an export from before the damage: visage import --data-dir NEW EXPORT")?;
        }
    }
    Ok(report.findings.is_empty())
}

/// Migrates the store.
pub(super) fn migrate(args: &MigrateArgs, config: Option<&Path>) -> anyhow::Result<bool> {
    let store_folder = args.folder.store_folder(config)?;
    let progress = output::bar(0, "migrating");
    let migrated =
        store::migrate(store_folder.existing_dir()?, &store_folder.settings, args.leave_out_damage, |done, total| {
            progress.set_length(total);
            progress.set_position(done);
        })?;
    progress.finish_and_clear();
    if store_folder.json {
        print_line!("{}", json!({ "from": migrated.from, "to": migrated.to, "applied": migrated.applied }))?;
    } else if migrated.applied.is_empty() {
        print_line!("the store has format {}, the newest: nothing to do", migrated.to)?;
    } else {
        print_line!("from format {} to {}: {}", migrated.from, migrated.to, migrated.applied.join(", "))?;
    }
    Ok(true)
}

/// Compacts the store.
pub(super) fn compact(args: &CompactArgs, config: Option<&Path>) -> anyhow::Result<bool> {
    let store_folder = args.folder.store_folder(config)?;
    let progress = output::bar(0, "compacting");
    let done = store::compact(store_folder.existing_dir()?, &store_folder.settings, |done, total| {
        progress.set_length(total);
        progress.set_position(done);
    })?;
    progress.finish_and_clear();
    if store_folder.json {
        let report =
            json!({ "rows": done.n_rows, "bytes_before": done.n_bytes_before, "bytes_after": done.n_bytes_after });
        print_line!("{report}")?;
    } else {
        let mebibytes = |n_bytes: u64| n_bytes as f64 / f64::from(1 << 20);
        let (before, after) = (mebibytes(done.n_bytes_before), mebibytes(done.n_bytes_after));
        print_line!("{} rows: {before:.1} MiB before, {after:.1} MiB now", done.n_rows)?;
    }
    Ok(true)
}

/// Changes the store key.
pub(super) fn rekey(args: &RekeyArgs, config: Option<&Path>) -> anyhow::Result<bool> {
    let store_folder = args.folder.store_folder(config)?;
    let n_keys = store::change_store_key(store_folder.existing_dir()?, &store_folder.settings, &args.new_key_file)?;
    if store_folder.json {
        print_line!("{}", json!({ "keys": n_keys, "key_file": args.new_key_file }))?;
    } else {
        let file = args.new_key_file.display();
        print_line!(
            "{n_keys} keys are under the store key in {file}: set store.key_file to it, and destroy the old key"
        )?;
    }
    Ok(true)
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
    let n_records = store::export(&*store, BufWriter::new(partial.as_file_mut()), |n| progress.set_position(n))?;
    progress.finish_and_clear();
    partial.as_file().sync_all().with_context(named)?;
    partial.persist_noclobber(&args.file).with_context(named)?;
    let n_bytes = fs::metadata(&args.file).with_context(named)?.len();
    transferred(&store_folder, n_records, n_bytes, "exported to", &args.file)?;
    Ok(true)
}

/// Imports into an empty data folder.
pub(super) fn import(args: &ImportArgs, config: Option<&Path>) -> anyhow::Result<bool> {
    let store_folder = args.folder.store_folder(config)?;
    let named = || args.file.display().to_string();
    let open = || File::open(&args.file).map(BufReader::new).with_context(named);
    let progress = output::counter("records verified");
    store::verify_export(open()?, |n| progress.set_position(n)).with_context(named)?;
    progress.set_message("records imported");
    let erased = args.erasures.as_deref().map(Erased::read).transpose()?.unwrap_or_default();
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
        print_line!("What was erased after the export is back; to leave it out, import with --erasures")?;
    }
    Ok(true)
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
