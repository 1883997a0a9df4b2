//! A small server for the clients' tests: real sockets and threads around [`ServerConnection`], a map for a store,
//! and a script of faults. It remembers sessions, so that a write that arrives twice applies once and is counted.

#![allow(clippy::disallowed_methods, reason = "a test server with real sockets and threads")]

use std::collections::{BTreeMap, VecDeque};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::body::{Body, archive};
use crate::error::{ErrorCode, Rejection};
use crate::frame::PROTOCOL_VERSION;
use crate::ids::{ShardId, Version};
use crate::limits::{FRAME_BODY_BYTES_MAX, IN_FLIGHT_MAX};
use crate::message::read;
use crate::protocol::{Request, ServerConnection, ServerOffer};
use crate::schema::{
    Command, Expected, GetGrainReply, GetReply, Grain, HelloReply, Operation, PreconditionFailure, RecallReply,
    ScanItem, ScanReply, StatusReply, Versioned, WriteReply,
};
use crate::validate::{RequestRef, request};

/// What goes wrong with one request.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// Served well.
    None,
    /// Answered with an error, not served.
    Reject(Rejection),
    /// The connection is closed before the request is served.
    CloseBefore,
    /// The request is served, but the connection is closed instead of an answer.
    CloseAfter,
    /// The request is served, but no answer is sent.
    Silence,
    /// The answer waits until the next request is answered.
    Hold,
    /// Bytes that are no frame are sent instead of an answer.
    Garbage,
}

/// What the server holds and has seen.
#[derive(Debug, Default)]
pub(crate) struct World {
    pub(crate) script: VecDeque<Fault>,
    pub(crate) values: BTreeMap<(String, Vec<u8>), Versioned>,
    pub(crate) grains: BTreeMap<(String, [u8; 16]), (Grain, Version)>,
    /// Writes that took effect, duplicates not counted.
    pub(crate) applied: u64,
    /// Requests that came in, by the core whose port they came through.
    pub(crate) requests: BTreeMap<u16, u64>,
    pub(crate) connections: u64,
    /// The shards that requests named.
    pub(crate) shards: Vec<ShardId>,
    sessions: BTreeMap<(u64, u64), WriteReply>,
    offer: Option<Arc<ServerOffer>>,
    streams: Vec<TcpStream>,
    stopped: bool,
}

pub(crate) struct FakeServer {
    pub(crate) hello: HelloReply,
    addresses: Vec<SocketAddr>,
    world: Arc<Mutex<World>>,
}

impl FakeServer {
    /// A server with one port per core and shard s on core s modulo the number of cores.
    pub(crate) fn start(cores: u16, shards: u32) -> FakeServer {
        FakeServer::start_with(cores, |hello| {
            hello.shards = shards;
            hello.shard_cores = (0..shards).map(|shard| (shard % u32::from(cores)) as u16).collect();
        })
    }

    /// A server of one shard whose hello is changed before it is offered.
    pub(crate) fn start_with(cores: u16, change: impl FnOnce(&mut HelloReply)) -> FakeServer {
        let listeners: Vec<_> = (0..cores).map(|_| TcpListener::bind("127.0.0.1:0").expect("bind")).collect();
        let addresses: Vec<_> = listeners.iter().map(|listener| listener.local_addr().expect("bound")).collect();
        let mut hello = HelloReply {
            version: PROTOCOL_VERSION,
            server: "fake".to_owned(),
            store: [9; 16],
            shards: 1,
            ring_vnodes: 150,
            core_ports: addresses.iter().map(SocketAddr::port).collect(),
            shard_cores: vec![0],
            frame_body_bytes_max: FRAME_BODY_BYTES_MAX,
            in_flight_max: IN_FLIGHT_MAX,
        };
        change(&mut hello);
        let world = Arc::new(Mutex::new(World { offer: Some(ServerOffer::new(&hello)), ..World::default() }));
        for (core, listener) in (0..).zip(listeners) {
            let world = world.clone();
            std::thread::spawn(move || accept(core, &listener, &world));
        }
        FakeServer { hello, addresses, world }
    }

    pub(crate) fn address(&self) -> String {
        self.addresses[0].to_string()
    }

    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().expect("no thread panicked")
    }

    /// Faults for the next requests, in the order of their arrival.
    pub(crate) fn script(&self, faults: impl IntoIterator<Item = Fault>) {
        self.world().script.extend(faults);
    }

    /// Says hello otherwise from the next connection on.
    pub(crate) fn offer(&self, change: impl FnOnce(&mut HelloReply)) {
        let mut hello = self.hello.clone();
        change(&mut hello);
        self.world().offer = Some(ServerOffer::new(&hello));
    }

    /// Cuts all connections.
    pub(crate) fn cut(&self) {
        for stream in self.world().streams.drain(..) {
            let _already_closed = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for FakeServer {
    fn drop(&mut self) {
        self.world().stopped = true;
        self.cut();
        for address in &self.addresses {
            let _wakes_the_acceptor = TcpStream::connect(address);
        }
    }
}

fn accept(core: u16, listener: &TcpListener, world: &Arc<Mutex<World>>) {
    while let Ok((stream, _)) = listener.accept() {
        let mut state = world.lock().expect("no thread panicked");
        if state.stopped {
            return;
        }
        state.connections += 1;
        state.streams.push(stream.try_clone().expect("a second handle"));
        let (offer, world) = (state.offer.clone().expect("set at the start"), world.clone());
        std::thread::spawn(move || {
            serve(core, &stream, offer, &world);
            let _already_closed = stream.shutdown(Shutdown::Both);
        });
    }
}

fn serve(core: u16, mut stream: &TcpStream, offer: Arc<ServerOffer>, world: &Mutex<World>) {
    let (mut connection, mut held) = (ServerConnection::new(offer), Vec::new());
    let mut buffer = vec![0; 64 << 10];
    loop {
        let Ok(count @ 1..) = stream.read(&mut buffer) else { return };
        let (mut input, mut next) = (&buffer[..count], Next::Request);
        while next == Next::Request
            && let Ok(Some(request)) = connection.receive(&mut input)
        {
            next = handle(core, &mut connection, &mut held, &request, world);
        }
        let mut output = connection.take_output(Vec::new());
        if next == Next::Garbage {
            output.extend_from_slice(&[0x55; 64]);
        }
        if stream.write_all(&output).is_err() || next != Next::Request {
            return;
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Request,
    Close,
    Garbage,
}

/// Serves one request and says how the connection goes on.
fn handle(
    core: u16,
    connection: &mut ServerConnection,
    held: &mut Vec<(Request, Result<Body, Rejection>)>,
    incoming: &Request,
    world: &Mutex<World>,
) -> Next {
    let mut world = world.lock().expect("no thread panicked");
    *world.requests.entry(core).or_default() += 1;
    world.shards.push(incoming.header.shard);
    let fault = world.script.pop_front().unwrap_or(Fault::None);
    if let Fault::CloseBefore = fault {
        return Next::Close;
    }
    if let Fault::Reject(rejection) = &fault {
        connection.reject(incoming.accepted, rejection);
        return Next::Request;
    }
    let answer = world.serve(incoming);
    match fault {
        Fault::Hold => held.push((incoming.clone(), answer)),
        Fault::Silence => {}
        Fault::CloseAfter => return Next::Close,
        Fault::Garbage => return Next::Garbage,
        Fault::None | Fault::Reject(_) | Fault::CloseBefore => {
            for (request, answer) in [(incoming.clone(), answer)].into_iter().chain(held.drain(..)) {
                match answer {
                    Ok(body) => connection.reply(request.accepted, &body),
                    Err(rejection) => connection.reject(request.accepted, &rejection),
                }
            }
        }
    }
    Next::Request
}

impl World {
    fn serve(&mut self, incoming: &Request) -> Result<Body, Rejection> {
        let body = &incoming.body;
        match request(&incoming.header, body)? {
            RequestRef::Write(_) => {
                let key = (incoming.header.session.0, incoming.header.sequence);
                if let Some(first) = self.sessions.get(&key) {
                    return Ok(archive(&WriteReply { duplicate: true, ..first.clone() }));
                }
                let reply = self.write(read::<Command>(body)?);
                self.sessions.insert(key, reply.clone());
                Ok(archive(&reply))
            }
            RequestRef::Get(get) => {
                let key = (get.namespace.as_str().to_owned(), get.key.to_vec());
                Ok(archive(&GetReply { value: self.values.get(&key).cloned() }))
            }
            RequestRef::GetGrain(get) => {
                let found = self.grains.get(&(get.namespace.as_str().to_owned(), get.id.0));
                let (grain, version) = found.cloned().map_or((None, Version(0)), |(g, v)| (Some(g), v));
                Ok(archive(&GetGrainReply { grain, version }))
            }
            RequestRef::Scan(scan) => {
                let of_namespace = |((namespace, key), value): (&(String, Vec<u8>), &Versioned)| {
                    (scan.namespace == *namespace && key.starts_with(&scan.prefix)).then(|| ScanItem {
                        key: key.clone(),
                        version: value.version,
                        value: value.value.clone(),
                    })
                };
                Ok(archive(&ScanReply { items: self.values.iter().filter_map(of_namespace).collect(), more: false }))
            }
            RequestRef::Recall(_) => Ok(archive(&RecallReply { hits: Vec::new(), grains: self.grains.len() as u64 })),
            RequestRef::Status(_) => Ok(archive(&StatusReply { json: "{\"server\":\"fake\"}".to_owned() })),
            RequestRef::PeerHello(_)
            | RequestRef::Replica(_)
            | RequestRef::AddLearner(_)
            | RequestRef::ChangeMembership(_) => {
                Err(Rejection::new(ErrorCode::NotPeer, "this server is not part of a cluster"))
            }
        }
    }

    fn write(&mut self, command: Command) -> WriteReply {
        for (at, operation) in (0..).zip(&command.operations) {
            if let Operation::CompareAndSet { namespace, key, expected, .. } = operation {
                let found = self.values.get(&(namespace.clone(), key.clone()));
                let holds = match expected {
                    Expected::Absent => found.is_none(),
                    Expected::Version(version) => found.is_some_and(|found| found.version == *version),
                    Expected::Value(value) => found.is_some_and(|found| found.value == *value),
                };
                if !holds {
                    let found = found.map(|found| found.version);
                    let failed = Some(PreconditionFailure { operation: at, found });
                    return WriteReply { version: Version(self.applied), applied: false, failed, duplicate: false };
                }
            }
        }
        self.applied += 1;
        let version = Version(self.applied);
        for operation in command.operations {
            match operation {
                Operation::Put { namespace, key, value, .. }
                | Operation::CompareAndSet { namespace, key, value: Some(value), .. } => {
                    self.values.insert((namespace, key), Versioned { version, value });
                }
                Operation::Delete { namespace, key } | Operation::CompareAndSet { namespace, key, value: None, .. } => {
                    self.values.remove(&(namespace, key));
                }
                Operation::PutGrain { grain } => {
                    self.grains.insert((grain.namespace.clone(), grain.id.0), (grain, version));
                }
                Operation::DeleteGrain { namespace, id } => {
                    self.grains.remove(&(namespace, id.0));
                }
            }
        }
        WriteReply { version, applied: true, failed: None, duplicate: false }
    }
}
