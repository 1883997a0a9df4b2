//! Frames to bytes: an output buffer that is handed to the socket as a whole or piece by piece.

use crate::frame::FrameHeader;

/// Bytes that wait to be sent. What was sent takes no more room than what was not, however slowly the socket drains.
#[derive(Debug, Default)]
pub struct FrameEncoder {
    bytes: Vec<u8>,
    sent: usize,
}

impl FrameEncoder {
    /// Appends a frame.
    pub fn push(&mut self, header: &FrameHeader, body: &[u8]) {
        assert_eq!(header.body_length as usize, body.len(), "body and header belong together");
        self.bytes.extend_from_slice(&header.encode());
        self.bytes.extend_from_slice(body);
    }

    /// What is not sent yet.
    pub fn pending(&self) -> &[u8] {
        &self.bytes[self.sent..]
    }

    /// Notes that the first `count` pending bytes were sent.
    pub fn advance(&mut self, count: usize) {
        assert!(count <= self.pending().len(), "more sent than there was");
        self.sent += count;
        if self.sent > self.bytes.len() / 2 {
            // Fewer bytes move than were sent since the last time, so each byte moves once at the most, on average.
            self.bytes.drain(..self.sent);
            self.sent = 0;
        }
    }

    /// Takes all pending bytes away for sending and leaves `empty` in their place, so that two buffers can alternate.
    pub fn take(&mut self, mut empty: Vec<u8>) -> Vec<u8> {
        self.bytes.drain(..self.sent);
        self.sent = 0;
        empty.clear();
        std::mem::replace(&mut self.bytes, empty)
    }

    /// Number of bytes not sent yet.
    pub fn len(&self) -> usize {
        self.bytes.len() - self.sent
    }

    /// Whether all is sent.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::MessageType;

    /// The prefix that was sent went only when all was sent. A socket that always left something made the buffer grow
    /// by every byte that ever went through it.
    #[test]
    fn a_socket_that_always_leaves_a_byte_does_not_make_the_buffer_grow() {
        let mut encoder = FrameEncoder::default();
        let body = vec![7; 1000];
        let (mut expected, mut sent) = (Vec::new(), Vec::new());
        for correlation in 1..=1000 {
            let header = FrameHeader::for_body(MessageType::Get, correlation, &body);
            expected.extend_from_slice(&header.encode());
            expected.extend_from_slice(&body);
            encoder.push(&header, &body);
            let count = encoder.len() - 1;
            sent.extend_from_slice(&encoder.pending()[..count]);
            encoder.advance(count);
            assert_eq!(encoder.len(), 1);
        }
        assert!(encoder.bytes.capacity() < 4 * (64 + body.len()), "{} bytes are held", encoder.bytes.capacity());
        assert_eq!(sent, expected[..expected.len() - 1]);
    }

    #[test]
    fn partial_sends_and_whole_takes_keep_the_order() {
        let mut encoder = FrameEncoder::default();
        let mut expected = Vec::new();
        for correlation in 1..=3 {
            let header = FrameHeader::for_body(MessageType::Get, correlation, b"body");
            encoder.push(&header, b"body");
            expected.extend_from_slice(&header.encode());
            expected.extend_from_slice(b"body");
        }
        assert_eq!(encoder.pending(), &expected[..]);
        encoder.advance(70);
        assert_eq!(encoder.len(), expected.len() - 70);
        assert_eq!(encoder.take(vec![9; 9]), &expected[70..]);
        assert!(encoder.is_empty());
        let header = FrameHeader::for_body(MessageType::Get, 4, b"");
        encoder.push(&header, b"");
        encoder.advance(64);
        assert!(encoder.is_empty() && encoder.pending().is_empty());
    }
}
