//! Paths and permission lists, against readings of their definitions that are as plain as can be.

use std::hash::{BuildHasher, RandomState};
use std::sync::LazyLock;

use bytes::Bytes;
use xs_proto::{ABSOLUTE_MAX, Access, DomId, Op, Path, PathError, Permissions, RELATIVE_MAX, Reply};

/// Whether bytes are a path, but for its length: names between single slashes, with one in front
/// or without, or nothing but a slash.
pub(super) fn is_path(bytes: &[u8]) -> bool {
    let names = bytes.strip_prefix(b"/").unwrap_or(bytes);
    let is_letter =
        |byte: &u8| b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_@".contains(byte);
    bytes == b"/"
        || names.split(|byte| *byte == b'/').all(|name| !name.is_empty() && name.iter().all(is_letter))
}

/// A text is a path just if it looks like one, and walking up and down paths agrees with their
/// names.
///
/// The input is two texts with a NUL in between.
pub fn paths(data: &[u8]) {
    let at = data.iter().position(|byte| *byte == 0).unwrap_or(data.len());
    let (first, second) = (&data[..at], data.get(at + 1..).unwrap_or_default());
    let (Some(path), other) = (checked(first), checked(second)) else { return };

    let names = |path: &Path| path.names().map(str::to_owned).collect::<Vec<_>>();
    match path.parent() {
        Some(parent) => {
            assert_eq!(parent.join(path.name()), Ok(path.clone()));
            assert!(path.is_within(&parent) && !parent.is_within(&path));
            assert_eq!(names(&path).split_last().map(|(_, above)| above), Some(&names(&parent)[..]));
        }
        None => assert!(path.names().count() == usize::from(path != Path::root())),
    }
    if let Ok(below) = std::str::from_utf8(second) {
        // What is joined is never absolute, so a slash in front of it makes two.
        let whole = [first.strip_suffix(b"/").unwrap_or(first), b"/", second].concat();
        let joined = path.join(below);
        assert_eq!(joined.as_ref().ok(), checked(&whole).filter(|_| !below.is_empty()).as_ref());
        if let (Ok(joined), Some(below)) = (joined, &other) {
            assert_eq!(names(&joined), [names(&path), names(below)].concat());
            assert!(joined.is_within(&path) && !path.is_within(&joined));
        }
    }
    if let Some(other) = other {
        let within = path.is_absolute() == other.is_absolute() && names(&path).starts_with(&names(&other));
        assert_eq!(path.is_within(&other), within, "{path} within {other}");
        assert_eq!(path.cmp(&other), path.as_str().cmp(other.as_str()));
    }
}

/// The path of a text, after a look from all sides.
fn checked(text: &[u8]) -> Option<Path> {
    // One for all, because making one takes longer than all the rest.
    static HASHER: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    let max = if text.starts_with(b"/") { ABSOLUTE_MAX } else { RELATIVE_MAX };
    let result = Path::new(text);
    assert_eq!(result.is_ok(), is_path(text) && text.len() <= max, "{result:?}");
    assert_eq!(matches!(result, Err(PathError::TooLong { .. })), text.len() > max, "{result:?}");
    let path = result.ok()?;
    assert_eq!(path.as_bytes(), text);
    assert_eq!((path.is_absolute(), path.is_special()), (text[0] == b'/', text[0] == b'@'));
    assert_eq!(path.to_string().parse().as_ref(), Ok(&path));
    // Maps by path are asked by text.
    assert_eq!(HASHER.hash_one(&path), HASHER.hash_one(path.as_str()));
    Some(path)
}

/// A permission list is read as C reads it, is written as it was read, and grants what it says.
///
/// The input is the payload of a GET_PERMS reply: entries, each with a NUL.
pub fn permissions(data: &[u8]) {
    let payload = Bytes::copy_from_slice(data);
    let texts: Vec<&[u8]> =
        data.split_inclusive(|byte| *byte == 0).filter_map(|text| text.strip_suffix(b"\0")).collect();
    let expected: Option<Vec<(Access, u32)>> = texts.iter().map(|text| entry(text)).collect();
    let perms = match Reply::decode(Op::GET_PERMS, Op::GET_PERMS, payload) {
        Ok(Reply::Perms(perms)) => perms,
        Ok(other) => panic!("{other:?}"),
        Err(error) => return assert!(texts.is_empty() || expected.is_none(), "{error}: {expected:?}"),
    };
    let entries: Vec<_> = perms.entries().iter().map(|entry| (entry.access, entry.domid.0)).collect();
    assert_eq!(Some(&entries), expected.as_ref());

    let [(default, owner), others @ ..] = &entries[..] else { panic!("an empty list") };
    assert_eq!(perms.owner(), DomId(*owner));
    let mut built = Permissions::owned_by(DomId(*owner), *default);
    for (access, domid) in others {
        built = built.grant(DomId(*domid), *access);
    }
    assert_eq!((&built, Permissions::new(perms.entries().to_vec()).as_ref()), (&perms, Ok(&perms)));

    let letter = |access: &Access| ["n", "r", "w", "b"][*access as usize];
    let shown = entries.iter().map(|(access, domid)| format!("{}{}", letter(access), *domid as i32));
    assert_eq!(perms.to_string(), shown.collect::<Vec<_>>().join(","));
    for domid in entries.iter().map(|(_, domid)| *domid).chain([0, 7]) {
        let named = others.iter().find(|(_, other)| *other == domid).map(|(access, _)| *access);
        let access = if domid == *owner { Access::Both } else { named.unwrap_or(*default) };
        assert_eq!(perms.access_of(DomId(domid)), access, "{domid} in {perms}");
    }
}

/// An entry as C reads it: a letter, and what `strtol` with base 0 takes to its end, kept in 32
/// bits.
fn entry(text: &[u8]) -> Option<(Access, u32)> {
    let (letter, number) = text.split_first()?;
    let access = match letter {
        b'n' => Access::None,
        b'r' => Access::Read,
        b'w' => Access::Write,
        b'b' => Access::Both,
        _ => return None,
    };
    let number =
        std::str::from_utf8(number).ok()?.trim_start_matches([' ', '\t', '\n', '\x0b', '\x0c', '\r']);
    let (sign, digits) = match number.as_bytes().first()? {
        b'-' => (-1, &number[1..]),
        b'+' => (1, &number[1..]),
        _ => (1, number),
    };
    let (radix, digits) = match digits.to_ascii_lowercase().strip_prefix("0x") {
        Some(digits) => (16, digits.to_owned()),
        None if digits.starts_with('0') => (8, digits.to_owned()),
        None => (10, digits.to_owned()),
    };
    let digits = digits.chars().map(|digit| digit.to_digit(radix)).collect::<Option<Vec<_>>>()?;
    if digits.is_empty() {
        return None;
    }
    // More digits than fit an i128 are still too many for a C long, whose limit is then taken.
    let value = digits
        .iter()
        .fold(0_i128, |value, digit| (value * i128::from(radix) + i128::from(*digit)).min(1 << 100));
    let value = (sign * value).clamp(i64::MIN.into(), i64::MAX.into());
    Some((access, value as u32))
}
