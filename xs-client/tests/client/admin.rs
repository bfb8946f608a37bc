//! What a toolstack asks of the daemon itself.

use xs_client::{Client, Config, DomId, ErrorCode, Features};
use xs_store::Store;

use crate::support::{client, path};

#[tokio::test(start_paused = true)]
async fn domains_features_and_quotas() {
    let client = client();
    let [guest, model] = [7, 8].map(DomId);
    assert_eq!(client.domain_path(guest).await.unwrap(), path("/local/domain/7"));
    assert!(!client.is_introduced(guest).await.unwrap());
    assert_eq!(client.features(Some(DomId::DOM0)).await.unwrap(), client.features(None).await.unwrap());
    let quotas = client.quotas().await.unwrap();
    assert!(quotas.iter().any(|name| name == "nodes"), "{quotas:?}");
    client.set_quota(None, "nodes", 55).await.unwrap();
    assert_eq!(client.quota(None, "nodes").await.unwrap(), 55);
    let told = client.control(&["quota"]).await.unwrap();
    assert!(String::from_utf8_lossy(&told).contains("55"), "{told:?}");
    for refused in
        [client.release(guest).await, client.resume(guest).await, client.set_target(guest, model).await]
    {
        assert_eq!(refused.unwrap_err().code(), Some(&ErrorCode::ENOENT));
    }
    let refused = client.set_features(guest, Features::NONE).await.unwrap_err();
    assert_eq!(refused.code(), Some(&ErrorCode::ENOENT));
}

#[tokio::test(start_paused = true)]
async fn a_guest_is_refused_what_is_for_others() {
    let store = Store::new();
    store.introduce(DomId(1));
    let guest = Client::over(store.connect(DomId(1)), Config::default());
    assert!(guest.features(None).await.is_ok());
    assert_eq!(guest.domain_path(DomId(1)).await.unwrap(), path("/local/domain/1"));
    let refusals = [
        guest.introduce(DomId(2), 1, 2).await.unwrap_err(),
        guest.is_introduced(DomId(2)).await.unwrap_err(),
        guest.control(&["check"]).await.unwrap_err(),
        guest.set_quota(None, "nodes", 0).await.unwrap_err(),
    ];
    for refused in refusals {
        assert_eq!(refused.code(), Some(&ErrorCode::EACCES), "{refused}");
    }
}
