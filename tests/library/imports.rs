//! Which module imports which: no circle, and no folder that imports from one above it.
//!
//! What counts is every path to a module of the same crate, in a `use` or in the code. What does
//! not count: `mod` declarations, what is re-exported (an import of it counts as one of the module
//! that defines it), and code for tests.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::Path;

use syn::visit::{self, Visit};

/// The folders and files of `src`, each of which may import only what stands before it. Data flows
/// from the manifest to records, tokens, batches, the engine and the output; `run` leads it
/// through, and the command line is on top.
const ORDER: [&str; 33] = [
    "text",
    "digest",
    "folders",
    "interrupt",
    "threads",
    "jobs",
    "page_cache",
    "trace",
    "device",
    "records",
    "tokenize",
    "vectors",
    "layers",
    "pooling",
    "output",
    "settings",
    "manifest",
    "hub",
    "models",
    "engine",
    "batch",
    "report",
    "journal",
    "targets",
    "plot",
    "html_report",
    "run",
    "contacts",
    "virnucpro",
    "embedder",
    "verify",
    "cli",
    "main",
];

/// A module by its path in the crate: `output::npz`; the root is empty.
type Module = String;

/// What a crate's files say of each other.
#[derive(Default)]
struct Imports {
    modules: BTreeSet<Module>,
    /// Re-exported names: the module and the name, and where the name comes from.
    exports: HashMap<(Module, String), Vec<String>>,
    /// Each path in a module's code, from the crate's root.
    paths: Vec<(Module, Vec<String>)>,
}

impl Imports {
    /// Reads a module's file and those of its children.
    fn read(&mut self, folder: &Path, module: &[String]) {
        let name = module.join("::");
        let stem = folder.join(module.join("/"));
        let file = [
            stem.join("mod.rs"),
            stem.with_extension("rs"),
            stem.join("lib.rs"),
        ];
        let file = file
            .iter()
            .find(|file| file.is_file())
            .unwrap_or_else(|| panic!("no file of {name:?} in {}", folder.display()));
        let code = syn::parse_file(&fs::read_to_string(file).unwrap()).unwrap();
        self.modules.insert(name);
        let mut code_of_module = Code {
            module: module.to_vec(),
            imports: self,
            children: Vec::new(),
            words: BTreeSet::new(),
        };
        code_of_module.visit_file(&code);
        for child in code_of_module.finish() {
            self.read(folder, &[module, &[child]].concat());
        }
    }

    /// The module that a path from the root leads to, through whatever re-exports it.
    fn resolve(&self, path: &[String], depth: usize) -> Option<Module> {
        assert!(depth < 20, "{path:?} is re-exported in a circle");
        for length in (0..=path.len()).rev() {
            let module = path[..length].join("::");
            if !self.modules.contains(&module) {
                continue;
            }
            let Some(name) = path.get(length) else {
                return Some(module);
            };
            let Some(origin) = self.exports.get(&(module.clone(), name.clone())) else {
                return Some(module);
            };
            // From another crate, unless it begins in this one.
            let rest = [origin.as_slice(), &path[length + 1..]].concat();
            return match rest.split_first() {
                Some((first, rest)) if first == "crate" => self.resolve(rest, depth + 1),
                _ => None,
            };
        }
        None
    }

    /// What each module imports.
    fn graph(&self) -> BTreeMap<Module, BTreeSet<Module>> {
        let mut graph: BTreeMap<Module, BTreeSet<Module>> = BTreeMap::new();
        for module in &self.modules {
            graph.entry(module.clone()).or_default();
        }
        for (from, path) in &self.paths {
            if let Some(to) = self.resolve(path, 0)
                && to != *from
            {
                graph.entry(from.clone()).or_default().insert(to);
            }
        }
        graph
    }
}

/// Collects the paths of one module.
struct Code<'i> {
    module: Vec<String>,
    imports: &'i mut Imports,
    children: Vec<String>,
    /// Names that stand alone, as those that the module itself defines or imports do.
    words: BTreeSet<String>,
}

impl Code<'_> {
    /// The module's children. What it re-exports and uses too is an import.
    fn finish(self) -> Vec<String> {
        let module = self.module.join("::");
        let used = self.words.into_iter().filter_map(|word| {
            let origin = self.imports.exports.get(&(module.clone(), word))?;
            let (first, path) = origin.split_first()?;
            (first == "crate").then(|| path.to_vec())
        });
        let used: Vec<Vec<String>> = used.collect();
        let paths = used.into_iter().map(|path| (module.clone(), path));
        self.imports.paths.extend(paths);
        self.children
    }

    /// A path from the crate's root, with `crate` in front; `None` where it leads to another crate,
    /// or to what the module itself has.
    fn absolute(&self, path: &[String]) -> Option<Vec<String>> {
        let mut base: &[String] = &self.module;
        let mut rest = path;
        match path.first()?.as_str() {
            "crate" => (base, rest) = (&[], &path[1..]),
            "self" => rest = &path[1..],
            "super" => {
                while let Some((first, behind)) = rest.split_first()
                    && first == "super"
                {
                    base = &base[..base.len().checked_sub(1)?];
                    rest = behind;
                }
            }
            child if self.children.iter().any(|one| one == child) => {}
            _ => return None,
        }
        let path = [base, rest].concat();
        let names = path.into_iter().filter(|name| name != "self");
        Some(["crate".to_owned()].into_iter().chain(names).collect())
    }

    fn add(&mut self, path: &[String]) {
        if let Some(path) = self.absolute(path) {
            let module = self.module.join("::");
            self.imports.paths.push((module, path[1..].to_vec()));
        }
    }

    fn add_use(&mut self, tree: &syn::UseTree, before: &[String], is_export: bool) {
        let (name, shown) = match tree {
            syn::UseTree::Path(path) => {
                let before = [before, &[path.ident.to_string()]].concat();
                return self.add_use(&path.tree, &before, is_export);
            }
            syn::UseTree::Group(group) => {
                for tree in &group.items {
                    self.add_use(tree, before, is_export);
                }
                return;
            }
            syn::UseTree::Name(name) => (name.ident.to_string(), name.ident.to_string()),
            syn::UseTree::Rename(rename) => (rename.ident.to_string(), rename.rename.to_string()),
            syn::UseTree::Glob(_) => ("self".to_owned(), "*".to_owned()),
        };
        let path = [before, &[name]].concat();
        if is_export {
            let origin = self.absolute(&path).unwrap_or(path);
            let module = self.module.join("::");
            self.imports.exports.insert((module, shown), origin);
        } else {
            self.add(&path);
        }
    }
}

impl<'ast> Visit<'ast> for Code<'_> {
    fn visit_file(&mut self, file: &'ast syn::File) {
        // Children first: a path may begin with one before it is declared.
        for item in &file.items {
            if let syn::Item::Mod(item) = item
                && item.content.is_none()
                && !is_for_tests(&item.attrs)
            {
                self.children.push(item.ident.to_string());
            }
        }
        visit::visit_file(self, file);
    }

    fn visit_item(&mut self, item: &'ast syn::Item) {
        let attributes = match item {
            syn::Item::Fn(item) => &item.attrs,
            syn::Item::Impl(item) => &item.attrs,
            syn::Item::Mod(item) => &item.attrs,
            syn::Item::Use(item) => &item.attrs,
            _ => return visit::visit_item(self, item),
        };
        if !is_for_tests(attributes) {
            visit::visit_item(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        let is_export = !matches!(item.vis, syn::Visibility::Inherited);
        self.add_use(&item.tree, &[], is_export);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let names: Vec<String> = path
            .segments
            .iter()
            .map(|segment| segment.ident.to_string())
            .collect();
        match names.as_slice() {
            [word] => {
                self.words.insert(word.clone());
            }
            path => self.add(path),
        }
        visit::visit_path(self, path);
    }

    /// What stands in a macro is no code yet: paths are told by `crate`, `self` and `super`.
    fn visit_macro(&mut self, item: &'ast syn::Macro) {
        let tokens = item.tokens.to_string();
        let mut words = tokens.split_whitespace().peekable();
        while let Some(word) = words.next() {
            let word = word.trim_start_matches(|letter: char| !letter.is_alphanumeric());
            if !["crate", "self", "super"].contains(&word) {
                continue;
            }
            let mut path = vec![word.to_owned()];
            while words.next_if(|&next| next == "::").is_some() {
                let name = words.next().unwrap_or_default();
                let end = name.find(|letter: char| !letter.is_alphanumeric() && letter != '_');
                path.push(name[..end.unwrap_or(name.len())].to_owned());
            }
            if path.len() > 1 {
                self.add(&path);
            }
        }
        visit::visit_macro(self, item);
    }
}

fn is_for_tests(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute
                .parse_args::<syn::Path>()
                .is_ok_and(|path| path.is_ident("test"))
    })
}

/// The sets of modules that all lead to each other: Tarjan's strongly connected components.
fn circles(graph: &BTreeMap<Module, BTreeSet<Module>>) -> Vec<Vec<&str>> {
    struct Search<'g> {
        graph: &'g BTreeMap<Module, BTreeSet<Module>>,
        index: HashMap<&'g str, usize>,
        lowest: HashMap<&'g str, usize>,
        stack: Vec<&'g str>,
        found: Vec<Vec<&'g str>>,
    }
    impl<'g> Search<'g> {
        fn visit(&mut self, module: &'g str) {
            let index = self.index.len();
            self.index.insert(module, index);
            self.lowest.insert(module, index);
            self.stack.push(module);
            for next in &self.graph[module] {
                let next = next.as_str();
                if !self.index.contains_key(next) {
                    self.visit(next);
                    let lowest = self.lowest[next].min(self.lowest[module]);
                    self.lowest.insert(module, lowest);
                } else if self.stack.contains(&next) {
                    let lowest = self.index[next].min(self.lowest[module]);
                    self.lowest.insert(module, lowest);
                }
            }
            if self.lowest[module] == index {
                let start = self.stack.iter().position(|one| *one == module);
                let mut circle = self.stack.split_off(start.unwrap());
                circle.sort_unstable();
                if circle.len() > 1 {
                    self.found.push(circle);
                }
            }
        }
    }
    let mut search = Search {
        graph,
        index: HashMap::new(),
        lowest: HashMap::new(),
        stack: Vec::new(),
        found: Vec::new(),
    };
    for module in graph.keys() {
        if !search.index.contains_key(module.as_str()) {
            search.visit(module);
        }
    }
    search.found
}

fn graph(root: &str) -> BTreeMap<Module, BTreeSet<Module>> {
    let mut imports = Imports::default();
    imports.read(&Path::new(env!("CARGO_MANIFEST_DIR")).join(root), &[]);
    imports.graph()
}

/// The folder in `src`, or the file, that a module belongs to.
fn folder(module: &str) -> &str {
    module.split("::").next().unwrap_or_default()
}

#[test]
fn no_module_imports_itself_by_way_of_others() {
    for root in ["onnx/src", "src"] {
        let graph = graph(root);
        let mut told = String::new();
        for circle in circles(&graph) {
            for module in &circle {
                let imports = graph[*module].iter().map(String::as_str);
                let imports: Vec<&str> = imports.filter(|one| circle.contains(one)).collect();
                for line in ["  ", module, " -> ", &imports.join(", "), "\n"] {
                    told += line;
                }
            }
            told += "\n";
        }
        assert!(told.is_empty(), "circles of imports in {root}:\n{told}");
    }
}

#[test]
fn no_folder_imports_one_above_it() {
    let graph = graph("src");
    let place = |name: &str| ORDER.iter().position(|one| *one == name);
    let mut told = Vec::new();
    for (module, imports) in &graph {
        let from = folder(module);
        if from.is_empty() {
            continue;
        }
        let Some(at) = place(from) else {
            told.push(format!("{from} has no place in the order"));
            continue;
        };
        for import in imports {
            let to = folder(import);
            if to != from && place(to).is_some_and(|to| to > at) {
                told.push(format!("{module} -> {import}"));
            }
        }
    }
    told.dedup();
    assert!(told.is_empty(), "{}", told.join("\n"));
    for name in ORDER {
        let is_there = name == "main" || graph.keys().any(|module| folder(module) == name);
        assert!(is_there, "there is no src/{name}");
    }
}

/// What the walk itself must tell apart.
#[test]
fn circles_are_found() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    write(
        "lib.rs",
        "mod a; mod b; mod c; mod d; mod e; pub use c::Name;\n#[cfg(test)]\nmod only_for_tests;",
    );
    // Through a re-export, and in the code.
    write("a.rs", "fn f() { crate::b::g(); }");
    write(
        "b.rs",
        "use crate::Name;\n#[cfg(test)]\nmod tests { use crate::d; }",
    );
    write("c.rs", "fn f() { assert!(super::a::f() == 1); }");
    write("d.rs", "use std::fmt;\nuse super::{a, b as other};");
    write(
        "e.rs",
        "pub use crate::d; pub use crate::a::{Used, Unused}; struct S(Used);",
    );
    let mut imports = Imports::default();
    imports.read(folder.path(), &[]);
    let graph = imports.graph();
    assert_eq!(circles(&graph), [["a", "b", "c"]]);
    assert_eq!(Vec::from_iter(&graph["d"]), ["a", "b"]);
    assert_eq!(Vec::from_iter(&graph["e"]), ["a"]);
}
