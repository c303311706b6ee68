//! What a source file names, read from its tokens: comments and strings do not count, code in macros does.

use std::{
    collections::{BTreeMap, BTreeSet},
    slice,
};

use proc_macro2::{Delimiter, Group, TokenStream, TokenTree};

/// A path below `src`, such as `nn/dlib/dat.rs`, and the file's text.
pub(super) type Source = (String, String);

/// A path that a file names.
#[derive(Clone, Debug)]
pub(super) struct Named {
    /// As written, such as `["super", "row", "Row"]`.
    segments: Vec<String>,
    /// The module it stands in, such as `["training", "data", "dataset"]`.
    within: Vec<String>,
    /// What an import calls it, where it is one.
    bound: Option<String>,
    /// The import hands the name on to others (`pub use`).
    is_door: bool,
}

/// A file that is not only for tests.
#[derive(Debug)]
pub(super) struct Code {
    pub(super) path: String,
    module: Vec<String>,
    named: Vec<Named>,
    /// The modules that it declares in files of their own.
    children: BTreeSet<String>,
    test_children: BTreeSet<String>,
    /// Every identifier outside imports, but a path's only at its start.
    idents: BTreeSet<String>,
    /// Identifiers with a type that is a string, outside `let`.
    pub(super) texts: BTreeSet<String>,
}

/// The files of a crate by their modules, without those that only tests see.
#[derive(Debug)]
pub(super) struct Crate {
    files: BTreeMap<Vec<String>, Code>,
}

impl Crate {
    pub(super) fn parse(sources: &[Source]) -> Self {
        let mut files: BTreeMap<_, _> =
            sources.iter().map(Code::parse).map(|code| (code.module.clone(), code)).collect();
        let tests: Vec<Vec<String>> = files
            .values()
            .flat_map(|code| code.test_children.iter().map(|child| [&code.module[..], slice::from_ref(child)].concat()))
            .collect();
        files.retain(|module, _| !tests.iter().any(|test| module.starts_with(test)));
        Self { files }
    }

    pub(super) fn files(&self) -> impl Iterator<Item = &Code> {
        self.files.values()
    }

    /// Other files of the crate whose definitions a file uses, and the names. Imports are followed to where a name is
    /// defined; one that is only handed on is no use.
    pub(super) fn uses<'a>(&'a self, code: &'a Code) -> BTreeMap<&'a str, BTreeSet<&'a str>> {
        let mut uses: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for named in &code.named {
            let handed_on = named.is_door && named.bound.as_ref().is_some_and(|bound| !code.idents.contains(bound));
            let home = code.absolute(named).and_then(|path| self.home(&path, 0));
            if let Some(home) = home.filter(|home| !handed_on && home.path != code.path) {
                uses.entry(&home.path).or_default().extend(named.segments.last().map(String::as_str));
            }
        }
        uses
    }

    /// The file that defines what a path from the crate's root names.
    fn home(&self, path: &[String], depth: usize) -> Option<&Code> {
        let n_modules = (0..=path.len()).rev().find(|&n| self.files.contains_key(&path[..n]))?;
        let file = &self.files[&path[..n_modules]];
        let import = path.get(n_modules).and_then(|name| file.import(name)).filter(|_| depth < 16);
        let follow = |import| Some([&file.absolute(import)?[..], &path[n_modules + 1..]].concat());
        import.and_then(follow).and_then(|path| self.home(&path, depth + 1)).or(Some(file))
    }
}

impl Code {
    fn parse((path, text): &Source) -> Self {
        let mut module: Vec<_> = path.trim_end_matches(".rs").split('/').map(str::to_owned).collect();
        if matches!(module.last().map(String::as_str), Some("mod" | "lib" | "main")) && path != "main.rs" {
            module.pop();
        }
        let mut code = Self {
            path: path.clone(),
            module: module.clone(),
            named: Vec::new(),
            children: BTreeSet::new(),
            test_children: BTreeSet::new(),
            idents: BTreeSet::new(),
            texts: BTreeSet::new(),
        };
        code.read(text.parse().unwrap_or_else(|error| panic!("{path}: {error}")), &module);
        code
    }

    /// The module at the top of the crate that the file belongs to.
    pub(super) fn top(&self) -> &str {
        self.module.first().map_or("lib", String::as_str)
    }

    /// The paths from the crate's root that the file names.
    pub(super) fn paths(&self) -> impl Iterator<Item = Vec<String>> + '_ {
        self.named.iter().filter_map(|named| self.absolute(named))
    }

    /// The crates that the file names, and modules that are called like one.
    pub(super) fn crates(&self) -> impl Iterator<Item = &str> {
        let outside = self.named.iter().filter(|named| self.absolute(named).is_none());
        outside.filter_map(|named| named.segments.first().map(String::as_str))
    }

    /// Whether the file names something of this name.
    pub(super) fn names(&self, name: &str) -> bool {
        self.idents.contains(name) || self.named.iter().any(|named| named.segments.iter().any(|part| part == name))
    }

    fn import(&self, name: &str) -> Option<&Named> {
        self.named.iter().find(|named| named.bound.as_deref() == Some(name))
    }

    /// A path from the crate's root; none for one that leads to another crate.
    fn absolute(&self, named: &Named) -> Option<Vec<String>> {
        let mut within = named.within.clone();
        let mut segments = &named.segments[..];
        while let [first, rest @ ..] = segments {
            match first.as_str() {
                "crate" => within.clear(),
                "self" => {}
                "super" => drop(within.pop()),
                name if segments.len() < named.segments.len() || self.children.contains(name) => break,
                name => {
                    let import = self.import(name).filter(|import| named.bound.is_none() && import.bound.is_some())?;
                    return Some([&self.absolute(import)?[..], rest].concat());
                }
            }
            segments = rest;
        }
        Some([&within[..], segments].concat())
    }

    fn read(&mut self, tokens: TokenStream, module: &[String]) {
        let tokens: Vec<_> = tokens.into_iter().collect();
        let mut is_for_tests = false;
        let mut at = 0;
        while let Some(token) = tokens.get(at) {
            at += 1;
            match token {
                TokenTree::Punct(punct) if punct.as_char() == '#' => {
                    if let Some(TokenTree::Group(attribute)) = tokens.get(at) {
                        is_for_tests |= attribute.stream().to_string().replace(' ', "") == "cfg(test)";
                        at += 1;
                    }
                }
                token if is_for_tests => {
                    if let [TokenTree::Ident(child), TokenTree::Punct(_), ..] = &tokens[at..]
                        && is_ident(token, "mod")
                    {
                        self.test_children.insert(child.to_string());
                    }
                    let ends = |token: &TokenTree| {
                        matches!(token, TokenTree::Group(body) if is_braced(body)) || is_punct(token, ';')
                    };
                    at += tokens[at..].iter().position(ends).map_or(0, |end| end + 1);
                    is_for_tests = false;
                }
                TokenTree::Group(group) => self.read(group.stream(), module),
                TokenTree::Ident(ident) if ident == "use" => {
                    let end =
                        tokens[at..].iter().position(|token| is_punct(token, ';')).map_or(tokens.len(), |n| at + n);
                    let is_door = tokens[..at - 1].iter().rev().take(2).any(|token| is_ident(token, "pub"));
                    self.import_all(
                        &tokens[at..end],
                        &Named { segments: Vec::new(), within: module.to_vec(), bound: None, is_door },
                    );
                    at = end + 1;
                }
                TokenTree::Ident(ident) if ident == "mod" => match &tokens[at..] {
                    [TokenTree::Ident(child), TokenTree::Group(body), ..] => {
                        self.read(body.stream(), &[module, &[child.to_string()]].concat());
                        at += 2;
                    }
                    [TokenTree::Ident(child), ..] => {
                        self.children.insert(child.to_string());
                        at += 1;
                    }
                    _ => {}
                },
                TokenTree::Ident(ident) => {
                    self.idents.insert(ident.to_string());
                    let is_let = tokens[..at - 1].iter().rev().take(2).any(|token| is_ident(token, "let"));
                    if !is_let && is_text(&tokens[at..]) {
                        self.texts.insert(ident.to_string());
                    }
                    let mut segments = vec![ident.to_string()];
                    while let [TokenTree::Punct(a), TokenTree::Punct(b), TokenTree::Ident(next), ..] = &tokens[at..]
                        && (a.as_char(), b.as_char()) == (':', ':')
                    {
                        segments.push(next.to_string());
                        at += 3;
                    }
                    if segments.len() > 1 {
                        self.named.push(Named { segments, within: module.to_vec(), bound: None, is_door: false });
                    }
                }
                TokenTree::Punct(_) | TokenTree::Literal(_) => {}
            }
        }
    }

    /// The leaves of an import's tree; `stem` is what stands before it.
    fn import_all(&mut self, tokens: &[TokenTree], stem: &Named) {
        for tree in tokens.split(|token| is_punct(token, ',')) {
            let mut leaf = stem.clone();
            let mut alias = None;
            for (at, token) in tree.iter().enumerate() {
                match token {
                    TokenTree::Group(group) => {
                        self.import_all(&group.stream().into_iter().collect::<Vec<_>>(), &leaf);
                        alias = Some(None);
                    }
                    TokenTree::Ident(ident) if ident == "as" => {
                        alias = Some(tree.get(at + 1).map(ToString::to_string));
                        break;
                    }
                    // A folder's own name, within its braces.
                    TokenTree::Ident(ident) if ident == "self" && !leaf.segments.is_empty() => {}
                    TokenTree::Ident(ident) => leaf.segments.push(ident.to_string()),
                    TokenTree::Punct(punct) if punct.as_char() == '*' => leaf.segments.push("*".to_owned()),
                    TokenTree::Punct(_) | TokenTree::Literal(_) => {}
                }
            }
            leaf.bound = alias.unwrap_or_else(|| leaf.segments.last().cloned());
            if !tree.is_empty() && leaf.bound.is_some() {
                self.named.push(leaf);
            }
        }
    }
}

/// Whether what follows a name is `: TYPE`, of nothing but a string.
fn is_text(after: &[TokenTree]) -> bool {
    let [colon, declared @ ..] = after else { return false };
    let end = |token: &TokenTree| [',', ';', '=', '|'].into_iter().any(|punct| is_punct(token, punct));
    let declared = declared.split(end).next().unwrap_or_default();
    let mut idents = declared.iter().filter_map(|token| match token {
        TokenTree::Ident(ident) => Some(ident.to_string()),
        _ => None,
    });
    let is_wrapper = |name: &str| ["String", "str", "Arc", "Box", "Option", "Cow", "a", "static"].contains(&name);
    let is_plain = declared.iter().all(|token| !matches!(token, TokenTree::Group(_) | TokenTree::Literal(_)));
    let types: Vec<_> = idents.by_ref().collect();
    is_punct(colon, ':')
        && is_plain
        && types.iter().all(|name| is_wrapper(name))
        && types.last().is_some_and(|name| name == "String" || name == "str")
}

fn is_punct(token: &TokenTree, expected: char) -> bool {
    matches!(token, TokenTree::Punct(punct) if punct.as_char() == expected)
}

fn is_ident(token: &TokenTree, expected: &str) -> bool {
    matches!(token, TokenTree::Ident(ident) if ident == expected)
}

fn is_braced(group: &Group) -> bool {
    group.delimiter() == Delimiter::Brace
}
