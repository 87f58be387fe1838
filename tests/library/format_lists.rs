//! The output formats that pipelines and pages list are those of the table in
//! `src/output/formats.rs`: one that is added there and forgotten here would not be collected by
//! Nextflow, or refused by Snakemake.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use seqembed::output::Format;

fn text(file: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap()
}

/// What stands between `begin` and `end`, wherever `begin` is; there must be some.
fn between<'t>(text: &'t str, begin: &str, end: char) -> Vec<&'t str> {
    let found: Vec<&str> = text
        .split(begin)
        .skip(1)
        .filter_map(|rest| rest.split(end).next())
        .collect();
    assert!(!found.is_empty(), "no {begin}");
    found
}

/// A list's words, without their quotes.
fn words(list: &str) -> BTreeSet<&str> {
    let words = list.split(',').map(|word| word.trim_matches([' ', '"']));
    words.collect()
}

fn names() -> BTreeSet<&'static str> {
    Format::ALL.into_iter().map(Format::extension).collect()
}

/// The endings of all files that an output can be made of.
fn endings() -> BTreeSet<&'static str> {
    let beside = Format::ALL.into_iter().flat_map(Format::beside);
    names().into_iter().chain(beside.copied()).collect()
}

#[test]
fn nextflow_collects_the_files_of_every_format() {
    for file in ["main.nf", "meta.yml"] {
        let file = format!("nextflow/modules/seqembed/run/{file}");
        let text = text(&file);
        let mut lists = between(&text, "*.{", '}');
        // The module's inputs are files too.
        lists.retain(|list| list.contains("parquet"));
        assert!(!lists.is_empty(), "{file}");
        for list in lists {
            assert_eq!(words(list), endings(), "{file}");
        }
    }
    // What stands in for a run makes the same files.
    let stub = text("nextflow/modules/seqembed/run/main.nf");
    for format in Format::ALL {
        if let Some((_, stub)) = stub.split_once(&format!("suffix == '{format}' ? [")) {
            let list = stub.split(']').next().unwrap().replace('\'', "");
            let files: BTreeSet<&str> = format
                .beside()
                .iter()
                .copied()
                .chain([format.extension()])
                .collect();
            assert_eq!(words(&list), files, "{format}");
        } else {
            assert!(format.beside().is_empty(), "{format} has files beside it");
        }
    }
}

#[test]
fn nextflow_accepts_every_format() {
    let schema: serde_json::Value =
        serde_json::from_str(&text("nextflow/assets/schema_input.json")).unwrap();
    let formats = &schema["items"]["properties"]["format"]["enum"];
    let formats = formats.as_array().unwrap().iter();
    let formats: BTreeSet<&str> = formats.map(|name| name.as_str().unwrap()).collect();
    assert_eq!(formats, names());
}

#[test]
fn snakemake_accepts_every_format() {
    let wrapper = text("snakemake/wrapper/wrapper.py");
    assert_eq!(words(between(&wrapper, "FORMATS = (", ')')[0]), names());
    let schema = text("snakemake/workflow/schemas/config.schema.yaml");
    let lists = between(&schema, "enum: [", ']');
    assert!(lists.iter().any(|list| words(list) == names()), "{lists:?}");
    let config = text("snakemake/config/config.yaml");
    let about = config.replace(" or ", ", ");
    let comment = between(&about, "# parquet,", '\n')[0];
    let rest = names().into_iter().filter(|name| *name != "parquet");
    assert_eq!(words(comment), rest.collect());
    // A rule names its outputs one by one, which an output of several files is not fit for.
    let meta = text("snakemake/wrapper/meta.yaml");
    for format in Format::ALL {
        let is_named = meta.contains(&format!("`.{format}`"));
        let is_refused = wrapper.contains(&format!("output_format == \"{format}\" and not folder"));
        let is_one_file = format.beside().is_empty();
        assert_eq!(
            [is_named, is_refused],
            [is_one_file, !is_one_file],
            "{format}"
        );
    }
}

#[test]
fn pages_tell_of_every_format() {
    for format in Format::ALL {
        let row = format!("\n| `{format}` ");
        assert!(text("README.md").contains(&row), "README.md: {format}");
        let page = text("docs/outputs.md");
        let heading = format!("\n## {format}\n");
        assert!(
            page.contains(&row) || page.to_lowercase().contains(&heading),
            "docs/outputs.md: {format}"
        );
    }
}
