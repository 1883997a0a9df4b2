//! The rules that no compiler checks: layering, forbidden crates, file lengths, where `unsafe` may live, and that the
//! repository speaks of itself only.

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Which of our packages each package may depend on. A package missing here fails the test.
const LAYERS: [(&str, &[&str]); 8] = [
    ("gristmill-rpc", &[]),
    ("gristmill-shardexec", &[]),
    ("gristmill-vector", &[]),
    ("gristmill-wal", &["gristmill-shardexec"]),
    ("gristmill", &["gristmill-rpc", "gristmill-shardexec", "gristmill-vector", "gristmill-wal"]),
    ("gristmill-bench", &["gristmill", "gristmill-rpc", "gristmill-shardexec", "gristmill-vector", "gristmill-wal"]),
    ("gristmill-perf", &["gristmill", "gristmill-rpc", "gristmill-shardexec", "gristmill-vector", "gristmill-wal"]),
    ("gristmill-tests", &["gristmill", "gristmill-rpc", "gristmill-shardexec", "gristmill-vector", "gristmill-wal"]),
];

/// Crates that a bare machine cannot build, or that must stay behind features which are off by default.
const FORBIDDEN: [&str; 9] =
    ["aws-lc-rs", "aws-lc-sys", "cmake", "bindgen", "glommio", "rocksdb", "librocksdb-sys", "protoc", "nasm-rs"];

/// The only crate that may name the consensus library, and the folder in it.
const CONSENSUS_FOLDER: &str = "core/src/raft/";

/// Longest source file, in lines.
const FILE_LINES_MAX: usize = 800;

/// Where `unsafe` code is allowed: the executor's ring, mesh and buffers; vector kernels; memory maps; and the one floor that must be
/// measured beside our own driver, not through it.
const UNSAFE_ALLOWED: [&str; 5] =
    ["shardexec/src/uring", "shardexec/src/mesh", "shardexec/src/buf", "vector/src/kernel", "bench/src/raw_ring.rs"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests package lives in the workspace").to_path_buf()
}

/// The platform that this test was built on: only its dependencies are sure to have been downloaded.
fn host() -> String {
    let output = Command::new(env!("CARGO")).arg("-vV").output().expect("cargo runs");
    let text = String::from_utf8(output.stdout).expect("cargo prints UTF-8");
    text.lines().find_map(|line| line.strip_prefix("host: ")).expect("cargo -vV names the host").to_owned()
}

/// `cargo metadata` of the workspace with default features.
pub(super) fn metadata() -> Value {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked", "--offline", "--filter-platform", &host()])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("cargo metadata prints JSON")
}

pub(super) fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_else(|| panic!("{field} is missing in cargo's metadata"))
}

/// Names of the packages that a build of the whole workspace with default features resolves to.
fn resolved_packages(metadata: &Value) -> BTreeSet<String> {
    let names: BTreeMap<&str, &str> = metadata["packages"]
        .as_array()
        .expect("packages")
        .iter()
        .map(|package| (text(package, "id"), text(package, "name")))
        .collect();
    let nodes = metadata["resolve"]["nodes"].as_array().expect("nodes");
    let edges: BTreeMap<&str, Vec<&str>> = nodes
        .iter()
        .map(|node| {
            let dependencies = node["deps"].as_array().expect("deps").iter().map(|dep| text(dep, "pkg")).collect();
            (text(node, "id"), dependencies)
        })
        .collect();
    let mut queue: Vec<&str> =
        metadata["workspace_members"].as_array().expect("members").iter().filter_map(Value::as_str).collect();
    let mut seen = BTreeSet::new();
    while let Some(id) = queue.pop() {
        if seen.insert(id) {
            queue.extend(edges[id].iter().copied());
        }
    }
    seen.into_iter().map(|id| names[id].to_owned()).collect()
}

/// Every file that git tracks or would track, relative to the root.
fn tracked_files() -> Vec<String> {
    let output = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output()
        .expect("git runs");
    assert!(output.status.success(), "git ls-files: {}", String::from_utf8_lossy(&output.stderr));
    let listing = String::from_utf8(output.stdout).expect("paths are UTF-8");
    let files: Vec<String> =
        listing.lines().filter(|file| root().join(file).is_file()).map(ToOwned::to_owned).collect();
    assert!(files.len() > 20, "git lists the repository's files");
    files
}

fn rust_files() -> impl Iterator<Item = (String, String)> {
    tracked_files()
        .into_iter()
        .filter(|file| Path::new(file).extension().is_some_and(|extension| extension == "rs"))
        .map(|file| {
            let text = std::fs::read_to_string(root().join(&file)).expect("a tracked source file is readable UTF-8");
            (file, text)
        })
}

#[test]
fn packages_depend_only_downwards() {
    let metadata = metadata();
    let allowed: BTreeMap<&str, &[&str]> = LAYERS.into_iter().collect();
    let ours: Vec<&Value> = metadata["packages"]
        .as_array()
        .expect("packages")
        .iter()
        .filter(|package| text(package, "name").starts_with("gristmill"))
        .collect();
    assert_eq!(ours.len(), LAYERS.len(), "every workspace package has a row in LAYERS");
    for package in ours {
        let name = text(package, "name");
        let layer = allowed.get(name).unwrap_or_else(|| panic!("{name} has no row in LAYERS"));
        for dependency in package["dependencies"].as_array().expect("dependencies") {
            let dependency = text(dependency, "name");
            assert!(
                !dependency.starts_with("gristmill") || dependency == name || layer.contains(&dependency),
                "{name} must not depend on {dependency}: see ARCHITECTURE.md for the layers"
            );
        }
    }
}

#[test]
fn a_bare_machine_can_build_the_default_features() {
    let resolved = resolved_packages(&metadata());
    assert!(resolved.contains("openraft"), "the resolution was read");
    let found: Vec<&str> = FORBIDDEN.into_iter().filter(|name| resolved.contains(*name)).collect();
    assert!(found.is_empty(), "{found:?} must not be in the tree with default features (cargo tree -i NAME says why)");
}

#[test]
fn files_stay_short() {
    let long: Vec<String> = rust_files()
        .filter(|(_, text)| text.lines().count() > FILE_LINES_MAX)
        .map(|(file, text)| format!("{file}: {} lines", text.lines().count()))
        .collect();
    assert!(long.is_empty(), "over {FILE_LINES_MAX} lines, split them: {long:#?}");
}

#[test]
fn unsafe_code_lives_only_where_it_may() {
    let opens_unsafe = |line: &str| {
        let code = line.split("//").next().unwrap_or_default();
        ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern", "unsafe trait"].iter().any(|form| code.contains(form))
    };
    let stray: Vec<String> = rust_files()
        .filter(|(file, _)| file != "tests/tests/it/tidy.rs")
        .filter(|(file, _)| !UNSAFE_ALLOWED.iter().any(|prefix| file.starts_with(prefix)))
        .flat_map(|(file, text)| {
            let lines: Vec<String> = text
                .lines()
                .enumerate()
                .filter(|(_, line)| opens_unsafe(line))
                .map(|(at, line)| format!("{file}:{}: {}", at + 1, line.trim()))
                .collect();
            lines
        })
        .collect();
    assert!(stray.is_empty(), "unsafe outside {UNSAFE_ALLOWED:?}: {stray:#?}");
}

#[test]
fn only_the_raft_module_names_the_consensus_library() {
    let stray: Vec<String> = rust_files()
        .filter(|(file, _)| file.starts_with("core/") && !file.starts_with(CONSENSUS_FOLDER))
        .filter(|(_, text)| text.lines().any(|line| line.split("//").next().unwrap_or_default().contains("openraft")))
        .map(|(file, _)| file)
        .collect();
    assert!(stray.is_empty(), "openraft is named outside {CONSENSUS_FOLDER}: {stray:?}");
}

#[test]
fn the_repository_speaks_of_itself_only() {
    let needle = ["..", "/shared"].concat();
    let stray: Vec<String> = tracked_files()
        .into_iter()
        .filter(|file| {
            let bytes = std::fs::read(root().join(file)).expect("a tracked file is readable");
            bytes.windows(needle.len()).any(|window| window == needle.as_bytes())
        })
        .collect();
    assert!(stray.is_empty(), "a path outside the repository is named in {stray:?}");
}
