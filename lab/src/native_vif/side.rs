//! One way through a case, in namespaces of its own: this program again, begun by `unshare`.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use clap::Args;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use xen_hotplug::native::Tools;
use xen_hotplug::native::vif::{self, Outcome, VifError};
use xen_hotplug::{Limits, Request, Runner, ScriptRunner};
use xs_client::{Client, Path};

use super::case::{CASES, Case, Step};
use super::host::{BACKEND, FRONTEND, GUEST, Host, ip};
use super::switch::vsctl;
use super::{SCRIPTS, Views, measure, trouble};
use crate::failure::missing;

/// Run one side of a comparison, in the namespaces of this process
#[derive(Clone, Debug, Args)]
pub struct SideArgs {
    #[arg(long, default_value = "")]
    case: String,
    #[arg(long, default_value = "")]
    way: String,
    #[arg(long)]
    trouble: Option<String>,
    #[arg(long)]
    measure: Option<usize>,
}

/// Begins a side in new namespaces, in which nothing can be seen of this host's network, locks and logs; yields what it
/// printed.
pub(super) fn spawn(args: &[&str]) -> Result<Vec<u8>> {
    const PREPARE: &str = "mount -t sysfs sysfs /sys && mount -t tmpfs tmpfs /run && mount -t tmpfs tmpfs /var/log \
                           && mkdir /var/log/xen && exec \"$0\" native-vif-side \"$@\"";
    let mut command = Command::new("unshare");
    // This very program, though a build may have put another one in its place.
    let program = format!("/proc/{}/exe", std::process::id());
    command.args(["--net", "--mount", "sh", "-c", PREPARE, &program]).args(args);
    command.stdin(Stdio::null()).stderr(Stdio::inherit());
    let output = command.output().map_err(|error| missing("running unshare", &error, "util-linux"))?;
    ensure!(
        output.status.success(),
        "{command:?} ended with {}; network namespaces are needed: run as root",
        output.status
    );
    Ok(output.stdout)
}

/// Runs the side; prints what its host looks like after each step.
pub(super) fn run(args: &SideArgs) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    if let Some(rounds) = args.measure {
        return runtime.block_on(measure::run(rounds));
    }
    if let Some(name) = &args.trouble {
        return runtime.block_on(trouble::run(name));
    }
    let case = CASES.iter().find(|case| case.name == args.case).context("no such case")?;
    let views = runtime.block_on(go_through(case, &args.way))?;
    println!("{}", serde_json::to_string(&views)?);
    Ok(())
}

async fn go_through(case: &Case, way: &str) -> Result<Views> {
    let mut host = Host::with_switch(case.setup, case.switch, case.keys).await?;
    if let Some((name, uuid)) = case.vm {
        let vm = format!("/vm/{uuid}");
        for (node, value) in [
            (format!("/local/domain/{GUEST}/vm"), vm.as_str()),
            (format!("{vm}/name"), name),
            (format!("{vm}/uuid"), uuid),
        ] {
            host.client.write(&Path::new(node)?, value.to_owned()).await?;
        }
    }
    let performer = Performer::new(&host, way)?;
    let mut views = Views::new();
    for step in case.steps {
        let ended = match step {
            Step::Ip(command) => {
                ip(command)?;
                None
            }
            Step::Vsctl(words) => {
                vsctl(words)?;
                None
            }
            Step::NoSwitch => {
                host.end_switch();
                None
            }
            Step::Run(kind, action, _) => {
                let path = format!("{SCRIPTS}/{}", case.script.name());
                let request = Request::new(*kind, *action, 1, 0, path);
                let request =
                    case.keys.iter().fold(request, |request, (key, value)| request.recorded(*key, *value));
                let request = case.vm.iter().fold(request, |request, (name, uuid)| {
                    request.recorded(vif::VM_NAME, *name).recorded(vif::VM_UUID, *uuid)
                });
                Some(performer.perform(case.script, &request).await?)
            }
        };
        let mut view = host.view().await?;
        if let Some(ended) = ended {
            view.insert("ended".to_owned(), if ended { "well" } else { "badly" }.to_owned());
        }
        views.push(view);
    }
    Ok(views)
}

/// Who performs the runs.
pub(super) enum Performer {
    Script { runner: Box<ScriptRunner>, _locks: TempDir },
    Native { client: Client },
}

impl Performer {
    pub(super) fn new(host: &Host, way: &str) -> Result<Self> {
        if way == "native" {
            return Ok(Self::Native { client: host.client.clone() });
        }
        let locks = tempfile::tempdir()?;
        let runner = Box::new(ScriptRunner::new().env("XENSTORED_PATH", host.store()).lock_dir(locks.path()));
        Ok(Self::Script { runner, _locks: locks })
    }

    /// Performs a run; whether it ended well.
    pub(super) async fn perform(&self, script: vif::Script, request: &Request) -> Result<bool> {
        let (limits, never) = (Limits::default(), CancellationToken::new());
        match self {
            Self::Script { runner, .. } => Ok(runner.run(request, &limits, &never).await.success()),
            Self::Native { client } => {
                let result = vif::run(script, request, &Tools::new(), &limits, &never);
                if let Err(error) = &result {
                    eprintln!("lab: {request}: {error}");
                }
                write(client, &result).await?;
                Ok(result.is_ok())
            }
        }
    }
}

/// Writes to the store what a handler yields for it.
async fn write(client: &Client, result: &Result<Outcome, VifError>) -> Result<()> {
    let (backend, frontend) = match result {
        Ok(outcome) => (outcome.backend.clone(), outcome.frontend.clone()),
        Err(error) => (error.backend_keys().to_vec(), Vec::new()),
    };
    for (directory, keys) in [(FRONTEND, frontend), (BACKEND, backend)] {
        for (key, value) in keys {
            client.write(&Path::new(format!("{directory}/{key}"))?, value).await?;
        }
    }
    Ok(())
}
