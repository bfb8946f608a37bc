//! `block-attach` and `block-detach`.

use xen_aodevice::vbd::{self, Vdev};
use xen_aodevice::{Device, Force, Kind};

use crate::args::{AttachArgs, BlockDetachArgs, Common};
use crate::devices;
use crate::problem::{Code, Exit, Problem};
use crate::world::World;

pub(crate) async fn attach(common: &Common, args: &AttachArgs) -> Result<Exit, Problem> {
    let disk = vbd::parse(&args.disk).map_err(|error| {
        let hint = "say for example /srv/d.img,raw,xvda,w; xl-disk-configuration(5) has all of it";
        let tried = format!("cannot understand the disk {:?}", args.disk.join(" "));
        Problem::new(Code::BadDevice, tried, error, hint)
    })?;
    // It has nothing for disks, so one that cannot be understood is no hindrance.
    match args.attaching.xl_conf().await {
        Ok(conf) => devices::scripts_run(common, &conf),
        Err(problem) if problem.code == Code::BadXlConf => {}
        Err(problem) => return Err(problem),
    }
    devices::attach(common, &args.domain, &Device::Vbd(disk), &args.attaching).await
}

pub(crate) async fn detach(common: &Common, args: &BlockDetachArgs) -> Result<Exit, Problem> {
    let vdev = Vdev::new(&args.device).map_err(|error| {
        let tried = format!("cannot detach {} from domain {}", args.device, args.domain);
        let hint = format!("xendev block-list {} shows the guest's disks", args.domain);
        Problem::new(Code::BadDevice, tried, error, hint)
    })?;
    let world = World::open(common).await?;
    let fe = devices::domain_or_id(&world.client, &args.domain).await?;
    let force = if args.force { Force::AtOnce } else { Force::Never };
    devices::detach(common, &world, fe, (Kind::Vbd, vdev.devid()), force, &args.detaching).await
}
