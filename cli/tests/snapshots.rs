//! What the command prints: its help, its errors, its JSON and its dry runs, word for word.
//!
//! `TRYCMD=overwrite cargo test -p xendev --test snapshots` writes them anew; read the difference before you
//! commit it.

#[test]
fn snapshots() {
    trycmd::TestCases::new().case("tests/cmd/*.trycmd").env("COLUMNS", "100");
}
