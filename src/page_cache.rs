//! What large files leave in the system's page cache.
//!
//! The vectors of residues are gigabytes that are rarely read right after the run. In the cache they
//! push out the model's weights, and count as memory of the job where a cgroup limits it. In a virtual machine
//! whose memory grows as it is used, each new page of them has to be provided by the host first,
//! which can take several times as long as everything else that is done to it.

use std::fs::File;

/// Smaller files stay in the cache, for whoever reads them next.
const LEAST_BYTES: u64 = 16 << 20;

/// Has the system let go of what it keeps of a large file and has brought to the disk. This is
/// advice: what is not on the disk yet stays, and where the system has no such call, all does.
pub fn let_go(file: &File) {
    #[cfg(target_os = "linux")]
    if file
        .metadata()
        .is_ok_and(|about| about.len() >= LEAST_BYTES)
    {
        let _ = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed);
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (file, LEAST_BYTES);
}
