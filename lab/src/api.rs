//! `cargo lab api`: the public surface of the library crates, held to what was reviewed.
//!
//! `lab/api` has a list of every public item. A change that adds, drops or alters one shows there,
//! in the same commit, or fails this check. The lists come from rustdoc's JSON, whose format
//! changes with Rust; where it is not the one that we know, the check says so and lets pass: it
//! is there for the reviewer, and no test of what the code does.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use public_api::Builder;
use serde_json::Value;

use crate::cargo::{cargo, succeed};

/// What others build on, each with the features that add to its surface.
const CRATES: [(&str, &str); 6] = [
    ("xs-proto", "map"),
    ("xs-client", ""),
    ("xs-store", ""),
    ("xen-devstate", ""),
    ("xen-hotplug", ""),
    ("xen-aodevice", "sim"),
];

/// The format that `public_api` reads: that of Rust 1.94 and 1.95.
const FORMAT: u64 = 57;

/// Compare the public items of the library crates with the lists in `lab/api`
#[derive(Clone, Debug, clap::Args)]
pub struct ApiArgs {
    /// Write the lists anew
    #[arg(long)]
    pub write: bool,
}

/// Runs the subcommand; a difference is an error.
pub fn run(args: &ApiArgs) -> Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("api");
    let mut differ = Vec::new();
    for (name, features) in CRATES {
        let json = rustdoc(name, features)?;
        let format = format(&json)?;
        if format != FORMAT {
            println!(
                "public items: NOT COMPARED: this rustdoc writes format {format}, and {FORMAT} is known"
            );
            return Ok(());
        }
        let items = items(&json)?;
        let file = folder.join(name).with_extension("txt");
        if args.write {
            fs::create_dir_all(&folder)?;
            fs::write(&file, items.join("\n") + "\n").with_context(|| file.display().to_string())?;
            println!("{name}: {} public items", items.len());
        } else if !is_same(name, &file, &items)? {
            differ.push(name);
        }
    }
    ensure!(
        differ.is_empty(),
        "the public items of {} are not those in lab/api; if they are meant to be so: cargo lab api --write",
        differ.join(", ")
    );
    Ok(())
}

/// Documents a crate as JSON.
fn rustdoc(name: &str, features: &str) -> Result<PathBuf> {
    let mut command = cargo();
    command.args(["rustdoc", "--quiet", "--package", name, "--lib", "--features", features]);
    command.args(["--target-dir", "target/api", "--", "-Z", "unstable-options", "--output-format", "json"]);
    // The output format is not stable, which is what FORMAT is about.
    succeed(command.env("RUSTC_BOOTSTRAP", "1"))?;
    Ok(Path::new("target/api/doc").join(name.replace('-', "_")).with_extension("json"))
}

fn format(json: &Path) -> Result<u64> {
    let text = fs::read(json).with_context(|| json.display().to_string())?;
    let document: Value = serde_json::from_slice(&text)?;
    document["format_version"].as_u64().context("rustdoc's JSON names no format")
}

fn items(json: &Path) -> Result<Vec<String>> {
    let builder = Builder::from_rustdoc_json(json);
    let api =
        builder.omit_blanket_impls(true).omit_auto_trait_impls(true).omit_auto_derived_impls(true).build();
    Ok(api?.items().map(ToString::to_string).collect())
}

/// Tells each difference.
fn is_same(name: &str, file: &Path, items: &[String]) -> Result<bool> {
    let reviewed = fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let reviewed: BTreeSet<&str> = reviewed.lines().collect();
    let items: BTreeSet<&str> = items.iter().map(String::as_str).collect();
    for dropped in reviewed.difference(&items) {
        println!("{name}: - {dropped}");
    }
    for added in items.difference(&reviewed) {
        println!("{name}: + {added}");
    }
    if reviewed == items {
        println!("{name}: {} public items, the same", items.len());
    }
    Ok(reviewed == items)
}
