//! The kinds of device whose commands are alike: `vtpm-attach`, `vtpm-detach`, `vtpm-list`. One more of them is an
//! entry of [`KINDS`], and a table in `table.rs`.

use clap::{ArgMatches, Args, Command, FromArgMatches, Subcommand, error::ErrorKind};
use xen_aodevice::{
    Device, Force, Kind, SpecError, console, p9, pvcalls, usbctrl, vdispl, virtio, vkb, vsnd, vtpm,
};

use crate::args::{Common, ListArgs};
use crate::devices::{self, OtherName};
use crate::options::{Attaching, Detaching};
use crate::output::Role;
use crate::problem::{Code, Exit, Problem};
use crate::world::World;

/// What the commands of a kind need to know of it.
#[derive(Debug)]
struct Commands {
    kind: Kind,
    /// How its commands begin.
    name: &'static str,
    attach: (&'static str, &'static str),
    detach: (&'static str, &'static str),
    /// `None` if it has one of its own.
    list: Option<(&'static str, &'static str)>,
    /// How a description is said, for the help.
    words: &'static str,
    /// A description that could be said.
    example: &'static str,
    parse: fn(&[String]) -> Result<Device, SpecError>,
    /// By what a device can be named besides its id.
    other: Option<OtherName>,
}

const KINDS: &[Commands] = &[
    Commands {
        kind: Kind::Console,
        name: "channel",
        attach: ("channel-attach", "Add a channel to a guest that is being created, with --wait tree"),
        detach: ("channel-detach", "Remove a channel from a guest"),
        list: Some(("channel-list", "List the channels of guests")),
        words: "The channel: `name=`, `connection=` (pty or socket), `path=`, as words or with commas between them, as in \
                channel=[...] of xl.cfg(5)",
        example: "name=org.example.agent connection=pty",
        parse: |words| console::parse(words).map(Device::Channel),
        other: Some(OtherName {
            key: "channel_name",
            what: "its name",
            is: |text| text.parse::<u32>().is_err(),
            read: |text| Ok(text.to_owned()),
        }),
    },
    Commands {
        kind: Kind::P9,
        name: "p9",
        attach: ("p9-attach", "Add a file system (9pfs) to a guest"),
        detach: ("p9-detach", "Remove a file system from a guest"),
        list: Some(("p9-list", "List the file systems of guests")),
        words: "The file system: `tag=`, `path=`, `security_model=none`, `type=` (qemu or xen_9pfsd), as words or with \
                commas between them, as in p9=[...] of xl.cfg(5)",
        example: "tag=share path=/srv/share",
        parse: |words| p9::parse(words).map(Device::P9),
        other: None,
    },
    Commands {
        kind: Kind::Vusb,
        name: "usbctrl",
        attach: ("usbctrl-attach", "Add a USB controller to a guest"),
        detach: ("usbctrl-detach", "Remove a USB controller from a guest"),
        list: None,
        words: "The controller: `type=` (qusb or pv), `version=` (1 or 2), `ports=`, as words or with commas between them, \
                as in usbctrl=[...] of xl.cfg(5)",
        example: "type=qusb version=2 ports=8",
        parse: |words| usbctrl::parse(words).map(Device::UsbCtrl),
        other: None,
    },
    Commands {
        kind: Kind::Vtpm,
        name: "vtpm",
        attach: ("vtpm-attach", "Add a trusted platform module to a guest"),
        detach: ("vtpm-detach", "Remove a trusted platform module from a guest"),
        list: Some(("vtpm-list", "List the trusted platform modules of guests")),
        words: "The module: `backend=`, `uuid=`, `devid=`, as words or with commas between them",
        example: "uuid=0a1b2c3d-0000-4000-8000-0123456789ab",
        parse: |words| vtpm::parse(words).map(Device::Vtpm),
        other: Some(OtherName {
            key: "uuid",
            what: "a UUID",
            is: |text| text.contains('-'),
            read: |text| text.parse::<vtpm::Uuid>().map(|uuid| uuid.to_string()).map_err(str::to_owned),
        }),
    },
    Commands {
        kind: Kind::Vkbd,
        name: "vkb",
        attach: ("vkb-attach", "Add a keyboard with a pointer to a guest"),
        detach: ("vkb-detach", "Remove a keyboard with a pointer from a guest"),
        list: Some(("vkb-list", "List the keyboards with pointers of guests")),
        words: "The keyboard: `backend-type=qemu` or `backend-type=linux`, and `backend=`, `devid=`, `unique-id=`, \
                `feature-disable-keyboard=`, `feature-disable-pointer=`, `feature-abs-pointer=`, `feature-raw-pointer=`, \
                `feature-multi-touch=` (0 or 1), `multi-touch-width=`, `multi-touch-height=`, \
                `multi-touch-num-contacts=`, `width=`, `height=`, as words or with commas between them",
        example: "backend-type=linux unique-id=T:1 feature-abs-pointer=1 width=800 height=600",
        parse: |words| vkb::parse(words).map(Device::Vkb),
        other: None,
    },
    Commands {
        kind: Kind::Vdispl,
        name: "vdispl",
        attach: ("vdispl-attach", "Add a display to a guest"),
        detach: ("vdispl-detach", "Remove a display from a guest"),
        list: Some(("vdispl-list", "List the displays of guests")),
        words: "The display: `connectors='ID:WIDTHxHEIGHT;...'`, and `be-alloc=` (0 or 1), `backend=`, `devid=`, as words \
                or with commas between them",
        example: "'connectors=id0:800x600;id1:1024x768'",
        parse: |words| vdispl::parse(words).map(Device::Vdispl),
        other: None,
    },
    Commands {
        kind: Kind::Vsnd,
        name: "vsnd",
        attach: ("vsnd-attach", "Add a sound card to a guest"),
        detach: ("vsnd-detach", "Remove a sound card from a guest"),
        list: Some(("vsnd-list", "List the sound cards of guests")),
        words: "The card: `card` with `short-name=`, `long-name=`, `backend=`, `devid=`, each `pcm` with `name=`, and each \
                `stream` of it with `unique-id=` and `type=` (p or c); all of them with `sample-rates=`, \
                `sample-formats=` (with ; between several), `channels-min=`, `channels-max=`, `buffer-size=`, as words or \
                with commas between them",
        example: "'card, short-name=Main' 'pcm, name=dev1' 'stream, unique-id=0, type=p'",
        parse: |words| vsnd::parse(words).map(Device::Vsnd),
        other: None,
    },
    Commands {
        kind: Kind::Pvcalls,
        name: "pvcalls",
        attach: ("pvcalls-attach", "Let a guest use sockets of the backend's domain (PV Calls)"),
        detach: ("pvcalls-detach", "Take the sockets of the backend's domain from a guest"),
        list: Some(("pvcalls-list", "List through which devices guests use sockets")),
        words: "The device: `backend=`, `devid=`, as words or with commas between them",
        example: "backend=0",
        parse: |words| pvcalls::parse(words).map(Device::Pvcalls),
        other: None,
    },
    Commands {
        kind: Kind::Virtio,
        name: "virtio",
        attach: ("virtio-attach", "Add a virtio device that is no disk to a guest"),
        detach: ("virtio-detach", "Remove a virtio device that is no disk from a guest"),
        list: Some(("virtio-list", "List the virtio devices of guests that are no disks")),
        words: "The device: `type=virtio,deviceN`, `irq=`, `base=`, which the guest was made with, and `transport=mmio`, \
                `grant_usage=` (0 or 1), `backend=`, `devid=`, as words or with commas between them",
        example: "type=virtio,device22 irq=33 base=0x2000000",
        parse: |words| virtio::parse(words).map(Device::Virtio),
        other: None,
    },
];

/// How the commands of a kind begin.
pub(crate) fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::Vbd | Kind::VirtioDisk => "block",
        Kind::Vif => "network",
        kind => KINDS.iter().find(|of| of.kind == kind).map_or(kind.name(), |of| of.name),
    }
}

#[derive(Debug, Args)]
struct AttachArgs {
    /// The guest, by domid or name
    domain: String,
    /// What it is
    #[arg(value_name = "KEY=VALUE")]
    words: Vec<String>,
    #[command(flatten)]
    attaching: Attaching,
}

#[derive(Debug, Args)]
struct DetachArgs {
    /// The guest, by domid or name
    domain: String,
    /// The device, by its id
    #[arg(value_name = "DEVID")]
    device: String,
    #[command(flatten)]
    detaching: Detaching,
}

/// A command for devices of one of [`KINDS`].
#[derive(Debug)]
pub(crate) struct OfKind(&'static Commands, Act);

#[derive(Debug)]
enum Act {
    Attach(AttachArgs),
    Detach(DetachArgs),
    List(ListArgs),
}

impl Commands {
    /// That with a command of this name.
    fn of(command: &str) -> Option<&'static Self> {
        KINDS.iter().find(|of| of.names().any(|name| name == command))
    }

    fn names(&self) -> impl Iterator<Item = &'static str> {
        [self.attach.0, self.detach.0].into_iter().chain(self.list.map(|list| list.0))
    }

    fn subcommands(&self) -> impl Iterator<Item = Command> {
        let attach = (self.attach, attach_args as fn(Command) -> Command);
        let detach = (self.detach, detach_args as fn(Command) -> Command);
        let list = self.list.map(|list| (list, ListArgs::augment_args as fn(Command) -> Command));
        let command = |((name, about), args)| Command::new(name).about(about).defer(args);
        [attach, detach].into_iter().chain(list).map(command)
    }
}

fn attach_args(command: Command) -> Command {
    let words = Commands::of(command.get_name()).map_or("", |of| of.words);
    AttachArgs::augment_args(command).mut_arg("words", |arg| arg.help(words))
}

fn detach_args(command: Command) -> Command {
    let other = Commands::of(command.get_name()).and_then(|of| of.other.as_ref());
    let command = DetachArgs::augment_args(command);
    match other {
        Some(other) => {
            command.mut_arg("device", |arg| arg.help(format!("The device, by its id or {}", other.what)))
        }
        None => command,
    }
}

impl FromArgMatches for OfKind {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let none = || clap::Error::new(ErrorKind::MissingSubcommand);
        let (name, matches) = matches.subcommand().ok_or_else(none)?;
        let of = Commands::of(name).ok_or_else(none)?;
        let act = match name {
            name if name == of.attach.0 => Act::Attach(AttachArgs::from_arg_matches(matches)?),
            name if name == of.detach.0 => Act::Detach(DetachArgs::from_arg_matches(matches)?),
            _ => Act::List(ListArgs::from_arg_matches(matches)?),
        };
        Ok(Self(of, act))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Subcommand for OfKind {
    fn augment_subcommands(command: Command) -> Command {
        command.subcommands(KINDS.iter().flat_map(Commands::subcommands))
    }

    fn augment_subcommands_for_update(command: Command) -> Command {
        Self::augment_subcommands(command)
    }

    fn has_subcommand(name: &str) -> bool {
        Commands::of(name).is_some()
    }
}

impl OfKind {
    pub(crate) fn role_of_stdout(&self) -> Role {
        if matches!(self.1, Act::List(_)) { Role::Purpose } else { Role::Report }
    }

    /// Whether `-N` can be said with it.
    pub(crate) fn has_dry_run(&self) -> bool {
        matches!(self.1, Act::Attach(_))
    }

    pub(crate) async fn run(&self, common: &Common) -> Result<Exit, Problem> {
        let Self(of, act) = self;
        match act {
            Act::Attach(args) => attach(common, of, args).await,
            Act::Detach(args) => detach(common, of, args).await,
            Act::List(args) => devices::list(common, args, Some(of.kind)).await,
        }
    }
}

async fn attach(common: &Common, of: &Commands, args: &AttachArgs) -> Result<Exit, Problem> {
    let device = (of.parse)(&args.words).map_err(|error| {
        let tried = format!("cannot understand the device {:?}", args.words.join(" "));
        let hint = format!("say for example {}; xendev {} --help has all of it", of.example, of.attach.0);
        Problem::new(Code::BadDevice, tried, error, hint)
    })?;
    devices::attach(common, &args.domain, &device, &args.attaching).await
}

async fn detach(common: &Common, of: &Commands, args: &DetachArgs) -> Result<Exit, Problem> {
    let world = World::open(common).await?;
    let fe = devices::domain_or_id(&world.client, &args.domain).await?;
    let devid = devices::devid(&world, (fe, of.kind), &args.device, of.other.as_ref()).await?;
    devices::detach(common, &world, fe, (of.kind, devid), Force::AfterTimeout, &args.detaching).await
}
