//! The tables of xl's lists, byte for byte; and the one of all kinds, which is ours.
//!
//! Source: what `xl` of 4.17 was seen to print. It has no list of some kinds; these have a plain table.

use std::fmt::Write;

use xen_aodevice::vkb::VkbBackend;
use xen_aodevice::{DeviceId, Kind, Listed, ListedValue, ListedValues};
use xen_devstate::StateValue;

/// A line of the table of all kinds.
fn line_of_all(cells: [&str; 10]) -> String {
    let [domid, kind, device, name, be, be_kind, served_by, be_state, fe_state, operation] = cells;
    let line = format!(
        "{domid:<5} {kind:<8} {device:<8} {name:<17} {be:<5} {be_kind:<8} {served_by:<12} {be_state:<17} {fe_state:<17} {operation}"
    );
    format!("{}\n", line.trim_end())
}

/// What a device is known by besides its number.
fn other_name(device: &Listed) -> Option<&str> {
    device.text(match device.id.kind {
        Kind::Vif => "mac",
        Kind::Console => "channel_name",
        Kind::P9 => "tag",
        Kind::Vtpm => "uuid",
        _ => return None,
    })
}

fn row_of_all(device: &Listed) -> String {
    let id = device.id;
    let state =
        |state: &Option<StateValue>| state.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string);
    let operation = match (device.record(), &device.operation) {
        (Some(record), _) => format!("{} ({:?})", record.operation, record.stage),
        (None, text) => text.clone().unwrap_or_default(),
    };
    line_of_all([
        &id.fe.to_string(),
        id.kind.noun(),
        &(id.kind.info().id_name)(id.devid),
        other_name(device).unwrap_or("-"),
        &id.be.to_string(),
        id.be_kind.name(),
        &id.be_kind.server().to_string(),
        &state(&device.backend_state),
        &state(&device.frontend_state),
        &operation,
    ])
}

/// The header of the table of a kind, or of all kinds.
pub(crate) fn header(kind: Option<Kind>) -> String {
    let Some(kind) = kind else {
        return line_of_all([
            "Domid",
            "Kind",
            "Device",
            "Name",
            "BE",
            "BE-kind",
            "Served-by",
            "BE-state",
            "FE-state",
            "Operation",
        ]);
    };
    match kind {
        Kind::Vbd => format!(
            "{:<5} {:<3} {:<6} {:<5} {:<6} {:<8} {:<30}\n",
            "Vdev", "BE", "handle", "state", "evt-ch", "ring-ref", "BE-path"
        ),
        Kind::Vif => format!(
            "{:<3} {:<2} {:<17} {:<6} {:<5} {:<6} {:>5}/{:<5} {:<30}\n",
            "Idx", "BE", "Mac Addr.", "handle", "state", "evt-ch", "tx-", "rx-ring-ref", "BE-path"
        ),
        Kind::Vtpm => format!(
            "{:<3} {:<2} {:<36} {:<6} {:<5} {:<6} {:<5} {:<10}\n",
            "Idx", "BE", "Uuid", "handle", "state", "evt-ch", "ring-ref", "BE-path"
        ),
        Kind::Vkbd => format!(
            "{:<3} {:<2} {:<6} {:<5} {:<6} {:>6} {:<10} {:<10} {:<30}\n",
            "Idx", "BE", "handle", "state", "evt-ch", "ref", "ID", "BE-type", "BE-path"
        ),
        Kind::Vdispl | Kind::Vsnd => String::new(),
        Kind::Console => format!(
            "{:<3} {:<2} {:<5} {:<6} {:>8} {:<10} {:<30}\n",
            "Idx", "BE", "state", "evt-ch", "ring-ref", "connection", ""
        ),
        Kind::P9 => format!(
            "{:<3} {:<2} {:<5} {:<10} {:<14} {:<30} {:<30}\n",
            "Idx", "BE", "state", "Tag", "Security", "Path", "BE-path"
        ),
        _ => format!("{:<5} {:<3} {:<5} {:<30}\n", "Devid", "BE", "state", "BE-path"),
    }
}

/// What is not there prints as -1.
fn or_missing(value: Option<u32>) -> i64 {
    value.map_or(-1, i64::from)
}

pub(crate) fn rows(kind: Option<Kind>, devices: &[Listed]) -> String {
    if kind.is_none() {
        return devices.iter().map(row_of_all).collect();
    }
    let mut text = String::new();
    for device in devices {
        let (backend_path, DeviceId { devid, be, fe, kind, .. }) = (&device.backend_path, device.id);
        let state = device.frontend_state.as_ref().and_then(StateValue::state);
        let state = or_missing(state.map(|state| state.number().into()));
        let number = |name| or_missing(device.number(name));
        // Writing to a String cannot fail.
        _ = match kind {
            Kind::Vbd | Kind::VirtioDisk => writeln!(
                text,
                "{devid:<5} {:<3} {:<6} {state:<5} {:<6} {:<8} {backend_path:<30}",
                be.0,
                fe.0,
                number("event_channel"),
                number("ring_ref"),
            ),
            Kind::Vif => writeln!(
                text,
                "{devid:<3} {:<2} {:>17}{devid:>6} {state:>5} {:>6} {:>5}/{:<11} {backend_path:<30}",
                be.0,
                device.text("mac").unwrap_or("00:00:00:00:00:00"),
                number("event_channel"),
                number("tx_ring_ref"),
                number("rx_ring_ref"),
            ),
            Kind::Vtpm => writeln!(
                text,
                "{devid:<3} {:<2} {} {devid:>6} {state:>5} {:>6} {:>8} {backend_path:<30}",
                be.0,
                device.text("uuid").unwrap_or("00000000-0000-0000-0000-000000000000"),
                number("event_channel"),
                number("ring_ref"),
            ),
            Kind::Vkbd => writeln!(
                text,
                "{devid:<3} {:<2} {devid:>6} {state:>5} {:>6} {:>6} {:<10} {:<10} {backend_path:<30}",
                be.0,
                number("event_channel"),
                number("page_gref"),
                device.text("unique_id").unwrap_or(MISSING),
                VkbBackend::of(device.id.be_kind).name(),
            ),
            Kind::Vdispl => {
                text.push_str(&display(device, state));
                Ok(())
            }
            Kind::Vsnd => {
                text.push_str(&sound_card(device, state));
                Ok(())
            }
            Kind::Console => {
                let connection = device.text("connection").unwrap_or_default();
                let pty = device.text("tty").filter(|_| connection == "pty");
                let pty = pty.map(|tty| format!("{tty:<30} ")).unwrap_or_default();
                let number = |name| or_missing(device.number(name));
                let (evt_ch, ring_ref) = (number("event_channel"), number("ring_ref"));
                let channel = devid.saturating_sub(kind.info().first_devid);
                writeln!(
                    text,
                    "{channel:<3} {:<2} {state:<5} {evt_ch:<6} {ring_ref:<8} {connection:<10} {pty}",
                    be.0
                )
            }
            Kind::P9 => writeln!(
                text,
                "{devid:<3} {:<2} {state:<5} {:<10} {:<14} {:<30} {backend_path:<30}",
                be.0,
                device.text("tag").unwrap_or("-"),
                device.text("security_model").unwrap_or("-"),
                device.text("path").unwrap_or("-"),
            ),
            _ => writeln!(text, "{devid:<5} {:<3} {state:<5} {backend_path:<30}", be.0),
        };
    }
    text
}

/// What C prints for a text that is not there.
const MISSING: &str = "(null)";

/// FE, as xl prints it.
fn frontend_path(id: &DeviceId) -> String {
    format!("/local/domain/{}/device/{}/{}", id.fe, id.kind, id.devid)
}

fn number_of(values: &ListedValues, name: &str) -> Option<u32> {
    match values.get(name)? {
        Some(ListedValue::Number(number)) => Some(*number),
        _ => None,
    }
}

fn text_of<'a>(values: &'a ListedValues, name: &str) -> Option<&'a str> {
    match values.get(name)? {
        Some(ListedValue::Text(text)) => Some(text),
        _ => None,
    }
}

fn display(device: &Listed, state: i64) -> String {
    let Listed { id, backend_path, .. } = device;
    let mut text = format!(
        "DevId: {}, BE: {}, handle: {}, state: {state}, be-alloc: {}, BE-path: {backend_path}, FE-path: {}\n",
        id.devid,
        id.be,
        id.fe,
        or_missing(device.number("be_alloc")),
        frontend_path(id),
    );
    for (index, connector) in device.parts().iter().enumerate() {
        let number = |name| or_missing(number_of(connector, name));
        let size = text_of(connector, "resolution").and_then(|resolution| resolution.split_once('x'));
        let (width, height) = size.unwrap_or_default();
        let pixels = |text: &str| or_missing(text.parse().ok());
        _ = writeln!(
            text,
            "\tConnector: {index}, id: {}, width: {}, height: {}, req-rref: {}, req-evtch: {}, evt-rref: {}, \
             evt-evtch: {}",
            text_of(connector, "unique_id").unwrap_or(MISSING),
            pixels(width),
            pixels(height),
            number("req_ring_ref"),
            number("req_event_channel"),
            number("evt_ring_ref"),
            number("evt_event_channel"),
        );
    }
    text
}

fn sound_card(device: &Listed, state: i64) -> String {
    let Listed { id, backend_path, of_kind, .. } = device;
    let quoted = |values, name| text_of(values, name).unwrap_or(MISSING).to_owned();
    let mut text = format!(
        "\ndevid: {}, be-domid: {}, handle: {}, state: {state}, be-path: {backend_path}, fe-path: {}\n",
        id.devid,
        id.be,
        id.fe,
        frontend_path(id),
    );
    _ = writeln!(
        text,
        "short-name: \"{}\", long-name: \"{}\"{}",
        quoted(of_kind, "short_name"),
        quoted(of_kind, "long_name"),
        sound(of_kind)
    );
    let of_pcm = id.kind.info().parts.and_then(|pcms| pcms.parts);
    for (index, pcm) in device.parts().iter().enumerate() {
        _ = writeln!(text, "\tpcm: {index}, name: \"{}\"{}", quoted(pcm, "name"), sound(pcm));
        for (index, stream) in of_pcm.map_or(&[][..], |streams| streams.of(pcm)).iter().enumerate() {
            let number = |name| or_missing(number_of(stream, name));
            _ = writeln!(
                text,
                "\t\tstream: {index}, unique-id: \"{}\", type: {}{}\n\t\t\tevent-channel: {}, ring-ref: {}",
                quoted(stream, "unique_id"),
                quoted(stream, "type"),
                sound(stream),
                number("event_channel"),
                number("ring_ref"),
            );
        }
    }
    text
}

/// What sound may be like, as far as that is said. xl calls the formats rates too.
fn sound(values: &ListedValues) -> String {
    let mut text = String::new();
    for (label, name) in
        [("channels-min", "channels_min"), ("channels-max", "channels_max"), ("buffer-size", "buffer_size")]
    {
        if let Some(number) = number_of(values, name) {
            _ = write!(text, ", {label}: {number}");
        }
    }
    for name in ["sample_rates", "sample_formats"] {
        if let Some(list) = text_of(values, name) {
            _ = write!(text, ", sample-rates: {}", list.replace(',', ";"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use xen_aodevice::{BackendKind, Which};
    use xs_client::DomId;

    use super::*;

    fn listed(kind: Kind, devid: u32, of_kind: &[(&'static str, ListedValue)]) -> Listed {
        let id = DeviceId::new(Which { fe: DomId(1), kind, devid }, DomId::DOM0);
        let mut device = Listed::new(id, format!("/local/domain/0/backend/{kind}/1/{devid}"));
        device.frontend_state = Some(StateValue::parse(b"4"));
        device.of_kind.extend(of_kind.iter().map(|(name, value)| (*name, Some(value.clone()))));
        device
    }

    /// What xl 4.17 printed on a real host.
    #[test]
    fn as_xl_prints_them() {
        use ListedValue::{Number, Text};
        assert_eq!(
            header(Some(Kind::Vbd)),
            "Vdev  BE  handle state evt-ch ring-ref BE-path                       \n"
        );
        let vbd = listed(Kind::Vbd, 51712, &[("event_channel", Number(8)), ("ring_ref", Number(8))]);
        assert_eq!(
            rows(Some(Kind::Vbd), &[vbd]),
            "51712 0   1      4     8      8        /local/domain/0/backend/vbd/1/51712\n"
        );
        assert_eq!(
            header(Some(Kind::Vif)),
            "Idx BE Mac Addr.         handle state evt-ch   tx-/rx-ring-ref BE-path                       \n"
        );
        let mac = Text("00:16:3e:46:36:49".to_owned());
        let vif = [("mac", mac), ("tx_ring_ref", Number(522)), ("rx_ring_ref", Number(523))];
        assert_eq!(
            rows(Some(Kind::Vif), &[listed(Kind::Vif, 0, &vif)]),
            "0   0  00:16:3e:46:36:49     0     4     -1   522/523         /local/domain/0/backend/vif/1/0\n"
        );
    }

    fn values(of: &[(&'static str, ListedValue)]) -> ListedValues {
        of.iter().map(|(name, value)| (*name, Some(value.clone()))).collect()
    }

    fn text(text: &str) -> ListedValue {
        ListedValue::Text(text.to_owned())
    }

    #[test]
    fn modules_and_keyboards_as_xl_prints_them() {
        use ListedValue::Number;
        assert_eq!(
            header(Some(Kind::Vtpm)),
            "Idx BE Uuid                                 handle state evt-ch ring-ref BE-path   \n"
        );
        let vtpm = [("uuid", text("064c4c60-663d-4f68-878c-d7cf776e155f"))];
        assert_eq!(
            rows(Some(Kind::Vtpm), &[listed(Kind::Vtpm, 0, &vtpm)]),
            "0   0  064c4c60-663d-4f68-878c-d7cf776e155f      0     4     -1       -1 /local/domain/0/backend/vtpm/1/0\n"
        );
        assert_eq!(
            header(Some(Kind::Vkbd)),
            "Idx BE handle state evt-ch    ref ID         BE-type    BE-path                       \n"
        );
        let mut linux = listed(Kind::Vkbd, 1, &[("unique_id", text("T:1")), ("event_channel", Number(9))]);
        linux.of_kind.insert("page_gref", Some(Number(10)));
        linux.id.be_kind = BackendKind::Vinput;
        assert_eq!(
            rows(Some(Kind::Vkbd), &[listed(Kind::Vkbd, 0, &[]), linux]),
            "0   0       0     4     -1     -1 (null)     qemu       /local/domain/0/backend/vkbd/1/0\n\
             1   0       1     4      9     10 T:1        linux      /local/domain/0/backend/vkbd/1/1\n"
        );
    }

    #[test]
    fn displays_and_sound_cards_as_xl_prints_them() {
        use ListedValue::{Number, Parts};
        assert_eq!((header(Some(Kind::Vdispl)), header(Some(Kind::Vsnd))), Default::default());
        let connectors = Parts(vec![
            values(&[("unique_id", text("id0")), ("resolution", text("800x600"))]),
            values(&[("resolution", text("junk")), ("evt_event_channel", Number(8))]),
        ]);
        assert_eq!(
            rows(
                Some(Kind::Vdispl),
                &[listed(Kind::Vdispl, 0, &[("be_alloc", Number(1)), ("connectors", connectors)])]
            ),
            "DevId: 0, BE: 0, handle: 1, state: 4, be-alloc: 1, BE-path: /local/domain/0/backend/vdispl/1/0, \
             FE-path: /local/domain/1/device/vdispl/0\n\
             \tConnector: 0, id: id0, width: 800, height: 600, req-rref: -1, req-evtch: -1, evt-rref: -1, evt-evtch: -1\n\
             \tConnector: 1, id: (null), width: -1, height: -1, req-rref: -1, req-evtch: -1, evt-rref: -1, evt-evtch: 8\n"
        );
        let stream = values(&[
            ("unique_id", text("1")),
            ("type", text("c")),
            ("buffer_size", Number(7)),
            ("ring_ref", Number(8)),
        ]);
        let pcms = Parts(vec![values(&[
            ("name", text("dev1")),
            ("channels_max", Number(2)),
            ("streams", Parts(vec![stream])),
        ])]);
        let card = [
            ("short_name", text("Main")),
            ("channels_min", Number(1)),
            ("sample_rates", text("8000,44100")),
            ("sample_formats", text("s16_le,s8")),
            ("pcms", pcms),
        ];
        assert_eq!(
            rows(Some(Kind::Vsnd), &[listed(Kind::Vsnd, 0, &card)]),
            "\ndevid: 0, be-domid: 0, handle: 1, state: 4, be-path: /local/domain/0/backend/vsnd/1/0, \
             fe-path: /local/domain/1/device/vsnd/0\n\
             short-name: \"Main\", long-name: \"(null)\", channels-min: 1, sample-rates: 8000;44100, \
             sample-rates: s16_le;s8\n\
             \tpcm: 0, name: \"dev1\", channels-max: 2\n\
             \t\tstream: 0, unique-id: \"1\", type: c, buffer-size: 7\n\
             \t\t\tevent-channel: -1, ring-ref: 8\n"
        );
    }

    /// What xl 4.17 printed on a real host of a socket; of a pty, by its format.
    #[test]
    fn channels() {
        let text = |text: &str| ListedValue::Text(text.to_owned());
        let rings = [("event_channel", ListedValue::Number(8)), ("ring_ref", ListedValue::Number(8))];
        let of = |devid, connection, tty| {
            let texts =
                [("connection", text(connection)), ("tty", text(tty)), ("channel_name", text("org.x"))];
            listed(Kind::Console, devid, &[&rings[..], &texts].concat())
        };
        // The number by which it is detached.
        let row = rows(None, &[of(2, "pty", "/dev/pts/3")]);
        assert_eq!(
            row.split_whitespace().take(4).collect::<Vec<_>>(),
            ["1", "channel", "1", "org.x"],
            "{row}"
        );
        assert_eq!(
            header(Some(Kind::Console)),
            "Idx BE state evt-ch ring-ref connection                               \n"
        );
        assert_eq!(
            rows(Some(Kind::Console), &[of(1, "socket", "")]),
            "0   0  4     8      8        socket     \n"
        );
        assert_eq!(
            rows(Some(Kind::Console), &[of(2, "pty", "/dev/pts/3")]),
            "1   0  4     8      8        pty        /dev/pts/3                     \n"
        );
    }

    /// xl has no such command.
    #[test]
    fn file_systems() {
        let text = |text: &str| ListedValue::Text(text.to_owned());
        let of_kind = [("tag", text("share")), ("security_model", text("none")), ("path", text("/srv/s"))];
        assert_eq!(
            header(Some(Kind::P9)) + &rows(Some(Kind::P9), &[listed(Kind::P9, 0, &of_kind)]),
            "Idx BE state Tag        Security       Path                           BE-path                       \n\
             0   0  4     share      none           /srv/s                         /local/domain/0/backend/9pfs/1/0\n"
        );
    }

    #[test]
    fn what_is_missing_or_malformed_is_minus_one() {
        let mut bare = listed(Kind::Vbd, 51712, &[]);
        bare.frontend_state = Some(StateValue::parse(b"junk"));
        assert_eq!(
            rows(Some(Kind::Vbd), &[bare]),
            "51712 0   1      -1    -1     -1       /local/domain/0/backend/vbd/1/51712\n"
        );
    }

    #[test]
    fn all_kinds_in_one_table() {
        let mut left = listed(Kind::Vif, 3, &[]);
        left.backend_state = Some(StateValue::parse(b"2"));
        left.frontend_state = None;
        left.operation = Some("add:00000000000000aa stage=script since=0".to_owned());
        left.of_kind.insert("mac", Some(ListedValue::Text("00:16:3e:01:02:03".to_owned())));
        assert_eq!(
            header(None) + &rows(None, &[listed(Kind::Vbd, 51712, &[]), left]),
            "\
Domid Kind     Device   Name              BE    BE-kind  Served-by    BE-state          FE-state          Operation
1     vbd      xvda     -                 0     vbd      kernel       -                 4 (Connected)
1     vif      3        00:16:3e:01:02:03 0     vif      kernel       2 (InitWait)      -                 attach (Script)
"
        );
    }
}
