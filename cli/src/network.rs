//! `network-attach` and `network-detach`.

use xen_aodevice::vif::{self, Mac};
use xen_aodevice::{Device, Force, Kind};

use crate::args::{Common, NetworkAttachArgs, NetworkDetachArgs};
use crate::devices::OtherName;
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

/// An interface can be named by its address.
pub(crate) const ADDRESS: OtherName = OtherName {
    key: "mac",
    what: "a MAC address",
    is: |text| text.contains(':'),
    read: |text| text.parse::<Mac>().map(|mac| mac.to_string()).map_err(|error| error.to_string()),
};

pub(crate) async fn detach(common: &Common, args: &NetworkDetachArgs) -> Result<Exit, Problem> {
    let world = World::open(common).await?;
    let fe = devices::domain_or_id(&world.client, &args.domain).await?;
    let devid = devices::devid(&world, (fe, Kind::Vif), &args.device, Some(&ADDRESS)).await?;
    devices::detach(common, &world, fe, (Kind::Vif, devid), Force::AfterTimeout, &args.detaching).await
}
