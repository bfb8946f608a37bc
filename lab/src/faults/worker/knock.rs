//! Calls that are given up, again and again, while no store says anything.

use xs_client::Request;

use super::{Caller, drop_after};
use crate::faults::face::{Asks, Face};
use crate::faults::fault::Event;
use crate::faults::memory;
use crate::faults::schedule::{Knock, counter, path};

/// As often a call is polled: it is handed over, and looked at by the client.
const POLLS: u32 = 2;

/// The client may have that much more in the end, in bytes, than when everything was full: what others
/// do meanwhile, and batches that it has not looked at yet.
const MOST: isize = 64 << 10;
const MOST_OF_BATCHES: isize = 256 << 10;

impl<F: Face> Caller<F> {
    /// Gives so many calls up, and looks what the client keeps of them.
    pub(super) async fn knock(&self, calls: usize, knock: &Knock) {
        let window = self.world.schedule.settings.window();
        let silent = self.world.is_silent();
        // Those that fill what there is to fill.
        for _ in 0..3 * window {
            self.knock_once(knock, window).await;
        }
        let before = memory::held();
        for _ in 0..calls {
            self.knock_once(knock, window).await;
        }
        let more = memory::held() - before;
        if !silent || !self.world.is_silent() {
            return;
        }
        self.world.happened(Event::Knocks);
        let most = if *knock == Knock::Batch { MOST_OF_BATCHES } else { MOST };
        if more > most {
            self.world.violation(format!("of {calls} calls given up ({knock:?}), {more} bytes are kept"));
        }
    }

    async fn knock_once(&self, knock: &Knock, window: usize) {
        match knock {
            Knock::Watch(path) => {
                drop_after(POLLS, async { drop(self.client.watch(path, None).await) }).await;
            }
            Knock::Read => drop_after(POLLS, async { drop(self.client.read_opt(&counter()).await) }).await,
            Knock::Batch => {
                let reads = vec![Request::Read(path("/w")); window * 2 / 3 + 1];
                drop_after(POLLS, async { drop(self.client.batch(reads).await) }).await;
            }
        }
    }
}
