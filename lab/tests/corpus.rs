//! The inputs that fuzzing has found worth keeping: what it once took to reach some code, or to
//! break something.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use lab::fuzz::TARGETS;

#[test]
fn every_input_keeps_the_promises() {
    for target in TARGETS {
        let inputs: Vec<_> =
            fs::read_dir(target.corpus()).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(!inputs.is_empty(), "{} has no corpus", target.name);
        for input in inputs {
            // Shown if the next line panics.
            println!("{}", input.display());
            (target.check)(&fs::read(&input).unwrap());
        }
    }
}

/// Cargo-fuzz finds targets by their files, and libFuzzer a corpus by its folder.
#[test]
fn no_target_is_left_out() {
    let targets: BTreeSet<String> = TARGETS.iter().map(|target| target.name.to_owned()).collect();
    let names = |folder: &str| -> BTreeSet<String> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(folder);
        let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        entries.map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names("fuzz_targets"), targets);
    assert_eq!(names("corpus"), targets);
}
