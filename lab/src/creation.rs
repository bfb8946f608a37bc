//! What a toolstack that creates a domain does for its device model: adds what that is to serve, before it runs.
//!
//! Run in domain 0 of a lab, for a domain that `xl` has created without devices, and so without QEMU.

use std::sync::Arc;

use anyhow::{Result, ensure};
use clap::Args;
use tokio_util::sync::CancellationToken;
use xen_aodevice::{Addition, Device, Plan, Toolstack, WaitFor, vbd, vfb, vkb};
use xs_client::{Client, DomId};

/// Add devices to a domain whose device model has not been started
#[derive(Debug, Args)]
pub struct CreationArgs {
    domid: u32,
    /// Add disks, as xl.cfg writes them
    #[arg(long = "disk", value_name = "DISK")]
    disks: Vec<String>,
    /// Add a framebuffer with VNC, and a keyboard
    #[arg(long)]
    vfb: bool,
}

impl CreationArgs {
    fn devices(&self) -> Result<Vec<Device>> {
        let disk = |text: &String| Ok(Device::Vbd(vbd::parse(&[text])?));
        let mut devices = self.disks.iter().map(disk).collect::<Result<Vec<_>>>()?;
        if self.vfb {
            devices.push(Device::Vfb(vfb::Vfb::of_vnc(vfb::Vnc::default())));
            devices.push(Device::Vkb(vkb::Vkb::default()));
        }
        Ok(devices)
    }
}

/// Runs the command.
pub fn run(args: &CreationArgs) -> Result<()> {
    let tree = |device| (device, Addition::from(WaitFor::Tree));
    let plan = Plan::add(DomId(args.domid), args.devices()?.into_iter().map(tree));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let client = Client::connect().await?;
        let toolstack = Toolstack::new(client, Arc::new(xen_hotplug::ScriptRunner::new())).await?;
        let mut run = plan.run(&toolstack, &CancellationToken::new());
        while let Some(progress) = run.next().await {
            println!("{progress}");
        }
        let outcome = run.finish().await;
        ensure!(outcome.is_done(), "{outcome:?}");
        Ok(())
    })
}
