//! Moving a state: F8.

use xen_devstate::{Goal, Outcome, StateError, StateValue, XenbusState, move_state};
use xs_client::{Client, Config, DomId, Path};
use xs_store::Store;

#[tokio::test]
async fn f8_a_state_is_moved_only_where_there_is_one() {
    let store = Store::new();
    let client = Client::over(store.connect(DomId::DOM0), Config::default());
    let directory = Path::new("/local/domain/0/backend/vbd/1/51712").unwrap();
    let state = directory.join("state").unwrap();
    assert_eq!(move_state(&client, &directory, XenbusState::Closing).await.unwrap(), None);
    assert_eq!(client.read_opt(&state).await.unwrap(), None, "a device that is gone is not brought back");

    client.write(&state, "4").await.unwrap();
    let held = move_state(&client, &directory, XenbusState::Closing).await.unwrap();
    assert_eq!(held, Some(StateValue::State(XenbusState::Connected)));
    assert_eq!(client.read(&state).await.unwrap(), &b"5"[..]);
}

#[test]
fn f8_outcomes_and_errors_read_as_sentences() {
    let read = |goal: Goal, value: Option<&[u8]>| {
        let value = value.map(StateValue::parse);
        goal.decide(value.as_ref()).map(|outcome| (outcome.is_reached(), outcome.to_string()))
    };
    assert_eq!(read(Goal::CLOSED, None), Some((true, "is gone, as wanted".to_owned())));
    assert_eq!(read(Goal::BACKEND_READY, None), Some((false, "vanished".to_owned())));
    assert_eq!(read(Goal::CONNECTED, Some(b"4")), Some((true, "reached 4 (Connected)".to_owned())));
    assert_eq!(read(Goal::CONNECTED, Some(b"6")), Some((false, "went to 6 (Closed)".to_owned())));
    assert_eq!(read(Goal::CONNECTED, Some(b"junk")), None);
    let timed_out = Outcome::TimedOut { last: Some(StateValue::State(XenbusState::InitWait)) };
    assert_eq!(timed_out.to_string(), "timed out at 2 (InitWait)");
    let error: StateError = "9".parse::<XenbusState>().unwrap_err();
    let error: &dyn std::error::Error = &error;
    assert!(error.to_string().starts_with("\"9\" is no XenbusState: "));
}
