//! `report.json` keeps to its schema, and `seqembed report` makes a page of it that a browser
//! shows.
//!
//! `SEQEMBED_TEST_PYTHON` names a Python that has `jsonschema`; `make test` sets it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::common::{
    DONE, PARTLY, Place, assert_run, export, exported, fixtures, python, seqembed, text,
};

fn schema() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/report.schema.json")
}

/// A run in which everything happens: windows, replaced letters, a skipped record, a file that
/// fails, two models.
fn eventful() -> Place {
    let long: String = "MKTAYIAKQRGSHMLEDP".repeat(80);
    let proteins = format!(
        ">p1 <kinase> & \"co\"\nMKTAYIAKQR\n>p2\nGSHJLEDP\n>p3 empty\n\n>p4\n{long}\n>p5\nMKLVINGKT\n"
    );
    let dna = ">d1\nACGTTGCAACGTACGTTTGA\n>d2\nACGTNNACGTACGA\n>d3\nACGTACGATTGACATTGA\n";
    let place = Place::new(&[
        ("gut <1>.faa", proteins.as_bytes()),
        (
            "soil.faa",
            b">s1\nMKTAYIAKQRLL\n>s2\nMKK\n>s3\nGSHMLEDPWW\n>s4\nMKK\n",
        ),
        ("dna.fna", dna.as_bytes()),
        ("broken.faa", b">b1\nMKT\n+\n@\n\x00"),
        (
            "wrong.faa",
            format!(">w\n{}\n", "ACGT".repeat(200)).as_bytes(),
        ),
    ]);
    let run = place.run(&format!(
        "model: {}\nfiles:\n  - {{sample: gut_1, fasta: \"gut <1>.faa\"}}\n  - {{sample: soil, fasta: soil.faa}}\n  \
         - {{sample: dna, fasta: dna.fna, model: {}}}\n  - {{sample: wrong, fasta: wrong.faa}}\n",
        text(exported("esm2")),
        text(exported("dnabert-3"))
    ));
    assert_run(&run, PARTLY, &["wrong.faa"]);
    place
}

fn page(place: &Place) -> String {
    let html = place.path("report.html");
    let run = seqembed(&["report", text(&place.path("out")), "-o", text(&html)]);
    assert_run(&run, DONE, &[]);
    fs::read_to_string(html).unwrap()
}

#[test]
fn the_schema_in_the_repository_is_that_of_the_types() {
    let run = seqembed(&["report", "--schema"]);
    assert_run(&run, DONE, &[]);
    let json = |text: &[u8]| serde_json::from_slice::<serde_json::Value>(text).unwrap();
    assert!(
        json(&run.stdout) == json(&fs::read(schema()).unwrap()),
        "make it anew: seqembed report --schema > docs/report.schema.json"
    );
}

/// A file that was refused for its letters is not among those embedded, nor are its records.
#[test]
fn the_summary_counts_what_was_embedded() {
    let dna = format!(">w\n{}\n", "ACGT".repeat(200));
    let place = Place::new(&[
        ("one.faa", b">a\nMKTAYIAKQR\n>b\nMKT\n"),
        ("two.faa", dna.as_bytes()),
    ]);
    let out = place.path("out");
    let [one, two] = ["one.faa", "two.faa"].map(|name| text(&place.path(name)).to_owned());
    let model = text(exported("esm2"));
    let run = seqembed(&["embed", &one, &two, "-m", model, "-o", text(&out)]);
    assert_run(
        &run,
        PARTLY,
        &["\n1 of 2 files and 2 sequences in ", "failed   1 file"],
    );
}

#[test]
fn a_report_is_valid_by_the_schema_which_knows_every_key() {
    let place = eventful();
    let empty = Place::new(&[("none.faa", b"")]);
    assert_run(&empty.embed("esm2", "none.faa", &[]), DONE, &[]);
    let [report, nothing] = [&place, &empty].map(|place| place.path("out/report.json"));
    let said = python(
        "jsonschema",
        "import json, sys, copy, jsonschema\n\
         schema = json.load(open(sys.argv[1]))\n\
         V = jsonschema.Draft202012Validator\n\
         V.check_schema(schema)\n\
         strict = copy.deepcopy(schema)\n\
         for part in [strict, *strict['$defs'].values()]: part['additionalProperties'] = False\n\
         for name in sys.argv[2:]:\n    \
             report = json.load(open(name))\n    \
             V(strict).validate(report)\n\
         def breaks(change):\n    \
             bad = json.load(open(sys.argv[2])); change(bad); assert not V(schema).is_valid(bad)\n\
         breaks(lambda r: r.pop('loads'))\n\
         breaks(lambda r: r['totals'].update(records='3'))\n\
         breaks(lambda r: r['totals'].update(records=-1))\n\
         breaks(lambda r: r['files'][0].update(error=7))\n\
         breaks(lambda r: r['totals']['batch_fill'].append(1))\n\
         words = [p for d in [schema, *schema['$defs'].values()] for p in d.get('properties', {}).values()]\n\
         assert all(p.get('description') for p in words)\n\
         print(len(words))",
        &[text(&schema()), text(&report), text(&nothing)],
    );
    assert!(said.trim().parse::<usize>().unwrap() > 40, "{said}");
}

#[test]
fn the_page_tells_what_happened() {
    let place = eventful();
    let html = page(&place);
    for part in [
        "4 files embedded in",
        "<dt>Sequences</dt><dd>13</dd>",
        "1 file failed; no output was written",
        "<li>wrong: ",
        // The records that were not embedded as they stand, and why.
        "<th class=\"text\" scope=\"row\">p3</th><td class=\"text\">gut_1</td><td>0</td><td class=\"text\">skipped: empty sequence</td>",
        "<th class=\"text\" scope=\"row\">p2</th><td class=\"text\">gut_1</td><td>8</td><td class=\"text\">replaced</td>",
        "<strong>1</strong> longer than the limit, embedded in windows",
        "gut &lt;1&gt;.faa",
        // A picture for each space, and what is pointed at.
        "8 sequences from 2 files",
        "3 sequences from 1 file",
        "<title>p1 &lt;kinase&gt; &amp; &quot;co&quot;\ngut_1\n10 residues, ok</title>",
        "esm2",
        "dnabert-3",
        "weights_sha256",
        "12 sequences: 0 to 1,440 long",
        "Not recomputed because the same sequence was already embedded: 1 record.",
        "of up to 512 tokens",
    ] {
        assert!(html.contains(part), "no {part:?} in\n{html}");
    }
    assert!(!html.contains("<kinase>") && !html.contains("NaN"));
}

#[test]
fn the_page_is_well_formed_and_stands_alone() {
    let place = eventful();
    page(&place);
    python(
        "jsonschema",
        "import sys, re, xml.etree.ElementTree as E\n\
         text = open(sys.argv[1], encoding='utf-8').read()\n\
         page = E.fromstring(text)\n\
         tags = {e.tag.split('}')[1] for e in page.iter()}\n\
         assert not tags & {'script', 'link', 'img', 'iframe', 'object', 'embed', 'base'}, tags\n\
         for e in page.iter():\n    \
             for name, value in e.attrib.items():\n        \
                 assert name not in ('src', 'href') and not name.startswith('on'), (e.tag, name)\n\
         assert 'url(' not in text and '@import' not in text\n\
         ns = '{http://www.w3.org/1999/xhtml}'\n\
         assert page.get('lang') and page.find(f'.//{ns}title').text\n\
         levels = [int(e.tag[-1]) for e in page.iter() if re.fullmatch(re.escape(ns) + 'h[1-6]', e.tag)]\n\
         assert levels[0] == 1 and levels.count(1) == 1\n\
         for table in page.iter(ns + 'table'):\n    \
             heads = [len(r.findall(ns + 'th') + r.findall(ns + 'td')) for r in table.iter(ns + 'tr')]\n    \
             assert len(set(heads)) == 1, heads",
        &[text(&place.path("report.html"))],
    );
}

#[test]
fn what_is_not_there_is_told() {
    let place = eventful();
    // Moved as a whole, the folder is still understood; what was deleted is missed.
    fs::rename(place.path("out"), place.path("elsewhere")).unwrap();
    fs::remove_file(place.path("elsewhere/soil.parquet")).unwrap();
    fs::write(place.path("elsewhere/dna.parquet"), "PAR1 no more").unwrap();
    let html = place.path("report.html");
    let run = seqembed(&["report", text(&place.path("elsewhere")), "-o", text(&html)]);
    assert_run(&run, DONE, &[]);
    let html = fs::read_to_string(html).unwrap();
    for part in [
        "2 outputs could not be read",
        "soil.parquet",
        "dna.parquet",
        "4 sequences from 1 file",
    ] {
        assert!(html.contains(part), "no {part:?} in\n{html}");
    }

    let folder = place.path("none");
    fs::create_dir(&folder).unwrap();
    let run = seqembed(&["report", text(&folder)]);
    assert_run(&run, 1, &["none has no report.json: give an output folder"]);
    fs::write(folder.join("report.json"), "{\"seqembed\": 1}").unwrap();
    let run = seqembed(&["report", text(&folder)]);
    assert_run(
        &run,
        1,
        &[
            "report.json is not a report that this version of seqembed",
            "line 1",
        ],
    );
    let html = place.path("no/report.html");
    let run = seqembed(&["report", text(&place.path("elsewhere")), "-o", text(&html)]);
    assert_run(&run, 1, &["cannot write", "no/report.html"]);
}

#[test]
fn an_empty_run_and_one_for_each_residue_have_a_page_too() {
    let place = Place::new(&[("none.faa", b"")]);
    assert_run(&place.embed("esm2", "none.faa", &[]), DONE, &[]);
    let html = page(&place);
    for part in [
        "There are no sequences to show",
        "No model was loaded",
        "None: every record",
    ] {
        assert!(html.contains(part), "no {part:?} in\n{html}");
    }
    let place = Place::new(&[("x.faa", b">a\nMKTAYIAKQR\n>b\nMKLL\n")]);
    assert_run(
        &place.embed("esm2", "x.faa", &["--pooling", "none"]),
        DONE,
        &[],
    );
    let html = page(&place);
    assert!(html.contains("one vector per residue, not one per record"));
    assert!(html.contains("2 sequences: 4 to 10 long"), "{html}");
}

#[test]
fn the_page_of_scores_has_maps_of_their_scans() {
    let place = Place::new(&[
        (
            "x.faa",
            b">a <b>\nMKTAYIAKQR\n>long\nMKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQ\n>none\n\n",
        ),
        ("y.faa", b">c\nMKJLL\n"),
    ]);
    let model = place.path("model");
    let checkpoint = fixtures().join("esm2/checkpoints/hub-safetensors");
    export(&checkpoint, &model, "esm2");
    for format in ["tsv", "csv", "parquet"] {
        let run = |options: &[&str]| {
            let (x, y, out) = (place.path("x.faa"), place.path("y.faa"), place.path("out"));
            let _ = fs::remove_dir_all(&out);
            let mut arguments = vec!["score", text(&x), text(&y), "-m", text(&model)];
            arguments.extend(["-o", text(&out), "--format", format]);
            arguments.extend(options);
            assert_run(&seqembed(&arguments), DONE, &[]);
            page(&place)
        };
        let html = run(&["--scan"]);
        for part in [
            "scores of 2 files",
            "2 files scored in",
            "All single substitutions of a",
            "All single substitutions of long",
            "x: 33 positions",
            "y: 5 positions",
            "4 sequences: 0 to 33 long",
            "skipped: empty sequence",
        ] {
            assert!(html.contains(part), "{format}: no {part:?} in\n{html}");
        }
        assert_eq!(
            html.matches("h8.9v9h-8.9z").count(),
            20 * (10 + 33 + 5),
            "{format}"
        );
        // Without a scan there is no map.
        let html = run(&[]);
        assert!(
            html.contains("4 sequences") && !html.contains("All single"),
            "{format}"
        );
        // A table that was lost, or is none.
        let _ = run(&["--scan"]);
        fs::write(
            place.path("out").join(format!("x.scan.{format}")),
            "id\n1\n",
        )
        .unwrap();
        let html = page(&place);
        assert!(
            html.contains("1 output could not be read"),
            "{format}: {html}"
        );
        assert!(html.contains("All single substitutions of c"), "{format}");
    }
    let variants = place.path("variants.tsv");
    fs::write(&variants, "id\tvariant\na\tM1K\n").unwrap();
    let (x, out) = (place.path("x.faa"), place.path("out"));
    let run = ["score", text(&x), "-m", text(&model), "-o", text(&out)];
    let run = [&run[..], &["--variants", text(&variants)]].concat();
    assert_run(&seqembed(&run), DONE, &[]);
    assert!(page(&place).contains("scores of 1 file"));
}

#[test]
fn of_many_files_the_largest_have_a_colour_of_their_own() {
    let names: Vec<String> = (0..60).map(|at| format!("s{at:02}.faa")).collect();
    let files: Vec<(&str, Vec<u8>)> = names
        .iter()
        .enumerate()
        .map(|(at, name)| {
            let record = |n: usize| format!(">r{n}\nMKT{}\n", "AYIAKQR".repeat(1 + (at + n) % 5));
            // The last ones are larger.
            let records = (0..if at >= 50 { 3 } else { 2 }).map(record);
            (name.as_str(), records.collect::<String>().into_bytes())
        })
        .collect();
    let files: Vec<(&str, &[u8])> = files.iter().map(|(n, b)| (*n, b.as_slice())).collect();
    let place = Place::new(&files);
    let inputs: Vec<PathBuf> = names.iter().map(|name| place.path(name)).collect();
    let out = place.path("out");
    let mut arguments = vec!["embed", "-m", text(exported("esm2")), "-o", text(&out)];
    arguments.extend(inputs.iter().map(|path| text(path)));
    assert_run(&seqembed(&arguments), DONE, &[]);
    let html = page(&place);
    assert!(html.contains("<title>13 other files</title>"), "{html}");
    assert!(html.contains("<title>s59</title>") && html.contains("<title>s36</title>"));
    assert!(!html.contains("<title>s37</title>"));
    // Every sequence is a point all the same.
    assert_eq!(html.matches("residues, ok</title>").count(), 130);
}

/// A browser without a window, if there is one.
fn browser() -> Option<&'static str> {
    ["chromium", "chromium-browser", "google-chrome"]
        .into_iter()
        .find(|name| {
            Command::new(name)
                .arg("--version")
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()
                .is_ok_and(|status| status.success())
        })
}

#[test]
fn a_browser_shows_the_page() {
    let Some(browser) = browser() else {
        eprintln!("skipped: there is no chromium to look at the page with");
        return;
    };
    let place = eventful();
    page(&place);
    let profile = tempfile::tempdir().unwrap();
    let picture = Path::new(env!("CARGO_TARGET_TMPDIR")).join("report.png");
    let _ = fs::remove_file(&picture);
    let run = Command::new(browser)
        .args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
        ])
        .arg(format!("--user-data-dir={}", text(profile.path())))
        .arg("--window-size=1100,2400")
        .arg(format!("--screenshot={}", text(&picture)))
        .arg(format!("file://{}", text(&place.path("report.html"))))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "{said}");
    println!("screenshot: {}", picture.display());
    let png = fs::read(&picture).unwrap();
    assert_eq!(&png[..8], b"\x89PNG\r\n\x1a\n");
    let size = |at: usize| u32::from_be_bytes(png[at..at + 4].try_into().unwrap());
    assert_eq!((size(16), size(20)), (1100, 2400));
    // A blank page of this size is far smaller.
    assert!(png.len() > 60_000, "{} bytes: {said}", png.len());
}
