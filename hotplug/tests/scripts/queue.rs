//! How many scripts run at a time, and what waiting costs.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use xen_hotplug::{Ending, Limits, Report, Request, Runner, ScriptRunner};

use crate::support::{Scripts, request, runner, soon};

/// Runs all at once.
async fn run_all(runner: &ScriptRunner, runs: &[Request], limits: Limits) -> Vec<Report> {
    let cancel = CancellationToken::new();
    let mut reports = Vec::new();
    let mut futures: Vec<_> = runs.iter().map(|run| runner.run(run, &limits, &cancel)).collect();
    // One task for all: `join_all` in small.
    std::future::poll_fn(|cx| {
        futures.retain_mut(|future| match future.as_mut().poll(cx) {
            std::task::Poll::Ready(report) => {
                reports.push(report);
                false
            }
            std::task::Poll::Pending => true,
        });
        if futures.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    reports
}

/// The same script for so many devices.
fn devices(run: &Request, count: usize) -> Vec<Request> {
    (0..count).map(|_| request(&run.script)).collect()
}

/// Records its start and its end in a file that all scripts of a test share.
const RECORD: &str = "echo + >> $DIR/record; sleep 0.4; echo - >> $DIR/record";

/// The most that ran at a time.
fn most_at_a_time(record: &str) -> usize {
    let mut running = 0;
    let mut most = 0;
    for line in record.lines() {
        if line == "+" {
            running += 1;
        } else {
            running -= 1;
        }
        most = most.max(running);
    }
    most
}

#[tokio::test]
async fn no_more_than_the_bound_run_at_a_time() {
    let scripts = Scripts::new();
    let runs: Vec<_> = (0..6).map(|n| scripts.named_run(&n.to_string(), RECORD)).collect();
    let reports = run_all(&runner().concurrency(2), &runs, Limits::default()).await;
    assert_eq!(reports.iter().filter(|report| report.success()).count(), 6);
    assert_eq!(most_at_a_time(&scripts.read("record")), 2);
}

#[tokio::test]
async fn runs_of_one_script_have_a_bound_of_their_own() {
    let scripts = Scripts::new();
    let mut runs = devices(&scripts.named_run("block", RECORD), 4);
    runs.push(scripts.named_run("vif-bridge", RECORD));
    let runner = runner().concurrency(2).concurrency_per_script(1);
    let reports = run_all(&runner, &runs, Limits::default()).await;
    assert_eq!(reports.iter().filter(|report| report.success()).count(), 5);
    // Two different ones, although three runs of the first wait before the second.
    let record = scripts.read("record");
    assert_eq!(most_at_a_time(&record), 2);
    assert!(record.starts_with("+\n+\n"), "the second script waited for its turn:\n{record}");
}

#[tokio::test]
async fn waiting_costs_no_deadline() {
    let scripts = Scripts::new();
    let runs = devices(&scripts.run("sleep 1"), 3);
    let limits = Limits::default().deadline(Duration::from_millis(2500));
    for report in run_all(&runner().concurrency(1), &runs, limits).await {
        assert!(report.success(), "{report}");
        assert!(report.duration < limits.deadline);
    }
}

#[tokio::test]
async fn waiting_has_a_limit_of_its_own() {
    let scripts = Scripts::new();
    let runs = devices(&scripts.run("echo x >> $DIR/runs; sleep 2"), 2);
    let limits = Limits::default().queue(Duration::from_millis(200));
    let reports = soon(run_all(&runner().concurrency(1), &runs, limits)).await;
    assert_eq!(reports[0].ending, Ending::NotStarted);
    assert!(reports[1].success());
    assert_eq!(scripts.read("runs"), "x\n");
}
