//! `pci-attach`, `pci-detach` and `pci-list`.

use clap::Args;
use serde_json::json;
use xen_aodevice::pcidev::{self, PciDev};
use xen_aodevice::{Attachment, Limits, PciFunction, pci_functions};

use crate::args::{Common, GuestArgs};
use crate::devices;
use crate::output::{self, say};
use crate::problem::{Code, Exit, Problem, unless_cancelled};
use crate::signals::cancel_on_signal;
use crate::world::World;

#[derive(Debug, Args)]
pub(crate) struct AttachArgs {
    /// The guest, by domid or name
    domain: String,
    /// The function: `[DOMAIN:]BUS:DEVICE.FUNCTION[@SLOT]` in hexadecimal, and `msitranslate=`, `power_mgmt=`,
    /// `permissive=` (0 or 1), `rdm_policy=` (strict or relaxed), `vslot=`, with commas between them
    #[arg(value_name = "PCI-SPEC")]
    function: String,
}

#[derive(Debug, Args)]
pub(crate) struct DetachArgs {
    /// Take it also if the guest does not let go in time
    #[arg(short, long)]
    force: bool,
    /// The guest, by domid or name
    domain: String,
    /// The function: `[DOMAIN:]BUS:DEVICE.FUNCTION` in hexadecimal
    #[arg(value_name = "PCI-SPEC")]
    function: String,
}

fn parse(text: &str) -> Result<PciDev, Problem> {
    pcidev::parse(text).map_err(|error| {
        let tried = format!("cannot understand the PCI function {text:?}");
        Problem::new(Code::BadDevice, tried, error, "say for example 0000:03:00.1; lspci -D shows the host's")
    })
}

pub(crate) async fn attach(common: &Common, args: &AttachArgs) -> Result<Exit, Problem> {
    let dev = parse(&args.function)?;
    let cancel = cancel_on_signal();
    let world = World::open(common).await?;
    let fe = devices::domain(&world.client, &args.domain).await?;
    if common.dry_run {
        let toolstack = world.toolstack(Limits::default()).await?;
        return devices::foresee(common, fe, &Attachment::PciDev(dev), toolstack.check_pci(fe, &dev)).await;
    }
    let (toolstack, progress) = devices::watched(&world, Limits::default(), common).await?;
    let outcome = toolstack.attach_pci(fe, &dev, &cancel).await;
    progress.done();
    output::report(common, outcome)
}

pub(crate) async fn detach(common: &Common, args: &DetachArgs) -> Result<Exit, Problem> {
    let dev = parse(&args.function)?;
    let cancel = cancel_on_signal();
    let world = World::open(common).await?;
    let fe = devices::domain_or_id(&world.client, &args.domain).await?;
    let (toolstack, progress) = devices::watched(&world, Limits::default(), common).await?;
    let outcome = toolstack.detach_pci(fe, dev.address, args.force, &cancel).await;
    progress.done();
    output::report(common, outcome)
}

pub(crate) async fn list(common: &Common, args: &GuestArgs) -> Result<Exit, Problem> {
    let world = World::open(common).await?;
    let fe = devices::domain(&world.client, &args.domain).await?;
    let tried = format!("cannot list the PCI functions of domain {fe}");
    let listed = unless_cancelled(&*tried, pci_functions(&world.client, fe)).await?;
    let functions = listed.map_err(|error| Problem::store(tried, &error))?;
    say(if common.json { format!("{}\n", json!(functions)) } else { table(&functions) });
    Ok(Exit::Done)
}

/// As `xl pci-list` prints them: nothing if there are none.
fn table(functions: &[PciFunction]) -> String {
    let row = |function: &PciFunction| {
        let PciFunction { domain, bus, device, function, guest_slot, guest_function, .. } = function;
        format!("{guest_slot:02x}.{guest_function:01x} {domain:04x}:{bus:02x}:{device:02x}.{function:01x}\n")
    };
    let header = if functions.is_empty() { "" } else { "Vdev Device\n" };
    std::iter::once(header.to_owned()).chain(functions.iter().map(row)).collect()
}

#[cfg(test)]
mod tests {
    use xs_client::{Client, Config, DomId, Path};
    use xs_store::Store;

    use super::*;

    /// By the format of xl; a guest without any was seen to have no header.
    #[tokio::test]
    async fn as_xl_prints_them() {
        let store = Store::new();
        let client = Client::over(store.connect(DomId::DOM0), Config::default());
        assert_eq!(table(&pci_functions(&client, DomId(1)).await.unwrap()), "");
        let keys = [
            ("num_devs", "3"),
            ("dev-0", "0000:03:00.0"),
            ("vdevfn-0", "28"),
            ("dev-1", "0000:0a:1f.1"),
            ("dev-2", "junk"),
        ];
        for (key, value) in keys {
            let node = Path::new(format!("/local/domain/0/backend/pci/1/0/{key}")).unwrap();
            client.write(&node, value).await.unwrap();
        }
        let functions = pci_functions(&client, DomId(1)).await.unwrap();
        assert_eq!(table(&functions), "Vdev Device\n05.0 0000:03:00.0\n00.0 0000:0a:1f.1\n");
    }
}
