//! Devices by name: what `--device` can say, and what a device is called in reports and outputs.

use std::fmt;
use std::str::FromStr;

/// Where a model runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Device {
    /// The CPU.
    Cpu,
    /// The NVIDIA GPU with this number, among those that `CUDA_VISIBLE_DEVICES` shows.
    Cuda(usize),
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
        }
    }
}

/// The value of `--device`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// One GPU if there is one that works, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// These GPUs, each named once.
    Cuda(Vec<usize>),
    /// All GPUs that are visible.
    CudaAll,
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::CudaAll => f.write_str("cuda:all"),
            Self::Cuda(numbers) => {
                f.write_str("cuda")?;
                for (at, number) in numbers.iter().enumerate() {
                    write!(f, "{}{number}", if at == 0 { ':' } else { ',' })?;
                }
                Ok(())
            }
        }
    }
}

/// A `--device` that means nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseDeviceError {
    /// No such form.
    #[error("it is one of auto, cpu, cuda (the first GPU), cuda:N, cuda:N,M and cuda:all")]
    Form,
    /// A GPU twice.
    #[error("GPU {0} is named twice")]
    Twice(usize),
}

impl FromStr for DeviceChoice {
    type Err = ParseDeviceError;

    fn from_str(text: &str) -> Result<Self, ParseDeviceError> {
        let text = text.to_ascii_lowercase();
        match text.as_str() {
            "auto" => return Ok(Self::Auto),
            "cpu" => return Ok(Self::Cpu),
            "cuda" => return Ok(Self::Cuda(vec![0])),
            "cuda:all" => return Ok(Self::CudaAll),
            _ => {}
        }
        let list = text.strip_prefix("cuda:").ok_or(ParseDeviceError::Form)?;
        let mut numbers = Vec::new();
        for part in list.split(',') {
            // `parse` alone would take `+1`.
            if part.is_empty() || !part.bytes().all(|byte| byte.is_ascii_digit()) {
                return Err(ParseDeviceError::Form);
            }
            let number = part.parse().map_err(|_| ParseDeviceError::Form)?;
            if numbers.contains(&number) {
                return Err(ParseDeviceError::Twice(number));
            }
            numbers.push(number);
        }
        Ok(Self::Cuda(numbers))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_form_is_read() {
        for (text, choice) in [
            ("auto", DeviceChoice::Auto),
            ("CPU", DeviceChoice::Cpu),
            ("cuda", DeviceChoice::Cuda(vec![0])),
            ("cuda:3", DeviceChoice::Cuda(vec![3])),
            ("cuda:2,0,11", DeviceChoice::Cuda(vec![2, 0, 11])),
            ("cuda:all", DeviceChoice::CudaAll),
        ] {
            assert_eq!(text.parse(), Ok(choice), "{text}");
        }
    }

    #[test]
    fn what_means_nothing_is_refused() {
        for text in [
            "",
            "gpu",
            "cuda:",
            "cuda:,",
            "cuda:1,",
            "cuda:,1",
            "cuda:1;2",
            "cuda:-1",
            "cuda:+1",
            "cuda: 1",
            "cuda:0,all",
            "cuda:all,0",
            "cuda0",
            "cpu:0",
            "cuda:1.5",
            "cuda:99999999999999999999999",
        ] {
            assert_eq!(
                text.parse::<DeviceChoice>(),
                Err(ParseDeviceError::Form),
                "{text}"
            );
        }
        for text in ["cuda:1,1", "cuda:0,2,0", "cuda:1,01"] {
            assert!(
                matches!(
                    text.parse::<DeviceChoice>(),
                    Err(ParseDeviceError::Twice(_))
                ),
                "{text}"
            );
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(numbers in prop::collection::hash_set(0..200_usize, 1..9)) {
            let choice = DeviceChoice::Cuda(numbers.into_iter().collect());
            prop_assert_eq!(choice.to_string().parse(), Ok(choice));
        }
    }
}
