//! Sound cards. A card has PCM devices, and these have streams; what sound may be like is said for each of them, or
//! for all by what they are part of.
//!
//! Source of the keys: `xen/include/public/io/sndif.h`, and what `xl` of Xen 4.17 was seen to write. That of the
//! specification: what `xl -N vsnd-attach` of 4.17 was seen to make of it.

use std::borrow::Cow;

use serde_json::{Map, Value};

use super::members::Members;
use super::words::{self, SpecError};
use super::{BackendKind, KindInfo, ListedKey, Parts, Spec};
use crate::libxl::Listing;
use crate::list::PARTS_MOST;
use crate::tree::Keys;
use crate::{DeviceId, Guest, Tree};

pub(crate) const INFO: KindInfo = KindInfo {
    name: "vsnd",
    backends: &[BackendKind::Vsnd],
    frontend_module: "snd_xen_front",
    listed: &[
        ListedKey::text_of_guest("short_name", "short-name"),
        ListedKey::text_of_guest("long_name", "long-name"),
        RATES,
        FORMATS,
        CHANNELS_MIN,
        CHANNELS_MAX,
        BUFFER,
    ],
    parts: Some(&Parts {
        name: "pcms",
        listed: &[
            ListedKey::text_of_guest("name", "name"),
            RATES,
            FORMATS,
            CHANNELS_MIN,
            CHANNELS_MAX,
            BUFFER,
        ],
        parts: Some(&Parts {
            name: "streams",
            listed: &[
                ListedKey::text_of_guest("unique_id", "unique-id"),
                ListedKey::text_of_guest("type", "type"),
                RATES,
                FORMATS,
                CHANNELS_MIN,
                CHANNELS_MAX,
                BUFFER,
                ListedKey::of_guest("event_channel", "event-channel"),
                ListedKey::of_guest("ring_ref", "ring-ref"),
            ],
            parts: None,
        }),
    }),
    libxl: Listing::by_devid("vsnds"),
    ..super::SCRIPTLESS
};

const RATES: ListedKey = ListedKey::text_of_guest("sample_rates", "sample-rates");
const FORMATS: ListedKey = ListedKey::text_of_guest("sample_formats", "sample-formats");
const CHANNELS_MIN: ListedKey = ListedKey::of_guest("channels_min", "channels-min");
const CHANNELS_MAX: ListedKey = ListedKey::of_guest("channels_max", "channels-max");
const BUFFER: ListedKey = ListedKey::of_guest("buffer_size", "buffer-size");

/// The formats of samples, by libxl's names and by those of the protocol, which drivers know.
const SAMPLE_FORMATS: [(&str, &str); 25] = [
    ("s8", "s8"),
    ("u8", "u8"),
    ("s16_le", "s16_le"),
    ("s16_be", "s16_be"),
    ("u16_le", "u16_le"),
    ("u16_be", "u16_be"),
    ("s24_le", "s24_le"),
    ("s24_be", "s24_be"),
    ("u24_le", "u24_le"),
    ("u24_be", "u24_be"),
    ("s32_le", "s32_le"),
    ("s32_be", "s32_be"),
    ("u32_le", "u32_le"),
    ("u32_be", "u32_be"),
    ("f32_le", "float_le"),
    ("f32_be", "float_be"),
    ("f64_le", "float64_le"),
    ("f64_be", "float64_be"),
    ("iec958_subframe_le", "iec958_subframe_le"),
    ("iec958_subframe_be", "iec958_subframe_be"),
    ("mu_law", "mu_law"),
    ("a_law", "a_law"),
    ("ima_adpcm", "ima_adpcm"),
    ("mpeg", "mpeg"),
    ("gsm", "gsm"),
];

/// How samples are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SampleFormat(usize);

impl SampleFormat {
    /// The format of this name, in any case: libxl's, such as `f32_le`, or the protocol's, such as `float_le`.
    pub fn new(name: &str) -> Option<Self> {
        let is_it = |known: &str| known.eq_ignore_ascii_case(name);
        SAMPLE_FORMATS.iter().position(|(libxl, protocol)| is_it(libxl) || is_it(protocol)).map(Self)
    }

    /// Its name for libxl.
    pub fn libxl_name(self) -> &'static str {
        SAMPLE_FORMATS[self.0].0
    }

    /// Its name in the store.
    pub fn name(self) -> &'static str {
        SAMPLE_FORMATS[self.0].1
    }
}

/// What sound may be like. What was not said is as for what it is part of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Params {
    /// Samples in a second.
    pub sample_rates: Vec<u32>,
    /// How samples are laid out.
    pub sample_formats: Vec<SampleFormat>,
    /// The least number of channels.
    pub channels_min: Option<u32>,
    /// The greatest number of channels.
    pub channels_max: Option<u32>,
    /// The size of the buffer, in bytes.
    pub buffer_size: Option<u32>,
}

/// The direction of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StreamType {
    /// The guest plays sound.
    Playback,
    /// The guest records sound.
    Capture,
}

impl StreamType {
    /// Its name in the store and in libxl's JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Playback => "p",
            Self::Capture => "c",
        }
    }
}

/// A stream of a PCM device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stream {
    /// What tells the backend which stream it is.
    pub unique_id: Option<String>,
    /// Its direction.
    pub stream_type: Option<StreamType>,
    /// What its sound may be like.
    pub params: Params,
}

/// A PCM device of a card.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Pcm {
    /// Its name.
    pub name: Option<String>,
    /// What its sound may be like.
    pub params: Params,
    /// Its streams.
    pub streams: Vec<Stream>,
}

/// A sound card as it is asked for. `None` is what was not said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Vsnd {
    /// The name of the domain that serves it, or its domid; the toolstack's own if it is empty.
    pub backend_name: Option<String>,
    /// Its device id; the smallest free one if none.
    pub devid: Option<u32>,
    /// Its short name.
    pub short_name: Option<String>,
    /// Its long name.
    pub long_name: Option<String>,
    /// What its sound may be like.
    pub params: Params,
    /// Its PCM devices.
    pub pcms: Vec<Pcm>,
}

impl Params {
    fn take(&mut self, key: &str, value: &str) -> Result<bool, &'static str> {
        match key {
            "sample-rates" => self.sample_rates = words::list(value, words::positive)?,
            "sample-formats" => {
                let format = |name: &str| {
                    SampleFormat::new(name)
                        .ok_or("a sample format is s8, u8, s16_le or another one of sndif.h")
                };
                self.sample_formats = words::list(value, format)?;
            }
            "channels-min" => self.channels_min = Some(words::positive(value)?),
            "channels-max" => self.channels_max = Some(words::positive(value)?),
            "buffer-size" => self.buffer_size = Some(words::positive(value)?),
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn is_possible(&self) -> bool {
        !matches!((self.channels_min, self.channels_max), (Some(min), Some(max)) if min > max)
    }

    fn libxl(&self) -> Map<String, Value> {
        let mut members = Members::new();
        let some = |list: Vec<Value>| (!list.is_empty()).then_some(list);
        members.option("sample_rates", some(self.sample_rates.iter().map(|rate| (*rate).into()).collect()));
        let formats = self.sample_formats.iter().map(|format| format.libxl_name().into());
        members.option("sample_formats", some(formats.collect()));
        members.option("channels_min", self.channels_min).option("channels_max", self.channels_max);
        members.option("buffer_size", self.buffer_size);
        members.into()
    }

    fn add(&self, keys: &mut Keys, below: &str) {
        let rates: Vec<String> = self.sample_rates.iter().map(u32::to_string).collect();
        let formats: Vec<&str> = self.sample_formats.iter().map(|format| format.name()).collect();
        let number = |number: Option<u32>| number.map(|number| Cow::from(number.to_string()));
        let list = |list: String| (!list.is_empty()).then_some(Cow::from(list));
        for (key, value) in [
            ("sample-rates", list(rates.join(","))),
            ("sample-formats", list(formats.join(","))),
            ("channels-min", number(self.channels_min)),
            ("channels-max", number(self.channels_max)),
            ("buffer-size", number(self.buffer_size)),
        ] {
            add_text(keys, below, key, value.as_deref());
        }
    }
}

fn add_text(keys: &mut Keys, below: &str, key: &'static str, value: Option<&str>) {
    if let Some(value) = value {
        keys.add(format!("{below}{key}"), value);
    }
}

impl Stream {
    fn take(&mut self, key: &str, value: &str) -> Result<bool, &'static str> {
        match key {
            "unique-id" => self.unique_id = Some(value.to_owned()),
            "type" => {
                let of = |stream_type: &StreamType| stream_type.name().eq_ignore_ascii_case(value);
                let found = [StreamType::Playback, StreamType::Capture].into_iter().find(of);
                self.stream_type = Some(found.ok_or("a type is p (playback) or c (capture)")?);
            }
            _ => return self.params.take(key, value),
        }
        Ok(true)
    }

    fn libxl(&self) -> Value {
        let mut members = Members::new();
        members.text("unique_id", &self.unique_id);
        members.option("type", self.stream_type.map(StreamType::name)).add("params", self.params.libxl());
        Map::from(members).into()
    }

    fn add(&self, keys: &mut Keys, below: &str) {
        add_text(keys, below, "unique-id", self.unique_id.as_deref());
        add_text(keys, below, "type", self.stream_type.map(StreamType::name));
        self.params.add(keys, below);
    }
}

impl Pcm {
    fn take(&mut self, key: &str, value: &str) -> Result<bool, &'static str> {
        match key {
            "name" => self.name = Some(value.to_owned()),
            _ => return self.params.take(key, value),
        }
        Ok(true)
    }

    fn libxl(&self) -> Value {
        let mut members = Members::new();
        members.text("name", &self.name).add("params", self.params.libxl());
        let streams: Vec<Value> = self.streams.iter().map(Stream::libxl).collect();
        members.option("streams", (!streams.is_empty()).then_some(streams));
        Map::from(members).into()
    }

    fn add(&self, keys: &mut Keys, below: &str) {
        add_text(keys, below, "name", self.name.as_deref());
        self.params.add(keys, below);
        for (index, stream) in self.streams.iter().enumerate() {
            stream.add(keys, &format!("{below}{index}/"));
        }
    }
}

impl Vsnd {
    fn take(&mut self, key: &str, value: &str) -> Result<bool, &'static str> {
        match key {
            "backend" => self.backend_name = Some(value.to_owned()),
            "devid" => self.devid = words::devid(value)?,
            "short-name" => self.short_name = Some(value.to_owned()),
            "long-name" => self.long_name = Some(value.to_owned()),
            _ => return self.params.take(key, value),
        }
        Ok(true)
    }

    /// Sees that every part has a node in the store, or its number would be that of the next one.
    fn see(&self) -> Result<(), SpecError> {
        let streams = || self.pcms.iter().flat_map(|pcm| &pcm.streams);
        if streams().any(|stream| stream.unique_id.is_none() || stream.stream_type.is_none()) {
            return Err(SpecError::Whole("a stream needs unique-id= and type="));
        }
        if self.pcms.iter().any(|pcm| pcm.streams.is_empty() && pcm.name.is_none()) {
            return Err(SpecError::Whole("a pcm needs name=, or a stream"));
        }
        if self.pcms.len() > PARTS_MOST || self.pcms.iter().any(|pcm| pcm.streams.len() > PARTS_MOST) {
            return Err(SpecError::Whole("a card has at most 1024 pcm here, and each at most 1024 streams"));
        }
        let params = [&self.params].into_iter().chain(self.pcms.iter().map(|pcm| &pcm.params));
        if params.chain(streams().map(|stream| &stream.params)).all(Params::is_possible) {
            Ok(())
        } else {
            Err(SpecError::Whole("channels-min= is greater than channels-max="))
        }
    }
}

/// What the next parameters are about.
#[derive(Clone, Copy)]
enum Part {
    None,
    Card,
    Pcm,
    Stream,
}

/// Reads the arguments of `vsnd-attach`, or an entry of the list `vsnd` of a domain configuration.
///
/// `card`, `pcm` and `stream` are words of their own, in any case, and tell what the parameters behind them are about:
/// a `pcm` begins a PCM device of the card, a `stream` one of the last PCM device, or of an unnamed one. Of a card there
/// are `short-name=`, `long-name=`, `backend=` and `devid=`, of a PCM device `name=`, and of a stream `unique-id=` and
/// `type=`, which is `p` or `c`. All may have `sample-rates=`, `sample-formats=`, with semicolons between several,
/// `channels-min=`, `channels-max=` and `buffer-size=`.
///
/// # Errors
///
/// They name the parameter.
pub fn parse(arguments: &[impl AsRef<str>]) -> Result<Vsnd, SpecError> {
    let mut vsnd = Vsnd::default();
    let mut part = Part::None;
    words::read_words(arguments, |key, value| {
        let Some(value) = value else {
            part = match key.to_ascii_lowercase().as_str() {
                "card" => Part::Card,
                "pcm" => {
                    vsnd.pcms.push(Pcm::default());
                    Part::Pcm
                }
                "stream" => {
                    if vsnd.pcms.is_empty() {
                        vsnd.pcms.push(Pcm::default());
                    }
                    vsnd.pcms
                        .iter_mut()
                        .last()
                        .into_iter()
                        .for_each(|pcm| pcm.streams.push(Stream::default()));
                    Part::Stream
                }
                _ => return Ok(false),
            };
            return Ok(true);
        };
        let pcm = vsnd.pcms.last_mut();
        match (part, pcm) {
            (Part::Card, _) => vsnd.take(key, value),
            (Part::Pcm, Some(pcm)) => pcm.take(key, value),
            (Part::Stream, Some(pcm)) => {
                pcm.streams.last_mut().map_or(Ok(false), |stream| stream.take(key, value))
            }
            _ => Err("say card, pcm or stream before it"),
        }
    })?;
    if matches!(part, Part::None) {
        return Err(SpecError::Whole("it needs a card, as in card, short-name=Main"));
    }
    vsnd.see()?;
    Ok(vsnd)
}

impl Spec for Vsnd {
    fn devid(&self) -> Option<u32> {
        self.devid
    }

    fn number(&mut self, devid: u32) {
        self.devid.get_or_insert(devid);
    }

    fn backend_name(&self) -> Option<&str> {
        self.backend_name.as_deref()
    }

    fn backend(&self, _: &Guest) -> BackendKind {
        BackendKind::Vsnd
    }

    fn libxl(&self) -> Map<String, Value> {
        let mut members = Members::new();
        members.text("backend_domname", &self.backend_name).option("devid", self.devid);
        members.text("short_name", &self.short_name).text("long_name", &self.long_name);
        members.add("params", self.params.libxl());
        let pcms: Vec<Value> = self.pcms.iter().map(Pcm::libxl).collect();
        members.option("pcms", (!pcms.is_empty()).then_some(pcms));
        members.into()
    }

    fn tree(&self, id: &DeviceId, _: &Guest) -> Tree {
        let mut tree = super::plain_tree(id);
        let keys = &mut tree.frontend;
        add_text(keys, "", "long-name", self.long_name.as_deref());
        add_text(keys, "", "short-name", self.short_name.as_deref());
        self.params.add(keys, "");
        for (index, pcm) in self.pcms.iter().enumerate() {
            pcm.add(keys, &format!("{index}/"));
        }
        tree
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::table::outcomes;

    /// What is taken as `xl -N vsnd-attach` of 4.17 prints it.
    #[test]
    fn what_is_understood() {
        outcomes(
            |words| parse(words).map(crate::Device::Vsnd),
            &[
                ("card", r#"{"params":{}}"#),
                (
                    "card, short-name=Main, long-name=A long one, sample-rates=8000;44100, sample-formats=S16_LE;s8",
                    r#"{"short_name":"Main","long_name":"A long one","params":{"sample_rates":[8000,44100],"sample_formats":["s16_le","s8"]}}"#,
                ),
                (
                    "CARD, short-name=Main|PCM, name=dev1|STREAM, unique-id=0, type=P",
                    r#"{"short_name":"Main","params":{},"pcms":[{"name":"dev1","params":{},"streams":[{"unique_id":"0","type":"p","params":{}}]}]}"#,
                ),
                (
                    "card|pcm, name=a|stream, unique-id=1, type=c, channels-max=2|pcm, name=b, channels-min=1, \
                     channels-max=6, buffer-size=1000",
                    r#"{"params":{},"pcms":[{"name":"a","params":{},"streams":[{"unique_id":"1","type":"c","params":{"channels_max":2}}]},{"name":"b","params":{"channels_min":1,"channels_max":6,"buffer_size":1000}}]}"#,
                ),
                (
                    "stream|unique-id=0|type=p|card|short-name=X|card|long-name=a=b",
                    r#"{"short_name":"X","long_name":"a=b","params":{},"pcms":[{"params":{},"streams":[{"unique_id":"0","type":"p","params":{}}]}]}"#,
                ),
                (
                    "card, sample-formats=float_le;f64_be",
                    r#"{"params":{"sample_formats":["f32_le","f64_be"]}}"#,
                ),
                ("", "it needs a card, as in card, short-name=Main"),
                ("short-name=a", r#""short-name=a": say card, pcm or stream before it"#),
                ("sound", r#""sound" is no parameter"#),
                ("card, type=p", r#""type=p" is no parameter"#),
                ("pcm, short-name=p", r#""short-name=p" is no parameter"#),
                ("pcm|stream, name=p", r#""name=p" is no parameter"#),
                ("pcm|stream, type=x", r#""type=x": a type is p (playback) or c (capture)"#),
                ("card|pcm|stream", "a stream needs unique-id= and type="),
                ("card|pcm", "a pcm needs name=, or a stream"),
                ("card, channels-min=5, channels-max=2", "channels-min= is greater than channels-max="),
                (
                    "card, sample-formats=foo",
                    r#""sample-formats=foo": a sample format is s8, u8, s16_le or another one of sndif.h"#,
                ),
                ("card, sample-rates=", r#""sample-rates=": give at least one, with ; between several"#),
                ("card, sample-rates=x", r#""sample-rates=x": give a decimal number from 1 to 4294967295"#),
            ],
        );
    }

    #[test]
    fn drivers_know_the_protocols_names() {
        let format = |name| SampleFormat::new(name).map(SampleFormat::name);
        assert_eq!(
            (format("f32_le"), format("FLOAT_LE"), format("float")),
            (Some("float_le"), Some("float_le"), None)
        );
    }
}
