//! Small numbers for CUDA streams: kernels whose blocks share counters in the device's memory have
//! counters of their own for each stream.

/// Number of distinguished streams. Launches on different streams may overlap; there are as many as
/// batches on the device.
pub const STREAMS: usize = 16;

/// The last streams that were used. Launches on one come one after the other, so they can share a
/// place.
#[derive(Default)]
pub struct Streams {
    known: [Option<usize>; STREAMS],
    next: usize,
}

impl Streams {
    /// The number of the stream with this handle. A new stream gets the number of the one that was
    /// seen longest ago, which is idle by now.
    pub fn number(&mut self, handle: usize) -> usize {
        let known = self.known.iter().position(|&known| known == Some(handle));
        known.unwrap_or_else(|| {
            let number = self.next;
            self.known[number] = Some(handle);
            self.next = (number + 1) % STREAMS;
            number
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_keeps_its_number_and_shares_it_with_none_of_the_last() {
        let mut streams = Streams::default();
        // CUDA's default stream is zero.
        for last in 0..100 {
            let first = (last + 1_usize).saturating_sub(STREAMS);
            let numbers: Vec<usize> = (first..=last).map(|at| streams.number(at)).collect();
            for (at, number) in numbers.iter().enumerate() {
                assert!(*number < STREAMS && !numbers[..at].contains(number));
            }
        }
    }
}
