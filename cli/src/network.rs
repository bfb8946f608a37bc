//! `network-attach` and `network-detach`.

use aodevice::vif::{self, Mac};
use aodevice::{Device, Force, Kind};
use xs_client::DomId;

use crate::args::{Common, NetworkAttachArgs, NetworkDetachArgs};
use crate::problem::{Code, Exit, Problem};
use crate::world::World;
use crate::{devices, output};

pub(crate) async fn attach(common: &Common, args: &NetworkAttachArgs) -> Result<Exit, Problem> {
    let nic = vif::parse(&args.nic).map_err(|error| {
        let hint = "say for example bridge=xenbr0 mac=00:16:3e:01:02:03, as words or with commas between \
                    them; xl-network-configuration(5) has all of it";
        let tried = format!("cannot understand the interface {:?}", args.nic.join(" "));
        Problem::new(Code::BadDevice, tried, error, hint)
    })?;
    for notice in vif::notices(&args.nic) {
        output::warn(common, &notice);
    }
    let conf = args.attaching.xl_conf().await?;
    devices::scripts_run(common, &conf);
    devices::attach(common, &args.domain, &Device::Vif(nic.or(&conf.vif)), &args.attaching).await
}

pub(crate) async fn detach(common: &Common, args: &NetworkDetachArgs) -> Result<Exit, Problem> {
    let world = World::open(&common.store).await?;
    let fe = devices::domain_or_id(&world.client, &args.domain).await?;
    let devid = devid(&world, fe, &args.device).await?;
    devices::detach(common, &world, fe, (Kind::Vif, devid), Force::AfterTimeout, &args.detaching).await
}

/// The device id of an interface that is named by its id or its address.
async fn devid(world: &World, fe: DomId, text: &str) -> Result<u32, Problem> {
    let tried = || format!("cannot detach {text} from domain {fe}");
    let hint = "xendev network-list shows the guest's interfaces";
    if !text.contains(':') {
        let not_an_id =
            |_| Problem::new(Code::BadDevice, tried(), "it is neither a device id nor a MAC address", hint);
        return text.parse().map_err(not_an_id);
    }
    let mac: Mac = text.parse().map_err(|error| Problem::new(Code::BadDevice, tried(), error, hint))?;
    let devices = devices::devices(&world.client, fe, Some(Kind::Vif)).await?;
    let wanted = devices.iter().find(|device| device.text("mac") == Some(&mac.to_string()));
    let none = || Problem::new(Code::Of("no_such_device"), tried(), "the guest has no such interface", hint);
    wanted.map(|device| device.id.devid).ok_or_else(none)
}
