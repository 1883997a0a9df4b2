//! The floor under a durable append: a bare ring over a bare file, one write at a time, nothing else.
//!
//! The only unsafe code of this crate: the floor is the kernel's own interface, which our driver is measured against, so it cannot go
//! through our driver.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Instant;

use gristmill_shardexec::buf::AlignedBuf;
use io_uring::{IoUring, opcode, types};
use rustix::fs::OFlags;

use crate::goals::median;

/// Bytes of one write of zeros.
const ZERO_CHUNK_BYTES: usize = 1 << 20;

/// A file that was written over its whole length, and a ring to write it again, block after block.
pub struct RawRing {
    ring: IoUring,
    file: File,
    file_bytes: u64,
    next: u64,
}

impl RawRing {
    /// Writes zeros over `file_bytes` of a new file at `path`, durably, and opens it with O_DIRECT and O_DSYNC: as a log's segment is.
    ///
    /// # Panics
    /// Where the file system or the kernel refuses either: a floor that is none must not be measured.
    pub fn create(path: &Path, file_bytes: u64) -> RawRing {
        let zeros = AlignedBuf::zeroed(ZERO_CHUNK_BYTES);
        let mut file = File::create_new(path).expect("a new file");
        for _ in 0..file_bytes / ZERO_CHUNK_BYTES as u64 {
            file.write_all(&zeros).expect("room for a segment");
        }
        file.sync_all().expect("a working disk");
        let flags = OFlags::DIRECT | OFlags::DSYNC;
        let file = OpenOptions::new()
            .write(true)
            .custom_flags(flags.bits().cast_signed())
            .open(path)
            .expect("a file system with O_DIRECT: name one in GRISTMILL_BENCH_DIR");
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_coop_taskrun()
            .build(8)
            .expect("a kernel with io_uring, 6.1 or later");
        RawRing { ring, file, file_bytes: file_bytes / ZERO_CHUNK_BYTES as u64 * ZERO_CHUNK_BYTES as u64, next: 0 }
    }

    /// Median microseconds of `writes` writes of `bytes`, one after the other.
    pub fn one_by_one_us(&mut self, bytes: usize, writes: usize) -> f64 {
        let block = AlignedBuf::zeroed(bytes);
        let write = |_| {
            let began = Instant::now();
            self.append(&block);
            began.elapsed().as_secs_f64() * 1e6
        };
        median(&(0..writes).map(write).collect::<Vec<_>>())
    }

    /// Writes `buf` behind the last write, from the beginning again when the file ends, and waits until it is durable.
    fn append(&mut self, buf: &AlignedBuf) {
        let bytes = buf.len() as u64;
        if self.next + bytes > self.file_bytes {
            self.next = 0;
        }
        let write = opcode::Write::new(types::Fd(self.file.as_raw_fd()), buf.as_ptr(), buf.len() as u32)
            .offset(self.next)
            .build();
        // SAFETY: `buf` outlives the write, whose completion is awaited below before this function returns.
        unsafe { self.ring.submission().push(&write) }.expect("an empty ring has room");
        self.ring.submit_and_wait(1).expect("the kernel takes it");
        let completion = self.ring.completion().next().expect("it was waited for");
        assert_eq!(completion.result(), buf.len() as i32, "the whole buffer is durable");
        self.next += bytes;
    }
}
