//! Laws of the way from records to files, with a stand-in for the model: whatever the files, the options, the batches, the
//! order in which they return, and the moments at which the run is killed or stopped, in the end every record has its own
//! row, once, in its place.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use super::chunk::{Chunk, Segment, Task};
use super::chunker::{Chunker, Limits, PartTokens};
use super::collect::{Collector, Done, Message, Observer};
use super::dedup::Repeats;
use super::execute::Outcome;
use super::save::Saver;
use crate::engine::Reduce;
use crate::journal::facts::Facts;
use crate::journal::{Journal, Plan, Request};
use crate::manifest::Job;
use crate::output::{self, Format, Layout};
use crate::records::Source;
use crate::report::FileReport;
use crate::settings::{OutputPrecision, Overrides, Pooling, Settings, Window};
use crate::tokenize::{Alphabet, Encoded, Special, Tokenizer};

const HIDDEN: usize = 2;
const CLS: u32 = 100;
const EOS: u32 = 101;

/// One token a letter.
struct Letters;

impl Tokenizer for Letters {
    fn encode(&self, sequence: &[u8]) -> Encoded {
        Encoded {
            ids: sequence.iter().map(|&letter| letter.into()).collect(),
            letters: sequence.len(),
            ..Encoded::default()
        }
    }

    fn special(&self) -> Special {
        Special {
            cls: CLS,
            eos: EOS,
            pad: 0,
            unk: 0,
        }
    }

    fn alphabet(&self) -> Alphabet {
        Alphabet::Protein
    }

    fn vocabulary(&self) -> usize {
        128
    }
}

/// What the stand-in gives for a token: whole numbers, of which sums and means are exact enough.
fn vector(id: u32) -> [f32; HIDDEN] {
    [(id % 17) as f32, (id % 5) as f32 - 2.0]
}

/// What the stand-in gives for a segment.
fn compute(chunk: &Chunk, segment: &Segment) -> Vec<f32> {
    let ids = &chunk.encoded[segment.record].ids[segment.window.seen.clone()];
    let mut tokens = vec![vector(CLS)];
    tokens.extend(ids.iter().map(|&id| vector(id)));
    tokens.push(vector(EOS));
    match segment.reduce {
        Reduce::Tokens => tokens.concat(),
        reduce => pooled(&tokens[segment.range.clone()], reduce == Reduce::Max),
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

/// The row of a sequence, from its letters alone.
fn expected(sequence: &str, pooling: Pooling) -> Vec<f32> {
    let tokens: Vec<_> = sequence.bytes().map(|id| vector(id.into())).collect();
    match pooling {
        Pooling::None => tokens.concat(),
        _ if tokens.is_empty() => vec![f32::NAN; HIDDEN],
        Pooling::Max => pooled(&tokens, true),
        Pooling::Cls => vector(CLS).to_vec(),
        Pooling::Mean => pooled(&tokens, false),
        Pooling::MeanAll => {
            let all = [vec![vector(CLS)], tokens, vec![vector(EOS)]].concat();
            pooled(&all, false)
        }
    }
}

struct Silent;

impl Observer for Silent {
    fn warning(&mut self, _: &str) {}
    fn failure(&mut self, _: &str) {}
    fn advanced(&mut self, _: u64, _: u64, _: u64, _: u64) {}
}

/// What stays the same over the runs of a case.
struct Case<'a> {
    folder: &'a Path,
    sequences: &'a [Vec<String>],
    poolings: &'a [Pooling],
    limits: Limits,
    slots: Option<usize>,
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
    fn tasks(&self) -> Vec<Task> {
        let task = |at: usize| {
            let overrides = Overrides {
                model: Some("m".to_owned()),
                pooling: Some(self.poolings[at]),
                format: Some(Format::Npz),
                force_alphabet: Some(true),
                ..Overrides::default()
            };
            Task {
                job: Job {
                    sample: format!("f{at}"),
                    source: Source::new(self.folder.join(format!("f{at}.faa"))),
                    settings: Settings::resolve(&[&overrides]).unwrap(),
                    line: None,
                },
                window: Window {
                    max_length: 7,
                    overlap: 3,
                },
            }
        };
        (0..self.sequences.len()).map(task).collect()
    }

    /// One run, which ends after so many messages: at once, or saving what it has. Says whether all was done.
    fn run(&self, dice: &mut Dice, messages: usize, is_killed: bool) -> bool {
        let out = self.folder.join("out");
        let mut journal = Journal::open(&out, None, true, &mut |text| {
            assert!(!text.contains("damaged"), "{text}");
        })
        .unwrap();
        let mut tasks = self.tasks();
        let layouts: Vec<Layout> = tasks
            .iter()
            .map(|task| Layout {
                path: out.join(format!("{}.npz", task.job.sample)),
                hidden: HIDDEN,
                per_token: task.job.settings.pooling == Pooling::None,
                precision: OutputPrecision::default(),
                provenance: Vec::new(),
            })
            .collect();
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
        let (mut tickets, mut saved, mut left) = (Vec::new(), Vec::new(), Vec::new());
        for ((task, layout), plan) in tasks.drain(..).zip(layouts).zip(plans) {
            match plan {
                Plan::Finished { report, note } => {
                    assert_eq!(note, None);
                    assert_eq!(report.sample, task.job.sample);
                    assert!(layout.path.exists());
                }
                Plan::Compute {
                    ticket,
                    saved: rows,
                    why_again,
                } => {
                    assert_eq!(why_again, None);
                    tickets.push(ticket);
                    saved.push(rows);
                    left.push((task, layout));
                }
            }
        }
        let (tasks, layouts): (Vec<Task>, Vec<Layout>) = left.into_iter().unzip();
        let files = tasks.iter().map(|task| FileReport {
            sample: task.job.sample.clone(),
            ..FileReport::default()
        });
        let saved = Arc::new(saved);
        let mut chunker = Chunker::new(&tasks, &Letters, self.limits);
        chunker.resume(Arc::clone(&saved));
        if let Some(slots) = self.slots {
            chunker.share(Repeats::with_slots(slots));
        }
        let keeper = Saver::new(&mut journal, tickets, HIDDEN, Duration::from_hours(1));
        let mut collector = Collector::new(
            &tasks,
            layouts,
            files.collect(),
            HIDDEN,
            Some(keeper),
            saved,
        );

        let mut under_way: Vec<Done> = Vec::new();
        let mut chunks = 0;
        for _ in 0..messages {
            let may_read = chunks < 3 && !chunker.is_done();
            if may_read && (under_way.is_empty() || dice.below(3) == 0) {
                let chunk = Arc::new(chunker.next().unwrap());
                for batch in 0..chunk.batches.len() {
                    under_way.push(self.batch(&chunk, batch));
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
                collector.save().unwrap();
            }
        }
        if !is_killed {
            collector.abandon().unwrap();
        }
        false
    }

    fn batch(&self, chunk: &Chunk, batch: usize) -> Done {
        let segments = &chunk.batches[batch];
        let tokens: usize = segments.iter().map(|&s| chunk.segments[s].tokens()).sum();
        assert!(segments.len() == 1 || tokens <= self.limits.batch_tokens);
        let rows = segments.iter().map(|&s| compute(chunk, &chunk.segments[s]));
        Done {
            chunk: chunk.number,
            batch,
            outcome: Ok(Outcome {
                rows: rows.collect::<Vec<_>>().concat(),
                notes: Vec::new(),
            }),
            elapsed: Duration::ZERO,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn every_record_gets_its_own_row_once_and_in_its_place(
        sequences in prop::collection::vec(prop::collection::vec("[MKV]{0,12}|[MKV]{60,150}", 0..20), 1..6),
        poolings in prop::collection::vec(
            prop::sample::select(vec![Pooling::Mean, Pooling::MeanAll, Pooling::Cls, Pooling::Max, Pooling::None]),
            6,
        ),
        chunk_tokens in 1..80_usize,
        batch_tokens in 1..60_usize,
        part_tokens in 1..10_usize,
        slots in prop::option::of(0..5_usize),
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
        let case = Case {
            folder,
            sequences: &sequences,
            poolings: &poolings,
            limits: Limits {
                chunk_tokens,
                batch_tokens,
                padded: false,
                // Of some sequences several chunks are made.
                part_tokens: PartTokens { pooled: part_tokens, each: part_tokens },
            },
            slots,
        };
        let mut dice = Dice(seed);
        for (messages, is_killed) in runs {
            case.run(&mut dice, messages, is_killed);
        }
        prop_assert!(case.run(&mut dice, usize::MAX, false));
        for (at, sequences) in sequences.iter().enumerate() {
            let (rows, _) = output::read(&folder.join(format!("out/f{at}.npz"))).unwrap();
            let ids: Vec<String> = (0..sequences.len()).map(|n| format!("r{n}")).collect();
            prop_assert_eq!(&rows.ids, &ids);
            let all: Vec<f32> =
                sequences.iter().flat_map(|sequence| expected(sequence, poolings[at])).collect();
            prop_assert_eq!(rows.values.len(), all.len());
            for (value, expected) in rows.values.iter().zip(&all) {
                let is_same = (value - expected).abs() < 1e-4 || (value.is_nan() && expected.is_nan());
                prop_assert!(is_same, "{} is not {}", value, expected);
            }
        }
        // Nothing of the way is left.
        let names = std::fs::read_dir(folder.join("out/.seqembed")).unwrap();
        let mut names: BTreeSet<String> =
            names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.remove("lock");
        names.remove("journal");
        prop_assert!(names.is_empty(), "{:?}", names);
    }
}
