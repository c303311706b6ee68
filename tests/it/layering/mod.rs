//! The architecture's rules, held against the source: which module may name which, which crates belong where, no
//! circles within a folder, and no stored records or names of versions as text where parsed types belong.
//!
//! Each rule is a function over paths and texts. Its test shows that the tree keeps it, and that the same tree with one
//! line more is refused. What breaks a rule today is listed beside it; an entry that nothing needs any more is refused,
//! too, so the lists only shrink.

mod circles;
mod code;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use code::{Code, Crate, Source};

/// Every module of the crate, and exactly the modules that it names.
const ARROWS: &[(&str, &[&str])] = &[
    ("digest", &[]),
    ("error", &[]),
    ("mapped", &[]),
    ("names", &[]),
    ("proto", &[]),
    ("threads", &[]),
    ("wiping", &[]),
    ("config", &[]),
    ("store", &["digest", "error", "mapped", "proto", "threads"]),
    ("telemetry", &["config", "store"]),
    ("nn", &["digest", "error", "mapped"]),
    ("vision", &["error"]),
    ("similarity", &["error", "names", "proto", "store", "threads", "wiping"]),
    ("training", &["error", "nn", "proto", "vision"]),
    ("registry", &["digest", "error", "names", "nn", "proto", "store", "vision"]),
    ("serving", &["error", "names", "nn", "threads", "vision"]),
    (
        "app",
        &[
            "config",
            "digest",
            "error",
            "names",
            "nn",
            "proto",
            "registry",
            "serving",
            "similarity",
            "store",
            "training",
            "vision",
            "wiping",
        ],
    ),
    (
        "grpc",
        &["app", "config", "names", "nn", "proto", "registry", "serving", "similarity", "store", "training", "vision"],
    ),
    ("cli", &["app", "config", "grpc", "proto", "similarity", "store", "telemetry", "training", "vision"]),
];

/// Crates that only some places may name: crate, path prefixes.
const CRATES: &[(&str, &[&str])] = &[
    ("tch", &["nn/", "serving/engines/", "training/learn/", "training/process/worker.rs"]),
    ("libc", &["mapped.rs", "store/sled/", "wiping.rs"]),
    ("rustix", &["store/files.rs", "store/sled/", "threads.rs", "training/process/"]),
    ("sled", &["store/sled.rs", "store/sled/"]),
    ("hnsw_rs", &["similarity/graph.rs"]),
    ("tonic", &["grpc/", "cli/", "proto.rs"]),
    ("tonic_types", &["grpc/", "cli/", "proto.rs"]),
    ("clap", &["cli/"]),
    ("indicatif", &["cli/"]),
];

/// Circles that are still to be undone.
const CIRCLES: &[&str] = &[];

/// The stored records of what the registry parses.
const RECORDS: [&str; 3] = ["VersionRecord", "ModelRecord", "AliasRecord"];

/// Files outside `registry/` and `store/` that still name such a record.
const RECORD_FILES: &[&str] = &[];

/// Where versions have parsed names.
const BELOW_THE_EDGE: [&str; 3] = ["registry/", "serving/", "similarity/"];

/// Files there that still have a field or parameter with a version's name as text.
const VERSION_TEXT_FILES: &[&str] = &[];

#[test]
fn modules_name_each_other_as_the_table_says() {
    assert_kept(
        arrows,
        &[
            ("nn/error.rs", "use crate::store::Store;", "nn names store"),
            ("names.rs", "use crate::{\n    proto::{v1, store::RunRecord},\n};", "names names proto"),
            ("vision/error.rs", "fn f() { println!(\"{}\", crate::registry::X); }", "vision names registry"),
            ("error.rs", "mod inner { use super::super::error; use super::super::nn::NnError; }", "error names nn"),
        ],
    );
    let mut without_vision = sources();
    without_vision.retain(|(path, _)| !path.starts_with("vision/"));
    assert!(arrows(&without_vision).iter().any(|wrong| wrong == "vision does not name error, which its row allows"));
}

fn arrows(sources: &[Source]) -> Vec<String> {
    let krate = Crate::parse(sources);
    let mut named: BTreeSet<(&str, String)> = BTreeSet::new();
    for code in krate.files().filter(|code| !matches!(code.top(), "lib" | "main")) {
        let tops = code.paths().filter_map(|path| path.into_iter().next());
        let is_module = |top: &String| top != code.top() && ARROWS.iter().any(|(module, _)| module == top);
        named.extend(tops.filter(is_module).map(|top| (code.top(), top)));
    }
    let is_allowed = |from: &str, to: &str| ARROWS.iter().any(|(module, row)| *module == from && row.contains(&to));
    let wrong = named.iter().filter(|(from, to)| !is_allowed(from, to)).map(|(from, to)| format!("{from} names {to}"));
    let unused = ARROWS.iter().flat_map(|(from, row)| row.iter().map(move |to| (*from, *to)));
    let unused = unused.filter(|(from, to)| !named.contains(&(*from, (*to).to_owned())));
    wrong.chain(unused.map(|(from, to)| format!("{from} does not name {to}, which its row allows"))).collect()
}

#[test]
fn crates_are_named_only_where_they_belong() {
    assert_kept(
        crates,
        &[
            ("vision/error.rs", "use tch::Tensor;", "vision/error.rs names tch"),
            ("nn/error.rs", "fn f() { libc::kill(1, 9); }", "nn/error.rs names libc"),
            ("app/error.rs", "use {std::io, tonic::Status as S};", "app/error.rs names tonic"),
        ],
    );
}

fn crates(sources: &[Source]) -> Vec<String> {
    let krate = Crate::parse(sources);
    let mut wrong = BTreeSet::new();
    for code in krate.files() {
        let places = |name: &str| CRATES.iter().find(|(known, _)| *known == name).map(|(_, places)| *places);
        let is_out_of_place =
            |name: &&str| places(name).is_some_and(|places| !places.iter().any(|place| code.path.starts_with(place)));
        wrong.extend(code.crates().filter(is_out_of_place).map(|name| format!("{} names {name}", code.path)));
    }
    wrong.into_iter().collect()
}

#[test]
fn no_files_of_a_folder_need_each_other_in_a_circle() {
    assert_kept(
        new_circles,
        &[
            ("vision/jpeg/bits.rs", "use super::scan::walk;", "vision/jpeg/: bits.rs, "),
            ("training/data/row.rs", "use crate::training::{TrainingError, data::Dataset};", "training/data/: "),
            ("nn/network.rs", "fn f() { super::parse_dlib_dat(&[]); }", "nn/: dlib, "),
        ],
    );
}

fn new_circles(sources: &[Source]) -> Vec<String> {
    beyond(CIRCLES, circles::circles(&Crate::parse(sources)))
}

#[test]
fn stored_records_stay_in_the_registry_and_the_store() {
    assert_kept(
        records,
        &[
            ("vision/error.rs", "use crate::proto::store::{self, VersionRecord};", "vision/error.rs: VersionRecord"),
            ("nn/error.rs", "fn f() -> crate::proto::store::AliasRecord { todo!() }", "nn/error.rs: AliasRecord"),
        ],
    );
}

fn records(sources: &[Source]) -> Vec<String> {
    let found = |code: &Code| {
        let named = RECORDS.into_iter().filter(|record| code.names(record)).collect::<Vec<_>>().join(", ");
        (!named.is_empty()).then(|| (code.path.clone(), named))
    };
    let krate = Crate::parse(sources);
    let outside = krate.files().filter(|code| !matches!(code.top(), "registry" | "store" | "proto"));
    beyond(RECORD_FILES, outside.filter_map(found))
}

#[test]
fn names_of_versions_are_parsed_below_the_edge() {
    assert_kept(
        version_texts,
        &[
            ("similarity/error.rs", "struct Pinned<'a> { version: &'a str }", "similarity/error.rs: version"),
            ("registry/error.rs", "fn f(parent_version: Option<String>) {}", "registry/error.rs: parent_version"),
            ("similarity/graph.rs", "struct Pinned { version: Arc<str>, n: u32 }", "similarity/graph.rs: version"),
        ],
    );
}

fn version_texts(sources: &[Source]) -> Vec<String> {
    let found = |code: &Code| {
        let is_version = |name: &&String| *name == "version" || name.ends_with("_version");
        let texts = code.texts.iter().filter(is_version).cloned().collect::<Vec<_>>().join(", ");
        (!texts.is_empty()).then(|| (code.path.clone(), texts))
    };
    let krate = Crate::parse(sources);
    let below = krate.files().filter(|code| BELOW_THE_EDGE.iter().any(|folder| code.path.starts_with(folder)));
    beyond(VERSION_TEXT_FILES, below.filter_map(found))
}

#[test]
fn every_use_case_takes_the_call() {
    assert_kept(
        use_cases,
        &[
            ("app/predict.rs", "pub(crate) async fn f(model: &ModelId) -> A {}", "app/predict.rs: f(model: &ModelId)"),
            ("app/faces.rs", "pub async fn g(&self) {}", "app/faces.rs: g(&self)"),
        ],
    );
}

/// Functions that the edge can call and that do not take the call.
fn use_cases(sources: &[Source]) -> Vec<String> {
    // These assemble the application and keep it alive.
    let is_life = |path: &str| ["app/mod.rs", "app/health.rs"].contains(&path);
    let of_app = sources.iter().filter(|(path, _)| path.starts_with("app/") && !is_life(path));
    let signatures: Vec<_> = of_app
        .flat_map(|(path, text)| {
            let starts = ["pub async fn ", "pub(crate) async fn "].into_iter();
            let rests = starts.flat_map(move |start| text.split(start).skip(1));
            rests.map(move |rest| (path, rest.split([']', '{']).next().unwrap().split(" -> ").next().unwrap().trim()))
        })
        .collect();
    assert!(signatures.len() > 20, "only {} use cases are found", signatures.len());
    let without = signatures.into_iter().filter(|(_, signature)| !signature.contains("&Call"));
    without.map(|(path, signature)| format!("{path}: {signature}")).collect()
}

#[test]
fn comments_strings_and_tests_name_nothing() {
    let text = "//! crate::registry::X\n/// VersionRecord\nconst A: &str = \"crate::grpc::X\"; // tch::Tensor\n\
                #[cfg(test)]\n#[allow(x)]\nmod tests { use crate::cli::X; fn f(version: String) {} }";
    let mut sources = sources();
    add(&mut sources, "nn/error.rs", text);
    add(&mut sources, "similarity/error.rs", text);
    for rule in [arrows, crates, new_circles, records, version_texts] {
        assert_eq!(rule(&sources), Vec::<String>::new());
    }
}

/// The tree keeps a rule, and is refused with a line more in one of its files.
fn assert_kept(rule: fn(&[Source]) -> Vec<String>, changes: &[(&str, &str, &str)]) {
    let wrong = rule(&sources());
    assert!(wrong.is_empty(), "against the design:\n{}", wrong.join("\n"));
    for (path, line, complaint) in changes {
        let mut changed = sources();
        add(&mut changed, path, line);
        let wrong = rule(&changed);
        assert!(wrong.iter().any(|wrong| wrong.starts_with(complaint)), "{line} gives {wrong:?}");
    }
}

fn add(sources: &mut [Source], path: &str, line: &str) {
    let (_, text) = sources.iter_mut().find(|(known, _)| known == path).unwrap_or_else(|| panic!("no file {path}"));
    text.push_str(line);
}

/// What is found and not known, with its detail, and what is known and not found.
fn beyond(known: &[&str], found: impl IntoIterator<Item = (String, String)>) -> Vec<String> {
    let found: BTreeMap<_, _> = found.into_iter().collect();
    let gone = known.iter().filter(|entry| !found.contains_key(**entry)).map(|entry| format!("no longer so: {entry}"));
    let new = found.iter().filter(|(entry, _)| !known.contains(&entry.as_str()));
    new.map(|(entry, detail)| format!("{entry}: {detail}")).chain(gone).collect()
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    let mut folders: Vec<PathBuf> = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let name = path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
                files.push((name, fs::read_to_string(&path).unwrap()));
            }
        }
    }
    files
}
