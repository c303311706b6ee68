//! Loads, alias moves and failures with a fake engine.

use std::time::Duration;

use futures::future::join_all;

use super::{testing::answering, *};
use crate::{
    nn::Golden,
    registry::NewVersion,
    serving::{ServeError, ServingSettings, testing::FakeEngineLoader},
    store::{MemoryStore, Store, StoreBlobs},
};

fn new_version(golden: Option<Golden>) -> NewVersion {
    NewVersion { golden, ..answering("m") }
}

fn model() -> ModelId {
    ModelId::parse("model", "m").unwrap()
}

fn name(number: u64) -> VersionName {
    VersionName { model: model(), number }
}

fn models(fake: &FakeEngineLoader, versions: impl IntoIterator<Item = NewVersion>) -> Models {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let registry = Arc::new(Registry::new(Arc::clone(&store), Arc::new(StoreBlobs::new(store))));
    for new in versions {
        registry.register(new, |_| crate::store::Batch::default()).unwrap();
    }
    let serving = ServingPool::start(ServingSettings::default(), Arc::new(fake.clone())).unwrap();
    Models::open(registry, serving, None).unwrap()
}

fn state(models: &Models, number: u64) -> LoadState {
    models.shared.serving.state(&name(number))
}

async fn settled(models: &Models, number: u64, wanted: LoadState) {
    let mut changes = models.shared.serving.changes();
    while state(models, number) != wanted {
        changes.changed().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_fails_is_built_once_a_back_off() {
    let fake = FakeEngineLoader::new();
    let wrong = Golden { input_seed: 1, outputs: vec![-1.0], tolerance: 1e-3 };
    let models = models(&fake, [new_version(None), new_version(Some(wrong))]);
    models.load_needed().await;
    let n_built = fake.n_loads();
    let load = async || {
        let held = models.hold(Some(&ModelRef::Version(name(2)))).await.unwrap();
        models.ensure_loaded(&held.version.name).await.unwrap_err()
    };
    let refusals = join_all((0..50).map(|_| load())).await;
    for refusal in &refusals {
        let AppError::VersionFailed { version, source, retry_after } = refusal else { panic!("{refusal}") };
        assert!(*version == name(2) && *retry_after <= Duration::from_secs(1));
        assert!(matches!(**source, AppError::Serve(ServeError::GoldenMismatch { .. })), "{source}");
    }
    assert_eq!(fake.n_loads() - n_built, 1, "one build answers all");
    let AppError::VersionFailed { retry_after, .. } = load().await else { panic!() };
    tokio::time::sleep(retry_after).await;
    let AppError::VersionFailed { retry_after, .. } = load().await else { panic!() };
    assert_eq!(fake.n_loads() - n_built, 2);
    assert!(retry_after > Duration::from_secs(1), "the second back-off is longer");
    let by_operator = models.load_version(&Call::local(), &ModelRef::Version(name(2))).await;
    assert!(matches!(by_operator, Err(AppError::VersionFailed { .. })));
    assert_eq!(fake.n_loads() - n_built, 3, "an operator does not wait");
    assert_eq!(state(&models, 1), LoadState::Loaded);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_swap_keeps_the_old_version_for_the_calls_that_resolved_it() {
    let fake = FakeEngineLoader::new();
    let models = models(&fake, [new_version(None), new_version(None)]);
    models.load_needed().await;
    let champion = ModelRef::Alias { model: model(), alias: AliasName::champion() };
    let held = models.hold(Some(&champion)).await.unwrap();
    assert_eq!(held.version.name, name(1));
    let once = Idempotent::never();
    models.set_alias(&Call::local(), model(), AliasName::champion(), Some(name(2)), None, once).await.unwrap();
    assert_eq!(models.resolve(Some(&champion)).unwrap(), name(2));
    assert_eq!((state(&models, 1), state(&models, 2)), (LoadState::Loaded, LoadState::Loaded));
    drop(held);
    settled(&models, 1, LoadState::Unloaded).await;
    assert_eq!(state(&models, 2), LoadState::Loaded);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_needed_is_not_unloaded_and_what_was_named_is() {
    let fake = FakeEngineLoader::new();
    let models = models(&fake, [new_version(None), new_version(None)]);
    models.load_needed().await;
    let unload = async |number| models.unload_version(&Call::local(), &ModelRef::Version(name(number))).await;
    let refused = unload(1).await.unwrap_err();
    assert!(matches!(&refused, AppError::Registry(RegistryError::InUse { by, .. }) if by == "the alias champion"));
    let collection = models.hold_for_collection(&name(2), "people".to_owned());
    models.load_version(&Call::local(), &ModelRef::Version(name(2))).await.unwrap();
    let refused = models.delete_version(&Call::local(), name(2)).await.unwrap_err();
    assert!(matches!(&refused, AppError::Registry(RegistryError::InUse { by, .. }) if by == "collections/people"));
    drop(collection);
    settled(&models, 2, LoadState::Unloaded).await;
    models.load_version(&Call::local(), &ModelRef::Version(name(2))).await.unwrap();
    assert_eq!(unload(2).await.unwrap().load_state(), v1::LoadState::Unloaded);
    models.delete_version(&Call::local(), name(2)).await.unwrap();
    assert!(models.version(&name(2)).await.is_err());
}
