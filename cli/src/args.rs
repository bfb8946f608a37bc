//! The command line.

use std::env;
use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{ArgAction, Args as ClapArgs, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use xen_aodevice::{Hotplug, Limits};
use xen_devstate::XenbusState;

use crate::devd::DevdArgs;
use crate::kinds::OfKind;
use crate::options::{Attaching, ChangingMedium, Detaching, Others, Recording, letting_go, seconds};
use crate::output::Role;
use crate::scripts::OfScripts;
use crate::world::StoreChoice;
use crate::{pci, usb};

/// Adds, removes, lists and waits for the paravirtual devices of Xen domains.
///
/// Exit status: 0 done, perhaps with warnings on standard error; 1 failed; 2 usage; 3 timed out;
/// 4 cancelled by a signal (HUP, INT, QUIT or TERM). The first signal cancels and cleans up; a
/// second one gives that up.
#[derive(Debug, Parser)]
#[command(
    name = "xendev",
    version,
    max_term_width = 100,
    subcommand_required = true,
    arg_required_else_help = true
)]
struct Global {
    #[command(flatten)]
    common: Common,
    /// Options of xl that have no effect here: it takes no lock to force, and its progress has no carriage
    /// returns or time stamps.
    #[arg(short = 'f', short_aliases = ['t', 'T'], hide = true, action = ArgAction::Count)]
    of_xl: u8,
}

/// What was said.
#[derive(Debug)]
pub(crate) struct Args {
    pub(crate) common: Common,
    pub(crate) command: Command,
}

impl Args {
    /// Reads the command line of this process.
    ///
    /// To make all commands takes longer than most of them work. So those are made whose names are there, and all of
    /// them for what is not understood so: a name that is not written out, a request for help, a mistake.
    pub(crate) fn parse() -> Result<Self, clap::Error> {
        let words: Vec<_> = env::args_os().collect();
        let commands = Command::augment_subcommands(clap::Command::new(""));
        let said =
            commands.get_subcommands().filter(|command| words.iter().any(|word| word == command.get_name()));
        let said = Global::command().subcommands(said.cloned());
        Self::read(said, &words).or_else(|_| Self::read(Self::whole(), &words))
    }

    fn whole() -> clap::Command {
        Command::augment_subcommands(Global::command()).infer_subcommands(true)
    }

    fn read(command: clap::Command, words: &[OsString]) -> Result<Self, clap::Error> {
        let matches = command.try_get_matches_from(words)?;
        let common = Global::from_arg_matches(&matches)?.common;
        Ok(Self { common, command: Command::from_arg_matches(&matches)? })
    }
}

/// What can be said before and after every command.
#[derive(Debug, ClapArgs)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Common {
    /// The store: a socket, or `embedded` for one in this process with a simulated guest 1
    /// [default: $XENSTORED_PATH, $XENSTORED_RUNDIR/socket or /run/xenstored/socket]
    #[arg(long, global = true, value_name = "PATH|embedded", default_value_t)]
    #[arg(hide_default_value = true)]
    pub(crate) store: StoreChoice,
    /// How the work of hotplug scripts is done: by native handlers where they are proven to do what the scripts of this
    /// host do, else by the scripts; always by handlers; or always by the scripts
    #[arg(long, global = true, value_name = "HOW", value_parser = hotplug(), default_value = "auto")]
    pub(crate) hotplug: Hotplug,
    /// The driver domains run no daemon that runs hotplug scripts (xl devd, xendev devd): an attach through one is done
    /// when its kernel has taken the device up, and a detach when that has closed it, whatever becomes of the script
    #[arg(long, global = true)]
    pub(crate) no_devd: bool,
    /// Print what would be attached, as xl -N does, inserted, or run by hand, and change nothing. With --json also everything
    /// that would be written and run
    #[arg(short = 'N', long, global = true)]
    pub(crate) dry_run: bool,
    /// Tell every step on standard error
    #[arg(short, long, global = true, action = ArgAction::Count, conflicts_with = "quiet")]
    pub(crate) verbose: u8,
    /// Tell nothing but errors
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
    /// Print the outcome as JSON, one value
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Exit with 1 instead of 3 on a timeout, as xl does
    #[arg(long, global = true)]
    pub(crate) compat_exit: bool,
}

fn hotplug() -> impl TypedValueParser<Value = Hotplug> {
    PossibleValuesParser::new(["auto", "native", "script"]).map(|how| match &*how {
        "native" => Hotplug::Native,
        "script" => Hotplug::Script,
        _ => Hotplug::Auto,
    })
}

// The options of a command are only made if it was said. What is made then has the last word on what the command is
// about, so that is told here, and nothing is told of structures that hold options.
#[derive(Debug, Subcommand)]
#[command(defer = true)]
pub(crate) enum Command {
    /// Add a disk to a guest
    BlockAttach(AttachArgs),
    /// Remove a disk from a guest.
    ///
    /// Without --force the guest is asked, and if it does not let go in time the disk stays, closing,
    /// to be detached again later. That the guest lets go does not mean that nothing in it used the
    /// disk: Linux guests were seen to let go of a disk that was held open. Unmount it first.
    BlockDetach(BlockDetachArgs),
    /// List the disks of guests
    BlockList(ListArgs),
    /// Put another medium into a CD-ROM drive of an HVM guest.
    ///
    /// The medium that is there is ejected first. A guest that has locked the tray, as Linux does while the medium is
    /// mounted or read, is asked to open it. If QEMU does not take the new medium, the drive stays empty.
    CdInsert(CdInsertArgs),
    /// Take the medium out of a CD-ROM drive of an HVM guest.
    ///
    /// A guest that has locked the tray, as Linux does while the medium is mounted or read, is asked to open it.
    CdEject(CdEjectArgs),
    /// Add a network interface to a guest
    NetworkAttach(NetworkAttachArgs),
    /// Remove a network interface from a guest
    NetworkDetach(NetworkDetachArgs),
    /// List the network interfaces of guests
    NetworkList(ListArgs),
    /// Add all devices that a domain's configuration file lists.
    ///
    /// The file is one of xl create (xl.cfg(5)), whose settings of other subjects are passed over. Disks come first, then
    /// framebuffers with their keyboards, then interfaces; those of one kind are added side by side, with ids in the order
    /// of the file. All of it is checked before anything is written: that every device can be understood and served, and
    /// that none is there already. If one fails after that, or on a signal, those that were added are removed again. With
    /// -N it only checks, and prints what each would be.
    AttachAll(AttachAllArgs),
    /// List all devices of guests, of every kind
    List(ListArgs),
    #[command(flatten)]
    OfKind(OfKind),
    /// Give a USB device of the host to a guest.
    ///
    /// It goes into the port that is named, or the first that is free; a guest without one gets a controller. Controllers of
    /// the types qusb and pv are served: for qusb the device model opens the device, and its log alone tells if it cannot.
    UsbdevAttach(usb::AttachArgs),
    /// Take a USB device of the host from a guest.
    ///
    /// The guest is not asked, and sees it unplugged; unmount it first.
    UsbdevDetach(usb::DetachArgs),
    /// List the USB controllers of a guest, and what is in their ports
    UsbList(GuestArgs),
    /// Give a PCI function of the host to a PV guest.
    ///
    /// This version checks all that it can see, and then refuses: it makes none of the hypercalls that assign a function.
    PciAttach(pci::AttachArgs),
    /// Take a PCI function of the host from a guest.
    ///
    /// Without --force a guest that does not let go in time keeps the function, closing. This version checks all that it can
    /// see, and then refuses: it makes none of the hypercalls that take a function back.
    PciDetach(pci::DetachArgs),
    /// List the PCI functions of a guest
    PciList(GuestArgs),
    /// Remove all devices of a domain that goes, and end its device model.
    ///
    /// The guest is not asked. What the device model (QEMU) serves is told to close first; then the device model is
    /// asked to end, and killed if it does not within --timeout. When this is done no process of it has an image open.
    /// With -N it only tells which devices there are.
    DestroyDevices(DestroyArgs),
    /// Run a device's hotplug script by hand, or check a script against its contract
    #[command(subcommand)]
    Hotplug(OfScripts),
    /// Serve the devices of a driver domain, as xl devd does.
    ///
    /// It runs their hotplug scripts, and says in the store how they ended. It goes to the background, and is ready when this
    /// returns. A device works, or its backend's hotplug-status and
    /// hotplug-error say why not; a device that goes is cleaned up after. It can be ended and started again at any time:
    /// devices stay attached, and what happened meanwhile is caught up on. SIGTERM lets running scripts come to their ends.
    Devd(DevdArgs),
    /// Wait until a device's end gets to a state
    Wait(WaitArgs),
    /// Print the state machines of attaching and detaching as diagrams.
    ///
    /// They are drawn from the machines themselves, by walking them: every state, what is asked for in
    /// it, and what leads from it where.
    Machine(MachineArgs),
    /// Show the main job on an embedded store: attach and detach a disk and a NIC of a
    /// simulated guest, and prove that nothing is left
    Demo(DemoArgs),
    /// Serve an empty store of its own on a Unix socket until interrupted.
    ///
    /// Every program that speaks the xenstore protocol over a socket can use it, with XENSTORED_PATH
    /// set to the socket. Whoever may connect may do everything, so the file mode is the protection.
    Store(StoreArgs),
}

impl Command {
    pub(crate) fn role_of_stdout(&self) -> Role {
        match self {
            Self::BlockList(_)
            | Self::NetworkList(_)
            | Self::List(_)
            | Self::UsbList(_)
            | Self::PciList(_)
            | Self::Machine(_)
            | Self::Demo(_) => Role::Purpose,
            Self::Devd(args) => args.role_of_stdout(),
            Self::OfKind(command) => command.role_of_stdout(),
            Self::Hotplug(command) => command.role_of_stdout(),
            _ => Role::Report,
        }
    }

    /// Whether `-N` can be said with it.
    pub(crate) fn has_dry_run(&self) -> bool {
        match self {
            Self::AttachAll(_)
            | Self::BlockAttach(_)
            | Self::CdInsert(_)
            | Self::CdEject(_)
            | Self::NetworkAttach(_)
            | Self::UsbdevAttach(_)
            | Self::PciAttach(_)
            | Self::DestroyDevices(_) => true,
            Self::OfKind(command) => command.has_dry_run(),
            Self::Hotplug(command) => command.has_dry_run(),
            _ => false,
        }
    }
}

#[derive(Debug, ClapArgs)]
pub(crate) struct AttachArgs {
    /// The guest, by domid or name
    pub(crate) domain: String,
    /// The disk, as in xl-disk-configuration(5): `/srv/d.img,raw,xvda,w` or
    /// `format=raw,vdev=xvda,access=rw,target=/srv/d.img`
    #[arg(required = true, value_name = "DISK-SPEC")]
    pub(crate) disk: Vec<String>,
    #[command(flatten)]
    pub(crate) attaching: Attaching,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct NetworkAttachArgs {
    /// The guest, by domid or name
    pub(crate) domain: String,
    /// The interface, as in xl-network-configuration(5): `bridge=xenbr0`, `mac=...`,
    /// `script=...`, as words or with commas between them
    #[arg(value_name = "KEY=VALUE")]
    pub(crate) nic: Vec<String>,
    #[command(flatten)]
    pub(crate) attaching: Attaching,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct AttachAllArgs {
    /// The guest, by domid or name
    pub(crate) domain: String,
    /// The configuration file
    pub(crate) file: PathBuf,
    /// Leave out devices of kinds that cannot be attached yet, instead of refusing the file
    #[arg(long)]
    pub(crate) skip_unsupported: bool,
    /// Keep what was added when another device fails
    #[arg(long)]
    pub(crate) keep: bool,
    /// How long all of it may take
    #[arg(long, value_name = "SECONDS", value_parser = seconds, allow_negative_numbers = true, default_value = "inf")]
    pub(crate) deadline: Duration,
    /// How many devices are added at one time
    #[arg(long, value_name = "N", default_value = "16")]
    pub(crate) at_once: NonZeroUsize,
    #[command(flatten)]
    pub(crate) attaching: Attaching,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct BlockDetachArgs {
    /// Do not ask the guest
    #[arg(short, long)]
    pub(crate) force: bool,
    /// The guest, by domid or name
    pub(crate) domain: String,
    /// The disk, by name (xvda) or device id (51712)
    #[arg(value_name = "DEVID")]
    pub(crate) device: String,
    #[command(flatten)]
    pub(crate) detaching: Detaching,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct NetworkDetachArgs {
    /// The guest, by domid or name
    pub(crate) domain: String,
    /// The interface, by device id or MAC address
    #[arg(value_name = "DEVID|MAC")]
    pub(crate) device: String,
    #[command(flatten)]
    pub(crate) detaching: Detaching,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum ImageFormat {
    Raw,
    Qcow,
    Qcow2,
    Qed,
    Vhd,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct CdInsertArgs {
    /// The guest, by domid or name
    pub(crate) domain: String,
    /// The drive, by name (hdc) or device id (5632)
    pub(crate) vdev: String,
    /// The image: the absolute path of a file or block device. An empty one leaves the drive empty
    pub(crate) target: String,
    /// The format of the image
    #[arg(long, value_enum, default_value = "raw", value_name = "FORMAT")]
    pub(crate) format: ImageFormat,
    #[command(flatten)]
    pub(crate) changing: ChangingMedium,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct CdEjectArgs {
    /// The guest, by domid or name
    pub(crate) domain: String,
    /// The drive, by name (hdc) or device id (5632)
    pub(crate) vdev: String,
    #[command(flatten)]
    pub(crate) changing: ChangingMedium,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct DestroyArgs {
    /// The domain, by domid or name; one that is gone, by its domid
    pub(crate) domain: String,
    /// How long each backend, and the device model, may take to let go
    #[arg(long, value_name = "SECONDS", value_parser = seconds, allow_negative_numbers = true, default_value = "10")]
    timeout: Duration,
    /// How long a hotplug script may take
    #[arg(long, value_name = "SECONDS", value_parser = seconds, allow_negative_numbers = true, default_value = "40")]
    script_timeout: Duration,
    /// How long all of it may take
    #[arg(long, value_name = "SECONDS", value_parser = seconds, allow_negative_numbers = true, default_value = "inf")]
    pub(crate) deadline: Duration,
    /// How many devices are removed at one time
    #[arg(long, value_name = "N", default_value = "16")]
    pub(crate) at_once: NonZeroUsize,
    #[command(flatten)]
    others: Others,
    #[command(flatten)]
    pub(crate) recording: Recording,
}

impl DestroyArgs {
    pub(crate) fn limits(&self) -> Limits {
        letting_go(self.timeout, self.script_timeout, &self.others)
    }

    /// Whether the owners of operations that are under way are asked to cancel them.
    pub(crate) fn take_over(&self) -> bool {
        self.others.take_over
    }
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ListArgs {
    /// The guests, by domid or name
    #[arg(required = true, value_name = "DOMAIN")]
    pub(crate) domains: Vec<String>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct GuestArgs {
    /// The guest, by domid or name
    pub(crate) domain: String,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct WaitArgs {
    /// A device's directory or its `state` node, such as /local/domain/1/device/vbd/51712
    pub(crate) path: String,
    /// The states that will do, by name or number: 4, Connected
    #[arg(required = true, value_name = "STATE")]
    pub(crate) states: Vec<XenbusState>,
    /// How long to wait
    #[arg(long, value_name = "SECONDS", value_parser = seconds, allow_negative_numbers = true, default_value = "10")]
    pub(crate) timeout: Duration,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Language {
    /// Mermaid, which shows in Markdown
    Mermaid,
    /// Graphviz: `xendev machine add --format dot | dot -Tsvg`
    Dot,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct MachineArgs {
    /// Which machine [default: all, one after the other]
    #[arg(value_parser = PossibleValuesParser::new(xen_aodevice::diagram::NAMES))]
    pub(crate) machine: Option<String>,
    /// In which language
    #[arg(long, value_enum, default_value = "mermaid", value_name = "LANGUAGE")]
    pub(crate) format: Language,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct DemoArgs {
    /// How long each simulated driver and script takes, so that an eye can follow
    #[arg(long, value_name = "SECONDS", value_parser = seconds, allow_negative_numbers = true, default_value = "0.05")]
    pub(crate) latency: Duration,
}

fn mode(text: &str) -> Result<u32, String> {
    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777);
    mode.ok_or_else(|| "give up to three octal digits, such as 660".to_owned())
}

#[derive(Debug, ClapArgs)]
pub(crate) struct StoreArgs {
    /// Where to listen. A socket that nobody serves any more is replaced
    #[arg(long, value_name = "PATH")]
    pub(crate) socket: PathBuf,
    /// Serve the rings of domains too, under a stand-in for the hypervisor: a folder with the
    /// files domN, ringN and evtchn, as in the documentation of xs_store::TestDomains
    #[arg(long, value_name = "DIR")]
    pub(crate) test_domains: Option<PathBuf>,
    /// File mode of the socket, in octal
    #[arg(long, value_name = "MODE", value_parser = mode, default_value = "0600")]
    pub(crate) mode: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Args::whole().debug_assert();
    }
}
