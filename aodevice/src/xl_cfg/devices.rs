//! The devices that a domain's configuration file lists. One kind of them is a line in [`KEYS`].
//!
//! Source: xl.cfg(5), whose settings of other subjects are passed over: they are for the domain's creation.

use std::collections::HashMap;
use std::fmt;

use thiserror::Error;

use super::{Item, Settings, Value};
use crate::vif::{self, Defaults};
use crate::{
    Attachment, Device, Kind, console, p9, pcidev, pvcalls, usbctrl, usbdev, vbd, vdispl, vfb, virtio, vkb,
    vsnd, vtpm,
};

/// What an element of a list is: the devices that it makes, or what is wrong with it.
type Reader = fn(&Value, &Context<'_>) -> Result<Read, String>;

/// The keys of a file that list devices, in the order in which a domain is brought up, and how an element of each is
/// read; `None` if no such device can be added yet.
const KEYS: [(&str, Option<Reader>); 15] = [
    ("disk", Some(|element, _| one(Device::Vbd(vbd::parse(&[text(element)?]).map_err(words)?)))),
    ("channel", Some(|element, _| one(Device::Channel(console::parse(&[text(element)?]).map_err(words)?)))),
    ("pvcalls", Some(|element, _| one(Device::Pvcalls(pvcalls::parse(&[text(element)?]).map_err(words)?)))),
    ("virtio", Some(|element, _| one(Device::Virtio(virtio::parse(&[text(element)?]).map_err(words)?)))),
    ("vfb", Some(framebuffer)),
    ("vkb", Some(|element, _| one(Device::Vkb(vkb::parse(&[text(element)?]).map_err(words)?)))),
    ("vif", Some(interface)),
    ("vtpm", Some(|element, _| one(Device::Vtpm(vtpm::parse(&[text(element)?]).map_err(words)?)))),
    ("usbctrl", Some(|element, _| one(Device::UsbCtrl(usbctrl::parse(&[text(element)?]).map_err(words)?)))),
    ("usbdev", Some(|element, _| one(Attachment::UsbDev(usbdev::parse(&[text(element)?]).map_err(words)?)))),
    ("pci", Some(pci_function)),
    ("dtdev", None),
    ("vdispl", Some(|element, _| one(Device::Vdispl(vdispl::parse(&[text(element)?]).map_err(words)?)))),
    ("vsnd", Some(sound_card)),
    ("p9", Some(|element, _| one(Device::P9(p9::parse(&[text(element)?]).map_err(words)?)))),
];

/// What elements have that say nothing of it.
struct Context<'a> {
    /// Interfaces.
    vif: &'a Defaults,
    /// PCI functions, as options of a specification.
    pci: String,
}

/// What an element makes.
#[derive(Debug)]
struct Read {
    attachments: Vec<Attachment>,
    notices: Vec<String>,
}

fn one(attachment: impl Into<Attachment>) -> Result<Read, String> {
    Ok(Read { attachments: vec![attachment.into()], notices: Vec::new() })
}

fn words(error: impl fmt::Display) -> String {
    error.to_string()
}

/// The text that an element is. A file's bytes that are not UTF-8 have been replaced by then.
fn text(element: &Value) -> Result<&str, String> {
    match element.as_text() {
        None => Err("it is a list where a text must be".to_owned()),
        Some(text) if text.contains(char::REPLACEMENT_CHARACTER) => Err("it is not UTF-8".to_owned()),
        Some(text) => Ok(text),
    }
}

fn interface(element: &Value, context: &Context<'_>) -> Result<Read, String> {
    let arguments = [text(element)?];
    let nic = vif::parse(&arguments).map_err(words)?.or(context.vif);
    let notices = vif::notices(&arguments).iter().map(ToString::to_string).collect();
    Ok(Read { attachments: vec![Device::Vif(nic).into()], notices })
}

fn pci_function(element: &Value, context: &Context<'_>) -> Result<Read, String> {
    one(Attachment::PciDev(pcidev::parse_with(text(element)?, &context.pci).map_err(words)?))
}

/// A sound card, which is a list itself: of the card, its PCM devices and their streams.
fn sound_card(element: &Value, _: &Context<'_>) -> Result<Read, String> {
    let Value::List(parts) = element else { return Err("it is no list of a card and its parts".to_owned()) };
    let parts = parts.iter().map(|part| text(&part.value)).collect::<Result<Vec<_>, _>>()?;
    one(Device::Vsnd(vsnd::parse(&parts).map_err(words)?))
}

/// A framebuffer, which comes with a keyboard.
fn framebuffer(element: &Value, _: &Context<'_>) -> Result<Read, String> {
    let framebuffer = vfb::parse(text(element)?).map_err(words)?;
    let devices = [Device::Vfb(framebuffer), Device::Vkb(vkb::Vkb::default())];
    Ok(Read { attachments: devices.map(Attachment::from).into(), notices: Vec::new() })
}

/// Where a list, or an element of one, stands in its file; as in `12: vif[1]`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Place {
    /// The line that it begins in, from 1.
    pub line: usize,
    /// The setting.
    pub key: &'static str,
    /// Which element of it, from 0.
    pub index: Option<usize>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { line, key, index } = self;
        write!(f, "{line}: {key}")?;
        index.map_or(Ok(()), |index| write!(f, "[{index}]"))
    }
}

/// A device of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Entry {
    /// Where it stands.
    pub place: Place,
    /// What is to be attached.
    pub attachment: Attachment,
    /// What is to be told of it though it is good.
    pub notices: Vec<String>,
}

/// The devices of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Devices {
    /// Those that can be added, in the order of [`Kind::BRING_UP`], USB devices of the host behind the controllers. Within
    /// a kind they are in the order of the file.
    pub entries: Vec<Entry>,
    /// The lists of those that cannot be added yet.
    pub unsupported: Vec<Place>,
}

/// What is wrong with a device of a file.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{place}: {problem}")]
#[non_exhaustive]
pub struct Refusal {
    /// Where it stands.
    pub place: Place,
    /// What is wrong.
    pub problem: String,
}

/// The settings that are options of PCI functions which do not say them, and their names there.
const PCI_OPTIONS: [(&str, &str); 4] = [
    ("pci_msitranslate", "msitranslate"),
    ("pci_power_mgmt", "power_mgmt"),
    ("pci_permissive", "permissive"),
    ("pci_seize", "seize"),
];

/// What PCI functions have that say nothing of it. Without any the settings do not count.
fn pci_options(settings: &Settings) -> Result<String, Refusal> {
    let has_functions =
        matches!(settings.get("pci"), Some(Item { value: Value::List(of), .. }) if !of.is_empty());
    let mut options = String::new();
    for (key, option) in PCI_OPTIONS.into_iter().filter(|_| has_functions) {
        let Some(Item { line, value }) = settings.get(key) else { continue };
        let Some(flag @ ("0" | "1")) = value.as_text() else {
            let place = Place { line: *line, key, index: None };
            return Err(Refusal { place, problem: "give 0 or 1".to_owned() });
        };
        options += &format!("{option}={flag},");
    }
    Ok(options)
}

/// The devices that a domain's file lists, with interfaces that have these defaults.
///
/// A framebuffer (`vfb`) comes with a keyboard, as `xl` makes it.
///
/// # Errors
///
/// All that is wrong, in the order of the lines: elements that cannot be understood, and those that have what an
/// earlier one has.
pub fn devices(settings: &Settings, defaults: &Defaults) -> Result<Devices, Vec<Refusal>> {
    let (mut found, mut refusals) = (Devices::default(), Vec::new());
    let pci = pci_options(settings).unwrap_or_else(|refusal| {
        refusals.push(refusal);
        String::new()
    });
    let context = Context { vif: defaults, pci };
    for (key, reader) in KEYS {
        let Some(Item { line, value }) = settings.get(key) else { continue };
        let place = |line: usize, index| Place { line, key, index };
        let Value::List(elements) = value else {
            let problem = "it is a text where a list must be".to_owned();
            refusals.push(Refusal { place: place(*line, None), problem });
            continue;
        };
        let Some(reader) = reader else {
            found.unsupported.extend((!elements.is_empty()).then(|| place(*line, None)));
            continue;
        };
        for (index, element) in elements.iter().enumerate() {
            let place = place(element.line, Some(index));
            match reader(&element.value, &context) {
                Ok(Read { attachments, notices }) => {
                    for attachment in attachments {
                        let (place, notices) = (place.clone(), notices.clone());
                        found.entries.push(Entry { place, attachment, notices });
                    }
                }
                Err(problem) => refusals.push(Refusal { place, problem }),
            }
        }
    }
    refusals.extend(taken_twice(&found.entries));
    refusals.sort_by_key(|refusal| refusal.place.line);
    if refusals.is_empty() { Ok(found) } else { Err(refusals) }
}

/// What a device has for itself alone, in words: its number, its address.
fn claims(attachment: &Attachment) -> Vec<String> {
    let spec = match attachment {
        Attachment::Device(device) => device.as_spec(),
        Attachment::UsbDev(dev) => return dev.claims(),
        Attachment::PciDev(dev) => return vec![format!("the function {}", dev.address)],
    };
    let number = spec.devid().map(|devid| format!("the device id {devid}"));
    let uniques = spec.uniques().into_iter().map(|unique| format!("the {} {}", unique.key, unique.value));
    number.into_iter().chain(uniques).collect()
}

fn taken_twice(entries: &[Entry]) -> Vec<Refusal> {
    let mut claimed: HashMap<(Kind, String), &Place> = HashMap::new();
    let mut refusals = Vec::new();
    for Entry { place, attachment, .. } in entries {
        for claim in claims(attachment) {
            let claim = (attachment.kind(), claim);
            match claimed.get(&claim) {
                Some(first) => {
                    let (kind, what) = claim;
                    let problem = format!("{} has {what}, as the one of line {first} has", kind.noun());
                    refusals.push(Refusal { place: place.clone(), problem });
                }
                None => _ = claimed.insert(claim, place),
            }
        }
    }
    refusals
}

#[cfg(test)]
mod tests {
    use serde_json::Value as Json;

    use super::*;

    fn of(text: &str) -> Result<Devices, Vec<String>> {
        let found = devices(&Settings::parse(text).unwrap(), &Defaults::default());
        found.map_err(|refusals| refusals.iter().map(ToString::to_string).collect())
    }

    fn shown(attachment: &Attachment) -> String {
        match attachment {
            Attachment::Device(device) => format!("{} {:?}", device.kind(), device.devid()),
            other => format!("{} {}", other.kind(), Json::from(other.libxl())),
        }
    }

    #[test]
    fn each_kind_in_the_order_of_the_file_and_nothing_else() {
        let file = "\
name = 'vm'; memory = 256
vif = [ 'bridge=br1', # the first
        'netdev=eth3' ]
vfb = ['type=vnc,vncunused=1']
disk = [
  '/srv/a.img,raw,xvda,w',
  \"/srv/b.img,raw,xvdb,w\",
]
disk += ['/srv/c.img,raw,xvdc,r']
extra = 'root=/dev/xvda1'
";
        let found = of(file).unwrap();
        let shown: Vec<String> = found
            .entries
            .iter()
            .map(|Entry { place, attachment, .. }| format!("{place} {}", shown(attachment)))
            .collect();
        assert_eq!(
            shown,
            [
                "6: disk[0] vbd Some(51712)",
                "7: disk[1] vbd Some(51728)",
                "9: disk[2] vbd Some(51744)",
                "4: vfb[0] vfb None",
                "4: vfb[0] vkbd None",
                "2: vif[0] vif None",
                "3: vif[1] vif None"
            ]
        );
        assert_eq!(found.entries[6].notices, ["netdev= is deprecated: say gatewaydev="]);
        assert_eq!(of("kernel='/boot/vmlinuz'\n"), Ok(Devices::default()));
    }

    #[test]
    fn all_that_is_wrong_is_named_by_its_place() {
        let file =
            "disk=['/d,raw,xvda,w',\n'/d,raw,nonsense',\n['x']]\nvif='bridge=x'\nvfb=['vnc=1,vncdisplay=x']";
        let refusals = of(file).unwrap_err();
        let says = ["2: disk[1]: ", "3: disk[2]: it is a list", "4: vif: it is a text", "5: vfb[0]: "];
        assert_eq!(refusals.len(), says.len(), "{refusals:?}");
        for (refusal, says) in refusals.iter().zip(says) {
            assert!(refusal.starts_with(says), "{refusal}");
        }
        assert_eq!(of("disk=['/\u{fffd},raw,xvda,w']").unwrap_err(), ["1: disk[0]: it is not UTF-8"]);
    }

    #[test]
    fn what_two_devices_cannot_have_is_refused() {
        let file = "disk=['/d,raw,xvda,w',\n'/e,raw,51712,w']\nvif=['mac=00:16:3e:00:00:01','mac=00:16:3E:00:00:01']";
        assert_eq!(
            of(file).unwrap_err(),
            [
                "2: disk[1]: vbd has the device id 51712, as the one of line 1: disk[0] has",
                "3: vif[1]: vif has the mac 00:16:3e:00:00:01, as the one of line 3: vif[0] has"
            ]
        );
    }

    #[test]
    fn what_two_of_other_kinds_cannot_have_is_refused_too() {
        let file = "p9=['path=/a,tag=t',\n'path=/b,tag=t']\n\
                    channel=['name=c,connection=pty', 'name=c,connection=pty']\n\
                    virtio=['type=virtio,device1,irq=1,base=1', 'type=virtio,device1,irq=1,base=2']\n";
        assert_eq!(
            of(file).unwrap_err(),
            [
                "2: p9[1]: 9pfs has the tag t, as the one of line 1: p9[0] has",
                "3: channel[1]: channel has the name c, as the one of line 3: channel[0] has",
                "4: virtio[1]: virtio has the irq 1, as the one of line 4: virtio[0] has"
            ]
        );
    }

    #[test]
    fn a_list_of_each_kind() {
        let found = of("channel=['name=c,connection=pty']\np9=['tag=t,path=/srv']\npvcalls=['backend=0']\n\
                        usbctrl=['type=qusb']\nvdispl=['connectors=id0:800x600']\n\
                        virtio=['type=virtio,device22,irq=33,base=0x2000000']\nvkb=['backend-type=linux']\n\
                        vsnd=[['card, short-name=Main', 'pcm, name=dev1', 'stream, unique-id=0, type=p']]\nvtpm=['']\n")
        .unwrap();
        let kinds: std::collections::BTreeSet<Kind> =
            found.entries.iter().map(|entry| entry.attachment.kind()).collect();
        assert_eq!((kinds.len(), found.entries.len(), found.unsupported.len()), (9, 9, 0));
        assert_eq!(of("vsnd=['card']").unwrap_err(), ["1: vsnd[0]: it is no list of a card and its parts"]);
        assert_eq!(of("vsnd=[[['card']]]").unwrap_err(), ["1: vsnd[0]: it is a list where a text must be"]);
    }

    /// What xl 4.17 was seen to make of the same lines (`xl create -n`).
    #[test]
    fn devices_of_the_host() {
        let file = "usbctrl=['type=qusb,ports=3']
usbdev=['type=hostdev,hostbus=1,hostaddr=0x1a,controller=0,port=2', 'type=hostdev,hostbus=1,hostaddr=3']
pci=['03:00.0@5', '0000:04:00.1,permissive=0,rdm_policy=relaxed,seize=0', 'vslot=5,bdf=1:3:1f.7']
pci_permissive=1; pci_seize='1'
pci_msitranslate=0
";
        let found = of(&file.replace("seize='1'", "seize=0")).unwrap();
        let shown: Vec<String> = found.entries.iter().map(|entry| shown(&entry.attachment)).collect();
        assert_eq!(
            shown,
            [
                "vusb None",
                r#"vusb {"ctrl":0,"port":2,"type.hostdev":{"hostbus":1,"hostaddr":26}}"#,
                r#"vusb {"type.hostdev":{"hostbus":1,"hostaddr":3}}"#,
                r#"pci {"bus":3,"vdevfn":40,"vfunc_mask":1,"permissive":true,"rdm_policy":"strict"}"#,
                r#"pci {"func":1,"bus":4,"vfunc_mask":1,"rdm_policy":"relaxed"}"#,
                r#"pci {"func":7,"dev":31,"bus":3,"domain":1,"vdevfn":40,"vfunc_mask":1,"permissive":true,"rdm_policy":"strict"}"#
            ]
        );
        // Of the three the second says that it is not taken from its driver.
        let seize = "a function is not taken from its driver yet: use xl pci-assignable-add first";
        let refused = [0, 2].map(|index| format!("3: pci[{index}]: \"seize=1\": {seize}"));
        assert_eq!(of(file).unwrap_err(), refused);
    }

    #[test]
    fn devices_of_the_host_that_cannot_be_had() {
        let file = "pci=['3:0.0','3:0.*',\n'0000:03:00.0','']
usbdev=['hostbus=1,hostaddr=3','hostbus=1,hostaddr=3',
'hostbus=1,hostaddr=4,controller=0,port=1','hostbus=1,hostaddr=5,controller=0,port=1','hostbus=1']
pci_permissive=2
";
        assert_eq!(
            of(file).unwrap_err(),
            [
                "1: pci[1]: \"3:0.*\": all functions of a device at once are not served yet; name them one by one",
                "2: pci[3]: bdf= is missing",
                "2: pci[2]: pci has the function 0000:03:00.0, as the one of line 1: pci[0] has",
                "3: usbdev[1]: vusb has the device 001:003, as the one of line 3: usbdev[0] has",
                "4: usbdev[4]: hostaddr= is missing",
                "4: usbdev[3]: vusb has the port 1 of USB controller 0, as the one of line 4: usbdev[2] has",
                "5: pci_permissive: give 0 or 1",
            ]
        );
        assert_eq!(of("pci=[]\npci_permissive='junk'"), Ok(Devices::default()));
    }

    #[test]
    fn kinds_that_cannot_be_added_are_named_unless_there_are_none() {
        let found = of("dtdev=['x']").unwrap();
        assert_eq!(found.unsupported.iter().map(ToString::to_string).collect::<Vec<_>>(), ["1: dtdev"]);
        assert_eq!(of("dtdev=[]"), Ok(Devices::default()));
    }
}
