//! `channel-attach`.

use aodevice::{Device, console};

use crate::args::{Common, DeviceAttachArgs};
use crate::devices;
use crate::problem::{Code, Exit, Problem};

pub(crate) async fn attach(common: &Common, args: &DeviceAttachArgs) -> Result<Exit, Problem> {
    let channel = console::parse(&args.device).map_err(|error| {
        let hint = "say for example name=org.example.agent connection=pty, as words or with commas between them; \
                    channel=[...] of xl.cfg(5) has all of it";
        let tried = format!("cannot understand the channel {:?}", args.device.join(" "));
        Problem::new(Code::BadDevice, tried, error, hint)
    })?;
    devices::attach(common, &args.domain, &Device::Channel(channel), &args.attaching).await
}
