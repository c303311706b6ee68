//! The pool as its callers see it, over the fake engine.

use std::{
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    thread,
    time::{Duration, Instant},
};

use futures::{FutureExt, StreamExt, future::join_all, stream::FuturesUnordered};

use super::{
    testing::{FakeEngineLoader, engine_source, marked},
    *,
};
use crate::{
    names::VersionName,
    nn::{Golden, TensorData},
};

const SIDE_PX: u32 = 4;

fn v1() -> VersionName {
    testing::version("m")
}

fn v2() -> VersionName {
    VersionName { number: 2, ..v1() }
}

fn start(fake: &FakeEngineLoader, settings: ServingSettings) -> ServingPool {
    ServingPool::start(settings, Arc::new(fake.clone())).unwrap()
}

fn source(number: u64) -> EngineSource {
    engine_source("m", number, SIDE_PX)
}

async fn loaded(fake: &FakeEngineLoader, settings: ServingSettings) -> ServingPool {
    let pool = start(fake, settings);
    pool.load(source(1)).await.unwrap();
    fake.forget_calls();
    pool
}

async fn run_on(
    pool: &ServingPool,
    version: VersionName,
    image: Arc<Input>,
    deadline: Option<Instant>,
) -> Result<Served, ServeError> {
    pool.run(&version, image, deadline, Priority::Normal).await
}

async fn run(pool: &ServingPool, marker: u8) -> Result<Served, ServeError> {
    run_on(pool, v1(), marked(marker, SIDE_PX), None).await
}

async fn run_by(pool: &ServingPool, marker: u8, deadline: Instant) -> Result<Served, ServeError> {
    run_on(pool, v1(), marked(marker, SIDE_PX), Some(deadline)).await
}

/// Polls a future once, so that its image is in the queue.
fn begin<F: Future>(future: F) -> std::pin::Pin<Box<F>>
where
    F::Output: std::fmt::Debug,
{
    let mut future = Box::pin(future);
    let polled = future.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    assert!(polled.is_pending(), "{polled:?}");
    future
}

fn answered(marker: u8, served: &Result<Served, ServeError>) -> bool {
    served.as_ref().is_ok_and(|s| s.output.heads[0] == [f32::from(marker)])
}

#[tokio::test]
async fn answers_with_what_the_engine_says() {
    let fake = FakeEngineLoader::new();
    let pool = loaded(&fake, ServingSettings::default()).await;
    assert!(pool.is_accepting());
    let served = run(&pool, 9).await.unwrap();
    assert_eq!(served.output, testing::output(&source(1), &marked(9, SIDE_PX)));
    assert_eq!(served.batch_size, 1);
    assert!(matches!(run_on(&pool, v2(), marked(1, SIDE_PX), None).await,
        Err(ServeError::NotLoaded { version }) if version == v2()));
    let wrong_side = run_on(&pool, v1(), marked(1, SIDE_PX + 1), None).await;
    assert!(matches!(wrong_side, Err(ServeError::EngineFailed { .. })));
}

#[tokio::test]
async fn the_earliest_deadline_reaches_the_device_first() {
    let fake = FakeEngineLoader::new();
    let pool = loaded(&fake, ServingSettings { max_batch: 1, ..Default::default() }).await;
    fake.close();
    let first = begin(run(&pool, 1));
    fake.wait_until_held();
    let in_secs = |secs| Instant::now() + Duration::from_secs(secs);
    let rest = [
        begin(run_by(&pool, 2, in_secs(400))),
        begin(run_by(&pool, 3, in_secs(300))),
        begin(run_by(&pool, 4, in_secs(100))),
        begin(run_by(&pool, 5, in_secs(200))),
    ];
    fake.open();
    assert!(answered(1, &first.await));
    for (marker, served) in (2..).zip(join_all(rest).await) {
        assert!(answered(marker, &served), "{marker}: {served:?}");
    }
    assert_eq!(fake.calls(), [[1], [4], [5], [3], [2]]);
}

#[tokio::test]
async fn dropped_and_expired_images_never_reach_the_device() {
    let fake = FakeEngineLoader::new();
    let pool = loaded(&fake, ServingSettings::default()).await;
    fake.close();
    let first = begin(run(&pool, 1));
    fake.wait_until_held();
    let dropped = begin(run(&pool, 2));
    let due = Instant::now() + Duration::from_millis(300);
    let expiring = begin(run_by(&pool, 3, due));
    let last = begin(run(&pool, 4));
    drop(dropped);
    thread::sleep(due.saturating_duration_since(Instant::now()));
    fake.open();
    assert!(answered(1, &first.await));
    assert!(matches!(expiring.await, Err(ServeError::DeadlineExceeded { stage }) if stage == v1().into()));
    assert!(answered(4, &last.await));
    assert_eq!(fake.calls(), [vec![1], vec![4]]);
}

#[tokio::test]
async fn a_full_queue_refuses_at_once_and_recovers() {
    let fake = FakeEngineLoader::new();
    let pool = loaded(&fake, ServingSettings { queue_capacity: 2, ..Default::default() }).await;
    fake.close();
    let first = begin(run(&pool, 1));
    fake.wait_until_held();
    let waiting = [begin(run(&pool, 2)), begin(run(&pool, 3))];
    assert!(matches!(run(&pool, 4).now_or_never(), Some(Err(ServeError::Overloaded { n_waiting: 2, .. }))));
    fake.open();
    assert!(answered(1, &first.await));
    assert!(join_all(waiting).await.iter().all(Result::is_ok));
    assert!(answered(5, &run(&pool, 5).await));
}

#[tokio::test]
async fn a_deadline_shorter_than_what_is_measured_is_refused_at_once() {
    let fake = FakeEngineLoader::new().with_delay(Duration::from_millis(300), Duration::ZERO);
    let pool = loaded(&fake, ServingSettings { max_batch: 1, ..Default::default() }).await;
    let short = run_by(&pool, 1, Instant::now() + Duration::from_millis(150)).now_or_never();
    assert!(matches!(short, Some(Err(ServeError::DeadlineUnmeetable { .. }))), "{short:?}");
    assert!(run_by(&pool, 1, Instant::now()).await.is_err_and(|e| matches!(e, ServeError::DeadlineExceeded { .. })));
    assert!(fake.calls().is_empty());
    assert!(answered(2, &run_by(&pool, 2, Instant::now() + Duration::from_secs(60)).await));
}

/// Submits the markers while the device is busy, so that they wait together; returns the answers and the resulting
/// runs.
async fn together(
    fake: &FakeEngineLoader,
    pool: &ServingPool,
    markers: &[u8],
) -> (Vec<Result<Served, ServeError>>, Vec<Vec<u8>>) {
    fake.close();
    let holding = begin(run(pool, 0));
    fake.wait_until_held();
    let all: Vec<_> = markers.iter().map(|&marker| begin(run(pool, marker))).collect();
    fake.forget_calls();
    fake.open();
    assert!(answered(0, &holding.await));
    (join_all(all).await, fake.calls())
}

/// Creates a device as fast with many images as with one, so that the scheduler learns to prefer large batches.
fn sluggish() -> FakeEngineLoader {
    FakeEngineLoader::new().with_delay(Duration::from_millis(1), Duration::ZERO)
}

#[tokio::test]
async fn a_bad_image_fails_alone() {
    for fake in [sluggish().failing_on(66), sluggish().panicking_on(66)] {
        let pool = loaded(&fake, ServingSettings::default()).await;
        let markers = [1, 2, 66, 4, 5, 6, 7, 8];
        // Measured times decide the size of batches; after a few rounds the bad image has surely shared one.
        for round in 0.. {
            let (results, calls) = together(&fake, &pool, &markers).await;
            for (marker, result) in markers.into_iter().zip(&results) {
                match marker {
                    66 => {
                        assert!(
                            matches!(result, Err(ServeError::EngineFailed { detail, .. }) if detail.contains("set to"))
                        );
                    }
                    _ => assert!(answered(marker, result), "{marker}: {result:?}"),
                }
            }
            assert_eq!(calls.iter().filter(|call| **call == [66]).count(), 1);
            if calls.iter().any(|call| call.len() > 1 && call.contains(&66)) {
                break;
            }
            assert!(round < 500, "{calls:?}");
        }
        assert!(answered(9, &run(&pool, 9).await));
    }
}

#[tokio::test]
async fn one_bad_image_sent_again_and_again_does_not_fail_the_version() {
    let fake = FakeEngineLoader::new().panicking_on(66);
    let pool = loaded(&fake, ServingSettings::default()).await;
    for _ in 0..10 {
        assert!(matches!(run(&pool, 66).await, Err(ServeError::EngineFailed { .. })));
    }
    assert!(pool.state(&v1()) == LoadState::Loaded && pool.is_accepting());
    assert!(answered(1, &run(&pool, 1).await));
}

#[tokio::test]
async fn an_engine_that_fails_everything_is_failed_and_can_be_loaded_again() {
    let fake = FakeEngineLoader::new();
    let pool = loaded(&fake, ServingSettings::default()).await;
    pool.load(source(2)).await.unwrap();
    fake.panic_always(true);
    for marker in 0..5 {
        assert!(matches!(run(&pool, marker).await, Err(ServeError::EngineFailed { .. })));
    }
    assert_eq!(pool.state(&v1()), LoadState::Failed);
    assert!(pool.state(&v2()) == LoadState::Loaded && pool.is_accepting());
    fake.panic_always(false);
    assert!(matches!(run(&pool, 1).await, Err(ServeError::EngineFailed { .. })), "it stays failed");
    assert!(run_on(&pool, v2(), marked(1, SIDE_PX), None).await.is_ok());
    pool.load(source(1)).await.unwrap();
    assert!(answered(1, &run(&pool, 1).await));
}

#[tokio::test]
async fn without_memory_batches_are_halved_and_stay_small() {
    let fake = sluggish();
    let pool = loaded(&fake, ServingSettings::default()).await;
    let _ = fake.clone().with_memory_for(2);
    let markers = [1, 2, 3, 4, 5, 6, 7, 8];
    for round in 0.. {
        let (results, calls) = together(&fake, &pool, &markers).await;
        assert!(markers.into_iter().zip(&results).all(|(marker, result)| answered(marker, result)), "{results:?}");
        if calls.iter().any(|call| call.len() > 2) {
            break;
        }
        assert!(round < 500, "{calls:?}");
    }
    for _ in 0..5 {
        let (_, calls) = together(&fake, &pool, &markers).await;
        assert!(calls.iter().all(|call| call.len() <= 2), "{calls:?}");
    }
    let _ = fake.clone().with_memory_for(0);
    assert!(matches!(run(&pool, 1).await, Err(ServeError::DeviceMemory { .. })));
    let _ = fake.clone().with_memory_for(9);
    assert!(answered(1, &run(&pool, 1).await));
}

#[tokio::test]
async fn warming_finds_the_largest_batch_that_fits() {
    let fake = FakeEngineLoader::new().with_memory_for(5);
    let pool = loaded(&fake, ServingSettings::default()).await;
    let (_, calls) = together(&fake, &pool, &[1, 2, 3, 4, 5, 6, 7, 8]).await;
    assert!(calls.iter().all(|call| call.len() <= 4), "{calls:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_swap_under_load_loses_nothing() {
    let fake = FakeEngineLoader::new().with_delay(Duration::from_micros(200), Duration::from_micros(50));
    let pool = loaded(&fake, ServingSettings { queue_capacity: 1000, ..Default::default() }).await;
    let current = Arc::new(arc_swap::ArcSwap::from_pointee(v1()));
    let callers: FuturesUnordered<_> = (0..16u8)
        .map(|caller| {
            let (pool, current) = (pool.clone(), current.clone());
            tokio::spawn(async move {
                let mut versions = Vec::new();
                for _ in 0..60 {
                    let version = current.load_full();
                    let served = run_on(&pool, (*version).clone(), marked(caller, SIDE_PX), None).await;
                    // The version may be unloaded between reading the alias and the query: the caller reads the alias
                    // again.
                    match served {
                        Err(ServeError::NotLoaded { .. }) if *version == v1() => continue,
                        served => assert!(answered(caller, &served), "{served:?}"),
                    }
                    versions.push(version);
                }
                versions
            })
        })
        .collect();
    pool.load(source(2)).await.unwrap();
    assert_eq!((pool.state(&v1()), pool.state(&v2())), (LoadState::Loaded, LoadState::Loaded));
    current.store(Arc::new(v2()));
    pool.unload(&v1()).await;
    assert_eq!(pool.state(&v1()), LoadState::Unloaded);
    let served: Vec<_> = callers.collect().await;
    assert_eq!(served.len(), 16);
    for versions in served {
        assert!(versions.unwrap().len() >= 59);
    }
    assert!(run_on(&pool, v2(), marked(1, SIDE_PX), None).await.is_ok());
}

#[tokio::test]
async fn unloading_answers_what_waits_first() {
    let fake = FakeEngineLoader::new();
    let pool = loaded(&fake, ServingSettings::default()).await;
    fake.close();
    let first = begin(run(&pool, 1));
    fake.wait_until_held();
    let second = begin(run(&pool, 2));
    let version = v1();
    let mut unload = pin!(begin(pool.unload(&version)));
    assert_eq!(pool.state(&v1()), LoadState::Unloaded);
    assert!(matches!(run(&pool, 3).await, Err(ServeError::NotLoaded { .. })));
    let again = begin(pool.load(source(1)));
    assert!(matches!(unload.as_mut().poll(&mut Context::from_waker(Waker::noop())), Poll::Pending));
    fake.open();
    assert!(answered(1, &first.await) && answered(2, &second.await));
    unload.await;
    again.await.unwrap();
    assert!(answered(4, &run(&pool, 4).await));
    pool.unload(&v1()).await;
    pool.unload(&v1()).await;
    pool.load(source(2)).await.unwrap();
    assert_eq!(fake.n_alive(), 1, "the loader has dropped the first two before it built the third");
}

#[tokio::test]
async fn an_engine_that_does_not_meet_its_golden_outputs_is_refused_by_name() {
    let fake = FakeEngineLoader::new();
    let pool = start(&fake, ServingSettings::default());
    for spoil in [
        |golden: &mut Golden| golden.outputs[0] += 0.01,
        |golden: &mut Golden| golden.outputs[1] = f32::NAN,
        |golden: &mut Golden| golden.outputs.truncate(2),
        |golden: &mut Golden| golden.input_seed = 2,
    ] {
        let mut source = source(1);
        spoil(source.golden.as_mut().unwrap());
        let error = pool.load(source).await.unwrap_err();
        assert!(matches!(&error, ServeError::GoldenMismatch { version, .. } if *version == v1()), "{error}");
        assert_eq!(pool.state(&v1()), LoadState::Failed);
        assert!(matches!(run(&pool, 1).await, Err(ServeError::GoldenMismatch { .. })));
    }
    pool.load(source(1)).await.unwrap();
    assert!(answered(1, &run(&pool, 1).await));
}

#[tokio::test]
async fn a_probe_says_what_the_golden_outputs_are() {
    let fake = FakeEngineLoader::new();
    let pool = start(&fake, ServingSettings::default());
    let source = source(1);
    let golden = source.golden.clone().unwrap();
    let outputs = pool.probe(source.clone(), golden.input_seed).await.unwrap();
    assert_eq!(outputs, golden.outputs);
    assert_eq!((pool.state(&v1()), fake.n_alive()), (LoadState::Unloaded, 0));
    fake.panic_always(true);
    assert!(matches!(pool.probe(source.clone(), 1).await, Err(ServeError::EngineFailed { .. })));
    fake.panic_always(false);
    assert!(pool.probe(source.clone(), 2).await.is_ok());
    pool.shutdown();
    assert!(matches!(pool.probe(source, 1).await, Err(ServeError::Stopping)));
}

#[tokio::test]
async fn a_load_that_fails_says_why_and_can_be_tried_again() {
    let fake = FakeEngineLoader::new();
    let pool = start(&fake, ServingSettings { memory_budget_bytes: Some(100), ..Default::default() });
    fake.refuse_to_load(true);
    assert!(matches!(pool.load(source(1)).await, Err(ServeError::EngineFailed { stage, .. }) if stage == v1().into()));
    fake.refuse_to_load(false);
    fake.panic_always(true);
    assert!(matches!(pool.load(source(1)).await, Err(ServeError::EngineFailed { .. })));
    fake.panic_always(false);
    let mut large = source(1);
    let tensor =
        TensorData { name: "w".into(), shape: vec![15], dtype: crate::nn::Dtype::F32, bytes: vec![0; 60].into() };
    large.tensors.push(tensor.clone());
    let (one, two) = futures::join!(pool.load(large.clone()), pool.load(large));
    one.and(two).unwrap();
    let mut second = source(2);
    second.tensors.push(tensor);
    let over = pool.load(second.clone()).await.unwrap_err();
    assert!(matches!(&over, ServeError::DeviceMemory { detail, .. } if detail.contains("unload")), "{over}");
    pool.unload(&v1()).await;
    pool.load(second).await.unwrap();
    assert_eq!((pool.state(&v1()), pool.state(&v2())), (LoadState::Unloaded, LoadState::Loaded));
}

#[tokio::test]
async fn an_engine_of_weights_that_were_cut_does_not_serve() {
    let fake = FakeEngineLoader::new();
    let pool = start(&fake, ServingSettings::default());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("w");
    std::fs::write(&path, [&[0; 9000][..], &[crate::mapped::END]].concat()).unwrap();
    let bytes = crate::mapped::map(&std::fs::File::open(&path).unwrap()).unwrap();
    let tensor = TensorData { name: "w".into(), shape: vec![2250], dtype: crate::nn::Dtype::F32, bytes };
    let cut = EngineSource { tensors: vec![tensor], ..source(1) };
    pool.load(cut.clone()).await.unwrap();
    pool.unload(&v1()).await;
    std::fs::File::options().write(true).open(&path).unwrap().set_len(8999).unwrap();
    let refused = pool.load(cut).await.unwrap_err();
    assert!(matches!(&refused, ServeError::EngineFailed { detail, .. } if detail.contains("was cut")), "{refused}");
}

#[tokio::test]
async fn draining_serves_what_waits_then_stops() {
    let fake = FakeEngineLoader::new();
    let pool = loaded(&fake, ServingSettings::default()).await;
    fake.close();
    let first = begin(run(&pool, 1));
    fake.wait_until_held();
    let second = begin(run(&pool, 2));
    let drain = begin(pool.drain(Duration::from_secs(60)));
    assert!(!pool.is_accepting());
    assert!(matches!(run(&pool, 3).await, Err(ServeError::Stopping)));
    assert!(matches!(pool.load(source(2)).await, Err(ServeError::Stopping)));
    fake.open();
    assert_eq!(drain.await, 0);
    assert!(answered(1, &first.await) && answered(2, &second.await));
    assert_eq!(pool.drain(Duration::ZERO).await, 0);
    pool.shutdown();
    assert_eq!(fake.n_alive(), 0);
}

#[tokio::test]
async fn a_drain_out_of_time_answers_the_rest() {
    let fake = FakeEngineLoader::new();
    let pool = loaded(&fake, ServingSettings::default()).await;
    fake.close();
    let first = begin(run(&pool, 1));
    fake.wait_until_held();
    let rest = [begin(run(&pool, 2)), begin(run(&pool, 3))];
    let drain = begin(pool.drain(Duration::ZERO));
    fake.open();
    assert_eq!(drain.await, 2);
    assert!(answered(1, &first.await));
    assert!(join_all(rest).await.iter().all(|r| matches!(r, Err(ServeError::Stopping))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_leaves_nobody_waiting() {
    let fake = FakeEngineLoader::new().with_delay(Duration::from_millis(2), Duration::ZERO);
    let pool = loaded(&fake, ServingSettings::default()).await;
    let waiting: Vec<_> = (0..100)
        .map(|marker| {
            let pool = pool.clone();
            tokio::spawn(async move { run(&pool, marker).await })
        })
        .collect();
    let loading = tokio::spawn({
        let pool = pool.clone();
        async move { pool.load(source(2)).await }
    });
    run(&pool, 1).await.unwrap();
    tokio::task::spawn_blocking(move || pool.shutdown()).await.unwrap();
    for result in join_all(waiting).await {
        let result = result.unwrap();
        assert!(matches!(result, Ok(_) | Err(ServeError::Stopping)), "{result:?}");
    }
    let _either_way = loading.await.unwrap();
    assert_eq!(fake.n_alive(), 0);
}

#[tokio::test]
async fn the_loss_of_a_thread_fails_every_version_and_is_reported() {
    let fake = FakeEngineLoader::new();
    let pool = loaded(&fake, ServingSettings::default()).await;
    let mut changes = pool.changes();
    changes.mark_unchanged();
    fake.close();
    let first = begin(run(&pool, 1));
    fake.wait_until_held();
    let second = begin(run(&pool, 2));
    pool.lose_a_thread();
    assert!(changes.changed().await.is_ok());
    assert!(matches!(second.await, Err(ServeError::NoThread { .. })));
    assert_eq!(pool.state(&v1()), LoadState::Failed);
    assert!(!pool.is_accepting());
    assert!(matches!(run(&pool, 3).await, Err(ServeError::NoThread { .. })));
    assert!(matches!(pool.load(source(2)).await, Err(ServeError::NoThread { .. })));
    fake.open();
    drop(first);
}
