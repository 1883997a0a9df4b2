//! Which connection a call takes, and when it is tried again.
//!
//! One slot for the given address and one for each core's own port. A slot is locked while its connection is being opened,
//! so that many calls open one connection; it is never held while a call is under way.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use ::tokio::net::lookup_host;
use ::tokio::sync::Notify;
use ::tokio::time::{Instant, sleep, timeout, timeout_at};

use super::link::LinkHandle;
use crate::body::Body;
use crate::client::{
    Addresses, ClientError, ClientOptions, DIRECT_CONNECT_TIMEOUT, DIRECT_RETRY_AFTER, Jitter, MapDoubt, RouteMap,
    Session, Target, direct_address, random_u64,
};
use crate::error::ErrorCode;
use crate::ids::{SessionId, ShardId};
use crate::protocol::Call;

#[derive(Debug, Default)]
struct Slot {
    link: Option<LinkHandle>,
    /// Not tried again until then.
    down_until: Option<Instant>,
}

#[derive(Debug)]
pub(super) struct Pool {
    options: ClientOptions,
    addresses: Mutex<Addresses>,
    map: Mutex<Arc<RouteMap>>,
    doubt: Mutex<MapDoubt>,
    slots: Mutex<BTreeMap<Target, Arc<::tokio::sync::Mutex<Slot>>>>,
    session: Mutex<Session>,
    session_id: SessionId,
    session_room: Notify,
    jitter: Mutex<Jitter>,
}

/// A write's sequence while the write may still be sent.
pub(super) struct Sequence<'a> {
    pool: &'a Pool,
    pub(super) number: u64,
}

impl Drop for Sequence<'_> {
    fn drop(&mut self) {
        lock(&self.pool.session).resolve(self.number);
        // There may be room for many, or for none yet: one looks, and whoever got in sends the next.
        self.pool.session_room.notify_one();
    }
}

impl Pool {
    pub(super) async fn connect(address: &str, options: ClientOptions) -> Result<Pool, ClientError> {
        let addresses = Mutex::new(Addresses::new(address, lookup_host(address).await)?);
        let options = options.clamped();
        let link = open_any(&addresses, &options).await?;
        let (random, map) = (random_u64(), Arc::new(RouteMap::new(link.hello())));
        let session = Session::new(random);
        let slot = Slot { link: Some(link), down_until: None };
        Ok(Pool {
            options,
            addresses,
            map: Mutex::new(map),
            doubt: Mutex::default(),
            slots: Mutex::new(BTreeMap::from([(Target::Given, Arc::new(::tokio::sync::Mutex::new(slot)))])),
            session_id: session.id(),
            session: Mutex::new(session),
            session_room: Notify::new(),
            jitter: Mutex::new(Jitter::new(random.rotate_left(32))),
        })
    }

    pub(super) fn map(&self) -> Arc<RouteMap> {
        lock(&self.map).clone()
    }

    pub(super) fn session(&self) -> SessionId {
        self.session_id
    }

    /// When a call that begins now ends at the latest.
    pub(super) fn deadline(&self) -> Instant {
        Instant::now() + self.options.request_timeout
    }

    /// Takes a sequence for a new write; waits while the session's window is full.
    pub(super) async fn begin_write(&self, deadline: Instant) -> Result<Sequence<'_>, ClientError> {
        let begin = || lock(&self.session).begin().map(|number| Sequence { pool: self, number });
        if let Some(sequence) = begin() {
            return Ok(sequence);
        }
        let admitted = async {
            loop {
                self.session_room.notified().await;
                if let Some(sequence) = begin() {
                    self.session_room.notify_one();
                    return sequence;
                }
            }
        };
        let after = self.options.request_timeout;
        timeout_at(deadline, admitted).await.map_err(|_| ClientError::Timeout { after, attempts: 0, last: None })
    }

    /// Makes a call, again and again where that makes sense, until its time is up.
    pub(super) async fn call(&self, mut call: Call, deadline: Instant) -> Result<Body, ClientError> {
        let after = self.options.request_timeout;
        let (mut attempts, mut last) = (0, None);
        loop {
            attempts += 1;
            let Ok(result) = timeout_at(deadline, self.attempt(&call, deadline)).await else {
                return Err(ClientError::Timeout { after, attempts, last: last.map(Box::new) });
            };
            let error = match result {
                Ok(body) => return Ok(body),
                Err(error) if error.retriable() => error,
                Err(error) => return Err(error),
            };
            let pause = self.options.retry.pause(attempts, error.retry_after_ms(), &mut lock(&self.jitter));
            let Some(pause) = pause else { return Err(error) };
            if error.code() == Some(ErrorCode::WrongShard) {
                call.shard = ShardId::ANY; // our map is wrong; the server's is not
                lock(&self.doubt).note();
            }
            if Instant::now() + pause >= deadline {
                return Err(ClientError::Timeout { after, attempts, last: Some(Box::new(error)) });
            }
            last = Some(error);
            sleep(pause).await;
        }
    }

    async fn attempt(&self, call: &Call, deadline: Instant) -> Result<Body, ClientError> {
        let link = match self.direct_link(call.shard).await {
            Some(link) => link,
            None => self.given_link().await?,
        };
        link.call(call.clone(), deadline).await
    }

    /// A connection to the core that owns a shard, where that can be reached.
    async fn direct_link(&self, shard: ShardId) -> Option<LinkHandle> {
        let map = self.map();
        let (core, port) = map.core_of(shard).filter(|_| self.options.direct)?;
        let slot = self.slot(Target::Core(core));
        let mut slot = slot.lock().await;
        if let Some(link) = slot.link.as_ref().filter(|link| !link.is_broken()) {
            return Some(link.clone());
        }
        if slot.down_until.is_some_and(|until| until > Instant::now()) {
            return None;
        }
        let given = self.given_address().await;
        let address = direct_address(given, port)?;
        let opened = timeout(DIRECT_CONNECT_TIMEOUT, LinkHandle::open(address, &self.options)).await;
        slot.link = match opened {
            Ok(Ok(link)) if link.hello().store == map.store => Some(link),
            Ok(Ok(_) | Err(_)) | Err(_) => None,
        };
        slot.down_until = slot.link.is_none().then(|| Instant::now() + DIRECT_RETRY_AFTER);
        slot.link.clone()
    }

    /// The connection to the given address. It is opened again, which brings the server's map, where it broke and where
    /// the map is in doubt; calls that are under way on the old one end there.
    async fn given_link(&self) -> Result<LinkHandle, ClientError> {
        let slot = self.slot(Target::Given);
        let mut slot = slot.lock().await;
        let usable = slot.link.as_ref().filter(|link| !link.is_broken());
        if let Some(link) = usable.filter(|_| !lock(&self.doubt).ask(Instant::now().into_std())) {
            return Ok(link.clone());
        }
        let link = open_any(&self.addresses, &self.options).await?;
        let known = self.map();
        if link.hello().store != known.store {
            return Err(ClientError::StoreChanged { address: link.address() });
        }
        let map = RouteMap::new(link.hello());
        if map != *known {
            *lock(&self.map) = Arc::new(map);
            lock(&self.slots).retain(|target, _| *target == Target::Given);
        }
        slot.link = Some(link.clone());
        Ok(link)
    }

    /// The address that the given name led to.
    async fn given_address(&self) -> SocketAddr {
        let slot = self.slot(Target::Given);
        let slot = slot.lock().await;
        slot.link.as_ref().map_or_else(|| lock(&self.addresses).first(), LinkHandle::address)
    }

    /// As if the given name had led elsewhere when it was looked up.
    #[cfg(test)]
    pub(super) fn mislead(&self, address: SocketAddr) {
        lock(&self.addresses).mislead(address);
    }

    #[cfg(test)]
    pub(super) fn unresolved_writes(&self) -> usize {
        lock(&self.session).unresolved()
    }

    #[cfg(test)]
    pub(super) async fn given(&self) -> LinkHandle {
        self.slot(Target::Given).lock().await.link.clone().expect("connected")
    }

    fn slot(&self, target: Target) -> Arc<::tokio::sync::Mutex<Slot>> {
        lock(&self.slots).entry(target).or_default().clone()
    }
}

/// Tries all addresses of a name; the last failure stands for all.
async fn open_any(addresses: &Mutex<Addresses>, options: &ClientOptions) -> Result<LinkHandle, ClientError> {
    let name = lock(addresses).to_look_up().map(str::to_owned);
    if let Some(name) = name {
        let found = lookup_host(&name).await;
        lock(addresses).renew(found);
    }
    let mut result = None;
    let attempt = lock(addresses).attempt();
    for address in attempt {
        match timeout(options.connect_timeout, LinkHandle::open(address, options)).await {
            Ok(Ok(link)) => {
                lock(addresses).note_reached();
                return Ok(link);
            }
            Ok(Err(error)) => result = Some(error),
            Err(_) => result = Some(ClientError::hello_timed_out(address)),
        }
    }
    Err(result.expect("resolving gave at least one address"))
}

/// Locks what is held for a few instructions only, never across an await.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("nothing panics while holding it")
}
