//! Properties of the way from records to files, with a stand-in for the model: whatever the files,
//! the options, the special tokens, the batches, the device's memory, the order in which batches
//! return, and the moments at which the run is killed or stopped, in the end every record has its
//! own row, once, in its place, as computed from the whole sequence.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use super::chunk::Chunk;
use super::chunker::{ChunkLimits, Chunker};
use super::collect::{Collector, FinishedBatch, Message};
use super::collect_error::Observer;
use super::dedup::Dedup;
use super::execute::Executor;
use super::loaded_device::LoadedDevice;
use super::output_files::OutputFiles;
use super::record_parts::PartTokens;
use super::save::Saver;
use super::task::Task;
use crate::device::Device;
use crate::engine::select::SelectedDevice;
use crate::engine::{Batch, Engine, EngineError, Reduce, Session, SessionInfo};
use crate::journal::facts::Facts;
use crate::journal::rows::Saved;
use crate::journal::{Journal, Request, ResumePlan, Ticket};
use crate::manifest::Job;
use crate::output::{self, Format, Layout};
use crate::pooling::{Pooling, Poolings};
use crate::records::Source;
use crate::report::FileReport;
use crate::settings::{
    Layers, Long, OutputPrecision, Overrides, Precision, Revcomp, Settings, WindowSize,
};
use crate::tokenize::dna::reverse_complement;
use crate::tokenize::{Alphabet, Encoded, SpecialTokens, Tokenizer};
use crate::trace::{Lane, Trace};

const HIDDEN: usize = 2;

/// A token for each k-mer, at a stride of one letter, between any special tokens.
struct Kmers {
    k: usize,
    /// Instead, k-mers that do not overlap and have no A, and single letters between them.
    is_apart: bool,
    special: SpecialTokens,
}

impl Kmers {
    /// Where tokens start that do not overlap, and where the last one ends.
    fn borders(&self, sequence: &[u8]) -> Vec<usize> {
        let mut borders = vec![0];
        let mut at = 0;
        while at < sequence.len() {
            let kmer = sequence.get(at..at + self.k);
            let is_whole = kmer.is_some_and(|kmer| !kmer.contains(&b'A'));
            at += if is_whole { self.k } else { 1 };
            borders.push(at);
        }
        borders
    }
}

impl Tokenizer for Kmers {
    fn encode(&self, sequence: &[u8]) -> Encoded {
        let id = |kmer: &[u8]| {
            let letters = kmer.iter().map(|&letter| u32::from(letter));
            letters.fold(0, |id, letter| (31 * id + letter) % 97)
        };
        let (ids, starts) = if self.is_apart {
            let borders = self.borders(sequence);
            let tokens = borders
                .windows(2)
                .map(|pair| id(&sequence[pair[0]..pair[1]]));
            let starts = borders.iter().map(|&at| u32::try_from(at).unwrap());
            let starts = starts.take(borders.len() - 1).collect();
            (tokens.collect(), Some(starts))
        } else {
            (sequence.windows(self.k).map(id).collect(), None)
        };
        Encoded {
            ids,
            letters: sequence.len(),
            starts,
            ..Encoded::default()
        }
    }

    fn special(&self) -> &SpecialTokens {
        &self.special
    }

    fn alphabet(&self) -> Alphabet {
        Alphabet::Dna
    }

    fn vocabulary(&self) -> usize {
        300
    }

    fn span(&self) -> usize {
        if self.is_apart { 1 } else { self.k }
    }

    fn letters_per_token(&self) -> Option<usize> {
        self.is_apart.then_some(self.k)
    }
}

/// So many special tokens in front and behind; the last one in front is [CLS].
fn special_tokens((front, behind): (u32, u32)) -> SpecialTokens {
    SpecialTokens {
        front: (100..100 + front).collect(),
        behind: (200..200 + behind).collect(),
        cls: (front > 0).then_some(99 + front),
        pad: 0,
        unk: 0,
    }
}

/// What the stand-in gives for a token: whole numbers, of which sums and means are exact enough.
fn vector(id: u32) -> [f32; HIDDEN] {
    [(id % 17) as f32, (id % 5) as f32 - 2.0]
}

/// A mock of the model on a device, with memory for this many tokens per batch.
struct StandIn {
    memory: usize,
    info: SessionInfo,
}

impl StandIn {
    fn new(memory: usize) -> Self {
        let info = SessionInfo {
            device: Device::Cpu,
            precision: Precision::Fp32,
            weights_sha256: String::new(),
            architecture: String::new(),
            graph_sha256: String::new(),
            layers: Layers::from(0),
            outputs: Vec::new(),
            hidden: HIDDEN,
            padded: false,
        };
        Self { memory, info }
    }
}

impl Engine for StandIn {
    fn run(&self, batch: &Batch, reduce: Reduce) -> Result<Vec<f32>, EngineError> {
        if batch.tokens() > self.memory {
            return Err(EngineError::OutOfMemory("too many tokens".to_owned()));
        }
        assert!(batch.ranges.len().is_multiple_of(batch.sequences()));
        let ids = batch.ids.iter().map(|&id| u32::try_from(id).unwrap());
        let tokens: Vec<_> = ids.map(vector).collect();
        let rows = |is_max: bool| {
            let rows = batch.ranges.iter().map(|range| {
                let [start, end] = range.map(|at| usize::try_from(at).unwrap());
                pooled(&tokens[start..end], is_max)
            });
            rows.collect::<Vec<_>>().concat()
        };
        Ok(match reduce {
            Reduce::Tokens => tokens.concat(),
            Reduce::Mean => rows(false),
            Reduce::Max => rows(true),
            Reduce::Both => batch.either(rows(false), &rows(true), HIDDEN),
        })
    }
}

impl Session for StandIn {
    fn info(&self) -> &SessionInfo {
        &self.info
    }
}

fn pooled(tokens: &[[f32; HIDDEN]], maximum: bool) -> Vec<f32> {
    (0..HIDDEN)
        .map(|at| {
            let values = tokens.iter().map(|token| token[at]);
            if maximum {
                values.fold(f32::MIN, f32::max)
            } else {
                values.sum::<f32>() / tokens.len() as f32
            }
        })
        .collect()
}

struct Silent;

impl Observer for Silent {
    fn warning(&mut self, _: &str) {}
    fn failure(&mut self, _: &str) {}
    fn advanced(&mut self, _: u64, _: u64, _: u64, _: u64) {}
}

/// The options of a file.
#[derive(Debug, Clone)]
struct Choice {
    poolings: Vec<Pooling>,
    is_truncated: bool,
    both_strands: bool,
}

impl Choice {
    /// What the model has, and what goes together.
    fn possible(self, special: &SpecialTokens) -> Self {
        let mut poolings = Vec::new();
        for pooling in self.poolings {
            let is_available = pooling.is_available(special);
            let pooling = if is_available { pooling } else { Pooling::Mean };
            if !poolings.contains(&pooling) {
                poolings.push(pooling);
            }
        }
        Self {
            both_strands: self.both_strands && poolings != [Pooling::None],
            poolings,
            ..self
        }
    }

    fn poolings(&self) -> Poolings {
        let names: Vec<String> = self.poolings.iter().map(Pooling::to_string).collect();
        names.join(",").parse().unwrap()
    }

    /// The row of a sequence, computed from all of its letters together.
    fn expected(&self, sequence: &str, case: &Case) -> Vec<f32> {
        let tokenizer = &case.tokenizer;
        let mut letters = sequence.as_bytes();
        if self.is_truncated {
            letters = &letters[..letters.len().min(case.size.max_length)];
            if let Some(most) = case.max_tokens {
                let borders = tokenizer.borders(letters);
                letters = &letters[..borders[most.min(borders.len() - 1)]];
            }
        }
        let mut row = self.expected_of_strand(letters, tokenizer);
        if self.both_strands {
            let reverse = self.expected_of_strand(&reverse_complement(letters), tokenizer);
            let both = row.iter_mut().zip(reverse);
            both.for_each(|(a, b)| *a = f32::midpoint(*a, b));
        }
        row
    }

    fn expected_of_strand(&self, letters: &[u8], tokenizer: &Kmers) -> Vec<f32> {
        let each = self.poolings.iter();
        let each = each.map(|&pooling| Self::expected_of(pooling, letters, tokenizer));
        each.collect::<Vec<_>>().concat()
    }

    fn expected_of(pooling: Pooling, letters: &[u8], tokenizer: &Kmers) -> Vec<f32> {
        let vectors = |ids: &[u32]| ids.iter().map(|&id| vector(id)).collect::<Vec<_>>();
        let tokens = vectors(&tokenizer.encode(letters).ids);
        let SpecialTokens { front, behind, .. } = &tokenizer.special;
        match pooling {
            Pooling::None => tokens.concat(),
            _ if tokens.is_empty() => vec![f32::NAN; HIDDEN],
            Pooling::Max => pooled(&tokens, true),
            Pooling::Cls => vector(*front.last().unwrap()).to_vec(),
            Pooling::Mean => pooled(&tokens, false),
            Pooling::Sum => {
                let mean = pooled(&tokens, false).into_iter();
                mean.map(|mean| mean * tokens.len() as f32).collect()
            }
            Pooling::MeanAll => {
                let all = [vectors(front), tokens, vectors(behind)].concat();
                pooled(&all, false)
            }
        }
    }
}

/// What stays the same over the runs of a case.
struct Case<'a> {
    folder: &'a Path,
    sequences: &'a [Vec<String>],
    choices: Vec<Choice>,
    tokenizer: Kmers,
    size: WindowSize,
    /// The most tokens of a sequence that is embedded whole, where tokens do not overlap.
    max_tokens: Option<usize>,
    limits: ChunkLimits,
    /// Rows that are kept of earlier chunks; none: each window is computed.
    cached: Option<usize>,
    /// Tokens that the device has memory for.
    memory: usize,
    /// The model's own limit.
    model_limit: Option<usize>,
}

/// What is left to compute, with an entry for each file.
struct Left {
    tasks: Vec<Task>,
    layouts: Vec<Layout>,
    tickets: Vec<Ticket>,
    saved: Vec<Saved>,
}

/// Numbers to decide by, from one seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        usize::try_from(self.0 >> 33).unwrap() % end
    }
}

impl Case<'_> {
    /// Width of a row: all files have as many poolings.
    fn width(&self) -> usize {
        HIDDEN * self.choices[0].poolings.len()
    }

    fn maxima(&self) -> Vec<bool> {
        match &self.choices[0] {
            choice if choice.poolings.len() > 1 => choice.poolings().maxima(),
            _ => Vec::new(),
        }
    }

    fn tasks(&self) -> Vec<Task> {
        let task = |at: usize| {
            let choice = &self.choices[at];
            let overrides = Overrides {
                model: Some("m".to_owned()),
                pooling: Some(choice.poolings()),
                format: Some(Format::Npz),
                long: choice.is_truncated.then_some(Long::Truncate),
                revcomp: choice.both_strands.then_some(Revcomp::Mean),
                force_alphabet: Some(true),
                ..Overrides::default()
            };
            let settings = Settings::resolve(&[&overrides]).unwrap();
            settings.check_pooling(&self.tokenizer.special).unwrap();
            Task {
                job: Job {
                    sample: format!("f{at}"),
                    source: Source::new(self.folder.join(format!("f{at}.faa"))),
                    settings,
                    line: None,
                },
                window: self.size,
                max_tokens: self.max_tokens,
                spans: None,
            }
        };
        (0..self.sequences.len()).map(task).collect()
    }

    /// Looks up in the journal what earlier runs did.
    fn left(&self, journal: &mut Journal, out: &Path) -> Left {
        let tasks = self.tasks();
        let layout = |task: &Task| Layout {
            path: out.join(format!("{}.npz", task.job.sample)),
            columns: Vec::new(),
            hidden: self.width(),
            per_token: task.job.settings.pooling.is_per_token(),
            precision: OutputPrecision::default(),
            provenance: Vec::new(),
        };
        let layouts: Vec<Layout> = tasks.iter().map(layout).collect();
        let requests = tasks.iter().zip(&layouts).map(|(task, layout)| Request {
            sample: &task.job.sample,
            source: &task.job.source,
            facts: Facts(vec![(
                "pooling".to_owned(),
                task.job.settings.pooling.to_string(),
            )]),
            format: "npz".to_owned(),
            name: task.job.sample.clone(),
            output: layout.path.clone(),
        });
        let plans = journal.plan(requests.collect()).unwrap();
        let mut left = Left {
            tasks: Vec::new(),
            layouts: Vec::new(),
            tickets: Vec::new(),
            saved: Vec::new(),
        };
        for ((task, layout), plan) in tasks.into_iter().zip(layouts).zip(plans) {
            match plan {
                ResumePlan::Finished { report, note } => {
                    assert_eq!(note, None);
                    assert_eq!(report.sample, task.job.sample);
                    assert!(layout.path.exists());
                }
                ResumePlan::Compute {
                    ticket,
                    saved,
                    why_again,
                } => {
                    assert_eq!(why_again, None);
                    left.tasks.push(task);
                    left.layouts.push(layout);
                    left.tickets.push(ticket);
                    left.saved.push(saved);
                }
            }
        }
        left
    }

    /// One run, which ends after so many messages: immediately, or saving what it has. Says
    /// whether all was done.
    fn run(&self, dice: &mut Dice, messages: usize, is_killed: bool) -> bool {
        let out = self.folder.join("out");
        let mut journal = Journal::open(&out, None, true, &mut |text| {
            assert!(!text.contains("damaged"), "{text}");
        })
        .unwrap();
        let left = self.left(&mut journal, &out);
        let tasks = left.tasks;
        let files = tasks.iter().map(|task| FileReport {
            sample: task.job.sample.clone(),
            ..FileReport::default()
        });
        let saved = Arc::new(left.saved);
        let mut chunker = Chunker::new(&tasks, &self.tokenizer, self.limits);
        chunker.resume(Arc::clone(&saved));
        if let Some(capacity) = self.cached {
            chunker.share(Dedup::with_capacity(capacity));
        }
        let keeper = Saver::new(
            &mut journal,
            left.tickets,
            self.width(),
            Duration::from_hours(1),
        );
        let reports = files.collect();
        let files = OutputFiles::new(&tasks, left.layouts, reports, self.width(), Some(keeper));
        let mut collector = Collector::new(&tasks, files, self.width(), saved);
        let device = LoadedDevice::new(
            SelectedDevice::cpu(),
            Precision::Fp32,
            Arc::new(StandIn::new(self.memory)),
            Box::new(StandIn::new(self.memory)),
            None,
        );
        let trace = Trace::off();
        let executor = Executor {
            device: &device,
            tasks: &tasks,
            tokenizer: &self.tokenizer,
            model_limit: self.model_limit,
            hidden: self.width(),
            maxima: self.maxima(),
            trace: &trace,
            lane: Lane::host("worker"),
        };
        let is_done = self.exchange(dice, messages, &mut chunker, &executor, &mut collector);
        if is_done || !is_killed {
            collector.abandon(&mut Silent).unwrap();
        }
        is_done
    }

    /// Reads chunks and hands batches back in any order, so many in all. Says whether all was done.
    fn exchange(
        &self,
        dice: &mut Dice,
        messages: usize,
        chunker: &mut Chunker,
        executor: &Executor,
        collector: &mut Collector,
    ) -> bool {
        let mut under_way: Vec<FinishedBatch> = Vec::new();
        let mut chunks = 0;
        for _ in 0..messages {
            let may_read = chunks < 3 && !chunker.is_done();
            if may_read && (under_way.is_empty() || dice.below(3) == 0) {
                let chunk = Arc::new(chunker.next().unwrap());
                for batch in 0..chunk.batches.len() {
                    under_way.push(self.batch(&chunk, batch, executor));
                }
                chunks += 1;
                chunks -= collector.take(Message::Chunk(chunk), &mut Silent).unwrap();
            } else if !under_way.is_empty() {
                let done = under_way.swap_remove(dice.below(under_way.len()));
                chunks -= collector.take(Message::Done(done), &mut Silent).unwrap();
            } else {
                return true;
            }
            if dice.below(6) == 0 {
                collector.save(true).unwrap();
            }
        }
        false
    }

    fn batch(&self, chunk: &Chunk, batch: usize, executor: &Executor) -> FinishedBatch {
        let segments = chunk.batches[batch].iter().map(|&s| &chunk.segments[s]);
        let tokens: usize = segments.map(|segment| segment.input.tokens).sum();
        assert!(chunk.batches[batch].len() == 1 || tokens <= self.limits.batch_tokens);
        let special = self.tokenizer.special.count();
        for segment in &chunk.batches[batch] {
            let tokens = chunk.segments[*segment].input.tokens - special;
            assert!(self.max_tokens.is_none_or(|most| tokens <= most));
        }
        FinishedBatch {
            chunk: chunk.number,
            batch,
            result: Ok(executor.compute(chunk, batch).unwrap()),
            elapsed: Duration::ZERO,
        }
    }

    /// Checks the rows of every file.
    fn check(&self) -> Result<(), TestCaseError> {
        for (at, sequences) in self.sequences.iter().enumerate() {
            let (rows, _) = output::read(&self.folder.join(format!("out/f{at}.npz"))).unwrap();
            let ids: Vec<String> = (0..sequences.len()).map(|n| format!("r{n}")).collect();
            prop_assert_eq!(&rows.ids, &ids);
            let expected = |sequence: &String| self.choices[at].expected(sequence, self);
            let all: Vec<f32> = sequences.iter().flat_map(expected).collect();
            prop_assert_eq!(rows.values.len(), all.len());
            for (value, expected) in rows.values.iter().zip(&all) {
                // Sums have up to four digits before the point.
                let bound = 1e-4_f32.max(1e-6 * expected.abs());
                let is_same =
                    (value - expected).abs() < bound || (value.is_nan() && expected.is_nan());
                prop_assert!(is_same, "{} is not {}", value, expected);
            }
        }
        Ok(())
    }
}

fn choices() -> impl Strategy<Value = Vec<Choice>> {
    let poolings = vec![
        Pooling::Mean,
        Pooling::MeanAll,
        Pooling::Cls,
        Pooling::Max,
        Pooling::Sum,
        Pooling::None,
    ];
    let choice = (prop::sample::select(poolings), any::<bool>(), any::<bool>());
    let choice = choice.prop_map(|(pooling, is_truncated, both_strands)| Choice {
        poolings: vec![pooling],
        is_truncated,
        both_strands,
    });
    prop::collection::vec(choice, 6)
}

/// Several poolings of all files; nothing: each file has one of its own.
fn several() -> impl Strategy<Value = Vec<Pooling>> {
    let all = vec![
        Pooling::Cls,
        Pooling::Mean,
        Pooling::Sum,
        Pooling::Max,
        Pooling::MeanAll,
    ];
    let some = prop::sample::subsequence(all, 1..=5);
    prop_oneof![Just(Vec::new()), some.prop_shuffle()]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn every_record_gets_its_own_row_once_and_in_its_place(
        sequences in prop::collection::vec(
            prop::collection::vec("[ACGT]{0,12}|[ACGT]{60,150}|[ACGT]{200,500}", 0..20),
            1..6,
        ),
        choices in choices(),
        several in several(),
        around in prop::sample::select(vec![(1, 1), (1, 0), (0, 1), (2, 1), (0, 0)]),
        (k, is_apart, slack) in (prop::sample::select(vec![1_usize, 3]), any::<bool>(), 0..9_usize),
        // Windows of a few letters, and such as the device may have no memory for.
        (max_length, overlap) in prop::sample::select(vec![(7, 3), (120, 30), (450, 0)]),
        (memory, model_limit) in (460..700_usize, prop::option::of(64..450_usize)),
        is_small: bool,
        (chunk_tokens, batch_tokens, part_tokens) in (1..80_usize, 1..60_usize, 1..10_usize),
        cached in prop::option::of(0..5_usize),
        runs in prop::collection::vec((0..40_usize, any::<bool>()), 0..5),
        seed: u64,
    ) {
        let scratch = tempfile::tempdir().unwrap();
        let folder = scratch.path();
        std::fs::create_dir(folder.join("out")).unwrap();
        for (at, sequences) in sequences.iter().enumerate() {
            let records = sequences.iter().enumerate();
            let records = records.map(|(n, s)| format!(">r{n} of f{at}\n{s}\n"));
            let text = records.collect::<Vec<_>>().concat();
            std::fs::write(folder.join(format!("f{at}.faa")), text).unwrap();
        }
        let special = special_tokens(around);
        let choices = choices.into_iter().map(|choice| Choice {
            poolings: if several.is_empty() { choice.poolings } else { several.clone() },
            ..choice
        });
        let mut choices: Vec<Choice> =
            choices.map(|choice| choice.possible(&special)).collect();
        if is_small {
            // What does not fit is cut into windows, where the options allow it.
            for choice in &mut choices {
                choice.is_truncated = false;
            }
        }
        let case = Case {
            folder,
            sequences: &sequences,
            choices,
            tokenizer: Kmers { k, is_apart, special },
            size: WindowSize { max_length, overlap },
            max_tokens: is_apart.then_some(max_length / k + slack),
            limits: ChunkLimits {
                chunk_tokens,
                batch_tokens: if is_small { 10 * batch_tokens } else { batch_tokens },
                padded: false,
                // Of some sequences several chunks are made.
                part_tokens: PartTokens { pooled: part_tokens, each: part_tokens },
            },
            cached,
            // The shortest windows that are tried have fewer than 128 letters.
            memory: if is_small { memory - 328 } else { memory },
            model_limit,
        };
        let mut dice = Dice(seed);
        for (messages, is_killed) in runs {
            case.run(&mut dice, messages, is_killed);
        }
        prop_assert!(case.run(&mut dice, usize::MAX, false));
        case.check()?;
        // Nothing of the way is left.
        let names = std::fs::read_dir(folder.join("out/.seqembed")).unwrap();
        let mut names: BTreeSet<String> =
            names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.remove("lock");
        names.remove("journal");
        prop_assert!(names.is_empty(), "{:?}", names);
    }
}
