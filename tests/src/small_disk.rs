//! A real file system that is small, and full when a test wants it to be.

use rustix::fs::{FallocateFlags, fallocate, statfs};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A file system of its own for one test: a tmpfs that only a helper process has mounted, so that neither root nor a change of the
/// machine is needed. It goes when this is dropped.
pub struct SmallDisk {
    holder: Child,
    root: PathBuf,
    _mount_point: tempfile::TempDir,
}

impl SmallDisk {
    /// Mounts one of `bytes`, by the helper `gristmill-confine`. `None`, and a loud line on stderr, where this machine lets an ordinary
    /// user mount nothing and the tests do not run as root.
    ///
    /// # Panics
    /// If the helper cannot be run.
    pub fn mount(confine: &Path, bytes: u64) -> Option<SmallDisk> {
        let mount_point = tempfile::tempdir().expect("a temporary directory");
        let mut command = Command::new(confine);
        command.arg("disk").arg(bytes.to_string()).arg(mount_point.path());
        let holder = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut holder = holder.spawn().expect("the helper runs");
        let mut line = String::new();
        let mut stdout = BufReader::new(holder.stdout.take().expect("piped"));
        stdout.read_line(&mut line).expect("stdout is readable");
        if line != "ready\n" {
            let refusal = holder.wait_with_output().expect("the helper can be waited for");
            let refusal = String::from_utf8_lossy(&refusal.stderr);
            let cure = "run as root, or allow user namespaces";
            crate::tell_skipped(&format!("A FULL DISK WAS NOT TESTED: {}; {cure}", refusal.trim()));
            return None;
        }
        let inside = mount_point.path().strip_prefix("/").expect("temporary directories have absolute paths");
        let root = Path::new("/proc").join(holder.id().to_string()).join("root").join(inside);
        Some(SmallDisk { holder, root, _mount_point: mount_point })
    }

    /// Its top directory.
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// Bytes that are free.
    ///
    /// # Panics
    /// If it is gone.
    pub fn available(&self) -> u64 {
        let info = statfs(&self.root).expect("the helper holds it");
        info.f_bavail * u64::try_from(info.f_bsize).expect("a size")
    }

    /// Takes space until only `leave` bytes are free.
    ///
    /// # Panics
    /// If less is free.
    pub fn fill(&self, leave: u64) {
        let file = std::fs::File::create(self.filler()).expect("a file takes no space");
        let bytes = self.available().checked_sub(leave).expect("so much is free");
        if bytes > 0 {
            fallocate(&file, FallocateFlags::empty(), 0, bytes).expect("so much was free");
        }
    }

    /// Gives back what [`SmallDisk::fill`] took.
    ///
    /// # Panics
    /// If nothing was taken.
    pub fn free(&self) {
        std::fs::remove_file(self.filler()).expect("filled before");
    }

    fn filler(&self) -> PathBuf {
        self.root.join("filler")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // The end of its stdin ends the helper.
        drop(self.holder.stdin.take());
        let _ = self.holder.wait();
    }
}
