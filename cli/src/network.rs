//! `network-attach` and `network-detach`.

use aodevice::vif::{self, Mac};
use aodevice::{Device, Force, Kind};
use xs_client::DomId;

use crate::args::{NetworkAttachArgs, NetworkDetachArgs};
use crate::devices;
use crate::problem::{Exit, Problem};
use crate::world::{StoreChoice, World};

pub(crate) async fn attach(store: &StoreChoice, args: &NetworkAttachArgs) -> Result<Exit, Problem> {
    let nic = vif::parse(&args.nic).map_err(|error| {
        let hint =
            "say for example bridge=xenbr0 mac=00:16:3e:01:02:03; xl-network-configuration(5) has all of it";
        Problem::usage(format!("cannot understand the interface {:?}", args.nic.join(" ")), error, hint)
    })?;
    devices::attach(store, &args.domain, &Device::Vif(nic), &args.attaching).await
}

pub(crate) async fn detach(store: &StoreChoice, args: &NetworkDetachArgs) -> Result<Exit, Problem> {
    let world = World::open(store).await?;
    let fe = devices::domain_or_id(&world.client, &args.domain).await?;
    let devid = devid(&world, fe, &args.device).await?;
    devices::detach(&world, fe, (Kind::Vif, devid), Force::AfterTimeout, &args.detaching).await
}

/// The device id of an interface that is named by its id or its address.
async fn devid(world: &World, fe: DomId, text: &str) -> Result<u32, Problem> {
    let tried = || format!("cannot detach {text} from domain {fe}");
    let hint = "xendev network-list shows the guest's interfaces";
    if !text.contains(':') {
        let not_an_id = |_| Problem::usage(tried(), "it is neither a device id nor a MAC address", hint);
        return text.parse().map_err(not_an_id);
    }
    let mac: Mac = text.parse().map_err(|error| Problem::usage(tried(), error, hint))?;
    let devices = devices::devices(&world.client, fe, Kind::Vif).await?;
    let wanted = devices.iter().find(|device| device.text("mac") == Some(&mac.to_string()));
    wanted
        .map(|device| device.id.devid)
        .ok_or_else(|| Problem::new(tried(), "the guest has no such interface", hint))
}
