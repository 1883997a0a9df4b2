//! Commands that ask a running server: put, get, del, scan, recall, status.

use super::args::{GetArgs, OneArgs, PutArgs, RecallArgs, ScanArgs, ServerArgs, StatusArgs};
use super::{ExitStatus, Failure, Outcome, parse, show, status};
use gristmill_rpc::blocking::Client;
use gristmill_rpc::client::ClientError;
use gristmill_rpc::ids::{GrainId, Version};
use gristmill_rpc::limits::{SCAN_ITEMS_MAX, VALUE_BYTES_MAX};
use gristmill_rpc::schema::{Expected, Grain, Operation, RecallRequest, ScanRequest, WriteReply};
use serde_json::json;
use std::io::Read;
use std::path::Path;

fn connect(server: &ServerArgs) -> Result<Client, Failure> {
    Client::connect(&server.addr).map_err(|error| failure(&error))
}

/// A client's error as a failure of the command.
fn failure(error: &ClientError) -> Failure {
    Failure::new(status_of(error), error.to_string())
}

fn status_of(error: &ClientError) -> ExitStatus {
    match error {
        ClientError::Invalid(_) => ExitStatus::Usage,
        // The client tried until its time was up: what it met last is what there is.
        ClientError::Timeout { last: Some(last), .. } => status_of(last),
        ClientError::Timeout { last: None, .. } => ExitStatus::Unreachable,
        error if error.code().is_some() => ExitStatus::Refused,
        _ => ExitStatus::Unreachable,
    }
}

pub(super) fn put(args: &PutArgs) -> Outcome {
    // Wrong usage is told without a server.
    let mut operation = match named(args)? {
        Named::Value(key) => put_value(args, key)?,
        Named::Grain(subject) => Operation::PutGrain { grain: read_grain(args, subject)? },
    };
    let mut client = connect(&args.server)?;
    let id = match &mut operation {
        Operation::PutGrain { grain } => {
            if args.id.is_none() {
                grain.id = random_id(&client);
            }
            Some(grain.id)
        }
        _ => None,
    };
    let reply = client.batch(vec![operation]).map_err(|error| failure(&error))?;
    Ok(print_write(&reply, id, args.server.json))
}

/// What a `put` writes, by its name.
#[derive(Debug, PartialEq, Eq)]
enum Named<'a> {
    /// A plain value under this key.
    Value(&'a str),
    /// A grain about this subject.
    Grain(&'a str),
}

/// What belongs to what; said wherever a `put` mixes them.
const KINDS: &str = "a plain value is --key with --value or --value-file, --ttl-ms, --if-absent, --if-version; \
                     a grain is --subject with --id, --text, --vector, --relation, --object, --tag, --payload";

/// Which kind of record is meant. Options of the other kind are refused: nothing that was given is left out silently.
fn named(args: &PutArgs) -> Result<Named<'_>, Failure> {
    let first = |given: &[(&'static str, bool)]| given.iter().find(|(_, is_given)| *is_given).map(|(name, _)| *name);
    let of_value = first(&[
        ("--value", args.value.is_some()),
        ("--value-file", args.value_file.is_some()),
        ("--ttl-ms", args.ttl_ms.is_some()),
        ("--if-absent", args.if_absent),
        ("--if-version", args.if_version.is_some()),
    ]);
    let of_grain = first(&[
        ("--id", args.id.is_some()),
        ("--text", args.text.is_some()),
        ("--vector", args.vector.is_some()),
        ("--relation", !args.relation.is_empty()),
        ("--object", args.object.is_some()),
        ("--tag", !args.tag.is_empty()),
        ("--payload", args.payload.is_some()),
    ]);
    let wrong = match (&args.key, &args.subject, of_value, of_grain) {
        (Some(key), None, _, None) => return Ok(Named::Value(key)),
        (None, Some(subject), None, _) => return Ok(Named::Grain(subject)),
        (Some(_), None, _, Some(option)) => format!("{option} belongs to a grain, and --key names a plain value"),
        (None, Some(_), Some(option), _) => format!("{option} belongs to a plain value, and --subject names a grain"),
        (Some(_), Some(_), ..) => "--key and --subject do not go together".to_owned(),
        (None, None, ..) => "give --subject (a grain) or --key (a value)".to_owned(),
    };
    Err(Failure::usage(format!("{wrong}: {KINDS}")))
}

fn put_value(args: &PutArgs, key: &str) -> Result<Operation, Failure> {
    let (namespace, key) = (args.ns.clone(), key.as_bytes().to_vec());
    let value = match (&args.value, &args.value_file) {
        (Some(value), _) => value.clone().into_bytes(),
        (None, Some(path)) => read_value(path)?,
        (None, None) => return Err(Failure::usage("give --value or --value-file")),
    };
    let expected = match args.if_version {
        Some(version) => Some(Expected::Version(Version(version))),
        None if args.if_absent => Some(Expected::Absent),
        None => None,
    };
    Ok(match expected {
        Some(expected) => Operation::CompareAndSet { namespace, key, expected, value: Some(value) },
        None => Operation::Put { namespace, key, value, ttl_ms: args.ttl_ms.unwrap_or(0) },
    })
}

/// Reads a value from a file or standard input, no further than a value may be long.
#[expect(clippy::disallowed_methods, reason = "the command's own file, before any core runs")]
fn read_value(path: &Path) -> Result<Vec<u8>, Failure> {
    let source: Box<dyn Read> = if path == Path::new("-") {
        Box::new(std::io::stdin())
    } else {
        let file = std::fs::File::open(path);
        Box::new(file.map_err(|error| Failure::usage(format!("cannot read {}: {error}", path.display())))?)
    };
    let mut value = Vec::new();
    let read = source.take(VALUE_BYTES_MAX as u64 + 1).read_to_end(&mut value);
    read.map_err(|error| Failure::usage(format!("cannot read {}: {error}", path.display())))?;
    if value.len() > VALUE_BYTES_MAX {
        return Err(Failure::usage(format!("{} is over the limit of {VALUE_BYTES_MAX} bytes", path.display())));
    }
    Ok(value)
}

/// The grain as it was given, under no id where none was.
fn read_grain(args: &PutArgs, subject: &str) -> Result<Grain, Failure> {
    Ok(Grain {
        id: args.id.as_deref().map_or(Ok(GrainId([0; 16])), parse::grain_id)?,
        namespace: args.ns.clone(),
        subject: subject.to_owned(),
        text: args.text.clone(),
        vector: args.vector.as_deref().map(parse::vector).transpose()?,
        relations: parse::relations(&args.relation, args.object.as_ref())?,
        tags: args.tag.clone(),
        payload: args.payload.clone().unwrap_or_default().into_bytes(),
    })
}

/// An id that nobody else has: the client's session is random, and it writes once.
fn random_id(client: &Client) -> GrainId {
    GrainId::from_name(&format!("session {:016x}", client.session().0))
}

fn print_write(reply: &WriteReply, id: Option<GrainId>, json: bool) -> ExitStatus {
    let found = reply.failed.as_ref().map(|failed| failed.found.map(|version| version.0));
    if json {
        let mut out = json!({ "applied": reply.applied, "version": reply.version.0 });
        if let Some(id) = id {
            out["id"] = json!(show::id(id));
        }
        if let Some(found) = found {
            out["found_version"] = json!(found);
        }
        show::line(&out.to_string());
    } else if let Some(found) = found {
        let found = found.map_or("the key does not exist".to_owned(), |version| format!("it has version {version}"));
        eprintln!("gristmill: the condition did not hold: {found}");
    } else if let Some(id) = id {
        show::line(&show::id(id));
    }
    if reply.applied { ExitStatus::Done } else { ExitStatus::Negative }
}

/// One plain value or one grain, as the arguments name it.
enum One<'a> {
    Value(&'a str),
    Grain(GrainId),
}

fn one(args: &OneArgs) -> Result<One<'_>, Failure> {
    match (&args.key, &args.id) {
        (Some(key), _) => Ok(One::Value(key)),
        (None, Some(id)) => parse::grain_id(id).map(One::Grain),
        (None, None) => Err(Failure::usage("give --key (a plain value) or --id (a grain)")),
    }
}

pub(super) fn get(args: &GetArgs) -> Outcome {
    let GetArgs { one: args, raw } = args;
    let one = one(args)?;
    let mut client = connect(&args.server)?;
    let missing = |what: String| {
        if args.server.json {
            show::line(&json!({ "found": false }).to_string());
        } else {
            eprintln!("gristmill: namespace {:?} has no {what}", args.ns);
        }
        Ok(ExitStatus::Negative)
    };
    let key = match one {
        One::Value(key) => key,
        One::Grain(id) => {
            let found = client.get_grain(&args.ns, id).map_err(|error| failure(&error))?;
            let Some((grain, version)) = found else { return missing(format!("grain {}", show::id(id))) };
            let mut shown = show::grain(&grain);
            shown["version"] = json!(version.0);
            show::line(&if args.server.json { shown.to_string() } else { format!("{shown:#}") });
            return Ok(ExitStatus::Done);
        }
    };
    let found = client.get(&args.ns, key.as_bytes()).map_err(|error| failure(&error))?;
    let Some(value) = found else { return missing(format!("key {key:?}")) };
    if args.server.json {
        show::line(&show::versioned(&value).to_string());
    } else if *raw {
        let written = show::print_all(&value.value);
        written.map_err(|error| Failure::usage(format!("cannot write to standard output: {error}")))?;
    } else {
        show::print(&[value.value.as_slice(), b"\n"].concat());
    }
    Ok(ExitStatus::Done)
}

pub(super) fn del(args: &OneArgs) -> Outcome {
    let namespace = args.ns.clone();
    let operation = match one(args)? {
        One::Grain(id) => Operation::DeleteGrain { namespace, id },
        One::Value(key) => Operation::Delete { namespace, key: key.as_bytes().to_vec() },
    };
    let mut client = connect(&args.server)?;
    let reply = client.batch(vec![operation]).map_err(|error| failure(&error))?;
    Ok(print_write(&reply, None, args.server.json))
}

pub(super) fn scan(args: ScanArgs) -> Outcome {
    let mut client = connect(&args.server)?;
    let mut request = ScanRequest {
        namespace: args.ns,
        start: args.start.into_bytes(),
        end: args.end.into_bytes(),
        prefix: args.prefix.into_bytes(),
        limit: 0,
        reverse: args.reverse,
    };
    let (mut left, mut items) = (args.limit, Vec::new());
    loop {
        request.limit = left.min(SCAN_ITEMS_MAX);
        let reply = client.scan(&request).map_err(|error| failure(&error))?;
        left -= u32::try_from(reply.items.len()).unwrap_or(left).min(left);
        let last = reply.items.last().map(|item| item.key.clone());
        for item in &reply.items {
            if args.server.json {
                items.push(show::item(item));
            } else {
                show::print(&[item.key.as_slice(), b"\t", item.value.as_slice(), b"\n"].concat());
            }
        }
        match last {
            Some(last) if reply.more && left > 0 && args.reverse => request.end = last,
            // The smallest key after the last one.
            Some(last) if reply.more && left > 0 => request.start = [last.as_slice(), &[0]].concat(),
            last => {
                if args.server.json {
                    show::line(&json!({ "items": items, "more": reply.more }).to_string());
                } else if reply.more {
                    eprintln!("gristmill: {}", how_to_go_on(last.as_deref(), args.reverse));
                }
                return Ok(ExitStatus::Done);
            }
        }
    }
}

/// What to tell of a scan that left keys out; `last` is the key that it printed last.
fn how_to_go_on(last: Option<&[u8]>, reverse: bool) -> String {
    let stopped = "stopped at --limit, and there is more; give a higher --limit";
    let last = last.and_then(|key| std::str::from_utf8(key).ok());
    // Others cannot be typed, or would change what a terminal shows.
    let Some(last) = last.filter(|key| !key.chars().any(char::is_control)) else { return stopped.to_owned() };
    let quoted = format!("'{}'", last.replace('\'', r"'\''"));
    if reverse {
        format!("{stopped}, or go on with --end={quoted}")
    } else {
        format!("{stopped}, or go on with --start={quoted}, which prints that key again")
    }
}

pub(super) fn recall(args: RecallArgs) -> Outcome {
    let request = RecallRequest {
        namespace: args.ns,
        text: args.text,
        vector: args.vector.as_deref().map(parse::vector).transpose()?,
        relation: parse::pattern(args.relation.as_ref(), args.relation_subject)?,
        tags: args.tag,
        subject: args.subject,
        limit: args.limit,
        candidates: 0,
        with_grains: args.with_grains,
    };
    let mut client = connect(&args.server)?;
    let reply = client.recall(&request).map_err(|error| failure(&error))?;
    if args.server.json {
        let hits: Vec<_> = reply.hits.iter().map(show::hit).collect();
        show::line(&json!({ "hits": hits, "grains": reply.grains }).to_string());
    } else {
        for hit in &reply.hits {
            show::line(&show::hit_line(hit));
            if let Some(text) = hit.grain.as_ref().and_then(|grain| grain.text.as_ref()) {
                show::line(&format!("     {text}"));
            }
        }
        if reply.hits.is_empty() {
            eprintln!("gristmill: no hits among the {} grains of namespace {:?}", reply.grains, request.namespace);
        }
    }
    Ok(if reply.hits.is_empty() { ExitStatus::Negative } else { ExitStatus::Done })
}

pub(super) fn status(args: &StatusArgs) -> Outcome {
    let mut client = connect(&args.server)?;
    let status = client.status(true).map_err(|error| failure(&error))?;
    if args.server.json {
        show::line(&status);
    } else {
        let parsed: serde_json::Value = serde_json::from_str(&status)
            .map_err(|error| Failure::new(ExitStatus::Refused, format!("the server's status is no JSON: {error}")))?;
        show::print(status::text(&parsed, args.verbose).as_bytes());
    }
    Ok(ExitStatus::Done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use gristmill_rpc::error::{ErrorCode, Rejection};
    use std::time::Duration;

    /// A server that vanished during the call was reported as one that refused, and a wrong argument too.
    #[test]
    fn errors_have_the_exit_codes_that_help_promises() {
        let address = "127.0.0.1:1".parse().expect("an address");
        let timeout = |last: Option<ClientError>| ClientError::Timeout {
            after: Duration::from_secs(1),
            attempts: 3,
            last: last.map(Box::new),
        };
        let gone = ClientError::Disconnected { address, detail: "closed".into() };
        let invalid = ClientError::Invalid(Rejection::new(ErrorCode::InvalidArgument, "a key of 0 bytes"));
        for (error, status) in [
            (gone.clone(), ExitStatus::Unreachable),
            (timeout(Some(gone)), ExitStatus::Unreachable),
            (timeout(None), ExitStatus::Unreachable),
            (invalid, ExitStatus::Usage),
        ] {
            assert_eq!(failure(&error).status, status, "{error:?}");
        }
    }
}
