//! Files and folders of one folder that need each other in a circle.
//!
//! A folder's `mod.rs` is left out among its own files: it declares them, puts them together and has what they share.

use std::collections::{BTreeMap, BTreeSet};

use super::code::Crate;

/// Who needs whom within a folder, and the names.
type Graph<'a> = BTreeMap<&'a str, BTreeMap<&'a str, BTreeSet<&'a str>>>;

/// Circles as `FOLDER: MEMBERS`, each with what ties its members.
pub(super) fn circles(krate: &Crate) -> Vec<(String, String)> {
    let mut folders: BTreeMap<&str, Graph<'_>> = BTreeMap::new();
    for code in krate.files() {
        for (used, names) in krate.uses(code) {
            let (folder, from, to) = part(&code.path, used);
            if [from, to].contains(&"mod.rs") {
                continue;
            }
            folders.entry(folder).or_default().entry(from).or_default().entry(to).or_default().extend(names);
        }
    }
    folders.iter().flat_map(|(folder, graph)| circles_of(folder, graph)).collect()
}

/// The folder that two files share, and the files or folders in it that they belong to.
fn part<'a>(from: &'a str, to: &'a str) -> (&'a str, &'a str, &'a str) {
    let same = from.bytes().zip(to.bytes()).take_while(|(a, b)| a == b).count();
    let start = from[..same].rfind('/').map_or(0, |slash| slash + 1);
    let first = |path: &'a str| path[start..].split('/').next().unwrap_or_default();
    (&from[..start], first(from), first(to))
}

fn circles_of(folder: &str, graph: &Graph<'_>) -> Vec<(String, String)> {
    let reached: BTreeMap<_, _> = graph.keys().map(|&from| (from, reach(graph, from))).collect();
    let mut circles = BTreeMap::new();
    for (&member, far) in &reached {
        let ring: Vec<_> =
            far.iter().copied().filter(|other| reached.get(other).is_some_and(|b| b.contains(member))).collect();
        if ring.len() > 1 {
            circles.entry(format!("{folder}: {}", ring.join(", "))).or_insert_with(|| ties(graph, &ring));
        }
    }
    circles.into_iter().collect()
}

fn reach<'a>(graph: &Graph<'a>, from: &'a str) -> BTreeSet<&'a str> {
    let mut reached = BTreeSet::new();
    let mut left = vec![from];
    while let Some(at) = left.pop() {
        left.extend(graph.get(at).into_iter().flat_map(BTreeMap::keys).filter(|to| reached.insert(**to)));
    }
    reached
}

fn ties(graph: &Graph<'_>, ring: &[&str]) -> String {
    let arrow = |from: &&str| {
        let used = graph.get(from).into_iter().flatten().filter(|(to, _)| ring.contains(to));
        used.map(|(to, names)| format!("\n    {from} -> {to}: {names:?}")).collect::<String>()
    };
    ring.iter().map(arrow).collect()
}
