//! `seqembed virnucpro` on real contigs with small models: its files hold what `VirNucPro`'s rules
//! say, told a second time in Python, and the vectors that `embed` gives for the same sequences.
use std::path::Path;

use crate::common::{
    DONE, Place, WRONG, assert_close, assert_run, exported, fixtures, python, seqembed, text,
};
use seqembed::output::{self, Rows};

const CHECK: &str = concat!(
    include_str!("../python/torch_file.py"),
    include_str!("../python/virnucpro.py")
);

/// Runs the subcommand on a file of the folder.
fn virnucpro(place: &Place, options: &[&str]) -> std::process::Output {
    let (contigs, out) = (place.path("x.fna"), place.path("out"));
    let mut arguments = vec!["virnucpro", text(&contigs), "-o", text(&out)];
    arguments.extend(["--dna-model", text(exported("dnabert2"))]);
    arguments.extend(["--protein-model", text(exported("esm2"))]);
    arguments.extend(options);
    seqembed(&arguments)
}

fn check(place: &Place, size: &str, per_file: &str, truncation: &str) {
    let (contigs, out) = (place.path("x.fna"), place.path("out"));
    let arguments = [text(&contigs), text(&out), size, per_file, truncation];
    python("the standard library", CHECK, &arguments);
}

fn read(path: &Path) -> Rows {
    output::read(path).unwrap().0
}

/// What `embed` gives for a part's sequences.
fn embedded(place: &Place, file: &str, model: &str, options: &[&str]) -> Rows {
    let (from, to) = (place.path(file), place.path("embedded"));
    let mut arguments = vec!["embed", text(&from), "-m", text(exported(model))];
    arguments.extend(["-o", text(&to), "--force-alphabet"]);
    arguments.extend(options);
    assert_run(&seqembed(&arguments), DONE, &[]);
    read(&to.join("output_1.parquet"))
}

#[test]
fn proteins_are_no_contigs() {
    let proteins = std::fs::read(fixtures().join("esm2/inputs/mixed.faa")).unwrap();
    let place = Place::new(&[("x.fna", &proteins)]);
    let run = virnucpro(&place, &["--frames-only"]);
    let said = [
        "x.fna looks like protein",
        "use the contigs, not their proteins",
    ];
    assert_run(&run, 1, &said);
    assert!(!place.path("out/x_chunked500.fa").exists());

    let place = Place::new(&[("x.fna", b">a long one\nATGGCATTGACATTG\n")]);
    let run = virnucpro(&place, &["--frames-only", "--max-record", "14"]);
    assert_run(
        &run,
        1,
        &[
            "x.fna: line 1: record `a` is longer than 14",
            "--max-record",
        ],
    );

    // A character of several bytes is one letter that is no base.
    let place = Place::new(&[("x.fna", ">a\nATGGCA–TTGACATTG\n".as_bytes())]);
    let run = virnucpro(&place, &["--frames-only"]);
    assert_run(&run, DONE, &["line 2: '–' (U+2013, en dash)"]);
    let chunks = std::fs::read_to_string(place.path("out/x_chunked500.fa")).unwrap();
    assert_eq!(chunks, ">a_chunk_1\nATGGCANTTGACATTG\n");
}

#[test]
fn files_are_those_of_virnucpro_and_vectors_those_of_embed() {
    let contigs = std::fs::read(fixtures().join("dna/inputs/mixed.fna")).unwrap();
    // Two contigs of one name, lower case, a codon that is none, one without a frame, and one
    // without a base.
    let more = b">twin\natggctagcaaaggtaaacgtattgcaNNNgaactgaaa\n>twin\nATGGCCTGCAAAGGTAAACGTATT\n>stops\nTAATAATAA\n>none\n\n";
    let contigs = [&contigs, &more[..]].concat();
    let place = Place::new(&[("x.fna", &contigs)]);
    let run = virnucpro(&place, &["--records-per-file", "7"]);
    let said = [
        "1 contig has the name of an earlier one",
        "1 contig has no sequence",
        "loaded once",
        "x_merged",
    ];
    assert_run(&run, DONE, &said);
    check(&place, "500", "7", "vanilla");
    assert_eq!(place.report()["loads"].as_array().unwrap().len(), 2);
    let told = std::fs::read_to_string(place.path("out/x_provenance.json")).unwrap();
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    assert_eq!(told["nucleotide"]["pooling"], "mean-all");
    assert_eq!(told["protein"]["model"], "esm2");

    let merged = read(&place.path("out/x_merged/output_1_merged.pt"));
    let dna = embedded(
        &place,
        "out/x_nucleotide/output_1.fa",
        "dnabert2",
        &["--pooling", "mean-all"],
    );
    let protein = embedded(&place, "out/x_protein/output_1.fa", "esm2", &[]);
    assert_eq!(merged.ids, dna.ids);
    assert_eq!(merged.ids, protein.ids);
    let both: Vec<f32> = (0..7)
        .flat_map(|row| {
            let of = |rows: &Rows| rows.values[row * 48..(row + 1) * 48].to_vec();
            [of(&dna), of(&protein)].concat()
        })
        .collect();
    assert_close(&merged.values, &both, 1e-5, "merged");

    // The other two kinds of file are read as well.
    let esm = read(&place.path("out/x_protein/output_1_ESM.pt"));
    assert_eq!((esm.len(), esm.hidden), (7, 48));
    let dnabert = place.path("out/x_nucleotide/output_1_DNABERT_S.pt");
    let to = place.path("dna.npz");
    let run = seqembed(&["convert", text(&dnabert), "-o", text(&to)]);
    assert_run(&run, DONE, &["(7 rows)"]);
    assert_close(&read(&to).values, &dna.values, 1e-5, "DNABERT-S");
}

/// Proteins of more than 1,024 residues, in the three ways.
#[test]
fn truncation_is_what_each_version_does() {
    let codons = ["GCT", "GAA", "AAA", "CTG", "ATT", "GGC", "CAC"];
    let contig: String = (0..1200).map(|i| codons[(i * i + i / 7) % 7]).collect();
    let fasta = format!(">long\n{contig}\n>short\n{}\n", &contig[..300]);
    let place = Place::new(&[("x.fna", fasta.as_bytes())]);
    for (truncation, options, first) in [
        (
            "vanilla",
            ["--pooling", "none", "--max-length", "5000"],
            1024,
        ),
        ("v1", ["--pooling", "none", "--max-length", "1024"], 1024),
        ("v2", ["--pooling", "none", "--max-length", "1022"], 1022),
    ] {
        let sizes = ["--chunk", "4000", "--records-per-file", "2"];
        let run = virnucpro(
            &place,
            &[&sizes[..], &["--truncation", truncation]].concat(),
        );
        assert_run(&run, DONE, &[]);
        check(&place, "4000", "2", truncation);
        let merged = read(&place.path("out/x_merged/output_1_merged.pt"));
        let mut all = options.to_vec();
        all.extend(["--long", "truncate"]);
        let tokens = embedded(&place, "out/x_protein/output_1.fa", "esm2", &all);
        assert_eq!(tokens.ids[0], "long_chunk_1F1");
        let mut mean = vec![0.0_f64; 48];
        for vector in tokens.values.chunks_exact(48).take(first) {
            mean.iter_mut()
                .zip(vector)
                .for_each(|(sum, x)| *sum += f64::from(*x));
        }
        #[allow(clippy::cast_possible_truncation, reason = "compared as 32-bit floats")]
        let mean: Vec<f32> = mean.iter().map(|sum| (sum / first as f64) as f32).collect();
        assert_close(&merged.values[48..96], &mean, 1e-5, truncation);
    }
}

#[test]
fn nothing_to_embed_and_wrong_input_are_told() {
    let place = Place::new(&[("x.fna", b">a\nTAATAATAATAA\n")]);
    // A stop in each of the six frames.
    let stops = Place::new(&[("x.fna", b">a\nTAACTAACTAACTTAGTTAGTTAG\n")]);
    assert_run(
        &virnucpro(&stops, &[]),
        DONE,
        &["every reading frame has a stop codon"],
    );
    assert_run(
        &virnucpro(&place, &["--chunk", "2"]),
        WRONG,
        &["at least 3"],
    );
    let missing = seqembed(&["virnucpro", "missing.fa", "-o", text(&place.path("out"))]);
    assert_run(&missing, WRONG, &["missing.fa: no such file"]);
    let run = seqembed(&[
        "virnucpro",
        text(&place.path("x.fna")),
        "-o",
        text(&place.path("out")),
        "--dna-model",
        "no-such-model",
        "--protein-model",
        text(exported("esm2")),
    ]);
    assert_run(&run, WRONG, &["no-such-model"]);
    assert!(!place.path("out/x_merged").exists());
}
