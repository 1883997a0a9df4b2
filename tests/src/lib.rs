//! Harness shared by the whole-system tests: real server processes, real clients, a scratch directory each.
#![allow(clippy::disallowed_methods, reason = "tests drive processes, files and sockets from outside the engine")]

pub mod sim;
mod small_disk;

/// Says that a test did not test what it should. The harness swallows what passing tests print, but not what is written
/// to stderr itself.
pub fn tell_skipped(what: &str) {
    // Where stderr is closed nobody is there to be told.
    let _ = std::io::stderr().write_all(format!("SKIPPED, {what}\n").as_bytes());
}

pub use small_disk::SmallDisk;

use gristmill_rpc::blocking::Client;
use gristmill_rpc::client::ClientOptions;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// How long a server may take to say where it listens. Generous: the machine may be busy.
const START_MAX: Duration = Duration::from_mins(1);

/// A server process. Killed when dropped.
pub struct Server {
    child: Child,
    /// What it printed about itself: `listen`, `cores`, `shards`, `io_driver`.
    pub listening: serde_json::Value,
    stderr: Option<thread::JoinHandle<String>>,
}

impl Server {
    /// Starts `serve` on a free port and waits until it listens.
    ///
    /// # Panics
    /// If it ends or stays silent instead.
    pub fn start(binary: &Path, data_dir: &Path, more: &[&str]) -> Server {
        let mut command = Command::new(binary);
        command.args(["serve", "--listen", "127.0.0.1:0", "--data-dir"]).arg(data_dir).args(more);
        Server::spawn(command)
    }

    /// Starts a prepared `serve` command and waits until it listens.
    ///
    /// # Panics
    /// If it ends or stays silent instead.
    pub fn spawn(mut command: Command) -> Server {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
        let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
        let mut stderr = child.stderr.take().expect("piped");
        let stderr = thread::spawn(move || {
            let mut text = String::new();
            // A server that is killed may end in the middle of a character.
            let _ = stderr.read_to_string(&mut text);
            text
        });
        let mut line = String::new();
        stdout.read_line(&mut line).expect("stdout is readable");
        if line.is_empty() {
            let status = child.wait().expect("the child can be waited for");
            panic!("{command:?} ended with {status} before it listened:\n{}", stderr.join().expect("reader"));
        }
        let listening = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line:?} is no JSON: {error}"));
        Server { child, listening, stderr: Some(stderr) }
    }

    /// The address that accepts any request.
    ///
    /// # Panics
    /// If the server did not say.
    pub fn address(&self) -> String {
        self.listening["listen"].as_str().expect("the server says where it listens").to_owned()
    }

    /// Process id, for signals.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// A client that waits out a server that is still replaying.
    ///
    /// # Panics
    /// If the server cannot be reached.
    pub fn client(&self) -> Client {
        Client::connect_with(&self.address(), ClientOptions::default()).expect("the server accepts connections")
    }

    /// SIGKILL: no drain, no final mark.
    ///
    /// # Panics
    /// If the process cannot be waited for.
    pub fn kill(mut self) {
        self.child.kill().expect("the server was running");
        self.child.wait().expect("the child can be waited for");
    }

    /// Waits for the server to end by itself; its exit status and what it wrote to stderr.
    ///
    /// # Panics
    /// If it does not end within a minute.
    pub fn wait(mut self) -> (ExitStatus, String) {
        let deadline = Instant::now() + START_MAX;
        loop {
            if let Some(status) = self.child.try_wait().expect("the child can be waited for") {
                let stderr = self.stderr.take().expect("taken once").join().expect("the reader does not panic");
                return (status, stderr);
            }
            assert!(Instant::now() < deadline, "the server did not stop");
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a command of the binary to its end.
///
/// # Panics
/// If it cannot be run.
pub fn run(binary: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(binary);
    command.args(arguments).stdin(Stdio::null());
    command.output().unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"))
}

/// Standard output as text.
///
/// # Panics
/// If it is not UTF-8.
pub fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

/// Standard error as text.
///
/// # Panics
/// If it is not UTF-8.
pub fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("UTF-8")
}

/// A directory on a real file system (the build's own) for one test; removed with the guard.
///
/// # Panics
/// If it cannot be created.
pub fn scratch() -> tempfile::TempDir {
    let base = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| base.join("../target"), PathBuf::from);
    std::fs::create_dir_all(&target).expect("the build directory is writable");
    tempfile::Builder::new().prefix("gristmill-test-").tempdir_in(target).expect("the build directory is writable")
}
