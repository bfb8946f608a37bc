//! The guards of transitions, found and not written: from what a machine knew whenever it went one way or
//! another, the fewest facts that tell the ways apart.

use std::collections::BTreeSet;

/// What a machine knew, as answers to questions that are always the same, and which way it went.
pub(super) type Case = (Vec<&'static str>, &'static str);

/// The guard of ways that nothing tells apart. A test sees that no diagram has it: a fact is missing then.
pub(super) const UNTOLD: &str = "sometimes";

/// The answers that a way needs, each with the number of its question.
type Answers = Vec<(usize, BTreeSet<&'static str>)>;

/// The ways, in the order of the cases, each with its guard; `None` if it needs none.
pub(super) fn guards(cases: &[Case]) -> Vec<(&'static str, Option<String>)> {
    let mut ways: Vec<&'static str> = Vec::new();
    for (_, way) in cases {
        if !ways.contains(way) {
            ways.push(way);
        }
    }
    let count = cases.first().map_or(0, |(answers, _)| answers.len());
    let telling = subsets(count).into_iter().map(|questions| asked(cases, &questions)).find(|cases| {
        let answers: BTreeSet<_> = cases.iter().map(|(answers, _)| answers).collect();
        answers.len() == cases.len()
    });
    let guard = |way| match &telling {
        Some(cases) => in_words(&alternatives(way, cases)),
        None => Some(UNTOLD.to_owned()),
    };
    ways.into_iter().map(|way| (way, guard(way))).collect()
}

/// The sets of questions, the smallest first.
fn subsets(count: usize) -> Vec<Vec<usize>> {
    let members = |set: usize| (0..count).filter(|question| set >> question & 1 == 1).collect();
    let mut sets: Vec<Vec<usize>> = (0..1 << count).map(members).collect();
    sets.sort_by_key(Vec::len);
    sets
}

/// The cases in which no more is known than the answers to these questions, each once.
fn asked(cases: &[Case], questions: &[usize]) -> BTreeSet<Case> {
    let answers = |all: &[&'static str]| questions.iter().map(|question| all[*question]).collect();
    cases.iter().map(|(all, way)| (answers(all), *way)).collect()
}

/// What must be known for a way, in one of these forms.
fn alternatives(way: &str, cases: &BTreeSet<Case>) -> Vec<Answers> {
    let mut alternatives: Vec<Answers> = Vec::new();
    for (answers, _) in cases.iter().filter(|(_, to)| *to == way) {
        let needed = needed(answers, way, cases);
        if !alternatives.contains(&needed) && !alternatives.iter_mut().any(|other| takes_in(other, &needed)) {
            alternatives.push(needed);
        }
    }
    alternatives
}

/// Those of the answers without which another way might be gone.
fn needed(answers: &[&'static str], way: &str, cases: &BTreeSet<Case>) -> Answers {
    let mut needed: Vec<usize> = (0..answers.len()).collect();
    for question in 0..answers.len() {
        let fewer: Vec<usize> = needed.iter().copied().filter(|other| *other != question).collect();
        let fits =
            |other: &[&'static str]| fewer.iter().all(|question| other[*question] == answers[*question]);
        if cases.iter().all(|(other, to)| *to == way || !fits(other)) {
            needed = fewer;
        }
    }
    needed.into_iter().map(|question| (question, BTreeSet::from([answers[question]]))).collect()
}

/// Makes one alternative of two that differ in the answer to one question; tells whether they do.
fn takes_in(one: &mut Answers, other: &Answers) -> bool {
    let same_questions =
        one.len() == other.len() && one.iter().zip(other).all(|(one, other)| one.0 == other.0);
    let mut differ = one.iter_mut().zip(other).filter(|(one, other)| one.1 != other.1);
    match (differ.next(), differ.next()) {
        (Some((one, other)), None) if same_questions => {
            one.1.extend(&other.1);
            true
        }
        _ => false,
    }
}

fn in_words(alternatives: &[Answers]) -> Option<String> {
    let either = |answers: &BTreeSet<&'static str>| answers.iter().copied().collect::<Vec<_>>().join(" or ");
    let all = |answers: &Answers| answers.iter().map(|(_, one)| either(one)).collect::<Vec<_>>().join(", ");
    let texts: Vec<String> = alternatives.iter().map(all).collect();
    Some(texts.join("; or ")).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fewest_facts_that_tell_the_ways_apart() {
        let cases = [
            (vec!["never", "asked", "script"], "Failed"),
            (vec!["never", "asked", "none"], "Failed"),
            (vec!["late", "asked", "script"], "Closing"),
            (vec!["late", "left out", "script"], "Script"),
            (vec!["at once", "left out", "script"], "Script"),
            (vec!["at once", "left out", "none"], "Script"),
        ];
        let guard = |text: &str| Some(text.to_owned());
        assert_eq!(
            guards(&cases),
            [("Failed", guard("never")), ("Closing", guard("late, asked")), ("Script", guard("left out"))]
        );
    }

    #[test]
    fn alternatives_that_differ_in_one_answer_are_one() {
        let cases = [
            (vec!["x", "red"], "A"),
            (vec!["x", "blue"], "A"),
            (vec!["x", "green"], "B"),
            (vec!["y", "red"], "B"),
            (vec!["y", "blue"], "B"),
        ];
        let guard = |text: &str| Some(text.to_owned());
        assert_eq!(guards(&cases), [("A", guard("x, blue or red")), ("B", guard("green; or y"))]);
    }

    #[test]
    fn one_way_needs_no_guard_and_ways_that_nothing_tells_apart_say_so() {
        assert_eq!(guards(&[(vec!["x"], "A"), (vec!["y"], "A")]), [("A", None)]);
        let untold = Some(UNTOLD.to_owned());
        assert_eq!(guards(&[(vec!["x"], "A"), (vec!["x"], "B")]), [("A", untold.clone()), ("B", untold)]);
    }
}
