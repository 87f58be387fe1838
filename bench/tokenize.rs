//! How fast sequences become tokens, on one core and without anything else.
//!
//!     cargo bench --bench tokenize -- FILE FOLDER/tokenizer.json|FOLDER/vocab.txt...
//!     cargo bench --bench tokenize -- ids FILE FOLDER/tokenizer.json > ids.txt
//!
//! The first prints megabytes of letters a second for each tokenizer, by the processor's own time
//! (wall time where other work runs is of no use): the file's records, cut to 500 bases and to one
//! sequence of 1,000,000. The second prints each record's ids on a line, for
//! `onnx/reference/dna_tokens.py check`.

use std::io::{self, BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result, bail};
use seqembed::records::{self, Source};
use seqembed::tokenize::bpe::BpeTokenizer;
use seqembed::tokenize::{self, Tokenizer, TokenizerKind};

fn main() -> Result<()> {
    // `cargo bench` adds a flag of its own.
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|one| one != "--bench")
        .collect();
    match &arguments[..] {
        [ids, file, vocabulary] if ids == "ids" => print_ids(file, vocabulary),
        [file, vocabularies @ ..] if !vocabularies.is_empty() => {
            let sequences = read(file)?;
            for vocabulary in vocabularies {
                measure(&sequences, vocabulary)?;
            }
            Ok(())
        }
        _ => bail!("usage: cargo bench --bench tokenize -- [ids] FILE VOCABULARY..."),
    }
}

fn read(file: &str) -> Result<Vec<Vec<u8>>> {
    records::open(&Source::new(file))?
        .map(|record| Ok(record?.sequence))
        .collect()
}

fn open(vocabulary: &str) -> Result<Box<dyn Tokenizer>> {
    let folder = Path::new(vocabulary)
        .parent()
        .context("a vocabulary is a file in a folder")?;
    let kind = if Path::new(&vocabulary)
        .extension()
        .is_some_and(|it| it == "json")
    {
        TokenizerKind::Bpe
    } else {
        kind_of_list(&std::fs::read_to_string(vocabulary)?)
    };
    Ok(tokenize::open(folder, kind)?)
}

/// The kind of a `vocab.txt`.
fn kind_of_list(text: &str) -> TokenizerKind {
    let of_bases = |line: &str| line.len() > 1 && line.bytes().all(|byte| b"ACGT".contains(&byte));
    match (text.contains("<cls>"), text.lines().any(of_bases)) {
        (true, true) => TokenizerKind::NonOverlapping,
        (true, false) => TokenizerKind::Esm,
        (false, _) => TokenizerKind::Bert,
    }
}

fn print_ids(file: &str, vocabulary: &str) -> Result<()> {
    let tokenizer = open(vocabulary)?;
    let mut out = BufWriter::new(io::stdout().lock());
    for sequence in read(file)? {
        let ids: Vec<String> = tokenizer
            .encode(&sequence)
            .ids
            .iter()
            .map(u32::to_string)
            .collect();
        writeln!(out, "{}", ids.join(" "))?;
    }
    Ok(out.flush()?)
}

fn measure(sequences: &[Vec<u8>], vocabulary: &str) -> Result<()> {
    let start = seconds();
    let tokenizer = open(vocabulary)?;
    println!(
        "{vocabulary}: opened in {:.1} ms",
        (seconds() - start) * 1e3
    );
    let whole: Vec<&[u8]> = sequences.iter().map(Vec::as_slice).collect();
    let pieces: Vec<&[u8]> = whole.iter().flat_map(|one| one.chunks(500)).collect();
    let long: Vec<u8> = sequences
        .concat()
        .into_iter()
        .cycle()
        .take(1_000_000)
        .collect();
    let repeat = b"A".repeat(1_000_000);
    for (name, input) in [
        ("records", &whole[..]),
        ("500", &pieces),
        ("1 Mb", &[&long]),
        ("1 Mb of A", &[&repeat]),
    ] {
        report(name, input, |sequence| tokenizer.encode(sequence).ids.len());
    }
    if Path::new(&vocabulary)
        .extension()
        .is_some_and(|it| it == "json")
    {
        let by_library = BpeTokenizer::from_json(&std::fs::read_to_string(vocabulary)?)?;
        let some = &whole[..whole.len().min(300)];
        for (name, input) in [("library, records", some), ("library, 1 Mb", &[&long])] {
            report(name, input, |sequence| {
                by_library.encode_by_library(sequence).ids.len()
            });
        }
    }
    Ok(())
}

fn report(name: &str, input: &[&[u8]], encode: impl Fn(&[u8]) -> usize) {
    let letters: usize = input.iter().map(|one| one.len()).sum();
    let (start, mut rounds, mut tokens) = (seconds(), 0, 0);
    // The best of a few rounds would flatter: all count.
    while rounds < 2 || (seconds() - start < 0.5 && rounds < 1000) {
        tokens = input.iter().map(|sequence| encode(sequence)).sum();
        rounds += 1;
    }
    let took = (seconds() - start) / f64::from(rounds);
    println!(
        "  {name:18} {:8.1} MB/s   {:.2} letters a token",
        letters as f64 / took / 1e6,
        letters as f64 / tokens.max(1) as f64
    );
}

/// Processor time of this process.
fn seconds() -> f64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the call writes to `time` alone.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}
