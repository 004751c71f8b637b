//! HTTP as cheap as it gets, so that what is measured is the server.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::Result;

/// A connection that stays open.
pub(crate) struct Connection {
    stream: TcpStream,
    read: Vec<u8>,
    wrote: Vec<u8>,
}

impl Connection {
    pub(crate) async fn open(address: &str) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, read: Vec::with_capacity(4096), wrote: Vec::with_capacity(1024) })
    }

    /// The body of the answer, which has to be one of success.
    pub(crate) async fn ask(&mut self, path: &str, body: &str) -> Result<&str> {
        self.wrote.clear();
        let head =
            format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n", body.len());
        self.wrote.extend_from_slice(head.as_bytes());
        self.wrote.extend_from_slice(body.as_bytes());
        self.stream.write_all(&self.wrote).await?;
        self.read.clear();
        let (from, until) = loop {
            if self.stream.read_buf(&mut self.read).await? == 0 {
                return Err("the server has closed the connection".into());
            }
            if let Some(whole) = whole(&self.read)? {
                break whole;
            }
        };
        let text = std::str::from_utf8(&self.read)?;
        if text.starts_with("HTTP/1.1 200") { Ok(&text[from..until]) } else { Err(text.into()) }
    }
}

/// Where the body begins and ends, once all of it is there.
fn whole(read: &[u8]) -> Result<Option<(usize, usize)>> {
    const LENGTH: &[u8] = b"content-length: ";
    let Some(end) = read.windows(4).position(|bytes| bytes == b"\r\n\r\n") else { return Ok(None) };
    let head = read[..end].to_ascii_lowercase();
    let length = head.windows(LENGTH.len()).position(|bytes| bytes == LENGTH).ok_or("no Content-Length")?;
    let digits = head[length + LENGTH.len()..].iter().take_while(|byte| byte.is_ascii_digit());
    let length = digits.fold(0, |number, digit| number * 10 + usize::from(digit - b'0'));
    let (from, until) = (end + 4, end + 4 + length);
    Ok((read.len() >= until).then_some((from, until)))
}
