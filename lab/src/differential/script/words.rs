//! The words of which requests are made: paths, permission lists, quotas, and what is malformed.

use xs_proto::{DomId, Op};

use super::super::step::{Ask, GUESTS, SOCKETS};
use super::Script;

impl Script {
    pub(super) fn path(&mut self) -> String {
        match self.rng.choice(&self.paths).cloned() {
            Some(path) if self.rng.u8(0..4) > 0 => path,
            _ => self.any_path(),
        }
    }

    pub(super) fn any_path(&mut self) -> String {
        const TOPS: [&str; 11] = [
            "/t",
            "/t",
            "/t/a",
            "/t/a",
            "/local/domain/7",
            "/local/domain/7",
            "/local/domain/8",
            "/local/domain/9",
            "x",
            "a",
            "/",
        ];
        let mut path = (*self.pick(&TOPS)).to_owned();
        for _ in 0..self.rng.u8(0..3) {
            let name = *self.pick(&["a", "b", "c"]);
            path = if path == "/" { format!("/t/{name}") } else { format!("{path}/{name}") };
        }
        path
    }

    /// A path that is deep, or about as long as it may be.
    pub(super) fn long_path(&mut self, conn: usize) -> String {
        let top = *self.pick(&["/t", "/local/domain/7", "/local/domain/8", "x"]);
        match self.rng.u8(0..4) {
            0 => {
                // No deeper: while a transaction is open, a guest that creates or removes many nodes is
                // made to wait.
                format!("{top}{}", "/a".repeat(*self.pick(&[5, 20, 60])))
            }
            1 => format!("{top}/{}", "n".repeat(*self.pick(&[10, 255, 1000]))),
            _ => {
                // A socket is not held to the quota since 4.18.
                let lengths: &[usize] =
                    if conn < SOCKETS { &[2047, 2048] } else { &[2046, 2047, 2048, 2049] };
                let length = *self.pick(lengths);
                let free = if top.starts_with("/local") { "/local/domain/7/".len() } else { 0 };
                format!("{top}/{}", "n".repeat(length + free - top.len() - 1))
            }
        }
    }

    pub(super) fn list(&mut self, conn: usize) -> String {
        let owner = *self.pick(&["0", "0", "0", "7", "7", "8", "9", "12"]);
        match conn.checked_sub(SOCKETS) {
            // A guest may not give anything away.
            Some(guest) if self.rng.bool() => self.list_of(&GUESTS[guest].to_string()),
            _ => self.list_of(owner),
        }
    }

    pub(super) fn list_of(&mut self, owner: &str) -> String {
        const ENTRIES: [&str; 14] = [
            "r7\0", "w7\0", "b7\0", "n7\0", "r8\0", "b8\0", "n8\0", "r9\0", "b9\0", "n9\0", "r 7\0",
            "r0x8\0", "b-1\0", "r007\0",
        ];
        let mut list = format!("{}{owner}\0", self.pick(&["n", "r", "w", "b", "b"]));
        for _ in 0..self.rng.u8(0..4) {
            list += *self.pick(&ENTRIES);
        }
        list
    }

    /// A watch whose path is relative with an absolute path, and the other way round, or as it is.
    pub(super) fn other_spelling(&mut self, conn: usize, watch: String) -> String {
        let domid = conn.checked_sub(SOCKETS).map_or(DomId::DOM0, |guest| GUESTS[guest]);
        let home = format!("/local/domain/{domid}/");
        match watch.strip_prefix(&home) {
            _ if self.rng.bool() => watch,
            Some(relative) => relative.to_owned(),
            None if watch.starts_with(['/', '@']) => watch,
            None => home + &watch,
        }
    }

    /// Requests of several strings that are not as they should be.
    pub(super) fn malformed(&mut self, path: String) -> Ask {
        const ENTRIES: [&str; 12] =
            ["x7", "R7", "r", "", "r7x", "7", "r 7 ", "r08", "r0x", "rr7", "r+", "r99999999999"];
        let bad = *self
            .pick(&["", "/t/", "//t", "/t//a", "/t a", "t.a", "/t\x01", "@", "@x", "/@", "a@b", "/t/-_@"]);
        let path = if self.rng.bool() { bad.to_owned() } else { path };
        let entry = *self.pick(&ENTRIES);
        let payload = match self.rng.u8(0..8) {
            0 => path.clone(),
            1 => format!("{path}\0"),
            2 => format!("{path}\0x"),
            3 => format!("{path}\0t\0tail"),
            4 => format!("{path}\0a\0b\0c\0"),
            5 => format!("{path}\0{entry}\0"),
            6 => format!("{path}\0n0\0{entry}\0"),
            _ => String::new(),
        };
        // Four strings are too many for a watch; three are a depth.
        let is_special = path.starts_with('@');
        let ops: &[Op] = match payload.matches('\0').count() {
            _ if is_special => &[Op::UNWATCH, Op::WRITE],
            3 => &[Op::UNWATCH, Op::SET_PERMS, Op::WRITE],
            2 if payload.ends_with("tail") => &[Op::WATCH, Op::UNWATCH, Op::SET_PERMS, Op::WRITE],
            _ => &[Op::WATCH, Op::UNWATCH, Op::SET_PERMS, Op::WRITE, Op::DIRECTORY_PART],
        };
        Ask::new(*self.pick(ops), payload)
    }

    pub(super) fn quota(&mut self) -> Ask {
        const QUOTAS: [(&str, &[u32]); 7] = [
            ("nodes", &[1, 3, 6, 10, 1000]),
            ("watches", &[1, 2, 4, 128]),
            ("transactions", &[1, 2, 10]),
            ("transaction-nodes", &[1, 4, 8, 1024]),
            ("permissions", &[1, 2, 3]),
            ("node-size", &[40, 60, 1000, 2048, 10_000]),
            ("outstanding", &[2, 20]),
        ];
        let (name, limits) = *self.pick(&QUOTAS);
        let limit = *self.pick(limits);
        Ask::new(Op::CONTROL, format!("quota\0set\0{name}\0{limit}\0"))
    }
}
