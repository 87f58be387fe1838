//! The operator `seqembed.ContactMap(qkv, bias, sequence_starts, pool_range, weight, sum)`: adds
//! the attention maps of a block, as the contact head sees them, to the sum of the blocks before.
//! `sum` and the output are [pairs, 1]: all pairs of tokens of the first range, then of the second.
//! The first block has no `sum`. Queries and keys are rotated where `rotary_base` is given.

use std::sync::Arc;

use ort::operator::{
    BoxedKernel, ComputeContext, KernelContext, Operator, OperatorInput, OperatorOutput,
};
use ort::value::TensorElementType;

use super::kernels::attention::{NoPositions, Packed, PositionEncoding, Rotary};
use super::kernels::contacts::{self, Sequence};
use super::operator_parts::{Sequences, Target, bounded, fault, heads_of, input, output};

const F32: TensorElementType = TensorElementType::Float32;
const I32: TensorElementType = TensorElementType::Int32;

/// Its place among the inputs.
const SUM: usize = 5;

/// The operator.
pub struct ContactMapOperator;

impl Operator for ContactMapOperator {
    type Kernel<'attr> = BoxedKernel<'attr>;

    const INPLACES: &[(u32, u32)] = &[(5, 0)];

    fn name(&self) -> &'static str {
        "ContactMap"
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        let required = [F32, F32, I32, I32, F32].map(OperatorInput::required);
        required.into_iter().chain([OperatorInput::optional(F32)])
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::required(F32)]
    }

    fn create_kernel<'attr>(
        &self,
        attributes: &KernelContext<'attr>,
    ) -> ort::Result<Self::Kernel<'attr>> {
        let heads = heads_of(attributes, self.name())?;
        let base = attributes.get::<f32>("rotary_base");
        Ok(Box::new(move |context: &ComputeContext| {
            let sequences = Sequences::of(context, 2, heads)?;
            let Some(base) = base else {
                return add_maps(context, &sequences, &NoPositions);
            };
            if sequences.hidden % (2 * heads) != 0 {
                return Err(fault("ContactMap needs heads of even width"));
            }
            let width = sequences.hidden / heads;
            let rotary: Arc<Rotary> = Rotary::shared(width, base, sequences.longest());
            add_maps(context, &sequences, &*rotary)
        }))
    }
}

/// The sequences with their residues, by input 3.
fn with_residues(context: &ComputeContext, all: &Sequences) -> ort::Result<Vec<Sequence>> {
    let ranges = input(context, 3)?;
    let (_, ranges) = ranges.try_extract_tensor::<i32>()?;
    let count = all.starts.len().saturating_sub(1);
    if ranges.len() != 2 * count {
        return Err(fault(format!(
            "{} ranges for {count} sequences",
            ranges.len() / 2
        )));
    }
    let sequences = all.starts.windows(2).zip(ranges.chunks_exact(2));
    sequences
        .map(|(tokens, range)| {
            let (start, end) = (
                bounded(range[0], all.tokens)?,
                bounded(range[1], all.tokens)?,
            );
            if start < tokens[0] || end > tokens[1] || start > end {
                return Err(fault("a range lies outside of its sequence"));
            }
            Ok(Sequence {
                tokens: tokens[0]..tokens[1],
                residues: start..end,
            })
        })
        .collect()
}

/// Where each sequence's part of a buffer begins, and the length of the buffer.
fn offsets(sequences: &[Sequence], size: impl Fn(&Sequence) -> usize) -> (Vec<usize>, usize) {
    let mut end = 0;
    let starts = sequences.iter().map(|sequence| {
        let start = end;
        end += size(sequence);
        start
    });
    (starts.collect(), end)
}

/// The parts of buffers that belong to a sequence.
struct Places {
    keys: Vec<usize>,
    map: Vec<usize>,
    sums: Vec<usize>,
}

fn add_maps<P: PositionEncoding>(
    context: &ComputeContext,
    all: &Sequences,
    positions: &P,
) -> ort::Result<()> {
    let &Sequences { hidden, heads, .. } = all;
    let sequences = with_residues(context, all)?;
    let (qkv, bias, weight) = (input(context, 0)?, input(context, 1)?, input(context, 4)?);
    let (_, qkv) = qkv.try_extract_tensor::<f32>()?;
    let (_, bias) = bias.try_extract_tensor::<f32>()?;
    let (_, weight) = weight.try_extract_tensor::<f32>()?;
    if bias.len() != 2 * hidden || weight.len() != heads {
        return Err(fault("inputs of ContactMap differ in shape"));
    }
    let packed = Packed {
        qkv,
        bias,
        hidden,
        heads,
        positions,
    };
    let width = hidden / heads;
    let (keys_at, key_numbers) = offsets(&sequences, |sequence| sequence.keys(width));
    let (map_at, pairs) = offsets(&sequences, Sequence::pairs);
    let (sums_at, residues) = offsets(&sequences, |sequence| sequence.residues.len());
    let places = Places {
        keys: keys_at,
        map: map_at,
        sums: sums_at,
    };
    let mut sum = output(context, 0, [pairs, 1])?;
    let (_, sum) = sum.try_extract_tensor_mut::<f32>()?;
    begin(context, sum)?;
    let mut keys = vec![0.0; key_numbers];
    let mut map = vec![0.0; pairs];
    let mut sums = vec![0.0; residues];
    for (head, &weight) in weight.iter().enumerate() {
        let keys = Target::of(&mut keys);
        let map = Target::of(&mut map);
        let sums = Target::of(&mut sums);
        let sum = Target::of(sum);
        let buffers = Buffers {
            keys,
            map,
            sums,
            sum,
        };
        add_map(
            context,
            &packed,
            &sequences,
            &places,
            &buffers,
            (head, weight),
        )?;
    }
    Ok(())
}

/// Writes what the maps are added to: the sum of the blocks before, or zeros.
fn begin(context: &ComputeContext, sum: &mut [f32]) -> ort::Result<()> {
    let before = if context.num_inputs()? > SUM {
        context.input(SUM)?
    } else {
        None
    };
    let Some(before) = before else {
        sum.fill(0.0);
        return Ok(());
    };
    let (_, before) = before.try_extract_tensor::<f32>()?;
    if before.len() != sum.len() {
        return Err(fault(format!(
            "a sum of {} contacts for {} pairs",
            before.len(),
            sum.len()
        )));
    }
    let (from, to) = (before.as_ptr(), sum.as_mut_ptr());
    // SAFETY: both hold as many numbers; they are the same memory or apart, and `copy` allows both.
    unsafe { std::ptr::copy(from, to, sum.len()) };
    Ok(())
}

/// What the tasks of a head read and write, with a part for each sequence.
struct Buffers {
    /// [`Sequence::keys`] numbers.
    keys: Target,
    /// [residues, residues].
    map: Target,
    /// [residues].
    sums: Target,
    /// [residues, residues].
    sum: Target,
}

/// Adds the map of one head: its keys, its rows, the sums of its rows, and then the sum. Each of
/// these reads what the one before wrote, and shares the work among the session's threads.
fn add_map<P: PositionEncoding>(
    context: &ComputeContext,
    packed: &Packed<'_, P>,
    sequences: &[Sequence],
    places: &Places,
    buffers: &Buffers,
    (head, weight): (usize, f32),
) -> ort::Result<()> {
    let width = packed.hidden / packed.heads;
    let bands: Vec<(usize, usize)> = sequences
        .iter()
        .enumerate()
        .flat_map(|(at, sequence)| (0..sequence.bands()).map(move |band| (at, band)))
        .collect();
    if bands.is_empty() {
        return Ok(());
    }
    let of = |task: usize| {
        let (at, band) = bands[task];
        (at, &sequences[at], sequences[at].band(band))
    };
    // SAFETY (of all parts below): every buffer holds its part of each sequence, a task writes only
    // to its own sequence's or band's part, and no task reads what another one writes meanwhile.
    context.par_for(sequences.len(), 0, |at| {
        let sequence = &sequences[at];
        let keys = unsafe { buffers.keys.part(places.keys[at], sequence.keys(width)) };
        contacts::gather_keys(packed, head, sequence, keys);
    })?;
    context.par_for(bands.len(), 0, |task| {
        let (at, sequence, band) = of(task);
        let residues = sequence.residues.len();
        let first = places.map[at] + band.start * residues;
        let keys = unsafe { buffers.keys.shared(places.keys[at], sequence.keys(width)) };
        let map = unsafe { buffers.map.part(first, band.len() * residues) };
        contacts::map_rows(packed, head, sequence, keys, band, map);
    })?;
    context.par_for(bands.len(), 0, |task| {
        let (at, sequence, band) = of(task);
        let residues = sequence.residues.len();
        let map = unsafe { buffers.map.shared(places.map[at], sequence.pairs()) };
        let sums = unsafe { buffers.sums.part(places.sums[at] + band.start, band.len()) };
        contacts::row_sums(map, residues, band, sums);
    })?;
    context.par_for(bands.len(), 0, |task| {
        let (at, sequence, band) = of(task);
        let residues = sequence.residues.len();
        let first = places.map[at] + band.start * residues;
        let map = unsafe { buffers.map.shared(places.map[at], sequence.pairs()) };
        let sums = unsafe { buffers.sums.shared(places.sums[at], residues) };
        let sum = unsafe { buffers.sum.part(first, band.len() * residues) };
        contacts::add_rows(map, sums, weight, band, sum);
    })
}
