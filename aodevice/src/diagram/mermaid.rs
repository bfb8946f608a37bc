//! Diagrams in Mermaid's language, as `flowchart`: `stateDiagram` has neither dashed arcs nor double circles.

use std::fmt::Write;

use super::{Diagram, Phase, State};

impl Diagram {
    /// The diagram in Mermaid's language.
    pub fn to_mermaid(&self) -> String {
        let mut text = format!("%% {}\nflowchart TD\n", self.machine);
        for (phase, title) in super::GROUPS {
            let states: Vec<&State> = self.states.iter().filter(|state| state.phase == phase).collect();
            // Writing to a String cannot fail.
            if states.is_empty() {
                continue;
            }
            if let Some(title) = title {
                _ = writeln!(text, "  subgraph {}[\"{title}\"]", id(phase));
            }
            for state in states {
                _ = writeln!(text, "    {}", node(state));
            }
            if title.is_some() {
                text += "  end\n";
            }
        }
        for arc in &self.arcs {
            let line = if arc.failure { "-.->" } else { "-->" };
            _ = writeln!(text, "  {} {line}|{}| {}", arc.from, quoted(&arc.label()), arc.to);
        }
        text
    }
}

fn id(phase: Phase) -> &'static str {
    match phase {
        Phase::Begin => "begin",
        Phase::Before => "before",
        Phase::AtWork => "at_work",
        Phase::Failure => "failure",
        Phase::Succeeded => "succeeded",
        Phase::Failed => "failed",
    }
}

fn node(state: &State) -> String {
    let State { name, phase, part, .. } = state;
    let lines: Vec<String> = [format!("<b>{name}</b>")].into_iter().chain(state.label()).collect();
    let text = quoted(&lines);
    match phase {
        Phase::Begin => format!("{name}([{text}])"),
        Phase::Succeeded | Phase::Failed => format!("{name}((({text})))"),
        _ if part.is_some() => format!("{name}[[{text}]]"),
        _ => format!("{name}[{text}]"),
    }
}

/// A label. Mermaid breaks long lines itself.
fn quoted(lines: &[String]) -> String {
    format!("\"{}\"", lines.join("<br>").replace('"', "#quot;"))
}
