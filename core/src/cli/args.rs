//! The arguments of every sub-command, as clap reads them. The doc comments are the help texts.

use crate::demo::DemoOptions;
use crate::server::PORT_DEFAULT;
use clap::{Args, Parser, Subcommand, ValueEnum};
use gristmill_shardexec::IoChoice;
use std::net::SocketAddr;
use std::path::PathBuf;

const EXAMPLES: &str = "\
Try it:
  gristmill demo                                      store and recall real data, in one process
  gristmill serve --data-dir ./data                   run a store on 127.0.0.1:7171
  gristmill put --ns notes --key a --value hello      write a plain value, durable when it returns
  gristmill get --ns notes --key a                    prints: hello
  gristmill put --ns notes --subject bread --text 'made of flour' --relation is_a=food
  gristmill recall --ns notes --text flour            the best grains, with the legs that found them

Exit codes: 0 done; 1 not found, or a condition did not hold;
            2 wrong usage, options that no server can run with, no such DIR; 3 no server there;
            4 the server refused; 5 damage found, or the store or its port cannot be opened;
            130 the demo was interrupted";

/// What `--version` prints: a build that can have known bugs says so.
const VERSION: &str =
    if cfg!(feature = "bugs") { concat!(env!("CARGO_PKG_VERSION"), "+bugs") } else { env!("CARGO_PKG_VERSION") };

/// A thread-per-core storage engine that keeps an application's records and recalls the best ones.
#[derive(Debug, Parser)]
#[command(name = "gristmill", version = VERSION, after_help = EXAMPLES, max_term_width = 110)]
pub(super) struct Cli {
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Run a store and serve clients until SIGTERM or SIGINT
    Serve(ServeArgs),
    /// Store the bundled real data in a node of its own, recall it, and print what that took
    Demo(DemoArgs),
    /// Write a plain value (--key, --value) or a grain (--subject, and --text, --relation, --tag, --vector)
    Put(Box<PutArgs>),
    /// Read a plain value (--key) or a grain (--id)
    Get(GetArgs),
    /// Remove a plain value (--key) or a grain (--id)
    Del(OneArgs),
    /// List plain values of a namespace in key order
    Scan(ScanArgs),
    /// Recall the best grains by text, vector and relations, fused
    Recall(RecallArgs),
    /// Show what the server is doing
    Status(StatusArgs),
    /// Look into the logs of a data directory, read-only; the server need not run
    Wal(WalArgs),
}

/// I/O driver.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum IoArg {
    /// io_uring where the kernel allows it, else posix with a warning
    Auto,
    /// io_uring, or fail
    Uring,
    /// epoll and a small thread pool
    Posix,
}

impl From<IoArg> for IoChoice {
    fn from(arg: IoArg) -> IoChoice {
        match arg {
            IoArg::Auto => IoChoice::Auto,
            IoArg::Uring => IoChoice::Uring,
            IoArg::Posix => IoChoice::Posix,
        }
    }
}

#[derive(Debug, Args)]
pub(super) struct ServeArgs {
    /// Directory of the store; created where it does not exist
    #[arg(long, env = "GRISTMILL_DATA_DIR", default_value = "./gristmill-data", value_name = "DIR")]
    pub(super) data_dir: PathBuf,
    /// Address that accepts any request; port 0 takes a free one, the addresses are printed as JSON
    #[arg(long, env = "GRISTMILL_LISTEN", default_value_t = SocketAddr::from(([127, 0, 0, 1], PORT_DEFAULT)))]
    #[arg(value_name = "HOST:PORT")]
    pub(super) listen: SocketAddr,
    /// Port of each core, in order; cores without one take a free port. Clients learn them by themselves
    #[arg(long, value_delimiter = ',', value_name = "PORT,…")]
    pub(super) core_ports: Vec<u16>,
    /// Cores to run on [default: all that this process may use]
    #[arg(long, env = "GRISTMILL_CORES", value_name = "N")]
    pub(super) cores: Option<u16>,
    /// Shards; fixed when the directory is created [default: one per core, or what the directory has]
    #[arg(long, env = "GRISTMILL_SHARDS", value_name = "N")]
    pub(super) shards: Option<u32>,
    /// I/O driver
    #[arg(long, env = "GRISTMILL_IO", default_value = "auto")]
    pub(super) io: IoArg,
    /// Pin each core's thread to a CPU; best where no other program uses these CPUs
    #[arg(long)]
    pub(super) pin: bool,
    /// Microseconds that an idle core spins before it sleeps; lowers latency, costs CPU. 0: sleep at once
    #[arg(long, default_value_t = 0, value_name = "MICROSECONDS")]
    pub(super) spin_us: u64,
    /// Listen on a non-loopback address although nothing is encrypted or authenticated yet
    #[arg(long)]
    pub(super) insecure: bool,
}

#[derive(Debug, Args)]
pub(super) struct DemoArgs {
    /// Keep the store here instead of a temporary directory that is removed afterwards
    #[arg(long, value_name = "DIR")]
    pub(super) data_dir: Option<PathBuf>,
    /// I/O driver
    #[arg(long, default_value = "auto")]
    pub(super) io: IoArg,
    /// Cores to run on [default: all that this process may use]
    #[arg(long, value_name = "N")]
    pub(super) cores: Option<u16>,
    /// Queries to print with their hits; all are run and measured
    #[arg(long, default_value_t = 5, value_name = "N")]
    pub(super) show: usize,
    /// One JSON object on stdout instead of text
    #[arg(long)]
    pub(super) json: bool,
}

impl From<DemoArgs> for DemoOptions {
    fn from(args: DemoArgs) -> DemoOptions {
        DemoOptions {
            data_dir: args.data_dir,
            io: args.io.into(),
            cores: args.cores,
            show: args.show,
            json: args.json,
            ..DemoOptions::default()
        }
    }
}

/// How to reach a server.
#[derive(Debug, Args)]
pub(super) struct ServerArgs {
    /// Address of the server
    #[arg(long, env = "GRISTMILL_ADDR", default_value_t = format!("127.0.0.1:{PORT_DEFAULT}"), value_name = "HOST:PORT")]
    pub(super) addr: String,
    /// One JSON object on stdout instead of text
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  gristmill put --ns a --key k --value v
  gristmill put --ns a --key k --value-file photo.jpg --ttl-ms 60000
  gristmill put --ns a --key k --value v2 --if-version 17
  gristmill put --ns a --subject 'red wine' --relation is_a=wine --relation made_of=grapes --text 'from dark grapes'
  gristmill put --ns a --subject s --vector 0.1,0.2,0.3 --tag draft")]
pub(super) struct PutArgs {
    // What goes with --key and what with --subject is checked by `data::named`: clap drops its own requirements silently
    // where options conflict.
    #[command(flatten)]
    pub(super) server: ServerArgs,
    /// Namespace; created by its first write
    #[arg(long, value_name = "NAME")]
    pub(super) ns: String,
    /// Key of a plain value
    #[arg(long)]
    pub(super) key: Option<String>,
    /// The plain value
    #[arg(long, conflicts_with = "value_file")]
    pub(super) value: Option<String>,
    /// Read the plain value from a file; - for standard input
    #[arg(long, value_name = "FILE")]
    pub(super) value_file: Option<PathBuf>,
    /// Let the plain value expire after this many milliseconds
    #[arg(long, value_name = "MILLISECONDS", conflicts_with_all = ["if_absent", "if_version"])]
    pub(super) ttl_ms: Option<u64>,
    /// Write only if the key does not exist
    #[arg(long, conflicts_with = "if_version")]
    pub(super) if_absent: bool,
    /// Write only if the key has this version (`get --json` shows it)
    #[arg(long, value_name = "VERSION")]
    pub(super) if_version: Option<u64>,
    /// Subject of a grain: whom or what it is about
    #[arg(long)]
    pub(super) subject: Option<String>,
    /// Id of the grain as 32 hex digits [default: random, printed]
    #[arg(long, value_name = "HEX")]
    pub(super) id: Option<String>,
    /// Text of the grain, found by words
    #[arg(long)]
    pub(super) text: Option<String>,
    /// Vector of the grain: numbers with commas; all of a namespace have one dimension
    #[arg(long, value_name = "X,Y,…", allow_hyphen_values = true)]
    pub(super) vector: Option<String>,
    /// A relation of the subject, PREDICATE=OBJECT; may be given again. With --object, just PREDICATE
    #[arg(long, value_name = "PREDICATE[=OBJECT]")]
    pub(super) relation: Vec<String>,
    /// Object of the one relation given without one
    #[arg(long)]
    pub(super) object: Option<String>,
    /// A label; may be given again
    #[arg(long)]
    pub(super) tag: Vec<String>,
    /// Opaque bytes kept with the grain
    #[arg(long)]
    pub(super) payload: Option<String>,
}

/// Names one plain value or one grain.
#[derive(Debug, Args)]
pub(super) struct OneArgs {
    #[command(flatten)]
    pub(super) server: ServerArgs,
    /// Namespace
    #[arg(long, value_name = "NAME")]
    pub(super) ns: String,
    /// Key of a plain value
    #[arg(long, conflicts_with = "id")]
    pub(super) key: Option<String>,
    /// Id of a grain, 32 hex digits
    #[arg(long, value_name = "HEX")]
    pub(super) id: Option<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  gristmill get --ns a --key k
  gristmill put --ns a --key k --value-file photo.jpg && gristmill get --ns a --key k --raw > same.jpg
  gristmill get --ns a --id 000102030405060708090a0b0c0d0e0f")]
pub(super) struct GetArgs {
    #[command(flatten)]
    pub(super) one: OneArgs,
    /// Write the bytes of a plain value and nothing else, not even a newline behind them
    #[arg(long, conflicts_with_all = ["id", "json"])]
    pub(super) raw: bool,
}

#[derive(Debug, Args)]
pub(super) struct ScanArgs {
    #[command(flatten)]
    pub(super) server: ServerArgs,
    /// Namespace
    #[arg(long, value_name = "NAME")]
    pub(super) ns: String,
    /// First key, inclusive
    #[arg(long, default_value = "")]
    pub(super) start: String,
    /// Last key, exclusive
    #[arg(long, default_value = "")]
    pub(super) end: String,
    /// Only keys that begin with this
    #[arg(long, default_value = "")]
    pub(super) prefix: String,
    /// At most this many
    #[arg(long, default_value_t = 1000)]
    pub(super) limit: u32,
    /// From the last key to the first
    #[arg(long)]
    pub(super) reverse: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  gristmill recall --ns a --text 'dark grapes'
  gristmill recall --ns a --relation is_a=wine             subjects that are a wine
  gristmill recall --ns a --text grapes --relation is_a=wine --tag draft --limit 5")]
pub(super) struct RecallArgs {
    #[command(flatten)]
    pub(super) server: ServerArgs,
    /// Namespace
    #[arg(long, value_name = "NAME")]
    pub(super) ns: String,
    /// Words for the text leg
    #[arg(long)]
    pub(super) text: Option<String>,
    /// Query for the vector leg: numbers with commas
    #[arg(long, value_name = "X,Y,…", allow_hyphen_values = true)]
    pub(super) vector: Option<String>,
    /// Pattern for the relation leg, PREDICATE=OBJECT, PREDICATE= or =OBJECT
    #[arg(long, value_name = "PREDICATE=OBJECT")]
    pub(super) relation: Option<String>,
    /// Subject in the relation leg's pattern
    #[arg(long, value_name = "SUBJECT")]
    pub(super) relation_subject: Option<String>,
    /// Only grains of this subject
    #[arg(long, default_value = "")]
    pub(super) subject: String,
    /// Only grains with this label; may be given again
    #[arg(long)]
    pub(super) tag: Vec<String>,
    /// Hits
    #[arg(long, default_value_t = 20)]
    pub(super) limit: u32,
    /// Print each grain's text too
    #[arg(long)]
    pub(super) with_grains: bool,
}

#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    pub(super) server: ServerArgs,
    /// Every metric and recent event; --json always has them
    #[arg(long)]
    pub(super) verbose: bool,
}

#[derive(Debug, Args)]
pub(super) struct WalArgs {
    #[command(subcommand)]
    pub(super) command: WalCommand,
}

#[derive(Debug, Subcommand)]
pub(super) enum WalCommand {
    /// What the logs are: magic, revision, segments, shards, highest token
    Inspect(WalDirArgs),
    /// Every record, a line each
    Dump(WalDirArgs),
    /// Check every record; damage is named by file and offset and makes the exit code 5
    Verify(WalDirArgs),
}

#[derive(Debug, Args)]
pub(super) struct WalDirArgs {
    /// A data directory, or one log directory in it
    #[arg(value_name = "DIR")]
    pub(super) directory: PathBuf,
    /// JSON on stdout instead of text
    #[arg(long)]
    pub(super) json: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }
}
