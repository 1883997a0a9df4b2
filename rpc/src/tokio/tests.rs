use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use super::*;
use crate::client::RetryPolicy;
use crate::error::{ErrorCode, Rejection};
use crate::limits::SESSION_WINDOW;
use crate::testing::{FakeServer, Fault};

/// A port that only root may open and that nobody does.
const CLOSED_PORT: u16 = 1;

fn options() -> ClientOptions {
    let backoff = Duration::from_millis(1);
    ClientOptions {
        request_timeout: Duration::from_mins(1),
        retry: RetryPolicy { attempts_max: 10, backoff_first: backoff, backoff_max: backoff },
        ..ClientOptions::default()
    }
}

fn run<F: Future>(future: F) -> F::Output {
    ::tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(future)
}

async fn connect(server: &FakeServer) -> Client {
    Client::connect_with(&server.address(), options()).await.expect("it listens")
}

#[test]
fn every_call_reaches_the_server_and_comes_back() {
    let server = FakeServer::start(1, 1);
    run(async {
        let client = connect(&server).await;
        assert_eq!(client.put("a", b"k", b"v").await, Ok(Version(1)));
        assert_eq!(client.get("a", b"k").await.expect("served").expect("there").value, b"v");
        let reply = client.cas("a", b"k", Expected::Absent, None).await.expect("served");
        assert!(!reply.applied);
        assert_eq!(client.delete("a", b"k").await, Ok(Version(2)));
        let grain = crate::samples::grain();
        assert_eq!(client.put_grain(grain.clone()).await, Ok(Version(3)));
        assert_eq!(client.get_grain("tenant-7", grain.id).await, Ok(Some((grain.clone(), Version(3)))));
        assert_eq!(client.delete_grain("tenant-7", grain.id).await, Ok(Version(4)));
        assert_eq!(client.get_grain("tenant-7", grain.id).await, Ok(None));
        assert_eq!(client.status(true).await.expect("served"), "{\"server\":\"fake\"}");
        let error = client.put("", b"k", b"v").await.expect_err("no namespace");
        assert_eq!(error.code(), Some(ErrorCode::InvalidArgument));
    });
}

#[test]
fn answers_find_their_calls_in_any_order() {
    let server = FakeServer::start(1, 1);
    run(async {
        let client = connect(&server).await;
        server.script([Fault::Hold, Fault::Hold]);
        let put = |key: &'static [u8]| client.put("a", key, key);
        let (first, second, third) = ::tokio::join!(put(b"1"), put(b"2"), put(b"3"));
        assert_eq!((first, second, third), (Ok(Version(1)), Ok(Version(2)), Ok(Version(3))));
    });
}

#[test]
fn many_tasks_share_the_connections() {
    let server = FakeServer::start(2, 8); // a, b: shards 0, 3 on cores 0, 1
    run(async {
        let client = connect(&server).await;
        let calls: Vec<_> = (0..2000_u32)
            .map(|key| {
                let client = client.clone();
                ::tokio::spawn(async move {
                    let namespace = if key % 2 == 0 { "a" } else { "b" };
                    client.put(namespace, &key.to_le_bytes(), b"v").await
                })
            })
            .collect();
        for call in calls {
            call.await.expect("no panic").expect("served");
        }
    });
    assert_eq!(server.world().applied, 2000);
    assert_eq!(server.world().requests, [(0, 1000), (1, 1000)].into());
    assert_eq!(server.world().connections, 2);
}

#[test]
fn a_write_whose_answer_was_lost_applies_once() {
    let server = FakeServer::start(1, 1);
    run(async {
        let client = connect(&server).await;
        server.script([Fault::CloseAfter, Fault::CloseBefore, Fault::Garbage]);
        let reply = client.batch(vec![Operation::put("a", b"k", b"v")]).await.expect("retried");
        assert!(reply.duplicate);
    });
    assert_eq!(server.world().applied, 1);
    assert_eq!(server.world().requests[&0], 4);
}

#[test]
fn passing_errors_are_retried_and_lasting_ones_are_not() {
    let server = FakeServer::start(1, 1);
    let reject = |code| Fault::Reject(Rejection::new(code, "as scripted"));
    run(async {
        let client = connect(&server).await;
        server.script([reject(ErrorCode::Recovering), reject(ErrorCode::Overloaded)]);
        assert_eq!(client.put("a", b"k", b"v").await, Ok(Version(1)));
        server.script([reject(ErrorCode::Quarantined)]);
        let error = client.put("a", b"k", b"v").await.expect_err("lasting");
        assert_eq!(error.code(), Some(ErrorCode::Quarantined));
        server.script((0..20).map(|_| reject(ErrorCode::Overloaded)));
        let error = client.get("a", b"k").await.expect_err("ten attempts");
        assert_eq!(error.code(), Some(ErrorCode::Overloaded));
        server.world().script = [reject(ErrorCode::WrongShard)].into();
        assert_eq!(client.get("a", b"x").await, Ok(None));
    });
    assert_eq!(server.world().requests[&0], 3 + 1 + 10 + 2);
    assert_eq!(server.world().shards.last(), Some(&crate::ids::ShardId::ANY), "the server's map is right");
}

/// A call that is given up must neither disturb the others nor leak its place among those in flight.
#[test]
fn futures_can_be_dropped_at_any_point() {
    let server = FakeServer::start(1, 1);
    run(async {
        let options = ClientOptions { in_flight_max: 4, ..options() };
        let client = Client::connect_with(&server.address(), options).await.expect("it listens");
        for round in 0..200_u32 {
            let key = round.to_le_bytes();
            let mut call = Box::pin(client.put("a", &key, b"v"));
            for _ in 0..round % 7 {
                let polled = std::future::poll_fn(|context| std::task::Poll::Ready(call.as_mut().poll(context)));
                if polled.await.is_ready() {
                    break;
                }
                ::tokio::task::yield_now().await;
            }
        }
        assert_eq!(client.pool.unresolved_writes(), 0);
        client.put("a", b"last", b"v").await.expect("there is room");
        assert!(client.get("a", b"last").await.expect("served").is_some());
    });
}

#[test]
fn writes_wait_for_room_in_the_session() {
    let server = FakeServer::start(1, 1);
    run(async {
        let client = connect(&server).await;
        let mut held: Vec<_> = Vec::new();
        for _ in 0..SESSION_WINDOW {
            held.push(client.pool.begin_write(client.pool.deadline()).await.expect("there is room"));
        }
        let call = client.put("a", b"k", b"v");
        ::tokio::pin!(call);
        let mut polled = async || std::future::poll_fn(|cx| std::task::Poll::Ready(call.as_mut().poll(cx))).await;
        assert!(polled().await.is_pending());
        held.pop();
        assert!(polled().await.is_pending(), "the oldest holds the window");
        held.clear();
        assert_eq!(call.await, Ok(Version(1)));
    });
}

/// The wait for room lay outside of the call's deadline.
#[test]
fn a_write_that_finds_no_room_in_the_session_ends_at_its_deadline() {
    let server = FakeServer::start(1, 1);
    run(async {
        let options = ClientOptions { request_timeout: Duration::from_millis(20), ..options() };
        let client = Client::connect_with(&server.address(), options).await.expect("it listens");
        let mut held = Vec::new();
        for _ in 0..SESSION_WINDOW {
            held.push(client.pool.begin_write(client.pool.deadline()).await.expect("there is room"));
        }
        let error = client.put("a", b"k", b"v").await.expect_err("no room");
        assert!(matches!(error, ClientError::Timeout { attempts: 0, .. }), "{error:?}");
    });
    assert_eq!(server.world().applied, 0);
}

/// Each write that ended woke all that waited, though it mostly made room for none.
#[test]
fn a_write_that_ends_wakes_one_and_all_get_in_in_the_end() {
    #[derive(Default)]
    struct Wakes(AtomicUsize);
    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    let server = FakeServer::start(1, 1);
    run(async {
        let client = connect(&server).await;
        let (deadline, mut held) = (client.pool.deadline(), Vec::new());
        for _ in 0..SESSION_WINDOW {
            held.push(client.pool.begin_write(deadline).await.expect("there is room"));
        }
        let wakes = Arc::new(Wakes::default());
        let waker = Waker::from(wakes.clone());
        let mut waiting: Vec<_> = (0..50).map(|_| Box::pin(client.pool.begin_write(deadline))).collect();
        let mut admitted = Vec::new();
        let mut poll_all = || {
            waiting.retain_mut(|write| match write.as_mut().poll(&mut Context::from_waker(&waker)) {
                Poll::Pending => true,
                Poll::Ready(sequence) => {
                    admitted.push(sequence.expect("in time"));
                    false
                }
            });
            waiting.len()
        };
        assert_eq!(poll_all(), 50);
        held.pop();
        assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
        let oldest = held.swap_remove(0);
        held.clear();
        assert_eq!(poll_all(), 50, "the oldest holds the window");
        wakes.0.store(0, Ordering::Relaxed);
        drop(oldest);
        assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
        while poll_all() > 0 {
            let woken = wakes.0.swap(0, Ordering::Relaxed);
            assert!(woken > 0, "room for all, and nobody is woken");
        }
    });
}

#[test]
fn a_call_ends_at_its_deadline() {
    let server = FakeServer::start(1, 1);
    run(async {
        let options = ClientOptions { request_timeout: Duration::from_millis(20), ..options() };
        let client = Client::connect_with(&server.address(), options).await.expect("it listens");
        server.script([Fault::Silence]);
        let error = client.put("a", b"k", b"v").await.expect_err("no answer");
        assert_eq!((error.code(), error.retriable()), (Some(ErrorCode::DeadlineExceeded), true));
        assert_eq!(client.pool.unresolved_writes(), 0);
    });
}

#[test]
fn a_silent_connection_is_given_up_and_the_call_goes_on_elsewhere() {
    let server = FakeServer::start(1, 1);
    run(async {
        let options = ClientOptions { read_timeout: Duration::from_millis(20), ..options() };
        let client = Client::connect_with(&server.address(), options).await.expect("it listens");
        server.script([Fault::Silence]);
        assert_eq!(client.put("a", b"k", b"v").await, Ok(Version(1)));
    });
    assert_eq!(server.world().applied, 1);
}

#[test]
fn an_unreachable_core_is_reached_through_the_given_address() {
    let server = FakeServer::start_with(1, |hello| {
        (hello.core_ports, hello.shard_cores) = (vec![hello.core_ports[0], CLOSED_PORT], vec![1]);
    });
    run(async {
        let client = connect(&server).await;
        assert_eq!(client.put("a", b"k", b"v").await, Ok(Version(1)));
    });
    let error = run(Client::connect(&format!("127.0.0.1:{CLOSED_PORT}"))).expect_err("nobody listens");
    assert!(matches!(error, ClientError::Connect { .. }), "{error:?}");
    let error = run(Client::connect("no port")).expect_err("not an address");
    assert!(matches!(error, ClientError::Address { .. }), "{error:?}");
}

#[test]
fn another_store_at_the_same_address_is_noticed() {
    let server = FakeServer::start(1, 1);
    run(async {
        let client = connect(&server).await;
        server.offer(|hello| hello.store = [1; 16]);
        server.cut();
        let error = client.get("a", b"k").await.expect_err("another store");
        assert!(matches!(error, ClientError::StoreChanged { .. }), "{error:?}");
    });
}

#[test]
fn cut_connections_are_opened_again() {
    let server = FakeServer::start(2, 8);
    run(async {
        let client = connect(&server).await;
        for round in 1..=5 {
            let calls: Vec<_> = (0..20_u32)
                .map(|key| {
                    let client = client.clone();
                    ::tokio::spawn(async move { client.put(["a", "b"][key as usize % 2], b"k", b"v").await })
                })
                .collect();
            ::tokio::task::yield_now().await;
            server.cut();
            for call in calls {
                call.await.expect("no panic").expect("retried");
            }
            assert_eq!(server.world().applied, round * 20);
        }
    });
}

#[test]
fn large_values_travel_both_ways_while_others_are_under_way() {
    let server = FakeServer::start(1, 1);
    let large: Vec<u8> = (0..crate::limits::VALUE_BYTES_MAX).map(|at| (at * 7) as u8).collect();
    run(async {
        let client = connect(&server).await;
        client.put("a", b"large", &large).await.expect("served");
        let (put, get, small) = ::tokio::join!(
            client.put("a", b"other", &large),
            client.get("a", b"large"),
            client.put("a", b"small", b"v"),
        );
        assert!(put.is_ok() && small.is_ok());
        assert!(get.expect("served").expect("there").value == large);
    });
}

/// A client may outlive the runtime that carried its tasks.
#[test]
fn a_client_whose_runtime_is_gone_says_so() {
    let server = FakeServer::start(1, 1);
    let client = run(connect(&server));
    let error = run(async {
        let link = client.pool.given().await;
        link.call(
            Call {
                message: MessageType::Status,
                body: crate::body::archive(&StatusRequest { verbose: false }),
                shard: crate::ids::ShardId::ANY,
                session: SessionId::NONE,
                sequence: 0,
            },
            ::tokio::time::Instant::now() + Duration::from_mins(1),
        )
        .await
        .expect_err("its task is gone")
    });
    assert_eq!(error, ClientError::Closed);
    run(async { client.put("a", b"k", b"v").await.expect("on a new connection of this runtime") });
}

/// The map of the first hello stayed in force whatever the server answered.
#[test]
fn a_client_that_named_the_wrong_shard_asks_for_the_map_again() {
    let server = FakeServer::start(2, 8); // b: shard 3 on core 1
    run(async {
        let client = connect(&server).await;
        client.put("b", b"k", b"v").await.expect("served");
        server.offer(|hello| hello.core_ports[1] = CLOSED_PORT);
        server.script([Fault::Reject(Rejection::new(ErrorCode::WrongShard, "as scripted"))]);
        client.put("b", b"k", b"v").await.expect("through the given address");
        assert_eq!(client.map().core_of(crate::ids::ShardId(3)), Some((1, CLOSED_PORT)));
        client.put("b", b"k", b"v").await.expect("through the given address");
    });
    assert_eq!(server.world().requests, [(0, 2), (1, 2)].into(), "the link by the old map is gone");
}

/// Names were looked up once: a client whose server had moved tried the old address until its calls timed out.
#[test]
fn a_name_that_leads_nowhere_is_looked_up_again() {
    let server = FakeServer::start(1, 1);
    run(async {
        let options = ClientOptions { direct: false, ..options() };
        let client = Client::connect_with(&server.address(), options).await.expect("it listens");
        client.pool.mislead(([127, 0, 0, 1], CLOSED_PORT).into());
        server.cut();
        assert_eq!(client.put("a", b"k", b"v").await, Ok(Version(1)));
    });
}

#[test]
fn endless_times_do_not_overflow() {
    let server = FakeServer::start(2, 8);
    let ever = Duration::MAX;
    let options = ClientOptions {
        connect_timeout: ever,
        request_timeout: ever,
        read_timeout: ever,
        write_timeout: ever,
        ..ClientOptions::default()
    };
    run(async {
        let client = Client::connect_with(&server.address(), options.clone()).await.expect("it listens");
        assert_eq!(client.put("b", b"k", b"v").await, Ok(Version(1)));
        let retry = RetryPolicy { backoff_first: ever, backoff_max: ever, ..RetryPolicy::default() };
        let options = ClientOptions { request_timeout: Duration::from_mins(1), retry, ..options };
        let client = Client::connect_with(&server.address(), options).await.expect("it listens");
        server.script([Fault::CloseBefore]);
        let error = client.get("b", b"k").await.expect_err("the pause is longer than the call may take");
        assert!(matches!(error, ClientError::Timeout { attempts: 1, .. }), "{error:?}");
    });
}
