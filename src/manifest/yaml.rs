//! Parses a manifest in YAML. Scalars are kept as written: a sample `007` stays `007`.

use saphyr::{MarkedYaml, ScalarStyle, ScanError, YamlData, YamlLoader};
use saphyr_parser::{Event, Parser, SpannedEventReceiver};

use super::draft::{Draft, Field, FileEntry};
use super::error::Mistakes;
use super::keys::{KeyPosition, entry_keys, key_among};
use crate::settings::{Overrides, RunOverrides};

/// A manifest needs three levels. The limit keeps hostile nesting from using up the stack.
const DEEPEST: usize = 32;

/// Parses the manifest; `None` if the text is not valid YAML or has no files.
pub(super) fn parse(text: &str, mistakes: &mut Mistakes) -> Option<Draft> {
    let mut documents = match load(text) {
        Ok(documents) => documents,
        Err(error) => {
            mistakes.add(
                error.marker().line(),
                format!("invalid YAML: {}", error.info()),
            );
            return None;
        }
    };
    if documents.len() > 1 {
        let line = documents[1].span.start.line();
        mistakes.add(
            line,
            "a second YAML document starts here (`---`), but a manifest must be a \
                            single one",
        );
        return None;
    }
    let root = match documents.pop() {
        Some(root) if !is_blank(&root) => root,
        _ => {
            mistakes.add(
                None,
                "the manifest is empty; it needs `files:` with a list of files",
            );
            return None;
        }
    };
    let YamlData::Mapping(pairs) = &root.data else {
        let text = "a manifest must start with keys such as `model:` and `files:`; put the list \
                    of files under `files:`";
        mistakes.add(root.span.start.line(), text);
        return None;
    };

    let mut known = vec!["files"];
    known.extend(Overrides::KEYS);
    known.extend(RunOverrides::KEYS);
    let mut draft = Draft::default();
    let mut has_files = false;
    for (key, value) in pairs {
        match key_of(key, &known, KeyPosition::Top, mistakes) {
            Some("files") => {
                has_files = true;
                draft.entries = entries(value, key.span.start.line(), mistakes);
            }
            Some(name) => draft.top.extend(field(name, key, value, mistakes)),
            None => {}
        }
    }
    if !has_files {
        mistakes.add(None, "`files:` is missing; it lists the files to embed");
    }
    Some(draft)
}

/// Parses YAML without converting scalars to numbers, and without recursion.
fn load(text: &str) -> Result<Vec<MarkedYaml<'_>>, ScanError> {
    let mut loader = YamlLoader::<MarkedYaml>::default();
    loader.early_parse(false);
    let mut parser = Parser::new_from_str(text);
    let mut depth = 0_usize;
    while let Some(event) = parser.next_event() {
        let (event, span) = event?;
        match event {
            Event::SequenceStart(..) | Event::MappingStart(..) => depth += 1,
            Event::SequenceEnd | Event::MappingEnd => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > DEEPEST {
            return Err(ScanError::new_str(span.start, "nested too deeply"));
        }
        loader.on_event(event, span);
        if let Some(error) = loader.error() {
            return Err(error.clone());
        }
    }
    Ok(loader.into_documents())
}

/// Whether a node is absent or one of YAML's spellings of null.
fn is_blank(node: &MarkedYaml) -> bool {
    match &node.data {
        YamlData::BadValue => true,
        YamlData::Representation(text, ScalarStyle::Plain, _) => {
            matches!(text.as_ref(), "" | "~" | "null" | "Null" | "NULL")
        }
        _ => false,
    }
}

/// Parses the list under `files:`.
fn entries(list: &MarkedYaml, line: usize, mistakes: &mut Mistakes) -> Vec<FileEntry> {
    let YamlData::Sequence(nodes) = &list.data else {
        mistakes.add(
            line,
            "`files` must be a list, with lines that start with `- sample: ...`",
        );
        return Vec::new();
    };
    if nodes.is_empty() {
        mistakes.add(line, "`files` is empty, so there is nothing to embed");
    }
    nodes
        .iter()
        .filter_map(|node| entry(node, mistakes))
        .collect()
}

fn entry(node: &MarkedYaml, mistakes: &mut Mistakes) -> Option<FileEntry> {
    let line = node.span.start.line();
    let YamlData::Mapping(pairs) = &node.data else {
        mistakes.add(
            line,
            "a file must be given as `sample: NAME` and `fasta: PATH`",
        );
        return None;
    };
    let known = entry_keys();
    let mut fields = Vec::new();
    let mut is_damaged = false;
    for (key, value) in pairs {
        let found = key_of(key, &known, KeyPosition::File, mistakes)
            .and_then(|name| field(name, key, value, mistakes));
        is_damaged |= found.is_none();
        fields.extend(found);
    }
    Some(FileEntry {
        line,
        fields,
        is_damaged,
    })
}

/// The canonical spelling of a key; reports an error and returns `None` if it is not one of
/// `known`.
fn key_of(
    key: &MarkedYaml,
    known: &[&'static str],
    position: KeyPosition,
    mistakes: &mut Mistakes,
) -> Option<&'static str> {
    let line = key.span.start.line();
    let YamlData::Representation(text, ..) = &key.data else {
        mistakes.add(line, "a key must be a plain word");
        return None;
    };
    key_among(text, known, position)
        .map_err(|text| mistakes.add(line, text))
        .ok()
}

/// A key with its value as text; reports an error and returns `None` if the value is not a scalar.
fn field(
    name: &'static str,
    key: &MarkedYaml,
    value: &MarkedYaml,
    mistakes: &mut Mistakes,
) -> Option<Field> {
    let line = key.span.start.line();
    let trouble = match &value.data {
        _ if is_blank(value) => "has no value: give one, or remove the key",
        YamlData::Representation(text, ..) => {
            return Some(Field {
                key: name.to_owned(),
                text: text.trim().to_owned(),
                line,
            });
        }
        YamlData::Sequence(_) => "must be a single value, not a list",
        YamlData::Mapping(_) => "must be a single value, not a mapping",
        _ => "must be text or a number",
    };
    mistakes.add(line, format!("`{name}` {trouble}"));
    None
}
