//! What happens to what a script prints.

use std::time::Duration;

use xen_hotplug::OUTPUT_MAX;

use crate::support::{Scripts, run, stat};

#[tokio::test]
async fn both_streams_in_the_order_of_writing() {
    let report = run(&Scripts::new().run("echo one; echo two >&2; echo three; exit 3")).await;
    assert_eq!(report.output.as_bytes(), b"one\ntwo\nthree\n");
    assert!(!report.output.truncated());
    assert_eq!(report.to_string(), "exited with status 3: three");
}

#[tokio::test]
async fn the_end_of_a_flood_is_kept() {
    let report =
        run(&Scripts::new().run("head -c 10485760 /dev/zero | tr '\\0' x; echo; echo the end")).await;
    assert!(report.success(), "{report}");
    assert!(report.output.truncated());
    let mut expected = vec![b'x'; OUTPUT_MAX - "\nthe end\n".len()];
    expected.extend_from_slice(b"\nthe end\n");
    assert!(report.output.as_bytes() == expected, "{} bytes", report.output.as_bytes().len());
}

#[tokio::test]
async fn what_is_in_the_pipe_at_the_end_is_read() {
    let scripts = Scripts::new();
    let script = scripts.run("echo $$ > $DIR/pid; head -c 30000 /dev/zero | tr '\\0' x");
    let running = tokio::spawn(async move { run(&script).await });
    let pid = scripts.number("pid").await;
    // Blocks the runtime's only thread: the script ends while nobody reads.
    while stat(&pid.to_string()).is_some_and(|(state, ..)| state != "Z") {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(running.await.unwrap().output.as_bytes().len(), 30_000);
}
