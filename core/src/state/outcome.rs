//! What apply answers to a command.
//!
//! An outcome follows from the log alone, so every replica computes the same one; a session remembers it for retries. It
//! travels as at most [`OUTCOME_BYTES_MAX`] bytes from apply to whoever answers the client:
//!
//! ```text
//! 0 flags u8 (1: duplicate)   1 version u64   9 verdict, as in an answer record:
//!   0                                      applied
//!   1  operation u32  found u64 (0: none)  a precondition failed
//!   2  operation u32  expected u32 (0: not fixed)  found u32   wrong dimension
//!   3  operation u32                       too many namespaces
//!   4  operation u32  partition u64        wrong shard
//!   5  session u64    sequence u64         sequence too old
//! ```

use super::record::Reader;
use super::store::StoreError;
use gristmill_rpc::error::ErrorCode;
use gristmill_rpc::ids::Version;
use gristmill_rpc::schema::{ErrorReply, PreconditionFailure, WriteReply};

/// Bytes of the longest encoded outcome.
pub const OUTCOME_BYTES_MAX: usize = 26;

/// The answer to a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WriteOutcome {
    /// The log index of the entry that the verdict is about.
    pub version: Version,
    /// The verdict was remembered from an earlier entry of the same session and sequence.
    pub duplicate: bool,
    /// What happened.
    pub verdict: Verdict,
}

/// What happened to a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It took effect.
    Applied,
    /// A precondition did not hold; nothing took effect.
    PreconditionFailed {
        /// Position in the command's operations.
        operation: u32,
        /// The key's version at that moment.
        found: Option<Version>,
    },
    /// It cannot be done; nothing took effect.
    Rejected(Rejection),
}

/// Why a command cannot be done. Follows from the log alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// A vector has another dimension than the namespace.
    #[error(
        "operation {operation}: the vector has {found} dimensions, the namespace's vectors have {}; \
         embed with the model that the namespace was begun with, or use another namespace",
        .expected.map_or("1 or more".into(), |n| n.to_string())
    )]
    WrongDimension {
        /// Position in the command's operations.
        operation: u32,
        /// The namespace's dimension; `None` where its first vector is still to come.
        expected: Option<u32>,
        /// The vector's.
        found: u32,
    },
    /// The shard has as many namespaces as it can.
    #[error(
        "operation {operation}: the shard has {} namespaces, the most it can; use fewer, larger ones",
        super::catalog::NAMESPACES_MAX
    )]
    TooManyNamespaces {
        /// Position in the command's operations.
        operation: u32,
    },
    /// The shard does not own the namespace's partition.
    #[error("operation {operation}: this shard does not own partition {partition:#018x}; refresh the cluster map")]
    WrongShard {
        /// Position in the command's operations.
        operation: u32,
        /// The namespace's partition.
        partition: u64,
    },
    /// The session's answer to this sequence is forgotten, so whether it applied is not known any more.
    #[error(
        "session {session:#x} has forgotten the answer to sequence {sequence}: it keeps the latest {}; \
         read back what the write did before writing again",
        gristmill_rpc::limits::SESSION_WINDOW
    )]
    SequenceTooOld {
        /// The session.
        session: u64,
        /// The sequence.
        sequence: u64,
    },
}

impl Rejection {
    /// The code that programs decide by.
    pub fn code(&self) -> ErrorCode {
        match self {
            Rejection::WrongDimension { .. } => ErrorCode::WrongDimension,
            Rejection::TooManyNamespaces { .. } => ErrorCode::TooLarge,
            Rejection::WrongShard { .. } => ErrorCode::WrongShard,
            Rejection::SequenceTooOld { .. } => ErrorCode::SequenceTooOld,
        }
    }
}

impl WriteOutcome {
    /// The reply for the client.
    pub fn to_reply(&self) -> Result<WriteReply, ErrorReply> {
        let failed = match self.verdict {
            Verdict::Applied => None,
            Verdict::PreconditionFailed { operation, found } => Some(PreconditionFailure { operation, found }),
            Verdict::Rejected(rejection) => {
                let code = rejection.code();
                return Err(ErrorReply {
                    code: code as u16,
                    retriable: code.retriable(),
                    retry_after_ms: 0,
                    message: rejection.to_string(),
                });
            }
        };
        Ok(WriteReply { version: self.version, applied: failed.is_none(), failed, duplicate: self.duplicate })
    }

    /// The outcome's bytes: at most [`OUTCOME_BYTES_MAX`].
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(OUTCOME_BYTES_MAX);
        out.push(u8::from(self.duplicate));
        out.extend_from_slice(&self.version.0.to_le_bytes());
        self.verdict.encode(&mut out);
        out
    }

    /// The outcome of its bytes.
    pub fn decode(bytes: &[u8]) -> Result<WriteOutcome, StoreError> {
        let mut reader = Reader::new("outcome", bytes);
        let duplicate = match reader.u8()? {
            0 => false,
            1 => true,
            _ => return Err(reader.malformed("unknown flags")),
        };
        let version = Version(reader.u64()?);
        Ok(WriteOutcome { version, duplicate, verdict: Verdict::decode(reader)? })
    }
}

impl Verdict {
    /// Whether a retry of the same sequence must get it again. Not so where the command may well apply elsewhere or later,
    /// and where it says that nothing is remembered.
    pub(super) fn is_remembered(&self) -> bool {
        !matches!(self, Verdict::Rejected(Rejection::WrongShard { .. } | Rejection::SequenceTooOld { .. }))
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let mut put = |kind: u8, parts: &[&[u8]]| {
            out.push(kind);
            for part in parts {
                out.extend_from_slice(part);
            }
        };
        match *self {
            Verdict::Applied => put(0, &[]),
            Verdict::PreconditionFailed { operation, found } => {
                put(1, &[&operation.to_le_bytes(), &found.map_or(0, |version| version.0).to_le_bytes()]);
            }
            Verdict::Rejected(Rejection::WrongDimension { operation, expected, found }) => {
                let expected = expected.unwrap_or(0);
                put(2, &[&operation.to_le_bytes(), &expected.to_le_bytes(), &found.to_le_bytes()]);
            }
            Verdict::Rejected(Rejection::TooManyNamespaces { operation }) => put(3, &[&operation.to_le_bytes()]),
            Verdict::Rejected(Rejection::WrongShard { operation, partition }) => {
                put(4, &[&operation.to_le_bytes(), &partition.to_le_bytes()]);
            }
            Verdict::Rejected(Rejection::SequenceTooOld { session, sequence }) => {
                put(5, &[&session.to_le_bytes(), &sequence.to_le_bytes()]);
            }
        }
    }

    pub(super) fn decode(mut reader: Reader<'_>) -> Result<Verdict, StoreError> {
        let nonzero = |n: u64| (n != 0).then_some(n);
        let verdict = match reader.u8()? {
            0 => Verdict::Applied,
            1 => Verdict::PreconditionFailed { operation: reader.u32()?, found: nonzero(reader.u64()?).map(Version) },
            2 => Verdict::Rejected(Rejection::WrongDimension {
                operation: reader.u32()?,
                expected: nonzero(reader.u32()?.into()).map(|n| n as u32),
                found: reader.u32()?,
            }),
            3 => Verdict::Rejected(Rejection::TooManyNamespaces { operation: reader.u32()? }),
            4 => Verdict::Rejected(Rejection::WrongShard { operation: reader.u32()?, partition: reader.u64()? }),
            5 => Verdict::Rejected(Rejection::SequenceTooOld { session: reader.u64()?, sequence: reader.u64()? }),
            _ => return Err(reader.malformed("unknown verdict")),
        };
        reader.end()?;
        Ok(verdict)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::hex;
    use super::*;

    /// One of each kind, with the bytes that remembered answers have on disk.
    const VERDICTS: [(Verdict, &str); 8] = [
        (Verdict::Applied, "00"),
        (Verdict::PreconditionFailed { operation: 1, found: Some(Version(2)) }, "01010000000200000000000000"),
        (Verdict::PreconditionFailed { operation: 1, found: None }, "01010000000000000000000000"),
        (
            Verdict::Rejected(Rejection::WrongDimension { operation: 1, expected: Some(384), found: 3 }),
            "02010000008001000003000000",
        ),
        (
            Verdict::Rejected(Rejection::WrongDimension { operation: 1, expected: None, found: 0 }),
            "02010000000000000000000000",
        ),
        (Verdict::Rejected(Rejection::TooManyNamespaces { operation: 1 }), "0301000000"),
        (Verdict::Rejected(Rejection::WrongShard { operation: 1, partition: 2 }), "04010000000200000000000000"),
        (
            Verdict::Rejected(Rejection::SequenceTooOld { session: 1, sequence: 2 }),
            "0501000000000000000200000000000000",
        ),
    ];

    #[test]
    fn bytes_are_golden() {
        for (verdict, golden) in VERDICTS {
            let outcome = WriteOutcome { version: Version(7), duplicate: true, verdict };
            let bytes = outcome.encode();
            assert_eq!(hex(&bytes), format!("010700000000000000{golden}"));
            assert!(bytes.len() <= OUTCOME_BYTES_MAX);
            assert_eq!(WriteOutcome::decode(&bytes), Ok(outcome));
            assert!(WriteOutcome::decode(&bytes[..bytes.len() - 1]).is_err());
            assert!(WriteOutcome::decode(&[&bytes[..], &[0]].concat()).is_err());
        }
        assert!(WriteOutcome::decode(&[&[2][..], &[0; 9]].concat()).is_err(), "unknown flags");
        assert!(WriteOutcome::decode(&[&[0; 9][..], &[9]].concat()).is_err(), "unknown verdict");
    }

    #[test]
    fn replies_say_what_happened() {
        let reply = |verdict| WriteOutcome { version: Version(7), duplicate: false, verdict }.to_reply();
        let applied = WriteReply { version: Version(7), applied: true, failed: None, duplicate: false };
        assert_eq!(reply(VERDICTS[0].0), Ok(applied.clone()));
        let failed = Some(PreconditionFailure { operation: 1, found: Some(Version(2)) });
        assert_eq!(reply(VERDICTS[1].0), Ok(WriteReply { applied: false, failed, ..applied }));
        let error = reply(VERDICTS[3].0).expect_err("rejected");
        assert_eq!((error.code, error.retriable), (ErrorCode::WrongDimension as u16, false));
        assert!(error.message.contains("3 dimensions") && error.message.contains("384"), "{}", error.message);
        assert!(reply(VERDICTS[6].0).expect_err("rejected").retriable);
    }
}
