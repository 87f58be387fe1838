//! The tokenizers of DNA and of BERT: against the ids of the Python libraries, against the
//! `tokenizers` crate, and their laws.

use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use seqembed::tokenize::bpe::BpeTokenizer;
use seqembed::tokenize::dna::{DnaCheck, looks_like_dna, looks_like_protein, reverse_complement};
use seqembed::tokenize::{self, Alphabet, Encoded, SpecialTokens, Tokenizer, TokenizerKind};
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::Digest as _;

#[derive(Deserialize)]
struct Case {
    sequence: String,
    ids: Vec<u32>,
    #[serde(default)]
    starts: Vec<u32>,
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/dna_tokens")
        .join(name)
}

fn cases(name: &str) -> Vec<Case> {
    serde_json::from_slice(&fs::read(fixture(name)).unwrap()).unwrap()
}

fn viral() -> Value {
    serde_json::from_slice(&fs::read(fixture("tokenizer.json")).unwrap()).unwrap()
}

fn bpe(file: &Value) -> BpeTokenizer {
    BpeTokenizer::from_json(&file.to_string()).unwrap()
}

/// All k-mers in the order of DNABERT's files, after BERT's special tokens.
fn kmers(k: u32) -> String {
    let letters = ["A", "T", "C", "G"];
    let mut text = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n".to_owned();
    for at in 0..4_usize.pow(k) {
        for place in (0..k).rev() {
            text += letters[at / 4_usize.pow(place) % 4];
        }
        text += "\n";
    }
    text
}

fn residues() -> String {
    let letters: Vec<String> = "ACDEFGHIKLMNPQRSTVWY".chars().map(String::from).collect();
    format!(
        "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n{}\n",
        letters.join("\n")
    )
}

fn bert(vocabulary: &str) -> Result<Box<dyn Tokenizer>, String> {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("vocab.txt"), vocabulary).unwrap();
    tokenize::open(folder.path(), TokenizerKind::Bert).map_err(|error| {
        let error = error.to_string();
        let (file, what) = error.split_once("vocab.txt: ").unwrap();
        assert_eq!(Path::new(file), folder.path());
        what.to_owned()
    })
}

/// BERT's special tokens: one in front, one behind.
fn special(cls: u32, sep: u32, pad: u32, unk: u32) -> SpecialTokens {
    SpecialTokens {
        front: vec![cls],
        behind: vec![sep],
        cls: Some(cls),
        pad,
        unk,
    }
}

#[test]
fn bpe_gives_the_ids_of_the_python_library() {
    let file = viral();
    let mut pairs = file.clone();
    for merge in pairs["model"]["merges"].as_array_mut().unwrap() {
        *merge = match &*merge {
            Value::String(pair) => json!(pair.split(' ').collect::<Vec<_>>()),
            pair => json!(format!(
                "{} {}",
                pair[0].as_str().unwrap(),
                pair[1].as_str().unwrap()
            )),
        };
    }
    let mut left_on = file.clone();
    left_on["truncation"] =
        json!({"direction": "Right", "max_length": 20, "strategy": "LongestFirst", "stride": 0});
    left_on["padding"] = json!({"strategy": {"Fixed": 20}, "direction": "Right", "pad_to_multiple_of": null,
        "pad_id": 3, "pad_type_id": 0, "pad_token": "[PAD]"});
    left_on["model"]["dropout"] = json!(0.5);
    for file in [file, pairs, left_on] {
        let tokenizer = bpe(&file);
        assert!(tokenizer.is_fast());
        assert_eq!(tokenizer.special(), &special(1, 2, 3, 0));
        assert_eq!(
            (tokenizer.vocabulary(), tokenizer.alphabet()),
            (1024, Alphabet::Dna)
        );
        for Case {
            sequence,
            ids,
            starts,
        } in cases("bpe.json")
        {
            let unknown = ids.iter().filter(|&&id| id == 0).count();
            let expected = Encoded {
                letters: sequence.len(),
                unknown,
                first_unknown: sequence
                    .bytes()
                    .position(|letter| !b"ACGT".contains(&letter)),
                dropped_stop: false,
                ids,
                starts: Some(starts),
            };
            assert_eq!(tokenizer.encode(sequence.as_bytes()), expected);
            let rna = sequence.to_lowercase().replace('t', "u");
            assert_eq!(tokenizer.encode(rna.as_bytes()), expected);
            assert_eq!(tokenizer.encode_by_library(sequence.as_bytes()), expected);
        }
    }
}

#[test]
fn special_ids_are_those_of_the_file() {
    let mut file = viral();
    // As if the special tokens stood at the end.
    for (at, token) in ["[PAD]", "[SEP]", "[CLS]", "[UNK]", "[MASK]"]
        .iter()
        .enumerate()
    {
        file["model"]["vocab"][token] = json!(2000 + at);
        file["added_tokens"][at]["id"] = json!(2000 + at);
        file["added_tokens"][at]["content"] = json!(token);
        if ["[CLS]", "[SEP]"].contains(token) {
            file["post_processor"]["special_tokens"][token]["ids"] = json!([2000 + at]);
        }
    }
    let tokenizer = bpe(&file);
    assert_eq!(tokenizer.special(), &special(2002, 2001, 2000, 2003));
    assert_eq!(tokenizer.vocabulary(), 2005);
    assert_eq!(tokenizer.encode(b"NN").ids, [2003, 2003]);
    // Names of special tokens in a sequence are letters.
    let encoded = tokenizer.encode(b"[CLS]");
    assert_eq!((encoded.ids.len(), encoded.unknown), (5, 4));
}

/// What is refused is what the library itself gives other ids for, with its own added tokens and
/// post-processor; the rest it gives these.
#[test]
fn added_tokens_and_what_stands_around_a_sequence_are_those_of_the_library() {
    let added = |content: &str, id: u32| json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": false});
    let mut with_n = viral();
    with_n["model"]["vocab"]["N"] = json!(1024);
    let n = with_n.clone();
    with_n["added_tokens"]
        .as_array_mut()
        .unwrap()
        .push(added("N", 1024));
    let mut files = vec![(viral(), true), (n, true), (with_n, true)];
    for (content, id) in [("<ACG>", 1024), ("ACG", 1024), ("A", 5), ("GATTACA", 1024)] {
        let mut file = viral();
        file["added_tokens"]
            .as_array_mut()
            .unwrap()
            .push(added(content, id));
        files.push((file, content == "<ACG>"));
    }
    let template = viral()["post_processor"].clone();
    let bert = |cls: u32, sep: u32| json!({"type": "BertProcessing", "cls": ["[CLS]", cls], "sep": ["[SEP]", sep]});
    let roberta = json!({"type": "RobertaProcessing", "cls": ["[CLS]", 1], "sep": ["[SEP]", 2], "trim_offsets": true, "add_prefix_space": false});
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false});
    let mut swapped = template.clone();
    swapped["single"].as_array_mut().unwrap().swap(0, 2);
    for (post, taken) in [
        (bert(1, 2), true),
        (bert(2, 1), false),
        (roberta, true),
        (
            json!({"type": "Sequence", "processors": [bytes, template]}),
            true,
        ),
        (bytes, false),
        (swapped, false),
        (Value::Null, false),
    ] {
        let mut file = viral();
        file["post_processor"] = post;
        files.push((file, taken));
    }
    let sequence = "GATTACANNACGTACGGATTACAAACGN";
    let own = |file: &Value| {
        let tokenizer = BpeTokenizer::from_json(&file.to_string()).ok()?;
        let special = tokenizer.special();
        let ids = tokenizer.encode(sequence.as_bytes()).ids;
        Some([&special.front[..], &ids, &special.behind].concat())
    };
    let usual = own(&viral()).unwrap();
    for (file, taken) in files {
        let library: tokenizers::Tokenizer = file.to_string().parse().unwrap();
        let ids = library.encode(sequence, true).unwrap().get_ids().to_vec();
        let what = format!("{} {}", file["added_tokens"], file["post_processor"]);
        assert_eq!(own(&file), taken.then(|| ids.clone()), "{what}");
        assert!(taken || ids != usual, "needlessly refused: {what}");
    }
}

/// An unknown letter is the unknown token before anything merges: where that is a letter of merges,
/// it merges as that letter.
#[test]
fn an_unknown_token_that_merges_is_left_to_the_library() {
    let mut file = viral();
    file["model"]["unk_token"] = json!("T");
    let tokenizer = bpe(&file);
    assert!(!tokenizer.is_fast());
    let ids = |sequence: &[u8]| tokenizer.encode(sequence).ids;
    assert_eq!(ids(b"GANNACA"), ids(b"GATTACA"));
}

#[test]
fn what_is_no_bpe_tokenizer_is_told() {
    let error = |change: fn(&mut Value)| {
        let mut file = viral();
        change(&mut file);
        BpeTokenizer::from_json(&file.to_string())
            .err()
            .unwrap()
            .to_string()
    };
    assert_eq!(
        error(|file| file["model"]["type"] = json!("WordPiece")),
        "no BPE tokenizer: the model's type is \"WordPiece\""
    );
    assert_eq!(
        error(|file| file["model"]["unk_token"] = Value::Null),
        "no BPE tokenizer: the model has no unk_token, so letters outside its vocabulary would be \
         lost"
    );
    assert_eq!(
        error(|file| {
            file["model"]["vocab"]
                .as_object_mut()
                .unwrap()
                .remove("[SEP]");
            file["added_tokens"].as_array_mut().unwrap().remove(2);
        }),
        "the vocabulary lacks [SEP]"
    );
    for (pair, why) in [
        (json!(["GATTACAT", "TACA"]), "needs the token \"GATTACAT\""),
        (json!("TA\u{1b}[2J CA"), "needs the token \"TA\\u{1b}[2J\""),
        // Both are tokens, the longest there is, and what they make is none.
        (
            json!(["[MASK]", "[MASK]"]),
            "needs the token \"[MASK][MASK]\"",
        ),
        (json!("TA"), "is not a pair"),
        (json!(7), "is not a pair"),
    ] {
        let mut file = viral();
        file["model"]["merges"][3] = pair;
        let error = BpeTokenizer::from_json(&file.to_string()).err().unwrap();
        let error = error.to_string();
        assert!(
            error.starts_with("no BPE tokenizer: merge 4 ") && error.contains(why),
            "{error}"
        );
    }
    for prefix in ["#", "########################", "\u{e9}"] {
        let mut file = viral();
        file["model"]["continuing_subword_prefix"] = json!(prefix);
        let error = BpeTokenizer::from_json(&file.to_string()).err().unwrap();
        assert!(
            error.to_string().contains("continuing_subword_prefix"),
            "{error}"
        );
    }
    // What would make a short sequence long, or take for ever.
    for (part, value) in [
        (
            "normalizer",
            json!({"type": "Prepend", "prepend": "A".repeat(100)}),
        ),
        (
            "normalizer",
            json!({"type": "Sequence", "normalizers": [{"type": "Replace", "pattern": {"String": "A"}, "content": "TT"}]}),
        ),
        (
            "pre_tokenizer",
            json!({"type": "Split", "pattern": {"Regex": "(A+)+$"}, "behavior": "Removed", "invert": false}),
        ),
    ] {
        let mut file = viral();
        file[part] = value;
        let error = BpeTokenizer::from_json(&file.to_string()).err().unwrap();
        assert!(error.to_string().contains(part), "{error}");
    }
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("tokenizer.json"), "{").unwrap();
    let error = tokenize::open(folder.path(), TokenizerKind::Bpe)
        .err()
        .unwrap()
        .to_string();
    assert!(
        error.contains("tokenizer.json: no BPE tokenizer: EOF"),
        "{error}"
    );
}

/// What the tokenizers library does before and after BPE, and this one does not.
#[test]
fn what_is_done_before_and_after_bpe_is_refused_by_name() {
    let added = |content: &str, id: u32| json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": true, "special": false});
    for token in [
        added("ACG", 511),
        added("MASK", 2000),
        added("nn", 2000),
        added("[SEP]", 7),
    ] {
        let mut file = viral();
        file["added_tokens"]
            .as_array_mut()
            .unwrap()
            .push(token.clone());
        let error = BpeTokenizer::from_json(&file.to_string()).err().unwrap();
        let error = error.to_string();
        assert!(
            error.contains("added_tokens have")
                && error.contains(token["content"].as_str().unwrap()),
            "{error}"
        );
    }
    let swapped = |post: &mut Value| post["single"].as_array_mut().unwrap().swap(0, 2);
    let without = |post: &mut Value| drop(post["single"].as_array_mut().unwrap().remove(2));
    let twice = |post: &mut Value| {
        let last = post["single"][2].clone();
        post["single"].as_array_mut().unwrap().push(last);
    };
    let changes: [&dyn Fn(&mut Value); 9] = [
        &|post| *post = Value::Null,
        &swapped,
        &without,
        &twice,
        &|post| post["special_tokens"]["[CLS]"]["ids"] = json!([4]),
        &|post| post["single"][1]["Sequence"]["type_id"] = json!(1),
        &|post| *post = json!({"type": "BertProcessing", "cls": ["[CLS]", 1], "sep": ["[SEP]", 3]}),
        &|post| *post = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}),
        &|post| *post = json!({"type": "Sequence", "processors": [post.clone(), post.clone()]}),
    ];
    for change in changes {
        let mut file = viral();
        change(&mut file["post_processor"]);
        let error = BpeTokenizer::from_json(&file.to_string()).err().unwrap();
        assert!(error.to_string().contains("its post_processor"), "{error}");
    }
}

#[test]
fn kmers_have_the_ids_of_transformers() {
    for k in 3..=6 {
        let tokenizer = bert(&kmers(k)).unwrap();
        let k = k as usize;
        assert_eq!(tokenizer.special(), &special(2, 3, 0, 1));
        assert_eq!(
            (tokenizer.vocabulary(), tokenizer.span()),
            ((1_usize << (2 * k)) + 5, k)
        );
        assert_eq!(tokenizer.alphabet(), Alphabet::Dna);
        for Case { sequence, ids, .. } in cases(&format!("kmer_{k}.json")) {
            let expected = Encoded {
                letters: sequence.len(),
                unknown: ids.iter().filter(|&&id| id == 1).count(),
                first_unknown: sequence
                    .bytes()
                    .position(|letter| !b"ACGT".contains(&letter))
                    .filter(|_| sequence.len() >= k),
                dropped_stop: false,
                ids,
                starts: None,
            };
            assert_eq!(
                tokenizer.encode(sequence.as_bytes()),
                expected,
                "{k}: {sequence}"
            );
            let rna = sequence.to_lowercase().replace('t', "u");
            assert_eq!(tokenizer.encode(rna.as_bytes()), expected, "{k}: {rna}");
        }
        let short = tokenizer.encode(&b"ACGTAC"[..k - 1]);
        assert!(short.ids.is_empty());
        assert_eq!(
            tokenizer.why_no_tokens(short.letters),
            format!("shorter than k = {k}")
        );
        assert_eq!(tokenizer.why_no_tokens(0), "empty sequence");
    }
}

#[test]
fn kmer_ids_are_those_of_the_file() {
    let lines: Vec<String> = kmers(2).lines().rev().map(str::to_owned).collect();
    let tokenizer = bert(&lines.join("\n")).unwrap();
    assert_eq!(tokenizer.special(), &special(18, 17, 20, 19));
    let at =
        |kmer: &str| u32::try_from(lines.iter().position(|line| line == kmer).unwrap()).unwrap();
    assert_eq!(
        tokenizer.encode(b"gaTC").ids,
        [at("GA"), at("AT"), at("TC")]
    );
    assert_eq!(tokenizer.encode(b"GNTC").ids, [19, 19, at("TC")]);
}

/// Nucleotide Transformer's vocabulary of version 1 or 2.
fn non_overlapping(version: u32, k: u32) -> String {
    let specials = ["<unk>", "<pad>", "<mask>", "<cls>"].map(str::to_owned);
    let ends = ["<eos>", "<bos>"].map(str::to_owned);
    let words = kmers(k)
        .lines()
        .skip(5)
        .map(str::to_owned)
        .collect::<Vec<_>>();
    let letters = ["A", "T", "C", "G", "N"].map(str::to_owned);
    let lines = if version == 1 {
        [&specials[..], &words, &letters, &ends].concat()
    } else {
        [&specials[..], &ends, &words, &letters].concat()
    };
    lines.join("\n")
}

fn nucleotide_transformer(vocabulary: &str) -> Result<Box<dyn Tokenizer>, String> {
    tokenize::read(TokenizerKind::NonOverlapping, vocabulary.as_bytes())
        .map_err(|error| error.to_string())
}

#[test]
fn kmers_that_do_not_overlap_have_the_ids_of_transformers() {
    for (version, k, rows) in [(1, 6, 4105), (2, 6, 4107), (2, 3, 75)] {
        let tokenizer = nucleotide_transformer(&non_overlapping(version, k)).unwrap();
        let expected = SpecialTokens {
            front: vec![3],
            behind: Vec::new(),
            cls: Some(3),
            pad: 1,
            unk: 0,
        };
        assert_eq!(tokenizer.special(), &expected);
        // Version 1 has no rows for <eos> and <bos>, the last two.
        assert_eq!(tokenizer.vocabulary(), rows);
        assert_eq!(tokenizer.letters_per_token(), Some(k as usize));
        assert_eq!((tokenizer.alphabet(), tokenizer.span()), (Alphabet::Dna, 1));
        for Case { sequence, ids, .. } in cases(&format!("non_overlapping_v{version}_{k}.json")) {
            let encoded = tokenizer.encode(sequence.as_bytes());
            assert_eq!(encoded.ids, ids, "{sequence}");
            assert_eq!(encoded.letters, sequence.len());
            assert_eq!(encoded.unknown, ids.iter().filter(|&&id| id == 0).count());
            let other = sequence
                .bytes()
                .position(|letter| !b"ACGTN".contains(&letter));
            assert_eq!(encoded.first_unknown, other, "{sequence}");
            let rna = sequence.to_lowercase().replace('t', "u");
            assert_eq!(tokenizer.encode(rna.as_bytes()), encoded, "{rna}");
        }
        assert_eq!(tokenizer.why_no_tokens(0), "empty sequence");
    }
}

/// Files of these hashes are on the hub, with the 2.5B model of several species and with the 50M
/// one of version 2.
#[test]
fn the_vocabularies_of_nucleotide_transformer_are_the_published_ones() {
    for (name, hash) in [
        (
            "NT-2.5B-multi-species",
            "f1b544e27897936b50bbd925850fa8a08b421c33bb9c26e3711c140c061d0d4c",
        ),
        (
            "NT-v2-50M",
            "c00e0ad166d6ab3f7540ebc92270392e581bb3106763412f29034b49323e1052",
        ),
    ] {
        let known = seqembed_onnx::known_model(name).unwrap();
        let file = known.architecture.family().own_tokenizer().unwrap();
        let hash = (0..64)
            .step_by(2)
            .map(|at| u8::from_str_radix(&hash[at..at + 2], 16).unwrap());
        let hash: Vec<u8> = hash.collect();
        assert_eq!(sha2::Sha256::digest(&file)[..], hash, "{name}");
        tokenize::check(known.architecture.family(), &file).unwrap();
    }
}

#[test]
fn what_is_no_vocabulary_of_nucleotide_transformer_is_told() {
    let error = |vocabulary: &str| nucleotide_transformer(vocabulary).err().unwrap();
    let three = non_overlapping(2, 3);
    assert_eq!(
        error(&three.replace("GAT\n", "")),
        "the vocabulary has 63 k-mers of 3 bases, but all 4^3 are required"
    );
    assert!(error(&(three.clone() + "\nACGT")).contains("3 and of 4 bases (`ACGT`)"));
    assert_eq!(
        error(&three.replace("<cls>\n", "")),
        "the vocabulary lacks <cls>"
    );
    assert_eq!(error(&three.replace("\nN", "")), "the vocabulary lacks N");
    assert!(error(&(three.clone() + "\nMKV")).starts_with("`MKV` (id 75)"));
    assert!(error(&(three + "\nGAT")).contains("`GAT` twice"));
    assert!(error("<unk>\n<pad>\n<mask>\n<cls>\nA\nC\nG\nT\nN").contains("0 k-mers"));
}

#[test]
fn what_is_no_vocabulary_is_told() {
    let error = |vocabulary: &str| bert(vocabulary).err().unwrap();
    let three = kmers(3);
    assert_eq!(
        error(&three.replace("GAT\n", "")),
        "the vocabulary has 63 k-mers of 3 bases, but all 4^3 are required"
    );
    assert_eq!(
        error(&(three.clone() + "ACGT\n")),
        "the vocabulary has k-mers of 3 and of 4 bases (`ACGT`), but a model must have a single k"
    );
    assert_eq!(
        error(&three.replace("[SEP]\n", "")),
        "the vocabulary lacks [SEP]"
    );
    assert_eq!(
        error(&(three.clone() + "GAT\n")),
        format!(
            "the vocabulary has `GAT` twice (ids {} and 69)",
            three.lines().position(|line| line == "GAT").unwrap()
        )
    );
    assert_eq!(
        error(&(residues() + "##ing\n")),
        "`##ing` (id 25) is neither a single letter nor a k-mer of A, C, G and T; word pieces are not supported"
    );
    assert_eq!(
        error("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n"),
        "the vocabulary has 0 k-mers of 1 bases, but all 4^1 are required"
    );
    let nowhere = tokenize::open(Path::new("/nowhere"), TokenizerKind::Bert)
        .err()
        .unwrap();
    assert!(
        nowhere
            .to_string()
            .starts_with("cannot read /nowhere/vocab.txt: ")
    );
}

#[test]
fn single_residues_have_the_ids_of_transformers() {
    let tokenizer = bert(&residues()).unwrap();
    assert_eq!(tokenizer.special(), &special(2, 3, 0, 1));
    assert_eq!(
        (
            tokenizer.alphabet(),
            tokenizer.vocabulary(),
            tokenizer.span()
        ),
        (Alphabet::Protein, 25, 1)
    );
    for Case { sequence, ids, .. } in cases("residues.json") {
        let encoded = tokenizer.encode(sequence.as_bytes());
        assert_eq!(encoded.unknown, ids.iter().filter(|&&id| id == 1).count());
        assert_eq!(encoded.ids, ids);
        let encoded = tokenizer.encode((sequence.to_lowercase() + "*").as_bytes());
        assert_eq!(
            (encoded.letters, encoded.ids, encoded.dropped_stop),
            (sequence.len(), ids, true)
        );
    }
    let bases = bert("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nA\nC\nG\nT\nN\n").unwrap();
    assert_eq!(bases.alphabet(), Alphabet::Dna);
    assert_eq!(bases.encode(b"acguTN*").ids, [5, 6, 7, 8, 8, 9, 1]);
}

#[test]
fn dna_and_proteins_are_told_apart() {
    let protein = b"MKTVRQERLKSIVRILERSKEPVSGAQLAEELSVSRQVIVQDIAYLRSLGYN";
    let dna = b"ACGTTGCANNacgtRYSWKMBDHVACGURACGTTGCAACGT".repeat(3);
    assert!(looks_like_protein(protein) && !looks_like_dna(protein));
    assert!(!looks_like_protein(&dna));
    assert!(!looks_like_protein(b"MKLIFE"), "too short to tell");
    assert!(
        !looks_like_protein(&b"GAGAGSGAGAGY".repeat(10)),
        "silk: can't be told"
    );
    let why_not = |sequence: &[u8], alphabet| {
        let mut check = DnaCheck::default();
        check.add(sequence);
        check.why_not(alphabet)
    };
    assert_eq!(why_not(protein, Alphabet::Protein), None);
    assert_eq!(why_not(&dna, Alphabet::Dna), None);
    assert_eq!(
        why_not(protein, Alphabet::Dna).unwrap(),
        "looks like protein (38 % of its first 52 letters are E, F, I, L, P or Q, which are not \
         nucleotide codes)"
    );
    assert_eq!(
        why_not(&b"ACGTU".repeat(20), Alphabet::Protein).unwrap(),
        "looks like DNA (100 % of its first 100 letters are A, C, G, T, U or N)"
    );
}

#[test]
fn the_other_strand() {
    assert_eq!(reverse_complement(b"AACGtn"), b"naCGTT");
    assert_eq!(
        reverse_complement(b"ACGTUN-RYSWKMBDHV*[\xff"),
        b"\xff[*BDHVKMWSRY-NAACGT"
    );
}

/// DNA as it comes: stretches of bases, repeats, runs of N, and what should not be there.
fn sequence() -> impl Strategy<Value = Vec<u8>> {
    let stretch = prop_oneof![
        6 => "[ACGT]{0,400}",
        2 => ("[ACGT]{1,5}", 1..200_usize).prop_map(|(unit, count)| unit.repeat(count)),
        1 => "N{1,30}",
        1 => "[ACGTNRYSWKMBDHV]{0,40}",
        1 => "[acgtun]{0,40}",
        1 => "[ -~\t\n]{0,8}",
    ];
    let whole = proptest::collection::vec(stretch, 0..20);
    whole.prop_map(|stretches| {
        let mut sequence = stretches.concat().into_bytes();
        sequence.truncate(5000);
        sequence
    })
}

/// Merges that nobody trained: of any tokens, in any order.
fn merges() -> impl Strategy<Value = Value> {
    proptest::collection::vec(any::<(u32, u32)>(), 0..60).prop_map(|picks| {
        let mut tokens: Vec<String> = [
            "[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]", "A", "C", "G", "T",
        ]
        .map(str::to_owned)
        .to_vec();
        let mut merges = Vec::new();
        for (left, right) in picks {
            let of = |pick: u32| tokens[5 + pick as usize % (tokens.len() - 5)].clone();
            let (left, right) = (of(left), of(right));
            let whole = format!("{left}{right}");
            if whole.len() <= 16 && !tokens.contains(&whole) {
                tokens.push(whole);
                merges.push(format!("{left} {right}"));
            }
        }
        let mut file = viral();
        file["model"]["vocab"] = tokens
            .into_iter()
            .zip(0..)
            .map(|(token, id)| (token, json!(id)))
            .collect();
        file["model"]["merges"] = json!(merges);
        file
    })
}

/// Values that a file may have where others belong.
fn crafted() -> impl Strategy<Value = Value> {
    let text = prop_oneof![
        Just(String::new()),
        Just("T".to_owned()),
        Just("[CLS]".to_owned()),
        Just("\u{e9}\u{1b}".to_owned()),
        Just("A".repeat(5000)),
        "[ACGT# ]{1,4}",
    ];
    prop_oneof![
        Just(Value::Null),
        Just(json!([])),
        Just(json!({})),
        Just(json!(1e300)),
        any::<bool>().prop_map(Value::from),
        prop_oneof![
            Just(0),
            Just(-1),
            Just(i64::from(u32::MAX)),
            Just(i64::MAX),
            any::<i64>()
        ]
        .prop_map(Value::from),
        text.clone().prop_map(Value::from),
        (text.clone(), text).prop_map(|pair| json!([pair.0, pair.1])),
    ]
}

/// One of the values of a file, by a number: maps and lists are gone into.
fn one_of(value: &mut Value, mut pick: usize) -> &mut Value {
    let size = match value {
        Value::Array(list) => list.len(),
        Value::Object(map) => map.len(),
        _ => 0,
    };
    if size == 0 || pick.is_multiple_of(8) {
        return value;
    }
    pick /= 8;
    let inner = match value {
        Value::Array(list) => list.get_mut(pick % size),
        Value::Object(map) => map.values_mut().nth(pick % size),
        _ => None,
    };
    one_of(inner.expect("there are so many"), pick / size)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// An error or another tokenizer: what matters is that it ends without a panic, and that both
    /// ways agree.
    #[test]
    fn a_crafted_tokenizer_is_refused_or_works(
        changes in proptest::collection::vec((any::<u64>(), any::<proptest::sample::Index>(), crafted()), 1..4),
        small in merges(),
    ) {
        const SETTINGS: [&str; 9] = ["continuing_subword_prefix", "end_of_word_suffix", "unk_token", "vocab", "merges", "byte_fallback",
            "ignore_merges", "fuse_unk", "dropout"];
        let mut file = small;
        for (pick, setting, value) in changes {
            let (pick, setting) = (usize::try_from(pick).unwrap_or(usize::MAX), setting.get(&SETTINGS));
            match pick % 3 {
                0 => file["model"][*setting] = value,
                1 => *one_of(&mut file["model"][*setting], pick / 3) = value,
                _ => *one_of(&mut file, pick / 3) = value,
            }
            if !file.is_object() || !file["model"].is_object() {
                break;
            }
        }
        if let Ok(tokenizer) = BpeTokenizer::from_json(&file.to_string()) {
            for sequence in [b"ACGTTGCANNACGT".as_slice(), b"", b"A C\xff[CLS]"] {
                prop_assert_eq!(tokenizer.encode(sequence), tokenizer.encode_by_library(sequence));
            }
        }
        let text = file.to_string();
        for kind in [TokenizerKind::Esm, TokenizerKind::Bert] {
            let _ = tokenize::read(kind, text.replace(',', "\n").as_bytes());
        }
    }

    #[test]
    fn bpe_is_that_of_the_library(
        sequence in sequence(),
        fuse_unk: bool,
        words in prop_oneof![Just(json!({"type": "Whitespace"})), Just(json!({"type": "WhitespaceSplit"})), Just(Value::Null)],
    ) {
        let mut file = viral();
        file["model"]["fuse_unk"] = json!(fuse_unk);
        file["pre_tokenizer"] = words;
        let tokenizer = bpe(&file);
        prop_assert!(tokenizer.is_fast());
        prop_assert_eq!(tokenizer.encode(&sequence), tokenizer.encode_by_library(&sequence));
    }

    #[test]
    fn bpe_of_any_merges_is_that_of_the_library(file in merges(), sequences in proptest::collection::vec("[ACGT]{0,300}|[AC]{0,300}|[AN]{0,60}", 1..20)) {
        let tokenizer = bpe(&file);
        prop_assert!(tokenizer.is_fast());
        for sequence in sequences {
            prop_assert_eq!(tokenizer.encode(sequence.as_bytes()), tokenizer.encode_by_library(sequence.as_bytes()));
        }
    }

    #[test]
    fn any_bytes_are_taken(sequence in proptest::collection::vec(any::<u8>(), 0..200)) {
        let tokenizer = bpe(&viral());
        prop_assert_eq!(tokenizer.encode(&sequence), tokenizer.encode_by_library(&sequence));
        let tokenizer = bert(&kmers(3)).unwrap();
        prop_assert_eq!(tokenizer.encode(&sequence).ids.len(), sequence.len().saturating_sub(2));
    }

    #[test]
    fn a_kmer_is_looked_up_by_itself(sequence in "[ACGTN]{0,60}", k in 1..=6_u32) {
        let vocabulary = kmers(k);
        let tokenizer = bert(&vocabulary).unwrap();
        let ids: Vec<u32> = sequence.as_bytes().windows(k as usize).map(|kmer| {
            let kmer = std::str::from_utf8(kmer).unwrap();
            vocabulary.lines().position(|line| line == kmer).map_or(1, |at| u32::try_from(at).unwrap())
        }).collect();
        prop_assert_eq!(tokenizer.encode(sequence.as_bytes()).ids, ids);
    }

    /// The rule, letter by letter.
    #[test]
    fn the_longest_token_from_the_left_comes_first(
        sequence in proptest::collection::vec(prop_oneof![
            20 => prop::sample::select(&b"ACGT"[..]),
            1 => prop::sample::select(&b"acgtuUNnRY-*<\xc3\xff "[..]),
        ], 0..200),
        k in 2..=6_u32,
        version in 1..=2_u32,
    ) {
        let vocabulary = non_overlapping(version, k);
        let lines: Vec<&str> = vocabulary.lines().collect();
        let id = |word: &str| lines.iter().position(|line| *line == word);
        let k = k as usize;
        let upper: Vec<u8> = sequence.iter().map(|letter| match letter.to_ascii_uppercase() {
            b'U' => b'T',
            other => other,
        }).collect();
        let (mut ids, mut starts, mut at) = (Vec::new(), Vec::new(), 0);
        while at < upper.len() {
            let kmer = upper.get(at..at + k).and_then(|kmer| id(std::str::from_utf8(kmer).ok()?));
            let single = std::str::from_utf8(&upper[at..=at]).ok().and_then(id).unwrap_or(0);
            ids.push(u32::try_from(kmer.unwrap_or(single)).unwrap());
            starts.push(u32::try_from(at).unwrap());
            at += if kmer.is_some() { k } else { 1 };
        }
        let tokenizer = nucleotide_transformer(&vocabulary).unwrap();
        let encoded = tokenizer.encode(&sequence);
        prop_assert_eq!(&encoded.ids, &ids);
        prop_assert_eq!(encoded.starts.as_ref(), Some(&starts));
        prop_assert!(ids.iter().all(|&id| (id as usize) < tokenizer.vocabulary()));
        // Cut where a token starts, a sequence has the tokens before it.
        let cut = ids.len() / 2;
        let end = starts.get(cut).map_or(0, |&start| start as usize);
        prop_assert_eq!(tokenizer.encode_beginning(&sequence[..end]).ids, &ids[..cut]);
        // The other strand has as many: runs of bases have the same lengths.
        let other = tokenizer.encode(&reverse_complement(&sequence));
        prop_assert_eq!(other.ids.len(), ids.len());
    }

    /// Windows of these tokens have no more of them, nor more letters, than k-mers that fill it.
    #[test]
    fn windows_are_cut_by_tokens_that_do_not_overlap(
        sequence in "([ACGT]{0,40}[NR]{0,9}){0,12}",
        k in 2..=4_u32,
        (size, overlap) in (4..80_usize).prop_flat_map(|size| (Just(size), 0..size)),
    ) {
        let tokenizer = nucleotide_transformer(&non_overlapping(1, k)).unwrap();
        let encoded = tokenizer.encode(sequence.as_bytes());
        let (all, k) = (0..encoded.ids.len(), k as usize);
        let windows = tokenizer.windows(&encoded, all.clone(), size, overlap);
        let kept: Vec<usize> = windows.iter().flat_map(|window| window.kept.clone()).collect();
        prop_assert_eq!(kept, all.clone().collect::<Vec<_>>());
        let starts = encoded.starts.as_ref().unwrap();
        let end = |token: usize| starts.get(token).map_or(sequence.len(), |&start| start as usize);
        for window in &windows {
            prop_assert!(window.seen.start <= window.kept.start && window.kept.end <= window.seen.end);
            prop_assert!(window.seen.len() <= size / k);
            prop_assert!(end(window.seen.end) - end(window.seen.start) <= size);
            // What the model sees is what it would see of these letters alone.
            let letters = &sequence.as_bytes()[end(window.seen.start)..end(window.seen.end)];
            let alone = tokenizer.encode(letters).ids;
            prop_assert_eq!(alone, &encoded.ids[window.seen.clone()]);
        }
        for pair in windows.windows(2) {
            let shared = pair[0].seen.end - pair[1].seen.start;
            prop_assert!(shared >= (overlap / k).min(size / k - 1));
        }
    }

    #[test]
    fn windows_take_each_token_once_and_cut_none(
        sequence in sequence(),
        (size, overlap) in (6..600_usize).prop_flat_map(|size| (Just(size), 0..size)),
        k in 0..=6_u32,
    ) {
        let tokenizer: Box<dyn Tokenizer> = if k == 0 { Box::new(bpe(&viral())) } else { bert(&kmers(k)).unwrap() };
        let encoded = tokenizer.encode(&sequence);
        let windows = encoded.windows(tokenizer.span(), size, overlap);
        let kept: Vec<usize> = windows.iter().flat_map(|window| window.kept.clone()).collect();
        prop_assert_eq!(kept, (0..encoded.ids.len()).collect::<Vec<_>>());
        for window in windows {
            prop_assert!(window.seen.start <= window.kept.start && window.kept.end <= window.seen.end);
            let start = |token: usize| encoded.starts.as_ref().map_or(token, |starts| starts[token] as usize);
            let letters = start(window.seen.end - 1) + tokenizer.span() - start(window.seen.start);
            prop_assert!(letters <= size);
        }
    }

    #[test]
    fn the_other_strand_of_the_other_strand(sequence in "[ACGTNRYSWKMBDHVacgtnryswkmbdhv-]{0,200}") {
        let once = reverse_complement(sequence.as_bytes());
        prop_assert_eq!(reverse_complement(&once), sequence.into_bytes());
    }
}
