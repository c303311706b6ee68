//! The device of tensors, and the number of threads for operations.

use std::fmt;

use super::NnError;

/// A device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Device {
    /// The CPU.
    Cpu,
    /// An NVIDIA GPU by its index.
    Cuda(usize),
}

impl Device {
    /// Parses `auto` (the first GPU, else the CPU), `cpu` or `cuda:N`.
    ///
    /// # Errors
    /// [`NnError::DeviceUnavailable`] for a GPU that does not exist or another text; never falls back silently.
    pub fn resolve(text: &str) -> Result<Self, NnError> {
        let n_gpus = usize::try_from(tch::Cuda::device_count()).unwrap_or(0);
        let unavailable = |detail: String| NnError::DeviceUnavailable { device: text.to_owned(), detail };
        match text {
            "auto" if n_gpus > 0 => Ok(Self::Cuda(0)),
            "auto" | "cpu" => Ok(Self::Cpu),
            _ => match text.strip_prefix("cuda:").and_then(|n| n.parse::<usize>().ok()) {
                Some(n) if n < n_gpus => Ok(Self::Cuda(n)),
                Some(_) => Err(unavailable(format!(
                    "this machine and its libtorch offer {n_gpus} GPUs; name one of them, cpu or auto"
                ))),
                None => Err(unavailable("name auto, cpu or cuda:N".to_owned())),
            },
        }
    }

    pub(super) fn tch(self) -> tch::Device {
        match self {
            Self::Cpu => tch::Device::Cpu,
            Self::Cuda(n) => tch::Device::Cuda(n),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(n) => write!(f, "cuda:{n}"),
        }
    }
}

/// Sets the number of threads for each operation in this process; 0: the number of cores.
///
/// libtorch keeps a thread pool for each calling thread, so call it from a fixed set of threads.
pub fn set_num_threads(n_threads: usize) {
    let n = if n_threads == 0 { std::thread::available_parallelism().map_or(1, usize::from) } else { n_threads };
    tch::set_num_threads(i32::try_from(n).unwrap_or(i32::MAX));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_is_not_there_is_refused() {
        assert_eq!(Device::resolve("cpu").unwrap(), Device::Cpu);
        assert!(Device::resolve("auto").is_ok());
        for absent in ["cuda:4096", "cuda", "cuda:-1", "tpu", ""] {
            assert!(Device::resolve(absent).is_err(), "{absent}");
        }
    }
}
