//! the log, the key manager and the audit log share one type configuration; each has its own requests and responses.

use super::*;

#[derive(Debug, Clone, PartialEq)]
enum LogRequest {
    Append(Vec<u8>),
}

/// The log context answers with a position.
struct LogContext;
impl Context for LogContext {
    type Request = LogRequest;
    type Response = u64;

    fn to_proposal(LogRequest::Append(bytes): LogRequest) -> Proposal {
        proposal(&bytes)
    }
    fn to_outcome(response: &u64) -> Outcome {
        Outcome::from_bytes(&response.to_le_bytes())
    }
    fn from_outcome(outcome: &Outcome) -> u64 {
        u64::from_le_bytes(outcome.as_bytes().try_into().unwrap())
    }
}

/// The key manager's context: makes and destroys keys, answers with whether the key was there.
struct KeyContext;
#[derive(Debug, Clone, PartialEq)]
enum KeyRequest {
    Create(u32),
    Destroy(u32),
}
impl Context for KeyContext {
    type Request = KeyRequest;
    type Response = bool;

    fn to_proposal(request: KeyRequest) -> Proposal {
        match request {
            KeyRequest::Create(key) => proposal(&[&[1], &key.to_le_bytes()[..]].concat()),
            KeyRequest::Destroy(key) => proposal(&[&[2], &key.to_le_bytes()[..]].concat()),
        }
    }
    fn to_outcome(response: &bool) -> Outcome {
        Outcome::from_bytes(&[u8::from(*response)])
    }
    fn from_outcome(outcome: &Outcome) -> bool {
        outcome.as_bytes() == [1]
    }
}

/// The audit log's context: answers with a text that outgrows the inline outcome.
struct AuditContext;
impl Context for AuditContext {
    type Request = String;
    type Response = String;

    fn to_proposal(request: String) -> Proposal {
        proposal(request.as_bytes())
    }
    fn to_outcome(response: &String) -> Outcome {
        Outcome::from_bytes(response.as_bytes())
    }
    fn from_outcome(outcome: &Outcome) -> String {
        String::from_utf8(outcome.as_bytes().to_vec()).unwrap()
    }
}

/// A state machine made of a function from a command to its outcome.
struct Handler<F> {
    applied: Option<LogPosition>,
    handle: F,
}

impl<F: FnMut(&[u8]) -> Outcome> StateMachine for Handler<F> {
    fn applied(&self) -> Option<LogPosition> {
        self.applied
    }
    fn apply(&mut self, batch: &[Committed<'_>], out: &mut Vec<Outcome>) -> Result<(), ApplyError> {
        for entry in batch {
            self.applied = Some(entry.position);
            out.push(entry.command.map_or(Outcome::EMPTY, |(_, body)| (self.handle)(body)));
        }
        Ok(())
    }
}

async fn group(handle: impl FnMut(&[u8]) -> Outcome + 'static) -> Group {
    let machine = Handler { applied: None, handle };
    let group = Group::start(config(), MemoryLog::new(config().shard), Box::new(machine)).unwrap();
    group.ready().await.unwrap();
    group
}

#[test]
fn three_contexts_run_on_one_type_configuration() {
    on_executor(async {
        let mut bytes = 0;
        let log = group(move |body| {
            bytes += body.len() as u64;
            LogContext::to_outcome(&bytes)
        });
        let mut keys = std::collections::BTreeSet::new();
        let keys = group(move |body| {
            let key = u32::from_le_bytes(body[1..].try_into().unwrap());
            KeyContext::to_outcome(&if body[0] == 1 { keys.insert(key) } else { keys.remove(&key) })
        });
        let audit = group(|body| AuditContext::to_outcome(&format!("seen: {}", String::from_utf8_lossy(body))));
        let (log, keys, audit) = (log.await, keys.await, audit.await);

        let positions =
            log.propose_in::<LogContext>(vec![LogRequest::Append(vec![0; 5]), LogRequest::Append(vec![0; 2])]);
        assert_eq!(positions.await, [Ok(5), Ok(7)]);
        let created =
            keys.propose_in::<KeyContext>(vec![KeyRequest::Create(9), KeyRequest::Create(9), KeyRequest::Destroy(9)]);
        assert_eq!(created.await, [Ok(true), Ok(false), Ok(true)]);
        let long = "x".repeat(2 * OUTCOME_INLINE_BYTES);
        let answers = audit.propose_in::<AuditContext>(vec![long.clone()]).await;
        assert_eq!(answers, [Ok(format!("seen: {long}"))]);
    });
}
