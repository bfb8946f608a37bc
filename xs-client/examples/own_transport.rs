//! How does one bring a way to the store of one's own? With a byte stream, and a [`Connect`] that
//! makes one; what the client does over it is the same, reconnection included.
//!
//!     cargo run -p xs-client --example own_transport

use std::io::Result;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use xs_client::{Client, Config, Connect, DomId, Error};
use xs_store::Store;

struct Traced(Store);

impl Connect for Traced {
    type Transport = TracedStream;
    fn at(&self) -> String {
        "a store in this process".into()
    }
    async fn connect(&mut self) -> Result<TracedStream> {
        Ok(TracedStream(self.0.connect(DomId::DOM0)))
    }
}

/// A byte stream that prints what goes through it. To be a `Transport` it needs nothing else.
struct TracedStream(DuplexStream);

impl AsyncRead for TracedStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.0).poll_read(cx, buf))?;
        println!("<- {}", buf.filled()[before..].escape_ascii());
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TracedStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<Result<usize>> {
        let count = ready!(Pin::new(&mut self.0).poll_write(cx, buf))?;
        println!("-> {}", buf[..count].escape_ascii());
        Poll::Ready(Ok(count))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[tokio::main]
async fn main() -> std::result::Result<(), Error> {
    let client = Client::connect_with(Traced(Store::new()), Config::default()).await?;
    client.write(&"/a".parse()?, "1").await?;
    println!("/a = {:?}", client.read(&"/a".parse()?).await?);
    Ok(())
}
