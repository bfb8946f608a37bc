//! What makes figures comparable: one CPU for everybody, repetitions that take turns, medians.
//!
//! - **One CPU.** Client, server and helpers are pinned to the same one, so wall time is what all
//!   of them work together, plus the switches between them. Waking another CPU costs more than
//!   most requests do, and how much more changes from minute to minute.
//! - **Turns.** Everything is measured once before anything is measured again, and each time
//!   another column goes first: what the machine does besides hits all columns alike.
//! - **Medians** of the repetitions, and of the ratios within each of them.
//!
//! It knows nothing of xenstore. A column is whatever is compared.

use std::borrow::Cow;
use std::fmt;
use std::time::Instant;

use anyhow::{Context, Result};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use super::figure::{Figure, median, short};

/// Which figure is the better one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Better {
    Higher,
    Lower,
}

/// What a row has to show.
#[derive(Clone, Copy, Debug)]
pub(super) enum Goal<C> {
    /// Our first value is so many times better than that of the column to beat.
    Times(f64),
    /// Our last value is at most so many times our first.
    Growth(f64),
    /// A column's first value is at most so many times another's; at least, if higher is better.
    Beside(C, C, f64),
    /// A column's first value is at most this; at least, if higher is better.
    Reach(C, f64),
}

/// A line of the table. A figure has one or more values, such as a median and a percentile.
#[derive(Clone, Debug)]
pub(super) struct Row<C> {
    pub(super) name: String,
    /// What the values are, and their unit.
    pub(super) values: &'static str,
    pub(super) better: Better,
    pub(super) goals: Vec<Goal<C>>,
}

/// Measures a column once; a figure for each row.
pub(super) type Run<'a, C> = Box<dyn Fn(C) -> Result<Vec<Figure>> + 'a>;

/// Rows that are measured together.
pub(super) struct Workload<'a, C: Clone> {
    pub(super) rows: Vec<Row<C>>,
    pub(super) columns: Cow<'a, [C]>,
    /// At most so many repetitions, for what takes long and varies little.
    pub(super) repetitions: usize,
    pub(super) run: Run<'a, C>,
}

/// A row and all its figures: for each column one per repetition.
#[derive(Debug)]
pub(super) struct Measured<C> {
    pub(super) row: Row<C>,
    pub(super) cells: Vec<(C, Vec<Figure>)>,
}

/// Pins this process, and with it all it starts from now on, to one CPU, the last it may use.
///
/// Call it before other threads run: they stay where they are.
pub(super) fn pin() -> Result<()> {
    let allowed = sched_getaffinity(None).context("asking for this process's CPUs")?;
    let last = (0..CpuSet::MAX_CPU).rev().find(|cpu| allowed.is_set(*cpu)).context("no CPU")?;
    let mut one = CpuSet::new();
    one.set(last);
    sched_setaffinity(None, &one).with_context(|| format!("pinning this process to CPU {last}"))
}

/// Measures everything, telling on standard error how far it is.
pub(super) fn measure<C: Copy + Eq + fmt::Display>(
    workloads: &[Workload<C>],
    repetitions: usize,
) -> Result<Vec<Measured<C>>> {
    let begun = Instant::now();
    let empty = |workload: &Workload<C>| -> Vec<_> {
        let cells = || workload.columns.iter().map(|column| (*column, Vec::new())).collect();
        workload.rows.iter().map(|row| Measured { row: row.clone(), cells: cells() }).collect()
    };
    let mut measured: Vec<Vec<Measured<C>>> = workloads.iter().map(empty).collect();
    for repetition in 0..repetitions {
        for (workload, measured) in workloads.iter().zip(&mut measured) {
            let count = workload.columns.len();
            if repetition >= workload.repetitions {
                continue;
            }
            for column in (0..count).map(|turn| (turn + repetition) % count) {
                let name = workload.columns[column];
                let figures = (workload.run)(name);
                let figures = figures.with_context(|| format!("{}, {name}", workload.rows[0].name))?;
                for (measured, figure) in measured.iter_mut().zip(figures) {
                    let (seconds, turn, row) =
                        (begun.elapsed().as_secs(), repetition + 1, &measured.row.name);
                    eprintln!("{seconds:4} s  {turn}/{repetitions}  {row}, {name}: {}", short(&figure));
                    measured.cells[column].1.push(figure);
                }
            }
        }
    }
    Ok(measured.into_iter().flatten().collect())
}

impl<C: Copy + Eq> Measured<C> {
    fn figures(&self, column: C) -> Option<&[Figure]> {
        self.cells.iter().find(|(found, _)| *found == column).map(|(_, figures)| &**figures)
    }

    /// The medians of a column's values.
    pub(super) fn medians(&self, column: C) -> Option<Figure> {
        let figures = self.figures(column)?;
        let values = 0..figures.first()?.len();
        Some(values.map(|value| median(figures.iter().map(|figure| figure[value]))).collect())
    }

    /// How many times the second column's first value the first column's is.
    pub(super) fn ratio(&self, of: C, to: C) -> Option<f64> {
        let pairs = self.figures(of)?.iter().zip(self.figures(to)?);
        Some(median(pairs.map(|(of, to)| of[0] / to[0])))
    }

    /// How many times better the first column's first value is than the second's.
    pub(super) fn times_better(&self, ours: C, theirs: C) -> Option<f64> {
        match self.row.better {
            Better::Higher => self.ratio(ours, theirs),
            Better::Lower => self.ratio(theirs, ours),
        }
    }

    /// How many times the last value is the first.
    pub(super) fn growth(&self, column: C) -> Option<f64> {
        let figures = self.figures(column)?.iter();
        Some(median(figures.map(|figure| figure[figure.len() - 1] / figure[0])))
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn columns_take_turns_and_every_figure_is_kept() {
        let order = RefCell::new(Vec::new());
        let run = |column: &'static str| {
            order.borrow_mut().push(column);
            Ok(vec![vec![order.borrow().len() as f64]])
        };
        let row = Row { name: "row".into(), values: "", better: Better::Higher, goals: Vec::new() };
        let columns = &["a", "b"][..];
        let workload = |repetitions, run| Workload {
            rows: vec![row.clone()],
            columns: columns.into(),
            repetitions,
            run,
        };
        let workloads = [workload(usize::MAX, Box::new(run) as Run<_>), workload(1, Box::new(run))];
        let measured = measure(&workloads, 3).unwrap();
        assert_eq!(*order.borrow(), ["a", "b", "a", "b", "b", "a", "a", "b"]);
        assert_eq!(measured[0].figures("b").unwrap(), [[2.0], [5.0], [8.0]]);
        assert_eq!(measured[0].medians("b").unwrap(), [5.0]);
        assert_eq!(measured[1].figures("a").unwrap(), [[3.0]]);
    }
}
