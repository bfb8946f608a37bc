//! What to do about a failure, in this command's words.

use aodevice::{Failure, Hint, Kind, Operation};

/// The command that lists the devices of a kind, and the one that detaches them.
fn commands(kind: Kind) -> (String, String) {
    let words = match kind {
        Kind::Vbd => "block",
        Kind::Vif => "network",
        _ => kind.name(),
    };
    (format!("{words}-list"), format!("{words}-detach"))
}

pub(crate) fn words(failure: &Failure) -> String {
    match failure.hint() {
        Hint::ListDomains => "xl list shows the domains".to_owned(),
        Hint::ListDevices(kind) => format!("xendev {} shows the guest's devices", commands(kind).0),
        Hint::RemoveOrAdopt(kind) => format!(
            "if it is to go, remove it with the tool that made it, or with xendev {} --adopt",
            commands(kind).1
        ),
        Hint::FreeFrontend => "let the guest close it, or remove it with the tool that made it".to_owned(),
        Hint::CorrectDevice => "correct the description of the device".to_owned(),
        Hint::UseOtherToolstack => "use xl for it".to_owned(),
        Hint::WaitOrTakeOver { pid } => {
            let end = pid.map(|pid| format!(", or end process {pid}")).unwrap_or_default();
            format!("wait longer with --owner-timeout, ask it to cancel with --take-over{end}")
        }
        Hint::LoadBackend(module) => format!("load the backend driver (modprobe {module}) and try again"),
        Hint::CheckGuest(module) => {
            format!("see that the guest runs and has its driver ({module}), then try again")
        }
        Hint::RemoveAgainOrForce => {
            "the device is left closing: unpause the guest or free the device in it and \
                                     detach again, or detach with --force"
                .to_owned()
        }
        Hint::ReadKernelLog => "the kernel log of the backend's domain (dmesg) tells why".to_owned(),
        Hint::NameScript => "name a script that exists and is executable".to_owned(),
        Hint::GiveScriptTime(_) => "run the script by hand, or give it longer with --script-timeout; \
                                    its log is /var/log/xen/xen-hotplug.log"
            .to_owned(),
        Hint::ReadScriptLog => "the log of the stock scripts is /var/log/xen/xen-hotplug.log".to_owned(),
        Hint::SeeWhoElse => "see what else works on the guest's devices, then try again".to_owned(),
        Hint::Store(hint) => hint.to_owned(),
        Hint::AddWithoutConfig => {
            "try again once that is mended, or attach it with --no-record; then it is gone when xl reboots, \
                                   restores or migrates the guest"
                .to_owned()
        }
        Hint::MendRunner => "report this as a bug".to_owned(),
        Hint::RemoveAgain => {
            "detach it again to go on; if it had begun to close, it is left closing".to_owned()
        }
        Hint::AddAgain if failure.warnings.is_empty() => "nothing is left of it; attach it again".to_owned(),
        Hint::AddAgain => {
            "see the warnings for what may be left; if the device is still listed, detach it".to_owned()
        }
        _ if failure.operation == Operation::Attach => "attach it again".to_owned(),
        _ => "detach it again".to_owned(),
    }
}
