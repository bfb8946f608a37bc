//! Programs that others wrote, unmodified, on `xendev store`: Xen's xenstore tools, Xen's own
//! test of a xenstore, and pyxs.
//!
//! Where output can be compared, the oracle is Debian's xenstored: the same lines are run on both
//! and must print the same and end with the same status.

use std::fmt;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use lab::daemon::{Daemon, DaemonKind};
use lab::xendev::{self, StoreProcess};

const TEST_XENSTORE: &str = "/usr/lib/xen-4.17/bin/test-xenstore";

fn ours() -> StoreProcess {
    StoreProcess::start(&xendev::build(false).unwrap()).unwrap()
}

/// A program that uses the store at a socket. One that waits for ever ends with status 124.
fn program(socket: &Path, name: &str) -> Command {
    let mut command = Command::new("timeout");
    command.args(["120", name]).env("XENSTORED_PATH", socket).stdin(Stdio::null());
    command
}

/// What a program printed, and how it ended.
#[derive(PartialEq, Eq)]
struct Ran(Option<i32>, String, String);

impl Ran {
    fn of(command: &mut Command) -> Self {
        let Output { status, stdout, stderr } = command.output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        let ran = Self(status.code(), text(stdout), text(stderr));
        // From timeout and sh: cannot be run, is not there.
        assert!(!matches!(ran.0, Some(126 | 127)), "install xenstore-utils and python3-pyxs\n{ran:?}");
        ran
    }
}

impl fmt::Debug for Ran {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "status {:?}\n--- stdout\n{}--- stderr\n{}---", self.0, self.1, self.2)
    }
}

/// Runs shell lines one after the other on both stores; each must do the same on both.
#[track_caller]
fn the_same(lines: &[&str]) {
    let (daemon, store) = (Daemon::start(DaemonKind::Xenstored).unwrap(), ours());
    for line in lines {
        let ran = |socket: PathBuf| Ran::of(program(&socket, "sh").args(["-c", line]));
        let (wanted, got) = (ran(daemon.socket().to_owned()), ran(store.socket()));
        assert!(got == wanted, "{line}\nxenstored: {wanted:?}\nours: {got:?}");
    }
}

#[test]
fn the_tools_do_the_same_as_on_xenstored() {
    the_same(&[
        "xenstore-ls -f",
        "xenstore-ls -fp /",
        "xenstore-write /a/b one /a/c 'two words' /d ''",
        r#"xenstore-write /a/binary "$(printf 'tab\tbell\a\377\\ "quoted"')""#,
        "xenstore-read /a/b /a/c /d",
        "xenstore-read -p /a/b /a/binary",
        "xenstore-read -R /a/binary | od -c",
        "xenstore-read /a/none",
        "xenstore-read /a/b /a/none /a/c",
        "xenstore-read no-such-home",
        "xenstore-read /a//b",
        "xenstore-write /a/b",
        "xenstore-write '/a/b c' value",
        "xenstore-write relative/path value",
        "xenstore-read relative/path /local/domain/0/relative/path",
        "xenstore-list /a",
        "xenstore-list -p /a",
        "xenstore-list /d",
        "xenstore-list /none",
        "xenstore-exists /a",
        "xenstore-exists /a /a/b /d",
        "xenstore-exists /none",
        "xenstore-exists /a /none",
        "xenstore-ls",
        "xenstore-ls -f",
        "xenstore-ls -p",
        "xenstore-ls /a",
        "xenstore-ls -fp /a",
        "xenstore-ls -f /none",
        "xenstore-chmod /a/b n0 r1",
        "xenstore-chmod /a/c b0 w2 r3 n4",
        "xenstore-ls -p /a",
        "xenstore-chmod -r /a n0 r7",
        "xenstore-ls -fp",
        "xenstore-chmod -u /a/b n0 b8",
        "xenstore-ls -fp",
        "xenstore-chmod /a n9",
        "xenstore-chmod /none n0",
        "xenstore-chmod /a x0",
        "xenstore-write /a/b/below value; xenstore-ls -fp /a",
        "xenstore-rm /a/b",
        "xenstore-rm /a/b",
        "xenstore-rm /none/none",
        "xenstore-write /t/i/d/y v; xenstore-rm -t /t/i/d/y; xenstore-ls -f",
        "xenstore-rm /a /d",
        "xenstore-rm /",
        "xenstore-ls -fp",
    ]);
}

#[test]
fn large_things_are_the_same_as_on_xenstored() {
    the_same(&[
        r#"xenstore-write /big "$(printf %04000d 7)"; xenstore-read /big"#,
        r#"xenstore-write /big "$(printf %05000d 7)""#,
        "COLUMNS=80 xenstore-ls",
        r#"xenstore-write "/$(printf %02000d 7)" v"#,
        // More than the client library lets through; up to there daemons differ by version.
        r#"xenstore-write "/$(printf %04096d 7)" v"#,
        // More names than fit into one message.
        "seq -f '/many/child-with-a-long-name-%g' 2000 | xargs -I{} echo {} v | xargs xenstore-write",
        "xenstore-list /many | sort | sha256sum",
        "xenstore-ls -fp /many | sort | sha256sum",
        "xenstore-rm /many; xenstore-ls -f",
    ]);
}

#[test]
fn a_watch_prints_the_same_as_on_xenstored() {
    let (daemon, store) = (Daemon::start(DaemonKind::Xenstored).unwrap(), ours());
    let watch = |socket: &Path| {
        let mut command = program(socket, "xenstore-watch");
        let mut child = command.args(["-n", "5", "/w"]).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        // The first event comes at once, so the watch is there.
        let mut seen = vec![lines.next().unwrap()];
        for change in [
            "xenstore-write /w/a 1",
            "xenstore-write /elsewhere 1 /wa 1",
            "xenstore-write /w/a 1",
            "xenstore-chmod /w/a n0 r1",
            "xenstore-rm /w",
        ] {
            let ran = Ran::of(program(socket, "sh").args(["-c", change]));
            assert_eq!(ran, Ran(Some(0), String::new(), String::new()), "{change}");
        }
        seen.extend(lines);
        (seen, child.wait().unwrap().code())
    };
    let wanted = watch(daemon.socket());
    assert_eq!(wanted.0, ["/w", "/w/a", "/w/a", "/w/a", "/w"]);
    assert_eq!(watch(&store.socket()), wanted);
}

#[test]
fn xens_own_tests_pass() {
    let store = ours();
    let list = Ran::of(program(&store.socket(), TEST_XENSTORE).arg("-l"));
    let all = Ran::of(program(&store.socket(), TEST_XENSTORE).args(["-i", "20"]));
    assert_eq!(all.0, Some(0), "{all:?}");
    let name = |line: &str| line.split(':').next().unwrap().trim().to_owned();
    let names = |ran: &Ran| ran.1.lines().map(name).collect::<Vec<_>>();
    assert_eq!(names(&all), names(&list));
    assert!(names(&all).len() >= 12, "{list:?}");
}

#[test]
fn xens_own_random_test_passes() {
    let store = ours();
    let ran = Ran::of(program(&store.socket(), TEST_XENSTORE).args(["-r", "30"]));
    assert_eq!(ran.0, Some(0), "{ran:?}");
}

/// Prints what pyxs makes of a store.
const PYXS: &str = r#"
import os
from pyxs import Client, PyXSError

def tell(what, act):
    try:
        print(what, act())
    except PyXSError as error:
        print(what, repr(error))

with Client(unix_socket_path=os.environ["XENSTORED_PATH"]) as client:
    tell("mkdir", lambda: client.mkdir(b"/p/dir"))
    tell("write", lambda: client.write(b"/p/key", b"value"))
    tell("read", lambda: client.read(b"/p/key"))
    tell("read none", lambda: client.read(b"/p/none"))
    tell("read default", lambda: client.read(b"/p/none", b"default"))
    tell("exists", lambda: (client.exists(b"/p"), client.exists(b"/p/none")))
    tell("list", lambda: client.list(b"/p"))
    tell("perms", lambda: client.get_perms(b"/p/key"))
    tell("set perms", lambda: client.set_perms(b"/p/key", [b"b0", b"r1"]))
    tell("perms", lambda: client.get_perms(b"/p/key"))
    tell("home", lambda: client.get_domain_path(7))
    tell("introduced", lambda: (client.is_domain_introduced(0), client.is_domain_introduced(7)))
    tell("walk", lambda: list(client.walk(b"/p")))
    tell("delete", lambda: client.delete(b"/p/dir"))
    tell("delete again", lambda: client.delete(b"/p/dir"))
    tell("delete none", lambda: client.delete(b"/none/none"))

    for end in [client.commit, client.rollback]:
        client.transaction()
        client.write(b"/p/key", end.__name__.encode())
        tell("inside", lambda: client.read(b"/p/key"))
        tell("end", end)
        tell("after", lambda: client.read(b"/p/key"))
    with Client(unix_socket_path=os.environ["XENSTORED_PATH"]) as other:
        client.transaction()
        tell("read", lambda: client.read(b"/p/key"))
        tell("other", lambda: other.write(b"/p/key", b"other"))
        client.write(b"/p/key", b"mine")
        tell("conflict", client.commit)
        tell("after", lambda: client.read(b"/p/key"))
        client.transaction()
        client.write(b"/p/mine", b"mine")
        tell("other", lambda: other.write(b"/p/other", b"other"))
        tell("same parent", client.commit)
        tell("after", lambda: client.list(b"/p"))

        monitor = client.monitor()
        monitor.watch(b"/p", b"token")
        events = monitor.wait(unwatched=False)
        tell("event", lambda: next(events))
        other.write(b"/p/key", b"again")
        tell("event", lambda: next(events))
        other.delete(b"/p")
        tell("event", lambda: next(events))
        tell("unwatch", lambda: monitor.unwatch(b"/p", b"token"))
    tell("end", lambda: client.exists(b"/p"))
"#;

#[test]
fn pyxs_sees_the_same_as_on_xenstored() {
    let (daemon, store) = (Daemon::start(DaemonKind::Xenstored).unwrap(), ours());
    // Debian's Python, for which its package is.
    let ran = |socket: &Path| Ran::of(program(socket, "/usr/bin/python3").args(["-c", PYXS]));
    let wanted = ran(daemon.socket());
    assert_eq!(wanted.0, Some(0), "is python3-pyxs installed? {wanted:?}");
    assert!(wanted.1.ends_with("end False\n"), "{wanted:?}");
    let got = ran(&store.socket());
    assert!(got == wanted, "xenstored: {wanted:?}\nours: {got:?}");
}
