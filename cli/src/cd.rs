//! `cd-insert` and `cd-eject`.

use serde_json::json;
use xen_aodevice::vbd::{self, Format, Vdev};
use xen_aodevice::{Device, Medium, MediumChange, libxl};

use crate::args::{CdEjectArgs, CdInsertArgs, Common, ImageFormat};
use crate::options::ChangingMedium;
use crate::problem::{Code, Exit, Problem, unless_cancelled};
use crate::signals::cancel_on_signal;
use crate::world::World;
use crate::{devices, output};

pub(crate) async fn insert(common: &Common, args: &CdInsertArgs) -> Result<Exit, Problem> {
    let format = match args.format {
        ImageFormat::Raw => Format::Raw,
        ImageFormat::Qcow => Format::Qcow,
        ImageFormat::Qcow2 => Format::Qcow2,
        ImageFormat::Qed => Format::Qed,
        ImageFormat::Vhd => Format::Vhd,
    };
    let medium = (!args.target.is_empty()).then(|| Medium::new(&args.target).with_format(format));
    change(common, (&args.domain, &args.vdev), medium, &args.changing).await
}

pub(crate) async fn eject(common: &Common, args: &CdEjectArgs) -> Result<Exit, Problem> {
    change(common, (&args.domain, &args.vdev), None, &args.changing).await
}

async fn change(
    common: &Common,
    (guest, vdev): (&str, &str),
    medium: Option<Medium>,
    changing: &ChangingMedium,
) -> Result<Exit, Problem> {
    let hint = format!("xendev block-list {guest} shows the guest's disks");
    let tried = format!("cannot change the medium of {vdev} of domain {guest}");
    let vdev = Vdev::new(vdev).map_err(|error| Problem::new(Code::BadDevice, &*tried, error, hint))?;
    let devid = vdev.devid();
    // What xl makes of it.
    let target = medium.as_ref().map(|medium| &*medium.target).unwrap_or_default();
    let disk = vbd::parse(&[format!("vdev={vdev},access=r,devtype=cdrom,target={target}")]);
    let mut disk =
        disk.map_err(|error| Problem::new(Code::BadDevice, tried, error, "name a file by its whole path"))?;
    if let Some(medium) = &medium {
        disk.format = medium.format;
    }
    let change = changing.of(medium.map_or_else(MediumChange::eject, MediumChange::insert));
    let cancel = cancel_on_signal();
    let world = World::open(common).await?;
    if common.dry_run {
        return dry_run(common, &world, (guest, devid), &Device::Vbd(disk), &change, changing).await;
    }
    let fe = devices::domain(&world.client, guest).await?;
    let (toolstack, progress) = devices::watched(&world, changing.limits(), common).await?;
    let outcome = changing.toolstack(toolstack).change_medium(fe, devid, &change, &cancel).await;
    progress.done();
    output::report(common, outcome)
}

/// Prints what `xl -N` would print if it did not change the medium; with `--json` what would be done.
async fn dry_run(
    common: &Common,
    world: &World,
    (guest, devid): (&str, u32),
    disk: &Device,
    change: &MediumChange,
    changing: &ChangingMedium,
) -> Result<Exit, Problem> {
    if !common.json {
        // As for xl, a number is not looked up.
        devices::domain_or_id(&world.client, guest).await?;
        output::say(format!("disk: {}\n", libxl::pretty(&disk.libxl().into())));
        return Ok(Exit::Done);
    }
    let fe = devices::domain(&world.client, guest).await?;
    let toolstack = changing.toolstack(world.toolstack(changing.limits()).await?);
    let tried = format!("cannot tell what changing the medium of domain {fe} would do");
    let preview = unless_cancelled(tried, toolstack.preview_medium(fe, devid, change)).await??;
    output::say_json(json!({"ok": true, "dry_run": true, "disk": disk.libxl()}), json!(preview));
    Ok(Exit::Done)
}
