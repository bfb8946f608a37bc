//! A run of xendev: its streams, which can be left unread or lose their reader, and its end.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// A run of xendev. Dropping it kills it.
#[derive(Debug)]
pub(super) struct Program {
    child: Child,
    pid: Pid,
    pub(super) stdout: Stream,
    pub(super) stderr: Stream,
}

/// What is to become of standard output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stdout {
    Read,
    /// It is full, and not read until [`Stream::drain`].
    Full,
}

impl Program {
    /// Starts it, with a folder as its home, which marks it and what it starts.
    pub(super) fn spawn(program: &Path, args: &[&str], home: &Path, stdout: Stdout) -> Result<Self> {
        let (out_reader, mut out) = io::pipe()?;
        let (err_reader, err) = io::pipe()?;
        if stdout == Stdout::Full {
            let size = rustix::pipe::fcntl_getpipe_size(&out)?;
            // Lines that are empty, so that what follows can be read as if they were not there.
            out.write_all(&vec![b'\n'; size])?;
        }
        // Whoever runs the lab may ignore signals, and that is inherited.
        let mut command = Command::new("env");
        command.arg("--default-signal").arg(program).args(args);
        command.env("HOME", format!("{}/", home.display()));
        command.stdin(Stdio::null()).stdout(out).stderr(err).kill_on_drop(true);
        let child = command.spawn().context("running env, of coreutils 8.31 or later")?;
        let pid = child.id().and_then(|pid| Pid::from_raw(pid.try_into().ok()?));
        let pid = pid.context("the program has no process id")?;
        // The command holds the writing ends until it is dropped.
        drop(command);
        let mut out = Stream::new(out_reader.into())?;
        if stdout == Stdout::Read {
            out.drain();
        }
        let mut err = Stream::new(err_reader.into())?;
        err.drain();
        Ok(Self { child, pid, stdout: out, stderr: err })
    }

    pub(super) fn pid(&self) -> Pid {
        self.pid
    }

    /// Sends a signal, if it has not ended.
    pub(super) fn signal(&mut self, signal: Signal) -> Result<()> {
        if !self.has_ended()? {
            rustix::process::kill_process(self.pid, signal)?;
        }
        Ok(())
    }

    pub(super) fn has_ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// Waits for its end; `None` if it does not come in time.
    pub(super) async fn ended_within(&mut self, limit: Duration) -> Result<Option<ExitStatus>> {
        match timeout(limit, self.child.wait()).await {
            Ok(status) => {
                let status = status?;
                self.stdout.finish().await;
                self.stderr.finish().await;
                Ok(Some(status))
            }
            Err(_) => Ok(None),
        }
    }

    /// Kills it and waits for its end.
    pub(super) async fn kill(&mut self) -> Result<()> {
        self.child.kill().await.context("killing xendev")
    }
}

/// The reading end of a pipe that xendev writes to.
#[derive(Debug)]
pub(super) struct Stream {
    unread: Option<Receiver>,
    reading: Option<JoinHandle<()>>,
    text: Arc<Mutex<Vec<u8>>>,
}

/// How long the end of a stream may take after that of the program: who holds it open then is a
/// process that is left, which is looked for elsewhere.
const LATE: Duration = Duration::from_millis(200);

impl Stream {
    fn new(reader: OwnedFd) -> io::Result<Self> {
        Ok(Self { unread: Some(Receiver::from_owned_fd(reader)?), reading: None, text: Arc::default() })
    }

    /// Begins to read, unless nobody can any more.
    pub(super) fn drain(&mut self) {
        if let Some(mut reader) = self.unread.take() {
            let text = self.text.clone();
            self.reading = Some(tokio::spawn(async move {
                let mut bytes = [0; 4096];
                while let Ok(read @ 1..) = reader.read(&mut bytes).await {
                    text.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&bytes[..read]);
                }
            }));
        }
    }

    /// Leaves the pipe without a reader.
    pub(super) async fn close(&mut self) {
        self.unread = None;
        if let Some(reading) = self.reading.take() {
            reading.abort();
            // It was aborted, or had ended.
            _ = reading.await;
        }
    }

    async fn finish(&mut self) {
        if let Some(mut reading) = self.reading.take()
            && timeout(LATE, &mut reading).await.is_err()
        {
            reading.abort();
        }
    }

    /// What was read.
    pub(super) fn text(&self) -> String {
        let text = self.text.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&text).trim().to_owned()
    }
}
