//! `machine`: the state machines as diagrams.

use serde_json::json;
use xen_aodevice::diagram::{self, Diagram};

use crate::args::{Common, Language, MachineArgs};
use crate::output::{say, say_json};
use crate::problem::Exit;

pub(crate) fn run(common: &Common, args: &MachineArgs) -> Exit {
    let diagrams = match &args.machine {
        Some(name) => diagram::of(name).into_iter().collect(),
        None => diagram::all(),
    };
    if common.json {
        say_json(json!({"ok": true}), json!({"machines": diagrams}));
    } else {
        let text = match args.format {
            Language::Mermaid => Diagram::to_mermaid,
            Language::Dot => Diagram::to_dot,
        };
        say(diagrams.iter().map(text).collect::<Vec<_>>().join("\n"));
    }
    Exit::Done
}
