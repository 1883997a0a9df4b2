//! Bytes to frames, in any split, with bounded memory.
//!
//! ```text
//!   input ─▶ [64-byte header] ─ CRC, version, flags, length ─▶ [aligned body, grows as bytes arrive] ─ CRC ─▶ Frame
//!                  │                        └─ refused: told at once, its body is skipped ──▶ next header
//!                  └─ no magic, wrong CRC: dead, every later call gives the same error
//! ```
//!
//! Invariants: nothing is allocated for a frame before its header has passed; a body's buffer is at most
//! [`BODY_CHUNK_BYTES`] or twice what has arrived, whichever is more, so announcing a large body costs the announcer.
//! After a refused frame the decoder stands exactly at the next header.

use std::mem;

use crc32fast::Hasher;

use crate::body::{Body, BodyBuffer};
use crate::frame::{FrameError, FrameHeader};
use crate::limits::{FRAME_BODY_BYTES_MAX, FRAME_HEADER_BYTES};

/// First allocation for a body that has not arrived whole, in bytes.
pub(crate) const BODY_CHUNK_BYTES: usize = 64 << 10;
/// A body that still lacks this many bytes is worth being read into directly ([`FrameDecoder::spare`]).
const DIRECT_BYTES_MIN: usize = 16 << 10;

/// A whole frame whose header and body are intact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// The header.
    pub header: FrameHeader,
    /// The body, 16-byte aligned.
    pub body: Body,
}

/// What a decoder found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decoded {
    /// A frame.
    Frame(Frame),
    /// A frame that this side does not take. Its header is intact, its body is skipped, the next frame is readable.
    Refused {
        /// The header, so that the sender can be told which of its requests it was.
        header: FrameHeader,
        /// Why.
        error: FrameError,
    },
}

impl Decoded {
    /// The header, which is intact.
    pub fn header(&self) -> &FrameHeader {
        match self {
            Decoded::Frame(Frame { header, .. }) | Decoded::Refused { header, .. } => header,
        }
    }
}

/// An incremental decoder for one direction of one connection.
#[derive(Debug)]
pub struct FrameDecoder {
    body_bytes_max: u32,
    state: State,
}

#[derive(Debug)]
enum State {
    Header { bytes: [u8; FRAME_HEADER_BYTES], filled: usize },
    Body(Box<Partial>),
    Skip { left: u32 },
    Dead(FrameError),
}

/// A body of which `buffer[..filled]` has arrived; the rest of the buffer is zeros.
#[derive(Debug)]
struct Partial {
    header: FrameHeader,
    buffer: BodyBuffer,
    filled: usize,
    crc: Hasher,
}

const HEADER: State = State::Header { bytes: [0; FRAME_HEADER_BYTES], filled: 0 };

impl FrameDecoder {
    /// A decoder that refuses bodies over a limit.
    ///
    /// # Panics
    /// If the limit is over [`FRAME_BODY_BYTES_MAX`].
    pub fn new(body_bytes_max: u32) -> FrameDecoder {
        let mut decoder = FrameDecoder { body_bytes_max: 0, state: HEADER };
        decoder.set_body_bytes_max(body_bytes_max);
        decoder
    }

    /// Changes the limit for the headers from here on.
    ///
    /// # Panics
    /// If the limit is over [`FRAME_BODY_BYTES_MAX`].
    pub fn set_body_bytes_max(&mut self, body_bytes_max: u32) {
        assert!(body_bytes_max <= FRAME_BODY_BYTES_MAX, "a limit over FRAME_BODY_BYTES_MAX");
        self.body_bytes_max = body_bytes_max;
    }

    /// Takes no more: every later call of [`Self::decode`] returns this error, and so does this one.
    pub(crate) fn give_up(&mut self, error: FrameError) -> FrameError {
        self.state = State::Dead(error);
        error
    }

    /// Takes bytes off the front of `input` until a frame is complete. `None` when the input is used up.
    ///
    /// An error is final: where frames begin is lost, and every later call returns it again.
    pub fn decode(&mut self, input: &mut &[u8]) -> Result<Option<Decoded>, FrameError> {
        loop {
            match &mut self.state {
                State::Dead(error) => return Err(*error),
                State::Skip { left } => {
                    let count = input.len().min(*left as usize);
                    *input = &input[count..];
                    *left -= count as u32;
                    if *left > 0 {
                        return Ok(None);
                    }
                    self.state = HEADER;
                }
                State::Header { bytes, filled } => {
                    let count = input.len().min(FRAME_HEADER_BYTES - *filled);
                    bytes[*filled..*filled + count].copy_from_slice(&input[..count]);
                    *input = &input[count..];
                    *filled += count;
                    if *filled < FRAME_HEADER_BYTES {
                        return Ok(None);
                    }
                    let bytes = *bytes;
                    if let Some(decoded) = self.header(&bytes, input)? {
                        return Ok(Some(decoded));
                    }
                }
                State::Body(partial) => {
                    partial.take(input);
                    if partial.missing() > 0 {
                        return Ok(None);
                    }
                    let State::Body(partial) = mem::replace(&mut self.state, HEADER) else { unreachable!("matched") };
                    return Ok(Some(partial.finish()));
                }
            }
        }
    }

    /// The unfilled part of a body that lacks many bytes, to be read into without a copy; tell [`Self::commit`] how
    /// many were read. `None` where input is better read into a buffer of the caller and given to [`Self::decode`].
    pub fn spare(&mut self) -> Option<&mut [u8]> {
        match &mut self.state {
            State::Body(partial) if partial.missing() >= DIRECT_BYTES_MIN => Some(partial.spare()),
            _ => None,
        }
    }

    /// Notes that the first `count` bytes of [`Self::spare`] were filled. A body that is now complete comes out of the
    /// next [`Self::decode`], even of an empty input.
    pub fn commit(&mut self, count: usize) {
        match &mut self.state {
            State::Body(partial) => partial.commit(count),
            _ => assert_eq!(count, 0, "no body is being read"),
        }
    }

    /// Whether a frame has begun and not ended: an end of the stream now is a truncation.
    pub fn mid_frame(&self) -> bool {
        match &self.state {
            State::Header { filled, .. } => *filled > 0,
            State::Body(_) | State::Skip { .. } => true,
            State::Dead(_) => false,
        }
    }

    /// Handles a complete header; on return the state is the next one.
    fn header(&mut self, bytes: &[u8; FRAME_HEADER_BYTES], input: &mut &[u8]) -> Result<Option<Decoded>, FrameError> {
        let header = match FrameHeader::parse(bytes) {
            Ok(header) => header,
            Err(error) => return Err(self.give_up(error)),
        };
        if let Err(error) = header.check(self.body_bytes_max) {
            self.state = State::Skip { left: header.body_length };
            return Ok(Some(Decoded::Refused { header, error }));
        }
        let length = header.body_length as usize;
        let Some((body, rest)) = input.split_at_checked(length) else {
            self.state = State::Body(Box::new(Partial::new(header)));
            return Ok(None);
        };
        *input = rest;
        self.state = HEADER;
        Ok(Some(match header.check_body(body) {
            Ok(()) => Decoded::Frame(Frame { header, body: Body::copy_from(body) }),
            Err(error) => Decoded::Refused { header, error },
        }))
    }
}

impl Partial {
    fn new(header: FrameHeader) -> Partial {
        Partial { header, buffer: BodyBuffer::new(), filled: 0, crc: Hasher::new() }
    }

    fn length(&self) -> usize {
        self.header.body_length as usize
    }

    fn missing(&self) -> usize {
        self.length() - self.filled
    }

    /// The part that can be filled now; grows the buffer where it is full.
    fn spare(&mut self) -> &mut [u8] {
        if self.filled == self.buffer.len() {
            let target = (2 * self.filled).max(BODY_CHUNK_BYTES).min(self.length());
            self.buffer.reserve_exact(target - self.filled);
            self.buffer.resize(target, 0);
        }
        &mut self.buffer[self.filled..]
    }

    fn commit(&mut self, count: usize) {
        assert!(count <= self.buffer.len() - self.filled, "more filled than there was room");
        self.crc.update(&self.buffer[self.filled..self.filled + count]);
        self.filled += count;
    }

    fn take(&mut self, input: &mut &[u8]) {
        while !input.is_empty() && self.missing() > 0 {
            let spare = self.spare();
            let count = spare.len().min(input.len());
            spare[..count].copy_from_slice(&input[..count]);
            *input = &input[count..];
            self.commit(count);
        }
    }

    fn finish(self) -> Decoded {
        assert_eq!(self.buffer.len(), self.length(), "the buffer grows to the length and no further");
        let (header, computed) = (self.header, self.crc.finalize());
        if computed == header.body_crc {
            Decoded::Frame(Frame { header, body: Body::from(self.buffer) })
        } else {
            Decoded::Refused { header, error: FrameError::BodyCrc { found: header.body_crc, computed } }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::body::BODY_ALIGNMENT;
    use crate::frame::{FRAME_MAGIC, MessageType, PROTOCOL_VERSION};
    use proptest::prelude::*;

    fn frame(correlation: u64, body: &[u8]) -> (Frame, Vec<u8>) {
        let header = FrameHeader::for_body(MessageType::Get, correlation, body);
        let mut bytes = header.encode().to_vec();
        bytes.extend_from_slice(body);
        (Frame { header, body: Body::copy_from(body) }, bytes)
    }

    fn all(decoder: &mut FrameDecoder, mut input: &[u8]) -> Vec<Decoded> {
        let mut out = Vec::new();
        while let Some(decoded) = decoder.decode(&mut input).expect("no fatal error") {
            out.push(decoded);
        }
        assert!(input.is_empty(), "None means that the input is used up");
        out
    }

    #[test]
    fn a_frame_comes_out_of_any_split() {
        let (first, mut bytes) = frame(1, b"");
        let (second, more) = frame(2, &[5; 100]);
        bytes.extend_from_slice(&more);
        let expected = vec![Decoded::Frame(first), Decoded::Frame(second)];
        for split in 0..=bytes.len() {
            let mut decoder = FrameDecoder::new(1000);
            let mut found = all(&mut decoder, &bytes[..split]);
            assert_eq!(decoder.mid_frame(), !matches!(split, 0 | 64 | 228), "split at {split}");
            found.extend(all(&mut decoder, &bytes[split..]));
            assert_eq!(found, expected, "split at {split}");
        }
        let mut decoder = FrameDecoder::new(1000);
        let found: Vec<_> = bytes.iter().flat_map(|byte| all(&mut decoder, &[*byte])).collect();
        assert_eq!(found, expected, "byte by byte");
    }

    #[test]
    fn large_bodies_are_read_in_place() {
        let body: Vec<u8> = (0..1_000_000_u32).map(|at| at as u8).collect();
        let (expected, bytes) = frame(9, &body);
        let mut decoder = FrameDecoder::new(FRAME_BODY_BYTES_MAX);
        assert!(decoder.spare().is_none(), "no body has begun");
        assert_eq!(all(&mut decoder, &bytes[..164]), []);
        let mut rest = &bytes[164..];
        while let Some(spare) = decoder.spare() {
            let count = spare.len().min(rest.len()).min(33_333);
            spare[..count].copy_from_slice(&rest[..count]);
            decoder.commit(count);
            rest = &rest[count..];
        }
        assert!(rest.len() < DIRECT_BYTES_MIN, "the tail goes the other way");
        let found = all(&mut decoder, rest);
        assert_eq!(found, [Decoded::Frame(expected)]);
        let Decoded::Frame(found) = &found[0] else { unreachable!("compared") };
        assert!(found.body.as_ptr().addr().is_multiple_of(BODY_ALIGNMENT));
    }

    /// A sender that announces 8 MiB and then stalls must not hold 8 MiB.
    #[test]
    fn a_body_costs_only_what_has_arrived() {
        let (_, bytes) = frame(1, &vec![1; FRAME_BODY_BYTES_MAX as usize]);
        let mut decoder = FrameDecoder::new(FRAME_BODY_BYTES_MAX);
        let mut sent = 0;
        for upto in [64, 65, 1000, 100_000, 500_000, bytes.len() - 1] {
            assert_eq!(all(&mut decoder, &bytes[sent..upto]), []);
            sent = upto;
            let State::Body(partial) = &decoder.state else { panic!("a body has begun") };
            let held = partial.buffer.capacity();
            assert!(held <= BODY_CHUNK_BYTES.max(2 * (upto - 64)), "{held} bytes for {upto}");
        }
    }

    #[test]
    fn oversized_bodies_are_refused_at_the_header_and_skipped() {
        let (_, mut bytes) = frame(1, &[1; 1001]);
        let (good, more) = frame(2, &[2; 1000]);
        bytes.extend_from_slice(&more);
        let mut decoder = FrameDecoder::new(1000);
        let refused = all(&mut decoder, &bytes[..64]);
        let Decoded::Refused { header, error } = refused[0] else { panic!("refused at the header") };
        assert_eq!((header.correlation, error), (1, FrameError::TooLarge { length: 1001, limit: 1000 }));
        assert_eq!(all(&mut decoder, &bytes[64..]), [Decoded::Frame(good)]);
    }

    #[test]
    fn foreign_versions_and_flags_are_refused_and_skipped() {
        for (version, flags) in [(PROTOCOL_VERSION + 1, 0), (0, 0), (u16::MAX, 7), (PROTOCOL_VERSION, 1)] {
            let header = FrameHeader { version, flags, ..FrameHeader::for_body(MessageType::Get, 7, b"x") };
            let mut bytes = header.encode().to_vec();
            bytes.push(b'x');
            let (good, more) = frame(8, b"y");
            bytes.extend_from_slice(&more);
            let found = all(&mut FrameDecoder::new(1000), &bytes);
            let error = header.check(1000).expect_err("not ours");
            assert_eq!(found, [Decoded::Refused { header, error }, Decoded::Frame(good)]);
        }
    }

    #[test]
    fn garbled_bodies_are_refused_and_the_next_frame_is_read() {
        let (original, bytes) = frame(1, b"sixteen bytes ok");
        let (good, more) = frame(2, b"");
        for bit in 64 * 8..bytes.len() * 8 {
            let mut garbled = bytes.clone();
            garbled[bit / 8] ^= 1 << (bit % 8);
            garbled.extend_from_slice(&more);
            for split in [64, 65, 70] {
                let mut decoder = FrameDecoder::new(1000);
                let mut found = all(&mut decoder, &garbled[..split]);
                found.extend(all(&mut decoder, &garbled[split..]));
                let [Decoded::Refused { header, error }, Decoded::Frame(next)] = &found[..] else {
                    panic!("bit {bit}: {found:?}")
                };
                assert_eq!((*header, next), (original.header, &good));
                assert!(matches!(error, FrameError::BodyCrc { .. }));
            }
        }
    }

    #[test]
    fn every_flipped_bit_of_a_header_is_fatal_and_stays_so() {
        let (_, bytes) = frame(77, b"body");
        for bit in 0..64 * 8 {
            let mut garbled = bytes.clone();
            garbled[bit / 8] ^= 1 << (bit % 8);
            let mut decoder = FrameDecoder::new(1000);
            let error = decoder.decode(&mut &garbled[..]).expect_err("damaged");
            assert!(error.fatal(), "bit {bit}: {error}");
            assert_eq!(matches!(error, FrameError::Magic { .. }), bit < 32);
            assert_eq!(decoder.decode(&mut &bytes[..]), Err(error), "final");
        }
        assert_eq!(FRAME_MAGIC.to_le_bytes(), bytes[..4]);
    }

    proptest! {
        #[test]
        fn frames_round_trip_through_random_splits(
            bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40_000), 1..6),
            cuts in prop::collection::vec(1_usize..20_000, 1..40),
        ) {
            let (mut bytes, mut expected) = (Vec::new(), Vec::new());
            for (at, body) in bodies.iter().enumerate() {
                let (frame, encoded) = frame(at as u64, body);
                bytes.extend_from_slice(&encoded);
                expected.push(Decoded::Frame(frame));
            }
            let (mut decoder, mut found, mut rest) = (FrameDecoder::new(FRAME_BODY_BYTES_MAX), Vec::new(), &bytes[..]);
            for cut in cuts.iter().cycle() {
                let (now, later) = rest.split_at((*cut).min(rest.len()));
                found.extend(all(&mut decoder, now));
                rest = later;
                if rest.is_empty() { break; }
            }
            prop_assert_eq!(found, expected);
            prop_assert!(!decoder.mid_frame());
        }

        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut decoder = FrameDecoder::new(1000);
            let mut input = &bytes[..];
            while let Ok(Some(_)) = decoder.decode(&mut input) {}
        }
    }
}
