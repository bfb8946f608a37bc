//! Standard output and standard error, each written by a thread of its own.
//!
//! A pipe that is full blocks whoever writes to it, and a pipe without a reader fails them. An
//! operation on a device must suffer neither: it puts its lines into a queue and goes on. What
//! becomes of the lines costs the output alone, never the operation or its exit status.
//!
//! A thread begins with the first line that there is for it: most commands that succeed say nothing.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::os::fd::BorrowedFd;
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{Errno, retry_on_intr};
use rustix::stdio;
use rustix::termios::isatty;

use crate::progress::StatusLine;

/// How many texts wait for a reader of standard error before the oldest is dropped.
const BACKLOG: usize = 1000;

/// The bytes of one write. Each write that succeeds shows that there is a reader.
const CHUNK: usize = 4096;

/// How often the status line on a terminal moves.
const TICK: Duration = Duration::from_millis(200);

/// Standard output. It keeps every text until it is written.
pub(crate) fn stdout() -> &'static Printer {
    static STDOUT: OnceLock<&Printer> = OnceLock::new();
    STDOUT.get_or_init(|| Printer::new(stdio::stdout(), usize::MAX))
}

/// Standard error.
pub(crate) fn stderr() -> &'static Printer {
    static STDERR: OnceLock<&Printer> = OnceLock::new();
    STDERR.get_or_init(|| Printer::new(stdio::stderr(), BACKLOG))
}

/// A descriptor, and the thread that writes to it.
pub(crate) struct Printer {
    fd: BorrowedFd<'static>,
    terminal: bool,
    backlog: usize,
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    texts: VecDeque<String>,
    /// The line that stands below all others on a terminal until it is taken away.
    status: Option<String>,
    /// The status line as the thread has drawn it.
    shown: Option<String>,
    /// Whether there is a thread.
    started: bool,
    /// Whether the thread is writing now.
    writing: bool,
    /// No thread can be had: who waits until everything is written does it.
    alone: bool,
    /// Number of writes that succeeded.
    writes: u64,
    /// Why nothing is written any more.
    broken: Option<ErrorKind>,
}

impl Queue {
    /// Whether the thread has something to do, or is doing it.
    fn is_busy(&self) -> bool {
        self.writing || !self.texts.is_empty() || self.status != self.shown
    }
}

impl Printer {
    fn new(fd: BorrowedFd<'static>, backlog: usize) -> &'static Self {
        let (queue, changed) = Default::default();
        let terminal = isatty(fd);
        // Leaked, since its thread may be blocked in a write until the process ends.
        Box::leak(Box::new(Self { fd, terminal, backlog, queue, changed }))
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a text, which ends with a line feed. Never blocks.
    pub(crate) fn put(&'static self, text: impl Into<String>) {
        self.change(|queue| {
            if queue.texts.len() >= self.backlog {
                queue.texts.pop_front();
            }
            queue.texts.push_back(text.into());
        });
    }

    /// Whether status lines are shown.
    pub(crate) fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// Shows a status line if this is a terminal, or takes it away. Never blocks.
    pub(crate) fn status(&'static self, status: Option<String>) {
        if self.terminal {
            self.change(|queue| queue.status = status);
        }
    }

    fn change(&'static self, change: impl FnOnce(&mut Queue)) {
        let mut queue = self.lock();
        if queue.broken.is_some() {
            return;
        }
        change(&mut queue);
        if !queue.started && queue.is_busy() {
            queue.started = true;
            let thread = thread::Builder::new().name("printer".to_owned());
            queue.alone = thread.spawn(|| self.work()).is_err();
        }
        self.changed.notify_all();
    }

    /// Waits until everything is written, for at most `limit`.
    pub(crate) fn flush_within(&self, limit: Duration) -> Result<(), ErrorKind> {
        self.flush(limit, false)
    }

    /// Waits until everything is written, as long as a reader takes something every `patience`.
    pub(crate) fn flush_while_read(&self, patience: Duration) -> Result<(), ErrorKind> {
        self.flush(patience, true)
    }

    fn flush(&self, limit: Duration, renewed: bool) -> Result<(), ErrorKind> {
        if self.lock().alone {
            return self.write_queued().map_err(|error| error.kind());
        }
        // An overflow means that there is no deadline.
        let later = || Instant::now().checked_add(limit);
        let mut queue = self.lock();
        let (mut deadline, mut writes) = (later(), queue.writes);
        loop {
            if let Some(kind) = queue.broken {
                return Err(kind);
            }
            if !queue.is_busy() {
                return Ok(());
            }
            if renewed && queue.writes != writes {
                (deadline, writes) = (later(), queue.writes);
            }
            let left = deadline.map_or(Duration::MAX, |end| end.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return Err(ErrorKind::TimedOut);
            }
            let waited = self.changed.wait_timeout(queue, left);
            queue = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Writes what is queued, however long that takes.
    fn write_queued(&self) -> io::Result<()> {
        while let Some(text) = { self.lock().texts.pop_front() } {
            self.write(text.as_bytes())?;
        }
        Ok(())
    }

    fn work(&self) {
        let mut line = StatusLine::default();
        let mut queue = self.lock();
        loop {
            if !queue.is_busy() {
                self.changed.notify_all();
                let wait = if queue.shown.is_some() { TICK } else { Duration::MAX };
                let waited = self.changed.wait_timeout(queue, wait).unwrap_or_else(PoisonError::into_inner);
                queue = waited.0;
                if !waited.1.timed_out() {
                    continue;
                }
            }
            let (text, status) = (queue.texts.pop_front(), queue.status.clone());
            queue.writing = true;
            drop(queue);
            line.show(status.as_deref());
            let written = text.map_or(Ok(()), |text| line.above(|| self.write(text.as_bytes())));
            queue = self.lock();
            (queue.writing, queue.shown) = (false, status);
            if let Err(error) = written {
                queue.texts.clear();
                queue.broken = Some(error.kind());
                self.changed.notify_all();
                return;
            }
        }
    }

    fn write(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match rustix::io::write(self.fd, &bytes[..bytes.len().min(CHUNK)]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => {
                    bytes = &bytes[count..];
                    self.lock().writes += 1;
                    self.changed.notify_all();
                }
                Err(Errno::INTR) => {}
                // Whoever shares the descriptor may have made it non-blocking.
                Err(Errno::AGAIN) => {
                    retry_on_intr(|| poll(&mut [PollFd::new(&self.fd, PollFlags::OUT)], None))?;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{PipeReader, Read, pipe};
    use std::os::fd::{AsFd, OwnedFd};

    use super::*;

    /// A printer on a pipe of one page, which stays open.
    fn printer(backlog: usize) -> (PipeReader, &'static Printer) {
        let (reader, writer) = pipe().unwrap();
        rustix::pipe::fcntl_setpipe_size(&writer, CHUNK).unwrap();
        let writer: &'static OwnedFd = Box::leak(Box::new(writer.into()));
        (reader, Printer::new(writer.as_fd(), backlog))
    }

    #[test]
    fn a_full_pipe_costs_the_oldest_lines_and_no_time() {
        let (mut reader, printer) = printer(10);
        let line = |number: usize| format!("{number:0>1023}\n");
        (0..1000).for_each(|number| printer.put(line(number)));
        assert_eq!(printer.flush_within(Duration::from_millis(20)), Err(ErrorKind::TimedOut));
        assert_eq!(printer.flush_while_read(Duration::from_millis(20)), Err(ErrorKind::TimedOut));

        let mut seen = Vec::new();
        while !seen.ends_with(line(999).as_bytes()) {
            let mut page = [0; CHUNK];
            let count = reader.read(&mut page).unwrap();
            seen.extend_from_slice(&page[..count]);
        }
        assert_eq!(printer.flush_while_read(Duration::MAX), Ok(()));
        let seen: Vec<usize> =
            seen.chunks(1024).map(|line| str::from_utf8(line).unwrap().trim().parse().unwrap()).collect();
        assert_eq!(seen[seen.len() - 10..], (990..1000).collect::<Vec<_>>());
        // Four are in the pipe and one with the thread.
        assert!(seen.len() <= 15, "{seen:?}");
    }

    #[test]
    fn a_reader_that_leaves_is_told_once_and_for_all() {
        let (reader, printer) = printer(usize::MAX);
        drop(reader);
        printer.put("lost\n");
        assert_eq!(printer.flush_while_read(Duration::MAX), Err(ErrorKind::BrokenPipe));
        printer.put("lost too\n");
        printer.status(Some("nobody sees this".to_owned()));
        assert_eq!(printer.flush_within(Duration::MAX), Err(ErrorKind::BrokenPipe));
    }

    #[test]
    fn a_descriptor_that_somebody_made_non_blocking_loses_nothing() {
        let (mut reader, printer) = printer(usize::MAX);
        rustix::fs::fcntl_setfl(printer.fd, rustix::fs::OFlags::NONBLOCK).unwrap();
        let text = "x".repeat(100_000);
        printer.put(text.clone());
        let mut seen = vec![0; text.len()];
        reader.read_exact(&mut seen).unwrap();
        assert_eq!((printer.flush_within(Duration::MAX), seen), (Ok(()), text.into_bytes()));
    }
}
