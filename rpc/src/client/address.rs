//! Where connections lead: the name that the caller gave, and from there to the ports of the cores.

use std::io;
use std::net::SocketAddr;

use super::ClientError;

/// The given address, or a core's own port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Target {
    Given,
    Core(u16),
}

/// The given name and what it stood for when it was last looked up. After an attempt that reached none of the
/// addresses, or was given up on the way, the name is to be looked up again: the server may have moved.
#[derive(Debug, Clone)]
pub(crate) struct Addresses {
    name: String,
    list: Vec<SocketAddr>,
    reached: bool,
}

impl Addresses {
    /// What a name stands for, as the system says.
    pub(crate) fn new(
        name: &str,
        found: io::Result<impl Iterator<Item = SocketAddr>>,
    ) -> Result<Addresses, ClientError> {
        let unresolved = |detail: String| ClientError::Address { address: name.to_owned(), detail };
        let list: Vec<_> = found.map_err(|error| unresolved(error.to_string()))?.collect();
        if list.is_empty() {
            return Err(unresolved("the name has no address".to_owned()));
        }
        Ok(Addresses { name: name.to_owned(), list, reached: true })
    }

    pub(crate) fn first(&self) -> SocketAddr {
        self.list[0]
    }

    /// The name, if it is to be looked up before the next attempt.
    pub(crate) fn to_look_up(&self) -> Option<&str> {
        (!self.reached).then_some(&self.name)
    }

    /// Takes what the name stands for now. Where that cannot be learnt, what was known before is tried once more.
    pub(crate) fn renew(&mut self, found: io::Result<impl Iterator<Item = SocketAddr>>) {
        if let Ok(renewed) = Addresses::new(&self.name, found) {
            *self = renewed;
        }
    }

    /// The addresses for an attempt, which counts as failed until [`Self::note_reached`].
    pub(crate) fn attempt(&mut self) -> Vec<SocketAddr> {
        self.reached = false;
        self.list.clone()
    }

    pub(crate) fn note_reached(&mut self) {
        self.reached = true;
    }

    /// As if the name had led elsewhere when it was looked up.
    #[cfg(test)]
    pub(crate) fn mislead(&mut self, address: SocketAddr) {
        self.list = vec![address];
    }
}

/// A core's own port beside the address that the given name led to; `None` where that is the same.
pub(crate) fn direct_address(given: SocketAddr, port: u16) -> Option<SocketAddr> {
    (given.port() != port).then(|| SocketAddr::new(given.ip(), port))
}
