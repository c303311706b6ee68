//! The training roots, which are the folders in which callers may name files, and the path walk that enforces them.
//!
//! A path is followed component by component, links included. The walk never inspects anything outside the roots and
//! stops where it would leave them. So a caller cannot learn what exists elsewhere, whether by `..`, by an absolute
//! path or through a link.
//!
//! To replace a file by a link between the walk and the opening of the file, one must be able to write below a training
//! root. Such writers are trusted.

use std::{
    collections::VecDeque,
    ffi::OsString,
    fs, io,
    path::{Component, Path, PathBuf},
};

use crate::training::TrainingError;

/// The maximum number of links in a path, as on Linux.
const MAX_LINKS: usize = 40;

/// The configured training roots, checked to exist.
#[derive(Clone, Debug)]
pub(crate) struct Roots {
    roots: Vec<Root>,
}

#[derive(Clone, Debug)]
struct Root {
    /// Absolute, as configured and as callers write it.
    given: PathBuf,
    /// Resolved by the system, without links.
    canonical: PathBuf,
}

impl Roots {
    /// Checks that each root is a readable folder.
    ///
    /// # Errors
    /// [`TrainingError::RootUnusable`] naming the first root that is not.
    pub(crate) fn new(folders: impl IntoIterator<Item = impl Into<PathBuf>>) -> Result<Self, TrainingError> {
        let roots = folders
            .into_iter()
            .map(Into::into)
            .map(|path| Root::new(&path).map_err(|source| TrainingError::RootUnusable { path, source }))
            .collect::<Result<_, _>>()?;
        Ok(Self { roots })
    }

    /// The folders without links, for a process that must use the same ones.
    #[must_use]
    pub(crate) fn paths(&self) -> Vec<PathBuf> {
        self.roots.iter().map(|root| root.canonical.clone()).collect()
    }

    /// Returns the file or folder that a caller's path names, without links. A relative path is tried below each root
    /// in order. `field` is the path's place in the request, for the error.
    ///
    /// # Errors
    /// [`TrainingError::PathOutsideRoots`] when it leads outside every root, whether or not it exists,
    /// [`TrainingError::FileNotFound`] when it does not exist inside, and [`TrainingError::FieldInvalid`] when it is
    /// empty.
    pub(crate) fn resolve(&self, field: &str, path: &str) -> Result<PathBuf, TrainingError> {
        if path.is_empty() {
            return Err(TrainingError::field(field, "must be given"));
        }
        let (field, text) = (field.to_owned(), path.to_owned());
        self.find(Path::new(path)).map_err(|refusal| match refusal {
            Refusal::Outside => TrainingError::PathOutsideRoots { field, path: text },
            Refusal::Missing => TrainingError::FileNotFound { field, path: text },
        })
    }

    fn find(&self, path: &Path) -> Result<PathBuf, Refusal> {
        if path.is_absolute() {
            return self.walk_absolute(path);
        }
        let mut worst = Refusal::Outside;
        for (root_idx, root) in self.roots.iter().enumerate() {
            match self.walk(root.canonical.clone(), path) {
                Ok(found) => return Ok(found),
                Err(refusal) if root_idx == 0 => worst = refusal,
                Err(Refusal::Outside) => worst = Refusal::Outside,
                Err(Refusal::Missing) => {}
            }
        }
        Err(worst)
    }

    /// Resolves like [`Roots::resolve`], but a relative path starts from `folder`, which this object resolved before.
    /// For the many files of a table or folder: inspects only the components that the path adds.
    pub(crate) fn resolve_from(&self, folder: &Path, path: &str) -> Result<PathBuf, Refusal> {
        if !self.contains(folder) {
            Err(Refusal::Outside)
        } else if path.is_empty() {
            Err(Refusal::Missing)
        } else if Path::new(path).is_absolute() {
            self.walk_absolute(Path::new(path))
        } else {
            self.walk(folder.to_owned(), Path::new(path))
        }
    }

    /// Returns true if a path without links lies in a root.
    fn contains(&self, canonical: &Path) -> bool {
        self.roots.iter().any(|root| canonical.starts_with(&root.canonical))
    }

    fn walk_absolute(&self, path: &Path) -> Result<PathBuf, Refusal> {
        let (root, rest) = self.strip(path).ok_or(Refusal::Outside)?;
        self.walk(root, &rest)
    }

    /// Returns the root that an absolute path's text starts with, and the rest.
    fn strip(&self, path: &Path) -> Option<(PathBuf, PathBuf)> {
        self.roots.iter().find_map(|root| {
            let rest = path.strip_prefix(&root.given).or_else(|_| path.strip_prefix(&root.canonical)).ok()?;
            Some((root.canonical.clone(), rest.to_owned()))
        })
    }

    /// Follows `path` from `at`. At every step, `at` lies in a root and has no links.
    fn walk(&self, mut at: PathBuf, path: &Path) -> Result<PathBuf, Refusal> {
        let mut left = names(path);
        let mut n_links = 0;
        while let Some(name) = left.pop_front() {
            if name == ".." {
                at.pop();
                if !self.contains(&at) {
                    return Err(Refusal::Outside);
                }
                continue;
            }
            let next = at.join(&name);
            let kind = fs::symlink_metadata(&next).map_err(|_| Refusal::Missing)?.file_type();
            if kind.is_symlink() {
                n_links += 1;
                if n_links > MAX_LINKS {
                    return Err(Refusal::Missing);
                }
                let target = fs::read_link(&next).map_err(|_| Refusal::Missing)?;
                let mut through = if target.is_absolute() {
                    let (root, rest) = self.strip(&target).ok_or(Refusal::Outside)?;
                    at = root;
                    names(&rest)
                } else {
                    names(&target)
                };
                through.append(&mut left);
                left = through;
            } else if kind.is_dir() || left.is_empty() {
                at = next;
            } else {
                return Err(Refusal::Missing);
            }
        }
        Ok(at)
    }
}

impl Root {
    fn new(path: &Path) -> io::Result<Self> {
        let root = Self { given: std::path::absolute(path)?, canonical: fs::canonicalize(path)? };
        fs::read_dir(&root.canonical)?;
        Ok(root)
    }
}

/// Why a walk stopped early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It would leave the roots.
    Outside,
    /// The path does not exist.
    Missing,
}

/// Splits a relative path into its names, `..` included.
fn names(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => None,
        })
        .collect()
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use std::os::unix::fs::symlink;

    use proptest::prelude::*;
    use tempfile::TempDir;

    use super::*;

    /// Creates `in/` as the root, beside it `out/secret` and, for `with_twin`, `out/twin`, and links in all directions.
    fn tree(with_twin: bool) -> (TempDir, Roots) {
        let tmp = tempfile::tempdir().unwrap();
        let base = fs::canonicalize(tmp.path()).unwrap();
        fs::create_dir_all(base.join("in/a/b")).unwrap();
        fs::create_dir_all(base.join("out/deep")).unwrap();
        fs::create_dir_all(base.join("in-twin")).unwrap();
        for file in ["in/f", "in/a/f", "in/a/b/f", "out/secret", "in-twin/f"] {
            fs::write(base.join(file), file).unwrap();
        }
        if with_twin {
            fs::write(base.join("out/twin"), "").unwrap();
        }
        symlink("../../out", base.join("in/a/relative_out")).unwrap();
        symlink(base.join("out"), base.join("in/absolute_out")).unwrap();
        symlink("../out/twin", base.join("in/to_twin")).unwrap();
        symlink("a/b", base.join("in/to_b")).unwrap();
        symlink(base.join("in/a"), base.join("in/to_a")).unwrap();
        symlink("to_b/f", base.join("in/chain")).unwrap();
        symlink("loop", base.join("in/loop")).unwrap();
        let roots = Roots::new(vec![base.join("in")]).unwrap();
        (tmp, roots)
    }

    fn is_outside(result: Result<PathBuf, TrainingError>) -> bool {
        matches!(result, Err(TrainingError::PathOutsideRoots { .. }))
    }

    fn is_missing(result: Result<PathBuf, TrainingError>) -> bool {
        matches!(result, Err(TrainingError::FileNotFound { .. }))
    }

    #[test]
    fn what_lies_inside_is_found_by_every_name() {
        let (tmp, roots) = tree(false);
        let root = fs::canonicalize(tmp.path()).unwrap().join("in");
        for path in ["f", "./f", "a/../f", "to_a/../f", "a/b/../../f"] {
            assert_eq!(roots.resolve("field", path).unwrap(), root.join("f"), "{path}");
        }
        for path in ["chain", "to_b/f", "to_a/b/f", "a//b/f"] {
            assert_eq!(roots.resolve("field", path).unwrap(), root.join("a/b/f"), "{path}");
        }
        let absolute = root.join("a/f");
        assert_eq!(roots.resolve("field", absolute.to_str().unwrap()).unwrap(), absolute);
        assert_eq!(roots.resolve("field", ".").unwrap(), root);
        assert_eq!(roots.resolve_from(&root.join("a"), "../f").unwrap(), root.join("f"));
    }

    #[test]
    fn what_leads_outside_is_refused_whether_or_not_it_exists() {
        let (tmp, roots) = tree(false);
        let base = fs::canonicalize(tmp.path()).unwrap();
        let absolute = |rest: &str| base.join(rest).to_str().unwrap().to_owned();
        for path in [
            "..",
            "../out/secret",
            "../out/nothing",
            "a/../../out/secret",
            "a/relative_out/secret",
            "a/relative_out/nothing",
            "absolute_out",
            "absolute_out/nothing",
            "to_twin",
            "/etc/passwd",
            "/etc/nothing",
            "/",
            &absolute("in-twin/f"),
            &absolute("in/../out/secret"),
            &absolute("out/nothing"),
        ] {
            assert!(is_outside(roots.resolve("field", path)), "{path}");
        }
        assert_eq!(roots.resolve_from(&base.join("out"), "secret"), Err(Refusal::Outside));
        assert_eq!(roots.resolve_from(&base.join("in/a"), "../../out/secret"), Err(Refusal::Outside));
    }

    #[test]
    fn what_is_missing_inside_is_not_found() {
        let (_tmp, roots) = tree(false);
        for path in ["nothing", "a/nothing", "f/x", "f/../f", "loop", "nothing/../../out", "nul\0"] {
            assert!(is_missing(roots.resolve("field", path)), "{path}");
        }
    }

    #[test]
    fn later_roots_are_tried_and_no_root_refuses_all() {
        let (tmp, _) = tree(false);
        let base = tmp.path();
        let roots = Roots::new(vec![base.join("in/a/b"), base.join("in-twin")]).unwrap();
        assert!(roots.resolve("field", "f").unwrap().ends_with("in/a/b/f"));
        fs::remove_file(base.join("in/a/b/f")).unwrap();
        assert!(roots.resolve("field", "f").unwrap().ends_with("in-twin/f"));
        assert!(is_outside(Roots::new(Vec::<PathBuf>::new()).unwrap().resolve("field", "f")));
        let error = Roots::new(vec![base.join("nothing")]).unwrap_err();
        assert!(matches!(error, TrainingError::RootUnusable { .. }), "{error}");
    }

    #[test]
    fn a_root_that_is_a_link_can_be_named_both_ways() {
        let (tmp, _) = tree(false);
        let alias = tmp.path().join("alias");
        symlink(tmp.path().join("in"), &alias).unwrap();
        let roots = Roots::new(vec![alias.clone()]).unwrap();
        let found = roots.resolve("field", alias.join("f").to_str().unwrap()).unwrap();
        assert_eq!(found, fs::canonicalize(tmp.path()).unwrap().join("in/f"));
        assert_eq!(roots.resolve("field", found.to_str().unwrap()).unwrap(), found);
    }

    fn any_path() -> impl Strategy<Value = String> {
        let names = [
            "a",
            "b",
            "f",
            "..",
            ".",
            "out",
            "secret",
            "twin",
            "in",
            "deep",
            "relative_out",
            "absolute_out",
            "to_twin",
            "to_a",
            "to_b",
            "chain",
            "loop",
            "nothing",
        ];
        proptest::collection::vec(proptest::sample::select(names.to_vec()), 1..8).prop_map(|names| names.join("/"))
    }

    proptest! {
        #[test]
        fn a_found_path_is_what_the_system_says_and_inside(path in any_path(), absolute in any::<bool>()) {
            let (tmp, roots) = tree(true);
            let root = fs::canonicalize(tmp.path()).unwrap().join("in");
            let given = if absolute { format!("{}/{path}", root.display()) } else { path.clone() };
            // Without the `.` components: the system refuses one after a file's name.
            let system = fs::canonicalize(root.join(&path).components().collect::<PathBuf>());
            match roots.resolve("field", &given) {
                Ok(found) => {
                    prop_assert!(found.starts_with(&root));
                    prop_assert_eq!(&found, &system.unwrap());
                }
                // A walk that leaves the root and returns is refused too, so `system` may be inside.
                Err(TrainingError::PathOutsideRoots { .. }) => {}
                Err(TrainingError::FileNotFound { .. }) => prop_assert!(system.is_err()),
                Err(other) => prop_assert!(false, "{}", other),
            }
        }

        #[test]
        fn the_error_does_not_reveal_what_lies_outside(path in any_path()) {
            let answer = |with_twin| {
                let (_tmp, roots) = tree(with_twin);
                roots.resolve("field", &path).map(|_| ()).map_err(|error| error.to_string())
            };
            prop_assert_eq!(answer(true), answer(false));
        }
    }
}
