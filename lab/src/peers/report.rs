//! The table, the JSON, and which goals were missed.

use std::fmt;

use serde_json::{Map, Value, json};

use super::figure::short;
use super::harness::{Better, Goal, Measured};

/// What was measured, and which columns the goals are about.
#[derive(Debug)]
pub(super) struct Report<'a, C> {
    pub(super) rows: Vec<Measured<C>>,
    pub(super) columns: &'a [C],
    pub(super) ours: C,
    /// Whom ours is compared with; the goals are about the first.
    pub(super) rivals: &'a [C],
}

impl<C: Copy + Eq + fmt::Display> Report<'_, C> {
    /// A line per row: the medians of each column, and how many times better our first value is.
    pub(super) fn table(&self) -> String {
        let mut head = vec!["workload".to_owned(), "values".to_owned()];
        head.extend(self.columns.iter().map(ToString::to_string));
        head.extend(self.rivals.iter().map(|rival| format!("x {rival}")));
        head.push("goal".into());
        let mut lines = vec![head];
        for row in &self.rows {
            let mut line = vec![row.row.name.clone(), row.row.values.to_owned()];
            let medians = self.columns.iter().map(|column| row.medians(*column));
            line.extend(medians.map(|medians| medians.map_or("-".into(), |medians| short(&medians))));
            let times = self.rivals.iter().map(|rival| row.times_better(self.ours, *rival));
            line.extend(times.map(|times| times.map_or("-".into(), |times| format!("{times:.2}"))));
            let outcomes: Vec<_> = self.outcomes(row).collect();
            let missed = outcomes.iter().filter(|outcome| !outcome.met);
            let missed: Vec<_> = missed.map(|outcome| &*outcome.brief).collect();
            line.push(match &missed[..] {
                _ if outcomes.is_empty() => String::new(),
                [] => "met".into(),
                missed => format!("missed: {}", missed.join("; ")),
            });
            lines.push(line);
        }
        aligned(&lines)
    }

    /// All figures.
    pub(super) fn json(&self) -> Value {
        let rows = self.rows.iter().map(|row| {
            let better = match row.row.better {
                Better::Higher => "higher",
                Better::Lower => "lower",
            };
            let columns = row.cells.iter().map(|(column, figures)| {
                let of_column = json!({"median": row.medians(*column), "all": figures});
                (column.to_string(), of_column)
            });
            let times_better = self
                .rivals
                .iter()
                .map(|rival| (rival.to_string(), json!(row.times_better(self.ours, *rival))));
            let goals = self.outcomes(row).map(|Outcome { measured, wanted, met, told, .. }| {
                json!({"measured": measured, "wanted": wanted, "met": met, "told": told})
            });
            json!({
                "name": row.row.name,
                "values": row.row.values,
                "better": better,
                "columns": columns.collect::<Map<_, _>>(),
                "times_better": times_better.collect::<Map<_, _>>(),
                "goals": goals.collect::<Vec<_>>(),
            })
        });
        json!({"rows": rows.collect::<Vec<_>>()})
    }

    /// A line for each goal that was missed.
    pub(super) fn missed(&self) -> Vec<String> {
        let outcomes = self.rows.iter().flat_map(|row| self.outcomes(row).map(move |outcome| (row, outcome)));
        let missed = outcomes.filter(|(_, outcome)| !outcome.met);
        missed.map(|(row, outcome)| format!("{}: {}", row.row.name, outcome.told)).collect()
    }

    fn outcomes<'r>(&'r self, row: &'r Measured<C>) -> impl Iterator<Item = Outcome> + 'r {
        row.row.goals.iter().map(|goal| self.outcome(row, *goal))
    }

    fn outcome(&self, row: &Measured<C>, goal: Goal<C>) -> Outcome {
        // What could not be measured is NaN, and has not met its goal.
        match goal {
            Goal::Times(wanted) => {
                let base = self.rivals[0];
                let measured = row.times_better(self.ours, base).unwrap_or(f64::NAN);
                let told =
                    format!("measured {measured:.2}, wanted at least {wanted} times as good as {base}");
                let brief = format!("{measured:.2}, not {wanted}");
                Outcome { measured, wanted, met: measured >= wanted, told, brief }
            }
            Goal::Growth(wanted) => {
                let measured = row.growth(self.ours).unwrap_or(f64::NAN);
                let of = "times the cost at the smallest size";
                let told = format!("measured {measured:.2}, wanted at most {wanted} {of}");
                let brief = format!("{measured:.2}, not {wanted}");
                Outcome { measured, wanted, met: measured <= wanted, told, brief }
            }
            Goal::Beside(of, to, wanted) => {
                let measured = row.ratio(of, to).unwrap_or(f64::NAN);
                let (met, bound) = row.row.better.holds(measured, wanted);
                let told = format!("{of}: measured {measured:.3}, wanted {bound} {wanted} times {to}");
                let brief = format!("{measured:.3} x {to}, not {wanted}");
                Outcome { measured, wanted, met, told, brief }
            }
            Goal::Reach(of, wanted) => {
                let measured = row.medians(of).and_then(|values| values.first().copied()).unwrap_or(f64::NAN);
                let (met, bound) = row.row.better.holds(measured, wanted);
                let [has, needs] = [measured, wanted].map(|value| short(&[value]));
                let told = format!("{of}: measured {has}, wanted {bound} {needs}");
                Outcome { measured, wanted, met, told, brief: format!("{has}, not {needs}") }
            }
        }
    }
}

impl Better {
    /// Whether a value is as good as a bound, and what the bound is called.
    fn holds(self, value: f64, bound: f64) -> (bool, &'static str) {
        match self {
            Self::Higher => (value >= bound, "at least"),
            Self::Lower => (value <= bound, "at most"),
        }
    }
}

/// What became of a goal.
struct Outcome {
    measured: f64,
    wanted: f64,
    met: bool,
    /// For a person.
    told: String,
    /// For the table, if it was missed.
    brief: String,
}

/// Columns of equal width, as Markdown has them.
fn aligned(lines: &[Vec<String>]) -> String {
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..lines[0].len()).map(width).collect();
    let mut text = String::new();
    for (number, line) in lines.iter().enumerate() {
        for (cell, width) in line.iter().zip(&widths) {
            text += &format!("| {cell:width$} ");
        }
        text += "|\n";
        if number == 0 {
            text.extend(widths.iter().map(|width| format!("|{}", "-".repeat(width + 2))));
            text += "|\n";
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::harness::Row;
    use super::*;

    const COLUMNS: &[&str] = &["theirs", "ours"];

    /// A row with one value per repetition and column, which our columns share.
    fn measured(
        better: Better,
        goal: Goal<&'static str>,
        theirs: &[f64],
        ours: &[f64],
    ) -> Report<'static, &'static str> {
        let row = Row { name: "row".into(), values: "µs", better, goals: vec![goal] };
        let figures = |values: &[f64]| values.iter().map(|value| vec![*value]).collect();
        let cells = vec![("theirs", figures(theirs)), ("ours", figures(ours))];
        Report { rows: vec![Measured { row, cells }], columns: COLUMNS, ours: "ours", rivals: &["theirs"] }
    }

    #[test]
    fn a_goal_is_met_by_the_median_of_the_ratios() {
        let times = |wanted, ours: &[f64]| {
            measured(Better::Higher, Goal::Times(wanted), &[1.0, 2.0, 1.0], ours).missed()
        };
        // 9, 10 and 30 times as good.
        assert_eq!(times(10.0, &[9.0, 20.0, 30.0]), Vec::<String>::new());
        let missed = times(10.1, &[9.0, 20.0, 30.0]);
        assert_eq!(missed, ["row: measured 10.00, wanted at least 10.1 times as good as theirs"]);

        let sooner = |wanted| measured(Better::Lower, Goal::Times(wanted), &[6.0], &[2.0]).missed().len();
        assert_eq!((sooner(3.0), sooner(3.1)), (0, 1));
    }

    #[test]
    fn growth_is_from_our_first_value_to_our_last() {
        let mut report = measured(Better::Lower, Goal::Growth(2.0), &[1.0], &[1.0]);
        report.rows[0].cells[0].1 = vec![vec![1.0, 9.0]];
        report.rows[0].cells[1].1 = vec![vec![1.0, 5.0, 2.0]];
        assert_eq!(report.missed(), Vec::<String>::new());
        report.rows[0].cells[1].1 = vec![vec![1.0, 2.5]];
        let missed = report.missed();
        assert_eq!(missed, ["row: measured 2.50, wanted at most 2 times the cost at the smallest size"]);
    }

    #[test]
    fn a_goal_can_name_its_columns() {
        let lower = |goal| measured(Better::Lower, goal, &[10.0], &[12.0]).missed();
        assert_eq!(lower(Goal::Beside("ours", "theirs", 1.25)), Vec::<String>::new());
        assert_eq!(
            lower(Goal::Beside("ours", "theirs", 1.1)),
            ["row: ours: measured 1.200, wanted at most 1.1 times theirs"]
        );
        assert_eq!(lower(Goal::Reach("ours", 12.0)), Vec::<String>::new());
        let higher = |goal| measured(Better::Higher, goal, &[10.0], &[12.0]).missed();
        assert_eq!(higher(Goal::Beside("ours", "theirs", 1.2)), Vec::<String>::new());
        assert_eq!(higher(Goal::Reach("ours", 1e6)), ["row: ours: measured 12.0, wanted at least 1.00M"]);
    }

    #[test]
    fn every_goal_of_a_row_counts() {
        let mut report = measured(Better::Lower, Goal::Reach("ours", 1.0), &[1.0], &[1.5]);
        report.rows[0].row.goals.extend([Goal::Reach("theirs", 1.0), Goal::Beside("ours", "theirs", 1.25)]);
        assert_eq!(report.missed().len(), 2);
        assert!(
            report.table().contains("| missed: 1.50, not 1.00; 1.500 x theirs, not 1.25 |"),
            "{}",
            report.table()
        );
    }

    #[test]
    fn what_was_not_measured_has_missed_its_goal() {
        assert_eq!(measured(Better::Lower, Goal::Times(1.0), &[], &[]).missed().len(), 1);
        assert_eq!(measured(Better::Lower, Goal::Growth(2.0), &[], &[]).missed().len(), 1);
        assert_eq!(measured(Better::Lower, Goal::Reach("none", 2.0), &[1.0], &[1.0]).missed().len(), 1);
        assert_eq!(
            measured(Better::Lower, Goal::Beside("ours", "none", 2.0), &[1.0], &[1.0]).missed().len(),
            1
        );
    }

    #[test]
    fn table_and_json_have_every_figure() {
        let report = measured(Better::Lower, Goal::Times(1.0), &[38_700.0], &[34.81]);
        let table = report.table();
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(
            lines,
            [
                "| workload | values | theirs | ours | x theirs | goal |",
                "|----------|--------|--------|------|----------|------|",
                "| row      | µs     | 38.7k  | 34.8 | 1111.75  | met  |",
            ]
        );
        let json = report.json();
        assert_eq!(json["rows"][0]["columns"]["ours"]["all"], json!([[34.81]]));
        assert_eq!(json["rows"][0]["goals"][0]["met"], true);
    }
}
