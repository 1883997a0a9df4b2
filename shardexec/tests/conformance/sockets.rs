//! TCP over loopback.
use std::io::ErrorKind;
use std::net::SocketAddr;

use gristmill_shardexec::executor::{Class, ExecutorConfig, spawn};
use gristmill_shardexec::net::{ListenOptions, ShutdownHow, TcpListener, TcpStream};
use gristmill_shardexec::time::{self, timeout};
use std::time::Duration;

use super::Case;

pub fn config() -> ExecutorConfig {
    ExecutorConfig::default()
}

pub fn any_port() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

pub async fn listen() -> TcpListener {
    TcpListener::bind(any_port(), ListenOptions::default()).await.unwrap()
}

pub async fn pair() -> (TcpStream, TcpStream) {
    let listener = listen().await;
    let client = TcpStream::connect(listener.local_addr()).await.unwrap();
    let (server, peer) = listener.accept().await.unwrap();
    assert_eq!(peer, client.local_addr());
    (client, server)
}

/// Receives until `len` bytes are there or the stream ends.
pub async fn recv_exactly(stream: &TcpStream, len: usize) -> Vec<u8> {
    let mut buf = Vec::with_capacity(len);
    while buf.len() < len {
        let (received, back) = stream.recv(buf).await;
        buf = back;
        if received.unwrap() == 0 {
            break;
        }
    }
    buf
}

pub async fn connect_refused(_: Case) {
    let listener = listen().await;
    let addr = listener.local_addr();
    drop(listener);
    super::settle().await;
    assert_eq!(TcpStream::connect(addr).await.err().unwrap().kind(), ErrorKind::ConnectionRefused);
}

pub async fn echo(_: Case) {
    let (client, server) = pair().await;
    let task = spawn(Class::Request, "echo", async move {
        loop {
            let (received, buf) = server.recv(Vec::with_capacity(64)).await;
            if received.unwrap() == 0 {
                return;
            }
            server.send_all(buf).await.0.unwrap();
        }
    });
    for round in 0..500u32 {
        let message = format!("message {round}").into_bytes();
        let (sent, message) = client.send_all(message).await;
        sent.unwrap();
        assert_eq!(recv_exactly(&client, message.len()).await, message);
    }
    client.set_nodelay(false).await.unwrap();
    drop(client);
    task.await.unwrap();
}

pub async fn half_close(_: Case) {
    let (client, server) = pair().await;
    client.send_all(b"question".to_vec()).await.0.unwrap();
    client.shutdown(ShutdownHow::Write).await.unwrap();
    assert_eq!(recv_exactly(&server, 100).await, b"question");
    assert_eq!(server.recv(Vec::with_capacity(1)).await.0.unwrap(), 0, "the end of the stream stays");
    server.send_all(b"answer".to_vec()).await.0.unwrap();
    assert_eq!(recv_exactly(&client, 6).await, b"answer");
    assert!(client.send_all(b"more".to_vec()).await.0.is_err(), "this side has ended");
}

pub async fn large_transfer(_: Case) {
    const LEN: usize = 16 << 20;
    let (client, server) = pair().await;
    let content: Vec<u8> = (0..LEN).map(|at| (at * 7 + at / 1021) as u8).collect();
    let expected = content.clone();
    let sender = spawn(Class::Request, "sender", async move {
        let (sent, back) = client.send_all(content).await;
        sent.unwrap();
        assert_eq!(back.len(), LEN);
        client.shutdown(ShutdownHow::Write).await.unwrap();
        client
    });
    // Let the socket fill up first, so that the sender has to wait in mid-buffer.
    time::sleep(Duration::from_millis(20)).await;
    assert!(!sender.is_finished());
    let mut got = Vec::with_capacity(LEN);
    loop {
        let (received, piece) = server.recv(Vec::with_capacity(100_000)).await;
        if received.unwrap() == 0 {
            break;
        }
        got.extend_from_slice(&piece);
    }
    assert!(got == expected, "the bytes differ");
    sender.await.unwrap();
}

pub async fn many_connections(_: Case) {
    const CONNECTIONS: usize = 300;
    let listener = listen().await;
    let addr = listener.local_addr();
    let server = spawn(Class::Request, "server", async move {
        let mut served = Vec::new();
        for _ in 0..CONNECTIONS {
            let (stream, _) = listener.accept().await.unwrap();
            served.push(spawn(Class::Request, "serve", async move {
                let request = recv_exactly(&stream, 8).await;
                stream.send_all(request).await.0.unwrap();
            }));
        }
        for task in served {
            task.await.unwrap();
        }
    });
    let clients: Vec<_> = (0..CONNECTIONS)
        .map(|n| {
            spawn(Class::Request, "client", async move {
                let stream = TcpStream::connect(addr).await.unwrap();
                let number = n.to_le_bytes().to_vec();
                let (sent, number) = stream.send_all(number).await;
                sent.unwrap();
                assert_eq!(recv_exactly(&stream, 8).await, number);
                assert_eq!(stream.recv(Vec::with_capacity(1)).await.0.unwrap(), 0);
            })
        })
        .collect();
    for client in clients {
        client.await.unwrap();
    }
    server.await.unwrap();
}

pub async fn accept_loses_nothing(_: Case) {
    let listener = listen().await;
    for _ in 0..5 {
        assert!(timeout(Duration::from_millis(1), listener.accept()).await.is_err());
    }
    let client = TcpStream::connect(listener.local_addr()).await.unwrap();
    time::sleep(Duration::from_millis(5)).await;
    // A second task that waits, too: each gets one.
    let (both, second) = (TcpStream::connect(listener.local_addr()).await.unwrap(), listener.accept());
    let (_first, peer) = listener.accept().await.unwrap();
    let (_second, other) = second.await.unwrap();
    assert_eq!((peer, other), (client.local_addr(), both.local_addr()));
}

pub async fn port_in_use(_: Case) {
    let listener = listen().await;
    let again = TcpListener::bind(listener.local_addr(), ListenOptions::default()).await;
    assert_eq!(again.err().unwrap().kind(), ErrorKind::AddrInUse);
}

pub async fn shared_port(_: Case) {
    let options = ListenOptions { reuse_port: true, ..ListenOptions::default() };
    let first = TcpListener::bind(any_port(), options).await.unwrap();
    let second = TcpListener::bind(first.local_addr(), options).await.unwrap();
    assert_eq!(first.local_addr(), second.local_addr());
}

pub async fn peer_gone(_: Case) {
    let (client, server) = pair().await;
    drop(server);
    super::settle().await;
    // The first send may still be taken by the kernel; the reset that answers it ends the connection.
    let mut sent = Ok(());
    for _ in 0..100 {
        sent = client.send_all(vec![1; 1000]).await.0;
        if sent.is_err() {
            break;
        }
        time::sleep(Duration::from_millis(1)).await;
    }
    let kind = sent.unwrap_err().kind();
    assert!(matches!(kind, ErrorKind::BrokenPipe | ErrorKind::ConnectionReset), "{kind:?}");
    let end = client.recv(Vec::with_capacity(1)).await.0;
    assert!(end.is_err() || end.unwrap() == 0);
}

pub async fn concurrent_directions(_: Case) {
    const LEN: usize = 4 << 20;
    let (client, server) = pair().await;
    let mut tasks = Vec::new();
    for stream in [client, server] {
        let reader = stream.clone();
        tasks.push(spawn(Class::Request, "out", async move { stream.send_all(vec![7; LEN]).await.0.unwrap() }));
        tasks.push(spawn(Class::Request, "in", async move {
            assert_eq!(recv_exactly(&reader, LEN).await.len(), LEN);
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
}

pub async fn ipv6(_: Case) {
    let addr: SocketAddr = "[::1]:0".parse().unwrap();
    let listener = match TcpListener::bind(addr, ListenOptions::default()).await {
        Ok(listener) => listener,
        Err(error) if matches!(error.kind(), ErrorKind::AddrNotAvailable | ErrorKind::Unsupported) => {
            return eprintln!("skipped: no IPv6 here");
        }
        Err(error) if error.raw_os_error() == Some(97) => return eprintln!("skipped: no IPv6 here"),
        Err(error) => panic!("{error}"),
    };
    let client = TcpStream::connect(listener.local_addr()).await.unwrap();
    let (server, peer) = listener.accept().await.unwrap();
    assert!(peer.is_ipv6() && peer == client.local_addr() && client.peer_addr() == listener.local_addr());
    server.send_all(b"six".to_vec()).await.0.unwrap();
    assert_eq!(recv_exactly(&client, 3).await, b"six");
}
