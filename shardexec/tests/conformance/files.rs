//! Files, directories, names.
use std::io::ErrorKind;

use gristmill_shardexec::buf::{AlignedBuf, BUF_ALIGN};
use gristmill_shardexec::executor::{Class, ExecutorConfig, spawn};
use gristmill_shardexec::fs::{self, DirectUnsupported, File, FileKind, OpenOptions};

use super::Case;

pub fn config() -> ExecutorConfig {
    ExecutorConfig::default()
}

fn pattern(len: usize, seed: usize) -> AlignedBuf {
    let bytes: Vec<u8> = (0..len).map(|at| (at.wrapping_mul(31) + seed * 7 + at / 251) as u8).collect();
    AlignedBuf::from(&bytes[..])
}

const NEW: OpenOptions = OpenOptions::new().read(true).write(true).create_new(true);

pub async fn round_trip(case: Case) {
    let file = NEW.open(case.path("f")).await.unwrap();
    let content = pattern(300_000, 1);
    let (written, content) = file.write_at(content, 0).await;
    assert_eq!(written.unwrap(), content.len());
    let (read, back) = file.read_at(AlignedBuf::zeroed(content.len()), 0).await;
    assert_eq!(read.unwrap(), content.len());
    assert_eq!(back[..], content[..]);

    // In the middle, from a plain vector.
    let (written, _) = file.write_at(vec![0xee; 1000], 12_345).await;
    assert_eq!(written.unwrap(), 1000);
    let (read, back) = file.read_at(vec![0; 1002], 12_344).await;
    assert_eq!(read.unwrap(), 1002);
    assert_eq!((back[0], &back[1..1001], back[1001]), (content[12_344], &[0xee; 1000][..], content[13_345]));

    // Shared with a reader while it is written.
    let shared = std::sync::Arc::new(pattern(8192, 2));
    let (written, shared) = file.write_at(shared, 0).await;
    assert_eq!(written.unwrap(), shared.len());
    assert_eq!(file.metadata().await.unwrap().len, 300_000);
    assert_eq!(file.direct_alignment(), None);
}

pub async fn short_read_at_the_end(case: Case) {
    let file = NEW.open(case.path("f")).await.unwrap();
    file.write_at(pattern(5000, 3), 0).await.0.unwrap();
    let (read, buf) = file.read_at(AlignedBuf::zeroed(8192), 4096).await;
    assert_eq!(read.unwrap(), 904);
    assert_eq!(buf[..904], pattern(5000, 3)[4096..]);
    assert_eq!(buf.len(), 8192, "the length stays: the count tells how much is new");
    assert_eq!(file.read_at(vec![0; 10], 5000).await.0.unwrap(), 0);
    assert_eq!(file.read_at(vec![0; 10], 1 << 40).await.0.unwrap(), 0);
    assert_eq!(file.read_at(Vec::new(), 0).await.0.unwrap(), 0);
}

pub async fn direct_io(case: Case) {
    let path = case.path("f");
    fs::write_atomic(&path, &pattern(6000, 4)).await.unwrap();
    let opened = OpenOptions::new().read(true).write(true).direct(true).dsync(true).open(&path).await;
    if case.on_tmpfs {
        let error = opened.err().expect("tmpfs has no direct I/O, and must say so");
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(DirectUnsupported::caused(&error), "{error:?}");
        return;
    }
    let file = opened.unwrap();
    let direct = file.direct_alignment().expect("opened direct");
    assert!(direct.memory as usize <= BUF_ALIGN && BUF_ALIGN.is_multiple_of(direct.memory as usize));
    assert!(direct.offset as usize <= BUF_ALIGN && BUF_ALIGN.is_multiple_of(direct.offset as usize));

    // The end of the file is not on a block boundary: a direct read ends there without an error.
    let (read, buf) = file.read_at(AlignedBuf::zeroed(16_384), 0).await;
    assert_eq!(read.unwrap(), 6000);
    assert_eq!(buf[..6000], pattern(6000, 4)[..]);

    let content = pattern(1 << 20, 5);
    let (written, content) = file.write_at(content, 8192).await;
    assert_eq!(written.unwrap(), 1 << 20);
    let (read, back) = file.read_at(AlignedBuf::zeroed(1 << 20), 8192).await;
    assert_eq!(read.unwrap(), 1 << 20);
    assert_eq!(back[..], content[..]);
    let unaligned = file.write_at(AlignedBuf::zeroed(100), 0).await.0;
    assert_eq!(unaligned.unwrap_err().kind(), ErrorKind::InvalidInput);
}

pub async fn open_errors(case: Case) {
    let path = case.path("f");
    assert_eq!(File::open(&path).await.err().unwrap().kind(), ErrorKind::NotFound);
    NEW.open(&path).await.unwrap();
    assert_eq!(NEW.open(&path).await.err().unwrap().kind(), ErrorKind::AlreadyExists);
    let write_dir = OpenOptions::new().write(true).open(&case.dir).await;
    assert_eq!(write_dir.err().unwrap().kind(), ErrorKind::IsADirectory);
    assert_eq!(File::open(path.join("below")).await.err().unwrap().kind(), ErrorKind::NotADirectory);
    let reader = File::open(&path).await.unwrap();
    assert_eq!(reader.write_at(vec![1], 0).await.0.unwrap_err().raw_os_error(), Some(9), "EBADF");
    let nul = File::open("a\0b").await;
    assert_eq!(nul.err().unwrap().kind(), ErrorKind::InvalidInput);
}

pub async fn lengths_and_metadata(case: Case) {
    let path = case.path("f");
    let file = NEW.open(&path).await.unwrap();
    file.set_len(10_000).await.unwrap();
    assert_eq!(file.metadata().await.unwrap().len, 10_000);
    file.allocate(0, 1 << 20).await.unwrap();
    let metadata = file.metadata().await.unwrap();
    assert_eq!(metadata.len, 1 << 20);
    assert!(metadata.allocated >= 1 << 20, "{metadata:?}");
    assert_eq!((metadata.kind, metadata.links), (FileKind::File, 1));
    assert_eq!(file.read_at(vec![1; 100], 9_950).await.1, [0; 100]);
    file.sync_data().await.unwrap();
    file.sync_all().await.unwrap();
    file.set_len(1).await.unwrap();
    assert_eq!(fs::metadata(&path).await.unwrap().inode, file.metadata().await.unwrap().inode);
    assert_eq!(fs::metadata(&path).await.unwrap().len, 1);
    let truncated = OpenOptions::new().write(true).truncate(true).open(&path).await.unwrap();
    assert_eq!(truncated.metadata().await.unwrap().len, 0);
    if let Err(error) = truncated.set_no_cow().await {
        assert_eq!(error.kind(), ErrorKind::Unsupported);
    }
    let file_system = fs::file_system(&path).await.unwrap();
    assert!(file_system.bytes_total >= file_system.bytes_available && file_system.magic != 0);
    assert_eq!(fs::metadata(case.path("none")).await.unwrap_err().kind(), ErrorKind::NotFound);
}

pub async fn names(case: Case) {
    let [a, b, c] = ["a", "b", "c"].map(|name| case.path(name));
    fs::write_atomic(&a, b"first").await.unwrap();
    fs::hard_link(&a, &b).await.unwrap();
    assert_eq!(fs::metadata(&a).await.unwrap().links, 2);
    assert_eq!(fs::hard_link(&a, &b).await.unwrap_err().kind(), ErrorKind::AlreadyExists);
    fs::write_atomic(&c, b"second").await.unwrap();
    fs::rename(&c, &a).await.unwrap();
    assert_eq!(fs::read(&a, 100).await.unwrap()[..], b"second"[..]);
    assert_eq!(fs::read(&b, 100).await.unwrap()[..], b"first"[..]);
    assert_eq!(fs::rename(&c, &a).await.unwrap_err().kind(), ErrorKind::NotFound);

    // A removed file lives on while it is open.
    let open = File::open(&b).await.unwrap();
    fs::remove_file(&b).await.unwrap();
    assert_eq!(fs::remove_file(&b).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(open.read_at(vec![0; 5], 0).await.1, b"first");
    assert_eq!(open.metadata().await.unwrap().links, 0);
    fs::sync_dir(&case.dir).await.unwrap();
    assert!(fs::sync_dir(&a).await.is_err(), "not a directory");
}

pub async fn directories(case: Case) {
    let deep = case.path("x/y/z");
    fs::create_dir_all(&deep).await.unwrap();
    fs::create_dir_all(&deep).await.unwrap();
    assert_eq!(fs::create_dir(&deep).await.unwrap_err().kind(), ErrorKind::AlreadyExists);
    assert_eq!(fs::create_dir(case.path("p/q")).await.unwrap_err().kind(), ErrorKind::NotFound);
    for name in ["two", "one", "three"] {
        NEW.open(deep.join(name)).await.unwrap();
    }
    fs::create_dir(deep.join("dir")).await.unwrap();
    let entries = fs::read_dir(&deep).await.unwrap();
    let entries: Vec<_> = entries.iter().map(|entry| (entry.name.to_str().unwrap(), entry.kind)).collect();
    let (file, dir) = (FileKind::File, FileKind::Dir);
    assert_eq!(entries, [("dir", dir), ("one", file), ("three", file), ("two", file)]);
    assert_eq!(fs::remove_dir(&deep).await.unwrap_err().kind(), ErrorKind::DirectoryNotEmpty);
    fs::remove_dir(deep.join("dir")).await.unwrap();
    assert_eq!(fs::create_dir_all(deep.join("one/below")).await.unwrap_err().kind(), ErrorKind::NotADirectory);
    assert_eq!(fs::read_dir(case.path("none")).await.unwrap_err().kind(), ErrorKind::NotFound);
}

pub async fn locks(case: Case) {
    let path = case.path("lock");
    let first = NEW.open(&path).await.unwrap();
    let second = File::open(&path).await.unwrap();
    assert!(first.try_lock_exclusive().await.unwrap());
    assert!(!second.try_lock_exclusive().await.unwrap());
    drop(first);
    super::settle().await;
    assert!(second.try_lock_exclusive().await.unwrap(), "the lock ends with the file");
}

pub async fn whole_files(case: Case) {
    let path = case.path("f");
    fs::write_atomic(&path, b"12345").await.unwrap();
    assert_eq!(fs::read(&path, 5).await.unwrap()[..], b"12345"[..]);
    assert_eq!(fs::read(&path, 4).await.unwrap_err().kind(), ErrorKind::FileTooLarge);
    fs::write_atomic(&path, b"").await.unwrap();
    assert!(fs::read(&path, 0).await.unwrap().is_empty());
    assert_eq!(fs::read_dir(&case.dir).await.unwrap().len(), 1, "no temporary file is left");
}

pub async fn many_at_once(case: Case) {
    let file = NEW.open(case.path("f")).await.unwrap();
    let writers: Vec<_> = (0..200usize)
        .map(|at| {
            let file = file.clone();
            spawn(Class::Request, "writer", async move {
                file.write_at(pattern(4096, at), at as u64 * 4096).await.0.unwrap();
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    let readers: Vec<_> = (0..200usize)
        .map(|at| {
            let file = file.clone();
            spawn(Class::Request, "reader", async move {
                let (read, buf) = file.read_at(AlignedBuf::zeroed(4096), at as u64 * 4096).await;
                assert_eq!((read.unwrap(), &buf[..]), (4096, &pattern(4096, at)[..]));
            })
        })
        .collect();
    for reader in readers {
        reader.await.unwrap();
    }
}
