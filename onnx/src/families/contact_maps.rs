//! Graphs of contacts: from each block's queries and keys, the heads' attention maps are added to
//! the sum of the contact head, so that no map is kept. What follows the last block's queries and
//! keys is left out.

use crate::contact_head::ContactHead;
use crate::graph::builder::{fixed, named};
use crate::graph::layers::Frame;
use crate::graph::proto::ElementType;

/// The sum of the contact head on its way through the blocks.
pub struct ContactMaps {
    head: ContactHead,
    heads: usize,
    blocks: usize,
    added: usize,
    /// [pairs, 1]; empty before the first block.
    sum: String,
}

impl ContactMaps {
    /// Before the first block of a model with as many blocks and heads.
    #[must_use]
    pub fn new(head: ContactHead, blocks: usize, heads: usize) -> Self {
        Self {
            head,
            heads,
            blocks,
            added: 0,
            sum: String::new(),
        }
    }

    /// Whether the maps of all blocks were added.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.added == self.blocks
    }

    /// Adds the maps of the next block: `add` adds them, with the names of their weights, [heads],
    /// and of the sum so far, and returns that of the new sum.
    pub fn add(
        &mut self,
        frame: &mut Frame<'_, '_>,
        add: impl FnOnce(&mut Frame<'_, '_>, &str, &str) -> String,
    ) {
        let first = self.added * self.heads;
        let weight = frame.builder.floats(
            &format!("contact_head.{}.weight", self.added),
            &[self.heads],
            &self.head.weight[first..first + self.heads],
        );
        self.sum = add(frame, &weight, &self.sum);
        self.added += 1;
    }

    /// Declares the output `contacts`, [pairs, 1].
    pub fn finish(self, frame: &mut Frame<'_, '_>) {
        let builder = &mut *frame.builder;
        builder.scope("contacts");
        let bias = builder.floats("contact_head.bias", &[1], &[self.head.bias]);
        let sum = builder.op("Add", &[&self.sum, &bias], &[]);
        let contacts = builder.op("Sigmoid", &[&sum], &[]);
        let shape = [named("pairs"), fixed(1)];
        builder.output_of(ElementType::Float, "contacts", &contacts, &shape);
    }
}
