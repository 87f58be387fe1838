//! The crate as a library: `Embedder` loads once, gives the executable's numbers, takes a session
//! and gives its own away.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::common::{self, DONE, Place, assert_run, exported, fixtures, records, text};
use seqembed::device::Device;
use seqembed::embedder::{EmbedError, Silent};
use seqembed::engine::session::{Session, SessionInfo};
use seqembed::engine::{Batch, Engine, EngineError, Reduce};
use seqembed::output::{self, Rows};
use seqembed::run::RunError;
use seqembed::settings::{Long, Overrides, Pooling, Precision, Unknown};
use seqembed::{Embedder, EmbedderOptions};

fn options(settings: Overrides) -> EmbedderOptions {
    EmbedderOptions {
        settings,
        threads: Some(2),
        ..EmbedderOptions::default()
    }
}

fn embedder(model: &str, settings: Overrides) -> Embedder {
    Embedder::new(text(exported(model)), options(settings)).unwrap()
}

#[track_caller]
fn assert_same(left: &Rows, right: &Rows) {
    assert_eq!(left.ids, right.ids);
    assert_eq!(left.headers, right.headers);
    assert_eq!(left.status, right.status);
    assert_eq!(left.lengths, right.lengths);
    assert_eq!(left.vectors, right.vectors);
    assert_eq!(left.values.len(), right.values.len());
    for (a, b) in left.values.iter().zip(&right.values) {
        assert!(
            (a - b).abs() <= 1e-5 || (a.is_nan() && b.is_nan()),
            "{a} {b}"
        );
    }
}

#[test]
fn it_gives_what_the_executable_writes_with_one_load() {
    for (model, file) in [
        ("esm2", "esm2/inputs/mixed.faa"),
        ("esm2", "esm2/inputs/letters.faa"),
        ("dnabert2", "dna/inputs/mixed.fna"),
    ] {
        let sequences = records(file);
        let source = std::fs::read(fixtures().join(file)).unwrap();
        let place = Place::new(&[("x.fasta", &source), ("y.fasta", &source)]);
        assert_run(&place.embed(model, "x.fasta", &[]), DONE, &[]);
        let expected = place.rows("x.parquet").unwrap();

        let mut embedder = embedder(model, Overrides::default());
        assert_same(&embedder.embed(sequences.clone()).unwrap(), &expected);
        // One by one, and from file to file: still the same model.
        for (at, sequence) in sequences.into_iter().enumerate() {
            let row = embedder.embed([sequence]).unwrap();
            assert_eq!(row.ids[..], expected.ids[at..=at]);
            assert_eq!(row.values.len(), expected.hidden);
        }
        let files = [place.path("x.fasta"), place.path("y.fasta")];
        let out = place.path("made/by/the/library");
        let report = embedder.run(&files, &out, &mut Silent).unwrap();
        assert_eq!(report.files.len(), 2);
        assert!(
            report.loads.is_empty(),
            "the model was there before the run"
        );
        for name in ["x.parquet", "y.parquet"] {
            assert_same(&output::read(&out.join(name)).unwrap().0, &expected);
        }
        assert_eq!(embedder.loads().len(), 1);
    }
}

#[test]
fn nothing_is_loaded_before_the_first_batch() {
    let mut embedder = Embedder::new(
        text(exported("esm2")),
        EmbedderOptions {
            ort_lib: Some(PathBuf::from("no/such/library")),
            ..options(Overrides::default())
        },
    )
    .unwrap();
    assert_eq!(embedder.precision(), None);
    // Records without residues need no model.
    let rows = embedder.embed([("a", ""), ("b", "*")]).unwrap();
    assert_eq!(rows.status, ["skipped: empty sequence"; 2]);
    assert!(rows.values.iter().all(|value| value.is_nan()));
    assert!(embedder.loads().is_empty());
    // Nor does no record at all.
    let none: [(&str, &str); 0] = [];
    assert!(embedder.embed(none).unwrap().is_empty());

    let error = embedder.embed([("a", "MKT")]).unwrap_err().to_string();
    assert!(
        error.contains("no/such/library") && error.contains("pip install -U 'onnxruntime>=1.24'"),
        "{error}"
    );
    assert!(embedder.loads().is_empty());
}

#[test]
fn what_a_policy_forbids_is_an_error_and_the_model_stays() {
    let mut embedder = embedder(
        "esm2",
        Overrides {
            max_length: Some(8),
            long: Some(Long::Error),
            unknown: Some(Unknown::Error),
            ..Overrides::default()
        },
    );
    for (sequence, why) in [
        (
            "MKTAYIAKQR",
            "record \"bad\": 10 residues exceed option `max_length: 8`",
        ),
        ("MKJ", "'J' at position 3 is not in the model's vocabulary"),
    ] {
        let error = embedder
            .embed([("good", "MKT"), ("bad", sequence)])
            .unwrap_err();
        assert!(matches!(error, EmbedError::Sequences(_)), "{error}");
        assert!(error.to_string().contains(why), "{error}");
    }
    let dna = "ACGT".repeat(100);
    let error = embedder.embed([("dna", &dna[..8]); 60]).unwrap_err();
    assert!(
        error.to_string().contains("option `force_alphabet`"),
        "{error}"
    );
    assert_eq!(embedder.embed([("good", "MKT")]).unwrap().status, ["ok"]);
    assert_eq!(embedder.loads().len(), 1);
}

#[test]
fn options_that_do_not_fit_the_model_are_told_at_once() {
    for (settings, why) in [
        (
            Overrides {
                layer: Some(99.into()),
                ..Overrides::default()
            },
            "there is no layer 99",
        ),
        (
            Overrides {
                max_length: Some(10),
                overlap: Some(10),
                ..Overrides::default()
            },
            "option `overlap: 10` must be less than option `max_length: 10`",
        ),
    ] {
        let model = text(exported("esm2"));
        let error = Embedder::new(model, options(settings)).err().unwrap();
        assert!(error.to_string().contains(why), "{error}");
    }
    let error = Embedder::new("esm2_t99", options(Overrides::default()))
        .err()
        .unwrap();
    assert!(
        error.to_string().contains("there is no model `esm2_t99`"),
        "{error}"
    );
}

/// Somebody's own session: counts what it runs, and says that it is elsewhere.
struct Own {
    inner: Arc<dyn Session>,
    facts: SessionInfo,
    batches: AtomicUsize,
}

impl Own {
    fn new(inner: Arc<dyn Session>, change: impl FnOnce(&mut SessionInfo)) -> Arc<Self> {
        let mut facts = inner.info().clone();
        change(&mut facts);
        Arc::new(Self {
            inner,
            facts,
            batches: AtomicUsize::new(0),
        })
    }
}

impl Engine for Own {
    fn run(&self, batch: &Batch, reduce: Reduce) -> Result<Vec<f32>, EngineError> {
        self.batches.fetch_add(1, Ordering::Relaxed);
        self.inner.run(batch, reduce)
    }
}

impl Session for Own {
    fn info(&self) -> &SessionInfo {
        &self.facts
    }
}

#[test]
fn a_session_that_is_handed_in_is_used_and_asked_what_it_is() {
    let model = text(exported("esm2"));
    let session = embedder("esm2", Overrides::default()).session().unwrap();
    let facts = session.info();
    assert_eq!(
        (facts.device, facts.precision, facts.padded),
        (Device::Cpu, Precision::Fp32, false)
    );
    assert_eq!(facts.outputs, [Reduce::Mean]);

    let own = Own::new(session, |facts| facts.device = Device::Cuda(3));
    let handed: Arc<dyn Session> = Arc::<Own>::clone(&own);
    let mut other = Embedder::with_session(model, handed, options(Overrides::default())).unwrap();
    assert_eq!(other.device(), Device::Cuda(3));
    assert_eq!(other.precision(), Some(Precision::Fp32));
    let place = Place::new(&[("x.faa", b">a\nMKTAYIAKQR\n>b\nGSHM\n")]);
    let report = other
        .run(&[place.path("x.faa")], &place.path("out"), &mut Silent)
        .unwrap();
    assert_eq!(report.totals.records, 2);
    assert!(own.batches.load(Ordering::Relaxed) > 0);
    assert!(other.loads().is_empty());
    // What was loaded is what the output tells, and not what this machine would have been asked
    // for.
    let (rows, layout) = output::read(&place.path("out/x.parquet")).unwrap();
    assert_eq!(layout.provenance("device"), Some("cuda"));
    assert_eq!(layout.provenance("precision"), Some("fp32"));

    // Moved away from the session's device, it loads its own and lets the other go.
    let before = own.batches.load(Ordering::Relaxed);
    other.to_device(Device::Cpu).unwrap();
    assert_eq!((other.device(), other.loads().len()), (Device::Cpu, 1));
    let again = other.embed([("a", "MKTAYIAKQR"), ("b", "GSHM")]).unwrap();
    assert_same(&again, &rows);
    assert_eq!(own.batches.load(Ordering::Relaxed), before);
    assert_eq!(Arc::strong_count(&own), 1);
}

#[test]
fn a_session_of_something_else_is_refused() {
    let session = embedder("esm2", Overrides::default()).session().unwrap();
    let refused = |model: &str, settings| {
        let result = Embedder::with_session(
            text(exported(model)),
            Arc::clone(&session),
            options(settings),
        );
        let error = result.err().unwrap();
        assert!(matches!(error, EmbedError::Session { .. }), "{error}");
        error.to_string()
    };
    let pooled = |pooling| Overrides {
        pooling: Some(pooling),
        ..Overrides::default()
    };
    assert!(refused("dnabert2", Overrides::default()).contains("it has other weights"));
    assert!(
        refused(
            "esm2",
            Overrides {
                layer: Some(0.into()),
                ..Overrides::default()
            }
        )
        .contains("but layer 0 is required")
    );
    assert!(
        refused("esm2", pooled(Pooling::Max.into())).contains("pooling max needs the output `max`")
    );
    // The same weights, computed with otherwise.
    let scratch = tempfile::tempdir().unwrap();
    let (checkpoint, other) = (scratch.path().join("esm2"), scratch.path().join("other"));
    common::edited(
        &fixtures().join("esm2/checkpoints/hub-safetensors"),
        &checkpoint,
        |_, _, _| {},
    );
    let config = checkpoint.join("config.json");
    let settings = std::fs::read_to_string(&config).unwrap();
    let changed = settings.replace("\"layer_norm_eps\": 1e-05", "\"layer_norm_eps\": 1e-02");
    assert_ne!(settings, changed);
    std::fs::write(&config, changed).unwrap();
    common::export(&checkpoint, &other, "esm2");
    let info = |folder: &std::path::Path| seqembed_onnx::Model::open(folder).unwrap();
    assert_eq!(
        info(&other).info().weights_sha256,
        info(exported("esm2")).info().weights_sha256
    );
    let options_of_other = options(Overrides::default());
    let result = Embedder::with_session(text(&other), Arc::clone(&session), options_of_other);
    let error = result.err().unwrap().to_string();
    assert!(
        error.contains("another configuration (config.json)"),
        "{error}"
    );
    // The first token's vector comes from the same output as the mean.
    let model = text(exported("esm2"));
    assert!(Embedder::with_session(model, session, options(pooled(Pooling::Cls.into()))).is_ok());
}

#[test]
fn a_device_that_is_not_there_is_an_error_and_the_embedder_stays() {
    let mut embedder = embedder("esm2", Overrides::default());
    let before = embedder.embed([("a", "MKTAYIAKQR")]).unwrap();
    // No machine has so many.
    let error = embedder.to_device(Device::Cuda(999)).unwrap_err();
    assert!(
        matches!(error, EmbedError::Run(RunError::Device { .. })),
        "{error}"
    );
    assert!(
        error.to_string().contains("cuda:999 is not available"),
        "{error}"
    );
    embedder.to_device(Device::Cpu).unwrap();
    assert_eq!(embedder.device(), Device::Cpu);
    assert_same(&embedder.embed([("a", "MKTAYIAKQR")]).unwrap(), &before);
    assert_eq!(embedder.loads().len(), 1, "nothing was loaded again");

    // An embedder that is made for it says so with its first batch.
    let options = EmbedderOptions {
        device: Device::Cuda(999),
        ..options(Overrides::default())
    };
    let mut other = Embedder::new(text(exported("esm2")), options).unwrap();
    let error = other.embed([("a", "MKT")]).unwrap_err().to_string();
    assert!(error.contains("cuda:999 is not available"), "{error}");
}

#[test]
fn threads_share_a_session_with_an_embedder_each() {
    let model = text(exported("esm2"));
    let mut first = embedder("esm2", Overrides::default());
    let sequences = records("esm2/inputs/mixed.faa");
    let expected = first.embed(sequences.clone()).unwrap();
    let session = first.session().unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let session = Arc::clone(&session);
            let (sequences, expected) = (&sequences, &expected);
            scope.spawn(move || {
                let mut own =
                    Embedder::with_session(model, session, options(Overrides::default())).unwrap();
                for _ in 0..3 {
                    assert_same(&own.embed(sequences.clone()).unwrap(), expected);
                }
                assert!(own.loads().is_empty());
            });
        }
    });
    assert_eq!(first.loads().len(), 1);
}
