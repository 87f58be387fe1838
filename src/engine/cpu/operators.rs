//! The operators of the domain `seqembed`, which the packed graph uses on CPUs, registered with
//! ONNX Runtime.
//!
//! Their names and inputs, which graphs are written with: `RotaryAttention(qkv, bias,
//! sequence_starts)`, `AlibiAttention(qkv, bias, slopes, sequence_starts)`, `RelativeAttention(qkv,
//! bias, table, sequence_starts)`, `Attention(qkv, bias, sequence_starts)`, `ContactMap` (see
//! `contact_map.rs`), `SkipLayerNorm(x, skip, gamma, beta, bias)`, `BiasGelu(x, bias)`, `Geglu(x)`,
//! `Positions(sequence_starts, input_ids)`, `PoolMean(tokens, pool_range)` and `PoolMax(tokens,
//! pool_range)`; see the kernels for shapes.

use ort::environment::Environment;
use ort::operator::{
    BoxedKernel, ComputeContext, KernelContext, Operator, OperatorDomain, OperatorInput,
    OperatorOutput,
};
use ort::session::Session;
use ort::value::TensorElementType;
use seqembed_onnx::Precision;
use seqembed_onnx::graph::builder::{Builder, fixed};

use super::contact_map::ContactMapOperator;
use super::kernels::attention::{Alibi, NoPositions, Packed, PositionEncoding, Relative, Rotary};
use super::kernels::rows::{BiasGelu, Geglu, Pool, SkipLayerNorm, pool};
use super::operator_parts::{Sequences, Target, bounded, fault, heads_of, input, matrix, output};

const F32: TensorElementType = TensorElementType::Float32;
const I32: TensorElementType = TensorElementType::Int32;

/// All operators, ready for a session.
///
/// # Errors
/// When ONNX Runtime refuses one.
pub fn domain() -> ort::Result<OperatorDomain> {
    OperatorDomain::new("seqembed")?
        .add(AttentionOperator::Rotary)?
        .add(AttentionOperator::Alibi)?
        .add(AttentionOperator::Relative)?
        .add(AttentionOperator::NoPositions)?
        .add(ContactMapOperator)?
        .add(SkipLayerNormOperator)?
        .add(BiasGeluOperator)?
        .add(GegluOperator)?
        .add(PositionsOperator)?
        .add(PoolOperator(Pool::Mean))?
        .add(PoolOperator(Pool::Max))
}

/// Registers the domain's name with ONNX Runtime, by making a session and dropping it.
///
/// ONNX Runtime keeps the names of domains in a table of the process, which it reads and changes
/// without a lock: where the first two sessions were made at the same time, one failed. After this,
/// any number of sessions can be made at the same time.
///
/// # Errors
/// When ONNX Runtime refuses the operators.
pub fn register_domain(environment: &Environment) -> ort::Result<()> {
    let mut graph = Builder::new(&[], Precision::Fp32.into());
    let element = graph.element();
    let input = graph.input("x", element, &[fixed(1)]);
    let same = graph.op("Identity", &[&input], &[]);
    graph.output("y", &same, &[fixed(1)]);
    Session::builder(environment)?
        .with_no_environment_execution_providers()?
        .with_intra_threads(1)?
        .with_operators(domain()?)?
        .commit_from_memory(&graph.finish(&[]))?;
    Ok(())
}

/// Attention, by its position encoding.
enum AttentionOperator {
    Rotary,
    Alibi,
    Relative,
    NoPositions,
}

impl Operator for AttentionOperator {
    type Kernel<'attr> = BoxedKernel<'attr>;

    fn name(&self) -> &'static str {
        match self {
            Self::Rotary => "RotaryAttention",
            Self::Alibi => "AlibiAttention",
            Self::Relative => "RelativeAttention",
            Self::NoPositions => "Attention",
        }
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        let types = match self {
            Self::Alibi | Self::Relative => vec![F32, F32, F32, I32],
            Self::Rotary | Self::NoPositions => vec![F32, F32, I32],
        };
        types.into_iter().map(OperatorInput::required)
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::required(F32)]
    }

    fn create_kernel<'attr>(
        &self,
        attributes: &KernelContext<'attr>,
    ) -> ort::Result<Self::Kernel<'attr>> {
        let name = self.name();
        let heads = heads_of(attributes, name)?;
        match self {
            Self::Rotary => {
                let base = attributes
                    .get::<f32>("rotary_base")
                    .ok_or_else(|| fault("RotaryAttention needs rotary_base"))?;
                Ok(Box::new(move |context: &ComputeContext| {
                    let sequences = Sequences::of(context, 2, heads)?;
                    if sequences.hidden % (2 * heads) != 0 {
                        return Err(fault("RotaryAttention needs heads of even width"));
                    }
                    let width = sequences.hidden / heads;
                    let rotary = Rotary::shared(width, base, sequences.longest());
                    attention(context, &sequences, &*rotary)
                }))
            }
            Self::Alibi => Ok(Box::new(move |context: &ComputeContext| {
                let sequences = Sequences::of(context, 3, heads)?;
                let slopes = input(context, 2)?;
                let (_, slopes) = slopes.try_extract_tensor::<f32>()?;
                if slopes.len() != heads {
                    return Err(fault(format!("{} slopes for {heads} heads", slopes.len())));
                }
                attention(context, &sequences, &Alibi { slopes })
            })),
            Self::Relative => Ok(Box::new(move |context: &ComputeContext| {
                let sequences = Sequences::of(context, 3, heads)?;
                let table = input(context, 2)?;
                let (shape, table) = table.try_extract_tensor::<f32>()?;
                let [rows, distances] = matrix(shape)?;
                if rows != heads || distances % 2 == 0 {
                    return Err(fault(format!(
                        "a table of {distances} distances for {rows} heads does not fit {heads} \
                         heads, with as many distances on either side of 0"
                    )));
                }
                attention(context, &sequences, &Relative { table, heads })
            })),
            Self::NoPositions => Ok(Box::new(move |context: &ComputeContext| {
                attention(context, &Sequences::of(context, 2, heads)?, &NoPositions)
            })),
        }
    }
}

/// A tensor that threads read from while they may write to the same memory.
#[derive(Clone, Copy)]
struct Source(*const f32);
// SAFETY: a task reads only what it alone writes.
unsafe impl Sync for Source {}
// SAFETY: as above.
unsafe impl Send for Source {}

/// Runs `work(from, to)` over all rows in blocks, on the session's threads.
fn in_blocks(
    context: &ComputeContext,
    rows: usize,
    work: impl Fn(usize, usize) + Sync + Send,
) -> ort::Result<()> {
    const BLOCK: usize = 64;
    if rows == 0 {
        return Ok(());
    }
    context.par_for(rows.div_ceil(BLOCK), 0, move |block| {
        work(block * BLOCK, rows.min((block + 1) * BLOCK));
    })
}

/// Attention over every sequence and head, each a task.
fn attention<P: PositionEncoding>(
    context: &ComputeContext,
    sequences: &Sequences,
    positions: &P,
) -> ort::Result<()> {
    let &Sequences {
        tokens,
        hidden,
        heads,
        ref starts,
    } = sequences;
    let (qkv, bias) = (input(context, 0)?, input(context, 1)?);
    let (_, qkv) = qkv.try_extract_tensor::<f32>()?;
    let (_, bias) = bias.try_extract_tensor::<f32>()?;
    if bias.len() != 2 * hidden {
        return Err(fault(format!(
            "a bias of {} does not fit a hidden width of {hidden}",
            bias.len()
        )));
    }
    let packed = Packed {
        qkv,
        bias,
        hidden,
        heads,
        positions,
    };
    let mut output = output(context, 0, [tokens, hidden])?;
    let (_, output) = output.try_extract_tensor_mut::<f32>()?;
    let output = Target::of(output);
    let work = |task: usize| {
        let Target(output) = { output };
        let (sequence, head) = (task / heads, task % heads);
        // SAFETY: `output` holds `tokens * hidden` values, and a task owns its head's columns of
        // its rows.
        unsafe { packed.head(head, starts[sequence], starts[sequence + 1], output) };
    };
    let tasks = starts.len().saturating_sub(1) * heads;
    if tasks > 0 {
        context.par_for(tasks, 0, work)?;
    }
    Ok(())
}

struct SkipLayerNormOperator;

impl Operator for SkipLayerNormOperator {
    type Kernel<'attr> = BoxedKernel<'attr>;

    fn name(&self) -> &'static str {
        "SkipLayerNorm"
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        [F32; 5].map(OperatorInput::required)
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::required(F32), OperatorOutput::optional(F32)]
    }

    fn create_kernel<'attr>(
        &self,
        attributes: &KernelContext<'attr>,
    ) -> ort::Result<Self::Kernel<'attr>> {
        let epsilon = attributes
            .get::<f32>("epsilon")
            .ok_or_else(|| fault("SkipLayerNorm needs epsilon"))?;
        Ok(Box::new(move |context: &ComputeContext| {
            skip_layer_norm(context, epsilon)
        }))
    }
}

fn skip_layer_norm(context: &ComputeContext, epsilon: f32) -> ort::Result<()> {
    let inputs = (0..5)
        .map(|index| input(context, index))
        .collect::<ort::Result<Vec<_>>>()?;
    let (shape, x) = inputs[0].try_extract_tensor::<f32>()?;
    let [rows, hidden] = matrix(shape)?;
    let (_, skip) = inputs[1].try_extract_tensor::<f32>()?;
    let (_, gamma) = inputs[2].try_extract_tensor::<f32>()?;
    let (_, beta) = inputs[3].try_extract_tensor::<f32>()?;
    let (_, bias) = inputs[4].try_extract_tensor::<f32>()?;
    if skip.len() != x.len() || [gamma, beta, bias].iter().any(|w| w.len() != hidden) {
        return Err(fault("inputs of SkipLayerNorm differ in shape"));
    }
    let mut y = output(context, 0, [rows, hidden])?;
    let mut sum = if context.num_outputs()? > 1 {
        context.output(1, [rows, hidden])?
    } else {
        None
    };
    let (_, y) = y.try_extract_tensor_mut::<f32>()?;
    let y = Target::of(y);
    let sum = match &mut sum {
        Some(sum) => Some(Target::of(sum.try_extract_tensor_mut::<f32>()?.1)),
        None => None,
    };
    in_blocks(context, rows, |from, to| {
        SkipLayerNorm {
            x: &x[from * hidden..to * hidden],
            skip: &skip[from * hidden..to * hidden],
            gamma,
            beta,
            bias,
            epsilon,
            // SAFETY: the outputs hold `rows` rows of `hidden` values, and the blocks do not
            // overlap.
            y: unsafe { y.rows(from, to, hidden) },
            // SAFETY: as above.
            sum: sum.map(|sum| unsafe { sum.rows(from, to, hidden) }),
        }
        .run();
    })
}

struct BiasGeluOperator;

impl Operator for BiasGeluOperator {
    type Kernel<'attr> = BoxedKernel<'attr>;

    const INPLACES: &[(u32, u32)] = &[(0, 0)];

    fn name(&self) -> &'static str {
        "BiasGelu"
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        [F32, F32].map(OperatorInput::required)
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::required(F32)]
    }

    fn create_kernel<'attr>(&self, _: &KernelContext<'attr>) -> ort::Result<Self::Kernel<'attr>> {
        Ok(Box::new(|context: &ComputeContext| {
            let (x, bias) = (input(context, 0)?, input(context, 1)?);
            let (shape, x) = x.try_extract_tensor::<f32>()?;
            let (_, bias) = bias.try_extract_tensor::<f32>()?;
            let shape = matrix(shape)?;
            if bias.len() != shape[1] {
                return Err(fault("inputs of BiasGelu differ in shape"));
            }
            let mut y = output(context, 0, shape)?;
            let y = Target::of(y.try_extract_tensor_mut::<f32>()?.1);
            let x = Source(x.as_ptr());
            let [rows, width] = shape;
            in_blocks(context, rows, |from, to| {
                let (Source(x), Target(y)) = (x, y);
                // SAFETY: both hold `rows * width` values, the blocks do not overlap, and `y` is
                // `x` or apart from it.
                unsafe {
                    BiasGelu {
                        x: x.add(from * width),
                        bias,
                        y: y.add(from * width),
                        rows: to - from,
                    }
                    .run();
                }
            })
        }))
    }
}

struct GegluOperator;

impl Operator for GegluOperator {
    type Kernel<'attr> = BoxedKernel<'attr>;

    fn name(&self) -> &'static str {
        "Geglu"
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        [OperatorInput::required(F32)]
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::required(F32)]
    }

    fn create_kernel<'attr>(&self, _: &KernelContext<'attr>) -> ort::Result<Self::Kernel<'attr>> {
        Ok(Box::new(|context: &ComputeContext| {
            let x = input(context, 0)?;
            let (shape, x) = x.try_extract_tensor::<f32>()?;
            let [rows, both] = matrix(shape)?;
            if both == 0 || both % 2 != 0 {
                return Err(fault(format!("Geglu cannot halve a width of {both}")));
            }
            let width = both / 2;
            let mut y = output(context, 0, [rows, width])?;
            let y = Target::of(y.try_extract_tensor_mut::<f32>()?.1);
            in_blocks(context, rows, |from, to| {
                Geglu {
                    x: &x[from * both..to * both],
                    width,
                    // SAFETY: the output holds `rows` rows of `width` values, and the blocks do not
                    // overlap.
                    y: unsafe { y.rows(from, to, width) },
                }
                .run();
            })
        }))
    }
}

/// The position of each token within its sequence, [tokens].
struct PositionsOperator;

impl Operator for PositionsOperator {
    type Kernel<'attr> = BoxedKernel<'attr>;

    fn name(&self) -> &'static str {
        "Positions"
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        // The number of tokens is taken from the ids if the starts cannot be read.
        [I32, TensorElementType::Int64].map(OperatorInput::required)
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::required(TensorElementType::Int64)]
    }

    fn create_kernel<'attr>(&self, _: &KernelContext<'attr>) -> ort::Result<Self::Kernel<'attr>> {
        Ok(Box::new(|context: &ComputeContext| {
            let starts = input(context, 0)?;
            let (_, starts) = starts.try_extract_tensor::<i32>()?;
            if starts.first().is_some_and(|&first| first != 0)
                || starts.windows(2).any(|pair| pair[0] > pair[1])
            {
                return Err(fault("sequence_starts must ascend from 0"));
            }
            let tokens = starts.last().copied().unwrap_or(0);
            let tokens = usize::try_from(tokens).expect("no less than the first, which is 0");
            let mut positions = context
                .output(0, [tokens])?
                .ok_or_else(|| fault("output 0 is missing"))?;
            let (_, positions) = positions.try_extract_tensor_mut::<i64>()?;
            let ranks = starts.windows(2).flat_map(|pair| 0..pair[1] - pair[0]);
            for (position, rank) in positions.iter_mut().zip(ranks) {
                *position = i64::from(rank);
            }
            Ok(())
        }))
    }
}

struct PoolOperator(Pool);

impl Operator for PoolOperator {
    type Kernel<'attr> = BoxedKernel<'attr>;

    fn name(&self) -> &'static str {
        match self.0 {
            Pool::Mean => "PoolMean",
            Pool::Max => "PoolMax",
        }
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        [F32, I32].map(OperatorInput::required)
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::required(F32)]
    }

    fn create_kernel<'attr>(&self, _: &KernelContext<'attr>) -> ort::Result<Self::Kernel<'attr>> {
        let how = self.0;
        Ok(Box::new(move |context: &ComputeContext| {
            let (tokens, ranges) = (input(context, 0)?, input(context, 1)?);
            let (shape, tokens) = tokens.try_extract_tensor::<f32>()?;
            let (_, ranges) = ranges.try_extract_tensor::<i32>()?;
            let [rows, hidden] = matrix(shape)?;
            let mut pooled = output(context, 0, [ranges.len() / 2, hidden])?;
            let (_, pooled) = pooled.try_extract_tensor_mut::<f32>()?;
            for (range, pooled) in ranges.chunks_exact(2).zip(pooled.chunks_exact_mut(hidden)) {
                let (start, end) = (bounded(range[0], rows)?, bounded(range[1], rows)?);
                pool(how, tokens, hidden, start, end, pooled);
            }
            Ok(())
        }))
    }
}
