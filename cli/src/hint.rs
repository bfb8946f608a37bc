//! What to do about a failure, in this command's words.

use xen_aodevice::{Condition, Failure, Hint, Kind, Operation};
use xen_hotplug::SpawnFault;
use xs_client::DomId;

use crate::kinds;

/// Where the daemons of driver domains log.
const DEVD_LOGS: &str = "/var/log/xen/xldevd.log (xl devd) or /var/log/xen/xendev-devd.log (xendev devd)";

/// The command that lists the devices of a kind, and the one that detaches them.
pub(crate) fn commands(kind: Kind) -> (String, String) {
    let name = kinds::name(kind);
    let list = if kind == Kind::Vusb { "usb" } else { name };
    (format!("{list}-list"), format!("{name}-detach"))
}

/// The command that detaches the device that a failure is about.
fn detach(failure: &Failure, kind: Kind) -> String {
    let device = failure.device.devid.map_or_else(|| "DEVID".to_owned(), kind.info().id_name);
    format!("xendev {} {} {device}", commands(kind).1, failure.device.fe)
}

/// What to do about a domain that is gone.
pub(crate) fn clean_up(domid: DomId) -> String {
    format!(
        "xl list shows the domains; if domain {domid} has left devices, they are listed and detached by its domid"
    )
}

/// A path as a word of a shell's command line.
pub(crate) fn quoted(path: &str) -> String {
    let is_plain = |letter: char| letter.is_alphanumeric() || "/._-+:@%,".contains(letter);
    if path.chars().all(is_plain) { path.to_owned() } else { format!("'{}'", path.replace('\'', r"'\''")) }
}

/// What to do about the file of a script.
fn mend(script: &str, fault: SpawnFault) -> String {
    match fault {
        SpawnFault::NotExecutable => format!(
            "make it executable (chmod +x {script}), and see that its file system is not mounted noexec"
        ),
        SpawnFault::LineEnds => {
            format!("give it the line ends of Unix: dos2unix {script}, or sed -i 's/\\r$//' {script}")
        }
        SpawnFault::Interpreter => {
            format!("install the interpreter, or name another one in the first line (head -1 {script})")
        }
        SpawnFault::Format => {
            format!("begin {script} with #!/bin/sh or #!/bin/bash, or name a program of this machine")
        }
        SpawnFault::Empty => format!("write {script} again, or name another script"),
        _ => "see to what it says".to_owned(),
    }
}

/// What to do once a script can be started.
fn again(failure: &Failure) -> &'static str {
    match failure.operation {
        Operation::Attach => "attach the device again",
        Operation::Script => "run it again",
        _ => "detach the device again, or detach it with --force, which leaves what the script made",
    }
}

pub(crate) fn words(failure: &Failure) -> String {
    match failure.hint() {
        Hint::ListDomains => "xl list shows the domains".to_owned(),
        Hint::CleanUpById(domid) => clean_up(domid),
        Hint::ListDevices(kind) => {
            format!("xendev {} {} shows the guest's devices", commands(kind).0, failure.device.fe)
        }
        Hint::AddAnew(kind) => {
            format!("free it in the guest, detach it ({}), and attach it again", detach(failure, kind))
        }
        Hint::RemoveOrAdopt(kind) => format!(
            "if it is to go, remove it with the tool that made it, or by {} --adopt",
            detach(failure, kind)
        ),
        Hint::FreeFrontend => "let the guest close it, or remove it with the tool that made it".to_owned(),
        Hint::CorrectDevice => "correct the description of the device".to_owned(),
        Hint::NameTarget if failure.operation == Operation::Insert => {
            "name a file or block device that is there by its whole path".to_owned()
        }
        Hint::NameTarget if failure.device.kind == Kind::P9 => {
            "name a directory that is there by its whole path".to_owned()
        }
        Hint::NameTarget => "name a file or block device that is there by its whole path, or with script= \
                             the script that makes one of the target"
            .to_owned(),
        Hint::UseKernelBackend if failure.device.kind == Kind::Console => {
            "describe it in the configuration by which xl creates the domain; for a domain whose device model is about \
             to start attach it with --wait tree"
                .to_owned()
        }
        Hint::UseKernelBackend if failure.device.kind != Kind::Vbd => {
            "a guest has one if it was created with a device of QEMU's (a vfb, a qcow2 disk, or as an HVM guest); \
             for one that is about to start attach it with --wait tree"
                .to_owned()
        }
        Hint::UseKernelBackend => {
            "a guest has one if it was created with a device of QEMU's (a qcow2 disk, a vfb, or \
             as an HVM guest); raw images are also served by the kernel (backendtype=phy)"
                .to_owned()
        }
        Hint::CheckModel => "see whether the guest's device model (QEMU) is stopped, and what it says in \
                             /var/log/xen/qemu-dm-*.log"
            .to_owned(),
        Hint::ReplaceDevice(kind) => {
            format!(
                "only a CD-ROM drive that QEMU emulates can change its medium (xendev {} {} shows the guest's disks); \
                 detach another disk ({}) and attach it with the other image",
                commands(kind).0,
                failure.device.fe,
                detach(failure, kind)
            )
        }
        Hint::FreeMedium => {
            "unmount the medium in the guest, or end what reads it, and try again; or open the tray with \
                             --force"
                .to_owned()
        }
        Hint::CorrectMedium => {
            "name an image that QEMU can read, and its format with --format; the drive is empty now"
                .to_owned()
        }
        Hint::ChangeAgain => {
            "see the warnings for what is in the drive now, if any; then try again".to_owned()
        }
        Hint::AddAtCreation => {
            "a guest gets emulated interfaces when it is created, by its configuration; leave out \
                                type=ioemu, and its driver gets a paravirtual one"
                .to_owned()
        }
        Hint::ReadModelLog(log) => {
            format!(
                "correct the image or the description of the device; {} has all that it says",
                log.display()
            )
        }
        Hint::CheckDaemon(name) => format!(
            "see that {name}, which is to serve the device, is there and runs, and what it logs; then try again"
        ),
        Hint::MakeWithDomain => {
            "describe it in the configuration by which xl creates the domain, or do without it".to_owned()
        }
        Hint::ListHostDevices if failure.device.kind == Kind::Vusb => {
            "lsusb shows the host's devices: hostbus=1 hostaddr=26 for what it calls Bus 001 Device 026".to_owned()
        }
        Hint::ListHostDevices => "lspci -D shows the host's PCI functions".to_owned(),
        Hint::DetachElsewhere(domid) if failure.device.kind == Kind::Pci => format!(
            "if it is not to be there, take it from there first (xl pci-detach {domid}); xendev pci-list {domid} shows \
             what that has"
        ),
        Hint::DetachElsewhere(domid) => format!(
            "if it is not to be there, take it from there first: xendev usbdev-detach {domid} CONTROLLER PORT; xendev \
             usb-list {domid} shows both"
        ),
        Hint::NameBackendDomain => "name a domain that runs with backend= (xl list shows them); a driver domain needs \
                                    its daemon, too (xl devd or xendev devd)"
            .to_owned(),
        Hint::CheckDriverDomain(be) => format!(
            "see that domain {be} runs the daemon that runs hotplug scripts (xl devd or xendev devd), and that its log tells of no \
             used up quota; give a slow script longer with --script-timeout, and say --no-devd if no daemon is to run there"
        ),
        Hint::ReadDriverDomainLog(be) => format!(
            "mend what is reported in domain {be}, and try again; the stock scripts log to \
             /var/log/xen/xen-hotplug.log there, and the daemon to {DEVD_LOGS}"
        ),
        Hint::NameTargetThere(be) => format!(
            "name a file or block device that is there in domain {be} by its whole path; the daemon's log there, \
             {DEVD_LOGS}, tells how the script ended"
        ),
        Hint::StartDriverDomain(be) => format!(
            "start the driver domain again, and attach the device anew; it has another domid than {be} then, so name it \
             by its name (backend=NAME)"
        ),
        Hint::RemoveAgainOrLeave(be) => format!(
            "see that domain {be} runs its daemon (xl devd or xendev devd) and detach again: it is left closing; \
             xl devd does not take up what was closed before it began: then detach with --force, which leaves what the \
             script made there"
        ),
        Hint::UseOtherToolstack => "use xl for it, or do without that".to_owned(),
        Hint::WaitOrTakeOver { pid } => {
            let end = pid.map(|pid| format!(", or end process {pid}")).unwrap_or_default();
            format!("wait longer with --owner-timeout, ask it to cancel with --take-over{end}")
        }
        Hint::StartBackend(backend) => format!(
            "start the program that serves {backend} backends, and try again; or attach it with --wait tree, and start \
             the program then"
        ),
        Hint::ReadBackendLog(backend) => {
            format!("the log of the program that serves {backend} backends tells why")
        }
        Hint::NameGuest => "name a guest".to_owned(),
        Hint::LoadBackend(module) => format!("load the backend driver (modprobe {module}) and try again"),
        Hint::LoadBackendIn(module, be) => {
            format!("load the backend driver in domain {be} (modprobe {module} there) and try again")
        }
        Hint::ReadKernelLogOf(be) => format!("the kernel log of domain {be} (dmesg there) tells why"),
        Hint::CheckGuest(module) => {
            format!("see that the guest runs and has its driver ({module}), then try again")
        }
        Hint::Unpause(domid) if failure.operation == Operation::Attach => {
            format!("unpause the guest (xl unpause {domid}), then try again")
        }
        Hint::Unpause(domid) => format!(
            "the device is left closing: unpause the guest (xl unpause {domid}) and detach again, or detach with \
             --force"
        ),
        Hint::RemoveAgainOrForce if failure.observed.guest == Condition::Running => {
            "the device is left closing: free it in the guest and detach again, or detach with --force"
                .to_owned()
        }
        Hint::RemoveAgainOrForce => {
            "the device is left closing: unpause the guest or free the device in it and \
                                     detach again, or detach with --force"
                .to_owned()
        }
        Hint::ReadKernelLog => "the kernel log of the backend's domain (dmesg) tells why".to_owned(),
        Hint::NameScript => "name a script that exists and is executable".to_owned(),
        Hint::RestoreScript(script) => format!("put {} back and {}", quoted(&script), again(failure)),
        Hint::MendScript { script, fault } => {
            format!("{}; then {}", mend(&quoted(&script), fault), again(failure))
        }
        Hint::MendLocks => "see that the directory for locks belongs to this user, and that its file system \
                            has room and can be written (df, mount)"
            .to_owned(),
        Hint::InstallProgram => {
            "the script's last line names the program: install it, or make it executable \
                                 (a name that ends with \\r comes of the line ends of DOS)"
                .to_owned()
        }
        Hint::FreeTarget => {
            "free it where it is in use; a disk that only readers share can be attached read-only".to_owned()
        }
        Hint::GiveScriptTime(_) => "run the script by hand, or give it longer with --script-timeout; \
                                    the stock scripts log to /var/log/xen/xen-hotplug.log"
            .to_owned(),
        Hint::DoAsTold => "do what is told above, and try again; --hotplug script runs the script instead".to_owned(),
        Hint::ReadScriptLog => "mend what the script reports, and try again; the stock scripts also log to \
                                /var/log/xen/xen-hotplug.log"
            .to_owned(),
        Hint::SeeWhoElse => "see what else works on the guest's devices, then try again".to_owned(),
        Hint::Store(hint) => hint.to_owned(),
        Hint::RemoveOrInsist(kind) => format!(
            "detach the device, which runs the script when nobody uses it any more ({}), or run it all the same with --force",
            detach(failure, kind)
        ),
        Hint::UndoOrInsist(kind) => {
            let device = failure.device.devid.map_or_else(|| "DEVID".to_owned(), kind.info().id_name);
            format!(
                "undo that first (xendev hotplug run {} {kind} {device} remove), or run it all the same with --force",
                failure.device.fe
            )
        }
        Hint::RunAgain => "run it again; xendev hotplug run with -N tells what it is given".to_owned(),
        Hint::AddWithoutConfig if matches!(failure.operation, Operation::Insert | Operation::Eject) => {
            "try again once that is mended, or with --no-record; then the guest has the earlier medium when xl reboots, \
             restores or migrates it"
                .to_owned()
        }
        Hint::AddWithoutConfig => {
            "try again once that is mended, or attach it with --no-record; then it is gone when xl reboots, \
                                   restores or migrates the guest"
                .to_owned()
        }
        Hint::MendRunner => "report this as a bug".to_owned(),
        Hint::AllowMoreTime if failure.operation == Operation::Detach => {
            "run it again with a longer --deadline: it goes on where it ended".to_owned()
        }
        Hint::AllowMoreTime if failure.warnings.is_empty() => {
            "nothing is left of it; give all of them longer with --deadline".to_owned()
        }
        Hint::AllowMoreTime => {
            "see the warnings for what may be left, and give all of them longer with --deadline".to_owned()
        }
        Hint::RemoveAgain => {
            "detach it again to go on; if it had begun to close, it is left closing".to_owned()
        }
        Hint::AddAgain if failure.warnings.is_empty() => "nothing is left of it; attach it again".to_owned(),
        Hint::AddAgain => {
            "see the warnings for what may be left; if the device is still listed, detach it".to_owned()
        }
        _ if failure.operation == Operation::Attach => "attach it again".to_owned(),
        _ if failure.operation == Operation::Script => "run it again".to_owned(),
        _ => "detach it again".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_to_do_about_a_script_can_be_pasted() {
        let dos = mend(&quoted("/etc/xen/scripts/block-x"), SpawnFault::LineEnds);
        assert!(
            dos.ends_with(r"dos2unix /etc/xen/scripts/block-x, or sed -i 's/\r$//' /etc/xen/scripts/block-x"),
            "{dos}"
        );
        let plain = mend(&quoted("/srv/my scripts/it's"), SpawnFault::NotExecutable);
        assert!(plain.contains(r"chmod +x '/srv/my scripts/it'\''s'"), "{plain}");
    }
}
