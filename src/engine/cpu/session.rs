//! A model on the CPU: one session of ONNX Runtime that all worker threads share.
//!
//! Each worker runs its own batch on its own thread, so cores need not synchronise within a layer.
//! Only when there are fewer batches than cores does a session get several threads a batch.

use std::ffi::{CStr, c_char};
use std::path::Path;
use std::ptr;

use ort::AsPointer;
use ort::environment::Environment;
use ort::session::Session;
use ort::session::builder::GraphOptimizationLevel;
use ort::value::{DynValue, DynValueTypeMarker, TensorRef, ValueRef};

use super::operators;
use crate::device::Device;
use crate::engine::batch::{Batch, Reduce};
use crate::engine::error::EngineError;
use crate::engine::session::{self, Engine, SessionInfo};
use crate::settings::Kernels;

/// A model on the CPU.
pub struct CpuSession {
    session: Session,
    info: SessionInfo,
    kernels: Kernels,
    outputs: Vec<Reduce>,
    predicts_contacts: bool,
    hidden: usize,
    pad_id: i64,
    mask_id: Option<i64>,
}

// SAFETY: a session may be freed by any thread. `Run` may be called on it from many threads at the
// same time: ONNX Runtime documents that, and its CPU provider is built for it (its arena has a
// lock, and neither its kernels nor ours keep state between calls). `ort` asks for `&mut` because
// of other providers.
unsafe impl Sync for CpuSession {}

/// What a session on the CPU is loaded from.
pub struct CpuSessionOptions<'a> {
    /// The graph, with its weights in a file.
    pub graph: &'a [u8],
    /// The folder of the file with the weights.
    pub folder: &'a Path,
    /// The graph's kind: packed with seqembed's kernels, or padded.
    pub kernels: Kernels,
    /// The graph's outputs.
    pub outputs: Vec<Reduce>,
    /// Numbers in a row.
    pub hidden: usize,
    /// The token id that rows of the padded graph are filled up with.
    pub pad_id: i64,
    /// The id of `<mask>`, where the graph has the input `embedding_factor`.
    pub mask_id: Option<i64>,
    /// Threads for one batch.
    pub threads: usize,
}

impl CpuSession {
    /// Loads the model.
    ///
    /// # Errors
    /// When ONNX Runtime refuses the graph, its weights or an operator.
    pub fn load(
        environment: &Environment,
        options: CpuSessionOptions,
    ) -> Result<Self, EngineError> {
        let mut builder = Session::builder(environment)?
            .with_optimization_level(GraphOptimizationLevel::All)?
            .with_intra_threads(options.threads)?
            .with_inter_threads(1)?
            // Every batch has a shape of its own: memory plans for all of them would pile up.
            .with_memory_pattern(false)?
            .with_flush_to_zero()?
            .with_config_entry(
                "session.model_external_initializers_file_folder_path",
                options.folder.to_str().ok_or(EngineError::Encoding)?,
            )?;
        if options.kernels == Kernels::Auto {
            builder = builder.with_operators(operators::domain()?)?;
        }
        let session = builder.commit_from_memory(options.graph)?;
        Ok(Self {
            info: SessionInfo::of(&session, options.graph, Device::Cpu)?,
            predicts_contacts: session
                .outputs()
                .iter()
                .any(|output| output.name() == "contacts"),
            session,
            kernels: options.kernels,
            outputs: options.outputs,
            hidden: options.hidden,
            pad_id: options.pad_id,
            mask_id: options.mask_id,
        })
    }

    /// Runs the session and copies outputs out, of as many values each.
    fn infer(
        &self,
        inputs: &[(&CStr, &DynValue)],
        outputs: &[&CStr],
        length: usize,
    ) -> Result<Vec<Vec<f32>>, EngineError> {
        let names: Vec<*const c_char> = inputs.iter().map(|(name, _)| name.as_ptr()).collect();
        let values: Vec<_> = inputs.iter().map(|(_, value)| value.ptr()).collect();
        let outputs: Vec<*const c_char> = outputs.iter().map(|name| name.as_ptr()).collect();
        let mut results = vec![ptr::null_mut(); outputs.len()];
        let api = ort::api();
        // SAFETY: names are C strings and values live tensors, both as many as told; the session
        // outlives the call; see `Sync` above for the shared use. A value that comes back is ours
        // to release, and its data stays until then.
        unsafe {
            ort::Error::result_from_status((api.Run)(
                self.session.ptr().cast_mut(),
                ptr::null(),
                names.as_ptr(),
                values.as_ptr(),
                values.len(),
                outputs.as_ptr(),
                outputs.len(),
                results.as_mut_ptr(),
            ))?;
            let copied = results.into_iter().map(|result| {
                let mut data = ptr::null_mut();
                let status = (api.GetTensorMutableData)(result, &raw mut data);
                let copied = ort::Error::result_from_status(status)
                    .map(|()| std::slice::from_raw_parts(data.cast::<f32>(), length).to_vec());
                (api.ReleaseValue)(result);
                copied
            });
            // All are released, whatever one of them is.
            let copied: Vec<_> = copied.collect();
            Ok(copied.into_iter().collect::<Result<_, _>>()?)
        }
    }

    fn run_packed(&self, batch: &Batch, reduce: Reduce) -> Result<Vec<f32>, EngineError> {
        let rows = match reduce {
            Reduce::Tokens => batch.tokens(),
            Reduce::Mean | Reduce::Max | Reduce::Both => batch.ranges.len(),
        };
        let values = self.run_graph(batch, names(reduce), rows * self.hidden)?;
        Ok(self.chosen(batch, values))
    }

    /// Runs the packed graph for outputs of `length` numbers each.
    fn run_graph(
        &self,
        batch: &Batch,
        outputs: &[&CStr],
        length: usize,
    ) -> Result<Vec<Vec<f32>>, EngineError> {
        let ids = TensorRef::from_array_view(([batch.ids.len()], &batch.ids[..]))?;
        let starts = TensorRef::from_array_view(([batch.starts.len()], &batch.starts[..]))?;
        let ranges = batch.ranges.as_flattened();
        let ranges = TensorRef::from_array_view(([batch.ranges.len(), 2], ranges))?;
        let (ids, starts, ranges) = (ids.into_dyn(), starts.into_dyn(), ranges.into_dyn());
        let mut inputs: Vec<(&CStr, &DynValue)> = vec![
            (c"input_ids", &ids),
            (c"sequence_starts", &starts),
            (c"pool_range", &ranges),
        ];
        let factors = self.mask_id.map(|mask| batch.embedding_factors(mask));
        let factors = factors.as_deref().map(column).transpose()?;
        inputs.extend(factors.iter().map(|factors| (FACTOR, &**factors)));
        self.infer(&inputs, outputs, length)
    }

    fn run_contacts(&self, batch: &Batch) -> Result<Vec<f32>, EngineError> {
        let pairs = batch.ranges.iter().map(|&[start, end]| {
            let residues = position(end - start);
            residues * residues
        });
        let contacts = self.run_graph(batch, &[c"contacts"], pairs.sum())?;
        Ok(contacts.into_iter().next().unwrap_or_default())
    }

    /// The only output, or of means and maxima what the batch wants.
    fn chosen(&self, batch: &Batch, values: Vec<Vec<f32>>) -> Vec<f32> {
        let mut values = values.into_iter();
        match (values.next(), values.next()) {
            (Some(means), Some(maxima)) => batch.either(means, &maxima, self.hidden),
            (only, _) => only.unwrap_or_default(),
        }
    }

    /// Several ranges a sequence: this graph takes one, and runs once for each.
    fn run_padded_ranges(&self, batch: &Batch, reduce: Reduce) -> Result<Vec<f32>, EngineError> {
        let each = batch.ranges.len() / batch.sequences().max(1);
        if reduce == Reduce::Tokens || each <= 1 {
            return self.run_padded(batch, reduce);
        }
        let mut all = vec![0.0; batch.ranges.len() * self.hidden];
        for at in 0..each {
            let ranges = batch.ranges.iter().skip(at).step_by(each);
            let one = Batch {
                ranges: ranges.copied().collect(),
                ..batch.clone()
            };
            let is_max = reduce == Reduce::Both && batch.maxima.get(at) == Some(&true);
            let reduce = match reduce {
                Reduce::Both if is_max => Reduce::Max,
                Reduce::Both => Reduce::Mean,
                reduce => reduce,
            };
            let rows = self.run_padded(&one, reduce)?;
            let targets = all.chunks_mut(self.hidden).skip(at).step_by(each);
            for (target, row) in targets.zip(rows.chunks(self.hidden)) {
                target.copy_from_slice(row);
            }
        }
        Ok(all)
    }

    fn run_padded(&self, batch: &Batch, reduce: Reduce) -> Result<Vec<f32>, EngineError> {
        let count = batch.sequences();
        let starts: Vec<usize> = batch.starts.iter().map(|&at| position(at)).collect();
        let lengths: Vec<usize> = starts.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let mut ids = vec![self.pad_id; count * longest];
        for (row, start) in starts[..count].iter().enumerate() {
            let length = lengths[row];
            ids[row * longest..row * longest + length]
                .copy_from_slice(&batch.ids[*start..start + length]);
        }
        let mut ranges = vec![0_i64; 2 * count];
        for ((range, local), start) in batch
            .ranges
            .iter()
            .zip(ranges.chunks_mut(2))
            .zip(&batch.starts)
        {
            local[0] = i64::from(range[0] - start);
            local[1] = i64::from(range[1] - start);
        }
        let spans: Vec<i32> = batch
            .starts
            .windows(2)
            .map(|pair| pair[1] - pair[0])
            .collect();
        let rows = match reduce {
            Reduce::Tokens => count * longest,
            Reduce::Mean | Reduce::Max | Reduce::Both => count,
        };
        let ids = TensorRef::from_array_view(([count, longest], &ids[..]))?.into_dyn();
        let spans = TensorRef::from_array_view(([count], &spans[..]))?.into_dyn();
        let ranges = TensorRef::from_array_view(([count, 2], &ranges[..]))?.into_dyn();
        let mut inputs: Vec<(&CStr, &DynValue)> = vec![
            (c"input_ids", &ids),
            (c"lengths", &spans),
            (c"pool_range", &ranges),
        ];
        let factors = self.mask_id.map(|mask| {
            let own = batch.embedding_factors(mask);
            let mut padded = vec![1.0; count * longest];
            for (row, &start) in starts[..count].iter().enumerate() {
                padded[row * longest..][..lengths[row]]
                    .copy_from_slice(&own[start..start + lengths[row]]);
            }
            padded
        });
        let factors = factors.as_deref().map(column).transpose()?;
        inputs.extend(factors.iter().map(|factors| (FACTOR, &**factors)));
        let values = self.infer(&inputs, names(reduce), rows * self.hidden)?;
        let values = self.chosen(batch, values);
        if reduce != Reduce::Tokens {
            return Ok(values);
        }
        let mut packed = Vec::with_capacity(batch.tokens() * self.hidden);
        for (row, length) in values.chunks_exact(longest * self.hidden).zip(&lengths) {
            packed.extend_from_slice(&row[..length * self.hidden]);
        }
        Ok(packed)
    }
}

impl Engine for CpuSession {
    fn run(&self, batch: &Batch, reduce: Reduce) -> Result<Vec<f32>, EngineError> {
        if let Some(missing) = session::missing(&self.outputs, reduce) {
            return Err(EngineError::Output(missing));
        }
        match self.kernels {
            Kernels::Auto => self.run_packed(batch, reduce),
            Kernels::Portable => self.run_padded_ranges(batch, reduce),
        }
    }

    fn contacts(&self, batch: &Batch) -> Result<Vec<f32>, EngineError> {
        if !self.predicts_contacts {
            return Err(EngineError::NoContacts);
        }
        self.run_contacts(batch)
    }

    fn cost(&self, batch: &Batch) -> usize {
        match self.kernels {
            Kernels::Auto => batch.tokens(),
            Kernels::Portable => {
                let longest = batch.starts.windows(2).map(|pair| pair[1] - pair[0]).max();
                batch.sequences() * longest.map_or(0, position)
            }
        }
    }
}

impl session::Session for CpuSession {
    fn info(&self) -> &SessionInfo {
        &self.info
    }
}

/// The input that embeddings are multiplied by.
const FACTOR: &CStr = c"embedding_factor";

/// A column of a number for each token.
fn column(values: &[f32]) -> Result<ValueRef<'_, DynValueTypeMarker>, EngineError> {
    Ok(TensorRef::from_array_view(([values.len(), 1], values))?.into_dyn())
}

/// A position in a batch, which is never negative.
fn position(at: i32) -> usize {
    usize::try_from(at).unwrap_or(0)
}

fn names(reduce: Reduce) -> &'static [&'static CStr] {
    match reduce {
        Reduce::Mean => &[c"mean"],
        Reduce::Max => &[c"max"],
        Reduce::Both => &[c"mean", c"max"],
        Reduce::Tokens => &[c"tokens"],
    }
}
