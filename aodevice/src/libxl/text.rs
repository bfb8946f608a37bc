//! JSON as libxl prints it.

use std::fmt::Write as _;

use serde_json::{Map, Value};

/// The text of a value in the form that libxl gives to its files and `xl` to its listings: that of the
/// library yajl, indented by 4 blanks. It ends in a newline.
///
/// ```
/// let value = serde_json::json!({"vdev": "xvda", "readwrite": 1, "colo": {}});
/// let text = "{\n    \"vdev\": \"xvda\",\n    \"readwrite\": 1,\n    \"colo\": {\n\n    }\n}\n";
/// assert_eq!(xen_aodevice::libxl::pretty(&value), text);
/// ```
pub fn pretty(value: &Value) -> String {
    let mut out = String::new();
    put(&mut out, value, 0);
    out.push('\n');
    out
}

/// The text of an object.
pub(super) fn pretty_object(members: &Map<String, Value>) -> String {
    let mut out = String::new();
    put_object(&mut out, members, 0);
    out.push('\n');
    out
}

fn put(out: &mut String, value: &Value, depth: usize) {
    match value {
        Value::Object(members) => put_object(out, members, depth),
        Value::Array(items) => {
            put_block(out, ['[', ']'], depth, items, |out, item| put(out, item, depth + 1));
        }
        Value::String(text) => put_string(out, text),
        Value::Null | Value::Bool(_) | Value::Number(_) => out.push_str(&value.to_string()),
    }
}

fn put_object(out: &mut String, members: &Map<String, Value>, depth: usize) {
    put_block(out, ['{', '}'], depth, members, |out, (name, value)| {
        put_string(out, name);
        out.push_str(": ");
        put(out, value, depth + 1);
    });
}

/// Prints items on lines of their own. yajl leaves an empty line where there are none.
fn put_block<T>(
    out: &mut String,
    [open, close]: [char; 2],
    depth: usize,
    items: impl IntoIterator<Item = T>,
    put_item: impl Fn(&mut String, T),
) {
    out.push(open);
    for (index, item) in items.into_iter().enumerate() {
        out.push_str(if index == 0 { "\n" } else { ",\n" });
        indent(out, depth + 1);
        put_item(out, item);
    }
    if out.ends_with(open) {
        out.push('\n');
    }
    out.push('\n');
    indent(out, depth);
    out.push(close);
}

fn indent(out: &mut String, depth: usize) {
    out.extend(std::iter::repeat_n("    ", depth));
}

fn put_string(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            // Writing to a string does not fail.
            '\0'..='\u{1f}' => drop(write!(out, "\\u{:04X}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_are_printed_as_yajl_does() {
        let value = json!({"a": [], "b": [{}, 1, "x"], "c": {"d": null, "e": true}, "f": -1});
        let text = r#"{
    "a": [

    ],
    "b": [
        {

        },
        1,
        "x"
    ],
    "c": {
        "d": null,
        "e": true
    },
    "f": -1
}
"#;
        assert_eq!(pretty(&value), text);
        assert_eq!(pretty(&json!({})), "{\n\n}\n");
        assert_eq!(pretty(&json!("x")), "\"x\"\n");
    }

    /// A string that ends in a bracket is not taken for an empty block.
    #[test]
    fn brackets_in_strings() {
        assert_eq!(pretty(&json!({"[": "{"})), "{\n    \"[\": \"{\"\n}\n");
        assert_eq!(pretty(&json!(["["])), "[\n    \"[\"\n]\n");
    }

    #[test]
    fn strings_are_escaped_as_yajl_does() {
        for (text, escaped) in [
            ("a\"b\\c", r#""a\"b\\c""#),
            ("\n\r\t\u{8}\u{c}", r#""\n\r\t\b\f""#),
            ("\0\u{b}\u{1f}", r#""\u0000\u000B\u001F""#),
            ("/srv/d.img", r#""/srv/d.img""#),
            ("\u{7f}é€😀", "\"\u{7f}é€😀\""),
        ] {
            assert_eq!(pretty(&json!(text)), format!("{escaped}\n"));
        }
    }

    proptest::proptest! {
        #[test]
        fn every_string_is_read_back(text in ".*") {
            let printed = pretty(&Value::String(text.clone()));
            proptest::prop_assert_eq!(serde_json::from_str::<String>(&printed).unwrap(), text);
        }
    }
}
