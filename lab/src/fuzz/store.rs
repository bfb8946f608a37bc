//! Requests to the embedded store and to the model: each reply and each event is the same.

use std::collections::HashMap;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::runtime::{Builder, Runtime};
use tokio::task::yield_now;
use tokio_util::codec::Decoder;
use xs_proto::{
    Access, DomId, Message, MessageCodec, Op, Path, Permission, Permissions, Request, Token, TxId,
};
use xs_store::Store;

use super::model::{ConnId, Model};

/// Whose the connections are.
const SLOTS: [DomId; 4] = [DomId::DOM0, DomId::DOM0, DomId(7), DomId(8)];
const GUESTS: [DomId; 2] = [DomId(7), DomId(8)];

/// Few, so that requests often meet.
const PATHS: [&str; 16] = [
    "/t",
    "/t/a",
    "/t/a",
    "/t/b",
    "/t/a/a",
    "/t/a/b",
    "/",
    "/local/domain/7",
    "/local/domain/7/a",
    "a",
    "a/b",
    "/local/domain/8",
    "@introduceDomain",
    "@releaseDomain",
    "@releaseDomain/7",
    "@other",
];

const QUOTAS: [(&str, u32); 6] = [
    ("nodes", 5),
    ("watches", 4),
    ("transactions", 3),
    ("transaction-nodes", 8),
    ("node-permissions", 3),
    ("node-size", 60),
];

thread_local! {
    static RUNTIME: Runtime = Builder::new_current_thread().enable_time().build().expect("a runtime");
}

/// The store answers like the model.
///
/// Four bytes of the input are a request: the operation; the connection and the path; an argument;
/// the transaction.
pub fn store(data: &[u8]) {
    RUNTIME.with(|runtime| {
        runtime.block_on(async {
            let mut world = World::new().await;
            for request in data.chunks_exact(4) {
                world.step(request[0], request[1], request[2], request[3]).await;
            }
            world.finish().await;
        });
    });
}

/// The store and the model, and the connections that both have.
struct World {
    store: Store,
    model: Model,
    /// None while the domain does not exist.
    conns: [Option<Conn>; SLOTS.len()],
    /// What the model's generations of a node are called by the store, and the other way round.
    generations: [HashMap<(String, Bytes), Bytes>; 2],
    /// Everything that was asked, to be told if the answers differ.
    asked: Vec<(usize, TxId, Request)>,
}

struct Conn {
    id: ConnId,
    stream: DuplexStream,
    input: BytesMut,
}

/// What comes next on a connection.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Message(Message),
    Nothing,
    End,
}

impl Conn {
    async fn next(&mut self) -> Next {
        // Whenever this yields, the tasks of the store go on. They need one turn, or a few.
        for _ in 0..100 {
            if let Some(message) = MessageCodec::default().decode(&mut self.input).expect("a message") {
                return Next::Message(message);
            }
            tokio::select! {
                biased;
                got = self.stream.read_buf(&mut self.input) => if got.expect("a pipe does not fail") == 0 {
                    return Next::End;
                },
                () = yield_now() => {}
            }
        }
        Next::Nothing
    }
}

impl World {
    /// Two guests with their homes, which hear of whatever they may, limits within their reach, and
    /// a place where everybody may write.
    async fn new() -> Self {
        let mut world = Self {
            store: Store::new(),
            model: Model::new(),
            conns: Default::default(),
            generations: Default::default(),
            asked: Vec::new(),
        };
        world.connect();
        let place = |path: Path, perms| [Request::Mkdir(path.clone()), Request::SetPerms { path, perms }];
        let mut requests = place(path("/t"), Permissions::owned_by(DomId::DOM0, Access::Both)).to_vec();
        requests.extend(["/t/a", "/t/b"].map(|below| Request::Mkdir(path(below))));
        requests.extend(QUOTAS.map(|(name, value)| Request::SetQuota {
            domid: None,
            name: name.into(),
            value,
        }));
        for domid in GUESTS {
            let home = path(&format!("/local/domain/{domid}"));
            requests.push(introduce(domid));
            requests.extend(place(home, Permissions::owned_by(domid, Access::None)));
        }
        world.ask(0, TxId::NONE, requests).await;
        world.connect();
        for slot in 1..SLOTS.len() {
            let (path, token) = (Path::root(), token(0));
            world.ask(slot, TxId::NONE, vec![Request::Watch { path, token, depth: None }]).await;
        }
        world.hear().await;
        world
    }

    /// Opens the connections of domains that are there.
    fn connect(&mut self) {
        for (conn, domid) in self.conns.iter_mut().zip(SLOTS) {
            if conn.is_none() && self.model.is_introduced(domid) {
                let (id, stream) = (self.model.connect(domid), self.store.connect(domid));
                *conn = Some(Conn { id, stream, input: BytesMut::new() });
            }
        }
    }

    async fn step(&mut self, op: u8, place: u8, argument: u8, transaction: u8) {
        let slot = usize::from(place >> 6);
        let Some(conn) = &self.conns[slot] else { return };
        let open = self.model.transactions(conn.id);
        let tx_id = match usize::from(transaction) {
            255 => TxId(255),
            number @ 64.. if !open.is_empty() => open[number % open.len()],
            _ => TxId::NONE,
        };
        let path = path(PATHS[usize::from(place & 63) % PATHS.len()]);
        let token = token(argument & 1);
        let guest = GUESTS[usize::from(argument & 1)];
        let request = match op % 24 {
            0 => Request::Read(path),
            1..=3 => Request::Write { path, value: vec![argument; usize::from(argument % 16)].into() },
            4 => Request::Mkdir(path),
            5 | 6 => Request::Rm(path),
            7 => Request::Directory(path),
            8 => Request::DirectoryPart { path, offset: (argument % 8).into() },
            9 => Request::GetPerms(path),
            10 | 11 => Request::SetPerms { path, perms: permissions(argument) },
            12 | 13 => {
                // Mostly as deep as can be.
                let depth = (argument >> 1).checked_sub(124).map(u32::from);
                Request::Watch { path, token, depth }
            }
            14 => Request::Unwatch { path, token },
            15 => Request::ResetWatches,
            16 | 17 => Request::TransactionStart,
            18 | 19 => Request::TransactionEnd { commit: true },
            20 => Request::TransactionEnd { commit: false },
            21 if argument >= 128 => Request::Release(guest),
            21 => introduce(guest),
            22 => {
                // Now and then one that is not there.
                let name = QUOTAS.get(usize::from(argument & 7)).map_or("none", |(name, _)| name).into();
                Request::SetQuota { domid: None, name, value: (argument >> 3).into() }
            }
            _ => {
                self.model.disconnect(conn.id);
                self.conns[slot] = None;
                return self.connect();
            }
        };
        self.ask(slot, tx_id, vec![request]).await;
        self.hear().await;
        self.connect();
    }

    /// What nobody expects comes before the reply to another request. Then all nodes are looked at.
    async fn finish(&mut self) {
        for slot in 0..SLOTS.len() {
            self.ask(slot, TxId::NONE, vec![Request::GetDomainPath(DomId::DOM0)]).await;
        }
        let look = |path: Path| {
            [Request::Directory(path.clone()), Request::GetPerms(path.clone()), Request::Read(path)]
        };
        let requests = self.model.paths().flat_map(|text| look(path(text))).collect();
        self.ask(0, TxId::NONE, requests).await;
    }

    /// Asks both, in one write, and receives everything up to the last reply.
    async fn ask(&mut self, slot: usize, tx_id: TxId, requests: Vec<Request>) {
        let Some(conn) = &mut self.conns[slot] else { return };
        let mut bytes = BytesMut::new();
        for request in requests {
            let req_id = self.asked.len() as u32;
            request.encode(req_id, tx_id, &mut bytes).expect("a short request");
            self.model.request(conn.id, req_id, tx_id, &request);
            self.asked.push((slot, tx_id, request));
        }
        conn.stream.write_all(&bytes).await.expect("an open connection");
        let last = self.asked.len() as u32 - 1;
        loop {
            let message = self.receive(slot).await;
            if message.is_none_or(|message| message.op != Op::WATCH_EVENT && message.req_id == last) {
                return;
            }
        }
    }

    /// Receives the events that are due, and the end of connections whose domain has ended.
    async fn hear(&mut self) {
        for slot in 0..SLOTS.len() {
            let Some(Conn { id, .. }) = self.conns[slot] else { continue };
            while self.model.has_output(id) {
                self.receive(slot).await;
            }
            if !self.model.is_connected(id) {
                self.receive(slot).await;
                self.conns[slot] = None;
            }
        }
    }

    /// Receives what comes next, which is what the model says.
    async fn receive(&mut self, slot: usize) -> Option<Message> {
        let conn = self.conns[slot].as_mut()?;
        let store = conn.next().await;
        let model = match self.model.next_output(conn.id) {
            Some(message) => Next::Message(message),
            None if self.model.is_connected(conn.id) => Next::Nothing,
            None => Next::End,
        };
        let same = match (&store, &model) {
            (Next::Message(store), Next::Message(model)) if model.op == Op::DIRECTORY_PART => {
                self.same_part(store, model)
            }
            _ => store == model,
        };
        if !same {
            let line = |(slot, tx_id, request): &(usize, TxId, Request)| {
                format!("connection {slot}, transaction {}: {request:?}\n", tx_id.0)
            };
            let asked: String = self.asked.iter().map(line).collect();
            panic!("after\n{asked}connection {slot} gets\n{store:?}\nand should get\n{model:?}");
        }
        if let Next::Message(message) = store { Some(message) } else { None }
    }

    /// Whether two parts of a list are the same. Their generations are if they have always stood
    /// for each other.
    fn same_part(&mut self, store: &Message, model: &Message) -> bool {
        let split = |message: &Message| {
            let at = message.payload.iter().position(|byte| *byte == 0).unwrap_or_default();
            (message.payload.slice(..at), Message { payload: message.payload.slice(at..), ..message.clone() })
        };
        let ((store_says, store), (model_says, model)) = (split(store), split(model));
        let (.., request) = &self.asked[model.req_id as usize];
        let path = self.model.absolute(request.path().map_or("", |path| path));
        let [by_model, by_store] = &mut self.generations;
        let heard = by_model.entry((path.clone(), model_says.clone())).or_insert(store_says.clone());
        let meant = by_store.entry((path, store_says.clone())).or_insert(model_says.clone());
        store == model && *heard == store_says && *meant == model_says
    }
}

fn path(text: &str) -> Path {
    Path::new(text).expect("a path")
}

fn token(number: u8) -> Token {
    Token::new(vec![b't' + number]).expect("a token")
}

fn introduce(domid: DomId) -> Request {
    Request::Introduce { domid, gfn: 1, evtchn: 1 }
}

/// A list of one to three entries.
fn permissions(bits: u8) -> Permissions {
    let access = |bits| [Access::None, Access::Read, Access::Write, Access::Both][usize::from(bits & 3)];
    let owner = [DomId(0), DomId(7), DomId(8), DomId(9)][usize::from(bits & 3)];
    let others: &[DomId] = match bits >> 4 & 3 {
        0 => &[],
        1 => &[DomId(7)],
        2 => &[DomId(8)],
        _ => &[DomId(7), DomId::ANY],
    };
    let others = others.iter().map(|domid| Permission { domid: *domid, access: access(bits >> 6) });
    let owner = Permission { domid: owner, access: access(bits >> 2) };
    Permissions::new([owner].into_iter().chain(others).collect()).expect("an owner")
}
