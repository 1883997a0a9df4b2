//! Takes something away from a process, for tests of how gristmill does without it. Needs no root and no other program.
//!
//! ```text
//!   gristmill-confine disk BYTES DIR          mounts a small file system on DIR, seen only from here; holds it until stdin ends
//!   gristmill-confine memlock BYTES COMMAND…  becomes COMMAND, which may lock no more memory than BYTES
//! ```
//!
//! A file system is mounted in a mount namespace: root's own, or an ordinary user's in a user namespace. Others reach it
//! through `/proc/PID/root/DIR`, where PID is this process. "ready" on stdout says that it is there; a refusal says why on stderr.
#![allow(clippy::disallowed_methods, reason = "the helper works outside the engine")]

use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::process::{Resource, Rlimit, getegid, geteuid, setrlimit};
use rustix::thread::{CapabilitySet, UnshareFlags, remove_capability_from_bounding_set};
use std::ffi::{CString, OsStr, OsString};
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let outcome = match arguments.iter().map(OsString::as_os_str).collect::<Vec<_>>()[..] {
        [what, bytes, dir] if what == "disk" => number(bytes).and_then(|bytes| hold_disk(bytes, dir)),
        [what, bytes, command, ref more @ ..] if what == "memlock" => {
            number(bytes).and_then(|bytes| limit_memlock(bytes, command, more))
        }
        _ => Err("usage: gristmill-confine disk BYTES DIR | memlock BYTES COMMAND…".to_owned()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

fn number(text: &OsStr) -> Result<u64, String> {
    text.to_str().and_then(|text| text.parse().ok()).ok_or_else(|| format!("{} is no number", text.display()))
}

fn hold_disk(bytes: u64, dir: &OsStr) -> Result<(), String> {
    let failed = |what: &'static str| move |error: rustix::io::Errno| format!("{what}: {error}");
    enter_namespace()?;
    // Otherwise the mount would show outside wherever / is shared.
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .map_err(failed("mount --make-private"))?;
    let options = CString::new(format!("size={bytes},mode=0755")).expect("no zero byte");
    mount("tmpfs", dir, "tmpfs", MountFlags::empty(), options.as_c_str()).map_err(failed("mount a tmpfs"))?;
    println!("ready");
    std::io::stdout().flush().map_err(|error| format!("stdout: {error}"))?;
    // The end of the test, or of its process, ends this one, and with it the file system.
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    Ok(())
}

/// Root takes a mount namespace. Anybody else first becomes root in a user namespace, where the kernel allows it.
fn enter_namespace() -> Result<(), String> {
    #[expect(deprecated, reason = "the reason is CLONE_FILES, which is not asked for; the other function is unsafe")]
    let unshare = rustix::thread::unshare;
    if unshare(UnshareFlags::NEWNS).is_ok() {
        return Ok(());
    }
    let (user, group) = (geteuid().as_raw(), getegid().as_raw());
    unshare(UnshareFlags::NEWUSER | UnshareFlags::NEWNS)
        .map_err(|error| format!("no root, and no user namespace: unshare: {error}"))?;
    let maps =
        [("setgroups", "deny".to_owned()), ("uid_map", format!("0 {user} 1")), ("gid_map", format!("0 {group} 1"))];
    for (file, content) in maps {
        let path = format!("/proc/self/{file}");
        std::fs::write(&path, content).map_err(|error| format!("no root, and no user namespace: {path}: {error}"))?;
    }
    Ok(())
}

fn limit_memlock(bytes: u64, command: &OsStr, more: &[&OsStr]) -> Result<(), String> {
    setrlimit(Resource::Memlock, Rlimit { current: Some(bytes), maximum: Some(bytes) })
        .map_err(|error| format!("setrlimit: {error}"))?;
    // Root is above the limit by this capability. Who is not root has not got it, and may not drop it for others either.
    let dropped = remove_capability_from_bounding_set(CapabilitySet::IPC_LOCK);
    if geteuid().is_root() {
        dropped.map_err(|error| format!("drop CAP_IPC_LOCK: {error}"))?;
    }
    Err(format!("{}: {}", command.display(), Command::new(command).args(more).exec()))
}
