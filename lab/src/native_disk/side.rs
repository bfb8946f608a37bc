//! One way through a case, in a mount namespace of its own: this program again, begun by `unshare`.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path as FsPath, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use xen_aodevice::{Hotplug, NativeRunner, sim};
use xen_hotplug::native::disk::Script;
use xen_hotplug::{Action, Ending, Kind, Limits, Report, Request, Runner as _, ScriptRunner};
use xs_client::{Client, Config, DomId, Path};

use super::Views;
use super::case::{CASES, Case, Step};
use crate::daemon::{Daemon, DaemonKind};
use crate::failure::missing;

/// Where the stand-ins keep what they know.
const LAB: &str = "/run/lab";

const STAND_INS: [(&str, &str); 5] = [
    ("iscsiadm", include_str!("stand-ins/iscsiadm")),
    ("multipath", include_str!("stand-ins/multipath")),
    ("nbd-client", include_str!("stand-ins/nbd-client")),
    ("tap-ctl", include_str!("stand-ins/tap-ctl")),
    ("loop-up", include_str!("stand-ins/loop-up")),
];

/// Gives back the loop devices of this namespace.
const GIVE_BACK: &str =
    "losetup -nO NAME,BACK-FILE | awk '$2 ~ \"^/run/lab/image\" { print $1 }' | xargs -rn1 losetup -d";

const COPY: &str = "/lab/copy";
const GUEST: u32 = 1;
const VDEV: u32 = 51712;

/// How long a run may take: scripts wait for what will not come.
const DEADLINE: Duration = Duration::from_secs(3);

/// Run one side of a comparison, in the namespace of this process
#[derive(Clone, Debug, Args)]
pub struct DiskSideArgs {
    #[arg(long)]
    case: String,
    #[arg(long)]
    way: String,
    #[arg(long)]
    scripts: PathBuf,
}

/// Begins a side in a new namespace, in which the tools are stand-ins and `/dev` is a copy; yields what it printed.
pub(super) fn spawn(case: &str, way: &str, scripts: &FsPath) -> Result<Vec<u8>> {
    const PREPARE: &str = "mount -t tmpfs tmpfs /run && mount -t tmpfs tmpfs /var/log && mkdir /var/log/xen \
                           && mkdir /run/dev /run/work /run/lab /run/tools \
                           && mount -t overlay -o lowerdir=/dev,upperdir=/run/dev,workdir=/run/work overlay /dev \
                           && mkdir -p /dev/disk/by-path && exec \"$0\" native-disk-side \"$@\"";
    let mut command = Command::new("unshare");
    // This very program, though a build may have put another one in its place.
    let program = format!("/proc/{}/exe", std::process::id());
    command.args(["--mount", "sh", "-c", PREPARE, &program, "--case", case, "--way", way, "--scripts"]);
    command.arg(scripts).stdin(Stdio::null()).stderr(Stdio::inherit());
    let output = command.output().map_err(|error| missing("running unshare", &error, "util-linux"))?;
    ensure!(
        output.status.success(),
        "{command:?} ended with {}; mount namespaces and loop devices are needed: run as root",
        output.status
    );
    Ok(output.stdout)
}

/// Runs the side; prints what its host looks like after each step.
pub(super) fn run(args: &DiskSideArgs) -> Result<()> {
    let case = CASES.iter().find(|case| case.name == args.case).context("no such case")?;
    for (name, text) in STAND_INS {
        let file = FsPath::new("/run/tools").join(name);
        fs::write(&file, text)?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755))?;
    }
    for tool in case.without {
        // In an overlay this hides what is below.
        sh(&format!("rm -f /run/tools/{tool} && mknod /run/tools/{tool} c 0 0"), FsPath::new(""))?;
    }
    // The scripts look there first. A stand-in is above a real tool.
    sh("mount -t overlay -o lowerdir=/run/tools:/usr/sbin overlay /usr/sbin", FsPath::new(""))?;
    for file in ["acts", "sessions", "targets"] {
        fs::write(FsPath::new(LAB).join(file), "")?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let views = runtime.block_on(go_through(case, args));
    // Before a failure is told.
    sh(GIVE_BACK, FsPath::new(""))?;
    println!("{}", serde_json::to_string(&views?)?);
    Ok(())
}

async fn go_through(case: &Case, args: &DiskSideArgs) -> Result<Views> {
    let daemon = Daemon::start(DaemonKind::Xenstored)?;
    [GUEST, 2].iter().try_for_each(|domid| daemon.create_domain(DomId(*domid)))?;
    let client = Client::connect_unix(daemon.socket(), Config::default()).await?;
    sim::create_domain0(&client).await?;
    for domid in [GUEST, 2] {
        sim::create_domain(&client, DomId(domid), &format!("guest-{domid}")).await?;
    }
    let backend = format!("/local/domain/0/backend/{}/{GUEST}/{VDEV}", case.kind.backend());
    let given = [("frontend-id", "1"), ("state", "2"), ("mode", case.mode), ("params", case.params)];
    for (key, value) in given {
        client.write(&Path::new(format!("{backend}/{key}"))?, value.to_owned()).await?;
    }
    let store = daemon.socket();
    case.setup.iter().try_for_each(|command| sh(command, store))?;
    let scripts = ScriptRunner::new().env("XENSTORED_PATH", store).lock_dir(format!("{LAB}/locks"));
    let how = if args.way == "native" { Hotplug::Auto } else { Hotplug::Script };
    let side = Side {
        runner: NativeRunner::new(client.clone(), scripts, how),
        script: args.scripts.join(case.script.name()),
        kind: case.kind,
        backend,
        is_native: args.way == "native",
        by_hand: case.script == Script::Nbd && args.way == "script",
        client,
    };
    let mut gone = false;
    let mut views = Views::new();
    for step in case.steps {
        let ended = match step {
            Step::Sh(command) => {
                sh(command, store)?;
                None
            }
            Step::Gone => {
                side.lose_backend().await?;
                gone = true;
                None
            }
            Step::Run(Action::Add, _) if side.by_hand => Some(side.hand(store, &["add", "nas", "10809"])?),
            Step::Run(Action::Remove, _) if side.by_hand => Some(side.hand(store, &["remove", "/dev/nbd0"])?),
            Step::Run(action, _) => Some(side.perform(*action, gone, &CancellationToken::new()).await?),
            Step::Cancelled => Some(side.cancelled().await?),
        };
        let mut view = side.view(gone).await?;
        if let Some(ended) = ended {
            view.insert("ended".to_owned(), if ended { "well" } else { "badly" }.to_owned());
        }
        views.push(view);
    }
    Ok(views)
}

struct Side {
    client: Client,
    runner: NativeRunner,
    script: PathBuf,
    kind: Kind,
    /// The backend's directory.
    backend: String,
    /// Whether the handler is to be called.
    is_native: bool,
    /// The script is given more than a toolstack gives it.
    by_hand: bool,
}

impl Side {
    async fn perform(&self, action: Action, gone: bool, cancel: &CancellationToken) -> Result<bool> {
        let mut request = Request::new(self.kind, action, GUEST, VDEV, &self.script);
        let directory = if gone { COPY } else { &self.backend };
        for (key, value) in self.keys(directory).await? {
            request = request.recorded(key, value);
        }
        if gone {
            request = request.copy(COPY);
        }
        let limits = Limits::default().deadline(DEADLINE);
        let report: Report = self.runner.run(&request, &limits, cancel).await;
        eprintln!("lab: {request}: {report}");
        let ran = matches!(report.ending, Ending::Exited(_) | Ending::Signalled(_));
        ensure!(!(self.is_native && ran), "the script was run, and not the handler called");
        Ok(report.success())
    }

    /// An add that is cancelled in the midst.
    async fn cancelled(&self) -> Result<bool> {
        let cancel = CancellationToken::new();
        let cancelling = async {
            while !FsPath::new(LAB).join("began").exists() {
                sleep(Duration::from_millis(10)).await;
            }
            cancel.cancel();
        };
        tokio::join!(self.perform(Action::Add, false, &cancel), cancelling).0
    }

    /// Runs the script with arguments of its own.
    fn hand(&self, store: &FsPath, args: &[&str]) -> Result<bool> {
        let mut command = Command::new("timeout");
        command.arg(DEADLINE.as_secs().to_string()).arg(&self.script).args(args);
        command.env("XENSTORED_PATH", store).env("XENBUS_PATH", "backend/vbd/1/51712");
        command.stdin(Stdio::null()).stdout(Stdio::null());
        Ok(command.status()?.success())
    }

    async fn keys(&self, directory: &str) -> Result<BTreeMap<String, String>> {
        let directory = Path::new(directory)?;
        let mut keys = BTreeMap::new();
        for key in self.client.directory_or_empty(&directory).await? {
            let value = self.client.read(&directory.join(&key)?).await?;
            keys.insert(key, String::from_utf8_lossy(&value).into_owned());
        }
        Ok(keys)
    }

    /// The backend's directory goes, and a copy of it stays.
    async fn lose_backend(&self) -> Result<()> {
        for (key, value) in self.keys(&self.backend).await? {
            self.client.write(&Path::new(format!("{COPY}/{key}"))?, value).await?;
        }
        Ok(self.client.rm(&Path::new(self.backend.as_str())?).await?)
    }

    async fn view(&self, gone: bool) -> Result<BTreeMap<String, String>> {
        let mut view = BTreeMap::new();
        for (key, value) in self.keys(if gone { COPY } else { &self.backend }).await? {
            // Which number a device has is the kernel's choice.
            let value = match value.strip_prefix("7:").or(value.strip_prefix("/dev/loop")) {
                Some(number) if number.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
                    value.replace(number, "#")
                }
                _ => value,
            };
            view.insert(format!("keys/{key}"), value);
        }
        let backend = self.keys(&self.backend).await?;
        view.insert("backend".to_owned(), backend.contains_key("frontend-id").to_string());
        // What was changed since the last step.
        let acts = FsPath::new(LAB).join("acts");
        view.insert("acts".to_owned(), fs::read_to_string(&acts)?.trim_end().replace('\n', "; "));
        fs::write(&acts, "")?;
        let printed = |command: &str| -> Result<String> {
            let output = Command::new("sh").args(["-c", command]).stdin(Stdio::null()).output()?;
            Ok(String::from_utf8_lossy(&output.stdout).trim().replace('\n', "; "))
        };
        for (name, command) in [
            ("sessions", "cat /run/lab/sessions"),
            ("connected", "ls /run/lab/nbd 2>/dev/null"),
            ("tapdisks", "cd /run/lab/tap 2>/dev/null && grep . *"),
            ("by-path", "ls /dev/disk/by-path"),
            ("loops", "losetup -nO BACK-FILE | grep -c ^/run/lab/image"),
        ] {
            view.insert(format!("host/{name}"), printed(command)?);
        }
        Ok(view)
    }
}

/// Runs a command of the shell.
fn sh(command: &str, store: &FsPath) -> Result<()> {
    let mut shell = Command::new("sh");
    shell.args(["-c", command]).env("XENSTORED_PATH", store).stdin(Stdio::null()).stdout(Stdio::null());
    let status = shell.status()?;
    ensure!(status.success(), "`{command}` ended with {status}");
    Ok(())
}
