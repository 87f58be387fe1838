//! Sample names for files in many folders: those of the files, and where these are not unique, with
//! the names of their folders.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::inputs::{LONGEST_SAMPLE, sample_of, without_compression};

/// A sample name for each of the absolute paths. `reads/gut.faa.gz` is `gut`; if there is another
/// `gut`, it is `reads_gut`, and so on up the folders. Files that differ only in their extensions
/// keep these. Names that still are the same, or too long for a file, end in a number.
#[must_use]
pub fn sample_names(paths: &[PathBuf]) -> Vec<String> {
    let bases = base_names(paths);
    let mut depths = vec![0_usize; paths.len()];
    let name = |at: usize, depth: usize| named(&paths[at], &bases[at], depth);
    let mut names: Vec<String> = (0..paths.len()).map(|at| name(at, 0)).collect();
    loop {
        let mut by_name: HashMap<&str, Vec<usize>> = HashMap::new();
        for (at, name) in names.iter().enumerate() {
            by_name.entry(name).or_default().push(at);
        }
        let shared = by_name.into_values().filter(|alike| alike.len() > 1);
        let deeper: Vec<usize> = shared
            .flatten()
            .filter(|&at| name(at, depths[at] + 1) != names[at])
            .collect();
        if deeper.is_empty() {
            break;
        }
        for at in deeper {
            depths[at] += 1;
            names[at] = name(at, depths[at]);
        }
    }
    numbered(names)
}

/// The files' names without extensions, or with as many as tell them from others in their folders.
fn base_names(paths: &[PathBuf]) -> Vec<String> {
    let file_name = |path: &Path| {
        let name = path.file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    };
    let shortest: [&dyn Fn(&Path) -> String; 2] = [&|path: &Path| sample_of(path), &|path| {
        without_compression(&file_name(path)).to_owned()
    }];
    let mut names: Vec<Option<String>> = vec![None; paths.len()];
    for name in shortest {
        let mut count: HashMap<(Option<&Path>, String), usize> = HashMap::new();
        for path in paths {
            *count.entry((path.parent(), name(path))).or_default() += 1;
        }
        for (path, decided) in paths.iter().zip(&mut names) {
            let short = name(path);
            if decided.is_none() && count[&(path.parent(), short.clone())] == 1 {
                *decided = Some(short);
            }
        }
    }
    let names = names.into_iter().zip(paths);
    names
        .map(|(name, path)| name.unwrap_or_else(|| file_name(path)))
        .collect()
}

/// A name with so many of the path's folders in front, as it may name an output.
fn named(path: &Path, base: &str, depth: usize) -> String {
    let folders = path.ancestors().skip(1).take(depth);
    let mut words: Vec<_> = folders
        .filter_map(|folder| Some(folder.file_name()?.to_string_lossy()))
        .collect();
    words.reverse();
    words.push(base.into());
    let mut name = String::new();
    for letter in words.join("_").trim().chars() {
        match letter {
            // As in URLs: what was different stays different.
            letter if letter.is_control() || matches!(letter, '/' | '\\') => {
                let mut bytes = [0; 4];
                for byte in letter.encode_utf8(&mut bytes).bytes() {
                    write!(name, "%{byte:02x}").expect("writing to a String cannot fail");
                }
            }
            '.' | '-' if name.is_empty() => name.push('_'),
            letter => name.push(letter),
        }
    }
    if name.is_empty() {
        name.push('_');
    }
    shortened(&name, LONGEST_SAMPLE).to_owned()
}

/// At most so many bytes from the end of a name, which tells files apart rather than its folders.
fn shortened(name: &str, most: usize) -> &str {
    let mut start = name.len().saturating_sub(most);
    while !name.is_char_boundary(start) {
        start += 1;
    }
    name[start..].trim_start_matches(['.', '-', ' '])
}

/// Adds `_2`, `_3`, ... to the second and later uses of a name.
fn numbered(names: Vec<String>) -> Vec<String> {
    let mut used: HashSet<String> = names.iter().cloned().collect();
    let mut first: HashSet<String> = HashSet::new();
    let mut unique = Vec::with_capacity(names.len());
    for name in names {
        if first.insert(name.clone()) {
            unique.push(name);
            continue;
        }
        let room = LONGEST_SAMPLE - 20;
        let fresh = (2..=used.len() + 2)
            .map(|number| format!("{}_{number}", shortened(&name, room)))
            .find(|fresh| !used.contains(fresh))
            .expect("there are more numbers than names");
        used.insert(fresh.clone());
        unique.push(fresh);
    }
    unique
}
