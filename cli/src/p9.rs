//! `p9-attach`.

use aodevice::{Device, p9};

use crate::args::{Common, DeviceAttachArgs};
use crate::devices;
use crate::problem::{Code, Exit, Problem};

pub(crate) async fn attach(common: &Common, args: &DeviceAttachArgs) -> Result<Exit, Problem> {
    let p9 = p9::parse(&args.device).map_err(|error| {
        let hint = "say for example tag=share path=/srv/share, as words or with commas between them; p9=[...] of \
                    xl.cfg(5) has all of it";
        let tried = format!("cannot understand the file system {:?}", args.device.join(" "));
        Problem::new(Code::BadDevice, tried, error, hint)
    })?;
    devices::attach(common, &args.domain, &Device::P9(p9), &args.attaching).await
}
