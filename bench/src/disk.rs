//! Where benches write: on a real disk, in a folder that goes when they end.

use std::path::{Path, PathBuf};

use rustix::fs::statfs;

/// Names the folder in which benches write.
pub const DIR_VARIABLE: &str = "GRISTMILL_BENCH_DIR";

/// A new folder under `GRISTMILL_BENCH_DIR`, or under the system's folder for temporary files.
///
/// # Panics
/// When none can be made there.
pub fn scratch() -> tempfile::TempDir {
    let parent = std::env::var_os(DIR_VARIABLE).map_or_else(std::env::temp_dir, PathBuf::from);
    let made = tempfile::Builder::new().prefix("gristmill-bench-").tempdir_in(&parent);
    made.unwrap_or_else(|error| {
        panic!("{}: {error}; name a folder on a disk of this machine in {DIR_VARIABLE}", parent.display())
    })
}

/// Says on stderr what the figures were taken on: machine, kernel, file system, driver.
pub fn describe(dir: &Path, driver: &str) {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    let model = read("/proc/cpuinfo");
    let model = model.lines().find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1)).unwrap_or("unknown");
    let kernel = read("/proc/sys/kernel/osrelease");
    let file_system = statfs(dir).map_or(0, |stat| stat.f_type);
    eprintln!(
        "# {cpus} CPUs ({model}), Linux {}, driver {driver}, file system {file_system:#x}, durability O_DIRECT|O_DSYNC; load {}",
        kernel.trim(),
        read("/proc/loadavg").trim()
    );
}
