//! PCI functions of the host that come to a guest's bus and go, beside simulated drivers of both ends and a stand-in for
//! the hypervisor.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::join;
use tokio_util::sync::CancellationToken;
use xen_aodevice::pcidev::{self, PciAddress};
use xen_aodevice::sim::PciDriver;
use xen_aodevice::{Cause, Failure, FailureKind, Hint, PciHost, Success, Toolstack, pci_functions};
use xs_client::{Client, Config, DomId};

use crate::world::{GUEST, World, added, told, warned};

const BE: &str = "/local/domain/0/backend/pci/1/0";
const FE: &str = "/local/domain/1/device/pci/0";
const NOTES: &str = "/libxl/pci";

/// Who has which function, as the hypervisor knows it.
#[derive(Debug, Default)]
struct Hypervisor {
    given: Mutex<Vec<String>>,
    refuses: Mutex<bool>,
}

impl Hypervisor {
    fn given(&self) -> Vec<String> {
        self.given.lock().unwrap().clone()
    }

    fn refuses(&self, refuses: bool) {
        *self.refuses.lock().unwrap() = refuses;
    }

    fn asked(&self) -> Result<(), Cause> {
        if *self.refuses.lock().unwrap() { Err(Cause::Host("it is busy".to_owned())) } else { Ok(()) }
    }
}

impl PciHost for Hypervisor {
    fn check(&self, address: PciAddress) -> Result<(), Cause> {
        if address.bus == 0xff { Err(Cause::NoHostDevice(format!("PCI function {address}"))) } else { Ok(()) }
    }

    fn give(&self, fe: DomId, address: PciAddress) -> Result<(), Cause> {
        self.asked()?;
        self.given.lock().unwrap().push(format!("{fe} {address}"));
        Ok(())
    }

    fn take(&self, fe: DomId, address: PciAddress) -> Result<(), Cause> {
        self.asked()?;
        self.given.lock().unwrap().retain(|given| *given != format!("{fe} {address}"));
        Ok(())
    }
}

pub(crate) struct Host {
    pub(crate) world: World,
    hypervisor: Arc<Hypervisor>,
    pub(crate) toolstack: Toolstack,
    back: Option<PciDriver>,
    front: Option<PciDriver>,
}

impl Host {
    /// Without drivers.
    async fn bare() -> Self {
        let (world, hypervisor) = (World::new().await, Arc::new(Hypervisor::default()));
        let toolstack = world.toolstack.clone().with_pci_host(hypervisor.clone());
        Self { world, hypervisor, toolstack, back: None, front: None }
    }

    fn connect(&self, domid: DomId) -> Client {
        Client::over(self.world.store.connect(domid), Config::default())
    }

    fn with_pciback(mut self) -> Self {
        let back = PciDriver::backend(self.connect(DomId::DOM0), GUEST, Duration::from_millis(100));
        self.back = Some(back.unwrap());
        self
    }

    fn with_pcifront(mut self) -> Self {
        let front = PciDriver::frontend(self.connect(GUEST), GUEST, Duration::from_millis(100));
        self.front = Some(front.unwrap());
        self
    }

    pub(crate) async fn new() -> Self {
        Self::bare().await.with_pciback().with_pcifront()
    }

    /// With these functions.
    async fn with(functions: &[&str]) -> Self {
        let host = Self::new().await;
        for function in functions {
            host.attach(function).await.unwrap();
        }
        host.is_connected().await;
        host
    }

    async fn attach(&self, text: &str) -> Result<Success, Box<Failure>> {
        self.attach_unless(text, &CancellationToken::new()).await
    }

    async fn attach_unless(&self, text: &str, cancel: &CancellationToken) -> Result<Success, Box<Failure>> {
        self.toolstack.attach_pci(GUEST, &pcidev::parse(text).unwrap(), cancel).await
    }

    async fn detach(&self, address: &str, force: bool) -> Result<Success, Box<Failure>> {
        let never = CancellationToken::new();
        self.toolstack.detach_pci(GUEST, address.parse().unwrap(), force, &never).await
    }

    /// The functions of the guest, in its bus and for the hypervisor.
    pub(crate) async fn functions(&self) -> (Vec<String>, Vec<String>) {
        let functions = pci_functions(&self.world.dom0, GUEST).await.unwrap();
        (
            functions.iter().map(|of| format!("{:x}:{:x}.{:x}", of.bus, of.device, of.function)).collect(),
            self.hypervisor.given(),
        )
    }

    async fn is_connected(&self) {
        for _ in 0..1000 {
            let states = [BE, FE].map(|end| format!("{end}/state"));
            if self.world.read(&states[0]).await == "4" && self.world.read(&states[1]).await == "4" {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("the bus is not connected:\n{}", self.world.dump().await.join("\n"));
    }
}

fn names(functions: &[&str]) -> Vec<String> {
    functions.iter().map(|function| (*function).to_owned()).collect()
}

#[tokio::test(start_paused = true)]
async fn the_first_function_makes_the_bus_and_the_last_takes_it_away() {
    let host = Host::bare().await;
    let before = host.world.dump().await;
    let driver = async {
        host.world.exists(BE).await;
        let made = added(&before, &host.world.dump().await);
        host.world.write(&format!("{BE}/state"), "3").await;
        made
    };
    let (attached, made) = join!(host.attach("0000:03:00.1@5"), driver);
    attached.unwrap();
    let wanted = [
        ("backend/pci", "", "n0"),
        ("backend/pci/1", "", "n0"),
        ("backend/pci/1/0", "", "n0,r1"),
        ("backend/pci/1/0/frontend", FE, "n0,r1"),
        ("backend/pci/1/0/frontend-id", "1", "n0,r1"),
        ("backend/pci/1/0/online", "1", "n0,r1"),
        ("backend/pci/1/0/state", "1", "n0,r1"),
        ("backend/pci/1/0/domain", "g", "n0,r1"),
        ("backend/pci/1/0/key-0", "0000:03:00.1", "n0,r1"),
        ("backend/pci/1/0/dev-0", "0000:03:00.1", "n0,r1"),
        ("backend/pci/1/0/vdevfn-0", "28", "n0,r1"),
        ("backend/pci/1/0/opts-0", "msitranslate=0,power_mgmt=0,permissive=0,rdm_policy=strict", "n0,r1"),
        ("backend/pci/1/0/state-0", "1", "n0,r1"),
        ("backend/pci/1/0/num_devs", "1", "n0,r1"),
    ];
    let mut wanted: Vec<String> = wanted
        .iter()
        .map(|(node, value, perms)| format!("/local/domain/0/{node} = \"{value}\"   ({perms})"))
        .collect();
    wanted.push("/local/domain/1/device/pci = \"\"   (n0,r1)".to_owned());
    for (node, value) in [("", ""), ("/backend", BE), ("/backend-id", "0"), ("/state", "1")] {
        wanted.push(format!("{FE}{node} = \"{value}\"   (n1,r0)"));
    }
    wanted.push(format!("{NOTES} = \"\"   (n0)"));
    wanted.push(format!("{NOTES}/0000-03-00-1 = \"\"   (n0)"));
    wanted.push(format!("{NOTES}/0000-03-00-1/domid = \"1\"   (n0)"));
    assert_eq!(made, wanted);
    let host = host.with_pciback().with_pcifront();
    host.is_connected().await;
    assert_eq!(host.detach("3:0.1", false).await.unwrap().warnings.len(), 0);
    assert_eq!(host.world.dump().await, before);
    assert_eq!(host.hypervisor.given(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn functions_come_and_one_of_several_goes() {
    let host = Host::with(&["3:0.0", "4:0.0@6,permissive=1", "5:0.0"]).await;
    assert_eq!(host.functions().await.0, names(&["3:0.0", "4:0.0", "5:0.0"]));
    assert_eq!(host.world.read(&format!("{BE}/state-2")).await, "3", "pciback has taken it up");
    host.detach("3:0.0", false).await.unwrap();
    assert_eq!(
        host.functions().await,
        (names(&["4:0.0", "5:0.0"]), names(&["1 0000:04:00.0", "1 0000:05:00.0"]))
    );
    for (key, value) in [
        ("num_devs", "2"),
        ("dev-0", "0000:04:00.0"),
        ("vdevfn-0", "30"),
        ("opts-0", "msitranslate=0,power_mgmt=0,permissive=1,rdm_policy=strict"),
        ("dev-1", "0000:05:00.0"),
        ("vdevfn-1", "not there"),
        ("dev-2", "not there"),
        ("state-2", "not there"),
    ] {
        assert_eq!(host.world.read(&format!("{BE}/{key}")).await, value, "{key}");
    }
    assert_eq!(host.world.read(&format!("{NOTES}/0000-03-00-0")).await, "not there");
    // It can come back.
    host.attach("3:0.0").await.unwrap();
    assert_eq!(host.functions().await.0, names(&["4:0.0", "5:0.0", "3:0.0"]));
}

#[tokio::test(start_paused = true)]
async fn changes_at_one_time_come_one_after_the_other() {
    let host = Host::with(&["3:0.0", "4:0.0"]).await;
    let (one, two, three) = join!(host.attach("5:0.0"), host.attach("6:0.0"), host.detach("3:0.0", false));
    for ended in [one, two, three] {
        ended.unwrap();
    }
    let mut functions = host.functions().await;
    functions.0.sort_unstable();
    functions.1.sort_unstable();
    assert_eq!(functions.0, names(&["4:0.0", "5:0.0", "6:0.0"]));
    assert_eq!(functions.1, names(&["1 0000:04:00.0", "1 0000:05:00.0", "1 0000:06:00.0"]));
    // Two who want the same one.
    let (one, two) = join!(host.attach("7:0.0"), host.attach("7:0.0"));
    let codes = [one, two].map(|ended| ended.map_or_else(|failure| failure.cause.code(), |_| "ok"));
    assert!(matches!(codes, ["ok", "exists"] | ["exists", "ok"]), "{codes:?}");
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_never_answers() {
    let mut host = Host::with(&["3:0.0", "4:0.0"]).await;
    host.front = None;
    let begun = host.world.clock();
    let failure = host.detach("4:0.0", false).await.unwrap_err();
    assert_eq!(failure.cause.kind(), FailureKind::TimedOut);
    assert!((host.world.clock() - begun - 10.0).abs() < 0.2, "{}", host.world.clock() - begun);
    assert_eq!(failure.hint(), Hint::RemoveAgainOrForce);
    assert_eq!(
        host.functions().await,
        (names(&["3:0.0", "4:0.0"]), names(&["1 0000:03:00.0", "1 0000:04:00.0"]))
    );
    // An attach waits for the bus in vain, and leaves nothing.
    let failure = host.attach("5:0.0").await.unwrap_err();
    assert_eq!((failure.cause.code(), failure.warnings.len()), ("timed_out", 0));
    assert_eq!(host.functions().await.1, names(&["1 0000:03:00.0", "1 0000:04:00.0"]));
    assert_eq!(host.world.read(&format!("{NOTES}/0000-05-00-0")).await, "not there");
    // By force it goes.
    let forced = host.detach("4:0.0", true).await.unwrap();
    assert_eq!(warned(&forced), ["forced: the backend did not close within 10s"]);
    assert_eq!(host.functions().await, (names(&["3:0.0"]), names(&["1 0000:03:00.0"])));
}

/// What an attach has announced and the guest does not take is taken back.
#[tokio::test(start_paused = true)]
async fn a_guest_that_does_not_take_a_function() {
    let mut host = Host::with(&["3:0.0"]).await;
    host.front = None;
    let failure = host.attach("4:0.0").await.unwrap_err();
    assert_eq!(failure.cause.kind(), FailureKind::TimedOut);
    assert_eq!(failure.hint(), Hint::CheckGuest("xen-pcifront"));
    let told = told(&failure);
    assert_eq!(told[0], "cannot attach pci 0000:04:00.0 to domain 1");
    assert!(told.iter().any(|told| told.starts_with("backend state 7")), "{told:?}");
    assert_eq!(host.functions().await, (names(&["3:0.0"]), names(&["1 0000:03:00.0"])));
    assert_eq!(host.world.read(&format!("{NOTES}/0000-04-00-0")).await, "not there");
}

/// B-24: libxl waits 10 s, with everything else at a standstill, for a backend whose frontend is gone.
#[tokio::test(start_paused = true)]
async fn b24_a_frontend_that_is_closed_is_not_waited_for() {
    for force in [false, true] {
        let mut host = Host::with(&["3:0.0", "4:0.0"]).await;
        (host.front, host.back) = (None, None);
        host.world.guest.write(&crate::world::path(format!("{FE}/state")), "6").await.unwrap();
        let begun = host.world.clock();
        host.detach("3:0.0", force).await.unwrap();
        assert!(host.world.clock() - begun < 1.0);
        assert_eq!(host.functions().await, (names(&["4:0.0"]), names(&["1 0000:04:00.0"])));
        // Beside it others work.
        let failure = host.attach("5:0.0").await.unwrap_err();
        assert_eq!(failure.cause.code(), "not_supported");
        assert!(host.world.clock() - begun < 1.0);
        assert_eq!(host.hypervisor.given(), ["1 0000:04:00.0"]);
    }
}

/// Two detaches of guests, one of which hangs: the other does not wait for it (B-24).
#[tokio::test(start_paused = true)]
async fn b24_one_guest_does_not_hold_up_another() {
    let mut host = Host::with(&["3:0.0", "4:0.0"]).await;
    host.front = None;
    let begun = host.world.clock();
    let (stuck, other) = join!(host.detach("3:0.0", false), async {
        let ended = host
            .toolstack
            .detach_pci(DomId(2), "3:0.0".parse().unwrap(), false, &CancellationToken::new())
            .await;
        (ended.unwrap_err().cause.code(), host.world.clock())
    });
    assert_eq!(stuck.unwrap_err().cause.code(), "timed_out");
    assert_eq!(other, ("no_such_device", begun));
}

/// What the guest can write tells of nothing but itself.
#[tokio::test(start_paused = true)]
async fn a_hostile_guest() {
    let host = Host::with(&["3:0.0", "4:0.0"]).await;
    let guest = &host.world.guest;
    let node = |text: String| crate::world::path(text);
    for key in ["dev-0", "num_devs", "state", "state-0"] {
        assert!(guest.write(&node(format!("{BE}/{key}")), "9").await.is_err(), "{key}");
    }
    for (key, value) in [
        ("backend", "/local/domain/0/backend/pci/2/0"),
        ("dev-0", "0000:09:00.0"),
        ("num_devs", "99999999999"),
        ("state-0", "6"),
    ] {
        guest.write(&node(format!("{FE}/{key}")), value).await.unwrap();
    }
    // It writes all the time: no transaction reads what it can write.
    let writing = async {
        loop {
            guest.write(&node(format!("{FE}/backend")), "x").await.unwrap();
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let work = async {
        host.attach("5:0.0").await.unwrap();
        host.detach("3:0.0", false).await.unwrap();
    };
    tokio::select! {
        () = work => {}
        () = writing => {}
    }
    assert_eq!(
        host.functions().await,
        (names(&["4:0.0", "5:0.0"]), names(&["1 0000:04:00.0", "1 0000:05:00.0"]))
    );
    // One that does not answer, and then says that it is closed, keeps nothing of what goes.
    host.is_connected().await;
    let mut host = host;
    host.front = None;
    assert_eq!(host.detach("4:0.0", false).await.unwrap_err().cause.code(), "timed_out");
    host.world.guest.write(&node(format!("{FE}/state")), "6").await.unwrap();
    host.detach("4:0.0", false).await.unwrap();
    assert_eq!(host.functions().await, (names(&["5:0.0"]), names(&["1 0000:05:00.0"])));
}

#[tokio::test(start_paused = true)]
async fn the_backend_dies() {
    let mut host = Host::with(&["3:0.0", "4:0.0"]).await;
    host.back = None;
    // In mid-attach: its directory goes.
    let (ended, ()) = join!(host.attach("5:0.0"), async {
        host.world.exists(&format!("{BE}/dev-2")).await;
        host.world.dom0.rm(&crate::world::path(BE)).await.unwrap();
    });
    let failure = ended.unwrap_err();
    assert_eq!((failure.cause.code(), failure.warnings.len()), ("vanished", 0));
    // What it held is the hypervisor's and the notes' still, and can be detached.
    assert_eq!(host.hypervisor.given(), ["1 0000:03:00.0", "1 0000:04:00.0"]);
    for function in ["3:0.0", "4:0.0"] {
        host.detach(function, false).await.unwrap();
    }
    assert_eq!(host.hypervisor.given(), [""; 0]);
    assert_eq!(host.world.read(NOTES).await, "not there");
    // In mid-detach.
    let mut host = Host::with(&["3:0.0", "4:0.0"]).await;
    host.back = None;
    let (ended, ()) = join!(host.detach("3:0.0", false), async {
        host.world.exists(&format!("{BE}/state-0")).await;
        while host.world.read(&format!("{BE}/state-0")).await != "5" {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        host.world.dom0.rm(&crate::world::path(BE)).await.unwrap();
    });
    ended.unwrap();
    assert_eq!(host.hypervisor.given(), ["1 0000:04:00.0"]);
}

#[tokio::test(start_paused = true)]
async fn without_pciback_nothing_is_left() {
    let host = Host::bare().await;
    let before = host.world.dump().await;
    let failure = host.attach("3:0.0").await.unwrap_err();
    assert_eq!((failure.cause.code(), failure.hint()), ("timed_out", Hint::LoadBackend("xen-pciback")));
    assert_eq!(host.world.dump().await, before);
    assert_eq!(host.hypervisor.given(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_attach_leaves_nothing() {
    for doing in [
        "looking at the function",
        "having the hypervisor assign it",
        "writing it into the guest's bus",
        "waiting for the guest to take the function",
    ] {
        let mut host = Host::with(&["3:0.0"]).await;
        let before = host.world.dump().await;
        let cancel = CancellationToken::new();
        let stop = cancel.clone();
        host.toolstack = host.toolstack.clone().with_observer(move |step| {
            if step.doing == doing {
                stop.cancel();
            }
        });
        let failure = host.attach_unless("4:0.0", &cancel).await.unwrap_err();
        assert!(matches!(failure.cause, Cause::Aborted) && failure.warnings.is_empty(), "{doing}: {failure}");
        host.is_connected().await;
        assert_eq!(host.world.dump().await, before, "{doing}");
        assert_eq!(host.hypervisor.given(), ["1 0000:03:00.0"], "{doing}");
    }
}

/// A detach that was cancelled, or died, is gone on with.
#[tokio::test(start_paused = true)]
async fn a_cancelled_detach_is_gone_on_with() {
    let host = Host::with(&["3:0.0", "4:0.0"]).await;
    let cancel = CancellationToken::new();
    let stop = cancel.clone();
    let toolstack = host.toolstack.clone().with_observer(move |step| {
        if step.doing == "waiting for the guest to let go of the function" {
            stop.cancel();
        }
    });
    let failure = toolstack.detach_pci(GUEST, "3:0.0".parse().unwrap(), false, &cancel).await.unwrap_err();
    assert!(matches!(failure.cause, Cause::Aborted));
    assert_eq!(host.functions().await.1.len(), 2);
    host.detach("3:0.0", false).await.unwrap();
    assert_eq!(host.functions().await, (names(&["4:0.0"]), names(&["1 0000:04:00.0"])));
}

#[tokio::test(start_paused = true)]
async fn the_hypervisor_refuses() {
    let host = Host::with(&["3:0.0", "4:0.0"]).await;
    let before = host.world.dump().await;
    host.hypervisor.refuses(true);
    let failure = host.attach("5:0.0").await.unwrap_err();
    assert_eq!(failure.cause.to_string(), "the host's kernel refused: it is busy");
    // That it has nothing of it is not known: the note stays, and says where it would be.
    let warned = failure.warnings[0].to_string();
    assert!(warned.starts_with("taking the function back by the hypervisor failed"), "{warned}");
    host.hypervisor.refuses(false);
    host.detach("5:0.0", false).await.unwrap();
    assert_eq!(host.world.dump().await, before);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_had_is_refused_and_nothing_is_changed() {
    let host = Host::with(&["3:0.0"]).await;
    host.world.write("/local/domain/0/backend/pci/7/0/num_devs", "1").await;
    host.world.write("/local/domain/0/backend/pci/7/0/dev-0", "0000:09:00.0").await;
    host.world.write(&format!("{NOTES}/0000-0a-00-0/domid"), "8").await;
    let before = host.world.dump().await;
    for (text, code, hint) in [
        ("3:0.0", "exists", Hint::ListDevices(xen_aodevice::Kind::Pci)),
        ("9:0.0", "assigned", Hint::DetachElsewhere(DomId(7))),
        ("a:0.0", "assigned", Hint::DetachElsewhere(DomId(8))),
        ("ff:0.0", "no_host_device", Hint::ListHostDevices),
    ] {
        let failure = host.attach(text).await.unwrap_err();
        assert_eq!((failure.cause.code(), failure.hint()), (code, hint), "{text}");
    }
    assert_eq!(host.detach("b:0.0", false).await.unwrap_err().cause.code(), "no_such_device");
    // An HVM guest's are QEMU's, and without a hypervisor's half nothing is begun.
    host.world.write("/libxl/1/type", "hvm").await;
    assert_eq!(host.attach("5:0.0").await.unwrap_err().cause.code(), "not_supported");
    host.world.write("/libxl/1/type", "pv").await;
    let failure = host
        .world
        .toolstack
        .attach_pci(GUEST, &pcidev::parse("5:0.0").unwrap(), &CancellationToken::new())
        .await;
    let failure = failure.unwrap_err();
    assert_eq!((failure.cause.code(), failure.hint()), ("not_supported", Hint::UseOtherToolstack));
    assert_eq!(host.world.dump().await, before);
}
