//! Diagrams in Graphviz's language.

use std::fmt::Write;

use super::{Arc, Diagram, Phase, State};

/// How many characters of a label stand on one line.
const WIDTH: usize = 34;

impl Diagram {
    /// The diagram in Graphviz's language.
    pub fn to_dot(&self) -> String {
        let mut text = format!("digraph {} {{\n", self.machine);
        text += "  graph [fontname=\"Helvetica\", nodesep=0.4, ranksep=0.5];\n";
        text += "  node [shape=box, style=\"rounded\", fontname=\"Helvetica\", fontsize=11];\n";
        text += "  edge [fontname=\"Helvetica\", fontsize=9];\n";
        for (phase, title) in super::GROUPS {
            let states: Vec<&State> = self.states.iter().filter(|state| state.phase == phase).collect();
            // Writing to a String cannot fail.
            if states.is_empty() {
                continue;
            }
            if let Some(title) = title {
                _ = writeln!(
                    text,
                    "  subgraph \"cluster_{title}\" {{\n    label={};\n    color=gray;",
                    quoted(title)
                );
            }
            for state in states {
                _ = writeln!(text, "    {}", node(state));
            }
            if title.is_some() {
                text += "  }\n";
            }
        }
        for arc in &self.arcs {
            _ = writeln!(text, "  {}", edge(arc));
        }
        text + "}\n"
    }
}

fn node(state: &State) -> String {
    let State { name, phase, part, .. } = state;
    let lines = state.label().into_iter().flat_map(|text| wrapped(&text));
    let lines: Vec<String> = [(*name).to_owned()].into_iter().chain(lines).collect();
    let shape = match phase {
        Phase::Begin => ", shape=circle",
        Phase::Succeeded | Phase::Failed => ", shape=doublecircle",
        _ if part.is_some() => ", peripheries=2",
        _ => "",
    };
    format!("{name} [label={}{shape}];", quoted(&lines.join("\n")))
}

fn edge(arc: &Arc) -> String {
    let lines: Vec<String> = arc.label().iter().flat_map(|text| wrapped(text)).collect();
    // Every line ends with a sign that justifies it left: reasons are of several lines.
    let label = quoted(&(lines.join("\n") + "\n")).replace("\\n", "\\l");
    let style = if arc.failure { ", style=dashed, color=firebrick" } else { "" };
    format!("{} -> {} [label={label}{style}];", arc.from, arc.to)
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
}

/// A text in lines that can be read in a picture.
fn wrapped(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut().filter(|line| line.chars().count() + 1 + word.chars().count() <= WIDTH) {
            Some(line) => line.extend([" ", word]),
            None => lines.push(word.to_owned()),
        }
    }
    lines
}
