//! Looks for what may be left of an erased face: in every file of a folder, and in what the store can still read.

use std::{fs::File, io, os::unix::fs::FileExt, path::Path};

use aho_corasick::AhoCorasick;
use walkdir::WalkDir;

use super::report::Finding;
use crate::{
    proto::store::{CollectionRecord, FaceFacts, FaceIdRecord, FaceVector},
    store::{
        CollectionKey, Range, Store, StoreError, StoreExt, Table, Unsealed, decode_vector, export, keys, printable,
    },
};

/// Bytes of a vector that nothing else has by chance.
const WINDOW: usize = 16;

/// A window with fewer different bytes is no evidence: zeros are everywhere.
const MIN_DIFFERENT_BYTES: usize = 5;

/// Shorter texts are found by chance, so they are looked for only in the form in which a record has them.
const MIN_BARE_BYTES: usize = 6;

/// Two vectors of length one with this cosine are the same but for rounding.
const SAME_COSINE: f64 = 0.9999;

/// A deleted face, and the values to search for.
#[derive(Clone, Debug)]
pub(crate) struct ErasedFace {
    /// The id of its collection.
    pub collection: String,
    /// Its id.
    pub id: String,
    /// Its subject, if known.
    pub subject: Option<String>,
    /// Its vectors, if known: as it was sent, or computed from the photo.
    pub vectors: Vec<Vec<f32>>,
}

/// A byte sequence to search for, with its name in findings.
struct Pattern {
    bytes: Vec<u8>,
    name: &'static str,
}

impl ErasedFace {
    fn patterns(&self) -> Vec<Pattern> {
        let mut patterns = Vec::new();
        let mut add = |name, bytes: Vec<u8>| patterns.push(Pattern { bytes, name });
        add("its name", format!("collections/{}/faces/{}", self.collection, self.id).into_bytes());
        // As table keys of format 1 have it.
        add("its id", [self.collection.as_bytes(), &[0], self.id.as_bytes()].concat());
        for (text, field, name) in [(Some(&self.id), 1, "its id"), (self.subject.as_ref(), 3, "its subject")] {
            let Some(text) = text.filter(|text| !text.is_empty()) else { continue };
            if text.len() >= MIN_BARE_BYTES {
                add(name, text.clone().into_bytes());
            } else {
                // The tag and the length of a text in a record.
                add(name, [&[field << 3 | 2, text.len() as u8], text.as_bytes()].concat());
            }
        }
        for vector in self.normalised() {
            let bytes: Vec<u8> = vector.iter().flat_map(|v| v.to_le_bytes()).collect();
            for window in bytes.windows(WINDOW).filter(|window| is_evidence(window)) {
                add("a part of its vector", window.to_vec());
            }
        }
        patterns
    }

    /// The vectors as given, and of length one, as they are stored.
    fn normalised(&self) -> impl Iterator<Item = Vec<f32>> {
        self.vectors.iter().flat_map(|vector| {
            let norm = norm(vector);
            let unit = vector.iter().map(|v| (f64::from(*v) / norm) as f32).collect();
            [vector.clone(), unit]
        })
    }
}

/// Returns the length of a vector.
fn norm(vector: &[f32]) -> f64 {
    vector.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt()
}

fn is_evidence(window: &[u8]) -> bool {
    let mut bytes = window.to_vec();
    bytes.sort_unstable();
    bytes.dedup();
    bytes.len() >= MIN_DIFFERENT_BYTES
}

/// Searches every file of a folder, byte by byte; `progress` receives the bytes read and their total.
///
/// # Errors
/// When a file cannot be read.
pub(crate) fn find_in_files(
    dir: &Path,
    face: &ErasedFace,
    mut progress: impl FnMut(u64, u64),
) -> io::Result<Vec<Finding>> {
    let patterns = face.patterns();
    let automaton = AhoCorasick::new(patterns.iter().map(|pattern| &pattern.bytes)).map_err(io::Error::other)?;
    let mut files = Vec::new();
    let mut total = 0;
    for entry in WalkDir::new(dir).sort_by_file_name() {
        let entry = entry?;
        if entry.file_type().is_file() {
            total += entry.metadata()?.len();
            files.push(entry.into_path());
        }
    }
    let (mut findings, mut done) = (Vec::new(), 0);
    for path in files {
        let file = File::open(&path)?;
        let n_bytes = file.metadata()?.len();
        // The first of each kind in a file is enough.
        let mut found: Vec<&str> = Vec::new();
        if let Some(what) = unsearched(&path, &file)? {
            findings.push(Finding {
                what: format!("{} {what}", path.display()),
                affects: "what it holds cannot be searched here; delete it, or move it away if it may be kept"
                    .to_owned(),
            });
        }
        for hit in automaton.stream_find_iter(file) {
            let hit = hit?;
            let name = patterns[hit.pattern().as_usize()].name;
            if !found.contains(&name) {
                found.push(name);
                findings.push(Finding {
                    what: format!("{name} is in {} at byte {}", path.display(), hit.start()),
                    affects: "whoever has the file can read it".to_owned(),
                });
            }
            progress(done + hit.start() as u64, total);
        }
        done += n_bytes;
        progress(done, total);
    }
    Ok(findings)
}

/// Says what is in a file whose contents cannot be searched byte by byte.
fn unsearched(path: &Path, file: &File) -> io::Result<Option<&'static str>> {
    let mut start = [0; 32];
    let n_bytes = file.read_at(&mut start, 0)?;
    let start = &start[..n_bytes];
    Ok(if start.starts_with(export::MAGIC) || start.starts_with(export::ENCRYPTED_MAGIC) {
        Some("is an export")
    } else if start.starts_with(keys::MAGIC) && !path.ends_with("store/keys") {
        Some("is a copy of the keys")
    } else {
        None
    })
}

/// Searches what the store can read: every row, whole, and every sealed face.
///
/// # Errors
/// When the store fails.
pub(crate) fn find_in_store(store: &dyn Store, face: &ErasedFace) -> Result<Vec<Finding>, StoreError> {
    let patterns = face.patterns();
    let automaton = AhoCorasick::new(patterns.iter().map(|pattern| &pattern.bytes));
    let automaton =
        automaton.map_err(|error| StoreError::Io { path: "the search".into(), source: io::Error::other(error) })?;
    let mut findings = Vec::new();
    let mut find = |what: String| findings.push(Finding { what, affects: "the store still has it".to_owned() });
    for table in Table::ALL {
        for row in store.entries(table, Range::default()) {
            let (key, value) = row?;
            // The engine shortens keys in its files, so a search of the files can miss them.
            for part in [&key, &value] {
                if let Some(hit) = automaton.find(part) {
                    let name = patterns[hit.pattern().as_usize()].name;
                    find(format!("{name} is in the row {table:?}/{}", printable(&key)));
                }
            }
        }
    }
    for row in store.readable_records::<CollectionRecord>(Table::Collections, Range::default()) {
        let (_, record) = row?;
        let Some(key) = CollectionKey::of(store.keys(), &record)? else { continue };
        if record.id == face.collection
            && let Some(row) = store.get_record::<FaceIdRecord>(Table::FaceIds, &key.id_row(&face.id))?
        {
            find(format!("the id leads to the face number {} of collections/{}", row.number, record.id));
        }
        let range = Range { prefix: key.prefix(), ..Range::default() };
        for table in [Table::Faces, Table::FaceVectors] {
            for row in store.entries(table, range.clone()) {
                let (row, value) = row?;
                match in_face(store, &key, table, (&row, &value), face, &record) {
                    Ok(None) => {}
                    Ok(Some(what)) => find(what),
                    Err(error) => find(format!("a face cannot be read, so it was not searched: {error}")),
                }
            }
        }
    }
    Ok(findings)
}

/// Returns what a face has in common with the erased one.
fn in_face(
    store: &dyn Store,
    key: &CollectionKey,
    table: Table,
    (row, value): (&[u8], &[u8]),
    face: &ErasedFace,
    record: &CollectionRecord,
) -> Result<Option<String>, StoreError> {
    let same = match table {
        Table::Faces => {
            let (_, Unsealed::Whole(facts)) = key.unseal_row::<FaceFacts>(store.keys(), table, row, value)? else {
                return Ok(None);
            };
            if face.subject.as_ref().is_some_and(|subject| !subject.is_empty() && facts.subject == *subject) {
                (facts.id, "has its subject")
            } else {
                return Ok(None);
            }
        }
        _ => {
            let (_, Unsealed::Whole(other)) = key.unseal_row::<FaceVector>(store.keys(), table, row, value)? else {
                return Ok(None);
            };
            let Ok(vector) = decode_vector(&other.vector, record.dimensions as usize) else { return Ok(None) };
            let is_same = |own: &Vec<f32>| {
                let dot: f64 = own.iter().zip(&vector).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                own.len() == vector.len() && dot / norm(own) > SAME_COSINE
            };
            if face.vectors.iter().any(is_same) { (other.id, "has its vector") } else { return Ok(None) }
        }
    };
    Ok(Some(format!("the face collections/{}/faces/{} {}", record.id, same.0, same.1)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{
        MemoryStore,
        face_rows::for_tests::{store_collection, store_face},
    };

    fn erased() -> ErasedFace {
        let vector = (0..32).map(|i| (i as f32 + 0.7).sin()).collect();
        ErasedFace {
            collection: "people".to_owned(),
            id: "anna".to_owned(),
            subject: Some("policy-4711".to_owned()),
            vectors: vec![vector],
        }
    }

    #[test]
    fn an_export_and_a_copy_of_the_keys_are_no_clean_folder() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("store")).unwrap();
        std::fs::write(dir.path().join("store").join("keys"), b"VISAGEK1 and so on").unwrap();
        assert_eq!(find_in_files(dir.path(), &erased(), |_, _| {}).unwrap(), []);
        std::fs::write(dir.path().join("keys.bak"), b"VISAGEK1 and so on").unwrap();
        std::fs::write(dir.path().join("old.visage"), b"VISAGE\0E and so on").unwrap();
        let found = find_in_files(dir.path(), &erased(), |_, _| {}).unwrap();
        assert!(found[0].what.ends_with("keys.bak is a copy of the keys"), "{found:?}");
        assert!(found[1].what.ends_with("old.visage is an export"), "{found:?}");
    }

    #[test]
    fn a_planted_remnant_is_found_wherever_it_is() {
        let face = erased();
        let unit = face.normalised().nth(1).unwrap();
        let vector: Vec<u8> = unit.iter().flat_map(|v| v.to_le_bytes()).collect();
        let facts = FaceFacts { id: "anna".to_owned(), ..FaceFacts::default() };
        let cases: [(&str, Vec<u8>); 6] = [
            ("its name", b"xx collections/people/faces/anna".to_vec()),
            ("its id", b"people\0anna".to_vec()),
            ("its id", prost::Message::encode_to_vec(&facts)),
            ("its subject", b"...policy-4711...".to_vec()),
            ("a part of its vector", vector[5..21].to_vec()),
            ("a part of its vector", vector[100..].to_vec()),
        ];
        for (name, bytes) in cases {
            let dir = tempfile::tempdir().unwrap();
            std::fs::create_dir(dir.path().join("deep")).unwrap();
            std::fs::write(dir.path().join("innocent"), b"anna was here, and zeros: \0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0")
                .unwrap();
            assert_eq!(find_in_files(dir.path(), &face, |_, _| {}).unwrap(), []);
            // Across the border of what is read at once, too.
            let at = (64 << 10) - 7;
            std::fs::write(dir.path().join("deep/file"), [vec![7; at], bytes].concat()).unwrap();
            let found = find_in_files(dir.path(), &face, |_, _| {}).unwrap();
            assert!(
                found[0].what.starts_with(&format!("{name} is in")) && found[0].what.contains("deep/file"),
                "{found:?}"
            );
        }
    }

    #[test]
    fn what_the_store_can_still_read_is_found() {
        let store = MemoryStore::new();
        let face = erased();
        let record =
            CollectionRecord { id: "people".to_owned(), dimensions: 32, incarnation: 1, ..CollectionRecord::default() };
        let people = store_collection(&store, record);
        let unit = face.normalised().nth(1).unwrap();
        let mut other = vec![0.0; 32];
        other[0] = 1.0;
        let named = |id: &str, subject: &str| FaceFacts {
            id: id.to_owned(),
            subject: subject.to_owned(),
            ..FaceFacts::default()
        };
        store_face(&store, &people, 2, &named("bob", "policy-1"), &other);
        assert_eq!(find_in_store(&store, &face).unwrap(), []);
        store_face(&store, &people, 3, &named("carl", "policy-4711"), &other);
        store_face(&store, &people, 4, &named("dora", ""), &unit);
        store_face(&store, &people, 5, &named("anna", ""), &other);
        let found: Vec<_> = find_in_store(&store, &face).unwrap().into_iter().map(|found| found.what).collect();
        assert_eq!(
            found,
            [
                "the id leads to the face number 5 of collections/people",
                "the face collections/people/faces/carl has its subject",
                "the face collections/people/faces/dora has its vector",
            ]
        );
    }
}
