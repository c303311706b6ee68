//! The commands that open a data folder themselves, without a server: doctor, migrate, compact, rekey.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::bail;
use clap::Args;
use serde_json::json;

use super::{
    erased::{self, ErasedArgs},
    output::{self, print_line},
};
use crate::{
    app::store_settings,
    config::{Config, Flags},
    store::{self, Finding, SledSettings, SledStore, Store, StoreError},
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
/// No server may run on the folder. Nothing is repaired. Exits with 1 when something is damaged. With --erased, looks for
/// what may be left of a deleted face instead, and exits with 1 when it finds something.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  visage doctor --data-dir /srv/visage
  visage doctor --erased collections/policies/faces/p-17 --subject P-4711 --photo portrait.jpg")]
pub(super) struct DoctorArgs {
    #[command(flatten)]
    pub(super) erased: ErasedArgs,
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
/// No server may run on the folder, and the disk must have room for both. An interrupted compaction loses nothing.
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

/// The store of a data folder, and the size of its cache.
pub(super) struct StoreFolder {
    pub(super) dir: PathBuf,
    pub(super) settings: SledSettings,
    pub(super) json: bool,
}

impl Folder {
    fn config(&self, config: Option<&Path>) -> anyhow::Result<Config> {
        Ok(Config::load(config, Flags::default().with_path("data_dir", self.data_dir.as_deref()))?.config)
    }

    pub(super) fn store_folder(&self, config: Option<&Path>) -> anyhow::Result<StoreFolder> {
        let config = self.config(config)?;
        let settings = store_settings(&config);
        Ok(StoreFolder { dir: config.data_dir.join("store"), settings, json: self.json })
    }
}

impl StoreFolder {
    /// Opens an existing store. A folder without a store is an error, because its name is probably wrong.
    pub(super) fn existing(&self) -> anyhow::Result<Arc<dyn Store>> {
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
    if args.erased.is_given() {
        return erased::look(&args.erased, &args.folder.config(config)?, args.folder.json);
    }
    let store_folder = args.folder.store_folder(config)?;
    let store: Arc<dyn Store> =
        Arc::new(SledStore::open_to_examine(store_folder.existing_dir()?, &store_folder.settings)?);
    let format = match store::format(&*store) {
        Ok(format) => Ok(format),
        Err(StoreError::Corrupt { what, affects }) => Err(Finding { what, affects }),
        Err(error) => return Err(error.into()),
    };
    if let Ok(found) = format
        && found != store::newest_format()
    {
        bail!("the store has format {found}; run visage migrate first, then visage doctor");
    }
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
