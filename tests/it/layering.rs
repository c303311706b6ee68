//! The architecture's arrows, held against the source.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// Every module of the crate, and the modules that it may name.
const ARROWS: &[(&str, &[&str])] = &[
    ("digest", &[]),
    ("error", &[]),
    ("mapped", &[]),
    ("names", &[]),
    ("proto", &[]),
    ("store", &["digest", "error", "mapped", "names", "proto"]),
    ("nn", &["digest", "error", "mapped", "names", "proto", "store"]),
    ("vision", &["error", "names", "proto", "store"]),
    ("registry", &["error", "names", "proto", "store", "nn", "vision"]),
    ("serving", &["error", "names", "proto", "store", "nn", "vision", "registry"]),
    ("training", &["digest", "error", "names", "proto", "store", "nn", "vision", "registry"]),
    ("similarity", &["error", "names", "proto", "store", "nn", "vision", "registry"]),
    ("config", &["error"]),
    ("telemetry", &["error", "config", "store"]),
    (
        "app",
        &[
            "digest",
            "error",
            "names",
            "proto",
            "store",
            "nn",
            "vision",
            "registry",
            "serving",
            "training",
            "similarity",
            "config",
            "telemetry",
        ],
    ),
    (
        "grpc",
        &[
            "error",
            "names",
            "proto",
            "store",
            "nn",
            "vision",
            "registry",
            "serving",
            "training",
            "similarity",
            "app",
            "config",
            "telemetry",
        ],
    ),
    (
        "cli",
        &[
            "error",
            "names",
            "proto",
            "store",
            "nn",
            "vision",
            "registry",
            "serving",
            "training",
            "similarity",
            "app",
            "grpc",
            "config",
            "telemetry",
        ],
    ),
];

/// Crates that only some places may name: crate, path prefixes.
const NAMES: &[(&str, &[&str])] = &[
    ("tch", &["nn/", "serving/torch_engine.rs", "training/"]),
    ("sled", &["store/sled.rs", "store/sled/"]),
    ("hnsw_rs", &["similarity/graph.rs"]),
    ("memmap2", &["mapped.rs"]),
    ("tonic", &["grpc/", "cli/", "proto.rs"]),
    ("tonic_types", &["grpc/", "cli/", "proto.rs"]),
    ("clap", &["cli/"]),
    ("indicatif", &["cli/"]),
];

fn sources() -> Vec<(String, String)> {
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
                files.push((name, code(&fs::read_to_string(&path).unwrap())));
            }
        }
    }
    files
}

/// The text without comments, so that documentation may name what code may not.
fn code(text: &str) -> String {
    text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// The modules that a text names directly behind a path such as `crate::`, also inside a braced import.
fn named_behind(path: &str, text: &str) -> BTreeSet<String> {
    let ident = |s: &str| s.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut found = BTreeSet::new();
    for (at, _) in text.match_indices(path) {
        let rest = &text[at + path.len()..];
        if !rest.starts_with('{') {
            found.insert(ident(rest));
            continue;
        }
        let (mut depth, mut at_name) = (0, false);
        for (i, c) in rest.char_indices() {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                break;
            }
            if depth == 1 && at_name && (c.is_alphabetic() || c == '_') {
                found.insert(ident(&rest[i..]));
                at_name = false;
            }
            at_name = at_name && c.is_whitespace() || depth == 1 && matches!(c, '{' | ',');
        }
    }
    found
}

fn names_crate(text: &str, name: &str) -> bool {
    let boundary = |c: Option<char>| c.is_none_or(|c| !(c.is_alphanumeric() || c == '_' || c == ':'));
    [format!("{name}::"), format!("use {name};")]
        .iter()
        .any(|needle| text.match_indices(needle.as_str()).any(|(at, _)| boundary(text[..at].chars().next_back())))
}

#[test]
fn arrows_point_one_way() {
    let mut wrong = Vec::new();
    for (file, text) in sources() {
        let module = file.split(['/', '.']).next().unwrap();
        if matches!(module, "lib" | "main") {
            continue;
        }
        let allowed = ARROWS.iter().find(|(m, _)| *m == module).unwrap_or_else(|| panic!("no rule for {module}")).1;
        for named in named_behind("crate::", &text) {
            let is_module = ARROWS.iter().any(|(m, _)| *m == named);
            if is_module && named != module && !allowed.contains(&named.as_str()) {
                wrong.push(format!("{file} names crate::{named}"));
            }
        }
    }
    assert!(wrong.is_empty(), "arrows against the design:\n{}", wrong.join("\n"));
}

#[test]
fn the_edge_knows_no_stored_records() {
    let edge = sources().into_iter().filter(|(file, _)| file.starts_with("grpc/"));
    let wrong = edge.filter(|(_, text)| named_behind("proto::", text).contains("store"));
    let files: Vec<_> = wrong.map(|(file, _)| file).collect();
    assert!(files.is_empty(), "stored records at the edge: {files:?}");
}

#[test]
fn every_use_case_takes_the_call() {
    // These assemble the application and keep it alive.
    let is_life = |file: &str| ["app/mod.rs", "app/health.rs"].contains(&file);
    let (mut n_found, mut wrong) = (0, Vec::new());
    for (file, text) in sources().into_iter().filter(|(file, _)| file.starts_with("app/") && !is_life(file)) {
        for signature in use_cases(&text) {
            n_found += 1;
            if !signature.contains("&Call") {
                wrong.push(format!("{file}: {signature}"));
            }
        }
    }
    assert!(n_found > 20, "only {n_found} use cases were found");
    assert!(wrong.is_empty(), "use cases that do not know who calls:\n{}", wrong.join("\n"));
}

/// The names and arguments of the functions that the edge can call.
fn use_cases(text: &str) -> impl Iterator<Item = &str> {
    ["pub async fn ", "pub(crate) async fn "]
        .into_iter()
        .flat_map(|start| text.split(start).skip(1))
        .map(|rest| rest.split(" -> ").next().unwrap_or_default())
}

#[test]
fn crates_are_named_only_where_they_belong() {
    let mut wrong = Vec::new();
    for (file, text) in sources() {
        for (name, places) in NAMES {
            if names_crate(&text, name) && !places.iter().any(|place| file.starts_with(place)) {
                wrong.push(format!("{file} names {name}"));
            }
        }
    }
    assert!(wrong.is_empty(), "crates out of place:\n{}", wrong.join("\n"));
}

#[test]
fn the_check_sees_what_it_should() {
    let text =
        "use crate::{\n    proto::{store::RunRecord, v1},\n    registry::Registry,\n};\nlet x = crate::grpc::run();";
    let named: Vec<_> = named_behind("crate::", text).into_iter().collect();
    assert_eq!(named, ["grpc", "proto", "registry"]);
    assert!(named_behind("proto::", text).contains("store"));
    assert!(names_crate("use tch::Tensor;", "tch"));
    assert!(!names_crate("use batch::Tensor; crate::tch::x", "tch"));
    let text =
        "pub(crate) async fn get(&self, _: &Call) -> A {} pub async fn list(&self) -> B {} async fn own() -> C {}";
    assert_eq!(use_cases(text).collect::<Vec<_>>(), ["list(&self)", "get(&self, _: &Call)"]);
}
