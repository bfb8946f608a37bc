//! `wait`: until a device's end gets to a state.

use serde_json::{Value, json};
use xen_devstate::{Absent, Goal, Outcome, StateSet};
use xs_client::Path;

use crate::args::{Common, WaitArgs};
use crate::output::say;
use crate::problem::{Code, Exit, Problem};
use crate::signals::cancel_on_signal;
use crate::world::World;

pub(crate) async fn run(common: &Common, args: &WaitArgs) -> Result<Exit, Problem> {
    let goal = Goal { done: StateSet::of(&args.states), fail: StateSet::EMPTY, absent: Absent::Ignore };
    let tried = format!("cannot wait for {goal} at {}", args.path);
    let hint = "name a device's directory, such as /local/domain/1/device/vbd/51712";
    let bad_path = |error| Problem::new(Code::Usage, tried.clone(), error, hint);
    let mut path = Path::new(&args.path).map_err(bad_path)?;
    if path.name() != "state" {
        path = path.join("state").map_err(bad_path)?;
    }
    let cancel = cancel_on_signal();
    let world = World::open(common).await?;
    let outcome = xen_devstate::wait(&world.client, &path, goal, args.timeout, &cancel).await;
    let failed = |code, observed: String, hint: &str| {
        let problem = Problem::new(code, tried.clone(), observed, hint);
        problem.with_detail("path", path.as_str()).with_detail("state", Value::Null)
    };
    match outcome {
        Outcome::Reached(state) if common.json => {
            let state = json!(state);
            say(format!("{}\n", json!({"ok": true, "path": path.as_str(), "state": state})));
            Ok(Exit::Done)
        }
        Outcome::Reached(state) => {
            say(format!("{state}\n"));
            Ok(Exit::Done)
        }
        Outcome::TimedOut { last } => {
            let seconds = args.timeout.as_secs_f64();
            let observed = match &last {
                Some(last) => format!("{path} holds {last} after {seconds} s"),
                None => format!("{path} is not there after {seconds} s"),
            };
            let hint = "wait longer with --timeout, or see what the other end of the device does";
            let code = Code::Of("timed_out");
            Err(failed(code, observed, hint).with_detail("state", json!(last)).with_exit(Exit::TimedOut))
        }
        Outcome::Aborted => Err(failed(Code::Cancelled, "cancelled by a signal".to_owned(), "wait again")),
        Outcome::Io(error) => Err(Problem::store(tried, &error)),
        other => Err(failed(Code::Wait, format!("{other:?}"), hint)),
    }
}
